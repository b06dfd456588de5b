"""The ClientApp over real regions: what it answers, what it refuses, and what never leaves."""

import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import polars as pl
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from small_federation import run_server_app
from small_world import federation, run_config

from client.app import app, region_folder
from client.rpc import WorkerServer
from client.worker import Worker, get_worker
from server.app import run_rounds
from server.history import History
from shared import wire, wire_evaluation
from shared.adapter import Adapter, schema_hash
from shared.audit import read_audit
from shared.config import INT8
from shared.envelope import pack, unpack
from shared.errors import ConfigError
from shared.exchanges import compare_logs, digest
from shared.records import encode_adapter
from simulations.engine import LocalGrid

ROOT = Path(__file__).parents[2]


def context(run: Path, node: int = 0, **node_config: str) -> Context:
    node_config = {"partition-id": node, "num-partitions": 2, **node_config}  # type: ignore
    return Context(1, node + 2, node_config, RecordDict(), run_config(run))


def ask(content: RecordDict, kind: str, run: Path, node: int = 0) -> Message:
    LocalGrid(app, 2, {})  # gives this process an identity, without which no message can be made
    return app(Message(content, dst_node_id=node + 2, message_type=kind), context(run, node))


# -- which region ----------------------------------------------------------------------------------


def test_node_i_is_the_ith_sorted_region(run: Path) -> None:
    names = [
        wire.read_description(ask(wire.describe_request(), wire.DESCRIBE, run, node).content)
        for node in range(2)
    ]
    assert [description.region for description in names] == ["north", "south"]


def test_an_unfinished_folder_is_no_region(run: Path) -> None:
    (run / "regions" / "middle").mkdir()
    assert region_folder(context(run, 0)).name == "north"


def test_a_deployed_node_names_its_folder(run: Path, tmp_path: Path) -> None:
    assert region_folder(context(run, 5, **{"region-dir": str(tmp_path)})) == tmp_path


def test_more_nodes_than_regions(run: Path) -> None:
    with pytest.raises(ConfigError, match="node 2, but only 2 regions"):
        region_folder(context(run, 2))
    assert ask(wire.describe_request(), wire.DESCRIBE, run, 2).error.reason == "ConfigError"


# -- what a region answers -------------------------------------------------------------------------


def test_a_region_describes_itself_by_counts(run: Path, workers: list[Worker]) -> None:
    reply = ask(wire.describe_request(), wire.DESCRIBE, run)
    description, north = wire.read_description(reply.content), workers[0]
    assert (
        description.num_products == pl.read_parquet(north.region.folder / "catalog.parquet").height
    )
    assert description.num_examples == len(north.examples.weight)
    assert description.num_validation_queries == len(north.validation.queries)
    assert description.schema_hash == schema_hash(History(run / "headquarters").adapter(0))


def read_update(content: RecordDict, sent: Adapter) -> wire.TrainReply:
    return wire.read_train_reply(content, sent, encoding=INT8, max_examples=10**6, max_norm=100)


def test_a_region_trains_and_evaluates_as_its_worker_does(run: Path, workers: list[Worker]) -> None:
    adapter, config = History(run / "headquarters").adapter(0), federation(run).train_config(1)
    arrays = encode_adapter(adapter)
    reply = ask(wire.train_request(arrays, config, 1), "train", run)
    answer = read_update(reply.content, adapter)
    trained = workers[0].train(adapter, config, 1)
    assert answer.loss == trained.loss
    assert answer.num_examples == trained.num_examples
    assert all((answer.update[name] == trained.update[name]).all() for name in adapter)

    reply = ask(wire_evaluation.evaluate_request(arrays, 1), "evaluate", run)
    measured = wire_evaluation.read_evaluate_reply(reply.content, max_examples=10**6)
    assert (measured.num_examples, measured.metrics) == workers[0].evaluate(adapter)


def test_training_one_region_leaves_the_other_as_it_was(run: Path, workers: list[Worker]) -> None:
    adapter, config = History(run / "headquarters").adapter(0), federation(run).train_config(1)
    north, south = workers
    alone = south.train(adapter, config, 1).update
    north.train(adapter, config, 1)
    after = south.train(adapter, config, 1).update
    assert all((alone[name] == after[name]).all() for name in alone)


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda folder: (folder / "clicks.parquet").write_bytes(b"red boots"), "DataError"),
        (lambda folder: (folder / "clicks.parquet").unlink(), "DataError"),
        (lambda folder: (folder / "region.toml").write_text("colour = 1"), "ConfigError"),
    ],
)
def test_an_error_in_a_region_travels_as_its_kind_only(
    spoil: object, kind: str, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(run / "regions" / "north")  # type: ignore[operator]
    reply = ask(wire.describe_request(), wire.DESCRIBE, run)
    assert reply.has_error()
    assert reply.error.reason == kind
    (record,) = caplog.records  # the region's own log has the rest
    assert record.levelno == logging.ERROR
    assert str(run) in record.getMessage()


def test_a_bug_travels_as_its_kind_only(run: Path, workers: list[Worker]) -> None:
    def broken(done: int, total: int) -> None:
        raise ZeroDivisionError("red boots")

    workers[0].on_step = broken
    adapter = encode_adapter(History(run / "headquarters").adapter(0))
    reply = ask(wire.train_request(adapter, federation(run).train_config(1), 1), "train", run)
    assert reply.error.reason == "ZeroDivisionError"


def test_a_request_that_is_none_is_refused(run: Path) -> None:
    for kind in ("train", "evaluate"):
        assert ask(RecordDict(), kind, run).error.reason == "WireError"


def test_an_adapter_of_another_base_is_refused_and_harms_nothing(run: Path) -> None:
    adapter = History(run / "headquarters").adapter(0)
    before = get_worker(run / "regions" / "north").evaluate(adapter)
    other = {name.replace("layer.1", "layer.9"): tensor for name, tensor in adapter.items()}
    assert other.keys() != adapter.keys()
    request = wire_evaluation.evaluate_request(encode_adapter(other), 1)
    assert ask(request, "evaluate", run).error.reason == "WireError"
    assert get_worker(run / "regions" / "north").evaluate(adapter) == before


# -- a deployed node: forward, and be worth nothing ------------------------------------------------


@pytest.fixture
def socket(workers: list[Worker]) -> Iterator[Path]:
    """The region north behind a worker's socket; its path must be short."""
    folder = Path(tempfile.mkdtemp(prefix="worker-"))
    server = WorkerServer(workers[0], folder / "run" / "worker.sock", group=None)
    server.start()
    yield folder / "run" / "worker.sock"
    server.stop()
    shutil.rmtree(folder)


def forwarded(content: RecordDict, kind: str, socket: Path, **knobs: float) -> Message:
    """Ask as `ask` does, of a node that knows a socket and no run folder."""
    LocalGrid(app, 2, {})
    node = Context(1, 2, {"worker-socket": str(socket)}, RecordDict(), run_config("", **knobs))
    return app(Message(content, dst_node_id=2, message_type=kind), node)


def test_a_forwarded_message_is_answered_as_in_process(run: Path, socket: Path) -> None:
    reply = forwarded(wire.describe_request(), wire.DESCRIBE, socket)
    assert reply.content == ask(wire.describe_request(), wire.DESCRIBE, run).content

    adapter, config = History(run / "headquarters").adapter(0), federation(run).train_config(1)
    request = wire.train_request(encode_adapter(adapter), config, 1)
    replies = [forwarded(request, "train", socket), ask(request, "train", run)]
    there, here = (read_update(reply.content, adapter) for reply in replies)
    assert all((there.update[name] == here.update[name]).all() for name in adapter)


def test_a_workers_error_travels_as_its_kind_only(socket: Path, workers: list[Worker]) -> None:
    def broken(done: int, total: int) -> None:
        raise ZeroDivisionError("red boots")

    workers[0].on_step = broken
    assert forwarded(RecordDict(), "train", socket).error.reason == "WireError"
    adapter = encode_adapter(workers[0].encoder.adapter())
    request = wire.train_request(adapter, federation("").train_config(1), 1)
    assert forwarded(request, "train", socket).error.reason == "ZeroDivisionError"


def test_a_worker_that_is_not_there(tmp_path: Path) -> None:
    reply = forwarded(
        wire.describe_request(), wire.DESCRIBE, tmp_path / "none", round_timeout_s=0.2
    )
    assert reply.error.reason == "WorkerUnreachable"


FORWARDER = """
import sys
from pathlib import Path
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from client.app import app
from shared.envelope import pack, unpack
TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
kind, request, socket = sys.argv[1:]
content = unpack(Path(request).read_bytes(), max_bytes=2**28)
node = Context(1, 2, {"worker-socket": socket}, RecordDict(), {})
reply = app(Message(content, dst_node_id=2, message_type=kind), node)
heavy = {"torch", "transformers", "timm", "polars", "client.worker", "shared.wire"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
Path(request).write_bytes(pack(reply.content))
"""


def test_the_forwarders_process_imports_nothing_heavy(
    run: Path, socket: Path, tmp_path: Path
) -> None:
    # Flower starts one for every message.
    adapter, config = History(run / "headquarters").adapter(0), federation(run).train_config(1)
    request = wire.train_request(encode_adapter(adapter), config, 1)
    (tmp_path / "message").write_bytes(pack(request))
    command = [sys.executable, "-c", FORWARDER, "train", tmp_path / "message", socket]
    subprocess.run(command, cwd=ROOT, check=True)
    reply = unpack((tmp_path / "message").read_bytes(), max_bytes=2**28)
    assert read_update(reply, adapter).num_examples > 0


# -- the audit logs of both sides ------------------------------------------------------------------


def by_flower(content: RecordDict) -> RecordDict:
    """What is on the other side, after Flower has taken it apart and put it together again."""
    parts = {name: part.deflate() for name, part in get_all_nested_objects(content).items()}
    arrived = inflate_object_from_contents(content.object_id, parts)
    assert isinstance(arrived, RecordDict)
    return arrived


def test_a_digest_is_the_same_on_both_ends_of_the_wire(
    run: Path, socket: Path, workers: list[Worker]
) -> None:
    arrays = encode_adapter(History(run / "headquarters").adapter(0))
    config = federation(run).train_config(1)
    ends = []
    for kind, sent in {
        wire.DESCRIBE: wire.describe_request(),
        "train": wire.train_request(arrays, config, 1),
        "evaluate": wire_evaluation.evaluate_request(
            arrays, 1, purpose=wire_evaluation.GATE, references={3: arrays}
        ),
    }.items():
        received = by_flower(forwarded(by_flower(sent), kind, socket).content)
        ends.append((kind, digest(sent), digest(received)))
    entries = read_audit(workers[0].region.state / "audit.jsonl")
    facts = [entry.facts for entry in entries if entry.event == "message.answered"]
    assert [(one["kind"], one["received"], one["sent"]) for one in facts] == ends


class FlowersWay(LocalGrid):
    """Nodes with a worker's socket each; messages go both ways as Flower carries them."""

    def answer(self, message: Message) -> Message:
        message.content = by_flower(message.content)
        reply = super().answer(message)
        reply.content = by_flower(reply.content)
        return reply


def test_all_that_headquarters_counts_is_in_each_regions_log(
    run: Path, workers: list[Worker], tmp_path: Path
) -> None:
    training = tmp_path / "hq" / "trainings" / "0001"
    shutil.copytree(run / "headquarters", training / "headquarters")
    (tmp_path / "hq" / "server.toml").touch()
    config = {**run_config(run, min_regions=2, gate=True), "run-dir": str(training)}
    grid = FlowersWay(app, 2, config)
    with tempfile.TemporaryDirectory(prefix="worker-") as short, ExitStack() as running:
        for context, worker in zip(grid.contexts.values(), workers, strict=True):
            socket = Path(short, worker.region.config.region, "worker.sock")
            context.node_config["worker-socket"] = str(socket)
            server = WorkerServer(worker, socket, group=None)
            server.start()
            running.callback(server.stop)
        run_server_app(grid, config)
    ours = read_audit(tmp_path / "hq" / "audit.jsonl")
    rounds = federation(run).num_rounds
    assert [entry.event for entry in ours] == ["round.completed"] * (rounds + 1) + ["gate.decided"]
    for worker in workers:
        theirs = read_audit(worker.region.state / "audit.jsonl")
        found = compare_logs(ours, theirs, worker.region.config.region)
        assert found == (2 * rounds + 2, [])


# -- privacy ---------------------------------------------------------------------------------------


class Wiretap(LocalGrid):
    """Keeps the bytes of every message, in both directions, as Flower would send them."""

    taken = b""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        messages = self._tapped(messages)
        return self._tapped(super().send_and_receive(messages, timeout=timeout))

    def _tapped(self, passing: Iterable[Message]) -> list[Message]:
        messages = list(passing)
        self.taken += b"".join(message_to_proto(m).SerializeToString() for m in messages)
        self.taken += b"".join(_array_bytes(m) for m in messages)
        return messages


def _array_bytes(message: Message) -> bytes:
    records = message.content.array_records.values()
    return b"".join(array.data for record in records for array in record.values())


def test_no_query_title_or_product_id_crosses_the_wire(run: Path) -> None:
    grid = Wiretap(app, 2, run_config(run))
    run_rounds(grid, federation(run, min_regions=2), History(run / "headquarters"))
    assert b"north" in grid.taken  # the tap works: a name is meant to travel
    assert len(grid.taken) > 4 * sum(
        tensor.numel() * 4 for tensor in History(run / "headquarters").adapter(0).values()
    )
    for name in ("north", "south"):
        folder = run / "regions" / name
        catalog, clicks = (pl.read_parquet(folder / f"{t}.parquet") for t in ("catalog", "clicks"))
        secrets = {*catalog["title"], *catalog["product_id"], *clicks["query"], *clicks["user_key"]}
        words = {word for text in (*catalog["title"], *clicks["query"]) for word in text.split()}
        for text in secrets | {word for word in words if len(word) > 4}:
            assert text.encode() not in grid.taken, text
