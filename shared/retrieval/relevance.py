"""Which candidates answer a query at all.

A ranker always finds something nearest. Without a limit a query of no meaning finds three hundred
products, and the cheapest of them lead a list that is sorted by price. So a candidate must be near
in meaning, or share most of the words, or some of each, measured by the query's own best:

    cosine >= 0.5 best cosine, where best cosine >= floor
    or bm25 >= 0.7 best bm25
    or bm25 >= 0.3 best bm25 and cosine >= 0.35 best cosine

The floor is the region's own, from its shoppers' queries that led to a click and that the encoder
was not trained on, since of those it was trained on it is surer than of any other: all but one in a
hundred will have a better best product. A query below it is about nothing that is sold here; only
words that it shares with a product count then. It judges a query by its best product, never a
product: what comes after the best may well lie below it.

The shares were chosen on development queries (some that were asked in training) over a real
electronics catalog, so that hardly any relevant candidate is lost; nothing tunes them per region.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

DENSE_ALONE: Final = 0.5
LEXICAL_ALONE: Final = 0.7
DENSE_TOGETHER: Final = 0.35
LEXICAL_TOGETHER: Final = 0.3
MIN_FLOOR_QUERIES: Final = 5  # below this, a tolerance limit of nearly any distribution is no limit
NO_FLOOR: Final = -1.0  # the least a cosine can be
_Z_SHARE, _Z_CONFIDENCE = 2.326348, 1.644854  # quantiles of the normal distribution: 0.99 and 0.95

Scores = NDArray[np.floating[Any]]


class Bar(NamedTuple):
    """What a row must reach: one of the first two, or both of the others.

    Attributes:
        dense: least cosine of a row that need share no word.
        lexical: least BM25 of a row of any meaning.
        dense_together: least cosine of a row that shares some words.
        lexical_together: least BM25 of a row that has some of the meaning.
    """

    dense: float
    lexical: float
    dense_together: float
    lexical_together: float

    def reached(self, dense: Scores, lexical: Scores) -> NDArray[np.bool_]:
        """Which rows reach it.

        Args:
            dense: cosines, (C,).
            lexical: BM25 scores, (C,); 0 where no word is shared, which reaches nothing.
        """
        cosine, bm25 = dense.astype(np.float64), lexical.astype(np.float64)
        together = (cosine >= self.dense_together) & (bm25 >= self.lexical_together)
        return (cosine >= self.dense) | ((bm25 > 0) & (together | (bm25 >= self.lexical)))

    def by_words(self) -> "Bar":
        """The same where meaning is not asked: some of the words are enough."""
        return self._replace(dense=np.inf, dense_together=-np.inf)

    def by_most_words(self) -> "Bar":
        """The same for a text that is a code: likeness to it means nothing, nor does a part."""
        return self._replace(dense=np.inf, dense_together=np.inf)


def bar_of(best_dense: float, best_lexical: float, *, dense_floor: float) -> Bar:
    """The bar of one query.

    Args:
        best_dense: largest cosine of the query over everything that may be shown, filters apart;
            where it is negative nothing is near.
        best_lexical: likewise of BM25.
        dense_floor: from `dense_floor_of`, or `NO_FLOOR`.
    """
    return Bar(
        dense=DENSE_ALONE * best_dense if best_dense >= dense_floor else np.inf,
        lexical=LEXICAL_ALONE * best_lexical,
        dense_together=DENSE_TOGETHER * best_dense,
        lexical_together=LEXICAL_TOGETHER * best_lexical,
    )


def dense_floor_of(best: Scores) -> float:
    """The least cosine of the best product that a new query about this catalog will have.

    Few such queries are known, and their least is not the least there will be. So this is the lower
    tolerance limit of a normal distribution: with confidence 95 %, 99 % of all lie above

        mean - k deviation,   k = (z + sqrt(z^2 - a b)) / a,
        a = 1 - c^2 / (2 (Q - 1)),   b = z^2 - c^2 / Q

    with the normal quantiles z of 99 % and c of 95 % (Natrella 1963, Experimental Statistics,
    section 2-5; k is 3.3 at 20 queries and tends to z).

    Args:
        best: largest cosine of each query that led to a click and was not trained on, (Q,).

    Returns:
        The floor; `NO_FLOOR` of fewer than `MIN_FLOOR_QUERIES`.
    """
    count = len(best)
    if count < MIN_FLOOR_QUERIES:
        return NO_FLOOR
    a = 1 - _Z_CONFIDENCE**2 / (2 * (count - 1))
    b = _Z_SHARE**2 - _Z_CONFIDENCE**2 / count
    factor = (_Z_SHARE + np.sqrt(_Z_SHARE**2 - a * b)) / a
    values = best.astype(np.float64)
    return float(np.clip(values.mean() - factor * values.std(ddof=1), NO_FLOOR, 1))
