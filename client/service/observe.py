"""How the service is doing: figures for Prometheus, and one line of JSON a request.

Neither holds what a shopper typed, who asked, or a product's content: labels are names from closed
lists, so that their number is bounded too, and a line has a request's id, its kind and its time.
Query text is in the lines only where `serve.log_queries` says so.
"""

import ipaddress
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final, Literal, Protocol, TextIO
from uuid import uuid4

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from client.service.messages import EventsResponse

Wire = Literal["http", "grpc"]

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_lines: Final = logging.getLogger("fedshelf.requests")


class Standing(Protocol):
    """What is told of an index in use; a `shared.retrieval.shelf.Shelf` is one."""

    @property
    def release(self) -> int:
        """Whose encoder made it."""
        ...

    @property
    def encoder_digest(self) -> str:
        """Of that encoder."""
        ...

    @property
    def num_changes(self) -> int:
        """Changes that the index on disk does not hold yet."""
        ...


class Observer:
    """The figures of one service, in a registry of their own; any thread may tell it anything.

    Args:
        clock: seconds since 1970, for the age of the index.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._built_s: float | None = None
        self._digest = ""
        self._registry = CollectorRegistry()
        self._make_traffic(self._registry)
        self._make_state(self._registry)

    def _make_traffic(self, into: CollectorRegistry) -> None:
        names = ("wire", "method")
        self._requests = Counter(
            "fedshelf_requests", "Requests by outcome", (*names, "code"), registry=into
        )
        self._seconds = Histogram(
            "fedshelf_request_seconds", "Of a request", names, registry=into, buckets=_BUCKETS_S
        )
        self._stages = Histogram(
            "fedshelf_stage_seconds",
            "Of one stage of a search",
            ("stage",),
            registry=into,
            buckets=_BUCKETS_S,
        )
        self._in_stage = Gauge(
            "fedshelf_stage_in_flight", "Searches in a stage now", ("stage",), registry=into
        )
        self._in_stage.labels("encode")  # there before the first search, at 0
        self._searches = Counter("fedshelf_searches", "Searches, pages apart", registry=into)
        self._zero = Counter(
            "fedshelf_zero_results", "Searches that found nothing as asked", registry=into
        )
        self._fallbacks = Counter(
            "fedshelf_fallbacks", "Searches answered otherwise than asked", ("kind",), registry=into
        )
        self._events = Counter("fedshelf_events", "Events sent", ("outcome",), registry=into)

    def _make_state(self, into: CollectorRegistry) -> None:
        self._in_flight = Gauge("fedshelf_in_flight", "Requests at work and waiting", registry=into)
        self._ready = Gauge("fedshelf_ready", "1 if searches are answered", registry=into)
        self._age = Gauge(
            "fedshelf_index_age_seconds", "Since it was built; NaN without one", registry=into
        )
        self._age.set_function(self._index_age_s)
        self._lost = Gauge(
            "fedshelf_lost_answers", "Answers whose impressions could not be kept", registry=into
        )
        self._queued = Gauge("fedshelf_queued_rows", "Rows that wait for the disk", registry=into)
        self._release = Gauge("fedshelf_release", "Number of the current release", registry=into)
        self._encoder = Gauge(
            "fedshelf_encoder_info", "The current encoder", ("encoder_digest",), registry=into
        )
        self._changes = Gauge(
            "fedshelf_overlay_changes", "Changes that the index does not hold yet", registry=into
        )

    def watch(self, *, in_flight: Callable[[], int], ready: Callable[[], bool]) -> None:
        """Name what is asked at each reading.

        Args:
            in_flight: number of requests at work and waiting; cheap and safe in any thread.
            ready: whether searches are answered; as `in_flight`.
        """
        self._in_flight.set_function(in_flight)
        self._ready.set_function(ready)

    def watch_store(
        self, *, lost_answers: Callable[[], int], queued_rows: Callable[[], int]
    ) -> None:
        """Name what is asked at each reading.

        Args:
            lost_answers: answers whose impressions could not be written.
            queued_rows: rows that wait for the disk.
        """
        self._lost.set_function(lost_answers)
        self._queued.set_function(queued_rows)

    def requested(self, wire: Wire, method: str, code: str, seconds: float) -> None:
        """Count a request that is over.

        Args:
            wire: it came by.
            method: from a closed list, never a path as it was sent.
            code: HTTP status or name of a gRPC status.
            seconds: it took.
        """
        self._requests.labels(wire, method, code).inc()
        self._seconds.labels(wire, method).observe(seconds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage of a search, and count those who are in it.

        Args:
            name: such as "encode", "dense", "lexical", "fuse" or "page"; from a closed list.

        Yields:
            Nothing; the time inside counts, also where it ends in an error.
        """
        start = time.perf_counter()
        try:
            with self._in_stage.labels(name).track_inprogress():
                yield
        finally:
            self._stages.labels(name).observe(time.perf_counter() - start)

    def found(self, num_found: int, fallback: str) -> None:
        """Count a search; not another page of it.

        Args:
            num_found: products.
            fallback: kind of it, empty if these are what was asked for.
        """
        self._searches.inc()
        if num_found == 0 or fallback:
            self._zero.inc()
        if fallback:
            self._fallbacks.labels(fallback).inc()

    def took_events(self, answer: EventsResponse) -> None:
        """Count events.

        Args:
            answer: what became of them.
        """
        for outcome in ("accepted", "repeated", "unknown"):
            self._events.labels(outcome).inc(getattr(answer, outcome))

    def opened(self, standing: Standing) -> None:
        """Say what is answered from now on; to be called after each swap and each change.

        Args:
            standing: the current one.
        """
        self._release.set(standing.release)
        self._changes.set(standing.num_changes)
        if standing.encoder_digest != self._digest:
            self._encoder.clear()  # one that is gone is not reported beside the new one
            self._digest = standing.encoder_digest
            self._encoder.labels(standing.encoder_digest).set(1)

    def index_built(self, at_s: float) -> None:
        """Say when the index in use was built; to be called after each swap.

        Args:
            at_s: seconds since 1970.
        """
        self._built_s = at_s

    def render(self) -> bytes:
        """All figures in Prometheus' text format (`MEDIA_TYPE`)."""
        return generate_latest(self._registry)

    def _index_age_s(self) -> float:
        built_s = self._built_s
        return float("nan") if built_s is None else max(0.0, self._clock() - built_s)


def request_id_from(given: str | None) -> str:
    """The id a caller gave its request, if it is a sane one, or a new one.

    Args:
        given: header or metadata `x-request-id`, as it came.

    Returns:
        At most 64 letters, digits, dots, dashes and underscores.
    """
    return given if given and _REQUEST_ID.fullmatch(given) else uuid4().hex


def peer_kind(host: str | None) -> str:
    """Where a caller sits, without saying who it is: "loopback", "remote" or "local".

    Args:
        host: address of the other end; None or empty where it has none (a unix socket).
    """
    if not host:
        return "local"
    try:
        return "loopback" if ipaddress.ip_address(host).is_loopback else "remote"
    except ValueError:
        return "remote"


def log_request(
    *,
    request_id: str,
    wire: Wire,
    method: str,
    path: str,
    status: str,
    seconds: float,
    peer: str,
    query: str | None = None,
) -> None:
    """Write the line of a request that is over.

    Args:
        request_id: as it was returned.
        wire: it came by.
        method: HTTP's, or gRPC's own name.
        path: the template, never as it was sent.
        status: HTTP status or name of a gRPC status.
        seconds: it took.
        peer: of `peer_kind`.
        query: what was typed, where `serve.log_queries` says so; else None.
    """
    line = {
        "ts": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "request_id": request_id,
        "wire": wire,
        "method": method,
        "path": path,
        "status": status,
        "ms": round(1000 * seconds, 2),
        "peer": peer,
    }
    _lines.info("%s", json.dumps(line if query is None else {**line, "query": query}))


@contextmanager
def request_lines(stream: TextIO) -> Iterator[None]:
    """Write a line a request to a stream, and nothing else on it.

    Args:
        stream: such as standard error.

    Yields:
        Nothing; lines are written while inside.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = _lines.level, _lines.propagate
    _lines.addHandler(handler)
    _lines.setLevel(logging.INFO)
    _lines.propagate = False
    try:
        yield
    finally:
        _lines.removeHandler(handler)
        _lines.level, _lines.propagate = before
