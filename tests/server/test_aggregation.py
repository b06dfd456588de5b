"""The weighted mean: numpy's, whatever the size of the cohort."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from server.aggregation import WeightedMean

NUMBERS = st.floats(-100, 100, width=32, allow_subnormal=False)
PART = st.tuples(arrays.arrays(np.float32, (3, 2), elements=NUMBERS), st.integers(1, 10**6))


@given(st.lists(PART, min_size=1, max_size=8))
def test_it_is_numpys_average(parts: list[tuple[np.ndarray, int]]) -> None:
    mean = WeightedMean()
    for values, weight in parts:
        mean.add({"a": torch.from_numpy(values)}, weight)
    values, weights = [part[0].astype(np.float64) for part in parts], [part[1] for part in parts]
    expected = np.average(values, axis=0, weights=weights).astype(np.float32)
    np.testing.assert_allclose(mean.value()["a"].numpy(), expected, rtol=1e-6, atol=1e-6)
    assert mean.weight == sum(weights)


@given(PART)
def test_one_adapter_is_its_own_mean(part: tuple[np.ndarray, int]) -> None:
    mean, (values, weight) = WeightedMean(), part
    mean.add({"a": torch.from_numpy(values)}, weight)
    assert torch.equal(mean.value()["a"], torch.from_numpy(values))


def test_a_large_cohort_loses_nothing_that_float32_can_hold() -> None:
    """A float32 sum of ten thousand thirds is off by more than the last bits of their mean."""
    mean, third = WeightedMean(), torch.full((1,), 1 / 3)
    for _ in range(10_000):
        mean.add({"a": third}, 3)
    assert torch.equal(mean.value()["a"], third)


def test_what_was_added_may_change_afterwards() -> None:
    mean, tensor = WeightedMean(), torch.ones(2)
    mean.add({"a": tensor}, 1)
    tensor.zero_()
    assert torch.equal(mean.value()["a"], torch.ones(2))
