"""What shoppers were shown and did: kept at once, marked where it tells nothing, forgotten on time.

The next round trains on this file, and it is personal data, so three things matter. No event that
was acknowledged is lost, and none sent twice counts twice (`client.service.store`). What says
nothing about products is marked and left out of training, never deleted:

- doubled: an event less than 2 s after another one of its kind (same request, product and type);
- bots, by `user_key`: more than 60 requests within a minute; or every one of at least 5 shown
  products clicked, in at least 10 requests; or at least 5 clicks that arrived within 100 ms of the
  answer, quicker than eye and hand. Nobody without a key is called a bot: it would be a crowd.

And what a shopper wants forgotten is gone from every byte of the file. What else is derived from
events, and how forgetting reaches it:

- `state/prefix_cache/text-*` holds activations of the queries of the click log, from which their
  words could be told: `remove_query_activations`;
- a running worker holds the click log, its training, validation and gate sets in memory: let it
  open the region again;
- adapters that were trained before keep what they learned, as sums over many shoppers. Nothing
  takes one shopper out of them again; the next round starts without those clicks.
"""

import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

import polars as pl

from client.service.failures import RequestError
from client.service.messages import Event, EventsResponse
from client.service.store import Store, erase, reading, to_us
from shared.durable import locked
from shared.errors import DataError
from shared.schema import CLICK_COLUMNS

DOUBLED_WITHIN = timedelta(seconds=2)
MAX_REQUESTS_A_MINUTE = 60
MIN_SWEPT_PRODUCTS, MIN_SWEPT_REQUESTS = 5, 10
INSTANT, MIN_INSTANT_CLICKS = timedelta(milliseconds=100), 5

POPULAR: Final = "popular"  # the ranker of what is shown where nothing was asked for, or found
_INTERLEAVED: Final = "interleaved"

_FETCHED_ROWS = 50_000  # at a time: as Python objects they take ten times the memory of a frame
_TIME = pl.Datetime("us", "UTC")
_REQUESTS: dict[str, pl.DataType] = {
    "number": pl.Int64(),
    "request_id": pl.String(),
    "ts": _TIME,
    "query": pl.String(),
    "kind": pl.String(),
    "user_key": pl.String(),
    "ranker": pl.String(),
    "release": pl.Int64(),
}
_IMPRESSIONS: dict[str, pl.DataType] = {
    "request": pl.Int64(),
    "product_id": pl.String(),
    "position": pl.Int64(),
    "propensity": pl.Float64(),
    "team": pl.String(),
    "explored": pl.Boolean(),
}
_EVENTS: dict[str, pl.DataType] = {
    "number": pl.Int64(),
    "request_id": pl.String(),
    "product_id": pl.String(),
    "type": pl.String(),
    "ts": _TIME,
    "received": _TIME,
    "user_key": pl.String(),
    "doubled": pl.Boolean(),
}
_BOTS: dict[str, pl.DataType] = {"user_key": pl.String(), "rule": pl.String()}


@dataclass(frozen=True)
class Impression:
    """One product of an answer.

    Attributes:
        position: 1-based, over all pages.
        propensity: probability that it was looked at there, in (0, 1].
        team: "a" or "b" where two rankers are interleaved and it plays for one, else empty.
        explored: whether it stands there by chance, to learn about it.
    """

    product_id: str
    position: int
    propensity: float
    team: str = ""
    explored: bool = False


@dataclass(frozen=True)
class Impressions:
    """One answer as the shopper saw it.

    Attributes:
        request_id: that the answer carries; a further page may carry the same.
        ts: when it was answered, by the service's clock.
        query: its text, or empty.
        kind: "text", "image", "similar" or "for_you"; only "text" makes training examples.
        user_key: who asked, or empty.
        ranker: what ordered it; of two ways in one list, `interleaved_ranker`.
        release: whose encoder answered; 0 is the base alone.
        products: that were shown, of this page.
    """

    request_id: str
    ts: datetime
    query: str
    kind: str
    user_key: str
    ranker: str
    release: int
    products: tuple[Impression, ...]


@dataclass(frozen=True)
class EventTables:
    """A store's whole content at one moment.

    Attributes:
        requests: number, request_id, ts, query, kind, user_key, ranker, release.
        impressions: request (its number), product_id, position, propensity, team, explored.
        events: number, request_id, product_id, type, ts, received, user_key, doubled.
        bots: user_key and the rule that told, one row a bot.
    """

    requests: pl.DataFrame
    impressions: pl.DataFrame
    events: pl.DataFrame
    bots: pl.DataFrame


@dataclass(frozen=True)
class Counts:
    """How many rows were removed."""

    impressions: int
    events: int


def interleaved_ranker(a: str, b: str) -> str:
    """The ranker of an answer in which two ways are interleaved; it names both."""
    return f"{_INTERLEAVED}:{a}|{b}"


def compared_ways(ranker: str) -> tuple[str, str]:
    """The two ways that `interleaved_ranker` was given.

    A log that names none is of a time when one experiment was all there could be: "a" and "b".
    """
    a, _, b = ranker.partition(":")[2].partition("|")
    return (a, b) if a and b else ("a", "b")


class EventStore:
    """The writing side, for the service.

    Args:
        store: the region's open store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.lost_answers = 0  # whose impressions could not be kept; for the metrics

    def log_impressions(self, impressions: Impressions) -> None:
        """Queue what was shown; nobody waits, and a search is never refused for it.

        What cannot be kept (the queue or the disk is full) is counted in `lost_answers`; events on
        it are `unknown` then. Events that are logged later find it.
        """
        try:
            insert = partial(_insert_impressions, impressions)
            done = self._store.submit(insert, num_rows=1 + len(impressions.products))
        except RequestError:
            self.lost_answers += 1
        else:
            done.add_done_callback(self._count_if_lost)

    def log_events(self, events: Sequence[Event], now: datetime | None = None) -> EventsResponse:
        """Keep events; returns once they are on disk. Sent again they count as repeated.

        Args:
            events: what shoppers did. One without a time gets `now`, one without a `user_key` the
                key of its request.
            now: time of arrival; the clock's by default.

        Returns:
            How many were new, how many were there already, and how many of the new ones name a
            request or product that was never shown, as far as is known.

        Raises:
            RequestError: "overloaded" or "unavailable"; send all of them again later.
        """
        insert = partial(_insert_events, tuple(events), to_us(now or datetime.now(UTC)))
        return self._store.submit(insert, num_rows=len(events)).result()

    def mark_bots(self) -> int:
        """Look for bots in all that is kept, and write down who they are.

        `export_clicks` looks by itself; a mark stays when the rows that gave a bot away expire.

        Returns:
            Keys marked now, former ones included.

        Raises:
            DataError: the store cannot be read.
            RequestError: "overloaded" or "unavailable".
        """
        tables = read_tables(self._store.path)
        bots = find_bots(tables.requests, tables.impressions, tables.events)
        return self._store.submit(partial(_insert_bots, bots.rows()), num_rows=len(bots)).result()

    def _count_if_lost(self, done: "Future[None]") -> None:
        self.lost_answers += done.cancelled() or done.exception() is not None


def read_tables(path: Path) -> EventTables:
    """Read a store as it is now; the service may be writing it.

    Args:
        path: of the store.

    Returns:
        Everything in it, by number.

    Raises:
        DataError: missing, damaged or not a store.
    """
    if not path.is_file():
        raise DataError(
            f'{path}: not found; let the region serve first ("fedshelf region serve"), or name'
            " another click log as data.clicks in region.toml"
        )
    with reading(path) as connection:
        return EventTables(
            requests=_read(connection, "requests", _REQUESTS, "number"),
            impressions=_read(connection, "impressions", _IMPRESSIONS, "request, position"),
            events=_read(connection, "events", _EVENTS, "number"),
            bots=_read(connection, "bots", _BOTS, "user_key"),
        )


def export_clicks(path: Path) -> pl.DataFrame:
    """The click log that a store amounts to, one row an impression.

    Left out are answers to bots, and answers to anything but words alone: a photo, a product or a
    shopper's history is not kept, so there is nothing to train on. Left out is what is popular,
    too: it was shown because the words found nothing, and a click on it says nothing of them.
    Answers for which filters were dropped ("relaxed") stay in, and nothing marks them: the words
    are what the shopper asked for, and they found every product that is shown. Doubled events and
    events of bots count for nothing. A purchase counts even where its click was never sent.

    Args:
        path: of the store.

    Returns:
        Impressions in `CLICK_COLUMNS`, by request in order of arrival, then by position.

    Raises:
        DataError: missing, damaged or not a store.
    """
    tables = read_tables(path)
    found = find_bots(tables.requests, tables.impressions, tables.events)
    bots = pl.concat([tables.bots["user_key"], found["user_key"]]).implode()
    by_words = (pl.col("kind") == "text") & (pl.col("query").str.strip_chars() != "")
    found_by_them = by_words & (pl.col("ranker") != POPULAR)
    requests = tables.requests.filter(found_by_them & ~pl.col("user_key").is_in(bots))
    events = tables.events.filter(~pl.col("doubled") & ~pl.col("user_key").is_in(bots))
    return (
        requests.join(tables.impressions, left_on="number", right_on="request")
        .join(_actions(events), on=("request_id", "product_id"), how="left")
        .sort("number", "position", "product_id")
        .with_columns(
            pl.col("clicked", "carted", "purchased").fill_null(False),
            pl.lit(None, pl.String).alias("query_image"),
            pl.when(pl.col("user_key") != "").then("user_key").alias("user_key"),
        )
        .select(pl.col(name).cast(dtype) for name, dtype in CLICK_COLUMNS.items())
    )


def forget(path: Path, user_key: str) -> Counts:
    """Erase a shopper: their answers with all events on them, and their events on other answers.

    An answer to nobody is theirs too where an event on it carries their key. No byte of it is left
    in the file or its log. See the top of this file for what else is derived from events; what the
    shopper does after this call is kept again.

    Args:
        path: of the store; where there is none, nothing is to be forgotten.
        user_key: of the shopper, not empty.

    Returns:
        How many impressions and events are gone.

    Raises:
        DataError: the key is empty; the store is damaged; or somebody keeps reading an old state.
    """
    if not user_key:
        raise DataError("user_key: empty, which is nobody's; name the key to forget")
    if not path.is_file():
        return Counts(0, 0)
    return erase(path, partial(_delete_shopper, user_key), rewrite=True)


def expire(path: Path, before: datetime) -> Counts:
    """Delete answers given, and events that arrived, before a time; for retention.

    The rows are overwritten, but the file is not written anew (that stops writers for seconds), so
    copies in unused parts of its pages may stay until SQLite uses them again, or until `forget`.

    Args:
        path: of the store; where there is none, nothing expires.
        before: the time.

    Returns:
        How many impressions and events are gone.

    Raises:
        DataError: the store is damaged, or somebody keeps reading an old state.
    """
    if not path.is_file():
        return Counts(0, 0)
    return erase(path, partial(_delete_before, to_us(before)), rewrite=False)


def remove_query_activations(cache: Path, *, keep: Path | None = None) -> int:
    """Remove the kept activations of all query lists, as forgetting a shopper demands.

    A cache entry is named by a digest over its whole list, so nothing tells which lists hold one
    shopper's queries; all are removed, and computed again when they are next asked for. A worker
    that has one open reads on until it opens the region again.

    Args:
        cache: the region's `prefix_cache` folder.
        keep: the entry of the catalog's texts (`shared.encoders.prefix_cache.text_folder`), which
            holds no query; without it, that one is computed again too, in minutes.

    Returns:
        How many entries were removed.
    """
    if not cache.is_dir():
        return 0
    kept = keep.name if keep else ""
    with locked(cache):  # which also removes what a killed writer left
        folders = [folder for folder in cache.glob("text-*") if folder.name != kept]
        for folder in folders:
            shutil.rmtree(folder)
    return len(folders)


def mark_doubled(events: pl.DataFrame) -> pl.Series:
    """Which events come less than 2 s after one of the same request, product and type.

    Args:
        events: columns request_id, product_id, type, ts and number; in any order.

    Returns:
        One bool a row. Of two at the same instant the one with the lower number came first.
    """
    same = ("request_id", "product_id", "type")
    since_last = pl.col("ts").diff().over(*same, order_by=["ts", "number"])
    return events.select(doubled=(since_last < DOUBLED_WITHIN).fill_null(False))["doubled"]


def find_bots(
    requests: pl.DataFrame, impressions: pl.DataFrame, events: pl.DataFrame
) -> pl.DataFrame:
    """Who is a bot, by the rules at the top of this file.

    Args:
        requests: columns number, request_id, ts, user_key.
        impressions: columns request, product_id.
        events: columns request_id, product_id, type, received, user_key.

    Returns:
        Columns user_key and rule ("requests", "sweep" or "instant"), by key; a key once, with the
        first rule that told.
    """
    clicks = events.filter(pl.col("type") == "click")
    found = [
        _too_many_requests(requests).select("user_key", rule=pl.lit("requests")),
        _sweepers(requests, impressions, clicks).select("user_key", rule=pl.lit("sweep")),
        _too_quick(requests, clicks).select("user_key", rule=pl.lit("instant")),
    ]
    keys = pl.concat(found).filter(pl.col("user_key") != "")
    return keys.unique("user_key", keep="first", maintain_order=True).sort("user_key")


def _too_many_requests(requests: pl.DataFrame) -> pl.DataFrame:
    span = pl.col("ts").diff(MAX_REQUESTS_A_MINUTE).over("user_key", order_by="ts")
    return requests.filter(span < timedelta(minutes=1))


def _sweepers(
    requests: pl.DataFrame, impressions: pl.DataFrame, clicks: pl.DataFrame
) -> pl.DataFrame:
    shown = impressions.join(
        requests.select("number", "request_id", "user_key"), left_on="request", right_on="number"
    )
    clicked = clicks.select("request_id", "product_id", clicked=pl.lit(True)).unique()
    return (
        shown.join(clicked, on=("request_id", "product_id"), how="left")
        .group_by("user_key", "request_id")
        .agg(num_shown=pl.len(), swept=pl.col("clicked").fill_null(False).all())
        .filter(pl.col("swept") & (pl.col("num_shown") >= MIN_SWEPT_PRODUCTS))
        .group_by("user_key")
        .len()
        .filter(pl.col("len") >= MIN_SWEPT_REQUESTS)
    )


def _too_quick(requests: pl.DataFrame, clicks: pl.DataFrame) -> pl.DataFrame:
    """By the time of arrival: a shopper's own clock may be hours away from the service's."""
    shown = requests.select("request_id", shown_ts="ts")
    passed = pl.col("received") - pl.col("shown_ts")
    return (
        clicks.join(shown, on="request_id")
        .filter(passed.is_between(timedelta(0), INSTANT, closed="left"))
        .group_by("user_key")
        .len()
        .filter(pl.col("len") >= MIN_INSTANT_CLICKS)
    )


def _actions(events: pl.DataFrame) -> pl.DataFrame:
    """What was done with each shown product: clicked, carted, purchased."""
    done = {"clicked": "click", "carted": "cart", "purchased": "purchase"}
    return events.group_by("request_id", "product_id").agg(
        **{name: (pl.col("type") == event).any() for name, event in done.items()}
    )


def _read(
    connection: sqlite3.Connection, table: str, columns: Mapping[str, pl.DataType], order: str
) -> pl.DataFrame:
    # SQLite has neither times nor truth values; both are whole numbers there.
    plain = (pl.Datetime, pl.Boolean)
    kept = {n: pl.Int64() if isinstance(t, plain) else t for n, t in columns.items()}
    cursor = connection.execute(f"SELECT {', '.join(columns)} FROM {table} ORDER BY {order}")
    parts = [pl.DataFrame(schema=kept)]
    while rows := cursor.fetchmany(_FETCHED_ROWS):
        parts.append(pl.DataFrame(rows, schema=kept, orient="row"))
    return pl.concat(parts).cast(pl.Schema(columns))


def _insert_impressions(impressions: Impressions, connection: sqlite3.Connection) -> None:
    connection.execute(
        "INSERT INTO requests (request_id, ts, query, kind, user_key, ranker, release)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (
            impressions.request_id,
            to_us(impressions.ts),
            impressions.query,
            impressions.kind,
            impressions.user_key,
            impressions.ranker,
            impressions.release,
        ),
    )
    number = connection.execute(
        "SELECT number FROM requests WHERE request_id = ?", (impressions.request_id,)
    ).fetchone()[0]
    connection.executemany(
        "INSERT INTO impressions VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [
            (number, one.product_id, one.position, one.propensity, one.team, one.explored)
            for one in impressions.products
        ],
    )


def _insert_events(
    events: Sequence[Event], now_us: int, connection: sqlite3.Connection
) -> EventsResponse:
    new = [event for event in events if _insert_event(event, now_us, connection)]
    _mark_doubled({(event.request_id, event.product_id, event.type) for event in new}, connection)
    num_shown = sum(_was_shown(event, connection) for event in new)
    return EventsResponse(
        accepted=len(new), repeated=len(events) - len(new), unknown=len(new) - num_shown
    )


def _insert_event(event: Event, now_us: int, connection: sqlite3.Connection) -> bool:
    """Whether it was new."""
    inserted = connection.execute(
        "INSERT INTO events (event_id, request_id, product_id, type, ts, received, user_key)"
        " VALUES (:event, :request, :product, :type, :ts, :received, CASE WHEN :user != '' THEN"
        " :user ELSE ifnull((SELECT user_key FROM requests WHERE request_id = :request), '') END)"
        " ON CONFLICT DO NOTHING",
        {
            "event": event.event_id,
            "request": event.request_id,
            "product": event.product_id,
            "type": event.type,
            "ts": now_us if event.ts is None else to_us(event.ts),
            "received": now_us,
            "user": event.user_key,
        },
    )
    return inserted.rowcount == 1


def _was_shown(event: Event, connection: sqlite3.Connection) -> bool:
    found = connection.execute(
        "SELECT 1 FROM requests JOIN impressions ON request = number"
        " WHERE request_id = ? AND product_id = ?",
        (event.request_id, event.product_id),
    )
    return found.fetchone() is not None


def _mark_doubled(kinds: set[tuple[str, str, str]], connection: sqlite3.Connection) -> None:
    """Bring the marks of these requests, products and types up to date; most have one event."""
    rows: list[tuple[object, ...]] = []
    for kind in sorted(kinds):
        found = connection.execute(
            f"SELECT {', '.join(_EVENTS)} FROM events"
            " WHERE request_id = ? AND product_id = ? AND type = ?",
            kind,
        ).fetchall()
        rows += found if len(found) > 1 else []
    if not rows:
        return
    kept = dict(zip(_EVENTS, zip(*rows, strict=True), strict=True))
    events = pl.DataFrame(kept, schema_overrides={"ts": pl.Int64()}, strict=True)
    doubled = mark_doubled(events.cast({"ts": _TIME}))
    connection.executemany(
        "UPDATE events SET doubled = ? WHERE number = ?",
        zip(doubled, events["number"], strict=True),
    )


def _insert_bots(rows: Sequence[tuple[str, str]], connection: sqlite3.Connection) -> int:
    connection.executemany(
        # Not who was forgotten while the tables were searched.
        "INSERT INTO bots SELECT ?1, ?2 WHERE EXISTS (SELECT 1 FROM requests WHERE user_key = ?1"
        " AND user_key != '') ON CONFLICT (user_key) DO UPDATE SET rule = excluded.rule",
        rows,
    )
    return int(connection.execute("SELECT count(*) FROM bots").fetchone()[0])


def _delete_shopper(user_key: str, connection: sqlite3.Connection) -> Counts:
    # `user_key != ''` repeats the condition of the partial indexes, else they are not used.
    theirs = connection.execute(
        "SELECT number, request_id FROM requests WHERE user_key = ?1 AND user_key != ''"
        " UNION SELECT requests.number, requests.request_id FROM events JOIN requests"
        " USING (request_id) WHERE events.user_key = ?1 AND events.user_key != ''"
        " AND requests.user_key = ''",
        (user_key,),
    ).fetchall()
    counts = Counts(
        impressions=_delete(connection, "impressions WHERE request = ?", [r[:1] for r in theirs]),
        events=_delete(connection, "events WHERE request_id = ?", [r[1:] for r in theirs])
        + _delete(connection, "events WHERE user_key = ? AND user_key != ''", [(user_key,)]),
    )
    _delete(connection, "requests WHERE number = ?", [r[:1] for r in theirs])
    _delete(connection, "bots WHERE user_key = ?", [(user_key,)])
    return counts


def _delete_before(before_us: int, connection: sqlite3.Connection) -> Counts:
    old = "impressions WHERE request IN (SELECT number FROM requests WHERE ts < ?)"
    counts = Counts(
        impressions=_delete(connection, old, [(before_us,)]),
        events=_delete(connection, "events WHERE received < ?", [(before_us,)]),
    )
    _delete(connection, "requests WHERE ts < ?", [(before_us,)])
    gone = [
        f"NOT EXISTS (SELECT 1 FROM {table} AS t WHERE t.user_key = bots.user_key"
        " AND t.user_key != '')"
        for table in ("requests", "events")
    ]
    _delete(connection, f"bots WHERE {' AND '.join(gone)}", [()])
    return counts


def _delete(connection: sqlite3.Connection, what: str, values: Sequence[tuple[object, ...]]) -> int:
    return max(connection.executemany(f"DELETE FROM {what}", values).rowcount, 0)
