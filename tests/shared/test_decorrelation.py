"""DCCO's statistics and loss: against plain loops, by the paper's theorem, and by hand."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from shared.decorrelation import (
    MOMENTS,
    Statistics,
    anchored,
    combined,
    cross_correlation,
    decorrelation_loss,
    statistics_of,
    why_impossible,
)

PAIRS, DIM = 12, 5
SPLIT = (7, 1, 4)  # one region has a single pair


def unit(seed: int, pairs: int = PAIRS, dim: int = DIM) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(pairs, dim, generator=generator, dtype=torch.float64)
    return nn.functional.normalize(vectors, dim=1)


QUERIES, PRODUCTS = unit(1), nn.functional.normalize(unit(1) + 0.5 * unit(2), dim=1)
WEIGHTS = torch.linspace(0.5, 3.0, PAIRS, dtype=torch.float64)


def whole() -> Statistics:
    return statistics_of(QUERIES, PRODUCTS, WEIGHTS)


def slow_mean(values: list[float], weights: list[float]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def slow_correlation(queries: Tensor, products: Tensor, weights: Tensor) -> list[list[float]]:
    """The definition, with plain numbers; about the means, not by moments."""
    w = weights.tolist()
    columns = []
    for vectors in (queries, products):
        columns.append([[row[i] for row in vectors.tolist()] for i in range(vectors.shape[1])])

    def covariance(a: list[float], b: list[float]) -> float:
        x, y = slow_mean(a, w), slow_mean(b, w)
        return slow_mean([(p - x) * (q - y) for p, q in zip(a, b, strict=True)], w)

    return [
        [covariance(f, g) / (covariance(f, f) * covariance(g, g)) ** 0.5 for g in columns[1]]
        for f in columns[0]
    ]


def slow_loss(queries: Tensor, products: Tensor, weights: Tensor, off_diagonal: float) -> float:
    correlation, total = slow_correlation(queries, products, weights), 0.0
    for i, row in enumerate(correlation):
        for j, value in enumerate(row):
            share = off_diagonal / (len(row) - 1)
            total += (1 - value) ** 2 if i == j else share * value**2
    return total


def test_correlation_and_loss_are_those_of_plain_loops() -> None:
    expected = torch.tensor(slow_correlation(QUERIES, PRODUCTS, WEIGHTS), dtype=torch.float64)
    torch.testing.assert_close(cross_correlation(whole()), expected, atol=1e-10, rtol=0)
    for off_diagonal in (0.0, 20.0):
        slow = slow_loss(QUERIES, PRODUCTS, WEIGHTS, off_diagonal)
        assert float(decorrelation_loss(whole(), off_diagonal)) == pytest.approx(slow, abs=1e-9)


def test_two_dimensions_by_hand() -> None:
    """F_1 and G_1 agree; F_2 = -1, 1, -1, 1 and G_2 = 1, 1, -1, -1 have nothing in common."""
    queries = torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0], [-1.0, 1.0]])
    products = torch.tensor([[2.0, 1.0], [2.0, 1.0], [0.0, -1.0], [0.0, -1.0]])
    found = statistics_of(queries, products, torch.ones(4))
    assert found.product.tolist() == [1, 0] and found.product_squared.tolist() == [2, 1]
    assert found.cross.tolist() == [[1, 1], [0, 0]]
    assert cross_correlation(found).tolist() == [[1, 1], [0, 0]]
    assert float(decorrelation_loss(found, 20.0)) == 0 + 1 + 20 / (2 - 1) * (1 + 0)


def test_a_weight_of_two_is_a_pair_given_twice() -> None:
    weights = torch.ones(PAIRS, dtype=torch.float64).index_fill(0, torch.tensor(3), 2.0)
    order = [*range(PAIRS), 3]
    twice = statistics_of(QUERIES[order], PRODUCTS[order], torch.ones(PAIRS + 1).double())
    assert_same(statistics_of(QUERIES, PRODUCTS, weights), twice)


def parts(queries: Tensor, products: Tensor) -> list[Statistics]:
    split = (torch.split(tensor, SPLIT) for tensor in (queries, products, WEIGHTS))
    return [statistics_of(f, g, w) for f, g, w in zip(*split, strict=True)]


def assert_same(one: Statistics, other: Statistics) -> None:
    for name in (*MOMENTS, "weight"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-12, rtol=0)


def test_parts_together_are_the_whole_in_any_order() -> None:
    regions = parts(QUERIES, PRODUCTS)
    assert_same(combined(regions), whole())
    assert_same(combined(regions[::-1]), whole())
    assert_same(combined([combined(regions[:2]), regions[2]]), whole())
    assert_same(combined([whole()]), whole())


def test_anchored_has_the_federations_value_and_the_batchs_gradient() -> None:
    batch = QUERIES[:4].clone().requires_grad_()
    here = statistics_of(batch, PRODUCTS[:4], WEIGHTS[:4])
    found, factor = anchored(here, whole()), unit(3, DIM, DIM)
    for name in MOMENTS:
        assert torch.equal(getattr(found, name), getattr(whole(), name))
    (gradient,) = torch.autograd.grad((found.cross * factor).sum(), batch, retain_graph=True)
    (expected,) = torch.autograd.grad((here.cross * factor).sum(), batch)
    assert torch.equal(gradient, expected) and gradient.abs().max() > 0


def test_the_regions_gradients_add_up_to_that_of_all_pairs_in_one_place() -> None:
    """The paper's theorem, through two small towers."""
    torch.manual_seed(0)
    towers = [
        nn.Sequential(nn.Linear(DIM, 8), nn.Tanh(), nn.Linear(8, 4)).double() for _ in range(2)
    ]
    parameters = [p for tower in towers for p in tower.parameters()]
    query, product = (
        nn.functional.normalize(tower(given), dim=1)
        for tower, given in zip(towers, (QUERIES, PRODUCTS), strict=True)
    )

    def gradient(statistics: Statistics) -> Tensor:
        loss = decorrelation_loss(statistics, 20.0)
        found = torch.autograd.grad(loss, parameters, retain_graph=True)
        return torch.cat([g.flatten() for g in found])

    regions = parts(query, product)
    federation = combined(regions)
    shares = [float(region.weight / federation.weight) for region in regions]
    summed = sum(
        share * gradient(anchored(region, federation))
        for share, region in zip(shares, regions, strict=True)
    )
    central = gradient(statistics_of(query, product, WEIGHTS))
    torch.testing.assert_close(summed, central, atol=1e-8, rtol=0)
    alone = sum(s * gradient(region) for s, region in zip(shares, regions, strict=True))
    assert (alone - central).abs().max() > 1e-2  # without the federation's it is another one


def test_what_does_not_vary_correlates_with_nothing() -> None:
    one = QUERIES[:1].float().requires_grad_()
    found = statistics_of(one, PRODUCTS[:1].float(), torch.ones(1))
    loss = decorrelation_loss(found, 20.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(DIM, abs=1e-3)
    assert one.grad is not None and one.grad.isfinite().all()


@pytest.mark.parametrize("scale", [torch.float32, torch.float64])
def test_statistics_of_unit_vectors_are_possible(scale: torch.dtype) -> None:
    found = statistics_of(QUERIES.to(scale), PRODUCTS.to(scale), WEIGHTS.to(scale))
    assert why_impossible(found) is None
    assert why_impossible(statistics_of(QUERIES[:1], PRODUCTS[:1], WEIGHTS[:1])) is None


@pytest.mark.parametrize(
    ("name", "factor", "reason"),
    [
        ("query", 9.0, "query: a variance is negative"),
        ("product", 9.0, "product: a variance is negative"),
        ("query_squared", 2.0, "query_squared is not of unit vectors"),
        ("product_squared", -1.0, "product_squared is not of unit vectors"),
        ("cross", 9.0, "cross is larger than the squares allow"),
    ],
)
def test_what_no_unit_vectors_have_is_named(name: str, factor: float, reason: str) -> None:
    changed = replace(whole(), **{name: getattr(whole(), name) * factor})
    assert why_impossible(changed) == reason
