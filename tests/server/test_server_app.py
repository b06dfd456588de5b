"""The ServerApp: complete rounds outlive whatever comes after."""

from pathlib import Path

import pytest
import torch
from flwr.app import RecordDict
from small_federation import (
    BASE,
    INITIAL,
    STEP,
    Deaf,
    SmallGrid,
    SmallRegion,
    run_server_app,
)

from server.app import run_rounds
from server.history import History
from shared.config import FederationConfig, parse_run_config
from shared.errors import ConfigError, FederationError


def config(**knobs: float) -> FederationConfig:
    return parse_run_config({"region-wait-s": 0, "num-rounds": 2, **knobs})


@pytest.fixture
def history(tmp_path: Path) -> History:
    history = History(tmp_path / "headquarters")
    history.start(INITIAL, base_fingerprint=BASE)
    return history


def federate(history: History, *, fails_in: int = 0, **knobs: float) -> None:
    regions = [SmallRegion("east"), SmallRegion("north")]

    def maybe(reply: RecordDict) -> RecordDict:
        if regions[0].asked[-1].request.server_round == fails_in:
            raise RuntimeError("red boots")
        return reply

    regions[0].spoilt["round"] = maybe
    run_rounds(SmallGrid(regions), config(**knobs), history)


def test_every_round_is_kept_with_its_adapter(history: History) -> None:
    federate(history)
    assert [record.round for record in history.rounds()] == [0, 1, 2]
    assert [record.loss for record in history.rounds()] == [None, 1.0, 1.0]
    for number in range(3):
        adapter = history.adapter(number)
        assert all(torch.equal(adapter[name], INITIAL[name] + number * STEP) for name in INITIAL)


def test_complete_rounds_survive_a_round_without_quorum(history: History) -> None:
    with pytest.raises(FederationError, match="round 2: 1 of 2 regions"):
        federate(history, fails_in=2, quorum=1.0)
    assert [record.round for record in history.rounds()] == [0, 1]
    federate(history)
    assert [record.round for record in history.rounds()] == [0, 1, 2]
    assert torch.equal(history.adapter(2)["text/a"], INITIAL["text/a"] + 2 * STEP)


def test_the_text_of_an_exception_is_not_in_the_history(history: History) -> None:
    federate(history, fails_in=1)
    text = (history.folder / "history.json").read_text()
    assert "region failed: RuntimeError" in text
    assert "boots" not in text


def test_a_complete_run_asks_nobody(history: History) -> None:
    federate(history)
    before = (history.folder / "history.json").read_bytes()
    run_rounds(Deaf(), config(), history)
    assert (history.folder / "history.json").read_bytes() == before


def test_more_rounds_go_on_from_the_last_one(history: History) -> None:
    federate(history)
    federate(history, **{"num-rounds": 3})
    assert [record.round for record in history.rounds()] == [0, 1, 2, 3]
    assert torch.equal(history.adapter(3)["text/a"], INITIAL["text/a"] + 3 * STEP)


def test_the_app_needs_a_run_folder() -> None:
    with pytest.raises(ConfigError, match='"run-dir" is empty'):
        run_server_app(SmallGrid([]), {"seed": 1})


def test_a_folder_that_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"initial\.safetensors: not found"):
        run_rounds(SmallGrid([]), config(), History(tmp_path))
