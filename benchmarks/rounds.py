"""What a federated round costs beside the training in it, and what it sends.

The engine is `local`: Flower's ServerApp and ClientApp in this process. The run is copied, and goes
on for some rounds in the copy.
"""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.memory import alone
from benchmarks.report import Report
from benchmarks.timing import Spread
from benchmarks.uplink import siglip_update, update_bytes
from client.worker import Worker, forget_workers, get_worker
from server.history import History
from shared.records import record_bytes
from shared.wire import train_reply
from simulations.engine import run_engine

SECTION: Final = "a round"
TARGET: Final = 1.05  # of its local training
UPLINK_TARGET: Final = 160_000.0  # bytes a region and round, preset starter
SIGLIP_TARGET: Final = 1_000_000.0  # the same, preset siglip2-base


def measure_rounds(report: Report, run: Path, scratch: Path, *, rounds: int) -> None:
    """Time whole rounds and the training and evaluation of each region in them.

    Args:
        report: figures go there.
        run: folder that `fedshelf simulate` has made.
        scratch: the copy goes there.
        rounds: that are timed, after one that is not.
    """
    spent: dict[str, list[float]] = {"train": [], "evaluate": []}
    copy = Path(
        shutil.copytree(run, scratch / "run", ignore=shutil.ignore_patterns("headquarters"))
    )
    spec = json.loads((run / "run.json").read_text(encoding="utf-8"))
    before = History(run / "headquarters")
    History(copy / "headquarters").start(
        before.adapter(0), base_fingerprint=before.base_fingerprint()
    )
    forget_workers()
    workers = [get_worker(path.parent) for path in sorted((copy / "regions").glob("*/region.toml"))]
    for worker in workers:
        _time(worker, spent)
    knobs = {"run-dir": str(copy), "num-rounds": rounds + 1, "seed": spec["seed"], "gate": False}
    run_engine("local", knobs, num_regions=len(workers))
    forget_workers()
    _put_down(report, History(copy / "headquarters"), spent, len(workers))
    knobs["num-rounds"] = rounds + 2
    peak = alone(torch.get_num_threads(), go_on, knobs, len(workers)).peak_bytes
    report.add(SECTION, f"{len(workers)} regions, peak memory", peak, "bytes")
    adapter = before.adapter(0)
    for encoding in ("float32", "float16", "int8"):
        reply = train_reply(adapter, encoding=encoding, num_examples=1, loss=0.0, seconds=0.0)
        target = UPLINK_TARGET if encoding == "int8" else None
        report.add(SECTION, f"an update, {encoding}", record_bytes(reply), "bytes", target=target)
    siglip = float(update_bytes(siglip_update(), "int8"))
    report.add(SECTION, "an update of siglip2-base, int8", siglip, "bytes", target=SIGLIP_TARGET)


def go_on(knobs: dict[str, Any], regions: int) -> None:
    """Run the rounds of a federation that are missing, for their memory.

    Args:
        knobs: of the run.
        regions: how many it has.
    """
    run_engine("local", knobs, num_regions=regions)


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
) -> None:
    """Round 0 only evaluates and round 1 fills caches: neither counts."""
    records = history.rounds()[2:]
    training, work = [], []
    for record in records:
        first = (record.round - 1) * regions
        trained = sum(spent["train"][first : first + regions])
        evaluated = sum(spent["evaluate"][first + regions : first + 2 * regions])
        training.append(record.seconds / trained)
        work.append(record.seconds / (trained + evaluated))
    seconds = Spread.of([record.seconds for record in records])
    report.add(SECTION, f"{regions} regions", seconds, "s")
    name = f"{regions} regions, round / its local training"
    report.add(SECTION, name, Spread.of(training), "ratio", target=TARGET)
    report.add(SECTION, f"{name} and evaluation", Spread.of(work), "ratio")
