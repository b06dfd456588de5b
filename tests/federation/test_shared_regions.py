"""Regions shared out among processes: the same federation, and nothing lost when one dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from small_world import assert_same_adapters, options, quiet, run_config

from server.history import History
from shared.errors import FederationError
from simulations.engine import run_engine
from simulations.processes import Processes
from simulations.progress import RunProgress
from simulations.run import simulate

NewRun = Callable[[str], Path]
KNOBS: dict[str, Any] = {
    "plain": {},
    "int8": {"update_encoding": "int8"},  # regions keep what was rounded away
    "scaffold": {"control_variates": True, "optimizer": "sgd"},  # and their control variates
}


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    with Processes(2, threads=1, progress=RunProgress(Console(quiet=True))) as started:
        yield started


@pytest.mark.parametrize("name", KNOBS)
def test_two_processes_end_where_one_does(name: str, new_run: NewRun, two: Processes) -> None:
    torch.set_num_threads(1)
    alone, shared = new_run("alone"), new_run("shared")
    run_engine("local", run_config(alone, **KNOBS[name]), num_regions=2)
    run_engine("local", run_config(shared, **KNOBS[name]), num_regions=2, processes=two)
    assert_same_adapters(alone, shared)
    histories = [History(run / "headquarters").rounds() for run in (alone, shared)]
    for mine, theirs in zip(*histories, strict=True):
        assert mine.validation == theirs.validation
        assert mine.loss == theirs.loss
        assert (mine.uplink_bytes, mine.downlink_bytes) == (
            theirs.uplink_bytes,
            theirs.downlink_bytes,
        )


def test_a_region_that_fails_is_refused_and_the_others_go_on(
    new_run: NewRun, two: Processes
) -> None:
    run = new_run("broken")
    clicks = run / "regions" / "south" / "clicks.parquet"
    clicks.write_bytes(b"no parquet")
    config = run_config(run, min_regions=1, quorum=0.5, num_rounds=1)
    run_engine("local", config, num_regions=2, processes=two)
    (_, trained) = History(run / "headquarters").rounds()
    assert trained.cohort == ["north"]


class Doomed(RunProgress):
    """Progress that kills one of the processes started from now on, when a region trains."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.others, self.killed = set(children()), list[int]()

    def bar(self, title: str, place: int = 0) -> Callable[[int, int], None]:
        def report(done: int, total: int) -> None:
            if title.endswith("steps") and not self.killed:
                self.killed = sorted(set(children()) - self.others)
                os.kill(self.killed[0], signal.SIGKILL)

        return report


def test_a_process_that_is_killed_ends_the_run_in_one_line_and_it_goes_on(
    new_run: NewRun, two: Processes
) -> None:
    torch.set_num_threads(1)
    whole, run, before = new_run("whole"), new_run("cut"), set(children())
    run_engine("local", run_config(whole), num_regions=2)
    killed = pytest.raises(FederationError, match="was killed by signal 9; if memory ran out")
    with killed, Processes(2, threads=1, progress=Doomed()) as doomed:
        run_engine("local", run_config(run), num_regions=2, processes=doomed)
    assert set(children()) == before  # the other one has ended too
    run_engine("local", run_config(run), num_regions=2, processes=two)
    assert_same_adapters(whole, run)


def test_a_process_ends_when_whoever_started_it_is_gone(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from rich.console import Console\n"
        "from simulations.processes import Processes\n"
        "from simulations.progress import RunProgress\n"
        "two = Processes(1 + 1, threads=1, progress=RunProgress(Console(quiet=True)))\n"
        "two.tell_all({'task': 'forget', 'below': '/'})\n"
        "print(*[node._process.pid for node in two._nodes], flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=False
    )
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 60
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, pids))


def test_a_whole_run_in_two_processes_is_complete(tmp_path: Path, fashion: Path) -> None:
    run = tmp_path / "run"
    result = simulate(options(fashion, processes=2, threads=2, personalize=True), run, quiet())
    for name in ("centralized", "local-north", "local-south"):
        assert len(History(run / "baselines" / name).rounds()) == result["options"]["rounds"] + 1
    assert {row["name"] for row in result["regions"]} == {"north", "south"}
    assert all(row["rows"]["hybrid"]["ndcg@10"] is not None for row in result["regions"])
    assert result["peak_rss_bytes"] > 3 * 50 * 2**20


def children() -> list[int]:
    """Processes of the simulation that this one has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            status = path.read_text("utf-8")
            command = path.with_name("cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        if f"\nPPid:\t{os.getpid()}\n" in status and b"simulations.node" in command:
            found.append(int(path.parent.name))
    return sorted(found)


def alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text("utf-8")
    except OSError:
        return False
    return "State:\tZ" not in status
