"""A bar is reached by meaning or by words, and measured by the query's own best."""

import numpy as np
import pytest

from shared.retrieval.relevance import NO_FLOOR, bar_of, dense_floor_of


def reached(dense: list[float], lexical: list[float], *, floor: float = NO_FLOOR) -> list[bool]:
    cosines, bm25 = np.array(dense, np.float32), np.array(lexical, np.float32)
    bar = bar_of(float(cosines.max()), float(bm25.max()), dense_floor=floor)
    return bar.reached(cosines, bm25).tolist()


def test_near_or_most_words_or_some_of_each() -> None:
    assert reached([0.8, 0.4, 0.39], [0, 0, 0]) == [True, True, False]
    assert reached([0.8, -0.3, -0.3, -0.3], [0, 10, 7, 6.9]) == [True, True, True, False]
    assert reached([1, 0.36, 0.34, 0.36], [10, 3, 3, 2.9]) == [True, True, False, False]


def test_without_meaning_some_words_are_enough_and_for_a_code_most_are_needed() -> None:
    cosines, bm25 = np.array([0.9, -1, -1]), np.array([0.0, 10.0, 4.0])
    bar = bar_of(0.9, 10.0, dense_floor=NO_FLOOR)
    assert bar.by_words().reached(cosines, bm25).tolist() == [False, True, True]
    assert bar.by_most_words().reached(cosines, bm25).tolist() == [False, True, False]


def test_a_row_that_shares_no_word_has_no_words_to_count() -> None:
    assert reached([0.8, 0.1], [0, 0]) == [True, False]


def test_where_the_best_is_negative_nothing_is_near() -> None:
    assert reached([-0.1, -0.2], [0, 1]) == [False, True]


def test_below_the_floor_only_words_count() -> None:
    assert reached([0.3, 0.2], [0, 1], floor=0.31) == [False, True]
    assert reached([0.3, 0.2], [0, 1], floor=0.3) == [True, True]


def test_the_floor_judges_a_query_by_its_best_product_and_no_other() -> None:
    assert reached([0.6, 0.4, 0.2], [0, 0, 0], floor=0.5) == [True, True, False]


def test_all_but_one_query_in_a_hundred_are_above_the_floor() -> None:
    rng = np.random.default_rng(0)
    floors = [dense_floor_of(rng.normal(0.7, 0.05, 30)) for _ in range(400)]
    lost = [np.mean(rng.normal(0.7, 0.05, 4000) < floor) for floor in floors]
    assert 0.9 < np.mean(np.array(lost) <= 0.01) < 0.99  # in 95 of 100 regions
    assert dense_floor_of(rng.normal(0.7, 0.05, 100_000)) == pytest.approx(
        0.7 - 2.33 * 0.05, abs=2e-3
    )


def test_the_tolerance_factor_is_that_of_the_tables() -> None:
    """3.295 at 20 queries by the noncentral t distribution, of which this is an approximation."""
    best = np.tile([0.4, 0.6], 10)
    factor = (0.5 - dense_floor_of(best)) / best.std(ddof=1)
    assert factor == pytest.approx(3.295, abs=0.03)


def test_the_floor_lies_within_what_a_cosine_can_be_and_few_queries_give_none() -> None:
    assert dense_floor_of(np.full(9, 1.0 + 1e-7)) == pytest.approx(1.0, abs=0)
    assert dense_floor_of(np.array([0.5] * 4)) == NO_FLOOR
    assert dense_floor_of(np.array([])) == NO_FLOOR
    assert dense_floor_of(np.array([-0.9, 0.9] * 3)) == NO_FLOOR
