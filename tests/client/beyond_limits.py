"""Requests that are one too large in one way each; both wires refuse them, each in its own form."""

import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from small_service import SmallService

from client.service.messages import MAX_BATCH, MAX_PAGE, MAX_QUERY_CHARS

Request = dict[str, Any]
Ask = Callable[[str, Request], object]

_EVENT = {"request_id": "r", "product_id": "p1", "type": "click"}
LARGEST: dict[str, tuple[str, Request]] = {  # method and request, still within the limit
    "query": ("Search", {"query": "x" * MAX_QUERY_CHARS}),
    "k": ("Search", {"k": MAX_PAGE}),
    "events": (
        "LogEvents",
        {"events": [{**_EVENT, "event_id": f"e{number}"} for number in range(MAX_BATCH)]},
    ),
}
TOO_LARGE: dict[str, tuple[str, Request]] = {
    "query": ("Search", {"query": "x" * (MAX_QUERY_CHARS + 1)}),
    "k": ("Search", {"k": MAX_PAGE + 1}),
    "events": (
        "LogEvents",
        {"events": [{**_EVENT, "event_id": f"e{number}"} for number in range(MAX_BATCH + 1)]},
    ),
}


def assert_held_to_its_limit(
    service: SmallService, field: str, answered: Ask, refused: Callable[[str, Request], str]
) -> None:
    """The largest request is answered; one more is refused in one line and reaches nobody.

    Args:
        service: behind the wire.
        field: of `LARGEST`.
        answered: sends a request that must be answered.
        refused: sends one that must be refused in the wire's own form, and says with which text.
    """
    answered(*LARGEST[field])
    asked = len(service.deadlines), len(service.events)
    assert_one_line(refused(*TOO_LARGE[field]), field)
    assert (len(service.deadlines), len(service.events)) == asked


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG of some seventy bytes whose header says it is as large as that."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


BOMBS = pytest.mark.parametrize(
    ("image", "words"),
    [
        pytest.param(bomb(), "far too many pixels", id="above what PIL opens at all"),
        pytest.param(bomb(8000, 8000), "8000 x 8000 pixels, at most", id="above our own limit"),
    ],
)


def assert_one_line(text: str, field: str, words: str = "") -> None:
    """A refusal names the field and says why in one line that fits a log."""
    assert text.startswith(f"{field}: ") and words in text
    assert len(text.splitlines()) == 1 and len(text) < 200
