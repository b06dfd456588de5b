"""The final table: what counts, what is left out, and that the published index is measured."""

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from small_world import options, quiet

from client.evaluation import mean_metrics, rank
from client.region import read_qrels
from client.worker import Worker, get_worker
from server.history import History
from shared.adapter import Adapter
from shared.errors import RetrievalError
from simulations.run import simulate
from simulations.table import (
    ROWS,
    UNION_ROWS,
    RegionTable,
    TestSet,
    judgments,
    random_rows,
    region_table,
    summarize,
    union_table,
)

TestSet.__test__ = False  # type: ignore[attr-defined]  # a class of ours, no test


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, fashion: Path) -> Path:
    run = tmp_path_factory.mktemp("table") / "run"
    simulate(options(fashion), run, quiet())
    return run


@pytest.fixture
def region(whole: Path) -> Worker:
    return get_worker(whole / "regions" / "north")


@pytest.fixture
def adapters(whole: Path) -> dict[str, Adapter]:
    history = History(whole / "headquarters")
    released = history.adapter(history.best_round())
    initial = history.adapter(0)
    return {
        "zero_shot": initial,
        "local_only": initial,
        "centralized": initial,
        "federated": released,
    }


# -- judgments -------------------------------------------------------------------------------------


def qrels(*rows: tuple[str, str, int]) -> pl.DataFrame:
    schema = {"query": pl.String, "product_id": pl.String, "grade": pl.Int64}
    return pl.DataFrame(list(rows), schema, orient="row")


def test_queries_with_nothing_relevant_are_left_out() -> None:
    judged = qrels(("red", "b", 2), ("blue", "a", 0), ("gone", "z", 3), ("red", "a", 0))
    tests = judgments(judged, pl.Series(["a", "b", "c"]))
    assert tests.queries == ["red"]  # blue: grade 0 only; gone: not in this catalog
    ((rows, grades),) = tests.qrels
    assert rows.tolist() == [0, 1]
    assert grades.tolist() == [0, 2]


def test_the_order_of_judgments_changes_nothing() -> None:
    rows = [("red", "b", 2), ("blue", "a", 1), ("red", "a", 3), ("blue", "c", 2)]
    ids = pl.Series(["a", "b", "c"])
    expected, found = judgments(qrels(*rows), ids), judgments(qrels(*rows[::-1]), ids)
    assert found.queries == expected.queries == ["blue", "red"]
    for ours, theirs in zip(found.qrels, expected.qrels, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_no_judgments_make_no_queries() -> None:
    assert judgments(qrels(), pl.Series(["a"], dtype=pl.String)) == TestSet([], [])


# -- the random row --------------------------------------------------------------------------------


def test_random_rankings_are_seeded_and_repeat_no_product() -> None:
    ranked = random_rows(5, 30, 10, seed=7)
    assert ranked.shape == (5, 10)
    np.testing.assert_array_equal(ranked, random_rows(5, 30, 10, seed=7))
    assert (ranked != random_rows(5, 30, 10, seed=8)).any()
    assert all(len(set(row)) == 10 and set(row) <= set(range(30)) for row in ranked.tolist())
    assert len({tuple(row) for row in ranked.tolist()}) == 5


@pytest.mark.parametrize(("queries", "products"), [(0, 30), (0, 3), (4, 3)])
def test_random_rankings_of_little(queries: int, products: int) -> None:
    assert random_rows(queries, products, 10, seed=1).shape == (queries, min(products, 10))


# -- the table -------------------------------------------------------------------------------------


def test_every_method_is_measured_on_the_same_queries(
    region: Worker, adapters: dict[str, Adapter]
) -> None:
    table = region_table(region, adapters, seed=7)
    assert tuple(table.rows) == tuple(table.ranked) == ROWS
    for name in ROWS:
        assert table.ranked[name].shape == (len(table.tests.queries), 10)
        assert table.rows[name] == mean_metrics(table.ranked[name], table.tests.qrels)


def test_equal_adapters_have_equal_rows_and_the_published_index_ranks_as_its_adapter(
    region: Worker, adapters: dict[str, Adapter]
) -> None:
    table = region_table(region, adapters, seed=7)
    assert table.rows["zero_shot"] == table.rows["local_only"] == table.rows["centralized"]
    region.encoder.load_adapter(adapters["federated"])
    prefixes = region.query_prefixes(table.tests.queries)
    expected = rank(region.encoder, region.products, prefixes, k=10)
    np.testing.assert_array_equal(table.ranked["federated"], expected)


def test_an_index_of_another_adapter_is_not_measured(
    region: Worker, adapters: dict[str, Adapter]
) -> None:
    other = {name: tensor + 0.01 for name, tensor in adapters["federated"].items()}
    with pytest.raises(RetrievalError, match="made by encoder"):
        region_table(region, {**adapters, "federated": other}, seed=7)


def test_mean_and_worst_by_hand(region: Worker) -> None:
    def table(queries: list[str], ndcg: float, mrr: float) -> RegionTable:
        rows = {name: {"ndcg@10": ndcg, "mrr@10": mrr} for name in ROWS}
        return RegionTable(region, TestSet(queries, []), {}, rows)

    mean, worst = summarize([table(["a"], 0.5, 0.75), table(["a", "b", "c"], 0.25, 1.0)])
    assert mean["bm25"] == {"ndcg@10": 0.375, "mrr@10": 0.875}  # every region counts the same
    assert worst["bm25"] == {"ndcg@10": 0.25, "mrr@10": 0.75}
    untested = RegionTable(region, TestSet([], []), {}, {name: {} for name in ROWS})
    assert summarize([table(["a"], 0.5, 0.75), untested])[0]["bm25"] == {
        "ndcg@10": 0.5,
        "mrr@10": 0.75,
    }


# -- union -----------------------------------------------------------------------------------------


def test_the_union_of_one_region_is_that_region(
    region: Worker, adapters: dict[str, Adapter]
) -> None:
    judged = read_qrels(region.region)
    union = union_table([region], judged, adapters, seed=7)
    assert tuple(union) == UNION_ROWS
    table = region_table(region, adapters, seed=7)
    for name in ("zero_shot", "federated", "bm25"):
        expected = table.rows[name]["ndcg@10"]
        assert union[name]["ndcg@10"] == pytest.approx(expected, abs=1e-6)


def test_the_union_counts_judged_products_by_hand(
    region: Worker, adapters: dict[str, Adapter]
) -> None:
    """One query, one relevant product: wherever it ranks, nDCG over judged ones alone is 1."""
    ids, titles = region.region.catalog["product_id"], region.region.catalog["title"]
    union = union_table([region], qrels((titles[4], ids[4], 3)), adapters, seed=7)
    for row in union.values():
        assert row["ndcg@10_judged"] in (1.0, 0.0)  # 0 for BM25 if it does not find it at all
        place = 0 if row["ndcg@10"] == 0 else round(2 ** (1 / row["ndcg@10"]) - 1)
        assert row["ndcg@10"] == pytest.approx(1 / math.log2(1 + place) if place else 0)
        assert row["judged@10"] == pytest.approx(0.1 if place else 0.0)
    assert union["bm25"]["ndcg@10"] == 1.0  # its own title, word for word


def test_the_union_spans_all_catalogs(whole: Path, adapters: dict[str, Adapter]) -> None:
    workers = [get_worker(whole / "regions" / name) for name in ("north", "south")]
    last = workers[1].region.catalog.row(-1, named=True)
    union = union_table(workers, qrels((last["title"], last["product_id"], 3)), adapters, seed=7)
    assert union["bm25"] == {"ndcg@10": 1.0, "ndcg@10_judged": 1.0, "judged@10": 0.1}


def test_the_seed_of_the_random_row(region: Worker, adapters: dict[str, Adapter]) -> None:
    one, again, other = (region_table(region, adapters, seed=s).ranked["random"] for s in (7, 7, 8))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
