"""How fast the rest is, in ratios to what a user would pick instead: `make bench RUN=DIR`.

    python -m benchmarks RUN [--only learning encoding] [--regions 4 256 10000]

RUN is a folder that `fedshelf simulate` has made; its first region is the one that learns. Search
has a benchmark of its own, `benchmarks.search`. Each comparison is interleaved and repeated in one
run; see `benchmarks.timing`. Nothing is judged: a missed target is a line, no failure.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from benchmarks.encoding import measure_encoding
from benchmarks.learning import measure_learning
from benchmarks.report import Report, machine_facts, table
from benchmarks.rounds import measure_rounds
from benchmarks.simulation import measure_simulation
from benchmarks.startup import measure_startup
from benchmarks.timing import MIN_ROUNDS
from client.worker import get_worker
from shared.errors import ConfigError, FedshelfError

SECTIONS: Final = ("start-up", "encoding", "learning", "rounds", "simulation")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; exit 1 with one line where something is missing."""
    parser = argparse.ArgumentParser(prog="bench", description="Measure learning and its speed.")
    parser.add_argument("run", type=Path, help='folder that "fedshelf simulate" made')
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--rounds", type=int, default=MIN_ROUNDS, help=f"at least {MIN_ROUNDS}")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    sizes = "how many are simulated, one federation each"
    parser.add_argument("--regions", nargs="+", type=int, default=[4, 64], help=sizes)
    try:
        _run(parser.parse_args(arguments))
    except FedshelfError as error:
        sys.exit(f"error: {error}")


def _run(given: argparse.Namespace) -> None:
    if given.rounds < MIN_ROUNDS:
        raise ConfigError(f"--rounds {given.rounds}: give at least {MIN_ROUNDS}, for the spread")
    regions = sorted(path.parent for path in (given.run / "regions").glob("*/region.toml"))
    if not regions:
        raise ConfigError(f'{given.run}: no run; make it with "fedshelf simulate --out ..."')
    torch.set_num_threads(given.threads)
    report = Report(machine_facts(threads=given.threads), {"only": given.only} | _facts(given))
    for section in given.only:
        print(section, flush=True)
        _measure(section, report, given, regions[0])
        report.write(given.out)
    print(table(report.figures))


def _measure(section: str, report: Report, given: argparse.Namespace, region: Path) -> None:
    if section == "start-up":
        measure_startup(report, region, rounds=given.rounds)
    elif section == "learning":
        worker, base = get_worker(region), given.run / "base"
        measure_learning(report, worker, base, rounds=given.rounds)
    else:
        with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
            _measure_in(Path(scratch), section, report, given, region)


def _measure_in(
    scratch: Path, section: str, report: Report, given: argparse.Namespace, region: Path
) -> None:
    rounds, threads = given.rounds, given.threads
    if section == "rounds":
        measure_rounds(report, given.run, scratch, rounds=rounds)
    elif section == "encoding":
        worker, base = get_worker(region), given.run / "base"
        measure_encoding(report, worker, base, scratch, rounds=rounds, threads=threads)
    else:
        measure_simulation(report, scratch, regions=given.regions, rounds=rounds, threads=threads)


def _facts(given: argparse.Namespace) -> dict[str, object]:
    return {"run": given.run.name, "rounds": given.rounds, "threads": given.threads}


if __name__ == "__main__":
    main()
