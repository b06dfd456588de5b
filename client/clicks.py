"""Turn logged impressions into training examples and validation judgments.

A click is not a judgment: a product at the top is clicked because it is seen, and some clicks are
plain mistakes. What is learned here from the log, and how, is one formula. For a query q and a
product d that was clicked for it at least once,

    weight(q, d) = log2(1 + S) × min(1, (C + a) / (E + b))

where over all impressions of d for q

- S sums the value of what was done: click 1 < cart 2 < purchase 3, each impression counting with
  its most valuable action. The logarithm keeps one popular pair from drowning a hundred rare ones;
  a single click weighs 1.
- C counts clicked impressions and E sums the propensities, that is, the probabilities that the
  shopper looked at the product where it stood. In the position-based model (Joachims, Swaminathan
  and Schnabel 2017, arXiv:1608.04468) P(click) = P(looked) × P(relevant), so C / E estimates the
  relevance. A product often seen and seldom clicked for a query, as happens with stray clicks,
  thus loses its weight; one seldom seen because it stood low loses nothing.
- a and b are a Beta prior (a clicks in b looks), without which one lucky click would count as
  certainty.

`[clicks]` of region.toml may choose another weighting: "inverse", log2(1 + S') with every value in
S' over max(propensity, min_propensity), or "plain", log2(1 + S). It also says where propensities
come from (`client.propensity`).

All results are in canonical order (queries by text, products by row), so the order of the log's
rows, and with it the way it was exported, changes nothing.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.propensity import FILLED, HARVESTED, harvest, with_propensities
from shared.schema import ClicksConfig, RegionConfig, SplitConfig

CLICKED, CARTED, PURCHASED = 1, 2, 3  # grades of the most valuable action
MIN_PROPENSITY = 0.1  # one click counts at most ten times: more would be noise
_QUERY_INDEX = pl.col("query").rle_id().cast(pl.Int64)  # of sorted pairs: 0 for the first query
Weighting = Literal["relevance", "inverse", "plain"]


@dataclass(frozen=True)
class Splits:
    """One region's impressions, oldest to newest; a request lies in exactly one of them."""

    train: pl.DataFrame
    validation: pl.DataFrame
    gate: pl.DataFrame


@dataclass(frozen=True)
class Examples:
    """What a region trains on: one example a distinct (query, product) pair with a click.

    Attributes:
        queries: unique query texts, sorted, length Q.
        query_index: index into `queries`, (E,) int64.
        product_row: catalog row, (E,) int64.
        weight: how much the pair counts, > 0, (E,) float32.
        positives: `query_index * num_products + product_row` of every pair with any click, sorted,
            int64. An in-batch negative that is in it is no negative.
        num_products: rows of the catalog.
        skipped: keys like those of `positives`, sorted, of products that stood above the last click
            on a request for the query and were never clicked for it; none by default, since a
            catalog's own words skip nothing.
    """

    queries: list[str]
    query_index: NDArray[np.int64]
    product_row: NDArray[np.int64]
    weight: NDArray[np.float32]
    positives: NDArray[np.int64]
    num_products: int
    skipped: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass(frozen=True)
class ValidationSet:
    """Held-out impressions as an estimate of relevance, product by product.

    Attributes:
        queries: unique query texts, sorted, length Q; each has a click.
        rows: catalog rows that were shown for each query, ascending, (R,) int64 each.
        gains: estimated relevance of those rows, >= 0, (R,) float64 each.
        weights: of their clicks, the sum of 1 / max(propensity, its minimum), (R,) float64 each.
        squares: the sum of the same squared, (R,) float64 each.
        num_clicks: of the queries, all together.
    """

    queries: list[str]
    rows: list[NDArray[np.int64]]
    gains: list[NDArray[np.float64]]
    weights: list[NDArray[np.float64]]
    squares: list[NDArray[np.float64]]
    num_clicks: int


def split_by_time(clicks: pl.DataFrame, shares: SplitConfig) -> Splits:
    """Split impressions by time: the oldest requests train, then validation, the newest gate.

    Args:
        clicks: impressions in `CLICK_COLUMNS`.
        shares: shares of the requests, rounded to whole requests; the rest trains.

    Returns:
        Three disjoint tables. A request is placed by its first impression and never cut.
    """
    requests = clicks.group_by("request_id").agg(pl.col("ts").min()).sort("ts", "request_id")
    num_gate = round(requests.height * shares.gate)
    num_validation = round(requests.height * shares.validation)
    newest_first = requests["request_id"].reverse()
    gate = newest_first[:num_gate]
    validation = newest_first[num_gate : num_gate + num_validation]
    return Splits(
        train=clicks.filter(~pl.col("request_id").is_in(pl.concat([gate, validation]).implode())),
        validation=clicks.filter(pl.col("request_id").is_in(validation.implode())),
        gate=clicks.filter(pl.col("request_id").is_in(gate.implode())),
    )


def split_log(clicks: pl.DataFrame, config: RegionConfig) -> Splits:
    """`split_by_time`, with the propensities that a region chose.

    Args:
        clicks: all impressions, in `CLICK_COLUMNS`.
        config: of the region. What has to be estimated is, from the training clicks alone.

    Raises:
        DataError: propensities must be estimated and cannot be.
    """
    splits, choice = split_by_time(clicks, config.splits), config.clicks.propensity
    unsaid = choice == FILLED and clicks["propensity"].null_count() > 0
    curve = harvest(splits.train) if unsaid or choice == HARVESTED else None
    return Splits(
        *(
            with_propensities(part, curve, choice)
            for part in (splits.train, splits.validation, splits.gate)
        )
    )


def examples_of(clicks: pl.DataFrame, product_ids: pl.Series, config: ClicksConfig) -> Examples:
    """`make_examples`, weighed as a region chose."""
    options = config.model_dump(exclude={"propensity"})
    return make_examples(clicks, product_ids, **options)


def make_examples(
    clicks: pl.DataFrame,
    product_ids: pl.Series,
    *,
    click_weight: float = 1.0,
    cart_weight: float = 2.0,
    purchase_weight: float = 3.0,
    prior_clicks: float = 1.0,
    prior_looks: float = 4.0,
    weighting: Weighting = "relevance",
    min_propensity: float = MIN_PROPENSITY,
) -> Examples:
    """Make training examples by the formula at the top of this file.

    Args:
        clicks: impressions in `CLICK_COLUMNS`; a null `propensity` counts as 1.
        product_ids: product id of each catalog row.
        click_weight: value of an impression that was only clicked.
        cart_weight: value of one that was carted.
        purchase_weight: value of one that was purchased.
        prior_clicks: a in the formula, > 0.
        prior_looks: b in the formula, >= a.
        weighting: see the top of this file.
        min_propensity: of "inverse", the least that a value is divided by.

    Returns:
        Examples sorted by query, then product row. Queries by photo alone make none.
    """
    values = {CLICKED: click_weight, CARTED: cart_weight, PURCHASED: purchase_weight}
    pairs = _pairs(clicks, product_ids, min_propensity).filter(pl.col("num_clicked") > 0)
    weight = _engagement(values, "inverse_" if weighting == "inverse" else "num_")
    if weighting == "relevance":
        weight = weight * _relevance(prior_clicks, prior_looks)
    columns = _columns(pairs, query=_QUERY_INDEX, row=pl.col("product_row"), weight=weight)
    queries = _distinct_queries(pairs)
    # Sorted, as the pairs are.
    positives = columns["query"] * len(product_ids) + columns["row"]
    return Examples(
        queries=queries,
        query_index=columns["query"],
        product_row=columns["row"],
        weight=columns["weight"].astype(np.float32),
        positives=positives,
        num_products=len(product_ids),
        skipped=np.setdiff1d(_skipped(clicks, product_ids, queries), positives),
    )


def make_validation_set(
    clicks: pl.DataFrame, product_ids: pl.Series, *, min_propensity: float = MIN_PROPENSITY
) -> ValidationSet:
    """Estimate from held-out impressions how relevant what was shown is.

    The gain of product d for query q is the inverse-propensity estimate of P(relevant),

        gain(q, d) = sum over impressions of clicked / max(propensity, 0.1), over their number

    (Joachims, Swaminathan and Schnabel 2017, arXiv:1608.04468, clipped). Taking clicks as judgments
    instead would reward whichever ranker made the log: its own lists, in its own order.

    Args:
        clicks: impressions in `CLICK_COLUMNS`; a null `propensity` counts as 1.
        product_ids: product id of each catalog row.
        min_propensity: the 0.1 of the formula, > 0.

    Returns:
        Queries with a click, what was shown for them and its gains; a query without is left out.
    """
    pairs = _pairs(clicks, product_ids, min_propensity)
    pairs = pairs.filter(pl.col("num_clicked").sum().over("query") > 0)
    queries, clicks_on = _distinct_queries(pairs), pl.col("weighted_clicks")
    columns = _columns(
        pairs,
        query=_QUERY_INDEX,
        rows=pl.col("product_row"),
        gains=clicks_on / pl.col("num_shown"),
        weights=clicks_on,
        squares=pl.col("squared_clicks"),
    )
    starts = np.searchsorted(columns.pop("query"), np.arange(1, len(queries)))
    split = {name: np.split(one, starts)[: len(queries)] for name, one in columns.items()}
    return ValidationSet(queries=queries, num_clicks=int(pairs["num_clicked"].sum()), **split)


def _skipped(clicks: pl.DataFrame, product_ids: pl.Series, queries: list[str]) -> NDArray[np.int64]:
    """Keys of what stood above the last click of a request and was not clicked in it.

    Whoever clicked below it has most likely seen it (Joachims et al., SIGIR 2005, "skip above").
    """
    last = pl.col("position").filter(pl.col("clicked")).max().over("request_id")
    rows = pl.DataFrame({"product_id": product_ids}).with_row_index("product_row")
    asked = pl.DataFrame({"query": queries}, schema={"query": pl.String})
    pairs = (
        clicks.with_columns(query=_query())
        .filter(~pl.col("clicked") & (pl.col("position") < last))
        .join(rows, on="product_id")
        .join(asked.with_row_index("number"), on="query")
        .select("number", "product_row")
        .unique()
        .cast(pl.Int64)
    )
    key = pairs.select(key=pl.col("number") * len(product_ids) + pl.col("product_row"))["key"]
    return key.to_numpy()


def _query() -> pl.Expr:
    """A query's text, white space apart."""
    return pl.col("query").str.strip_chars().str.replace_all(r"\s+", " ")


def _pairs(clicks: pl.DataFrame, product_ids: pl.Series, min_propensity: float) -> pl.DataFrame:
    """Everything that happened to each (query, product), sorted by both.

    Columns: query, product_row, num_shown, num_clicked, num_1 to num_3 (impressions by best
    action), looks (summed propensities), weighted_clicks and squared_clicks (clicks over clipped
    propensity, and over its square) and inverse_1 to inverse_3 (as num_1 to num_3, over clipped
    propensity).
    """
    rows = pl.DataFrame({"product_id": product_ids}).with_row_index("product_row")
    return (
        clicks.with_columns(query=_query(), grade=_grade())
        .filter(pl.col("query") != "")
        .join(rows, on="product_id")
        .group_by("query", pl.col("product_row").cast(pl.Int64))
        .agg(*_totals(min_propensity))
        .sort("query", "product_row")
    )


def _grade() -> pl.Expr:
    """The most valuable action of an impression, 0 without one."""
    grade = pl.when("purchased").then(PURCHASED).when("carted").then(CARTED).when("clicked")
    return grade.then(CLICKED).otherwise(0).cast(pl.Int64)


def _totals(min_propensity: float) -> list[pl.Expr]:
    grade, grades = pl.col("grade"), (CLICKED, CARTED, PURCHASED)
    counts = [(grade == g).sum().alias(f"num_{g}") for g in grades]
    looks = pl.col("propensity").fill_null(1.0)
    clicks = pl.when(grade > 0).then(1.0 / looks.clip(lower_bound=min_propensity)).otherwise(0.0)
    inverse = [(clicks * (grade == g)).sort().sum().alias(f"inverse_{g}") for g in grades]
    return [
        pl.len().alias("num_shown"),
        (grade > 0).sum().alias("num_clicked"),
        looks.sort().sum().alias("looks"),  # sorted: float sums depend on order
        clicks.sort().sum().alias("weighted_clicks"),
        (clicks**2).sort().sum().alias("squared_clicks"),
        *counts,
        *inverse,
    ]


def _engagement(values: dict[int, float], counted: str) -> pl.Expr:
    """The first factor: log2(1 + summed values of actions)."""
    total = pl.sum_horizontal(
        pl.col(f"{counted}{grade}") * value for grade, value in values.items()
    )
    return (total + 1.0).log(2)


def _relevance(clicks: float, looks: float) -> pl.Expr:
    """The second factor: smoothed clicks per look, at most 1."""
    rate = (pl.col("num_clicked") + clicks) / (pl.col("looks") + looks)
    return rate.clip(upper_bound=1.0)


def _columns(pairs: pl.DataFrame, **expressions: pl.Expr) -> dict[str, NDArray[Any]]:
    """Of the pairs, each (E,)."""
    columns = pairs.select(**expressions)
    # torch.from_numpy warns of read-only memory.
    return {column.name: column.to_numpy(writable=True) for column in columns}


def _distinct_queries(pairs: pl.DataFrame) -> list[str]:
    """Of sorted pairs; `_QUERY_INDEX` says which of them a pair's is."""
    return pairs["query"].unique(maintain_order=True).to_list()
