"""Requests that are one too large in one way each; both wires refuse them, each in its own form."""

import struct
import zlib
from typing import Any

from client.service.messages import MAX_BATCH, MAX_PAGE, MAX_QUERY_CHARS

_EVENT = {"request_id": "r", "product_id": "p1", "type": "click"}
LARGEST: dict[str, tuple[str, dict[str, Any]]] = {  # method and request, still within the limit
    "query": ("Search", {"query": "x" * MAX_QUERY_CHARS}),
    "k": ("Search", {"k": MAX_PAGE}),
    "events": (
        "LogEvents",
        {"events": [{**_EVENT, "event_id": f"e{number}"} for number in range(MAX_BATCH)]},
    ),
}
TOO_LARGE: dict[str, tuple[str, dict[str, Any]]] = {
    "query": ("Search", {"query": "x" * (MAX_QUERY_CHARS + 1)}),
    "k": ("Search", {"k": MAX_PAGE + 1}),
    "events": (
        "LogEvents",
        {"events": [{**_EVENT, "event_id": f"e{number}"} for number in range(MAX_BATCH + 1)]},
    ),
}


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG of some seventy bytes whose header says it is as large as that."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
