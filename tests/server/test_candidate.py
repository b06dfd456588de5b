"""What a release says of its quality, and that it names no region that has not agreed to it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from server.candidate import measured_quality, release_best
from server.gate import GateRule, decide, to_json
from server.history import History, RoundRecord
from server.releases import generate_signing_key
from shared.adapter import Adapter
from shared.encoders.encoder import Encoder
from shared.release import ReleaseManifest, read_release
from shared.wire_evaluation import Difference

REGIONS = ("aachen", "bremen", "cottbus")
RULE = GateRule(tolerance=0.02, confidence=0.95, min_queries=30)
WORSE = Difference(40, -0.3, 0.0001)  # so that the reasons name a region


@pytest.fixture
def history(tmp_path: Path, encoder: Encoder, trained: Adapter) -> History:
    """Round 1 of 2 is the best; the gate looked at it."""
    history = History(tmp_path / "headquarters")
    history.start(encoder.adapter(), base_fingerprint=encoder.base.fingerprint)
    values = {0: 0.4, 1: 0.6, 2: 0.5}
    for number, value in values.items():
        validation = {name: {"ndcg@10": value + at / 10} for at, name in enumerate(REGIONS)}
        moved = {key: tensor + number for key, tensor in trained.items()}
        history.append(RoundRecord(number, cohort=list(REGIONS), validation=validation), moved)
    return history


def judge(history: History, **found: Difference) -> None:
    """Keep a gate as `server.gate_round` does."""
    differences = {0: found}
    history.keep(
        "gate.json",
        {
            "round": history.best_round(),
            "candidate": {name: {"ndcg@10": 0.5} for name in found},
            "differences": {},
            "rejected": [{"region": "cottbus", "reason": "region failed: ValueError"}],
            "decision": to_json(decide(differences, RULE)),
        },
    )


def say(history: History, **named: bool) -> None:
    history.note_regions({name: {"named": flag} for name, flag in named.items()}, [])


def release(history: History, encoder: Encoder, folder: Path, **quality: Any) -> ReleaseManifest:
    key = folder / "signing.key"
    public = generate_signing_key(key) if not key.exists() else ""
    number = release_best(
        history,
        encoder,
        registry=folder / "releases",
        signing_key=key,
        parent=None,
        quality={**measured_quality(history), **quality},
    )
    return read_release(folder / "releases" / str(number), public_key_hex=public)


def strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def assert_unnamed(folder: Path, *regions: str) -> None:
    manifest = json.loads((folder / "MANIFEST.json").read_bytes())
    card = (folder / "README.md").read_text()
    for region in regions:
        assert not [text for text in strings(manifest) if region in text]
        assert region not in card
        others = (path.read_bytes() for path in folder.rglob("*") if path.is_file())
        assert not any(region.encode() in content for content in others)


def test_regions_are_numbers_in_the_order_of_their_names(history: History) -> None:
    assert measured_quality(history) == {
        "validation_ndcg@10": {
            "region 1": pytest.approx(0.6),
            "region 2": pytest.approx(0.7),
            "region 3": pytest.approx(0.8),
        }
    }


def test_who_agrees_is_named_and_the_numbers_of_the_others_stay(history: History) -> None:
    say(history, aachen=False, bremen=True, cottbus=False)
    found = measured_quality(history)["validation_ndcg@10"]
    assert list(found) == ["region 1", "bremen", "region 3"]


def test_what_a_region_said_last_counts(history: History) -> None:
    say(history, bremen=True)
    say(history, bremen=False)
    assert "bremen" not in measured_quality(history)["validation_ndcg@10"]


def test_the_gates_figures_are_in_it_under_the_same_numbers(history: History) -> None:
    say(history, aachen=True, bremen=False, cottbus=False)
    judge(history, aachen=Difference(40, 0.1, 0.0001), bremen=Difference(40, 0.2, 0.0001))
    gate = measured_quality(history)["gate"]
    assert gate["candidate"] == {"aachen": {"ndcg@10": 0.5}, "region 2": {"ndcg@10": 0.5}}
    assert gate["decision"]["accepted"] is True
    scopes = [(check["scope"], check["mean"]) for check in gate["decision"]["checks"]]
    assert scopes == [("mean", pytest.approx(0.15)), ("aachen", 0.1), ("region 2", 0.2)]


@pytest.mark.parametrize("known", ["nothing", "some", "all"])
def test_a_release_names_nobody_who_has_not_agreed(
    known: str, history: History, encoder: Encoder, tmp_path: Path
) -> None:
    """Whatever is left of regions.json: a damaged one may be removed, as its error says."""
    judge(history, **dict.fromkeys((*REGIONS, "dresden"), WORSE))
    if known != "nothing":
        names = (*REGIONS, "dresden") if known == "all" else REGIONS[:1]
        say(history, **dict.fromkeys(names, False))
    release(history, encoder, tmp_path)
    assert_unnamed(tmp_path / "releases" / "1", *REGIONS, "dresden")


def test_only_who_agreed_is_named_in_a_release(
    history: History, encoder: Encoder, tmp_path: Path
) -> None:
    judge(history, **dict.fromkeys(REGIONS, WORSE))
    say(history, aachen=False, bremen=True, cottbus=False)
    manifest = release(history, encoder, tmp_path)
    assert_unnamed(tmp_path / "releases" / "1", "aachen", "cottbus")
    assert "bremen" in (tmp_path / "releases" / "1" / "README.md").read_text()
    assert "bremen" in set(strings(json.loads(json.dumps(manifest.quality))))


def test_a_region_that_joined_later_is_a_number_in_the_gate(history: History) -> None:
    say(history, aachen=False, bremen=False, cottbus=False, dresden=False)
    judge(history, aachen=Difference(40, 0.1, 0.0001), dresden=Difference(40, 0.1, 0.0001))
    gate = measured_quality(history)["gate"]
    assert gate["candidate"].keys() == {"region 1", "region 4"}


def test_the_release_is_the_best_round_and_the_encoder_is_left_with_it(
    history: History, encoder: Encoder, tmp_path: Path
) -> None:
    manifest = release(history, encoder, tmp_path, data="none")
    assert manifest.rounds == 1
    assert manifest.base.fingerprint == encoder.base.fingerprint
    assert manifest.dims == {"vector": encoder.dim}
    assert manifest.quality["data"] == "none"
    assert encoder.digest == manifest.encoder_digest
    kept = encoder.adapter()
    encoder.reset(seed=3)
    encoder.load_release(tmp_path / "releases" / "1")
    again = encoder.adapter()
    assert all(torch.equal(again[name], kept[name]) for name in kept)
    encoder.load_adapter(history.adapter(1))
    assert encoder.digest == manifest.encoder_digest
