"""The bundle Flower sends to every node: it builds, holds the apps, and works by itself."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from shared.config import default_run_config

ROOT = Path(__file__).parents[2]
MAX_BYTES = 10 * 2**20  # Flower refuses more
OFFLINE = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    command = [str(Path(sys.executable).with_name("flwr")), "build", "--app", str(ROOT)]
    environment = {**os.environ, **OFFLINE, "FLWR_HOME": str(folder / "home")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.fab")
    return built


def test_it_holds_the_apps_and_nothing_of_a_simulation(bundle: Path) -> None:
    assert bundle.stat().st_size < MAX_BYTES
    names = zipfile.ZipFile(bundle).namelist()
    assert {"server/app.py", "client/app.py", "shared/wire.py", "pyproject.toml"} <= set(names)
    ours = [name for name in names if name.endswith(".py")]
    assert {name.partition("/")[0] for name in ours} == {"server", "client", "shared"}


def test_its_apps_load_from_it_with_their_defaults(bundle: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(bundle).extractall(tmp_path)
    code = (
        "import client.app, server.app, shared.config as config; "
        "print(client.app.__file__); print(server.app.app, client.app.app); "
        "print(config.default_run_config())"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    place, apps, config = done.stdout.splitlines()
    assert Path(place) == tmp_path / "client" / "app.py"
    assert "ServerApp" in apps
    assert "ClientApp" in apps
    assert config == str(default_run_config())
