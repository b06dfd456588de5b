"""Between the ClientApp and the region's worker: three calls over gRPC on a unix socket.

A Flower node executes whatever app bundle it is sent. Therefore the bundle's process, here called
the forwarder, runs as a user who can reach one socket and nothing else of the region, and the
worker behind that socket runs as another user from the installed wheel. Both ends are in this file.

What this protects from. A hostile bundle cannot read the catalog, the clicks, the keys, the kept
activations or the worker's memory; it cannot take the socket's place, name a file, or send code:
what the worker accepts is a safetensors container (`shared.envelope`) whose records are checked by
`shared.wire`, and an error leaves the worker as the name of its class. Whatever it asks stands in
the region's audit log, which it cannot reach.

What it does not protect from. A hostile bundle can send well-formed requests with adapters of its
own choice and read the updates and metrics, because that is what a federation is for; clipping,
secure aggregation and noise are the answer to that, not this file. It can also keep the worker
busy or its few places taken, and make logs grow by a line a message, for as long as the bundle
runs. And the worker's user must be another one than the forwarder's:
`client.isolation.require_separation` checks that.
"""

import fcntl
import grp
import logging
import os
import socket as sockets
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import grpc
from flwr.app import RecordDict

from shared.envelope import pack, unpack
from shared.errors import AuditError, ConfigError, FederationError, FedshelfError, WireError
from shared.exchanges import ANSWERED, REFUSED, exchange_facts

if TYPE_CHECKING:  # the forwarder must not pay for torch
    from client.worker import Worker

log = logging.getLogger("fedshelf.worker")

SERVICE = "fedshelf.v1.Worker"
METHODS = {"query.describe": "Describe", "train": "Train", "evaluate": "Evaluate"}  # by kind
MAX_MESSAGE_BYTES = 256 * 2**20
MAX_REQUESTS = 4  # at work and waiting; one more is refused
UNREACHABLE = "WorkerUnreachable"
PATIENCE_S = 120.0  # a worker that restarts loads its encoders and checks its catalog
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.1, 2.0
_LOCK = ".lock"
_MAX_PATH_BYTES = 107  # of a unix socket, by the kernel
_LIMITS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]
_CLIENT_OPTIONS = [
    *_LIMITS,
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),  # `forward` retries, and knows for how long
    ("grpc.use_local_subchannel_pool", 1),  # else a new channel inherits the old one's backoff
]
# CANCELLED is what a worker that stops in an orderly way says to whoever still waits.
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_ANSWERED = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL)


class RemoteFailure(FederationError):
    """The worker did not answer, or answered with an error.

    Attributes:
        kind: class name of the worker's error, such as "DataError"; "WorkerUnreachable" if nobody
            listens; otherwise gRPC's own name of what went wrong, such as "DeadlineExceeded".
    """

    def __init__(self, kind: str, socket: Path) -> None:
        self.kind = kind
        super().__init__(f"{socket}: {kind}; the worker's own log says why")


class Stopping(FederationError):
    """The worker ends before it has answered; the forwarder asks whoever serves the socket next."""


class GaveUp(FederationError):
    """Nobody waits for the answer any more."""


def forward(
    socket: Path,
    kind: str,
    content: RecordDict,
    *,
    timeout_s: float,
    patience_s: float = PATIENCE_S,
) -> RecordDict:
    """Let the worker behind a socket answer a message.

    A worker that is killed or restarts meanwhile is asked again: training starts from what the
    message holds and carries no state, so the repeated answer is the same.

    Args:
        socket: of the worker.
        kind: Flower's message type.
        content: of the message.
        timeout_s: for the whole call.
        patience_s: how long after the first failure to reach the worker it is still asked again.

    Returns:
        The content of the reply.

    Raises:
        RemoteFailure: no answer in time, or an error instead of one.
        WireError: an unknown kind, or a content that cannot travel.
    """
    if kind not in METHODS:
        raise WireError(f"a message of an unknown kind; known: {', '.join(METHODS)}")
    request = pack(content)
    deadline = time.monotonic() + timeout_s
    give_up, delay = None, _FIRST_DELAY_S
    while True:
        try:
            reply = _call(socket, METHODS[kind], request, deadline - time.monotonic())
            return unpack(reply, max_bytes=MAX_MESSAGE_BYTES)
        except grpc.RpcError as error:
            if error.code() not in _AWAY:
                raise RemoteFailure(_kind(error), socket) from None
        now = time.monotonic()
        give_up = give_up or min(deadline, now + patience_s)
        if now + delay >= give_up:
            raise RemoteFailure(UNREACHABLE, socket)
        time.sleep(delay)
        delay = min(2 * delay, _LONGEST_DELAY_S)


class WorkerServer:
    """A worker behind a unix socket that one group may connect to.

    Every message that reaches the worker is in the region's audit log before its answer leaves; a
    message that cannot be noted there is refused. That it is noted does not say that the answer
    arrived.

    Args:
        worker: answers; one message at a time, because its encoder is one.
        socket: made by `start`, in a folder that holds nothing else and is given to the group.
        group: name or number; its members may connect. None: this user alone.
    """

    def __init__(self, worker: "Worker", socket: Path, *, group: str | None) -> None:
        from shared.audit import AuditLog

        self._worker, self._socket = worker, socket.absolute()
        self._audit = AuditLog(worker.region.state / "audit.jsonl")
        self._gid = None if group is None else _group_id(group)
        self._one_at_a_time = threading.Lock()
        self._running = ExitStack()

    def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: the socket's place or group is not fit for it.
            FederationError: another worker serves this socket.
        """
        with ExitStack() as stack:
            stack.enter_context(_claimed(self._socket, self._gid))
            pool = ThreadPoolExecutor(MAX_REQUESTS, thread_name_prefix="worker")
            stack.callback(pool.shutdown, wait=False)
            server = grpc.server(pool, options=_LIMITS, maximum_concurrent_rpcs=MAX_REQUESTS)
            server.add_generic_rpc_handlers((self._methods(),))
            server.add_insecure_port(_address(self._socket))
            _give(self._socket, self._gid, 0o660)
            server.start()
            stack.callback(lambda: server.stop(grace=None).wait())
            self._running = stack.pop_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the worker: messages that come meanwhile wait their turn."""
        with self._one_at_a_time:
            yield

    def stop(self) -> None:
        """Stop listening, and cancel whatever is not answered yet."""
        self._running.close()

    def _methods(self) -> Any:
        methods = {
            method: grpc.unary_unary_rpc_method_handler(partial(self._answer, kind))
            for kind, method in METHODS.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _answer(self, kind: str, request: bytes, context: Any) -> bytes:
        from client.answers import answer

        try:
            content = unpack(request, max_bytes=MAX_MESSAGE_BYTES)
            with self._one_at_a_time:
                if not context.is_active():
                    raise GaveUp("whoever asked gave up while the message waited for its turn")
                reply = pack(answer(self._worker, kind, content))
                self._audit.append(ANSWERED, **exchange_facts(kind, request, reply))
                return reply
        except BaseException as error:  # polars raises its own bugs as BaseException
            failed = error
        _log_failure(kind, failed)
        self._note_refusal(kind, failed)
        context.abort(_status(failed), type(failed).__name__)
        raise AssertionError("abort raises")

    def _note_refusal(self, kind: str, failed: BaseException) -> None:
        """Note a message without an answer, where that is possible; it is refused in any case."""
        if isinstance(failed, AuditError):
            return
        try:
            self._audit.append(REFUSED, kind=kind, error=type(failed).__name__)
        except AuditError as error:
            _log_failure(kind, error)


def _status(error: BaseException) -> Any:
    if isinstance(error, Stopping):
        return grpc.StatusCode.UNAVAILABLE
    malformed = isinstance(error, WireError)
    return grpc.StatusCode.INVALID_ARGUMENT if malformed else grpc.StatusCode.INTERNAL


def _log_failure(kind: str, error: BaseException) -> None:
    if isinstance(error, FedshelfError):
        log.error("%s: %s", kind, error)
    else:
        log.error("%s failed", kind, exc_info=error)


def _call(socket: Path, method: str, request: bytes, timeout_s: float) -> bytes:
    with grpc.insecure_channel(_address(socket), options=_CLIENT_OPTIONS) as channel:
        call = channel.unary_unary(f"/{SERVICE}/{method}")
        return bytes(call(request, timeout=timeout_s))


def _kind(error: Any) -> str:
    """What to call a gRPC error: the worker's own word for it, or else gRPC's."""
    code, details = error.code(), str(error.details())
    if code in _ANSWERED and details.isascii() and details.isidentifier():
        return details
    return "".join(part.capitalize() for part in code.name.split("_"))


def _address(socket: Path) -> str:
    return f"unix:{quote(str(socket.absolute()))}"  # gRPC reads it as a URI


def _group_id(group: str) -> int:
    if group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(f'group "{group}" does not exist; create it, or name another') from None


@contextmanager
def _claimed(socket: Path, gid: int | None) -> Iterator[None]:
    """Hold a socket's place: its folder is fit for it and no other worker serves it."""
    _prepare_folder(socket, gid)
    lock = _lock(socket)
    try:
        _remove_stale(socket)
        yield
        socket.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _prepare_folder(socket: Path, gid: int | None) -> None:
    """Make the socket's folder and give it to the group, which may enter it and change nothing."""
    folder = socket.parent
    if len(os.fsencode(socket)) > _MAX_PATH_BYTES:
        raise ConfigError(f"{socket}: longer than {_MAX_PATH_BYTES} bytes; choose a shorter path")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        raise ConfigError(f"{folder.parent}: not found; make it before the worker starts") from None
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise ConfigError(f"{folder}: is no folder of this user; give the socket one of its own")
    if {path.name for path in folder.iterdir()} - {socket.name, _LOCK}:
        raise ConfigError(f"{folder}: holds other files; give the socket a folder of its own")
    _give(folder, gid, 0o750)


def _lock(socket: Path) -> int:
    """Take the lock beside a socket; the kernel frees it however its holder dies."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(socket.with_name(_LOCK), flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise FederationError(f"{socket}: another worker serves it; stop that one first") from None
    return descriptor


def _remove_stale(socket: Path) -> None:
    """Remove the socket a killed worker left; anything alive or of another kind stays."""
    try:
        mode = socket.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{socket}: is in the way of the worker's socket; remove it")
    with sockets.socket(sockets.AF_UNIX) as probe:
        probe.settimeout(1.0)
        with suppress(ConnectionRefusedError):
            probe.connect(str(socket))
            raise FederationError(f"{socket}: something else serves it; stop that first")
    socket.unlink()


def _give(path: Path, gid: int | None, mode: int) -> None:
    """Set a path's group and mode; without a group, its owner keeps it alone."""
    if gid is None:
        path.chmod(mode & 0o700)
        return
    try:
        os.chown(path, -1, gid)
    except PermissionError:
        raise ConfigError(
            f"{path}: cannot be given to group {gid}; make the worker's user a member of it"
        ) from None
    path.chmod(mode)
