"""A shopper who wants to be forgotten is gone from every byte that a region keeps."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from words_shop import WordsShop, write_shop_region

from client.erasure import FORGOTTEN, forget_shopper
from client.region import open_region, read_clicks
from client.resident import _stamp
from client.service.events import Counts, read_tables
from client.service.messages import Event, EventsRequest, SearchRequest
from shared.audit import read_audit
from shared.errors import DataError

KEY, QUERY = "shopper-4711-secret", "gehstock mit klingel"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shop_region(tmp_path / "north")


def shop_for(opened: WordsShop, user_key: str, query: str) -> None:
    """Search, click the first product, and let both be written."""
    found = opened.shop.search(SearchRequest(query=query, user_key=user_key, k=3))
    click = Event(
        event_id=f"{user_key} {query}",
        request_id=found.request_id,
        product_id=found.hits[0].product_id,
        type="click",
        ts=datetime.now(UTC),
    )
    opened.shop.log_events(EventsRequest(events=(click,)))


def files_with(folder: Path, text: str) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return [path.name for path in files if text.encode() in path.read_bytes()]


@pytest.mark.parametrize("serving", [False, True])
def test_no_byte_of_key_or_query_is_left(folder: Path, serving: bool) -> None:
    with WordsShop(folder, 1) as opened:
        shop_for(opened, KEY, QUERY)
        shop_for(opened, "another-key", "red hat")
        if serving:  # a process must not look into a store by other means while it has it open
            assert forget_shopper(folder, KEY) == Counts(impressions=3, events=1)
            shop_for(opened, "another-key", "blue hat")
    if not serving:
        assert files_with(folder, KEY) == files_with(folder, QUERY) == ["events.sqlite"]
        assert forget_shopper(folder, KEY) == Counts(impressions=3, events=1)
    assert files_with(folder, KEY) == files_with(folder, QUERY) == []
    keys = read_tables(folder / "state" / "events.sqlite").requests["user_key"].to_list()
    assert set(keys) == {"another-key"}


def test_what_is_derived_is_removed_and_a_worker_is_told(folder: Path) -> None:
    with WordsShop(folder, 1) as opened:
        shop_for(opened, KEY, QUERY)
    cache = folder / "state" / "prefix_cache"
    for name in ("text-aa", "text-bb", "image-cc"):
        (cache / name).mkdir(parents=True)
        (cache / name / "rows.npy").write_bytes(b"1")
    region = open_region(folder)
    before = _stamp(folder, region.config)
    forget_shopper(folder, KEY)
    assert sorted(path.name for path in cache.glob("*-*")) == ["image-cc"]
    assert _stamp(folder, region.config) != before and (folder / "state" / FORGOTTEN).is_file()
    between = _stamp(folder, region.config)
    forget_shopper(folder, "somebody-else")
    assert _stamp(folder, region.config) != between


def test_the_next_round_does_not_learn_from_them(folder: Path) -> None:
    toml = (folder / "region.toml").read_text("utf-8")
    (folder / "region.toml").write_text(
        toml.replace("data.text_fields", 'data.clicks = "state/events.sqlite"\ndata.text_fields')
    )
    with WordsShop(folder, 1) as opened:
        shop_for(opened, KEY, QUERY)
        shop_for(opened, "another-key", "red hat")
    assert set(read_clicks(open_region(folder))["query"]) == {QUERY, "red hat"}
    forget_shopper(folder, KEY)
    assert set(read_clicks(open_region(folder))["query"]) == {"red hat"}


def test_the_audit_line_has_counts_and_no_key(folder: Path) -> None:
    with WordsShop(folder, 1) as opened:
        shop_for(opened, KEY, QUERY)
    forget_shopper(folder, KEY)
    [entry] = read_audit(folder / "state" / "audit.jsonl")
    assert entry.event == "shopper.forgotten"
    assert "4711" not in (folder / "state" / "audit.jsonl").read_text("utf-8")
    assert entry.facts == {"impressions": 3, "events": 1}


def test_nobody_cannot_be_forgotten(folder: Path) -> None:
    with pytest.raises(DataError, match="name the key to forget"):
        forget_shopper(folder, "")
    assert not (folder / "state" / FORGOTTEN).exists()
