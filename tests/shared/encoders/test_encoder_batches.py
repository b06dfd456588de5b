"""Batches, and several of them at once."""

import threading

import numpy as np
import pytest
import torch

from shared.encoders.batches import BATCH, MIN_BATCH, batches_by_length, batches_of, for_each


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    torch.set_num_threads(number)
    return number


def test_batches_hold_every_row_once_shortest_first() -> None:
    lengths = np.array([5, 1, 3, 1, 4])
    batches = batches_by_length(lengths, batch=2)
    assert [batch.tolist() for batch in batches] == [[1, 3], [2, 4], [0]]


def test_a_thread_has_its_part_of_what_is_worked_on_at_once(threads: int) -> None:
    batches = batches_of(np.arange(1000))
    assert len(batches[0]) == max(MIN_BATCH, BATCH // threads)
    assert np.concatenate(batches).tolist() == list(range(1000))


def test_results_come_in_order_and_in_the_callers_thread(threads: int) -> None:
    taken: list[tuple[int, int]] = []

    def take(item: int, made: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        taken.append((item, made))

    for_each(range(20), lambda item: item * item, take)
    assert taken == [(item, item * item) for item in range(20)]


def test_as_many_are_worked_on_at_once_as_there_are_threads(threads: int) -> None:
    meeting = threading.Barrier(threads)  # nobody passes before all of them are there

    def work(_: int) -> int:
        meeting.wait(timeout=60)
        return torch.get_num_threads()

    found: list[int] = []
    for_each(range(threads * 2), work, lambda _, made: found.append(made))
    assert found == [1] * threads * 2
    assert torch.get_num_threads() == threads


def test_only_so_many_results_wait_for_their_turn(threads: int) -> None:
    begun: list[int] = []

    def take(item: int, _: None) -> None:
        assert len(begun) <= item + threads + 2

    for_each(range(200), begun.append, take)
    assert len(begun) == 200


def test_the_first_error_ends_it_and_threads_are_as_before(threads: int) -> None:
    begun, taken = [], []

    def work(item: int) -> int:
        begun.append(item)
        if item == 5:
            raise ValueError("five")
        return item

    with pytest.raises(ValueError, match="five"):
        for_each(range(1000), work, lambda item, _: taken.append(item))
    assert taken == [0, 1, 2, 3, 4]
    assert len(begun) < 20
    assert torch.get_num_threads() == threads


def test_of_nothing_nothing_is_made(threads: int) -> None:
    for_each([], lambda _: pytest.fail("worked"), lambda *_: pytest.fail("took"))
