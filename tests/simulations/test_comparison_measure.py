"""What counts as found in each set, against a slow reference and by hand."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.metrics import ndcg_at_k, ndcg_judged_at_k
from simulations.comparison.measure import (
    SCORE_SCHEMA,
    judged_only,
    score_set,
    union_scores,
    without,
)
from simulations.table import TestSet

TestSet.__test__ = False  # a class of ours, no test


def qrel(**grades):
    rows = sorted(grades, key=lambda name: int(name[1:]))
    return np.array([int(r[1:]) for r in rows], np.int64), np.array([grades[r] for r in rows])


def ndcg(gains, ideal):
    return sum(g / math.log2(p + 2) for p, g in enumerate(gains)) / sum(
        g / math.log2(p + 2) for p, g in enumerate(ideal)
    )


@given(
    st.lists(
        st.tuples(st.permutations(range(8)), st.integers(0, 8), st.sets(st.integers(0, 9))),
        min_size=1,
        max_size=5,
    )
)
def test_rows_are_taken_out_and_the_rest_moves_up(cases):
    ranked = np.array([[*rows[:length], *[-1] * (8 - length)] for rows, length, _ in cases])
    moved = without(ranked, [np.array(sorted(out), np.int64) for _, _, out in cases])
    for line, (rows, length, out) in zip(moved, cases, strict=True):
        left = [row for row in rows[:length] if row not in out]
        assert line.tolist() == [*left, *[-1] * (8 - len(left))]


def test_without_a_kind_everything_counts():
    ranked = np.array([[2, 0, 1]])
    (score,) = score_set(["q"], ranked, [qrel(r0=3, r1=1)], None)["ndcg@10"]
    assert score == pytest.approx(ndcg([0, 7, 1], [7, 1]))


def test_a_right_product_of_the_other_kind_is_no_mistake_and_a_wrong_one_is():
    # Rows 0 to 3: 0 and 1 are cold. Row 2 answers and is no cold product: it is taken out.
    cold = np.array([True, True, False, False])
    ranked = np.array([[2, 3, 0, 1]])
    table = score_set(["q"], ranked, [qrel(r0=2, r2=3)], cold)
    assert table["ndcg@10"][0] == pytest.approx(ndcg([0, 3], [3]))  # 3, a wrong one, stays first
    assert table["mrr@10"][0] == 1 / 2
    assert table["recall@10"][0] == 1.0


def test_a_query_without_an_answer_of_the_kind_is_left_out():
    cold = np.array([True, False])
    ranked = np.array([[0, 1], [0, 1]])
    table = score_set(["warm", "both"], ranked, [qrel(r1=3), qrel(r0=1, r1=1)], cold)
    assert table["query"].to_list() == ["both"]
    assert score_set(["warm"], ranked[:1], [qrel(r1=3)], cold).height == 0
    assert score_set([], ranked[:0], [], None).schema["query"] == pl.String


def test_a_judged_product_that_is_not_relevant_is_no_answer():
    ranked = np.array([[0, 1]])
    table = score_set(["q"], ranked, [qrel(r0=0, r1=3)], np.array([True, False]))
    assert table.height == 0  # the only cold product judged does not answer
    table = score_set(["q"], ranked, [qrel(r0=0, r1=3)], np.array([False, True]))
    assert table["mrr@10"][0] == 1 / 2  # and is not taken out


def test_answers_far_down_are_reached_when_those_of_the_other_kind_are_out():
    # Twelve warm answers before one cold one: in the first ten of the whole list it is not.
    cold = np.array([False] * 12 + [True])
    ranked, relevant = np.arange(13)[None], (np.arange(13), np.full(13, 1))
    assert score_set(["q"], ranked, [relevant], cold)["mrr@10"][0] == 1.0


# -- human judgments -------------------------------------------------------------------------------


def test_judged_queries_are_scored_over_all_products_and_over_judged_ones_by_hand():
    # Rows 7 and 8 are judged; 7 answers. It stands behind two that nobody judged and behind 8.
    tests = TestSet(["q"], [qrel(r7=3, r8=0)])
    table = union_scores(tests, np.array([[1, 2, 8, 7, 3, -1]]))
    assert dict(table.schema) == SCORE_SCHEMA
    assert table.select("region", "set", "query").rows() == [
        ("union", "union", "q"),
        ("union", "union_judged", "q"),
    ]
    assert table["mrr@10"].to_list() == [1 / 4, 1 / 2]
    assert table["ndcg@10"].to_list() == pytest.approx([1 / math.log2(5), 1 / math.log2(3)])
    assert table["judged@10"].to_list() == pytest.approx([2 / 5, 2 / 5])


@given(
    st.lists(
        st.tuples(
            st.permutations(range(30)), st.dictionaries(st.integers(0, 29), st.integers(0, 3))
        ),
        min_size=1,
        max_size=4,
    )
)
def test_both_sets_have_the_figures_of_a_run(cases):
    """Those of `fedshelf simulate`, which takes them from the metrics themselves."""
    cases = [(rows, {**grades, rows[0]: 1}) for rows, grades in cases]  # something is relevant
    ranked = np.array([rows for rows, _ in cases])
    qrels = [qrel(**{f"r{row}": grade for row, grade in grades.items()}) for _, grades in cases]
    table = union_scores(TestSet([f"q{number:03}" for number in range(len(cases))], qrels), ranked)
    expected = [*ndcg_at_k(ranked, qrels, k=10), *ndcg_judged_at_k(ranked, qrels, k=10)]
    assert table["ndcg@10"].to_list() == pytest.approx(expected)
    for line, rows, (judged, _) in zip(judged_only(ranked, qrels), ranked, qrels, strict=True):
        assert line[line >= 0].tolist() == [row for row in rows if row in judged]
