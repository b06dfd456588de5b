"""A complete run to ask about."""

from pathlib import Path

import pytest
from small_world import options, quiet, write_fashion

from simulations.run import simulate


@pytest.fixture(scope="session")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fashion(tmp_path_factory.mktemp("data") / "fashion")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, fashion: Path) -> Path:
    """A complete run of two regions and two rounds; nobody changes it."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    simulate(options(fashion), run, quiet())
    return run
