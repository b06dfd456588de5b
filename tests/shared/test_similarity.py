"""Every distance beside a slow, obvious reference; they agree on what is the same and what is not.

Searches by each of them are held against brute force in tests/shared/retrieval/test_distances.py.
"""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.config import DISTANCES
from shared.losses import image_text_loss, masked_info_nce
from shared.similarity import BY_FAISS_METRIC, BY_NAME


def units(seed: int, rows: int, dim: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(rows, dim, generator=generator), dim=1)


def arrays(*tensors: Tensor) -> list[NDArray[np.float32]]:
    return [tensor.numpy() for tensor in tensors]


def slow_similarity(name: str, q: NDArray[np.float32], p: NDArray[np.float32]) -> float:
    pairs = list(zip(q.tolist(), p.tolist(), strict=True))
    if name == "cosine":
        return sum(a * b for a, b in pairs)
    if name == "euclidean":
        return -math.sqrt(sum((a - b) ** 2 for a, b in pairs))
    return -sum(abs(a - b) for a, b in pairs) * math.sqrt(math.pi / (2 * len(pairs)))


def slow_score(name: str, q: NDArray[np.float32], p: NDArray[np.float32]) -> float:
    similarity = slow_similarity(name, q, p)
    return similarity if name == "cosine" else max(1 - similarity**2 / 2, -1)


@pytest.mark.parametrize("name", DISTANCES)
def test_all_ways_of_asking_agree_with_the_slow_one(name: str) -> None:
    distance, query, product = BY_NAME[name], units(0, 3), units(1, 5)
    q, p = arrays(query, product)
    similarity = [[slow_similarity(name, one, other) for other in p] for one in q]
    torch.testing.assert_close(distance.similarity(query, product), torch.tensor(similarity))
    expected = np.array([[slow_score(name, one, other) for other in p] for one in q])
    np.testing.assert_allclose(distance.pairwise(q, p), expected, atol=1e-6)
    found = distance.scores(q, np.stack([p] * 3))
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    assert found.dtype == distance.pairwise(q, p).dtype == np.float32


@pytest.mark.parametrize("name", DISTANCES)
def test_a_score_falls_as_the_distance_grows(name: str) -> None:
    distance, query, product = BY_NAME[name], units(0, 1, 64), units(1, 200, 64)
    by_similarity = distance.similarity(query, product)[0].argsort().numpy()
    scores = distance.scores(query.numpy(), product.numpy()[None])[0]
    np.testing.assert_array_equal(scores.argsort(kind="stable"), by_similarity)


@pytest.mark.parametrize("name", DISTANCES)
def test_the_same_is_1_and_nothing_in_common_about_0(name: str) -> None:
    distance, vectors = BY_NAME[name], units(0, 400, 384).numpy()
    same = distance.scores(vectors, vectors[:, None])[:, 0]
    np.testing.assert_allclose(same, 1, atol=1e-6)
    others = distance.pairwise(vectors[:200], vectors[200:])
    assert abs(float(others.mean())) < 0.02
    opposite = distance.scores(vectors, -vectors[:, None])
    assert opposite.min() >= -1 - 1e-6


def test_the_euclidean_score_of_unit_vectors_is_the_cosine() -> None:
    q, p = arrays(units(0, 20), units(1, 30))
    cosine, euclidean = (BY_NAME[name].pairwise(q, p) for name in ("cosine", "euclidean"))
    np.testing.assert_allclose(euclidean, cosine, atol=1e-6)


def test_one_temperature_means_about_the_same() -> None:
    """Similarities of 384 dimensions spread alike around 60 degrees, where their slopes are 1."""
    query = units(0, 1, 384)
    near = nn.functional.normalize(query + units(1, 500, 384) * math.sqrt(3), dim=1)
    spread = [float(BY_NAME[name].similarity(query, near).std()) for name in DISTANCES]
    assert max(spread) / min(spread) < 1.15


@pytest.mark.parametrize("name", DISTANCES)
def test_gradients_are_finite_also_where_two_vectors_are_the_same(name: str) -> None:
    query = units(0, 3).requires_grad_()
    product = torch.cat([query.detach()[:1], units(1, 4)]).requires_grad_()
    BY_NAME[name].similarity(query, product).sum().backward()
    for tensor in (query, product):
        assert tensor.grad is not None and tensor.grad.isfinite().all()


@pytest.mark.parametrize("name", DISTANCES)
def test_losses_are_of_similarities_over_the_temperature(name: str) -> None:
    query, product = units(0, 4), units(1, 4)
    logits = (
        torch.tensor(
            [
                [slow_similarity(name, one, other) for other in product.numpy()]
                for one in query.numpy()
            ]
        )
        / 0.2
    )
    target = torch.arange(4)
    both = [nn.functional.cross_entropy(part, target) for part in (logits, logits.T)]
    expected = (both[0] + both[1]) / 2
    found = masked_info_nce(
        query,
        product,
        query_index=target,
        product_index=target,
        weight=torch.ones(4),
        known_positive=torch.eye(4, dtype=torch.bool),
        temperature=torch.tensor(0.2),
        distance=name,
    )
    torch.testing.assert_close(found, expected)
    every = torch.ones(4, dtype=torch.bool)
    aligned = image_text_loss(query, product, every, temperature=torch.tensor(0.2), distance=name)
    torch.testing.assert_close(aligned, expected)


@pytest.mark.parametrize("name", DISTANCES)
def test_nothing_compared_with_something_is_nothing(name: str) -> None:
    some = units(0, 3).numpy()
    assert BY_NAME[name].pairwise(some[:0], some).shape == (0, 3)
    assert BY_NAME[name].pairwise(some, some[:0]).shape == (3, 0)


def test_faiss_names_each_of_them() -> None:
    assert {BY_FAISS_METRIC[one.faiss_metric] for one in BY_NAME.values()} == {*BY_NAME.values()}
