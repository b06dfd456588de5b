"""How a simulation's work is shared out, and how its processes are spoken to."""

import io
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st

from shared.envelope import pack
from shared.errors import ConfigError
from simulations import processes
from simulations.engine import shares
from simulations.processes import Processes, processes_for, read_frame, write_frame


@given(st.lists(st.integers(0, 1000), max_size=40), st.integers(1, 8))
def test_no_process_has_more_than_its_share_and_one_region(weights: list[int], number: int) -> None:
    places = shares(weights, number)
    assert len(places) == len(weights)
    busy = [
        sum(weight for weight, place in zip(weights, places, strict=True) if place == one)
        for one in range(number)
    ]
    assert sum(busy) == sum(weights)
    assert max(busy) <= sum(weights) / number + max(weights, default=0)


def test_the_heaviest_go_first() -> None:
    assert shares([3, 8, 5, 4], 2) == [0, 0, 1, 1]


def machine(
    monkeypatch: pytest.MonkeyPatch, base: Path, *, memory_gib: int, weights_mib: int, cuda: bool
) -> None:
    (base / "text").mkdir(parents=True)
    with (base / "text" / "model.safetensors").open("wb") as file:
        file.truncate(weights_mib * 2**20)  # a hole: no byte of it is written
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": memory_gib * 2**30 // 4096}
    monkeypatch.setattr(processes.os, "sysconf", pages.__getitem__)
    monkeypatch.setattr(processes.torch.cuda, "is_available", lambda: cuda)


@pytest.mark.parametrize(
    ("memory_gib", "weights_mib", "device", "cuda", "threads", "regions", "expected"),
    [
        (24, 50, "auto", False, 2, 4, 2),
        (24, 50, "auto", False, 8, 4, 4),  # no more than there are regions
        (24, 50, "auto", True, 8, 4, 1),
        (24, 50, "cuda", False, 8, 4, 1),
        (24, 50, "cpu", True, 2, 4, 2),
        (16, 50, "cpu", False, 8, 12, 2),  # 8 GiB hold two of 2.7
        (24, 1500, "cpu", False, 8, 4, 1),
        (2, 50, "cpu", False, 8, 4, 1),
    ],
)
def test_as_many_processes_as_pay(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    memory_gib: int,
    weights_mib: int,
    device: str,
    cuda: bool,
    threads: int,
    regions: int,
    expected: int,
) -> None:
    machine(monkeypatch, tmp_path, memory_gib=memory_gib, weights_mib=weights_mib, cuda=cuda)
    assert processes_for(tmp_path, device=device, threads=threads, regions=regions) == expected


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none()), st.binary())
def test_a_frame_is_read_as_it_was_written(header: dict[str, Any], body: bytes) -> None:
    stream = io.BytesIO()
    write_frame(stream, header, body)
    write_frame(stream, {}, b"")
    stream.seek(0)
    assert read_frame(stream) == (header, body)
    assert read_frame(stream) == ({}, b"")
    assert read_frame(stream) is None


@given(st.data())
def test_a_torn_frame_is_no_frame(data: st.DataObject) -> None:
    stream = io.BytesIO()
    write_frame(stream, {"task": "message"}, b"content")
    whole = stream.getvalue()
    torn = whole[: data.draw(st.integers(1, len(whole) - 1))]
    with pytest.raises(EOFError):
        read_frame(io.BytesIO(torn))


class Heard:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def bar(self, title: str, place: int = 0) -> Any:
        return lambda done, total: None

    def line(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def two() -> Any:
    with Processes(2, threads=1, progress=Heard()) as started:  # type: ignore[arg-type]
        yield started


def test_nothing_to_do_starts_nothing() -> None:
    with Processes(2, threads=1, progress=Heard()) as idle:  # type: ignore[arg-type]
        idle.run([])
        assert idle.peak_bytes() == 0


def test_an_error_over_there_is_the_same_error_here(two: Processes, tmp_path: Path) -> None:
    task = {"task": "personalize", "region": str(tmp_path / "nobody"), "given": "", "path": ""}
    with pytest.raises(ConfigError, match="nobody") as remote:
        two.run([task])
    with pytest.raises(ConfigError) as here:
        Processes(1, threads=1, progress=Heard()).run([task])  # type: ignore[arg-type]
    assert str(remote.value) == str(here.value)
    two.run([{"task": "forget", "below": str(tmp_path)}])  # it goes on answering


def test_what_is_logged_over_there_is_logged_here(
    two: Processes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fedshelf")
    future = two.submit(0, {"task": "federation", "regions": 1, "run_config": {"run-dir": ""}})
    assert future.result() == ({}, b"")
    asked = {"task": "message", "node": 2, "kind": "query.describe", "group": ""}
    header, _ = two.submit(0, asked, pack(RecordDict())).result()
    assert header["refused"][1] == "ConfigError"
    assert "run-dir" in caplog.text


BUSY = """
import sys, time
from simulations import node
node.TASKS["wait"] = lambda state, header, body: (state.progress.line("begun"), time.sleep(600))
sys.argv = ["node", "1"]
node.main()
"""


def test_a_process_that_nobody_asks_any_more_ends_in_the_middle_of_a_task() -> None:
    command = [sys.executable, "-c", BUSY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as busy:
        try:
            assert busy.stdin is not None
            assert busy.stdout is not None
            write_frame(busy.stdin, {"task": "wait"})
            assert read_frame(busy.stdout) == ({"line": "begun"}, b"")
            busy.stdin.close()  # as when whoever started it was killed
            assert busy.wait(60) == 0
        finally:
            busy.kill()
