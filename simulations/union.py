"""All catalogs in one index, by human judgments; for judging only, since regions never pool.

A region alone has few judged queries. Only what has one encoder for all regions can rank here:
vectors of different adapters cannot be compared, so `local_only` and what regions personalize for
themselves have no row.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.evaluation import K
from client.worker import Worker
from shared.adapter import Adapter
from shared.encoders.encoder import Encoder, ProductPrefixes
from shared.encoders.prefix_cache import TextPrefixes
from shared.metrics import Qrels, judged_at_k, ndcg_at_k, ndcg_judged_at_k
from shared.retrieval.hybrid import reciprocal_rank_fusion
from shared.retrieval.index import build_index, search_index
from shared.retrieval.lexical import LexicalIndex
from shared.retrieval.products import ProductTable
from shared.retrieval.shelf import DEPTH, Shelf
from shared.retrieval.vectors import VectorIndex
from simulations.baselines import pooled_products
from simulations.prepare import lexical_rows
from simulations.table import (
    JUDGED,
    NDCG,
    NDCG_JUDGED,
    Ranked,
    Scores,
    TestSet,
    judgments,
    random_rows,
    shelf_rows,
)

UNION_ROWS = (
    *("random", "bm25", "zero_shot", "hybrid_zero_shot"),
    *("federated", "hybrid", "rrf", "centralized"),
)
_MIXES = {"zero_shot": "hybrid_zero_shot", "federated": "hybrid"}  # rows by the adapter in the mix


@dataclass(frozen=True)
class UnionTable:
    """What each method finds in all catalogs.

    Attributes:
        scores: of each method by each metric, one a query, (Q,).
        rows: their means.
    """

    scores: dict[str, dict[str, Scores]]
    rows: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Encoded:
    """All catalogs and all judged queries under one adapter.

    Attributes:
        index: of all N products' vectors, exact.
        queries: unit vectors, (Q, D).
        digest: of the encoder.
    """

    index: faiss.Index
    queries: NDArray[np.float32]
    digest: str


@dataclass(frozen=True)
class Union:
    """All catalogs, one behind the other, and the queries that people judged.

    Every ranking has all N products, or all that a method finds: rows, best first, padded with -1,
    (Q, at most N).

    Attributes:
        tests: judged queries, Q of them.
        count: N.
        encoder: of all regions.
        lexical: titles' words.
        products: what filters and groups look at.
        activations: of the products.
        prefixes: of the queries.
    """

    tests: TestSet
    count: int
    encoder: Encoder
    lexical: LexicalIndex
    products: ProductTable
    activations: ProductPrefixes
    prefixes: TextPrefixes

    @classmethod
    def of(cls, workers: Sequence[Worker], judged: pl.DataFrame) -> "Union":
        """Bring the regions together.

        Args:
            workers: of all regions.
            judged: query, product_id, grade.
        """
        catalog = pl.concat([worker.region.catalog for worker in workers])
        tests = judgments(judged, catalog["product_id"])
        return cls(
            tests=tests,
            count=catalog.height,
            encoder=workers[0].encoder,
            lexical=LexicalIndex.build(text for one in workers for text in one.region.texts),
            products=ProductTable.build(catalog, group_attribute=None),
            activations=pooled_products([worker.products for worker in workers]),
            prefixes=workers[0].query_prefixes(tests.queries),
        )

    def words(self) -> Ranked:
        """BM25."""
        return lexical_rows(self.lexical, self.tests.queries, self.count)

    def encoded(self, adapter: Adapter) -> Encoded:
        """Products and queries as this adapter puts them."""
        encoder = self.encoder
        encoder.load_adapter(adapter)
        index = build_index(encoder.product_matrix(self.activations), distance=encoder.distance)
        queries = encoder.query_matrix(self.prefixes)
        return Encoded(index, queries, encoder.digest)

    def dense(self, encoded: Encoded) -> Ranked:
        """The encoder alone, through exact search."""
        return search_index(encoded.index, encoded.queries, self.count)[1]

    def mix(self, encoded: Encoded, dense_weight: float) -> Ranked:
        """Both, as shoppers get it.

        Args:
            encoded: the encoder's part.
            dense_weight: of that part; nothing may have tuned it on the judgments.
        """
        vectors, digest = VectorIndex.over(encoded.index), encoded.digest
        shelf = Shelf("union", 0, digest, self.products, vectors, self.lexical, dense_weight)
        return shelf_rows(shelf, self.tests.queries, encoded.queries, k=self.count)


def human_judgments(run: Path) -> pl.DataFrame | None:
    """What people judged, of a complete world: query, product_id, grade; None where nobody did."""
    world = json.loads((run / "world.json").read_text(encoding="utf-8"))
    return pl.read_parquet(run / "judged.parquet") if world["judged"] else None


def union_table(
    union: Union, adapters: Mapping[str, Adapter], *, dense_weight: float, seed: int
) -> UnionTable:
    """Rank and measure every method of `UNION_ROWS`.

    Args:
        union: all catalogs.
        adapters: of `zero_shot`, `federated` and `centralized`.
        dense_weight: of the encoder in both hybrids; nothing may have tuned it on the judgments.
        seed: of the random row.
    """
    count = union.count
    ranked = {
        "random": random_rows(len(union.tests.queries), count, count, seed=seed),
        "bm25": union.words(),
    }
    for name in ("zero_shot", "federated", "centralized"):
        encoded = union.encoded(adapters[name])
        ranked[name] = union.dense(encoded)
        if name in _MIXES:
            ranked[_MIXES[name]] = union.mix(encoded, dense_weight)
    ranked["rrf"] = rrf_rows(ranked["bm25"], ranked["federated"], depth=DEPTH)
    return _measured(ranked, union.tests.qrels)


def rrf_rows(*rankings: Ranked, depth: int) -> Ranked:
    """Reciprocal rank fusion, which has no weight, of as many candidates as the shelf looks at.

    Args:
        rankings: rows, best first, padded with -1, (Q, K) each.
        depth: how many rows of each count.

    Returns:
        Rows, (Q, at most depth a ranking), best first, padded with -1.
    """
    lists = [
        reciprocal_rank_fusion([line[:depth][line[:depth] >= 0] for line in lines])[0]
        for lines in zip(*rankings, strict=True)
    ]
    fused = np.full((len(lists), max(map(len, lists), default=0)), -1, np.int64)
    for line, rows in zip(fused, lists, strict=True):
        line[: len(rows)] = rows
    return fused


def _measured(ranked: Mapping[str, Ranked], qrels: Qrels) -> UnionTable:
    measures: dict[str, Callable[..., Scores]] = {
        NDCG: ndcg_at_k,
        NDCG_JUDGED: ndcg_judged_at_k,
        JUDGED: judged_at_k,
    }
    scores = {
        name: {metric: measure(ranked[name], qrels, k=K) for metric, measure in measures.items()}
        for name in UNION_ROWS
    }
    rows = {
        name: {metric: float(np.mean(values)) for metric, values in by_metric.items()}
        for name, by_metric in scores.items()
    }
    return UnionTable(scores, rows)
