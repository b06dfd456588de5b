"""A region's service under load, on loopback: at capacity, above it, and what it says then.

The service is the real process, `fedshelf region serve`; what asks is this one. First come two
callers, then as many as there are places, who each wait for their answer; the answers a second that
the latter get are taken as the capacity. Then requests come at a steady rate, whether or not the
former ones have been answered, at 0.7, 1 and 2 times that, and a request's time runs from the
moment it was due: a server that stalls cannot hide it (coordinated omission). Every request asks
for other words, so no vector is found in the cache. Both share the machine's cores.

Nothing but 200 and 429 may come back.
"""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpcore
import numpy as np

from benchmarks.corpus import Corpus
from benchmarks.place import make_region
from benchmarks.report import Report
from shared.encoders.encoder import Encoder
from shared.errors import FederationError

SECTION: Final = "load"
RATES: Final = (0.7, 1.0, 2.0)  # of the capacity that was found
_FEW: Final = 2  # callers
_CHANGES: Final = 50  # products that are added, one at a time
_WARM_UP_S: Final = 2.0
_START_S: Final = 120.0
_ANSWER_S: Final = 30.0
# Far more than a service has places. Without a bound the pool looks at thousands of connections or
# waiting requests for every one, and the asking side, on the same cores, falls a minute behind.
_AT_ONCE: Final = 512
_TIMEOUT: Final = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), _ANSWER_S)}
_HEADERS: Final = [("Content-Type", "application/json"), ("Host", "localhost")]
_STOP_S: Final = 30.0
_EXPECTED: Final = {200, 429}
BROKEN: Final = 0  # the service hung up, or let nobody in
TIMED_OUT: Final = -1  # this side gave up after `_ANSWER_S`


@dataclass
class Outcome:
    """What came back in one phase.

    Attributes:
        wall_s: from the first request to the last answer.
        answers: (status, seconds), a request each; status `BROKEN` or `TIMED_OUT` is no answer.
    """

    wall_s: float = 0.0
    answers: list[tuple[int, float]] = field(default_factory=list)

    @property
    def statuses(self) -> Counter[int]:
        """How many of each."""
        return Counter(status for status, _ in self.answers)

    @property
    def unexpected(self) -> int:
        """Neither answered nor refused for want of a place."""
        return sum(n for status, n in self.statuses.items() if status not in _EXPECTED)

    def quantile_ms(self, quantile: float, *, status: int = 200) -> float:
        """Of the times of the answers with one status; NaN if there are none."""
        seconds = [taken for found, taken in self.answers if found == status]
        return float(np.quantile(seconds, quantile)) * 1e3 if seconds else float("nan")


def measure_load(
    report: Report,
    folder: Path,
    corpus: Corpus,
    encoder: Encoder,
    base: Path,
    *,
    seconds: float,
    max_requests: int = 64,
) -> None:
    """Serve a region and load it, each phase for a bounded time.

    Args:
        report: figures go there.
        folder: of the region, not there yet.
        corpus: its products; its queries are mixed into new ones.
        encoder: that made the corpus's vectors.
        base: folder of its base.
        seconds: of each phase.
        max_requests: places of the service.

    Raises:
        FederationError: the service does not start.
    """
    address = f"127.0.0.1:{free_port()}"
    make_region(folder, corpus, encoder, base, http=address, max_requests=max_requests)
    name = f"{len(corpus.vectors):,} products, {max_requests} places"
    texts = fresh_queries(corpus.queries)
    with served(folder, f"http://{address}") as process:
        url, capacity = f"http://{address}", 0.0
        asyncio.run(closed_loop(url, texts, callers=_FEW, seconds=_WARM_UP_S))
        _put_down_changes(report, f"{len(corpus.vectors):,} products", url, corpus.queries)
        for callers in (_FEW, max_requests):
            found = asyncio.run(closed_loop(url, texts, callers=callers, seconds=seconds))
            _put_down(report, f"{name}, {callers} callers", found)
            capacity = found.statuses[200] / found.wall_s
        for rate in RATES:
            found = asyncio.run(open_loop(url, texts, rate=rate * capacity, seconds=seconds))
            _put_down(report, f"{name}, {rate:g} x capacity", found)
        process.send_signal(signal.SIGTERM)
        ended = float(process.wait(_STOP_S))
    report.add(SECTION, f"{name}, exit status after SIGTERM", ended, "")


def fresh_queries(queries: Sequence[str]) -> Iterator[str]:
    """Texts without end, none twice: words of two queries.

    Args:
        queries: at least one.
    """
    for step in range(1, len(queries)):
        for number, query in enumerate(queries):
            yield f"{query} {queries[(number + step) % len(queries)]}"
    number = 0
    while True:  # far more than any run asks
        number += 1
        yield f"{queries[number % len(queries)]} {number}"


@contextmanager
def served(folder: Path, url: str, command: str = "serve") -> Iterator["subprocess.Popen[bytes]"]:
    """A region's service as a process of its own, ready to answer; killed at the end.

    Args:
        folder: of the region.
        url: where it will answer.
        command: "serve", or "worker" for one that trains too.

    Raises:
        FederationError: it ends, or is not ready in time.
    """
    program = [sys.executable, "-m", "fedshelf", "region", command, str(folder)]
    log = folder / "serve.log"
    with log.open("wb") as lines:
        process = subprocess.Popen(program, stdout=lines, stderr=lines)
    try:
        until = time.monotonic() + _START_S
        while not _ready(url):
            if process.poll() is not None or time.monotonic() > until:
                raise FederationError(f"{log}: the service did not start; look there for why")
            time.sleep(0.2)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


async def closed_loop(url: str, texts: Iterator[str], *, callers: int, seconds: float) -> Outcome:
    """So many callers, each of which asks again as soon as it is answered.

    Args:
        url: of the service.
        texts: what to ask.
        callers: at once.
        seconds: then no more is asked.
    """
    outcome = Outcome()
    async with httpcore.AsyncConnectionPool(max_connections=callers) as pool:
        start = time.perf_counter()

        async def caller() -> None:
            while time.perf_counter() - start < seconds:
                await _ask(pool, url, next(texts), time.perf_counter(), outcome)

        await asyncio.gather(*(caller() for _ in range(callers)))
        outcome.wall_s = time.perf_counter() - start
    return outcome


async def open_loop(url: str, texts: Iterator[str], *, rate: float, seconds: float) -> Outcome:
    """Requests at a steady rate, whatever becomes of the former ones.

    Args:
        url: of the service.
        texts: what to ask.
        rate: requests a second.
        seconds: then no more is asked.
    """
    outcome, asked, places = Outcome(), [], asyncio.Semaphore(_AT_ONCE)

    async def ask(text: str, due: float) -> None:
        async with places:
            await _ask(pool, url, text, due, outcome)

    async with httpcore.AsyncConnectionPool(max_connections=_AT_ONCE) as pool:
        start = time.perf_counter()
        for number in range(round(rate * seconds)):
            due = start + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asked.append(asyncio.create_task(ask(next(texts), due)))
        await asyncio.gather(*asked)
        outcome.wall_s = time.perf_counter() - start
    return outcome


async def _ask(
    pool: httpcore.AsyncConnectionPool, url: str, text: str, due: float, outcome: Outcome
) -> None:
    body = json.dumps({"query": text}).encode()
    try:
        response = await pool.request(
            "POST", f"{url}/v1/search", headers=_HEADERS, content=body, extensions=_TIMEOUT
        )
        status = response.status
    except httpcore.TimeoutException:
        status = TIMED_OUT
    except (httpcore.NetworkError, httpcore.ProtocolError):
        status = BROKEN
    outcome.answers.append((status, time.perf_counter() - due))


def _put_down_changes(report: Report, name: str, url: str, queries: Sequence[str]) -> None:
    """From asking for a new product to its acknowledgement, and to a search that finds it."""
    acknowledged, found = [], []
    for number in range(_CHANGES):
        words = f"{queries[number % len(queries)]} novelty{number}"
        product = {"product_id": f"novelty{number}", "title": words}
        start = time.perf_counter()
        _post(f"{url}/v1/upsert", {"products": [product]})
        acknowledged.append(time.perf_counter() - start)
        while product["product_id"] not in _ids(_post(f"{url}/v1/search", {"query": words})):
            if time.perf_counter() - start > _ANSWER_S:
                raise FederationError(f"{url}: a new product is not found after {_ANSWER_S:g} s")
        found.append(time.perf_counter() - start)
    for what, seconds in (("acknowledged", acknowledged), ("found", found)):
        for quantile in (0.5, 1.0):
            label = {0.5: "p50", 1.0: "longest"}[quantile]
            value = float(np.quantile(seconds, quantile)) * 1e3
            report.add(SECTION, f"{name}, a new product, until {what}, {label}", value, "ms")


def _post(url: str, content: dict[str, object]) -> dict[str, Any]:
    body = json.dumps(content).encode()
    answer = httpcore.request("POST", url, headers=_HEADERS, content=body, extensions=_TIMEOUT)
    if answer.status != 200:
        raise FederationError(f"{url}: status {answer.status}, expected 200")
    return dict(json.loads(answer.content))


def _ids(answer: dict[str, Any]) -> list[str]:
    return [hit["product_id"] for hit in answer["hits"]]


def _put_down(report: Report, name: str, outcome: Outcome) -> None:
    statuses = outcome.statuses
    report.add(SECTION, f"{name}, asked", len(outcome.answers) / outcome.wall_s, "1/s")
    report.add(SECTION, f"{name}, answered (200)", statuses[200] / outcome.wall_s, "1/s")
    report.add(SECTION, f"{name}, refused (429)", statuses[429] / outcome.wall_s, "1/s")
    report.add(SECTION, f"{name}, anything else", outcome.unexpected, "requests", target=0)
    for what, status in (("connections broken", BROKEN), ("given up", TIMED_OUT)):
        if statuses[status]:
            report.add(SECTION, f"{name}, {what}", statuses[status], "requests")
    for quantile in (0.5, 0.99):
        label = f"{name}, answered, p{100 * quantile:.0f}"
        report.add(SECTION, label, outcome.quantile_ms(quantile), "ms")
    if statuses[429]:
        refused = outcome.quantile_ms(0.99, status=429)
        report.add(SECTION, f"{name}, refused, p99", refused, "ms")


def _ready(url: str) -> bool:
    try:
        return httpcore.request("GET", f"{url}/readyz", headers=_HEADERS).status == 200
    except (httpcore.NetworkError, httpcore.ProtocolError):
        return False


def free_port() -> int:
    """A port of loopback that nobody listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
