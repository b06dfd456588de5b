"""The two engines run the same two apps to the same adapter."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from small_world import run_config

import client.worker
from client.region import Region, open_region
from client.worker import forget_workers, get_worker
from server.history import History
from shared.errors import ConfigError
from simulations.engine import LocalGrid, run_engine

NewRun = Callable[[str], Path]
FILES = ("catalog.parquet", "clicks.parquet")
FLOWER = """
import json, sys, torch
from simulations.engine import run_engine
torch.set_num_threads(1)
run_engine("flower", json.loads(sys.argv[1]), num_regions=2)
"""


@pytest.mark.timeout(900)
def test_local_and_flower_end_with_the_same_adapter(new_run: NewRun) -> None:
    """Flower's engine in a process of its own: Ray leaves threads and sockets behind."""
    local, flower = new_run("local"), new_run("flower")
    run_engine("local", run_config(local), num_regions=2)
    # Ray's actors import torch at the first message: minutes where other tests use all cores.
    patient = run_config(flower, describe_timeout_s=600)
    command = [sys.executable, "-c", FLOWER, json.dumps(patient)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = History(local / "headquarters"), History(flower / "headquarters")
    for mine, other in zip(ours.rounds(), theirs.rounds(), strict=True):
        assert mine.cohort == other.cohort == ["north", "south"]
        assert mine.rejected == other.rejected == []
        assert mine.loss == pytest.approx(other.loss, abs=1e-5)
        adapter = theirs.adapter(mine.round)
        for name, tensor in ours.adapter(mine.round).items():
            torch.testing.assert_close(adapter[name], tensor, atol=1e-6, rtol=0, msg=name)


def test_the_same_seed_gives_the_same_adapter_and_another_one_another(new_run: NewRun) -> None:
    ends = []
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        run = new_run(name)
        run_engine("local", run_config(run, seed=seed), num_regions=2)
        ends.append(History(run / "headquarters").adapter(2))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not all(torch.equal(ends[0][name], ends[2][name]) for name in ends[0])


def test_the_engine_opens_as_many_files_as_it_may(new_run: NewRun) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
    try:
        run_engine("local", run_config(new_run("run"), num_rounds=1), num_regions=2)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= soft
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_unknown_engine_is_named() -> None:
    with pytest.raises(ConfigError, match='engine "steam" is unknown; choose one of local, flower'):
        run_engine("steam", {}, num_regions=1)


# -- the grid in this process ----------------------------------------------------------------------


def echo_app() -> ClientApp:
    app = ClientApp()

    @app.query("echo")
    def echo(message: Message, context: object) -> Message:
        return Message(message.content, reply_to=message)

    return app


def test_a_reply_can_be_pulled_once() -> None:
    grid = LocalGrid(echo_app(), 2, {})
    messages = [Message(RecordDict(), node, "query.echo") for node in grid.get_node_ids()]
    names = list(grid.push_messages(messages))
    replies = list(grid.pull_messages(names))
    assert [reply.metadata.src_node_id for reply in replies] == list(grid.get_node_ids())
    assert [reply.metadata.reply_to_message_id for reply in replies] == names
    assert list(grid.pull_messages(names)) == []


def test_what_a_region_does_to_its_message_stays_there() -> None:
    app = ClientApp()

    @app.query("spoil")
    def spoil(message: Message, context: object) -> Message:
        message.content.clear()
        return Message(RecordDict(), reply_to=message)

    grid, content = LocalGrid(app, 1, {}), RecordDict()
    content["metrics"] = MetricRecord({"n": 1})
    list(grid.send_and_receive([Message(content, 2, "query.spoil")]))
    assert list(content) == ["metrics"]


def test_an_app_that_fails_is_an_error_reply() -> None:
    grid = LocalGrid(echo_app(), 1, {})
    (reply,) = grid.send_and_receive([Message(RecordDict(), 2, "query.unknown")])
    assert isinstance(reply.error, Error)
    assert reply.error.reason == "ValueError"


# -- regions that do not stay open -----------------------------------------------------------------


def test_a_region_that_was_closed_in_between_ends_with_the_same_adapter(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one of two workers, every message opens its region again."""
    opened: list[Path] = []

    def opening(folder: Path) -> Region:
        opened.append(folder)
        return open_region(folder)

    monkeypatch.setattr(client.worker, "open_region", opening)
    ends = []
    monkeypatch.setattr(client.worker, "MAX_BYTES", 0)
    for name, room in (("roomy", 2), ("tight", 1)):
        monkeypatch.setattr(client.worker, "MAX_WORKERS", room)
        run = new_run(name)
        run_engine("local", run_config(run), num_regions=2)
        ends.append(History(run / "headquarters").adapter(2))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    roomy = [folder for folder in opened if "roomy" in folder.parts]
    assert len(roomy) == 2 and len(opened) - len(roomy) > 2 * 5


def test_those_that_were_opened_first_stay_open(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.worker, "MAX_WORKERS", 2)
    monkeypatch.setattr(client.worker, "MAX_BYTES", 0)
    folders = [new_run(name) / "regions" / "north" for name in ("a", "b", "c")]
    first, second = get_worker(folders[0]), get_worker(folders[1])
    assert get_worker(folders[1]) is second
    third = get_worker(folders[2])  # "b" has to go
    assert get_worker(folders[2]) is third
    assert get_worker(folders[0]) is first
    assert get_worker(folders[1]) is not second


def test_more_small_regions_stay_open(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.worker, "MAX_WORKERS", 1)
    run = new_run("run")
    north, south = (run / "regions" / name for name in ("north", "south"))
    first, second = get_worker(north), get_worker(south)
    assert get_worker(north) is first and get_worker(south) is second
    forget_workers()
    bytes_of_north = sum((north / name).stat().st_size for name in FILES)
    monkeypatch.setattr(client.worker, "MAX_BYTES", bytes_of_north)
    first, second = get_worker(north), get_worker(south)
    assert get_worker(north) is not first and get_worker(south) is not second


def test_a_reply_is_made_when_it_is_asked_for() -> None:
    answered: list[int] = []
    app = ClientApp()

    @app.query("echo")
    def echo(message: Message, context: Context) -> Message:
        answered.append(int(context.node_config["partition-id"]))
        return Message(message.content, reply_to=message)

    grid = LocalGrid(app, 3, {})
    messages = [Message(RecordDict(), node, "query.echo") for node in grid.get_node_ids()]
    replies = iter(grid.send_and_receive(messages))
    assert answered == []
    reply = next(replies)
    assert answered == [0] and reply.metadata.reply_to_message_id
