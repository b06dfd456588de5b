"""Products of factors: numpy's dense answers, without the dense matrices."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from shared.low_rank import Product, compressed, product_norm, singular, split_rank, stacked


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def product(seed: int, out: int, rank: int, width: int) -> Product:
    return Product(draw(seed, out, rank), draw(seed + 1000, rank, width))


def dense(product: Product) -> NDArray[np.float64]:
    return product.up.double().numpy() @ product.down.double().numpy()


def truncated(matrix: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
    """The slow reference: numpy's SVD of the dense matrix."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


SHAPES = st.tuples(*[st.integers(1, 9)] * 3, st.integers(0, 10**6))


@given(SHAPES, st.lists(st.floats(0.1, 10), min_size=1, max_size=4))
def test_a_stack_is_the_weighted_sum_of_products_of_any_ranks(
    shape: tuple[int, int, int, int], weights: list[float]
) -> None:
    out, width, rank, seed = shape
    parts = [product(seed + n, out, rank + n, width) for n in range(len(weights))]
    expected = sum(w * dense(part) for w, part in zip(weights, parts, strict=True))
    np.testing.assert_allclose(dense(stacked(parts, weights)), expected, atol=1e-9)


@given(SHAPES)
def test_norm_singular_values_and_compression_are_those_of_the_dense_matrix(
    shape: tuple[int, int, int, int],
) -> None:
    out, width, rank, seed = shape
    one = product(seed, out, rank, width)
    matrix = dense(one)
    assert product_norm(one) == pytest.approx(np.linalg.norm(matrix), rel=1e-9)
    values = singular(one)[1].numpy()
    np.testing.assert_allclose(
        values, np.linalg.svd(matrix, compute_uv=False)[: len(values)], rtol=1e-7, atol=1e-9
    )
    small = compressed(one)
    np.testing.assert_allclose(dense(small), matrix, atol=1e-9)
    assert len(small.down) <= min(out, width, rank)


@given(SHAPES, st.integers(1, 4))
def test_the_best_part_is_numpys_truncation_and_the_rest_is_the_rest(
    shape: tuple[int, int, int, int], rank: int
) -> None:
    out, width, wide, seed = shape
    whole = product(seed, out, wide, width)
    best, rest = split_rank(whole, rank, near=draw(seed + 7, rank, width))
    assert best.up.shape == (out, rank) and best.down.shape == (rank, width)
    np.testing.assert_allclose(dense(best), truncated(dense(whole), rank), atol=1e-7)
    np.testing.assert_allclose(dense(best) + dense(rest), dense(whole), atol=1e-7)


@given(SHAPES)
def test_factors_that_fit_stay_what_they_are(shape: tuple[int, int, int, int]) -> None:
    """A is written as it was, up to rounding, so one region alone gets its own factors back."""
    out, _, rank, seed = shape
    down = torch.linalg.qr(draw(seed, 12, min(rank, out))).Q.mT.float()  # well conditioned
    one = Product(draw(seed + 1, out, len(down)), down)
    best, rest = split_rank(one, len(down), near=down)
    torch.testing.assert_close(best.down.float(), one.down, atol=1e-5, rtol=0)
    torch.testing.assert_close(best.up.float(), one.up, atol=1e-4, rtol=1e-4)
    assert product_norm(rest) == pytest.approx(0, abs=1e-6)


def test_a_little_change_of_the_product_is_a_little_change_of_the_factors() -> None:
    """What SVD alone does not give: signs and equal singular values turn as they like."""
    near = draw(1, 4, 20)
    one = Product(draw(2, 10, 4), near)
    moved = Product(one.up + 1e-4 * draw(3, 10, 4), near + 1e-4 * draw(4, 4, 20))
    before, after = (split_rank(p, 4, near=near)[0] for p in (one, moved))
    assert (before.down - after.down).abs().max() < 1e-2
    assert (before.up - after.up).abs().max() < 1e-2


def test_an_empty_product_leaves_a_where_it_was_and_b_zero() -> None:
    """As before the first round: A is drawn, B is zero, and both can be learned from there."""
    near = draw(1, 3, 8)
    best, rest = split_rank(Product(torch.zeros(5, 3), near), 3, near=near)
    torch.testing.assert_close(best.down.float(), near, atol=1e-5, rtol=1e-5)
    assert not best.up.any() and rest.down.shape == (0, 8)


def test_directions_a_product_does_not_use_are_filled_from_what_was_there() -> None:
    near = draw(1, 3, 8)
    best, _ = split_rank(Product(draw(2, 5, 1), draw(3, 1, 8)), 3, near=near)
    assert torch.linalg.matrix_rank(best.down) == 3
    np.testing.assert_allclose(dense(best), dense(Product(draw(2, 5, 1), draw(3, 1, 8))), atol=1e-6)


def test_b_stays_small_where_a_was_nearly_at_right_angles() -> None:
    """Without a floor B would grow as the inverse of the angle, and Adam's steps with it."""
    near = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    tilted = Product(torch.eye(2), torch.tensor([[1.0, 0.0, 0.0], [0.0, 1e-6, 1.0]]))
    best, _ = split_rank(tilted, 2, near=near)
    np.testing.assert_allclose(dense(best), dense(tilted), atol=1e-9)
    assert best.up.abs().max() < 11


def test_a_layer_narrower_than_the_rank() -> None:
    whole = product(5, 6, 3, 2)
    best, rest = split_rank(whole, 4, near=draw(6, 4, 2))
    assert best.down.shape == (4, 2)
    np.testing.assert_allclose(dense(best), dense(whole), atol=1e-6)
    assert product_norm(rest) == 0
