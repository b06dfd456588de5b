"""Means of factors and of products: laws, and the dense arithmetic beside them."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from server import aggregation
from server.aggregation import ExactMean, FactorMean, Mean, new_mean
from shared.adapter import Adapter, add, is_residual, residual_names
from shared.config import AGGREGATIONS

RANK = 2
# A linear layer and a 1x1 convolution, as peft names and shapes their factors, and a scalar.
SHAPES = {
    "fusion/gate": (2,),
    "image/conv.lora_A.weight": (RANK, 5, 1, 1),
    "image/conv.lora_B.weight": (4, RANK, 1, 1),
    "text/linear.lora_A.weight": (RANK, 6),
    "text/linear.lora_B.weight": (7, RANK),
}
LAYERS = ("image/conv", "text/linear")
WEIGHTS = (3, 1, 6, 2)


def draw(seed: int, scale: float = 1.0) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    return {k: scale * torch.randn(shape, generator=generator) for k, shape in SHAPES.items()}


SENT = draw(0)
UPDATES = [draw(seed, 0.3) for seed in range(1, 5)]


def mean_of(
    name: str, updates: list[Adapter] = UPDATES, weights: tuple[int, ...] = WEIGHTS
) -> Mean:
    mean = new_mean(name, SENT)
    for update, weight in zip(updates, weights, strict=True):
        mean.add(update, weight)
    return mean.value()


def dense(adapter: Adapter, layer: str) -> NDArray[np.float64]:
    up, down = (adapter[f"{layer}.lora_{x}.weight"].flatten(1).double().numpy() for x in "BA")
    return up @ down


def mean_product(layer: str) -> NDArray[np.float64]:
    ends = [dense(add(SENT, update), layer) for update in UPDATES]
    return np.average(ends, axis=0, weights=WEIGHTS)


def distance(adapter: Adapter) -> tuple[float, float]:
    """The slow reference of the bias: dense products, and numpy's norm of what is between them."""
    between = [mean_product(layer) - dense(adapter, layer) for layer in LAYERS]
    whole = np.sqrt(sum(np.sum(mean_product(layer) ** 2) for layer in LAYERS))
    size = np.sqrt(sum(np.sum(part**2) for part in between))
    return float(size), float(size / whole)


def close(a: Adapter, b: Adapter, atol: float = 1e-5) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], atol=atol) for k in a)


@pytest.mark.parametrize("name", ["factors", "exact"])
def test_the_bias_is_how_far_products_are_from_their_mean(name: str) -> None:
    found = mean_of(name)
    assert (found.bias, found.relative_bias) == pytest.approx(distance(found.adapter), rel=1e-4)


def test_factors_worked_by_hand() -> None:
    """B = A = 1 and B = A = 3: the mean product is 5, the product of means 4."""
    sent = {"a.lora_A.weight": torch.zeros(1, 1), "a.lora_B.weight": torch.zeros(1, 1)}
    mean = FactorMean(sent)
    for number in (1.0, 3.0):
        mean.add({name: torch.full((1, 1), number) for name in sent}, 5)
    assert mean.value() == Mean({name: torch.tensor([[2.0]]) for name in sent}, 1.0, 1 / 5)


def test_exact_is_numpys_truncation_of_the_dense_mean_of_products() -> None:
    found = mean_of("exact").adapter
    for layer in LAYERS:
        left, values, right = np.linalg.svd(mean_product(layer))
        best = (left[:, :RANK] * values[:RANK]) @ right[:RANK]
        np.testing.assert_allclose(dense(found, layer), best, atol=1e-5)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == SHAPES
    assert torch.equal(found["fusion/gate"], mean_of("factors").adapter["fusion/gate"])


def test_exact_loses_nothing_where_the_rank_suffices() -> None:
    """Two regions that move B alone: the mean of products has the rank of one."""
    moves = [{k: v if ".lora_B." in k else 0 * v for k, v in u.items()} for u in UPDATES]
    found = mean_of("exact", moves)
    assert found.relative_bias == pytest.approx(0, abs=1e-6)
    expected = mean_of("factors", moves).adapter
    for layer in LAYERS:
        np.testing.assert_allclose(dense(found.adapter, layer), dense(expected, layer), atol=1e-5)


def test_exact_is_nearer_to_the_mean_of_products_than_factors_are() -> None:
    exact, factors = mean_of("exact").bias, mean_of("factors").bias
    assert exact is not None and factors is not None and 0 < exact < factors


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_permuting_regions_changes_nothing(name: str) -> None:
    order = [2, 0, 3, 1]
    moved = mean_of(name, [UPDATES[n] for n in order], tuple(WEIGHTS[n] for n in order))
    assert close(moved.adapter, mean_of(name).adapter)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_one_region_is_its_own_mean(name: str) -> None:
    found = mean_of(name, UPDATES[:1], (7,))
    ends = add(SENT, UPDATES[0])
    for layer in LAYERS:
        np.testing.assert_allclose(dense(found.adapter, layer), dense(ends, layer), atol=1e-5)
    assert found.bias == pytest.approx(0, abs=1e-6)
    assert close(found.adapter, ends, atol=1e-4)


def test_a_wide_stack_is_compressed_without_loss() -> None:
    """More regions than the layer has ranks: the stack stays narrow and the answer the same."""
    many, weights = UPDATES * 6, WEIGHTS * 6
    mean = ExactMean(SENT)
    for update, weight in zip(many, weights, strict=True):
        mean.add(update, weight)
        for layer, stack in mean._stacks.items():
            width = min(dense(SENT, layer).shape)
            assert sum(len(part.down) for part in stack) <= 2 * width
    assert close(mean.value().adapter, mean_of("exact").adapter)


def test_where_one_factor_is_trained_there_is_no_bias() -> None:
    only_b = [{k: v for k, v in u.items() if ".lora_A." not in k} for u in UPDATES]
    found = mean_of("freeze_a", only_b)
    assert (found.bias, found.relative_bias) == (0.0, 0.0)
    ends = [add(SENT, update) for update in only_b]
    for layer in LAYERS:
        expected = np.average([dense(end, layer) for end in ends], axis=0, weights=WEIGHTS)
        np.testing.assert_allclose(dense(found.adapter, layer), expected, atol=1e-5)
        down = f"{layer}.lora_A.weight"
        assert torch.equal(found.adapter[down], SENT[down])


def test_of_a_large_cohort_only_sums_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = mean_of("factors")
    monkeypatch.setattr(aggregation, "MAX_MEASURED", 3)
    found = mean_of("factors")
    assert (found.bias, found.relative_bias) == (None, None)
    assert close(found.adapter, measured.adapter, atol=0)


# -- what exact aggregation keeps ------------------------------------------------------------------


def kept_in(adapter: Adapter, layer: str) -> NDArray[np.float64]:
    """The residual's dense product; zeros where there is none."""
    up, down = residual_names(layer)
    if up not in adapter:
        return np.zeros_like(dense(adapter, layer))
    return np.asarray(
        adapter[up].flatten(1).double().numpy() @ adapter[down].flatten(1).double().numpy()
    )


def exact(sent: Adapter, kept: int) -> Mean:
    mean = ExactMean(sent, kept)
    for update, weight in zip(UPDATES, WEIGHTS, strict=True):
        mean.add(update, weight)
    return mean.value()


def test_what_is_kept_is_the_next_best_part_of_the_mean_of_products() -> None:
    found = exact(SENT, 1)
    for layer in LAYERS:
        left, values, right = np.linalg.svd(mean_product(layer))
        best = (left[:, : RANK + 1] * values[: RANK + 1]) @ right[: RANK + 1]
        together = dense(found.adapter, layer) + kept_in(found.adapter, layer)
        np.testing.assert_allclose(together, best, atol=1e-5)
    assert found.bias is not None and 0 < found.bias < (exact(SENT, 0).bias or 0)


def test_with_enough_room_nothing_is_lost_from_round_to_round() -> None:
    """The layers have at most rank 7: 2 of their own and 5 kept."""
    first = exact(SENT, 5)
    assert first.bias == pytest.approx(0, abs=1e-5)
    second = exact(first.adapter, 5)
    for layer in LAYERS:
        ends = [dense(add(first.adapter, update), layer) for update in UPDATES]
        expected = np.average(ends, axis=0, weights=WEIGHTS) + kept_in(first.adapter, layer)
        together = dense(second.adapter, layer) + kept_in(second.adapter, layer)
        np.testing.assert_allclose(together, expected, atol=1e-4)


def test_what_is_kept_has_one_rank_and_the_shape_of_its_layer() -> None:
    found = exact(SENT, 6).adapter  # more than any layer has left
    assert {name: tuple(tensor.shape) for name, tensor in found.items() if is_residual(name)} == {
        "image/conv.residual_A.weight": (6, 5, 1, 1),
        "image/conv.residual_B.weight": (4, 6, 1, 1),
        "text/linear.residual_A.weight": (6, 6),
        "text/linear.residual_B.weight": (7, 6),
    }


def test_a_residual_that_is_not_kept_any_more_is_in_the_mean_all_the_same() -> None:
    first = exact(SENT, 5).adapter
    second = exact(first, 0)
    assert not any(is_residual(name) for name in second.adapter)
    for layer in LAYERS:
        ends = [dense(add(first, update), layer) for update in UPDATES]
        whole = np.average(ends, axis=0, weights=WEIGHTS) + kept_in(first, layer)
        left, values, right = np.linalg.svd(whole)
        best = (left[:, :RANK] * values[:RANK]) @ right[:RANK]
        np.testing.assert_allclose(dense(second.adapter, layer), best, atol=1e-4)


def test_the_mean_of_factors_leaves_a_residual_as_it_is() -> None:
    sent = exact(SENT, 2).adapter
    mean = FactorMean(sent)
    mean.add(UPDATES[0], 1)
    found = mean.value().adapter
    assert all(torch.equal(found[name], sent[name]) for name in sent if is_residual(name))
