"""The final table: every method on every region's test queries, over its whole catalog.

Test queries come from each region's `qrels.parquet`, which nothing but this file reads. All dense
methods rank through an exact FAISS index; `federated` (or `personalized`, where regions adapt the
release) through the one the region published, and `hybrid` through the shelf over it, from which a
shopper is answered. Differences that a reader will
draw conclusions from are tested here too, since only here are the scores of single queries known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.evaluation import K, mean_metrics, mean_over, rank
from client.region import Region, read_qrels
from client.shelves import open_shelf, scratch_folder
from client.worker import Worker
from shared.adapter import Adapter
from shared.encoders.encoder import Encoder
from shared.metrics import Qrels, ndcg_at_k
from shared.randomization import paired_randomization_test
from shared.retrieval.lexical import LexicalIndex
from shared.retrieval.manifest import open_current_index
from shared.retrieval.shelf import Ask, Shelf
from simulations.prepare import lexical_rows

ROWS = ("random", "bm25", "zero_shot", "local_only", "federated", "hybrid", "centralized")
PERSONALIZED = "personalized"  # one more row, where regions adapt the release for themselves
NDCG, NDCG_JUDGED, JUDGED = f"ndcg@{K}", f"ndcg@{K}_judged", f"judged@{K}"
# What a reader will ask: does the mix beat words, does it beat the encoder, did training help?
REGION_PAIRS = (("hybrid", "bm25"), ("hybrid", "federated"), ("federated", "zero_shot"))
PERSONALIZED_PAIRS = ((PERSONALIZED, "federated"), (PERSONALIZED, "local_only"))
UNION_PAIRS = (("hybrid", "bm25"), ("federated", "zero_shot"))

Ranked = NDArray[np.int64]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class TestSet:
    """A region's test queries.

    Attributes:
        queries: texts, sorted, length Q.
        qrels: (catalog rows, grades) of each.
    """

    queries: list[str]
    qrels: Qrels


@dataclass(frozen=True)
class RegionTable:
    """One region's part of the final table.

    Attributes:
        worker: of the region.
        tests: its test queries.
        ranked: each method's ten best catalog rows for every test query, (Q, 10).
        rows: each method's mean metrics.
        dense_weight: of the encoder in `hybrid`, as the region's validation clicks chose it.
    """

    worker: Worker
    tests: TestSet
    ranked: dict[str, Ranked]
    rows: dict[str, dict[str, float]]
    dense_weight: float


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same queries, and whether luck would explain the difference.

    Attributes:
        queries: "regions" (the test queries of all regions) or "union" (the human judgments).
        a: a method.
        b: the one it is held against.
        metric: by which.
        difference: mean of `a` less mean of `b`.
        p: two-sided, of the paired randomization test; not corrected for the other comparisons.
        num_queries: on which both were measured.
    """

    queries: str
    a: str
    b: str
    metric: str
    difference: float
    p: float
    num_queries: int


def judgments(qrels: pl.DataFrame, product_ids: pl.Series) -> TestSet:
    """Judgments by query, with catalog rows; queries with nothing relevant are left out."""
    rows = pl.DataFrame({"product_id": product_ids}).with_row_index("row")
    joined = qrels.join(rows, on="product_id").sort("query", "row")
    queries, parts = [], []
    for (query,), part in joined.group_by("query", maintain_order=True):
        if part["grade"].max() > 0:  # type: ignore[operator]
            queries.append(str(query))
            parts.append((part["row"].cast(pl.Int64).to_numpy(), part["grade"].to_numpy()))
    return TestSet(queries, parts)


def region_table(worker: Worker, adapters: Mapping[str, Adapter], *, seed: int) -> RegionTable:
    """Rank and measure every method in one region.

    Args:
        worker: of the region; its published index is the federated one, or the personalized one.
        adapters: of `zero_shot`, `local_only`, `federated` and `centralized`, and of `personalized`
            where the region answers from that.
        seed: of the random row.
    """
    tests = judgments(read_qrels(worker.region), worker.region.catalog["product_id"])
    ranked = {
        "random": random_rows(len(tests.queries), worker.region.catalog.height, K, seed=seed),
        "bm25": _bm25(worker.region, tests.queries),
    }
    prefixes = worker.query_prefixes(tests.queries)
    published = PERSONALIZED if PERSONALIZED in adapters else "federated"
    for name in adapters.keys() - {published}:
        worker.encoder.load_adapter(adapters[name])
        ranked[name] = rank(worker.encoder, worker.products, prefixes, k=K)
    worker.encoder.load_adapter(adapters[published])
    vectors, shelf = worker.encoder.query_matrix(prefixes), published_shelf(worker)
    ranked[published] = shelf.vectors.search(vectors, K)[1]
    ranked["hybrid"] = shelf_rows(shelf, tests.queries, vectors, k=K)
    ranked = {name: ranked[name] for name in (*ROWS, PERSONALIZED) if name in ranked}
    rows = {name: mean_metrics(found, tests.qrels) for name, found in ranked.items()}
    return RegionTable(worker, tests, ranked, rows, shelf.dense_weight)


def summarize(tables: Sequence[RegionTable]) -> tuple[dict[str, dict[str, float]], ...]:
    """Mean over regions, each counting the same, and worst region of each metric, by method."""
    measured, names = [table.rows for table in tables if table.tests.queries], tables[0].rows
    mean = {name: mean_over([rows[name] for rows in measured]) for name in names}
    worst = {
        name: {metric: min(rows[name][metric] for rows in measured) for metric in mean[name]}
        for name in names
    }
    return mean, worst


def mean_dense_weight(tables: Sequence[RegionTable]) -> float:
    """What the regions' own clicks say of the mix, each region counting the same."""
    return float(np.mean([table.dense_weight for table in tables]))


def compare_methods(
    tables: Sequence[RegionTable],
    union: Mapping[str, Mapping[str, Scores]] | None,
    *,
    seed: int,
) -> list[Comparison]:
    """Test the differences that a reader will draw conclusions from.

    A query that several regions were asked is one query here, with the mean of its scores: the same
    words put to four catalogs are not four pieces of evidence, and would make luck look like skill.

    Args:
        tables: of all regions.
        union: of each method by each metric, one a human-judged query; None where there are none.
        seed: of the random swaps.

    Returns:
        The pairs of `REGION_PAIRS` (and of `PERSONALIZED_PAIRS` where there is that row), then
        those of `UNION_PAIRS` over all products and over judged ones; nothing for queries that
        there are not.
    """
    personalized = any(PERSONALIZED in table.ranked for table in tables)
    pairs = [*REGION_PAIRS, *(PERSONALIZED_PAIRS if personalized else ())]
    names = {name for pair in pairs for name in pair}
    by_query = {name: {NDCG: _scores_by_query(tables, name)} for name in names}
    found = [_compare("regions", by_query, a, b, NDCG, seed=seed) for a, b in pairs]
    if union is not None:
        found += [
            _compare("union", union, *pair, metric, seed=seed)
            for pair in UNION_PAIRS
            for metric in (NDCG, NDCG_JUDGED)
        ]
    return [one for one in found if one is not None]


def shelf_rows(
    shelf: Shelf, texts: Sequence[str], vectors: NDArray[np.float32], *, k: int
) -> Ranked:
    """What shoppers are answered, before variants are grouped and pages are cut.

    Args:
        shelf: of the region's published index, or of all catalogs.
        texts: queries, Q of them.
        vectors: of the queries, by the shelf's encoder, (Q, D).
        k: rows a query.

    Returns:
        Rows, (Q, k), best first; -1 past the last candidate. What is popular is no answer: where
        nothing else is found there are no rows.
    """
    ranked = np.full((len(texts), k), -1, np.int64)
    for line, text, vector in zip(ranked, texts, vectors, strict=True):
        found = shelf.find(Ask(text=text, vector=vector))
        rows = found.candidates[:k] if not found.fallback else found.candidates[:0]
        line[: len(rows)] = rows
    return ranked


def random_rows(queries: int, products: int, k: int, *, seed: int) -> Ranked:
    """Seeded random rankings, (queries, min(k, products))."""
    rng = np.random.default_rng(seed)
    ranked = [rng.permutation(products)[:k] for _ in range(queries)]
    return np.array(ranked, dtype=np.int64).reshape(queries, min(k, products))


def _bm25(region: Region, queries: Sequence[str]) -> Ranked:
    index = LexicalIndex.build(region.texts, locale=region.config.locale)
    return lexical_rows(index, queries, K)


def published_shelf(worker: Worker) -> Shelf:
    """What the region answers from; its digest must be the encoder's."""
    encoder: Encoder = worker.encoder
    region = worker.region
    index = open_current_index(region.state, expected_digest=encoder.digest)
    scratch = scratch_folder(region.state)
    shelf = open_shelf(region, index, encoder.encode_products, scratch=scratch)
    assert not shelf.num_changes, "rows are those of the catalog that the judgments were joined to"
    return shelf


def _scores_by_query(tables: Sequence[RegionTable], name: str) -> Scores:
    """nDCG@10 of every distinct query text, the mean over the regions that have it, sorted."""
    measured = [table for table in tables if table.tests.queries]
    texts = [query for table in measured for query in table.tests.queries]
    scores = [ndcg_at_k(table.ranked[name], table.tests.qrels, k=K) for table in measured]
    number = np.unique(np.array(texts, np.str_), return_inverse=True)[1]
    return np.bincount(number, np.concatenate([[], *scores])) / np.bincount(number)


def _compare(
    queries: str,
    scores: Mapping[str, Mapping[str, Scores]],
    a: str,
    b: str,
    metric: str,
    *,
    seed: int,
) -> Comparison | None:
    """None where there is no query: a mean of nothing is not 0."""
    first, second = scores[a][metric], scores[b][metric]
    if not len(first):
        return None
    difference = float(np.mean(first) - np.mean(second))
    p = paired_randomization_test(first, second, seed=seed)
    return Comparison(queries, a, b, metric, difference, p, len(first))
