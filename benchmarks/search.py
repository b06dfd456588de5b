"""How fast search is, in ratios to what it stands on: `make bench-search`.

    python -m benchmarks.search --icecat DIR --fashion DIR --base DIR

Each comparison is interleaved and repeated in one run; see `benchmarks.timing`. Figures go to
`bench.json` and to a table on the screen. Nothing is judged: a missed target is a line, no failure.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import faiss
import torch

from benchmarks.corpus import Corpus, find_base, load_corpus, sized
from benchmarks.dense import measure_dense
from benchmarks.load import measure_load
from benchmarks.million import MILLION, bound_memory, measure_million
from benchmarks.place import measure_region
from benchmarks.report import Report, machine_facts, table
from benchmarks.timing import MIN_ROUNDS
from benchmarks.training import measure_training
from benchmarks.whole import measure_filters, measure_whole
from benchmarks.words import measure_words
from shared.encoders.encoder import Encoder, load_encoder
from shared.errors import ConfigError, FedshelfError
from shared.retrieval.index import FACTORY
from shared.retrieval.plan import EXACT_LIMIT

SECTIONS: Final = ("dense", "words", "whole", "load")
GRAPH: Final = "HNSW32"
_SMALLEST_GRAPH = EXACT_LIMIT  # below it no region is searched by one


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; exit 1 with one line where something is missing."""
    given = _parser().parse_args(arguments)
    try:
        _run(given)
    except FedshelfError as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench-search", description="Measure search beside what it stands on."
    )
    parser.add_argument("--icecat", type=Path, help="folder of that data set")
    parser.add_argument("--fashion", type=Path, help="folder of that data set")
    parser.add_argument("--base", type=Path, help="folder of a base; otherwise preset starter")
    parser.add_argument("--cache", type=Path, default=Path("runs/bench-cache"), help="encodings")
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--calls", type=int, default=200, help="queries of each way, a round")
    parser.add_argument("--rounds", type=int, default=9, help=f"at least {MIN_ROUNDS}")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each phase under load")
    parser.add_argument("--threads", type=int, default=2, help="of torch, and callers at once")
    parser.add_argument("--region", type=Path, help="simulated region: searches beside training")
    parser.add_argument("--million", action="store_true", help="a million vectors too: minutes")
    return parser


def _run(given: argparse.Namespace) -> None:
    if given.rounds < MIN_ROUNDS:
        raise ConfigError(f"--rounds {given.rounds}: give at least {MIN_ROUNDS}, for the spread")
    torch.set_num_threads(given.threads)
    faiss.omp_set_num_threads(1)  # of this thread: FAISS would split one query over all cores
    report = Report(machine_facts(threads=given.threads), _settings(given))
    base = find_base(given.base)
    encoder = load_encoder(base, device="cpu")
    print("corpus", flush=True)
    corpus = load_corpus(
        icecat=given.icecat,
        fashion=given.fashion,
        encoder=encoder,
        cache=given.cache,
    )
    report.settings |= {"data": corpus.name, "real_products": corpus.num_real}
    report.settings |= {"queries": len(corpus.queries), "base": base.name}
    for size in given.sizes:
        print(f"{size:,} products", flush=True)
        with tempfile.TemporaryDirectory(prefix="bench-search-") as scratch:
            _measure(report, given, sized(corpus, size), encoder, base, Path(scratch))
        report.write(given.out)
    if given.region:
        print(f"training: {given.region.name}", flush=True)
        with tempfile.TemporaryDirectory(prefix="bench-search-") as scratch:
            paces = {"seconds": given.seconds, "rounds": MIN_ROUNDS}
            measure_training(report, given.region, Path(scratch), corpus.queries, **paces)
        report.write(given.out)
    if given.million:
        bound_memory()
        print(f"million: {MILLION:,}", flush=True)
        paces = {"calls": given.calls, "rounds": given.rounds, "callers": given.threads}
        measure_million(report, corpus, **paces)
        report.write(given.out)
    print(table(report.figures))


def _measure(
    report: Report,
    given: argparse.Namespace,
    corpus: Corpus,
    encoder: Encoder,
    base: Path,
    scratch: Path,
) -> None:
    """Every section that was asked for, over one corpus."""
    paces = {"calls": given.calls, "rounds": given.rounds}
    if "dense" in given.only:
        graph = [GRAPH] if len(corpus.vectors) > _SMALLEST_GRAPH else []
        for factory in (FACTORY, *graph):
            measure_dense(report, corpus, factory=factory, callers=given.threads, **paces)
    if "words" in given.only:
        measure_words(report, corpus, callers=given.threads, **paces)
    if "whole" in given.only:
        shelf, index = measure_region(report, scratch / "opened", corpus, encoder, base)
        measure_whole(report, corpus, shelf, encoder, index, base / "text", **paces)
        measure_filters(report, corpus, shelf, encoder, **paces)
    if "load" in given.only:
        place = scratch / "served"
        measure_load(report, place, corpus, encoder, base, seconds=given.seconds)


def _settings(given: argparse.Namespace) -> dict[str, object]:
    names = ("sizes", "only", "calls", "rounds", "seconds", "threads", "million")
    return {name: getattr(given, name) for name in names}


if __name__ == "__main__":
    main()
