"""How much of the mix a region's own clicks give to the encoder, and the order that mix makes.

An encoder that a region's shoppers do not agree with must not outvote plain words there, so the
weight of the two rankers is tuned on the region's validation clicks, for every release anew, and
what shoppers see is what the gate measures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.retrieval.hybrid import K, Tuned, gains_in_order, tune_dense_weight
from shared.retrieval.lexical import LexicalIndex
from shared.retrieval.relevance import bar_of
from shared.retrieval.shelf import DEPTH

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class ShownScores:
    """What a ranker says of the products that held-out shoppers were shown.

    Attributes:
        scores: of the rows shown for each query, (R,) each.
        best: its highest score for each query over the whole catalog, (Q,).
    """

    scores: list[Scores]
    best: NDArray[np.float64]


def lexical_scores(
    lexical: LexicalIndex, queries: Sequence[str], rows: Sequence[NDArray[np.int64]]
) -> ShownScores:
    """BM25 as in serving: 0 for what is not among a query's best candidates.

    Args:
        lexical: of the region's catalog.
        queries: texts, Q of them.
        rows: what was shown for each, ascending, (R,) each.
    """
    scores, best = [], []
    for query, shown in zip(queries, rows, strict=True):
        found, values = lexical.search(query, DEPTH)
        order = np.argsort(found)
        place = np.minimum(np.searchsorted(found, shown, sorter=order), max(len(found) - 1, 0))
        there = found[order][place] == shown if len(found) else np.zeros(len(shown), np.bool_)
        scores.append(np.where(there, values[order][place], 0) if len(found) else there * 0.0)
        best.append(float(values.max(initial=0.0)))
    return ShownScores([score.astype(np.float32) for score in scores], np.array(best))


def dense_scores(
    queries: Scores, products: Scores, rows: Sequence[NDArray[np.int64]]
) -> ShownScores:
    """Cosines of the rows shown.

    Args:
        queries: unit vectors, (Q, D).
        products: unit vectors of the whole catalog, (N, D).
        rows: what was shown for each query, (R,) each.
    """
    scores, best = [], []
    for query, shown in zip(queries, rows, strict=True):
        cosines = products @ query  # (N,)
        scores.append(cosines[shown])
        best.append(float(cosines.max()))
    return ShownScores(scores, np.array(best))


def tune(
    dense: ShownScores,
    lexical: ShownScores,
    rows: Sequence[NDArray[np.int64]],
    gains: Sequence[NDArray[np.float64]],
) -> Tuned:
    """Choose the weight of the dense ranker; see `shared.retrieval.hybrid`.

    Args:
        dense: from `dense_scores`.
        lexical: from `lexical_scores`.
        rows: what was shown for each query.
        gains: estimated relevance of it.
    """
    return tune_dense_weight(
        rows,
        gains,
        dense=dense.scores,
        lexical=lexical.scores,
        dense_max=dense.best,
        lexical_max=lexical.best,
    )


def mixed_gains(
    dense: ShownScores,
    lexical: ShownScores,
    rows: Sequence[NDArray[np.int64]],
    gains: Sequence[NDArray[np.float64]],
    *,
    tuned: Tuned,
) -> list[NDArray[np.float64]]:
    """The gains of what each query showed, in the order that shoppers would see.

    What is below a query's bar (`shared.retrieval.relevance`) is not seen: it comes last, after as
    many empty places as ranks are measured. A query that is a product's code counts like any other.

    Args:
        dense: from `dense_scores`.
        lexical: from `lexical_scores`.
        rows: what was shown for each query.
        gains: estimated relevance of it.
        tuned: weight and floor, from `tune`.

    Returns:
        Gains of each query, best place first, (R,), or (R + K,) where something is below the bar.
    """
    best = zip(dense.best.tolist(), lexical.best.tolist(), strict=True)
    bars = [bar_of(*pair, dense_floor=tuned.dense_floor) for pair in best]
    scores = zip(bars, dense.scores, lexical.scores, strict=True)
    reached = [bar.reached(cosines, bm25).astype(np.float64) for bar, cosines, bm25 in scores]
    ordered, seen = (
        gains_in_order(
            rows,
            values,
            dense=dense.scores,
            lexical=lexical.scores,
            dense_max=dense.best,
            lexical_max=lexical.best,
            dense_weight=tuned.dense_weight,
        )
        for values in (gains, reached)
    )
    return [_seen_first(gain, is_seen > 0) for gain, is_seen in zip(ordered, seen, strict=True)]


def _seen_first(gains: NDArray[np.float64], seen: NDArray[np.bool_]) -> NDArray[np.float64]:
    if seen.all():
        return gains
    return np.concatenate([gains[seen], np.zeros(K), gains[~seen]])
