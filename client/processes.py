"""A region's processes: the worker, Flower's SuperNode, and whoever runs what Flower sends.

Three programs, and as root three users, each kept from the next one's secrets by the kernel:

    worker      owner of the region's folder: data, encoders, training; listens on a unix socket
    supernode   talks to headquarters; holds the node key, sees no data
    superexec   starts the ClientApp that headquarters sent; may reach the socket, and nothing else

    node/       the SuperNode's: its copy of the key and of the authority, Flower's state, a secret
    app/        the ClientApp's: Flower's state, the same secret
    run/        the worker's socket

Flower can run ClientApps inside the SuperNode's own user; then a hostile app could read the node
key. So the SuperNode isolates them as separate processes, which a shared secret lets in.
"""

import grp
import os
import pwd
import secrets
import socket
import sys
from contextlib import closing
from pathlib import Path

from shared.durable import replace_file
from shared.errors import ConfigError
from shared.schema import HeadquartersConfig, RegionConfig
from shared.supervise import Process, flower_environment, program_beside_python

_LOOPBACK = "127.0.0.1"
_SECRET = "superexec.secret"
# Flower refuses a node that was killed until its lease has run out. Then headquarters must have
# time to see that it is gone, or it waits for an answer that nobody is at work on any more.
LEASE_S = 60.0
_GONE_S = 15.0


def region_processes(
    folder: Path,
    config: RegionConfig,
    *,
    node_user: str | None = None,
    app_user: str | None = None,
) -> tuple[Process, ...]:
    """All of them, in the order in which they start; makes the folders they need.

    Args:
        folder: of the region.
        config: its `region.toml`.
        node_user: runs the SuperNode; needs root. By default everything runs as this user.
        app_user: runs what headquarters sends; given exactly if `node_user` is.

    Raises:
        ConfigError: the region is not enrolled, a user does not exist or may get at the data, or
            Flower is not installed.
    """
    owner = None
    _require_users(node_user, app_user)
    if node_user is not None and app_user is not None:
        owner = _owner(folder)
        _require_separation(folder, owner, node_user, app_user)
    _prepare(folder, config, node_user, app_user)  # last: until here nothing was given away
    port = _free_port()
    return (
        worker_process(folder, config, group=_group_of(app_user), user=owner),
        supernode_process(folder, config, runtime_port=port, user=node_user),
        superexec_process(folder, config, runtime_port=port, user=app_user),
    )


def worker_process(
    folder: Path, config: RegionConfig, *, group: str | None, user: str | None
) -> Process:
    """The worker, as the owner of the region's folder."""
    path = folder / config.worker.socket
    argv = [sys.executable, "-m", "fedshelf", "region", "worker", str(folder)]
    return Process(
        name="worker",
        argv=(*argv, *(("--group", group) if group else ())),
        env=dict(os.environ),
        cwd=folder,
        log=folder / config.state / "worker.log",
        user=user,
        ready=lambda: _listens(path),
        ready_timeout_s=600.0,  # a large catalog is checked first
    )


def supernode_process(
    folder: Path, config: RegionConfig, *, runtime_port: int, user: str | None
) -> Process:
    """Flower's SuperNode.

    Raises:
        ConfigError: the region is not enrolled, or Flower is not installed.
    """
    headquarters, home = _headquarters(folder, config), folder / "node"
    worker = folder / config.worker.socket
    argv = (
        program_beside_python("flower-supernode"),
        *("--superlink", headquarters.address),
        *("--root-certificates", str(home / "ca.crt")),
        *("--auth-supernode-private-key", str(home / "node.key")),
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(home / _SECRET)),
        *("--host", _LOOPBACK, "--port", str(runtime_port)),
        *("--node-config", f'worker-socket="{worker}"'),
    )
    return Process(
        name="supernode",
        argv=argv,
        env=flower_environment(home),
        cwd=home,
        log=folder / config.state / "supernode.log",
        user=user,
        ready=lambda: _accepts(runtime_port),
        restart_after_s=LEASE_S + _GONE_S,
        # What a SuperExec was about to run when it died stays handed out in its SuperNode for good;
        # only one that starts afresh lets headquarters know that nobody is at work on it.
        falls_with="superexec",
    )


def superexec_process(
    folder: Path, config: RegionConfig, *, runtime_port: int, user: str | None
) -> Process:
    """Flower's SuperExec, which starts a ClientApp for every message.

    Raises:
        ConfigError: Flower is not installed.
    """
    home = folder / "app"
    argv = (
        program_beside_python("flower-superexec"),
        "--insecure",  # loopback, behind the secret
        *("--runtime-api-address", f"{_LOOPBACK}:{runtime_port}"),
        *("--superexec-auth-secret-file", str(home / _SECRET)),
    )
    return Process(
        name="superexec",
        argv=argv,
        env=flower_environment(home),
        cwd=home,
        log=folder / config.state / "superexec.log",
        user=user,
    )


def _headquarters(folder: Path, config: RegionConfig) -> HeadquartersConfig:
    if config.headquarters is None:
        raise ConfigError(
            f'{folder / "region.toml"}: no [headquarters]; enrol with "fedshelf region enroll FILE"'
        )
    return config.headquarters


def _prepare(
    folder: Path, config: RegionConfig, node_user: str | None, app_user: str | None
) -> None:
    """The folders of SuperNode and ClientApp, each with what its user needs and no more."""
    headquarters, secret = _headquarters(folder, config), secrets.token_bytes(32)
    homes: dict[Path, tuple[str | None, dict[str, str]]] = {
        folder / "node": (node_user, {"ca.crt": headquarters.ca, "node.key": headquarters.key}),
        folder / "app": (app_user, {}),
    }
    for home in homes:
        if home.is_symlink():  # root would write, and give away, whatever it leads to
            raise ConfigError(f"{home}: a link; remove it, a folder is made there")
    for home, (user, files) in homes.items():
        _make_private(home)
        _give(home, user)
        for copy, source in files.items():
            _write(home / copy, (folder / source).read_bytes(), user)
        _write(home / _SECRET, secret, user)


def _make_private(home: Path) -> None:
    """A folder that its owner alone may enter, also where there is one already."""
    home.mkdir(mode=0o700, exist_ok=True)
    opened = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchmod(opened, 0o700)
    finally:
        os.close(opened)


def _write(path: Path, data: bytes, user: str | None) -> None:
    """Write a secret that only one user may read."""
    replace_file(path, data, private=True)
    _give(path, user)


def _give(path: Path, user: str | None) -> None:
    if user is not None:
        found = pwd.getpwnam(user)
        os.chown(path, found.pw_uid, found.pw_gid, follow_symlinks=False)


def _require_users(node_user: str | None, app_user: str | None) -> None:
    if (node_user is None) != (app_user is None):
        raise ConfigError("--node-user and --app-user belong together; give both or neither")
    if node_user is not None and os.geteuid() != 0:
        raise ConfigError("--node-user needs root, to become that user; or use the systemd units")
    if node_user is not None and node_user == app_user:
        raise ConfigError(f'--node-user and --app-user are both "{node_user}"; name two users')
    for user in (node_user, app_user):
        try:
            pwd.getpwnam(user) if user else None
        except KeyError:
            raise ConfigError(f'user "{user}" does not exist; create it, or name another') from None


def _require_separation(folder: Path, owner: str, node_user: str, app_user: str) -> None:
    from client.isolation import require_no_access, require_separation, require_way

    require_no_access(folder, node_user)
    require_separation(folder, app_user)
    require_way(folder / "node", node_user)
    require_way(folder / "app", app_user)
    group = pwd.getpwnam(app_user).pw_gid
    if group not in os.getgrouplist(owner, pwd.getpwnam(owner).pw_gid):
        raise ConfigError(
            f'user "{owner}", who owns {folder}, must be in the group of "{app_user}" to give it '
            f'the socket; run "usermod -aG {grp.getgrgid(group).gr_name} {owner}"'
        )


def _owner(folder: Path) -> str:
    """Whom root becomes to run the worker.

    Raises:
        ConfigError: the folder is root's, so that the worker would be root too, or is owned by a
            number without a name.
    """
    mend = f"give it to the user that shall own the region's data (chown -R USER {folder})"
    try:
        owner = folder.owner()
    except KeyError:
        number = folder.stat().st_uid
        raise ConfigError(f"{folder}: belongs to {number}, which is no user here; {mend}") from None
    if owner == "root":
        raise ConfigError(f"{folder}: belongs to root; {mend}")
    return owner


def _group_of(user: str | None) -> str | None:
    return str(pwd.getpwnam(user).pw_gid) if user else None


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _accepts(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.settimeout(1)
        return probe.connect_ex((_LOOPBACK, port)) == 0


def _listens(path: Path) -> bool:
    with closing(socket.socket(socket.AF_UNIX)) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
