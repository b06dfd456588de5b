"""How likely a shopper looks at a position, where the log does not say: intervention harvesting.

A product that was shown for one query at two positions, because two rankers, two releases or the
day's stock put it there, is an experiment that nobody had to run: it is as relevant here as there,
so where it is clicked more, it is seen more (Agarwal, Zaitsev, Wang, Li, Najork and Joachims,
WSDM 2019, arXiv:1812.05161). Under the position-based model P(click) = p_k × r(query, product), let
S_kk' be the pairs of query and product that were shown at both k and k', and

    c_kk' = sum over S_kk' of clicks(q, d, k) / shown(q, d, k),    n_kk' = |S_kk'| - c_kk'

Then c_kk' / |S_kk'| estimates p_k r_kk', with r_kk' = r_k'k the mean relevance of S_kk', and the
AllPairs estimator (eq. 8 of the paper) is the p that, with r, maximizes

    sum over k ≠ k' of  c_kk' log(p_k r_kk') + n_kk' log(1 - p_k r_kk')

The function is concave in log p and log r, so going from one to the other, each at its best, finds
the maximum. Only ratios of p are known from clicks; p_1 = 1 fixes the scale. Here shown() counts
what the log holds; the paper, which knows its rankers, takes the expected number.
"""

from typing import Final, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from shared.errors import DataError

LOGGED, FILLED, HARVESTED, IGNORED = CHOICES = ("logged", "filled", "harvested", "ignored")
Choice = Literal["logged", "filled", "harvested", "ignored"]  # the same, for pydantic
MAX_POSITIONS: Final = 50  # beyond it a position is taken for the last one
MIN_ESTIMATE: Final = 1e-3
_SWEEPS, _HALVINGS, _TOLERANCE = 1000, 60, 1e-10

Matrix = NDArray[np.float64]


def with_propensities(clicks: pl.DataFrame, curve: Matrix | None, choice: Choice) -> pl.DataFrame:
    """Impressions with the propensities that learning and evaluation shall use.

    Args:
        clicks: impressions in `CLICK_COLUMNS`.
        curve: of positions 1, 2, ..., (K,); the last one is that of all further positions. None
            where nothing has to be estimated.
        choice: "logged" leaves the log as it is; "filled" estimates what it does not say;
            "harvested" trusts the curve alone; "ignored" takes every position for seen.
    """
    if choice == IGNORED:
        return clicks.with_columns(propensity=pl.lit(1.0))
    if choice == LOGGED or curve is None:
        return clicks
    estimated = pl.Series(curve[clicks["position"].clip(1, len(curve)).to_numpy() - 1])
    chosen = clicks["propensity"].fill_null(estimated) if choice == FILLED else estimated
    return clicks.with_columns(propensity=chosen)


def harvest(clicks: pl.DataFrame) -> Matrix:
    """Estimate how likely each position is looked at, from a log that says nothing about it.

    Args:
        clicks: impressions in `CLICK_COLUMNS`.

    Returns:
        Propensity of position 1, 2, ... up to the last one that the log has, (K,), in (0, 1], the
        first 1. A position that no product shares with another takes that of the one above it.

    Raises:
        DataError: position 1 shares no clicked product with any other: there was no intervention.
    """
    clicked, missed = intervention_sets(clicks)
    if clicked.sum() == 0 or (clicked + missed)[0].sum() == 0:
        raise DataError(
            "propensities cannot be estimated: for no query was a product shown both at position 1 "
            'and elsewhere; set propensity = "logged" in [clicks] of region.toml'
        )
    curve = all_pairs(clicked, missed)
    linked = _linked_to_first(clicked + missed > 0)
    for place in np.flatnonzero(~linked):
        curve[place] = curve[place - 1]
    return curve


def intervention_sets(clicks: pl.DataFrame) -> tuple[Matrix, Matrix]:
    """The paper's c and n of every two positions.

    Args:
        clicks: impressions in `CLICK_COLUMNS`.

    Returns:
        Sums of click rates and of their complements, (K, K) each; entry (k, k') is about position
        k + 1 of pairs that were also shown at k' + 1. The diagonal is 0.
    """
    place = pl.col("position").clip(1, MAX_POSITIONS) - 1
    rates = (
        clicks.group_by("query", "product_id", place=place)
        .agg(rate=pl.col("clicked").mean())
        .with_row_index("cell")
        .sort("query", "product_id", "place")  # float sums depend on order
    )
    both = rates.join(rates, on=["query", "product_id"], suffix="_other", maintain_order="left")
    both = both.filter(pl.col("place") != pl.col("place_other"))
    size = int(rates["place"].max() or 0) + 1 if rates.height else 1  # type: ignore[arg-type]
    clicked, missed = np.zeros((size, size)), np.zeros((size, size))
    at = both["place"].to_numpy(), both["place_other"].to_numpy()
    np.add.at(clicked, at, both["rate"].to_numpy())
    np.add.at(missed, at, 1 - both["rate"].to_numpy())
    return clicked, missed


def all_pairs(clicked: Matrix, missed: Matrix) -> Matrix:
    """The AllPairs estimate of propensities, relative to the first.

    Args:
        clicked: c of `intervention_sets`, (K, K).
        missed: n of the same, (K, K).

    Returns:
        (K,), in [MIN_ESTIMATE, 1], the first 1.
    """
    examined, relevant = np.ones(len(clicked)), np.full(clicked.shape, 0.5)
    for _ in range(_SWEEPS):
        before = examined[:, None] * relevant
        examined = _best(clicked, missed, relevant, axes=(1,))[:, 0]
        both = _best(
            np.stack([clicked, clicked.T]),
            np.stack([missed, missed.T]),
            np.stack(np.broadcast_arrays(examined[:, None], examined[None, :])),
            axes=(0,),
        )
        relevant = both[0]
        examined = examined / examined.max()  # the scale is free: hold it still
        if np.abs(examined[:, None] * relevant - before).max() < _TOLERANCE:
            break
    curve: Matrix = np.clip(examined / max(examined[0], MIN_ESTIMATE), MIN_ESTIMATE, 1.0)
    return curve


def _best(clicked: Matrix, missed: Matrix, factor: Matrix, *, axes: tuple[int, ...]) -> Matrix:
    """The x in (0, 1] that maximizes sum of c log(x f) + n log(1 - x f), along an axis.

    Its derivative by log x, sum of c - n x f / (1 - x f), falls: the zero is found by halving.
    """
    low = np.full_like(clicked.sum(axis=axes, keepdims=True), MIN_ESTIMATE**2)
    high = np.ones_like(low)
    for _ in range(_HALVINGS):
        middle = np.sqrt(low * high)
        odds = middle * factor / np.maximum(1 - middle * factor, 1e-12)
        rising = (clicked - missed * odds).sum(axis=axes, keepdims=True) > 0
        low, high = np.where(rising, middle, low), np.where(rising, high, middle)
    return np.asarray(high)


def _linked_to_first(shared: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which positions share products with the first, directly or over others, (K,)."""
    linked = np.zeros(len(shared), np.bool_)
    linked[0] = True
    for _ in range(len(shared)):
        linked |= shared[linked].any(axis=0)
    return linked
