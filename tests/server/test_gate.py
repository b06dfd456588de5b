"""The release gate: laws of a non-inferiority test, hand-worked bounds, and how often it errs."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.gate import GateCheck, GateRule, decide, from_json, to_json
from shared.wire_evaluation import Difference

RULE = GateRule(tolerance=0.02, confidence=0.95, min_queries=30)
Z95 = 1.6448536269514722  # 95 % quantile of the standard normal, from any table

References = dict[int, dict[str, Difference]]
means = st.floats(-1, 1)
figures = st.builds(
    Difference, num_queries=st.integers(0, 400), mean=means, variance=st.floats(0, 0.3)
)
regions = st.dictionaries(st.sampled_from(["east", "north", "south", "west"]), figures)
references = st.dictionaries(st.integers(0, 9), regions, max_size=3)
rules = st.builds(
    GateRule,
    tolerance=st.floats(0, 0.3),
    confidence=st.floats(0.5, 0.99),
    min_queries=st.integers(2, 100),
)


def only(**regions: Difference) -> References:
    return {0: regions}


def check_of(decision_checks: tuple[GateCheck, ...], scope: str, reference: int = 0) -> GateCheck:
    [check] = [c for c in decision_checks if (c.reference, c.scope) == (reference, scope)]
    return check


# -- laws ------------------------------------------------------------------------------------------


@given(references, rules, st.randoms(use_true_random=False))
def test_the_order_of_regions_and_references_changes_nothing(
    found: References, rule: GateRule, random: Random
) -> None:
    def shuffled(items: Mapping[object, object]) -> dict[object, object]:
        keys = list(items)
        random.shuffle(keys)
        return {key: items[key] for key in keys}

    again = shuffled({number: shuffled(regions) for number, regions in found.items()})
    assert decide(again, rule) == decide(found, rule)


@given(references, rules, st.data())
def test_lowering_a_mean_never_turns_a_refusal_into_an_acceptance(
    found: References, rule: GateRule, data: st.DataObject
) -> None:
    places = [(number, region) for number, regions in found.items() for region in regions]
    if not places:
        return
    number, region = data.draw(st.sampled_from(places))
    before = found[number][region]
    worse = replace(before, mean=data.draw(st.floats(-1, before.mean)))
    lowered = {**found, number: {**found[number], region: worse}}
    assert decide(lowered, rule).accepted <= decide(found, rule).accepted


@given(references, rules, st.floats(0, 0.5))
def test_a_larger_tolerance_never_turns_an_acceptance_into_a_refusal(
    found: References, rule: GateRule, more: float
) -> None:
    lenient = replace(rule, tolerance=rule.tolerance + more)
    assert decide(found, rule).accepted <= decide(found, lenient).accepted


@given(references, rules, st.integers(10, 20), regions)
def test_another_reference_never_turns_a_refusal_into_an_acceptance(
    found: References, rule: GateRule, number: int, more: dict[str, Difference]
) -> None:
    if found:
        assert decide({**found, number: more}, rule).accepted <= decide(found, rule).accepted


@given(st.floats(0, 0.5, exclude_min=True), st.floats(0.5, 0.999), st.integers(2, 500))
def test_an_identical_candidate_is_accepted(
    tolerance: float, confidence: float, num_queries: int
) -> None:
    rule = GateRule(tolerance, confidence, min_queries=num_queries)
    same = Difference(num_queries, 0.0, 0.0)
    decision = decide({0: {"east": same, "north": same}, 4: {"east": same}}, rule)
    assert decision.accepted
    assert decision.reasons == ()


@given(references, rules)
def test_one_region_alone_is_its_own_mean(found: References, rule: GateRule) -> None:
    for regions in found.values():
        for region, figure in regions.items():
            if figure.num_queries >= 2:
                checks = decide(only(**{region: figure}), rule).checks
                mean, own = check_of(checks, "mean"), check_of(checks, region)
                assert mean.lower == pytest.approx(own.lower)
                assert mean.counted == own.counted


@given(references, rules)
def test_a_decision_reads_back_from_json(found: References, rule: GateRule) -> None:
    decision = decide(found, rule)
    assert from_json(json.loads(json.dumps(to_json(decision), allow_nan=False))) == decision


@given(references, rules)
def test_refused_means_there_is_a_reason_and_every_reason_is_one_line(
    found: References, rule: GateRule
) -> None:
    decision = decide(found, rule)
    assert decision.accepted == (not decision.reasons)
    assert all("\n" not in reason for reason in decision.reasons)


# -- worked by hand --------------------------------------------------------------------------------


def test_the_bounds_of_two_regions_by_hand() -> None:
    found = only(east=Difference(100, 0.03, 0.04), north=Difference(400, 0.01, 0.09))
    decision = decide(found, RULE)
    east, north = check_of(decision.checks, "east"), check_of(decision.checks, "north")
    mean = check_of(decision.checks, "mean")
    # standard errors: sqrt(0.04 / 100) = 0.02 and sqrt(0.09 / 400) = 0.015
    assert east.lower == pytest.approx(0.03 - Z95 * 0.02)  # -0.0029
    assert north.lower == pytest.approx(0.01 - Z95 * 0.015)  # -0.0147
    assert mean.mean == pytest.approx(0.02)
    assert mean.lower == pytest.approx(0.02 - Z95 * 0.025 / 2)  # 3-4-5: sqrt(.02² + .015²) = .025
    assert mean.num_queries == 500
    assert decision.accepted


def test_the_same_figures_at_a_smaller_tolerance_fail_in_one_region_only() -> None:
    found = only(east=Difference(100, 0.03, 0.04), north=Difference(400, 0.01, 0.09))
    decision = decide(found, replace(RULE, tolerance=0.01))
    assert not decision.accepted
    assert [check.scope for check in decision.checks if not check.passed] == ["north"]
    assert decision.reasons == (
        "reference 0, north: +0.0100 nDCG@10, lower bound -0.0147 on 400 queries, "
        "needs above -0.0100",
    )


def test_at_even_confidence_the_bound_is_the_mean() -> None:
    decision = decide(only(east=Difference(50, 0.1, 0.2)), replace(RULE, confidence=0.5))
    assert check_of(decision.checks, "east").lower == pytest.approx(0.1)


def test_the_bound_must_be_above_minus_tolerance_not_at_it() -> None:
    at = only(east=Difference(50, -0.25, 0.0))
    assert not decide(at, replace(RULE, tolerance=0.25)).accepted
    assert decide(at, replace(RULE, tolerance=math.nextafter(0.25, 1))).accepted


def test_one_region_far_below_fails_even_if_the_mean_is_good() -> None:
    good = Difference(200, 0.2, 0.01)
    found = only(east=good, north=good, south=good, west=Difference(200, -0.1, 0.01))
    decision = decide(found, RULE)
    assert check_of(decision.checks, "mean").passed
    assert not decision.accepted
    assert [reason.split(":")[0] for reason in decision.reasons] == ["reference 0, west"]


def test_a_mean_below_fails_even_if_no_region_alone_counts() -> None:
    small = Difference(20, -0.2, 0.0)  # 20 queries each, 40 together
    decision = decide(only(east=small, north=small), RULE)
    assert [check.counted for check in decision.checks] == [True, False, False]
    assert [reason.split(":")[0] for reason in decision.reasons] == ["reference 0, mean"]


def test_a_small_region_far_below_is_reported_but_not_counted() -> None:
    good = Difference(500, 0.1, 0.01)
    small = Difference(RULE.min_queries - 1, -0.1, 0.01)
    decision = decide(only(east=good, north=good, south=small), RULE)
    south = check_of(decision.checks, "south")
    assert (south.passed, south.counted, south.num_queries) == (False, False, 29)
    assert decision.accepted
    larger = replace(small, num_queries=RULE.min_queries)
    assert not decide(only(east=good, north=good, south=larger), RULE).accepted


def test_regions_with_one_query_or_none_stay_out_of_the_mean() -> None:
    found = only(east=Difference(50, 0.1, 0.01), north=Difference(1, -1.0, 0.0))
    decision = decide({0: {**found[0], "west": Difference(0, 0.0, 0.0)}}, RULE)
    assert [check.scope for check in decision.checks] == ["mean", "east", "north"]
    assert check_of(decision.checks, "mean").mean == pytest.approx(0.1)
    north = check_of(decision.checks, "north")
    assert (north.lower, north.passed, north.counted) == (-1.0, False, False)
    assert decision.accepted


def test_every_reference_must_hold() -> None:
    better, worse = Difference(100, 0.1, 0.01), Difference(100, -0.1, 0.01)
    decision = decide({7: {"east": worse}, 0: {"east": better}, 5: {"east": better}}, RULE)
    assert [(check.reference, check.scope) for check in decision.checks] == [
        (0, "mean"), (0, "east"), (5, "mean"), (5, "east"), (7, "mean"), (7, "east"),
    ]  # fmt: skip
    assert [reason.split(":")[0] for reason in decision.reasons] == [
        "reference 7, mean",
        "reference 7, east",
    ]


# -- nothing to decide by --------------------------------------------------------------------------


def test_no_reference_is_a_refusal() -> None:
    decision = decide({}, RULE)
    assert not decision.accepted
    assert decision.reasons == ("nothing to compare with; a candidate needs one reference or more",)


@pytest.mark.parametrize(
    ("regions", "most"),
    [
        ({}, 0),
        ({"east": Difference(0, 0.0, 0.0)}, 0),
        ({"east": Difference(1, 0.5, 0.0), "north": Difference(1, 0.5, 0.0)}, 1),
        ({"east": Difference(2, 0.5, 0.0)}, 2),  # two equal queries do not make a sure figure
        ({"east": Difference(10, 0.5, 0.0), "north": Difference(19, 0.5, 0.0)}, 29),
    ],
)
def test_a_reference_with_too_few_queries_is_a_refusal(
    regions: dict[str, Difference], most: int
) -> None:
    decision = decide({0: {"east": Difference(100, 0.1, 0.0)}, 3: regions}, RULE)
    assert not decision.accepted
    assert decision.reasons == (
        f"reference 3: undecided on {most} gate queries, a decision needs 30, in regions with "
        "two or more each",
    )


@pytest.mark.parametrize(
    "broken",
    [
        Difference(50, math.nan, 0.1),
        Difference(50, math.inf, 0.1),
        Difference(50, 0.1, math.nan),
        Difference(50, 0.1, -0.1),
        Difference(-1, 0.1, 0.1),
    ],
)
def test_a_figure_that_cannot_be_is_no_decision(broken: Difference) -> None:
    with pytest.raises(ValueError, match="reference 0, north: no finite mean and variance"):
        decide(only(north=broken), RULE)


@pytest.mark.parametrize("value", [{}, {"accepted": True}, {"accepted": 1, "checks": [{}]}])
def test_what_is_not_a_decision_is_not_read_as_one(value: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not a gate decision"):
        from_json(value)


# -- how often it errs -----------------------------------------------------------------------------


def simulated(
    rng: np.random.Generator, true_mean: float, *, trials: int, num_queries: tuple[int, ...]
) -> list[References]:
    """Skewed differences, as nDCG's are: most queries tie, the others move by up to 0.6."""
    found = []
    for _ in range(trials):
        regions = {}
        for number, n in enumerate(num_queries):
            moves = rng.choice([-0.6, -0.2, 0.0, 0.3, 0.5], n, p=[0.05, 0.15, 0.6, 0.1, 0.1])
            values = moves - 0.02 + true_mean  # the moves have mean 0.02
            regions[f"r{number}"] = Difference(n, float(values.mean()), float(values.var(ddof=1)))
        found.append({0: regions})
    return found


def test_a_candidate_worse_by_the_tolerance_passes_the_mean_one_time_in_twenty() -> None:
    rng, trials = np.random.default_rng(11), 3000
    found = simulated(rng, -RULE.tolerance, trials=trials, num_queries=(60, 120, 240))
    decisions = [decide(differences, RULE) for differences in found]
    passed = sum(check_of(decision.checks, "mean").passed for decision in decisions) / trials
    assert 0.035 < passed < 0.065  # four standard errors, sqrt(0.05 × 0.95 / 3000) = 0.004
    # The regions must hold too, so the whole gate lets fewer through.
    assert sum(decision.accepted for decision in decisions) / trials < passed


def test_one_harmed_region_gets_a_candidate_through_at_most_one_time_in_twenty() -> None:
    rng, trials = np.random.default_rng(12), 2000
    good = simulated(rng, 0.2, trials=trials, num_queries=(200, 200, 200))
    harmed = simulated(rng, -RULE.tolerance, trials=trials, num_queries=(200,))
    both = [{0: {**a[0], "west": b[0]["r0"]}} for a, b in zip(good, harmed, strict=True)]
    assert 0.03 < sum(decide(found, RULE).accepted for found in both) / trials < 0.07


def test_a_clearly_better_candidate_nearly_always_passes() -> None:
    found = simulated(np.random.default_rng(13), 0.1, trials=300, num_queries=(200, 200, 200))
    assert sum(decide(differences, RULE).accepted for differences in found) / 300 > 0.95


def test_the_same_on_average_passes_half_the_time_at_the_size_the_docstring_names() -> None:
    deviation = math.sqrt(0.05 * 0.36 + 0.15 * 0.04 + 0.1 * 0.09 + 0.1 * 0.25 - 0.02**2)
    n = round((Z95 * deviation / RULE.tolerance) ** 2)
    found = simulated(np.random.default_rng(14), 0.0, trials=1000, num_queries=(n,))
    assert 0.44 < sum(decide(differences, RULE).accepted for differences in found) / 1000 < 0.56
