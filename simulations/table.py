"""The final table: every method on every region's test queries, over its whole catalog.

Test queries come from each region's `qrels.parquet`, which nothing but this file reads. All dense
methods rank through an exact FAISS index; `federated` through the one the region published.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.evaluation import K, mean_metrics, mean_over, rank
from client.region import Region, read_qrels
from client.worker import Worker
from shared.adapter import Adapter
from shared.encoders.encoder import Encoder
from shared.encoders.prefix_cache import TextPrefixes
from shared.metrics import Qrels, judged_at_k, ndcg_at_k, ndcg_judged_at_k
from shared.retrieval.index import search_index
from shared.retrieval.lexical import LexicalIndex, language_of
from shared.retrieval.manifest import open_current_index
from simulations.baselines import pooled_products
from simulations.prepare import lexical_rows

ROWS = ("random", "bm25", "zero_shot", "local_only", "federated", "centralized")
UNION_ROWS = ("random", "bm25", "zero_shot", "federated", "centralized")
Ranked = NDArray[np.int64]


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
    """

    worker: Worker
    tests: TestSet
    ranked: dict[str, Ranked]
    rows: dict[str, dict[str, float]]


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
        worker: of the region; its published index is the federated one.
        adapters: of `zero_shot`, `local_only`, `federated` and `centralized`.
        seed: of the random row.
    """
    tests = judgments(read_qrels(worker.region), worker.region.catalog["product_id"])
    ranked = {
        "random": random_rows(len(tests.queries), worker.region.catalog.height, K, seed=seed),
        "bm25": _bm25(worker.region, tests.queries),
    }
    prefixes = worker.query_prefixes(tests.queries)
    for name in ("zero_shot", "local_only", "centralized"):
        worker.encoder.load_adapter(adapters[name])
        ranked[name] = rank(worker.encoder, worker.products, prefixes, k=K)
    worker.encoder.load_adapter(adapters["federated"])
    ranked["federated"] = _published(worker, prefixes)
    rows = {name: mean_metrics(ranked[name], tests.qrels) for name in ROWS}
    return RegionTable(worker, tests, {name: ranked[name] for name in ROWS}, rows)


def summarize(tables: Sequence[RegionTable]) -> tuple[dict[str, dict[str, float]], ...]:
    """Mean over regions, each counting the same, and worst region of each metric, by method."""
    measured = [table.rows for table in tables if table.tests.queries]
    mean = {name: mean_over([rows[name] for rows in measured]) for name in ROWS}
    worst = {
        name: {metric: min(rows[name][metric] for rows in measured) for metric in mean[name]}
        for name in ROWS
    }
    return mean, worst


def union_table(
    workers: Sequence[Worker],
    judged: pl.DataFrame,
    adapters: Mapping[str, Adapter],
    *,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Human judgments over all catalogs in one index; for judging only, since regions never pool.

    `local_only` has no row: vectors of different adapters cannot be compared.

    Args:
        workers: of all regions.
        judged: query, product_id, grade.
        adapters: of `zero_shot`, `federated` and `centralized`.
        seed: of the random row.
    """
    ids = pl.concat([worker.region.catalog["product_id"] for worker in workers])
    tests = judgments(judged, ids)
    texts = [text for worker in workers for text in worker.region.texts]
    count = len(texts)
    ranked = {
        "random": random_rows(len(tests.queries), count, count, seed=seed),
        "bm25": lexical_rows(LexicalIndex.build(texts), tests.queries, count),
    }
    products = pooled_products([worker.products for worker in workers])
    prefixes, encoder = workers[0].query_prefixes(tests.queries), workers[0].encoder
    for name in ("zero_shot", "federated", "centralized"):
        encoder.load_adapter(adapters[name])
        ranked[name] = rank(encoder, products, prefixes, k=count)
    return {name: _union_metrics(ranked[name], tests.qrels) for name in UNION_ROWS}


def random_rows(queries: int, products: int, k: int, *, seed: int) -> Ranked:
    """Seeded random rankings, (queries, min(k, products))."""
    rng = np.random.default_rng(seed)
    ranked = [rng.permutation(products)[:k] for _ in range(queries)]
    return np.array(ranked, dtype=np.int64).reshape(queries, min(k, products))


def _bm25(region: Region, queries: Sequence[str]) -> Ranked:
    language = language_of(region.config.locale)
    return lexical_rows(LexicalIndex.build(region.texts, language=language), queries, K)


def _published(worker: Worker, queries: TextPrefixes) -> Ranked:
    """What the region's published index answers; its digest must be the encoder's."""
    encoder: Encoder = worker.encoder
    index = open_current_index(worker.region.state, expected_digest=encoder.digest)
    return search_index(index.index, encoder.query_matrix(queries), K)[1]


def _union_metrics(ranked: Ranked, qrels: Qrels) -> dict[str, float]:
    measures: dict[str, Callable[..., NDArray[np.float64]]] = {
        f"ndcg@{K}": ndcg_at_k,
        f"ndcg@{K}_judged": ndcg_judged_at_k,
        f"judged@{K}": judged_at_k,
    }
    return {name: float(np.mean(measure(ranked, qrels, k=K))) for name, measure in measures.items()}
