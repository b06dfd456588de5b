"""What simulating many regions costs: in one process, and under Flower's own simulation engine.

Both run the same ServerApp and ClientApp on the same regions, with preset `tiny`. Regions are
small, fifty products and sixty requests, so that it is the simulation that is measured. Every
measurement is a process of its own, on regions that have kept nothing from the one before; the
engines take turns.

    python -m benchmarks.simulation RUN ENGINE ROUNDS THREADS

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

from benchmarks.memory import peak_bytes
from benchmarks.report import Report
from benchmarks.timing import Spread
from server.history import History
from shared.encoders.encoder import load_encoder
from shared.encoders.presets import PRESETS, make_base
from shared.encoders.public import PublicSlice
from shared.errors import ConfigError
from shared.schema import CLICK_COLUMNS, BaseConfig, DataConfig, RegionConfig
from simulations.engine import ENGINES, run_engine
from simulations.regions import write_catalog, write_clicks, write_region_toml

SECTION: Final = "simulation"
TARGET: Final = 20.0  # times Flower's engine, at `TARGET_REGIONS`
TARGET_REGIONS: Final = 256
PRODUCTS, REQUESTS, SHOWN = 50, 60, 5
FEDERATION_ROUNDS: Final = 3  # the first fills caches, the others are what a client-round costs
PEAK: Final = {"local": "peak memory", "flower": "peak memory without Ray's processes"}
_TEMPLATES: Final = 64  # distinct regions; more are these again, under other names
_KINDS: Final = ("boot", "shoe", "lamp", "coat", "phone", "dress", "shirt", "belt", "watch", "bag")
_LOOKS: Final = ("red", "blue", "green", "black", "white", "leather", "cotton", "wool", "small")


def measure_simulation(
    report: Report, scratch: Path, *, regions: Sequence[int], rounds: int, threads: int
) -> None:
    """Time federations of several sizes under each engine.

    Args:
        report: figures go there.
        scratch: the regions go there.
        regions: how many, one federation each; Flower's engine runs those up to `TARGET_REGIONS`.
        rounds: measurements of each, in turns.
        threads: of torch.
    """
    for number in regions:
        run = make_run(scratch / str(number), number)
        engines = ENGINES if number <= TARGET_REGIONS else ENGINES[:1]
        taken: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
        for turn in range(rounds):
            for engine in engines[:: 1 if turn % 2 == 0 else -1]:
                forget(run)
                taken[engine].append(federate_alone(run, engine, threads))
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


def federate(run: Path, engine: str, *, rounds: int) -> dict[str, Any]:
    """Run a federation in this process.

    Args:
        run: from `make_run`.
        engine: "local" or "flower".
        rounds: of the federation.

    Returns:
        `seconds` in all, those of each round from round 0, and `peak_bytes` of this process.
    """
    number = sum(1 for _ in run.glob("regions/*/region.toml"))
    start = time.perf_counter()
    run_engine(
        engine, {"run-dir": str(run), "num-rounds": rounds, "gate": False}, num_regions=number
    )
    seconds = time.perf_counter() - start
    taken = [record.seconds for record in History(run / "headquarters").rounds()]
    return {"seconds": seconds, "rounds": taken, "peak_bytes": peak_bytes()}


def federate_alone(
    run: Path, engine: str, threads: int, *, rounds: int = FEDERATION_ROUNDS
) -> dict[str, Any]:
    """`federate` in a process of its own.

    Raises:
        ConfigError: it fails.
    """
    words = [str(run), engine, str(rounds), str(threads)]
    command = [sys.executable, "-m", "benchmarks.simulation", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(
            f"simulation, {engine}: failed ({last}); run it alone: {' '.join(command)}"
        )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _put_down(report: Report, number: int, taken: dict[str, list[dict[str, Any]]]) -> None:
    whole = {e: np.array([one["seconds"] for one in found]) for e, found in taken.items()}
    later = {
        engine: np.array([np.mean(one["rounds"][2:]) for one in found]) / number
        for engine, found in taken.items()
    }
    name = f"{number:,} regions"
    for engine in taken:
        report.add(SECTION, f"{name}, {engine}", Spread.of(whole[engine]), "s")
        each = Spread.of(later[engine] * 1e3)
        report.add(SECTION, f"{name}, {engine}, a client-round", each, "ms")
        peak = max(one["peak_bytes"] for one in taken[engine])
        report.add(SECTION, f"{name}, {engine}, {PEAK[engine]}", peak, "bytes")
    if len(taken) < len(ENGINES):
        return
    target = TARGET if number == TARGET_REGIONS else None
    times = Spread.of(whole["flower"] / whole["local"])
    report.add(SECTION, f"{name}, local to flower", times, "times", target=target)
    times = Spread.of(later["flower"] / later["local"])
    report.add(SECTION, f"{name}, local to flower, a client-round", times, "times", target=target)


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
    torch.set_num_threads(int(sys.argv[4]))
    print(json.dumps(federate(Path(sys.argv[1]), sys.argv[2], rounds=int(sys.argv[3]))))
