"""Clicks of shoppers who never were: position-based, so that what they hide is known.

The data sets have judged or constructed relevance but no click logs. A position-based model
(examination by position, Craswell et al., WSDM 2008; click by graded relevance, with noise) turns
the one into the other. Every figure that rests on these clicks has to say so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import numpy as np
import polars as pl
from numpy.typing import NDArray

from shared.errors import DataError
from shared.schema import CLICK_COLUMNS
from simulations.datasets.source import Query

IntArray = NDArray[np.int64]

EXPLORATION = "exploration"
LOG_END = datetime(2025, 6, 1, tzinfo=UTC)
LOG_DAYS = 90


@dataclass(frozen=True)
class ClickModel:
    """How shoppers look, click, fill carts and buy.

    Attributes:
        eta: a position p is examined with probability p ** -eta.
        click: probability of a click on an examined product of grade 0, 1, 2, 3.
        cart: probability that a clicked product of that grade goes into the cart.
        purchase: probability that a product in the cart is bought.
        positions: products shown a request.
        jitter: how far stock and freshness move products in a ranking: the scale of Gumbel noise
            on the logarithm of the rank; 0 shows every shopper the same list.
        mix: share of the requests that each ranker answers.
        requests_per_user: mean number.
    """

    eta: float = 0.7
    click: tuple[float, ...] = (0.03, 0.12, 0.4, 0.85)
    cart: tuple[float, ...] = (0.03, 0.08, 0.2, 0.4)
    purchase: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5)
    positions: int = 10
    jitter: float = 0.4
    mix: Mapping[str, float] = field(
        default_factory=lambda: {"bm25": 0.45, "dense": 0.45, EXPLORATION: 0.1}
    )
    requests_per_user: float = 8.0

    def examination(self) -> NDArray[np.float64]:
        """Probability that each position is looked at, which is its propensity, (positions,)."""
        return np.arange(1, self.positions + 1, dtype=np.float64) ** -self.eta


def simulate_clicks(
    queries: Sequence[Query],
    rankings: Mapping[str, IntArray],
    product_ids: Sequence[str],
    shown: IntArray,
    *,
    requests: int,
    seed: int,
    prefix: str = "r",
    model: ClickModel | None = None,
) -> pl.DataFrame:
    """Simulate a region's click log.

    Args:
        queries: seen queries with this region's row numbers; one without a product of grade 2 or
            3 among `shown` is never asked: shoppers leave a shop that does not have the thing.
        rankings: what each ranker but exploration finds, (Q, K) row numbers, best first, -1 where
            it found fewer; K well above the positions leaves room for what is not shown.
        product_ids: of the region's catalog, in row order.
        shown: rows that may be shown (all but the cold ones), (S,).
        requests: how many.
        seed: of every draw.
        prefix: begins request ids and salts user keys, so two regions share neither.
        model: how shoppers behave.

    Returns:
        One row an impression in `CLICK_COLUMNS`, by time. A ranker that finds fewer products than
        there are positions fills the first ones only.

    Raises:
        DataError: no query can be asked, or a ranker of the mix is missing.
    """
    model = model or ClickModel()
    rng = np.random.default_rng(seed)
    allowed = np.zeros(len(product_ids), dtype=np.bool_)
    allowed[shown] = True
    asked = _draw_queries(queries, allowed, requests, rng)  # (R,)
    ranker = _draw_rankers(rankings, model, requests, rng)  # (R,)
    lists = _draw_lists(asked, ranker, rankings, allowed, model, rng)  # (R, P)
    grades = grades_at(queries, asked, lists, len(product_ids))  # (R, P)
    actions = _act(grades, model, rng)
    requests_table = _requests_table(queries, asked, ranker, list(model.mix), prefix, model, rng)
    return _impressions(requests_table, lists, actions, product_ids, model)


def grades_at(
    queries: Sequence[Query], asked: IntArray, lists: IntArray, num_products: int
) -> IntArray:
    """Look up how relevant each shown product is.

    Args:
        queries: with row numbers below `num_products`, ascending.
        asked: query number of each request, (R,).
        lists: row numbers shown, -1 for none, (R, P).
        num_products: rows of the catalog.

    Returns:
        Grades 0..3, (R, P).
    """
    keys = [number * num_products + query.rows for number, query in enumerate(queries)]
    known = np.concatenate([*keys, np.array([np.iinfo(np.int64).max])])  # ascending, with a stop
    grades = np.concatenate([*(query.grades.astype(np.int64) for query in queries), np.zeros(1)])
    wanted = asked[:, None] * num_products + lists
    at = np.searchsorted(known, wanted)
    found = (known[at] == wanted) & (lists >= 0)
    return np.where(found, grades[at], 0).astype(np.int64)


def _draw_queries(
    queries: Sequence[Query],
    allowed: NDArray[np.bool_],
    requests: int,
    rng: np.random.Generator,
) -> IntArray:
    """Draw what is asked, by popularity, (R,) query numbers."""
    weights = np.array(
        [q.popularity if allowed[q.rows[q.grades >= 2]].any() else 0.0 for q in queries]
    )
    if not weights.any():
        raise DataError("no seen query has a relevant product that may be shown; use more data")
    return rng.choice(len(queries), size=requests, p=weights / weights.sum())


def _draw_rankers(
    rankings: Mapping[str, IntArray], model: ClickModel, requests: int, rng: np.random.Generator
) -> IntArray:
    """Draw who answers each request, (R,) places in the mix."""
    missing = set(model.mix) - set(rankings) - {EXPLORATION}
    if missing:
        raise DataError(f"click model: no ranking from {', '.join(sorted(missing))}; give one")
    shares = np.array(list(model.mix.values()))
    return rng.choice(len(shares), size=requests, p=shares / shares.sum())


def _draw_lists(
    asked: IntArray,
    ranker: IntArray,
    rankings: Mapping[str, IntArray],
    allowed: NDArray[np.bool_],
    model: ClickModel,
    rng: np.random.Generator,
) -> IntArray:
    """Rows shown for each request, -1 where there are no more, (R, P)."""
    lists = np.full((len(asked), model.positions), -1, dtype=np.int64)
    for place, name in enumerate(model.mix):
        mine = np.flatnonzero(ranker == place)
        if name == EXPLORATION:
            part = _explore(len(mine), np.flatnonzero(allowed), model.positions, rng)
        else:
            part = _jitter(rankings[name][asked[mine]], allowed, model, rng)
        lists[mine, : part.shape[1]] = part
    return lists


def _jitter(
    ranked: IntArray, allowed: NDArray[np.bool_], model: ClickModel, rng: np.random.Generator
) -> IntArray:
    """Take out what may not be shown, move the rest about a little, keep the first P, (R, P)."""
    usable = (ranked >= 0) & allowed[ranked]
    rank = np.where(usable, usable.cumsum(axis=1), np.inf)
    key = np.log(rank) + model.jitter * rng.gumbel(size=ranked.shape)
    order = key.argsort(axis=1, kind="stable")[:, : model.positions]
    rows = np.where(usable, ranked, -1)
    return np.take_along_axis(rows, order, axis=1).astype(np.int64)


def _explore(requests: int, rows: IntArray, positions: int, rng: np.random.Generator) -> IntArray:
    """Draw products without replacement, blind to the query, (R, min(P, number of rows))."""
    size = min(positions, len(rows))
    drawn = np.empty((requests, size), dtype=np.int64)
    for place in range(size):
        pick = rng.integers(0, len(rows) - place, size=requests)
        for taken in np.sort(drawn[:, :place], axis=1).T:  # skip over those already drawn
            pick += pick >= taken
        drawn[:, place] = pick
    return rows[drawn]


def _act(
    grades: IntArray, model: ClickModel, rng: np.random.Generator
) -> dict[str, NDArray[np.bool_]]:
    """Draw what shoppers do with what they see; each step needs the one before, (R, P) each."""
    seen = rng.random(grades.shape) < model.examination()
    clicked = seen & (rng.random(grades.shape) < np.array(model.click)[grades])
    carted = clicked & (rng.random(grades.shape) < np.array(model.cart)[grades])
    purchased = carted & (rng.random(grades.shape) < np.array(model.purchase)[grades])
    return {"clicked": clicked, "carted": carted, "purchased": purchased}


def _requests_table(
    queries: Sequence[Query],
    asked: IntArray,
    ranker: IntArray,
    rankers: Sequence[str],
    prefix: str,
    model: ClickModel,
    rng: np.random.Generator,
) -> pl.DataFrame:
    """When, by whom and what was asked: one row a request, by time."""
    number = len(asked)
    texts = pl.Series([query.text for query in queries], dtype=pl.String)
    users = _user_keys(max(1, round(number / model.requests_per_user)), prefix, rng)
    return pl.DataFrame(
        {
            "request_id": [f"{prefix}-{index:07d}" for index in range(number)],
            "ts": _times(number, rng),
            "query": texts.gather(asked),
            "user_key": users.gather(rng.integers(0, len(users), size=number)),
            "ranker": pl.Series(rankers, dtype=pl.String).gather(ranker),
        }
    )


def _times(number: int, rng: np.random.Generator) -> pl.Series:
    start = LOG_END - timedelta(days=LOG_DAYS)
    offsets = np.sort(rng.integers(0, LOG_DAYS * 86_400_000_000, size=number))
    base = round(start.timestamp()) * 1_000_000
    return pl.Series(base + offsets, dtype=pl.Int64).cast(pl.Datetime("us", "UTC"))


def _user_keys(number: int, prefix: str, rng: np.random.Generator) -> pl.Series:
    salt = f"{prefix}:{rng.integers(2**62)}"
    keys = [sha256(f"{salt}:{user}".encode()).hexdigest()[:16] for user in range(number)]
    return pl.Series(keys, dtype=pl.String)


def _impressions(
    requests_table: pl.DataFrame,
    lists: IntArray,
    actions: Mapping[str, NDArray[np.bool_]],
    product_ids: Sequence[str],
    model: ClickModel,
) -> pl.DataFrame:
    """Unfold requests into one row an impression."""
    request, place = np.nonzero(lists >= 0)
    unfolded = requests_table[request].with_columns(
        pl.lit(None).alias("query_image"),
        pl.lit(None).alias("release"),
        pl.Series(product_ids, dtype=pl.String).gather(lists[request, place]).alias("product_id"),
        pl.Series("position", place + 1),
        pl.Series("propensity", model.examination()[place]),
        *(pl.Series(name, action[request, place]) for name, action in actions.items()),
    )
    return unfolded.select(pl.col(name).cast(dtype) for name, dtype in CLICK_COLUMNS.items())
