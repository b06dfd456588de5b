"""The dense half of search: a FAISS index asked under filters, and grown while it serves.

An approximate index gets worse under a filter, so a selective one is answered exactly over the rows
it leaves. Whatever proposes candidates, one fixed sum scores them again: scores of all ways of
searching can be compared, and equal ones come in row order.

Ids are row numbers, which FAISS gives by itself to vectors added in order; an `IDMap2` around an
index is looked through. Nothing here changes once made, and FAISS lets go of the interpreter while
it searches, so any number of threads may ask one `VectorIndex` at once.
"""

import math
import threading
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from shared.errors import RetrievalError
from shared.retrieval.index import TIE_TOLERANCE, check_queries, check_unit, distance_of
from shared.similarity import Distance

Found = tuple[NDArray[np.float32], NDArray[np.int64]]  # scores and rows, (Q, k) each
Mask = NDArray[np.bool_]  # (N,)
_SWIG: Any = faiss  # its type hints lack what its classes take by keyword

# Rows that a filter leaves, scored one by one wherever they lie: 3.7 ms for 20,000 of 100,000, so
# about 5 for so many. Timed as `shared.retrieval.plan.EXACT_LIMIT` was, with
# params=faiss.SearchParameters(sel=IDSelectorArray(rows)).
ELIGIBLE_LIMIT = 25_000

_MARGIN = 8  # candidates beyond k, so that rounding does not decide who comes last
_CODED_WIDTH = 4  # times k, candidates by codes that are then scored by whole vectors
_CHUNK_NUMBERS = 4_000_000  # candidate numbers scored again at once, 32 MB in double precision
_GPU_WIDTH = 2048  # the most candidates FAISS returns from a GPU
_BITMAP_SHARE = 4  # a bitmap beats a list of rows once more than 1 / this are eligible

_Kind = Literal["flat", "hnsw", "ivf"]


class _Scope(NamedTuple):
    """Which rows a search is about: how many, and the FAISS selector of them, None for all."""

    num_rows: int
    selector: Any = None


@dataclass(frozen=True)
class Part:
    """One FAISS index and what is known of it.

    Attributes:
        owner: the index as given; the others point into its memory.
        index: the same without an `IDMap` around it.
        kind: how it searches.
        distance: by which it compares.
        storage: what compares the rows one by one; None for IVF, whose lists do.
        matrix: whole vectors, (N, D), if they are kept; else None.
        gpu: a copy of an exact index on a GPU, which answers one thread at a time; or None.
    """

    owner: faiss.Index
    index: Any
    kind: _Kind
    distance: Distance
    storage: Any
    matrix: NDArray[Any] | None
    gpu: tuple[Any, threading.Lock] | None = None

    def vectors_of(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Vectors (R, D) of rows (R,): whole ones if they are kept, else decoded ones."""
        if self.matrix is not None:
            return self.matrix[rows]
        found: NDArray[np.float32] = self.index.reconstruct_batch(rows)
        return found

    def search(self, queries: NDArray[np.float32], k: int, eligible: Mask | None) -> Found:
        """The k best eligible rows a query, (Q, k), padded with -inf and -1."""
        scope = self._scope(eligible)
        found = min(k, scope.num_rows)
        if not found or not len(queries):
            nothing = np.empty((len(queries), 0))
            return _padded(nothing.astype(np.float32), nothing.astype(np.int64), k)
        selective = scope.selector is not None and scope.num_rows <= ELIGIBLE_LIMIT
        coded = self.matrix is not None and not isinstance(self.storage, faiss.IndexFlat)
        width = (_CODED_WIDTH * found if coded else found) + _MARGIN
        exhaustive = self.kind == "flat" or selective
        search = self._search_one if len(queries) == 1 else self._search
        scores, rows = search(queries, found, width, scope, exhaustive=exhaustive)
        return _padded(scores, rows, k)

    def _scope(self, eligible: Mask | None) -> _Scope:
        num_rows = self.index.ntotal
        count = num_rows if eligible is None else int(np.count_nonzero(eligible))
        if eligible is None or count == num_rows:
            return _Scope(num_rows)
        # Only a flat index goes by a list; everything else would look through it for every row.
        listed = count <= ELIGIBLE_LIMIT or self.kind == "flat"
        whole = isinstance(self.storage, faiss.IndexFlat)
        if whole and listed and count * _BITMAP_SHARE < num_rows:
            return _Scope(count, _SWIG.IDSelectorArray(np.flatnonzero(eligible)))
        # A bitmap is asked by row number; external ids beyond it would silently find nothing.
        return _Scope(count, _SWIG.IDSelectorBitmap(np.packbits(eligible, bitorder="little")))

    def _search_one(
        self,
        query: NDArray[np.float32],
        k: int,
        width: int,
        scope: _Scope,
        *,
        exhaustive: bool,
    ) -> Found:
        """What `_search` gives for one query, (1, k) each, in fewer steps.

        FAISS leaves the caches cold, so that each step after it takes microseconds, and a whole
        exact search of 10,000 products only 250 of them.
        """
        width = min(width, scope.num_rows)
        rows = self._propose(query, width, scope, exhaustive=exhaustive)[0]  # (width,)
        if not exhaustive:
            rows = rows[rows >= 0]
            if len(rows) < k:
                return self._search_one(query, k, width, scope, exhaustive=True)
        scores = self.distance.scores(query, self.vectors_of(rows)[None])[0]
        order = np.lexsort((rows, -scores))
        scores, rows = scores[order], rows[order]
        tied = exhaustive and width < scope.num_rows and scores[k - 1] <= scores[-1] + TIE_TOLERANCE
        if tied:
            return self._search_one(query, k, 4 * width, scope, exhaustive=True)
        return scores[None, :k], rows[None, :k]

    def _search(
        self,
        queries: NDArray[np.float32],
        k: int,
        width: int,
        scope: _Scope,
        *,
        exhaustive: bool,
    ) -> Found:
        """The k best of `width` candidates a query, (Q, k) each, in chunks that fit in memory."""
        width = min(width, scope.num_rows)
        step = max(1, _CHUNK_NUMBERS // (width * self.index.d))
        if len(queries) <= step:
            return self._search_chunk(queries, k, width, scope, exhaustive=exhaustive)
        starts = range(0, len(queries), step)
        parts = [
            self._search_chunk(queries[at : at + step], k, width, scope, exhaustive=exhaustive)
            for at in starts
        ]
        scores, rows = zip(*parts, strict=True)
        return np.concatenate(scores), np.concatenate(rows)

    def _search_chunk(
        self,
        queries: NDArray[np.float32],
        k: int,
        width: int,
        scope: _Scope,
        *,
        exhaustive: bool,
    ) -> Found:
        candidates = self._propose(queries, width, scope, exhaustive=exhaustive)  # (C, width)
        scores, candidates = self._ordered(queries, candidates)
        if exhaustive:
            # A row that FAISS left out scores at most the worst candidate, up to rounding.
            tied = scores[:, k - 1] <= scores[:, -1] + TIE_TOLERANCE
            unsure = tied & (width < scope.num_rows)
        else:
            unsure = candidates[:, k - 1] < 0  # a graph can end, lists can be empty, too early
        scores, rows = scores[:, :k], candidates[:, :k]
        if unsure.any():
            wider = 4 * width if exhaustive else width
            scores[unsure], rows[unsure] = self._search(
                queries[unsure], k, wider, scope, exhaustive=True
            )
        return scores, rows

    def _propose(
        self, queries: NDArray[np.float32], width: int, scope: _Scope, *, exhaustive: bool
    ) -> NDArray[np.int64]:
        """Rows (C, width) that FAISS thinks best, -1 where it finds no more."""
        if self.gpu is not None and scope.selector is None and width <= _GPU_WIDTH:
            copy, one_at_a_time = self.gpu
            with one_at_a_time:
                return _proposed(copy, queries, width)
        index = self.storage if exhaustive and self.storage is not None else self.index
        params = self._parameters(width, scope, exhaustive=exhaustive)
        return _proposed(index, queries, width, params)

    def _parameters(self, width: int, scope: _Scope, *, exhaustive: bool) -> Any:
        """What this search asks of FAISS beyond the index's own settings; None for nothing."""
        sel = scope.selector
        if self.kind == "ivf" and exhaustive:
            return _SWIG.SearchParametersIVF(sel=sel, nprobe=self.index.nlist)
        if exhaustive:
            return None if sel is None else _SWIG.SearchParameters(sel=sel)
        # Both spend their effort on rows of either kind, and only the eligible ones count.
        effort = _effort(self.index)
        if self.kind == "ivf":
            effort = math.ceil(effort * self.index.ntotal / scope.num_rows)
            nprobe = min(effort, self.index.nlist)
            return None if sel is None else _SWIG.SearchParametersIVF(sel=sel, nprobe=nprobe)
        if sel is None and effort >= width:
            return None
        # A graph finds no more than its effort: a mix asks for hundreds.
        effort = math.ceil(max(effort, width) * self.index.ntotal / scope.num_rows)
        return _SWIG.SearchParametersHNSW(sel=sel, efSearch=effort)

    def _ordered(self, queries: NDArray[np.float32], candidates: NDArray[np.int64]) -> Found:
        """Candidates (C, W) scored again and in order; places that are -1 come last with -inf."""
        vectors = self.vectors_of(np.maximum(candidates, 0).ravel())
        scores = self.distance.scores(queries, vectors.reshape(*candidates.shape, -1))
        scores[candidates < 0] = -np.inf
        order = np.lexsort((candidates, -scores), axis=-1)
        lines = np.arange(len(queries))[:, None]  # three times as fast as take_along_axis
        return scores[lines, order], candidates[lines, order]


@dataclass(frozen=True)
class VectorIndex:
    """Product vectors, searched by plan; made by `over`, and grown by `with_rows`.

    Rows 0..N-1 are those of the index it was made over, N.. those appended since. Scores are those
    of `shared.similarity`, exact, of query and stored vector. Where only codes are stored (SQ8
    without `matrix`) the stored vector is the decoded one, a few thousandths off; `measure_recall`
    counts what that costs.
    """

    _base: Part
    _appended: Part | None = None

    @classmethod
    def over(cls, index: faiss.Index, *, matrix: NDArray[Any] | None = None) -> "VectorIndex":
        """Search a FAISS index whose ids are row numbers.

        Args:
            index: from `build_planned` or `build_index`, or read back from disk; not copied, and
                not to be changed from now on.
            matrix: the whole vectors (N, D), of any float type and perhaps mapped from disk, for an
                index that stores only codes: candidates are then scored by them.

        Returns:
            An index with nothing appended.

        Raises:
            RetrievalError: another kind of index than exact, HNSW or IVF, another metric, or ids
                that are not row numbers.
        """
        assert matrix is None or matrix.shape == (index.ntotal, index.d), "one whole vector a row"
        return cls(part_of(index, matrix))

    @property
    def num_rows(self) -> int:
        """Rows, appended ones included."""
        return self.num_base_rows + self.num_appended

    @property
    def num_base_rows(self) -> int:
        """Rows of the index it was made over."""
        return int(self._base.index.ntotal)

    @property
    def num_appended(self) -> int:
        """Rows appended since, each of which every search looks at."""
        return 0 if self._appended is None else int(self._appended.index.ntotal)

    @property
    def dim(self) -> int:
        """D, length of every vector."""
        return int(self._base.index.d)

    @property
    def distance(self) -> Distance:
        """By which it compares."""
        return self._base.distance

    @property
    def effort(self) -> int:
        """EfSearch of HNSW, nprobe of IVF, 0 for an exact index."""
        return _effort(self._base.index)

    def search(
        self, queries: NDArray[np.float32], k: int, *, eligible: Mask | None = None
    ) -> Found:
        """The k best eligible rows for each query.

        Args:
            queries: query vectors, (Q, D).
            k: results a query.
            eligible: which rows may be found, (num_rows,); all of them by default.

        Returns:
            Scores (Q, k) from best to worst and their row numbers (Q, k); equal scores in row
            order; -inf and -1 where fewer than k rows are eligible.

        Raises:
            RetrievalError: `queries` has another number of dimensions, or is not finite.
        """
        assert eligible is None or eligible.shape == (self.num_rows,), "one mask entry a row"
        queries = np.ascontiguousarray(queries, np.float32)
        check_queries(self._base.index, queries)
        if self._appended is None:
            return self._base.search(queries, max(k, 0), eligible)
        split = self.num_base_rows
        old, new = (None, None) if eligible is None else (eligible[:split], eligible[split:])
        scores, rows = self._base.search(queries, max(k, 0), old)
        new_scores, new_rows = self._appended.search(queries, max(k, 0), new)
        new_rows[new_rows >= 0] += split
        return _merged((scores, rows), (new_scores, new_rows))

    def with_rows(self, vectors: NDArray[np.float32]) -> "VectorIndex":
        """The same rows and some more; whoever searches this one goes on undisturbed.

        Args:
            vectors: unit product vectors, (R, D); they become rows num_rows, num_rows + 1, ...

        Returns:
            A new index that shares this one's base. It copies what was appended so far, and each
            search compares all of that: build anew before it is a large share of the catalog.

        Raises:
            RetrievalError: not finite, not of unit length, or of another number of dimensions.
        """
        if not len(vectors):
            return self
        check_unit(vectors)
        if vectors.shape[1] != self.dim:
            raise RetrievalError(
                f"product vectors of {vectors.shape[1]} dimensions for an index of {self.dim};"
                " encode them with the encoder that made the index"
            )
        flat = faiss.IndexFlat(self.dim, self._base.index.metric_type)
        if self._appended is not None:
            flat.add(self._appended.vectors_of(np.arange(self.num_appended)))
        flat.add(np.ascontiguousarray(vectors, np.float32))
        return replace(self, _appended=part_of(flat))

    def scores_of(self, query: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores (R,) of some rows (R,) for one query (D,), as `search` would give them."""
        scores = self.distance.scores(query[None], self.vectors_of(rows)[None])  # (1, R)
        return scores.reshape(-1)

    def vectors_of(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The stored vectors of some rows, base or appended.

        Args:
            rows: row numbers, (R,), each in [0, num_rows).

        Returns:
            A copy of their vectors, (R, D); decoded ones where only codes are stored.
        """
        rows = np.asarray(rows, np.int64)
        assert not len(rows) or 0 <= rows.min() <= rows.max() < self.num_rows, "rows of this index"
        found = np.empty((len(rows), self.dim), np.float32)
        new = rows >= self.num_base_rows
        found[~new] = self._base.vectors_of(rows[~new])
        if self._appended is not None:
            found[new] = self._appended.vectors_of(rows[new] - self.num_base_rows)
        return found

    def on_gpu(self) -> "VectorIndex":
        """The same, its exact index copied to the first GPU; itself if that cannot be.

        Searches under a filter stay on the CPU, and so do approximate indexes. This path has not
        been run: the machines it was written on have no GPU.

        Returns:
            An index with equal answers.
        """
        # faiss-cpu has neither the resources nor any GPU.
        if self._base.kind != "flat" or not faiss.get_num_gpus():
            return self
        copy = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, self._base.index)
        # A GPU index keeps its scratch memory to itself, so one thread at a time.
        return replace(self, _base=replace(self._base, gpu=(copy, threading.Lock())))


def part_of(index: faiss.Index, matrix: NDArray[Any] | None = None) -> Part:
    """An index and what it is made of.

    Args:
        index: a FAISS index whose ids are row numbers; perhaps still empty.
        matrix: whole vectors, (N, D), for an index that stores only codes.

    Returns:
        What searches it here; it points into the memory of `index`.

    Raises:
        RetrievalError: another kind of index than exact, HNSW or IVF, another metric, or ids that
            are not row numbers.
    """
    inner: Any = index
    if isinstance(index, faiss.IndexIDMap):  # IDMap2 is one too
        if not np.array_equal(faiss.vector_to_array(index.id_map), np.arange(index.ntotal)):
            raise RetrievalError("the index's ids are not row numbers; build the index again")
        inner = faiss.downcast_index(index.index)
    storage = faiss.downcast_index(inner.storage) if isinstance(inner, faiss.IndexHNSW) else inner
    kind = _kind(inner, storage)
    if kind is None:
        raise RetrievalError(f"{type(inner).__name__} is not an exact, HNSW or IVF index")
    distance = distance_of(inner)
    if kind == "ivf":
        return Part(index, inner, kind, distance, storage=None, matrix=matrix)
    if isinstance(storage, faiss.IndexFlat):
        matrix = _stored_matrix(storage)
    return Part(index, inner, kind, distance, storage, matrix)


def _kind(index: faiss.Index, storage: faiss.Index) -> _Kind | None:
    if isinstance(index, faiss.IndexIVF):
        return "ivf"
    if not isinstance(storage, faiss.IndexFlat | faiss.IndexScalarQuantizer):
        return None
    return "hnsw" if isinstance(index, faiss.IndexHNSW) else "flat"


def _stored_matrix(flat: faiss.IndexFlat) -> NDArray[np.float32]:
    """FAISS's own copy of the vectors, (N, D), not copied again; gone when the index is."""
    if not flat.ntotal:  # then it points nowhere
        return np.empty((0, flat.d), np.float32)
    matrix: NDArray[np.float32] = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d)
    matrix.flags.writeable = False
    return matrix.reshape(flat.ntotal, flat.d)


def _effort(index: faiss.Index) -> int:
    if isinstance(index, faiss.IndexHNSW):
        return int(index.hnsw.efSearch)
    return int(index.nprobe) if isinstance(index, faiss.IndexIVF) else 0


def _proposed(
    index: Any, queries: NDArray[np.float32], width: int, params: Any = None
) -> NDArray[np.int64]:
    """The rows (C, width) that FAISS finds for queries (C, D), which `check_queries` has passed.

    It is what `index.search` comes to once it has looked at its arguments, which takes 10 us.

    One query is searched on one thread. FAISS would split it over all cores, whose threads then
    spin while they wait for each other: on two busy cores a search of 10,000 products took 14 ms
    instead of 0.4, and 25 times the processor time. A service has many queries to use its cores.
    """
    count = len(queries)
    scores = np.empty((count, width), np.float32)
    rows = np.empty((count, width), np.int64)
    pointer = faiss.swig_ptr
    former = faiss.omp_get_max_threads() if count == 1 else 1  # of this thread alone
    if former > 1:
        faiss.omp_set_num_threads(1)
    try:
        index.search_c(count, pointer(queries), width, pointer(scores), pointer(rows), params)
    finally:
        if former > 1:
            faiss.omp_set_num_threads(former)
    return rows


def _padded(scores: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Found:
    """Answers (Q, K) as (Q, k), k >= K."""
    missing = k - rows.shape[1]
    if missing:
        sides = ((0, 0), (0, missing))
        scores = np.pad(scores, sides, constant_values=-np.inf)
        rows = np.pad(rows, sides, constant_values=-1)
    return scores, rows


def _merged(one: Found, other: Found) -> Found:
    """The best of two answers, each (Q, k), as one."""
    k = one[0].shape[1]
    scores = np.concatenate([one[0], other[0]], axis=1)
    rows = np.concatenate([one[1], other[1]], axis=1)
    order = np.lexsort((rows, -scores), axis=-1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
