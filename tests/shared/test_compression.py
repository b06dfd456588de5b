"""What compression promises: exact bookkeeping, a bound on the loss, nothing lost for good."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from shared.adapter import Adapter, add, subtract
from shared.compression import compress, expand, rounded
from shared.config import ENCODINGS, FLOAT16, FLOAT32, INT8

TENSORS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=3, max_side=6),
    elements=st.floats(-1000, 1000, width=32),
)


def test_int8_by_hand() -> None:
    values, scale = compress(np.array([[0.5, -1.0], [0.25, 0.003]], np.float32), INT8)
    assert scale == 2**-6  # 127 of them are 1.98, and of the next smaller one 0.99
    assert values.dtype == np.int8
    assert values.tolist() == [[32, -64], [16, 0]]
    assert expand(values, scale).tolist() == [[0.5, -1.0], [0.25, 0.0]]


@pytest.mark.parametrize(("largest", "scale"), [(127, 1), (127.5, 2), (63.5, 0.5), (64, 1)])
def test_the_scale_is_the_smallest_power_of_two_that_holds_all(
    largest: float, scale: float
) -> None:
    assert compress(np.array([largest, 1], np.float32), INT8)[1] == scale


@given(TENSORS)
def test_float32_is_exact_and_float16_is_numpys(values: NDArray[np.float32]) -> None:
    assert compress(values, FLOAT32)[0] is values
    half, scale = compress(values, FLOAT16)
    assert (half == values.astype(np.float16)).all() and scale == 1


@given(TENSORS, st.sampled_from(ENCODINGS))
def test_what_has_arrived_arrives_again_unchanged(
    values: NDArray[np.float32], encoding: str
) -> None:
    once = rounded({"a": torch.from_numpy(np.array(values))}, encoding)
    again = rounded(once, encoding)
    assert torch.equal(once["a"], again["a"])
    assert once["a"].shape == values.shape


@given(TENSORS)
def test_at_most_half_a_step_is_lost_and_a_step_is_at_most_a_64th_of_the_largest(
    values: NDArray[np.float32],
) -> None:
    small, scale = compress(values, INT8)
    assert np.abs(expand(small, scale) - values).max(initial=0) <= scale / 2
    largest = np.abs(values).max(initial=0)
    assert scale <= max(largest / 63.5, 2.0**-126) or largest == 0


@pytest.mark.parametrize("extreme", [0.0, 1e-45, 1e-38, 3e38])
def test_extremes_stay_finite(extreme: float) -> None:
    for encoding in ENCODINGS:
        small, scale = compress(np.array([extreme, -extreme, 0], np.float32), encoding)
        assert np.isfinite(small).all()
        assert np.isfinite(expand(small, scale)).all()


def test_no_tensor_and_an_empty_one() -> None:
    assert rounded({}, INT8) == {}
    assert rounded({"a": torch.zeros(0, 3)}, INT8)["a"].shape == (0, 3)


def _sum(parts: list[Adapter]) -> NDArray[Any]:
    return np.sum([part["a"].double().numpy() for part in parts], axis=0)


def test_with_feedback_the_sum_of_what_arrives_is_the_sum_of_what_was_learned() -> None:
    """The error of fifty rounds is that of the last alone; without feedback it would grow."""
    rng = np.random.default_rng(0)
    drift = rng.normal(size=40) * 0.004  # too small beside the one large number to be seen at once
    updates = [
        {"a": torch.tensor(drift + rng.normal(size=40) * 1e-4 + np.eye(40)[0], dtype=torch.float32)}
        for _ in range(50)
    ]
    residual, arrived = {"a": torch.zeros(40)}, []
    for update in updates:
        whole = add(update, residual)
        arrived.append(rounded(whole, INT8))
        residual = subtract(whole, arrived[-1])
    wanted = _sum(updates)
    np.testing.assert_allclose(_sum(arrived) + residual["a"].double().numpy(), wanted, atol=1e-4)
    lost = np.abs(_sum([rounded(update, INT8) for update in updates]) - wanted).max()
    assert np.abs(_sum(arrived) - wanted).max() < lost / 10
