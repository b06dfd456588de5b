"""What every HTTP request passes before FastAPI sees it, and every answer on its way out.

Who asks, how much is sent and whether there is a place are settled here, in this order and before
anything is parsed. The body is read here too: bounded, within a time, and with the place held, so
that what is at work never holds more memory than places times the largest body. Whoever is refused
has its body read and thrown away first, because a connection closed over unread bytes takes the
refusal with it. Each request ends in one line of the log and one count.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from client.service.access import TOKEN_NEEDED, Token, is_own_name
from client.service.asked import METHODS, Front, Unexpected, log_unexpected
from client.service.failures import HTTP_STATUS, RequestError
from client.service.limits import IMAGE_OVERHEAD_BYTES, MAX_REQUEST_BYTES, MAX_UPSERT_BYTES
from client.service.observe import log_request, peer_kind, request_id_from

LIFE, READY, FIGURES = "/healthz", "/readyz", "/metrics"
PHOTOS: Final = "/v1/photos/"
DOCUMENTED: Final = "/openapi.json"
DOCUMENTS: Final = "/docs"
REQUEST_ID: Final = "X-Request-ID"
BODY_TIMEOUT_S: Final = 30.0  # a sender slower than this loses its place
DISCARD_S: Final = 2.0  # for the rest of a body that nobody will read
_OPEN: Final = (LIFE, READY)  # whoever checks health needs no token
_GATED: Final = "/v1/"
_NAMES: Final = {method.path: method.name for method in METHODS}
_FIXED: Final = frozenset({LIFE, READY, FIGURES, DOCUMENTED, DOCUMENTS})
_PHOTO: Final = f"{PHOTOS}{{product_id}}"
_HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


class Doorway:
    """The ASGI app around the app.

    Args:
        app: answers what is let in.
        front: of the service.
        token: that a caller must have; None lets in whoever asks under a name of loopback.
        paths: fixed ones of the app beside those of the service, for the log.
    """

    def __init__(
        self, app: ASGIApp, front: Front, *, token: Token | None, paths: frozenset[str]
    ) -> None:
        self._app, self._front, self._token = app, front, token
        self._fixed = _FIXED | paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = _Visit(scope, send)
        body = _Body(receive)
        try:
            await self._let_in(scope, body, visit)
        except _Gone:
            visit.status = 499  # as nginx calls it; there is nobody to answer
        except RequestError as error:
            await self._refuse(error, body, visit)
        except Exception as error:
            log_unexpected(scope["path"] if scope["path"] in _NAMES else "a request", error)
            await visit.answer(failure_response(Unexpected(), visit.request_id))
        finally:
            self._record(visit)

    async def _let_in(self, scope: Scope, body: "_Body", visit: "_Visit") -> None:
        path = scope["path"]
        if path not in _OPEN:
            self._check_caller(Headers(scope=scope))
        if not path.startswith(_GATED):
            await self._app(scope, body.receive, visit.send)
            return
        with self._front.place():
            content = await body.read(self._limit(path), Headers(scope=scope))
            await self._app(scope, _replay(content, body.receive), visit.send)

    def _check_caller(self, headers: Headers) -> None:
        if self._token is not None:
            if not self._token.is_in(headers.get("authorization")):
                raise RequestError("unauthenticated", TOKEN_NEEDED)
        elif not is_own_name(headers.get("host", "")):
            raise RequestError(
                "invalid",
                "without a token this service answers only under the names of loopback; set"
                " serve.token_file, or let your proxy set the Host header to localhost",
            )

    def _limit(self, path: str) -> int:
        if _NAMES.get(path) == "SearchByImage":
            return self._front.config.max_image_bytes + IMAGE_OVERHEAD_BYTES
        return MAX_UPSERT_BYTES if _NAMES.get(path) == "Upsert" else MAX_REQUEST_BYTES

    async def _refuse(self, error: RequestError, body: "_Body", visit: "_Visit") -> None:
        response = failure_response(error, visit.request_id)
        if not await body.discard():
            response.headers["Connection"] = "close"
        await visit.answer(response)

    def _record(self, visit: "_Visit") -> None:
        seconds = time.perf_counter() - visit.start
        path = self._template(visit.scope["path"])
        code = str(visit.status)
        self._front.observer.requested("http", _NAMES.get(path, path), code, seconds)
        client = visit.scope.get("client")
        state = visit.scope["state"]
        log_request(
            request_id=visit.request_id,
            wire="http",
            method=visit.scope["method"],
            path=path,
            status=code,
            seconds=seconds,
            peer=peer_kind(client[0] if client else None),
            query=state.get("query") if self._front.config.log_queries else None,
        )

    def _template(self, path: str) -> str:
        """A path as it may stand in a log: what came in could hold anything."""
        if path in _NAMES or path in self._fixed:
            return path
        return _PHOTO if path.startswith(PHOTOS) else "other"


def failure_response(error: RequestError | Unexpected, request_id: str) -> Response:
    """What went wrong, in the form in which this wire always says it.

    Args:
        error: its text goes to whoever asked.
        request_id: names the request in the log.
    """
    if isinstance(error, Unexpected):
        return error_response(500, "internal", str(error), request_id)
    response = error_response(HTTP_STATUS[error.code], error.code, str(error), request_id)
    if error.code in ("overloaded", "unavailable"):
        response.headers["Retry-After"] = "1"
    if error.code == "unauthenticated":
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def error_response(status: int, code: str, text: str, request_id: str) -> Response:
    """The one form of an error.

    Args:
        status: of HTTP.
        code: of `client.service.failures`, or "internal".
        text: for a person.
        request_id: names the request in the log.
    """
    error = {"code": code, "message": text, "request_id": request_id}
    return JSONResponse({"error": error}, status_code=status)


def photo_path(product_id: str) -> str:
    """Where a product's photo is on this service.

    Args:
        product_id: any text.
    """
    return PHOTOS + quote(product_id, safe="")


class _Gone(Exception):
    """The other end hung up before its request was whole."""


@dataclass
class _Visit:
    """One request on its way: what is known of it, and the way back."""

    scope: Scope
    _send: Send
    status: int = 500
    start: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.request_id = request_id_from(Headers(scope=self.scope).get(REQUEST_ID))
        # A dictionary of its own: uvicorn shares the one of the lifespan's.
        self.scope["state"] = {**self.scope.get("state", {}), "request_id": self.request_id}
        self._started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started, self.status = True, message["status"]
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID] = self.request_id
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)

    async def answer(self, response: Response) -> None:
        """Send a response, unless another one is on its way already."""
        if not self._started:
            await response(self.scope, _nothing, self.send)


class _Body:
    """A request's body, as it comes."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ended = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._ended = not message.get("more_body", False)
        return message

    async def read(self, limit: int, headers: Headers) -> bytes:
        """All of it, if it is not too large and comes in time."""
        declared = headers.get("content-length", "0")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit:
            raise _too_large(limit)
        content = bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                while not self._ended:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    content += message.get("body", b"")
                    if len(content) > limit:
                        raise _too_large(limit)
        except TimeoutError:
            raise RequestError(
                "deadline", f"the request was not whole after {BODY_TIMEOUT_S:g} s"
            ) from None
        return bytes(content)

    async def discard(self) -> bool:
        """Read what is left and throw it away; returns whether its end was reached."""
        try:
            async with asyncio.timeout(DISCARD_S):
                while not self._ended:
                    if (await self.receive())["type"] == "http.disconnect":
                        return False
        except TimeoutError:
            return False
        return True


def _too_large(limit: int) -> RequestError:
    return RequestError("too_large", f"the request has more than {limit:,} bytes; send less")


def _replay(content: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """A body that was read already, as if it came now."""
    waiting: list[Any] = [{"type": "http.request", "body": content, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


async def _nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}
