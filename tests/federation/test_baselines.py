"""What the federation is compared with: pooling loses nothing, and one region alone is a pool."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from small_world import federation

from client.objective import TrainingData
from client.worker import Worker, forget_workers, get_worker
from server.history import History
from shared.adapter import Adapter
from simulations.baselines import (
    CENTRALIZED_SCALE,
    Pool,
    best_adapter,
    central_pool,
    local_pool,
    pooled_data,
    pooled_products,
    train_alone,
)
from simulations.engine import run_engine


def trained(pool: Pool, worker: Worker, folder: Path, **knobs: float) -> History:
    history = History(folder)
    initial = History(worker.region.folder.parents[1] / "headquarters").adapter(0)
    history.start(initial, base_fingerprint=worker.encoder.base.fingerprint)
    train_alone(pool, worker.encoder, federation("", **knobs), history)
    return history


def equal(a: Adapter, b: Adapter) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def pairs(data: TrainingData, ids: list[str]) -> list[tuple[str, str, float]]:
    """Examples as (query, product id, weight)."""
    examples = data.examples
    return sorted(
        (examples.queries[query], ids[row], float(weight))
        for query, row, weight in zip(
            examples.query_index, examples.product_row, examples.weight, strict=True
        )
    )


def positives(data: TrainingData, ids: list[str], kind: str = "positives") -> set[tuple[str, str]]:
    queries, rows = np.divmod(getattr(data.examples, kind), data.examples.num_products)
    return {(data.examples.queries[q], ids[r]) for q, r in zip(queries, rows, strict=True)}


def ids_of(workers: list[Worker]) -> list[str]:
    return pl.concat([worker.region.catalog["product_id"] for worker in workers]).to_list()


# -- pooling ---------------------------------------------------------------------------------------


def test_the_pool_of_one_region_is_that_region(workers: list[Worker]) -> None:
    alone, pool = workers[0].training_data, pooled_data(workers[:1])
    assert pool.examples.queries == alone.examples.queries
    assert pool.examples.num_products == alone.examples.num_products
    assert len(alone.examples.skipped) > 0  # otherwise this test says less
    for name in ("query_index", "product_row", "weight", "positives", "skipped"):
        expected = getattr(alone.examples, name)
        np.testing.assert_array_equal(getattr(pool.examples, name), expected)
    for name in ("tokens", "offsets"):
        for ours, theirs in ((pool.queries, alone.queries), (pool.products, alone.products)):
            ours, theirs = getattr(ours, "texts", ours), getattr(theirs, "texts", theirs)
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    np.testing.assert_array_equal(pool.products.images.maps, alone.products.images.maps)
    np.testing.assert_array_equal(pool.products.images.present, alone.products.images.present)


def test_pooling_loses_and_invents_no_example(workers: list[Worker]) -> None:
    pool, ids = pooled_data(workers), ids_of(workers)
    parts = [(worker.training_data, ids_of([worker])) for worker in workers]
    assert pairs(pool, ids) == sorted(pair for part in parts for pair in pairs(*part))
    assert positives(pool, ids) == set().union(*(positives(*part) for part in parts))
    skipped = (positives(*part, "skipped") for part in parts)
    assert positives(pool, ids, "skipped") == set().union(*skipped)
    assert (np.diff(pool.examples.positives) > 0).all()


def test_a_query_asked_in_two_regions_is_one_query(workers: list[Worker]) -> None:
    queries = [set(worker.examples.queries) for worker in workers]
    assert queries[0] & queries[1]  # otherwise this test says nothing
    assert pooled_data(workers).examples.queries == sorted(queries[0] | queries[1])


def test_pooled_vectors_are_the_regions_vectors(workers: list[Worker]) -> None:
    encoder = workers[0].encoder
    pooled = encoder.product_matrix(pooled_products([worker.products for worker in workers]))
    parts = [encoder.product_matrix(worker.products) for worker in workers]
    np.testing.assert_allclose(pooled, np.concatenate(parts), atol=1e-5)


def test_a_region_without_photos_can_be_pooled(workers: list[Worker]) -> None:
    """As its cache gives it: no photo was computed, so the shape of one is unknown."""
    north, south = (worker.products for worker in workers)
    maps = np.zeros((len(south.has_text), 1), np.float16)
    blind = replace(south, images=replace(south.images, maps=maps, present=maps[:, 0] > 0))
    encoder = workers[0].encoder
    for parts in ([north, blind], [blind, north], [blind, blind]):
        pooled = encoder.product_matrix(pooled_products(parts))
        expected = np.concatenate([encoder.product_matrix(part) for part in parts])
        np.testing.assert_allclose(pooled, expected, atol=1e-5)


# -- training --------------------------------------------------------------------------------------


def test_centralized_over_one_region_is_that_region_alone(
    workers: list[Worker], tmp_path: Path
) -> None:
    """Under one name, which seeds the order, and at one rate, they are bit-equal."""
    alone = local_pool(workers[0])
    central = replace(central_pool(workers[:1]), name=alone.name, learning_rate_scale=1.0)
    one, other = (
        trained(pool, workers[0], tmp_path / str(number))
        for number, pool in enumerate((alone, central))
    )
    assert equal(one.adapter(2), other.adapter(2))
    assert [row.loss for row in one.rounds()] == [row.loss for row in other.rounds()]
    assert one.best_round() == other.best_round()


def test_a_scaled_rate_is_the_federation_at_that_rate(
    workers: list[Worker], tmp_path: Path
) -> None:
    """Of the first rate and the last, hence of the cosine between them."""
    pool, worker = local_pool(workers[0]), workers[0]
    rates = {"learning_rate": 0.004, "final_learning_rate": 0.001}
    quarter = {name: rate / 4 for name, rate in rates.items()}
    scaled = trained(replace(pool, learning_rate_scale=0.25), worker, tmp_path / "scaled", **rates)
    slower = trained(pool, worker, tmp_path / "slower", **quarter)
    whole = trained(pool, worker, tmp_path / "whole", **rates)
    assert equal(scaled.adapter(2), slower.adapter(2))
    assert not equal(scaled.adapter(2), whole.adapter(2))


def test_only_the_pool_of_all_is_scaled(workers: list[Worker]) -> None:
    assert [pool.learning_rate_scale for pool in map(local_pool, workers)] == [1.0, 1.0]
    assert central_pool(workers).learning_rate_scale == CENTRALIZED_SCALE


def test_a_federation_of_one_region_is_that_region_alone(
    new_run: Callable[[str], Path], tmp_path: Path
) -> None:
    """The mean of one is itself, if nothing is rounded on the way."""
    run = new_run("run")
    settings = {"run-dir": str(run), "num-rounds": 2, "seed": 7, "update-encoding": "float32"}
    run_engine("local", settings, num_regions=1)
    federated = History(run / "headquarters")
    forget_workers()
    worker = get_worker(run / "regions" / "north")
    alone = trained(local_pool(worker), worker, tmp_path / "alone")
    for number in range(3):
        for name, tensor in alone.adapter(number).items():
            torch.testing.assert_close(federated.adapter(number)[name], tensor, atol=1e-6, rtol=0)
    assert [record.loss for record in alone.rounds()] == pytest.approx(
        [record.loss for record in federated.rounds()], abs=1e-5
    )


def test_as_many_passes_as_the_federation_has_rounds(workers: list[Worker], tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    history = History(tmp_path)
    history.start(workers[0].encoder.adapter(), base_fingerprint="f")
    pool, config = local_pool(workers[0]), federation("", batch_size=32)
    encoder = workers[0].encoder
    train_alone(pool, encoder, config, history, on_step=lambda *step: steps.append(step))
    per_pass = -(-len(workers[0].examples.weight) // 32)
    assert steps == [(n, per_pass) for n in range(1, per_pass + 1)] * 2
    assert [record.round for record in history.rounds()] == [0, 1, 2]
    train_alone(pool, encoder, config, history, on_step=lambda *step: steps.append(step))
    assert len(steps) == 2 * per_pass  # a complete baseline is not repeated
    assert [record.round for record in history.rounds()] == [0, 1, 2]


def test_each_baseline_is_stopped_on_its_own_validation_clicks(
    workers: list[Worker], tmp_path: Path
) -> None:
    local = trained(local_pool(workers[1]), workers[1], tmp_path / "south")
    central = trained(central_pool(workers), workers[0], tmp_path / "centralized")
    assert [list(record.validation) for record in local.rounds()] == [["south"]] * 3
    for record in central.rounds():
        north, south = (record.validation[name]["ndcg@10"] for name in ("north", "south"))
        assert record.mean("ndcg@10") == pytest.approx((north + south) / 2)
    best = best_adapter(central)
    assert (
        workers[1].evaluate(best)[1] == central.rounds()[central.best_round()].validation["south"]
    )
