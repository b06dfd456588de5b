"""Trainings at headquarters: numbered, one at a time, and each with what its gate compares with."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from server.history import RoundRecord
from server.releases import generate_signing_key, publish_release, write_release
from server.training import (
    Training,
    abandon,
    gate_references,
    read_adapter,
    release_numbers,
    start_training,
    trainings,
)
from shared.adapter import Adapter, save_adapter
from shared.errors import FederationError, ReleaseError
from shared.release import MODEL_FILES, ReleaseBase, ReleaseFacts

BASE: Adapter = {"a": torch.zeros(3)}
DECLINED = {"accepted": False, "checks": [], "reasons": ["worse"]}
ACCEPTED = {"accepted": True, "checks": [], "reasons": []}


def adapter(number: int) -> Adapter:
    return {"a": torch.full((3,), float(number))}


def start(folder: Path, **changes: object) -> Training:
    known: dict[str, object] = {
        "initial": BASE,
        "base_fingerprint": "f" * 64,
        "references": {0: BASE},
        "parent": None,
        "run_config": {"num-rounds": 3, "seed": 7},
    }
    return start_training(folder, **{**known, **changes})  # type: ignore[arg-type]


def decide(training: Training, decision: dict[str, object]) -> None:
    training.history.keep("gate.json", {"round": 1, "candidate": {}, "decision": decision})


# -- one after the other ---------------------------------------------------------------------------


def test_a_training_holds_what_it_starts_from(tmp_path: Path) -> None:
    made = start(
        tmp_path,
        initial=adapter(5),
        references={2: adapter(2), 11: adapter(11)},
        parent=2,
        run_config={"num-rounds": 4, "quorum": 0.5},
    )
    assert made.folder == tmp_path / "0001"
    assert made.config == {"parent": 2, "run_config": {"num-rounds": 4, "quorum": 0.5}}
    assert torch.equal(made.history.adapter(0)["a"], adapter(5)["a"])
    assert made.history.base_fingerprint() == "f" * 64
    references = made.history.references()
    assert list(references) == [2, 11]
    assert all(torch.equal(found["a"], adapter(n)["a"]) for n, found in references.items())
    assert (made.number, made.complete, made.over, made.release) == (1, False, False, None)


def test_numbers_go_on_and_past_four_digits(tmp_path: Path) -> None:
    decide(start(tmp_path), DECLINED)
    decide(start(tmp_path), DECLINED)
    assert [one.folder.name for one in trainings(tmp_path)] == ["0001", "0002"]
    (tmp_path / "0002").rename(tmp_path / "9999")
    decide(start(tmp_path), DECLINED)
    assert [one.number for one in trainings(tmp_path)] == [1, 9999, 10000]


def test_what_is_no_training_is_none(tmp_path: Path) -> None:
    for name in (".0003.partial", "0004 copy", "notes"):
        (tmp_path / name).mkdir()
    assert trainings(tmp_path) == []
    assert trainings(tmp_path / "nowhere") == []
    assert start(tmp_path).number == 1


def test_a_second_training_waits_for_the_first(tmp_path: Path) -> None:
    first = start(tmp_path)
    with pytest.raises(
        FederationError, match=r'0001: .* is not over; .*--resume", or give it up .*--abandon"'
    ):
        start(tmp_path)
    assert [one.number for one in trainings(tmp_path)] == [1]
    decide(first, DECLINED)
    assert start(tmp_path).number == 2


def test_what_the_gate_accepted_is_released_before_the_next_one_starts(tmp_path: Path) -> None:
    first = start(tmp_path)
    decide(first, ACCEPTED)
    assert (first.complete, first.over) == (True, False)
    with pytest.raises(FederationError, match=r'is not over; go on with ".* --resume"$'):
        start(tmp_path)
    first.released(3)
    assert (first.over, first.release) == (True, 3)
    assert start(tmp_path).number == 2


def test_a_training_that_is_cut_off_while_it_is_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        start(tmp_path, references={0: BASE, 1: None})
    assert trainings(tmp_path) == []
    assert start(tmp_path).number == 1


def test_a_table_is_over_once_it_is_there(tmp_path: Path) -> None:
    table = start(tmp_path)
    table.history.keep("matrix.json", {"rows": {}})
    assert (table.complete, table.over) == (True, True)
    assert start(tmp_path).number == 2


def test_a_damaged_config_is_one_line(tmp_path: Path) -> None:
    made = start(tmp_path)
    for text in ("", "{", "7"):
        (made.folder / "config.json").write_text(text)
        with pytest.raises(FederationError, match=r"config\.json: missing or damaged; restore"):
            _ = made.config


# -- giving up -------------------------------------------------------------------------------------


def test_what_is_given_up_is_over_and_its_rounds_stay(tmp_path: Path) -> None:
    first = start(tmp_path)
    first.history.append(RoundRecord(0, cohort=["east"]), BASE)
    abandon(first, "given up by headquarters")
    assert first.over
    gate = first.history.gate()
    assert gate is not None
    assert gate["decision"]["accepted"] is False
    assert gate["decision"]["reasons"] == ["given up by headquarters"]
    assert [record.cohort for record in first.history.rounds()] == [["east"]]
    assert start(tmp_path).number == 2


@pytest.mark.parametrize("decision", [ACCEPTED, DECLINED], ids=["accepted", "declined"])
def test_what_the_gate_has_found_is_never_overwritten(
    decision: dict[str, object], tmp_path: Path
) -> None:
    first = start(tmp_path)
    decide(first, decision)
    before = first.history.gate()
    with pytest.raises(FederationError, match="training 1: the gate has decided, so there is not"):
        abandon(first, "given up")
    assert first.history.gate() == before


# -- what the gate compares with -------------------------------------------------------------------


class Registry:
    """Signed releases with the gate figures they had."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.adapters = folder / "releases", folder / "adapters"
        self.key = folder / "signing.key"
        self.public = generate_signing_key(self.key)
        self.files = folder / "files"
        for name in MODEL_FILES:
            (self.files / name).parent.mkdir(parents=True, exist_ok=True)
            (self.files / name).write_bytes(b"tensors")

    def add(self, *ndcgs: object, quality: dict[str, object] | None = None) -> int:
        """A release that reached this in its regions."""
        candidate = {f"region {at}": {"ndcg@10": value} for at, value in enumerate(ndcgs, 1)}
        if quality is None:
            quality = {"gate": {"candidate": candidate}}
        facts = ReleaseFacts(
            base=ReleaseBase(fingerprint="f" * 64, ids={}),
            dims={"vector": 8},
            encoder_digest="d" * 64,
            rounds=2,
            strategy="FedAvg",
            quality=quality,  # type: ignore[arg-type]
        )
        number = write_release(self.folder, files=self.files, facts=facts, signing_key=self.key)
        save_adapter(self.adapters / f"{number}.safetensors", adapter(number), {})
        return number

    def use(self, number: int) -> None:
        publish_release(self.folder, number, signing_key=self.key)

    def references(self) -> tuple[int | None, list[int]]:
        current, found = gate_references(
            self.folder, self.adapters, public_key_hex=self.public, base=BASE
        )
        for number, one in found.items():
            assert torch.equal(one["a"], adapter(number)["a"])
        return current, list(found)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


def test_before_the_first_release_it_is_the_base(registry: Registry) -> None:
    assert registry.references() == (None, [0])
    registry.add(0.5)  # signed, but never in use
    assert registry.references() == (None, [0])


@pytest.mark.parametrize(
    ("figures", "in_use", "expected"),
    [
        ([[0.5]], 1, [1]),
        ([[0.5], [0.6]], 2, [2]),
        ([[0.6], [0.5]], 2, [1, 2]),  # two small losses in a row would be two steps down
        ([[0.5], [0.7], [0.6]], 3, [2, 3]),
        ([[0.5], [0.7], [0.6]], 1, [1, 2]),  # after a rollback
        ([[0.5], [0.5]], 2, [2]),  # of equals the newest
        ([[0.9, 0.1], [0.6, 0.6], [0.4, 0.4]], 3, [2, 3]),  # by the mean over regions
        ([[], [0.5], [0.4]], 3, [2, 3]),  # without figures it is never the best
    ],
)
def test_then_the_one_in_use_and_the_best_by_its_own_figures(
    figures: list[list[float]], in_use: int, expected: list[int], registry: Registry
) -> None:
    for ndcgs in figures:
        registry.add(*ndcgs)
    registry.use(in_use)
    assert registry.references() == (in_use, expected)


@pytest.mark.parametrize(
    "quality", [{}, {"gate": None}, {"gate": {}}, {"gate": {"candidate": {"region 1": {}}}}]
)
def test_a_release_from_elsewhere_has_no_figures_and_is_never_the_best(
    quality: dict[str, object], registry: Registry
) -> None:
    registry.add(quality=quality)
    registry.add(0.01)
    registry.use(2)
    assert registry.references() == (2, [2])


def test_an_adapter_that_is_not_there_is_named(registry: Registry) -> None:
    registry.add(0.6)
    registry.add(0.5)
    registry.use(2)
    (registry.adapters / "1.safetensors").unlink()
    with pytest.raises(ReleaseError, match=r"1\.safetensors: not found; restore it from the back"):
        registry.references()
    with pytest.raises(ReleaseError, match=r"7\.safetensors: not found"):
        read_adapter(registry.adapters, 7)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda registry: (registry.folder / "1" / "README.md").write_text("better"),
        lambda registry: (registry.folder / "1" / "MANIFEST.sig").unlink(),
        lambda registry: (registry.folder / "current.json").write_text(
            json.dumps({"release": 1, "sequence": 9, "expiry": "2100-01-01T00:00:00Z"})
        ),
    ],
)
def test_nothing_damaged_is_trained_from(
    spoil: Callable[[Registry], object], registry: Registry
) -> None:
    registry.add(0.6)
    registry.add(0.5)
    registry.use(2)
    spoil(registry)
    with pytest.raises(ReleaseError):
        registry.references()


def test_release_numbers_are_numbers(registry: Registry) -> None:
    assert release_numbers(registry.folder) == []
    for _ in range(11):
        registry.add()
    (registry.folder / "notes").mkdir()
    assert release_numbers(registry.folder) == list(range(1, 12))
