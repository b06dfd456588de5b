"""Prepared runs of two small regions; every test works on a copy of its own."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_world import prepare_run, start_headquarters, write_fashion

from client.worker import Worker, forget_workers, get_worker
from shared.encoders.encoder import load_encoder


@pytest.fixture(scope="session")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fashion(tmp_path_factory.mktemp("data") / "fashion")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, fashion: Path) -> Path:
    """Two regions, base, key and initial adapter; nobody changes it."""
    run = tmp_path_factory.mktemp("runs") / "prepared"
    prepare_run(run, fashion)
    start_headquarters(run, load_encoder(run / "base", device="cpu"))
    return run


@pytest.fixture
def new_run(prepared: Path, tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Make a run of that name, ready for its first round."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(prepared, tmp_path / name))

    yield copy
    forget_workers()


@pytest.fixture
def run(new_run: Callable[[str], Path]) -> Path:
    return new_run("run")


@pytest.fixture
def workers(run: Path) -> list[Worker]:
    """Of the regions north and south."""
    return [get_worker(run / "regions" / name) for name in ("north", "south")]
