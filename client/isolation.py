"""Two users a region: one owns the data and works on it, the other talks to headquarters.

Flower's ClientApp is code that headquarters sends. It is kept from the data by the kernel, that is
by user and file mode, and not by anything the app itself could skip. Here the worker closes what
mode bits do not cover (its memory, core dumps, files it makes later), and checks that the modes an
operator has set keep the other user out.

Flower's own node key is one of the files kept from that user. A SuperNode that runs its apps as its
own user (`--isolation subprocess`) would have to share it with them; with `--isolation process` the
apps run under a `flower-superexec` of their own user, and the key stays with the SuperNode.

A port of loopback has neither owner nor mode: whoever runs on the machine reaches it, and a search
service gives its catalog away to whoever may ask. So where the region serves, only its token keeps
the app out, and without one there is no separation.

Not covered: root, a user with capabilities, hard links made while a file was open to everybody, and
whoever may become the worker's user.
"""

import ctypes
import os
import pwd
import resource
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ConfigError
from shared.schema import RegionConfig, load_region_config

_PR_SET_DUMPABLE = 4  # prctl(2)
_READ, _WRITE, _ENTER = 4, 2, 1
_ACL = "system.posix_acl_access"


def harden_process() -> None:
    """Keep this process's memory and the files it makes from everybody but its user and root.

    Not even another process of the same user can then read its memory or attach a debugger, and no
    core is dumped. There is no way back for as long as the process lives.

    Raises:
        OSError: the kernel refused.
    """
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")


def require_separation(folder: Path, app_user: str) -> None:
    """Check that a user can reach a region's worker and nothing else of the region.

    Read from owners and modes, so it can be asked by any user that sees them. The socket's folder
    counts as it is: `client.rpc.WorkerServer.start` makes it and gives it to its group.

    Args:
        folder: of the region.
        app_user: name or number of the user that runs Flower's ClientApps.

    Raises:
        ConfigError: it can read data, state or key, it could put itself in the socket's place, or
            it cannot reach the socket's folder; says which mode to set. Or the region serves
            searches to whoever asks.
    """
    require_no_access(folder, app_user)
    config = load_region_config(folder)
    _require_socket(_find_user(app_user), (folder / config.worker.socket).absolute().parent)
    require_token(folder, config)


def require_token(folder: Path, config: RegionConfig) -> None:
    """Check that the region's service, if it has one, answers only who knows its token.

    Args:
        folder: of the region.
        config: its `region.toml`.

    Raises:
        ConfigError: it serves searches and names no token.
    """
    if config.serve is not None and config.serve.token_file is None:
        raise ConfigError(
            f"{folder / 'region.toml'}: serve.token_file: not set, so every user of this machine,"
            " also the one that runs what headquarters sends, could read the catalog through"
            " searches; name a file that holds a token"
        )


def require_no_access(folder: Path, name: str) -> None:
    """Check that a user can read neither data nor state nor any key or token of the region.

    Args:
        folder: of the region.
        name: name or number of the user.

    Raises:
        ConfigError: it can; says which mode to set.
    """
    user, config = _find_user(name), load_region_config(folder)
    if user.uid == 0:
        raise ConfigError(f'user "{name}" is root, who reads everything; name another user')
    for path in _private(folder, config):
        if path.exists() and user.reaches(path, _READ | _ENTER):
            raise ConfigError(
                f'{path}: user "{name}" can get at it, and must not; as its owner, who must '
                f'be another user, run "chmod go= {path}"'
            )


def require_way(path: Path, name: str) -> None:
    """Check that a user can walk to a path, which need not exist yet.

    Args:
        path: where the user's own files are.
        name: name or number of the user.

    Raises:
        ConfigError: it cannot; says which mode to set.
    """
    blocked = _find_user(name).blocked_at(path)
    if blocked is not None:
        raise ConfigError(
            f'{blocked}: user "{name}" cannot pass it on the way to its files in {path}; as its '
            f'owner, run "chmod go+x {blocked}", which lets nobody list it'
        )


@dataclass(frozen=True)
class _User:
    name: str
    uid: int
    gids: frozenset[int]

    def may(self, path: Path, wanted: int) -> bool:
        """Whether the mode of this one path gives the user any of the rights in `wanted`."""
        found = path.stat()
        if found.st_uid == self.uid:
            return True  # an owner can give itself any right
        everybody, group = found.st_mode & 7, found.st_mode >> 3 & 7
        if _has_acl(path):  # the group bits are then the most that any entry of the list gives
            return bool((everybody | group) & wanted)
        return bool((group if found.st_gid in self.gids else everybody) & wanted)

    def reaches(self, path: Path, wanted: int) -> bool:
        """Whether the user can walk to a path and has any of these rights there."""
        return self.blocked_at(path) is None and self.may(path.resolve(), wanted)

    def blocked_at(self, path: Path) -> Path | None:
        """The first folder on the way to a path that the user cannot enter."""
        return next((p for p in _ancestors(path) if not self.may(p, _ENTER)), None)


def _require_socket(user: _User, folder: Path) -> None:
    """The user can enter the socket's folder, and can change nothing on the way to it."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    for path in (*_ancestors(existing), existing.resolve()):
        # In a sticky folder such as /tmp nobody renames what is another's.
        if user.may(path, _WRITE) and not path.stat().st_mode & stat.S_ISVTX:
            raise ConfigError(
                f'{path}: user "{user.name}" could put another socket there; as its owner, who '
                f'must be another user, run "chmod go-w {path}"'
            )
    blocked = user.blocked_at(existing / "socket")
    if blocked is not None:
        raise ConfigError(
            f'{blocked}: user "{user.name}" cannot pass it on the way to the socket; give it to a '
            f'group of that user (chgrp) and run "chmod g+x {blocked}"'
        )


def _private(folder: Path, config: RegionConfig) -> Iterator[Path]:
    """What the node's user must not get at, as far as the region has it."""
    data = config.data
    for name in (data.catalog, data.clicks, data.images, data.qrels, config.state):
        if name is not None:
            yield folder / name
    if config.headquarters is not None:
        yield folder / config.headquarters.key
    serve = config.serve
    for name in (serve.token_file, serve.key, serve.rules) if serve else ():
        if name is not None:
            yield folder / name


def _find_user(name: str) -> _User:
    try:
        found = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except KeyError:
        if name.isdecimal():  # a number without a name has no groups
            return _User(name, int(name), frozenset())
        raise ConfigError(f'user "{name}" does not exist; create it, or name another') from None
    groups = os.getgrouplist(found.pw_name, found.pw_gid)
    return _User(name, found.pw_uid, frozenset(groups))


def _ancestors(path: Path) -> Iterator[Path]:
    """Every folder from the root down to the one that holds the path, links resolved."""
    return reversed(path.resolve().parents)


def _has_acl(path: Path) -> bool:
    return _ACL in os.listxattr(path)
