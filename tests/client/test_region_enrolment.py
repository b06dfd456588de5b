"""A region enrols against a real HTTPS server, and takes nothing but the base that was agreed."""

import hashlib
import json
import os
import shutil
import ssl
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

import client.enrolment
from client.enrolment import EnrolledRegion, enrol, fetch_base
from client.isolation import require_separation
from server.authority import issue_server_certificate, make_authority
from server.enrolment import admit, invite, revoke, write_enrolment
from server.headquarters import Headquarters, init_headquarters
from shared.durable import canonical_json
from shared.encoders.base import read_base
from shared.errors import BaseError, ConfigError, FederationError, FedshelfError
from shared.schema import load_region_config, render_region_toml

Answer = Callable[[BaseHTTPRequestHandler], None]
TIMEOUT_S = 10.0


@contextmanager
def https(tls: Path, answer: Answer) -> Iterator[str]:
    """A server with a certificate from `tls`; yields its address."""

    class Requests(BaseHTTPRequestHandler):
        timeout = TIMEOUT_S

        def do_GET(self) -> None:
            try:
                answer(self)
            except OSError:  # the region hung up
                self.close_connection = True

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Requests)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls / "server.crt", tls / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(TIMEOUT_S)
        server.server_close()


def send(request: BaseHTTPRequestHandler, body: bytes, *, code: int = 200) -> None:
    request.send_response(code)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def files_of(folder: Path, asked: list[str] | None = None) -> Answer:
    """Serve a folder of files as headquarters serves `public/`."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        if asked is not None:
            asked.append(request.path)
        path = folder / request.path.lstrip("/")
        found = path.is_file()
        send(request, path.read_bytes() if found else b"no", code=200 if found else 404)

    return answer


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    make_authority(folder)
    issue_server_certificate(folder, ["127.0.0.1"])
    return folder


def fetch(address: str, tls: Path, target: Path, *, fingerprint: str, **limits: int) -> None:
    fetch_base(address, ca=tls / "ca.crt", fingerprint=fingerprint, target=target, **limits)


def fingerprint_of(base: Path) -> str:
    return read_base(base).fingerprint


@contextmanager
def federation(folder: Path, base: Path) -> Iterator[Headquarters]:
    """A headquarters folder whose public files are served at its own address."""
    public = folder / "hq" / "public"
    make_authority(folder / "tls")
    issue_server_certificate(folder / "tls", ["127.0.0.1"])
    with https(folder / "tls", files_of(public)) as address:
        hq = init_headquarters(folder / "hq", name="shelf", address=address, base=base)
        # The server runs before the folder exists, for its port is in it: same authority for both.
        hq.ca_certificate.write_bytes((folder / "tls" / "ca.crt").read_bytes())
        yield hq


def enrolment_file(hq: Headquarters, path: Path, region: str = "fr") -> Path:
    write_enrolment(invite(hq, region), path)
    return path


def offline(folder: Path, base: Path) -> Headquarters:
    """Headquarters at an address where nothing listens."""
    return init_headquarters(folder / "hq", name="shelf", address="127.0.0.1:1", base=base)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


# -- the whole journey -----------------------------------------------------------------------------


def test_a_region_enrols_and_is_admitted(tmp_path: Path, tiny_base: Path) -> None:
    with federation(tmp_path, tiny_base) as hq:
        file = enrolment_file(hq, tmp_path / "fr.json")
        enrolled = enrol(tmp_path / "fr", file)
        record = admit(hq, "fr", enrolled.public_key)
    assert record.public_key is not None
    assert enrolled.public_line.startswith(f"{record.public_key} fr:")
    assert enrolled.key_fingerprint == record.key_fingerprint
    config = load_region_config(tmp_path / "fr")
    assert config == enrolled.config
    assert config.base.releases == f"https://{hq.config.address}/releases"
    assert config.base.release_key == hq.release_key
    assert config.headquarters is not None
    assert config.headquarters.address == hq.config.address
    assert read_base(tmp_path / "fr" / config.base.path).fingerprint == hq.fingerprint
    assert (tmp_path / "fr" / config.headquarters.ca).read_bytes() == (
        hq.ca_certificate.read_bytes()
    )


@pytest.fixture
def region(tmp_path: Path, tiny_base: Path) -> EnrolledRegion:
    """Enrolled from a copied base, with nothing to connect to."""
    file = enrolment_file(offline(tmp_path, tiny_base), tmp_path / "fr.json")
    return enrol(tmp_path / "fr", file, base=tiny_base)


def test_the_key_is_private_and_in_the_form_that_flower_loads(
    region: EnrolledRegion, tmp_path: Path
) -> None:
    path = tmp_path / "fr" / "enrolment" / "node.key"
    assert mode_of(path) == 0o600
    key = load_ssh_private_key(path.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    command = ["ssh-keygen", "-l", "-f", str(region.public_key)]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.split()
    assert printed[:2] == ["384", region.key_fingerprint]


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """Sets it for the rest of the test."""
    before = os.umask(0)
    yield os.umask
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("usual", [0o000, 0o022, 0o077])
def test_others_can_pass_through_a_new_folder_and_read_nothing_in_it(
    tmp_path: Path, tiny_base: Path, umask: Callable[[int], int], usual: int
) -> None:
    file = enrolment_file(offline(tmp_path, tiny_base), tmp_path / "fr.json")
    umask(usual)
    with tempfile.TemporaryDirectory(prefix="enrolment-") as name:
        Path(name).chmod(0o755)  # pytest's own folders are closed
        folder = Path(name, "fr")
        enrol(folder, file, base=tiny_base)
        assert umask(usual) == usual
        assert mode_of(folder) == 0o711
        made = {path.name: mode_of(path) for path in folder.iterdir()}
        assert made.keys() >= {"enrolment", "base", "state", "region.toml"}
        assert not {name for name, mode in made.items() if mode & 0o077}
        assert {mode_of(path) for path in (folder / "enrolment").iterdir()} == {0o600}
        require_separation(folder, "64871")  # a number without a name: in no group


def test_a_folder_that_is_there_keeps_its_mode(
    tmp_path: Path, tiny_base: Path, umask: Callable[[int], int]
) -> None:
    umask(0o022)
    (tmp_path / "fr").mkdir()
    (tmp_path / "fr").chmod(0o750)
    enrol(
        tmp_path / "fr",
        enrolment_file(offline(tmp_path, tiny_base), tmp_path / "fr.json"),
        base=tiny_base,
    )
    assert mode_of(tmp_path / "fr") == 0o750
    assert mode_of(tmp_path / "fr" / "enrolment") == 0o700
    assert mode_of(tmp_path / "fr" / "region.toml") == 0o600


def test_the_token_stays_in_the_file_it_came_in(region: EnrolledRegion, tmp_path: Path) -> None:
    token = json.loads((tmp_path / "fr.json").read_bytes())["token"]
    kept = contents(tmp_path / "fr")
    assert "enrolment/ENROLMENT.json" in kept
    assert not [name for name, raw in kept.items() if token.encode() in raw]


def test_enrolling_twice_changes_nothing(
    region: EnrolledRegion, tmp_path: Path, tiny_base: Path
) -> None:
    before = contents(tmp_path / "fr")
    assert enrol(tmp_path / "fr", tmp_path / "fr.json") == region
    assert contents(tmp_path / "fr") == before


def test_a_new_invitation_keeps_the_key_until_it_is_moved_away(
    tmp_path: Path, tiny_base: Path
) -> None:
    hq, folder = offline(tmp_path, tiny_base), tmp_path / "fr"
    first = enrol(folder, enrolment_file(hq, tmp_path / "1.json"), base=tiny_base)
    second = enrol(folder, enrolment_file(hq, tmp_path / "2.json"))
    assert second.key_fingerprint == first.key_fingerprint
    admit(hq, "fr", second.public_key)
    revoke(hq, "fr")
    enrol(folder, enrolment_file(hq, tmp_path / "3.json"))
    with pytest.raises(FederationError, match=r"move its enrolment/node\.key away"):
        admit(hq, "fr", second.public_key)
    (folder / "enrolment" / "node.key").rename(tmp_path / "old.key")
    third = enrol(folder, tmp_path / "3.json")
    assert admit(hq, "fr", third.public_key).key_fingerprint != first.key_fingerprint


# -- the enrolment file ----------------------------------------------------------------------------


def test_an_expired_file_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    file = enrolment_file(offline(tmp_path, tiny_base), tmp_path / "fr.json")
    late = datetime.now(UTC) + timedelta(days=8)
    with pytest.raises(FederationError, match="this invitation expired on"):
        enrol(tmp_path / "fr", file, base=tiny_base, now=late)
    assert not (tmp_path / "fr").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("region", "../fr", "region: "),
        ("address", "hq.example", "address: "),
        ("address", "hq.example:0", "address: .*port"),
        ("address", "a..b:1", "address: "),
        ("address", "evil.example/x:1", "address: "),
        ("ca_pem", "", "ca_pem: .*holds 0 certificates"),
        ("release_key", "ab", "release_key: "),
        ("base_fingerprint", "AB" * 32, "base_fingerprint: "),
        ("token", "", "token: "),
        ("expires", "2030-01-01T00:00:00", "expires: .*timezone"),
        ("format", 2, "format: "),
        ("extra", 1, "extra: "),
    ],
)
def test_a_wrong_file_names_its_key_and_not_its_token(
    tmp_path: Path, tiny_base: Path, key: str, value: object, message: str
) -> None:
    file = enrolment_file(offline(tmp_path, tiny_base), tmp_path / "fr.json")
    fields = json.loads(file.read_bytes())
    file.write_bytes(canonical_json({**fields, key: value}))
    with pytest.raises(ConfigError, match=message) as caught:
        enrol(tmp_path / "fr", file, base=tiny_base)
    assert fields["token"] not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "fr").exists()


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"[]", b" " * 100_000])
def test_what_is_no_enrolment_file_is_named(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "file").write_bytes(raw)
    for path in (tmp_path / "file", tmp_path / "nowhere", tmp_path):
        with pytest.raises(ConfigError, match=r"expected an enrolment file, ask headquarters"):
            enrol(tmp_path / "fr", path)


# -- region.toml -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        (None, "region", "de"),
        ("base", "fingerprint", "0" * 64),
        ("base", "release_key", "0" * 64),
        ("base", "releases", "https://evil.example:1/releases"),
        ("headquarters", "address", "evil.example:1"),
        ("headquarters", "ca", "other.crt"),
        ("headquarters", "key", "other.key"),
    ],
)
def test_a_region_that_has_a_configuration_must_agree(
    region: EnrolledRegion, tmp_path: Path, table: str | None, key: str, value: str
) -> None:
    changes: dict[str, object] = {key: value}
    if table is not None:
        changes = {table: getattr(region.config, table).model_copy(update=changes)}
    path = tmp_path / "fr" / "region.toml"
    path.write_text(render_region_toml(region.config.model_copy(update=changes)))
    before = contents(tmp_path / "fr")
    name = f"{table}.{key}" if table else key
    with pytest.raises(ConfigError, match=rf'{name} is "{value}", the enrolment file has "'):
        enrol(tmp_path / "fr", tmp_path / "fr.json")
    assert contents(tmp_path / "fr") == before


def test_a_region_of_a_simulation_is_told_what_to_set(
    region: EnrolledRegion, tmp_path: Path
) -> None:
    path = tmp_path / "fr" / "region.toml"
    path.write_text(render_region_toml(region.config.model_copy(update={"headquarters": None})))
    with pytest.raises(ConfigError, match=r'headquarters\.address is not set, .*"127\.0\.0\.1:1"'):
        enrol(tmp_path / "fr", tmp_path / "fr.json")


def test_a_configuration_that_agrees_says_where_the_base_lies(
    region: EnrolledRegion, tmp_path: Path
) -> None:
    moved = region.config.base.model_copy(update={"path": "../shared-base"})
    text = render_region_toml(region.config.model_copy(update={"base": moved, "locale": "fr"}))
    (tmp_path / "fr" / "region.toml").write_text(text)
    (tmp_path / "fr" / "base").rename(tmp_path / "shared-base")
    again = enrol(tmp_path / "fr", tmp_path / "fr.json")
    assert again.config.locale == "fr"
    assert (tmp_path / "fr" / "region.toml").read_text() == text
    assert not (tmp_path / "fr" / "base").exists()


# -- the base --------------------------------------------------------------------------------------


def test_a_damaged_base_is_refused_and_the_region_is_not_configured(
    tmp_path: Path, tiny_base: Path, region: EnrolledRegion
) -> None:
    (tmp_path / "fr" / "base" / "image" / "config.json").write_text("{}")
    with pytest.raises(BaseError, match=r"image/config\.json: changed"):
        enrol(tmp_path / "fr", tmp_path / "fr.json")
    with pytest.raises(BaseError, match=r"image/config\.json: changed"):
        enrol(tmp_path / "de", tmp_path / "fr.json", base=tmp_path / "fr" / "base")
    assert not (tmp_path / "de" / "region.toml").exists()
    assert not (tmp_path / "de" / "base").exists()


def test_a_base_that_changes_while_it_is_copied_is_refused(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(source: str, target: str) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:-1])

    file = enrolment_file(offline(tmp_path, tiny_base), tmp_path / "fr.json")
    monkeypatch.setattr(shutil, "copyfile", torn)
    with pytest.raises(BaseError, match="copy the base"):
        enrol(tmp_path / "fr", file, base=tiny_base)
    assert not list((tmp_path / "fr").glob("*base*"))


def test_a_key_file_that_is_none_is_named_and_kept(region: EnrolledRegion, tmp_path: Path) -> None:
    path = tmp_path / "fr" / "enrolment" / "node.key"
    path.write_text("not a key")
    with pytest.raises(ConfigError, match=r"node\.key: not an unencrypted OpenSSH key"):
        enrol(tmp_path / "fr", tmp_path / "fr.json")
    assert path.read_text() == "not a key"


def test_what_was_fetched_is_the_base(tmp_path: Path, tiny_base: Path, tls: Path) -> None:
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "base").symlink_to(tiny_base)
    asked: list[str] = []
    with https(tls, files_of(tmp_path / "public", asked)) as address:
        fetch(address, tls, tmp_path / "base", fingerprint=fingerprint_of(tiny_base))
    assert contents(tmp_path / "base") == contents(tiny_base)
    assert asked[0] == "/base/BASE.json"


def test_nobody_listens_or_another_authority(tmp_path: Path, tiny_base: Path, tls: Path) -> None:
    known, other = fingerprint_of(tiny_base), tmp_path / "other"
    make_authority(other)
    asked: list[str] = []
    with https(tls, files_of(tmp_path, asked)) as address:
        with pytest.raises(BaseError, match=r"CERTIFICATE_VERIFY_FAILED.*pass --base FOLDER"):
            fetch(address, other, tmp_path / "base", fingerprint=known)
        host = address.replace("127.0.0.1", "127.0.0.2")
        with pytest.raises(BaseError, match="cannot be fetched"):
            fetch(host, tls, tmp_path / "base", fingerprint=known)
    assert asked == []
    for nowhere in ("127.0.0.1:1", "999.1.1.1:1"):
        with pytest.raises(BaseError, match=r"base/BASE\.json: cannot be fetched \("):
            fetch(nowhere, tls, tmp_path / "base", fingerprint=known)
    assert not list(tmp_path.glob("*base*"))


def test_an_expired_certificate_is_not_believed(tmp_path: Path, tls: Path) -> None:
    old = tmp_path / "old"
    make_authority(old)
    past = datetime.now(UTC) - timedelta(days=2)
    issue_server_certificate(old, ["127.0.0.1"], now=past, valid_for=timedelta(days=1))
    with (
        https(old, files_of(tmp_path)) as address,
        pytest.raises(BaseError, match="certificate has expired"),
    ):
        fetch(address, old, tmp_path / "base", fingerprint="0" * 64)


@pytest.mark.parametrize("name", ["BASE.json", "image/model.safetensors", "text/config.json"])
@pytest.mark.parametrize("position", [0, 0.5, -1])
def test_a_flipped_byte_is_found(
    tmp_path: Path, tiny_base: Path, tls: Path, name: str, position: float
) -> None:
    raw = bytearray((tiny_base / name).read_bytes())
    raw[int(position * len(raw)) if position >= 0 else -1] ^= 1

    def answer(request: BaseHTTPRequestHandler) -> None:
        asked = request.path.removeprefix("/base/")
        send(request, bytes(raw) if asked == name else (tiny_base / asked).read_bytes())

    with (
        https(tls, answer) as address,
        pytest.raises(BaseError, match=f"/base/{name}: sha256 .*, expected"),
    ):
        fetch(address, tls, tmp_path / "base", fingerprint=fingerprint_of(tiny_base))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/evil", "text/../../evil", "a//b", ".hidden", "BASE.json", "a\\b", "", "text"],
)
def test_no_listed_name_leads_outside(
    tmp_path: Path, tiny_base: Path, tls: Path, name: str
) -> None:
    manifest = json.loads((tiny_base / "BASE.json").read_bytes())
    manifest["files"][name] = hashlib.sha256(b"evil").hexdigest()
    raw, asked = canonical_json(manifest), list[str]()

    def answer(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        send(request, raw if request.path == "/base/BASE.json" else b"evil")

    with (
        https(tls, answer) as address,
        pytest.raises(BaseError, match="is not a file name a base may hold"),
    ):
        known = hashlib.sha256(raw).hexdigest()
        fetch(address, tls, tmp_path / "base", fingerprint=known)
    assert asked == ["/base/BASE.json"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b'{"files": []}', b'{"files": {"a": 1}}', b'{"files": {"a": "b"}}']
)
def test_a_list_of_another_form_is_refused(tmp_path: Path, tls: Path, raw: bytes) -> None:
    with (
        https(tls, lambda request: send(request, raw)) as address,
        pytest.raises(BaseError, match=r"BASE\.json: damaged"),
    ):
        fetch(address, tls, tmp_path / "base", fingerprint=hashlib.sha256(raw).hexdigest())


def endless(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(b"\0" * 65536)


def test_an_endless_list_is_cut_off(
    tmp_path: Path, tls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with https(tls, endless) as address:
        with pytest.raises(BaseError, match=r"BASE\.json: longer than the 1048576 bytes"):
            fetch(address, tls, tmp_path / "base", fingerprint="0" * 64)
        monkeypatch.setattr(client.enrolment, "FETCH_LIMIT_S", -1.0)
        with pytest.raises(BaseError, match=r"BASE\.json: .*too slow, given up"):
            fetch(address, tls, tmp_path / "base", fingerprint="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_an_endless_file_is_cut_off(tmp_path: Path, tiny_base: Path, tls: Path) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.path == "/base/BASE.json":
            send(request, (tiny_base / "BASE.json").read_bytes())
        else:
            endless(request)

    with (
        https(tls, answer) as address,
        pytest.raises(BaseError, match=r"image/config\.json: longer than the \d+ bytes"),
    ):
        known = fingerprint_of(tiny_base)
        fetch(address, tls, tmp_path / "base", fingerprint=known, max_bytes=10**6)
    assert list(tmp_path.iterdir()) == []


def test_silence_is_cut_off(tmp_path: Path, tls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = threading.Event()

    def answer(request: BaseHTTPRequestHandler) -> None:
        heard.wait(TIMEOUT_S)

    monkeypatch.setattr(client.enrolment, "SILENCE_S", 0.2)
    with https(tls, answer) as address:
        with pytest.raises(BaseError, match=r"cannot be fetched .*timed out"):
            fetch(address, tls, tmp_path / "base", fingerprint="0" * 64)
        heard.set()


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(tmp_path: Path, tiny_base: Path, tls: Path, code: int) -> None:
    asked: list[str] = []
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "base").symlink_to(tiny_base)
    with https(tls, files_of(tmp_path / "public", asked)) as elsewhere:

        def answer(request: BaseHTTPRequestHandler) -> None:
            request.send_response(code)
            request.send_header("Location", f"https://{elsewhere}{request.path}")
            request.send_header("Content-Length", "0")
            request.end_headers()

        with https(tls, answer) as address, pytest.raises(BaseError, match=f"answered {code}"):
            fetch(address, tls, tmp_path / "base", fingerprint=fingerprint_of(tiny_base))
    assert asked == []


def test_a_proxy_of_the_environment_is_not_asked(
    tmp_path: Path, tiny_base: Path, tls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    (tmp_path / "base").symlink_to(tiny_base)
    with https(tls, files_of(tmp_path)) as address:
        fetch(address, tls, tmp_path / "fetched", fingerprint=fingerprint_of(tiny_base))
    assert (tmp_path / "fetched" / "BASE.json").is_file()


def test_a_short_body_is_found(tmp_path: Path, tls: Path) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "100")
        request.end_headers()
        request.wfile.write(b"short")

    with (
        https(tls, answer) as address,
        pytest.raises(FedshelfError, match="cannot be fetched"),
    ):
        fetch(address, tls, tmp_path / "base", fingerprint="0" * 64)
