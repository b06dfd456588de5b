"""What many tests share: a cache of their own, one tiny real encoder, a few photos."""

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from small_world import Answer, Call

import fedshelf
from shared.adapter import Adapter
from shared.encoders.encoder import Encoder, load_encoder
from shared.encoders.presets import PRESETS, make_base
from shared.encoders.public import PublicSlice

# Results are bit-equal only for the same number of threads, so it is fixed; and one, because these
# models are tiny: two threads that wait for each other on a busy machine take four times as long.
torch.set_num_threads(1)

# A busy machine is no failure: no test asserts a time, and so hypothesis must not either.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    """What is under test may set the number of threads; the next test starts from one again."""
    yield
    torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where every test must run, one that is skipped has failed, unless it is about a GPU."""
    report = yield
    if report.skipped and os.environ.get("FEDSHELF_MUST_RUN") and "GPU" not in why(report):
        report.outcome = "failed"
        report.longrepr = f"skipped, but FEDSHELF_MUST_RUN is set: {why(report)}"
    return report


def why(report: pytest.TestReport) -> str:
    """The reason of a test that was skipped."""
    return str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or writes the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FEDSHELF_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def tiny_base(cache: Path) -> Path:
    """The folder of the random base, made once."""
    return make_base(PRESETS["tiny"], PublicSlice([], []), seed=0)[0]


@pytest.fixture(scope="session")
def _resident(tiny_base: Path) -> Encoder:
    return load_encoder(tiny_base, device="cpu")


@pytest.fixture
def encoder(_resident: Encoder) -> Encoder:
    """The tiny encoder with a fresh adapter."""
    _resident.reset(seed=0)
    return _resident


@pytest.fixture
def trained(encoder: Encoder) -> Adapter:
    """An adapter that has moved away from the fresh one in every number."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in encoder.adapter().items()
    }


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six small photos of different size and content."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((40 + number, 48)).save(path)
    return paths


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
