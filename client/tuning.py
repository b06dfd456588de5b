"""How much of the mix a region's own clicks give to the encoder, and the order that mix makes.

An encoder that a region's shoppers do not agree with must not outvote plain words there, so the
weight of the two rankers is tuned on the region's validation clicks, for every release anew, and
what shoppers see is what the gate measures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shared.config import COSINE
from shared.retrieval.hybrid import Tuned, gains_in_order, tune_dense_weight
from shared.retrieval.lexical import LexicalIndex
from shared.retrieval.relevance import dense_floor_of
from shared.retrieval.shelf import DEPTH
from shared.similarity import BY_NAME

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
    queries: Scores,
    products: Scores,
    rows: Sequence[NDArray[np.int64]],
    *,
    distance: str = COSINE,
) -> ShownScores:
    """Cosines of the rows shown, or what a base of another distance has in their place.

    Args:
        queries: unit vectors, (Q, D).
        products: unit vectors of the whole catalog, (N, D).
        rows: what was shown for each query, (R,) each.
        distance: of the base.
    """
    scores, best = [], []
    for query, shown in zip(queries, rows, strict=True):
        cosines = BY_NAME[distance].pairwise(query[None], products)[0]  # (N,)
        scores.append(cosines[shown])
        best.append(float(cosines.max()))
    return ShownScores(scores, np.array(best))


def tune(
    dense: ShownScores,
    lexical: ShownScores,
    rows: Sequence[NDArray[np.int64]],
    gains: Sequence[NDArray[np.float64]],
    *,
    untrained: NDArray[np.bool_],
) -> Tuned:
    """Choose the weight of the dense ranker and its floor.

    See `shared.retrieval.hybrid` and `shared.retrieval.relevance`.

    Args:
        dense: from `dense_scores`.
        lexical: from `lexical_scores`.
        rows: what was shown for each query.
        gains: estimated relevance of it.
        untrained: queries that the encoder was not trained on, (Q,); they alone tell the floor.
    """
    tuned = tune_dense_weight(
        rows,
        gains,
        dense=dense.scores,
        lexical=lexical.scores,
        dense_max=dense.best,
        lexical_max=lexical.best,
    )
    return replace(tuned, dense_floor=dense_floor_of(dense.best[untrained]))


def mixed_gains(
    dense: ShownScores,
    lexical: ShownScores,
    rows: Sequence[NDArray[np.int64]],
    gains: Sequence[NDArray[np.float64]],
    *,
    dense_weight: float,
) -> list[NDArray[np.float64]]:
    """The gains of what each query showed, (R,) each, in the order that shoppers would see."""
    return gains_in_order(
        rows,
        gains,
        dense=dense.scores,
        lexical=lexical.scores,
        dense_max=dense.best,
        lexical_max=lexical.best,
        dense_weight=dense_weight,
    )
