"""The worker's socket: who may connect, what is answered, and that a restart is survived."""

import json
import logging
import os
import shutil
import signal
import socket as sockets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import grpc
import polars as pl
import pytest
from flwr.app import RecordDict
from small_world import federation, prepare_run, write_fashion

from client.answers import answer
from client.rpc import MAX_REQUESTS, SERVICE, RemoteFailure, WorkerServer, forward
from client.worker import Worker, forget_workers, get_worker
from shared import wire, wire_evaluation
from shared.adapter import Adapter
from shared.audit import AuditLog, read_audit
from shared.config import INT8
from shared.envelope import pack
from shared.errors import ConfigError, FederationError, FedshelfError, WireError
from shared.exchanges import digest
from shared.records import encode_adapter

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rpc")
    prepare_run(folder / "run", write_fashion(folder / "fashion"))
    return folder / "run"


@pytest.fixture
def worker(run: Path) -> Iterator[Worker]:
    worker = get_worker(run / "regions" / "north")
    worker.encoder.reset(seed=7)
    yield worker
    join_servers()  # a message nobody waits for any more is still answered, and noted
    forget_workers()


def join_servers() -> None:
    """Wait until nothing is at work behind any socket of this process."""
    for thread in threading.enumerate():
        if thread.name.startswith("worker_"):
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a short name: a socket's path has at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="rpc-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def serve(place: Path) -> Iterator[Callable[..., Path]]:
    """Start a server at `place/run/worker.sock`."""
    servers: list[WorkerServer] = []

    def start(worker: Worker, *, group: str | None = None) -> Path:
        servers.append(WorkerServer(worker, place / "run" / "worker.sock", group=group))
        servers[-1].start()
        return place / "run" / "worker.sock"

    yield start
    for server in servers:
        server.stop()


Serve = Callable[..., Path]


def train_request(run: Path, adapter: Adapter) -> RecordDict:
    return wire.train_request(encode_adapter(adapter), federation(run).train_config(1), 1)


def held_at_each_step(worker: Worker) -> threading.Event:
    """Hold a worker's training until the event is set."""
    go_on = threading.Event()

    def pause(done: int, total: int) -> None:
        assert go_on.wait(TIMEOUT_S)

    worker.on_step = pause
    return go_on


def raw(socket: Path, method: str, request: bytes) -> bytes:
    """A call as anybody could make it."""
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        return bytes(channel.unary_unary(method)(request, timeout=TIMEOUT_S))


# -- answers ---------------------------------------------------------------------------------------


def test_a_forwarded_message_is_answered_as_in_process(
    worker: Worker, run: Path, serve: Serve
) -> None:
    socket, adapter = serve(worker), worker.encoder.adapter()
    arrays = encode_adapter(adapter)
    for kind, request in {
        "query.describe": wire.describe_request(),
        "evaluate": wire_evaluation.evaluate_request(arrays, 1),
    }.items():
        forwarded = forward(socket, kind, request, timeout_s=TIMEOUT_S)
        assert pack(forwarded) == pack(answer(worker, kind, request))

    request = train_request(run, adapter)
    forwarded, here = (
        forward(socket, "train", request, timeout_s=TIMEOUT_S),
        answer(worker, "train", request),
    )
    assert pack(RecordDict(dict(forwarded.array_records))) == pack(
        RecordDict(dict(here.array_records))
    )


def test_an_unknown_kind_is_refused_before_it_leaves(place: Path) -> None:
    with pytest.raises(WireError, match="unknown kind"):
        forward(place / "nobody", "query.clicks", RecordDict(), timeout_s=1)


@pytest.mark.parametrize("method", ["Clicks", "train", "Describe/../Train", ""])
def test_there_are_three_methods(worker: Worker, serve: Serve, method: str) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        raw(serve(worker), f"/{SERVICE}/{method}", b"")
    assert failed.value.code() == grpc.StatusCode.UNIMPLEMENTED


# -- errors ----------------------------------------------------------------------------------------


def test_a_malformed_message_is_refused_by_kind(
    worker: Worker, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    socket = serve(worker)
    for request in (b"\x80\x05.", pack(RecordDict())):
        with pytest.raises(grpc.RpcError) as failed:
            raw(socket, f"/{SERVICE}/Train", request)
        assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert failed.value.details() == "WireError"
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2


class Panic(BaseException):
    """As polars raises what is its own bug."""


@pytest.mark.parametrize("kind", [ZeroDivisionError, Panic, KeyError])
def test_of_a_bug_only_the_class_travels(
    worker: Worker,
    run: Path,
    serve: Serve,
    caplog: pytest.LogCaptureFixture,
    kind: type[BaseException],
) -> None:
    def broken(done: int, total: int) -> None:
        raise kind("red boots")

    worker.on_step = broken
    socket, request = serve(worker), train_request(run, worker.encoder.adapter())
    with pytest.raises(grpc.RpcError) as failed:
        raw(socket, f"/{SERVICE}/Train", pack(request))
    assert failed.value.code() == grpc.StatusCode.INTERNAL
    assert failed.value.details() == kind.__name__
    assert "red boots" in caplog.text
    with pytest.raises(RemoteFailure) as remote:
        forward(socket, "train", request, timeout_s=TIMEOUT_S)
    assert remote.value.kind == kind.__name__
    assert "red boots" not in str(remote.value)


def test_an_error_a_person_can_mend_is_one_line_in_the_log(
    worker: Worker, serve: Serve, caplog: pytest.LogCaptureFixture, place: Path
) -> None:
    adapter = {f"other.{name}": value for name, value in worker.encoder.adapter().items()}
    request = wire_evaluation.evaluate_request(encode_adapter(adapter), 1)
    with pytest.raises(RemoteFailure) as failed:
        forward(serve(worker), "evaluate", request, timeout_s=TIMEOUT_S)
    assert failed.value.kind == "WireError"
    (record,) = caplog.records
    assert record.exc_info is None


def test_a_call_ends_at_its_deadline(worker: Worker, run: Path, serve: Serve) -> None:
    go_on = held_at_each_step(worker)
    request = train_request(run, worker.encoder.adapter())
    try:
        with pytest.raises(RemoteFailure) as failed:
            forward(serve(worker), "train", request, timeout_s=0.5)
        assert failed.value.kind == "DeadlineExceeded"
    finally:
        go_on.set()


# -- the audit log ---------------------------------------------------------------------------------


def audit_of(worker: Worker) -> Path:
    return worker.region.state / "audit.jsonl"


@pytest.fixture
def noted(worker: Worker) -> Callable[[], list[tuple[str, dict[str, object]]]]:
    """Event and facts of every entry since the test began."""
    before = len(read_audit(audit_of(worker))) if audit_of(worker).exists() else 0
    return lambda: [(e.event, dict(e.facts)) for e in read_audit(audit_of(worker))[before:]]


Noted = Callable[[], list[tuple[str, dict[str, object]]]]


def test_every_kind_of_message_is_noted_as_both_ends_see_it(
    worker: Worker, run: Path, serve: Serve, noted: Noted
) -> None:
    socket, adapter = serve(worker), worker.encoder.adapter()
    arrays, expected = encode_adapter(adapter), []
    for kind, request in {
        "query.describe": wire.describe_request(),
        "train": train_request(run, adapter),
        "evaluate": wire_evaluation.evaluate_request(
            arrays, 1, purpose=wire_evaluation.GATE, references={0: arrays}
        ),
    }.items():
        reply = forward(socket, kind, request, timeout_s=TIMEOUT_S)
        facts: dict[str, object] = {
            "kind": kind,
            "received": digest(request),
            "received_bytes": len(pack(request)),
            "sent": digest(reply),
            "sent_bytes": len(pack(reply)),
        }
        expected.append(("message.answered", facts))
    assert noted() == expected


def test_of_a_refused_message_only_kind_and_class_are_noted(
    worker: Worker, run: Path, serve: Serve, noted: Noted
) -> None:
    def broken(done: int, total: int) -> None:
        raise ZeroDivisionError("red boots")

    worker.on_step = broken
    socket = serve(worker)
    for kind, request in (
        ("Train", b"red boots"),
        ("Evaluate", pack(RecordDict())),
        ("Train", pack(train_request(run, worker.encoder.adapter()))),
    ):
        with pytest.raises(grpc.RpcError):
            raw(socket, f"/{SERVICE}/{kind}", request)
    assert noted() == [
        ("message.refused", {"kind": "train", "error": "WireError"}),
        ("message.refused", {"kind": "evaluate", "error": "WireError"}),
        ("message.refused", {"kind": "train", "error": "ZeroDivisionError"}),
    ]
    assert b"boots" not in audit_of(worker).read_bytes()


def test_a_message_that_nobody_waits_for_is_noted_as_given_up(
    worker: Worker, place: Path, noted: Noted
) -> None:
    server = WorkerServer(worker, place / "run" / "worker.sock", group=None)
    server.start()
    patience = threading.Event()
    with server.exclusive():
        with pytest.raises(RemoteFailure, match="DeadlineExceeded"):
            forward(place / "run" / "worker.sock", "query.describe", RecordDict(), timeout_s=0.5)
        patience.wait(2)  # the server hears of it a little later
    while not noted():
        patience.wait(0.01)
    server.stop()
    assert noted() == [("message.refused", {"kind": "query.describe", "error": "GaveUp"})]


def test_nothing_of_catalog_clicks_or_metrics_is_in_the_audit_log(
    worker: Worker, run: Path, serve: Serve, noted: Noted
) -> None:
    socket, arrays = serve(worker), encode_adapter(worker.encoder.adapter())
    forward(socket, "query.describe", wire.describe_request(), timeout_s=TIMEOUT_S)
    forward(socket, "evaluate", wire_evaluation.evaluate_request(arrays, 1), timeout_s=TIMEOUT_S)
    text = json.dumps([facts for _, facts in noted()])
    folder = worker.region.folder
    catalog, clicks = (pl.read_parquet(folder / f"{t}.parquet") for t in ("catalog", "clicks"))
    for secret in {
        *catalog["title"],
        *catalog["product_id"],
        *clicks["query"],
        *clicks["user_key"],
    }:
        assert secret not in text


def _damaged(path: Path) -> None:
    AuditLog(path).append("region.enrolled")
    path.write_bytes(path.read_bytes().replace(b"enrolled", b"unrolled"))


@pytest.mark.parametrize("spoil", [Path.mkdir, _damaged])
def test_what_cannot_be_noted_is_not_answered(
    worker: Worker,
    place: Path,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], None],
) -> None:
    log = place / "audit.jsonl"
    spoil(log)
    monkeypatch.setattr(AuditLog, "__init__", lambda self, path: setattr(self, "path", log))
    socket = serve(worker)
    with pytest.raises(RemoteFailure) as unnoted:
        forward(socket, "query.describe", wire.describe_request(), timeout_s=TIMEOUT_S)
    assert unnoted.value.kind == "AuditError"
    with pytest.raises(grpc.RpcError) as failed:
        raw(socket, f"/{SERVICE}/Train", b"")
    assert failed.value.details() == "WireError"
    answered, refused, why = caplog.records
    assert str(log) in answered.getMessage()
    assert str(log) in why.getMessage()
    assert "container" in refused.getMessage()
    assert all(record.exc_info is None for record in caplog.records)


# -- one at a time, and not too many ---------------------------------------------------------------


def forward_all(socket: Path, request: RecordDict, count: int) -> list[Future[RecordDict]]:
    with ThreadPoolExecutor(count) as pool:
        calls = [
            pool.submit(forward, socket, "train", request, timeout_s=TIMEOUT_S)
            for _ in range(count)
        ]
    return calls


def test_one_message_is_worked_on_at_a_time(worker: Worker, run: Path, serve: Serve) -> None:
    steps: list[tuple[int, int]] = []
    worker.on_step = lambda done, total: steps.append((done, total))
    request = train_request(run, worker.encoder.adapter())
    calls = forward_all(serve(worker), request, 3)
    first, *others = [dict(call.result().array_records) for call in calls]
    assert all(pack(RecordDict(other)) == pack(RecordDict(first)) for other in others)
    total = steps[0][1]
    assert total > 1
    assert steps == [(done, total) for _ in range(3) for done in range(1, total + 1)]


def test_one_message_too_many_is_refused(worker: Worker, run: Path, serve: Serve) -> None:
    go_on = held_at_each_step(worker)
    socket, request = serve(worker), train_request(run, worker.encoder.adapter())
    with ThreadPoolExecutor(MAX_REQUESTS + 1) as pool:
        calls = {
            pool.submit(forward, socket, "train", request, timeout_s=TIMEOUT_S)
            for _ in range(MAX_REQUESTS + 1)
        }
        (refused,), others = wait(calls, TIMEOUT_S, FIRST_COMPLETED)  # the rest wait for `go_on`
        go_on.set()
        with pytest.raises(RemoteFailure) as failed:
            refused.result()
        assert failed.value.kind == "ResourceExhausted"
        assert all(call.result() for call in others)


# -- the socket's place ----------------------------------------------------------------------------


def modes(socket: Path) -> list[str]:
    return [oct(path.stat().st_mode & 0o777) for path in (socket.parent, socket)]


def test_without_a_group_it_is_its_owners_alone(worker: Worker, serve: Serve) -> None:
    socket = serve(worker)
    assert modes(socket) == ["0o700", "0o600"]


def test_a_group_may_connect_and_change_nothing(worker: Worker, serve: Serve) -> None:
    socket = serve(worker, group=str(os.getgid()))
    assert modes(socket) == ["0o750", "0o660"]
    assert {path.stat().st_gid for path in (socket.parent, socket)} == {os.getgid()}
    assert oct((socket.parent / ".lock").stat().st_mode & 0o777) == "0o600"


def test_a_group_that_does_not_exist(worker: Worker, serve: Serve) -> None:
    with pytest.raises(ConfigError, match='group "no-such-group" does not exist'):
        serve(worker, group="no-such-group")


def test_the_socket_is_gone_afterwards_and_can_be_served_again(worker: Worker, place: Path) -> None:
    socket = place / "run" / "worker.sock"
    for _ in range(2):
        server = WorkerServer(worker, socket, group=None)
        server.start()
        forward(socket, "query.describe", RecordDict(), timeout_s=TIMEOUT_S)
        server.stop()
        assert not socket.exists()


def test_any_name_will_do(worker: Worker, place: Path) -> None:
    socket = place / "ein Süd%20en #1?" / "worker.sock"
    server = WorkerServer(worker, socket, group=None)
    server.start()
    assert socket.is_socket()
    forward(socket, "query.describe", RecordDict(), timeout_s=TIMEOUT_S)
    server.stop()


def test_a_dead_workers_socket_is_replaced(worker: Worker, place: Path, serve: Serve) -> None:
    socket = place / "run" / "worker.sock"
    socket.parent.mkdir()
    with sockets.socket(sockets.AF_UNIX) as dead:
        dead.bind(str(socket))
    forward(serve(worker), "query.describe", RecordDict(), timeout_s=TIMEOUT_S)


def test_a_second_worker_is_refused_and_harms_nothing(worker: Worker, serve: Serve) -> None:
    socket = serve(worker)
    with pytest.raises(FederationError, match="another worker serves it"):
        serve(worker)
    forward(socket, "query.describe", RecordDict(), timeout_s=TIMEOUT_S)


def test_somebody_elses_live_socket_is_left_alone(
    worker: Worker, place: Path, serve: Serve
) -> None:
    socket = place / "run" / "worker.sock"
    socket.parent.mkdir()
    with sockets.socket(sockets.AF_UNIX) as alive:
        alive.bind(str(socket))
        alive.listen()
        with pytest.raises(FederationError, match="something else serves it"):
            serve(worker)
        with sockets.socket(sockets.AF_UNIX) as client:
            client.connect(str(socket))


def _other_files(place: Path) -> None:
    (place / "run").mkdir()
    (place / "run" / "catalog.parquet").touch()


def _link(place: Path) -> None:
    (place / "elsewhere").mkdir()
    (place / "run").symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_other_files, "holds other files"),
        (_link, "is no folder of this user"),
    ],
)
def test_a_place_that_is_not_fit(
    worker: Worker, place: Path, serve: Serve, spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(place)
    before = sorted((path, path.lstat().st_mode) for path in place.rglob("*"))
    with pytest.raises(ConfigError, match=reason):
        serve(worker)
    after = sorted((path, path.lstat().st_mode) for path in place.rglob("*"))
    assert after == before


def test_a_file_in_the_way_is_left_alone(worker: Worker, place: Path, serve: Serve) -> None:
    (place / "run").mkdir()
    (place / "run" / "worker.sock").write_text("notes")
    with pytest.raises(ConfigError, match="is in the way"):
        serve(worker)
    assert (place / "run" / "worker.sock").read_text() == "notes"


def test_a_path_the_kernel_cannot_take(worker: Worker, place: Path) -> None:
    with pytest.raises(ConfigError, match="longer than 107 bytes"):
        WorkerServer(worker, place / ("x" * 90) / "worker.sock", group=None).start()


def test_a_folder_without_a_parent(worker: Worker, place: Path) -> None:
    with pytest.raises(ConfigError, match="not found"):
        WorkerServer(worker, place / "a" / "run" / "worker.sock", group=None).start()


# -- a worker that goes away -----------------------------------------------------------------------


def test_a_worker_that_stays_away_is_unreachable(place: Path) -> None:
    for limits in ({"timeout_s": 0.5}, {"timeout_s": TIMEOUT_S, "patience_s": 0.5}):
        with pytest.raises(RemoteFailure) as failed:
            forward(place / "nobody", "query.describe", RecordDict(), **limits)
        assert failed.value.kind == "WorkerUnreachable"
        assert isinstance(failed.value, FedshelfError)


# A worker in a process of its own that ends in the first step of its first training.
KILLED = """
from client.rpc import WorkerServer
worker = get_worker(folder)
worker.on_step = lambda done, total: os.kill(os.getpid(), signal.SIGKILL)
WorkerServer(worker, socket, group=None).start()
print("ready", flush=True)
signal.pause()
"""
STOPPED = """
from client.rpc import Stopping, WorkerServer
worker, told = get_worker(folder), threading.Event()
def step(done, total):
    told.set()
    raise Stopping("the worker was told to stop")
worker.on_step = step
server = WorkerServer(worker, socket, group=None)
server.start()
print("ready", flush=True)
told.wait()
server.stop()
"""
PRELUDE = """
import os, signal, sys, threading, torch
from pathlib import Path
from client.worker import get_worker
torch.set_num_threads(1)
folder, socket = map(Path, sys.argv[1:])
"""


@pytest.mark.parametrize(("end", "code"), [(KILLED, -signal.SIGKILL), (STOPPED, 0)])
def test_a_restart_in_the_middle_of_a_training_is_survived(
    worker: Worker, run: Path, place: Path, serve: Serve, end: str, code: int
) -> None:
    socket, adapter = place / "run" / "worker.sock", worker.encoder.adapter()
    request = train_request(run, adapter)
    command = [sys.executable, "-c", PRELUDE + end, worker.region.folder, socket]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "ready\n"
            with ThreadPoolExecutor(1) as pool:
                call = pool.submit(forward, socket, "train", request, timeout_s=TIMEOUT_S)
                assert first.wait(TIMEOUT_S) == code
                serve(worker)
                forwarded = call.result()
        finally:
            first.kill()
    trained = worker.train(adapter, federation(run).train_config(1), 1)
    answer = wire.read_train_reply(
        forwarded, adapter, encoding=INT8, max_examples=10**6, max_norm=100
    )
    update = answer.update
    assert all((update[name] == trained.update[name]).all() for name in adapter)
