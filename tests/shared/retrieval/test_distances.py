"""Searches by every distance against brute force: planned, filtered, grown, and on disk."""

from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from shared.config import DISTANCES
from shared.errors import RetrievalError
from shared.retrieval import vectors as searcher
from shared.retrieval.index import build_index, distance_of, search_index
from shared.retrieval.plan import HNSW_LIMIT, build_planned, plan_factory
from shared.retrieval.recall import measure_recall
from shared.retrieval.vectors import VectorIndex
from shared.similarity import BY_NAME

Answer = tuple[NDArray[np.float32], NDArray[np.int64]]
OTHERS = [name for name in DISTANCES if name != "cosine"]  # which all other tests are about
CASES = [(name, factory) for name in OTHERS for factory in ("IDMap2,Flat", "HNSW16", "IVF16,Flat")]
CASES += [("euclidean", "IVF16,SQ8"), ("euclidean", "HNSW16,SQ8")]


def unit(rows: int, dim: int = 16, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def share(rows: int, selectivity: float) -> NDArray[np.bool_]:
    return np.random.default_rng(5).random(rows) < selectivity


def brute_force(
    name: str,
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    k: int,
    eligible: NDArray[np.bool_] | None = None,
) -> Answer:
    """By the distance itself, so that scores have no part in the order."""
    apart = np.abs(queries.astype(float)[:, None] - vectors.astype(float))  # (Q, N, D)
    far = apart.sum(axis=2) if name == "manhattan" else np.sqrt((apart**2).sum(axis=2))
    if name == "cosine":
        far = -(queries.astype(float) @ vectors.astype(float).T)
    if eligible is not None:
        far[:, ~eligible] = np.inf
    rows = np.argsort(far, axis=1, kind="stable")[:, :k]
    scores = BY_NAME[name].scores(queries, vectors[rows])
    return scores, rows


def assert_same(found: Answer, expected: Answer) -> None:
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])


@pytest.mark.parametrize("name", DISTANCES)
def test_exact_searches_are_brute_force(name: str) -> None:
    vectors, queries = unit(300), unit(20, seed=1)
    built, eligible = build_index(vectors, distance=name), share(300, 0.2)
    assert distance_of(built).name == name
    assert_same(search_index(built, queries, 12), brute_force(name, vectors, queries, 12))
    index = VectorIndex.over(built)
    assert_same(index.search(queries, 12), brute_force(name, vectors, queries, 12))
    assert_same(
        index.search(queries, 12, eligible=eligible),
        brute_force(name, vectors, queries, 12, eligible),
    )
    assert_same(index.search(queries[:1], 12), brute_force(name, vectors, queries[:1], 12))


@pytest.mark.parametrize("name", OTHERS)
def test_equal_products_come_in_row_order(name: str) -> None:
    vectors = unit(90)
    vectors[20:70] = vectors[3]
    index = VectorIndex.over(build_index(vectors, distance=name))
    assert_same(
        index.search(vectors[[3, 80]], 40), brute_force(name, vectors, vectors[[3, 80]], 40)
    )


@pytest.mark.parametrize("name", OTHERS)
def test_a_grown_index_is_as_one_that_was_built_whole(name: str) -> None:
    vectors, queries, eligible = unit(120), unit(9, seed=1), share(120, 0.5)
    grown = VectorIndex.over(build_index(vectors[:70], distance=name))
    grown = grown.with_rows(vectors[70:100]).with_rows(vectors[100:])
    assert grown.distance.name == name
    for mask in (None, eligible):
        expected = brute_force(name, vectors, queries, 10, mask)
        assert_same(grown.search(queries, 10, eligible=mask), expected)
    rows = np.array([3, 99, 110])
    expected_scores = BY_NAME[name].scores(queries[:1], vectors[rows][None])[0]
    np.testing.assert_array_equal(grown.scores_of(queries[0], rows), expected_scores)


@pytest.mark.parametrize(("name", "factory"), CASES)
def test_planned_indexes_answer_selective_filters_exactly(name: str, factory: str) -> None:
    vectors, queries, eligible = unit(600), unit(9, seed=1), share(600, 0.1)
    index = VectorIndex.over(build_planned(vectors, factory=factory, seed=0, distance=name))
    stored = index.vectors_of(np.arange(600))
    assert_same(
        index.search(queries, 10, eligible=eligible),
        brute_force(name, stored, queries, 10, eligible),
    )


@pytest.mark.parametrize(("name", "factory"), CASES)
def test_planned_indexes_reach_the_recall_that_is_asked_of_them(
    name: str, factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searcher, "ELIGIBLE_LIMIT", 0)  # so that the filter goes into FAISS
    vectors = unit(1500)
    coded = "SQ" in factory
    built = build_planned(vectors, factory=factory, seed=0, keeps_vectors=coded, distance=name)
    index = VectorIndex.over(built, matrix=vectors if coded else None)
    report = measure_recall(index, vectors, seed=0)
    assert report.reaches_target
    _, rows = index.search(vectors[:50], 10)
    _, expected = brute_force(name, vectors, vectors[:50], 10)
    shared = [len({*a} & {*b}) for a, b in zip(rows.tolist(), expected.tolist(), strict=True)]
    assert np.mean(shared) / 10 > 0.9


@pytest.mark.parametrize(
    ("name", "metric"), [("euclidean", "METRIC_L2"), ("manhattan", "METRIC_L1")]
)
def test_plain_faiss_reads_the_metric_from_the_file(name: str, metric: str, tmp_path: Path) -> None:
    vectors, path = unit(50), str(tmp_path / "index.faiss")
    faiss.write_index(build_planned(vectors, seed=0, distance=name), path)
    index = faiss.read_index(path)
    assert index.metric_type == getattr(faiss, metric)
    _, rows = index.search(vectors[:5], 3)
    np.testing.assert_array_equal(rows, brute_force(name, vectors, vectors[:5], 3)[1])


def test_a_large_catalog_has_no_codes_by_manhattan_distance() -> None:
    assert plan_factory(HNSW_LIMIT + 1, 384, distance="euclidean") == "IVF2048,SQ8"
    assert plan_factory(HNSW_LIMIT + 1, 384, distance="manhattan") == "IVF2048,Flat"


@pytest.mark.parametrize("factory", ["SQ8", "HNSW16,SQ8", "IVF16,SQ8"])
def test_codes_by_manhattan_distance_are_refused_and_do_not_end_the_process(factory: str) -> None:
    with pytest.raises(RetrievalError, match="FAISS has no codes for manhattan distance"):
        build_planned(unit(500), factory=factory, seed=0, distance="manhattan")
