"""What both wires ask of the service, and what stands before it whichever way a request came in.

`Retrieval` is the service as the wires see it, `METHODS` the one list of what can be asked, from
which both are built, and `Front` the order of things: not while stopping, not more at once than
agreed, not before it is ready, not what is above a limit, not after the caller's time is up. What
goes wrong leaves here as a `RequestError`, or as `Unexpected`, which says nothing of what was
asked; so neither wire needs to know what a search is made of.
"""

import logging
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from pydantic import ValidationError

from client.service.failures import RequestError
from client.service.limits import Gate, check_image
from client.service.messages import (
    ChangeResponse,
    DeleteRequest,
    EventsRequest,
    EventsResponse,
    ForYouRequest,
    ImageSearchRequest,
    InfoRequest,
    InfoResponse,
    Message,
    SearchRequest,
    SearchResponse,
    SimilarRequest,
    SuggestRequest,
    SuggestResponse,
    UpsertRequest,
)
from client.service.observe import Observer
from shared.schema import ServeConfig

log = logging.getLogger("fedshelf.service")

MAX_PROBLEMS = 5  # of one request that are named; a batch may have a thousand
_NO_DEADLINE_S = 366 * 86400.0
_OUR_OWN_WORDS = ("value_error", "assertion_error")  # pydantic's names for our validators


class Retrieval(Protocol):
    """The retrieval service. Every method may be called by many threads at once.

    A `deadline` is a value of `time.monotonic()` after which nobody waits for the answer.
    """

    @property
    def ready(self) -> bool:
        """Whether an index is open, so that searches can be answered."""
        ...

    def search(self, request: SearchRequest, *, deadline: float | None = None) -> SearchResponse:
        """Find products for words."""
        ...

    def search_by_image(
        self, request: ImageSearchRequest, *, deadline: float | None = None
    ) -> SearchResponse:
        """Find products for a photo."""
        ...

    def similar(self, request: SimilarRequest, *, deadline: float | None = None) -> SearchResponse:
        """Find products like one of the catalog."""
        ...

    def for_you(self, request: ForYouRequest, *, deadline: float | None = None) -> SearchResponse:
        """Find products like those looked at."""
        ...

    def suggest(self, request: SuggestRequest) -> SuggestResponse:
        """Go on typing."""
        ...

    def upsert(self, request: UpsertRequest) -> ChangeResponse:
        """Add or replace products."""
        ...

    def delete(self, request: DeleteRequest) -> ChangeResponse:
        """Take products away."""
        ...

    def log_events(self, request: EventsRequest) -> EventsResponse:
        """Keep what shoppers did."""
        ...

    def info(self) -> InfoResponse:
        """Say how the service stands; cheap, and possible before it is ready."""
        ...

    def photo(self, product_id: str) -> Path:
        """A product's photo file; `RequestError("not_found")` without one."""
        ...


@dataclass(frozen=True)
class Method:
    """One thing that can be asked.

    Attributes:
        name: of the gRPC method, and of this method in logs and metrics.
        path: of the HTTP endpoint.
        call: of the method of `Retrieval`.
        request: what is sent.
        response: what comes back.
        timed: whether the service takes a deadline.
    """

    name: str
    path: str
    call: str
    request: type[Message]
    response: type[Message]
    timed: bool = False


METHODS: Final = (
    Method("Search", "/v1/search", "search", SearchRequest, SearchResponse, True),
    Method(
        "SearchByImage",
        "/v1/search-by-image",
        "search_by_image",
        ImageSearchRequest,
        SearchResponse,
        True,
    ),
    Method("Similar", "/v1/similar", "similar", SimilarRequest, SearchResponse, True),
    Method("ForYou", "/v1/for-you", "for_you", ForYouRequest, SearchResponse, True),
    Method("Suggest", "/v1/suggest", "suggest", SuggestRequest, SuggestResponse),
    Method("Upsert", "/v1/upsert", "upsert", UpsertRequest, ChangeResponse),
    Method("Delete", "/v1/delete", "delete", DeleteRequest, ChangeResponse),
    Method("LogEvents", "/v1/events", "log_events", EventsRequest, EventsResponse),
    Method("Info", "/v1/info", "info", InfoRequest, InfoResponse),
)


class Unexpected(Exception):
    """Our own fault; it was logged, and whoever asked is told no more than that."""

    def __init__(self) -> None:
        super().__init__("the service failed on this request; its log says why")


@dataclass(frozen=True)
class Front:
    """What a request passes on its way to the service.

    Attributes:
        retrieval: answers.
        config: limits, and what may be logged.
        gate: places at work and waiting, of both wires together.
        observer: counts what passes.
    """

    retrieval: Retrieval
    config: ServeConfig
    gate: Gate
    observer: Observer
    _stopping: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def before(cls, retrieval: Retrieval, config: ServeConfig, observer: Observer) -> "Front":
        """The front of a service, with as many places as its configuration says."""
        gate = Gate(config.max_requests)
        front = cls(retrieval, config, gate, observer)
        observer.watch(in_flight=lambda: gate.in_flight, ready=lambda: front.ready)
        return front

    @property
    def ready(self) -> bool:
        """Whether a request that comes now would be answered."""
        return not self._stopping.is_set() and self.retrieval.ready

    def close(self) -> None:
        """Take nothing new from now on; what is at work goes on."""
        self._stopping.set()

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Wait for what is at work.

        Args:
            timeout_s: no longer than this.

        Returns:
            Whether nothing is.
        """
        return self.gate.wait_until_empty(timeout_s)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the places while a request is read and answered.

        Raises:
            RequestError: the service is stopping, or every place is taken.
        """
        with self.gate.place():
            # Asked inside: who comes after `close` is refused, who came before is waited for.
            if self._stopping.is_set():
                raise RequestError("unavailable", "the service is stopping; ask another one")
            yield

    def answer(self, method: Method, request: Message, *, deadline: float | None = None) -> Message:
        """Let the service answer.

        Args:
            method: what is asked.
            request: of that method's type.
            deadline: value of `time.monotonic()` after which nobody waits any more.

        Returns:
            The answer, of the method's type.

        Raises:
            RequestError: it is not answered, and why.
            Unexpected: it failed; the log has the place, and nothing of the request.
        """
        with self.guarded(method.name):
            if method.request is not InfoRequest:
                self._require_ready()
            if isinstance(request, ImageSearchRequest):
                limits = self.config
                check_image(
                    request.image,
                    max_bytes=limits.max_image_bytes,
                    max_pixels=limits.max_image_pixels,
                )
            if deadline is not None and time.monotonic() >= deadline:
                raise RequestError("deadline", "the time for this request was up before its turn")
            answer = self._ask(method, request, deadline)
            if isinstance(answer, EventsResponse):
                self.observer.took_events(answer)
            return answer

    def photo(self, product_id: str) -> Path:
        """A product's photo file.

        Args:
            product_id: as it was sent.

        Returns:
            A path that may have gone by the time it is opened.

        Raises:
            RequestError: no such product, one without a photo, or a service that is not ready.
        """
        self._require_ready()
        return self.retrieval.photo(product_id)

    @contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """Let a `RequestError` through, and turn whatever else is raised into one or `Unexpected`.

        Args:
            name: of what is done, for the log.

        Yields:
            Nothing.

        Raises:
            RequestError: as it was, or what a malformed message says.
            Unexpected: anything else.
        """
        try:
            yield
        except (RequestError, Unexpected):
            raise
        # Not only Exception: a panic in polars' or tantivy's native code is a BaseException.
        except BaseException as error:
            failed = error
        else:
            return
        log_unexpected(name, failed)
        raise Unexpected from None

    def _require_ready(self) -> None:
        if not self.retrieval.ready:
            raise RequestError("unavailable", "the service is starting; try again a little later")

    def _ask(self, method: Method, request: Message, deadline: float | None) -> Message:
        call = getattr(self.retrieval, method.call)
        if method.timed:
            answer = call(request, deadline=deadline)
        else:
            answer = call() if method.request is InfoRequest else call(request)
        assert isinstance(answer, method.response)
        return answer


def log_unexpected(name: str, error: BaseException) -> None:
    """Log where something failed: its class and the lines of code, never its text.

    Args:
        name: of what was done.
        error: its text may hold a query or a product's content.
    """
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s failed: %s\n%s", name, type(error).__name__, frames.rstrip())


def refusal(error: ValidationError) -> RequestError:
    """What to say of a message that is not as it should be: field names, never a value.

    Args:
        error: of a message in `client.service.messages`.

    Returns:
        A refusal that names the first few fields and what each should be.
    """
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    lines = [_problem(one["loc"], one["type"], one["msg"]) for one in problems[:MAX_PROBLEMS]]
    more = len(problems) - len(lines)
    return RequestError("invalid", "; ".join(lines) + (f"; and {more} more" if more else ""))


def deadline_after(remaining_s: float | None) -> float | None:
    """When a caller's time is up.

    Args:
        remaining_s: from now; None, or what gRPC says where there is no bound: centuries.

    Returns:
        A value of `time.monotonic()`; None if it is not bounded.
    """
    if remaining_s is None or remaining_s > _NO_DEADLINE_S:
        return None
    return time.monotonic() + remaining_s


def _problem(location: tuple[int | str, ...], kind: str, text: str) -> str:
    """One line: where, and what should be there."""
    place = ".".join(_part(part, kind) for part in location)
    text = text.removeprefix("Value error, ") if kind in _OUR_OWN_WORDS else text
    text = {"json_invalid": "not a JSON text", "extra_forbidden": "no such field"}.get(kind, text)
    text = text[:1].lower() + text[1:]
    return f"{place}: {text}" if place else text


def _part(part: int | str, kind: str) -> str:
    """A part of a place. A key of a map is a person's own word, so only known names are said."""
    return str(part) if isinstance(part, int) or part in _FIELD_NAMES else "(another name)"


def _names(message: Any, found: dict[str, None]) -> dict[str, None]:
    for definition in message.get("$defs", {}).values():
        found |= dict.fromkeys(definition.get("properties", {}))
    return found | dict.fromkeys(message.get("properties", {}))


_FIELD_NAMES: Final = frozenset(
    name for method in METHODS for name in _names(method.request.model_json_schema(), {})
)
