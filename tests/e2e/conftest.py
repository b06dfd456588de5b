"""The command line, called as a shell calls it but in this process, and a run to ask about."""

import sys
from pathlib import Path

import pytest
from small_world import Answer, Call, options, quiet, write_fashion

import fedshelf
from simulations.run import simulate


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Call `fedshelf` with these arguments."""

    def run(*arguments: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["fedshelf", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            fedshelf.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Answer(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fashion(tmp_path_factory.mktemp("data") / "fashion")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, fashion: Path) -> Path:
    """A complete run of two regions and two rounds; nobody changes it."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    simulate(options(fashion), run, quiet())
    return run
