"""Who may take part is asked before every round: regions come, go and are refused by name."""

import logging
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from flwr.app import Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from small_federation import BASE, INITIAL, STEP, SmallGrid, SmallRegion, fails

from server.app import run_rounds
from server.handshake import Meeting, failure_kind, handshake, wait_for_nodes
from server.history import History
from shared import wire
from shared.adapter import schema_hash
from shared.config import FederationConfig, parse_run_config
from shared.errors import FederationError
from simulations.engine import LocalGrid

SCHEMA = schema_hash(INITIAL)


def config(**knobs: float) -> FederationConfig:
    return parse_run_config({"region-wait-s": 0, "num-rounds": 3, **knobs})


def shake_hands(*regions: SmallRegion, **knobs: float) -> Meeting:
    return handshake(SmallGrid(regions), config(**knobs), BASE, SCHEMA, rank=0)


def simulated(name: str, **changes: object) -> SmallRegion:
    """As in a simulation, where keys have no names."""
    return SmallRegion(name, admitted="", **changes)  # type: ignore[arg-type]


def spoilt(reply: object) -> SmallRegion:
    region = simulated("south")
    region.spoilt["describe"] = reply  # type: ignore[assignment]
    return region


BAD: dict[str, tuple[SmallRegion, str]] = {
    "another base": (
        simulated("south", base="c" * 64),
        'region "south": base cccccccccccc, headquarters has bbbbbbbbbbbb; copy the base',
    ),
    "another schema": (
        simulated("south", schema_hash="d" * 64),
        'region "south": its adapter has other tensors; install the same release',
    ),
    "another protocol": (
        simulated("south", protocol_version=wire.PROTOCOL_VERSION + 1),
        f'region "south": protocol {wire.PROTOCOL_VERSION + 1}, headquarters speaks'
        f" {wire.PROTOCOL_VERSION}",
    ),
    "nothing to train on": (
        simulated("south", num_examples=0),
        'region "south": no clicks to train on yet; it takes releases, and part in rounds once',
    ),
    "the same name": (simulated("east"), 'region "east": another node has this name'),
    "a name that is none": (simulated("red boots"), "node 4 refused: the name it gives is"),
    "an exception": (spoilt(fails), "node 4 refused: it failed to describe itself: ValueError"),
    "an empty answer": (
        spoilt(lambda reply: RecordDict({})),
        "node 4 refused: the message has no config record",
    ),
}


# -- one handshake ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("bad", "reason"), BAD.values(), ids=BAD.keys())
def test_who_cannot_take_part_is_refused_by_name_and_the_rest_go_on(
    bad: SmallRegion, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    meeting = shake_hands(simulated("east"), simulated("north"), bad)
    assert meeting.cohort == {2: "east", 3: "north"}
    assert meeting.descriptions.keys() == {"east", "north"}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert reason in record.getMessage()
    assert "boots" not in record.getMessage()
    (entry,) = meeting.refused
    assert f"{entry['region']} refused: {entry['reason']}" == record.getMessage()


def test_a_region_with_other_code_takes_part_if_it_speaks_the_same_protocol(
    history: History,
) -> None:
    south = SmallRegion("south", code_version="9.9")
    run_rounds(SmallGrid([SmallRegion("east"), south]), config(), history)
    assert cohorts(history) == ["east south"] * 4
    assert all(record.rejected == [] for record in history.rounds())
    assert south.purposes == ["describe", "validation"] + ["describe", "round", "validation"] * 3
    assert history.regions()["south"]["code_version"] == "9.9"  # and people see it


def test_a_key_admitted_under_another_name_is_refused_under_that_name() -> None:
    meeting = shake_hands(SmallRegion("north", admitted="south"), SmallRegion("east"))
    assert meeting.cohort == {3: "east"}
    reason = 'its key was admitted as "south", it calls itself "north"'
    assert meeting.refused == [{"region": "south", "reason": reason}]


def test_who_takes_anothers_name_does_not_shut_that_region_out() -> None:
    meeting = shake_hands(SmallRegion("north", admitted="south"), SmallRegion("north"))
    assert meeting.cohort == {3: "north"}
    assert [entry["region"] for entry in meeting.refused] == ["south"]


def test_who_is_silent_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    class Lossy(SmallGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            return list(super().send_and_receive(messages, timeout=timeout))[:1]

    grid = Lossy([simulated("east"), simulated("north"), SmallRegion("south")])
    meeting = handshake(grid, config(**{"describe-timeout-s": 5}), BASE, SCHEMA, rank=0)
    assert meeting.cohort == {2: "east"}
    assert meeting.refused == [
        {"region": "node 3", "reason": "no reply within 5 s"},
        {"region": "south", "reason": "no reply within 5 s"},
    ]
    assert caplog.messages == [
        "node 3 refused: no reply within 5 s",
        "south refused: no reply within 5 s",
    ]


def test_too_few_regions_after_refusals() -> None:
    with pytest.raises(FederationError, match="1 of 2 nodes can take part, min-regions is 2"):
        shake_hands(simulated("east"), BAD["another base"][0], **{"min-regions": 2})


def test_too_few_regions_connected() -> None:
    with pytest.raises(FederationError, match="1 regions connected after 0 s, expected 2"):
        shake_hands(simulated("east"), **{"min-regions": 2})


def test_waiting_ends_when_enough_are_connected() -> None:
    class Filling(SmallGrid):
        asked = 0

        def get_nodes(self) -> list[object]:  # type: ignore[override]
            self.asked += 1
            return list(super().get_nodes())[: self.asked]

    grid = Filling([SmallRegion("east"), SmallRegion("north"), SmallRegion("south")])
    found = wait_for_nodes(grid, config(**{"min-regions": 2, "region-wait-s": 60}))
    assert found == {2: "east", 3: "north"}


def test_an_error_reply_with_text_is_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    class Chatty(LocalGrid):
        def answer(self, message: Message) -> Message:
            return Message(Error(code=2, reason="ValueError: red boots"), reply_to=message)

    with pytest.raises(FederationError):
        handshake(Chatty(ClientApp(), 1, {}), config(), BASE, SCHEMA, rank=0)
    assert caplog.messages == ["node 2 refused: it failed to describe itself: error code 2"]


@pytest.mark.parametrize(
    ("reason", "known"),
    [
        ("DataError", "DataError"),
        (None, "error code 2"),
        ("", "error code 2"),
        ("DataError: red boots", "error code 2"),
        ("DataError\n", "error code 2"),
        ("E" * 65, "error code 2"),
    ],
)
def test_of_a_failure_only_a_kind_is_known(reason: str | None, known: str) -> None:
    assert failure_kind(Error(code=2, reason=reason)) == known


def test_an_app_that_was_lost_is_no_number() -> None:
    lost = Error(code=ErrorCode.CLIENT_APP_CRASHED, reason="ClientApp stopped responding.")
    assert failure_kind(lost).endswith("ended before it answered")


# -- before every round ----------------------------------------------------------------------------


@pytest.fixture
def history(tmp_path: Path) -> History:
    history = History(tmp_path / "headquarters")
    history.start(INITIAL, base_fingerprint=BASE)
    return history


@pytest.fixture
def grid() -> SmallGrid:
    return SmallGrid([SmallRegion(name) for name in ("east", "north", "south")])


def after_round(number: int, grid: SmallGrid, *, comes: str = "", goes: str = "") -> None:
    """Once east has measured that round, one region connects and another is gone."""

    def change(reply: RecordDict) -> RecordDict:
        if grid.regions[0].asked[-1].request.server_round == number:
            grid.away -= {comes}
            grid.away |= {goes} - {""}
        return reply

    grid.regions[0].spoilt["validation"] = change


def cohorts(history: History) -> list[str]:
    return [" ".join(record.cohort) for record in history.rounds()]


def test_a_region_that_joins_takes_part_from_the_next_round_on(
    history: History, grid: SmallGrid
) -> None:
    grid.away.add("north")
    after_round(1, grid, comes="north")
    run_rounds(grid, config(), history)
    assert cohorts(history) == [
        "east south",
        "east south",
        "east north south",
        "east north south",
    ]
    north = grid.regions[1]
    assert north.purposes == ["describe", "round", "validation"] * 2
    assert [one.request.server_round for one in north.asked if one.purpose == "round"] == [2, 3]
    assert history.rounds()[2].validation.keys() == {"east", "north", "south"}


def test_a_region_that_leaves_is_missed_by_nobody(history: History, grid: SmallGrid) -> None:
    after_round(1, grid, goes="south")
    run_rounds(grid, config(quorum=1.0), history)
    assert cohorts(history) == ["east north south"] * 2 + ["east north"] * 2
    assert all(not record.rejected for record in history.rounds())
    assert torch.allclose(history.adapter(3)["text/a"], INITIAL["text/a"] + 3 * STEP)
    assert history.regions()["south"]["refused"] is None


def test_a_federation_that_shrinks_below_min_regions_stops_and_can_be_resumed(
    history: History, grid: SmallGrid
) -> None:
    after_round(1, grid, goes="south")
    with pytest.raises(FederationError, match="2 regions connected after 0 s, expected 3"):
        run_rounds(grid, config(**{"min-regions": 3}), history)
    assert cohorts(history) == ["east north south"] * 2
    grid.away.clear()
    run_rounds(grid, config(**{"min-regions": 3}), history)
    assert [record.round for record in history.rounds()] == [0, 1, 2, 3]


def test_a_refused_region_is_in_the_record_of_every_round_and_in_regions_json(
    history: History, tmp_path: Path
) -> None:
    regions = [SmallRegion("east"), SmallRegion("north", base="c" * 64)]
    run_rounds(SmallGrid(regions), config(), history)
    reason = (
        'region "north": base cccccccccccc, headquarters has bbbbbbbbbbbb; copy the base that '
        "headquarters hands out"
    )
    assert [record.rejected for record in history.rounds()] == [
        [{"region": "north", "reason": reason}]
    ] * 4
    assert cohorts(history) == ["east"] * 4
    assert regions[1].purposes == ["describe"] * 4
    known = history.regions()
    assert known["north"]["refused"] == reason
    assert known["north"]["refused_at"]
    assert "seen" not in known["north"]


def test_a_region_that_mends_what_it_was_refused_for_takes_part_again(
    history: History, grid: SmallGrid
) -> None:
    north = grid.regions[1]
    sound, broken = north.description, SmallRegion("north", base="c" * 64).description
    north.description = broken

    def mend(reply: RecordDict) -> RecordDict:
        north.description = sound
        return reply

    grid.regions[0].spoilt["round"] = mend
    run_rounds(grid, config(), history)
    assert cohorts(history) == ["east south"] * 2 + ["east north south"] * 2
    assert [len(record.rejected) for record in history.rounds()] == [1, 1, 0, 0]
    assert history.regions()["north"]["refused"] is None
    assert history.regions()["north"]["seen"]


def test_a_region_refused_later_keeps_what_it_said_before(
    history: History, grid: SmallGrid
) -> None:
    north = grid.regions[1]

    def spoil(reply: RecordDict) -> RecordDict:
        north.description = SmallRegion("north", base="c" * 64).description
        return reply

    north.spoilt["round"] = spoil
    run_rounds(grid, config(), history)
    assert cohorts(history) == ["east north south"] * 2 + ["east south"] * 2
    known = history.regions()["north"]
    assert known["base_fingerprint"] == BASE
    assert known["refused"].startswith('region "north": base cccccccccccc')


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_a_federation_that_grows_and_is_cut_off_ends_as_if_it_had_not_been(
    cut: int, tmp_path: Path
) -> None:
    """North joins after round 1; the kill comes while round `cut + 1` trains."""
    kept = {}
    for name in ("whole", "cut"):
        history = kept[name] = History(tmp_path / name)
        history.start(INITIAL, base_fingerprint=BASE)
        grid = SmallGrid([SmallRegion(each) for each in ("east", "north", "south")])
        grid.away = {"north"}
        after_round(1, grid, comes="north")
        if name == "cut":
            grid.regions[2].spoilt["round"] = interrupt_in(cut + 1, grid.regions[2])
            with pytest.raises(KeyboardInterrupt):
                run_rounds(grid, config(), history)
            assert [record.round for record in history.rounds()] == list(range(cut + 1))
            grid.regions[2].spoilt.clear()
        run_rounds(grid, config(), history)
    assert cohorts(kept["cut"]) == cohorts(kept["whole"])
    for number in range(4):
        ours, theirs = (history.adapter(number) for history in kept.values())
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def interrupt_in(number: int, region: SmallRegion) -> object:
    def interrupt(reply: RecordDict) -> RecordDict:
        if region.asked[-1].request.server_round == number:
            raise KeyboardInterrupt
        return reply

    return interrupt
