"""Under which users a region's processes run, what each is handed, and what is refused before.

Needs root, to give files away; the users are ones that every Debian has, none of them is changed.
"""

import os
import pwd
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client import processes
from client.processes import LEASE_S, region_processes
from shared.errors import ConfigError
from shared.schema import (
    BaseConfig,
    HeadquartersConfig,
    RegionConfig,
    load_region_config,
    render_region_toml,
)
from shared.supervise import Process

OWNER, NODE, APP = "sync", "daemon", "nobody"  # the first is in the group of the last
OUTSIDER = "games"  # in nobody's group
NAMELESS = 64871  # a number without a name
FILES = ("node/ca.crt", "node/node.key", "node/superexec.secret", "app/superexec.secret")


def why_not() -> str:
    """What this machine lacks; "" if nothing."""
    if os.geteuid() != 0:
        return "needs root, to give files to other users"
    known = {user.pw_name: user for user in pwd.getpwall()}
    gone = {OWNER, NODE, APP, OUTSIDER} - known.keys()
    if gone:
        return f"needs users that are not here: {sorted(gone)}"
    if known[OWNER].pw_gid != known[APP].pw_gid:
        return f"needs {OWNER} in the group of {APP}"
    return ""


pytestmark = pytest.mark.skipif(why_not() != "", reason=why_not())


@pytest.fixture
def region() -> Iterator[Path]:
    """An enrolled region of OWNER's, whose files are closed and which anybody may walk through."""
    with tempfile.TemporaryDirectory(prefix="processes-") as name:
        Path(name).chmod(0o755)
        folder = Path(name, "north")
        config = RegionConfig(
            region="north",
            base=BaseConfig(path="base", fingerprint="0", release_key="0", releases="releases"),
            headquarters=HeadquartersConfig(address="hq.example:443"),
            worker={"socket": "../run/worker.sock"},
        )
        for path in (folder, folder / "state", folder / "enrolment"):
            path.mkdir(mode=0o700)
        folder.chmod(0o711)
        (folder / "region.toml").write_text(render_region_toml(config), encoding="utf-8")
        for file in ("catalog.parquet", "clicks.parquet"):
            (folder / file).touch(mode=0o600)
        for file in ("ca.crt", "node.key"):
            (folder / "enrolment" / file).write_text(f"the {file}", encoding="utf-8")
        for path in (folder, *folder.rglob("*")):
            give(path, OWNER)
        Path(name, "run").mkdir(mode=0o755)
        yield folder


def give(path: Path, user: str) -> None:
    found = pwd.getpwnam(user)
    os.chown(path, found.pw_uid, found.pw_gid)


def start(
    region: Path, node_user: str | None = NODE, app_user: str | None = APP
) -> dict[str, Process]:
    config = load_region_config(region)
    found = region_processes(region, config, node_user=node_user, app_user=app_user)
    return {process.name: process for process in found}


def whose(path: Path) -> tuple[str, str]:
    """Owner and mode."""
    return path.owner(), oct(stat.S_IMODE(path.lstat().st_mode))


def can_read(user: str, path: Path) -> bool:
    """What the kernel says to a process of that user."""
    found = pwd.getpwnam(user)
    groups = os.getgrouplist(user, found.pw_gid)
    done = subprocess.run(
        ["/bin/cat", path],
        user=found.pw_uid,
        group=found.pw_gid,
        extra_groups=groups,
        cwd="/",
        capture_output=True,
    )
    return done.returncode == 0


# -- who runs what ---------------------------------------------------------------------------------


def test_each_process_has_its_user(region: Path) -> None:
    found = start(region)
    assert {name: process.user for name, process in found.items()} == {
        "worker": OWNER,
        "supernode": NODE,
        "superexec": APP,
    }
    group = found["worker"].argv[found["worker"].argv.index("--group") + 1]
    assert group == str(pwd.getpwnam(APP).pw_gid)  # so that the app reaches the socket
    assert found["supernode"].cwd == region / "node"
    assert found["superexec"].cwd == region / "app"


def test_a_killed_supernode_is_started_again_only_when_everybody_knows_that_it_is_gone(
    region: Path,
) -> None:
    from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, HEARTBEAT_PATIENCE

    lease_s = HEARTBEAT_DEFAULT_INTERVAL * HEARTBEAT_PATIENCE  # how long Flower believes in it
    looks_every_s = 3.0  # a ServerApp that waits for replies
    assert lease_s == LEASE_S
    assert start(region)["supernode"].restart_after_s > lease_s + 3 * looks_every_s


def test_each_user_owns_what_it_is_handed_and_nobody_else_may_enter(region: Path) -> None:
    start(region)
    assert whose(region / "node") == (NODE, "0o700")
    assert whose(region / "app") == (APP, "0o700")
    for name in FILES:
        assert whose(region / name) == (NODE if name.startswith("node/") else APP, "0o600")
    handed = {str(path.relative_to(region)) for path in (region / "app").iterdir()}
    assert handed == {"app/superexec.secret"}  # no key
    assert (region / "node" / "node.key").read_text() == "the node.key"
    assert (region / "enrolment" / "node.key").owner() == OWNER


def test_the_kernel_agrees(region: Path) -> None:
    start(region)
    readable = {user: {f for f in FILES if can_read(user, region / f)} for user in (NODE, APP)}
    assert readable == {NODE: set(FILES[:3]), APP: set(FILES[3:])}
    assert not any(can_read(OWNER, region / file) for file in FILES)
    assert can_read(OWNER, region / "enrolment" / "node.key")


def test_both_know_one_secret_and_every_start_has_another(region: Path) -> None:
    def secrets() -> set[bytes]:
        start(region)
        return {(region / home / "superexec.secret").read_bytes() for home in ("node", "app")}

    first, second = secrets(), secrets()
    assert (len(first), len(second), len(first | second)) == (1, 1, 2)


def test_folders_that_are_there_already_are_closed_and_given_away(region: Path) -> None:
    for name in ("node", "app"):
        (region / name).mkdir()
        (region / name).chmod(0o755)
    (region / "node" / "node.key").write_text("of the last enrolment", encoding="utf-8")
    start(region)
    assert whose(region / "node") == (NODE, "0o700")
    assert whose(region / "app") == (APP, "0o700")
    assert whose(region / "node" / "node.key") == (NODE, "0o600")
    assert (region / "node" / "node.key").read_text() == "the node.key"


def test_without_users_nothing_is_given_away(region: Path) -> None:
    found = start(region, None, None)
    assert {process.user for process in found.values()} == {None}
    assert "--group" not in found["worker"].argv
    for path in (region / "node", region / "app", *(region / file for file in FILES)):
        assert whose(path) == ("root", "0o700" if path.is_dir() else "0o600")


# -- what is refused -------------------------------------------------------------------------------


def untouched(region: Path) -> None:
    """As the fixture made it."""


def give_to_root(region: Path) -> None:
    os.chown(region, 0, 0)


def give_to_a_number(region: Path) -> None:
    os.chown(region, NAMELESS, NAMELESS)


def give_to_an_outsider(region: Path) -> None:
    give(region, OUTSIDER)


def open_the_key(region: Path) -> None:
    for path, mode in (("", 0o711), ("enrolment", 0o711), ("enrolment/node.key", 0o644)):
        (region / path).chmod(mode)


def close_the_region(region: Path) -> None:
    region.chmod(0o700)


def forget_headquarters(region: Path) -> None:
    config = load_region_config(region).model_copy(update={"headquarters": None})
    (region / "region.toml").write_text(render_region_toml(config), encoding="utf-8")


REFUSED: dict[str, tuple[Callable[[Path], None], str | None, str | None, str]] = {
    "the same user": (untouched, NODE, NODE, f'are both "{NODE}"; name two users'),
    "no app user": (untouched, NODE, None, "belong together; give both or neither"),
    "no node user": (untouched, None, APP, "belong together; give both or neither"),
    "an unknown node user": (untouched, "no-one", APP, 'user "no-one" does not exist; create'),
    "an unknown app user": (untouched, NODE, "no-one", 'user "no-one" does not exist; create'),
    "root": (untouched, "root", APP, 'user "root" is root, who reads everything'),
    "the owner as node user": (untouched, OWNER, APP, f'user "{OWNER}" can get at it'),
    "the owner as app user": (untouched, NODE, OWNER, f'user "{OWNER}" can get at it'),
    "a key that others may read": (open_the_key, NODE, APP, r'chmod go= .*enrolment/node\.key"'),
    "a folder they cannot pass": (
        close_the_region,
        NODE,
        APP,
        f'user "{NODE}" cannot pass it on the way to its files in .*chmod go\\+x',
    ),
    "root's folder": (give_to_root, NODE, APP, r"north: belongs to root; give .*chown -R USER"),
    "a number's folder": (give_to_a_number, NODE, APP, f"belongs to {NAMELESS}, which is no user"),
    "an outsider's folder": (give_to_an_outsider, NODE, APP, f"usermod -aG nogroup {OUTSIDER}"),
    "not enrolled": (forget_headquarters, NODE, APP, r"no \[headquarters\]; enrol with"),
}


def assert_refused(region: Path, node_user: str | None, app_user: str | None, why: str) -> None:
    """Refused in one line, and nothing was made or given away before."""
    before = {path: path.lstat() for path in (region, *sorted(region.rglob("*")))}
    with pytest.raises(ConfigError, match=why) as failed:
        start(region, node_user, app_user)
    assert "\n" not in str(failed.value)
    after = {path: path.lstat() for path in (region, *sorted(region.rglob("*")))}
    assert after.keys() == before.keys()
    for path, found in after.items():
        assert (found.st_uid, found.st_mode) == (before[path].st_uid, before[path].st_mode), path


@pytest.mark.parametrize(
    ("spoil", "node_user", "app_user", "why"), REFUSED.values(), ids=REFUSED.keys()
)
def test_what_keeps_nobody_apart_is_refused(
    region: Path,
    spoil: Callable[[Path], None],
    node_user: str | None,
    app_user: str | None,
    why: str,
) -> None:
    spoil(region)
    assert_refused(region, node_user, app_user, why)


@pytest.mark.parametrize("name", ["node", "app"])
def test_a_link_in_the_way_is_not_followed(region: Path, name: str) -> None:
    elsewhere = region.parent / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    (region / name).symlink_to(elsewhere)
    assert_refused(region, NODE, APP, rf"north/{name}: a link; remove it")
    assert whose(elsewhere) == ("root", "0o755")
    assert list(elsewhere.iterdir()) == []


def test_a_link_in_the_place_of_a_file_is_replaced(region: Path) -> None:
    elsewhere = region.parent / "elsewhere"
    elsewhere.write_text("keep", encoding="utf-8")
    (region / "node").mkdir()
    for name in ("node.key", "superexec.secret"):
        (region / "node" / name).symlink_to(elsewhere)
    start(region)
    assert elsewhere.read_text(encoding="utf-8") == "keep"
    assert elsewhere.owner() == "root"
    assert whose(region / "node" / "node.key") == (NODE, "0o600")


def test_who_is_not_root_cannot_name_users(region: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.os, "geteuid", lambda: 1000)
    assert_refused(region, NODE, APP, "--node-user needs root, .*; or use the systemd units")
