"""DCCO in whole small federations: statistics travel when asked for, and a cut run goes on."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from flwr.app import Message, RecordDict
from small_runs import federate, same
from small_world import federation

import client.worker
from client.statistics import encoding_statistics
from client.worker import get_worker
from server.statistics import FederationStatistics
from shared.decorrelation import MIN_EXAMPLES, MOMENTS, Statistics
from shared.errors import WireError
from shared.records import STATISTICS
from simulations.engine import LocalGrid

NewRun = Callable[[str], Path]
ON: dict[str, str | float] = {"decorrelation_weight": 0.1, "update_encoding": "float32"}
OFF: dict[str, str | float] = {"update_encoding": "float32"}


def send_from(monkeypatch: pytest.MonkeyPatch, examples: int) -> None:
    """Regions with so many examples send statistics."""
    for module in ("client.statistics", "shared.wire_vectors"):
        monkeypatch.setattr(f"{module}.MIN_EXAMPLES", examples)


@pytest.fixture(autouse=True)
def small_regions_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regions of the small world are below what is asked of real ones."""
    send_from(monkeypatch, 10)


@pytest.fixture
def overheard(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, RecordDict]]:
    """Contents of all messages, with "ask" or "answer" and their type."""
    heard: list[tuple[str, RecordDict]] = []
    send = LocalGrid.send_and_receive

    def listen(
        grid: LocalGrid, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        for message in messages:
            (answer,) = send(grid, [message], timeout=timeout)
            kind = message.metadata.message_type
            heard.extend([(f"ask {kind}", message.content), (f"answer {kind}", answer.content)])
            yield answer

    monkeypatch.setattr(LocalGrid, "send_and_receive", listen)
    return heard


def having(heard: list[tuple[str, RecordDict]]) -> list[str]:
    """What the messages with statistics were, in their order."""
    return [what for what, content in heard if STATISTICS in content]


def test_statistics_travel_only_when_on_and_change_what_is_learned(
    new_run: NewRun, overheard: list[tuple[str, RecordDict]]
) -> None:
    plain = federate(new_run("plain"), **OFF)
    assert len(overheard) > 8 and having(overheard) == []
    assert all("memory" not in path.name for path in plain.folder.iterdir())
    overheard.clear()
    shared = federate(new_run("shared"), **ON)
    both = ["answer train"] * 2  # of the first round, before there was anything to ask with
    assert having(overheard) == [*both, *["ask train", "answer train"] * 2]
    for number in (1, 2):
        assert not same(plain.adapter(number), shared.adapter(number))
        assert shared.rounds()[number].rejected == []


def test_headquarters_keeps_the_regions_mean_weighted_by_examples(new_run: NewRun) -> None:
    run = new_run("run")
    history = federate(run, num_rounds=1, **ON)
    mean = FederationStatistics(history.memory(1)).mean()
    assert mean is not None
    total = 0
    expected = {name: torch.zeros(()) for name in MOMENTS}
    for name in ("north", "south"):
        worker = get_worker(run / "regions" / name)
        settings = federation(run, num_rounds=1, decorrelation_weight=0.1).train_config(1)
        worker.train(history.adapter(0), settings, 1)  # the encoder ends where it ended then
        found = encoding_statistics(worker.encoder, worker.training_data)
        assert found is not None
        number = len(worker.examples.weight)
        total += number
        expected = {k: expected[k] + number * v for k, v in found.moments().items()}
    assert float(mean.weight) == total
    for key, summed in expected.items():
        torch.testing.assert_close(getattr(mean, key), summed / total, atol=1e-6, rtol=0)


def test_a_region_with_few_examples_sends_none_and_learns_from_the_others(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run("run")
    counts = [
        len(get_worker(run / "regions" / name).examples.weight) for name in ("north", "south")
    ]
    assert 10 <= min(counts) < max(counts) < MIN_EXAMPLES
    send_from(monkeypatch, max(counts))
    history = federate(run, **ON)
    mean = FederationStatistics(history.memory(1)).mean()
    assert mean is not None and float(mean.weight) == max(counts)
    assert history.rounds()[2].rejected == []
    send_from(monkeypatch, max(counts) + 1)
    nobody = federate(new_run("nobody"), **ON)
    assert FederationStatistics(nobody.memory(2)).mean() is None
    assert not same(nobody.adapter(2), history.adapter(2))


def test_bad_statistics_reject_that_region_by_name(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = encoding_statistics
    calls = iter([2.0, 1.0])  # north's squares are those of no unit vectors

    def spoilt(*given: object) -> object:
        found = sound(*given)  # type: ignore[arg-type]
        assert found is not None
        object.__setattr__(found, "query_squared", found.query_squared * next(calls))
        return found

    monkeypatch.setattr(client.worker, "encoding_statistics", spoilt)
    record = federate(new_run("run"), num_rounds=1, **ON).rounds()[1]
    reason = "statistics: query_squared is not of unit vectors"
    assert record.rejected == [{"region": "north", "reason": reason}]


def test_statistics_of_other_vectors_are_refused_by_the_region(new_run: NewRun) -> None:
    run = new_run("run")
    worker = get_worker(run / "regions" / "north")
    history = federate(run, num_rounds=1, **ON)
    mean = FederationStatistics(history.memory(1)).mean()
    assert mean is not None
    short = {k: v[..., :-1][: len(v) - 1] for k, v in mean.moments().items()}

    with pytest.raises(WireError, match="statistics are not of 32 dimensions"):
        worker.train(
            history.adapter(1),
            federation(run, decorrelation_weight=0.1).train_config(2),
            2,
            federation=Statistics(**short, weight=mean.weight),
        )
