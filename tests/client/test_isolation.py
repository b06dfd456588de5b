"""Whether a user is kept out of a region, read from modes; and a process that keeps its secrets."""

import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client.isolation import require_separation
from shared.errors import ConfigError
from shared.schema import BaseConfig, HeadquartersConfig, RegionConfig, render_region_toml

STRANGER = "64871"  # a number without a name: in no group, owner of nothing


@pytest.fixture
def region() -> Iterator[Path]:
    """A region as an operator should set it up, on a path anybody may walk to it."""
    with tempfile.TemporaryDirectory(prefix="isolation-") as name:
        Path(name).chmod(0o755)
        folder = Path(name, "north")
        for path in (folder, folder / "state", folder / "images", folder / "enrolment"):
            path.mkdir(mode=0o700)
        config = RegionConfig(
            region="north",
            base=BaseConfig(path="base", fingerprint="0", release_key="0", releases="releases"),
            headquarters=HeadquartersConfig(address="hq.example:443"),
            worker={"socket": "../run/worker.sock"},
        )
        (folder / "region.toml").write_text(render_region_toml(config))
        for file in ("catalog.parquet", "clicks.parquet", "enrolment/node.key"):
            (folder / file).touch(mode=0o600)
        (Path(name) / "run").mkdir()
        (Path(name) / "run").chmod(0o755)
        yield folder


def test_a_stranger_who_reaches_the_socket_alone(region: Path) -> None:
    require_separation(region, STRANGER)
    (region.parent / "run").rmdir()  # before the worker's first start
    require_separation(region, STRANGER)


def test_what_the_folder_does_not_close_the_files_must(region: Path) -> None:
    region.chmod(0o711)
    (region / "enrolment").chmod(0o711)
    require_separation(region, STRANGER)


@pytest.mark.parametrize(
    ("opened", "mode"),
    [
        ("catalog.parquet", 0o604),
        ("clicks.parquet", 0o604),
        ("enrolment/node.key", 0o644),
        ("state", 0o701),
        ("images", 0o704),
    ],
)
def test_a_stranger_who_can_read_it(region: Path, opened: str, mode: int) -> None:
    region.chmod(0o711)
    (region / "enrolment").chmod(0o711)
    (region / opened).chmod(mode)
    with pytest.raises(ConfigError, match=rf'chmod go= {region / opened}"') as failed:
        require_separation(region, STRANGER)
    assert "\n" not in str(failed.value)
    region.chmod(0o700)  # then nobody gets that far
    require_separation(region, STRANGER)


def serve(region: Path, **keys: str) -> None:
    with (region / "region.toml").open("a", encoding="utf-8") as file:
        file.write("\n[serve]\n" + "".join(f'{key} = "{value}"\n' for key, value in keys.items()))


def test_a_service_that_answers_everybody_is_no_separation(region: Path) -> None:
    serve(region)
    with pytest.raises(ConfigError, match=r"serve\.token_file: not set.*; name a file") as failed:
        require_separation(region, STRANGER)
    assert "\n" not in str(failed.value)


def test_a_service_with_a_token_keeps_the_stranger_out(region: Path) -> None:
    serve(region, token_file="serve.token")
    require_separation(region, STRANGER)  # the worker itself will say that it is missing
    (region / "serve.token").touch(mode=0o600)
    require_separation(region, STRANGER)


@pytest.mark.parametrize("opened", ["serve.token", "serve.key", "rules.toml"])
def test_a_stranger_who_can_read_what_a_service_keeps(region: Path, opened: str) -> None:
    serve(region, token_file="serve.token", key="serve.key", rules="rules.toml")
    for name in ("serve.token", "serve.key", "rules.toml"):
        (region / name).touch(mode=0o600)
    region.chmod(0o711)
    require_separation(region, STRANGER)
    (region / opened).chmod(0o644)
    with pytest.raises(ConfigError, match=rf'chmod go= {region / opened}"'):
        require_separation(region, STRANGER)


def test_a_link_is_followed(region: Path) -> None:
    (region / "catalog.parquet").rename(region.parent / "catalog.parquet")
    (region / "catalog.parquet").symlink_to("../catalog.parquet")
    region.chmod(0o711)
    (region.parent / "catalog.parquet").chmod(0o644)
    with pytest.raises(ConfigError, match=r"catalog\.parquet: user"):
        require_separation(region, STRANGER)


def test_its_own_user_is_not_kept_out(region: Path) -> None:
    me = pwd.getpwuid(os.getuid()).pw_name
    with pytest.raises(ConfigError, match="root" if os.getuid() == 0 else "must not"):
        require_separation(region, me)
    with pytest.raises(ConfigError, match="root"):
        require_separation(region, "0")


def test_a_user_that_does_not_exist(region: Path) -> None:
    with pytest.raises(ConfigError, match='user "no-such-user" does not exist'):
        require_separation(region, "no-such-user")


def _close_socket(region: Path) -> None:
    (region.parent / "run").chmod(0o700)


def _close_parent(region: Path) -> None:
    region.parent.chmod(0o700)


@pytest.mark.parametrize(("close", "blocked"), [(_close_socket, "run"), (_close_parent, "")])
def test_a_stranger_who_cannot_reach_the_socket(
    region: Path, close: Callable[[Path], None], blocked: str
) -> None:
    close(region)
    path = str(region.parent / blocked).rstrip("/")
    with pytest.raises(ConfigError, match=rf'chmod g\+x {path}"'):
        require_separation(region, STRANGER)


@pytest.mark.parametrize("blocked", ["run", "."])
def test_a_stranger_who_could_take_the_sockets_place(region: Path, blocked: str) -> None:
    (region.parent / blocked).chmod(0o757)
    with pytest.raises(ConfigError, match="could put another socket there"):
        require_separation(region, STRANGER)
    (region.parent / blocked).chmod(0o1757)  # as /tmp: nobody renames what is another's
    require_separation(region, STRANGER)


HARDENED = """
import os, resource
from client.isolation import harden_process
harden_process()
descriptor = os.open(f"{os.environ['FOLDER']}/made", os.O_CREAT | os.O_WRONLY, 0o666)
print(oct(os.fstat(descriptor).st_mode & 0o777), resource.getrlimit(resource.RLIMIT_CORE))
print(os.stat("/proc/self/mem").st_uid, flush=True)
input()
"""


def test_a_hardened_process(tmp_path: Path) -> None:
    environment = {**os.environ, "FOLDER": str(tmp_path)}
    command = [sys.executable, "-c", HARDENED]
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parents[2],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "0o600 (0, 0)\n"
        assert process.stdout.readline() == "0\n"  # the kernel gave its memory to root
        if os.getuid() != 0:
            with pytest.raises(PermissionError):
                Path(f"/proc/{process.pid}/environ").read_bytes()
        process.communicate("\n")
    assert process.returncode == 0
