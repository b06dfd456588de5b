"""Headquarters' processes: Flower's SuperLink and SuperExec, and nginx in front of them.

Flower serves its fleet, control and runtime APIs on one port, and whoever reaches the control API
may run programs here and in every region. So the SuperLink listens on loopback alone, and nginx,
the only public listener, lets nothing through but the fleet API and two folders of files.
"""

import http.client
import ipaddress
import os
import pwd
import secrets
import shutil
import ssl
import tomllib
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from shared.durable import locked, replace_file
from shared.errors import ConfigError
from shared.supervise import Process, flower_environment, program_beside_python

CONNECTION = "prod"  # name of this SuperLink in Flower's own configuration
MAX_BODY_MIB = 64  # Flower cuts arrays into pieces of 5 MiB
_NGINX_PLACES = ("/usr/sbin", "/usr/local/sbin", "/usr/bin", "/usr/local/bin", "/opt/homebrew/bin")
_PRIVATE_FOLDERS = ("flower", "logs")
_SHARED_FOLDERS = ("nginx", "nginx/tmp", "public", "public/base", "public/releases")
_PROBE_S = 2.0


@dataclass(frozen=True)
class Ports:
    """Where headquarters listens.

    Attributes:
        public: nginx, with TLS; regions connect here.
        superlink: Flower's SuperLink, with TLS, on 127.0.0.1 only.
    """

    public: int
    superlink: int


def prepare(home: Path, ports: Ports, *, public_host: str = "0.0.0.0") -> None:
    """Write everything the processes need; what is there and right stays.

    Args:
        home: headquarters' folder, with `tls/ca.crt`, `tls/server.crt` and `tls/server.key`; the
            certificate covers localhost, 127.0.0.1 and the public name.
        ports: where to listen.
        public_host: address of the public listener.

    Raises:
        ConfigError: a TLS file is missing, or nginx's workers could not read `public/`.
    """
    for name in ("ca.crt", "server.crt", "server.key"):
        if not (home / "tls" / name).is_file():
            raise ConfigError(f"{home / 'tls' / name}: not found; make headquarters' keys first")
    with locked(home):
        for name in _PRIVATE_FOLDERS:
            (home / name).mkdir(exist_ok=True)
            (home / name).chmod(0o700)
        for name in _SHARED_FOLDERS:
            (home / name).mkdir(exist_ok=True)
            (home / name).chmod(0o755)
        _write_secret(home / "flower" / "superexec.secret")
        _write_connection(home, ports)
        user = _worker_user()
        if user is not None:
            _check_reachable(home / "public", user)
        conf = render_nginx(home, ports, worker_user=user, public_host=public_host)
        replace_file(home / "nginx" / "nginx.conf", conf.encode())


def headquarters_processes(
    home: Path, ports: Ports, *, public_host: str = "0.0.0.0"
) -> tuple[Process, ...]:
    """All of them, in the order in which they start.

    Args:
        home: headquarters' folder, prepared.
        ports: where to listen.
        public_host: address of the public listener.

    Raises:
        ConfigError: nginx or a Flower program is not installed.
    """
    return (
        superlink_process(home, ports),
        superexec_process(home, ports),
        nginx_process(home, ports, public_host=public_host),
    )


def superlink_process(home: Path, ports: Ports) -> Process:
    """The SuperLink: state in a database, only registered nodes, ServerApps run elsewhere.

    Raises:
        ConfigError: Flower is not installed.
    """
    tls, flower = home / "tls", home / "flower"
    argv = (
        program_beside_python("flower-superlink"),
        *("--ssl-ca-certfile", str(tls / "ca.crt")),
        *("--ssl-certfile", str(tls / "server.crt")),
        *("--ssl-keyfile", str(tls / "server.key")),
        "--enable-supernode-auth",
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(flower / "superexec.secret")),
        *("--database", str(flower / "state.db")),
        *("--host", "127.0.0.1"),
        *("--port", str(ports.superlink)),
        "--disable-runtime-dependency-installation",
    )
    return Process(
        name="superlink",
        argv=argv,
        env=flower_environment(flower),
        cwd=flower,
        log=home / "logs" / "superlink.log",
        ready=lambda: https_answers("127.0.0.1", ports.superlink, "/health", tls / "ca.crt"),
    )


def superexec_process(home: Path, ports: Ports) -> Process:
    """The SuperExec, which starts one process for every run's ServerApp.

    Raises:
        ConfigError: Flower is not installed.
    """
    flower = home / "flower"
    argv = (
        program_beside_python("flower-superexec"),
        *("--root-certificates", str(home / "tls" / "ca.crt")),
        *("--runtime-api-address", f"127.0.0.1:{ports.superlink}"),
        *("--superexec-auth-secret-file", str(flower / "superexec.secret")),
    )
    return Process(
        name="superexec",
        argv=argv,
        env=flower_environment(flower),
        cwd=flower,
        log=home / "logs" / "superexec.log",
    )


def nginx_process(home: Path, ports: Ports, *, public_host: str = "0.0.0.0") -> Process:
    """Run nginx in the foreground, from `nginx/nginx.conf`.

    Raises:
        ConfigError: nginx is not installed.
    """
    folder, (_, probe) = home / "nginx", _addresses(public_host)
    return Process(
        name="nginx",
        argv=(_nginx(), "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")),
        env={"PATH": os.defpath},
        cwd=folder,
        log=home / "logs" / "nginx.log",
        ready=lambda: https_answers(probe, ports.public, "/healthz", home / "tls" / "ca.crt"),
    )


def render_nginx(
    home: Path, ports: Ports, *, worker_user: str | None, public_host: str = "0.0.0.0"
) -> str:
    """Write nginx's configuration, as text.

    Args:
        home: headquarters' folder.
        ports: where to listen, and where the SuperLink does.
        worker_user: nginx's workers run as this user; None if nginx is not started by root.
        public_host: address of the public listener.

    Raises:
        ConfigError: the folder's name has a character that nginx would read as its own, or
            `public_host` is no address.
    """
    home = home.resolve()
    if any(not character.isprintable() or character in "\"'$\\;{}" for character in str(home)):
        raise ConfigError(
            f"{str(home)!r}: nginx cannot read this name; choose a folder without quotes, "
            "backslashes, $, ;, braces and line breaks"
        )
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("nginx.conf.j2").render(
        folder=lambda name: f'"{home / name}"',
        listen=f"{_addresses(public_host)[0]}:{ports.public}",
        superlink_port=ports.superlink,
        max_body_mib=MAX_BODY_MIB,
        worker_user=worker_user,
    )


def https_answers(host: str, port: int, path: str, ca: Path) -> bool:
    """Whether a server of ours answers 200 here and now, with a certificate of our CA.

    Args:
        host: address to connect to. The certificate need not cover it: this is a question to
            ourselves, by whichever address we listen on.
        port: of that address.
        path: what to get.
        ca: certificate of the CA, PEM.
    """
    context = ssl.create_default_context(cafile=str(ca))
    context.check_hostname = False
    connection = http.client.HTTPSConnection(host, port, timeout=_PROBE_S, context=context)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):  # not up yet
        return False
    finally:
        connection.close()


def _write_secret(path: Path) -> None:
    """The shared secret of SuperLink and SuperExec; kept if it is there."""
    if path.is_file():
        path.chmod(0o600)
        return
    # Flower takes the file's exact bytes. The folder is private, so no moment is unsafe.
    replace_file(path, secrets.token_hex(32).encode())
    path.chmod(0o600)


def _write_connection(home: Path, ports: Ports) -> None:
    """How Flower's command line finds the SuperLink."""
    ca = str((home / "tls" / "ca.crt").resolve())
    text = (
        f"[superlink.{CONNECTION}]\n"
        f'address = "127.0.0.1:{ports.superlink}"\n'
        f"root-certificates = '{ca}'\n"
    )
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise ConfigError(f"{ca!r}: choose a folder without quotes and line breaks") from None
    replace_file(home / "flower" / "config.toml", text.encode())


def _nginx() -> str:
    found = shutil.which("nginx", path=os.pathsep.join(_NGINX_PLACES)) or shutil.which("nginx")
    if found is None:
        raise ConfigError("nginx: not found; install it (Debian and Ubuntu: apt install nginx)")
    return found


def _worker_user() -> str | None:
    """Whom nginx's workers become if root starts it: Debian's web user, else nobody."""
    if os.geteuid() != 0:
        return None
    known = {user.pw_name for user in pwd.getpwall()}
    return "www-data" if "www-data" in known else "nobody"


def _check_reachable(folder: Path, user: str) -> None:
    """Refuse a folder that the workers could not enter: every download would be a 404."""
    uid, resolved = pwd.getpwnam(user).pw_uid, folder.resolve()
    for place in (resolved, *resolved.parents):
        status = place.stat()
        if not status.st_mode & (0o100 if status.st_uid == uid else 0o001):
            raise ConfigError(
                f'{place}: user "{user}", as whom nginx serves {folder}, may not enter it; '
                f"chmod o+x {place}, or do not start headquarters as root"
            )


def _addresses(host: str) -> tuple[str, str]:
    """An address as nginx wants to see it, and where a probe from this machine finds it."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ConfigError(f'"{host}": not an IP address; 0.0.0.0 means all of IPv4') from None
    own = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(address), str(address))
    return (f"[{address}]" if address.version == 6 else str(address)), own
