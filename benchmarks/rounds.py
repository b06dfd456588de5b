"""What a federated round costs beside the training in it, and what it sends.

Engine `local` runs Flower's ServerApp and ClientApp, in this process or in several that share the
regions; the run is copied for each, and the copies go on in turns, a round at a time. Then Flower's
own simulation engine has its turn, which starts Ray and so runs all its rounds at once, in a
process of its own. A deployed round is timed by `simulations.deploy_demo`.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from rich.console import Console

from benchmarks.memory import alone
from benchmarks.report import Report
from benchmarks.timing import Spread
from benchmarks.uplink import siglip_update, update_bytes
from client.worker import Worker, forget_workers, get_worker
from server.history import History
from shared.adapter import Adapter
from shared.records import record_bytes
from shared.wire import train_reply
from simulations.engine import run_engine
from simulations.processes import Processes, processes_for
from simulations.progress import RunProgress

SECTION: Final = "a round"
TARGET: Final = 1.05  # of its local training
UPLINK_TARGET: Final = 160_000.0  # bytes a region and round, preset starter
SIGLIP_TARGET: Final = 1_000_000.0  # the same, preset siglip2-base


def measure_rounds(report: Report, run: Path, scratch: Path, *, rounds: int) -> None:
    """Time whole rounds and, in this process, each region's training and evaluation in them.

    Args:
        report: figures go there.
        run: folder that `fedshelf simulate` has made.
        scratch: the copy goes there.
        rounds: that are timed, after one that is not.
    """
    spent: dict[str, list[float]] = {"train": [], "evaluate": []}
    copy, other, third = (_copied(run, scratch / name) for name in ("alone", "shared", "flower"))
    threads, seed = torch.get_num_threads(), _seed(run)
    forget_workers()
    workers = [get_worker(path.parent) for path in sorted((copy / "regions").glob("*/region.toml"))]
    for worker in workers:
        _time(worker, spent)
    regions = len(workers)
    number = processes_for(run / "base", device="cpu", threads=threads, regions=regions)
    quiet = RunProgress(Console(quiet=True))
    with Processes(number, threads=max(1, threads // number), progress=quiet) as shared:
        sides = [(copy, None), (other, shared)][: 2 if number > 1 else 1]
        for turn in range(1, rounds + 2):
            for where, by in sides[:: 1 if turn % 2 else -1]:
                go_on(where, turn, seed, regions, by)
    forget_workers()
    alone(threads, go_on_under_flower, third, rounds + 1, seed, regions, number)
    took = _put_down(report, History(copy / "headquarters"), spent, regions)
    if number > 1:
        shared_by, history = f"{number} processes", History(other / "headquarters")
        _put_down_beside(report, history, took, shared_by, target=TARGET)
    actors = f"Flower's engine, actors: {number}"
    _put_down_beside(report, History(third / "headquarters"), took, actors)
    peak = alone(threads, go_on, copy, rounds + 2, seed, regions).peak_bytes
    report.add(SECTION, f"{regions} regions, one process, peak memory", peak, "bytes")
    _put_down_uplink(report, History(run / "headquarters").adapter(0))


def _put_down_uplink(report: Report, adapter: Adapter) -> None:
    """Bytes of an update, of this base and, from its shapes, of `siglip2-base`."""
    for encoding in ("float32", "float16", "int8"):
        reply = train_reply(adapter, encoding=encoding, num_examples=1, loss=0.0, seconds=0.0)
        target = UPLINK_TARGET if encoding == "int8" else None
        report.add(SECTION, f"an update, {encoding}", record_bytes(reply), "bytes", target=target)
    siglip = float(update_bytes(siglip_update(), "int8"))
    report.add(SECTION, "an update of siglip2-base, int8", siglip, "bytes", target=SIGLIP_TARGET)


def _copied(run: Path, copy: Path) -> Path:
    """A run before its first round."""
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("headquarters"))
    before = History(run / "headquarters")
    start = before.adapter(0), before.base_fingerprint()
    History(copy / "headquarters").start(start[0], base_fingerprint=start[1])
    return copy


def _seed(run: Path) -> int:
    return int(json.loads((run / "run.json").read_text(encoding="utf-8"))["seed"])


def go_on(
    run: Path,
    rounds: int,
    seed: int,
    regions: int,
    processes: Processes | None = None,
    engine: str = "local",
) -> None:
    """Run what is missing of so many rounds of a federation.

    Args:
        run: its folder.
        rounds: in all.
        seed: of the run.
        regions: how many it has.
        processes: that share them, or Flower's actors; None for this process alone.
        engine: "local" or "flower".
    """
    knobs = {"run-dir": str(run), "num-rounds": rounds, "seed": seed, "gate": False}
    run_engine(engine, knobs, num_regions=regions, processes=processes)


def go_on_under_flower(run: Path, rounds: int, seed: int, regions: int, actors: int) -> None:
    """`go_on` under Flower's own engine, in a process that ends afterwards: Ray stays until then.

    Args:
        run: its folder.
        rounds: in all.
        seed: of the run.
        regions: how many it has.
        actors: that share torch's threads.
    """
    threads, quiet = max(1, torch.get_num_threads() // actors), RunProgress(Console(quiet=True))
    with Processes(actors, threads=threads, progress=quiet) as shared:
        go_on(run, rounds, seed, regions, shared, engine="flower")


def _time(worker: Worker, spent: dict[str, list[float]]) -> None:
    """Have a worker note how long it trains and evaluates."""
    for name in ("train", "evaluate"):
        setattr(worker, name, _timed(getattr(worker, name), spent[name]))


def _timed(call: Callable[..., Any], taken: list[float]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            taken.append(time.perf_counter() - start)

    return timed


def _put_down(
    report: Report, history: History, spent: dict[str, list[float]], regions: int
) -> list[float]:
    """Figures of rounds in this process; answers the seconds of local training in each.

    Round 0 only evaluates and round 1 fills caches: neither counts.
    """
    records = history.rounds()[2:]
    trained, evaluated = list[float](), list[float]()
    for record in records:
        first = (record.round - 1) * regions
        trained.append(sum(spent["train"][first : first + regions]))
        evaluated.append(sum(spent["evaluate"][first + regions : first + 2 * regions]))
    seconds = [record.seconds for record in records]
    report.add(SECTION, f"{regions} regions, one process", Spread.of(seconds), "s")
    name = f"{regions} regions, one process, round / its local training"
    parts = np.array(seconds) / np.array(trained)
    report.add(SECTION, name, Spread.of(parts), "ratio")
    parts = np.array(seconds) / (np.array(trained) + np.array(evaluated))
    report.add(SECTION, f"{name} and evaluation", Spread.of(parts), "ratio")
    return trained


def _put_down_beside(
    report: Report,
    history: History,
    trained: Sequence[float],
    by: str,
    *,
    target: float | None = None,
) -> None:
    """Figures of rounds that others ran, against local training one region after another.

    Args:
        report: figures go there.
        history: of those rounds.
        trained: seconds of local training in the same rounds in one process.
        by: who ran them, in words.
        target: of the ratio.
    """
    records = history.rounds()[2:]
    seconds, name = [record.seconds for record in records], f"{len(records[0].cohort)} regions"
    report.add(SECTION, f"{name}, {by}", Spread.of(seconds), "s")
    parts = np.array(seconds) / np.array(trained)
    told = f"{name}, {by}, round / local training one after another"
    report.add(SECTION, told, Spread.of(parts), "ratio", target=target)
