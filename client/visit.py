"""One look at headquarters from where a region stands: who answers, how it is, what time it has.

Trusts the region's one authority and no proxy, and writes nothing.
"""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from socket import gaierror
from ssl import SSLCertVerificationError, SSLError

from cryptography.x509 import load_der_x509_certificate

from client.download import trust_in
from client.finding import Finding, counted
from shared.errors import FederationError, FedshelfError
from shared.schema import HeadquartersConfig

# Flower dates every request of a node and refuses one that is older than TIMESTAMP_TOLERANCE +
# SYSTEM_TIME_TOLERANCE, or younger than minus the latter (flwr.common.constant).
MAX_BEHIND_S, MAX_AHEAD_S = 305, 5
_WARN_BEHIND_S, _WARN_AHEAD_S = 60, 2
_RENEWAL = timedelta(days=30)
TIMEOUT_S = 10.0  # for the connection, the handshake and each read
_MAX_ANSWER_BYTES = 64 * 1024
_TLS_FAULTS = {  # OpenSSL's numbers of what is wrong with a certificate
    9: "its certificate is not valid yet; compare the clocks of both machines",
    10: "its certificate, or its authority's, has expired; headquarters must renew it",
    62: "its certificate is for another name; set headquarters.address to the name in it",
    64: "its certificate is for another address; set headquarters.address to the name in it",
    **dict.fromkeys(
        (2, 7, 18, 19, 20, 21),
        "its certificate is of another authority than headquarters.ca; enrol again, or ask"
        " whether somebody stands between",
    ),
}


@dataclass(frozen=True)
class Visit:
    """What headquarters showed to a region that believes its certificate.

    Attributes:
        expiry: of its certificate.
        health: status of the answer to whether it is well.
        release: status of the answer to what is published.
        clock_offset_s: by how much this machine's clock is ahead, negative where it is behind;
            None where the answer had no date.
    """

    expiry: datetime
    health: int
    release: int
    clock_offset_s: float | None


def visit(
    folder: Path,
    headquarters: HeadquartersConfig,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Visit:
    """Look at headquarters once.

    Args:
        folder: of the region.
        headquarters: from its `region.toml`.
        now: the time on this machine.

    Returns:
        What was seen, be it good or bad.

    Raises:
        ConfigError: the region has no authority to believe.
        FederationError: nobody answers, or somebody who is not to be believed.
    """
    host, _, port = headquarters.address.rpartition(":")
    trust = trust_in(folder / headquarters.ca)
    connection = HTTPSConnection(host, int(port), timeout=TIMEOUT_S, context=trust)
    try:
        with closing(connection):
            connection.connect()
            expiry = _expiry(connection)
            health, offset_s = _get(connection, "/healthz", now)
            release, _ = _get(connection, "/releases/current.json", now)
    except SSLCertVerificationError as error:
        fault = _TLS_FAULTS.get(error.verify_code, f"{error.verify_message}; ask headquarters")
        raise FederationError(f"{headquarters.address}: {fault}") from None
    except (OSError, HTTPException) as error:
        raise FederationError(f"{headquarters.address}: {_unreachable(error)}") from None
    return Visit(expiry, health, release, offset_s)


def connection_finding(headquarters: HeadquartersConfig, seen: Visit, *, now: datetime) -> Finding:
    """Say whether headquarters is in order.

    Args:
        headquarters: from `region.toml`.
        seen: there.
        now: the time, to hold the certificate's expiry against.

    Returns:
        A failure where it says itself that it is not well.
    """
    if seen.health != 200:
        found = f"{headquarters.address}: /healthz answers {seen.health}, not 200"
        return Finding("fail", found, "ask headquarters whether it is running")
    published = {200: "a release is published", 404: "no release yet"}
    found = (
        f"{headquarters.address} verified by {headquarters.ca}, certificate until"
        f" {seen.expiry:%Y-%m-%d}; {published.get(seen.release, f'releases answer {seen.release}')}"
    )
    if seen.expiry - now < _RENEWAL:
        return Finding("warn", found, "headquarters must renew its certificate")
    if seen.release not in published:
        return Finding("warn", found, "ask headquarters for its log")
    return Finding("ok", found)


def clock_finding(offset_s: float) -> Finding:
    """Hold this machine's clock against headquarters'.

    Args:
        offset_s: by how much this machine is ahead, negative where it is behind; right to a second.

    Returns:
        A failure where Flower would refuse this region as a node.
    """
    side = "ahead of" if offset_s > 0 else "behind"
    found = (
        f"{counted(round(abs(offset_s)), 'second')} {side} headquarters; a region may be"
        f" {MAX_AHEAD_S} s ahead and {MAX_BEHIND_S} s behind"
    )
    if not -MAX_BEHIND_S < offset_s < MAX_AHEAD_S:
        return Finding("fail", found, "set the clock by NTP; Flower refuses this region's messages")
    if not -_WARN_BEHIND_S <= offset_s <= _WARN_AHEAD_S:
        return Finding("warn", found, "set the clock by NTP before it is further off")
    return Finding("ok", found)


def clock_trouble(folder: Path, headquarters: HeadquartersConfig) -> str:
    """What to tell an operator of this machine's clock, in one line.

    Args:
        folder: of the region.
        headquarters: from its `region.toml`.

    Returns:
        "" where the clock is right, or where headquarters cannot be asked now.
    """
    try:
        offset_s = visit(folder, headquarters).clock_offset_s
    except FedshelfError:  # who needs headquarters will say so
        return ""
    finding = clock_finding(offset_s or 0.0)
    return "" if finding.verdict == "ok" else f"clock: {finding.found}; {finding.advice}"


def _expiry(connection: HTTPSConnection) -> datetime:
    shown = connection.sock.getpeercert(binary_form=True)
    assert shown is not None, "it was verified"
    return load_der_x509_certificate(shown).not_valid_after_utc


def _get(
    connection: HTTPSConnection, path: str, now: Callable[[], datetime]
) -> tuple[int, float | None]:
    """Status of an answer, and by how many seconds this machine's clock is ahead of its date."""
    start = time.perf_counter()
    connection.request("GET", path)
    answer = connection.getresponse()
    half_way = timedelta(seconds=(time.perf_counter() - start) / 2)
    date, here = answer.getheader("Date"), now() - half_way
    answer.read(_MAX_ANSWER_BYTES)
    connection.close()  # the next request opens it again, also after an answer longer than that
    try:
        there = parsedate_to_datetime(date or "") + timedelta(seconds=0.5)  # whole seconds, cut
        return answer.status, (here - there).total_seconds()
    except (ValueError, TypeError):  # TypeError: a date without a zone
        return answer.status, None


def _unreachable(error: Exception) -> str:
    """Why nobody answered, and what to do."""
    match error:
        case gaierror():
            return "no such host; correct headquarters.address"
        case TimeoutError():
            return f"no answer within {TIMEOUT_S:g} s; ask whether a firewall stands between"
        case ConnectionRefusedError():
            return "connection refused; ask headquarters whether it is running"
        case SSLError():
            return "does not speak TLS as expected; correct the port in headquarters.address"
        case HTTPException():
            return "does not speak HTTP; correct the port in headquarters.address"
        case _:
            return f"{getattr(error, 'strerror', None) or type(error).__name__}; try again"
