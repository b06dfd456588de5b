"""Held against enumeration written the slow way, and against cases worked by hand."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.randomization import MAX_ENUMERATED, paired_randomization_test

scores = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=7
)  # eighths: equal sums are equal, whatever the order of summing


def enumerated(a, b):
    """Swap every subset of the pairs."""
    seen = abs(sum(a) - sum(b))
    far = 0
    for swaps in product((False, True), repeat=len(a)):
        swapped = [(y, x) if swap else (x, y) for x, y, swap in zip(a, b, swaps, strict=True)]
        far += abs(sum(x for x, _ in swapped) - sum(y for _, y in swapped)) >= seen
    return far / 2 ** len(a)


@given(scores)
def test_few_queries_are_enumerated(pairs):
    a, b = np.array(pairs).T / 8
    assert paired_randomization_test(a, b, seed=0) == enumerated(a.tolist(), b.tolist())


def test_by_hand():
    # All four differences point one way: only that order and its mirror are as extreme.
    a = np.array([0.5, 0.6, 0.7, 0.9])
    assert paired_randomization_test(a, a - 0.1, seed=0) == 2 / 16
    # +3, +1, -1: of eight sign patterns those with |sum| >= 3 are +++, ++-, +-+ and mirrors.
    assert paired_randomization_test(np.array([3.0, 1, 0]), np.array([0.0, 0, 1]), seed=0) == 6 / 8


def test_one_sided_by_hand():
    a = np.array([0.5, 0.6, 0.7, 0.9])
    better, worse = (
        paired_randomization_test(x, y, seed=0, alternative="greater")
        for x, y in ((a, a - 0.1), (a - 0.1, a))
    )
    assert (better, worse) == (1 / 16, 1.0)  # that order alone; every order
    # +3, +1, -1: of eight sign patterns those with a sum >= 3 are +++, ++-, +-+
    one = paired_randomization_test(
        np.array([3.0, 1, 0]), np.array([0.0, 0, 1]), seed=0, alternative="greater"
    )
    assert one == 3 / 8


@given(scores)
def test_either_side_and_a_tie_make_up_the_whole(pairs):
    a, b = np.array(pairs).T / 8
    sums = {sum(a), sum(b)}
    greater, less = (
        paired_randomization_test(x, y, seed=0, alternative="greater") for x, y in ((a, b), (b, a))
    )
    both = paired_randomization_test(a, b, seed=0)
    assert both == pytest.approx(1.0 if len(sums) == 1 else 2 * min(greater, less))
    assert greater + less > 1  # the order seen is on both sides


def test_one_sided_sampling_comes_near_the_exact_value():
    a = np.array([1.0] * 14 + [0.0] * 6)
    exact = (38760 + 15504 + 4845 + 1140 + 190 + 20 + 1) / 2**20
    got = paired_randomization_test(
        a, 1 - a, num_permutations=40_000, seed=3, alternative="greater"
    )
    assert got == pytest.approx(exact, abs=4 * np.sqrt(exact / 40_000))


def test_rounding_makes_no_difference_out_of_a_tie():
    # 0.1 + 0.2 + 0.3 sums to two values by order of summing; all signs alike must count.
    a = np.array([0.3, 0.2, 0.1, 0.7, 0.6])
    assert paired_randomization_test(a, np.zeros(5), seed=0) == 2 / 32
    assert paired_randomization_test(a[::-1], np.zeros(5), seed=0) == 2 / 32


def test_rankers_that_never_differ():
    same = np.linspace(0, 1, 50)
    assert paired_randomization_test(same, same, seed=0) == 1.0
    assert paired_randomization_test(np.empty(0), np.empty(0), seed=0) == 1.0


def test_queries_on_which_both_score_alike_change_nothing():
    rng = np.random.default_rng(0)
    a, b = rng.random(MAX_ENUMERATED), rng.random(MAX_ENUMERATED)
    padded = [np.concatenate([scores, np.full(500, 0.25)]) for scores in (a, b)]
    exact = paired_randomization_test(a, b, seed=0)
    assert paired_randomization_test(*padded, seed=1) == exact


def test_sampling_comes_near_the_exact_value():
    # With differences of +1 and -1 alone the sum is binomial: 14 of 20, two-sided, by hand.
    a = np.array([1.0] * 14 + [0.0] * 6)
    exact = 2 * (38760 + 15504 + 4845 + 1140 + 190 + 20 + 1) / 2**20
    got = paired_randomization_test(a, 1 - a, num_permutations=40_000, seed=3)
    assert got == pytest.approx(exact, abs=4 * np.sqrt(exact / 40_000))


def test_no_sampled_value_is_0_and_permutations_are_counted_whole():
    a = np.arange(60.0) + 1
    assert paired_randomization_test(a, np.zeros(60), num_permutations=99, seed=0) == 1 / 100
    assert paired_randomization_test(a, np.zeros(60), num_permutations=1, seed=0) == 1 / 2


@given(st.integers(0, 1000), st.integers(16, 40))
def test_it_does_not_matter_who_is_a_and_the_seed_decides_the_rest(seed, queries):
    a, b = np.random.default_rng(seed).random((2, queries))
    p = paired_randomization_test(a, b, num_permutations=200, seed=seed)
    assert 0 < p <= 1
    assert paired_randomization_test(b, a, num_permutations=200, seed=seed) == p


def test_under_the_null_a_twentieth_of_the_values_is_below_a_twentieth():
    rng = np.random.default_rng(11)
    values = [
        paired_randomization_test(*rng.random((2, 30)), num_permutations=199, seed=seed)
        for seed in range(400)
    ]
    # 0.05 within four standard errors of 400 trials
    assert np.mean(np.array(values) <= 0.05) == pytest.approx(0.05, abs=0.044)


def test_many_queries_are_sampled_in_parts():
    rng = np.random.default_rng(5)
    a = rng.random(30_000)
    b = a + rng.normal(0.0, 0.1, 30_000)
    assert paired_randomization_test(a, b, num_permutations=150, seed=0) > 0.01
    assert paired_randomization_test(a, b + 0.01, num_permutations=150, seed=0) == 1 / 151


def test_two_scores_a_query():
    with pytest.raises(AssertionError, match="two scores a query"):
        paired_randomization_test(np.zeros(3), np.zeros(4), seed=0)
    with pytest.raises(AssertionError, match="no permutation"):
        paired_randomization_test(np.zeros(3), np.zeros(3), num_permutations=0, seed=0)
