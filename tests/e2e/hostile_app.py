"""A ClientApp as no headquarters should send it: it tries everything to get at a region's data.

Started by test_two_users.py as a program: `python hostile_app.py ARGUMENTS`, where ARGUMENTS is
the node config as JSON. It prints, as JSON, what became of every attempt: the name of the error
that stopped it, or "GAINED" with what it got. Only errors that mean a refusal count as one.
"""

import ctypes
import errno
import json
import os
import resource
import signal
import socket as sockets
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity
from safetensors.numpy import save

from client.rpc import MAX_MESSAGE_BYTES
from shared.envelope import pack

PTRACE_ATTACH = 16
PIDFD_OPEN, PIDFD_GETFD = 434, 438  # system calls, the same on every 64-bit Linux
SERVICE = "/fedshelf.v1.Worker"

app = ClientApp()
Attempts = dict[str, Callable[[], object]]


@app.train()
def attack(message: Message, context: Context) -> Message:
    """Try everything; the reply says what became of it."""
    config = context.node_config
    region, pid = Path(str(config["region"])), int(config["pid"])
    socket = Path(str(config["socket"]))
    attempts = on_files(region) | on_memory(pid)
    attempts |= on_supernode(Path(str(config["supernode"])), int(config["supernode-pid"]))
    attempts |= on_searches(str(config["url"]), str(config["token"]))
    if not config["reading-only"]:
        attempts |= on_process(pid, int(config["uid"])) | on_place(socket) | on_calls(socket)
    outcomes = {name: outcome(attempt) for name, attempt in attempts.items()}
    return Message(RecordDict({"outcomes": ConfigRecord(outcomes)}), reply_to=message)


def outcome(attempt: Callable[[], object]) -> str:
    """The name of the error that stopped an attempt, or what it gained."""
    try:
        gained = attempt()
    except urllib.error.HTTPError as error:  # an OSError too, without a number
        return f"HTTP {error.code}"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    except grpc.RpcError as error:
        worker_said = error.details() if error.details() in ("WireError", "ConfigError") else ""
        return f"{error.code().name} {worker_said}".strip()
    return f"GAINED {str(gained)[:60]}"


def on_files(region: Path) -> Attempts:
    """Read the region's files, directly and around corners."""
    own = Path.cwd()

    def through_link() -> bytes:
        link = own / "link"
        link.unlink(missing_ok=True)
        link.symlink_to(region / "catalog.parquet")
        return link.read_bytes()

    return {
        "list the region": lambda: list(region.iterdir()),
        "read region.toml": (region / "region.toml").read_bytes,
        "read the catalog": (region / "catalog.parquet").read_bytes,
        "read the clicks": (region / "clicks.parquet").read_bytes,
        "read the key": (region / "enrolment" / "node.key").read_bytes,
        "list the kept activations": lambda: list((region / "state" / "prefix_cache").iterdir()),
        "read through a link": through_link,
    }


def on_memory(pid: int) -> Attempts:
    """Read the worker's memory, environment and open files."""
    proc = Path(f"/proc/{pid}")
    libc = ctypes.CDLL(None, use_errno=True)

    def system(number: int, *arguments: int) -> int:
        result = libc.syscall(number, *arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), "refused")
        return int(result)

    def attach() -> int:
        if libc.ptrace(PTRACE_ATTACH, pid, 0, 0) < 0:
            raise OSError(ctypes.get_errno(), "refused")
        return pid

    return {
        "open its memory": lambda: os.open(proc / "mem", os.O_RDONLY),
        "read its environment": (proc / "environ").read_bytes,
        "read its memory map": (proc / "maps").read_bytes,
        "list its open files": lambda: os.listdir(proc / "fd"),
        "open its open files": lambda: os.open(proc / "fd" / "0", os.O_RDONLY),
        "enter its working directory": lambda: os.listdir(proc / "cwd"),
        "enter its root": lambda: os.listdir(proc / "root"),
        "attach a debugger": attach,
        "take its open file": lambda: system(PIDFD_GETFD, system(PIDFD_OPEN, pid, 0), 1, 0),
    }


def on_supernode(home: Path, pid: int) -> Attempts:
    """Read the SuperNode's copy of the key and its secret, and the memory of its process.

    The app's own user has the same secret in a file of its own: SuperExec, which starts the app,
    proves with it that it may ask the SuperNode for work.
    """
    memory = {f"SuperNode: {name}": attempt for name, attempt in on_memory(pid).items()}
    return memory | {
        "list the SuperNode's folder": lambda: list(home.iterdir()),
        "read the SuperNode's key": (home / "node.key").read_bytes,
        "read the SuperNode's secret": (home / "superexec.secret").read_bytes,
    }


def on_searches(url: str, token: str) -> Attempts:
    """Read the catalog through the port of the region's search service.

    Args:
        url: of the service.
        token: what the app knows of it; empty where it knows nothing.
    """
    words = json.dumps({"query": "shirt"}).encode()

    def ask(path: str, data: bytes | None = None) -> Callable[[], bytes]:
        def asking() -> bytes:
            request = urllib.request.Request(f"{url}{path}", data=data)
            request.add_header("content-type", "application/json")
            if token:
                request.add_header("authorization", f"Bearer {token}")
            with urllib.request.urlopen(request, timeout=60) as reply:
                return bytes(reply.read())

        return asking

    return {"search": ask("/v1/search", words), "ask what is served": ask("/v1/info")}


def on_process(pid: int, uid: int) -> Attempts:
    """End, stop or hinder the worker, or become its user."""
    limit = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    return {
        "signal it": lambda: os.kill(pid, 0),
        "stop it": lambda: os.kill(pid, signal.SIGSTOP),
        "end it": lambda: os.kill(pid, signal.SIGTERM),
        "kill it": lambda: os.kill(pid, signal.SIGKILL),
        "let it dump core": lambda: resource.prlimit(pid, resource.RLIMIT_CORE, limit),
        "take its processor": lambda: os.sched_setaffinity(pid, {0}),
        "become its user": lambda: os.setuid(uid),
    }


def on_place(socket: Path) -> Attempts:
    """Take the socket's place, or change anything about its folder."""
    folder, own = socket.parent, Path.cwd()

    def link() -> None:
        os.symlink("/etc/passwd", folder / "link")

    return {
        "remove the socket": lambda: os.unlink(socket),
        "rename the socket": lambda: os.rename(socket, own / "taken"),
        "put another in its place": lambda: sockets.socket(sockets.AF_UNIX).bind(
            str(folder / "other.sock")
        ),
        "open the socket to all": lambda: os.chmod(socket, 0o777),
        "open the folder to all": lambda: os.chmod(folder, 0o777),
        "write into the folder": (folder / "file").touch,
        "link into the folder": link,
        "take the lock": lambda: os.open(folder / ".lock", os.O_RDONLY),
        "rename the folder": lambda: os.rename(folder, folder.with_name("gone")),
        "remove the folder": lambda: os.rmdir(folder),
    }


def on_calls(socket: Path) -> Attempts:
    """Ask the worker for what it should not answer."""
    limits = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]

    def call(method: str, request: bytes) -> bytes:
        with grpc.insecure_channel(f"unix:{socket}", options=limits) as channel:
            return bytes(channel.unary_unary(method)(request, timeout=120))

    def train(content: RecordDict) -> Callable[[], object]:
        return lambda: call(f"{SERVICE}/Train", pack(content))

    array = ArrayRecord({"../../catalog.parquet": Array(np.zeros(1, np.float32))})
    path = ConfigRecord({"catalog": "/etc/passwd", "region": "../../../etc"})
    purpose = ConfigRecord({"server-round": 1, "purpose": "clicks"})
    return {
        "call another method": lambda: call(f"{SERVICE}/ReadFile", b"catalog.parquet"),
        "call another service": lambda: call("/grpc.reflection.v1.ServerReflection/Info", b""),
        "call a path": lambda: call("/../../catalog.parquet", b""),
        "send too much": lambda: call(f"{SERVICE}/Train", bytes(MAX_MESSAGE_BYTES + 1)),
        "send a pickle": lambda: call(f"{SERVICE}/Train", b"\x80\x04cos\nsystem\n(S'id'\ntR."),
        "send nothing": lambda: call(f"{SERVICE}/Train", b""),
        "send half a container": lambda: call(f"{SERVICE}/Train", pack(RecordDict())[:-3]),
        "send a container of another": lambda: call(
            f"{SERVICE}/Train", save({"weights": np.zeros(3)}, metadata={"format": "pt"})
        ),
        "name a path": train(RecordDict({"config": path})),
        "name a path as record": train(RecordDict({".._.._catalog": path})),
        "name a path as tensor": lambda: call(
            f"{SERVICE}/Evaluate", pack(RecordDict({"arrays": array, "config": path}))
        ),
        "ask for another purpose": lambda: call(
            f"{SERVICE}/Evaluate", pack(RecordDict({"arrays": array, "config": purpose}))
        ),
    }


def main() -> None:
    """Run the app on one message, as Flower's own process would."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    node = Context(1, 2, json.loads(sys.argv[1]), RecordDict(), {})
    reply = app(Message(RecordDict(), dst_node_id=2, message_type="train"), node)
    print(json.dumps(dict(reply.content.config_records["outcomes"])))


if __name__ == "__main__":
    main()
