"""Fetch files over HTTPS from the one server that a region's operator named, within bounds.

What answers at that address may be slow, endless or somebody else. So the only authority believed
is the region's own, bytes and seconds are limited, and nothing comes from the environment or is
followed elsewhere. What the bytes are worth is for the caller to verify.

httpcore has no redirects, proxies, cookies or decoding to switch off, and it lets the deadline
cover every single read, those of the TLS handshake and of the response's head included. Libraries
above it only limit the wait for the next byte.
"""

import hashlib
import re
import ssl
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpcore

from shared.errors import ConfigError, FedshelfError, ReleaseError
from shared.release import SAFE_NAME

SILENCE_S = 30.0  # longest wait for a connection, or for the next byte
LIMIT_S = 1800.0  # for everything fetched through one `Download`, however slowly it drips
_ADDRESS = re.compile(r"https://[A-Za-z0-9.-]+(:(?P<port>[0-9]{1,5}))?(/[A-Za-z0-9_.-]+)*/?")
_HEADERS: Mapping[bytes | str, bytes | str] = {
    "Accept-Encoding": "identity",
    "User-Agent": "fedshelf",
}
_FAILURES = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
)


class Download:
    """An open way to one https address; a context manager.

    Args:
        address: "https://host[:port]/folder".
        ca_file: the certificate authority to believe, PEM; no other is.
        silence_s: longest wait for a connection or for the next byte.
        limit_s: for everything fetched here.
        error: the kind to raise where a file cannot be had.
        advice: what to do then; by default what helps where releases are fetched.

    Raises:
        ConfigError: not such an address, or not a certificate authority.
    """

    def __init__(
        self,
        address: str,
        ca_file: Path,
        *,
        silence_s: float = SILENCE_S,
        limit_s: float = LIMIT_S,
        error: type[FedshelfError] = ReleaseError,
        advice: str | None = None,
    ) -> None:
        match = _ADDRESS.fullmatch(address)
        if match is None or int(match["port"] or 443) > 65535:
            raise ConfigError(f"{address!r} is not of the form https://host:port/folder")
        self.place = address.rstrip("/")
        self._error, self._advice = error, advice
        self._timeout = dict.fromkeys(("connect", "read", "write", "pool"), silence_s)
        self._pool = httpcore.ConnectionPool(
            ssl_context=trust_in(ca_file),
            max_connections=1,
            network_backend=_DeadlineBackend(time.monotonic() + limit_s),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.close()

    def fetch(self, name: str, max_bytes: int, target: Path) -> str:
        """Fetch one file.

        Args:
            name: below the address: plain words, no way out.
            max_bytes: more is refused while it arrives.
            target: written here, in a folder that exists. After an error part of it stays, so it
                belongs into a folder that is thrown away then.

        Returns:
            Hex sha256 of its bytes.

        Raises:
            FedshelfError: of the kind this `Download` was given: a name that leads elsewhere,
                nobody there, somebody else there, no such file, too long or too slow.
        """
        if not SAFE_NAME.fullmatch(name):
            fault = f"{name!r} is not a file name that may be fetched"
            raise self._failure(fault, "ask headquarters")
        url = f"{self.place}/{name}"
        try:
            return self._fetch(url, max_bytes, target)
        except _FAILURES as error:
            reason = str(error) or type(error).__name__
            advice = "look whether headquarters runs and can be reached from here"
            raise self._failure(f"{url}: cannot be fetched ({reason})", advice) from None

    def _fetch(self, url: str, max_bytes: int, target: Path) -> str:
        seen, length = hashlib.sha256(), 0
        extensions = {"timeout": self._timeout}
        with (
            self._pool.stream("GET", url, headers=_HEADERS, extensions=extensions) as response,
            target.open("wb") as handle,
        ):
            if response.status != 200:
                fault = f"{url}: answered {response.status}, expected 200"
                raise self._failure(fault, "ask there")
            for block in response.iter_stream():
                length += len(block)
                if length > max_bytes:
                    fault = f"{url}: longer than the {max_bytes} bytes left for it"
                    advice = "ask headquarters, or raise publication.max_release_bytes"
                    raise self._failure(fault, advice)
                seen.update(block)
                handle.write(block)
        return seen.hexdigest()

    def _failure(self, fault: str, advice: str) -> FedshelfError:
        return self._error(f"{fault}; {self._advice or advice}")


def trust_in(ca_file: Path) -> ssl.SSLContext:
    """Trust in one authority alone.

    Args:
        ca_file: its certificate, PEM.

    Raises:
        ConfigError: no such file, or not a certificate.
    """
    try:  # with `cafile`, the system's own authorities are not loaded
        return ssl.create_default_context(cafile=str(ca_file))
    except OSError as error:  # an SSLError is one
        reason = error.strerror or type(error).__name__
        if isinstance(error, ssl.SSLError):
            reason = "not a certificate in PEM"
        raise ConfigError(
            f"{ca_file}: {reason}; enrol this region again, or correct headquarters.ca"
        ) from None


class _DeadlineBackend(httpcore.NetworkBackend):
    """Plain sockets whose every wait ends at the deadline."""

    def __init__(self, deadline: float) -> None:
        self._sockets, self._deadline = httpcore.SyncBackend(), deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        timeout = _shorter(timeout, self._deadline)
        stream = self._sockets.connect_tcp(host, port, timeout, local_address, socket_options)
        return _DeadlineStream(stream, self._deadline)


class _DeadlineStream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _shorter(timeout, self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _shorter(timeout, self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        timeout = _shorter(timeout, self._deadline)
        stream = self._stream.start_tls(ssl_context, server_hostname, timeout)
        return _DeadlineStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _shorter(timeout: float | None, deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("too slow, given up")
    return left if timeout is None else min(timeout, left)
