"""Laws of splitting and weighting; every weight below is worked by hand from the formula."""

import math
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.clicks import make_examples, make_validation_set, split_by_time, split_log
from shared.schema import CLICK_COLUMNS, RegionConfig, SplitConfig

START = datetime(2025, 3, 1, tzinfo=UTC)
IDS = pl.Series([f"p{i}" for i in range(6)])


def impression(query="boots", product="p0", did="", *, request="r0", minute=0, propensity=None):
    """`did` is "", "click", "cart" or "purchase"; each implies those before it."""
    done = ["", "click", "cart", "purchase"].index(did)
    return {
        "request_id": request,
        "ts": START + timedelta(minutes=minute),
        "query": query,
        "product_id": product,
        "position": 1,
        "clicked": done >= 1,
        "carted": done >= 2,
        "purchased": done >= 3,
        "propensity": propensity,
    }


def log(*rows):
    return pl.DataFrame([*rows], schema=CLICK_COLUMNS)


def random_log(seed, size=200):
    rng = np.random.default_rng(seed)
    actions = ["", "", "", "click", "cart", "purchase"]
    return log(
        *(
            impression(
                f"q{rng.integers(8)}",
                f"p{rng.integers(6)}",
                actions[rng.integers(6)],
                request=f"r{i // 4}",
                minute=int(rng.integers(500)),
                propensity=float(rng.uniform(0.1, 1)),
            )
            for i in range(size)
        )
    )


def weight(*rows, **options):
    (only,) = make_examples(log(*rows), IDS, **options).weight
    return float(only)


def same(left, right):
    return left.queries == right.queries and all(
        np.array_equal(getattr(left, name), getattr(right, name))
        for name in ("query_index", "product_row", "weight", "positives")
    )


def test_splits_go_by_time_of_whole_requests():
    rows = [impression(request=f"r{m}", minute=m, product=p) for m in range(10) for p in IDS[:2]]
    splits = split_by_time(log(*rows).reverse(), SplitConfig(validation=0.2, gate=0.1))
    requests = [sorted(set(part["request_id"])) for part in (splits.validation, splits.gate)]
    assert requests == [["r7", "r8"], ["r9"]]
    assert splits.train["request_id"].n_unique() == 7


@given(st.integers(0, 50), st.floats(0, 0.49), st.floats(0, 0.49))
def test_splits_are_disjoint_complete_and_ordered(seed, validation, gate):
    clicks = random_log(seed, 60)
    splits = split_by_time(clicks, SplitConfig(validation=validation, gate=gate))
    parts = [splits.train, splits.validation, splits.gate]
    requests = [request for part in parts for request in set(part["request_id"])]
    assert len(requests) == len(set(requests))
    assert sum(part.height for part in parts) == clicks.height
    first = clicks.group_by("request_id").agg(pl.col("ts").min())
    times = [part.join(first, on="request_id")["ts_right"] for part in parts if part.height]
    for older, newer in pairwise(times):
        assert older.max() <= newer.min()


def test_zero_shares_leave_everything_to_training():
    clicks = random_log(1)
    splits = split_by_time(clicks, SplitConfig(validation=0, gate=0))
    assert splits.train.equals(clicks)
    assert splits.validation.height == splits.gate.height == 0


@given(st.integers(0, 50), st.randoms())
def test_permuting_rows_changes_nothing(seed, random):
    clicks = random_log(seed, 60)
    order = random.sample(range(60), 60)
    shuffled = clicks[order]
    shares = SplitConfig(validation=0.2, gate=0.2)
    assert same(make_examples(clicks, IDS), make_examples(shuffled, IDS))
    one, other = split_by_time(clicks, shares), split_by_time(shuffled, shares)
    assert set(one.gate["request_id"]) == set(other.gate["request_id"])
    assert same(make_examples(one.train, IDS), make_examples(other.train, IDS))


def test_one_example_a_clicked_pair():
    clicks = log(
        impression("b", "p3", "click"),
        impression("b", "p3", "cart"),
        impression("b", "p1", "click"),
        impression("a", "p5", "click"),
        impression("a", "p0"),
        impression("c", "p0"),
    )
    examples = make_examples(clicks, IDS)
    assert examples.queries == ["a", "b"]
    assert examples.query_index.tolist() == [0, 1, 1]
    assert examples.product_row.tolist() == [5, 1, 3]
    assert examples.positives.tolist() == [0 * 6 + 5, 1 * 6 + 1, 1 * 6 + 3]
    assert (examples.weight.dtype, examples.product_row.dtype) == (np.float32, np.int64)
    assert examples.query_index.flags.writeable and examples.product_row.flags.writeable


def shown(query, *did, request):
    """One request's list from the top: "" or what was done with each product."""
    return [
        impression(query, f"p{place}", done, request=request) | {"position": place + 1}
        for place, done in enumerate(did)
    ]


def test_what_was_skipped_stood_above_the_last_click():
    clicks = log(
        *shown("a", "", "click", "", "cart", "", request="r0"),
        *shown("b", "", "", request="r1"),  # no click: nothing is known to have been seen
        *shown("b", "click", "", request="r2"),
    )
    examples = make_examples(clicks, IDS)
    assert examples.queries == ["a", "b"]
    assert examples.skipped.tolist() == [0, 2]


def test_what_was_clicked_another_time_was_not_skipped():
    rows = [*shown("a", "", "", "click", request="r0"), *shown(" a ", "click", request="r1")]
    assert make_examples(log(*rows), IDS).skipped.tolist() == [1]


@given(st.integers(0, 50))
def test_skipped_and_clicked_products_of_a_query_are_disjoint(seed):
    rng = np.random.default_rng(seed)
    clicks = random_log(seed).with_columns(position=pl.Series(rng.integers(1, 9, 200)))
    examples = make_examples(clicks, IDS)
    assert not set(examples.skipped.tolist()) & set(examples.positives.tolist())
    assert (np.diff(examples.skipped) > 0).all()
    assert (examples.skipped < len(examples.queries) * len(IDS)).all()


def test_spelling_apart_from_white_space_makes_a_query():
    clicks = log(*(impression(query, did="click") for query in ("a  b", " a b ", "a b", "A b", "")))
    assert make_examples(clicks, IDS).queries == ["A b", "a b"]


def test_weights_by_hand():
    assert weight(impression(did="click"), weighting="plain") == 1
    assert weight(impression(did="cart"), weighting="plain") == pytest.approx(math.log2(3))
    assert weight(impression(did="purchase"), weighting="plain") == 2
    assert weight(impression(did="click"), impression(did="cart"), weighting="plain") == 2
    assert weight(impression(did="click")) == pytest.approx(2 / 5)
    assert weight(impression(did="click"), impression(), impression()) == pytest.approx(2 / 7)
    low = impression(did="click", propensity=0.5), impression(propensity=0.25)
    assert weight(*low) == pytest.approx(2 / 4.75)
    surely = [impression(did="click", propensity=0.1)] * 7
    assert weight(*surely) == pytest.approx(math.log2(8))


@pytest.mark.parametrize("weighting", ["relevance", "inverse", "plain"])
def test_weight_grows_with_the_action(weighting):
    weights = [
        weight(impression(did=did), weighting=weighting) for did in ("click", "cart", "purchase")
    ]
    assert weights == sorted(set(weights))


@given(st.lists(st.sampled_from(["", "click", "cart", "purchase"]), max_size=8))
def test_one_more_click_never_costs_and_one_more_look_never_gains(history):
    rows = [impression(did="click"), *(impression(did=did) for did in history)]
    assert weight(*rows, impression(did="click")) > weight(*rows)
    assert weight(*rows, impression()) < weight(*rows)


def test_inverse_weights_by_hand():
    low = [impression(did="click", propensity=1 / 4), impression(did="cart", propensity=1 / 2)]
    assert weight(*low, weighting="inverse") == pytest.approx(math.log2(1 + 1 * 4 + 2 * 2))
    clipped = impression(did="click", propensity=0.01)
    assert weight(clipped, weighting="inverse") == pytest.approx(math.log2(1 + 10))
    assert weight(clipped, weighting="inverse", min_propensity=0.5) == pytest.approx(math.log2(3))


def test_a_stray_click_on_a_much_seen_product_counts_for_little():
    stray = weight(impression(did="click"), *[impression()] * 95)
    assert stray < weight(impression(did="click")) / 15


def test_clicked_low_in_the_list_counts_for_more():
    low = weight(impression(did="click", propensity=0.1))
    assert low > weight(impression(did="click", propensity=1.0))


def test_no_clicks_make_no_examples():
    for clicks in (log(), log(impression())):
        examples = make_examples(clicks, IDS)
        assert examples.queries == []
        assert examples.weight.shape == examples.positives.shape == (0,)
        held_out = make_validation_set(clicks, IDS)
        assert (held_out.queries, held_out.rows, held_out.gains) == ([], [], [])
        assert (held_out.weights, held_out.squares, held_out.num_clicks) == ([], [], 0)


# -- validation ------------------------------------------------------------------------------------


def gains(*rows):
    """Of a log, {query: {catalog row: gain}}."""
    held_out = make_validation_set(log(*rows), IDS)
    parts = zip(held_out.queries, held_out.rows, held_out.gains, strict=True)
    return {q: dict(zip(r.tolist(), g.tolist(), strict=True)) for q, r, g in parts}


def test_gains_by_hand():
    got = gains(
        impression("b", "p3", "click", propensity=1 / 2),
        impression("b", "p3", propensity=1 / 4),
        impression("b", "p3", "click", propensity=1 / 4),
        impression("b", "p1", propensity=1.0),
        impression("a", "p5", "click", propensity=1.0),
        impression("a", "p5", propensity=1.0),
        impression("a", "p5", propensity=1.0),
    )
    assert got == {
        "a": {5: pytest.approx(1 / 3)},
        "b": {1: 0, 3: pytest.approx((2 + 4) / 3)},
    }


def test_the_weights_of_clicks_by_hand():
    held_out = make_validation_set(
        log(
            impression("a", "p3", "click", propensity=1 / 2),
            impression("a", "p3", "cart", propensity=1 / 4),
            impression("a", "p3", propensity=1 / 4),
            impression("a", "p1"),
            impression("b", "p1", "click"),
        ),
        IDS,
    )
    assert [part.tolist() for part in held_out.weights] == [[0, 2 + 4], [1]]
    assert [part.tolist() for part in held_out.squares] == [[0, 4 + 16], [1]]
    assert held_out.num_clicks == 3


def test_the_least_propensity_is_a_choice():
    rows = log(impression(did="click", propensity=0.01))
    gains = [make_validation_set(rows, IDS, min_propensity=p).gains[0].tolist() for p in (0.05, 1)]
    assert gains == [[pytest.approx(20)], [1]]


def test_a_purchase_is_a_click():
    """Gains estimate relevance, not value; what was done weighs in training only."""
    for did in ("click", "cart", "purchase"):
        assert gains(impression(did=did, propensity=0.5)) == {"boots": {0: 2}}


def test_no_propensity_counts_as_one():
    assert gains(impression(did="click"), impression()) == {"boots": {0: 1 / 2}}


@pytest.mark.parametrize(("propensity", "gain"), [(0.2, 5), (0.1, 10), (0.05, 10), (0.001, 10)])
def test_a_click_counts_at_most_ten_times(propensity, gain):
    got = gains(impression(did="click", propensity=propensity))
    assert got == {"boots": {0: pytest.approx(gain)}}


def test_a_query_without_a_click_is_left_out():
    got = gains(impression("a", "p0"), impression("b", "p1", "click"), impression("b", "p0"))
    assert got == {"b": {0: 0, 1: 1}}


def test_what_is_not_in_the_catalog_is_left_out():
    assert gains(impression(product="gone", did="click"), impression()) == {}


def test_gains_recover_relevance_whatever_the_position():
    """Seen in a tenth of the looks or in all of them: half of the lookers click."""
    low = [impression("a", "p0", did, propensity=0.1) for did in ("click", *[""] * 19)]
    high = [impression("a", "p1", did, propensity=1.0) for did in ("click", "") * 10]
    assert gains(*low, *high) == {"a": {0: pytest.approx(1 / 2), 1: pytest.approx(1 / 2)}}


@given(st.integers(0, 50), st.randoms())
def test_permuting_rows_changes_no_gain(seed, random):
    clicks = random_log(seed, 60)
    one, other = (
        make_validation_set(part, IDS) for part in (clicks, clicks[random.sample(range(60), 60)])
    )
    assert one.queries == other.queries == sorted(set(one.queries))
    for name in ("rows", "gains"):
        pairs = zip(getattr(one, name), getattr(other, name), strict=True)
        assert all(np.array_equal(ours, theirs) for ours, theirs in pairs)
    for rows, values in zip(one.rows, one.gains, strict=True):
        assert (np.diff(rows) > 0).all()
        assert len(rows) == len(values)
        assert values.min() >= 0
        assert 0 < values.max() <= 10


# -- propensities ----------------------------------------------------------------------------------


def region(choice):
    base = {"path": "base", "fingerprint": "f", "release_key": "k", "releases": "r"}
    return RegionConfig.model_validate(
        {"region": "north", "base": base, "clicks": {"propensity": choice}}
    )


def moved(minutes=range(40)):
    """Product 0 at position 1 and 2 by turns, clicked every time at 1 and every other time at 2."""
    rows = []
    for minute in minutes:
        place = minute % 2
        did = "click" if place == 0 or minute % 4 == 1 else ""
        row = impression("a", "p0", did, request=f"r{minute}", minute=minute)
        rows.append(row | {"position": place + 1, "propensity": 0.3 if minute % 3 == 0 else None})
    return log(*rows)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("logged", {(1, True): 0.3, (1, False): None, (2, True): 0.3, (2, False): None}),
        ("filled", {(1, True): 0.3, (1, False): 1.0, (2, True): 0.3, (2, False): 0.5}),
        ("harvested", {(1, True): 1.0, (1, False): 1.0, (2, True): 0.5, (2, False): 0.5}),
        ("ignored", {(1, True): 1.0, (1, False): 1.0, (2, True): 1.0, (2, False): 1.0}),
    ],
)
def test_where_propensities_come_from(choice, expected):
    clicks = moved()
    splits = split_log(clicks, region(choice))
    parts = pl.concat([splits.train, splits.validation, splits.gate])
    was_logged = dict(clicks.select("request_id", pl.col("propensity").is_not_null()).rows())
    assert parts.height == clicks.height
    for request, position, propensity in parts["request_id", "position", "propensity"].rows():
        wanted = expected[position, was_logged[request]]
        assert propensity == (wanted if wanted is None else pytest.approx(wanted, abs=1e-4))


def test_nothing_is_estimated_where_the_log_says_all():
    """`harvest` would refuse this log: no product has moved."""
    clicks = log(*(impression(request=f"r{n}", propensity=0.4) for n in range(5)))
    assert split_log(clicks, region("filled")).train["propensity"].unique().to_list() == [0.4]


def test_held_out_clicks_do_not_estimate_what_they_are_measured_with():
    """The last fifth, where position 2 is never clicked, is not asked."""
    clicks = moved()
    cut = clicks.with_columns(
        clicked=pl.col("clicked") & ((pl.col("position") == 1) | (pl.int_range(pl.len()) < 32))
    )
    curves = [
        split_log(part, region("harvested")).validation["propensity"].to_list()
        for part in (clicks, cut)
    ]
    assert curves[0] == curves[1]
