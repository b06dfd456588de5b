"""Planned, filtered and grown search against an argsort in numpy."""

from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.errors import RetrievalError
from shared.retrieval import vectors as searcher
from shared.retrieval.index import build_index, search_index
from shared.retrieval.plan import build_planned
from shared.retrieval.recall import measure_recall
from shared.retrieval.vectors import VectorIndex

APPROXIMATE = [
    "HNSW16",
    "IDMap2,HNSW16",
    "HNSW16,SQ8",
    "IVF16,Flat",
    "IVF16,SQ8",
    "IDMap2,IVF8,SQ8",
]
Answer = tuple[NDArray[np.float32], NDArray[np.int64]]


def unit(rows: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def share(rows: int, selectivity: float, seed: int = 5) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(rows) < selectivity


def numpy_search(
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    k: int,
    eligible: NDArray[np.bool_] | None = None,
) -> Answer:
    scores = (queries.astype(np.float64) @ vectors.astype(np.float64).T).astype(np.float32)
    if eligible is not None:
        scores[:, ~eligible] = -np.inf
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    scores = np.take_along_axis(scores, rows, axis=1)
    rows[np.isinf(scores)] = -1
    short = ((0, 0), (0, k - rows.shape[1]))
    return (
        np.pad(scores, short, constant_values=-np.inf),
        np.pad(rows, short, constant_values=-1),
    )


def assert_same(found: Answer, expected: Answer) -> None:
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[0].dtype == np.float32
    assert found[1].dtype == np.int64


@pytest.mark.parametrize("factory", ["IDMap2,Flat", "Flat"])
@pytest.mark.parametrize("selectivity", [1.0, 0.5, 0.05, 0.0])
@pytest.mark.parametrize("k", [1, 10, 500])
def test_exact_search_is_an_argsort_of_what_is_eligible(
    factory: str, selectivity: float, k: int
) -> None:
    vectors, queries = unit(300, 24), unit(21, 24, seed=1)
    index = VectorIndex.over(build_planned(vectors, factory=factory, seed=0))
    eligible = share(300, selectivity)
    assert_same(
        index.search(queries, k, eligible=eligible), numpy_search(vectors, queries, k, eligible)
    )
    assert_same(index.search(queries, k), numpy_search(vectors, queries, k))


def test_it_answers_as_the_search_of_evaluation_does() -> None:
    vectors, queries = unit(500, 48), unit(30, 48, seed=1)
    index = build_index(vectors)
    assert_same(VectorIndex.over(index).search(queries, 10), search_index(index, queries, 10))


@given(
    copies=st.integers(1, 60),
    k=st.integers(0, 80),
    bits=st.lists(st.booleans(), min_size=90, max_size=90),
    appended=st.integers(0, 40),
)
@settings(max_examples=60)
def test_copies_come_in_row_order_under_any_mask_and_any_growth(
    copies: int, k: int, bits: list[bool], appended: int
) -> None:
    vectors = unit(90, 8)
    vectors[20 : 20 + copies] = vectors[3]
    eligible = np.array(bits)
    index = VectorIndex.over(build_index(vectors[: 90 - appended]))
    index = index.with_rows(vectors[90 - appended :])
    queries = vectors[[3, 60]]
    found = index.search(queries, k, eligible=eligible)
    assert_same(found, numpy_search(vectors, queries, k, eligible))


@pytest.mark.parametrize("factory", APPROXIMATE)
@pytest.mark.parametrize("selectivity", [0.5, 0.1, 0.01, 0.0])
def test_a_selective_filter_is_answered_exactly_by_every_index(
    factory: str, selectivity: float
) -> None:
    vectors, queries = unit(600, 16), unit(9, 16, seed=1)
    index = VectorIndex.over(build_planned(vectors, factory=factory, seed=0))
    stored = index.vectors_of(np.arange(600))  # decoded where only codes are kept
    eligible = share(600, selectivity)
    assert_same(
        index.search(queries, 10, eligible=eligible), numpy_search(stored, queries, 10, eligible)
    )


@pytest.mark.parametrize("factory", APPROXIMATE)
def test_approximate_answers_are_eligible_ordered_and_scored_by_the_stored_vectors(
    factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searcher, "ELIGIBLE_LIMIT", 0)  # so that the filter goes into FAISS
    vectors, queries = unit(2000, 16), unit(40, 16, seed=1)
    index = VectorIndex.over(build_planned(vectors, factory=factory, seed=0))
    stored = index.vectors_of(np.arange(2000))
    for eligible in (None, share(2000, 0.5), share(2000, 0.05)):
        scores, rows = index.search(queries, 10, eligible=eligible)
        everything, _ = numpy_search(stored, queries, 2000)
        assert rows.min() >= 0
        assert eligible is None or eligible[rows].all()
        assert all(len(set(line)) == 10 for line in rows.tolist())
        expected = np.einsum("qd,qkd->qk", queries.astype(float), stored[rows].astype(float))
        np.testing.assert_array_equal(scores, expected.astype(np.float32))
        assert (np.diff(scores, axis=1) <= 0).all()
        assert (scores[:, 0] <= everything[:, 0]).all()
        exact_scores, _ = numpy_search(stored, queries, 10, eligible)
        assert (scores >= exact_scores[:, -1:]).mean() > 0.9


@pytest.mark.parametrize("factory", ["HNSW4", "IVF32,Flat"])
def test_every_eligible_row_is_found_where_the_index_alone_ends_too_early(
    factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searcher, "ELIGIBLE_LIMIT", 0)
    vectors, queries = unit(1000, 12), unit(5, 12, seed=1)
    built = build_planned(vectors, factory=factory, seed=0)
    if factory.startswith("IVF"):
        built.nprobe = 1
    index = VectorIndex.over(built)
    eligible = share(1000, 0.03)
    count = int(eligible.sum())
    assert_same(
        index.search(queries, count + 5, eligible=eligible),
        numpy_search(vectors, queries, count + 5, eligible),
    )
    assert_same(index.search(queries, 1000), numpy_search(vectors, queries, 1000))


@pytest.mark.parametrize("factory", APPROXIMATE)
def test_a_selective_filter_does_not_depend_on_the_effort(factory: str) -> None:
    vectors, queries = unit(800, 24), unit(20, 24, seed=1)
    built = build_planned(vectors, factory=factory, seed=0)
    inner = faiss.downcast_index(built.index) if factory.startswith("IDMap2") else built
    if "HNSW" in factory:
        inner.hnsw.efSearch = 1
    else:
        inner.nprobe = 1
    index = VectorIndex.over(built)
    eligible = share(800, 0.8)
    stored = index.vectors_of(np.arange(800))
    expected = numpy_search(stored, queries, 10, eligible)
    assert_same(index.search(queries, 10, eligible=eligible), expected)
    assert not np.array_equal(index.search(queries, 10)[1], numpy_search(stored, queries, 10)[1])


@pytest.mark.parametrize("factory", APPROXIMATE)
def test_only_a_flat_index_is_given_a_list_of_rows(
    factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Others look through the list for every row they meet: half a second a query instead of one ms.
    vectors, few = unit(200, 8), share(200, 0.1)
    part = VectorIndex.over(build_planned(vectors, factory=factory, seed=0))._base
    flat = VectorIndex.over(build_index(vectors))._base
    assert isinstance(flat._scope(few).selector, faiss.IDSelectorArray)
    whole = "HNSW" in factory and "SQ8" not in factory
    assert isinstance(part._scope(few).selector, faiss.IDSelectorArray) == whole
    monkeypatch.setattr(searcher, "ELIGIBLE_LIMIT", 0)
    assert isinstance(part._scope(few).selector, faiss.IDSelectorBitmap)


def test_whole_vectors_beside_the_codes_score_what_the_codes_propose() -> None:
    vectors, queries = unit(1500, 16), unit(30, 16, seed=1)
    coded = build_planned(vectors, factory="IVF8,SQ4", seed=0)
    coded.nprobe = 8
    index = VectorIndex.over(coded, matrix=vectors)
    np.testing.assert_array_equal(index.vectors_of(np.arange(1500)), vectors)
    assert_same(index.search(queries, 10), numpy_search(vectors, queries, 10))
    bare = measure_recall(VectorIndex.over(coded), vectors, queries=queries, seed=0)
    assert bare.unfiltered < measure_recall(index, vectors, queries=queries, seed=0).unfiltered


@pytest.mark.parametrize("factory", ["IDMap2,Flat", "HNSW8", "IVF4,SQ8"])
def test_growing_in_steps_is_growing_at_once_and_leaves_the_former_index_alone(
    factory: str,
) -> None:
    base, first, second = unit(200, 12), unit(7, 12, seed=1), unit(1, 12, seed=2)
    index = VectorIndex.over(build_planned(base, factory=factory, seed=0))
    before = index.search(base[:5], 10)
    grown = index.with_rows(first).with_rows(second)
    at_once = index.with_rows(np.concatenate([first, second]))
    queries = np.concatenate([base[:5], first, second])
    assert_same(grown.search(queries, 10), at_once.search(queries, 10))
    assert (grown.num_rows, grown.num_base_rows, grown.num_appended) == (208, 200, 8)
    np.testing.assert_array_equal(grown.search(second, 1)[1], [[207]])
    assert (index.num_rows, index.num_appended) == (200, 0)
    assert_same(index.search(base[:5], 10), before)
    assert index.with_rows(np.empty((0, 12), np.float32)) is index


def test_a_dead_base_row_and_its_appended_successor() -> None:
    vectors = unit(50, 12)
    index = VectorIndex.over(build_index(vectors)).with_rows(vectors[[9]])
    both = index.search(vectors[[9]], 2)[1]
    np.testing.assert_array_equal(both, [[9, 50]])  # equal scores: row order
    alive = np.ones(51, np.bool_)
    alive[9] = False
    assert index.search(vectors[[9]], 1, eligible=alive)[1].tolist() == [[50]]
    alive[50] = False
    assert index.search(vectors[[9]], 1, eligible=alive)[1].tolist() not in ([[9]], [[50]])


def test_vectors_come_back_from_both_parts() -> None:
    vectors = unit(30, 6)
    index = VectorIndex.over(build_index(vectors[:20])).with_rows(vectors[20:])
    rows = np.array([29, 0, 20, 19, 29])
    np.testing.assert_array_equal(index.vectors_of(rows), vectors[rows])
    assert index.vectors_of(np.array([], np.int64)).shape == (0, 6)


def test_the_base_is_not_copied_by_growth_or_by_a_view() -> None:
    built = build_index(unit(100, 8))
    index = VectorIndex.over(built)
    grown = index.with_rows(unit(2, 8, seed=1))
    assert grown._base is index._base
    matrix = index._base.matrix
    assert matrix is not None
    assert not matrix.flags.owndata
    assert not matrix.flags.writeable


def test_no_queries_no_places_and_more_places_than_rows() -> None:
    index = VectorIndex.over(build_index(unit(9, 4)))
    assert [part.shape for part in index.search(unit(0, 4), 3)] == [(0, 3)] * 2
    assert [part.shape for part in index.search(unit(2, 4), 0)] == [(2, 0)] * 2
    scores, rows = index.search(unit(2, 4), 12)
    assert np.isneginf(scores[:, 9:]).all()
    assert (rows[:, 9:] == -1).all()
    assert (rows[:, :9] >= 0).all()


@pytest.mark.parametrize("factory", ["IDMap2,Flat", "HNSW8", "IVF8,SQ8"])
def test_many_threads_find_what_one_finds(factory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searcher, "ELIGIBLE_LIMIT", 40)
    vectors, queries = unit(900, 16), unit(60, 16, seed=1)
    index = VectorIndex.over(build_planned(vectors[:850], factory=factory, seed=0))
    index = index.with_rows(vectors[850:])
    masks = [None, share(900, 0.5), share(900, 0.03)]
    tasks = [(query[None], mask) for query in queries for mask in masks]
    alone = [index.search(query, 5, eligible=mask) for query, mask in tasks]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda task: index.search(task[0], 5, eligible=task[1]), tasks))
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)


def test_a_large_batch_in_chunks_is_each_query_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries = unit(300, 8), unit(50, 8, seed=1)
    vectors[50:200] = vectors[0]
    queries[::7] = vectors[0]
    index = VectorIndex.over(build_index(vectors))
    monkeypatch.setattr(searcher, "_CHUNK_NUMBERS", 1000)
    assert_same(index.search(queries, 10), numpy_search(vectors, queries, 10))


def test_an_index_of_another_kind_metric_or_numbering_is_refused() -> None:
    with pytest.raises(RetrievalError, match="IndexLSH is not an exact, HNSW or IVF index"):
        VectorIndex.over(faiss.IndexLSH(4, 8))
    with pytest.raises(RetrievalError, match="is none of cosine, euclidean, manhattan"):
        VectorIndex.over(faiss.index_factory(4, "Flat", faiss.METRIC_Linf))
    numbered = faiss.index_factory(4, "IDMap2,Flat", faiss.METRIC_INNER_PRODUCT)
    numbered.add_with_ids(unit(2, 4), np.array([5, 6]))
    with pytest.raises(RetrievalError, match="not row numbers"):
        VectorIndex.over(numbered)


def test_bad_vectors_and_queries_are_refused() -> None:
    index = VectorIndex.over(build_index(unit(5, 4)))
    with pytest.raises(RetrievalError, match="8 dimensions for an index of 4"):
        index.with_rows(unit(1, 8))
    with pytest.raises(RetrievalError, match="not of unit length"):
        index.with_rows(np.full((1, 4), np.nan, np.float32))
    with pytest.raises(RetrievalError, match="index of 4 dimensions"):
        index.search(unit(1, 8), 3)
    with pytest.raises(RetrievalError, match="not finite"):
        index.search(np.full((1, 4), np.inf, np.float32), 3)


def test_without_a_gpu_an_index_stays_where_it_is() -> None:
    if faiss.get_num_gpus():
        pytest.skip("this machine has a GPU")
    index = VectorIndex.over(build_index(unit(5, 4)))
    assert index.on_gpu() is index


@pytest.mark.parametrize(("num_queries", "expected"), [(1, 1), (2, 3)])
def test_one_query_is_searched_on_one_thread_and_the_caller_keeps_its_own(
    num_queries: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    index = VectorIndex.over(build_index(unit(50, 4)))
    search = faiss.IndexFlat.search_c

    def watched(*arguments: object) -> object:
        used.append(faiss.omp_get_max_threads())
        return search(*arguments)

    monkeypatch.setattr(faiss.IndexFlat, "search_c", watched)
    former = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(3)
    try:
        index.search(unit(num_queries, 4), 2)
        assert used == [expected]
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(former)


@pytest.mark.parametrize("factory", ["IDMap2,Flat", *APPROXIMATE])
@pytest.mark.parametrize("selectivity", [1.0, 0.6, 0.02])
def test_queries_one_at_a_time_are_answered_as_all_at_once(
    factory: str, selectivity: float
) -> None:
    vectors, queries = unit(600, 8), unit(20, 8, seed=3)
    index = VectorIndex.over(build_planned(vectors, factory=factory, seed=0))
    eligible = share(600, selectivity)
    alone = [index.search(query[None], 20, eligible=eligible) for query in queries]
    scores, rows = zip(*alone, strict=True)
    together = index.search(queries, 20, eligible=eligible)
    assert_same((np.concatenate(scores), np.concatenate(rows)), together)


def test_a_graph_asked_for_more_than_its_effort_works_harder_and_is_not_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vectors, query = unit(2000, 8), unit(1, 8, seed=3)
    index = VectorIndex.over(build_planned(vectors, factory="HNSW16", seed=0))
    ways: list[bool] = []
    propose = searcher.Part._propose

    def watched(*arguments: object, exhaustive: bool) -> object:
        ways.append(exhaustive)
        return propose(*arguments, exhaustive=exhaustive)  # type: ignore[arg-type]

    monkeypatch.setattr(searcher.Part, "_propose", watched)
    assert index.effort < 300
    _, rows = index.search(query, 300)
    assert ways == [False]
    expected = numpy_search(vectors, query, 300)[1]
    assert len(np.intersect1d(rows, expected)) >= 290
