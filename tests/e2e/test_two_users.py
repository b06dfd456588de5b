"""A region whose worker and whose ClientApp are two users, and a ClientApp that wants the data.

Needs root, to start processes as two users that exist only as numbers; nothing is left behind.
"""

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from deployment import free_ports, wait_until
from small_world import federation, prepare_run, start_headquarters

from client.indexing import build_region_index, load_region_encoder
from client.isolation import require_separation
from client.region import open_region
from client.worker import forget_workers
from server.history import History
from shared import wire
from shared.adapter import Adapter
from shared.config import INT8
from shared.encoders.encoder import load_encoder
from shared.envelope import pack, unpack
from shared.errors import ConfigError
from shared.records import encode_adapter
from shared.schema import ServeConfig, WorkerConfig, load_region_config, render_region_toml

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
# Users, and the socket's group. NODE runs what headquarters sends, SUPERNODE the SuperNode.
WORKER, NODE, GROUP, SUPERNODE = 64871, 64872, 64873, 64874
TOKEN = "the-token-of-this-region's-searches"
TIMEOUT_S = 240

SERVE = """
import sys
from pathlib import Path
from client.resident import run_worker
run_worker(Path(sys.argv[1]), group=sys.argv[2], on_line=lambda line: print("ready", flush=True))
"""
FORWARD = """
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
sys.stdout.buffer.write(pack(reply.content))
"""


@dataclass(frozen=True)
class Stage:
    """Where everything lies, and how to start Python as another user.

    Attributes:
        run: the run whose region north is at work.
        region: its folder, the worker's alone.
        socket: of the worker.
        node: a folder of the node's user, and its working directory.
        supernode: a folder of the SuperNode's user, as `region up` makes it.
        url: of the region's searches.
        python: an interpreter that both users may run.
        env: their environment.
        adapter: to train from.
    """

    run: Path
    region: Path
    socket: Path
    node: Path
    supernode: Path
    url: str
    python: Path
    env: Mapping[str, str]
    adapter: Adapter

    def start(
        self, user: int, *arguments: object, cwd: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start Python as a user who is in the socket's group."""
        return subprocess.Popen(
            [self.python, *map(str, arguments)],
            user=user,
            group=user,
            extra_groups=[GROUP],
            cwd=cwd or self.node,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )

    def ask(self, kind: str, content: Any) -> Any:
        """Let an honest ClientApp, as the node's user, answer a message."""
        request = self.node / "request"
        request.write_bytes(pack(content))
        with self.start(NODE, "-c", FORWARD, kind, request, self.socket) as forwarder:
            reply = forwarder.communicate(timeout=TIMEOUT_S)[0]
        assert forwarder.returncode == 0
        return unpack(reply, max_bytes=2**28)

    def attack(
        self, user: int, worker: int, *, reading_only: bool = False, token: str = ""
    ) -> dict[str, str]:
        """What became of everything the hostile ClientApp tried, by attempt."""
        program = ROOT / "tests" / "e2e" / "hostile_app.py"
        with self.resting(SUPERNODE) as supernode:
            config = {
                "region": str(self.region),
                "socket": str(self.socket),
                "pid": worker,
                "uid": WORKER,
                "supernode": str(self.supernode),
                "supernode-pid": supernode.pid,
                "url": self.url,
                "token": token,
                "reading-only": reading_only,
            }
            with self.start(user, program, json.dumps(config)) as hostile:
                outcomes = hostile.communicate(timeout=TIMEOUT_S)[0]
            assert supernode.poll() is None
        assert hostile.returncode == 0
        return dict(json.loads(outcomes))

    @contextmanager
    def resting(self, user: int) -> Iterator[subprocess.Popen[bytes]]:
        """A process of a user that does nothing, and is not hardened."""
        code = "import signal; print(flush=True); signal.pause()"
        with self.start(user, "-c", code, cwd=Path("/")) as process:
            try:
                assert process.stdout is not None
                process.stdout.readline()
                yield process
            finally:
                process.kill()


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder on a path that every user may walk; pytest's own is closed to others."""
    if os.geteuid() != 0:
        reason = "needs root, to start processes as two other users"
        if os.environ.get("CI") or os.environ.get("FEDSHELF_MUST_RUN"):
            pytest.fail(reason)
        pytest.skip(reason)
    taken = {user.pw_uid for user in pwd.getpwall()} & {WORKER, NODE, SUPERNODE}
    assert not taken, f"users with the numbers {taken} exist; this test wants them free"
    folder = Path(tempfile.mkdtemp(prefix="fedshelf-users-"))
    folder.chmod(0o755)
    yield folder
    forget_workers()  # the resident encoder has its base in there
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def python(place: Path) -> Path:
    """An interpreter that any user may run: this one, or a copy of it if it is in a private home.

    Packages are found by PYTHONPATH in either case.
    """
    ours = Path(sys.base_prefix)
    mine = Path(sys.executable)
    if _runs(mine):
        return mine
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    skip = shutil.ignore_patterns("site-packages", "test", "config-*", "idlelib", "ensurepip")
    shutil.copytree(ours / "lib" / name, place / "python" / "lib" / name, ignore=skip)
    for library in (ours / "lib").glob("libpython*.so*"):
        shutil.copy(library, place / "python" / "lib")
    (place / "python" / "bin").mkdir()
    copy = place / "python" / "bin" / name
    shutil.copy(ours / "bin" / name, copy)
    assert _runs(copy), "no interpreter that another user may run, nor the packages; see above"
    return copy


def _environment(python: Path) -> dict[str, str]:
    packages = [str(ROOT), sysconfig.get_paths()["purelib"]]
    return {
        "PYTHONPATH": os.pathsep.join(packages),
        "LD_LIBRARY_PATH": str(python.parents[1] / "lib"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": os.defpath,
        "HOME": "/nonexistent",
        "OMP_NUM_THREADS": "1",
    }


def _runs(python: Path) -> bool:
    """Whether the node's user can run an interpreter, its standard library and our packages."""
    code = "import sys, numpy, client; print(sys.version)"
    try:
        done = subprocess.run(
            [python, "-c", code],
            user=NODE,
            group=NODE,
            extra_groups=[],
            cwd="/",
            env=_environment(python),
            stdout=subprocess.PIPE,
            text=True,
        )
    except PermissionError:
        return False
    return done.returncode == 0 and done.stdout.strip() == sys.version


@pytest.fixture(scope="module")
def stage(place: Path, python: Path, fashion: Path) -> Stage:
    """A region of the worker's user, and a folder of the node's."""
    run, home, node, supernode = (place / name for name in ("run", "home", "node", "supernode"))
    prepare_run(run, fashion)
    start_headquarters(run, load_encoder(run / "base", device="cpu"))
    region = run / "regions" / "north"
    (region / "enrolment").mkdir()
    (region / "enrolment" / "node.key").write_bytes(b"secret")
    home.mkdir(mode=0o755)  # the worker makes the socket's folder in it
    node.mkdir(mode=0o755)
    supernode.mkdir(mode=0o700)
    for name in ("node.key", "superexec.secret"):
        (supernode / name).write_bytes(b"secret")
    build_index(region)
    config = load_region_config(region)
    socket = home / "run" / "worker.sock"
    (port,) = free_ports(1)
    serve = ServeConfig(http=f"127.0.0.1:{port}", grpc="", token_file="serve.token")
    (region / "serve.token").write_text(TOKEN, encoding="utf-8")
    worker = WorkerConfig(socket=str(socket), threads=1)
    config = config.model_copy(update={"worker": worker, "serve": serve})
    (region / "region.toml").write_text(render_region_toml(config))
    base = run / "base"
    for path in (base, *base.rglob("*"), region, *region.rglob("*"), home):
        os.chown(path, WORKER, WORKER)
    os.chown(node, NODE, NODE)
    for path in (supernode, *supernode.iterdir()):
        os.chown(path, SUPERNODE, SUPERNODE)
    region.chmod(0o700)
    adapter = History(run / "headquarters").adapter(0)
    url = f"http://127.0.0.1:{port}"
    return Stage(run, region, socket, node, supernode, url, python, _environment(python), adapter)


def build_index(region: Path) -> None:
    """Of the base, so that searches are answered."""
    opened = open_region(region)
    build_region_index(opened, load_region_encoder(region, opened.config, release=0), release=0)


@pytest.fixture(scope="module")
def worker(stage: Stage) -> Iterator[subprocess.Popen[bytes]]:
    """The worker's process."""
    arguments = ("-c", SERVE, stage.region, GROUP)
    # Python imports from the working directory too: it must not be one the node's user can write.
    with stage.start(WORKER, *arguments, cwd=stage.region) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            wait_until("searches are answered", lambda: is_ready(stage.url), deadline_s=TIMEOUT_S)
            yield process
        finally:
            process.kill()


def is_ready(url: str) -> bool:
    """Whether the service says so; health needs no token."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=10) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def assert_at_work(stage: Stage, worker: subprocess.Popen[bytes]) -> None:
    """The worker still answers an honest ClientApp, and is the process it was."""
    description = wire.read_description(stage.ask(wire.DESCRIBE, wire.describe_request()))
    assert description.region == "north"
    config = federation(stage.run).train_config(1)
    request = wire.train_request(encode_adapter(stage.adapter), config, 1)
    reply = wire.read_train_reply(
        stage.ask("train", request), stage.adapter, encoding=INT8, max_examples=10**6, max_norm=100
    )
    assert reply.num_examples == description.num_examples
    assert worker.poll() is None


READING = {
    "list the region": "EACCES",
    "read region.toml": "EACCES",
    "read the catalog": "EACCES",
    "read the clicks": "EACCES",
    "read the key": "EACCES",
    "list the kept activations": "EACCES",
    "read through a link": "EACCES",
}
MEMORY = {
    "open its memory": "EACCES",
    "read its environment": "EACCES",
    "read its memory map": "EACCES",
    "list its open files": "EACCES",
    "open its open files": "EACCES",
    "enter its working directory": "EACCES",
    "enter its root": "EACCES",
    "attach a debugger": "EPERM",
    "take its open file": "EPERM",
}
SUPERNODES = {f"SuperNode: {name}": refusal for name, refusal in MEMORY.items()} | {
    "list the SuperNode's folder": "EACCES",
    "read the SuperNode's key": "EACCES",
    "read the SuperNode's secret": "EACCES",
}
SEARCHING = {"search": "HTTP 401", "ask what is served": "HTTP 401"}
HINDERING = {
    "signal it": "EPERM",
    "stop it": "EPERM",
    "end it": "EPERM",
    "kill it": "EPERM",
    "let it dump core": "EPERM",
    "take its processor": "EPERM",
    "become its user": "EPERM",
    "remove the socket": "EACCES",
    "rename the socket": "EACCES",
    "put another in its place": "EACCES",
    "open the socket to all": "EPERM",
    "open the folder to all": "EPERM",
    "write into the folder": "EACCES",
    "link into the folder": "EACCES",
    "take the lock": "EACCES",
    "rename the folder": "EACCES",
    "remove the folder": "EACCES",
}
ASKING = {
    "call another method": "UNIMPLEMENTED",
    "call another service": "UNIMPLEMENTED",
    "call a path": "UNIMPLEMENTED",
    "send too much": "RESOURCE_EXHAUSTED",
    "send a pickle": "INVALID_ARGUMENT WireError",
    "send nothing": "INVALID_ARGUMENT WireError",
    "send half a container": "INVALID_ARGUMENT WireError",
    "send a container of another": "INVALID_ARGUMENT WireError",
    "name a path": "INVALID_ARGUMENT WireError",
    "name a path as record": "INVALID_ARGUMENT WireError",
    "name a path as tensor": "INVALID_ARGUMENT WireError",
    "ask for another purpose": "INVALID_ARGUMENT WireError",
}


def test_an_honest_app_is_answered(stage: Stage, worker: subprocess.Popen[bytes]) -> None:
    assert_at_work(stage, worker)


def test_a_hostile_app_gets_nothing(stage: Stage, worker: subprocess.Popen[bytes]) -> None:
    outcomes = stage.attack(NODE, worker.pid)
    assert outcomes == READING | MEMORY | SUPERNODES | SEARCHING | HINDERING | ASKING
    assert_at_work(stage, worker)


def test_the_attempts_would_succeed_without_the_second_user(
    stage: Stage, worker: subprocess.Popen[bytes]
) -> None:
    # As the worker's own user: the files open. Its memory stays closed, for it is hardened.
    outcomes = stage.attack(WORKER, worker.pid, reading_only=True)
    assert gained(outcomes) == READING.keys() - {"read through a link"}  # needs the node's folder
    assert {name: outcomes[name] for name in MEMORY} == MEMORY
    assert_at_work(stage, worker)


def test_the_memory_attempts_would_succeed_on_a_process_that_is_not_hardened(
    stage: Stage,
) -> None:
    with stage.resting(WORKER) as process:
        outcomes = stage.attack(WORKER, process.pid, reading_only=True)
    assert gained(outcomes) >= MEMORY.keys()


def test_the_attempts_on_the_supernode_would_succeed_without_the_third_user(
    stage: Stage, worker: subprocess.Popen[bytes]
) -> None:
    outcomes = stage.attack(SUPERNODE, worker.pid, reading_only=True)
    assert gained(outcomes) == SUPERNODES.keys()
    assert_at_work(stage, worker)


def test_the_searches_would_be_answered_with_the_token(
    stage: Stage, worker: subprocess.Popen[bytes]
) -> None:
    outcomes = stage.attack(NODE, worker.pid, reading_only=True, token=TOKEN)
    assert gained(outcomes) == SEARCHING.keys()
    wrong = stage.attack(NODE, worker.pid, reading_only=True, token=TOKEN.upper())
    assert {name: wrong[name] for name in SEARCHING} == SEARCHING


def gained(outcomes: Mapping[str, str]) -> set[str]:
    """The attempts that got something."""
    return {name for name, outcome in outcomes.items() if outcome.startswith("GAINED")}


def test_the_check_of_the_modes_agrees(stage: Stage, worker: subprocess.Popen[bytes]) -> None:
    # A number without a name is in no group, so the one thing it lacks is the way to the socket.
    with pytest.raises(ConfigError, match=rf"^{stage.socket.parent}: .* cannot pass it"):
        require_separation(stage.region, str(NODE))
    with pytest.raises(ConfigError, match=r"catalog\.parquet: .* must not"):
        require_separation(stage.region, str(WORKER))


def test_the_worker_ends_when_asked(stage: Stage, worker: subprocess.Popen[bytes]) -> None:
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(TIMEOUT_S) == 0
    assert not stage.socket.exists()
