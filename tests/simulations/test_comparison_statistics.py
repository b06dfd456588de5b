"""Held against slow references, laws, and cases worked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.comparison.statistics import (
    RegionTests,
    Stratum,
    bootstrap_means,
    first_reaching,
    gap_closed,
    gap_interval,
    holm,
    interval,
    mean_scores,
    region_tests,
    text_means,
    verdicts,
)


def stratum(seed, texts, *columns):
    return Stratum(seed, np.array(texts, np.int64), np.array(columns, np.float64).T)


def strata_at_random(rng, *, seeds=2, regions=3, texts=8, methods=2):
    return [
        stratum(seed, rng.choice(texts, count, replace=False), *rng.random((methods, count)))
        for seed in range(seeds)
        for count in rng.integers(1, texts, regions)
    ]


def slow_mean(strata, texts=None, seeds=None):
    """Means of means by loops; texts and seeds are those drawn, each as often as it was."""
    by_seed = {}
    for one in strata:
        drawn = [
            row
            for text, row in zip(one.text, one.scores, strict=True)
            for _ in range(1 if texts is None else texts.count(text))
        ]
        if drawn:
            by_seed.setdefault(one.seed, []).append(np.mean(drawn, axis=0))
    wanted = sorted(by_seed) if seeds is None else [seed for seed in seeds if seed in by_seed]
    return np.mean([np.mean(by_seed[seed], axis=0) for seed in wanted], axis=0)


# -- means and intervals ---------------------------------------------------------------------------


def test_every_region_counts_the_same_then_every_seed():
    strata = [
        stratum(0, [0, 1, 2], [0.0, 0.5, 1.0]),  # mean 1/2
        stratum(0, [3], [0.1]),  # with it, seed 0 is at 0.3
        stratum(1, [0], [0.9]),
    ]
    assert mean_scores(strata).tolist() == pytest.approx([(0.3 + 0.9) / 2])


@given(st.integers(0, 10_000))
def test_means_are_those_of_the_slow_way(seed):
    strata = strata_at_random(np.random.default_rng(seed))
    np.testing.assert_allclose(mean_scores(strata), slow_mean(strata))


def test_a_region_without_queries_changes_nothing():
    strata = [stratum(0, [0, 1], [0.2, 0.4]), stratum(1, [1], [0.9])]
    empty = Stratum(0, np.empty(0, np.int64), np.empty((0, 1)))
    assert mean_scores([*strata, empty]) == mean_scores(strata)
    np.testing.assert_array_equal(
        bootstrap_means([*strata, empty], seed=3, num_resamples=40),
        bootstrap_means(strata, seed=3, num_resamples=40),
    )


def test_a_draw_is_the_mean_of_the_texts_and_seeds_that_were_drawn():
    strata = strata_at_random(np.random.default_rng(1), texts=5)
    draws = bootstrap_means(strata, seed=5, num_resamples=30)
    rng = np.random.default_rng(5)  # the same draws, asked for in the same order
    num_texts = 1 + max(int(one.text.max()) for one in strata)
    texts = rng.multinomial(num_texts, np.full(num_texts, 1 / num_texts), 30)
    seeds = rng.multinomial(2, [1 / 2, 1 / 2], 30)
    for draw, text, seed in zip(draws, texts, seeds, strict=True):
        drawn = [number for number, count in enumerate(text) for _ in range(count)]
        worlds = [number for number, count in enumerate(seed) for _ in range(count)]
        np.testing.assert_allclose(draw, slow_mean(strata, drawn, worlds))


def test_a_text_is_drawn_with_all_its_scores():
    # In each of four regions the same two texts, one always 0 and one always 1: one text drawn
    # twice gives 0 or 1 everywhere at once. Drawn apart, region by region, means would be mixed.
    strata = [stratum(0, [0, 1], [0.0, 1.0]) for _ in range(4)]
    assert set(bootstrap_means(strata, seed=0, num_resamples=200)[:, 0]) == {0.0, 0.5, 1.0}


def test_with_one_seed_equal_scores_leave_no_doubt():
    draws = bootstrap_means([stratum(0, [0, 1, 2], [0.4, 0.4, 0.4])], seed=0)
    assert interval(draws[:, 0]) == pytest.approx((0.4, 0.4))


def test_seeds_that_differ_widen_an_interval():
    alike = [stratum(seed, [0, 1], [0.5, 0.5]) for seed in range(3)]
    apart = [stratum(seed, [0, 1], [value] * 2) for seed, value in enumerate((0.4, 0.5, 0.6))]
    assert interval(bootstrap_means(alike, seed=0)[:, 0]) == pytest.approx((0.5, 0.5))
    low, high = interval(bootstrap_means(apart, seed=0)[:, 0])
    assert (low, high) == pytest.approx((0.4, 0.6))  # all three seeds the same: 1 in 9 draws


def test_a_bootstrap_has_the_spread_of_a_mean():
    scores = np.random.default_rng(0).random(400)
    draws = bootstrap_means([stratum(0, np.arange(400), scores)], seed=1, num_resamples=4000)
    assert draws[:, 0].std() == pytest.approx(scores.std() / 20, rel=0.05)


def test_an_interval_leaves_out_a_fortieth_on_either_side():
    assert interval(np.linspace(0, 1, 401)) == pytest.approx((0.025, 0.975))


# -- ratios ----------------------------------------------------------------------------------------


def test_gap_closed_by_hand():
    assert gap_closed(0.6, 0.7, 0.8) == pytest.approx(1 / 2)
    assert gap_closed(0.6, 0.9, 0.8) == pytest.approx(3 / 2)
    assert gap_closed(0.6, 0.5, 0.8) == pytest.approx(-1 / 2)
    assert gap_closed(0.8, 0.7, 0.8) is None
    assert gap_closed(0.9, 0.7, 0.8) is None


def test_a_gap_that_may_be_none_has_no_interval():
    low, value = np.zeros(1000), np.full(1000, 0.5)
    sure = np.ones(1000)
    assert gap_interval(low, value, sure) == (0.5, 0.5)
    doubtful = np.where(np.arange(1000) < 26, -1.0, 1.0)
    assert gap_interval(low, value, doubtful) is None
    doubtful[0] = 1.0
    assert gap_interval(low, value, doubtful) == (0.5, 0.5)


# -- tests and claims ------------------------------------------------------------------------------


def test_holm_by_hand():
    # Holm 1979: 4 * 0.01, 3 * 0.02 = 0.06, 2 * 0.03 = 0.06, then 0.5 and never falling
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0.0001, 1.0), min_size=1, max_size=12))
def test_holm_is_between_nothing_and_bonferroni_and_keeps_the_order(p):
    adjusted = holm(p)
    assert all(q <= a <= min(1.0, len(p) * q) for q, a in zip(p, adjusted, strict=True))
    order = np.argsort(p, kind="stable")
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0)


@given(st.lists(st.floats(0.0001, 1.0), min_size=1, max_size=8), st.sampled_from([0.01, 0.05, 0.2]))
def test_holm_rejects_what_the_step_down_procedure_rejects(p, alpha):
    rejected = set()
    for rank, number in enumerate(np.argsort(p, kind="stable")):
        if p[number] * (len(p) - rank) > alpha:
            break
        rejected.add(int(number))
    assert {n for n, a in enumerate(holm(p)) if a <= alpha} == rejected


def test_one_text_in_many_places_is_one_row():
    strata = [stratum(0, [0, 1], [0.2, 0.4]), stratum(0, [1], [0.6]), stratum(1, [1], [0.8])]
    assert text_means(strata)[:, 0].tolist() == pytest.approx([0.2, 0.6])


def test_a_region_that_is_clearly_better_is_not_worse_either():
    rng = np.random.default_rng(0)
    alone = rng.random(80) / 2
    tests = region_tests(alone + 0.2, alone, margin=0.02, seed=0)
    assert tests.better < 0.001
    assert tests.not_worse < 0.001
    assert tests.worse > 0.9


def test_equal_methods_are_not_worse_only_beyond_a_margin():
    alone = np.random.default_rng(0).random(80)
    assert region_tests(alone, alone, margin=0.02, seed=0).not_worse < 0.001
    assert region_tests(alone, alone, margin=0.0, seed=0) == (1.0, 1.0, 1.0)


def test_no_evidence_is_no_claim_of_being_not_worse():
    a, b = np.tile([0.0, 0.5], 30), np.tile([0.5, 0.0], 30)  # unlike one by one, equal on the whole
    (verdict,) = verdicts([region_tests(a, b, margin=0.02, seed=0)])
    assert verdict == "open"


def test_verdicts_by_hand():
    tests = [
        RegionTests(better=0.001, not_worse=0.001, worse=1.0),
        RegionTests(better=0.03, not_worse=0.012, worse=0.9),  # 2 * 0.03 and 2 * 0.012
        None,
        RegionTests(better=1.0, not_worse=0.012, worse=0.01),  # a small loss, and sure
    ]
    assert verdicts(tests) == ["better", "not worse", "no claim", "worse"]
    assert verdicts([None, None]) == ["no claim", "no claim"]


def test_regions_without_a_claim_do_not_make_the_others_harder():
    one = RegionTests(better=0.04, not_worse=0.04, worse=1.0)
    assert verdicts([one, None, None]) == ["better", "no claim", "no claim"]
    assert verdicts([one, one, None]) == ["open", "open", "no claim"]


def test_the_first_round_that_reaches_a_target():
    assert first_reaching([0.4, 0.6, 0.5, 0.7], 0.55) == 1
    assert first_reaching([0.4, 0.6], 0.4) == 0
    assert first_reaching([0.4, 0.6], 0.61) is None
