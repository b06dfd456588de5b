"""Exact nearest products: FAISS for speed, one fixed order for ties.

FAISS alone is not enough to reproduce a result: it scores a small batch of queries with other code
than a large one (the last bits differ), and among equal scores it keeps whichever it likes. So it
proposes candidates here, and a fixed sum in double precision puts them in order.
"""

from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from shared.config import COSINE
from shared.errors import RetrievalError
from shared.similarity import BY_FAISS_METRIC, BY_NAME, Distance

FACTORY: Final = "IDMap2,Flat"
_UNIT_TOLERANCE = 1e-3  # fp16 activations leave norms within 5e-4 of 1
# Far above the rounding of a float32 dot product of unit vectors (about 1e-6 at 4,096 dimensions),
# far below any difference in score that means something.
TIE_TOLERANCE: Final = 1e-5
_CHUNK_NUMBERS = 4_000_000  # candidate numbers re-scored at once, 32 MB in double precision


def build_index(vectors: NDArray[np.float32], *, distance: str = COSINE) -> faiss.Index:
    """Exact index over unit vectors; ids are row numbers.

    Args:
        vectors: unit product vectors, (N, D), N >= 1.
        distance: one of `shared.config.DISTANCES`; the index knows it from now on.

    Returns:
        A FAISS `IDMap2,Flat` index that holds a copy of them.

    Raises:
        RetrievalError: not two-dimensional, empty, not finite, or not of unit length.
    """
    check_unit(vectors)
    metric = BY_NAME[distance].faiss_metric
    index = faiss.index_factory(vectors.shape[1], FACTORY, metric)
    rows = np.arange(len(vectors), dtype=np.int64)
    index.add_with_ids(np.ascontiguousarray(vectors, np.float32), rows)
    return index


def search_index(
    index: faiss.Index, queries: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best rows for each query; the same whatever the batch, equal scores in row order.

    Args:
        index: from `build_index`, or read back from disk; N rows of D numbers.
        queries: query vectors, (Q, D).
        k: how many rows a query; N if that is less.

    Returns:
        Scores (Q, min(k, N)) from best to worst and their row numbers, of the same shape.

    Raises:
        RetrievalError: `queries` has another number of dimensions than the index, or is not finite.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    check_queries(index, queries)
    k = max(0, min(k, index.ntotal))
    if not k or not len(queries):
        return np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    return _search(index, queries, k, min(2 * k + 16, index.ntotal))


def vectors_of(index: faiss.Index, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """The stored vectors of some rows.

    Args:
        index: from `build_index`, or read back from disk.
        rows: row numbers, (R,).

    Returns:
        Their vectors, (R, D).
    """
    found: NDArray[np.float32] = index.reconstruct_batch(np.ascontiguousarray(rows, np.int64))
    return found


def check_unit(vectors: NDArray[np.float32]) -> None:
    """Refuse vectors whose inner products would be no cosines.

    Args:
        vectors: product vectors, (N, D).

    Raises:
        RetrievalError: not two-dimensional, empty, not finite, or not of unit length.
    """
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise RetrievalError(
            f"cannot index vectors of shape {vectors.shape}: expected (products, dimensions), at"
            " least one product; look at the catalog"
        )
    norms = np.linalg.norm(vectors, axis=1)
    wrong = np.flatnonzero(~(np.abs(norms - 1) <= _UNIT_TOLERANCE))  # NaN is wrong too
    if len(wrong):
        raise RetrievalError(
            f"{len(wrong)} of {len(vectors)} product vectors are not of unit length, first row"
            f" {wrong[0]} with length {norms[wrong[0]]:.4g}; check the release and the base"
        )


def check_queries(index: faiss.Index, queries: NDArray[np.float32]) -> None:
    """Refuse queries that an index cannot answer.

    Args:
        index: to be searched; D dimensions.
        queries: query vectors, (Q, D).

    Raises:
        RetrievalError: `queries` has another number of dimensions than the index, or is not finite.
    """
    if queries.ndim != 2 or queries.shape[1] != index.d:
        raise RetrievalError(
            f"queries of shape {queries.shape} for an index of {index.d} dimensions; search with"
            " the encoder that made the index"
        )
    if not np.isfinite(queries).all():
        raise RetrievalError("a query vector is not finite; check the release and the base")


def distance_of(index: Any) -> Distance:
    """By what an index compares vectors.

    Raises:
        RetrievalError: by something that no base can name.
    """
    if index.metric_type not in BY_FAISS_METRIC:
        raise RetrievalError(
            f"an index of FAISS metric {index.metric_type} is none of {', '.join(BY_NAME)}"
        )
    return BY_FAISS_METRIC[index.metric_type]


def _search(
    index: faiss.Index, queries: NDArray[np.float32], k: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best of `width` candidates a query, (Q, k) each, in chunks that fit in memory."""
    step = max(1, _CHUNK_NUMBERS // (width * index.d))
    starts = range(0, len(queries), step)
    parts = [_search_chunk(index, queries[start : start + step], k, width) for start in starts]
    scores, rows = zip(*parts, strict=True)
    return np.concatenate(scores), np.concatenate(rows)


def _search_chunk(
    index: faiss.Index, queries: NDArray[np.float32], k: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    _, candidates = index.search(queries, width)  # (C, width)
    vectors = vectors_of(index, candidates.ravel()).reshape(*candidates.shape, index.d)
    exact = distance_of(index).scores(queries, vectors)  # (C, width)
    order = np.lexsort((candidates, -exact), axis=-1)
    exact = np.take_along_axis(exact, order, axis=1)
    scores, rows = exact[:, :k].copy(), np.take_along_axis(candidates, order[:, :k], axis=1)
    # A row that FAISS left out scores at most the worst candidate, up to rounding.
    open_ended = (width < index.ntotal) & (exact[:, k - 1] <= exact[:, -1] + TIE_TOLERANCE)
    if open_ended.any():
        wider = _search(index, queries[open_ended], k, min(4 * width, index.ntotal))
        scores[open_ended], rows[open_ended] = wider
    return scores, rows
