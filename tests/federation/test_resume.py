"""A run that was interrupted and given again ends as if nothing had happened."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_world import Stops, assert_same_adapters, federation, options, quiet, run_config

from client.worker import forget_workers, get_worker
from server.history import History
from shared.errors import ConfigError, DataError, FedshelfError
from simulations.baselines import baselines_folder, central_pool, local_pool, train_alone
from simulations.engine import run_engine
from simulations.run import simulate

NewRun = Callable[[str], Path]
STAGES = (
    "data",
    "base",
    "clicks",
    "federated",
    "baselines",
    "release",
    "index",
    "evaluation",
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, fashion: Path) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    simulate(options(fashion), run, quiet())
    return run


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """What must be the same again: all but times, memory and where it was written."""
    kept = {k: v for k, v in result.items() if k not in ("seconds", "peak_rss_bytes", "command")}
    kept["options"] = {k: v for k, v in result["options"].items() if k != "out"}
    kept["rounds"] = [{k: v for k, v in row.items() if k != "seconds"} for row in result["rounds"]]
    return kept


def ctrl_c_in_round_two(history: History) -> Callable[[int, int], None]:
    def on_step(done: int, total: int) -> None:
        if history.rounds()[-1].round == 1 and done == 1:
            raise KeyboardInterrupt

    return on_step


def test_a_federation_interrupted_in_a_round_ends_bit_equal(new_run: NewRun) -> None:
    whole, cut = new_run("whole"), new_run("cut")
    run_engine("local", run_config(whole), num_regions=2)
    history, south = History(cut / "headquarters"), get_worker(cut / "regions" / "south")
    south.on_step = ctrl_c_in_round_two(history)
    with pytest.raises(KeyboardInterrupt):
        run_engine("local", run_config(cut), num_regions=2)
    assert [record.round for record in history.rounds()] == [0, 1]
    forget_workers()
    run_engine("local", run_config(cut), num_regions=2)
    assert_same_adapters(whole, cut)


def test_a_baseline_interrupted_in_a_pass_ends_bit_equal(new_run: NewRun) -> None:
    run = new_run("run")
    workers = [get_worker(run / "regions" / name) for name in ("north", "south")]
    for pool in (local_pool(workers[0]), central_pool(workers)):
        kept = {}
        for name in ("whole", "cut"):
            history = History(baselines_folder(run / name, pool.name))
            initial = History(run / "headquarters").adapter(0)
            history.start(initial, base_fingerprint="f")
            kept[name] = history
        encoder, config = workers[0].encoder, federation(run)
        train_alone(pool, encoder, config, kept["whole"])
        with pytest.raises(KeyboardInterrupt):
            stop = ctrl_c_in_round_two(kept["cut"])
            train_alone(pool, encoder, config, kept["cut"], on_step=stop)
        assert len(kept["cut"].rounds()) == 2
        train_alone(pool, encoder, config, kept["cut"])
        assert_same_adapters(run / "whole", run / "cut")


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_interrupted_before_a_stage_goes_on(
    stage: str, tmp_path: Path, fashion: Path, uninterrupted: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        simulate(options(fashion), run, Stops(stage))
    assert not (run / "result.json").exists()
    result = simulate(options(fashion), run, quiet())
    assert figures(result) == figures(json.loads((uninterrupted / "result.json").read_text()))
    assert_same_adapters(run, uninterrupted)
    assert (run / "report.html").is_file()


def test_a_complete_run_is_left_as_it_is(fashion: Path, uninterrupted: Path) -> None:
    def stamps() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}

    before = stamps()
    result = simulate(options(fashion), uninterrupted, quiet())
    assert result == json.loads((uninterrupted / "result.json").read_text())
    assert stamps() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 8), ("rounds", 3), ("regions", 3), ("partition", "category"), ("engine", "flower")],
)
def test_other_options_on_a_run_are_refused_by_name(
    name: str, value: object, fashion: Path, uninterrupted: Path
) -> None:
    with pytest.raises(ConfigError, match=f"was made with --{name} .*, now it is {value}; choose"):
        simulate(options(fashion, **{name: value}), uninterrupted, quiet())


def test_until_the_data_is_complete_the_options_are_free(tmp_path: Path, fashion: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        simulate(options(fashion, seed=8), run, Stops("clicks"))
    with pytest.raises(KeyboardInterrupt):
        simulate(options(fashion, seed=9), run, Stops("federated"))
    assert json.loads((run / "run.json").read_text())["seed"] == 9


def test_what_is_not_a_run_folder_is_refused_and_left_alone(tmp_path: Path, fashion: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear reader")
    with pytest.raises(ConfigError, match="is not empty and not a run folder"):
        simulate(options(fashion), tmp_path, quiet())
    with pytest.raises(ConfigError, match=r"letter\.txt: is not empty and not a run folder"):
        simulate(options(fashion), tmp_path / "letter.txt", quiet())
    with pytest.raises(ConfigError, match="choose another --out"):
        simulate(options(fashion), tmp_path / "letter.txt" / "run", quiet())
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("text", ["", "[1, 2]", "{"])
def test_damaged_options_of_a_run_are_one_line(text: str, tmp_path: Path, fashion: Path) -> None:
    (tmp_path / "world.json").write_text("{}")
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.json: damaged"):
        simulate(options(fashion), tmp_path, quiet())


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"data": "fashion:nowhere"}, DataError),
        ({"data": "parquet:here"}, ConfigError),
        ({"partition": "colour"}, ConfigError),
        ({"partition": "dirichlet:much"}, ConfigError),
        ({"regions": 100}, DataError),
        ({"preset": "huge"}, ConfigError),
        ({"device": "cuda"}, ConfigError),
    ],
)
def test_a_mistake_leaves_nothing_behind(
    change: dict[str, object], error: type[FedshelfError], tmp_path: Path, fashion: Path
) -> None:
    if change == {"device": "cuda"} and torch.cuda.is_available():
        pytest.skip("a GPU answers here")
    with pytest.raises(error):
        simulate(options(fashion, **change), tmp_path / "run", quiet())
    assert list(tmp_path.iterdir()) == []


def test_a_region_without_test_queries_is_refused_before_training(
    tmp_path: Path, fashion: Path
) -> None:
    """Of the five types, all that the test queries ask for are outside one region."""
    asked = options(fashion, regions=3, partition="category")
    with pytest.raises(DataError, match=r"^region north: .* no test query; lower --regions"):
        simulate(asked, tmp_path / "run", quiet())
    assert list(tmp_path.iterdir()) == []
