"""How far two indexes of one catalog disagree on which products are near each other.

A release moves every vector, so vectors of two releases cannot be compared; neighbourhoods can.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.errors import RetrievalError
from shared.retrieval.manifest import OpenIndex
from shared.retrieval.recall import chosen_rows

SAMPLE: Final = 512  # products that are asked for their neighbours
_SEED: Final = 0


@dataclass(frozen=True)
class Drift:
    """What became of products' nearest neighbours.

    Attributes:
        k: neighbours looked at.
        num_products: asked, of those that both indexes have.
        overlap: mean share of a product's k neighbours that are the same, 0..1.
        unchanged: share of the products that keep all k.
    """

    k: int
    num_products: int
    overlap: float
    unchanged: float


def neighbour_drift(
    before: OpenIndex, after: OpenIndex, *, k: int = 10, sample: int = SAMPLE
) -> Drift:
    """Compare the neighbourhoods of a sample of products, among products that both indexes have.

    Neighbours are those that a search of each index finds, so of two approximate indexes a little
    of the drift is theirs.

    Args:
        before: an index.
        after: another one.
        k: neighbours, >= 1; fewer where there are not so many other products.
        sample: products at most.

    Raises:
        RetrievalError: they have too few products in common.
    """
    common, *rows = np.intersect1d(before.ids, after.ids, return_indices=True)
    if len(common) < 2:
        raise RetrievalError(
            f"{after.folder}: fewer than two products in common with {before.folder.name}; name"
            " two releases of one catalog"
        )
    k = min(k, len(common) - 1)
    asked = chosen_rows(len(common), min(sample, len(common)), _SEED)
    near = [
        _neighbours(index, of.astype(np.int64), asked, k)
        for index, of in zip((before, after), rows, strict=True)
    ]
    kept = (near[0][:, :, None] == near[1][:, None, :]).any(axis=2).sum(axis=1)  # (S,)
    return Drift(k, len(asked), float(kept.mean() / k), float((kept == k).mean()))


def _neighbours(
    index: OpenIndex, rows: NDArray[np.int64], asked: NDArray[np.int64], k: int
) -> NDArray[np.int64]:
    """The k nearest other products of some, (S, k), numbered as in `rows`.

    Args:
        index: that finds them.
        rows: its rows of the products that count, (C,).
        asked: which of those are asked, (S,).
        k: neighbours.
    """
    vectors = index.vectors()
    number = np.full(vectors.num_rows, -1, np.int64)
    number[rows] = np.arange(len(rows))
    found = vectors.search(vectors.vectors_of(rows[asked]), k + 1, eligible=number >= 0)[1]
    near = np.where(found >= 0, number[found], -1)  # (S, k + 1)
    itself = near == asked[:, None]
    itself[~itself.any(axis=1), -1] = True  # copies of a product may come before it
    others: NDArray[np.int64] = near[~itself].reshape(len(asked), k)
    return others
