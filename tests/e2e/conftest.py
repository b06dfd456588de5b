"""What several files ask about: a complete run, and a federation of three regions to start."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from deployment import (
    Deployment,
    Reference,
    assert_nothing_half_written,
    make_reference,
    open_folder,
    require_nginx,
)
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


@pytest.fixture(scope="session")
def reference(fashion: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Three regions, and what their federation must come to."""
    return make_reference(tmp_path_factory.mktemp("reference") / "run", fashion, regions=3)


@pytest.fixture(scope="module")
def deployment(reference: Reference) -> Iterator[Deployment]:
    """A place for those regions and their headquarters; nothing is in it yet."""
    require_nginx()
    with open_folder() as folder, Deployment(folder, reference) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def opened(deployment: Deployment) -> Deployment:
    """The same, with every region admitted and everything running."""
    deployment.open()
    return deployment


@pytest.fixture
def nothing_half_written(opened: Deployment) -> Iterator[None]:
    """After the test everything runs, and nothing was left unfinished."""
    yield
    assert_nothing_half_written(opened)
