"""A region with nothing wrong, for the tests of its check."""

import shutil
from pathlib import Path

import pytest
from small_region import change
from small_world import prepare_run, write_fashion


@pytest.fixture(scope="session")
def prepared_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two regions with nothing trained; nobody changes it."""
    run = tmp_path_factory.mktemp("check") / "run"
    prepare_run(run, write_fashion(run.parent / "fashion"))
    return run


@pytest.fixture
def north(prepared_run: Path, tmp_path: Path) -> Path:
    """A region with nothing wrong but too few gate queries, which is allowed for."""
    folder = shutil.copytree(prepared_run, tmp_path / "run") / "regions" / "north"
    folder.chmod(0o700)
    return change(folder, publication={"min_queries": 2})
