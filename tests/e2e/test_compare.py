"""`fedshelf compare` on real tiny worlds: methods as in `simulate`, and nothing done twice."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from small_world import Call, Stops, options, prepare_run, quiet, write_icecat

from client.worker import get_worker
from simulations.comparison.experiment import compare
from simulations.comparison.measure import QUADRANTS, SETS
from simulations.comparison.spec import Experiment
from simulations.comparison.trainings import adapter_digest
from simulations.processes import Processes
from simulations.queries import is_cold
from simulations.run import Options, simulate
from simulations.world.public import build_public

TINY = Path(__file__).parents[2] / "simulations" / "experiments" / "tiny.toml"


def experiment(*methods: dict[str, Any], search: dict[str, Any] | None = None) -> Experiment:
    what = {"name": "try", "seeds": [7], "rounds": 2, "preset": "tiny", "curves": False}
    asked = {"experiment": what, "data": [{"source": "fashion", "regions": 2}], "method": methods}
    return Experiment.model_validate(asked | ({"search": search} if search else {}))


LOCAL = {"name": "alone", "kind": "local_only"}
FEDERATED = {"name": "fed", "kind": "federated"}
CENTRALIZED = {"name": "pool", "kind": "centralized"}


def trainings(root: Path) -> dict[str, int]:
    """When each round of each training was written."""
    return {
        str(path.relative_to(root)): path.stat().st_mtime_ns
        for path in root.glob("trainings/*/headquarters/rounds/*")
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experiments")


@pytest.fixture(scope="module")
def compared(fashion: Path, root: Path) -> dict[str, Any]:
    """The shipped tiny experiment, complete."""
    from simulations.comparison.spec import read_experiment

    return compare(read_experiment(TINY), root, {"fashion": fashion}, quiet())


@pytest.fixture(scope="module")
def scores(compared: dict[str, Any], root: Path) -> pl.DataFrame:
    return pl.read_parquet(root / "tiny" / "scores.parquet")


# -- figures ---------------------------------------------------------------------------------------


def test_a_method_is_the_same_in_simulate(finished: Path, compared: dict[str, Any]) -> None:
    simulated = json.loads((finished / "result.json").read_text(encoding="utf-8"))
    for mine, theirs in zip(compared["tables"][0]["regions"], simulated["regions"], strict=True):
        assert mine["region"] == theirs["name"]
        assert mine["num_queries"] == theirs["num_test_queries"]
        for name, mean in mine["means"].items():
            if name == "personalized":
                continue  # another run's
            assert mean == pytest.approx(theirs["rows"][name]["ndcg@10"], abs=1e-12), name


def test_every_query_is_scored_by_every_method(scores: pl.DataFrame) -> None:
    keys = ["seed", "region", "set", "query"]
    methods = scores.group_by(keys).agg(pl.col("method").sort().implode())
    assert scores.select(*keys, "method").is_duplicated().sum() == 0
    assert scores.group_by("method").len()["len"].n_unique() == 1
    assert set(scores["set"]) == set(SETS)
    assert methods.height * scores["method"].n_unique() == scores.height


def test_the_four_sets_are_what_they_say(scores: pl.DataFrame, root: Path) -> None:
    (world,) = (root / "worlds").iterdir()
    for name in ("north", "south"):
        worker = get_worker(world / "regions" / name)
        mine = scores.filter(pl.col("region") == name)
        asked = {which: set(mine.filter(pl.col("set") == which)["query"]) for which in SETS}
        trained = set(worker.examples.queries)
        assert asked["seen_seen"] | asked["seen_cold"] <= trained
        assert not trained & (asked["unseen_seen"] | asked["unseen_cold"])
        assert asked["unseen_seen"] | asked["unseen_cold"] == asked["test"]
        clicked = set(worker.region.catalog["title"].gather(worker.examples.product_row))
        assert not any(is_cold(title) for title in clicked)
    tables = compared_sets(scores)
    assert all(tables[which] > 0 for which in QUADRANTS)


def compared_sets(scores: pl.DataFrame) -> dict[str, int]:
    one = scores.filter(pl.col("method") == "federated")
    return {which: one.filter(pl.col("set") == which).height for which in SETS}


def test_everybody_trained_equally_long(compared: dict[str, Any]) -> None:
    equal = compared["tables"][0]["equal_training"]
    assert equal["equal"]
    (world,) = equal["worlds"]
    assert len(set(world["examples"].values())) == 1
    assert world["steps"]["local_only"] == world["steps"]["federated"]
    assert (
        0 <= world["steps"]["federated"] - world["steps"]["centralized"] <= 2 * 2
    )  # regions, rounds


def test_the_curve_is_the_test_figure_of_every_round(
    compared: dict[str, Any], scores: pl.DataFrame
) -> None:
    facts = compared["worlds"][0]["methods"]["federated"]
    tests = scores.filter((pl.col("set") == "test") & (pl.col("method") == "federated"))
    mean = tests.group_by("region").agg(pl.col("ndcg@10").mean())["ndcg@10"].mean()
    assert len(facts["curve"]) == len(facts["bytes"]) == 1 + 2
    assert facts["curve"][facts["best_round"]["all"]] == pytest.approx(mean, abs=1e-12)
    base = compared["tables"][0]["methods"]["zero_shot"]["mean"]
    assert facts["curve"][0] == pytest.approx(base, abs=1e-12)


def test_few_validation_queries_adapt_nothing(compared: dict[str, Any]) -> None:
    rows = compared["tables"][0]["methods"]
    assert rows["personalized"]["mean"] == rows["federated"]["mean"]


class Idle(Processes):
    """Processes that must have nothing to do."""

    def run(self, tasks: Iterable[Mapping[str, Any]]) -> None:
        assert list(tasks) == []


def test_a_region_adapts_as_its_own_worker_does(fashion: Path, tmp_path: Path) -> None:
    """It takes the ensemble: a tiny region has too few clicks for that, unless told otherwise."""
    from client.encoders import resident_encoder
    from simulations.comparison.personal import personalized_adapters

    world, folder = tmp_path / "world", tmp_path / "personalized"
    prepare_run(world, fashion)
    for path in world.glob("regions/*/region.toml"):
        text = path.read_text(encoding="utf-8")
        assert "min_examples = 100" in text
        path.write_text(text.replace("min_examples = 100", "min_examples = 1"), encoding="utf-8")
    fingerprint = json.loads((world / "world.json").read_text(encoding="utf-8"))["fingerprint"]
    encoder = resident_encoder(world / "base", device="cpu", fingerprint=fingerprint)
    encoder.reset(seed=7)
    initial = dict.fromkeys(("north", "south"), encoder.adapter())
    here = Processes(1, threads=1, progress=quiet())
    made = personalized_adapters(world, folder, initial, here)
    assert all(made[name].keys() != initial[name].keys() for name in initial)  # ensembles
    expected = {}
    for region in initial:
        worker = get_worker(world / "regions" / region)
        worker.encoder.load_adapter(initial[region])
        worker.personalize(1)
        expected[region] = worker.encoder.adapter()
    assert {name: adapter_digest(one) for name, one in made.items()} == {
        name: adapter_digest(one) for name, one in expected.items()
    }
    again = personalized_adapters(world, folder, initial, Idle(1, threads=1, progress=quiet()))
    assert {name: adapter_digest(one) for name, one in again.items()} == {
        name: adapter_digest(one) for name, one in made.items()
    }


# -- human judgments -------------------------------------------------------------------------------


def test_human_judgments_score_as_in_simulate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The random preset aligns nothing, and hands out few of the 3,000 that would be drawn.
    monkeypatch.setattr("simulations.world.build_public", partial(build_public, count=40))
    icecat = write_icecat(tmp_path / "icecat")
    simulated = simulate(
        Options(**asdict(options(icecat)) | {"data": f"icecat:{icecat}"}), tmp_path / "run", quiet()
    )
    kinds = ("bm25", "zero_shot", "federated", "centralized")
    methods = [{"name": kind, "kind": kind} for kind in kinds]
    methods += [LOCAL, {"name": "hybrid", "kind": "hybrid", "of": "federated"}]
    what = {"name": "judged", "seeds": [7], "rounds": 2, "preset": "tiny", "curves": False}
    data = [{"source": "icecat", "regions": 2}]
    asked = Experiment.model_validate({"experiment": what, "data": data, "method": methods})
    (table,) = compare(asked, tmp_path / "out", {"icecat": icecat}, quiet())["tables"]
    assert table["union"]["union"]["methods"].keys() == {*kinds, "hybrid"}
    for which, metric in (("union", "ndcg@10"), ("union_judged", "ndcg@10_judged")):
        for name, row in table["union"][which]["methods"].items():
            expected = simulated["union"][name]
            assert row["mean"] == pytest.approx(expected[metric], abs=1e-9), (name, metric)
            assert row["judged@10"] == pytest.approx(expected["judged@10"]), name


# -- nothing twice ---------------------------------------------------------------------------------


def test_what_is_complete_is_found_again(
    fashion: Path, compared: dict[str, Any], root: Path, call: Call
) -> None:
    before = trainings(root)
    answer = call(
        *("compare", "--config", TINY, "--data-dir", f"fashion={fashion}", "--out", root, "--json")
    )
    assert answer.code == 0, answer.err
    again = json.loads(answer.out)
    assert {**again, "command": ""} == {**json.loads(json.dumps(compared)), "command": ""}
    assert json.loads((root / "tiny" / "result.json").read_text(encoding="utf-8")) == again
    assert trainings(root) == before


def test_another_method_costs_its_own_training_alone(
    fashion: Path, compared: dict[str, Any], root: Path
) -> None:
    before = trainings(root)
    other = {"name": "other", "kind": "federated", "set": {"learning-rate": 0.1}}
    found = compare(experiment(FEDERATED, other), root, {"fashion": fashion}, quiet())
    after = trainings(root)
    assert {name: after[name] for name in before} == before
    assert len({name.split("/")[1] for name in after.keys() - before.keys()}) == 1
    rows = found["tables"][0]["methods"]
    assert rows["fed"]["mean"] == compared["tables"][0]["methods"]["federated"]["mean"]
    assert rows["other"]["mean"] != rows["fed"]["mean"]


def test_after_an_interruption_it_goes_on_and_ends_the_same(
    fashion: Path, tmp_path: Path, compared: dict[str, Any]
) -> None:
    asked = experiment(LOCAL, FEDERATED, CENTRALIZED)
    with pytest.raises(KeyboardInterrupt):
        compare(asked, tmp_path, {"fashion": fashion}, Stops("pool"))
    before = trainings(tmp_path)
    assert before
    assert not (tmp_path / "try").exists()
    found = compare(asked, tmp_path, {"fashion": fashion}, quiet())
    assert {name: when for name, when in trainings(tmp_path).items() if name in before} == before
    rows, expected = found["tables"][0]["methods"], compared["tables"][0]["methods"]
    names = {"alone": "local_only", "fed": "federated", "pool": "centralized"}
    assert {names[name]: row["mean"] for name, row in rows.items()} == {
        name: expected[name]["mean"] for name in names.values()
    }


def test_other_data_under_the_same_name_is_another_world(fashion: Path, tmp_path: Path) -> None:
    from simulations.comparison.worlds import cells_of

    other = tmp_path / "fashion"
    other.mkdir()
    text = (fashion / "styles.csv").read_text(encoding="utf-8")
    (other / "styles.csv").write_text(text.replace("Acme", "Akme"), encoding="utf-8")
    digests = [
        cells_of(experiment(FEDERATED), {"fashion": folder})[0].digest
        for folder in (fashion, fashion, other)
    ]
    assert digests[0] == digests[1] != digests[2]


# -- search ----------------------------------------------------------------------------------------


def test_every_method_searches_with_the_same_budget_on_validation_clicks(
    fashion: Path, root: Path, compared: dict[str, Any]
) -> None:
    search = {"keys": {"learning-rate": [1e-9, 0.01]}, "eta": 2, "first-rounds": 1}
    asked = experiment(LOCAL, FEDERATED, CENTRALIZED, search=search)
    found = compare(asked, root, {"fashion": fashion}, quiet())
    methods = found["worlds"][0]["methods"]
    searches = {
        (name, place): one for name in methods for place, one in methods[name]["search"].items()
    }
    assert searches.keys() == {
        ("alone", "north"),
        ("alone", "south"),
        ("fed", "all"),
        ("pool", "all"),
    }
    assert {one["rounds"] for one in searches.values()} == {2}
    for one in searches.values():
        (rung,) = one["rungs"]
        best = max(rung["scores"], key=lambda number: (rung["scores"][number], -int(number)))
        assert one["chosen"] == {"learning-rate": [1e-9, 0.01][int(best)]}


# -- the command -----------------------------------------------------------------------------------


def test_people_get_a_table_and_a_page(
    fashion: Path, compared: dict[str, Any], root: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSHELF_FASHION", str(fashion))
    answer = call("compare", "--config", TINY, "--out", root)
    assert answer.code == 0, answer.err
    for word in ("federated / centralized", "gap closed", "report.html", "zero_shot"):
        assert word in answer.out
    assert (root / "tiny" / "report.html").is_file()


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        ([], 1, "fashion: nobody said where it lies; add --data-dir fashion=DIR"),
        (["--data-dir", "fashion=/nowhere/at/all"], 1, "no such folder; fashion needs one"),
        (["--data-dir", "amazon=/"], 2, "expected fashion=DIR or icecat=DIR"),
        (["--data-dir", "fashion"], 2, "expected fashion=DIR or icecat=DIR"),
    ],
)
def test_a_mistake_is_one_line(
    given: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FEDSHELF_FASHION", raising=False)
    answer = call("compare", "--config", TINY, *given, "--out", tmp_path / "out")
    assert answer.code == code
    assert message in answer.error
    assert not (tmp_path / "out").exists()


def test_ctrl_c_is_no_traceback(
    fashion: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("simulations.comparison.experiment.compare", interrupted)
    answer = call(
        *(
            "compare",
            "--config",
            TINY,
            "--data-dir",
            f"fashion={fashion}",
            "--out",
            tmp_path / "out",
        )
    )
    assert answer.code == 130
    assert "interrupted; what is complete is kept in" in answer.err
    assert "Traceback" not in answer.err
