"""Measure an adapter in one region: on held-out clicks, and on judged queries.

Judged queries go through the same exact FAISS search that shoppers get. Held-out clicks know only
what was shown, so they order only that.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from client.clicks import ValidationSet
from shared.adapter import Adapter
from shared.encoders.encoder import Encoder, ProductPrefixes
from shared.encoders.prefix_cache import TextPrefixes
from shared.metrics import (
    Qrels,
    difference_of_gains,
    effective_sample_size,
    gain_found,
    ideal_gain,
    mrr_at_k,
    ndcg_at_k,
    ndcg_of_gains,
    recall_at_k,
    self_normalized,
)
from shared.retrieval.index import build_index, search_index
from shared.similarity import BY_NAME
from shared.wire_evaluation import Difference

K = 10

# Product vectors (N, D) and query vectors (Q, D) -> gains of what each query showed, in order.
Mix = Callable[[NDArray[np.float32], NDArray[np.float32]], Sequence[NDArray[np.float64]]]


def rank(
    encoder: Encoder, products: ProductPrefixes, queries: TextPrefixes, *, k: int
) -> NDArray[np.int64]:
    """The k best catalog rows of every query, best first, (Q, k); -1 past the catalog's end."""
    index = build_index(encoder.product_matrix(products), distance=encoder.distance)
    return search_index(index, encoder.query_matrix(queries), k)[1]


def mean_metrics(ranked: NDArray[np.int64], qrels: Qrels) -> dict[str, float]:
    """Means over the queries of nDCG@10 (exponential gain), recall@10 and MRR@10.

    Args:
        ranked: catalog rows, best first, (Q, >= 10).
        qrels: (rows, grades) of each query, every query with something relevant.

    Returns:
        By metric name; empty where there is no query.
    """
    if not qrels:
        return {}
    values = {
        f"ndcg@{K}": ndcg_at_k(ranked, qrels, k=K),
        f"recall@{K}": recall_at_k(ranked, qrels, k=K),
        f"mrr@{K}": mrr_at_k(ranked, qrels, k=K),
    }
    return {name: float(np.mean(scores)) for name, scores in values.items()}


def evaluate(
    encoder: Encoder, products: ProductPrefixes, queries: TextPrefixes, held_out: ValidationSet
) -> dict[str, float]:
    """Pooled nDCG@10 of the encoder's order of what held-out shoppers were shown.

    Products that were not shown are left out (condensed lists, Sakai 2007), because whether
    anybody would have clicked them is not known; gains are linear, being probabilities.

    Args:
        encoder: holds the adapter to measure.
        products: kept activations of the catalog.
        queries: kept activations of `held_out.queries`.
        held_out: from `client.clicks.make_validation_set`.

    Returns:
        By metric name, with SNIPS of the same order and the effective share of the clicks
        (effective sample size over their number) beside it; empty where there is no query.
    """
    if not held_out.queries:
        return {}
    order = _order(encoder, products, queries, held_out)
    gains, weights = (_in_order(values, order) for values in (held_out.gains, held_out.weights))
    return {
        f"ndcg@{K}": ndcg_of_gains(gains, k=K),
        f"snips@{K}": self_normalized(weights, k=K),
        "effective_share": _effective_share(held_out),
    }


def _effective_share(held_out: ValidationSet) -> float:
    """Effective sample size over the number of clicks: how far few clicks decide, in (0, 1]."""
    sums = (float(sum(part.sum() for part in p)) for p in (held_out.weights, held_out.squares))
    return min(effective_sample_size(*sums) / max(held_out.num_clicks, 1), 1.0)


def compare(
    encoder: Encoder,
    products: ProductPrefixes,
    queries: TextPrefixes,
    held_out: ValidationSet,
    *,
    candidate: Adapter,
    references: Mapping[int, Adapter],
    mix: Mix | None = None,
) -> tuple[dict[str, float], dict[int, Difference]]:
    """Measure a candidate and how it differs from references, in the order that shoppers see.

    Args:
        encoder: its adapter is swapped; it is left with the last reference.
        products: kept activations of the catalog.
        queries: kept activations of `held_out.queries`.
        held_out: from `client.clicks.make_validation_set`.
        candidate: the adapter in question.
        references: the adapters it is compared with, by number.
        mix: how the encoder's order is mixed with that of words, given the product vectors and
            query vectors; without it the encoder alone is measured.

    Returns:
        The candidate's metrics (empty where there is no query), and its difference to each.
    """
    if not held_out.queries:
        return {}, {number: Difference(0, 0.0, 0.0) for number in references}

    def gains(adapter: Adapter) -> list[NDArray[np.float64]]:
        encoder.load_adapter(adapter)
        if mix is None:
            return _ordered(encoder, products, queries, held_out)
        return list(mix(encoder.product_matrix(products), encoder.query_matrix(queries)))

    mine = gains(candidate)
    found, ideal = gain_found(mine, k=K), ideal_gain(mine, k=K)
    differences = {}
    for number, reference in references.items():
        other = gain_found(gains(reference), k=K)
        differences[number] = Difference(len(found), *difference_of_gains(found, other, ideal))
    return {f"ndcg@{K}": ndcg_of_gains(mine, k=K)}, differences


def _ordered(
    encoder: Encoder, products: ProductPrefixes, queries: TextPrefixes, held_out: ValidationSet
) -> list[NDArray[np.float64]]:
    """The gains of what each query was shown, in the encoder's order."""
    return _in_order(held_out.gains, _order(encoder, products, queries, held_out))


def _in_order(
    values: Sequence[NDArray[np.float64]], order: Sequence[NDArray[np.int64]]
) -> list[NDArray[np.float64]]:
    return [part[places] for part, places in zip(values, order, strict=True)]


def _order(
    encoder: Encoder, products: ProductPrefixes, queries: TextPrefixes, held_out: ValidationSet
) -> list[NDArray[np.int64]]:
    """How the encoder orders what each query was shown, the best first, (R,) each."""
    shown = np.unique(np.concatenate(held_out.rows))
    vectors = encoder.product_matrix(products, shown)
    compared = BY_NAME[encoder.distance]
    scores = compared.pairwise(encoder.query_matrix(queries), vectors)  # (Q, S)
    return [
        np.lexsort((rows, -score[np.searchsorted(shown, rows)]))
        for score, rows in zip(scores, held_out.rows, strict=True)
    ]


def mean_over(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Unweighted mean of each metric over regions; every region counts the same."""
    names = rows[0].keys() if rows else []
    return {name: float(np.mean([row[name] for row in rows])) for name in names}
