"""What a region learns with, through its worker: its own choices and those of the federation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from small_world import federation

from client.region import open_region
from client.worker import Worker
from server.history import History
from shared.adapter import Adapter
from shared.config import TrainConfig
from shared.encoders.presets import PRESETS, make_base
from shared.encoders.public import PublicSlice
from shared.errors import ConfigError


def chosen(run: Path, **clicks: object) -> Worker:
    """North, with these keys in [clicks]."""
    region = open_region(run / "regions" / "north")
    settings = region.config.clicks.model_copy(update=clicks)
    return Worker(replace(region, config=region.config.model_copy(update={"clicks": settings})))


def update(worker: Worker, run: Path, **changes: object) -> Adapter:
    config = replace(federation(run).train_config(1), update_encoding="float32", **changes)
    assert isinstance(config, TrainConfig)
    return worker.train(History(run / "headquarters").adapter(0), config, 1).update


def equal(one: Adapter, other: Adapter) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "changes",
    [
        {"logq_correction": 1.0},
        {"hard_negatives": 2},
        {"public_negatives": 8},
        {"known_item_source": "public"},
        {"negative_max_cosine": 0.5},
        {"queue_size": 32, "batch_size": 8},
        {"match_weight": 0.5},
        {"decorrelation_weight": 0.5},
        {"known_item_temperature": 0.5},
        {"augmented_views": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_each_ingredient_changes_what_is_learned_and_repeats(
    run: Path, changes: dict[str, object]
) -> None:
    worker = chosen(run)
    plain = update(worker, run, **{k: v for k, v in changes.items() if k == "batch_size"})
    once = update(worker, run, **changes)
    assert not equal(once, plain)
    assert all(tensor.isfinite().all() for tensor in once.values())
    assert equal(once, update(chosen(run), run, **changes))


def test_a_base_without_public_products_is_named_before_anything_is_trained(run: Path) -> None:
    worker = chosen(run)
    bare, info = make_base(PRESETS["tiny"], PublicSlice(), seed=0)
    choice = {"path": str(bare), "fingerprint": info.fingerprint}
    base = worker.region.config.base.model_copy(update=choice)
    config = worker.region.config.model_copy(update={"base": base})
    worker.region = replace(worker.region, config=config)
    for changes in ({"public_negatives": 8}, {"known_item_source": "public"}):
        asked = replace(federation(run).train_config(1), **changes)
        with pytest.raises(ConfigError, match=r"no public products; set public-negatives=0 and"):
            worker.with_public(worker.training_data, asked)
    plain = federation(run).train_config(1)
    assert worker.with_public(worker.training_data, plain) is worker.training_data


def test_chunks_change_nothing_but_rounding(run: Path) -> None:
    worker = chosen(run)
    at_once, chunks = (update(worker, run, chunk_size=size, learning_rate=1e-3) for size in (0, 16))
    for name, tensor in at_once.items():
        assert (chunks[name] - tensor).abs().mean() <= 1e-4, name


def test_views_are_made_once(run: Path) -> None:
    cache = run / "regions" / "north" / "state" / "prefix_cache"
    update(chosen(run), run)
    before = set(cache.iterdir())
    update(chosen(run), run, augmented_views=2)
    after = set(cache.iterdir())
    made = sorted(path.name.partition("-")[0] for path in after - before)
    assert made == ["image"] * 2 + ["text"] * 4  # queries and titles
    update(chosen(run), run, augmented_views=2)
    assert set(cache.iterdir()) == after


def test_a_region_may_estimate_its_propensities(run: Path) -> None:
    """Its log says them, but the estimate reads clicks alone; weights follow from it."""
    logged, harvested = chosen(run), chosen(run, propensity="harvested")
    by_position = harvested.log.train.group_by("position").agg(pl.col("propensity").first())
    curve = by_position.sort("position")["propensity"].to_numpy()
    assert curve[0] == 1.0 and curve[-1] < curve[0]
    assert not np.array_equal(harvested.examples.weight, logged.examples.weight)
    assert np.array_equal(harvested.examples.positives, logged.examples.positives)


def test_early_stopping_asks_this_regions_validation_clicks(run: Path) -> None:
    worker = chosen(run)
    stopped = update(worker, run, local_epochs=4, patience=1)
    by_epochs = [update(worker, run, local_epochs=epochs) for epochs in (1, 2, 3, 4)]
    kept = [equal(stopped, other) for other in by_epochs]
    assert kept.count(True) == 1
    start, values = History(run / "headquarters").adapter(0), []
    for end in by_epochs:
        values.append(worker.evaluate({n: start[n] + end[n] for n in start})[1]["ndcg@10"])
    best = kept.index(True)
    assert values[best] == max(values[: best + 2])
