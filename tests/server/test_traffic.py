"""What headquarters' audit log says of rounds and gate: everything that counted, and no content."""

import json
import multiprocessing
import subprocess
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
from flwr.app import RecordDict
from small_federation import (
    BASE,
    INITIAL,
    SmallFederation,
    SmallGrid,
    SmallRegion,
    fails,
    run_server_app,
    silent,
    worse,
)

from server import conduct
from server.history import History
from server.traffic import TrainingLog
from server.training import abandon
from shared.audit import AuditLog, read_audit
from shared.durable import sha256_file
from shared.errors import AuditError, FederationError
from shared.exchanges import digest


@pytest.fixture
def small(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> SmallFederation:
    monkeypatch.setattr(conduct, "POLL_S", 0)
    monkeypatch.setattr(conduct, "ASK_S", 0)
    return SmallFederation(tmp_path / "hq", tiny_base)


def facts_of(small: SmallFederation, event: str) -> list[dict[str, Any]]:
    return [entry.facts for entry in read_audit(small.hq.audit) if entry.event == event]


def follow(small: SmallFederation) -> None:
    training = conduct.latest(small.hq)
    conduct.follow(small.hq, small.control, training, on_line=silent)  # type: ignore[arg-type]


def keep_digests(region: SmallRegion) -> dict[str, list[str]]:
    """From now on, what the region answers, by purpose."""
    purposes = ("round", "validation", "gate", "local", "matrix")
    kept: dict[str, list[str]] = {purpose: [] for purpose in purposes}

    def keeper(purpose: str) -> Callable[[RecordDict], RecordDict]:
        def keep(reply: RecordDict) -> RecordDict:
            kept[purpose].append(digest(reply))
            return reply

        return keep

    region.spoilt |= {purpose: keeper(purpose) for purpose in kept}
    return kept


# -- rounds ----------------------------------------------------------------------------------------


def test_a_round_is_noted_with_everything_that_counted(small: SmallFederation) -> None:
    said = {region.name: keep_digests(region) for region in small.regions}
    training = small.train()
    rounds = facts_of(small, "round.completed")
    assert [(facts["training"], facts["round"]) for facts in rounds] == [(1, 0), (1, 1), (1, 2)]
    assert all(facts["cohort"] == ["east", "north"] for facts in rounds)
    assert all(facts["rejected"] == [] for facts in rounds)
    for number, facts in enumerate(rounds):
        validated = {name: kept["validation"][number] for name, kept in said.items()}
        trained = {name: kept["round"][number - 1] for name, kept in said.items() if number}
        expected = {"train": trained, "evaluate": validated} if number else {"evaluate": validated}
        assert facts["received"] == expected
        assert facts["sent"].keys() == facts["received"].keys()
    assert len({digest for facts in rounds for digest in facts["sent"].values()}) == 5
    folder = training.history.folder
    adapters = ["initial.safetensors", "rounds/0001.safetensors", "rounds/0002.safetensors"]
    printed = subprocess.check_output(["sha256sum", *adapters], cwd=folder, text=True)
    assert [line.split()[0] for line in printed.splitlines()] == [f["adapter"] for f in rounds]


def test_who_was_rejected_is_named_and_has_no_digest(small: SmallFederation) -> None:
    east, _ = small.regions
    east.spoilt["round"] = fails
    small.train(rounds=1)
    facts = facts_of(small, "round.completed")[-1]
    assert facts["rejected"] == [{"region": "east", "reason": "region failed: ValueError"}]
    assert facts["received"]["train"].keys() == {"north"}
    assert facts["received"]["evaluate"].keys() == {"east", "north"}
    assert b"boots" not in small.hq.audit.read_bytes()


def test_a_round_without_quorum_is_noted_as_failed_and_then_run_again(
    small: SmallFederation,
) -> None:
    for region in small.regions:
        region.spoilt["round"] = fails
    with pytest.raises(FederationError):
        small.train(rounds=1)
    (failed,) = facts_of(small, "round.failed")
    assert (failed["round"], failed["received"]) == (1, {"train": {}})
    assert [entry["region"] for entry in failed["rejected"]] == ["east", "north"]
    assert failed["reason"].startswith("round 1: 0 of 2 regions answered well")
    for region in small.regions:
        region.spoilt.clear()
    follow(small)
    assert [facts["round"] for facts in facts_of(small, "round.completed")] == [0, 1]


# -- gate ------------------------------------------------------------------------------------------


def test_the_gates_verdict_is_noted_with_what_it_rests_on(small: SmallFederation) -> None:
    said = {region.name: keep_digests(region) for region in small.regions}
    training = small.train(rounds=1)
    (facts,) = facts_of(small, "gate.decided")
    gate = training.history.gate()
    assert gate is not None
    assert (facts["training"], facts["round"], facts["verdict"]) == (1, gate["round"], "accepted")
    assert (facts["reasons"], facts["rejected"]) == ([], [])
    assert facts["cohort"] == ["east", "north"]
    assert facts["received"] == {"evaluate": {name: kept["gate"][0] for name, kept in said.items()}}


def test_a_declined_candidate_is_noted_with_the_reasons(small: SmallFederation) -> None:
    for region in small.regions:
        region.spoilt["gate"] = worse(region)
    gate = small.train(rounds=1).history.gate()
    assert gate is not None
    (facts,) = facts_of(small, "gate.decided")
    assert (facts["verdict"], facts["reasons"]) == ("declined", gate["decision"]["reasons"])


# -- kills, and a log that cannot be written -------------------------------------------------------


def test_a_round_that_is_complete_is_not_noted_again(small: SmallFederation) -> None:
    training = small.train()
    before = small.hq.audit.read_bytes()
    config = {**training.config["run_config"], "run-dir": str(training.folder)}
    run_server_app(SmallGrid(small.regions), config)
    assert small.hq.audit.read_bytes() == before


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_a_round_killed_before_its_record_is_run_and_noted_again(
    cut: int, small: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = History.keep_record

    def kill(history: History, record: Any) -> None:
        if record.round == cut:
            raise KeyboardInterrupt
        keep(history, record)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(History, "keep_record", kill)
        small.train()
    follow(small)
    rounds = facts_of(small, "round.completed")
    assert [facts["round"] for facts in rounds] == sorted([0, 1, 2, cut])
    first, second = (facts for facts in rounds if facts["round"] == cut)
    assert first["received"] == second["received"]
    name = f"rounds/{cut:04d}.safetensors" if cut else "initial.safetensors"
    assert second["adapter"] == sha256_file(conduct.latest(small.hq).history.folder / name)
    assert len(facts_of(small, "gate.decided")) == 1


def test_without_a_note_no_round_is_complete(small: SmallFederation) -> None:
    training = conduct.new_training(small.hq, {"num-rounds": 1, "region-wait-s": 0}, seed=7)
    head = small.hq.audit.with_suffix(".head")
    config = {**training.config["run_config"], "run-dir": str(training.folder)}
    AuditLog(small.hq.audit).append("training.started")
    kept = head.read_bytes()
    head.write_bytes(b"{}")
    with pytest.raises(AuditError, match=r"audit\.head: damaged"):
        run_server_app(SmallGrid(small.regions), config)
    assert training.history.rounds() == []
    head.write_bytes(kept)
    run_server_app(SmallGrid(small.regions), config)
    assert [record.round for record in training.history.rounds()] == [0, 1]
    assert [facts["round"] for facts in facts_of(small, "round.completed")] == [0, 1]


def _invite(path: Path, stop: Event) -> None:
    while not stop.is_set():
        AuditLog(path).append("region.invited", region="west")


def test_commands_and_the_server_app_write_to_one_chain(small: SmallFederation) -> None:
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    other = context.Process(target=_invite, args=(small.hq.audit, stop))
    other.start()
    try:
        while not small.hq.audit.exists():
            assert other.is_alive()
        small.train(rounds=4)
    finally:
        stop.set()
        other.join(60)
    assert other.exitcode == 0
    assert [facts["round"] for facts in facts_of(small, "round.completed")] == [0, 1, 2, 3, 4]
    assert len(facts_of(small, "region.invited")) > 1


# -- beside the rounds -----------------------------------------------------------------------------


def test_a_cross_site_table_is_noted_with_everything_that_counted(small: SmallFederation) -> None:
    east, north = small.regions
    east.description = replace(east.description, in_matrix=True, shares_local=True)
    north.description = replace(north.description, in_matrix=True)
    said = {region.name: keep_digests(region) for region in small.regions}
    table = conduct.new_matrix(small.hq, {"num-rounds": 2, "region-wait-s": 0}, seed=7)
    conduct.follow(small.hq, small.control, table, on_line=silent)  # type: ignore[arg-type]
    trained = facts_of(small, "matrix.trained")
    assert [(facts["matrix"], facts["round"], facts["cohort"]) for facts in trained] == [
        (1, 1, ["east"]),
        (1, 2, ["east"]),
    ]
    assert [facts["received"]["train"]["east"] for facts in trained] == said["east"]["local"]
    (measured,) = facts_of(small, "matrix.measured")
    assert (measured["cohort"], measured["rejected"]) == (["east", "north"], [])
    assert measured["received"] == {
        "evaluate": {name: kept["matrix"][0] for name, kept in said.items()}
    }
    assert len({*measured["sent"].values(), *(facts["sent"]["train"] for facts in trained)}) == 3


def test_a_region_that_fails_alone_is_noted_with_its_reason(small: SmallFederation) -> None:
    east, north = small.regions
    east.description = replace(east.description, shares_local=True)
    north.description = replace(north.description, in_matrix=True)
    east.spoilt["local"] = fails
    table = conduct.new_matrix(small.hq, {"num-rounds": 2, "region-wait-s": 0}, seed=7)
    conduct.follow(small.hq, small.control, table, on_line=silent)  # type: ignore[arg-type]
    (trained,) = facts_of(small, "matrix.trained")
    assert trained["rejected"] == [{"region": "east", "reason": "region failed: ValueError"}]
    assert trained["received"] == {"train": {}}


def test_a_table_that_was_cut_off_is_given_up_and_noted(small: SmallFederation) -> None:
    for _ in range(2):
        conduct.new_matrix(small.hq, {"num-rounds": 1}, seed=7)
    assert facts_of(small, "matrix.abandoned") == [
        {"matrix": 1, "reason": "cut off, and asked for anew"}
    ]


def test_a_training_that_is_given_up_is_noted(small: SmallFederation) -> None:
    training = conduct.new_training(small.hq, {"num-rounds": 1}, seed=7)
    abandon(training, "given up by headquarters")
    assert facts_of(small, "training.abandoned") == [
        {"training": 1, "reason": "given up by headquarters"}
    ]


# -- where there is no headquarters ----------------------------------------------------------------


def test_a_simulation_notes_nothing(tmp_path: Path) -> None:
    run = tmp_path / "trainings" / "run"
    History(run / "headquarters").start(INITIAL, base_fingerprint=BASE)
    regions = [SmallRegion("east"), SmallRegion("north")]
    run_server_app(SmallGrid(regions), {"run-dir": str(run), "num-rounds": 1, "region-wait-s": 0})
    assert not list(tmp_path.rglob("audit*"))


def test_only_what_headquarters_asked_for_has_a_log(small: SmallFederation, tmp_path: Path) -> None:
    hq = small.hq.folder
    for run in (hq / "gates" / "0001", hq / "run", tmp_path / "trainings" / "0001"):
        TrainingLog.of(run)._append("x", {})
    assert not list(tmp_path.rglob("audit.jsonl"))
    TrainingLog.of(hq / "trainings" / "0012")._append("x", {})
    TrainingLog.of(hq / "matrices" / "0003")._append("x", {})
    assert facts_of(small, "x") == [{"training": 12}, {"matrix": 3}]


def test_the_log_holds_digests_and_no_figures(small: SmallFederation) -> None:
    small.train()
    for entry in read_audit(small.hq.audit):
        assert "0.5" not in json.dumps(entry.facts)  # what regions measured
