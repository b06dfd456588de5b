"""One look after another: try, decide, swap, go back; whatever fails, the old index answers on."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_registry import (
    BASE,
    NOW,
    TITLES,
    HashEncoder,
    Headquarters,
    contents,
    digest_of,
    write_catalog,
    write_region,
)

from client.acceptance import lower_bound, next_move, not_inferior
from client.decisions import Decision, PublicationState, newest_decision, read_state
from client.indexing import load_region_encoder
from client.publication import Outcome, Publication
from client.region import open_region
from client.releases import accept, list_releases, pin, unpin
from client.shelves import open_shelf
from shared.audit import read_audit
from shared.errors import AuditError, ConfigError, ReleaseError, RetrievalError
from shared.release import CurrentRelease
from shared.retrieval.manifest import open_current_index, read_pointer
from shared.retrieval.shelf import Ask

if TYPE_CHECKING:
    from shared.adapter import Adapter
    from shared.encoders.encoder import Encoder

RULE = {"tolerance": 0.02, "confidence": 0.95, "min_queries": 30}
WAIT = "[publication]\nauto_accept = false\n"
CANARIES = '[publication]\ncanaries = "canaries.json"\n'
GOOD = SimpleNamespace(num_queries=100, mean=0.01, variance=0.0)
KILLED = 9
BAD = SimpleNamespace(num_queries=100, mean=-0.1, variance=0.01)


@pytest.fixture
def headquarters(tmp_path: Path) -> Headquarters:
    return Headquarters(tmp_path)


@pytest.fixture
def folder(tmp_path: Path, headquarters: Headquarters) -> Path:
    return write_region(tmp_path / "north", headquarters)


def publication(folder: Path, gate: Any = None) -> Publication:
    """As the worker makes one: the encoder is made when it is needed."""
    return Publication(open_region(folder), encoder=lambda: HashEncoder(None), gate=gate)


def step(folder: Path, gate: Any = None) -> Outcome:
    return publication(folder, gate).step(now=NOW)


def measured(figures: SimpleNamespace) -> Callable[[object, object], SimpleNamespace]:
    return lambda candidate, current: figures


def in_use(folder: Path) -> int:
    """The release that answers, once the index holds for the encoder that `state/current` names."""
    pointer = read_pointer(folder / "state")
    opened = open_current_index(folder / "state", expected_digest=pointer.encoder_digest)
    assert opened.manifest.release == pointer.release
    assert opened.manifest.encoder_digest == pointer.encoder_digest
    return pointer.release


def events(folder: Path) -> list[str]:
    return [entry.event for entry in read_audit(folder / "state" / "audit.jsonl")]


def indexes(folder: Path) -> set[int]:
    parent = folder / "state" / "indexes"
    return {int(path.name.split("-")[0]) for path in parent.iterdir() if path.is_dir()}


# -- pure decisions --------------------------------------------------------------------------------


def test_the_lower_bound_is_the_normal_one() -> None:
    # 1.6449 standard errors of sqrt(0.04 / 100) = 0.02
    assert lower_bound(100, 0.0, 0.04, confidence=0.95) == pytest.approx(-1.6448536 * 0.02)
    assert lower_bound(100, 0.3, 0.0, confidence=0.95) == 0.3


@pytest.mark.parametrize(
    ("num_queries", "mean", "variance", "answer"),
    [
        (100, 0.01, 0.0, True),
        (100, -0.019, 0.0, True),
        (100, -0.02, 0.0, False),  # the bound must be above, not at, -tolerance
        (100, 0.0, 0.04, False),  # bound -0.033: a loss is not ruled out
        (1000, 0.0, 0.04, True),  # bound -0.010
        (29, -0.9, 0.0, True),  # too few to decline
        (30, -0.9, 0.0, False),
        (0, 0.0, 0.0, True),
    ],
)
def test_not_inferior(num_queries: int, mean: float, variance: float, answer: bool) -> None:
    said, reason = not_inferior(num_queries, mean, variance, **RULE)
    assert said is answer
    assert str(num_queries) in reason and "\n" not in reason


def decision(release: int, verdict: str, catalog: str = "c" * 64) -> Decision:
    fields: dict[str, Any] = {"release": release, "verdict": verdict}
    digests = {"encoder_digest": "e" * 64, "catalog_digest": catalog}
    return Decision(**fields, **digests, reason="", time=NOW)


@pytest.mark.parametrize(
    ("verdict", "wanted", "catalog", "move"),
    [
        (None, None, "c", "try"),
        ("accepted", None, "c", "use"),
        ("rolled_back", None, "d", "use"),
        ("declined", None, "c", "keep"),
        ("declined", None, "d", "try"),
        ("declined", 2, "c", "try"),
        ("declined", 3, "c", "keep"),
        ("waiting", None, "c", "keep"),
        ("waiting", 2, "c", "use"),
        ("waiting", None, "d", "try"),
    ],
)
def test_what_to_do_about_an_offer(
    verdict: str | None, wanted: int | None, catalog: str, move: str
) -> None:
    made = (decision(2, verdict),) if verdict else ()
    record = PublicationState(decisions=(decision(1, "accepted"), *made), wanted=wanted)
    assert next_move(record, 2, in_use=1, catalog_digest=catalog * 64) == move
    assert next_move(record, 2, in_use=2, catalog_digest=catalog * 64) == "keep"


def test_one_decision_a_release_and_the_record_reads_back() -> None:
    record = PublicationState(seen=CurrentRelease(release=2, sequence=3, expiry=NOW))
    record = record.decided(decision(1, "waiting")).decided(decision(2, "declined"))
    record = record.decided(decision(1, "accepted"))
    assert [(made.release, made.verdict) for made in record.decisions] == [
        (2, "declined"),
        (1, "accepted"),
    ]
    assert PublicationState.from_bytes(record.to_bytes()) == record


# -- following headquarters ------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [timedelta(hours=1), -timedelta(hours=1)])
def test_a_clock_that_is_an_hour_off_keeps_no_release_out(
    folder: Path, headquarters: Headquarters, ahead: timedelta
) -> None:
    headquarters.release(adapter=b"one")
    assert publication(folder).step(now=NOW + ahead).release == in_use(folder) == 1


def test_before_the_first_release_the_base_answers(folder: Path) -> None:
    with pytest.raises(ReleaseError, match=r"current\.json: not found"):
        step(folder)
    assert in_use(folder) == 0
    assert read_pointer(folder / "state").encoder_digest == digest_of(b"")


def test_a_release_is_taken_and_encoder_and_index_switch_together(
    folder: Path, headquarters: Headquarters
) -> None:
    headquarters.release(adapter=b"one")
    outcome = step(folder)
    assert outcome == Outcome(1, 1, None, True, "accepted", "no gate clicks were asked")
    assert in_use(folder) == 1
    assert read_pointer(folder / "state").encoder_digest == digest_of(b"one")
    assert events(folder) == ["release.pulled", "release.accepted", "index.swapped"]
    assert not step(folder).swapped
    assert len(events(folder)) == 3


def test_steps_without_news_change_no_file(folder: Path, headquarters: Headquarters) -> None:
    headquarters.release(adapter=b"one")
    step(folder)
    before = contents(folder)
    running = publication(folder)
    assert [running.step(now=NOW).swapped for _ in range(3)] == [False] * 3
    assert contents(folder) == before


def test_a_region_that_was_away_takes_only_the_newest(
    folder: Path, headquarters: Headquarters
) -> None:
    headquarters.release(adapter=b"one")
    step(folder)
    for adapter in (b"two", b"three", b"four"):
        headquarters.release(adapter=adapter)
    assert step(folder).release == in_use(folder) == 4
    releases = folder / "state" / "releases"
    assert {path.name for path in releases.iterdir() if path.is_dir()} == {"1", "4"}


def test_only_the_index_in_use_and_the_previous_one_are_kept(
    folder: Path, headquarters: Headquarters
) -> None:
    for adapter in (b"one", b"two", b"three"):
        headquarters.release(adapter=adapter)
        step(folder)
    step(folder)
    assert indexes(folder) == {2, 3}


def test_a_rollback_by_headquarters_uses_the_index_on_disk_and_asks_nobody(
    folder: Path, headquarters: Headquarters
) -> None:
    headquarters.release(adapter=b"one")
    step(folder)
    first = read_pointer(folder / "state")
    headquarters.release(adapter=b"two")
    step(folder, measured(GOOD))
    headquarters.publish(1)
    assert step(folder, _never).release == 1
    assert read_pointer(folder / "state") == first
    assert read_state(folder / "state").decision_on(2).verdict == "rolled_back"  # type: ignore[union-attr]
    headquarters.publish(2)
    assert step(folder, _never).release == 2
    made = newest_decision(folder / "state")
    assert made is not None and (made.release, made.verdict) == (2, "accepted")


def test_a_rollback_whose_index_is_damaged_builds_it_again(
    folder: Path, headquarters: Headquarters
) -> None:
    headquarters.release(adapter=b"one")
    step(folder)
    first = read_pointer(folder / "state")
    headquarters.release(adapter=b"two")
    step(folder)
    (folder / "state" / "indexes" / first.index / "ids.npy").write_bytes(b"")
    headquarters.publish(1)
    assert step(folder).release == in_use(folder) == 1


def test_a_changed_catalog_is_indexed_again_with_the_release_in_use(
    folder: Path, headquarters: Headquarters
) -> None:
    headquarters.release(adapter=b"one")
    step(folder)
    region = write_catalog(folder, [*TITLES, "new"])
    assert step(folder, _never).swapped
    opened = open_current_index(folder / "state", expected_digest=digest_of(b"one"))
    assert opened.manifest.catalog_digest == region.catalog_digest
    assert "sku-5" in opened.ids


def test_a_changed_catalog_does_not_wait_for_headquarters(
    folder: Path, headquarters: Headquarters
) -> None:
    headquarters.release(adapter=b"one")
    step(folder)
    shutil.rmtree(headquarters.registry)
    write_catalog(folder, [*TITLES, "new"])
    with pytest.raises(ReleaseError, match="not found"):
        step(folder)
    assert in_use(folder) == 1
    assert "sku-5" in open_current_index(folder / "state").ids


def test_a_damaged_index_in_use_is_built_again(folder: Path, headquarters: Headquarters) -> None:
    headquarters.release(adapter=b"one")
    step(folder)
    index = folder / "state" / "indexes" / read_pointer(folder / "state").index
    (index / "index.faiss").write_bytes(b"damaged")
    assert step(folder).swapped
    assert in_use(folder) == 1


def test_a_damaged_release_in_use_is_pulled_again_when_it_is_needed(
    folder: Path, headquarters: Headquarters
) -> None:
    headquarters.release(adapter=b"one")
    step(folder)
    (folder / "state" / "releases" / "1" / "fusion.safetensors").write_bytes(b"damaged")
    write_catalog(folder, [*TITLES, "new"])
    assert step(folder).swapped
    assert read_pointer(folder / "state").encoder_digest == digest_of(b"one")


def test_a_real_encoder_moves_between_base_and_release(
    tmp_path: Path, tiny_base: Path, encoder: "Encoder", trained: "Adapter"
) -> None:
    from client.worker import Worker  # torch, which the killed children below do without

    headquarters = Headquarters(tmp_path)
    folder = write_region(tmp_path / "north", headquarters)
    fingerprint, base_digest = encoder.base.fingerprint, encoder.digest
    config = (folder / "region.toml").read_text().replace(BASE, fingerprint)
    (folder / "region.toml").write_text(config.replace("../base", str(tiny_base)))
    encoder.load_adapter(trained)
    encoder.save_release_files(headquarters.files)
    headquarters.release(fingerprint, digest=encoder.digest)
    asked = []

    def gate(candidate: "Adapter", current: "Adapter") -> SimpleNamespace:
        asked.append((candidate, current))
        return GOOD

    worker = Worker(open_region(folder))
    running = Publication(
        worker.region, encoder=lambda: encoder, products=lambda: worker.products, gate=gate
    )
    assert running.step(now=NOW).release == 1
    candidate, current = asked[0]
    assert all(candidate[name].equal(trained[name]) for name in trained)
    assert not any(current[name].any() for name in current if "lora_B" in name)
    loaded = load_region_encoder(folder, worker.region.config, release=1)
    index = open_current_index(folder / "state", expected_digest=loaded.digest)
    scratch = tmp_path / "scratch"
    shelf = open_shelf(worker.region, index, loaded.encode_products, scratch=scratch)
    vector = loaded.encode_queries(["red boots"], [None])[0]
    found = shelf.find(Ask(text="red boots", vector=vector))
    assert shelf.products.product(int(found.rows[0]))["title"] == "red boots"
    assert (shelf.num_changes, found.fallback) == (0, "")
    pin(folder, 0)
    assert running.step(now=NOW).release == 0
    assert read_pointer(folder / "state").encoder_digest == base_digest


# -- accepting and declining -----------------------------------------------------------------------


def test_gate_clicks_compare_the_candidate_with_the_release_in_use(
    folder: Path, headquarters: Headquarters
) -> None:
    asked = []

    def gate(candidate: dict[str, bytes], current: dict[str, bytes]) -> SimpleNamespace:
        asked.append((candidate["release"], current["release"]))
        return GOOD

    headquarters.release(adapter=b"one")
    step(folder, gate)
    headquarters.release(adapter=b"two")
    step(folder, gate)
    assert asked == [(b"one", b""), (b"two", b"one")]


def test_a_worse_release_is_declined_once_and_the_old_one_answers_on(
    folder: Path, headquarters: Headquarters
) -> None:
    headquarters.release(adapter=b"one")
    step(folder)
    headquarters.release(adapter=b"two")
    outcome = step(folder, measured(BAD))
    assert (outcome.release, outcome.available, outcome.verdict) == (1, 2, "declined")
    assert "not above -0.0200" in outcome.reason
    assert in_use(folder) == 1
    made = read_state(folder / "state").decision_on(2)
    assert made is not None
    assert (made.num_queries, made.mean_difference) == (100, -0.1)
    assert made.lower_bound == pytest.approx(-0.1 - 1.6448536 * 0.01)
    assert step(folder, _never).verdict == "declined"
    assert indexes(folder) == {1}
    assert "release.declined" in events(folder)


def test_a_first_release_that_is_declined_leaves_the_base(
    folder: Path, headquarters: Headquarters
) -> None:
    headquarters.release(adapter=b"one")
    assert step(folder, measured(BAD)).release == in_use(folder) == 0


def test_a_declined_release_is_tried_again_when_the_catalog_changes(
    folder: Path, headquarters: Headquarters
) -> None:
    headquarters.release(adapter=b"one")
    step(folder, measured(BAD))
    write_catalog(folder, [*TITLES, "new"])
    assert step(folder, measured(GOOD)).release == in_use(folder) == 1


def test_a_declined_release_is_taken_when_the_operator_accepts_it(
    folder: Path, headquarters: Headquarters
) -> None:
    headquarters.release(adapter=b"one")
    step(folder, measured(BAD))
    assert accept(folder, 1).startswith("release 1 is accepted")
    outcome = step(folder, measured(BAD))
    assert (outcome.release, outcome.verdict) == (1, "accepted")
    assert outcome.reason.startswith("by the operator; nDCG@10 -0.1000")
    assert read_state(folder / "state").wanted is None
    assert accept(folder, 1) == "release 1 is in use already"


def test_a_region_may_wait_for_its_operator(tmp_path: Path, headquarters: Headquarters) -> None:
    folder = write_region(tmp_path / "waits", headquarters, WAIT)
    headquarters.release(adapter=b"one")
    outcome = step(folder, measured(GOOD))
    assert (outcome.release, outcome.verdict) == (0, "waiting")
    step(folder, _never)
    assert indexes(folder) == {0, 1}
    accept(folder, 1)
    shutil.move(headquarters.registry, tmp_path / "away")  # not needed: all was verified before
    outcome = step(folder, _never)
    assert (outcome.release, outcome.verdict, outcome.reason) == (1, "accepted", "by the operator")
    assert in_use(folder) == 1


def test_waiting_does_not_hide_that_a_release_is_worse(
    tmp_path: Path, headquarters: Headquarters
) -> None:
    folder = write_region(tmp_path / "waits", headquarters, WAIT)
    headquarters.release(adapter=b"one")
    assert step(folder, measured(BAD)).verdict == "declined"


def test_only_the_release_that_headquarters_names_can_be_accepted(
    folder: Path, headquarters: Headquarters
) -> None:
    with pytest.raises(ReleaseError, match="names no release yet, not 1"):
        accept(folder, 1)
    headquarters.release(adapter=b"one")
    step(folder)
    with pytest.raises(ReleaseError, match="names release 1, not 2"):
        accept(folder, 2)
    pin(folder, 0)
    with pytest.raises(ReleaseError, match="release 0 is pinned"):
        accept(folder, 1)


def test_canaries_must_be_found(tmp_path: Path, headquarters: Headquarters) -> None:
    folder = write_region(tmp_path / "mine", headquarters, CANARIES)
    found = {"query": "a phone", "product_id": "sku-3", "within": 1}
    missed = {"query": "größe", "product_id": "sku-0", "within": 1}
    headquarters.release(adapter=b"one")
    (folder / "canaries.json").write_text(json.dumps([found, missed]))
    outcome = step(folder, _never)
    assert (outcome.release, outcome.verdict) == (0, "declined")
    assert outcome.reason == "canary 2 of 2 misses its product"
    assert "größe" not in (folder / "state" / "audit.jsonl").read_text()
    accept(folder, 1)
    assert step(folder, _never).verdict == "declined"  # also where the operator asks for it
    (folder / "canaries.json").write_text(json.dumps([found, {**missed, "within": 5}]))
    accept(folder, 1)
    assert step(folder).release == in_use(folder) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"canaries\.json: No such file"),
        ("{", r"canaries\.json: Invalid JSON"),
        ('{"query": "secret"}', r"canaries\.json: Input should be a valid (list|array)"),
        ('[{"query": "secret"}]', "canary 1: product_id: Field required"),
        ('[{"query": "secret", "product_id": "sku-0", "rank": 1}]', "canary 1: rank: Extra"),
        ('[{"query": "", "product_id": "sku-0"}]', "canary 1: query: String should have"),
        (
            '[{"query": "a", "product_id": "sku-0"}, {"query": "secret", "product_id": "x"}]',
            "canary 2: the catalog has no such product",
        ),
    ],
)
def test_a_wrong_canary_file_is_named_without_its_queries(
    tmp_path: Path, headquarters: Headquarters, text: str | None, message: str
) -> None:
    folder = write_region(tmp_path / "mine", headquarters, CANARIES)
    headquarters.release(adapter=b"one")
    if text is not None:
        (folder / "canaries.json").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        step(folder)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
    assert read_state(folder / "state").decisions == ()
    assert in_use(folder) == 0


def test_a_release_whose_vectors_cannot_be_indexed_is_declined(
    folder: Path, headquarters: Headquarters
) -> None:
    class Broken(HashEncoder):
        def encode_products(self, texts: Any, images: Any) -> NDArray[np.float32]:
            vectors = super().encode_products(texts, images)
            return vectors * np.float32(np.nan) if self._release == b"nan" else vectors

    headquarters.release(adapter=b"nan")
    running = Publication(open_region(folder), encoder=lambda: Broken(None))
    outcome = running.step(now=NOW)
    assert (outcome.release, outcome.verdict) == (0, "declined")
    assert outcome.reason.startswith("5 of 5 product vectors are not of unit length")


# -- the operator's say ----------------------------------------------------------------------------


def test_a_pin_goes_back_at_once_and_holds(folder: Path, headquarters: Headquarters) -> None:
    for adapter in (b"one", b"two"):
        headquarters.release(adapter=adapter)
        step(folder)
    assert pin(folder, 1) == "release 1 is pinned and in use"
    assert in_use(folder) == 1
    headquarters.release(adapter=b"three")
    outcome = step(folder, _never)
    assert (outcome.release, outcome.available, outcome.pinned) == (1, 3, 1)
    assert read_state(folder / "state").decision_on(2).reason == "release 1 is pinned"  # type: ignore[union-attr]
    assert unpin(folder).startswith("release 1 is no longer pinned")
    assert step(folder).release == in_use(folder) == 3
    assert unpin(folder) == "no release is pinned"
    assert [event for event in events(folder) if "pinned" in event] == [
        "release.pinned",
        "release.unpinned",
    ]


def test_a_pinned_release_whose_index_is_gone_comes_with_the_next_step(
    folder: Path, headquarters: Headquarters
) -> None:
    for adapter in (b"one", b"two", b"three"):
        headquarters.release(adapter=adapter)
        step(folder)
    step(folder)
    assert pin(folder, 1).endswith("when it next looks")
    assert in_use(folder) == 3
    write_catalog(folder, [*TITLES, "new"])
    assert step(folder, _never).release == in_use(folder) == 1
    assert pin(folder, 1) == "release 1 is pinned and stays in use"
    assert pin(folder, 0).endswith("when it next looks")
    assert step(folder, _never).release == in_use(folder) == 0


def test_only_a_sound_release_on_disk_can_be_pinned(
    folder: Path, headquarters: Headquarters
) -> None:
    headquarters.release(adapter=b"one")
    headquarters.release(adapter=b"two", publish=False)
    step(folder)
    with pytest.raises(ReleaseError, match=r"MANIFEST\.json: not found"):
        pin(folder, 2)
    (folder / "state" / "releases" / "1" / "fusion.safetensors").write_bytes(b"damaged")
    with pytest.raises(ReleaseError, match="not the file that was signed"):
        pin(folder, 1)
    assert read_state(folder / "state").pinned is None


def test_a_pin_that_comes_while_an_index_is_built_wins(
    folder: Path, headquarters: Headquarters
) -> None:
    headquarters.release(adapter=b"one")
    step(folder)
    headquarters.release(adapter=b"two")

    def gate(candidate: object, current: object) -> SimpleNamespace:
        pin(folder, 1)
        return GOOD

    assert step(folder, gate).release == in_use(folder) == 1
    assert indexes(folder) >= {1}


def test_releases_are_listed(folder: Path, headquarters: Headquarters) -> None:
    headquarters.release(adapter=b"one")
    step(folder)
    headquarters.release(adapter=b"two")
    step(folder, measured(BAD))
    accept(folder, 2)
    pin(folder, 1)
    rows = {row.number: asdict(row) for row in list_releases(folder)}
    shown = ("on_disk", "in_use", "available", "pinned", "wanted", "verdict")
    assert [tuple(rows[number][name] for name in shown) for number in (0, 1, 2)] == [
        (True, False, False, False, False, ""),
        (True, True, False, True, False, "accepted"),
        (True, False, True, False, False, "declined"),
    ]
    assert rows[1]["indexed"] and rows[2]["reason"].startswith("nDCG@10 -0.1000")


# -- faults ----------------------------------------------------------------------------------------


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def _replay(headquarters: Headquarters, kept: dict[str, bytes]) -> None:
    for name in ("current.json", "current.json.sig"):
        (headquarters.registry / name).write_bytes(kept[name])


FAULTS: dict[str, tuple[Callable[[Headquarters, dict[str, bytes]], object], str]] = {
    "flipped byte": (
        lambda hq, kept: _flip(hq.registry / "2" / "fusion.safetensors"),
        r"2/fusion\.safetensors: not the file that was signed",
    ),
    "flipped byte of the manifest": (
        lambda hq, kept: _flip(hq.registry / "2" / "MANIFEST.json"),
        r"2/MANIFEST\.json: no signature",
    ),
    "wrong signature": (
        lambda hq, kept: (hq.registry / "2" / "MANIFEST.sig").write_text("0" * 128 + "\n"),
        r"2/MANIFEST\.json: no signature",
    ),
    "another key": (
        lambda hq, kept: (hq.registry / "current.json.sig").write_text("0" * 128 + "\n"),
        r"current\.json: no signature",
    ),
    "replayed": (_replay, "sequence 1, but sequence 2 was seen before"),
    "expired": (lambda hq, kept: hq.publish(2, NOW - timedelta(days=91)), "expired"),
    "gone": (lambda hq, kept: shutil.rmtree(hq.registry), "not found"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_headquarters_leaves_the_old_index_and_is_noted_once(
    folder: Path, headquarters: Headquarters, fault: str
) -> None:
    damage, message = FAULTS[fault]
    headquarters.release(adapter=b"one")
    kept = contents(headquarters.registry)
    running = publication(folder)
    running.step(now=NOW)
    before = contents(folder / "state" / "indexes")
    headquarters.release(adapter=b"two")
    sound = headquarters.registry.with_name("sound")
    shutil.copytree(headquarters.registry, sound)
    if fault == "replayed":
        _seen_only(folder, sequence=2)
    damage(headquarters, kept)
    for _ in range(2):
        with pytest.raises(ReleaseError, match=message) as caught:
            running.step(now=NOW)
        assert "partial" not in str(caught.value)
    assert in_use(folder) == 1
    assert contents(folder / "state" / "indexes") == before
    assert not (folder / "state" / "releases" / "2").exists()
    assert events(folder).count("publication.failed") == 1
    shutil.rmtree(headquarters.registry, ignore_errors=True)
    sound.rename(headquarters.registry)
    assert running.step(now=NOW).release == in_use(folder) == 2


def _seen_only(folder: Path, sequence: int) -> None:
    """As after a step that saw the statement and then lost headquarters."""
    state = folder / "state"
    seen = CurrentRelease(release=2, sequence=sequence, expiry=NOW + timedelta(days=90))
    record = read_state(state).model_copy(update={"seen": seen})
    (state / "publication.json").write_bytes(record.to_bytes())


def test_a_damaged_record_is_an_error_and_the_index_answers_on(
    folder: Path, headquarters: Headquarters
) -> None:
    headquarters.release(adapter=b"one")
    step(folder)
    (folder / "state" / "publication.json").write_bytes(b"{}x")
    with pytest.raises(ReleaseError, match=r"publication\.json: damaged .* restore a copy"):
        step(folder)
    assert in_use(folder) == 1


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (100, "File too large"),  # the statement
        (1000, "File too large"),  # the manifest
        (3000, "File too large"),  # the release
        (8000, "File too large|FAISS could not write"),  # the index
    ],
)
def test_a_full_disk_leaves_the_old_index(
    folder: Path, headquarters: Headquarters, limit: int, message: str
) -> None:
    """The kernel refuses to make a file longer than `limit` bytes, as where nothing is left."""
    write_catalog(folder, [f"product {number}" for number in range(400)])
    headquarters.release(adapter=b"one")
    step(folder)
    before = contents(folder / "state" / "indexes")
    (headquarters.files / "text" / "adapter_model.safetensors").write_bytes(bytes(4000))
    headquarters.release(adapter=b"two")
    running = publication(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises((ReleaseError, RetrievalError, AuditError), match=message) as caught:
            running.step(now=NOW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert in_use(folder) == 1
    after = contents(folder / "state" / "indexes")
    assert {name: after[name] for name in before} == before
    assert (folder / "state" / "releases" / "2").exists() == (limit > 4000)
    assert running.step(now=NOW).release == in_use(folder) == 2
    running.step(now=NOW)
    assert indexes(folder) == {1, 2}


def test_a_worker_killed_at_any_point_leaves_the_old_index_and_the_next_one_completes(
    tmp_path: Path, headquarters: Headquarters
) -> None:
    """See `kill_everywhere`, which runs without threads in a process of its own."""
    folder = write_region(tmp_path / "north", headquarters)
    headquarters.release(adapter=b"one")
    step(folder)
    headquarters.release(adapter=b"two")
    command = [sys.executable, __file__, str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    kills, before, after = map(int, done.stdout.split())
    assert kills >= 20
    assert before and after  # killed both before and after the swap


def kill_everywhere(folder: Path) -> None:
    """Step in children that die at their k-th change of the disk, for every k there is."""
    kills = {1: 0, 2: 0}
    for count in range(1, 500):
        beside = folder.parent / f"killed-{count}"
        shutil.copytree(folder, beside)
        if not _killed(_die_at, count, beside):
            print(sum(kills.values()), kills[1], kills[2])
            return
        kills[in_use(beside)] += 1
        assert not _killed(_complete, beside)
        shutil.rmtree(beside)
    raise AssertionError("a step that never ends")


def _killed(job: Callable[..., object], *arguments: object) -> bool:
    """Whether a job was killed, in a forked child; any other mishap ends us."""
    child = os.fork()
    if child == 0:
        try:
            job(*arguments)
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED), f"child ended with {code}"
    return code == KILLED


def _die_at(count: int, folder: Path) -> None:
    changes = iter(range(1, 10_000))

    def dying(change: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*args: Any, **options: Any) -> Any:
            if next(changes) == count:
                os._exit(KILLED)
            return change(*args, **options)

        return instead

    for module, names in ((os, ("rename", "replace", "mkdir", "fsync")), (shutil, ("rmtree",))):
        for name in names:
            setattr(module, name, dying(getattr(module, name)))
    step(folder)


def _complete(folder: Path) -> None:
    for _ in range(2):  # the second one removes what is no longer needed
        outcome = step(folder)
        assert (outcome.release, outcome.verdict) == (2, "accepted")
    assert in_use(folder) == 2
    assert read_pointer(folder / "state").encoder_digest == digest_of(b"two")
    assert indexes(folder) == {1, 2}
    left = [name for name in contents(folder) if "partial" in name]
    assert not left, left
    made = {one.release: one.verdict for one in read_state(folder / "state").decisions}
    assert made == {1: "accepted", 2: "accepted"}
    assert events(folder).count("index.swapped") >= 2


def _never(candidate: object, current: object) -> SimpleNamespace:
    raise AssertionError("gate clicks were asked though nobody should")


if __name__ == "__main__":
    kill_everywhere(Path(sys.argv[1]))
