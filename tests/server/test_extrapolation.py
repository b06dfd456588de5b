"""FedExP's step (arXiv:2301.09604, algorithm 1) and its middle: hand-worked values and laws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.aggregator import Aggregator
from server.extrapolation import StepLength, trained_from
from shared.adapter import Adapter
from shared.config import parse_run_config

Updates = list[tuple[list[float], int]]


def of(*numbers: float) -> Adapter:
    return {"fusion/t": torch.tensor(numbers, dtype=torch.float32)}


def next_adapter(sent: Adapter, updates: Updates, strategy: str = "FedExP") -> torch.Tensor:
    round_ = Aggregator(parse_run_config({"strategy": strategy}), 1, sent, {})
    for numbers, weight in updates:
        round_.add(of(*numbers), weight, 0.5)
    return round_.outcome().adapter["fusion/t"]


def test_what_is_measured_lies_between_the_last_two_steps_and_the_next_begins_at_the_last() -> None:
    """Regions that agree, so that steps are 4, -2 and 1: from 0 to 4, 2 and 3."""
    adapter, memory, measured, begun = of(0), {}, [], []
    for number, step in enumerate([4.0, -2.0, 1.0], start=1):
        sent = trained_from(adapter, memory)
        begun.append(sent["fusion/t"].item())
        round_ = Aggregator(parse_run_config({"strategy": "FedExP"}), number, sent, memory)
        round_.add(of(step), 3, 0.5)
        round_.add(of(step), 1, 0.5)
        adapter, memory = round_.outcome().adapter, round_.outcome().memory
        measured.append(adapter["fusion/t"].item())
    assert begun == [0, 4, 2]
    assert measured == [4, 3, 2.5]  # the first step has none before it


def test_what_other_strategies_remember_is_no_place_to_train_from() -> None:
    memory = {"momentum/fusion/t": torch.ones(1), "decorrelation/weight": torch.ones(())}
    assert trained_from(of(0.5), memory) == of(0.5)


def factor(updates: Updates) -> float:
    length, total = StepLength(), sum(weight for _, weight in updates)
    for numbers, weight in updates:
        length.add(of(*numbers), weight)
    sums = [sum(n[k] * w for n, w in updates) / total for k in range(len(updates[0][0]))]
    return length.of(of(*sums))


def test_by_hand() -> None:
    """Updates (3, 0, 0), (0, 3, 0), (0, 0, 6) of 1, 1 and 2 examples: the mean square of their
    norms is (9 + 9 + 72) / 4, that of the mean (0.75, 0.75, 3) is 10.125: 22.5 / 20.25."""
    updates: Updates = [([3, 0, 0], 1), ([0, 3, 0], 1), ([0, 0, 6], 2)]
    assert factor(updates) == pytest.approx(10 / 9)
    found = next_adapter(of(1, 1, 1), updates)
    torch.testing.assert_close(found, torch.tensor([1 + 0.75 / 0.9, 1 + 0.75 / 0.9, 1 + 3 / 0.9]))


@pytest.mark.parametrize("number", [1, 2, 4, 12])
def test_of_unlike_regions_half_of_their_number_is_added_up(number: int) -> None:
    updates: Updates = [([float(k == one) for k in range(12)], 7) for one in range(number)]
    assert factor(updates) == pytest.approx(max(1, number / 2))


def test_regions_that_agree_are_averaged_bit_for_bit() -> None:
    updates: Updates = [([0.1, 0.7], 3), ([0.1, 0.6], 5), ([0.2, 0.7], 1)]
    found = next_adapter(of(0.3, -0.2), updates)
    assert torch.equal(found, next_adapter(of(0.3, -0.2), updates, "FedAvg"))


def test_updates_that_nearly_cancel_are_no_reason_to_go_far() -> None:
    assert factor([([1.0], 1), ([-0.999], 1)]) == 1
    assert factor([([1.0], 1), ([-0.999], 1), ([0.0], 1), ([0.0], 1)]) == pytest.approx(2)


def test_updates_that_cancel_move_nothing() -> None:
    assert factor([([1.0], 1), ([-1.0], 1)]) == 1
    assert next_adapter(of(0.25), [([1.0], 1), ([-1.0], 1)]).tolist() == [0.25]


@given(
    st.lists(
        st.tuples(st.lists(st.floats(-9, 9), min_size=3, max_size=3), st.integers(1, 50)),
        min_size=1,
        max_size=6,
    ),
    st.floats(0.01, 100),
)
def test_the_length_does_not_depend_on_the_scale_nor_on_how_weights_are_counted(
    updates: Updates, scale: float
) -> None:
    scaled: Updates = [([scale * x for x in numbers], 3 * weight) for numbers, weight in updates]
    assert 1 <= factor(updates) <= max(1, sum(w for _, w in updates) / min(w for _, w in updates))
    if all(abs(x) > 1e-3 for numbers, _ in updates for x in numbers):
        assert factor(scaled) == pytest.approx(factor(updates), rel=1e-3)
