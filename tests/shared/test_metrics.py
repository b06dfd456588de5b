"""Hand-worked values first (written as fractions), then laws, then equality with ranx."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.metrics import (
    difference_of_gains,
    gain_found,
    grades_of,
    ideal_gain,
    judged_at_k,
    mrr_at_k,
    ndcg_at_k,
    ndcg_judged_at_k,
    ndcg_of_gains,
    recall_at_k,
    self_normalized,
)

METRICS = [ndcg_at_k, ndcg_judged_at_k, recall_at_k, mrr_at_k, judged_at_k]
LOG3 = math.log2(3)


def ranking(*lists):
    width = max(map(len, lists))
    return np.array([[*rows, *[-1] * (width - len(rows))] for rows in lists], dtype=np.int64)


def judgments(*dicts):
    return [
        (np.array([*d], dtype=np.int64), np.array([*d.values()], dtype=np.int64)) for d in dicts
    ]


def test_grades_of_looks_up_each_query_apart():
    got = grades_of(ranking([4, 0, 9], [0]), judgments({0: 2, 4: 0}, {9: 1, 0: 3}))
    assert got.tolist() == [[0, 2, -1], [3, -1, -1]]


def test_padding_is_never_judged_even_next_to_the_last_row_of_the_query_before():
    assert grades_of(ranking([], [0]), judgments({5: 3, 4: 3}, {0: 1}))[0].tolist() == [-1]


def test_ndcg_by_hand():
    got = ndcg_at_k(ranking([7, 1, 2]), judgments({1: 3, 2: 1, 3: 2}), k=3)
    gained = 7 / LOG3 + 1 / 2
    ideal = 7 + 3 / LOG3 + 1 / 2
    assert got == pytest.approx([gained / ideal])


def test_ndcg_ideal_is_cut_at_k():
    got = ndcg_at_k(ranking([1, 9]), judgments({1: 1, 2: 1, 3: 1}), k=1)
    assert got == pytest.approx([1.0])


def test_ndcg_over_judged_removes_before_it_cuts():
    ranked, qrels = ranking([8, 9, 5, 1]), judgments({1: 1, 5: 0})
    assert ndcg_at_k(ranked, qrels, k=2) == pytest.approx([0.0])
    assert ndcg_judged_at_k(ranked, qrels, k=2) == pytest.approx([1 / LOG3])


def test_recall_divides_by_every_relevant_product():
    got = recall_at_k(
        ranking([1, 9, 2], [9, 1, 2]), judgments(*[{1: 1, 2: 3, 3: 2, 9: 0}] * 2), k=2
    )
    assert got == pytest.approx([1 / 3, 1 / 3])


def test_mrr_is_the_first_relevant_rank_within_k():
    qrels = judgments(*[{1: 1, 2: 3, 9: 0}] * 3)
    assert mrr_at_k(ranking([9, 2, 1], [1, 2], [9, 8, 7, 1]), qrels, k=3) == pytest.approx(
        [1 / 2, 1, 0]
    )


def test_judged_divides_by_what_is_shown():
    qrels = judgments(*[{1: 0, 2: 2}] * 4)
    got = judged_at_k(ranking([1, 8, 9, 2], [1], [8], []), qrels, k=3)
    assert got == pytest.approx([1 / 3, 1, 0, 0])


@pytest.mark.parametrize("metric", METRICS)
def test_nothing_judged_scores_zero(metric):
    assert metric(ranking([1, 2]), judgments({}), k=10).tolist() == [0.0]


@pytest.mark.parametrize("metric", METRICS)
def test_nothing_ranked_and_no_queries(metric):
    assert metric(np.empty((1, 0), dtype=np.int64), judgments({1: 1}), k=10).tolist() == [0.0]
    assert metric(np.empty((0, 5), dtype=np.int64), [], k=10).shape == (0,)


def test_ndcg_of_gains_by_hand():
    gains = np.array([0, 1 / 2, 1 / 4])
    found = (1 / 2) / LOG3 + (1 / 4) / 2
    ideal = 1 / 2 + (1 / 4) / LOG3
    assert ndcg_of_gains([gains], k=10) == pytest.approx(found / ideal)
    assert ndcg_of_gains([gains], k=2) == pytest.approx(((1 / 2) / LOG3) / ideal)
    assert ndcg_of_gains([gains], k=1) == 0  # the ideal is cut at k, too: it has 1 / 2 there


def test_no_gain_scores_zero():
    assert ndcg_of_gains([np.zeros(3)], k=10) == 0
    assert ndcg_of_gains([np.empty(0)], k=10) == 0
    assert ndcg_of_gains([], k=10) == 0


def test_gains_are_summed_over_queries_before_they_are_divided():
    found, ideal = 0 + 4 / LOG3 + 1, 4 + 1
    assert ndcg_of_gains([np.array([0, 4.0]), np.array([1.0])], k=10) == pytest.approx(
        found / ideal
    )


GRADES = st.dictionaries(st.integers(0, 30), st.integers(0, 3), min_size=1, max_size=15)
LISTS = st.lists(st.integers(0, 30), unique=True, min_size=1, max_size=20)


@given(GRADES, LISTS, st.integers(1, 25))
def test_values_stay_within_zero_and_one(grades, rows, k):
    for metric in METRICS:
        assert 0.0 <= metric(ranking(rows), judgments(grades), k=k)[0] <= 1.0 + 1e-12


@given(GRADES, st.integers(1, 25))
def test_the_ideal_list_has_ndcg_one(grades, k):
    best = sorted(grades, key=lambda row: -grades[row])
    expected = 1.0 if max(grades.values()) else 0.0
    assert ndcg_at_k(ranking(best), judgments(grades), k=k) == pytest.approx([expected])


@given(GRADES, LISTS, st.integers(1, 25))
def test_a_query_scores_the_same_alone_and_among_others(grades, rows, k):
    other = {row: 3 for row in range(40)}
    for metric in METRICS:
        among = metric(ranking([3, 2], rows, [9]), judgments(other, grades, other), k=k)
        assert among[1] == pytest.approx(metric(ranking(rows), judgments(grades), k=k)[0])


@given(GRADES, LISTS)
def test_fully_judged_lists_have_one_ndcg(grades, rows):
    everything = {row: grades.get(row, 0) for row in range(31)}
    args = ranking(rows), judgments(everything)
    assert ndcg_at_k(*args, k=10) == pytest.approx(ndcg_judged_at_k(*args, k=10))


@given(GRADES, st.randoms(), st.integers(1, 25))
def test_exponential_gains_make_the_ndcg_of_grades(grades, random, k):
    rows = random.sample(sorted(grades), len(grades))
    gains = np.array([2.0 ** grades[row] - 1 for row in rows])
    expected = ndcg_at_k(ranking(rows), judgments(grades), k=k)[0]
    assert ndcg_of_gains([gains], k=k) == pytest.approx(expected)


GAIN = st.just(0.0) | st.floats(1e-3, 10)
GAINS = st.lists(GAIN, min_size=1, max_size=20).map(np.array)


@given(GAINS, st.integers(1, 25))
def test_gains_score_within_zero_and_one_and_best_in_falling_order(gains, k):
    assert 0 <= ndcg_of_gains([gains], k=k) <= 1
    best = ndcg_of_gains([np.sort(gains)[::-1]], k=k)
    assert best == (1 if gains.max() > 0 else 0)


@given(GAINS, st.integers(1, 25), st.sampled_from([0.25, 2.0, 8.0]))
def test_only_the_ratio_of_gains_counts(gains, k, scale):
    gains = np.round(gains, 6)  # no subnormal numbers, whose ratios are lost
    assert ndcg_of_gains([scale * gains], k=k) == pytest.approx(ndcg_of_gains([gains], k=k))


@pytest.fixture
def ranx(monkeypatch):
    """ranx interpreted: compiling it takes half a minute, these twenty queries do not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numba and ranx warn on import
        import numba

        monkeypatch.setattr(numba.config, "DISABLE_JIT", True)
        return pytest.importorskip("ranx")


def test_gain_found_and_its_ideal_by_hand():
    lists = [np.array([0, 1 / 2, 1 / 4]), np.array([3.0]), np.empty(0)]
    assert gain_found(lists, k=10) == pytest.approx([(1 / 2) / LOG3 + (1 / 4) / 2, 3, 0])
    assert ideal_gain(lists, k=10) == pytest.approx([1 / 2 + (1 / 4) / LOG3, 3, 0])
    assert gain_found(lists, k=1) == pytest.approx([0, 3, 0])
    assert ideal_gain(lists, k=1) == pytest.approx([1 / 2, 3, 0])
    assert gain_found([], k=10).shape == ideal_gain([], k=10).shape == (0,)


def test_a_difference_by_hand():
    found, other, ideal = np.array([3.0, 1.0]), np.array([1.0, 1.0]), np.array([3.0, 1.0])
    ratio = 2 / 4
    errors = (2 - ratio * 3) / 2, (0 - ratio * 1) / 2  # the mean ideal is 2
    mean, variance = difference_of_gains(found, other, ideal)
    assert mean == pytest.approx(ratio)
    assert variance == pytest.approx(errors[0] ** 2 + errors[1] ** 2)  # over 2 - 1


@pytest.mark.parametrize("count", [0, 1, 3])
def test_where_there_is_no_gain_nothing_differs(count):
    nothing = np.zeros(count)
    assert difference_of_gains(nothing, nothing, nothing) == (0.0, 0.0)


def test_a_single_query_has_a_mean_and_no_variance():
    one = np.array([2.0])
    assert difference_of_gains(one, one / 4, one) == (0.75, 0.0)


@st.composite
def rerankings(draw):
    """Gains of a few queries in two orders of the same products."""
    lists = draw(st.lists(GAINS, min_size=1, max_size=8))
    random = draw(st.randoms(use_true_random=False))
    return lists, [np.array(random.sample(gains.tolist(), len(gains))) for gains in lists]


def compared(ones, others, k=10):
    return difference_of_gains(
        gain_found(ones, k=k), gain_found(others, k=k), ideal_gain(ones, k=k)
    )


@given(rerankings(), st.integers(1, 25))
def test_a_difference_is_that_of_two_ndcgs(both, k):
    ones, others = both
    expected = ndcg_of_gains(ones, k=k) - ndcg_of_gains(others, k=k)
    assert compared(ones, others, k)[0] == pytest.approx(expected, abs=1e-9)


@given(rerankings())
def test_a_ranking_differs_from_itself_by_nothing_for_sure(both):
    assert compared(both[0], both[0]) == (0.0, 0.0)


@given(rerankings())
def test_the_other_way_round_only_the_sign_changes(both):
    ones, others = both
    (there, variance), (back, other_variance) = compared(ones, others), compared(others, ones)
    assert there == pytest.approx(-back, abs=1e-12)
    assert variance == pytest.approx(other_variance, rel=1e-6, abs=1e-12)


@given(rerankings(), st.floats(0.01, 100))
def test_the_unit_of_gain_does_not_matter(both, unit):
    ones, others = both
    scaled = compared([gains * unit for gains in ones], [gains * unit for gains in others])
    assert scaled == pytest.approx(compared(ones, others), rel=1e-6, abs=1e-9)


@given(rerankings())
def test_the_order_of_queries_does_not_matter(both):
    ones, others = both
    assert compared(ones[::-1], others[::-1]) == pytest.approx(
        compared(ones, others), rel=1e-6, abs=1e-9
    )


@given(rerankings())
def test_differences_add_up_and_stay_within_one(both):
    ones, others = both
    third = [np.sort(gains) for gains in ones]
    steps = compared(ones, others)[0] + compared(others, third)[0]
    assert compared(ones, third)[0] == pytest.approx(steps, abs=1e-9)
    assert -1 - 1e-9 <= compared(ones, others)[0] <= 1 + 1e-9
    assert compared(ones, others)[1] >= 0


def log_of_queries(rng, count):
    """Gains of many queries in two orders, the first one a little better on average."""
    ones, others = [], []
    for _ in range(count):
        gains = rng.exponential(size=rng.integers(1, 9)) * rng.lognormal(sigma=0.7)
        ones.append(gains[np.argsort(-gains + rng.normal(scale=1.0, size=len(gains)))])
        others.append(gains[rng.permutation(len(gains))])
    return gain_found(ones, k=10), gain_found(others, k=10), ideal_gain(ones, k=10)


def test_the_squared_standard_error_agrees_with_the_jackknife():
    """Leaving each query out in turn (Efron and Stein 1981), which knows no formula."""
    found, other, ideal = log_of_queries(np.random.default_rng(5), 150)
    _, variance = difference_of_gains(found, other, ideal)
    left = [
        np.delete(found - other, q).sum() / np.delete(ideal, q).sum() for q in range(len(ideal))
    ]
    jackknife = (len(left) - 1) * np.var(left)
    assert variance / len(ideal) == pytest.approx(jackknife, rel=0.05)


def test_the_squared_standard_error_agrees_with_the_bootstrap():
    rng = np.random.default_rng(6)
    found, other, ideal = log_of_queries(rng, 150)
    _, variance = difference_of_gains(found, other, ideal)
    drawn = rng.integers(len(ideal), size=(4000, len(ideal)))
    ratios = (found - other)[drawn].sum(axis=1) / ideal[drawn].sum(axis=1)
    assert variance / len(ideal) == pytest.approx(ratios.var(), rel=0.1)


def test_the_standard_error_is_how_much_repeated_logs_differ():
    rng = np.random.default_rng(8)
    means, squared = [], []
    for _ in range(300):
        found, other, ideal = log_of_queries(rng, 60)
        mean, variance = difference_of_gains(found, other, ideal)
        means.append(mean)
        squared.append(variance / len(ideal))
    assert np.mean(squared) == pytest.approx(np.var(means), rel=0.2)


def test_equals_ranx(ranx):
    rng = np.random.default_rng(7)
    qrels = [{int(r): int(rng.integers(0, 4)) for r in rng.permutation(40)[:12]} for _ in range(20)]
    lists = [rng.permutation(40)[:25].tolist() for _ in range(20)]
    theirs = ranx.Qrels(
        {f"q{i:02}": {str(r): g for r, g in d.items()} for i, d in enumerate(qrels)}
    )
    runs = {f"q{i:02}": {str(r): 99.0 - j for j, r in enumerate(x)} for i, x in enumerate(lists)}
    names = ["ndcg_burges@10", "recall@10", "mrr@10"]
    expected = ranx.evaluate(theirs, ranx.Run(runs), names, return_mean=False)
    for name, metric in zip(names, [ndcg_at_k, recall_at_k, mrr_at_k], strict=True):
        assert metric(ranking(*lists), judgments(*qrels), k=10) == pytest.approx(expected[name])


# -- SNIPS -----------------------------------------------------------------------------------------


def test_snips_by_hand() -> None:
    """Clicks of weight 2 on rank 1, 1 on rank 3 and, in another list, 3 on rank 2."""
    lists = [np.array([2.0, 0.0, 1.0]), np.array([0.0, 3.0])]
    expected = (2 + 1 / math.log2(4) + 3 / math.log2(3)) / 6
    assert self_normalized(lists, k=10) == pytest.approx(expected)
    assert self_normalized(lists, k=1) == pytest.approx(2 / 6)


def test_snips_knows_no_scale_and_no_click_scores_nothing() -> None:
    lists = [np.array([0.5, 0.0, 4.0])]
    assert self_normalized([10 * lists[0]], k=10) == pytest.approx(self_normalized(lists, k=10))
    assert self_normalized([np.zeros(3)], k=10) == 0.0
    assert self_normalized([np.array([3.0, 0.0])], k=10) == 1.0
