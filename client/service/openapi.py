"""The OpenAPI description of the HTTP wire, and the page that shows it.

FastAPI describes what comes back; what is sent is read by pydantic itself, so its part of the
description is made here from the same messages. FastAPI's own documentation pages load script from
elsewhere; ours is plain HTML that needs nothing but itself.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any, Final, Literal

from fastapi import FastAPI
from markupsafe import Markup
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from client.service.asked import METHODS, Method
from client.service.doorway import LIFE, READY
from client.service.failures import HTTP_STATUS, Code
from client.service.limits import MEDIA_TYPES
from client.service.messages import MAX_ID_CHARS, ImageSearchRequest, InfoRequest, SearchRequest
from client.service.observe import MEDIA_TYPE
from shared.pages import page_environment

_FOLDER: Final = Path(__file__).parent / "templates"
_REFERENCE: Final = "#/components/schemas/{model}"
_STYLE: Final = (_FOLDER / "documents.css").read_text(encoding="utf-8")
_STYLE_DIGEST: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
DOCUMENTS_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_DIGEST}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_REASONS: Final[dict[Code, str]] = {
    "invalid": "The request is wrong; sending it again is no use",
    "unauthenticated": "No token, or another one",
    "not_found": "No such product or release here",
    "gone": "A cursor that is no longer known; search again",
    "too_large": "Above a limit",
    "overloaded": "Too much at once; try again a little later",
    "unavailable": "Not ready yet, or about to stop",
    "deadline": "Time was up before it was answered",
}


class ErrorDetail(BaseModel):
    """Why a request was not answered.

    Attributes:
        code: for programs.
        message: for people.
        request_id: names the request in the service's log.
    """

    code: Code | Literal["internal"]
    message: str
    request_id: str


class ErrorResponse(BaseModel):
    """What comes back instead of an answer."""

    error: ErrorDetail


class StatusResponse(BaseModel):
    """That it is so."""

    status: Literal["ok", "ready"]


def _errors(*codes: Code) -> dict[int | str, dict[str, Any]]:
    """Descriptions of these errors, and of our own faults."""
    described: dict[int | str, dict[str, Any]] = {
        HTTP_STATUS[code]: {"model": ErrorResponse, "description": _REASONS[code]} for code in codes
    }
    described[500] = {"model": ErrorResponse, "description": "The service failed; its log says why"}
    for status in {429, 503} & described.keys():
        described[status]["headers"] = {
            "Retry-After": {"description": "Seconds", "schema": {"type": "string"}}
        }
    return dict(sorted(described.items(), key=lambda item: int(item[0])))


def _of_search(codes: tuple[Code, ...]) -> tuple[Code, ...]:
    return (*codes, "not_found", "gone")


_ALWAYS: Final[tuple[Code, ...]] = ("invalid", "unauthenticated")
_AT_WORK: Final[tuple[Code, ...]] = (
    *_ALWAYS,
    "too_large",
    "overloaded",
    "unavailable",
    "deadline",
)
_PICTURES: Final[dict[str, Any]] = {kind: {} for kind in sorted({*MEDIA_TYPES})}
_UNCHANGED: Final = "The one you have (If-None-Match) is still right"

PHOTO_DOCUMENTED: Final[dict[str, Any]] = {
    "operation_id": "Photo",
    "summary": "A product's photo.",
    "tags": ["search"],
    "response_class": Response,
    "responses": {
        200: {"description": "The photo; its type is that of its content", "content": _PICTURES},
        304: {"description": _UNCHANGED},
        **_errors(*_AT_WORK, "not_found"),
    },
    "openapi_extra": {
        "parameters": [
            {
                "name": "product_id",
                "in": "path",
                "required": True,
                "schema": {"type": "string", "minLength": 1, "maxLength": MAX_ID_CHARS},
            }
        ]
    },
}
LIFE_DOCUMENTED: Final[dict[str, Any]] = {
    "operation_id": "Life",
    "summary": "Whether the process lives; asks for no token.",
    "tags": ["health"],
    "responses": {200: {"model": StatusResponse}},
}
READY_DOCUMENTED: Final[dict[str, Any]] = {
    "operation_id": "Ready",
    "summary": "Whether searches are answered; asks for no token.",
    "tags": ["health"],
    "responses": {200: {"model": StatusResponse}, **_errors("unavailable")},
}
FIGURES_DOCUMENTED: Final[dict[str, Any]] = {
    "operation_id": "Metrics",
    "summary": "Figures in Prometheus' text format.",
    "tags": ["health"],
    "response_class": Response,
    "responses": {
        200: {"description": "Figures", "content": {MEDIA_TYPE: {"schema": {"type": "string"}}}},
        **_errors(*_ALWAYS),
    },
}


def documented(method: Method, summary: str | None) -> dict[str, Any]:
    """What FastAPI is told of a method's endpoint.

    Args:
        method: of the service.
        summary: one line.

    Returns:
        Arguments of `FastAPI.add_api_route`.
    """
    codes = _of_search(_AT_WORK) if method.timed else _AT_WORK
    extra = {} if method.request is InfoRequest else {"requestBody": _body_of(method)}
    return {
        "operation_id": method.name,
        "summary": summary,
        "tags": ["search" if method.timed or method.name == "Suggest" else "catalog and clicks"],
        "responses": {200: {"model": method.response}, **_errors(*codes)},
        "openapi_extra": extra,
    }


def describe(app: FastAPI, *, protected: bool) -> dict[str, Any]:
    """The whole description: what FastAPI knows, and what is sent.

    Args:
        app: with all its routes.
        protected: whether a token is asked for.

    Returns:
        An OpenAPI 3.1 document.
    """
    requests = [m.request for m in METHODS if m.request not in (ImageSearchRequest, InfoRequest)]
    _, sent = models_json_schema(
        [(request, "validation") for request in requests], ref_template=_REFERENCE
    )
    description = app.openapi()
    components = description.setdefault("components", {})
    components["schemas"] = dict(sorted({**sent["$defs"], **components["schemas"]}.items()))
    if protected:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        description["security"] = [{"token": []}]
        for path in (LIFE, READY):
            description["paths"][path]["get"]["security"] = []
    return description


def render_documents(description: dict[str, Any]) -> str:
    """The description as a page for people.

    Args:
        description: an OpenAPI document.

    Returns:
        HTML that needs no other file and runs no script.
    """
    page = page_environment(_FOLDER).get_template("documents.html.j2")
    return page.render(description=description, style=Markup(_STYLE), type_of=_type_of)


def _body_of(method: Method) -> dict[str, Any]:
    if method.request is ImageSearchRequest:
        return {"required": True, "content": {"multipart/form-data": _PARTS}}
    schema = {"$ref": _REFERENCE.format(model=method.request.__name__)}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


_PARTS: Final[dict[str, Any]] = {
    "schema": {
        "type": "object",
        "properties": {
            "image": {"type": "string", "format": "binary"},
            "request": {"$ref": _REFERENCE.format(model=SearchRequest.__name__)},
        },
        "required": ["image"],
        "additionalProperties": False,
    },
    "encoding": {"request": {"contentType": "application/json"}},
}


def _type_of(schema: dict[str, Any]) -> str:
    """A schema in a few words, such as "list of text" or "Hit or none"."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_type_of(one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return "one of " + ", ".join(json.dumps(value) for value in values)
    kind = schema.get("type")
    if schema.get("format") == "binary":
        return "file"
    if kind == "array":
        return f"list of {_type_of(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"map of names to {_type_of(schema['additionalProperties'])}"
    return _WORDS.get(str(kind), "anything")


_WORDS: Final = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "none",
    "object": "object",
}
