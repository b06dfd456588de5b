"""The page for headquarters, served: regions, rounds, gate, releases, cross-site table, audit.

`server.dashboard_facts` reads the folder, `server.dashboard_page` makes the page, and the app here
serves both. The page has no login, so it listens on loopback alone, and it answers only under names
that a stranger's web page cannot point at it (DNS rebinding). It needs no other machine: style and
script are its own, which its content security policy enforces.
"""

import ipaddress
import math
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.dashboard_facts import snapshot
from server.dashboard_page import REFRESH_S, render_page
from server.headquarters import open_headquarters
from shared.errors import ConfigError, FedshelfError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_DUTY = 10  # reading the folder may take one part in so many of the time
_TEMPLATES = Path(__file__).parent / "templates"
_STATIC = {"dashboard.css": "text/css", "dashboard.js": "text/javascript"}
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")


class _Latest:
    """A snapshot shared by all who ask, so that many open pages cost no more than one."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        self._found: dict[str, Any] = {}
        self._until = -math.inf

    def read(self) -> dict[str, Any]:
        """A snapshot that is a few seconds old at most, more where reading takes long."""
        with self._lock:
            start = self._clock()
            if start >= self._until:
                # Opened anew each time: a key that was rotated counts at once.
                self._found = snapshot(open_headquarters(self._folder))
                end = self._clock()
                self._until = end + max(REFRESH_S / 2, _DUTY * (end - start))
            return self._found


class _Guard:
    """Answers only under names that are ours, and adds the security headers to every answer."""

    def __init__(self, app: ASGIApp, *, names: frozenset[str]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif _host_name(Headers(scope=scope).get("host", "")) in self._names:
            await self._app(scope, receive, send_with_headers)
        else:
            refusal = PlainTextResponse(
                "this page answers under the names of loopback only; open it through an SSH tunnel,"
                " or let your proxy set the Host header to localhost\n",
                status_code=421,
            )
            await refusal(scope, receive, send_with_headers)


def _host_name(header: str) -> str:
    """A Host header's name. Any port will do: behind an SSH tunnel it is another one than ours."""
    match = _HOST.fullmatch(header)
    return match[1].lower() if match else ""


def make_app(folder: Path, *, names: Iterable[str] = ()) -> FastAPI:
    """The dashboard as an ASGI app; it answers GET and HEAD, and changes nothing.

    Args:
        folder: of headquarters.
        names: host names, beside those of loopback, under which it may be asked.

    Returns:
        An app with `/`, `/api/snapshot`, `/healthz`, and the page's style and script.

    Raises:
        ConfigError: not a headquarters folder.
    """
    open_headquarters(folder)
    latest = _Latest(folder)
    app = FastAPI(openapi_url=None)  # its documentation pages would load from elsewhere
    app.add_middleware(_Guard, names=frozenset(n.lower() for n in (*LOOPBACK_NAMES, *names)))

    def page() -> Response:
        return HTMLResponse(render_page(latest.read()))

    def api() -> Response:
        return JSONResponse(latest.read())

    def health() -> Response:
        return JSONResponse({"status": "ok"})

    def unreadable(_: Request, error: Exception) -> Response:
        return PlainTextResponse(f"{error}\n", status_code=503)

    app.add_exception_handler(FedshelfError, unreadable)
    for path, answer in {"/": page, "/api/snapshot": api, "/healthz": health}.items():
        app.add_api_route(path, answer, methods=["GET", "HEAD"])
    for name, kind in _STATIC.items():
        app.add_api_route(f"/{name}", _file(name, kind), methods=["GET", "HEAD"])
    return app


def serve_dashboard(
    folder: Path,
    *,
    host: str = "127.0.0.1",
    port: int,
    on_ready: Callable[[str], None],
    names: Iterable[str] = (),
) -> None:
    """Serve the dashboard until interrupted.

    Args:
        folder: of headquarters.
        host: address to listen on.
        port: 0 for a free one.
        on_ready: told the page's URL once it can be opened.
        names: host names under which it may be asked, beside those of loopback; naming one is also
            the word that `host` may be an address that others can reach.

    Raises:
        ConfigError: not a headquarters folder, an address others can reach, or one that is taken.
    """
    names = tuple(names)
    if not (names or _is_loopback(host)):
        raise ConfigError(
            f"host {host}: others can reach it, and this page has no login; listen on 127.0.0.1"
            " and put it behind your own proxy with login, or open it through an SSH tunnel"
        )
    app = make_app(folder, names=(*names, _in_url(host)))
    with _listening(host, port) as listener:
        config = uvicorn.Config(
            app,
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=5,
        )
        on_ready(f"http://{_in_url(host)}:{listener.getsockname()[1]}/")
        with suppress(KeyboardInterrupt):  # how it is meant to end
            uvicorn.Server(config).run(sockets=[listener])


def _file(name: str, kind: str) -> Callable[[], Response]:
    content = (_TEMPLATES / name).read_bytes()
    return lambda: Response(content, media_type=kind)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"{_in_url(host)}:{port}: cannot listen there ({error.strerror or error}); choose"
            " another port"
        ) from None
    with listener:
        yield listener
