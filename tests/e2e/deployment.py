"""A whole federation as real processes on this machine, for the tests that need one.

Headquarters and every region have a folder of their own and are driven by the commands that people
type, each in a process of its own. The data are the small ones of `small_world`; the same regions
federated in this process say with which adapter a training must end.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from small_world import prepare_run, run_config, start_headquarters

from client.encoders import resident_encoder
from client.worker import forget_workers
from server.history import History, RoundRecord
from server.training import Training
from shared.adapter import Adapter
from shared.encoders.base import read_base
from shared.schema import RegionConfig, WorkerConfig, load_region_config
from simulations.engine import run_engine
from simulations.regions import write_region_toml

DEADLINE_S = 600.0  # ends what hangs, on a machine that may be busy with other work
POLL_S = 0.02
ASK_S = 2.0  # between commands, each of which takes seconds of a processor
SEED = 7
# Whatever these few gate clicks say, the gate accepts; and training takes a while, so that it can
# be hit in the middle.
KNOBS: dict[str, float] = {"gate_min_queries": 2, "gate_tolerance": 5.0, "local_epochs": 40}
_BROUGHT = ("catalog.parquet", "clicks.parquet", "images")  # all that a region brings


def wait_until(
    what: str,
    holds: Callable[[], Any],
    *,
    deadline_s: float = DEADLINE_S,
    poll_s: float = POLL_S,
) -> Any:
    """Ask again and again until the answer is true, and return it."""
    give_up = time.monotonic() + deadline_s
    while not (value := holds()):
        assert time.monotonic() < give_up, f"not within {deadline_s:g} s: {what}"
        time.sleep(poll_s)
    return value


def must_run() -> bool:
    """Whether a test that cannot run here is a failure."""
    return any(os.environ.get(name) for name in ("CI", "FEDSHELF_MUST_RUN"))


def skip(reason: str) -> None:
    """Skip a test, or fail it where every test must run."""
    if must_run():
        pytest.fail(reason)
    pytest.skip(reason)


def require_nginx() -> None:
    if shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin") is None:
        skip("nginx is not installed")


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(closing(socket.socket())) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@contextmanager
def open_folder() -> Iterator[Path]:
    """A new folder that nginx's workers, who are nobody, may enter; pytest's own are closed."""
    with TemporaryDirectory(prefix="fedshelf-") as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        yield folder


@dataclass(frozen=True)
class Reference:
    """The same federation in this process: its data, and what must come out."""

    run: Path

    @property
    def regions(self) -> list[str]:
        return sorted(path.name for path in (self.run / "regions").iterdir())

    def rounds(self, number: int, **knobs: float) -> list[Adapter]:
        """The global adapter before and after every round, of a federation of so many."""
        name = "-".join([str(number), *(f"{key}={value}" for key, value in knobs.items())])
        run = self.run.with_name(f"{self.run.name}-{name}")
        if not run.is_dir():
            (run / "regions").parent.mkdir(parents=True)
            (run / "regions").symlink_to(self.run / "regions")
            self._federate(run, {**KNOBS, **knobs, "num_rounds": number})
        history = History(run / "headquarters")
        return [history.adapter(one) for one in range(number + 1)]

    def _federate(self, run: Path, knobs: dict[str, float]) -> None:
        base = self.run / "base"
        encoder = resident_encoder(base, device="cpu", fingerprint=read_base(base).fingerprint)
        start_headquarters(run, encoder, seed=SEED)
        config = {**run_config(run, **knobs), "gate": False, "seed": SEED}
        run_engine("local", config, num_regions=len(self.regions))
        forget_workers()


def make_reference(folder: Path, fashion: Path, *, regions: int) -> Reference:
    """Data of some regions, and a base."""
    prepare_run(folder, fashion, regions=regions, seed=SEED)
    return Reference(folder)


def same(one: Adapter, other: Adapter) -> bool:
    """Whether two adapters are the same in every bit."""
    return one.keys() == other.keys() and all(
        one[name].numpy().tobytes() == other[name].numpy().tobytes() for name in one
    )


@dataclass
class Host:
    """A machine: where commands run.

    Attributes:
        prefix: put before every command, such as "ip netns exec NAME".
    """

    prefix: tuple[str, ...] = ()

    def command(self, parts: Sequence[object]) -> list[str]:
        return [*self.prefix, sys.executable, "-m", "fedshelf", *map(str, parts)]


@dataclass
class Daemon:
    """A command that keeps running, and the processes that it supervises."""

    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def pid(self, name: str) -> int:
        """Process id of the newest process of that name; 0 before there is one."""
        found = re.findall(rf"^{name}: started \(process (\d+)\)$", self.said, re.MULTILINE)
        return int(found[-1]) if found else 0

    def kill(self, name: str) -> int:
        """Kill a supervised process at once; returns what its id was."""
        pid = self.pid(name)
        assert pid, f"{name} was never started"
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_for_another(self, name: str, former: int) -> None:
        """Wait until a killed process runs again."""
        wait_until(f"{name} runs again", lambda: self.pid(name) not in (0, former))

    def interrupt(self) -> int:
        """End it as Ctrl-C would; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=60)


@dataclass
class Deployment:
    """Headquarters and regions on their hosts; a context manager that ends every process.

    Attributes:
        folder: everything is below it.
        reference: the same federation in this process.
        address: of headquarters, as regions know it.
        hosts: by region; "" is headquarters. Where none is given it is this machine.
    """

    folder: Path
    reference: Reference
    address: str = "localhost"
    hosts: dict[str, Host] = field(default_factory=dict)
    daemons: dict[str, Daemon] = field(default_factory=dict)

    def __enter__(self) -> "Deployment":
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in reversed(self.daemons.values()):
            with suppress(subprocess.TimeoutExpired):
                daemon.interrupt()
        for pid in processes_of(self.folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for daemon in self.daemons.values():
            daemon.process.kill()  # does nothing to one that has ended
            daemon.process.wait()  # unreaped, it would warn in whatever test comes next

    @property
    def hq(self) -> Path:
        return self.folder / "headquarters"

    def region(self, name: str) -> Path:
        return self.folder / "regions" / name

    # -- commands ----------------------------------------------------------------------------------

    def call(self, *parts: object, host: str = "", code: int = 0) -> str:
        """Run a command to its end; returns what it printed, or the error where one is expected."""
        done = subprocess.run(
            self._host(host).command(parts),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == code, f"{parts} ended with {done.returncode}: {done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout if code == 0 else done.stderr.splitlines()[-1]

    def server(self, *parts: object, code: int = 0) -> str:
        """A command at headquarters."""
        return self.call("server", *parts, "--dir", self.hq, code=code)

    def server_json(self, *parts: object) -> Any:
        return json.loads(self.server(*parts, "--json"))

    def start(self, *parts: object, host: str = "", ready: str) -> Daemon:
        """Start a command that keeps running, and wait until it says that it is ready."""
        log = self.folder / f"{host or 'headquarters'}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                self._host(host).command(parts), stdout=output, stderr=subprocess.STDOUT
            )
        daemon = self.daemons[host] = Daemon(process, log)

        def says_so() -> bool:
            assert process.poll() is None, f"{parts} ended: {daemon.said}"
            return ready in daemon.said

        wait_until(f"{parts} says {ready}", says_so)
        return daemon

    def _host(self, name: str) -> Host:
        return self.hosts.get(name, Host())

    # -- the way there -----------------------------------------------------------------------------

    def open_headquarters(self) -> Daemon:
        public, superlink = free_ports(2)
        self.call(
            *("server", "init", self.hq, "--address", f"{self.address}:{public}"),
            *("--superlink-port", superlink, "--base", self.reference.run / "base"),
        )
        return self.start_headquarters()

    def start_headquarters(self) -> Daemon:
        return self.start("server", "up", "--dir", self.hq, ready="headquarters is up")

    def enrol(self, name: str, **changes: Any) -> None:
        """What headquarters' and the region's operator do together, once."""
        folder, invitation = self.region(name), self.folder / f"{name}.enrolment.json"
        self.bring_data(name)
        self.server("invite", name, "--out", invitation)
        self.call("region", "enroll", invitation, "--region", folder, host=name)
        self.server("admit", name, folder / "enrolment" / "node.pub")
        self.adjust(name, **changes)

    def open(self, **changes: Any) -> None:
        """Everything up: headquarters, and every region of the reference enrolled and online."""
        self.open_headquarters()
        names = self.reference.regions
        with ThreadPoolExecutor(2) as pool:  # most of it is waiting for imports
            list(pool.map(lambda name: self.enrol(name, **changes), names))
            list(pool.map(self.start_region, names))
        self.wait_until_online(names)

    def bring_data(self, name: str) -> None:
        source, folder = self.reference.run / "regions" / name, self.region(name)
        folder.mkdir(parents=True)
        for brought in _BROUGHT:
            if (source / brought).is_dir():
                shutil.copytree(source / brought, folder / brought)
            else:
                shutil.copy(source / brought, folder)

    def adjust(self, name: str, **changes: Any) -> None:
        """What an operator would set by hand: look often, share this machine, the data's form."""
        config = load_region_config(self.region(name))
        source = load_region_config(self.reference.run / "regions" / name)
        values: dict[str, Any] = {
            "locale": source.locale,
            "device": "cpu",
            "worker": WorkerConfig(threads=1),  # bit-equal only for one number of threads
            "publication": config.publication.model_copy(update={"poll_s": 1.0}),
            "data": config.data.model_copy(update={"text_fields": source.data.text_fields}),
        }
        adjusted = config.model_copy(update=values | changes)
        write_region_toml(self.region(name), RegionConfig.model_validate(adjusted.model_dump()))

    def start_region(self, name: str) -> Daemon:
        return self.start("region", "up", self.region(name), host=name, ready="is up")

    def wait_until_online(self, names: Sequence[str]) -> None:
        def online() -> bool:
            rows = self.server_json("status")["regions"]
            return {row["region"] for row in rows if row["online"]} == set(names)

        wait_until(f"{names} are online", online, poll_s=ASK_S)

    # -- trainings ---------------------------------------------------------------------------------

    @contextmanager
    def training(self, *, rounds: int, promote: bool = False, **knobs: float) -> Iterator["Run"]:
        """Start a training in the background; it must have ended when the block ends."""
        turned = {**KNOBS, "min_regions": 1, **knobs}
        pairs = [f"{name.replace('_', '-')}={value}" for name, value in turned.items()]
        options = [word for pair in pairs for word in ("--set", pair)]
        options += ["--promote"] if promote else []
        with self._train("--rounds", rounds, *options) as run:
            yield run

    @contextmanager
    def resumed(self) -> Iterator["Run"]:
        """Go on with the last training, in the background."""
        with self._train("--resume") as run:
            yield run

    @contextmanager
    def _train(self, *options: object) -> Iterator["Run"]:
        log = self.folder / "train.log"
        number = self.last_training() if "--resume" in options else self.last_training() + 1
        with log.open("wb") as output:
            command = self._host("").command(("server", "train", "--dir", self.hq, *options))
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield Run(process, log, self.hq / "trainings" / f"{number:04d}")
            process.wait(timeout=DEADLINE_S)
        finally:
            process.kill()
            process.wait()

    def last_training(self) -> int:
        numbers = [int(path.name) for path in (self.hq / "trainings").glob("[0-9]*")]
        return max(numbers, default=0)

    def in_use(self, name: str) -> int:
        """Release that answers searches in a region."""
        path = self.region(name) / "state" / "current"
        return int(json.loads(path.read_text("utf-8"))["release"]) if path.is_file() else -1


@dataclass
class Run:
    """One `fedshelf server train` at work."""

    process: "subprocess.Popen[bytes]"
    log: Path
    folder: Path

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    @property
    def history(self) -> History:
        return History(self.folder / "headquarters")

    @property
    def rounds(self) -> list[RoundRecord]:
        return self.history.rounds()

    def wait_for_round(self, number: int) -> None:
        """Wait until the handshake of a round is over, so that its messages are on their way."""
        met, kept = (self.history.folder / name for name in ("regions.json", "history.json"))

        def under_way() -> bool:
            assert self.process.poll() is None, f"the training has ended: {self.said}"
            if len(self.rounds) < number:
                return False
            assert len(self.rounds) == number, f"round {number} is over already"
            if not met.is_file():
                return False
            return number == 0 or met.stat().st_mtime_ns > kept.stat().st_mtime_ns

        wait_until(f"round {number} is under way", under_way)

    def wait(self, *, code: int = 0) -> str:
        """Wait until it has ended; returns what it said."""
        assert self.process.wait(timeout=DEADLINE_S) == code, self.said
        assert "Traceback" not in self.said
        return self.said


# -- processes -------------------------------------------------------------------------------------


def processes_of(folder: Path) -> list[int]:
    """Everything alive that names a folder in its command line, or works in it; not ourselves."""
    found, mark = [], str(folder)
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is a zombie
            named = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            inside = os.readlink(path / "cwd")
            if mark in named or inside.startswith(mark):
                found.append(int(path.name))
    return [pid for pid in found if pid != os.getpid()]


def session_of(pid: int) -> list[tuple[int, str]]:
    """Process ids and command lines of everything in the session that `pid` leads."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == pid and fields[0] != "Z":
                line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append((int(path.name), line))
    return found


def cpu_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until_busy(pid: int, seconds: float = 0.3) -> None:
    """Wait until a process has computed for a while from now on: it is at work on something."""
    before = cpu_seconds(pid)
    wait_until(f"process {pid} is at work", lambda: cpu_seconds(pid) > before + seconds)


def stop_continue(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


def leftovers(folder: Path) -> list[Path]:
    """Half-written files and folders; Flower's homes apart, where an old copy may be set aside."""
    homes = {"flower", "node", "app"}
    return [path for path in folder.rglob(".*.partial") if not homes & set(path.parts)]


def assert_as_undisturbed(deployment: Deployment, run: Run, rounds: int) -> None:
    """The training has ended as if nothing had happened."""
    assert [record.round for record in run.rounds] == list(range(rounds + 1))
    for record, expected in zip(run.rounds, deployment.reference.rounds(rounds), strict=True):
        assert record.rejected == []
        assert sorted(record.validation) == deployment.reference.regions
        assert same(run.history.adapter(record.round), expected)
    assert Training(run.folder).release is not None


def assert_nothing_half_written(deployment: Deployment) -> None:
    """Everything still runs, and no file was left unfinished anywhere."""
    for name in (*deployment.reference.regions, ""):
        assert deployment.daemons[name].process.poll() is None, deployment.daemons[name].said
    wait_until("nothing is half-written", lambda: not leftovers(deployment.folder), deadline_s=20)


def last_line(run: Run) -> str:
    """The one line that says why a training did not end."""
    line = run.said.splitlines()[-1]
    assert line.startswith("error: "), run.said
    return line
