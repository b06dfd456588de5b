"""Which FAISS index suits a catalog, and building it.

A small catalog is searched exactly; a larger one by a graph (HNSW) or by lists of coded vectors
(IVF), which search no harder than the recall asked for takes (`shared.retrieval.recall`).
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import faiss
import numpy as np
from numpy.typing import NDArray

from shared.config import COSINE, MANHATTAN
from shared.errors import RetrievalError
from shared.retrieval.index import FACTORY, check_unit
from shared.retrieval.recall import choose_effort, chosen_rows
from shared.retrieval.vectors import VectorIndex, part_of
from shared.similarity import BY_NAME

# One exact query at 384 dimensions, one thread of a two-core machine: 0.25 ms over 10,000 vectors,
# 2.7 over 50,000, 6.6 over 100,000, so about 5 here. Timed at each size, with OMP_NUM_THREADS=1:
#   index = faiss.IndexFlatIP(384); index.add(vectors)
#   min(timeit.repeat(lambda: index.search(query, 10), number=5, repeat=15)) / 5
# L2 and L1 take as long (IndexFlat(384, METRIC_L1)): all three read every number once.
EXACT_LIMIT: Final = 75_000
# A graph keeps whole vectors and its links, 1.8 kB a product at 384 dimensions, and is built at
# about a minute per 100,000; lists of 8-bit codes take a quarter of the memory and less time.
HNSW_LIMIT: Final = 300_000

_EF_CONSTRUCTION = 80  # twice FAISS's default: more links are right, for more time once
_MOST_LINKS = 256  # a vector of an HNSW graph
_TRAINING_POINTS = 64  # a list; FAISS asks for at least 39


def plan_factory(num_vectors: int, dim: int, *, distance: str = COSINE) -> str:
    """Which FAISS index suits a catalog.

    Args:
        num_vectors: N, products.
        dim: D, length of their vectors; a query's cost is N times D.
        distance: by which they are compared.

    Returns:
        A string for `faiss.index_factory`: exact up to `EXACT_LIMIT` vectors of 384 dimensions
        (fewer if they are longer, more if shorter), then HNSW, then IVF with 8-bit codes, or, by
        Manhattan distance, which FAISS has no codes for, with whole vectors.
    """
    if num_vectors * dim <= EXACT_LIMIT * 384:
        return FACTORY
    if num_vectors <= HNSW_LIMIT:
        return "HNSW32"
    # About 4 sqrt(N) lists (the FAISS guideline), as a power of two: 4,096 at a million.
    codes = "Flat" if distance == MANHATTAN else "SQ8"
    return f"IVF{2 ** round(math.log2(4 * math.sqrt(num_vectors)))},{codes}"


def build_planned(
    vectors: NDArray[np.float32],
    *,
    factory: str | None = None,
    seed: int,
    queries: NDArray[np.float32] | None = None,
    keeps_vectors: bool = False,
    num_threads: int = 1,
    distance: str = COSINE,
) -> faiss.Index:
    """Index unit vectors by plan, set to search just hard enough.

    `choose_effort` sets the effort (efSearch, nprobe), which is part of the index and of its file;
    `measure_recall` says what it gives.

    Args:
        vectors: unit product vectors, (N, D), N >= 1.
        factory: what the operator wants instead of the plan, for `faiss.index_factory`: exact,
            HNSW or IVF.
        seed: of the training sample and of the queries that are made up.
        queries: real query vectors (Q, D) to choose the effort by; by default perturbed products.
        keeps_vectors: whether an index of codes will be searched with these vectors beside it, as
            the `matrix` of `VectorIndex.over`; the effort is chosen for that.
        num_threads: of FAISS meanwhile. With one, equal vectors give an equal index and another
            core is left to searches; with more, a graph differs a little from build to build.
        distance: by which they are compared; the index knows it from now on.

    Returns:
        The index; its ids are row numbers. `VectorIndex.over` searches it.

    Raises:
        RetrievalError: vectors that are not of unit length, or a factory string that FAISS or this
            project cannot use.
    """
    check_unit(vectors)
    vectors = np.ascontiguousarray(vectors, np.float32)
    planned = plan_factory(*vectors.shape, distance=distance)
    chosen = planned if factory is None else factory
    half = np.arange(len(vectors)) < len(vectors) / 2
    with _faiss_threads(num_threads):
        try:
            index = _empty_index(chosen, *vectors.shape, distance=distance)
            _fill(index, vectors, seed)
            VectorIndex.over(index).search(vectors[:1], 1, eligible=half)
            matrix = vectors if keeps_vectors else None
            choose_effort(index, vectors, queries=queries, matrix=matrix, seed=seed)
        except (RuntimeError, RetrievalError) as error:  # FAISS's own text is several lines
            reason = f" ({error})" if isinstance(error, RetrievalError) else ""
            raise RetrievalError(
                f"index factory {chosen!r} cannot index {len(vectors)} vectors of"
                f" {vectors.shape[1]} dimensions{reason}; take an exact, HNSW or IVF one for them,"
                " or leave serve.index_factory out"
            ) from None
    return index


def _empty_index(factory: str, num_vectors: int, dim: int, *, distance: str) -> faiss.Index:
    """An index to be filled; sizes that FAISS takes and then crashes with are refused."""
    lists = [int(number) for number in re.findall(r"IVF([0-9]+)", factory)]
    if any(not 1 <= number <= num_vectors for number in lists):
        raise RetrievalError(f"{lists[0]} lists")
    if distance == MANHATTAN and "SQ" in factory:  # a graph over codes would end the process
        raise RetrievalError(f"FAISS has no codes for {distance} distance")
    index = faiss.index_factory(dim, factory, BY_NAME[distance].faiss_metric)
    part = part_of(index)
    if part.kind == "hnsw" and not 2 <= part.index.hnsw.nb_neighbors(1) <= _MOST_LINKS:
        raise RetrievalError(f"a graph needs 2 to {_MOST_LINKS} links a vector")
    return index


def _fill(index: faiss.Index, vectors: NDArray[np.float32], seed: int) -> None:
    part = part_of(index)
    if part.kind == "hnsw":
        part.index.hnsw.efConstruction = _EF_CONSTRUCTION
    if not index.is_trained:
        _train(index, vectors, seed)
    if isinstance(index, faiss.IndexIDMap):
        index.add_with_ids(vectors, np.arange(len(vectors), dtype=np.int64))
    else:
        index.add(vectors)
    if part.kind == "ivf":
        part.index.make_direct_map()  # without it no row gives its vector back


def _train(index: faiss.Index, vectors: NDArray[np.float32], seed: int) -> None:
    """Codes learn from all vectors, lists from a sample of them."""
    part = part_of(index)
    sample = vectors
    if part.kind == "ivf":
        part.index.cp.seed = seed
        part.index.cp.min_points_per_centroid = 1  # else it complains on the standard error
        size = min(len(vectors), _TRAINING_POINTS * part.index.nlist)
        sample = vectors[chosen_rows(len(vectors), size, seed)]
    index.train(sample)


@contextmanager
def _faiss_threads(count: int) -> Iterator[None]:
    """How many threads FAISS uses for what this thread asks of it."""
    former = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(former)
