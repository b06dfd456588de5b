"""Tables and page of made-up scores, whose figures are known beforehand."""

import re
from typing import Any

import numpy as np
import polars as pl
import pytest

from simulations.comparison.measure import SCORE_SCHEMA, SETS
from simulations.comparison.page import _method, render_page
from simulations.comparison.spec import Experiment
from simulations.comparison.statistics import holm
from simulations.comparison.summary import pairs_of, strata_of, summarize_experiment
from simulations.comparison.terminal import lines_of, tables_of

LEVELS = {"words": 0.4, "base": 0.5, "alone": 0.6, "fed": 0.7, "mix": 0.72, "pool": 0.8}
KINDS = {
    "words": "bm25",
    "base": "zero_shot",
    "alone": "local_only",
    "fed": "federated",
    "mix": "hybrid",
    "pool": "centralized",
}
DATA = "fashion dirichlet:0.5, 2 regions"


def experiment(**changes: Any) -> Experiment:
    methods = [
        {"name": name, "kind": kind} | ({"of": "fed"} if kind == "hybrid" else {})
        for name, kind in KINDS.items()
    ]
    what = {"name": "try", "seeds": [7, 8], "rounds": 3, "preset": "tiny"} | changes
    data = [{"source": "fashion", "partition": "dirichlet:0.5", "regions": 2}]
    return Experiment.model_validate({"experiment": what, "data": data, "method": methods})


def make_scores(levels: dict[str, float], *, sizes: dict[str, int], spread: float = 0.05) -> Any:
    """Scores around each method's level: the same luck of a query for every method."""
    rng, rows = np.random.default_rng(0), []
    for seed in (7, 8):
        for region, size in sizes.items():
            luck = rng.normal(0.0, spread, (len(SETS), size))
            for number, which in enumerate(SETS):
                for name, level in levels.items():
                    for query, offset in enumerate(luck[number] - luck[number].mean()):
                        noise = 0.001 * rng.standard_normal()
                        value = float(np.clip(level + offset + noise, 0, 1))
                        named = {"region": region, "set": which, "query": f"q{query}"}
                        scored = {"ndcg@10": value, "recall@10": value / 2, "mrr@10": value}
                        rows.append({"data": DATA, "seed": seed, "method": name, **named, **scored})
    schema = {"data": pl.String, "seed": pl.Int64, "method": pl.String, **SCORE_SCHEMA}
    return pl.DataFrame(rows, schema=schema)


def facts(**changes: Any) -> list[dict[str, Any]]:
    trained = {"rounds": 3, "steps": 40, "examples": 1200, "best_round": {"all": 3}}
    curve = {"curve": [0.5, 0.7, 0.77, 0.78], "bytes": [100, 1000, 1000, 1000]}
    methods = {name: {} for name in KINDS} | {"alone": trained, "fed": trained | curve}
    methods |= {"pool": trained} | changes
    return [{"data": DATA, "seed": seed, "methods": methods} for seed in (7, 8)]


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    scores = make_scores(LEVELS, sizes={"north": 60, "south": 20})
    found = summarize_experiment(experiment(), scores, facts())
    return found | {"command": "fedshelf compare", "made_by": {"code": "3f", "libraries": {}}}


def test_means_ratio_and_gap(result: dict[str, Any]) -> None:
    (table,) = result["tables"]
    for name, level in LEVELS.items():
        row = table["methods"][name]
        assert row["mean"] == pytest.approx(level, abs=0.002)
        assert row["interval"][0] < row["mean"] < row["interval"][1]
        assert row["by_seed"].keys() == {"7", "8"}
        assert row["other_metrics"]["recall@10"] == pytest.approx(row["mean"] / 2)
    held = table["federated"]["fed"]
    assert (held["pooled"], held["alone"]) == ("pool", "alone")
    assert held["ratio"] == pytest.approx(0.7 / 0.8, abs=0.005)
    assert held["ratio_interval"][0] < held["ratio"] < held["ratio_interval"][1]
    assert held["gap_closed"] == pytest.approx(1 / 2, abs=0.02)
    assert held["gap_closed_interval"][0] < 0.5 < held["gap_closed_interval"][1]


def test_rounds_and_bytes_to_95_percent_of_the_pool(result: dict[str, Any]) -> None:
    # 0.95 * 0.8 = 0.76: first reached by 0.77, in round 2, when 100 + 1000 + 1000 bytes had gone.
    for row in result["tables"][0]["federated"]["fed"]["reached"]:
        assert row["target"] == pytest.approx(0.76, abs=0.003)
        assert (row["round"], row["bytes"]) == (2, 2100)


def test_a_small_region_is_shown_and_nothing_is_claimed_of_it(result: dict[str, Any]) -> None:
    (table,) = result["tables"]
    assert [(row["seed"], row["region"]) for row in table["regions"]] == [
        (7, "north"),
        (7, "south"),
        (8, "north"),
        (8, "south"),
    ]
    for row in table["regions"]:
        claim = row["claims"]["fed"]
        assert claim["against"] == "alone"
        if row["region"] == "north":
            assert (row["num_queries"], row["counted"]) == (60, True)
            assert claim["verdict"] == "better"
            assert claim["p"]["better"] < 0.001
        else:
            assert (row["num_queries"], row["counted"]) == (20, False)
            assert (claim["verdict"], claim["p"]) == ("no claim", None)
            assert row["means"]["fed"] == pytest.approx(0.7, abs=0.002)


def test_the_worst_region_is_one_that_counts() -> None:
    scores = make_scores(LEVELS, sizes={"north": 60, "south": 20, "west": 55})
    low = pl.when(pl.col("region") == "south").then(0.0).otherwise(pl.col("ndcg@10"))
    low = pl.when(pl.col("region") == "west").then(low - 0.1).otherwise(low)
    table = summarize_experiment(experiment(), scores.with_columns(low.alias("ndcg@10")), facts())
    worst = table["tables"][0]["methods"]["fed"]["worst"]
    assert worst == pytest.approx(0.6, abs=0.002)  # west; south would be 0


def test_without_a_region_that_counts_there_is_no_worst() -> None:
    scores = make_scores(LEVELS, sizes={"north": 20, "south": 20})
    (table,) = summarize_experiment(experiment(), scores, facts())["tables"]
    assert {row["worst"] for row in table["methods"].values()} == {None}


def test_every_test_is_corrected_for_all_of_them(result: dict[str, Any]) -> None:
    tests = result["tables"][0]["tests"]
    assert [(test["a"], test["b"]) for test in tests] == pairs_of(experiment())
    assert pairs_of(experiment()) == [
        ("fed", "alone"),
        ("fed", "pool"),
        ("fed", "base"),
        ("mix", "words"),
        ("mix", "fed"),
    ]
    for test in tests:
        assert test["p"] <= test["p_holm"] <= min(1.0, 5 * test["p"])
        assert test["num_queries"] == 60  # the same words in two regions and seeds are one query
        assert test["difference"] == pytest.approx(LEVELS[test["a"]] - LEVELS[test["b"]], abs=0.005)


def test_what_regions_adapt_is_held_against_what_it_was_made_of() -> None:
    plain = experiment().model_dump()
    personal = {"name": "own", "kind": "personalized", "of": "fed", "unequal": "more steps"}
    plain["method"] = [*plain["method"], personal]
    plain["experiment"] = {key.replace("_", "-"): v for key, v in plain["experiment"].items()}
    asked = Experiment.model_validate(plain)
    mine = [(a, b) for a, b in pairs_of(asked) if a == "own"]
    assert mine == [("own", "alone"), ("own", "pool"), ("own", "base"), ("own", "fed")]
    levels, worlds = LEVELS | {"own": 0.75}, facts(own={})
    scores = make_scores(levels, sizes={"north": 60})
    (table,) = summarize_experiment(asked, scores, worlds)["tables"]
    assert table["federated"]["own"]["ratio"] == pytest.approx(0.75 / 0.8, abs=0.005)
    assert table["federated"]["own"]["reached"] == []
    assert {row["claims"]["own"]["verdict"] for row in table["regions"]} == {"better"}
    assert table["equal_training"]["unequal"] == {"own": "more steps"}


def test_a_pool_below_training_alone_leaves_no_gap_to_close() -> None:
    scores = make_scores(LEVELS | {"pool": 0.55}, sizes={"north": 60, "south": 60})
    found = summarize_experiment(experiment(), scores, facts())
    held = found["tables"][0]["federated"]["fed"]
    assert (held["gap_closed"], held["gap_closed_interval"]) == (None, None)
    assert held["gap"] == pytest.approx(-0.05, abs=0.002)
    assert held["ratio"] == pytest.approx(0.7 / 0.55, abs=0.01)
    page = render_page(found | {"command": "", "made_by": {"code": "", "libraries": {}}})
    assert "undefined: pooling is not above training alone" in page


def test_training_that_was_not_equal_is_said() -> None:
    scores = make_scores(LEVELS, sizes={"north": 60})
    less = {"rounds": 3, "steps": 20, "examples": 600, "best_round": {"all": 3}}
    found = summarize_experiment(experiment(), scores, facts(pool=less))
    assert not found["tables"][0]["equal_training"]["equal"]
    assert any("same number of examples" in line for line in lines_of(found))


def test_equal_scores_give_equal_tables(result: dict[str, Any]) -> None:
    scores = make_scores(LEVELS, sizes={"north": 60, "south": 20})
    shuffled = scores.sample(fraction=1.0, shuffle=True, seed=3)
    again = summarize_experiment(experiment(), shuffled, facts())
    assert again["tables"][0]["methods"] == result["tables"][0]["methods"]
    assert again["tables"][0]["tests"] == result["tables"][0]["tests"]


def test_equal_texts_have_one_number_in_every_region_and_seed() -> None:
    scores = make_scores(LEVELS, sizes={"north": 3, "south": 2})
    strata = strata_of(scores.filter(pl.col("set") == "test"), list(LEVELS))
    assert [(one.seed, one.text.tolist()) for one in strata] == [
        (0, [0, 1, 2]),
        (0, [0, 1]),
        (1, [0, 1, 2]),
        (1, [0, 1]),
    ]


# -- human judgments -------------------------------------------------------------------------------

SHARED = ("words", "base", "fed", "mix", "pool")  # one encoder for all regions, or none


def with_judgments(scores: pl.DataFrame) -> pl.DataFrame:
    """Twenty judged queries under both seeds; over judged products all methods find more."""
    made = [
        scores.filter((pl.col("set") == "test") & (pl.col("region") == "south"))
        .filter(pl.col("method").is_in(SHARED))
        .with_columns(pl.col("ndcg@10") + more, pl.lit(0.25).alias("judged@10"))
        .with_columns(region=pl.lit("union"), set=pl.lit(which))
        for which, more in (("union", 0.0), ("union_judged", 0.1))
    ]
    return pl.concat([scores, *made])


@pytest.fixture(scope="module")
def judged() -> dict[str, Any]:
    scores = with_judgments(make_scores(LEVELS, sizes={"north": 60, "south": 20}))
    found = summarize_experiment(experiment(), scores, facts())
    return found | {"command": "", "made_by": {"code": "", "libraries": {}}}


def test_human_judgments_have_figures_of_their_own(judged: dict[str, Any]) -> None:
    union = judged["tables"][0]["union"]
    for which, more in (("union", 0.0), ("union_judged", 0.1)):
        part = union[which]
        assert part["num_queries"] == 20
        assert tuple(part["methods"]) == SHARED  # none of `alone`
        for name, row in part["methods"].items():
            assert row["mean"] == pytest.approx(LEVELS[name] + more, abs=0.002)
            assert row["interval"][0] < row["mean"] < row["interval"][1]
            assert row["by_seed"].keys() == {"7", "8"}
            assert row["judged@10"] == 0.25
        assert part["ratios"].keys() == {"fed"}
        ratio = part["ratios"]["fed"]
        assert (ratio["pooled"], ratio["ratio"]) == (
            "pool",
            pytest.approx((0.7 + more) / (0.8 + more), abs=0.005),
        )
        assert ratio["ratio_interval"][0] < ratio["ratio"] < ratio["ratio_interval"][1]
        assert [(test["a"], test["b"]) for test in part["tests"]] == [
            ("fed", "pool"),
            ("fed", "base"),
            ("mix", "words"),
            ("mix", "fed"),
        ]


def test_judged_queries_change_nothing_of_the_regions(
    judged: dict[str, Any], result: dict[str, Any]
) -> None:
    (with_them,), (without,) = judged["tables"], result["tables"]
    assert without["union"] is None
    for key in ("methods", "sets", "regions", "num_queries", "federated"):
        assert with_them[key] == without[key]


def test_their_tests_are_corrected_with_all_others(judged: dict[str, Any]) -> None:
    (table,) = judged["tables"]
    tests = [*table["tests"], *(t for part in table["union"].values() for t in part["tests"])]
    assert len(tests) == 5 + 2 * 4
    adjusted = holm([test["p"] for test in tests])
    assert [test["p_holm"] for test in tests] == adjusted


def test_page_and_terminal_show_human_judgments(
    judged: dict[str, Any], result: dict[str, Any]
) -> None:
    page, told = render_page(judged), "\n".join(lines_of(judged))
    for words in ("Human judgments", "judged products alone", "0.875 of pool", "25%"):
        assert words in page
    assert "Human judgments" not in render_page(result)
    assert "human judgments, all products: fed / pool: 0.875" in told
    assert "human judgments, judged products alone: mix against words: +0.32" in told
    (*_, table) = tables_of(judged)
    assert list(table.columns[0].cells) == list(SHARED)
    assert next(iter(table.columns[2].cells)) == "0.500"


# -- page and terminal -----------------------------------------------------------------------------


def test_the_page_holds_the_figures_and_fetches_nothing(result: dict[str, Any]) -> None:
    page = render_page(result)
    (table,) = result["tables"]
    for row in table["methods"].values():
        assert f"{row['mean']:.3f}" in page
    assert f"{table['federated']['fed']['ratio']:.3f}" in page
    assert "too few queries" in page
    assert "seed 7: round 2, 2.1 kB" in page
    assert not re.search(r"""(src|href|action)\s*=\s*["']?\s*(https?:)?//""", page)
    assert not re.search(r"@import|url\(", page)
    assert "<svg" in page


def test_the_page_escapes_what_it_is_given(result: dict[str, Any]) -> None:
    page = render_page(result | {"command": "fedshelf <script>"})
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_the_page_says_what_methods_are_made_of() -> None:
    own = {"name": "own", "kind": "personalized", "of": "fed", "set": {}}
    mix = {"name": "mix", "kind": "hybrid", "of": "fed", "set": {}}
    slow = {"name": "slow", "kind": "federated", "of": None, "set": {"learning-rate": 0.1}}
    assert [_method(one)["what"] for one in (own, mix, slow)] == [
        "fed, adapted by each region",
        "BM25 and fed",
        "learning-rate = 0.1",
    ]


def test_a_page_without_any_federated_method() -> None:
    untrained = {name: LEVELS[name] for name in ("words", "base")}
    plain = experiment().model_dump()
    plain["method"] = [m for m in plain["method"] if m["name"] in untrained]
    plain["experiment"] = {key.replace("_", "-"): v for key, v in plain["experiment"].items()}
    asked = Experiment.model_validate(plain)
    scores = make_scores(untrained, sizes={"north": 5})
    worlds = [
        {"data": DATA, "seed": seed, "methods": {name: {} for name in untrained}} for seed in (7, 8)
    ]
    found = summarize_experiment(asked, scores, worlds)
    page = render_page(found | {"command": "", "made_by": {"code": "", "libraries": {}}})
    assert "No two methods" in page
    assert "Round by round" not in page


def test_the_terminal_has_a_row_a_method_and_what_may_be_said(result: dict[str, Any]) -> None:
    tables = list(tables_of(result))
    assert [list(table.columns[0].cells) for table in tables] == [list(LEVELS)] * 2
    assert list(tables[0].columns[1].cells)[3] == "0.700"
    assert [len(table.columns) for table in tables] == [4, 5]
    told = "\n".join(lines_of(result))
    assert "fed / pool: 0.875" in told
    assert "gap closed: 50%" in told
    assert "2 better, 2 no claim" in told
