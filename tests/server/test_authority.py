"""Certificates that real TLS believes, and only those."""

import os
import socket
import ssl
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from server.authority import certificate_expiry, issue_server_certificate, make_authority
from shared.errors import ConfigError

NOW = datetime(2030, 1, 1, tzinfo=UTC)
TIMEOUT_S = 10.0


@pytest.fixture
def tls(tmp_path: Path) -> Path:
    folder = tmp_path / "tls"
    make_authority(folder)
    issue_server_certificate(folder, ["hq.example", "192.0.2.7"])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.*") if path.is_file()}


def handshake(tls: Path, host: str, *, authority: Path | None = None) -> None:
    """One TLS handshake between two threads; raises what the client raises."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(tls / "server.crt", tls / "server.key")
    asking = ssl.create_default_context(cafile=authority or tls / "ca.crt")
    asking.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            with serving.wrap_socket(theirs, server_side=True) as secured:
                secured.recv(1)
        except OSError:  # the client hung up, and says why
            theirs.close()

    with ours:
        ours.settimeout(TIMEOUT_S)
        theirs.settimeout(TIMEOUT_S)
        server = threading.Thread(target=serve)
        server.start()
        try:
            with asking.wrap_socket(ours, server_hostname=host) as secured:
                secured.send(b"x")
        finally:
            ours.close()
            server.join(TIMEOUT_S)


@pytest.mark.parametrize("host", ["hq.example", "192.0.2.7", "localhost", "127.0.0.1", "::1"])
def test_a_client_that_knows_the_authority_believes_the_server(tls: Path, host: str) -> None:
    handshake(tls, host)


def test_another_name_and_another_authority_are_not_believed(tls: Path, tmp_path: Path) -> None:
    make_authority(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for 'evil"):
        handshake(tls, "evil.example")
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        handshake(tls, "hq.example", authority=tmp_path / "other" / "ca.crt")


def test_an_expired_certificate_is_not_believed(tls: Path) -> None:
    past = datetime.now(UTC) - timedelta(days=2)
    issue_server_certificate(tls, ["hq.example"], now=past, valid_for=timedelta(days=1))
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"):
        handshake(tls, "hq.example")
    issue_server_certificate(tls, ["hq.example"])
    handshake(tls, "hq.example")


@pytest.mark.parametrize("name", ["ca.crt", "server.crt"])
def test_a_client_whose_clock_is_hours_behind_believes_what_was_just_made(
    tls: Path, name: str
) -> None:
    certificate = x509.load_pem_x509_certificate((tls / name).read_bytes())
    assert certificate.not_valid_before_utc < datetime.now(UTC) - timedelta(hours=23)


def test_openssl_agrees(tls: Path) -> None:
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver"]
    files = ["-CAfile", str(tls / "ca.crt"), str(tls / "server.crt")]
    done = subprocess.run([*command, *files], capture_output=True, text=True, timeout=30)
    assert done.stdout.endswith("server.crt: OK\n"), done.stderr


def test_the_authority_may_issue_servers_only(tls: Path) -> None:
    certificate = x509.load_pem_x509_certificate((tls / "ca.crt").read_bytes())
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature


def test_keys_are_private(tls: Path) -> None:
    assert {(tls / name).stat().st_mode & 0o777 for name in ("ca.key", "server.key")} == {0o600}


def test_expiry_is_what_was_asked_for(tls: Path) -> None:
    issue_server_certificate(tls, ["hq.example"], now=NOW)
    assert certificate_expiry(tls / "server.crt") == NOW + timedelta(days=397)
    late = certificate_expiry(tls / "ca.crt") - timedelta(days=1)
    issue_server_certificate(tls, ["hq.example"], now=late)
    assert certificate_expiry(tls / "server.crt") == certificate_expiry(tls / "ca.crt")


def test_an_authority_is_never_overwritten(tls: Path) -> None:
    before = contents(tls)
    with pytest.raises(ConfigError, match=r"ca\.key: there already"):
        make_authority(tls)
    assert contents(tls) == before


def test_renewing_brings_a_new_key_that_fits(tls: Path) -> None:
    before = contents(tls)
    issue_server_certificate(tls, ["hq.example"])
    after = contents(tls)
    assert {name for name in after if after[name] != before[name]} == {"server.crt", "server.key"}
    key = load_pem_private_key(after["server.key"], password=None)
    certificate = x509.load_pem_x509_certificate(after["server.crt"])
    assert key.public_key() == certificate.public_key()


@pytest.mark.parametrize("first", [True, False])
def test_a_renewal_that_fails_puts_the_key_back(
    tls: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    if first:
        for name in ("server.crt", "server.key"):
            (tls / name).unlink()
    before, replace = contents(tls), os.replace

    def full(source: Path, target: Path) -> None:
        if target.name == "server.crt":
            raise OSError("disk full")
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(OSError, match="disk full"):
            issue_server_certificate(tls, ["hq.example"])
    assert contents(tls) == before


@pytest.mark.parametrize("host", ["", "a b", "*.example", "-x.example", "a..b", "größe.example"])
def test_what_is_no_host_is_refused(tls: Path, host: str) -> None:
    before = contents(tls)
    with pytest.raises(ConfigError, match="neither a DNS name nor an IP address"):
        issue_server_certificate(tls, [host])
    assert contents(tls) == before


def test_only_a_living_authority_issues(tmp_path: Path, tls: Path) -> None:
    make_authority(tmp_path / "old", now=NOW, valid_for=timedelta(days=1))
    with pytest.raises(ConfigError, match=r"ca\.crt: the authority ended on 2030-01-02"):
        issue_server_certificate(tmp_path / "old", ["a"], now=NOW + timedelta(days=2))
    (tls / "ca.key").rename(tls / "elsewhere.key")
    with pytest.raises(ConfigError, match=r"ca\.key: not found; bring"):
        issue_server_certificate(tls, ["a"])
    (tmp_path / "old" / "ca.key").rename(tls / "ca.key")
    with pytest.raises(ConfigError, match=r"ca\.key: not the unencrypted key of ca\.crt"):
        issue_server_certificate(tls, ["a"])


def test_what_is_no_certificate_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no certificate there"):
        certificate_expiry(tmp_path / "nowhere")
    (tmp_path / "text").write_text("not one")
    with pytest.raises(ConfigError, match="not a certificate in PEM"):
        certificate_expiry(tmp_path / "text")
