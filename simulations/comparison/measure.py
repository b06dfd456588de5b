"""Score every query of a region under one method, in five ways, so that no claim needs training.

All methods rank a region's whole catalog. Each query then counts in up to three of five sets:

    set         queries                              products that answer it
    test        kept from every click log            all; the figure of the tables
    unseen_seen kept from every click log            those that click logs may show
    unseen_cold kept from every click log            cold: never shown in training
    seen_seen   with a training example right here   those that click logs may show
    seen_cold   with a training example right here   cold

A query without an answer of a set's kind is left out of that set. In these four, answers of the
other kind are taken out of the ranking before it is cut at ten (as known answers are in Bordes et
al. 2013, "filtered"): a right product is no mistake. Wrong products of either kind stay, so a
method that lifts what was clicked over what was never shown still loses.

Where people judged queries, methods with one encoder for all regions also rank all catalogs at once
(`simulations.union`), in two more sets of one region that is none:

    union        judged queries; what is not judged is wrong
    union_judged the same; products that are not judged are taken out of the ranking
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.evaluation import K, rank
from client.indexing import build_region_index
from client.region import read_qrels
from client.worker import Worker
from shared.adapter import Adapter
from shared.metrics import RELEVANT_GRADE, Qrels, judged_at_k, mrr_at_k, ndcg_at_k, recall_at_k
from shared.retrieval.lexical import LexicalIndex
from simulations.prepare import lexical_rows
from simulations.queries import cold_mask
from simulations.table import JUDGED, TestSet, judgments, published_shelf, shelf_rows

TEST = "test"
QUADRANTS = ("unseen_seen", "unseen_cold", "seen_seen", "seen_cold")
SETS = (TEST, *QUADRANTS)  # of every region
UNION, UNION_JUDGED = "union", "union_judged"
UNION_SETS = (UNION, UNION_JUDGED)
METRICS = {f"ndcg@{K}": ndcg_at_k, f"recall@{K}": recall_at_k, f"mrr@{K}": mrr_at_k}
SCORE_SCHEMA: dict[str, pl.DataType] = {
    "region": pl.String(),
    "set": pl.String(),
    "query": pl.String(),
    **dict.fromkeys(METRICS, pl.Float64()),
    JUDGED: pl.Float64(),  # null but in the union: elsewhere all products are judged
}

Ranked = NDArray[np.int64]
Ranker = Callable[[Worker, Sequence[str], int], Ranked]  # queries, depth -> rows (Q, <= depth)


@dataclass(frozen=True)
class Judged:
    """A region's queries and what answers them.

    Attributes:
        tests: of `qrels.parquet`.
        seen: with a training example in this region.
        cold: rows that no click log shows, (N,).
    """

    tests: TestSet
    seen: TestSet
    cold: NDArray[np.bool_]


def judged_queries(worker: Worker, seen: pl.DataFrame) -> Judged:
    """Bring a region's judgments together.

    Args:
        worker: of the region.
        seen: query, product_id and grade of all queries that training may ask.
    """
    catalog, asked = worker.region.catalog, worker.examples.queries
    trained = seen.filter(pl.col("query").is_in(asked))
    return Judged(
        tests=judgments(read_qrels(worker.region), catalog["product_id"]),
        seen=judgments(trained, catalog["product_id"]),
        cold=cold_mask(catalog["title"].to_list()),
    )


def region_scores(worker: Worker, judged: Judged, ranker: Ranker) -> pl.DataFrame:
    """Every query's scores in every set.

    Args:
        worker: of the region.
        judged: its queries.
        ranker: the method.

    Returns:
        `SCORE_SCHEMA`: one row a query and set.
    """
    texts = [*judged.tests.queries, *judged.seen.queries]
    qrels = [*judged.tests.qrels, *judged.seen.qrels]
    depth = min(K + max((len(rows) for rows, _ in qrels), default=0), worker.region.catalog.height)
    ranked, first = ranker(worker, texts, depth), len(judged.tests.queries)
    parts: dict[str, tuple[slice, NDArray[np.bool_] | None]] = {TEST: (slice(0, first), None)}
    for name, part in (("unseen", slice(0, first)), ("seen", slice(first, None))):
        parts |= {f"{name}_seen": (part, ~judged.cold), f"{name}_cold": (part, judged.cold)}
    tables = []
    for name, (part, wanted) in parts.items():
        scored = score_set(texts[part], ranked[part], qrels[part], wanted)
        tables.append(scored.with_columns(set=pl.lit(name)))
    return _in_schema(pl.concat(tables), region=worker.region.config.region)


def union_scores(tests: TestSet, ranked: Ranked) -> pl.DataFrame:
    """Every judged query's scores over all catalogs, in both sets.

    Args:
        tests: judged queries, Q of them, and rows of the union.
        ranked: rows, best first, padded with -1, (Q, R); as deep as the method goes.

    Returns:
        `SCORE_SCHEMA`: one row a query and set.
    """
    judged = pl.Series(JUDGED, judged_at_k(ranked, tests.qrels, k=K))
    rankings = {UNION: ranked, UNION_JUDGED: judged_only(ranked, tests.qrels)}
    tables = [
        score_set(tests.queries, rows, tests.qrels, None).with_columns(judged, set=pl.lit(name))
        for name, rows in rankings.items()
    ]
    return _in_schema(pl.concat(tables), region=UNION)


def _in_schema(table: pl.DataFrame, *, region: str) -> pl.DataFrame:
    missing = [pl.lit(None).alias(JUDGED)] if JUDGED not in table.columns else []
    named = table.with_columns(*missing, region=pl.lit(region))
    return named.select(pl.col(name).cast(kind) for name, kind in SCORE_SCHEMA.items())


def score_set(
    texts: Sequence[str], ranked: Ranked, qrels: Qrels, wanted: NDArray[np.bool_] | None
) -> pl.DataFrame:
    """Scores by products of one kind; see the module.

    Args:
        texts: queries, Q of them.
        ranked: rows, best first, padded with -1, (Q, R).
        qrels: (rows, grades) of each.
        wanted: which rows of the catalog may answer, (N,); None for all.

    Returns:
        `query` and a column a metric, one row a query that has an answer.
    """
    kept = [_of_kind(one, wanted) for one in qrels]
    others = [_of_kind(one, None if wanted is None else ~wanted)[0] for one in qrels]
    lines = [number for number, (rows, _) in enumerate(kept) if len(rows)]
    if wanted is not None:
        ranked = without(ranked, others)
    ranked, kept = ranked[lines], [kept[number] for number in lines]
    return pl.DataFrame(
        {
            "query": pl.Series([texts[number] for number in lines], dtype=pl.String),
            **{name: metric(ranked, kept, k=K) for name, metric in METRICS.items()},
        }
    )


def without(ranked: Ranked, removed: Sequence[NDArray[np.int64]]) -> Ranked:
    """Rankings with some rows taken out, the rest moved up.

    Args:
        ranked: rows, best first, padded with -1, (Q, R).
        removed: rows to take out of each, length Q.

    Returns:
        (Q, R), padded with -1.
    """
    moved = np.full_like(ranked, -1)
    for line, rows, out in zip(moved, ranked, removed, strict=True):
        left = rows[(rows >= 0) & ~np.isin(rows, out)]
        line[: len(left)] = left
    return moved


def judged_only(ranked: Ranked, qrels: Qrels) -> Ranked:
    """Rankings of judged products alone, the rest taken out (Sakai 2007, condensed lists).

    Args:
        ranked: rows, best first, padded with -1, (Q, R).
        qrels: (rows, grades) of each.

    Returns:
        (Q, R), padded with -1.
    """
    moved = np.full_like(ranked, -1)
    for line, rows, (judged, _) in zip(moved, ranked, qrels, strict=True):
        left = rows[np.isin(rows, judged)]
        line[: len(left)] = left
    return moved


def dense_ranker(adapter: Adapter) -> Ranker:
    """The encoder alone, through exact search."""

    def ranked(worker: Worker, texts: Sequence[str], depth: int) -> Ranked:
        worker.encoder.load_adapter(adapter)
        return rank(worker.encoder, worker.products, worker.query_prefixes(list(texts)), k=depth)

    return ranked


def bm25_ranker(worker: Worker, texts: Sequence[str], depth: int) -> Ranked:
    """Words alone."""
    index = LexicalIndex.build(worker.region.texts, locale=worker.region.config.locale)
    return lexical_rows(index, texts, depth)


def hybrid_ranker(adapter: Adapter) -> Ranker:
    """What a shopper gets: both, by the weight that the region's validation clicks choose.

    The index is built and answers in the worker's region, so that must be a view of its own. A
    shelf looks at a few hundred candidates, so its rankings may be shorter than `depth`.
    """

    def ranked(worker: Worker, texts: Sequence[str], depth: int) -> Ranked:
        encoder = worker.encoder
        encoder.load_adapter(adapter)
        vectors = encoder.product_matrix(worker.products)
        tuned, asked = worker.tune(vectors), worker.query_vectors()
        build_region_index(
            worker.region, encoder, release=1, vectors=vectors, tuned=tuned, queries=asked
        )
        queries = encoder.query_matrix(worker.query_prefixes(list(texts)))
        return shelf_rows(published_shelf(worker), texts, queries, k=depth)

    return ranked


def _of_kind(
    qrel: tuple[NDArray[np.int64], NDArray[np.integer]], wanted: NDArray[np.bool_] | None
) -> tuple[NDArray[np.int64], NDArray[np.integer]]:
    """Those relevant rows that are of the kind wanted, with their grades."""
    rows, grades = qrel
    kept = grades >= RELEVANT_GRADE
    if wanted is not None:
        kept &= wanted[rows]
    return rows[kept], grades[kept]
