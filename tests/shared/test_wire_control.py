"""Control variates on the wire: checked as strictly as updates, and taken only where asked for."""

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict

from shared import wire
from shared.adapter import Adapter, receipt, trained_names
from shared.compression import rounded
from shared.config import ENCODINGS, INT8, parse_run_config
from shared.envelope import pack, unpack
from shared.errors import WireError
from shared.records import encode_adapter

SENT: Adapter = {
    "fusion/t": torch.tensor(0.5),
    "text/x.lora_A.weight": torch.zeros(2, 3),
    "text/x.lora_B.weight": torch.zeros(4, 2),
}
ONLY_B = {name: SENT[name] for name in trained_names(SENT, "b")}
CHANGE: Adapter = {
    "fusion/t": torch.tensor(-0.25),
    "text/x.lora_B.weight": torch.arange(8.0).view(4, 2) / 7,
}
FREEZE_A = parse_run_config({"aggregation": "freeze_a"}).train_config(1)


def request(**changes: Any) -> RecordDict:
    control = encode_adapter(changes.pop("control", CHANGE))
    content = wire.train_request(
        encode_adapter(SENT), FREEZE_A, 3, control=control, counted=[5, 2**59]
    )
    content["config"].update(changes)
    return content


def reply(encoding: str = INT8, change: Adapter | None = CHANGE) -> RecordDict:
    return wire.train_reply(
        ONLY_B, encoding=encoding, num_examples=3, loss=1.0, seconds=0.1, control_change=change
    )


def read(content: RecordDict, *, control: bool = True, encoding: str = INT8) -> wire.TrainReply:
    return wire.read_train_reply(
        content, ONLY_B, encoding=encoding, max_examples=9, max_norm=5.0, control=control
    )


def same(left: Adapter, right: Adapter) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_a_request_comes_back_as_it_went() -> None:
    asked = wire.read_train_request(unpack(pack(request()), max_bytes=10**6))
    assert asked.control is not None and same(asked.control, CHANGE)
    assert asked.counted == (5, 2**59)
    plain = wire.read_train_request(wire.train_request(encode_adapter(SENT), FREEZE_A, 3))
    assert (plain.control, plain.counted) == (None, ())


def test_before_the_first_round_nothing_has_counted() -> None:
    content = wire.train_request(
        encode_adapter(SENT), FREEZE_A, 1, control=encode_adapter(ONLY_B), counted=[]
    )
    assert wire.read_train_request(unpack(pack(content), max_bytes=10**6)).counted == ()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_change_comes_back_as_it_was_rounded(encoding: str) -> None:
    found = read(reply(encoding), encoding=encoding)
    assert found.control_change is not None
    assert same(found.control_change, rounded(CHANGE, encoding))
    assert receipt(found.control_change) == receipt(rounded(CHANGE, encoding))


def test_a_receipt_is_that_of_one_change() -> None:
    other = {**CHANGE, "fusion/t": torch.tensor(-0.2500001)}
    assert receipt(dict(reversed(CHANGE.items()))) == receipt(CHANGE) != receipt(other)
    assert 0 <= receipt(CHANGE) < 2**60


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"counted": [1.5]}, "comes with a list of receipts"),
        ({"counted": 7}, "comes with a list of receipts"),
        ({"control": {"fusion/t": torch.tensor(0.0)}}, "lora_B.weight: found nothing"),
        ({"control": {name: tensor for name, tensor in SENT.items()}}, "lora_A.weight: found"),
        ({"trained-factors": "c"}, "trained-factors is none of both, a, b"),
    ],
)
def test_a_malformed_request_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        wire.read_train_request(request(**changes))


@pytest.mark.parametrize("record", ["control", "config"])
def test_control_variate_and_receipts_come_together(record: str) -> None:
    content = request()
    if record == "control":
        del content["control"]
    else:
        del content["config"]["counted"]
    with pytest.raises(WireError, match=r"comes with a list|no array record"):
        wire.read_train_request(content)


def without_control() -> RecordDict:
    return reply(change=None)


def with_a() -> RecordDict:
    return reply(change={**CHANGE, "text/x.lora_A.weight": torch.zeros(2, 3)})


def not_finite() -> RecordDict:
    content = reply("float32")
    content["control"]["fusion/t"] = Array(np.array(np.nan, np.float32))
    return content


def without_scales() -> RecordDict:
    content = reply()
    del content["control-scales"]
    return content


def scales_of_zero() -> RecordDict:
    content = reply()
    content["control-scales"] = ArrayRecord({"scales": Array(np.zeros(2, np.float32))})
    return content


@pytest.mark.parametrize(
    ("make", "encoding", "reason"),
    [
        (without_control, INT8, 'no array record "control"'),
        (with_a, INT8, "update has 0 missing and 1 unknown tensors"),
        (not_finite, "float32", "fusion/t: not finite"),
        (without_scales, INT8, 'no array record "control-scales"'),
        (scales_of_zero, INT8, "one is not above 0"),
        (lambda: reply(change={k: 99 * v for k, v in CHANGE.items()}), INT8, "variate's norm"),
    ],
)
def test_a_malformed_change_is_refused(make: Any, encoding: str, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        read(make(), encoding=encoding)


def test_a_change_that_nobody_asked_for_is_refused() -> None:
    with pytest.raises(WireError, match="a control variate that nobody asked for"):
        read(reply(), control=False)


def test_a_frozen_factor_in_an_update_is_refused() -> None:
    content = wire.train_reply(SENT, encoding=INT8, num_examples=3, loss=1.0, seconds=0.1)
    with pytest.raises(WireError, match="0 missing and 1 unknown"):
        read(content, control=False)
