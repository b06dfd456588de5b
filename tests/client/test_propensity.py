"""Intervention harvesting: worked by hand, beside a slow reference, and on clicks of known bias."""

import math
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from client.propensity import MAX_POSITIONS, all_pairs, harvest, intervention_sets
from shared.errors import DataError
from shared.schema import CLICK_COLUMNS
from simulations.clickmodel import ClickModel, simulate_clicks
from simulations.datasets.source import Query


def impressions(*rows: tuple[str, str, int, bool]) -> pl.DataFrame:
    """Of (query, product, position, clicked)."""
    named = [
        {
            "request_id": f"r{number}",
            "ts": datetime(2025, 1, 1, tzinfo=UTC),
            "query": query,
            "product_id": product,
            "position": position,
            "clicked": clicked,
        }
        for number, (query, product, position, clicked) in enumerate(rows)
    ]
    return pl.DataFrame(named, schema=CLICK_COLUMNS)


def shown(query: str, product: str, position: int, clicks: int, times: int) -> pl.DataFrame:
    return impressions(*((query, product, position, number < clicks) for number in range(times)))


def test_sets_by_hand() -> None:
    """One pair at 1 and 2, one at 1 and 3, one that never moved; each counts by its rate."""
    log = pl.concat(
        [
            shown("a", "x", 1, 2, 4),
            shown("a", "x", 2, 1, 5),
            shown("b", "x", 1, 3, 3),
            shown("b", "x", 3, 0, 2),
            shown("a", "y", 2, 1, 1),
        ]
    )
    clicked, missed = intervention_sets(log)
    np.testing.assert_allclose(clicked, [[0, 2 / 4, 1], [1 / 5, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(missed, [[0, 2 / 4, 0], [4 / 5, 0, 0], [1, 0, 0]])


def test_two_positions_by_hand() -> None:
    """With two positions the estimate is the ratio of the rates: (2 / 10) / (4 / 10)."""
    clicked, missed = np.array([[0, 4.0], [2.0, 0]]), np.array([[0, 6.0], [8.0, 0]])
    np.testing.assert_allclose(all_pairs(clicked, missed), [1, 1 / 2], rtol=1e-6)


def likelihood(p: NDArray[np.float64], clicked: NDArray[np.float64], missed: NDArray[np.float64]):
    """Equation 8 with the best r of each pair, by trying many."""
    total = 0.0
    for k in range(len(p)):
        for other in range(k):
            total += max(
                sum(
                    clicked[a, b] * math.log(p[a] * r) + missed[a, b] * math.log(1 - p[a] * r)
                    for a, b in ((k, other), (other, k))
                )
                for r in np.arange(1, 1000) / 1000
            )
    return total


def test_no_curve_near_the_estimate_is_likelier() -> None:
    """Rates that no curve explains exactly, so that the three pairs must find a compromise."""
    clicked = np.array([[0, 5.0, 9.0], [2.0, 0, 4.0], [3.0, 2.0, 0]])
    missed = np.array([[0, 5.0, 11.0], [8.0, 0, 6.0], [17.0, 8.0, 0]])
    estimate = all_pairs(clicked, missed)
    best = likelihood(estimate, clicked, missed)
    for place in (1, 2):
        for factor in (0.9, 1.1):
            other = estimate.copy()
            other[place] *= factor
            assert likelihood(other, clicked, missed) < best


@pytest.mark.parametrize("rate", [1.0, 0.1, 0.001])
def test_exact_rates_give_back_the_curve(rate: float) -> None:
    """However rare clicks are; relevance differs from pair to pair of positions."""
    rng, curve = np.random.default_rng(0), np.arange(1, 7) ** -1.2
    relevance, sizes = rng.uniform(0.1, 1, (6, 6)), rng.integers(5, 50, (6, 6))
    relevance, sizes = rate * (relevance + relevance.T) / 2, sizes + sizes.T
    clicked = sizes * curve[:, None] * relevance * (1 - np.eye(6))
    missed = sizes * (1 - np.eye(6)) - clicked
    np.testing.assert_allclose(all_pairs(clicked, missed), curve, rtol=1e-5)


def test_the_order_of_the_log_changes_nothing() -> None:
    log = simulated(requests=500)
    np.testing.assert_array_equal(harvest(log), harvest(log.reverse()))


def simulated(requests: int, eta: float = 0.7) -> pl.DataFrame:
    """Two rankers over thirty products, as a simulation has them; relevant ones are above."""
    rng, ids = np.random.default_rng(3), [f"p{row}" for row in range(30)]
    queries = [
        Query(
            f"q{number}",
            np.sort(rng.choice(30, 12, replace=False)),
            rng.integers(1, 4, 12, np.int8),
        )
        for number in range(20)
    ]
    relevant = np.array([np.isin(np.arange(30), query.rows) for query in queries])
    rankings = {
        name: np.argsort(-(relevant + rng.normal(0, 0.7, relevant.shape)), axis=1)
        for name in ("bm25", "dense")
    }
    model = ClickModel(eta=eta)
    return simulate_clicks(
        queries, rankings, ids, np.arange(30), requests=requests, seed=5, model=model
    )


@pytest.mark.parametrize("eta", [0.7, 1.5])
def test_the_bias_of_simulated_shoppers_is_recovered(eta: float) -> None:
    """Within 0.03 at every position, from clicks alone; the log's own propensities are not read."""
    log = simulated(requests=40_000, eta=eta).with_columns(propensity=pl.lit(None, pl.Float64))
    np.testing.assert_allclose(harvest(log), np.arange(1, 11) ** -eta, atol=0.03)


def test_click_rates_by_position_would_not_have_told() -> None:
    """Rankers put what is relevant above, so clicks fall faster than looks."""
    log = simulated(requests=40_000)
    rates = log.group_by("position").agg(pl.col("clicked").mean()).sort("position")["clicked"]
    naive = (rates / rates[0]).to_numpy()
    truth = np.arange(1, 11) ** -0.7
    assert np.abs(harvest(log) - truth).max() < np.abs(naive - truth).max() / 2


def test_without_interventions_nothing_is_estimated() -> None:
    still = impressions(("a", "x", 1, True), ("a", "y", 2, False), ("b", "x", 2, True))
    for log in (still, still.clear()):
        with pytest.raises(DataError, match='set propensity = "logged" in \\[clicks\\]'):
            harvest(log)


def test_a_position_that_no_product_shares_is_taken_for_the_one_above() -> None:
    log = pl.concat([shown("a", "x", 1, 4, 4), shown("a", "x", 2, 2, 4), shown("b", "y", 4, 1, 1)])
    np.testing.assert_allclose(harvest(log), [1, 1 / 2, 1 / 2, 1 / 2], rtol=1e-4)


def test_far_positions_are_one() -> None:
    log = pl.concat([shown("a", "x", 1, 4, 4), shown("a", "x", 900, 1, 4)])
    curve = harvest(log)
    assert len(curve) == MAX_POSITIONS
    assert curve[-1] == pytest.approx(1 / 4, rel=1e-4)
