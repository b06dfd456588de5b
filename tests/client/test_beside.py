"""The service follows `state/current`, whoever puts an index there and whatever goes wrong."""

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from small_beside import Beside
from small_registry import TITLES, Headquarters, write_catalog, write_region
from words_shop import WordEncoder, adapter_of, ids, product

from client.erasure import DERIVED_S, EXPIRED, FORGOTTEN, forget_shopper
from client.releases import pin
from client.resident import _stamp
from client.service import beside as service_beside
from client.service.events import EventStore
from client.service.failures import RequestError
from client.service.messages import DeleteRequest, UpsertRequest
from shared.errors import ConfigError

RULES = '\n[serve]\nrules = "rules.toml"\n'


@pytest.fixture
def headquarters(tmp_path: Path) -> Headquarters:
    return Headquarters(tmp_path)


@pytest.fixture
def folder(tmp_path: Path, headquarters: Headquarters) -> Path:
    write_region(tmp_path / "north", headquarters, RULES)
    (tmp_path / "north" / "rules.toml").write_text("")
    return tmp_path / "north"


@pytest.fixture
def beside(folder: Path) -> Iterator[Beside]:
    made = Beside(folder)
    yield made
    made.parts.close()


def test_it_answers_from_the_first_index_there_is(
    beside: Beside, headquarters: Headquarters
) -> None:
    assert not beside.refresh() and not beside.shop.ready
    headquarters.release(adapter=adapter_of(1))
    beside.look()
    assert beside.refresh()
    assert beside.search("phone").release == 1
    assert not beside.refresh()  # nothing has changed


def test_releases_and_ways_back_are_followed(beside: Beside, headquarters: Headquarters) -> None:
    for release in (1, 2, 3):
        headquarters.release(adapter=adapter_of(release))
        beside.look()
        assert beside.refresh()
        found = beside.search("a phone")
        assert (found.release, found.encoder_digest) == (release, WordEncoder(release).digest)
    assert beside.shop.info().releases == (3, 2)
    former = beside.search("a phone", release=2, explain=True)
    assert former.encoder_digest == WordEncoder(2).digest
    assert former.hits[0].explanation.dense_score == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(RequestError, match="release 1"):
        beside.search("a phone", release=1)
    pin(beside.folder, 2)
    beside.look()
    assert beside.refresh()
    assert beside.shop.info().releases == (2, 3)


def test_without_the_former_release_the_current_one_answers(
    beside: Beside, headquarters: Headquarters
) -> None:
    for release in (1, 2):
        headquarters.release(adapter=adapter_of(release))
        beside.look()
    shutil.rmtree(beside.folder / "state" / "releases" / "1")
    assert beside.refresh()
    assert beside.shop.info().releases == (2,)


def test_a_damaged_index_leaves_what_answered(beside: Beside, headquarters: Headquarters) -> None:
    headquarters.release(adapter=adapter_of(1))
    beside.look()
    beside.refresh()
    headquarters.release(adapter=adapter_of(2))
    beside.look()
    [index] = (beside.folder / "state" / "indexes").glob("2-*/INDEX.json")
    index.write_text("{}")
    assert not beside.refresh()
    assert beside.search("a phone").release == 1


def test_the_age_of_the_index_is_that_of_the_current_one(
    beside: Beside, headquarters: Headquarters, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[float] = []
    monkeypatch.setattr(beside.parts.observer, "index_built", built.append)
    for release in (1, 2):
        headquarters.release(adapter=adapter_of(release))
        beside.look()
        beside.refresh()
    assert len(built) == 2 and built == sorted(built)


def test_rules_that_are_wrong_stop_a_start_and_nothing_later(
    beside: Beside, headquarters: Headquarters
) -> None:
    headquarters.release(adapter=adapter_of(1))
    beside.look()
    rules = beside.folder / "rules.toml"
    rules.write_text("synonyms = 5")
    with pytest.raises(ConfigError, match=r"rules\.toml"):
        beside.refresh()
    rules.write_text('[[block]]\nproducts = ["sku-3"]')
    assert beside.refresh()
    assert "sku-3" not in ids(beside.search("a phone"))
    rules.write_text("synonyms = 5")
    beside.reopen()
    assert not beside.refresh()
    assert "sku-3" not in ids(beside.search("a phone"))
    rules.write_text("")
    beside.reopen()
    assert beside.refresh()
    assert ids(beside.search("a phone"))[0] == "sku-3"


def test_changes_live_through_swaps_until_the_catalog_has_them(
    beside: Beside, headquarters: Headquarters
) -> None:
    headquarters.release(adapter=adapter_of(1))
    beside.look()
    beside.refresh()
    beside.shop.upsert(UpsertRequest(products=(product("sku-5", "a tent"),)))
    beside.shop.delete(DeleteRequest(product_ids=("sku-0",)))
    headquarters.release(adapter=adapter_of(2))
    beside.look()
    assert beside.refresh()  # on the region as it was opened before the change
    assert ids(beside.search("a tent"))[0] == "sku-5"
    assert beside.shop.info().num_changes == 2
    write_catalog(beside.folder, [*TITLES, "a tent"])  # lists the deleted one still
    beside.reopen()
    assert beside.refresh()
    assert ids(beside.search("a tent"))[0] == "sku-5"
    upserts, deleted = beside.parts.overlay.changes()
    assert (upserts.height, deleted) == (0, ["sku-0"])
    beside.look()  # the index is built anew over the catalog as it is now
    assert beside.refresh()
    assert beside.shop.info().num_changes == 0
    assert all("sku-0" not in ids(beside.search(text)) for text in ("red boots", "sku-0", ""))


def test_events_past_their_time_are_let_go(folder: Path, headquarters: Headquarters) -> None:
    beside = Beside(folder)
    try:
        headquarters.release(adapter=adapter_of(1))
        beside.look()
        beside.service.keep_house(beside.worker)  # before there is a region: nothing
        beside.refresh()
        beside.search("a phone")
        old = beside.parts.tables().requests["request_id"].to_list()
        year = timedelta(days=beside.parts.config.retention_days + 1)
        past = (datetime.now(UTC) - year).timestamp() * 1e6
        beside.parts.store.submit(
            lambda connection: connection.execute("UPDATE requests SET ts = ?", (int(past),))
        ).result()
        beside.search("red boots")
        beside.service.keep_house(beside.worker)
        kept = beside.parts.tables().requests["request_id"].to_list()
        assert len(old) == len(kept) == 1 and old != kept
    finally:
        beside.parts.close()


def test_what_fails_while_keeping_house_does_not_end_the_service(
    beside: Beside, headquarters: Headquarters, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(store: EventStore) -> int:
        raise RequestError("overloaded", "rows wait to be written")

    headquarters.release(adapter=adapter_of(1))
    beside.look()
    beside.refresh()
    monkeypatch.setattr(EventStore, "mark_bots", full)
    beside.service.keep_house(beside.worker)
    assert beside.search("a phone").hits


class Retention:
    """A service that is one hour of housekeeping after another; `wait` moves what is on disk."""

    def __init__(self, beside: Beside, headquarters: Headquarters) -> None:
        headquarters.release(adapter=adapter_of(1))
        beside.look()
        beside.refresh()
        self.beside, self.state = beside, beside.folder / "state"
        self.cache = self.state / "prefix_cache"

    def search_long_ago(self) -> None:
        """An answer that was given before anything that is kept."""
        self.beside.search("a phone")
        days = timedelta(days=self.beside.parts.config.retention_days + 1)
        past = (datetime.now(UTC) - days).timestamp() * 1e6
        self.beside.parts.store.submit(
            lambda connection: connection.execute("UPDATE requests SET ts = ?", (int(past),))
        ).result()

    def derive(self) -> None:
        """Keep activations, as a worker does that trains."""
        for name in ("text-catalog", "text-queries", "image-photos"):
            (self.cache / name).mkdir(parents=True, exist_ok=True)

    def kept(self) -> set[str]:
        return {path.name for path in self.cache.glob("*-*")}

    def keep_house(self) -> bool:
        """One hour; whether the worker is to open the region again."""
        before = _stamp(self.beside.folder, self.beside.worker.region.config)
        self.beside.service.keep_house(self.beside.worker)
        return _stamp(self.beside.folder, self.beside.worker.region.config) != before

    def a_day_passes(self) -> None:
        path = self.state / FORGOTTEN
        then = path.stat().st_mtime - DERIVED_S
        os.utime(path, (then, then))


@pytest.fixture
def retention(
    beside: Beside, headquarters: Headquarters, monkeypatch: pytest.MonkeyPatch
) -> Retention:
    monkeypatch.setattr(service_beside, "HOUSEKEEPING_S", 0.0)
    return Retention(beside, headquarters)


ALL = {"text-catalog", "text-queries", "image-photos"}


def test_what_was_derived_from_expired_queries_goes_with_them(retention: Retention) -> None:
    retention.derive()
    assert not retention.keep_house() and retention.kept() == ALL  # nothing has expired
    retention.search_long_ago()
    assert retention.keep_house()
    assert retention.kept() == ALL - {"text-queries"}
    assert not (retention.state / EXPIRED).exists()


def test_the_worker_reopens_for_that_once_a_day_at_most(
    retention: Retention,
) -> None:
    retention.search_long_ago()
    assert retention.keep_house()
    retention.derive()
    retention.search_long_ago()
    assert not retention.keep_house() and retention.kept() == ALL
    assert retention.beside.parts.tables().requests.height == 0  # events themselves do not wait
    retention.a_day_passes()  # and nothing more expires: it is owed from before
    assert retention.keep_house() and retention.kept() == ALL - {"text-queries"}
    retention.derive()
    retention.a_day_passes()
    assert not retention.keep_house() and retention.kept() == ALL


def test_no_vector_of_a_forgotten_shoppers_query_is_kept(
    beside: Beside, headquarters: Headquarters, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str | None] = []

    def noting(encoder: WordEncoder, texts: Any, images: Any) -> Any:
        encoded.extend(texts)
        return plain(encoder, texts, images)

    plain = WordEncoder.encode_queries
    monkeypatch.setattr(WordEncoder, "encode_queries", noting)
    headquarters.release(adapter=adapter_of(1))
    beside.look()
    beside.refresh()

    def times_encoded() -> int:
        beside.search("my secret wish", user_key="me")
        return encoded.count("my secret wish")

    assert [times_encoded(), times_encoded()] == [1, 1]
    before = _stamp(beside.folder, beside.worker.region.config)
    forget_shopper(beside.folder, "me")
    assert _stamp(beside.folder, beside.worker.region.config) != before  # so the worker reopens:
    beside.reopen()
    assert beside.refresh()
    assert [times_encoded(), times_encoded()] == [2, 2]
