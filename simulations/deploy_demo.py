"""A whole federation as real processes on this machine, typed as its people would type it.

Headquarters and three regions, each with its own folder, talk over TLS on loopback: enrol, check,
train, gate, publish, search in every region, train again, roll back. The same data are federated by
`fedshelf simulate` first, and both must end with the same adapter. Every process is stopped at the
end, whatever happens.

    python -m simulations.deploy_demo OUT [--preset tiny] [--rounds 4] [--set gate-tolerance=0.1]

Whether the gate accepts is up to the data; where it declines there is nothing to publish, and the
demonstration ends with a line that says so.

With `--without-workers` there is no resident worker: Flower starts a process that loads encoders
and data for every message. It ends after the first training, whose round times are to compare.
"""

import argparse
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from client.decisions import read_state
from server.history import History
from server.training import trainings
from shared.errors import FederationError, FedshelfError
from shared.schema import WorkerConfig, load_region_config
from shared.supervise import flower_environment, program_beside_python
from simulations.regions import write_region_toml

QUERY = "red leather ankle boots"
_BROUGHT = ("catalog.parquet", "clicks.parquet", "images")  # all that a region brings
_WAIT_S = 600.0
_THREADS = 1  # several regions share this machine; and results are bit-equal only for one number


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demonstration; exit 1 with one line where something is not as it should be."""
    parser = argparse.ArgumentParser(prog="deploy-demo", description=__doc__)
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--data", default="synthetic", help='as of "fedshelf simulate"')
    parser.add_argument("--preset", default="starter", help="of the base")
    parser.add_argument("--regions", type=int, default=3, help="how many")
    parser.add_argument("--rounds", type=int, default=4, help="of the first training")
    said = 'as of "fedshelf server train"; repeatable'
    parser.add_argument("--set", dest="knobs", action="append", metavar="KEY=VALUE", help=said)
    parser.add_argument("--without-workers", action="store_true", help="to compare round times")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # and end what was started
    try:
        with ExitStack() as stack:
            demo = _Demo(given.out.resolve(), stack, rounds=given.rounds, knobs=given.knobs or ())
            names = demo.prepare(given.data, preset=given.preset, regions=given.regions)
            demo.compare(names) if given.without_workers else demo.show(names)
    except FedshelfError as error:
        sys.exit(f"error: {error}")


class _Demo:
    """The journey, one method a chapter.

    Args:
        out: everything is written under it.
        stack: ends every process that was started.
        rounds: of the first training.
        knobs: KEY=VALUE of both deployed trainings; one that changes how regions train would make
            them end elsewhere than the simulation.
    """

    def __init__(self, out: Path, stack: ExitStack, *, rounds: int, knobs: Sequence[str]) -> None:
        self._out, self._stack, self._rounds, self._knobs = out, stack, rounds, knobs
        self._hq, self._regions = out / "headquarters", out / "regions"
        self._expected = ""

    def prepare(self, data: str, *, preset: str, regions: int) -> list[str]:
        """Simulate, open headquarters, enrol; returns the regions' names."""
        if self._out.exists():
            raise FederationError(f"{self._out}: is there already; remove it or name another")
        self._expected = self._simulate(data, preset, regions)
        self._open_headquarters()
        names = sorted(path.name for path in (self._out / "simulated" / "regions").iterdir())
        for name in names:
            self._enrol(name)
        return names

    def show(self, names: Sequence[str]) -> None:
        """Train, publish, search, train again, roll back."""
        started = time.monotonic()
        for name in names:
            self._start("region", "up", self._regions / name, ready="is up")
        self._wait("all regions online", lambda: len(self._online()) == len(names))
        self._train(1, self._rounds, names)
        self._wait_for_release(1, names)
        self._require_same_adapter()
        for name in names:
            _fedshelf("search", "--region", self._regions / name, QUERY, "--k", "3")
        self._train(2, 1, names)
        self._wait_for_release(2, names)
        self._roll_back(names)
        self._look_around()
        _say(f"done in {time.monotonic() - started:.0f} s")

    def compare(self, names: Sequence[str]) -> None:
        """Train once with Flower's own way: a new process for every message."""
        for name in names:
            self._start_without_worker(name)
        self._wait("all regions online", lambda: len(self._online()) == len(names))
        self._train(1, self._rounds, names)
        self._require_same_adapter()

    def _simulate(self, data: str, preset: str, regions: int) -> str:
        """Make the data, and the adapter that the deployed federation must end with."""
        _say("The same federation, simulated: it makes the data and says what must come out")
        run = self._out / "simulated"
        options: list[object] = ["--data", data, "--preset", preset]
        options += ["--regions", regions, "--rounds", self._rounds]
        _fedshelf("simulate", *options, "--threads", _THREADS, "--out", run, quiet=True)
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
        return str(result["release"]["encoder_digest"])

    def _open_headquarters(self) -> None:
        _say("Headquarters")
        public, superlink = _free_ports(2)
        _fedshelf(
            *("server", "init", self._hq, "--address", f"localhost:{public}"),
            *("--superlink-port", superlink, "--base", self._out / "simulated" / "base"),
        )
        self._start("server", "up", "--dir", self._hq, ready="headquarters is up")

    def _enrol(self, name: str) -> None:
        """What headquarters and the region's operator do together, once."""
        _say(f"Region {name}")
        folder, invitation = self._regions / name, self._out / f"{name}.enrolment.json"
        source = self._out / "simulated" / "regions" / name
        folder.mkdir(parents=True)
        for brought in _BROUGHT:
            if (source / brought).is_dir():
                shutil.copytree(source / brought, folder / brought)
            else:
                shutil.copy(source / brought, folder)
        _fedshelf("server", "invite", name, "--dir", self._hq, "--out", invitation)
        _fedshelf("region", "enroll", invitation, "--region", folder)
        key = folder / "enrolment" / "node.pub"
        _fedshelf("server", "admit", name, key, "--dir", self._hq)
        _adjust(folder, source)
        _fedshelf("region", "check", folder)

    def _train(self, number: int, rounds: int, names: Sequence[str]) -> None:
        _say(f"Training {number}: rounds, gate, release, publication")
        knobs = (f"min-regions={len(names)}", *self._knobs)
        asked = ["--rounds", rounds, *(word for knob in knobs for word in ("--set", knob))]
        _fedshelf("server", "train", "--dir", self._hq, *asked, "--promote")
        if not (self._releases / str(number)).is_dir():  # a declined candidate is no failure there
            raise FederationError(
                f"training {number}: the gate declined, see above, so there is no release"
                f" {number} to wait for; more --rounds or --set gate-tolerance=NDCG may help"
            )

    def _wait_for_release(self, number: int, names: Sequence[str]) -> None:
        self._wait(
            f"release {number} answers in every region",
            lambda: all(self._answers_with(name, number) for name in names),
        )
        promoted = (self._releases / "current.json").stat().st_mtime
        swapped = max((self._state(name) / "current").stat().st_mtime for name in names)
        _say(f"every region has switched {swapped - promoted:.1f} s after promotion")

    def _roll_back(self, names: Sequence[str]) -> None:
        _say("Roll back")
        _fedshelf("server", "rollback", 1, "--dir", self._hq)
        self._wait_for_release(1, names)
        _fedshelf("search", "--region", self._regions / names[0], QUERY, "--k", "3")

    def _require_same_adapter(self) -> None:
        manifest = json.loads((self._releases / "1" / "MANIFEST.json").read_text("utf-8"))
        found = manifest["encoder_digest"]
        if found != self._expected:
            raise FederationError(
                f"deployed release 1 is encoder {found[:12]}, the simulation ended with"
                f" {self._expected[:12]}; they must be equal"
            )
        _say(f"release 1 is encoder {found[:12]}, as in the simulation")
        deployed = trainings(self._hq / "trainings")[0].history
        simulated = History(self._out / "simulated" / "headquarters")
        times = [f"{_seconds_a_round(each):.1f} s" for each in (deployed, simulated)]
        _say(f"a round took {times[0]} deployed, {times[1]} simulated", blank=False)

    def _look_around(self) -> None:
        from server.dashboard_facts import snapshot
        from server.dashboard_page import render_page
        from server.headquarters import open_headquarters

        _say("How it looks from headquarters")
        _fedshelf("server", "status", "--dir", self._hq)
        _fedshelf("server", "releases", "--dir", self._hq)
        for folder in (self._hq, *sorted(self._regions.iterdir())):
            _fedshelf("audit", "verify", folder if folder == self._hq else folder / "state")
        page = self._out / "dashboard.html"
        found = snapshot(open_headquarters(self._hq))
        page.write_text(render_page(found, alone=True), encoding="utf-8")
        _say(f"the dashboard as it is now: {page}")
        _say(f'the living one: "fedshelf server dashboard --dir {self._hq}"')

    def _online(self) -> list[str]:
        found = json.loads(_output("server", "status", "--dir", self._hq, "--json"))
        return [row["region"] for row in found["regions"] if row["online"]]

    @property
    def _releases(self) -> Path:
        return self._hq / "public" / "releases"

    def _state(self, name: str) -> Path:
        return self._regions / name / "state"

    def _answers_with(self, name: str, number: int) -> bool:
        """Whether a region has a release in use.

        Raises:
            FederationError: it never will, because the region has declined it.
        """
        decision = read_state(self._state(name)).decision_on(number)
        if decision is not None and decision.verdict == "declined":
            raise FederationError(f"region {name} declined release {number}: {decision.reason}")
        path = self._state(name) / "current"
        return path.is_file() and json.loads(path.read_text("utf-8"))["release"] == number

    def _start(self, *command: object, ready: str) -> None:
        """Start a command that keeps running, and wait until it says a word."""
        _say("$ fedshelf " + " ".join(map(str, command)) + " &", blank=False)
        log = self._out / "-".join(str(part) for part in command[:2])
        log = log.with_name(f"{log.name}-{Path(str(command[-1])).name}.log")
        process = self._stack.enter_context(_running(_command(command), log))

        def says_so() -> bool:
            text = log.read_text(encoding="utf-8")
            if process.poll() is not None:
                raise FederationError(f"{' '.join(map(str, command[:2]))} ended; {log} says why")
            return ready in text

        self._wait(f"{command[0]} {command[1]}", says_so)

    def _start_without_worker(self, name: str) -> None:
        """A SuperNode whose ClientApp answers in its own process, as in a simulation."""
        folder = self._regions / name
        config = load_region_config(folder)
        assert config.headquarters is not None, "it is enrolled"
        command = [
            program_beside_python("flower-supernode"),
            *("--superlink", config.headquarters.address),
            *("--root-certificates", str(folder / config.headquarters.ca)),
            *("--auth-supernode-private-key", str(folder / config.headquarters.key)),
            *("--port", str(_free_ports(1)[0])),
            *("--node-config", f'region-dir="{folder}"'),
        ]
        home = folder / "node"
        home.mkdir()
        environment = {**flower_environment(home), "OMP_NUM_THREADS": str(_THREADS)}
        log = self._out / f"supernode-{name}.log"
        self._stack.enter_context(_running(command, log, environment))

    def _wait(self, what: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _WAIT_S
        while not holds():
            if time.monotonic() > deadline:
                raise FederationError(f"{what}: not within {_WAIT_S:.0f} s; see {self._out}/*.log")
            time.sleep(0.5)


def _adjust(folder: Path, source: Path) -> None:
    """What an operator would set by hand: the data's form, look often, share this machine."""
    config, simulated = load_region_config(folder), load_region_config(source)
    text_fields = simulated.data.text_fields
    changes: dict[str, Any] = {
        "locale": simulated.locale,
        "data": config.data.model_copy(update={"text_fields": text_fields}),
        "worker": WorkerConfig(threads=_THREADS),
        "publication": config.publication.model_copy(update={"poll_s": 2.0}),
    }
    write_region_toml(folder, config.model_copy(update=changes))


def _command(parts: Sequence[object]) -> list[str]:
    return [sys.executable, "-m", "fedshelf", *(str(part) for part in parts)]


def _fedshelf(*parts: object, quiet: bool = False) -> None:
    """Run a command and show it with its output; raise if it fails."""
    _say("$ fedshelf " + " ".join(map(str, parts)), blank=False)
    done = subprocess.run(
        _command(parts), stdout=subprocess.DEVNULL if quiet else None, check=False
    )
    if done.returncode != 0:
        raise FederationError(f"fedshelf {parts[0]} {parts[1]} failed, see above")


def _output(*parts: object) -> str:
    done = subprocess.run(_command(parts), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FederationError(f"fedshelf {parts[0]} {parts[1]}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def _running(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that is asked to end as systemd would, and must.

    Not as Ctrl-C would: a shell's background jobs, and all they start, ignore that.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=60)


def _seconds_a_round(history: History) -> float:
    """Median of the rounds that found everything kept: from the second on, if there is one."""
    seconds = [record.seconds for record in history.rounds()[1:]]
    return median(seconds[1:] or seconds)


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(closing(socket.socket())) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _say(line: str, *, blank: bool = True) -> None:
    print(f"\n{line}" if blank else line, flush=True)


if __name__ == "__main__":
    main()
