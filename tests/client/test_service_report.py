"""What a region learns from its own event store: usage by ranker, bots left out, verdicts."""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from client.service.events import (
    EventStore,
    Impression,
    Impressions,
    interleaved_ranker,
    read_tables,
)
from client.service.messages import Event
from client.service.report import Experiment, Usage, report, report_of
from client.service.store import Store
from shared.errors import DataError
from shared.interleaving import verdict

START = datetime(2030, 1, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


class Log:
    """Answers and clicks, one after another."""

    def __init__(self, path: Path) -> None:
        self.store = Store(path)
        self.events = EventStore(self.store)
        self.number = 0

    def answer(
        self,
        products: Sequence[str],
        clicks: Sequence[str] = (),
        *,
        ranker: str = "hybrid",
        release: int = 1,
        teams: Sequence[str] = (),
        user_key: str = "",
        kind: str = "click",
        times: int = 1,
    ) -> str:
        self.number += 1
        request_id, at = f"r{self.number}", START + self.number * 10 * MINUTE
        shown = tuple(
            Impression(one, place + 1, 1 / (place + 1), teams[place] if teams else "")
            for place, one in enumerate(products)
        )
        self.events.log_impressions(
            Impressions(request_id, at, "boots", "text", user_key, ranker, release, shown)
        )
        for again in range(times if clicks else 0):
            now = at + (1 + again) * MINUTE
            events = [_event(request_id, one, kind, again) for one in clicks]
            self.events.log_events(events, now=now)
        self.store.submit(lambda connection: None).result()  # impressions wait for nobody
        return request_id

    def close(self) -> None:
        self.store.close()


def _event(request_id: str, product_id: str, kind: str, again: int) -> Event:
    return Event.model_validate(
        {
            "event_id": f"{request_id}-{product_id}-{again}",
            "request_id": request_id,
            "product_id": product_id,
            "type": kind,
        }
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.sqlite"


@pytest.fixture
def log(path: Path) -> Iterator[Log]:
    made = Log(path)
    yield made
    made.close()


def test_usage_is_counted_by_ranker_and_release(log: Log, path: Path) -> None:
    log.answer("abc", "b")
    log.answer("abc", "ac")  # two clicks: the first of them counts for the position
    log.answer("abc")
    log.answer("abc", "c", release=2, kind="purchase")
    log.answer("abc", ranker="lexical")
    assert report(path).usage == [
        Usage("hybrid", 1, answers=3, clicked=2, first_position=3 / 2),
        Usage("hybrid", 2, answers=1, clicked=1, first_position=3.0),
        Usage("lexical", 1, answers=1, clicked=0, first_position=None),
    ]
    assert report(path).experiments == []


def test_clicks_on_what_was_not_shown_count_for_nobody(log: Log, path: Path) -> None:
    log.answer("ab", "z")
    assert report(path).usage == [Usage("hybrid", 1, 1, 0, None)]


def test_the_verdict_counts_answers_and_not_clicks(log: Log, path: Path) -> None:
    teams = ["a", "b", "a", "b", ""]
    log.answer("vwxyz", "vx", teams=teams)  # a wins, once
    log.answer("vwxyz", "vwx", teams=teams)  # a wins
    log.answer("vwxyz", "w", teams=teams)  # b wins
    log.answer("vwxyz", "vw", teams=teams)  # a tie
    log.answer("vwxyz", "z", teams=teams)  # a click on nobody's product decides nothing
    log.answer("vwxyz", teams=teams)  # nor does no click
    log.answer("vwxyz", "v")  # not interleaved
    log.answer("vwxyz", "v", teams=teams, kind="cart", times=3)  # one product, three times: a
    found = report(path)
    assert found.experiments == [Experiment("a", "b", 1, 7, verdict(3, 1, 1))]
    assert found.experiments[0].verdict.share_a == 3 / 4


def test_experiments_one_after_the_other_have_a_verdict_each(log: Log, path: Path) -> None:
    first, second = interleaved_ranker("hybrid", "lexical"), interleaved_ranker("dense", "hybrid")
    log.answer("vw", "w", teams="ab", ranker="interleaved")  # of a log that named no ways
    for clicked in "vvw":
        log.answer("vw", clicked, teams="ab", ranker=first)
    for clicked in "ww":
        log.answer("vw", clicked, teams="ab", ranker=second)
    log.answer("vw", "v", teams="ab", ranker=first, release=2)
    log.answer("vw", teams="ab", ranker=first)  # and once more the first one
    assert report(path).experiments == [
        Experiment("a", "b", 1, 1, verdict(0, 1, 0)),
        Experiment("hybrid", "lexical", 1, 4, verdict(2, 1, 0)),
        Experiment("dense", "hybrid", 1, 2, verdict(0, 2, 0)),
        Experiment("hybrid", "lexical", 2, 1, verdict(1, 0, 0)),
    ]


def test_bots_are_left_out_and_counted(log: Log, path: Path) -> None:
    for _ in range(12):  # clicks on all of what it is shown
        log.answer("abcde", "abcde", user_key="sweeper", teams="ababa")
    log.answer("abcde", "a", user_key="person", teams="ababa")
    found = report(path)
    assert found.num_bots == 1
    assert found.usage == [Usage("hybrid", 1, 1, 1, 1.0)]
    assert found.experiments == [Experiment("a", "b", 1, 1, verdict(1, 0, 0))]
    log.events.mark_bots()  # a mark that was written down counts the same
    assert report(path) == found


def test_doubled_clicks_count_once(log: Log, path: Path) -> None:
    request = log.answer("ab", "a", teams="ab")
    now = START + 20 * MINUTE
    second = Event(event_id="2", request_id=request, product_id="b", type="click")
    third = Event(event_id="3", request_id=request, product_id="b", type="click")
    log.events.log_events([second, third], now=now)
    assert read_tables(path).events["doubled"].to_list() == [False, False, True]
    assert report(path).experiments == [Experiment("a", "b", 1, 1, verdict(0, 0, 1))]


def test_an_empty_store_says_nothing(log: Log, path: Path) -> None:
    found = report_of(read_tables(path))
    assert (found.usage, found.num_bots, found.experiments) == ([], 0, [])


def test_it_is_plain_values_in_json(log: Log, path: Path) -> None:
    log.answer("ab", "a", teams="ab")
    read_back = json.loads(json.dumps(report(path).to_json()))
    assert read_back["usage"][0]["clicked"] == 1
    assert read_back["experiments"][0]["verdict"]["wins_a"] == 1


def test_without_a_store_it_says_what_to_do(path: Path) -> None:
    with pytest.raises(DataError, match="let the region serve first"):
        report(path)
    assert not path.exists()
