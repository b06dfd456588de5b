"""What headquarters' processes are told, without starting them, and what is refused before."""

import os
import shutil
import socket
import stat
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from server import processes
from server.processes import Ports, headquarters_processes, https_answers, prepare, render_nginx
from shared.errors import ConfigError
from shared.supervise import Process

PORTS = Ports(public=8443, superlink=9443)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts workers as somebody else")
needs_nginx = pytest.mark.skipif(
    shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") is None, reason="needs nginx"
)


@pytest.fixture
def home() -> Iterator[Path]:
    """A headquarters' folder that nginx's workers could enter, with something as TLS files."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        (Path(name) / "tls").mkdir()
        for file in ("ca.crt", "server.crt", "server.key"):
            (Path(name) / "tls" / file).write_text("")
        yield Path(name)


def by_name(home: Path) -> dict[str, Process]:
    return {process.name: process for process in headquarters_processes(home, PORTS)}


def option(process: Process, name: str) -> str:
    return process.argv[process.argv.index(name) + 1]


@needs_nginx
def test_the_superlink_is_private_and_asks_every_node_who_it_is(home: Path) -> None:
    superlink = by_name(home)["superlink"]
    assert option(superlink, "--host") == "127.0.0.1"
    assert option(superlink, "--port") == "9443"
    assert option(superlink, "--database") == str(home / "flower" / "state.db")
    assert option(superlink, "--isolation") == "process"
    assert "--enable-supernode-auth" in superlink.argv
    assert "--insecure" not in superlink.argv


@needs_nginx
def test_the_superexec_shares_its_secret_and_trusts_our_ca_only(home: Path) -> None:
    found = by_name(home)
    secret = "--superexec-auth-secret-file"
    assert option(found["superexec"], secret) == option(found["superlink"], secret)
    assert option(found["superexec"], "--root-certificates") == str(home / "tls" / "ca.crt")
    assert option(found["superexec"], "--runtime-api-address") == "127.0.0.1:9443"


@needs_nginx
def test_each_depends_only_on_those_before_it(home: Path) -> None:
    assert list(by_name(home)) == ["superlink", "superexec", "nginx"]
    for process in by_name(home).values():
        assert process.log.parent == home / "logs"
        assert Path(process.argv[0]).is_absolute()


def test_prepare_writes_what_they_need(home: Path) -> None:
    prepare(home, PORTS)
    config = tomllib.loads((home / "flower" / "config.toml").read_text())
    assert config["superlink"]["prod"] == {
        "address": "127.0.0.1:9443",
        "root-certificates": str(home / "tls" / "ca.crt"),
    }
    secret = home / "flower" / "superexec.secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert len(secret.read_bytes()) == 64
    assert stat.S_IMODE((home / "flower").stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "logs").stat().st_mode) == 0o700
    assert (home / "public" / "releases").is_dir()


def test_prepare_again_keeps_the_secret_and_takes_the_new_port(home: Path) -> None:
    prepare(home, PORTS)
    secret = (home / "flower" / "superexec.secret").read_bytes()
    (home / "flower" / "superexec.secret").chmod(0o644)
    prepare(home, replace(PORTS, superlink=9444))
    assert (home / "flower" / "superexec.secret").read_bytes() == secret
    assert stat.S_IMODE((home / "flower" / "superexec.secret").stat().st_mode) == 0o600
    assert "127.0.0.1:9444" in (home / "flower" / "config.toml").read_text()
    assert "127.0.0.1:9444" in (home / "nginx" / "nginx.conf").read_text()


@pytest.mark.parametrize("name", ["ca.crt", "server.crt", "server.key"])
def test_a_missing_tls_file_is_named(home: Path, name: str) -> None:
    (home / "tls" / name).unlink()
    with pytest.raises(ConfigError, match=rf"{name}: not found; make headquarters' keys first"):
        prepare(home, PORTS)


@as_root
def test_a_folder_that_nginx_could_not_enter_is_named(home: Path) -> None:
    home.chmod(0o700)
    with pytest.raises(ConfigError, match=rf"^{home}: user .* may not enter it; chmod o\+x {home}"):
        prepare(home, PORTS)


@pytest.mark.parametrize("bad", ['quo"te', "dol$lar", "semi;colon", "line\nbreak", "bra{ce"])
def test_a_folder_that_nginx_would_misread_is_refused(home: Path, bad: str) -> None:
    with pytest.raises(ConfigError, match="nginx cannot read this name"):
        render_nginx(home / bad, PORTS, worker_user=None)


def test_a_folder_with_a_space_is_no_trouble(home: Path) -> None:
    assert f'root "{home}/a b/public";' in render_nginx(home / "a b", PORTS, worker_user=None)


def test_nginx_listens_where_it_is_told(home: Path) -> None:
    def listening(host: str) -> str:
        text = render_nginx(home, PORTS, worker_user=None, public_host=host)
        (line,) = (line.strip() for line in text.splitlines() if "listen " in line)
        return line

    assert listening("0.0.0.0") == "listen 0.0.0.0:8443 ssl;"
    assert listening("::") == "listen [::]:8443 ssl;"
    with pytest.raises(ConfigError, match=r'"hq.example; }": not an IP address'):
        listening("hq.example; }")


def test_only_root_names_a_user_for_the_workers(home: Path) -> None:
    assert "\nuser " not in render_nginx(home, PORTS, worker_user=None)
    assert "\nuser www-data;\n" in render_nginx(home, PORTS, worker_user="www-data")


def test_a_machine_without_nginx_is_told_what_to_install(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_NGINX_PLACES", (str(tmp_path),))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"^nginx: not found; install it .*apt install nginx"):
        headquarters_processes(home, PORTS)


@needs_nginx
@pytest.mark.parametrize("user", [None, pytest.param("nobody", marks=as_root)])
def test_nginx_accepts_its_configuration(home: Path, user: str | None) -> None:
    """As whoever runs the tests, and as somebody without rights."""
    write_certificate(home / "tls")
    prepare(home, PORTS)
    conf = home / "nginx" / "nginx.conf"
    if user is not None:
        conf.write_text(render_nginx(home, PORTS, worker_user=None))
        for path in [home, *home.rglob("*")]:
            shutil.chown(path, user)
    argv = [*by_name(home)["nginx"].argv, "-t"]
    done = subprocess.run(argv, capture_output=True, text=True, user=user, cwd="/")
    assert done.returncode == 0, done.stderr
    assert "emerg" not in done.stderr


def write_certificate(folder: Path) -> None:
    """Any certificate: signed by itself, and for nobody."""
    key, now, nobody = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC), x509.Name([])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(nobody)
        .issuer_name(nobody)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, SHA256())
        .public_bytes(Encoding.PEM)
    )
    (folder / "ca.crt").write_bytes(certificate)
    (folder / "server.crt").write_bytes(certificate)
    (folder / "server.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )


def test_a_closed_port_does_not_answer(home: Path) -> None:
    write_certificate(home / "tls")
    with socket.socket() as bound:  # bound, but nobody listens
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        assert not https_answers("127.0.0.1", port, "/", home / "tls" / "ca.crt")
