"""The ServerApp: who may take part, and that complete rounds outlive whatever comes after."""

import dataclasses
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

import server.app
from server.app import handshake, run_rounds
from server.history import History
from shared import wire
from shared.adapter import Adapter, schema_hash
from shared.config import FederationConfig, parse_run_config
from shared.errors import ConfigError, FederationError
from simulations.engine import LocalGrid

BASE = "b" * 64
INITIAL: Adapter = {"fusion/gate": torch.tensor([0.0, -1.0]), "text/a": torch.ones(3)}
SOUND = wire.Description(
    region="east",
    protocol_version=wire.PROTOCOL_VERSION,
    base_fingerprint=BASE,
    schema_hash=schema_hash(INITIAL),
    num_products=5,
    num_examples=4,
    num_validation_queries=3,
    code_version="0.1.0",
    device="cpu",
    release=0,
)
Describe = Callable[[], RecordDict]


def described(**changes: object) -> Describe:
    return lambda: wire.describe_reply(dataclasses.replace(SOUND, **changes))  # type: ignore


def client_app(regions: list[Describe], *, fails_in: int = 0) -> ClientApp:
    """Regions that add 1 to every number; the first one fails in round `fails_in`."""
    app = ClientApp()

    @app.query("describe")
    def describe(message: Message, context: Context) -> Message:
        return Message(regions[int(context.node_config["partition-id"])](), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        sent, _, server_round = wire.read_train_request(message.content)
        if server_round == fails_in and context.node_config["partition-id"] == 0:
            raise RuntimeError("red boots")
        update = {name: torch.ones_like(tensor) for name, tensor in sent.items()}
        reply = wire.train_reply(update, num_examples=4, loss=1.0, seconds=0.0)
        return Message(reply, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(wire.evaluate_reply({"ndcg@10": 0.5}, num_examples=3), reply_to=message)

    return app


def config(**knobs: float) -> FederationConfig:
    return parse_run_config({"region-wait-s": 0, "num-rounds": 2, **knobs})


def shake_hands(*regions: Describe, **knobs: float) -> list[str]:
    grid = LocalGrid(client_app(list(regions)), len(regions), {})
    return list(handshake(grid, config(**knobs), BASE, SOUND.schema_hash).values())


def fails() -> RecordDict:
    raise ValueError("red boots")


BAD: dict[str, tuple[Describe, str]] = {
    "another base": (
        described(region="south", base_fingerprint="c" * 64),
        'region "south": base cccccccccccc, headquarters has bbbbbbbbbbbb; copy the base',
    ),
    "another schema": (
        described(region="south", schema_hash="d" * 64),
        'region "south": its adapter has other tensors; install the same release',
    ),
    "another protocol": (
        described(region="south", protocol_version=wire.PROTOCOL_VERSION + 1),
        f'region "south": protocol 2, headquarters speaks {wire.PROTOCOL_VERSION}',
    ),
    "the same name": (described(region="east"), 'region "east": another node has this name'),
    "a name that is none": (described(region="red\nboots"), "node 4 refused: the name it gives is"),
    "an exception": (fails, "node 4 refused: it failed to describe itself: ValueError"),
    "an empty answer": (lambda: RecordDict({}), "node 4 refused: the message has no config record"),
}


@pytest.mark.parametrize(("bad", "reason"), BAD.values(), ids=BAD.keys())
def test_who_cannot_take_part_is_refused_by_name_and_the_rest_go_on(
    bad: Describe, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    regions = (described(), described(region="north"), bad)
    assert shake_hands(*regions) == ["east", "north"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert reason in record.getMessage()
    assert "boots" not in record.getMessage()


def test_who_is_silent_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    class Lossy(LocalGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            return list(super().send_and_receive(messages, timeout=timeout))[:1]

    grid = Lossy(client_app([described(), described(region="north")]), 2, {})
    cohort = handshake(grid, config(**{"round-timeout-s": 5}), BASE, SOUND.schema_hash)
    assert cohort == {2: "east"}
    assert caplog.messages == ["node 3 refused: no reply within 5 s"]


def test_too_few_regions_after_refusals() -> None:
    with pytest.raises(FederationError, match="1 of 2 nodes can take part, min-regions is 2"):
        shake_hands(described(), BAD["another base"][0], **{"min-regions": 2})


def test_too_few_regions_connected() -> None:
    with pytest.raises(FederationError, match="1 regions connected after 0 s, expected 2"):
        shake_hands(described(), **{"min-regions": 2})


def test_an_error_reply_with_text_is_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    class Chatty(LocalGrid):
        def _answer(self, message: Message) -> Message:
            return Message(Error(code=2, reason="ValueError: red boots"), reply_to=message)

    with pytest.raises(FederationError):
        handshake(Chatty(ClientApp(), 1, {}), config(), BASE, SOUND.schema_hash)
    assert caplog.messages == ["node 2 refused: it failed to describe itself: error code 2"]


# -- rounds ----------------------------------------------------------------------------------------


@pytest.fixture
def history(tmp_path: Path) -> History:
    history = History(tmp_path / "headquarters")
    history.start(INITIAL, base_fingerprint=BASE)
    return history


def federate(history: History, *, fails_in: int = 0, **knobs: float) -> None:
    regions = [described(), described(region="north")]
    grid = LocalGrid(client_app(regions, fails_in=fails_in), 2, {})
    run_rounds(grid, config(**knobs), history)


def test_every_round_is_kept_with_its_adapter(history: History) -> None:
    federate(history)
    assert [record.round for record in history.rounds()] == [0, 1, 2]
    assert [record.loss for record in history.rounds()] == [None, 1.0, 1.0]
    for number in range(3):
        adapter = history.adapter(number)
        assert all(torch.equal(adapter[name], INITIAL[name] + number) for name in INITIAL)


def test_complete_rounds_survive_a_round_without_quorum(history: History) -> None:
    with pytest.raises(FederationError, match="round 2: 1 of 2 regions"):
        federate(history, fails_in=2, quorum=1.0)
    assert [record.round for record in history.rounds()] == [0, 1]
    federate(history)
    assert [record.round for record in history.rounds()] == [0, 1, 2]
    assert torch.equal(history.adapter(2)["text/a"], INITIAL["text/a"] + 2)


def test_the_text_of_an_exception_is_not_in_the_history(history: History) -> None:
    federate(history, fails_in=1)
    text = (history.folder / "history.json").read_text()
    assert "region failed: RuntimeError" in text
    assert "boots" not in text


def test_a_complete_run_asks_nobody(history: History) -> None:
    federate(history)
    before = (history.folder / "history.json").read_bytes()

    class Nobody(LocalGrid):
        def get_node_ids(self) -> Iterable[int]:
            raise AssertionError("asked")

    run_rounds(Nobody(ClientApp(), 0, {}), config(), history)
    assert (history.folder / "history.json").read_bytes() == before


def test_more_rounds_go_on_from_the_last_one(history: History) -> None:
    federate(history)
    federate(history, **{"num-rounds": 3})
    assert [record.round for record in history.rounds()] == [0, 1, 2, 3]
    assert torch.equal(history.adapter(3)["text/a"], INITIAL["text/a"] + 3)


def test_the_app_needs_a_run_folder() -> None:
    context = Context(
        run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={"seed": 1}
    )
    with pytest.raises(ConfigError, match='"run-dir" is empty'):
        server.app.app(grid=LocalGrid(ClientApp(), 0, {}), context=context)


def test_a_folder_that_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"initial\.safetensors: not found"):
        run_rounds(LocalGrid(ClientApp(), 0, {}), config(), History(tmp_path))
