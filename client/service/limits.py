"""What a request may cost before anything is done for it: places, bytes, pixels.

A photo of a few kilobytes may unpack to gigabytes, so its size is read from its header and nothing
is decoded here. And a service that takes on more than it can answer answers nobody, so there is a
fixed number of places and whoever finds none is told at once.
"""

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from PIL import Image

from client.service.failures import RequestError

IMAGE_FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # as in a catalog; not EPS: it runs
_MAGIC: Final = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"BM": "image/bmp",
}
MEDIA_TYPES: Final = frozenset({*_MAGIC.values(), "image/webp"})
MAGIC_BYTES: Final = 12  # of a file that say what it is

MAX_UPSERT_BYTES: Final = 32 * 2**20  # a thousand products with long descriptions
MAX_REQUEST_BYTES: Final = 4 * 2**20  # of anything else: a thousand events, ids or filter values
IMAGE_OVERHEAD_BYTES: Final = 2 * 2**20  # what stands around a photo: filters, multipart headers


Image.init()  # not thread-safe, so before there are threads


class Gate:
    """A fixed number of places; nobody waits for one.

    Args:
        max_requests: places, >= 1.
    """

    def __init__(self, max_requests: int) -> None:
        assert max_requests >= 1
        self._places = max_requests
        self._in_flight = 0
        self._changed = threading.Condition()

    @property
    def in_flight(self) -> int:
        """How many places are taken."""
        return self._in_flight

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place.

        Yields:
            Nothing.

        Raises:
            RequestError: all are taken.
        """
        with self._changed:
            if self._in_flight >= self._places:
                raise RequestError(
                    "overloaded",
                    f"{self._places} requests are at work already; try again a little later",
                )
            self._in_flight += 1
        try:
            yield
        finally:
            with self._changed:
                self._in_flight -= 1
                self._changed.notify_all()

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Wait until no place is taken.

        Args:
            timeout_s: no longer than this.

        Returns:
            Whether none is.
        """
        until = time.monotonic() + timeout_s
        with self._changed:
            return self._changed.wait_for(
                lambda: self._in_flight == 0, max(0.0, until - time.monotonic())
            )


def check_image(content: bytes, *, max_bytes: int, max_pixels: int) -> None:
    """Refuse a photo that is too large or none at all; only its header is read.

    Args:
        content: of the photo's file.
        max_bytes: of it.
        max_pixels: width times height, before anything is decoded.

    Raises:
        RequestError: "too_large" above a limit, "invalid" where it is no photo.
    """
    if len(content) > max_bytes:
        raise RequestError(
            "too_large", f"image: {len(content):,} bytes, at most {max_bytes:,}; send a smaller one"
        )
    width, height = _size(content)
    if width * height > max_pixels:
        raise RequestError(
            "too_large",
            f"image: {width} x {height} pixels, at most {max_pixels:,} in all; send a smaller one",
        )


def media_type(start: bytes) -> str | None:
    """What kind of photo a file is, by its first bytes and not by its name.

    Args:
        start: at least `MAGIC_BYTES` of the file, if it has them.

    Returns:
        A media type that a browser shows as a picture; None for anything else.
    """
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)


def _size(content: bytes) -> tuple[int, int]:
    """Width and height as the header says them."""
    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            return image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise RequestError("too_large", "image: far too many pixels; send a smaller one") from None
    except Exception:  # a decoder fed with garbage may raise anything
        raise RequestError(
            "invalid", f"image: not a photo that can be read; send {', '.join(IMAGE_FORMATS)}"
        ) from None
