from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from shared.errors import DataError
from shared.schema import CLICK_COLUMNS
from simulations.clickmodel import (
    EXPLORATION,
    LOG_DAYS,
    LOG_END,
    ClickModel,
    grades_at,
    simulate_clicks,
)
from simulations.datasets.source import Query
from simulations.queries import split_queries

N = 60
IDS = [f"p{n:02d}" for n in range(N)]
COLD = np.arange(0, N, 10)
SHOWN = np.setdiff1d(np.arange(N), COLD)


def world_queries():
    rng = np.random.default_rng(1)
    for number in range(30):
        rows = np.sort(rng.choice(N, 20, replace=False)).astype(np.int64)
        grades = rng.integers(1, 4, 20).astype(np.int8)
        yield Query(f"query {number}", rows, grades, popularity=1.0 + number)


SEEN, TEST = split_queries(world_queries())


def rankings(k=30):
    rng = np.random.default_rng(2)
    orders = np.array([rng.permutation(N) for _ in SEEN])
    return {"bm25": orders[:, :k], "dense": orders[:, -k:]}


def log(requests=3000, seed=7, **options):
    return simulate_clicks(SEEN, rankings(), IDS, SHOWN, requests=requests, seed=seed, **options)


def graded(clicks):
    numbers = {query.text: number for number, query in enumerate(SEEN)}
    asked = np.array([numbers[text] for text in clicks["query"]])
    rows = np.array([int(name[1:]) for name in clicks["product_id"]])
    return clicks.with_columns(grade=grades_at(SEEN, asked, rows[:, None], N)[:, 0])


def test_the_log_has_the_agreed_columns_and_reads_by_time():
    clicks = log()
    assert dict(clicks.schema) == CLICK_COLUMNS
    assert clicks["ts"].is_sorted()
    assert clicks["ts"].max() <= LOG_END
    assert clicks["ts"].min() >= LOG_END - timedelta(days=LOG_DAYS)


def test_no_test_query_and_no_cold_product_is_ever_shown():
    clicks = log()
    assert TEST
    assert not set(clicks["query"]) & {query.text for query in TEST}
    assert not set(clicks["product_id"]) & {IDS[row] for row in COLD}


def test_each_request_shows_ten_positions_and_ten_products_once():
    requests = (
        log()
        .group_by("request_id")
        .agg(pl.col("position").sort(), pl.col("product_id").n_unique(), pl.col("query").n_unique())
    )
    assert requests.height == 3000
    assert requests["position"].to_list() == [list(range(1, 11))] * 3000
    assert requests["product_id"].unique().to_list() == [10]
    assert requests["query"].unique().to_list() == [1]


def test_propensity_is_the_examination_of_its_position():
    clicks = log()
    assert clicks["propensity"].is_between(0.0, 1.0, closed="right").all()
    expected = clicks["position"].to_numpy() ** -ClickModel().eta
    np.testing.assert_allclose(clicks["propensity"], expected)


def test_steps_follow_one_another():
    clicks = log()
    assert clicks.filter(pl.col("carted") & ~pl.col("clicked")).is_empty()
    assert clicks.filter(pl.col("purchased") & ~pl.col("carted")).is_empty()
    assert clicks["purchased"].any()


def test_debiased_click_rate_is_that_of_the_grade():
    clicks = graded(log(requests=20_000))
    weighted = clicks.group_by("grade").agg(rate=(pl.col("clicked") / pl.col("propensity")).mean())
    rates = weighted.sort("grade")["rate"].to_numpy()
    np.testing.assert_allclose(rates, ClickModel().click, atol=0.02)
    assert (np.diff(rates) > 0).all()


def test_click_rate_falls_with_position():
    model = ClickModel(mix={EXPLORATION: 1.0})
    by_place = log(requests=20_000, model=model).group_by("position").agg(pl.col("clicked").mean())
    rates = by_place.sort("position")["clicked"].to_numpy()
    np.testing.assert_allclose(rates / rates[0], model.examination(), atol=0.05)


def test_the_mix_of_rankers_is_kept_and_exploration_is_blind():
    clicks = log(requests=20_000)
    shares = dict(clicks["ranker"].value_counts(normalize=True).rows())
    assert shares == pytest.approx(dict(ClickModel().mix), abs=0.02)
    explored = clicks.filter(ranker=EXPLORATION)["product_id"].value_counts()["count"].to_numpy()
    assert len(explored) == len(SHOWN)
    assert explored.max() < 1.3 * explored.mean()


def test_without_jitter_the_ranking_is_shown_as_it_is():
    model = ClickModel(mix={"bm25": 1.0}, jitter=0.0)
    clicks = simulate_clicks(SEEN, rankings(), IDS, SHOWN, requests=50, seed=7, model=model)
    for number, query in enumerate(SEEN):
        order = rankings()["bm25"][number]
        expected = [IDS[row] for row in order if row in SHOWN][:10]
        first = clicks.filter(query=query.text)["product_id"].to_list()[:10]
        assert first in (expected, [])


def test_same_seed_same_log_and_prefixes_keep_regions_apart():
    assert log().equals(log())
    assert not log().equals(log(seed=8))
    north, south = log(prefix="north"), log(prefix="south")
    assert not set(north["user_key"]) & set(south["user_key"])
    assert not set(north["request_id"]) & set(south["request_id"])


def test_short_rankings_fill_the_first_positions_only():
    short = {name: np.where(np.arange(30) < 4, rows, -1) for name, rows in rankings().items()}
    clicks = simulate_clicks(SEEN, short, IDS, SHOWN, requests=500, seed=7)
    ranked = clicks.filter(pl.col("ranker") != EXPLORATION)
    places = ranked.group_by("request_id").agg(pl.col("position").sort())["position"].to_list()
    assert all(place == list(range(1, len(place) + 1)) for place in places)
    assert max(map(len, places)) == 4


def test_a_query_without_anything_to_show_is_never_asked():
    hopeless = [
        Query("only cold", COLD[:1], np.array([3], np.int8)),
        Query("only loosely", SHOWN[:1], np.array([1], np.int8)),
        Query("nothing", SHOWN[:0], np.empty(0, np.int8)),
    ]
    orders = np.tile(np.arange(N), (4, 1))
    hopeful = Query("something", SHOWN[:1], np.array([2], np.int8))
    clicks = simulate_clicks(
        [*hopeless, hopeful], {"bm25": orders, "dense": orders}, IDS, SHOWN, requests=50, seed=7
    )
    assert clicks["query"].unique().to_list() == ["something"]
    with pytest.raises(DataError, match="no seen query"):
        simulate_clicks(hopeless, {"bm25": orders, "dense": orders}, IDS, SHOWN, requests=5, seed=7)


def test_a_missing_ranker_is_named():
    with pytest.raises(DataError, match="no ranking from dense"):
        simulate_clicks(SEEN, {"bm25": rankings()["bm25"]}, IDS, SHOWN, requests=5, seed=7)


def test_grades_are_those_of_a_slow_look_up():
    rng = np.random.default_rng(3)
    asked = rng.integers(0, len(SEEN), 40)
    lists = rng.integers(-1, N, (40, 10))
    known = [dict(zip(q.rows.tolist(), q.grades.tolist(), strict=True)) for q in SEEN]
    slow = [
        [known[number].get(row, 0) for row in shown]
        for number, shown in zip(asked, lists.tolist(), strict=True)
    ]
    assert grades_at(SEEN, asked, lists, N).tolist() == slow
