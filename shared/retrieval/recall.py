"""How much an index finds of what an exact search finds, and how hard it must search for enough.

The recall of an approximate index depends on the vectors, so it is measured, never assumed: to
choose the effort of an index when it is built, and to say in INDEX.json what that gives.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from shared.durable import Record
from shared.retrieval.index import TIE_TOLERANCE
from shared.retrieval.vectors import Mask, VectorIndex, part_of
from shared.similarity import Distance

RECALL_TARGET: Final = 0.98
SELECTIVITIES: Final = (0.5, 0.05, 0.005)  # shares of the rows that a filter leaves

_EF_SEARCH_LADDER = (16, 32, 64, 128, 256, 512)
_NPROBE_LADDER = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SAMPLE = 256  # queries by which recall is measured
_NOISE = 0.5  # length of what is added to a product's vector to make a query of it (cosine 0.89)
_BLOCK_ROWS = 65_536  # rows compared at once by the reference of a recall


class RecallReport(Record):
    """What an index finds of what an exact search over the whole vectors finds; for INDEX.json.

    Attributes:
        k: results a query.
        num_queries: by how many queries it was measured.
        effort: what was searched with: efSearch of HNSW, nprobe of IVF, 0 for an exact index.
        unfiltered: mean recall@k.
        filtered: mean recall@k under random filters, by the share of rows each leaves ("0.05").
            Filters that go with the query (one category) can be harder.
        target: recall that was asked for.
        reaches_target: whether each of these recalls does; if not, the effort is the largest tried.
    """

    k: int = Field(ge=1)
    num_queries: int = Field(ge=1)
    effort: int = Field(ge=0)
    unfiltered: float = Field(ge=0, le=1)
    filtered: dict[str, float]
    target: float = RECALL_TARGET
    reaches_target: bool


def measure_recall(
    index: VectorIndex,
    vectors: NDArray[Any],
    *,
    queries: NDArray[np.float32] | None = None,
    k: int = 10,
    selectivities: Sequence[float] = SELECTIVITIES,
    seed: int,
) -> RecallReport:
    """Compare an index with an exact search over the whole vectors.

    A row found counts if it scores as much as the k-th of the exact search, so copies of a product
    may stand in for each other.

    Args:
        index: to be measured.
        vectors: the unit vectors its rows were made of, (num_rows, D).
        queries: real query vectors (Q, D); by default a sample of `vectors`, perturbed.
        k: results a query.
        selectivities: for each a random filter that leaves this share of the rows.
        seed: of the sample, the perturbation and the filters.

    Returns:
        Mean recall@k, unfiltered and under each filter.
    """
    assert vectors.shape == (index.num_rows, index.dim), "the vectors of this index"
    queries = _sample_queries(vectors, seed) if queries is None else queries
    trials = _trials(vectors, queries, k, selectivities, seed, index.distance)
    recalls = [_recall(index, vectors, queries, k, trial) for trial in trials]
    return RecallReport(
        k=k,
        num_queries=len(queries),
        effort=index.effort,
        unfiltered=recalls[0],
        filtered=dict(zip(map(str, selectivities), recalls[1:], strict=True)),
        reaches_target=min(recalls) >= RECALL_TARGET,
    )


def choose_effort(
    index: faiss.Index,
    vectors: NDArray[np.float32],
    *,
    queries: NDArray[np.float32] | None = None,
    matrix: NDArray[Any] | None = None,
    seed: int,
) -> None:
    """Set an index to search just hard enough.

    The effort (efSearch, nprobe) becomes the smallest of a ladder at which recall@10 reaches
    `RECALL_TARGET`, unfiltered and under a filter that leaves half the rows; the largest if none
    does. An exact index has none.

    Args:
        index: as for `VectorIndex.over`; its effort is changed.
        vectors: the unit vectors its rows were made of, (N, D).
        queries: real query vectors (Q, D); by default a sample of `vectors`, perturbed.
        matrix: as for `VectorIndex.over`.
        seed: of the sample, the perturbation and the filter.

    Raises:
        RetrievalError: as `VectorIndex.over`.
    """
    part = part_of(index)
    if part.kind == "flat":
        return
    # Another sample than `measure_recall` takes with this seed: it shall not flatter the choice.
    queries = _sample_queries(vectors, seed + 1) if queries is None else queries
    trials = _trials(vectors, queries, 10, SELECTIVITIES[:1], seed + 1, part.distance)
    searched = VectorIndex.over(index, matrix=matrix)
    for effort in _EF_SEARCH_LADDER if part.kind == "hnsw" else _NPROBE_LADDER:
        if part.kind == "hnsw":
            part.index.hnsw.efSearch = effort
        else:
            part.index.nprobe = min(effort, part.index.nlist)
        recalls = (_recall(searched, vectors, queries, 10, trial) for trial in trials)
        if all(recall >= RECALL_TARGET for recall in recalls):
            return


def chosen_rows(num_rows: int, count: int, seed: int) -> NDArray[np.int64]:
    """A random sample of rows.

    Args:
        num_rows: N, rows to choose from.
        count: R, how many are chosen, at most N.
        seed: equal ones choose equal rows.

    Returns:
        Different row numbers in order, (R,).
    """
    chosen = np.random.default_rng(seed).choice(num_rows, count, replace=False)
    return np.sort(chosen).astype(np.int64)


def _sample_queries(vectors: NDArray[Any], seed: int) -> NDArray[np.float32]:
    """Unit vectors near some of the products, (Q, D), as queries that nobody asked."""
    rows = chosen_rows(len(vectors), min(len(vectors), _SAMPLE), seed)
    noise = np.random.default_rng(seed).normal(size=(len(rows), vectors.shape[1]))
    noise *= _NOISE / math.sqrt(vectors.shape[1])
    queries = vectors[rows] + noise
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    return np.asarray(queries, np.float32)


@dataclass(frozen=True)
class _Trial:
    """One filter, and what an exact search under it scores.

    Attributes:
        eligible: rows that may be found, or None for all.
        num_found: how many an exact search finds a query, at most k.
        floors: score of the last of them, (Q,).
    """

    eligible: Mask | None
    num_found: int
    floors: NDArray[np.float32]


def _trials(
    vectors: NDArray[Any],
    queries: NDArray[np.float32],
    k: int,
    selectivities: Sequence[float],
    seed: int,
    distance: Distance,
) -> list[_Trial]:
    """Exact searches: one without a filter, then one for each selectivity."""
    masks: list[Mask | None] = [None]
    for number, share in enumerate(selectivities):
        mask = np.zeros(len(vectors), np.bool_)
        mask[chosen_rows(len(vectors), max(1, round(share * len(vectors))), seed + number)] = True
        masks.append(mask)
    return [_trial(vectors, queries, k, mask, distance) for mask in masks]


def _trial(
    vectors: NDArray[Any],
    queries: NDArray[np.float32],
    k: int,
    eligible: Mask | None,
    distance: Distance,
) -> _Trial:
    count = min(k, len(vectors) if eligible is None else int(np.count_nonzero(eligible)))
    return _Trial(eligible, count, _floors(vectors, queries, count, eligible, distance))


def _floors(
    vectors: NDArray[Any],
    queries: NDArray[np.float32],
    k: int,
    eligible: Mask | None,
    distance: Distance,
) -> NDArray[np.float32]:
    """Score of the k-th best eligible row a query, (Q,), block by block."""
    best = np.full((len(queries), k), -np.inf, np.float32)
    for start in range(0, len(vectors), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        scores = distance.pairwise(queries, vectors[block].astype(np.float32))  # (Q, B)
        if eligible is not None:
            scores[:, ~eligible[block]] = -np.inf
        best = -np.partition(-np.concatenate([best, scores], axis=1), k - 1, axis=1)[:, :k]
    floors: NDArray[np.float32] = best.min(axis=1)
    return floors


def _recall(
    index: VectorIndex,
    vectors: NDArray[Any],
    queries: NDArray[np.float32],
    k: int,
    trial: _Trial,
) -> float:
    _, rows = index.search(queries, k, eligible=trial.eligible)  # (Q, k)
    scores = index.distance.scores(queries, vectors[np.maximum(rows, 0)])
    right = (rows >= 0) & (scores >= trial.floors[:, None] - TIE_TOLERANCE)
    return float(np.mean(right.sum(axis=1) / trial.num_found))
