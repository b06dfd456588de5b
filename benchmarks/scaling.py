"""How cost grows with products, regions, rank, picture size and adapted blocks.

    python -m benchmarks.scaling RUN [--only products rank] [--regions 4 64 256 1000 10000]

RUN is a folder that `fedshelf simulate` has made; its first region is the one that learns, its base
the one whose towers are read in other shapes. Each point is a process of its own, with its peak
memory, and goes to `bench.json` when it is there: stop when you like, and start again to go on.
`python -m benchmarks.plots` draws them.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.corpus import Corpus, load_corpus
from benchmarks.growth import (
    Shape,
    measure_adapter,
    measure_index,
    measure_photos,
    num_blocks,
    ranked,
)
from benchmarks.memory import Alone, alone
from benchmarks.points import (
    AT_START,
    CLIENT_ROUND,
    PEAK,
    Point,
    is_known,
    keep_point,
    read_points,
)
from benchmarks.report import Figure, machine_facts
from benchmarks.simulation import PRODUCTS, REQUESTS, federate_alone, make_run
from benchmarks.timing import MIN_ROUNDS
from shared.durable import sha256_file
from shared.encoders.base import read_base
from shared.encoders.encoder import load_encoder
from shared.errors import ConfigError, FedshelfError
from shared.retrieval.plan import plan_factory
from shared.schema import load_region_config

_FEDERATION_ROUNDS: Final = 2  # the first fills caches; the second is what a client-round costs
_CALLS: Final = 200  # queries a round


@dataclass(frozen=True)
class Bench:
    """Where points are measured and kept.

    Attributes:
        given: the options.
        machine: facts of it, taken before anything is measured.
        base: folder of the run's base.
        region: folder of the run's first region.
        scratch: goes when the benchmark ends.
    """

    given: argparse.Namespace
    machine: dict[str, Any]
    base: Path
    region: Path
    scratch: Path

    def point(
        self,
        section: str,
        at: int,
        settings: dict[str, Any],
        measure: Callable[[], Alone[list[Figure]]],
        *,
        label: str = "",
    ) -> None:
        """Measure a point and keep it, unless it is in the file.

        Args:
            section: what grows.
            at: how much of it there is.
            settings: all else that matters.
            measure: gives the figures and the memory that they took.
            label: as in `Point`.
        """
        wanted = Point(section, at, settings, self.machine, label=label)
        known = is_known(read_points(self.given.out), wanted)
        print(f"{section} {at:,}{': in the file' if known else ''}", flush=True)
        if known:
            return
        found, report = measure(), wanted.report()
        report.add(section, PEAK, found.peak_bytes, "bytes")
        if found.start_bytes:
            report.add(section, AT_START, found.start_bytes, "bytes")
        figures = [replace(figure, section=section) for figure in found.result]
        keep_point(self.given.out, replace(wanted, figures=(*figures, *report.figures)))

    def source(self) -> dict[str, Any]:
        """What was trained or encoded, by content: the base and the region's two files."""
        data = load_region_config(self.region).data
        digests = [sha256_file(self.region / name)[:12] for name in (data.catalog, data.clicks)]
        return {"base": read_base(self.base).fingerprint, "data": digests}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; exit 1 with one line where something is missing."""
    try:
        _run(_parser().parse_args(arguments))
    except FedshelfError as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench-scaling", description="Measure how cost grows.")
    parser.add_argument("run", type=Path, help='folder that "fedshelf simulate" made')
    parser.add_argument("--out", type=Path, default=Path("bench.json"), help="points are kept here")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    sizes = partial(parser.add_argument, nargs="+", type=int)
    sizes("--products", default=[1000, 10_000, 100_000], help="vectors")
    sizes("--regions", default=[4, 64, 256], help="10000 take about 20 minutes")
    sizes("--ranks", default=[2, 4, 8, 16, 32], help="of both towers")
    sizes("--image-sizes", default=[32, 64, 96, 128], help="pixels a side")
    sizes("--blocks", default=[1, 2, 3], help="adapted; all is added")
    parser.add_argument("--passes", type=int, default=6, help="of training, the first not timed")
    parser.add_argument("--seeds", type=int, default=3, help="adapters trained at each point")
    parser.add_argument("--rounds", type=int, default=MIN_ROUNDS, help=f"at least {MIN_ROUNDS}")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--icecat", type=Path, help="folder of that data set, for its titles")
    parser.add_argument("--fashion", type=Path, help="folder of that data set, for its titles")
    parser.add_argument("--cache", type=Path, default=Path("runs/bench-cache"), help="encodings")
    return parser


def _run(given: argparse.Namespace) -> None:
    if given.rounds < MIN_ROUNDS:
        raise ConfigError(f"--rounds {given.rounds}: give at least {MIN_ROUNDS}, for the spread")
    if given.passes < 2:
        raise ConfigError(f"--passes {given.passes}: give at least 2; the first is not timed")
    regions = sorted(path.parent for path in (given.run / "regions").glob("*/region.toml"))
    if not regions:
        raise ConfigError(f'{given.run}: no run; make it with "fedshelf simulate --out ..."')
    machine, base = machine_facts(threads=given.threads), given.run / "base"
    with tempfile.TemporaryDirectory(prefix="bench-scaling-") as scratch:
        bench = Bench(given, machine, base, regions[0], Path(scratch))
        for section in given.only:
            SECTIONS[section](bench)


def _products(bench: Bench) -> None:
    given, corpus = bench.given, _corpus(bench)
    settings = {"data": corpus.name, "real_products": corpus.num_real, "calls": _CALLS}
    settings |= {"queries": len(corpus.queries), "rounds": given.rounds}
    settings |= {"base": read_base(bench.base).fingerprint}
    vectors_only = replace(corpus, products=corpus.products[:0])  # what a process is sent
    paces = {"calls": _CALLS, "rounds": given.rounds}
    for size in sorted(given.products):
        factory = plan_factory(size, corpus.vectors.shape[1])
        measure = partial(alone, given.threads, measure_index, vectors_only, size, **paces)
        bench.point("products", size, settings, measure, label=factory.partition(",")[0])


def _corpus(bench: Bench) -> Corpus:
    given, encoder = bench.given, load_encoder(bench.base, device="cpu")
    encoder.reset(seed=0)
    return load_corpus(
        icecat=given.icecat, fashion=given.fashion, encoder=encoder, cache=given.cache
    )


def _regions(bench: Bench) -> None:
    settings = {"preset": "tiny", "products": PRODUCTS, "requests": REQUESTS, "engine": "local"}
    settings |= {"rounds": _FEDERATION_ROUNDS}
    for number in sorted(bench.given.regions):
        bench.point("regions", number, settings, partial(_federated, bench, number))


def _federated(bench: Bench, number: int) -> Alone[list[Figure]]:
    with tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
        run = make_run(Path(folder) / "run", number)
        taken = federate_alone(run, "local", bench.given.threads, rounds=_FEDERATION_ROUNDS)
    each = float(np.mean(taken["rounds"][2:])) / number * 1e3
    print(f"  {CLIENT_ROUND}: {each:.3g} ms", flush=True)
    return Alone([Figure("regions", CLIENT_ROUND, each, "ms")], taken["peak_bytes"], 0)


def _rank(bench: Bench) -> None:
    info = read_base(bench.base)
    for rank in sorted(bench.given.ranks):
        _adapter(bench, "rank", rank, ranked(info, rank))


def _cut(bench: Bench) -> None:
    for tower, most in num_blocks(bench.base).items():
        for blocks in sorted({*(n for n in bench.given.blocks if n < most), most}):
            _adapter(bench, f"{tower} blocks", blocks, Shape(**{tower: {"adapter_blocks": blocks}}))


def _adapter(bench: Bench, section: str, at: int, shape: Shape) -> None:
    given, paces = bench.given, {"passes": bench.given.passes, "seeds": bench.given.seeds}

    def measure() -> Alone[list[Figure]]:
        with tempfile.TemporaryDirectory(dir=bench.scratch) as state:
            places = (bench.base, bench.region, Path(state))
            return alone(given.threads, measure_adapter, *places, shape, **paces)

    bench.point(section, at, bench.source() | paces, measure)


def _image_size(bench: Bench) -> None:
    given, config = bench.given, read_base(bench.base).image
    if "vit" in config.name:
        print(f"image size: {config.name} takes {config.size} pixels alone; left out", flush=True)
        return
    paces, places = {"rounds": given.rounds}, (bench.base, bench.region)
    for size in sorted(given.image_sizes):
        measure = partial(alone, given.threads, measure_photos, *places, size, **paces)
        bench.point("image size", size, bench.source() | paces, measure)


SECTIONS: Final = {
    "products": _products,
    "regions": _regions,
    "rank": _rank,
    "image-size": _image_size,
    "cut": _cut,
}


if __name__ == "__main__":
    main()
