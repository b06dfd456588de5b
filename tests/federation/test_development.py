"""Development queries are held out everywhere and are no test queries; every round is measured."""

import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import polars as pl
import pytest

from client.personal import RELEASE
from client.personalization import ENSEMBLE
from client.worker import Worker
from simulations import development
from simulations.candidates import CHOSEN, SHARES
from simulations.development import (
    PARTS,
    develop,
    main,
    title_queries,
    training_without,
)
from simulations.queries import is_test, normalize

TITLES = ["Red Boots", "red boots xl", "Blue Hat", "a b", "boots red"]


@pytest.fixture(autouse=True)
def _spec(run: Path, fashion: Path) -> None:
    spec = {"data": f"fashion:{fashion}", "regions": 2, "seed": 7}
    (run / "run.json").write_text(json.dumps(spec), encoding="utf-8")


def answers(texts: Sequence[str]) -> dict[str, list[str]]:
    found = title_queries(texts, pl.Series([f"p{row}" for row in range(len(texts))]))
    return {
        query: [texts[row].lower() for row in rows]
        for query, (rows, _) in zip(found.queries, found.qrels, strict=True)
    }


def _lines(run: Path, capsys: pytest.CaptureFixture[str], rounds: int, *options: str) -> list[str]:
    main([str(run), "--rounds", str(rounds), *options])
    return capsys.readouterr().out.splitlines()


def test_every_product_that_has_the_words_side_by_side_answers() -> None:
    found = answers(TITLES)
    assert found
    for query, titles in found.items():
        assert titles == [title.lower() for title in TITLES if f" {query} " in f" {title.lower()} "]


def test_words_that_too_many_products_have_are_no_query(monkeypatch: pytest.MonkeyPatch) -> None:
    common = {query for query, titles in answers(TITLES).items() if len(titles) > 1}
    monkeypatch.setattr(development, "MAX_ANSWERS", 1)
    assert common
    assert not common & answers(TITLES).keys()


def test_held_out_queries_are_no_test_queries_and_nobody_trains_on_them(
    run: Path, workers: list[Worker]
) -> None:
    held_out = develop(run, workers)
    assert held_out.union.queries
    assert not any(is_test(query) for query in held_out.union.queries)
    trained_on_some = False
    for worker in workers:
        before = {normalize(query) for query in worker.examples.queries}
        data = training_without(worker, held_out.texts)
        after = {normalize(query) for query in data.examples.queries}
        asked = {data.known.queries[number] for number in data.known.query_index.tolist()}
        assert after == before - held_out.texts
        assert not {normalize(query) for query in asked} & held_out.texts
        trained_on_some |= after != before
    assert trained_on_some


def test_each_round_is_a_line_and_the_same_choice_the_same_figures(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = partial(_lines, run, capsys, 2)
    told = lines()
    assert [line.split("  ")[0].strip() for line in told] == ["base", "round 1", "round 2"]
    for line in told:
        for name in ("own", "union", "titles", "validation"):
            assert 0 < float(line.split(f"{name} ")[1].split()[0]) <= 1
    assert lines() == told
    for choice in (
        ("--set", "learning-rate=0.05"),
        ("--set", "augmented-views=1"),
        ("--clicks", "weighting=inverse"),
        ("--seed", "8"),
    ):
        changed = lines(*choice)
        assert changed[0] == told[0]
        assert changed[1:] != told[1:]


def test_the_pool_trains_on_what_the_regions_train_on_together(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = partial(_lines, run, capsys, 2)
    federated, pooled = lines(), lines("--pooled")
    assert [line.split("  ")[0] for line in pooled] == [line.split("  ")[0] for line in federated]
    assert pooled[0] == federated[0]  # both start from the base
    assert pooled[1:] != federated[1:]
    assert lines("--pooled") == pooled
    assert lines("--pooled", "--set", "known-item-weight=0.0")[1:] != pooled[1:]


def _enough(run: Path, region: str, examples: int) -> None:
    """So many are enough for a region to personalize."""
    path = run / "regions" / region / "region.toml"
    text = path.read_text(encoding="utf-8")
    changed = re.sub(r"min_examples = \d+", f"min_examples = {examples}", text)
    assert changed != text
    path.write_text(changed, encoding="utf-8")


def test_candidates_are_told_and_what_the_regions_choose(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("north", "south"):
        _enough(run, name, 1)
    main([str(run), "--rounds", "1", "--personalize"])
    _, _, north, south, *told = capsys.readouterr().out.splitlines()
    chosen = [line.partition(": ")[2].partition(";")[0] for line in (north, south)]
    assert chosen == [ENSEMBLE, ENSEMBLE]  # too few queries to choose by
    found = {line.split()[0]: line.split()[2::2] for line in told}
    tuned = [f"tuned-{weight}" for weight in ("0.25", "0.5", "0.75", "1")]
    assert list(found) == ["gate", *tuned, ENSEMBLE, CHOSEN]
    assert found[CHOSEN] == found[ENSEMBLE] != found["tuned-1"]
    assert all(float(worst) <= float(gain) for gain, worst in found.values())


def test_a_region_with_too_few_examples_keeps_the_release(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _enough(run, "south", 1)
    main([str(run), "--rounds", "1", "--personalize"])
    told = capsys.readouterr().out.splitlines()
    north, south = (line for line in told if line.startswith(("north: ", "south: ")))
    assert north.startswith(f"north: {RELEASE}; ") and "too few to train on" in north
    assert south.startswith(f"south: {ENSEMBLE}; ")
    found = {line.split()[0]: float(line.split()[2]) for line in told[-6:]}
    assert found[CHOSEN] != found[ENSEMBLE]  # of which north takes no part


def test_ensembles_are_told_by_share_and_by_what_was_trained_on(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(run), "--rounds", "1", "--ensembles"])
    base, first, *told = capsys.readouterr().out.splitlines()
    assert (base.split()[0], first.split()[0]) == ("base", "round")
    released = []
    for number, region in enumerate(("north", "south")):
        lines = told[len(PARTS) * number :][: len(PARTS)]
        assert all(line.startswith(f"{region}: ") for line in lines)
        examples = [int(line.split()[1]) for line in lines]
        assert examples == sorted(examples)  # each part holds the one before
        assert examples[0] < examples[-1]
        reached = [dict(pair.split() for pair in line.split("  ")[1:]) for line in lines]
        assert all([float(share) for share in found] == [0, *SHARES, 1] for found in reached)
        assert len({found["0"] for found in reached}) == 1  # whose adapter is the same
        assert len({found["1"] for found in reached}) > 1
        released.append(float(reached[0]["0"]))
    assert float(first.split("own ")[1].split()[0]) == pytest.approx(sum(released) / 2, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--set", "colour=1"], "--set colour=1: expected KEY=VALUE with one of quorum"),
        (["--set", "learning-rate=fast"], "--set learning-rate=fast: expected float"),
        (["--clicks", "weighting=none"], "--clicks weighting: Input should be 'relevance', "),
        (["--clicks", "colour=1"], "--clicks colour: Extra inputs are not permitted; keys: prop"),
        (["--set", "learning-rate"], "--set learning-rate: expected KEY=VALUE with one of"),
    ],
)
def test_a_bad_knob_is_one_line(options: list[str], said: str, run: Path) -> None:
    with pytest.raises(SystemExit, match=f"^error: {said}"):
        main([str(run), *options])


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    """A world of `fedshelf compare` looks like one."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "world.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SystemExit, match='empty: no run; make it with "fedshelf simulate --out'):
        main([str(tmp_path / "empty")])


def test_another_fusion_or_distance_needs_no_other_run(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = partial(_lines, run, capsys, 1)
    plain = lines()
    kept = sorted(path.name for path in run.glob("regions/*/state/prefix_cache/*"))
    assert lines("--fusion", "weighted-sum", "--distance", "cosine") == plain
    attention = lines("--fusion", "attention")
    assert attention[0] == plain[0]  # it starts as the weighted sum
    for choice in (("--fusion", "concatenation"), ("--distance", "manhattan")):
        assert lines(*choice) != plain
    euclidean = lines("--distance", "euclidean")
    assert euclidean[0] == plain[0]  # which ranks as cosine does
    assert euclidean[1] != plain[1]
    assert sorted(path.name for path in run.glob("regions/*/state/prefix_cache/*")) == kept


@pytest.mark.parametrize("option", ["--fusion", "--distance"])
def test_a_name_that_is_not_known_is_one_line_and_a_usage_error(
    option: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(run), option, "glue"])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'error: {option}: "glue" is unknown; choose one of ')
