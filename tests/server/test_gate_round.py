"""After the last round: what regions are asked, who counts, and that it is asked only once."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict
from small_federation import (
    BASE,
    INITIAL,
    QUERIES,
    STEP,
    VARIANCE,
    Deaf,
    Reply,
    SmallGrid,
    SmallRegion,
    fails,
    run_server_app,
)

from server.app import run_rounds
from server.gate import GateRule, decide, from_json
from server.history import History
from shared import wire_evaluation
from shared.adapter import Adapter, save_adapter
from shared.config import parse_run_config
from shared.errors import FederationError

KNOBS: dict[str, float] = {"region-wait-s": 0, "num-rounds": 2}
RULE = GateRule(tolerance=0.02, confidence=0.95, min_queries=30)


def steps(number: float) -> Adapter:
    return {name: tensor + number * STEP for name, tensor in INITIAL.items()}


def start(folder: Path, references: dict[int, Adapter] | None = None) -> History:
    history = History(folder / "headquarters")
    history.start(INITIAL, base_fingerprint=BASE)
    for number, adapter in (references or {}).items():
        save_adapter(history.folder / "references" / f"{number}.safetensors", adapter, {})
    return history


def run_app(folder: Path, grid: SmallGrid | Deaf, **knobs: float) -> None:
    run_server_app(grid, {**KNOBS, "run-dir": str(folder), **knobs})


def three(**changes: object) -> SmallGrid:
    return SmallGrid(
        [SmallRegion(name, **changes) for name in ("east", "north", "south")]  # type: ignore
    )


# -- what is asked ---------------------------------------------------------------------------------


def test_the_candidate_is_compared_with_every_reference_in_every_region(tmp_path: Path) -> None:
    references = {3: steps(-1), 12: steps(1)}
    history, grid = start(tmp_path, references), three()
    run_app(tmp_path, grid)
    for region in grid.regions:
        (request,) = (one.request for one in region.asked if one.purpose == wire_evaluation.GATE)
        assert same(request.adapter, history.adapter(2))
        assert request.references.keys() == {3, 12}
        assert all(same(request.references[number], references[number]) for number in references)
    gate = history.gate()
    assert gate is not None
    means = {
        number: {region: found["mean"] for region, found in regions.items()}
        for number, regions in gate["differences"].items()
    }
    names = ("east", "north", "south")
    assert means == {
        "3": dict.fromkeys(names, pytest.approx(0.05 * 3)),
        "12": dict.fromkeys(names, pytest.approx(0.05 * 1)),
    }
    assert gate["candidate"] == {name: {"ndcg@10": pytest.approx(0.6)} for name in names}


def test_the_candidate_is_the_best_round_not_the_last(tmp_path: Path) -> None:
    grid = three(measure=lambda steps: 0.5 + 0.1 * (round(steps) == 1))
    history = start(tmp_path)
    run_app(tmp_path, grid)
    gate = history.gate()
    assert gate is not None
    assert gate["round"] == 1
    assert same(grid.regions[0].asked[-1].request.adapter, history.adapter(1))


def test_without_references_the_base_is_the_reference(tmp_path: Path) -> None:
    history, grid = start(tmp_path), three()
    run_app(tmp_path, grid)
    request = grid.regions[0].asked[-1].request
    assert request.references.keys() == {0}
    assert same(request.references[0], INITIAL)
    gate = history.gate()
    assert gate is not None
    assert gate["differences"].keys() == {"0"}


def test_the_handshake_comes_before_the_gate_too(tmp_path: Path) -> None:
    grid = three()
    start(tmp_path)
    run_app(tmp_path, grid)
    rounds = ["describe", "validation", *["describe", "round", "validation"] * 2]
    assert grid.regions[0].purposes == [*rounds, "describe", "gate"]


# -- what is decided -------------------------------------------------------------------------------


@pytest.mark.parametrize(("gain", "accepted"), [(0.05, True), (-0.05, False)])
def test_the_decision_follows_from_the_figures_that_are_kept(
    gain: float, accepted: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fedshelf.server")
    # validation rises in any case, so that round 2 is the candidate
    grid = three(measure=lambda steps: 0.5 + gain * steps)
    for region in grid.regions:
        region.spoilt["validation"] = rising(region)
    history = start(tmp_path)
    run_app(tmp_path, grid)
    gate = history.gate()
    assert gate is not None
    assert gate["round"] == 2
    found = {
        int(number): {region: wire_evaluation.Difference(**row) for region, row in rows.items()}
        for number, rows in gate["differences"].items()
    }
    assert from_json(gate["decision"]) == decide(found, RULE)
    assert gate["decision"]["accepted"] is accepted
    assert bool(gate["decision"]["reasons"]) is not accepted
    word = "accepted" if accepted else "declined"
    assert caplog.messages[-1].startswith(f"gate: round 2 is {word}")


def rising(region: SmallRegion) -> Reply:
    def rise(reply: RecordDict) -> RecordDict:
        value = 0.5 + 0.01 * region.asked[-1].request.server_round
        return wire_evaluation.evaluate_reply({"ndcg@10": value}, num_examples=3)

    return rise


@pytest.mark.parametrize(
    ("knobs", "accepted"),
    [
        ({}, False),  # 0.05 worse, tolerance 0.02
        ({"gate-tolerance": 0.06}, True),
        ({"gate-tolerance": 0.0501}, False),  # the bound is below the mean, by 1.64 * 0.0016 ...
        ({"gate-tolerance": 0.0501, "gate-confidence": 0.501}, True),  # ... and here by nothing
        ({"gate-tolerance": 0.06, "gate-min-queries": 361}, False),  # 3 x 120 queries
        ({"gate-tolerance": 0.06, "gate-min-queries": 360}, True),
    ],
)
def test_the_rule_is_that_of_the_run_config(
    knobs: dict[str, float], accepted: bool, tmp_path: Path
) -> None:
    history = start(tmp_path, {1: steps(3)})
    run_app(tmp_path, three(), **knobs)
    gate = history.gate()
    assert gate is not None
    assert gate["decision"]["accepted"] is accepted


def lacks_a_reference(reply: RecordDict) -> RecordDict:
    return wire_evaluation.comparison_reply({"ndcg@10": 0.5}, {}, num_queries=QUERIES)


def says_too_much(reply: RecordDict) -> RecordDict:
    better = wire_evaluation.Difference(QUERIES, 1.5, VARIANCE)
    return wire_evaluation.comparison_reply({"ndcg@10": 0.5}, {0: better}, num_queries=QUERIES)


def claims_many_queries(reply: RecordDict) -> RecordDict:
    same = wire_evaluation.Difference(10**9, 0.0, VARIANCE)
    return wire_evaluation.comparison_reply({"ndcg@10": 0.5}, {0: same}, num_queries=10**9)


def has_no_figures(reply: RecordDict) -> RecordDict:
    return RecordDict({"metrics": MetricRecord({"num-examples": 3, "difference-0": float("nan")})})


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (fails, "region failed: ValueError"),
        (lacks_a_reference, 'metric "difference-0" is missing'),
        (says_too_much, "difference to 0 is outside what nDCG allows"),
        (claims_many_queries, "num-examples is missing or not a count"),
        (has_no_figures, 'metric "difference-0" is missing or not a finite number'),
        (lambda reply: RecordDict({}), 'no metric record "metrics"'),
    ],
)
def test_a_region_that_answers_badly_is_named_and_the_others_decide(
    spoil: Reply, reason: str, tmp_path: Path
) -> None:
    history, grid = start(tmp_path), three()
    grid.regions[1].spoilt["gate"] = spoil
    run_app(tmp_path, grid)
    gate = history.gate()
    assert gate is not None
    (entry,) = gate["rejected"]
    assert entry["region"] == "north"
    assert reason in entry["reason"]
    assert "boots" not in json.dumps(gate)
    assert gate["differences"]["0"].keys() == gate["candidate"].keys() == {"east", "south"}
    assert {check["scope"] for check in gate["decision"]["checks"]} == {"mean", "east", "south"}
    assert gate["decision"]["accepted"]


def test_who_is_refused_or_silent_is_named_in_the_gate(tmp_path: Path) -> None:
    class Lossy(SmallGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            replies = list(super().send_and_receive(messages, timeout=timeout))
            asked = self.regions[0].purposes[-1:] == ["gate"]
            return [r for r in replies if not (asked and r.metadata.src_node_id == 2)]

    regions = [SmallRegion("east"), SmallRegion("north"), SmallRegion("south", base="c" * 64)]
    history = start(tmp_path)
    run_app(tmp_path, Lossy(regions))  # type: ignore[arg-type]
    gate = history.gate()
    assert gate is not None
    assert [entry["region"] for entry in gate["rejected"]] == ["south", "east"]
    assert gate["rejected"][1]["reason"] == "no reply within 3600 s"
    assert gate["candidate"].keys() == {"north"}
    assert "gate" not in regions[2].purposes


def test_where_nobody_answers_the_candidate_is_declined(tmp_path: Path) -> None:
    history, grid = start(tmp_path), three()
    for region in grid.regions:
        region.spoilt["gate"] = fails
    run_app(tmp_path, grid)
    gate = history.gate()
    assert gate is not None
    assert not gate["decision"]["accepted"]
    assert gate["decision"]["reasons"] == [
        "reference 0: undecided on 0 gate queries, a decision needs 100, in regions with two or "
        "more each"
    ]
    assert gate["candidate"] == {}


def test_a_region_without_gate_clicks_takes_part_but_decides_nothing(tmp_path: Path) -> None:
    def nothing(reply: RecordDict) -> RecordDict:
        return wire_evaluation.comparison_reply(
            {}, {0: wire_evaluation.Difference(0, 0.0, 0.0)}, num_queries=0
        )

    history, grid = start(tmp_path), three()
    grid.regions[0].spoilt["gate"] = nothing
    run_app(tmp_path, grid)
    gate = history.gate()
    assert gate is not None
    assert gate["rejected"] == []
    assert gate["candidate"]["east"] == {}
    assert {check["scope"] for check in gate["decision"]["checks"]} == {"mean", "north", "south"}


# -- once ------------------------------------------------------------------------------------------


def test_once_the_gate_has_decided_nobody_is_asked_again(tmp_path: Path) -> None:
    history = start(tmp_path)
    run_app(tmp_path, three())
    before = (history.folder / "gate.json").read_bytes()
    run_app(tmp_path, Deaf())
    assert (history.folder / "gate.json").read_bytes() == before


def test_a_kill_between_the_last_round_and_the_gate_changes_nothing(tmp_path: Path) -> None:
    whole, cut = start(tmp_path / "whole", {2: steps(1)}), start(tmp_path / "cut", {2: steps(1)})
    run_app(tmp_path / "whole", three())
    run_rounds(three(), parse_run_config(KNOBS), cut)
    assert cut.gate() is None
    grid = three()
    run_app(tmp_path / "cut", grid)
    assert grid.regions[0].purposes == ["describe", "gate"]
    assert cut.gate() == whole.gate()


def test_a_kill_while_regions_compare_changes_nothing(tmp_path: Path) -> None:
    whole, cut = start(tmp_path / "whole"), start(tmp_path / "cut")
    run_app(tmp_path / "whole", three())
    grid = three()
    grid.regions[1].spoilt["gate"] = killed
    with pytest.raises(KeyboardInterrupt):
        run_app(tmp_path / "cut", grid)
    assert cut.gate() is None
    run_app(tmp_path / "cut", three())
    assert cut.gate() == whole.gate()


def killed(reply: RecordDict) -> RecordDict:
    raise KeyboardInterrupt


def test_too_few_regions_at_the_gate_leave_it_open(tmp_path: Path) -> None:
    history, grid = start(tmp_path), three()

    def all_leave(reply: RecordDict) -> RecordDict:
        if grid.regions[2].asked[-1].request.server_round == 2:
            grid.away |= {"east", "north", "south"}
        return reply

    grid.regions[2].spoilt["validation"] = all_leave
    with pytest.raises(FederationError, match="0 regions connected"):
        run_app(tmp_path, grid)
    assert history.gate() is None
    grid.away.clear()
    run_app(tmp_path, grid)
    assert history.gate() is not None


def test_a_run_without_a_gate_asks_for_none(tmp_path: Path) -> None:
    history, grid = start(tmp_path), three()
    run_app(tmp_path, grid, gate=False)
    assert "gate" not in grid.regions[0].purposes
    assert history.gate() is None


def same(one: Adapter, other: Adapter) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
