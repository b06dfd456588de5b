"""How alike a query and a product are: one interface for training, evaluation and search.

A base names one of `DISTANCES`, like its fusion. Of unit vectors q and p of V numbers:

    distance    similarity, of losses         score, of searches            FAISS
    cosine      q . p                         q . p                         inner product
    euclidean   -|q - p|                      1 - |q - p|^2 / 2             L2
    manhattan   -|q - p|_1 sqrt(pi / 2 V)     1 - |q - p|_1^2 pi / 4 V      L1

Losses divide a similarity by a temperature, and one temperature should mean about the same: with
cosine c, |q - p| = sqrt(2 - 2 c), whose slope in c is 1 at 60 degrees; and |x|_1 is about
sqrt(2 V / pi) |x| where the numbers of x are about normal.

A score falls as the distance grows, so it gives the distance's own order, and it is on the scale of
a cosine: 1 for the same vector, about 0 for what has nothing in common. So whatever is done with
cosines further on (mixing with words, what is too far to answer) is done with it. For unit vectors
the Euclidean score is the cosine, and so is its order; only training differs. Rounding near 0 is
harmless in the square of a distance and not in the distance.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from shared.config import COSINE, DISTANCES, EUCLIDEAN, MANHATTAN

if TYPE_CHECKING:  # a search by words needs no torch, which takes seconds to import
    from torch import Tensor

Vectors = NDArray[Any]  # of any float type
Scores = NDArray[np.float32]
_LEAST: Final = -1.0  # a cosine's; an L1 distance of opposite vectors would go below


@dataclass(frozen=True)
class Distance:
    """One way of comparing.

    Attributes:
        name: one of `shared.config.DISTANCES`.
        metric: what INDEX.json calls it.
        faiss_metric: what FAISS calls it.
        rescore: queries (Q, V) and candidates of each (Q, W, V), both float64 -> scores (Q, W).
        pairwise: queries (Q, V) and products (N, V), both float32 -> scores (Q, N).
        similarity: queries (U, V) and products (P, V) -> similarities of losses, (U, P).
    """

    name: str
    metric: str
    faiss_metric: int
    rescore: Callable[[Vectors, Vectors], Vectors]
    pairwise: Callable[[Scores, Scores], Scores]
    similarity: "Callable[[Tensor, Tensor], Tensor]"

    def scores(self, queries: Vectors, vectors: Vectors) -> Scores:
        """Scores that depend on nothing but the two vectors: not on the batch, nor the place in it.

        Args:
            queries: query vectors, (Q, V).
            vectors: candidates of each query, (Q, W, V).

        Returns:
            Scores summed in double precision and rounded once, (Q, W).
        """
        exact = self.rescore(queries.astype(np.float64), vectors.astype(np.float64))
        scores: Scores = exact.astype(np.float32)
        return scores


def _inner_products(queries: Vectors, vectors: Vectors) -> Vectors:
    found: Vectors = np.einsum("qd,qwd->qw", queries, vectors)
    return found


def _rescored_l2(queries: Vectors, vectors: Vectors) -> Vectors:
    apart = queries[:, None] - vectors  # (Q, W, V)
    return _from_l2(np.einsum("qwd,qwd->qw", apart, apart))


def _rescored_l1(queries: Vectors, vectors: Vectors) -> Vectors:
    apart: Vectors = np.abs(queries[:, None] - vectors).sum(axis=2)
    return _from_l1(apart, queries.shape[1])


def _pairwise_cosine(queries: Scores, products: Scores) -> Scores:
    found: Scores = queries @ products.T
    return found


def _pairwise_l2(queries: Scores, products: Scores) -> Scores:
    return _from_l2(_all_pairs(queries, products, faiss.METRIC_L2))


def _pairwise_l1(queries: Scores, products: Scores) -> Scores:
    return _from_l1(_all_pairs(queries, products, faiss.METRIC_L1), queries.shape[1])


def _all_pairs(queries: Scores, products: Scores, metric: int) -> Scores:
    """FAISS's distances, (Q, N); of L2 they are squares."""
    if not len(queries) or not len(products):
        return np.empty((len(queries), len(products)), np.float32)
    one, other = np.ascontiguousarray(queries), np.ascontiguousarray(products)
    return faiss.pairwise_distances(one, other, metric=metric)


def _from_l2(squares: Vectors) -> Vectors:
    return 1 - squares / 2


def _from_l1(distances: Vectors, dim: int) -> Vectors:
    return np.maximum(1 - distances**2 * (math.pi / (4 * dim)), _LEAST)


def _similarity_l2(query: "Tensor", product: "Tensor") -> "Tensor":
    return -_apart(query, product, norm=2.0)


def _similarity_l1(query: "Tensor", product: "Tensor") -> "Tensor":
    return -_apart(query, product, norm=1.0) * math.sqrt(math.pi / (2 * query.shape[1]))


def _apart(query: "Tensor", product: "Tensor", norm: float) -> "Tensor":
    """Distances (U, P); of equal vectors 0, with gradient 0."""
    from torch import cdist

    # By matrix products it would be off by 1e-3 near 0, and its gradient by more.
    return cdist(query, product, p=norm, compute_mode="donot_use_mm_for_euclid_dist")


BY_NAME: Final[Mapping[str, Distance]] = {
    distance.name: distance
    for distance in (
        Distance(
            COSINE,
            "inner_product",
            faiss.METRIC_INNER_PRODUCT,
            _inner_products,
            _pairwise_cosine,
            lambda query, product: query @ product.T,
        ),
        Distance(EUCLIDEAN, "l2", faiss.METRIC_L2, _rescored_l2, _pairwise_l2, _similarity_l2),
        Distance(MANHATTAN, "l1", faiss.METRIC_L1, _rescored_l1, _pairwise_l1, _similarity_l1),
    )
}
assert tuple(BY_NAME) == DISTANCES, "the names that options take"
BY_FAISS_METRIC: Final[Mapping[int, Distance]] = {
    distance.faiss_metric: distance for distance in BY_NAME.values()
}
