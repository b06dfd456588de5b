"""The search page, served: a few files of this folder under a policy that allows nothing else.

The page needs no build step and no other machine. What its content security policy allows is this
service's own script, style and answers, and photos that a person has picked; text of products can
therefore run nothing and load nothing, even if the script that shows it had a mistake. The files
are read once; they travel with an ETag, so that a page opened again costs a few empty answers and
a new version is seen at once.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shared.errors import ConfigError

POLICY: Final = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, and asked for by ETag each time
}
_TYPES: Final[Mapping[str, str]] = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FOLDER: Final = Path(__file__).parent
_LOCALE: Final = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,8}){0,3}")


@dataclass(frozen=True)
class _File:
    """One file of the page, ready to send."""

    body: bytes
    media_type: str

    def answer(self, request: Request) -> Response:
        """The file, or 304 where the one who asks has it already."""
        etag = f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'
        headers = {**HEADERS, "ETag": etag}
        if etag in _known(request.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=headers)
        return Response(self.body, media_type=self.media_type, headers=headers)


def page_routes(*, locale: str = "en") -> list[Route]:
    """Routes for `/` and for every asset of the page under `/assets/`.

    Args:
        locale: of the region, e.g. "de-AT": the page speaks its language where it can, and writes
            prices and numbers as is usual there.

    Returns:
        Routes for a Starlette or FastAPI application, GET and HEAD.

    Raises:
        ConfigError: `locale` does not have the form of a language tag.
    """
    routes = [_route("/", _File(_index(locale), "text/html; charset=utf-8"))]
    for path in sorted(_FOLDER.iterdir()):
        if path.suffix in _TYPES:
            file = _File(path.read_bytes(), _TYPES[path.suffix])
            routes.append(_route(f"/assets/{path.name}", file))
    return routes


def _route(path: str, file: _File) -> Route:
    async def answer(request: Request) -> Response:
        return file.answer(request)

    return Route(path, answer, methods=["GET"], include_in_schema=False)


def _index(locale: str) -> bytes:
    if not _LOCALE.fullmatch(locale):
        raise ConfigError('locale: not a language tag; write it like "en" or "de-AT"')
    html = (_FOLDER / "index.html").read_text(encoding="utf-8")
    mark = 'data-locale="en"'
    assert html.count(mark) == 1
    return html.replace(mark, f'data-locale="{locale.replace("_", "-")}"').encode()


def _known(header: str) -> set[str]:
    """The ETags of an If-None-Match header; weak ones count, since a proxy may weaken ours."""
    return {tag.strip().removeprefix("W/") for tag in header.split(",")}
