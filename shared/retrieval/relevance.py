"""Which candidates answer a query at all.

A ranker always finds something nearest. Without a limit a query of no meaning finds three hundred
products, and the cheapest of them lead a list that is sorted by price. So a candidate must reach
a bar in one of the two rankings, measured by the query's own best:

    cosine >= max(floor, 0.5 best cosine)   or   bm25 >= 0.3 best bm25

The floor is the region's own: all but one in a hundred of its shoppers' queries that led to a
click have a better best product. A query below it is about nothing that is sold here; only words
that it shares with a product count then.

On development queries over a real electronics catalog (four regions, 244 to 267 queries each, after
two rounds) the bar keeps 0.92 to 0.98 of what is relevant among a query's candidates, and 132 to
157 candidates of some 360.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

DENSE_SHARE: Final = 0.5
LEXICAL_SHARE: Final = 0.3
FLOOR_QUANTILE: Final = 0.01
NO_FLOOR: Final = -1.0  # the least a cosine can be


class Bar(NamedTuple):
    """What a row must reach in one of the two rankings.

    Attributes:
        dense: least cosine; infinite where meaning does not count.
        lexical: least BM25; a row that shares no word never reaches it.
    """

    dense: float
    lexical: float

    def reached(
        self, dense: NDArray[np.float32], lexical: NDArray[np.float32]
    ) -> NDArray[np.bool_]:
        """Which rows reach it.

        Args:
            dense: cosines, (C,).
            lexical: BM25 scores, (C,); 0 where no word is shared.
        """
        meant = dense.astype(np.float64) >= self.dense
        said = (lexical > 0) & (lexical.astype(np.float64) >= self.lexical)
        return meant | said


def bar_of(best_dense: float, best_lexical: float, *, dense_floor: float) -> Bar:
    """The bar of one query.

    Args:
        best_dense: largest cosine of the query over everything that may be shown, filters apart;
            where it is negative nothing is near.
        best_lexical: likewise of BM25.
        dense_floor: from `dense_floor_of`, or `NO_FLOOR`.
    """
    return Bar(max(dense_floor, DENSE_SHARE * best_dense), LEXICAL_SHARE * best_lexical)


def dense_floor_of(best: NDArray[np.floating[Any]]) -> float:
    """The least cosine that the best product of a real query has, but for one query in a hundred.

    Args:
        best: largest cosine of each query that led to a click, (Q,), Q >= 1.
    """
    return float(np.clip(np.quantile(best.astype(np.float64), FLOOR_QUANTILE), NO_FLOOR, 1))
