"""A real server on loopback that is honest, slow, endless, somebody else, or not there."""

import hashlib
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from small_registry import HashEncoder, Headquarters, contents, write_region

from client.download import Download
from client.indexing import pull_release
from client.publication import Publication
from client.region import open_region
from shared.errors import BaseError, ConfigError, ReleaseError
from shared.retrieval.manifest import read_pointer

PAYLOAD = bytes(range(256)) * 1000
PROMPT = {"silence_s": 5.0, "limit_s": 20.0}
Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers by path; `answers` is set on a subclass a server."""

    protocol_version = "HTTP/1.1"
    answers: dict[str, Answer]
    served: list[str]

    def do_GET(self) -> None:  # the name is http.server's
        self.served.append(self.path)
        self.answers.get(self.path, missing)(self)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class QuietServer(ThreadingHTTPServer):
    """Does not print what a client that hangs up does to it."""

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@dataclass(frozen=True)
class Authority:
    """A certificate authority with one server certificate for 127.0.0.1."""

    ca: Path
    chain: Path


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


def make_authority(folder: Path, *, host: str = "127.0.0.1") -> Authority:
    root = ec.generate_private_key(ec.SECP256R1())
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
    ca = _certificate(name, name, root, root, x509.BasicConstraints(ca=True, path_length=None))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
    server = _certificate(name, subject, root, key, names)
    (folder / "ca.crt").write_bytes(ca.public_bytes(Encoding.PEM))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "server.pem").write_bytes(server.public_bytes(Encoding.PEM) + pem)
    return Authority(folder / "ca.crt", folder / "server.pem")


def _certificate(
    issuer: x509.Name,
    subject: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePrivateKey,
    extension: x509.ExtensionType,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().issuer_name(issuer).subject_name(subject)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1))
    builder = builder.not_valid_after(now + timedelta(days=1))
    return builder.add_extension(extension, critical=True).sign(issuer_key, hashes.SHA256())


@contextmanager
def serving(authority: Authority, answers: dict[str, Answer]) -> Iterator[tuple[str, list[str]]]:
    """Address of a server with these answers, and the paths it is asked for."""
    served: list[str] = []
    handler = type("Answers", (Handler,), {"answers": answers, "served": served})
    server = QuietServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.chain)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}", served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def sends(body: bytes) -> Answer:
    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def missing(handler: Handler) -> None:
    handler.send_error(404)


def redirects(handler: Handler) -> None:
    handler.send_response(302)
    handler.send_header("Location", "/file.json")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def hangs_up(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"half")
    handler.close_connection = True


def endless(handler: Handler) -> None:
    """Chunks for ever, until the client hangs up."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    while True:
        handler.wfile.write(b"1000\r\n" + bytes(0x1000) + b"\r\n")


def drips_head(handler: Handler) -> None:
    """A header that grows by a letter now and then, until the client hangs up."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    _drip(handler)


def drips_body(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    _drip(handler)


def _drip(handler: Handler) -> None:
    gone = threading.Event()
    while not gone.wait(0.02):
        handler.wfile.write(b"x")


def silent(handler: Handler) -> None:
    """Nothing, until the client hangs up."""
    handler.connection.recv(1)


def test_a_file_arrives_with_its_hash_over_one_connection(
    authority: Authority, tmp_path: Path
) -> None:
    answers = {"/releases/2/text/a.json": sends(PAYLOAD), "/releases/b.json": sends(b"")}
    with (
        serving(authority, answers) as (address, _),
        Download(f"{address}/releases/", authority.ca, **PROMPT) as download,
    ):
        assert download.place == f"{address}/releases"
        digest = download.fetch("2/text/a.json", len(PAYLOAD), tmp_path / "a")
        assert digest == hashlib.sha256(PAYLOAD).hexdigest()
        assert (tmp_path / "a").read_bytes() == PAYLOAD
        assert download.fetch("b.json", 0, tmp_path / "b") == hashlib.sha256().hexdigest()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (missing, "answered 404, expected 200"),
        (redirects, "answered 302, expected 200"),
        (hangs_up, "cannot be fetched"),
        (endless, "longer than the 9999 bytes"),
        (sends(bytes(10_000)), "longer than the 9999 bytes"),
    ],
)
def test_what_is_not_the_file_is_refused(
    authority: Authority, tmp_path: Path, answer: Answer, message: str
) -> None:
    answers = {"/bad.json": answer, "/file.json": sends(b"ok")}
    with (
        serving(authority, answers) as (address, served),
        Download(address, authority.ca, **PROMPT) as download,
    ):
        with pytest.raises(ReleaseError, match=message) as caught:
            download.fetch("bad.json", 9999, tmp_path / "file")
        assert str(caught.value).startswith(f"{address}/bad.json: ")
        assert "\n" not in str(caught.value)
        assert served == ["/bad.json"]
        download.fetch("file.json", 2, tmp_path / "file")  # the next one is not spoilt


def test_a_caller_says_which_error_it_is_and_what_to_do(
    authority: Authority, tmp_path: Path
) -> None:
    answers = {"/long.json": sends(b"123")}
    with (
        serving(authority, answers) as (address, _),
        Download(address, authority.ca, **PROMPT, error=BaseError, advice="copy it") as download,
    ):
        for name in ("long.json", "missing.json", "../out"):
            with pytest.raises(BaseError, match=r"; copy it$"):
                download.fetch(name, 2, tmp_path / "file")


@pytest.mark.parametrize("answer", [drips_head, drips_body])
def test_a_drip_ends_at_the_deadline(authority: Authority, tmp_path: Path, answer: Answer) -> None:
    with (
        serving(authority, {"/slow.json": answer}) as (address, _),
        Download(address, authority.ca, silence_s=20.0, limit_s=1.0) as download,
    ):
        for _ in range(2):
            with pytest.raises(ReleaseError, match=r"timed out|too slow, given up"):
                download.fetch("slow.json", 10**6, tmp_path / "slow")


def test_silence_is_given_up_long_before_the_deadline(authority: Authority, tmp_path: Path) -> None:
    with (
        serving(authority, {"/silent.json": silent}) as (address, _),
        Download(address, authority.ca, silence_s=0.2, limit_s=3600.0) as download,
        pytest.raises(ReleaseError, match="timed out"),
    ):
        download.fetch("silent.json", 10, tmp_path / "silent")


def test_a_server_that_accepts_and_never_greets_is_given_up(
    authority: Authority, tmp_path: Path
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as mute:
        address = f"https://127.0.0.1:{mute.getsockname()[1]}"
        with (
            Download(address, authority.ca, silence_s=0.2, limit_s=3600.0) as download,
            pytest.raises(ReleaseError, match="timed out"),
        ):
            download.fetch("file.json", 10, tmp_path / "file")


def test_nobody_there(authority: Authority, tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        address = f"https://127.0.0.1:{taken.getsockname()[1]}"
    with (
        Download(address, authority.ca, **PROMPT) as download,
        pytest.raises(ReleaseError, match=r"cannot be fetched \(.*refused.*look whether"),
    ):
        download.fetch("file.json", 10, tmp_path / "file")


def test_somebody_else_is_not_believed(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "elsewhere").mkdir()
    other = make_authority(tmp_path / "other")
    elsewhere = make_authority(tmp_path / "elsewhere", host="127.0.0.2")
    for server, ca in ((other, authority.ca), (elsewhere, elsewhere.ca)):
        with (
            serving(server, {"/file.json": sends(b"ok")}) as (address, served),
            Download(address, ca, **PROMPT) as download,
        ):
            with pytest.raises(ReleaseError, match="certificate verify failed"):
                download.fetch("file.json", 10, tmp_path / "file")
            assert served == []


def test_the_environment_has_no_say(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("SSL_CERT_FILE", str(make_authority(tmp_path / "other").ca))
    with (
        serving(authority, {"/file.json": sends(b"ok")}) as (address, _),
        Download(address, authority.ca, **PROMPT) as download,
    ):
        download.fetch("file.json", 2, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"ok"


@pytest.mark.parametrize(
    "name", ["", "/file.json", "../file.json", "a/../file.json", "a//b", ".hidden", "a?b", "a%2e"]
)
def test_a_name_that_leads_elsewhere_is_not_asked_for(
    authority: Authority, tmp_path: Path, name: str
) -> None:
    with (
        serving(authority, {}) as (address, served),
        Download(address, authority.ca, **PROMPT) as download,
    ):
        with pytest.raises(ReleaseError, match="not a file name"):
            download.fetch(name, 10, tmp_path / "file")
        assert served == []


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:1",
        "https://",
        "https://user@host:1",
        "https://host:99999",
        "https://host:1/releases?x",
        "file:///etc",
    ],
)
def test_only_a_plain_https_address_is_taken(authority: Authority, address: str) -> None:
    with pytest.raises(ConfigError, match="not of the form https"):
        Download(address, authority.ca)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("ca.crt", "not a certificate in PEM"), ("missing.crt", "No such file or directory")],
)
def test_an_authority_must_be_one(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "ca.crt").write_text("no certificate")
    with pytest.raises(ConfigError, match=f"{name}: {reason}; enrol this region again"):
        Download("https://127.0.0.1:1", tmp_path / name)


def test_a_release_comes_the_same_way_over_https_as_from_a_folder(
    authority: Authority, tmp_path: Path
) -> None:
    headquarters = Headquarters(tmp_path)
    headquarters.release(adapter=b"one", now=datetime.now(UTC))
    answers = {
        f"/releases/{name}": sends(raw) for name, raw in contents(headquarters.registry).items()
    }
    with serving(authority, answers) as (address, served):
        folder = _connected_region(tmp_path, headquarters, authority, address)
        publication = Publication(open_region(folder), encoder=lambda: HashEncoder(None))
        assert publication.step().release == 1
        assert contents(folder / "state/releases/1") == contents(headquarters.registry / "1")
        assert served[:4] == [
            "/releases/current.json",
            "/releases/current.json.sig",
            "/releases/1/MANIFEST.json",
            "/releases/1/MANIFEST.sig",
        ]
        asked = len(served)
        publication.step()
        assert len(served) == asked + 2  # only whether there is news
    with pytest.raises(ReleaseError, match="cannot be fetched"):
        publication.step()
    assert read_pointer(folder / "state").release == 1


def test_a_flipped_byte_over_https_leaves_nothing(authority: Authority, tmp_path: Path) -> None:
    headquarters = Headquarters(tmp_path)
    headquarters.release(now=datetime.now(UTC))
    sent = contents(headquarters.registry)
    sent["1/fusion.safetensors"] = b"F" + sent["1/fusion.safetensors"][1:]
    answers = {f"/releases/{name}": sends(raw) for name, raw in sent.items()}
    with serving(authority, answers) as (address, _):
        folder = _connected_region(tmp_path, headquarters, authority, address)
        expected = rf"{address}/releases/1/fusion\.safetensors: not the file that was signed"
        with pytest.raises(ReleaseError, match=expected):
            pull_release(folder)
    assert {path.name for path in (folder / "state" / "releases").iterdir()} == {".lock"}


def _connected_region(
    tmp_path: Path, headquarters: Headquarters, authority: Authority, address: str
) -> Path:
    folder = write_region(tmp_path / "north", headquarters)
    config = (folder / "region.toml").read_text().replace("../releases", f"{address}/releases")
    host = address.removeprefix("https://")
    config += f'[headquarters]\naddress = "{host}"\nca = "{authority.ca}"\n'
    (folder / "region.toml").write_text(config)
    return folder
