"""Personalization over real workers with the tiny encoder, and through a whole simulation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from small_world import Call, Stops, federation, options, quiet

from client.check import check_region
from client.evaluation import K, mean_metrics, rank
from client.indexing import load_region_encoder, read_for_base
from client.personal import RELEASE, Personal, adapter_path, read_personal_adapter
from client.personalization import ENSEMBLE
from client.region import read_qrels
from client.resident import _publication
from client.worker import Worker, forget_workers, get_worker
from server.releases import publish_release, write_release
from shared.adapter import Adapter, norm, paired, parted, subtract
from shared.errors import DataError, ReleaseError
from shared.release import ReleaseBase, ReleaseFacts
from shared.retrieval.manifest import read_pointer
from shared.schema import PersonalizationConfig, load_region_config, render_region_toml
from shared.wire_evaluation import Difference
from simulations.run import simulate
from simulations.table import PERSONALIZED, ROWS, judgments

EAGER: dict[str, Any] = {
    "enabled": True,
    "min_examples": 1,
    "min_queries": 2,
    "confidence": 0.501,
    "weights": (1.0,),
    "passes": 20,
    "learning_rate": 0.02,
    "alone_share": 0.0,
}


def eager(run: Path, **changes: Any) -> Worker:
    """The region north, which adapts releases whatever little speaks for it."""
    folder = run / "regions" / "north"
    settings = PersonalizationConfig(**EAGER | changes)
    config = load_region_config(folder).model_copy(update={"personalization": settings})
    (folder / "region.toml").write_text(render_region_toml(config), "utf-8")
    forget_workers()
    return get_worker(folder)


def personalized(worker: Worker, start: Adapter) -> Personal:
    worker.encoder.load_adapter(start)
    return worker.personalize(1)


@pytest.fixture
def noisy(run: Path) -> Adapter:
    """A release so bad that a few passes over the region's clicks improve it."""
    worker, generator = get_worker(run / "regions" / "north"), torch.Generator().manual_seed(3)
    worker.encoder.reset(seed=0)
    return {
        name: tensor + 0.5 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in worker.encoder.adapter().items()
    }


def test_what_is_chosen_is_loaded_and_kept(run: Path, noisy: Adapter) -> None:
    worker = eager(run)
    made = personalized(worker, noisy)
    assert made.choice != RELEASE, made.reason
    assert made.encoder_digest == worker.encoder.digest != made.release_digest
    kept = read_personal_adapter(worker.region.state, 1, made.encoder_digest)
    assert all(kept[name].equal(tensor) for name, tensor in worker.encoder.adapter().items())
    assert made.num_queries == len(worker.validation.queries)
    figures = {one.candidate: one.mean_difference for one in made.measured}
    assert figures[made.choice] == max(figures.values()) > 0
    before, after = (worker.evaluate(adapter)[1]["ndcg@10"] for adapter in (noisy, kept))
    assert after - before == pytest.approx(figures[made.choice])


@pytest.mark.parametrize(
    ("gate", "choice"),
    [
        (Difference(500, -0.3, 0.01), RELEASE),
        (Difference(400, -0.018, 0.04), RELEASE),  # 1.8 standard errors, where 1.645 are enough
        (Difference(400, -0.015, 0.04), "tuned-1"),  # 1.5
        (Difference(99, -0.3, 0.01), "tuned-1"),  # too few queries to say
    ],
)
def test_gate_clicks_have_the_last_word(
    gate: Difference, choice: str, run: Path, noisy: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = eager(run, confidence=0.95)
    monkeypatch.setattr(worker, "_candidates", lambda *_: {"tuned-1": moved(worker)})
    better = {"tuned-1": Difference(500, 0.3, 0.01)}
    monkeypatch.setattr(worker, "gains_over", lambda *_: better)
    monkeypatch.setattr(worker, "compare", lambda *_, **__: (500, {}, {0: gate}))
    made = personalized(worker, noisy)
    assert made.choice == choice
    assert made.reason.startswith("gate clicks are against tuned-1: ") == (choice == RELEASE)
    assert (made.encoder_digest == made.release_digest) == (choice == RELEASE)
    assert made.encoder_digest == worker.encoder.digest


def no_training(*_: object, **__: object) -> None:
    raise AssertionError("nothing to train for")


def test_an_ensemble_is_made_and_kept_whole(run: Path, noisy: Adapter) -> None:
    worker = eager(
        run, alone_share=0.4, alone_prior=0.0, alone_passes=2, weights=(), gate_learning_rate=1e-9
    )
    made = personalized(worker, noisy)
    assert made.choice == ENSEMBLE, made.reason
    release, home, share = parted(
        read_personal_adapter(worker.region.state, 1, made.encoder_digest)
    )
    assert share == pytest.approx(0.4)
    assert all(release[name].equal(tensor) for name, tensor in noisy.items())
    worker.encoder.reset(seed=federation("run").seed)
    assert home.keys() == release.keys()
    assert norm(subtract(home, worker.encoder.adapter())) > 0  # it was trained


def test_with_too_few_queries_nothing_is_trained(
    run: Path, noisy: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = eager(run, min_queries=100)
    monkeypatch.setattr("client.worker.make_candidates", no_training)
    made = personalized(worker, noisy)
    assert (made.choice, made.measured) == (RELEASE, ())
    assert "too few clicks" in made.reason
    assert not adapter_path(worker.region.state, 1, made.encoder_digest).exists()


def test_with_too_few_queries_the_ensemble_alone_is_made_and_taken(
    run: Path, noisy: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = eager(run, min_queries=10_000, alone_share=0.4, alone_prior=0.0, alone_passes=1)
    monkeypatch.setattr("client.worker.make_candidates", no_training)
    made = personalized(worker, noisy)
    assert (made.choice, made.measured) == (ENSEMBLE, ())
    assert "too few clicks to choose by" in made.reason
    assert parted(read_personal_adapter(worker.region.state, 1, made.encoder_digest))[2] == (
        pytest.approx(0.4)
    )


@pytest.mark.parametrize(("more", "choice"), [(0, ENSEMBLE), (1, RELEASE)])
def test_with_too_few_examples_it_is_the_release(
    more: int, choice: str, run: Path, noisy: Adapter
) -> None:
    number = len(eager(run).examples.weight)
    few = {"min_queries": 10_000, "alone_share": 0.4, "alone_passes": 1}
    worker = eager(run, min_examples=number + more, **few)
    made = personalized(worker, noisy)
    assert made.choice == choice
    assert made.reason == (
        f"too few clicks to train on ({number + 1} examples needed)"
        if more
        else "too few clicks to choose by (10000 queries needed)"
    )


def unclicked(log: pl.DataFrame) -> pl.DataFrame:
    none = pl.lit(False)
    return log.with_columns(clicked=none, carted=none, purchased=none)


@pytest.mark.parametrize("spoil", [unclicked, pl.DataFrame.clear])
def test_a_region_without_clicks_takes_the_release_as_it_is(
    spoil: Callable[[pl.DataFrame], pl.DataFrame], run: Path, noisy: Adapter
) -> None:
    path = run / "regions" / "north" / "clicks.parquet"
    spoil(pl.read_parquet(path)).write_parquet(path)
    worker = eager(run)
    assert personalized(worker, noisy).choice == RELEASE
    vectors = worker.encoder.product_matrix(worker.products)
    assert worker.tune(vectors).num_queries == 0  # it can be indexed all the same
    assert worker.describe().num_examples == 0  # headquarters leaves it out of the round
    with pytest.raises(DataError, match='region "north": no clicks to train on'):
        worker.train(noisy, federation("run").train_config(1), 1)


def test_a_round_starts_from_what_headquarters_sends(run: Path, noisy: Adapter) -> None:
    worker, config = (
        eager(run, passes=1),
        federation("run", update_encoding="float32").train_config(1),
    )
    worker.encoder.reset(seed=0)
    sent = worker.encoder.adapter()
    before = worker.train(sent, config, 1).update
    personalized(worker, noisy)
    after = worker.train(sent, config, 1).update
    assert all(after[name].equal(tensor) for name, tensor in before.items())


def moved(worker: Worker) -> Adapter:
    return {name: tensor + 0.05 for name, tensor in worker.encoder.adapter().items()}


def beside(worker: Worker) -> Adapter:
    return paired(worker.encoder.adapter(), moved(worker), 0.4)


Made = Callable[[Worker], Adapter]


def publish(worker: Worker, adapter: Adapter) -> None:
    """Release an adapter, as headquarters does."""
    encoder, base = worker.encoder, worker.region.config.base
    registry = (worker.region.folder / base.releases).resolve()
    files = registry.parent / "files"
    encoder.load_adapter(adapter)
    encoder.save_release_files(files)
    facts = ReleaseFacts(
        base=ReleaseBase(fingerprint=base.fingerprint, ids={"text": "tiny"}),
        dims={"shared": encoder.dim},
        encoder_digest=encoder.digest,
        rounds=1,
        strategy="fedavg",
    )
    key = registry.parent / "signing.key"
    number = write_release(registry, files=files, facts=facts, signing_key=key)
    publish_release(registry, number, signing_key=key)


@pytest.mark.parametrize("made", [moved, beside])
def test_the_worker_of_a_deployment_answers_with_what_it_made(
    made: Made, run: Path, noisy: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = eager(run)
    publish(worker, noisy)
    monkeypatch.setattr(worker, "_candidates", lambda *_: {"tuned-1": made(worker)})
    better = {"tuned-1": Difference(500, 0.3, 0.01)}
    monkeypatch.setattr(worker, "gains_over", lambda *_: better)
    folder, region = worker.region.folder, worker.region
    assert _publication(worker).step().release == 1
    pointer = read_pointer(region.state)
    manifest = read_for_base(region.state / "releases" / "1", 1, region.config)
    assert pointer.encoder_digest != manifest.encoder_digest
    loaded = load_region_encoder(
        folder, region.config, release=1, encoder_digest=pointer.encoder_digest
    )
    assert loaded.digest == pointer.encoder_digest
    (row,) = [row for row in check_region(folder, sample=4) if row.what == "release"]
    assert row.verdict == "ok" and row.found.startswith("release 1 in use, verified")
    path = adapter_path(region.state, 1, pointer.encoder_digest)
    path.write_bytes(path.read_bytes()[:-1])
    (row,) = [row for row in check_region(folder, sample=4) if row.what == "release"]
    assert row.verdict == "fail" and "damaged" in row.found
    with pytest.raises(ReleaseError, match="damaged"):
        load_region_encoder(folder, region.config, release=1, encoder_digest=pointer.encoder_digest)
    assert not _publication(worker).step().swapped  # made again, equal to the last bit
    assert read_personal_adapter(region.state, 1, pointer.encoder_digest)


# -- a whole simulation ----------------------------------------------------------------------------


def test_a_simulation_measures_what_regions_answer_with(tmp_path: Path, fashion: Path) -> None:
    run = tmp_path / "run"
    result = simulate(options(fashion, personalize=True), run, quiet())
    assert set(result["mean"]) == {*ROWS, PERSONALIZED}
    compared = [(one["a"], one["b"]) for one in result["tests"]]
    assert (PERSONALIZED, "federated") in compared and (PERSONALIZED, "local_only") in compared
    for region in result["regions"]:  # too few clicks to adapt anything
        assert region["rows"][PERSONALIZED] == region["rows"]["federated"]
        folder = run / "regions" / region["name"]
        assert load_region_config(folder).personalization == PersonalizationConfig(enabled=True)
        assert (folder / "state" / "personal" / "1.json").is_file()
    assert "personalized" in (run / "report.html").read_text("utf-8")
    assert simulate(options(fashion, personalize=True), run, quiet()) == json.loads(
        (run / "result.json").read_text("utf-8")
    )


@pytest.mark.parametrize("made", [moved, beside])
def test_the_personal_encoder_answers_in_a_simulation(
    made: Made, tmp_path: Path, fashion: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A region that adapts whatever speaks for it: table and command line use what it made."""
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        simulate(options(fashion, personalize=True), run, Stops("federated"))
    eager(run, passes=1)
    monkeypatch.setattr(Worker, "_candidates", lambda worker, *_: {"tuned-1": made(worker)})
    monkeypatch.setattr("client.worker.choose", lambda *_, **__: ("tuned-1", "by hand", ()))
    monkeypatch.setattr(Worker, "_refuted_on_gate", lambda *_: False)
    simulate(options(fashion, personalize=True), run, quiet())
    worker = get_worker(run / "regions" / "north")
    pointer = read_pointer(worker.region.state)
    worker.encoder.load_adapter(
        read_personal_adapter(worker.region.state, 1, pointer.encoder_digest)
    )
    assert worker.encoder.digest == pointer.encoder_digest
    tests = judgments(read_qrels(worker.region), worker.region.catalog["product_id"])
    ranked = rank(worker.encoder, worker.products, worker.query_prefixes(tests.queries), k=K)
    result = json.loads((run / "result.json").read_text("utf-8"))
    (rows,) = [region["rows"] for region in result["regions"] if region["name"] == "north"]
    assert rows[PERSONALIZED] == pytest.approx(mean_metrics(ranked, tests.qrels))
    assert rows[PERSONALIZED] != rows["federated"]
    answer = json.loads(call("search", "--region", worker.region.folder, "shirt", "--json").out)
    assert answer["encoder_digest"] == pointer.encoder_digest != result["release"]["encoder_digest"]
    assert answer["hits"]
