"""Whole small federations with other fusions and distances than the defaults, up to a search."""

import json
from dataclasses import replace
from pathlib import Path

import faiss
import pytest
from small_world import Call, federation, options, quiet, world_options

from client.personalization import GATE
from client.region import open_region
from client.worker import Worker, forget_workers, get_worker
from server.history import History
from shared.adapter import read_release_adapter
from shared.config import FUSIONS
from shared.encoders.base import read_base
from shared.errors import BaseError
from shared.retrieval.manifest import open_current_index
from shared.schema import PersonalizationConfig
from simulations.prepare import prepare
from simulations.run import simulate

CHOICES = [("concatenation", "manhattan"), ("attention", "cosine"), ("maximum", "euclidean")]


@pytest.mark.parametrize(("fusion", "distance"), CHOICES)
def test_a_whole_run_ends_in_a_search(
    fusion: str, distance: str, fashion: Path, tmp_path: Path, call: Call
) -> None:
    run = tmp_path / "run"
    result = simulate(options(fashion, fusion=fusion, distance=distance), run, quiet())
    forget_workers()
    assert result["mean"]["federated"]["ndcg@10"] > result["mean"]["random"]["ndcg@10"]
    base, north = read_base(run / "base"), run / "regions" / "north"
    assert (base.fusion, base.distance) == (fusion, distance)
    release = json.loads((run / "headquarters/releases/1/MANIFEST.json").read_text())
    assert release["dims"] == {"vector": base.vector_dim}
    assert release["base"]["fingerprint"] == base.fingerprint
    assert base.choices.items() <= release["pooling"].items()
    opened = open_current_index(north / "state", expected_digest=release["encoder_digest"])
    assert opened.manifest.dim == base.vector_dim
    metric = {"cosine": "inner_product", "euclidean": "l2", "manhattan": "l1"}[distance]
    assert opened.manifest.metric == metric
    plain = faiss.read_index(str(opened.folder / "index.faiss"))
    assert (plain.ntotal, plain.d) == (len(opened.ids), base.vector_dim)
    if fusion == "attention":
        require_attention_travelled(run / "headquarters")
    found = call("search", "--region", north, "red heels", "--json")
    assert found.code == 0, found.err
    hits = json.loads(found.out)
    assert json.dumps(hits).count("sku-") > 0


def require_attention_travelled(headquarters: Path) -> None:
    """It started at 0, was trained and averaged, and is in the release."""
    history = History(headquarters)
    released = read_release_adapter(headquarters / "releases" / "1")
    for name in ("fusion/text_attention", "fusion/image_attention"):
        trained = history.adapter(history.best_round())[name]
        assert trained.shape == (32,)
        assert trained.any()
        assert not history.adapter(0)[name].any()
        assert released[name].equal(trained)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_kind_without_a_gate_has_no_gate_candidate(
    fusion: str, fashion: Path, tmp_path: Path
) -> None:
    worker = prepared(fashion, tmp_path / "run", fusion)
    worker.encoder.reset(seed=0)
    start = worker.encoder.adapter()
    candidates = worker._candidates(1, federation("run").train_config(1))
    forget_workers()
    has_gate = fusion not in ("average", "maximum")
    assert (GATE in candidates) == has_gate == ("fusion/gate" in start)
    if has_gate:
        moved = [name for name in start if not candidates[GATE][name].equal(start[name])]
        assert moved == ["fusion/gate"]


def prepared(fashion: Path, run: Path, fusion: str, distance: str = "cosine") -> Worker:
    """The region north of a run that is prepared and no more, eager to adapt."""
    run.mkdir()
    prepare(run, world_options(fashion, fusion=fusion, distance=distance), quiet())
    forget_workers()
    region = open_region(run / "regions" / "north")
    eager = PersonalizationConfig(min_examples=1, min_queries=2, passes=1)
    config = region.config.model_copy(update={"personalization": eager})
    return Worker(replace(region, config=config))


def test_the_clicks_and_what_is_kept_are_the_same_whatever_is_chosen(
    fashion: Path, tmp_path: Path
) -> None:
    one = prepared(fashion, tmp_path / "one", "weighted-sum").region.folder
    other = prepared(fashion, tmp_path / "other", "concatenation", "manhattan").region.folder
    assert (one / "clicks.parquet").read_bytes() == (other / "clicks.parquet").read_bytes()
    kept = [sorted(p.name for p in (f / "state/prefix_cache").iterdir()) for f in (one, other)]
    assert kept[0] == kept[1]
    assert kept[0]


def test_a_region_whose_base_fuses_otherwise_is_refused(fashion: Path, tmp_path: Path) -> None:
    prepared(fashion, tmp_path / "one", "weighted-sum")
    worker = prepared(fashion, tmp_path / "other", "maximum")
    (tmp_path / "other" / "base").rename(tmp_path / "aside")
    (tmp_path / "one" / "base").rename(tmp_path / "other" / "base")
    with pytest.raises(BaseError, match="copy the base that headquarters hands out"):
        get_worker(worker.region.folder).describe()
    forget_workers()
