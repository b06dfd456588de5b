"""The plan by size, and what is built: one seed one index, or one line of why not."""

from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from shared.errors import RetrievalError
from shared.retrieval.plan import EXACT_LIMIT, HNSW_LIMIT, build_planned, plan_factory
from shared.retrieval.vectors import VectorIndex


def unit(rows: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    ("num_vectors", "expected"),
    [
        (1, "IDMap2,Flat"),
        (EXACT_LIMIT, "IDMap2,Flat"),
        (EXACT_LIMIT + 1, "HNSW32"),
        (HNSW_LIMIT, "HNSW32"),
        (HNSW_LIMIT + 1, "IVF2048,SQ8"),
        (1_000_000, "IVF4096,SQ8"),
    ],
)
def test_the_plan_goes_by_size(num_vectors: int, expected: str) -> None:
    assert plan_factory(num_vectors, 384) == expected


def test_longer_vectors_are_searched_exactly_for_fewer_products() -> None:
    assert plan_factory(EXACT_LIMIT // 2, 768) == "IDMap2,Flat"
    assert plan_factory(EXACT_LIMIT // 2 + 1, 768) == "HNSW32"


@pytest.mark.parametrize("factory", ["IDMap2,Flat", "HNSW8", "IVF8,SQ8"])
def test_one_seed_gives_one_index_and_a_file_keeps_its_effort(factory: str, tmp_path: Path) -> None:
    vectors = unit(500, 16)
    twice = [build_planned(vectors, factory=factory, seed=3) for _ in range(2)]
    assert np.array_equal(*(faiss.serialize_index(index) for index in twice))
    if factory.startswith("IVF"):
        other = build_planned(vectors, factory=factory, seed=4)
        assert not np.array_equal(*map(faiss.serialize_index, (twice[0], other)))
    faiss.write_index(twice[0], str(tmp_path / "index.faiss"))
    back = VectorIndex.over(faiss.read_index(str(tmp_path / "index.faiss")))
    index = VectorIndex.over(twice[0])
    assert back.effort == index.effort
    found = zip(back.search(vectors[:20], 10), index.search(vectors[:20], 10), strict=True)
    for read, made in found:
        np.testing.assert_array_equal(read, made)
    np.testing.assert_array_equal(back.vectors_of(np.arange(9)), index.vectors_of(np.arange(9)))


@pytest.mark.parametrize(
    "factory",
    [
        *("junk", "", "Flat\nFlat", "LSH", "PQ4", "OPQ4,IVF4,PQ4", "HNSW16_PQ4", "HNSW16,PQ4"),
        *("IVF0,Flat", "IVF101,Flat", "IVF99999999999,Flat", "HNSW0", "HNSW100000"),
    ],
)
def test_a_factory_that_cannot_be_used_is_one_line(factory: str) -> None:
    with pytest.raises(RetrievalError, match=r"leave serve\.index_factory out") as caught:
        build_planned(unit(100, 8), factory=factory, seed=0)
    assert "\n" not in str(caught.value)
    assert repr(factory) in str(caught.value)


def test_vectors_that_are_no_directions_are_refused() -> None:
    with pytest.raises(RetrievalError, match="not of unit length"):
        build_planned(np.ones((3, 4), np.float32), seed=0)


def test_building_leaves_the_number_of_threads_as_it_was() -> None:
    former = faiss.omp_get_max_threads()
    build_planned(unit(50, 4), factory="HNSW4", seed=0, num_threads=2)
    assert faiss.omp_get_max_threads() == former
