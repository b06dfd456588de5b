"""The lexical half beside bm25s, a quick BM25 in memory, over the same titles.

They do not do the same: ours stems, keeps its index on disk, takes filters and live changes and has
no dead rows; bm25s holds a matrix of scores and has none of that. Neither is given a filter here.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import bm25s

from benchmarks.corpus import Corpus
from benchmarks.report import Report
from benchmarks.timing import Spread, Way, in_turns, per_second, ratio
from shared.retrieval.lexical import LexicalIndex
from shared.retrieval.shelf import DEPTH

SECTION: Final = "lexical"
BACKENDS: Final = ("numba", "numpy")  # the former compiles itself first, for seconds
_QUIET: Final = {"show_progress": False}


def measure_words(report: Report, corpus: Corpus, *, calls: int, rounds: int, callers: int) -> None:
    """Times, throughput and build time of both.

    Args:
        report: figures go there.
        corpus: its titles are searched with its queries.
        calls: queries a round.
        rounds: of each comparison.
        callers: threads, where throughput is measured.
    """
    titles, queries = corpus.titles, corpus.queries
    name = f"{len(titles):,} titles"
    start = time.perf_counter()
    ours = LexicalIndex.build(titles)
    built = time.perf_counter()
    theirs = {backend: _bm25s(titles, backend) for backend in BACKENDS}
    report.add(SECTION, f"{name}, fedshelf, build", built - start, "s")
    report.add(SECTION, f"{name}, bm25s, build of both", time.perf_counter() - built, "s")
    for k in (10, min(DEPTH, len(titles))):  # bm25s takes no more than there are
        ways = {"fedshelf": _asking(queries, partial(ours.search, k=k))}
        for backend, index in theirs.items():
            ways[f"bm25s ({backend})"] = _asking(queries, partial(_ask, index, k=k))
        taken = in_turns(ways, calls=calls, rounds=rounds)
        report.compare(SECTION, f"{name}, best {k}", taken)
        done = per_second(ways, calls=calls, rounds=rounds, callers=callers)
        for way, rate in done.items():
            label = f"{name}, best {k}, {way}, {callers} callers"
            report.add(SECTION, label, Spread.of(rate), "1/s")
        for way in list(ways)[1:]:
            label = f"{name}, best {k}, {way} / fedshelf, throughput"
            report.add(SECTION, label, ratio(done[way], done["fedshelf"]), "ratio")


def _bm25s(titles: list[str], backend: str) -> Any:
    index = bm25s.BM25(k1=1.2, b=0.75, backend=backend)
    index.index(_tokens(titles), **_QUIET)
    return index


def _asking(queries: list[str], search: Callable[[str], Any]) -> Way:
    return lambda number: search(queries[number % len(queries)])


def _ask(index: Any, query: str, *, k: int) -> Any:
    return index.retrieve(_tokens([query]), k=k, n_threads=0, **_QUIET)


def _tokens(texts: list[str]) -> Any:
    # Words, not their ids: ids are of the vocabulary of one call.
    return bm25s.tokenize(texts, stopwords="en", return_ids=False, **_QUIET)
