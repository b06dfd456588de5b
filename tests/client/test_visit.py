"""Headquarters as a region may find it: sound, unwell, somebody else, silent, or not there."""

import http.server
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from small_region import change, contents, edit, rows_of

import client.visit
from client.check import CheckRow
from client.visit import MAX_AHEAD_S, MAX_BEHIND_S, clock_finding, clock_trouble
from shared.schema import load_region_config

DAY = timedelta(days=1)


class Authority:
    """A certificate authority of the test's own."""

    def __init__(self, name: str = "test authority") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        basics = x509.BasicConstraints(ca=True, path_length=0)
        made = builder(self.name, self.name, self.key, valid_for=3650 * DAY)
        self.certificate = made.add_extension(basics, critical=True).sign(self.key, SHA256())

    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(
        self, path: Path, *, host: str = "127.0.0.1", valid_for: timedelta = 90 * DAY
    ) -> Path:
        """Write a server's key and certificate into one file."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test server")])
        name = x509.IPAddress(ip_address(host)) if host[0].isdigit() else x509.DNSName(host)
        made = builder(subject, self.name, key, valid_for=valid_for)
        made = made.add_extension(x509.SubjectAlternativeName([name]), critical=False)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        public = made.sign(self.key, SHA256()).public_bytes(Encoding.PEM)
        path.write_bytes(private + public)
        return path


def builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    *,
    valid_for: timedelta,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 5000 * DAY)
        .not_valid_after(now + valid_for)
    )


class Answers(NamedTuple):
    """What a headquarters answers."""

    health: int = 200
    release: int = 200
    ahead: timedelta | None = timedelta()  # of its Date header; None: no such header
    body: bytes = b"ok"
    instead: bytes = b""  # of anything in HTTP


@pytest.fixture
def serve() -> Iterator[Callable[[Answers, Path | None], int]]:
    """Start a server on loopback, with TLS if it is given a certificate; returns its port."""
    servers: list[tuple[http.server.ThreadingHTTPServer, threading.Thread]] = []

    def start(answers: Answers, certificate: Path | None) -> int:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), speaker(answers))
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        servers.append((server, thread))
        return server.server_port

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join(10)
        server.server_close()


def speaker(answers: Answers) -> type[http.server.BaseHTTPRequestHandler]:
    statuses = {"/healthz": answers.health, "/releases/current.json": answers.release}

    class Speaker(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if answers.instead:
                self.wfile.write(answers.instead)
                return
            self.send_response_only(statuses[self.path])
            if answers.ahead is not None:
                date = format_datetime(datetime.now(UTC) + answers.ahead, usegmt=True)
                self.send_header("Date", date)
            self.send_header("Content-Length", str(len(answers.body)))
            self.end_headers()
            self.wfile.write(answers.body)

        def log_message(self, *_: object) -> None:
            pass

    return Speaker


@pytest.fixture
def authority(north: Path) -> Authority:
    """Whom the region believes; the region has its key too."""
    made = Authority()
    (north / "enrolment").mkdir()
    (north / "enrolment" / "ca.crt").write_bytes(made.pem())
    (north / "enrolment" / "node.key").write_bytes(b"secret")
    (north / "enrolment" / "node.key").chmod(0o600)
    return made


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
    return port


def rows_at(
    north: Path, port: int, host: str = "127.0.0.1", **options: object
) -> dict[str, CheckRow]:
    change(north, headquarters={"address": f"{host}:{port}"})
    edit(north / "catalog.parquet", lambda table: table[:2])  # the rows in question need no more
    return rows_of(north, **options)


Serve = Callable[[Answers, Path | None], int]


@pytest.mark.parametrize(
    ("release", "word"), [(200, "a release is published"), (404, "no release yet")]
)
def test_a_sound_headquarters_is_verified(
    north: Path, authority: Authority, serve: Serve, tmp_path: Path, release: int, word: str
) -> None:
    port = serve(Answers(release=release), authority.issue(tmp_path / "server.pem"))
    before = contents(north / "enrolment")
    rows = rows_at(north, port)
    assert (rows["connection"].verdict, rows["clock"].verdict) == ("ok", "ok")
    until = datetime.now(UTC) + 90 * DAY
    assert rows["connection"].found == (
        f"127.0.0.1:{port} verified by enrolment/ca.crt, certificate until {until:%Y-%m-%d}; {word}"
    )
    assert contents(north / "enrolment") == before


def test_a_long_answer_is_not_read_to_its_end(
    north: Path, authority: Authority, serve: Serve, tmp_path: Path
) -> None:
    port = serve(Answers(body=b"x" * 300_000), authority.issue(tmp_path / "server.pem"))
    assert rows_at(north, port)["connection"].verdict == "ok"


def failure(north: Path, port: int, host: str = "127.0.0.1") -> str:
    """What the row of a connection that fails found; the clock is then not compared."""
    rows = rows_at(north, port, host)
    assert rows["connection"].verdict == "fail"
    assert rows["connection"].advice
    assert rows["clock"].found == "not checked; it needs what the row connection did not find"
    assert rows["base"].verdict == "ok"
    return rows["connection"].found


def test_an_expired_certificate_fails(
    north: Path, authority: Authority, serve: Serve, tmp_path: Path
) -> None:
    port = serve(Answers(), authority.issue(tmp_path / "server.pem", valid_for=-DAY))
    found = failure(north, port)
    assert found == f"127.0.0.1:{port}: its certificate, or its authority's, has expired"


@pytest.mark.parametrize("name", ["test authority", "another"])  # every federation's has one name
def test_a_certificate_of_another_authority_fails(
    north: Path, authority: Authority, serve: Serve, tmp_path: Path, name: str
) -> None:
    port = serve(Answers(), Authority(name).issue(tmp_path / "server.pem"))
    assert "of another authority than headquarters.ca" in failure(north, port)


@pytest.mark.parametrize(("host", "word"), [("localhost", "name"), ("127.0.0.1", "address")])
def test_a_certificate_for_another_host_fails(
    north: Path, authority: Authority, serve: Serve, tmp_path: Path, host: str, word: str
) -> None:
    port = serve(Answers(), authority.issue(tmp_path / "server.pem", host="elsewhere.example"))
    assert f"its certificate is for another {word}" in failure(north, port, host)


def test_a_port_where_nobody_listens_fails(north: Path, authority: Authority) -> None:
    assert "connection refused" in failure(north, free_port())


def test_a_host_that_cannot_be_fails(north: Path, authority: Authority) -> None:
    assert "no such host" in failure(north, 443, "-.invalid")


def test_a_server_without_tls_fails(north: Path, authority: Authority, serve: Serve) -> None:
    assert "does not speak TLS" in failure(north, serve(Answers(), None))


def test_a_server_without_http_fails(
    north: Path, authority: Authority, serve: Serve, tmp_path: Path
) -> None:
    port = serve(Answers(instead=b"hello\r\n"), authority.issue(tmp_path / "server.pem"))
    assert "does not speak HTTP" in failure(north, port)


def test_a_silent_server_fails_in_time(
    north: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.visit, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and never shakes hands
        found = failure(north, silent.getsockname()[1])
    assert "no answer within 0.2 s" in found


def test_a_headquarters_that_is_not_well_fails(
    north: Path, authority: Authority, serve: Serve, tmp_path: Path
) -> None:
    port = serve(Answers(health=503), authority.issue(tmp_path / "server.pem"))
    rows = rows_at(north, port)
    assert rows["connection"].verdict == "fail"
    assert "/healthz answers 503, not 200" in rows["connection"].found
    assert rows["clock"].verdict == "ok"  # it did say the time


@pytest.mark.parametrize(
    ("answers", "days", "word"),
    [(Answers(), 29, "renew"), (Answers(release=500), 90, "log")],
)
def test_what_will_soon_be_wrong_warns(
    north: Path,
    authority: Authority,
    serve: Serve,
    tmp_path: Path,
    answers: Answers,
    days: int,
    word: str,
) -> None:
    certificate = authority.issue(tmp_path / "server.pem", valid_for=days * DAY)
    row = rows_at(north, serve(answers, certificate))["connection"]
    assert row.verdict == "warn"
    assert word in row.advice


@pytest.mark.parametrize(
    ("content", "word"),
    [(None, "ca.crt: No such file or directory"), (b"x", "ca.crt: not a certificate in PEM")],
)
def test_a_region_without_its_authority_fails(
    north: Path, authority: Authority, content: bytes | None, word: str
) -> None:
    path = north / "enrolment" / "ca.crt"
    path.unlink() if content is None else path.write_bytes(content)
    assert failure(north, free_port()).endswith(word)


@pytest.mark.parametrize(
    ("ahead_s", "verdict"), [(0, "ok"), (100, "warn"), (3600, "fail"), (-60, "fail")]
)
def test_the_clock_is_held_against_headquarters(
    north: Path,
    authority: Authority,
    serve: Serve,
    tmp_path: Path,
    ahead_s: int,
    verdict: str,
) -> None:
    answers = Answers(ahead=timedelta(seconds=ahead_s))
    row = rows_at(north, serve(answers, authority.issue(tmp_path / "server.pem")))["clock"]
    assert row.verdict == verdict
    assert ("behind" in row.found.partition("headquarters")[0]) == (ahead_s > 0) or ahead_s == 0


@pytest.mark.parametrize(
    ("ahead_s", "said"),
    [
        (0, ""),
        (None, ""),
        (
            3600,
            "clock: 3,600 seconds behind headquarters; .*; set the clock by NTP; Flower refuses",
        ),
        (-3600, "clock: 3,600 seconds ahead of headquarters; .*; set the clock by NTP; Flower ref"),
    ],
)
def test_a_region_that_comes_up_says_what_is_wrong_with_its_clock(
    north: Path,
    authority: Authority,
    serve: Serve,
    tmp_path: Path,
    ahead_s: int | None,
    said: str,
) -> None:
    ahead = None if ahead_s is None else timedelta(seconds=ahead_s)
    port = serve(Answers(ahead=ahead), authority.issue(tmp_path / "server.pem"))
    change(north, headquarters={"address": f"127.0.0.1:{port}"})
    headquarters = load_region_config(north).headquarters
    assert headquarters is not None
    found = clock_trouble(north, headquarters)
    assert re.match(said, found) if said else found == ""


def test_where_headquarters_is_away_nothing_is_said_of_the_clock(north: Path) -> None:
    change(north, headquarters={"address": f"127.0.0.1:{free_port()}"})
    headquarters = load_region_config(north).headquarters
    assert headquarters is not None
    assert clock_trouble(north, headquarters) == ""


def test_an_answer_without_a_date_leaves_the_clock_unchecked(
    north: Path, authority: Authority, serve: Serve, tmp_path: Path
) -> None:
    port = serve(Answers(ahead=None), authority.issue(tmp_path / "server.pem"))
    rows = rows_at(north, port)
    assert rows["connection"].verdict == "ok"
    assert rows["clock"].found.startswith("not checked")


@pytest.mark.parametrize(
    ("offset_s", "verdict"),
    [
        (0.4, "ok"),
        (2.0, "ok"),
        (2.1, "warn"),
        (4.9, "warn"),
        (5.0, "fail"),
        (-60.0, "ok"),
        (-60.1, "warn"),
        (-304.9, "warn"),
        (-305.0, "fail"),
    ],
)
def test_a_clock_may_be_late_rather_than_early(offset_s: float, verdict: str) -> None:
    assert clock_finding(offset_s).verdict == verdict


def test_the_clock_is_held_to_what_flower_bears() -> None:
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

    assert MAX_AHEAD_S == SYSTEM_TIME_TOLERANCE
    assert MAX_BEHIND_S == TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
