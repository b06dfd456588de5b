"""The HTTP wire: the same methods as over gRPC, as JSON, with photos, health and figures.

Searches are POST although they change nothing: what is in a URL ends in the logs of every proxy on
the way. Bodies are read by pydantic itself, strictly: 10 is a number and "10" is none, so that the
OpenAPI description says exactly what is taken. Work happens in threads, of which there are more
than places, so that health and figures are always answered.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI, Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from client.service.access import Token
from client.service.asked import METHODS, Front, Method, Retrieval, Unexpected, refusal
from client.service.doorway import (
    DOCUMENTED,
    DOCUMENTS,
    FIGURES,
    LIFE,
    PHOTOS,
    READY,
    Doorway,
    error_response,
    failure_response,
)
from client.service.failures import RequestError
from client.service.limits import IMAGE_OVERHEAD_BYTES, MAGIC_BYTES, media_type
from client.service.messages import ImageSearchRequest, InfoRequest, Message, SearchRequest
from client.service.observe import MEDIA_TYPE
from client.service.openapi import (
    DOCUMENTS_POLICY,
    FIGURES_DOCUMENTED,
    LIFE_DOCUMENTED,
    PHOTO_DOCUMENTED,
    READY_DOCUMENTED,
    describe,
    documented,
    render_documents,
)

SPARE_THREADS: Final = 8  # beside the places, for health and figures
PHOTO_MAX_AGE_S: Final = 300
_PARTS: Final = ("image", "request")


def make_http_app(front: Front, *, token: Token | None, page: Sequence[Route] = ()) -> ASGIApp:
    """The service as an ASGI app.

    Args:
        front: of the service.
        token: that a caller must have; None lets everybody in.
        page: routes of the search page for people; none without it.

    Returns:
        The app, with its own refusals, log lines and counts around it.
    """
    app = FastAPI(
        title="fedshelf retrieval",
        version="1",
        openapi_url=None,  # FastAPI's own pages load from elsewhere, and its route has no policy
        redirect_slashes=False,
        lifespan=_threads(front.config.max_requests + SPARE_THREADS),
    )
    for method in METHODS:
        _add_method(app, front, method)
    _add_photos(app, front)
    _add_health(app, front)
    _add_documents(app, describe(app, protected=token is not None))
    app.router.routes.extend(page)
    app.add_exception_handler(HTTPException, _not_here)
    app.add_exception_handler(RequestError, _failed)
    app.add_exception_handler(Unexpected, _failed)
    return Doorway(app, front, token=token, paths=frozenset(_path(route) for route in page))


def _threads(number: int) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        current_default_thread_limiter().total_tokens = number
        yield

    return lifespan


def _path(route: BaseRoute) -> str:
    return route.path if isinstance(route, Route) else ""


def _add_method(app: FastAPI, front: Front, method: Method) -> None:
    async def by_json(request: Request) -> Response:
        body = await request.body()
        return await run_in_threadpool(
            _answer, front, method, request, lambda: _read_json(method.request, body, request)
        )

    async def by_photo(request: Request) -> Response:
        parts = await _read_parts(request, front.config.max_image_bytes)
        return await run_in_threadpool(
            _answer, front, method, request, lambda: _read_image_request(parts)
        )

    async def without_body(request: Request) -> Response:
        return await run_in_threadpool(_answer, front, method, request, InfoRequest)

    endpoints = {ImageSearchRequest: by_photo, InfoRequest: without_body}
    app.add_api_route(
        method.path,
        endpoints.get(method.request, by_json),
        methods=["GET" if method.request is InfoRequest else "POST"],
        **documented(method, getattr(Retrieval, method.call).__doc__),
    )


def _answer(
    front: Front, method: Method, request: Request, read: Callable[[], Message]
) -> Response:
    """Read and answer one request, in a thread."""
    with front.guarded(method.name):
        asked = read()
        request.state.query = getattr(asked, "query", None)
        answer = front.answer(method, asked)
        headers = {"Cache-Control": "no-store"}
        return Response(answer.model_dump_json(), media_type="application/json", headers=headers)


def _read_json(kind: type[Message], body: bytes, request: Request) -> Message:
    # A page of a stranger may send any other type without asking the browser's leave.
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sent != "application/json":
        raise RequestError("invalid", "the body must come with content-type: application/json")
    return _checked(kind, body)


def _checked(kind: type[Message], body: bytes | str) -> Message:
    try:
        return kind.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise refusal(error) from None


async def _read_parts(request: Request, max_image_bytes: int) -> dict[str, bytes]:
    """The parts of a multipart body by name; a shopper's photo stays in memory."""
    parser = MultiPartParser(
        request.headers,
        request.stream(),
        max_files=len(_PARTS),
        max_fields=len(_PARTS),
        max_part_size=IMAGE_OVERHEAD_BYTES,
    )
    parser.spool_max_size = max_image_bytes + IMAGE_OVERHEAD_BYTES + 1
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError):
        raise RequestError(
            "invalid", "the body must be multipart/form-data with a part image and a part request"
        ) from None
    parts: dict[str, bytes] = {}
    async with _closing(form):
        for name, value in form.multi_items():
            if name not in _PARTS or name in parts:
                raise RequestError("invalid", "parts: one image and at most one request, no other")
            parts[name] = value.encode() if isinstance(value, str) else await value.read()
    return parts


@asynccontextmanager
async def _closing(form: Any) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await form.close()


def _read_image_request(parts: dict[str, bytes]) -> Message:
    """The part `request` has the fields of a text search; the photo is a part of its own."""
    words = _checked(SearchRequest, parts.get("request", b"{}"))
    fields = {name: getattr(words, name) for name in words.model_fields_set}
    try:
        return ImageSearchRequest(image=parts.get("image", b""), **fields)
    except ValidationError as error:
        raise refusal(error) from None


def _add_photos(app: FastAPI, front: Front) -> None:
    async def photo(request: Request) -> Response:
        return await run_in_threadpool(_photo, front, request)

    path = f"{PHOTOS}{{product_id:path}}"  # an id may hold a slash
    app.add_api_route(path, photo, methods=["GET"], **PHOTO_DOCUMENTED)


def _photo(front: Front, request: Request) -> Response:
    with front.guarded("Photo"):
        etag, content = _read_photo(front.photo(request.path_params["product_id"]))
        kind = media_type(content[:MAGIC_BYTES])
        if kind is None:
            raise RequestError("not_found", "this product's photo is none that can be shown")
        headers = {"ETag": etag, "Cache-Control": f"private, max-age={PHOTO_MAX_AGE_S}"}
        if etag in _known(request.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)


def _read_photo(path: Path) -> tuple[str, bytes]:
    """A file and a name for its present state."""
    try:
        with path.open("rb") as file:
            content = file.read()
            modified_ns = path.stat().st_mtime_ns
    except OSError:
        raise RequestError("not_found", "this product's photo is not there any more") from None
    return f'"{modified_ns:x}-{len(content):x}"', content


def _known(header: str) -> set[str]:
    """The ETags of an If-None-Match header; weak ones count, since a proxy may weaken ours."""
    return {tag.strip().removeprefix("W/") for tag in header.split(",")}


def _add_health(app: FastAPI, front: Front) -> None:
    async def life() -> Response:
        return JSONResponse({"status": "ok"})

    async def ready() -> Response:
        if not front.ready:
            raise RequestError("unavailable", "starting or stopping; searches are not answered")
        return JSONResponse({"status": "ready"})

    async def figures() -> Response:
        return Response(await run_in_threadpool(front.observer.render), media_type=MEDIA_TYPE)

    app.add_api_route(LIFE, life, methods=["GET"], **LIFE_DOCUMENTED)
    app.add_api_route(READY, ready, methods=["GET"], **READY_DOCUMENTED)
    app.add_api_route(FIGURES, figures, methods=["GET"], **FIGURES_DOCUMENTED)


def _add_documents(app: FastAPI, description: dict[str, Any]) -> None:
    html = render_documents(description)

    async def as_json() -> Response:
        return JSONResponse(description)

    async def as_page() -> Response:
        return HTMLResponse(html, headers={"Content-Security-Policy": DOCUMENTS_POLICY})

    app.add_api_route(DOCUMENTED, as_json, methods=["GET"], include_in_schema=False)
    app.add_api_route(DOCUMENTS, as_page, methods=["GET"], include_in_schema=False)


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError | Unexpected)
    return failure_response(error, request.state.request_id)


async def _not_here(request: Request, error: Exception) -> Response:
    """What the router itself refuses: a path or a method that is not there."""
    assert isinstance(error, HTTPException)
    known = {404: ("not_found", "nothing here; see /docs"), 405: ("invalid", "not by this method")}
    code, text = known.get(error.status_code, ("invalid", "not a request that can be answered"))
    response = error_response(error.status_code, code, text, request.state.request_id)
    response.headers.update(error.headers or {})
    return response
