"""The final table: what counts, what is left out, and that what is published is measured."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from small_world import options, quiet

from client.evaluation import K, mean_metrics, rank
from client.region import read_qrels
from client.worker import Worker, get_worker
from server.history import History
from shared.adapter import Adapter
from shared.errors import RetrievalError
from shared.metrics import ndcg_at_k
from shared.randomization import paired_randomization_test
from shared.retrieval.manifest import open_current_index
from simulations.run import simulate
from simulations.table import (
    NDCG,
    NDCG_JUDGED,
    ROWS,
    Comparison,
    RegionTable,
    TestSet,
    compare_methods,
    judgments,
    mean_dense_weight,
    random_rows,
    region_table,
    summarize,
)
from simulations.union import UNION_ROWS, Union, rrf_rows, union_table

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
        return RegionTable(region, TestSet(queries, []), {}, rows, 0.5)

    mean, worst = summarize([table(["a"], 0.5, 0.75), table(["a", "b", "c"], 0.25, 1.0)])
    assert mean["bm25"] == {"ndcg@10": 0.375, "mrr@10": 0.875}  # every region counts the same
    assert worst["bm25"] == {"ndcg@10": 0.25, "mrr@10": 0.75}
    untested = RegionTable(region, TestSet([], []), {}, {name: {} for name in ROWS}, 0.5)
    assert summarize([table(["a"], 0.5, 0.75), untested])[0]["bm25"] == {
        "ndcg@10": 0.5,
        "mrr@10": 0.75,
    }


# -- what shoppers get -----------------------------------------------------------------------------


def normalized_sum(
    cosines: np.ndarray, found: Sequence[int], bm25: Sequence[float], dense_weight: float
) -> list[int]:
    """The mix as docs say it, of every product at once: all of a small catalog are candidates."""
    words = np.zeros(len(cosines))
    words[list(found)] = bm25
    meaning = (cosines.astype(np.float64) + 1) / (cosines.max() + 1)
    scores = dense_weight * meaning + (1 - dense_weight) * words / max(words.max(), 1e-9)
    return sorted(range(len(scores)), key=lambda row: (-scores[row], row))


def test_the_hybrid_is_the_published_mix_of_words_and_vectors(
    region: Worker, adapters: dict[str, Adapter]
) -> None:
    table = region_table(region, adapters, seed=7)
    weight = open_current_index(region.region.state).manifest.dense_weight
    assert table.dense_weight == weight
    region.encoder.load_adapter(adapters["federated"])
    vectors = region.encoder.product_matrix(region.products)
    queries = region.encoder.query_matrix(region.query_prefixes(table.tests.queries))
    assert 0 < weight < 1, "a mix of both, or this shows little"
    for text, query, ranked in zip(
        table.tests.queries, queries, table.ranked["hybrid"], strict=True
    ):
        rows, scores = region.lexical.search(text, len(vectors))
        expected = normalized_sum(vectors @ query, rows.tolist(), scores.tolist(), weight)
        assert same_but_for_ties(ranked.tolist(), expected[:K], vectors @ query)


def same_but_for_ties(rows: list[int], others: list[int], cosines: np.ndarray) -> bool:
    """Products of one text and one photo may change places in the last bits."""
    pairs = zip(rows, others, strict=True)
    return all(one == other or abs(cosines[one] - cosines[other]) < 1e-5 for one, other in pairs)


def test_all_weight_on_the_encoder_is_the_encoder_alone(
    region: Worker, adapters: dict[str, Adapter]
) -> None:
    """The law holds for any judgments, so the region's own stand for human ones."""
    judged = read_qrels(region.region)
    union = union_table(Union.of([region], judged), adapters, dense_weight=1.0, seed=7)
    for mix, alone in (("hybrid", "federated"), ("hybrid_zero_shot", "zero_shot")):
        for metric, scores in union.scores[mix].items():
            np.testing.assert_allclose(scores, union.scores[alone][metric], atol=1e-9)


def test_no_weight_on_the_encoder_is_the_words_and_then_what_they_miss(
    region: Worker, adapters: dict[str, Adapter]
) -> None:
    judged = read_qrels(region.region)
    union = union_table(Union.of([region], judged), adapters, dense_weight=0.0, seed=7)
    words = union.scores["bm25"][NDCG]
    assert words.any()
    for mix in ("hybrid", "hybrid_zero_shot"):
        assert (union.scores[mix][NDCG] >= words - 1e-9).all()


def test_the_mean_weight_counts_regions_alike(region: Worker) -> None:
    tables = [
        RegionTable(region, TestSet(queries, []), {}, {}, weight)
        for queries, weight in ((["a"], 0.5), (["b", "c", "d"], 1.0))
    ]
    assert mean_dense_weight(tables) == 0.75


def test_reciprocal_rank_fusion_by_hand() -> None:
    one = np.array([[4, 2, 7, -1], [-1, -1, -1, -1]])
    other = np.array([[2, 9, 4, 7], [5, 3, 1, 0]])
    # 2: 1/62 + 1/61; 4: 1/61 + 1/63; 9: 1/62; 7: 1/63, its fourth place being below the depth
    expected = [[2, 4, 9, 7], [5, 3, 1, -1]]
    assert rrf_rows(one, other, depth=3).tolist() == expected


# -- union -----------------------------------------------------------------------------------------


def test_the_union_of_one_region_is_that_region(
    region: Worker, adapters: dict[str, Adapter]
) -> None:
    judged, table = read_qrels(region.region), region_table(region, adapters, seed=7)
    weight = mean_dense_weight([table])
    union = union_table(Union.of([region], judged), adapters, dense_weight=weight, seed=7)
    assert tuple(union.rows) == tuple(union.scores) == UNION_ROWS
    for name in ("zero_shot", "federated", "bm25", "hybrid"):
        expected = table.rows[name][NDCG]
        assert union.rows[name][NDCG] == pytest.approx(expected, abs=1e-6)
    for name, by_metric in union.scores.items():
        means = {metric: pytest.approx(values.mean()) for metric, values in by_metric.items()}
        assert union.rows[name] == means


def test_the_union_counts_judged_products_by_hand(
    region: Worker, adapters: dict[str, Adapter]
) -> None:
    """One query, one relevant product: wherever it ranks, nDCG over judged ones alone is 1."""
    ids, titles = region.region.catalog["product_id"], region.region.catalog["title"]
    judged = qrels((titles[4], ids[4], 3))
    union = union_table(Union.of([region], judged), adapters, dense_weight=0.5, seed=7).rows
    for row in union.values():
        assert row["ndcg@10_judged"] in (1.0, 0.0)  # 0 for BM25 if it does not find it at all
        place = 0 if row["ndcg@10"] == 0 else round(2 ** (1 / row["ndcg@10"]) - 1)
        assert row["ndcg@10"] == pytest.approx(1 / math.log2(1 + place) if place else 0)
        assert row["judged@10"] == pytest.approx(0.1 if place else 0.0)
    assert union["bm25"]["ndcg@10"] == 1.0  # its own title, word for word


def test_the_union_spans_all_catalogs(whole: Path, adapters: dict[str, Adapter]) -> None:
    workers = [get_worker(whole / "regions" / name) for name in ("north", "south")]
    last = workers[1].region.catalog.row(-1, named=True)
    judged = qrels((last["title"], last["product_id"], 3))
    union = union_table(Union.of(workers, judged), adapters, dense_weight=0.0, seed=7)
    for name in ("bm25", "hybrid"):
        assert union.rows[name] == {"ndcg@10": 1.0, "ndcg@10_judged": 1.0, "judged@10": 0.1}


# -- could it be luck? -----------------------------------------------------------------------------


def ranked_table(region: Worker, queries: list[str], places: dict[str, list[int]]) -> RegionTable:
    """One relevant product a query, row 5; each method puts it at the places given, 0 nowhere."""
    ranked = {}
    for name in ROWS:
        ranked[name] = np.full((len(queries), K), -1, np.int64)
        for line, place in zip(ranked[name], places.get(name, [1] * len(queries)), strict=True):
            line[place - 1 : place] = 5
    judged = [(np.array([5]), np.array([1])) for _ in queries]
    return RegionTable(region, TestSet(queries, judged), ranked, {}, 0.5)


def test_comparisons_by_hand(region: Worker) -> None:
    """Two queries of which the hybrid wins both: swaps that are as far apart are 2 of 4."""
    table = ranked_table(region, ["a", "b"], {"bm25": [3, 3], "federated": [1, 1]})
    found = compare_methods([table], None, seed=7)
    assert found == [
        Comparison("regions", "hybrid", "bm25", NDCG, 0.5, 0.5, 2),  # 1 / log2(3 + 1)
        Comparison("regions", "hybrid", "federated", NDCG, 0.0, 1.0, 2),
        Comparison("regions", "federated", "zero_shot", NDCG, 0.0, 1.0, 2),
    ]


def test_one_query_of_many_regions_is_one_piece_of_evidence(region: Worker) -> None:
    one = ranked_table(region, ["a", "b"], {"bm25": [3, 0]})
    same = [one, ranked_table(region, ["b", "a"], {"bm25": [0, 3]})] * 3
    assert compare_methods(same, None, seed=7) == compare_methods([one], None, seed=7)
    other = ranked_table(region, ["a"], {"bm25": [0]})  # a: the mean of 1/2 and 0
    (found, *_) = compare_methods([one, other], None, seed=7)
    assert found == Comparison("regions", "hybrid", "bm25", NDCG, 1 - 0.25 / 2, 0.5, 2)


def test_comparisons_count_every_region_and_its_queries(
    whole: Path, adapters: dict[str, Adapter]
) -> None:
    """A slow reference over a real run, query by query."""
    workers = [get_worker(whole / "regions" / name) for name in ("north", "south")]
    tables = [region_table(worker, adapters, seed=7) for worker in workers]
    scores: dict[str, dict[str, list[float]]] = {"hybrid": {}, "bm25": {}}
    for table in tables:
        for name, by_query in scores.items():
            values = ndcg_at_k(table.ranked[name], table.tests.qrels, k=K)
            for query, value in zip(table.tests.queries, values, strict=True):
                by_query.setdefault(query, []).append(value)
    a, b = (
        np.array([np.mean(by_query[query]) for query in sorted(by_query)])
        for by_query in scores.values()
    )
    found = compare_methods(tables, None, seed=3)[0]
    assert found.num_queries == len(a)
    assert found.difference == pytest.approx(a.mean() - b.mean())
    assert found.p == paired_randomization_test(a, b, seed=3)


def test_human_judgments_are_compared_over_all_and_over_judged_products(region: Worker) -> None:
    better, worse = np.array([1.0, 0.5, 0.75]), np.array([0.5, 0.25, 0.5])
    scores = {name: {NDCG: worse, NDCG_JUDGED: worse} for name in UNION_ROWS}
    scores["hybrid"] = {NDCG: better, NDCG_JUDGED: worse}
    scores["federated"] = {NDCG: worse, NDCG_JUDGED: better}
    found = compare_methods([], scores, seed=7)
    assert [(one.a, one.b, one.metric, one.difference, one.p) for one in found] == [
        ("hybrid", "bm25", NDCG, pytest.approx(1 / 3), 0.25),  # 2 of 8 swaps
        ("hybrid", "bm25", NDCG_JUDGED, 0.0, 1.0),
        ("federated", "zero_shot", NDCG, 0.0, 1.0),
        ("federated", "zero_shot", NDCG_JUDGED, pytest.approx(1 / 3), 0.25),
    ]
    assert {(one.queries, one.num_queries) for one in found} == {("union", 3)}


def test_no_queries_no_comparison(region: Worker) -> None:
    untested = RegionTable(region, TestSet([], []), {}, {}, 0.5)
    assert compare_methods([untested], None, seed=7) == compare_methods([], None, seed=7) == []


def test_the_seed_of_the_random_row(region: Worker, adapters: dict[str, Adapter]) -> None:
    one, again, other = (region_table(region, adapters, seed=s).ranked["random"] for s in (7, 7, 8))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
