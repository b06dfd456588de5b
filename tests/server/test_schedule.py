"""Training at intervals: what is due follows from the files, also after a kill."""

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from small_federation import SmallFederation, silent

from server import conduct, schedule
from server.schedule import run_schedule
from server.training import Training, release_numbers, trainings
from shared.errors import FederationError, ReleaseError

AT_ONCE = timedelta(microseconds=1)


@pytest.fixture
def small(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> SmallFederation:
    monkeypatch.setattr(conduct, "POLL_S", 0)
    monkeypatch.setattr(conduct, "ASK_S", 0)
    return SmallFederation(tmp_path / "hq", tiny_base)


def keep_at_it(
    small: SmallFederation,
    *,
    times: int,
    once: Callable[[Training], object] | None = None,
    every: timedelta = AT_ONCE,
) -> list[str]:
    lines: list[str] = []

    def carry(chosen: Training) -> None:
        if not chosen.complete:
            conduct.follow(small.hq, small.control, chosen, on_line=silent)  # type: ignore
        number = conduct.release(small.hq, chosen)
        assert number is not None
        conduct.put_into_use(small.hq, number, event="release.promoted")

    run_schedule(
        small.hq,
        once or carry,  # type: ignore[arg-type]
        every=every,
        rounds=1,
        first_seed=40,
        times=times,
        on_line=lines.append,
    )
    return lines


def test_each_training_goes_on_from_the_last_and_has_a_seed_of_its_own(
    small: SmallFederation,
) -> None:
    assert keep_at_it(small, times=2) == []
    first, second = trainings(small.hq.trainings)
    assert first.config == {"parent": None, "run_config": {"num-rounds": 1, "seed": 40}}
    assert second.config == {"parent": 1, "run_config": {"num-rounds": 1, "seed": 41}}
    assert [first.release, second.release] == [1, 2]
    keep_at_it(small, times=1)  # after a restart the seeds go on too
    assert trainings(small.hq.trainings)[2].config["run_config"]["seed"] == 42


def test_a_training_that_was_cut_off_is_resumed_first(small: SmallFederation) -> None:
    left = conduct.new_training(small.hq, {"num-rounds": 1}, seed=7)
    keep_at_it(small, times=1)
    assert [one.number for one in trainings(small.hq.trainings)] == [1]
    assert left.release == 1


def test_what_was_accepted_and_not_released_is_released_first(small: SmallFederation) -> None:
    left = small.train(rounds=1)
    keep_at_it(small, times=1)
    assert [one.number for one in trainings(small.hq.trainings)] == [1]
    assert left.release == 1
    keep_at_it(small, times=1)
    assert release_numbers(small.hq.releases) == [1, 2]


def test_a_training_that_fails_is_said_and_resumed_when_next_due(small: SmallFederation) -> None:
    tried: list[int] = []

    def once(chosen: Training) -> None:
        tried.append(chosen.number)
        if len(tried) < 3:
            raise FederationError("run ended as failed")
        conduct.follow(small.hq, small.control, chosen, on_line=silent)  # type: ignore
        conduct.release(small.hq, chosen)

    lines = keep_at_it(small, times=4, once=once)
    assert tried == [1, 1, 1, 2]
    said = [line for line in lines if not line.startswith("next training at")]
    assert said == ["training 1: run ended as failed"] * 2


def test_what_only_a_person_can_mend_ends_the_schedule(small: SmallFederation) -> None:
    def once(chosen: Training) -> None:
        raise ReleaseError("signing.key: no signing key there")

    with pytest.raises(ReleaseError):
        keep_at_it(small, times=0, once=once)


# -- when it is due --------------------------------------------------------------------------------


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it would have slept; the second nap is Ctrl-C."""
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        if seconds == 0:  # of `conduct`, which polls
            return
        naps.append(seconds)
        if len(naps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(schedule.time, "sleep", sleep)
    return naps


def test_the_next_one_is_due_when_the_interval_since_the_last_start_is_over(
    small: SmallFederation, naps: list[float]
) -> None:
    small.release()
    last = conduct.latest(small.hq)
    started = time.time() - 3 * 3600
    os.utime(last.folder / "config.json", (started, started))
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_schedule(
            small.hq,
            lambda chosen: None,
            every=timedelta(hours=4),
            rounds=1,
            first_seed=7,
            times=1,
            on_line=lines.append,
        )
    due = datetime.fromtimestamp(started, tz=UTC) + timedelta(hours=4)
    assert lines == [f"next training at {due:%Y-%m-%d %H:%M} UTC"]
    assert naps == [60.0, 60.0]  # never long, so that a clock that is set is noticed
    assert [one.number for one in trainings(small.hq.trainings)] == [1]


def test_a_training_that_took_longer_than_the_interval_is_followed_at_once(
    small: SmallFederation, naps: list[float]
) -> None:
    small.release()
    last = conduct.latest(small.hq)
    os.utime(last.folder / "config.json", (time.time() - 5 * 3600,) * 2)
    assert keep_at_it(small, times=1, every=timedelta(hours=4)) == []
    assert naps == []
    assert [one.number for one in trainings(small.hq.trainings)] == [1, 2]


def test_after_a_failure_it_waits_for_the_whole_interval(
    small: SmallFederation, naps: list[float]
) -> None:
    def once(chosen: Training) -> None:
        raise FederationError("run ended as failed")

    with pytest.raises(KeyboardInterrupt):
        keep_at_it(small, times=2, once=once, every=timedelta(hours=4))
    assert naps == [60.0, 60.0]
