"""The FAISS index against numpy, and ties that do not depend on the batch."""

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.errors import RetrievalError
from shared.retrieval.index import build_index, search_index, vectors_of


def unit(rows: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def numpy_search(
    vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    scores = (queries.astype(np.float64) @ vectors.astype(np.float64).T).astype(np.float32)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


@pytest.mark.parametrize("k", [1, 10, 200, 500])
@pytest.mark.parametrize("num_queries", [1, 19, 20, 64])  # FAISS changes its code at 20
def test_search_is_an_exact_argsort(k: int, num_queries: int) -> None:
    vectors, queries = unit(200, 24), unit(num_queries, 24, seed=1)
    scores, rows = search_index(build_index(vectors), queries, k)
    expected_scores, expected_rows = numpy_search(vectors, queries, k)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("k", [1, 5, 150])
def test_equal_vectors_come_in_row_order_wherever_the_cut_is(k: int) -> None:
    vectors = unit(400, 16)
    vectors[100:390] = vectors[7]
    _, rows = search_index(build_index(vectors), vectors[[7, 200]], k)
    assert rows.tolist() == [[7, *range(100, 390)][:k]] * 2


def test_an_answer_does_not_depend_on_the_batch_it_came_in() -> None:
    vectors, queries = unit(1000, 48), unit(30, 48, seed=1)
    index = build_index(vectors)
    scores, rows = search_index(index, queries, 10)
    for one, query in enumerate(queries):
        alone_scores, alone_rows = search_index(index, query[None], 10)
        np.testing.assert_array_equal(alone_scores[0], scores[one])
        np.testing.assert_array_equal(alone_rows[0], rows[one])


def test_vectors_come_back_as_they_went_in() -> None:
    vectors = unit(9, 4)
    rows = np.array([8, 0, 8])
    np.testing.assert_array_equal(vectors_of(build_index(vectors), rows), vectors[rows])


def test_no_queries_and_no_places_are_empty_answers() -> None:
    index = build_index(unit(9, 4))
    assert [part.shape for part in search_index(index, unit(0, 4), 3)] == [(0, 3)] * 2
    assert [part.shape for part in search_index(index, unit(2, 4), 0)] == [(2, 0)] * 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_a_vector_that_is_not_of_unit_length_is_refused_by_row(bad: float) -> None:
    vectors = unit(5, 4)
    vectors[3] = bad
    with pytest.raises(RetrievalError, match=r"1 of 5 product vectors .* first row 3"):
        build_index(vectors)


@pytest.mark.parametrize("shape", [(0, 4), (4,), (3, 0)])
def test_nothing_to_index_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RetrievalError, match="at least one product"):
        build_index(np.zeros(shape, np.float32))


def test_queries_of_another_encoder_are_refused() -> None:
    index = build_index(unit(5, 4))
    with pytest.raises(RetrievalError, match="index of 4 dimensions"):
        search_index(index, unit(1, 8), 3)
    with pytest.raises(RetrievalError, match="not finite"):
        search_index(index, np.full((1, 4), np.nan, np.float32), 3)
