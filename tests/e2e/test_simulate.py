"""The whole journey: `fedshelf simulate` from a folder of products to search results."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from small_world import NUM_PROBLEMS, Call, write_fashion

ROWS = ("random", "bm25", "zero_shot", "local_only", "federated", "hybrid", "centralized")
METRICS = {"ndcg@10", "recall@10", "mrr@10"}
STAGES = ("data", "base", "clicks", "federated", "baselines", "release", "index")


def arguments(fashion: Path, out: Path, **changes: object) -> list[str | Path]:
    asked = {
        "data": f"fashion:{fashion}",
        "preset": "tiny",
        "rounds": 2,
        "regions": 2,
        "threads": 1,
    }
    asked |= {"device": "cpu", **changes}
    named = [part for name, value in asked.items() for part in (f"--{name}", str(value))]
    return ["simulate", *named, "--out", out]


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """What must be the same again: all but times, memory and where it was written."""
    kept = {k: v for k, v in result.items() if k not in ("seconds", "peak_rss_bytes", "command")}
    kept["options"] = {k: v for k, v in result["options"].items() if k != "out"}
    kept["rounds"] = [{k: v for k, v in row.items() if k != "seconds"} for row in result["rounds"]]
    return kept


@pytest.fixture(scope="module")
def result(finished: Path) -> dict[str, Any]:
    return dict(json.loads((finished / "result.json").read_text(encoding="utf-8")))


# -- the run folder --------------------------------------------------------------------------------


def test_a_run_leaves_the_files_that_the_design_names(finished: Path) -> None:
    for name in ("result.json", "report.html", "run.json", "world.json", "base/BASE.json"):
        assert (finished / name).is_file(), name
    headquarters = finished / "headquarters"
    names = ("initial.safetensors", "rounds/0001.safetensors", "rounds/0002.safetensors")
    for name in (*names, "history.json", "releases/current.json", "releases/current.json.sig"):
        assert (headquarters / name).is_file(), name
    release = headquarters / "releases" / "1"
    adapters = [
        f"{tower}/adapter_{part}"
        for tower in ("text", "image")
        for part in ("config.json", "model.safetensors")
    ]
    for name in ("MANIFEST.json", "MANIFEST.sig", "README.md", "fusion.safetensors", *adapters):
        assert (release / name).is_file(), name
    for region in ("north", "south"):
        folder = finished / "regions" / region
        brought = ("region.toml", "catalog.parquet", "clicks.parquet", "qrels.parquet")
        for name in (*brought, "state/current", "state/releases/1/MANIFEST.json"):
            assert (folder / name).is_file(), name
        (index,) = (path for path in (folder / "state" / "indexes").iterdir() if path.is_dir())
        assert {path.name for path in index.iterdir()} >= {"index.faiss", "ids.npy", "INDEX.json"}
    assert not [path for path in finished.rglob("*") if path.name.endswith(".partial")]


def test_every_product_is_in_one_region_and_its_photo_beside_it(finished: Path) -> None:
    catalogs = {
        path.parent.name: pl.read_parquet(path)
        for path in finished.glob("regions/*/catalog.parquet")
    }
    ids = pl.concat([catalog["product_id"] for catalog in catalogs.values()])
    assert ids.is_duplicated().sum() == 0
    for region, catalog in catalogs.items():
        images = {path.name for path in (finished / "regions" / region / "images").iterdir()}
        assert images == set(catalog["image"].drop_nulls())


def test_no_test_query_was_ever_asked_in_training(finished: Path) -> None:
    asked, tested = set(), set()
    for region in (finished / "regions").iterdir():
        asked |= set(pl.read_parquet(region / "clicks.parquet")["query"])
        tested |= set(pl.read_parquet(region / "qrels.parquet")["query"])
    assert asked
    assert tested
    assert not asked & tested


def test_the_report_is_self_contained(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href|action)\s*=\s*["']?\s*(https?:)?//""", page)
    assert not re.search(r"@import|url\(\s*[\"']?(https?:)?//", page)
    assert "data:image/" in page
    assert all(region in page for region in ("north", "south"))


# -- result.json -----------------------------------------------------------------------------------


def test_the_result_has_the_agreed_form(result: dict[str, Any]) -> None:
    assert (result["seed"], result["preset"]) == (7, "tiny")
    assert result["data"].startswith("fashion:")
    assert result["union"] is None
    assert [region["name"] for region in result["regions"]] == ["north", "south"]
    for region in result["regions"]:
        assert region.keys() >= {"name", "num_products", "num_clicks", "num_test_queries", "rows"}
        _assert_table(region["rows"])
    _assert_table(result["mean"])
    _assert_table(result["worst"])
    assert result["release"].keys() == {"number", "encoder_digest"}
    assert result["release"]["number"] == 1
    assert re.fullmatch(r"[0-9a-f]{64}", result["release"]["encoder_digest"])
    assert result["seconds"].keys() == {*STAGES, "evaluation"}
    assert result["peak_rss_bytes"] > 2**20
    assert len(result["problems"]) == NUM_PROBLEMS


def _assert_table(rows: dict[str, dict[str, float]]) -> None:
    assert tuple(sorted(rows)) == tuple(sorted(ROWS))
    for row in rows.values():
        assert row.keys() == METRICS
        assert all(0 <= value <= 1 for value in row.values())


def test_every_round_is_told(result: dict[str, Any]) -> None:
    keys = {"round", "loss", "seconds", "uplink_bytes", "downlink_bytes", "cohort", "rejected"}
    keys |= {"method", "bias", "relative_bias"}
    assert [row["round"] for row in result["rounds"]] == [1, 2]
    for row in result["rounds"]:
        assert row.keys() == keys
        assert row["cohort"] == ["north", "south"]
        assert row["rejected"] == []
        # float32, to train and to evaluate, against int8 (for tiny tensors the scales weigh)
        assert 2 * 2 < row["downlink_bytes"] / row["uplink_bytes"] < 2 * 4


def test_the_mean_is_that_of_the_regions(result: dict[str, Any]) -> None:
    for name in ROWS:
        values = [region["rows"][name]["ndcg@10"] for region in result["regions"]]
        assert result["mean"][name]["ndcg@10"] == pytest.approx(sum(values) / len(values))
        assert result["worst"][name]["ndcg@10"] == min(values)


def test_the_tests_of_luck_have_the_agreed_form(result: dict[str, Any]) -> None:
    compared = [("hybrid", "bm25"), ("hybrid", "federated"), ("federated", "zero_shot")]
    assert [(test["a"], test["b"]) for test in result["tests"]] == compared
    keys = {"queries", "a", "b", "metric", "difference", "p", "num_queries"}
    for test in result["tests"]:
        assert test.keys() == keys
        assert (test["queries"], test["metric"]) == ("regions", "ndcg@10")
        assert 0 < test["p"] <= 1
        assert 0 < test["num_queries"] <= sum(r["num_test_queries"] for r in result["regions"])


def test_the_figures_are_those_of_the_release(finished: Path, result: dict[str, Any]) -> None:
    manifest = json.loads((finished / "headquarters/releases/1/MANIFEST.json").read_text())
    assert manifest["encoder_digest"] == result["release"]["encoder_digest"]
    for region in ("north", "south"):
        index = json.loads(
            next(finished.glob(f"regions/{region}/state/indexes/*/INDEX.json")).read_text()
        )
        assert index["encoder_digest"] == result["release"]["encoder_digest"]
        assert index["release"] == 1


# -- the command -----------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_figures_and_json_alone_on_standard_output(
    fashion: Path, tmp_path: Path, result: dict[str, Any]
) -> None:
    """In a process of its own, as a person runs it."""
    command = [sys.executable, "-m", "fedshelf", *map(str, arguments(fashion, tmp_path / "run"))]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert figures(json.loads(done.stdout)) == figures(result)
    assert json.loads(done.stdout) == json.loads((tmp_path / "run" / "result.json").read_text())
    assert "round 2/2: loss" in done.stderr
    assert "sku-1003.jpg: not an image; product kept without photo" in done.stderr


def test_another_seed_gives_other_figures(
    fashion: Path, tmp_path: Path, call: Call, result: dict[str, Any]
) -> None:
    answer = call(*arguments(fashion, tmp_path / "run", seed=8), "--json")
    assert answer.code == 0
    other = json.loads(answer.out)
    assert other["mean"]["zero_shot"] != result["mean"]["zero_shot"]
    assert other["release"]["encoder_digest"] != result["release"]["encoder_digest"]


def test_people_get_a_table_and_what_to_try_next(fashion: Path, finished: Path, call: Call) -> None:
    answer = call(*arguments(fashion, finished))
    assert answer.code == 0
    assert "is complete; nothing to do" in answer.err
    for word in (*ROWS, "north", "south", "mean", "worst", "report.html", "click model"):
        assert word in answer.out
    (line,) = (line for line in answer.out.splitlines() if line.startswith("try: "))
    assert str(finished / "regions" / "north") in line


def test_one_region_of_few_products(fashion: Path, tmp_path: Path, call: Call) -> None:
    """Too small to measure much, and still a run: nothing divides by zero."""
    small = write_fashion(tmp_path / "small", products=24)
    answer = call(*arguments(small, tmp_path / "run", regions=1, rounds=1), "--json")
    assert answer.code == 0, answer.err
    assert [region["name"] for region in json.loads(answer.out)["regions"]] == ["north"]


# -- search ----------------------------------------------------------------------------------------


def search(call: Call, run: Path, *query: str | Path) -> dict[str, Any]:
    answer = call("search", "--region", run / "regions" / "north", *query, "--json")
    assert answer.code == 0, answer.err
    return dict(json.loads(answer.out))


def photo(run: Path) -> Path:
    return sorted((run / "regions" / "north" / "images").iterdir())[0]


def test_search_by_words_by_photo_and_by_both(
    finished: Path, call: Call, result: dict[str, Any]
) -> None:
    title = pl.read_parquet(finished / "regions/north/catalog.parquet")["title"][7]
    answers = [
        search(call, finished, title),
        search(call, finished, "--image", photo(finished)),
        search(call, finished, title, "--image", photo(finished), "--k", "3"),
    ]
    assert [len(answer["hits"]) for answer in answers] == [10, 10, 3]
    for answer in answers:
        assert (answer["region"], answer["release"]) == ("north", 1)
        assert answer["encoder_digest"] == result["release"]["encoder_digest"]
        assert answer["changes"] == 0
        assert [hit["rank"] for hit in answer["hits"]] == list(range(1, len(answer["hits"]) + 1))
        assert _descending([hit["score"] for hit in answer["hits"]])
    assert answers[0]["hits"] != answers[1]["hits"]


def _descending(values: Sequence[float]) -> bool:
    return list(values) == sorted(values, reverse=True)


def test_search_as_a_table(finished: Path, call: Call, result: dict[str, Any]) -> None:
    answer = call("search", "--region", finished / "regions" / "south", "blue jeans", "--k", "3")
    assert answer.code == 0
    assert answer.out.count("sku-") == 3
    digest = result["release"]["encoder_digest"][:12]
    assert answer.out.splitlines()[-1] == f"region south, release 1, encoder {digest}"
