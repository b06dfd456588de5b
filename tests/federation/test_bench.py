"""`make bench` runs on a handful of products; no time is asserted, only what was measured."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import benchmarks.simulation
from benchmarks import encoding, learning, rounds
from benchmarks.__main__ import main
from benchmarks.memory import Alone, alone, peak_of_command
from benchmarks.report import Report
from benchmarks.simulation import federate, make_run, measure_simulation
from benchmarks.startup import measure_startup
from server.history import History
from shared.errors import ConfigError


@pytest.fixture
def finished(run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (run / "run.json").write_text(json.dumps({"seed": 7}))
    for section in (encoding, learning, rounds):  # a process of its own takes seconds to import
        monkeypatch.setattr(section, "alone", in_this_process)
    return run


def in_this_process(threads: int, call: Callable[..., Any], *args: Any) -> Alone[Any]:
    return Alone(call(*args), peak_bytes=2**30, start_bytes=2**29)


def figures(finished: Path, section: str, *, threads: int = 1) -> dict[str, dict[str, Any]]:
    out = finished / "bench.json"
    main([str(finished), "--only", section, "--out", str(out), "--threads", str(threads)])
    return {figure["name"]: figure for figure in json.loads(out.read_text())["figures"]}


def test_encoding_gives_the_vectors_that_others_give(finished: Path) -> None:
    found = figures(finished, "encoding")
    for what in ("texts", "photos", encoding.LARGE_NAME, "a catalog for a new release"):
        assert found[f"{what}, least cosine between the two"]["value"] > 0.999
    times = found["texts, fedshelf to sentence-transformers"]
    assert times["unit"] == "times" and times["target"] == 2 and times["low"] <= times["high"]
    assert times["met"] is (times["value"] >= 2)
    assert sum(name.endswith("peak memory") for name in found) == 8


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's own
def test_all_ways_of_learning_learn_and_are_measured_alike(finished: Path) -> None:
    found = figures(finished, "learning")
    ways = ("fedshelf", "fedshelf, texts", "sentence-transformers", "plain peft loop")
    for way in ways:
        assert found[f"{way}, examples"]["value"] > 0
        assert 0 < found[f"{way}, nDCG@10 after 6 passes"]["value"] <= 1
        assert found[f"{way}, peak memory"]["value"] == 2**30
    pairs = [name for name in found if " to " in name]
    assert len(pairs) == 4 and all(found[name]["target"] == 5 for name in pairs)


def test_a_round_is_never_shorter_than_the_training_in_it(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not Ray, which would stay; that is a slow test's.
    monkeypatch.setattr(rounds, "go_on_under_flower", lambda *given: rounds.go_on(*given[:4]))
    before = sorted(path for path in finished.rglob("*") if "headquarters" in path.parts)
    found = figures(finished, "rounds", threads=2)
    whole = found["2 regions, one process, round / its local training"]
    assert whole["low"] >= 1
    both = found["2 regions, one process, round / its local training and evaluation"]
    assert whole["value"] >= both["value"] >= 1
    shared = found["2 regions, 2 processes, round / local training one after another"]
    assert shared["value"] > 0
    third = found["2 regions, Flower's engine, actors: 2, round / local training one after another"]
    assert third["value"] > 0 and third["target"] is None
    assert found["2 regions, one process, peak memory"]["value"] == 2**30
    sizes = [found[f"an update, {e}"]["value"] for e in ("float32", "float16", "int8")]
    assert sizes == sorted(sizes, reverse=True)
    assert sorted(path for path in finished.rglob("*") if "headquarters" in path.parts) == before


@pytest.mark.slow  # Ray
def test_rounds_go_on_under_flowers_own_engine(run: Path) -> None:
    alone(2, rounds.go_on_under_flower, run, 2, 7, 2, 2)
    records = History(run / "headquarters").rounds()
    assert [len(record.cohort) for record in records] == [2] * 3
    assert all(record.rejected == [] and record.seconds > 0 for record in records)


@pytest.mark.slow  # Ray; `test_engines` runs both engines in `make test`
def test_both_engines_simulate_and_are_measured(tmp_path: Path) -> None:
    report = Report({}, {})
    measure_simulation(report, tmp_path, regions=[3], rounds=1, threads=1)
    found = {figure.name: figure.value for figure in report.figures}
    for engine in ("local", "local, one process", "flower"):
        a_round = found[f"3 regions, {engine}, a client-round"] / 1e3 * 3
        assert 0 < 2 * a_round < found[f"3 regions, {engine}"]
    times = found["3 regions, flower"] / found["3 regions, local"]
    assert found["3 regions, local to flower"] == pytest.approx(times)
    history = History(tmp_path / "3" / "headquarters")
    assert [len(record.cohort) for record in history.rounds()] == [3] * 4
    assert all(record.rejected == [] for record in history.rounds())


def test_more_regions_than_templates_are_regions_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks.simulation, "_TEMPLATES", 2)
    run = make_run(tmp_path / "run", 5)
    federate(run, "local", rounds=1)
    last = History(run / "headquarters").rounds()[-1]
    assert len(set(last.cohort)) == 5 and last.rejected == []


def test_the_peak_of_a_process_is_its_own() -> None:
    held = bytearray(300_000_000)  # by this process, which must not count
    found = alone(0, len, bytes(50_000_000))
    assert found.result == 50_000_000
    assert found.start_bytes < found.peak_bytes < len(held)
    assert found.peak_bytes > found.start_bytes + 40_000_000
    nothing = peak_of_command([sys.executable, "-c", "pass"])
    filled = peak_of_command([sys.executable, "-c", "bytearray(b'x') * 60_000_000"])
    assert nothing + 40_000_000 < filled < len(held)


def test_a_command_that_fails_has_no_peak() -> None:
    with pytest.raises(OSError, match=r"exit\(3\): failed"):
        peak_of_command([sys.executable, "-c", "exit(3)"])


def test_a_command_that_fails_is_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"search .* failed \(error: .*region.toml"):
        measure_startup(Report({}, {}), tmp_path, rounds=5)


def test_a_folder_that_is_no_run_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=f"error: {tmp_path}: no run; make it with"):
        main([str(tmp_path)])
    assert capsys.readouterr().out == ""
