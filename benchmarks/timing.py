"""Two ways of doing a thing, timed in turns, so that their ratio survives a machine that drifts.

Ways are timed a block of calls at a time, in turns (A B, B A, A B, ...). Each round gives one p50,
one p99 and one ratio; what is reported is their median over the rounds, with the quartiles beside
it. A wide spread says that the machine was busy.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MIN_ROUNDS: Final = 5
_WARM_UP = 8  # calls before the first round that nobody counts

Way = Callable[[int], Any]  # told the number of the call, so that no two are of one query
Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """A figure over several rounds.

    Attributes:
        median: of the rounds.
        low: lower quartile.
        high: upper quartile.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float] | Seconds) -> "Spread":
        """Median and quartiles of the rounds' values, (R,), at least one."""
        low, median, high = np.quantile(np.asarray(values, np.float64), [0.25, 0.5, 0.75])
        return cls(float(median), float(low), float(high))


def in_turns(ways: Mapping[str, Way], *, calls: int, rounds: int) -> dict[str, Seconds]:
    """Time every call of every way.

    Args:
        ways: by name; each is called with 0 .. calls - 1 in every round.
        calls: of each way, a round.
        rounds: at least `MIN_ROUNDS`.

    Returns:
        Seconds of each call, (rounds, calls), by name.
    """
    assert rounds >= MIN_ROUNDS and calls >= 1 and ways
    for way in ways.values():
        for number in range(min(_WARM_UP, calls)):
            way(number)
    taken = {name: np.empty((rounds, calls)) for name in ways}
    for number in range(rounds):
        names = list(ways)[:: 1 if number % 2 == 0 else -1]
        for name in names:
            taken[name][number] = _block(ways[name], calls)
    return taken


def per_second(
    ways: Mapping[str, Way],
    *,
    calls: int,
    rounds: int,
    callers: int,
    on_thread: Callable[[], None] | None = None,
) -> dict[str, Seconds]:
    """How many calls are done in a second if several threads call at once.

    Args:
        ways: by name; each is called with 0 .. calls - 1 in every round.
        calls: of each way, a round, by all callers together.
        rounds: at least `MIN_ROUNDS`.
        callers: threads.
        on_thread: called once in each of them.

    Returns:
        Calls per second, (rounds,), by name.
    """
    with ThreadPoolExecutor(callers, initializer=on_thread) as pool:

        def share(way: Way, caller: int) -> None:
            for number in range(caller, calls, callers):
                way(number)

        def burst(way: Way) -> Way:
            return lambda _: list(pool.map(partial(share, way), range(callers)))

        bursts = {name: burst(way) for name, way in ways.items()}
        taken = in_turns(bursts, calls=1, rounds=rounds)
    return {name: calls / seconds[:, 0] for name, seconds in taken.items()}


def quantile_ms(seconds: Seconds, quantile: float) -> Seconds:
    """A quantile of each round's calls, in milliseconds, (rounds,)."""
    milliseconds: Seconds = np.quantile(seconds, quantile, axis=1) * 1e3
    return milliseconds


def ratio(ours: Seconds, theirs: Seconds) -> Spread:
    """Ours by theirs, round by round."""
    return Spread.of(ours / theirs)


def _block(way: Way, calls: int) -> list[float]:
    taken = []
    for number in range(calls):
        start = time.perf_counter()
        way(number)
        taken.append(time.perf_counter() - start)
    return taken
