"""Figures and lines: what they count, and what never gets into them."""

import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families

from client.service.messages import EventsResponse
from client.service.observe import (
    Observer,
    log_request,
    peer_kind,
    request_id_from,
    request_lines,
)


def figures(observer: Observer) -> dict[tuple[str, ...], float]:
    """Name and label values of every sample -> its value, as Prometheus reads them."""
    families = text_string_to_metric_families(observer.render().decode())
    samples = (sample for family in families for sample in family.samples)
    return {(one.name, *one.labels.values()): one.value for one in samples}


@dataclass(frozen=True)
class Shelf:
    release: int
    encoder_digest: str
    num_changes: int


def test_requests_are_counted_by_outcome_and_timed() -> None:
    observer = Observer()
    observer.requested("http", "Search", "200", 0.003)
    observer.requested("http", "Search", "200", 0.03)
    observer.requested("grpc", "Search", "OK", 20.0)
    found = figures(observer)
    assert found["fedshelf_requests_total", "200", "Search", "http"] == 2
    assert found["fedshelf_requests_total", "OK", "Search", "grpc"] == 1
    assert found["fedshelf_request_seconds_bucket", "0.005", "Search", "http"] == 1
    assert found["fedshelf_request_seconds_bucket", "0.05", "Search", "http"] == 2
    assert found["fedshelf_request_seconds_bucket", "10.0", "Search", "grpc"] == 0
    assert found["fedshelf_request_seconds_sum", "Search", "grpc"] == 20.0


def test_a_stage_counts_also_where_it_ends_in_an_error() -> None:
    observer = Observer()
    with observer.stage("encode"):
        pass
    with pytest.raises(KeyError), observer.stage("encode"):
        raise KeyError
    assert figures(observer)["fedshelf_stage_seconds_count", "encode"] == 2


def test_a_search_that_found_nothing_as_asked_is_counted_as_such() -> None:
    observer = Observer()
    for num_found, fallback in [(3, ""), (0, ""), (5, "popular"), (4, "relaxed"), (1, "relaxed")]:
        observer.found(num_found, fallback)
    found = figures(observer)
    assert found[("fedshelf_searches_total",)] == 5
    assert found[("fedshelf_zero_results_total",)] == 4
    assert found["fedshelf_fallbacks_total", "popular"] == 1
    assert found["fedshelf_fallbacks_total", "relaxed"] == 2


def test_events_are_counted_by_what_became_of_them() -> None:
    observer = Observer()
    observer.took_events(EventsResponse(accepted=3, repeated=2, unknown=1))
    observer.took_events(EventsResponse(accepted=1, repeated=0, unknown=0))
    found = figures(observer)
    outcomes = {name: found["fedshelf_events_total", name] for name in ("accepted", "repeated")}
    assert outcomes == {"accepted": 4, "repeated": 2}


def test_only_the_current_encoder_is_reported() -> None:
    observer = Observer()
    observer.opened(Shelf(release=1, encoder_digest="aa", num_changes=0))
    observer.opened(Shelf(release=2, encoder_digest="bb", num_changes=7))
    found = figures(observer)
    assert found[("fedshelf_release",)] == 2
    assert found[("fedshelf_overlay_changes",)] == 7
    assert found["fedshelf_encoder_info", "bb"] == 1
    assert ("fedshelf_encoder_info", "aa") not in found


def test_the_age_of_the_index_is_read_from_the_clock() -> None:
    now = [1000.0]
    observer = Observer(clock=lambda: now[0])
    assert figures(observer)[("fedshelf_index_age_seconds",)] != 0  # NaN: there is none
    observer.index_built(990.0)
    assert figures(observer)[("fedshelf_index_age_seconds",)] == 10.0
    now[0] = 1005.0
    assert figures(observer)[("fedshelf_index_age_seconds",)] == 15.0


def test_what_is_in_flight_is_asked_at_each_reading() -> None:
    observer, number = Observer(), [2]
    observer.watch(in_flight=lambda: number[0], ready=lambda: number[0] < 3)
    assert figures(observer)[("fedshelf_in_flight",)] == 2
    assert figures(observer)[("fedshelf_ready",)] == 1
    number[0] = 3
    assert figures(observer)[("fedshelf_in_flight",)] == 3
    assert figures(observer)[("fedshelf_ready",)] == 0


def test_two_services_in_one_process_count_for_themselves() -> None:
    one, other = Observer(), Observer()
    one.found(1, "")
    assert figures(one)[("fedshelf_searches_total",)] == 1
    assert figures(other)[("fedshelf_searches_total",)] == 0


@pytest.mark.parametrize("given", ["a", "A-b_c.9", "x" * 64])
def test_a_sane_request_id_is_kept(given: str) -> None:
    assert request_id_from(given) == given


@pytest.mark.parametrize("given", [None, "", "x" * 65, "a b", "a\n", "ä", '"', "../x"])
def test_any_other_is_replaced(given: str | None) -> None:
    assert len(request_id_from(given)) == 32
    assert request_id_from(given) != request_id_from(given)


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("127.0.0.1", "loopback"),
        ("127.9.9.9", "loopback"),
        ("::1", "loopback"),
        ("10.0.0.7", "remote"),
        ("2001:db8::1", "remote"),
        ("odd", "remote"),
        ("", "local"),
        (None, "local"),
    ],
)
def test_a_caller_is_said_by_kind_and_not_by_address(host: str | None, kind: str) -> None:
    assert peer_kind(host) == kind


@pytest.fixture
def restored() -> Iterator[logging.Logger]:
    logger = logging.getLogger("fedshelf.requests")
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield logger
    assert (list(logger.handlers), logger.level, logger.propagate) == before


def test_lines_go_to_the_stream_while_inside(restored: logging.Logger) -> None:
    def say(query: str | None) -> None:
        log_request(
            request_id="r",
            wire="http",
            method="POST",
            path="/v1/search",
            status="200",
            seconds=0.0123,
            peer="loopback",
            query=query,
        )

    stream = io.StringIO()
    with request_lines(stream):
        say(None)
        say('shoe "red"\nblue')
    say(None)
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["ms"], first["status"]) == (12.3, "200")
    assert "query" not in first
    assert second["query"] == 'shoe "red"\nblue'
