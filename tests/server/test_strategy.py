"""CheckedFedAvg: the mean it computes, and that nothing bad ever gets into it."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID

from server.handshake import Meeting, failure_kind, why_silent
from server.history import RoundRecord
from server.strategy import CheckedFedAvg
from server.traffic import Traffic
from shared import wire, wire_evaluation
from shared.adapter import Adapter, add
from shared.config import FLOAT32, parse_run_config
from shared.errors import FederationError
from shared.records import encode_adapter, record_bytes
from simulations.engine import LocalGrid

Region = Callable[[Adapter], RecordDict]  # what it answers to the adapter it is sent
SENT: Adapter = {"fusion/gate": torch.tensor([0.0, -1.2]), "text/a": torch.linspace(-1, 1, 6)}
NAMES = ("east", "north", "south")
COUNTS = {"east": 10, "north": 30, "south": 7}


class Grid(LocalGrid):
    """A grid of hand-written regions; `tamper` may lose, repeat or reorder their replies."""

    def __init__(
        self,
        regions: Sequence[Region],
        tamper: Callable[[list[Message]], Iterable[Message]] = list,
    ) -> None:
        super().__init__(_client_app(regions), len(regions), {})
        self.tamper = tamper

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.tamper(list(super().send_and_receive(messages, timeout=timeout)))


def _client_app(regions: Sequence[Region]) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        region = regions[int(context.node_config["partition-id"])]
        return Message(region(wire.read_train_request(message.content).adapter), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        wire_evaluation.read_evaluate_request(message.content)
        return Message(
            wire_evaluation.evaluate_reply({"ndcg@10": 0.5}, num_examples=4), reply_to=message
        )

    return app


def update_of(name: str) -> Adapter:
    generator = torch.Generator().manual_seed(NAMES.index(name) if name in NAMES else 9)
    return {key: torch.randn(value.shape, generator=generator) for key, value in SENT.items()}


def good(name: str, num_examples: int | None = None) -> Region:
    count = COUNTS[name] if num_examples is None else num_examples
    return lambda sent: wire.train_reply(
        update_of(name), encoding=FLOAT32, num_examples=count, loss=float(count), seconds=0.1
    )


def run(
    regions: Mapping[str, Region],
    tamper: Callable[[list[Message]], Iterable[Message]] = list,
    *,
    rounds: int = 1,
    offset: int = 0,
    **knobs: float,
) -> tuple[list[RoundRecord], list[Adapter]]:
    """Records and adapters of the rounds; nodes are numbered in the order of `regions`."""
    records: list[RoundRecord] = []
    adapters: list[Adapter] = []

    def keep(record: RoundRecord, adapter: Adapter, memory: Adapter, traffic: Traffic) -> None:
        records.append(record)
        adapters.append(adapter)

    grid = Grid(list(regions.values()), tamper)
    cohort = dict(zip(grid.get_node_ids(), regions, strict=True))
    given = {key.replace("_", "-"): value for key, value in knobs.items()}
    config = parse_run_config({"update-encoding": FLOAT32, **given})
    strategy = CheckedFedAvg(config, meet=lambda _: Meeting(cohort), offset=offset, on_round=keep)
    strategy.start(
        grid,
        encode_adapter(SENT),
        num_rounds=rounds,
        evaluate_fn=lambda number, arrays: strategy.finish_round(arrays) if number else None,
    )
    return records, adapters


def equal(a: Adapter, b: Adapter) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- the mean --------------------------------------------------------------------------------------


def test_the_mean_is_numpys_average_weighted_by_examples() -> None:
    _, (mean,) = run({name: good(name) for name in NAMES})
    weights = [COUNTS[name] for name in NAMES]
    for key, sent in SENT.items():
        ends = [(sent + update_of(name)[key]).double().numpy() for name in NAMES]
        np.testing.assert_allclose(mean[key], np.average(ends, axis=0, weights=weights), atol=1e-6)


def test_the_loss_is_weighted_by_examples_too() -> None:
    (record,), _ = run({name: good(name) for name in NAMES})
    assert record.loss == pytest.approx((10 * 10 + 30 * 30 + 7 * 7) / (10 + 30 + 7))


def test_which_node_a_region_is_changes_no_bit() -> None:
    expected = run({name: good(name) for name in NAMES})[1][0]
    for order in itertools.permutations(NAMES):
        assert equal(run({name: good(name) for name in order})[1][0], expected)


def test_the_order_of_replies_changes_no_bit() -> None:
    regions = {name: good(name) for name in NAMES}
    expected = run(regions)[1][0]
    for order in itertools.permutations(range(3)):
        shuffled = run(regions, lambda replies, order=order: [replies[i] for i in order])[1][0]
        assert equal(shuffled, expected)


def test_one_region_returns_itself() -> None:
    _, (mean,) = run({"east": good("east")})
    assert equal(mean, add(SENT, update_of("east")))


def test_examples_split_over_two_equal_regions_change_nothing() -> None:
    _, (one,) = run({"east": good("east", 6), "north": good("north", 6)})
    _, (more,) = run({"east": good("east", 600), "north": good("north", 600)})
    assert equal(one, more)


def test_regions_that_learn_nothing_return_what_was_sent() -> None:
    still = {key: torch.zeros_like(value) for key, value in SENT.items()}
    lazy = wire.train_reply(still, encoding=FLOAT32, num_examples=1, loss=0.0, seconds=0.0)
    _, (mean,) = run({"east": lambda sent: lazy})
    assert equal(mean, SENT)


# -- bad replies -----------------------------------------------------------------------------------


def with_update(change: Callable[[Adapter], Adapter]) -> Region:
    return lambda sent: wire.train_reply(
        change(update_of("south")), encoding=FLOAT32, num_examples=7, loss=7.0, seconds=0.1
    )


def with_metrics(**changes: float) -> Region:
    def answer(sent: Adapter) -> RecordDict:
        reply = good("south")(sent)
        metrics = {**reply.metric_records["metrics"], **changes}
        return RecordDict(
            {"arrays": reply.array_records["arrays"], "metrics": MetricRecord(metrics)}
        )

    return answer


def without(record: str) -> Region:
    def answer(sent: Adapter) -> RecordDict:
        reply = good("south")(sent)
        return RecordDict({name: part for name, part in reply.items() if name != record})

    return answer


def raises(sent: Adapter) -> RecordDict:
    raise ValueError("the shopper asked for red boots")


def spoil(value: float) -> Callable[[Adapter], Adapter]:
    return lambda update: {
        **update,
        "text/a": update["text/a"].index_fill(0, torch.tensor(2), value),
    }


BAD: dict[str, tuple[Region, str]] = {
    "nan": (with_update(spoil(float("nan"))), "text/a: not finite"),
    "infinite": (with_update(spoil(float("inf"))), "text/a: not finite"),
    "wrong shape": (
        with_update(lambda update: {**update, "text/a": torch.zeros(5)}),
        "text/a: float32 (5,), expected float32 (6,)",
    ),
    "broadcastable shape": (
        with_update(lambda update: {**update, "text/a": torch.zeros(1)}),
        "text/a: float32 (1,), expected float32 (6,)",
    ),
    "missing tensor": (
        with_update(lambda update: {"text/a": update["text/a"]}),
        "update has 1 missing and 0 unknown tensors",
    ),
    "extra tensor": (
        with_update(lambda update: {**update, "text/b": torch.zeros(1)}),
        "update has 0 missing and 1 unknown tensors",
    ),
    "far too large": (
        with_update(lambda update: {**update, "text/a": torch.full((6,), 1e3)}),
        "update norm 2.45e+03 is above the bound 100",
    ),
    "norm of 1e30": (
        with_update(lambda update: {**update, "text/a": torch.full((6,), 1e30)}),
        "update norm 2.45e+30 is above the bound 100",
    ),
    "no arrays": (without("arrays"), 'the message has no array record "arrays"'),
    "no metrics": (without("metrics"), 'the message has no metric record "metrics"'),
    "absurd count": (with_metrics(**{"num-examples": 10**9}), "not a count within 0..1000000"),
    "negative count": (with_metrics(**{"num-examples": -1}), "not a count within"),
    "fractional count": (with_metrics(**{"num-examples": 7.5}), "not a count within"),
    "zero count": (with_metrics(**{"num-examples": 0}), "nothing was trained on"),
    "loss is nan": (with_metrics(loss=float("nan")), 'metric "loss" is missing or not a finite'),
    "exception": (raises, "region failed: ValueError"),
}


@pytest.mark.parametrize(("bad", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_reply_is_named_and_the_round_goes_on(bad: Region, reason: str) -> None:
    rest = {name: good(name) for name in ("east", "north")}
    (record,), (mean,) = run({**rest, "south": bad})
    (rejected,) = record.rejected
    assert rejected["region"] == "south"
    assert reason in rejected["reason"]
    assert record.cohort == ["east", "north", "south"]
    assert equal(mean, run(rest)[1][0])


def test_a_region_that_fails_is_asked_again_next_round() -> None:
    answers = iter([raises, good("south")])
    regions = {"east": good("east"), "south": lambda sent: next(answers)(sent)}
    records, adapters = run(regions, rounds=2)
    assert [len(record.rejected) for record in records] == [1, 0]
    assert len(adapters) == 2


def test_silence_is_recorded() -> None:
    regions = {name: good(name) for name in NAMES}
    (record,), (mean,) = run(regions, lambda replies: replies[:2], round_timeout_s=5)
    silent = {"region": "south", "reason": "no reply within 5 s"}
    assert record.rejected == [silent, silent]  # to train, and to evaluate
    assert equal(mean, run({name: good(name) for name in NAMES[:2]})[1][0])


def test_a_region_that_flower_has_given_up_is_named() -> None:
    def given_up(replies: list[Message]) -> list[Message]:
        """Flower answers in its own name, and does not say for whom."""
        notice = Message(RecordDict(), dst_node_id=1, message_type="train")
        notice.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
        return [notice, *replies[:2]]

    regions = {name: good(name) for name in NAMES}
    (record,), (mean,) = run(regions, given_up)
    lost = {"region": "south", "reason": "its connection was lost before it answered"}
    assert record.rejected == [lost, lost]
    assert equal(mean, run({name: good(name) for name in NAMES[:2]})[1][0])


def test_one_given_up_and_one_silent_cannot_be_told_apart() -> None:
    assert why_silent(2, 1, timeout_s=5) == "no reply within 5 s, or its connection was lost"
    assert why_silent(2, 0, timeout_s=5) == "no reply within 5 s"


def test_a_second_reply_does_not_count_twice() -> None:
    regions = {name: good(name) for name in NAMES}
    (record,), (mean,) = run(regions, lambda replies: [*replies, replies[0]])
    assert record.rejected[0] == {"region": "east", "reason": "a reply that nobody asked for"}
    assert equal(mean, run(regions)[1][0])


def test_a_stranger_is_not_heard() -> None:
    def with_stranger(replies: list[Message]) -> list[Message]:
        stranger = Message(replies[0].content, dst_node_id=1, message_type="train")
        stranger.metadata.__dict__["_src_node_id"] = 99
        return [stranger, *replies]

    (record,), (mean,) = run({"east": good("east")}, with_stranger)
    assert record.rejected[0]["region"] == "unknown node"
    assert equal(mean, add(SENT, update_of("east")))


def test_without_a_quorum_the_round_fails_and_every_reason_is_named() -> None:
    regions = {"east": BAD["nan"][0], "north": raises, "south": good("south")}
    with pytest.raises(FederationError, match=r"round 1: 1 of 3 regions answered well.* is 2") as e:
        run(regions)
    assert "east: text/a: not finite" in str(e.value)
    assert "north: region failed: ValueError" in str(e.value)


def test_of_many_reasons_the_first_are_named() -> None:
    regions = {f"r{number:02}": raises for number in range(12)}
    with pytest.raises(FederationError, match="r04: region failed: ValueError; and 7 more") as e:
        run(regions)
    assert "r05" not in str(e.value)


@pytest.mark.parametrize(
    ("quorum", "bad", "holds"), [(0.5, 1, True), (0.5, 2, False), (1.0, 1, False)]
)
def test_the_quorum_is_a_share_of_the_cohort(quorum: float, bad: int, holds: bool) -> None:
    names = NAMES[:2]
    regions = {name: raises if place < bad else good(name) for place, name in enumerate(names)}
    if holds:
        assert len(run(regions, quorum=quorum)[0]) == 1
    else:
        with pytest.raises(FederationError, match="the quorum is"):
            run(regions, quorum=quorum)


def test_a_mean_of_nobody_is_never_taken() -> None:
    with pytest.raises(FederationError, match="0 of 1 regions answered well, the quorum is 1"):
        run({"south": raises}, quorum=1e-12)


def test_the_quorum_is_not_raised_by_rounding() -> None:
    """0.07 x 100 is a little more than 7 in floating point."""
    names = [f"region-{number:03d}" for number in range(100)]
    regions = {name: good(name, 1) if place < 7 else raises for place, name in enumerate(names)}
    assert len(run(regions, quorum=0.07)[0]) == 1


# -- what is kept of a round -----------------------------------------------------------------------


def test_the_text_of_an_exception_never_reaches_headquarters() -> None:
    text = "<class 'ValueError'>:<'the shopper asked for red boots'>"

    def as_flower_would(replies: list[Message]) -> list[Message]:
        return [*replies[:-1], Message(Error(code=2, reason=text), reply_to=_asked(replies[-1]))]

    (record,), _ = run({name: good(name) for name in NAMES}, as_flower_would)
    assert {row["reason"] for row in record.rejected} == {"region failed: error code 2"}


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("DataError", "DataError"),
        ("red boots", "error code 2"),
        ("Red-boots", "error code 2"),
        ("R" * 65, "error code 2"),
        ("DataError\n", "error code 2"),
        ("", "error code 2"),
        (None, "error code 2"),
    ],
)
def test_of_an_error_only_its_kind_is_kept(reason: str | None, kind: str) -> None:
    assert failure_kind(Error(code=2, reason=reason)) == kind


def test_bytes_are_those_of_the_arrays() -> None:
    size = sum(array.numel() * 4 for array in SENT.values())
    header = record_bytes(RecordDict({"arrays": encode_adapter(SENT)})) - size
    (record,), _ = run({**{name: good(name) for name in NAMES[:2]}, "south": raises})
    assert record.uplink_bytes == 2 * (size + header)  # what was rejected does not count
    assert record.downlink_bytes == 2 * 3 * (size + header)  # to train and to evaluate


@pytest.mark.parametrize("metrics", [{"ndcg@10": 1.5}, {"ndcg@10": float("nan")}])
def test_a_bad_evaluation_leaves_the_others(metrics: dict[str, float]) -> None:
    def spoil_evaluation(replies: list[Message]) -> list[Message]:
        if "arrays" not in replies[0].content:
            replies[0].content = wire_evaluation.evaluate_reply(metrics, num_examples=4)
        return replies

    (record,), _ = run({name: good(name) for name in NAMES}, spoil_evaluation)
    assert record.validation == {"north": {"ndcg@10": 0.5}, "south": {"ndcg@10": 0.5}}
    assert [row["region"] for row in record.rejected] == ["east"]


def test_rounds_are_numbered_from_where_the_run_stopped() -> None:
    records, _ = run({"east": good("east")}, rounds=2, offset=3, num_rounds=5)
    assert [record.round for record in records] == [4, 5]


def test_every_region_is_sent_the_adapter_the_round_and_its_learning_rate() -> None:
    requests: list[RecordDict] = []

    class Recorder(Grid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            messages = list(messages)
            requests.extend(message.content for message in messages)
            return super().send_and_receive(messages, timeout=timeout)

    config = parse_run_config(
        {
            "num-rounds": 2,
            "update-encoding": FLOAT32,
            "learning-rate": 0.4,
            "final-learning-rate": 0.1,
        }
    )
    grid = Recorder([good("east"), good("north")])
    cohort = dict(zip(grid.get_node_ids(), NAMES, strict=False))
    meeting = Meeting(cohort)
    strategy = CheckedFedAvg(config, meet=lambda _: meeting, offset=1, on_round=lambda *_: None)
    strategy.start(grid, encode_adapter(SENT), num_rounds=1)
    trained = [request for request in requests if "learning-rate" in request["config"]]
    assert len(trained) == 2
    for request in trained:
        asked = wire.read_train_request(request)
        assert equal(asked.adapter, SENT)
        assert (asked.config.learning_rate, asked.server_round) == (pytest.approx(0.1), 2)


def _asked(reply: Message) -> Message:
    """A message to answer in the place of `reply`."""
    message = Message(RecordDict(), reply.metadata.src_node_id, reply.metadata.message_type)
    message.metadata.__dict__["_message_id"] = "again"
    return message


def test_arrays_that_do_not_fit_their_header_are_rejected() -> None:
    def torn(sent: Adapter) -> RecordDict:
        reply = good("south")(sent)
        arrays = reply.array_records["arrays"]
        torn_array = arrays["text/a"]
        torn_array.data = torn_array.data[:-4]
        return RecordDict({"arrays": ArrayRecord(dict(arrays)), "metrics": reply["metrics"]})

    (record,), _ = run({"east": good("east"), "south": torn})
    assert record.rejected[0]["region"] == "south"
    assert "text/a" in record.rejected[0]["reason"]
