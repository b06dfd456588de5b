"""One search through the real shop moves every figure that the docs tell an operator to watch."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from small_beside import Beside
from small_registry import Headquarters, write_region
from words_shop import WordEncoder, adapter_of

from client.service.beside import serving
from client.service.events import EventStore
from client.service.observe import Observer
from client.service.store import Store
from shared.retrieval.filters import Filters, Range
from shared.schema import ServeConfig

STAGES = ("encode", "dense", "lexical", "fuse", "page")


def figures(observer: Observer) -> dict[tuple[str, ...], float]:
    """Name and label values of every sample -> its value, as Prometheus reads them."""
    families = text_string_to_metric_families(observer.render().decode())
    samples = (sample for family in families for sample in family.samples)
    return {(one.name, *one.labels.values()): one.value for one in samples}


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Beside]:
    headquarters = Headquarters(tmp_path)
    made = Beside(write_region(tmp_path / "north", headquarters))
    headquarters.release(adapter=adapter_of(1))
    made.look()
    made.refresh()
    yield made
    made.parts.close()


def test_every_stage_of_a_search_is_timed(beside: Beside) -> None:
    before = figures(beside.parts.observer)
    assert not any(("fedshelf_stage_seconds_count", stage) in before for stage in STAGES)
    beside.search("red boots")
    found = figures(beside.parts.observer)
    assert {found["fedshelf_stage_seconds_count", stage] for stage in STAGES} == {1}
    named = {key[1] for key in found if key[0] == "fedshelf_stage_seconds_count"}
    assert named == set(STAGES)  # what docs/serving.md names, and nothing else
    assert {found["fedshelf_stage_in_flight", stage] for stage in STAGES} == {0}


def test_another_page_and_lexical_alone_encode_nothing(beside: Beside) -> None:
    first = beside.search("boots", k=1, ranker="lexical")
    beside.search("boots", k=1, ranker="lexical", cursor=first.next_cursor)
    found = figures(beside.parts.observer)
    assert ("fedshelf_stage_seconds_count", "encode") not in found
    assert found["fedshelf_stage_seconds_count", "lexical"] == 1
    assert found["fedshelf_stage_seconds_count", "page"] == 2
    assert found[("fedshelf_searches_total",)] == 1


def test_a_search_that_found_nothing_is_counted(beside: Beside) -> None:
    observer = beside.parts.observer
    beside.search("red boots")
    assert figures(observer)[("fedshelf_zero_results_total",)] == 0
    assert beside.search("zzzz qqqq", ranker="lexical").fallback == "popular"
    assert figures(observer)[("fedshelf_zero_results_total",)] == 1
    relaxed = beside.search("red boots", filters=Filters(price=Range(ge=1e6)))
    assert relaxed.fallback == "relaxed"
    found = figures(observer)
    assert found[("fedshelf_zero_results_total",)] == 2
    assert found[("fedshelf_searches_total",)] == 3
    assert found["fedshelf_fallbacks_total", "popular"] == 1
    assert found["fedshelf_fallbacks_total", "relaxed"] == 1


def test_index_release_and_encoder_are_the_ones_in_use(beside: Beside) -> None:
    found = figures(beside.parts.observer)
    age_s = found[("fedshelf_index_age_seconds",)]
    assert math.isfinite(age_s) and age_s >= 0
    assert found[("fedshelf_release",)] == 1
    assert found["fedshelf_encoder_info", WordEncoder(1).digest] == 1
    assert found[("fedshelf_overlay_changes",)] == 0


def test_those_who_wait_for_the_encoder_are_counted(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, go_on = Event(), Event()

    def held(encoder: WordEncoder, texts: Any, images: Any) -> Any:
        busy.set()
        go_on.wait(30)
        return plain(encoder, texts, images)

    plain = WordEncoder.encode_queries
    observer = beside.parts.observer
    assert figures(observer)["fedshelf_stage_in_flight", "encode"] == 0
    monkeypatch.setattr(WordEncoder, "encode_queries", held)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(beside.search, "red boots")
        assert busy.wait(30)
        assert figures(observer)["fedshelf_stage_in_flight", "encode"] == 1
        go_on.set()
        assert waiting.result(30).hits
    assert figures(observer)["fedshelf_stage_in_flight", "encode"] == 0


def test_the_service_has_its_store_watched(beside: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "queued_rows", 7)
    monkeypatch.setattr(EventStore, "lost_answers", 3, raising=False)
    monkeypatch.setattr(EventStore, "__init__", lambda events, store: None)
    region = beside.worker.region
    config = ServeConfig.model_construct(http="127.0.0.1:0", grpc="")
    lines: list[str] = []
    beside.parts.store.close()  # one process, one writer
    with serving(region, config, lines.append):
        found = httpx.get(f"{lines[0].split()[-1]}/metrics").text
    assert "fedshelf_queued_rows 7.0" in found
    assert "fedshelf_lost_answers 3.0" in found


def test_rows_that_wait_for_the_disk_are_counted(beside: Beside) -> None:
    parts = beside.parts
    parts.observer.watch_store(
        lost_answers=lambda: parts.events.lost_answers, queued_rows=lambda: parts.store.queued_rows
    )
    assert figures(parts.observer)[("fedshelf_queued_rows",)] == 0
    busy, go_on = Event(), Event()

    def slow(_: Any) -> None:
        busy.set()
        go_on.wait(30)

    written = parts.store.submit(slow)
    assert busy.wait(30)
    beside.search("red boots", k=3)
    assert figures(parts.observer)[("fedshelf_queued_rows",)] >= 1
    go_on.set()
    written.result(30)
    parts.tables()  # once everything is written
    assert figures(parts.observer)[("fedshelf_queued_rows",)] == 0
