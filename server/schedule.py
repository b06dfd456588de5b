"""Train at intervals, in the foreground, so that any service manager can keep it running.

When the next training is due follows from the files of the last one: a schedule that was stopped,
or killed, goes on as if it had never been away.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from server.conduct import new_training
from server.headquarters import Headquarters
from server.training import Training, trainings
from shared.errors import FederationError

_LONGEST_NAP_S = 60.0


def run_schedule(
    hq: Headquarters,
    once: Callable[[Training], None],
    *,
    every: timedelta,
    rounds: int,
    first_seed: int,
    times: int,
    on_line: Callable[[str], None],
) -> None:
    """Start a training whenever one is due.

    Args:
        hq: headquarters.
        once: carries one training to its end.
        every: from start to start; a training that takes longer is followed at once.
        rounds: of each training.
        first_seed: of training 1; training n has `first_seed` + n - 1.
        times: stop after so many; 0 for never.
        on_line: told of waits and failures. A training that fails is resumed when next due.
    """
    done, not_before = 0, datetime.now(UTC)
    while not times or done < times:
        before = trainings(hq.trainings)
        last = before[-1] if before else None
        due = _started(last) + every if last and last.over else datetime.now(UTC)
        _wait_until(max(due, not_before), on_line)
        if last is None or last.over:
            chosen = new_training(hq, {"num-rounds": rounds}, seed=first_seed + len(before))
        else:
            chosen = last
        try:
            once(chosen)
        except FederationError as error:
            on_line(f"training {chosen.number}: {error}")
            not_before = datetime.now(UTC) + every
        done += 1


def _started(training: Training) -> datetime:
    made = (training.folder / "config.json").stat().st_mtime
    return datetime.fromtimestamp(made, tz=UTC)


def _wait_until(due: datetime, on_line: Callable[[str], None]) -> None:
    if due > datetime.now(UTC):
        on_line(f"next training at {due:%Y-%m-%d %H:%M} UTC")
    while (left := (due - datetime.now(UTC)).total_seconds()) > 0:
        time.sleep(min(left, _LONGEST_NAP_S))
