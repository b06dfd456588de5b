"""The event store: what shoppers did becomes a click log, and can be forgotten to the last byte."""

import random
import subprocess
from datetime import UTC, datetime, timedelta
from functools import partial

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.clicks import make_examples
from client.service.events import (
    Counts,
    EventStore,
    Impression,
    Impressions,
    _delete_shopper,
    compared_ways,
    expire,
    export_clicks,
    find_bots,
    forget,
    interleaved_ranker,
    mark_doubled,
    read_tables,
    remove_query_activations,
)
from client.service.messages import Event
from client.service.store import Store, erase
from shared.errors import DataError
from shared.schema import CLICK_COLUMNS

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def after(seconds):
    return NOON + timedelta(seconds=seconds)


def answer(request_id, letters="ab", *, at=0.0, query="boots", user_key="", **fields):
    """An answer in which each letter is a product, the first at the top."""
    shown = tuple(Impression(one, place, 1 / place) for place, one in enumerate(letters, 1))
    values = {"kind": "text", "ranker": "hybrid", "release": 3, "products": shown} | fields
    return Impressions(request_id, after(at), query, user_key=user_key, **values)


def event(event_id, request_id="r", product_id="a", kind="click", *, at=None, user_key=""):
    return Event(
        event_id=event_id,
        request_id=request_id,
        product_id=product_id,
        type=kind,
        ts=None if at is None else after(at),
        user_key=user_key,
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.sqlite"


@pytest.fixture
def store(path):
    with Store(path) as store:
        yield store


@pytest.fixture
def log(store):
    return EventStore(store)


def accepted(log, *events, now=NOON):
    response = log.log_events(events, now)
    return response.accepted, response.repeated, response.unknown


def done(path, *names):
    """Request, product and these columns of the click log."""
    return export_clicks(path).select("request_id", "product_id", *names).rows()


def test_an_event_counts_once_however_often_it_is_sent(path):
    with Store(path) as store:
        log = EventStore(store)
        log.log_impressions(answer("r"))
        assert accepted(log, event("e1"), event("e2", kind="cart"), event("e1")) == (2, 1, 0)
        assert accepted(log, event("e1"), event("e3", product_id="b")) == (1, 1, 0)
    with Store(path) as store:
        assert accepted(EventStore(store), event("e2"), event("e3")) == (0, 2, 0)
    assert read_tables(path).events["type"].to_list() == ["click", "cart", "click"]


def test_events_on_what_was_not_shown_are_kept_and_counted(log, path):
    log.log_impressions(answer("r"))
    events = (event("e1", "other"), event("e2", product_id="z"), event("e3"))
    assert accepted(log, *events) == (3, 0, 2)
    assert read_tables(path).events.height == 3
    assert done(path, "clicked") == [("r", "a", True), ("r", "b", False)]


def test_an_event_without_time_or_key_takes_those_of_its_arrival_and_request(log, path):
    log.log_impressions(answer("r", user_key="ann"))
    accepted(log, event("e1"), event("e2", at=-5, user_key="bob"), event("e3", "?"), now=after(9))
    events = read_tables(path).events
    assert events["ts"].to_list() == [after(9), after(-5), after(9)]
    assert events["received"].to_list() == [after(9)] * 3
    assert events["user_key"].to_list() == ["ann", "bob", ""]


def test_the_click_log_has_one_row_an_impression(log, path):
    log.log_impressions(answer("r2", "ab", at=5, query="red boots", user_key="ann"))
    wild = Impression("c", 2, 0.25, explored=True)
    log.log_impressions(answer("r1", products=(), ranker="lexical", at=1))
    log.log_impressions(answer("r3", products=(), at=9))  # nothing was found
    second_page = {"ranker": "lexical", "products": (Impression("d", 1, 1.0), wild)}
    log.log_impressions(answer("r1", at=1, **second_page))
    accepted(log, event("e1", "r2", "b", at=6), event("e2", "r1", "c", "purchase", at=6))
    clicks = export_clicks(path)
    assert clicks.schema == pl.Schema(CLICK_COLUMNS)
    names = ("query", "position", "user_key", "ranker", "release", "propensity")
    assert clicks.select("request_id", "ts", "product_id", *names).rows() == [
        ("r2", after(5), "a", "red boots", 1, "ann", "hybrid", 3, 1.0),
        ("r2", after(5), "b", "red boots", 2, "ann", "hybrid", 3, 0.5),
        ("r1", after(1), "d", "boots", 1, None, "lexical", 3, 1.0),
        ("r1", after(1), "c", "boots", 2, None, "lexical", 3, 0.25),
    ]
    acts = clicks.select("clicked", "carted", "purchased").rows()
    assert acts == [(False,) * 3, (True, False, False), (False,) * 3, (False, False, True)]


def test_a_purchase_without_a_click_trains(log, path):
    log.log_impressions(answer("r"))
    accepted(log, event("e1", kind="purchase"))
    examples = make_examples(export_clicks(path), pl.Series(["a", "b"]))
    assert examples.queries == ["boots"]
    assert examples.product_row.tolist() == [0]


def test_what_was_popular_where_words_found_nothing_trains_nothing(log, path):
    log.log_impressions(answer("r", query="zzzzqq", ranker="popular"))
    log.log_impressions(answer("s"))
    accepted(log, event("e1"), event("e2", "s", "b"))
    assert done(path, "query", "clicked") == [("s", "a", "boots", False), ("s", "b", "boots", True)]
    assert read_tables(path).events.height == 2  # kept all the same, for the report


@given(*2 * [st.sampled_from(["current", "previous", "hybrid", "dense", "lexical"])])
def test_a_ranker_of_two_ways_tells_which(a, b):
    assert compared_ways(interleaved_ranker(a, b)) == (a, b)


@pytest.mark.parametrize("ranker", ["interleaved", "interleaved:", "interleaved:a", "hybrid"])
def test_a_ranker_that_names_no_ways_has_two_all_the_same(ranker):
    assert compared_ways(ranker) == ("a", "b")


@pytest.mark.parametrize("fields", [{"kind": "image"}, {"kind": "similar"}, {"query": " "}])
def test_only_answers_to_words_alone_are_trained_on(log, path, fields):
    log.log_impressions(answer("r", **fields))
    accepted(log, event("e1"))
    assert export_clicks(path).rows() == []
    assert read_tables(path).impressions.height == 2


def test_the_same_page_shown_again_is_no_second_impression(log, path):
    for _ in range(2):
        log.log_impressions(answer("r"))
    accepted(log)
    assert read_tables(path).requests.height == 1
    assert read_tables(path).impressions["position"].to_list() == [1, 2]


def test_impressions_that_cannot_be_kept_are_counted_and_refuse_nobody(path):
    with Store(path) as store:
        log = EventStore(store)
        log.log_impressions(answer("r"))
        store.submit(lambda c: c.execute("DROP TABLE impressions") and None).result()
        log.log_impressions(answer("s"))
        store.submit(lambda _: None).result()
        assert log.lost_answers == 1
    log.log_impressions(answer("t"))  # the store is closed
    assert log.lost_answers == 2


def test_any_text_comes_back(log, path):
    for number, text in enumerate(['"', "';--", "鞋 👟", "a\0b", "é́", "%_"]):
        log.log_impressions(answer(f"r{number}", "a", query=text, user_key=text))
        accepted(log, event(f"e{text}", f"r{number}"))
    clicks = export_clicks(path)
    assert clicks["query"].to_list() == ['"', "';--", "鞋 👟", "a\0b", "é́", "%_"]
    assert clicks["query"].equals(clicks["user_key"].alias("query"))
    assert clicks["clicked"].all()


# -- marks -----------------------------------------------------------------------------------------


def frame_of_events(rows):
    """Rows of request, product, type and seconds, in order of arrival."""
    names = ("request_id", "product_id", "type", "ts")
    values = [(*row[:3], after(row[3])) for row in rows]
    return pl.DataFrame(values, names, orient="row").with_row_index("number")


@pytest.mark.parametrize(
    ("rows", "doubled"),
    [
        ([], []),
        ([("r", "a", "click", 0)], [False]),
        ([("r", "a", "click", 0), ("r", "a", "click", 1.999)], [False, True]),
        ([("r", "a", "click", 0), ("r", "a", "click", 2)], [False, False]),
        ([("r", "a", "click", 0), ("r", "a", "click", 0)], [False, True]),
        ([("r", "a", "click", 1), ("r", "a", "click", 0)], [True, False]),
        ([("r", "a", "click", 0), ("r", "a", "cart", 0)], [False, False]),
        ([("r", "a", "click", 0), ("r", "b", "click", 0)], [False, False]),
        ([("r", "a", "click", 0), ("s", "a", "click", 0)], [False, False]),
        ([("r", "a", "click", second) for second in (0, 1.5, 3)], [False, True, True]),
    ],
)
def test_doubled_by_hand(rows, doubled):
    schema = {"request_id": str, "product_id": str, "type": str, "ts": pl.Datetime("us", "UTC")}
    events = frame_of_events(rows) if rows else pl.DataFrame(schema=schema | {"number": int})
    assert mark_doubled(events).to_list() == doubled


@settings(max_examples=20)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("rs"), st.sampled_from("ab"), st.sampled_from("xy"), st.floats(0, 9)
        ),
        max_size=12,
    ),
    st.integers(1, 5),
)
def test_marks_in_the_store_are_those_of_all_events_at_once(tmp_path_factory, rows, batch):
    path = tmp_path_factory.mktemp("marks") / "events.sqlite"
    kinds = {"x": "click", "y": "cart"}
    events = [
        event(str(number), request, product, kinds[kind], at=at)
        for number, (request, product, kind, at) in enumerate(rows)
    ]
    with Store(path) as store:
        for start in range(0, len(events), batch):
            EventStore(store).log_events(events[start : start + batch])
    kept = read_tables(path).events
    assert kept.height == len(rows)
    assert kept["doubled"].to_list() == mark_doubled(kept).to_list()


def test_a_doubled_event_is_kept_and_counts_once(log, path):
    log.log_impressions(answer("r"))
    accepted(log, event("e1", at=0))
    accepted(log, event("e2", at=1), event("e3", at=50))
    assert read_tables(path).events["doubled"].to_list() == [False, True, False]
    assert done(path, "clicked") == [("r", "a", True), ("r", "b", False)]


def requests_of(user_key, seconds):
    return [
        (number, f"{user_key}{number}", after(second), user_key)
        for number, second in enumerate(seconds)
    ]


def bots_among(requests, impressions=(), events=()):
    time = pl.Datetime("us", "UTC")
    tables = (
        pl.DataFrame(
            list(requests),
            {"number": pl.Int64, "request_id": pl.String, "ts": time, "user_key": pl.String},
            orient="row",
        ),
        pl.DataFrame(
            list(impressions), {"request": pl.Int64, "product_id": pl.String}, orient="row"
        ),
        pl.DataFrame(
            list(events),
            {
                "request_id": pl.String,
                "product_id": pl.String,
                "type": pl.String,
                "received": time,
                "user_key": pl.String,
            },
            orient="row",
        ),
    )
    return find_bots(*tables).rows()


@pytest.mark.parametrize(
    ("seconds", "is_bot"),
    [
        ([0.9 * n for n in range(61)], True),
        ([0.9 * n for n in range(60)], False),
        ([1.0 * n for n in range(61)], False),  # the 61st comes when the minute is over
        ([0.0] * 30 + [3600 + 1.0 * n for n in range(31)], False),
        ([*(100.0 * n for n in range(50)), *([9999.0] * 61)], True),
    ],
)
def test_more_than_sixty_requests_within_a_minute(seconds, is_bot):
    shuffled = seconds[1::2] + seconds[::2]
    assert bots_among(requests_of("u", shuffled)) == ([("u", "requests")] if is_bot else [])
    assert bots_among(requests_of("", shuffled)) == []


@pytest.mark.parametrize(
    ("num_requests", "products", "clicked", "is_bot"),
    [
        (10, "abcde", "abcde", True),
        (9, "abcde", "abcde", False),
        (10, "abcde", "abcd", False),
        (10, "abcd", "abcd", False),
    ],
)
def test_a_click_on_everything_shown(num_requests, products, clicked, is_bot):
    requests = requests_of("u", [1000.0 * n for n in range(num_requests)])
    impressions = [(number, one) for number, *_ in requests for one in products]
    events = [
        (request_id, one, "click", ts + timedelta(seconds=60), "u")
        for _, request_id, ts, _ in requests
        for one in clicked
    ]
    found = bots_among(requests, impressions, events)
    assert found == ([("u", "sweep")] if is_bot else [])
    carts = [(request, one, "cart", *rest) for request, one, _, *rest in events]
    assert bots_among(requests, impressions, carts) == []


@pytest.mark.parametrize(
    ("num_clicks", "delay_ms", "is_bot"), [(5, 99, True), (4, 99, False), (5, 100, False)]
)
def test_clicks_quicker_than_eye_and_hand(num_clicks, delay_ms, is_bot):
    requests = requests_of("u", [1000.0 * n for n in range(num_clicks)])
    delay = timedelta(milliseconds=delay_ms)
    events = [(request, "a", "click", ts + delay, "u") for _, request, ts, _ in requests]
    assert bots_among(requests, [], events) == ([("u", "instant")] if is_bot else [])


def test_bots_teach_nothing_and_lose_nothing(log, path):
    log.log_impressions(answer("r", user_key="ann"))
    accepted(log, event("e1", product_id="a"))
    for number in range(61):
        log.log_impressions(answer(f"b{number}", user_key="bot", at=number / 2))
    accepted(log, event("e2", "b0"), event("e3", "r", "b", user_key="bot"), now=after(99))
    assert done(path, "clicked") == [("r", "a", True), ("r", "b", False)]
    assert read_tables(path).requests.height == 62
    assert read_tables(path).events.height == 3


def test_a_mark_outlives_the_rows_that_gave_the_bot_away(log, path):
    for number in range(61):
        log.log_impressions(answer(f"b{number}", user_key="bot", at=number / 2))
    log.log_impressions(answer("late", user_key="bot", at=1000))
    log.log_impressions(answer("r", user_key="ann", at=1000))
    accepted(log)
    assert log.mark_bots() == 1
    assert log.mark_bots() == 1
    assert read_tables(path).bots.rows() == [("bot", "requests")]
    expire(path, after(500))
    assert done(path) == [("r", "a"), ("r", "b")]
    expire(path, after(1001))
    assert read_tables(path).bots.rows() == []


# -- forgetting ------------------------------------------------------------------------------------


def has_bytes(path, text):
    """Whether any file of the store holds a text; asked of another process, see store.py."""
    files = sorted(path.parent.glob(f"{path.name}*"))
    return subprocess.run(["grep", "-q", "-a", "-F", "-e", text, *files]).returncode == 0


def fill(log, users, num_answers):
    """Answers to many, interleaved, with keys and queries that can be looked for."""
    for number in range(num_answers):
        for user in users:
            name = f"{user}-{number}"
            asked = {"query": f"QUERY-OF-{user} {number}", "user_key": f"KEY-OF-{user}"}
            log.log_impressions(answer(name, "abc", at=number * 60, **asked))
            events = [event(name, name, "b"), event(f"{name}-late", name, "c", "cart")]
            accepted(log, *events, now=after(number * 60))


def test_a_forgotten_shopper_is_in_no_byte_of_any_file(log, path):
    fill(log, ["ann", "bob", "cem"], 60)
    assert has_bytes(path, "KEY-OF-ann") and has_bytes(path, "QUERY-OF-ann")
    others = export_clicks(path).filter(pl.col("user_key") != "KEY-OF-ann")
    assert forget(path, "KEY-OF-ann") == Counts(impressions=180, events=120)
    assert not has_bytes(path, "KEY-OF-ann") and not has_bytes(path, "QUERY-OF-ann")
    assert has_bytes(path, "KEY-OF-bob") and has_bytes(path, "QUERY-OF-bob")
    assert export_clicks(path).equals(others)
    assert forget(path, "KEY-OF-ann") == Counts(0, 0)
    # The service goes on meanwhile.
    log.log_impressions(answer("new", user_key="KEY-OF-ann"))
    assert accepted(log, event("new", "new")) == (1, 0, 0)


def test_copies_left_by_rows_that_moved_are_gone_too(log, path):
    """Overwriting deleted rows is not enough: with this seed it leaves a key in a page."""
    rng = random.Random(0)
    users = [f"user{rng.random()}".ljust(rng.randrange(5, 150), "x") for _ in range(300)]
    for number in range(1500):
        user, name = rng.choice(users), f"{rng.random()}"
        query = f"q:{user}" + "y" * rng.randrange(200)
        log.log_impressions(answer(name, at=number, query=query, user_key=user))
        if number % 10 == 0:
            accepted(log, event(f"{rng.random()}", name))
    accepted(log)
    for user in users[1:60]:
        erase(path, partial(_delete_shopper, user), rewrite=False)
    forget(path, users[0])
    assert not [user for user in users[:60] if has_bytes(path, user)]
    assert all(has_bytes(path, user) for user in users[60:70])


def test_forgetting_reaches_what_is_linked_by_events_alone(log, path):
    log.log_impressions(answer("anonymous", query="SECRET words"))
    log.log_impressions(answer("of bob", user_key="bob"))
    log.log_impressions(answer("nobody"))
    accepted(
        log,
        event("e1", "anonymous", user_key="ann"),
        event("e2", "anonymous", "b"),
        event("e3", "of bob", user_key="ann"),
        event("e4", "of bob", "b"),
        event("e5", "never shown", user_key="ann"),
        event("e6", "nobody"),
    )
    assert forget(path, "ann") == Counts(impressions=2, events=4)
    assert read_tables(path).requests["request_id"].to_list() == ["of bob", "nobody"]
    assert read_tables(path).events["product_id"].to_list() == ["b", "a"]
    assert not has_bytes(path, "SECRET")


def test_forgetting_takes_the_bot_mark_too(log, path):
    for number in range(61):
        log.log_impressions(answer(f"b{number}", user_key="SHOPPER-7", at=number / 2))
    accepted(log)
    log.mark_bots()
    forget(path, "SHOPPER-7")
    assert read_tables(path).bots.rows() == []
    assert not has_bytes(path, "SHOPPER-7")


def test_expiry_keeps_what_is_young_enough(log, path):
    fill(log, ["ann", "bob"], 10)
    accepted(log, event("on an old answer", "ann-0"), now=after(9999))
    assert expire(path, after(5 * 60)) == Counts(impressions=30, events=20)
    tables = read_tables(path)
    assert tables.requests["ts"].min() == after(5 * 60)
    assert tables.impressions["request"].is_in(tables.requests["number"].implode()).all()
    assert tables.events["received"].min() == after(5 * 60)
    assert tables.events.height == 21
    assert not has_bytes(path, "QUERY-OF-ann 4") and has_bytes(path, "QUERY-OF-ann 5")


def test_forgetting_where_nothing_was_kept(path):
    assert forget(path, "ann") == expire(path, NOON) == Counts(0, 0)
    assert not path.exists()
    with pytest.raises(DataError, match=r"user_key: empty, .*; name the key to forget"):
        forget(path, "")


def test_a_missing_store_says_what_to_do(path):
    with pytest.raises(DataError, match=r"events.sqlite: not found; let the region serve first"):
        export_clicks(path)
    assert not path.exists()


def test_activations_of_queries_are_removed_and_those_of_the_catalog_stay(tmp_path):
    names = ("text-catalog", "text-queries", "text-more", "image-catalog")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.npy").write_bytes(b"x")
    assert remove_query_activations(tmp_path, keep=tmp_path / "text-catalog") == 2

    def left():
        return sorted(path.name for path in tmp_path.iterdir() if path.is_dir())

    assert left() == ["image-catalog", "text-catalog"]
    assert remove_query_activations(tmp_path) == 1
    assert left() == ["image-catalog"]
    assert remove_query_activations(tmp_path / "none") == 0
    assert not (tmp_path / "none").exists()


def test_the_kept_activations_are_named_as_removal_expects(tmp_path, encoder):
    from shared.encoders.prefix_cache import text_folder, text_prefixes

    fingerprint = encoder.base.fingerprint
    for texts in (["boot", "shoe"], ["a query"]):
        text_prefixes(tmp_path, encoder.text, fingerprint, texts)
    catalog = text_folder(tmp_path, encoder.text, fingerprint, ["boot", "shoe"])
    queries = text_folder(tmp_path, encoder.text, fingerprint, ["a query"])
    assert catalog.is_dir() and queries.is_dir()
    assert remove_query_activations(tmp_path, keep=catalog) == 1
    assert catalog.is_dir() and not queries.exists()
