"""Gaussians of vectors: what is fitted is the covariance, and what is drawn has it."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from shared.compression import compress, expand
from shared.config import INT8
from shared.gaussians import COMPONENTS, Gaussians, drawn, fitted, forms, stacked, why_impossible


def unit_vectors(number: int, dim: int, seed: int = 0) -> Tensor:
    """Around a mean, and more spread in some directions than in others."""
    noise = torch.randn(number, dim, generator=torch.manual_seed(seed))
    return normalize(1.0 + noise * torch.linspace(0.1, 1.0, dim))


def covariance(gaussian: Gaussians) -> Tensor:
    """W Wᵀ + s² I of the first, (V, V)."""
    factor = gaussian.factor[0]
    return factor.T @ factor + gaussian.residual[0] * torch.eye(factor.shape[1])


def sample_covariance(vectors: Tensor) -> Tensor:
    return torch.cov(vectors.T, correction=0)


def test_with_as_many_components_as_there_are_directions_it_is_the_covariance_itself() -> None:
    vectors = unit_vectors(200, 8)
    found = fitted(vectors)
    assert {name: tuple(t.shape) for name, t in found.tensors().items()} == forms(1, 8)
    torch.testing.assert_close(found.mean[0], vectors.mean(dim=0))
    torch.testing.assert_close(covariance(found), sample_covariance(vectors))


def test_the_components_are_the_largest_and_the_rest_is_spread_evenly() -> None:
    vectors = unit_vectors(2000, 48)
    found = fitted(vectors)
    values = torch.linalg.eigvalsh(sample_covariance(vectors)).flip(0)
    modelled = torch.linalg.eigvalsh(covariance(found)).flip(0)
    torch.testing.assert_close(modelled[:COMPONENTS], values[:COMPONENTS], atol=1e-5, rtol=1e-3)
    rest = values[COMPONENTS:].mean()
    torch.testing.assert_close(modelled[COMPONENTS:], rest.expand(16), atol=1e-5, rtol=1e-3)


def test_of_few_vectors_few_components_are_told() -> None:
    found = fitted(unit_vectors(25, 16))
    assert (found.factor[0].norm(dim=1) > 0).tolist() == [True, True] + [False] * 30
    assert why_impossible(found) is None


@pytest.mark.parametrize(("number", "dim"), [(10, 2), (100, 16), (1000, 64)])
def test_the_mean_square_of_unit_vectors_is_kept(number: int, dim: int) -> None:
    found = fitted(unit_vectors(number, dim))
    variances = found.factor.square().sum() + dim * found.residual[0]
    assert float(found.mean.square().sum() + variances) == pytest.approx(1, abs=1e-5)
    assert why_impossible(found) is None


def test_what_is_drawn_has_unit_length_and_lies_as_the_vectors_do() -> None:
    vectors = unit_vectors(2000, 16)
    made = drawn(fitted(vectors), 20_000, np.random.default_rng(0))
    assert made.shape == (20_000, 16)
    torch.testing.assert_close(made.norm(dim=1), torch.ones(20_000))
    torch.testing.assert_close(made.mean(dim=0), vectors.mean(dim=0), atol=0.02, rtol=0)
    found, wanted = sample_covariance(made), sample_covariance(vectors)
    assert (found - wanted).norm() < 0.15 * wanted.norm()


def test_each_of_several_is_drawn_from_alike_and_the_draw_can_be_repeated() -> None:
    places = torch.eye(3)
    still = Gaussians(places, torch.zeros(3, COMPONENTS, 3), torch.zeros(3))
    made = drawn(still, 3000, np.random.default_rng(1))
    counts = [int((made == place).all(dim=1).sum()) for place in places]
    assert sum(counts) == 3000 and min(counts) > 900
    assert torch.equal(made, drawn(still, 3000, np.random.default_rng(1)))
    spread = fitted(unit_vectors(200, 8))
    one, other = (drawn(spread, 9, np.random.default_rng(seed)) for seed in (1, 2))
    assert not torch.equal(one, other)


def test_several_stand_behind_each_other() -> None:
    one, other = fitted(unit_vectors(100, 8)), fitted(unit_vectors(100, 8, seed=1))
    both = stacked([one, other])
    assert {name: tuple(t.shape) for name, t in both.tensors().items()} == forms(2, 8)
    assert torch.equal(both.mean[1], other.mean[0])
    assert why_impossible(both) is None


def test_int8_leaves_them_possible() -> None:
    found = fitted(unit_vectors(2000, 384)).tensors()
    crossed = {k: torch.from_numpy(expand(*compress(v.numpy(), INT8))) for k, v in found.items()}
    assert why_impossible(Gaussians(**crossed)) is None


SOUND = fitted(unit_vectors(200, 8))


@pytest.mark.parametrize(
    ("name", "factor", "reason"),
    [
        ("mean", 1.1, "not of unit vectors"),
        ("mean", 0.0, "not of unit vectors"),
        ("factor", 2.0, "not of unit vectors"),
        ("residual", -1.0, "a variance is negative"),
    ],
)
def test_what_cannot_be_of_unit_vectors_is_said(name: str, factor: float, reason: str) -> None:
    tensors = SOUND.tensors()
    spoilt = stacked([SOUND, Gaussians(**{**tensors, name: factor * tensors[name]})])
    why = why_impossible(spoilt)
    assert why is not None and reason in why


def test_none_at_all_is_said() -> None:
    nothing = Gaussians(**{name: tensor[:0] for name, tensor in SOUND.tensors().items()})
    assert why_impossible(nothing) == "there is none"
