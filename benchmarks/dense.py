"""The dense half: what planning, scoring again and filters cost beside the bare FAISS index.

Both sides search the same index object with the same settings and one thread a query, the one side
through FAISS's own Python method. FAISS alone returns what it finds in its own order and score;
`VectorIndex` checks the queries, asks for a margin, scores in double precision and breaks ties by
row.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import faiss
import numpy as np

from benchmarks.corpus import Corpus, Matrix
from benchmarks.report import DENSE_TARGET, Report
from benchmarks.timing import Spread, Way, in_turns, per_second, quantile_ms, ratio
from shared.retrieval.index import TIE_TOLERANCE
from shared.retrieval.plan import build_planned
from shared.retrieval.recall import RECALL_TARGET, SELECTIVITIES, measure_recall
from shared.retrieval.shelf import DEPTH
from shared.retrieval.vectors import VectorIndex

SECTION: Final = "dense"
_SWIG: Any = faiss  # its type hints lack some of its classes
_K = 10
_ROUND_S = 2.0
_RECALL_QUERIES = 512
_SEED = 0


def measure_dense(
    report: Report, corpus: Corpus, *, factory: str, calls: int, rounds: int, callers: int
) -> None:
    """One index against bare FAISS: times, recall, filters, size, build time.

    Args:
        report: figures go there.
        corpus: N products.
        factory: of the index.
        calls: queries a round.
        rounds: of each comparison.
        callers: threads, where throughput is measured.
    """
    name = f"{factory} over {len(corpus.vectors):,}"
    index, seconds = build(corpus, corpus.vectors, factory)
    report.add(SECTION, f"{name}, build, one thread", seconds, "s")
    size = faiss.serialize_index(index).nbytes / len(corpus.vectors)
    report.add(SECTION, f"{name}, index on disk, a product", size, "bytes")
    searched = VectorIndex.over(index)
    compare(report, SECTION, name, searched, index, corpus, calls, rounds, callers)
    _filters(report, name, searched, corpus, calls=calls, rounds=rounds)
    if searched.effort:
        recalls(report, SECTION, name, searched, corpus)


def build(
    corpus: Corpus, vectors: Any, factory: str, *, keeps_vectors: bool = False
) -> tuple[Any, float]:
    """An index by plan, its effort chosen by half of the corpus's queries; and its seconds."""
    start = time.perf_counter()
    fitted, _ = halves(corpus)
    index = build_planned(
        vectors, factory=factory, seed=_SEED, queries=fitted, keeps_vectors=keeps_vectors
    )
    return index, time.perf_counter() - start


def compare(
    report: Report,
    section: str,
    name: str,
    searched: VectorIndex,
    index: Any,
    corpus: Corpus,
    calls: int,
    rounds: int,
    callers: int,
) -> None:
    """One query at a time, and several callers at once, for a page and for a mix's candidates.

    Args:
        report: figures go there.
        section: of the table.
        name: of the index.
        searched: ours.
        index: the FAISS index below it.
        corpus: its queries are asked.
        calls: a round.
        rounds: of each comparison.
        callers: threads, where throughput is measured.
    """
    plain = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexIDMap) else index
    for k, target in ((_K, DENSE_TARGET), (DEPTH, None)):
        ways = {
            "fedshelf": _asking(corpus, partial(searched.search, k=k)),
            "FAISS": _asking(corpus, partial(plain.search, k=k, params=_as_hard(plain, k))),
        }
        fitting = _fitting(ways, calls)
        taken = in_turns(ways, calls=fitting, rounds=rounds)
        report.compare(section, f"{name}, best {k}", taken, target=target)
        done = per_second(
            ways, calls=fitting, rounds=rounds, callers=callers, on_thread=_one_faiss_thread
        )
        for way, rate in done.items():
            report.add(
                section, f"{name}, best {k}, {way}, {callers} callers", Spread.of(rate), "1/s"
            )
        gain = ratio(done["FAISS"], done["fedshelf"])
        label = f"{name}, best {k}, FAISS / fedshelf, throughput"
        report.add(section, label, gain, "ratio", target=target)


def recalls(
    report: Report,
    section: str,
    name: str,
    searched: VectorIndex,
    corpus: Corpus,
    vectors: Any = None,
) -> None:
    """Recall by made-up queries, and by those of the corpus's own that did not choose the effort.

    Args:
        report: figures go there.
        section: of the table.
        name: of the index.
        searched: ours.
        corpus: its queries are asked.
        vectors: of the index's rows, (N, D); by default the corpus's.
    """
    rows = corpus.vectors if vectors is None else vectors
    report.add(section, f"{name}, effort (efSearch, nprobe)", searched.effort, "")
    _, asked = halves(corpus)
    for kind, queries in (("perturbed products", None), ("queries", asked)):
        found = measure_recall(searched, rows, queries=queries, seed=_SEED)
        label = f"{name}, recall@10, {kind}"
        report.add(section, label, found.unfiltered, "recall", target=RECALL_TARGET)
        for share, recall in found.filtered.items():
            filtered = f"{label}, {float(share):.1%} eligible"
            report.add(section, filtered, recall, "recall", target=RECALL_TARGET)
    label = f"{name}, best {_K} of {DEPTH} asked for, queries"
    report.add(
        section,
        label,
        recall_in_depth(searched, rows, asked),
        "recall",
        target=RECALL_TARGET,
    )


def recall_in_depth(searched: VectorIndex, vectors: Matrix, queries: Matrix) -> float:
    """Recall@10 of an index that is asked for a mix's candidates, as a service asks it.

    Args:
        searched: the index.
        vectors: of its rows, (N, D).
        queries: (Q, D).
    """
    count = min(_K, len(vectors))
    exact = faiss.knn(queries, vectors, count, metric=faiss.METRIC_INNER_PRODUCT)[0]  # (Q, 10)
    rows = searched.search(queries, min(DEPTH, len(vectors)))[1][:, :count]
    # Scored by the whole vectors: those that an index stores may be rounded.
    scores = searched.distance.scores(queries, vectors[np.maximum(rows, 0)])
    return float(np.mean((rows >= 0) & (scores >= exact[:, -1:] - TIE_TOLERANCE)))


def halves(corpus: Corpus) -> tuple[Matrix, Matrix]:
    """Queries to choose an effort by, as a region has its validation queries, and others."""
    queries = corpus.query_vectors[: 2 * _RECALL_QUERIES]
    return queries[::2], queries[1::2]


def _filters(
    report: Report, name: str, searched: VectorIndex, corpus: Corpus, *, calls: int, rounds: int
) -> None:
    generator = np.random.default_rng(_SEED)
    for share in SELECTIVITIES:
        eligible = generator.random(searched.num_rows) < share
        ways = {"filtered": _asking(corpus, partial(searched.search, k=_K, eligible=eligible))}
        taken = in_turns(ways, calls=_fitting(ways, calls), rounds=rounds)["filtered"]
        for quantile in (0.5, 0.99):
            label = f"{name}, best {_K}, {share:.1%} eligible, p{100 * quantile:.0f}"
            report.add(SECTION, label, Spread.of(quantile_ms(taken, quantile)), "ms")


def _as_hard(index: Any, k: int) -> Any:
    """A graph finds no more than its efSearch, so for more it needs more, as ours gives it."""
    if isinstance(index, faiss.IndexHNSW) and index.hnsw.efSearch < k:
        return _SWIG.SearchParametersHNSW(efSearch=k)
    return None


def _one_faiss_thread() -> None:
    faiss.omp_set_num_threads(1)  # OpenMP keeps this number for each thread by itself


def _asking(corpus: Corpus, search: Callable[[Any], Any]) -> Way:
    queries = corpus.query_vectors
    return lambda number: search(queries[number % len(queries)][None])


def _fitting(ways: dict[str, Way], calls: int) -> int:
    """So many calls that a round of one way takes about `_ROUND_S` at most."""
    way = next(iter(ways.values()))
    way(0)
    start = time.perf_counter()
    way(1)
    return int(max(20, min(calls, _ROUND_S / max(time.perf_counter() - start, 1e-6))))
