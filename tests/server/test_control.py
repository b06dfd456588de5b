"""Headquarters' questions to Flower, as far as they need no SuperLink; the rest is in tests/e2e."""

import os
import subprocess
import tomllib
from pathlib import Path

import pytest

from server import control
from server.control import Control, stage_app
from shared.config import default_run_config
from shared.errors import ConfigError, FederationError
from shared.supervise import flower_environment, program_beside_python

ROOT = Path(__file__).parents[2]


def test_the_staged_app_is_one_that_flower_bundles(tmp_path: Path) -> None:
    app = stage_app(tmp_path / "app")
    staged = {path.relative_to(app).as_posix() for path in app.rglob("*") if path.is_file()}
    for package in ("server", "client", "shared"):
        sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*.py")}
        assert sources <= staged
        staged -= sources
    assert staged == {"pyproject.toml"}
    config = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert config == default_run_config()
    command = [program_beside_python("flwr"), "build", "--app", str(app)]
    environment = flower_environment(tmp_path / "home")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("*.fab"))) == 1


def test_staging_again_leaves_nothing_of_the_app_before(tmp_path: Path) -> None:
    app = stage_app(tmp_path / "app")
    (app / "server" / "old.py").write_text("")
    stage_app(app)
    assert not (app / "server" / "old.py").exists()
    assert (app / "server" / "app.py").is_file()
    stage_app(tmp_path / "other")  # the next writer clears away what was set aside
    assert sorted(os.listdir(tmp_path)) == [".lock", "app", "other"]


def test_an_installed_wheel_has_its_project_file_in_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("server", "client", "shared"):
        (tmp_path / "site" / package).mkdir(parents=True)
        (tmp_path / "site" / package / "one.py").write_text("")
    monkeypatch.setattr(control, "_ROOT", tmp_path / "site")
    with pytest.raises(ConfigError, match=r"pyproject.toml is missing; install fedshelf again"):
        stage_app(tmp_path / "app")
    (tmp_path / "site" / "shared" / "pyproject.toml").write_text("[project]\n")
    app = stage_app(tmp_path / "app")
    assert (app / "pyproject.toml").read_text() == "[project]\n"
    assert not (app / "shared" / "pyproject.toml").exists()


@pytest.mark.parametrize(
    "value", ["", 'it\'s "odd" = [x] \\ ü 𝄞', 0, -7, 10**15, 0.1, 1e-30, 1e300, True, False]
)
def test_a_run_config_arrives_as_it_was(value: str | int | float | bool) -> None:
    read = tomllib.loads(f'"the key" = {control._toml("the key", value)}')["the key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (float("nan"), "nan, must be finite"),
        (float("inf"), "inf, must be finite"),
        ("two\nlines", "characters that cannot be printed"),
        ([1], r"\[1\], expected text, number or true/false"),
        (None, "None, expected text"),
    ],
)
def test_what_flower_does_not_carry_is_refused(value: object, found: str) -> None:
    with pytest.raises(ConfigError, match=f'run config: "key" .*{found}'):
        control._toml("key", value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stdout", "stderr", "line"),
    [
        ('{"success": false, "error-message": "Using X\\n\\n[code: 1] No."}', "", "[code: 1] No."),
        ('{"success": false, "error-message": "No."}', "", "No."),
        ('{"success": false}', "", "no reason given"),
        ("", "╭─ Error ─╮\n│ \x1b[91mNot   so\x1b[0m │\n╰─────────╯", "Error Not so"),
        ("not json", "", "not json"),
    ],
)
def test_whatever_flower_says_becomes_one_line(stdout: str, stderr: str, line: str) -> None:
    with pytest.raises(FederationError) as raised:
        control._answer(stdout, stderr)
    assert str(raised.value) == f"Flower: {line}"


def test_a_folder_without_headquarters_is_named_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r'nowhere: .*start it with "fedshelf server up"'):
        Control(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "key.pub: No such file or directory, expected an ECDSA public key"),
        (b"no key", "key.pub: not an ECDSA public key"),
        (
            b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f",
            "key.pub: another kind of key, Flower takes only an ECDSA public key",
        ),
    ],
)
def test_a_wrong_key_is_refused_before_flower_sees_it(
    tmp_path: Path, content: bytes | None, found: str
) -> None:
    (tmp_path / "config.toml").write_text("")
    if content is not None:
        (tmp_path / "key.pub").write_bytes(content)
    with pytest.raises(ConfigError, match=found):
        Control(tmp_path).register(tmp_path / "key.pub", "region-north")


def test_damaged_names_are_not_read_as_none(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "nodes.json").write_text('{"names": {"x": 1}}')
    with pytest.raises(FederationError, match=r"nodes.json: damaged .*restore it from a backup"):
        Control(tmp_path)._names()
