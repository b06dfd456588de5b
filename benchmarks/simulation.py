"""What simulating many regions costs: in our processes, and under Flower's own simulation engine.

Both run the same ServerApp and ClientApp on the same regions, with preset `tiny`. Regions are
small, fifty products and sixty requests, so that it is the simulation that is measured. Every
measurement is a process of its own, on regions that have kept nothing from the one before; the
engines take turns.

    python -m benchmarks.simulation RUN ENGINE ROUNDS THREADS PROCESSES

is such a process: it runs a federation and prints what it took.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from rich.console import Console

from benchmarks.memory import peak_bytes
from benchmarks.report import Report
from benchmarks.timing import Spread
from server.history import History
from shared.encoders.encoder import load_encoder
from shared.encoders.presets import PRESETS, make_base
from shared.encoders.public import PublicSlice
from shared.errors import ConfigError
from shared.schema import CLICK_COLUMNS, BaseConfig, DataConfig, RegionConfig
from simulations.engine import run_engine
from simulations.processes import Processes, processes_for
from simulations.progress import RunProgress
from simulations.regions import write_catalog, write_clicks, write_region_toml

SECTION: Final = "simulation"
TARGET: Final = 20.0  # times Flower's engine, at `TARGET_REGIONS`
TARGET_REGIONS: Final = 256
PRODUCTS, REQUESTS, SHOWN = 50, 60, 5
FEDERATION_ROUNDS: Final = 3  # the first fills caches, the others are what a client-round costs
ALONE: Final = "local, one process"
_TEMPLATES: Final = 64  # distinct regions; more are these again, under other names
_KINDS: Final = ("boot", "shoe", "lamp", "coat", "phone", "dress", "shirt", "belt", "watch", "bag")
_LOOKS: Final = ("red", "blue", "green", "black", "white", "leather", "cotton", "wool", "small")


def measure_simulation(
    report: Report, scratch: Path, *, regions: Sequence[int], rounds: int, threads: int
) -> None:
    """Time federations of several sizes under each engine, and in one process of ours.

    Args:
        report: figures go there.
        scratch: the regions go there.
        regions: how many, one federation each; Flower's engine runs those up to `TARGET_REGIONS`.
        rounds: measurements of each, in turns.
        threads: in all.
    """
    for number in regions:
        run = make_run(scratch / str(number), number)
        ways = ["local", ALONE, *(["flower"] if number <= TARGET_REGIONS else [])]
        taken: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for turn in range(rounds):
            for way in ways[:: 1 if turn % 2 == 0 else -1]:
                forget(run)
                one = way == ALONE
                taken[way].append(federate_alone(run, way, threads, processes=1 if one else None))
        _put_down(report, number, taken)


def make_run(run: Path, number: int) -> Path:
    """A run folder of small regions, as `fedshelf simulate` leaves it before the first round.

    Args:
        run: not there yet.
        number: of regions.
    """
    source, info = make_base(PRESETS["tiny"], PublicSlice([], []), seed=0)
    shutil.copytree(source, run / "base")
    base = BaseConfig(
        path="../../base",
        fingerprint=info.fingerprint,
        release_key="0" * 64,
        releases="../../headquarters/releases",
    )
    for place in range(number):
        folder = run / "regions" / f"region-{place:05d}"
        if place < _TEMPLATES:
            _write_data(folder, np.random.default_rng(place))
        else:
            template = run / "regions" / f"region-{place % _TEMPLATES:05d}"
            shutil.copytree(template, folder, copy_function=os.link)
            (folder / "region.toml").unlink()
        config = RegionConfig(
            region=folder.name, locale="en", base=base, device="cpu", data=DataConfig()
        )
        write_region_toml(folder, config)
    forget(run)
    return run


def forget(run: Path) -> None:
    """Put a run back to where nothing has been trained and no region has kept anything."""
    for state in run.glob("regions/*/state"):
        shutil.rmtree(state)
    shutil.rmtree(run / "headquarters", ignore_errors=True)
    encoder = load_encoder(run / "base", device="cpu")
    encoder.reset(seed=0)
    fingerprint = encoder.base.fingerprint
    History(run / "headquarters").start(encoder.adapter(), base_fingerprint=fingerprint)


def federate(run: Path, engine: str, *, rounds: int, processes: int = 1) -> dict[str, Any]:
    """Run a federation, and end the processes that it took.

    Args:
        run: from `make_run`.
        engine: "local" or "flower".
        rounds: of the federation.
        processes: that share the regions and torch's threads; under "flower" its actors.

    Returns:
        `seconds` in all, those of each round from round 0, and `peak_bytes` of this process and
        those that share its regions.
    """
    number = sum(1 for _ in run.glob("regions/*/region.toml"))
    knobs = {"run-dir": str(run), "num-rounds": rounds, "gate": False}
    quiet, threads = RunProgress(Console(quiet=True)), torch.get_num_threads() // processes
    start = time.perf_counter()
    with Processes(processes, threads=max(1, threads), progress=quiet) as shared:
        run_engine(engine, knobs, num_regions=number, processes=shared)
        seconds, peak = time.perf_counter() - start, shared.peak_bytes() + peak_bytes()
    taken = [record.seconds for record in History(run / "headquarters").rounds()]
    return {"seconds": seconds, "rounds": taken, "peak_bytes": peak}


def federate_alone(
    run: Path,
    way: str,
    threads: int,
    *,
    rounds: int = FEDERATION_ROUNDS,
    processes: int | None = None,
) -> dict[str, Any]:
    """`federate` in a process of its own.

    Args:
        run: from `make_run`.
        way: an engine, with a word on it behind a comma.
        threads: in all.
        rounds: of the federation.
        processes: see `federate`; None for as many as `fedshelf simulate` takes.

    Raises:
        ConfigError: it fails.
    """
    engine, regions = way.partition(",")[0], len(list(run.glob("regions/*/region.toml")))
    number = processes or processes_for(
        run / "base", device="cpu", threads=threads, regions=regions
    )
    words = [str(run), engine, *map(str, (rounds, threads, number))]
    command = [sys.executable, "-m", "benchmarks.simulation", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"simulation, {way}: failed ({last}); run it alone: {' '.join(command)}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _put_down(report: Report, number: int, taken: dict[str, list[dict[str, Any]]]) -> None:
    whole = {e: np.array([one["seconds"] for one in found]) for e, found in taken.items()}
    later = {
        engine: np.array([np.mean(one["rounds"][2:]) for one in found]) / number
        for engine, found in taken.items()
    }
    name = f"{number:,} regions"
    for way in taken:
        report.add(SECTION, f"{name}, {way}", Spread.of(whole[way]), "s")
        each = Spread.of(later[way] * 1e3)
        report.add(SECTION, f"{name}, {way}, a client-round", each, "ms")
        peak = max(one["peak_bytes"] for one in taken[way])
        what = "peak memory" + (" without Ray's processes" if way == "flower" else "")
        report.add(SECTION, f"{name}, {way}, {what}", peak, "bytes")
    for way, target in ((ALONE, None), ("flower", TARGET)):
        if way in taken:
            aim, told = target if number == TARGET_REGIONS else None, f"{name}, local to {way}"
            report.add(SECTION, told, Spread.of(whole[way] / whole["local"]), "times", target=aim)
            times = Spread.of(later[way] / later["local"])
            report.add(SECTION, f"{told}, a client-round", times, "times", target=aim)


def _write_data(folder: Path, rng: np.random.Generator) -> None:
    """A catalog of titles of four words, and requests for two words of a title that is clicked."""
    titles = [_title(rng) for _ in range(PRODUCTS)]
    products = pl.DataFrame({"product_id": [f"p{row}" for row in range(PRODUCTS)], "title": titles})
    write_catalog(folder, products)
    rows = []
    for request in range(REQUESTS):
        shown = rng.choice(PRODUCTS, SHOWN, replace=False)
        clicked = int(rng.integers(SHOWN))
        for place, row in enumerate(shown):
            rows.append(
                {
                    "request_id": f"q{request}",
                    "ts": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=request),
                    "query": " ".join(titles[shown[clicked]].split()[2:]),
                    "product_id": f"p{row}",
                    "position": place + 1,
                    "clicked": place == clicked,
                }
            )
    absent = [pl.lit(None).alias(name) for name in CLICK_COLUMNS if name not in rows[0]]
    clicks = pl.DataFrame(rows).with_columns(absent)
    write_clicks(folder, clicks.select(pl.col(k).cast(v) for k, v in CLICK_COLUMNS.items()))


def _title(rng: np.random.Generator) -> str:
    return " ".join([*rng.choice(_LOOKS, 3, replace=False), rng.choice(_KINDS)])


if __name__ == "__main__":
    _run, _engine, _rounds, _threads, _number = sys.argv[1:]
    torch.set_num_threads(int(_threads))
    print(json.dumps(federate(Path(_run), _engine, rounds=int(_rounds), processes=int(_number))))
