"""What is encoded is decoded; what is malformed is refused, with a reason that quotes nothing."""

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from shared import wire, wire_evaluation
from shared.adapter import Adapter, subtract
from shared.compression import rounded
from shared.config import ENCODINGS, FLOAT16, FLOAT32, INT8, parse_run_config
from shared.encoders.encoder import Encoder
from shared.errors import WireError
from shared.records import decode_adapter, encode_adapter, record_bytes

NPY_HEADER = 128  # bytes before the values of a .npy of few dimensions


@pytest.fixture
def sent() -> Adapter:
    return {"a": torch.zeros(3, 4), "b": torch.tensor(0.5)}


@pytest.fixture
def update() -> Adapter:
    return {"a": torch.arange(12.0).view(3, 4), "b": torch.tensor(-1.0)}


def reply(update: Adapter, **changes: Any) -> RecordDict:
    plain = {"encoding": FLOAT32, "num_examples": 10, "loss": 1.5, "seconds": 0.1}
    return wire.train_reply(update, **{**plain, **changes})


def read(content: RecordDict, sent: Adapter, encoding: str = FLOAT32) -> wire.TrainReply:
    return wire.read_train_reply(
        content, sent, encoding=encoding, max_examples=1000, max_norm=100.0
    )


def same(left: Adapter, right: Adapter) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


# -- decode(encode(x)) == x ------------------------------------------------------------------------

TENSORS = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=0, max_dims=3, max_side=4),
    elements=st.floats(width=32, allow_nan=False),
).map(lambda values: torch.from_numpy(np.asarray(values)))


@settings(derandomize=True)
@given(adapter=st.dictionaries(st.text(max_size=8), TENSORS, max_size=4))
def test_an_adapter_comes_back_as_it_went(adapter: Adapter) -> None:
    assert same(decode_adapter(encode_adapter(adapter)), adapter)


def test_a_real_adapter_comes_back_in_name_order(encoder: Encoder, trained: Adapter) -> None:
    decoded = decode_adapter(encode_adapter(dict(reversed(trained.items()))))
    assert same(decoded, trained)
    assert list(decoded) == sorted(trained)
    encoder.load_adapter(decoded)


def test_what_was_decoded_may_be_written_to(sent: Adapter) -> None:
    record = encode_adapter(sent)
    decode_adapter(record)["a"] += 1
    assert same(decode_adapter(record), sent)


def test_two_messages_come_back_as_they_went(sent: Adapter) -> None:
    arrays = encode_adapter(sent)
    config = parse_run_config({"seed": 3}).train_config(2)
    training = wire.read_train_request(wire.train_request(arrays, config, 2, purpose=wire.LOCAL))
    assert same(training.adapter, sent)
    assert (training.config, training.server_round, training.purpose) == (config, 2, "local")
    assert wire.read_description(wire.describe_reply(DESCRIPTION)) == DESCRIPTION


def test_the_answer_comes_back_as_it_went(sent: Adapter, update: Adapter) -> None:
    answer = read(reply(update), sent)
    assert same(answer.update, update)
    assert (answer.num_examples, answer.loss, answer.seconds) == (10, 1.5, 0.1)


def test_bytes_are_those_of_the_values_and_a_header_each(sent: Adapter, update: Adapter) -> None:
    expected = sum(4 * tensor.numel() + NPY_HEADER for tensor in update.values())
    assert record_bytes(reply(update)) == expected
    assert record_bytes(wire_evaluation.evaluate_reply({"mrr@10": 1.0}, num_examples=1)) == 0


# -- a region's update -----------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_arrives_is_the_rounded_update(encoding: str, sent: Adapter, update: Adapter) -> None:
    update = {name: tensor / 7 for name, tensor in update.items()}
    arrived = read(reply(update, encoding=encoding), sent, encoding).update
    assert same(arrived, rounded(update, encoding))
    assert same(arrived, update) == (encoding == FLOAT32)


def test_a_real_update_is_a_quarter_of_its_size(encoder: Encoder, trained: Adapter) -> None:
    update = subtract(trained, encoder.adapter())
    plain, small = (record_bytes(reply(update, encoding=e)) for e in (FLOAT32, INT8))
    count = sum(tensor.numel() for tensor in update.values())
    headers = plain - 4 * count
    # one more header, of the scales, which are 4 bytes each
    assert small - count - 4 * len(update) == pytest.approx(headers, abs=200)


@pytest.mark.parametrize("found", ENCODINGS)
@pytest.mark.parametrize("asked", ENCODINGS)
def test_another_encoding_than_was_asked_for_is_refused(
    found: str, asked: str, sent: Adapter, update: Adapter
) -> None:
    content = reply(update, encoding=found)
    if found == asked:
        read(content, sent, asked)
        return
    with pytest.raises(WireError, match=f"a: {found} .*, expected {asked}"):
        read(content, sent, asked)


@pytest.mark.parametrize(
    ("scales", "reason"),
    [
        (None, 'no array record "scales"'),
        (np.ones(3, np.float32), r"scales: float32 \(3,\), expected float32 \(2,\)"),
        (np.ones(2), "scales: float64"),
        (np.array([1, np.nan], np.float32), "scales: not finite"),
        (np.array([1, 0], np.float32), "scales: one is not above 0"),
        (np.array([1, -1], np.float32), "scales: one is not above 0"),
        (np.array([1, 1e38], np.float32), "scales: one is not above 0, or too large"),
    ],
)
def test_malformed_scales_are_refused(
    scales: np.ndarray[Any, Any] | None, reason: str, sent: Adapter, update: Adapter
) -> None:
    content = reply(update, encoding=INT8)
    del content["scales"]
    if scales is not None:
        content["scales"] = ArrayRecord({"scales": Array(scales)})
    with pytest.raises(WireError, match=reason):
        read(content, sent, INT8)


def test_half_precision_that_overflowed_on_the_way_is_refused(
    sent: Adapter, update: Adapter
) -> None:
    content = reply(update, encoding=FLOAT16)
    content["arrays"]["a"] = Array(np.full((3, 4), np.inf, np.float16))
    with pytest.raises(WireError, match="a: not finite"):
        read(content, sent, FLOAT16)


def with_tensor(name: str, tensor: Tensor | None) -> Callable[[Adapter], RecordDict]:
    """A reply in which one tensor is another one, or missing."""

    def make(update: Adapter) -> RecordDict:
        changed = {**update, name: tensor}
        return reply({key: value for key, value in changed.items() if value is not None})

    return make


def npy(values: np.ndarray[Any, Any]) -> bytes:
    stream = BytesIO()
    np.save(stream, values, allow_pickle=values.dtype == object)
    return stream.getvalue()


def with_bytes(data: bytes, *, stype: str = "numpy.ndarray") -> Callable[[Adapter], RecordDict]:
    """A reply whose array `a` claims to be float32 (3, 4) and carries other bytes."""

    def make(update: Adapter) -> RecordDict:
        content = reply(update)
        lying = Array(dtype="float32", shape=(3, 4), stype=stype, data=data)
        content.array_records["arrays"]["a"] = lying
        return content

    return make


def with_metric(name: str, value: object) -> Callable[[Adapter], RecordDict]:
    """A reply in which one metric has another value, or is missing."""

    def make(update: Adapter) -> RecordDict:
        content = reply(update)
        metrics = {**content.metric_records["metrics"], name: value}
        content["metrics"] = MetricRecord({k: v for k, v in metrics.items() if v is not None})
        return content

    return make


def without(record: str) -> Callable[[Adapter], RecordDict]:
    def make(update: Adapter) -> RecordDict:
        content = reply(update)
        return RecordDict({name: content[name] for name in content if name != record})

    return make


def confused(update: Adapter) -> RecordDict:
    content = reply(update)
    return RecordDict({"arrays": content["metrics"], "metrics": content["arrays"]})


A, B = torch.zeros(3, 4), torch.tensor(0.0)
BIG = torch.full((3, 4), 1e30)
UNFIT = "a: its bytes do not fit its header"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (with_tensor("a", A * math.nan), "a: not finite"),
        (with_tensor("b", torch.tensor(-math.inf)), "b: not finite"),
        (with_tensor("a", BIG), r"norm 3.46e\+30 is above the bound 100"),
        (with_tensor("a", A.T.contiguous()), r"a: float32 \(4, 3\), expected float32 \(3, 4\)"),
        (with_tensor("a", A[:1]), r"a: float32 \(1, 4\), expected"),  # it would broadcast
        (with_tensor("b", B[None]), r"b: float32 \(1,\), expected float32 \(\)"),
        (with_tensor("a", None), "1 missing and 0 unknown"),
        (with_tensor("c", B), "0 missing and 1 unknown"),
        (with_bytes(npy(np.zeros((3, 4), np.float64))), UNFIT),
        (with_bytes(npy(np.zeros((3, 4), ">f4"))), UNFIT),
        (with_bytes(npy(np.zeros((3, 4), np.int32))), UNFIT),
        (with_bytes(npy(np.zeros((4, 3), np.float32))), UNFIT),
        (with_bytes(npy(np.zeros((1, 4), np.float32))), UNFIT),
        (with_bytes(npy(np.zeros((3, 4), np.float32))[:-1]), "a: unreadable array"),
        (with_bytes(npy(np.array([None], dtype=object))), "a: unreadable array"),
        (with_bytes(b""), "a: unreadable array"),
        (with_bytes(b"not an array"), "a: unreadable array"),
        (with_bytes(npy(np.zeros((3, 4), np.float32)), stype="pickle"), "a: unreadable array"),
        (with_metric("num-examples", None), "num-examples is missing or not a count"),
        (with_metric("num-examples", -1), r"num-examples is .* within 0\.\.1000"),
        (with_metric("num-examples", 1001), r"num-examples is .* within 0\.\.1000"),
        (with_metric("num-examples", 10.0), "num-examples is missing or not a count"),
        (with_metric("num-examples", [10]), "num-examples is missing or not a count"),
        (with_metric("num-examples", 0), "num-examples is 0: nothing was trained on"),
        (with_metric("loss", math.nan), 'metric "loss" is missing or not a finite number'),
        (with_metric("loss", None), 'metric "loss" is missing or not a finite number'),
        (with_metric("loss", [1.0]), 'metric "loss" is missing or not a finite number'),
        (with_metric("seconds", math.inf), 'metric "seconds" is missing or not a finite'),
        (without("arrays"), 'no array record "arrays"'),
        (without("metrics"), 'no metric record "metrics"'),
        (lambda _: RecordDict(), "the message has no"),
        (confused, "the message has no"),
    ],
)
def test_a_malformed_update_is_refused(
    sent: Adapter, update: Adapter, make: Callable[[Adapter], RecordDict], reason: str
) -> None:
    content = make(update)
    with pytest.raises(WireError, match=reason):
        read(content, sent)


def test_true_is_no_count_and_flower_does_not_carry_it(update: Adapter) -> None:
    with pytest.raises(TypeError, match="valid type"):
        with_metric("num-examples", True)(update)


def test_a_norm_at_the_bound_passes(sent: Adapter) -> None:
    update = {"a": torch.zeros(3, 4), "b": torch.tensor(100.0)}
    assert read(reply(update), sent).update["b"] == 100.0


# -- a region's description, and what headquarters sends -------------------------------------------

DESCRIPTION = wire.Description(
    region="north",
    protocol_version=wire.PROTOCOL_VERSION,
    base_fingerprint="b" * 64,
    schema_hash="c" * 64,
    rank=4,
    num_products=10,
    num_examples=20,
    num_validation_queries=3,
    code_version="0.1.0",
    device="cpu",
    release=2,
    num_gate_queries=4,
    verdict="declined",
    verdict_release=3,
    verdict_reason="canary 2 not found",
    in_matrix=True,
    shares_local=False,
    named=True,
)


def description(**changes: Any) -> RecordDict:
    values = {name.replace("_", "-"): value for name, value in asdict(DESCRIPTION).items()}
    values |= changes
    return RecordDict(
        {"config": ConfigRecord({name: v for name, v in values.items() if v is not None})}
    )


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("region", None, "str"),
        ("region", 3, "str"),
        ("num-products", "10", "int"),
        ("num-products", 10.0, "int"),
        ("num-products", True, "int"),
        ("protocol-version", None, "int"),
    ],
)
def test_a_malformed_description_is_refused(key: str, value: Any, kind: str) -> None:
    name = key.replace("-", "_")
    with pytest.raises(WireError, match=f'"{name}" is missing or not of type {kind}'):
        wire.read_description(description(**{key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("verdict", "perhaps"),
        ("verdict-reason", "one line\nand another"),
        ("verdict-reason", "x" * 301),
        ("code-version", "\x1b[31m"),
    ],
)
def test_text_that_could_spoil_a_log_or_a_page_is_refused(key: str, value: str) -> None:
    with pytest.raises(WireError, match=f'description: "{key.replace("-", "_")}"') as caught:
        wire.read_description(description(**{key: value}))
    assert value not in str(caught.value)


def test_a_newer_region_is_understood_well_enough_to_be_refused() -> None:
    newer = description(**{"protocol-version": 99, "favourite-colour": "red"})
    assert wire.read_description(newer) == replace(DESCRIPTION, protocol_version=99)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("learning-rate", None, r"missing or unknown \['learning_rate'\]"),
        ("secret-option", 1, r"missing or unknown \['secret_option'\]"),
        ("server-round", None, "missing or unknown server-round"),
        ("server-round", "2", "missing or unknown server-round"),
        ("learning-rate", "fast", '"learning_rate" is missing or not of type float'),
        ("batch-size", 1.5, '"batch_size" is missing or not of type int'),
        ("augmented-views", 1_000_000, "augmented-views is not in 0 to 8"),
        ("augmented-views", -1, "augmented-views is not in 0 to 8"),
        ("public-negatives", -1, "public-negatives is below 0"),
        ("known-item-source", "shoppers", "known-item-source is none of catalog, public"),
        ("part", 1, "part is not in 0 to rounds-per-epoch"),
        ("part", -1, "part is not in 0 to rounds-per-epoch"),
        ("rounds-per-epoch", 0, "part is not in 0 to rounds-per-epoch"),
    ],
)
def test_a_malformed_train_message_is_refused(
    sent: Adapter, key: str, value: Any, reason: str
) -> None:
    config = parse_run_config({}).train_config(1)
    content = wire.train_request(encode_adapter(sent), config, 1)
    settings = {**content.config_records["config"], key: value}
    content["config"] = ConfigRecord({name: v for name, v in settings.items() if v is not None})
    with pytest.raises(WireError, match=reason):
        wire.read_train_request(content)


@pytest.mark.parametrize(
    ("read_message", "record"),
    [
        (wire.read_train_request, "config"),
        (wire.read_description, "config"),
        (wire_evaluation.read_evaluate_request, "config"),
    ],
)
def test_an_empty_message_is_refused(
    read_message: Callable[[RecordDict], object], record: str
) -> None:
    with pytest.raises(WireError, match=f"the message has no {record} record"):
        read_message(RecordDict())


def test_a_real_update_passes(encoder: Encoder, trained: Adapter) -> None:
    fresh = encoder.adapter()
    encoder.load_adapter(trained)
    update = subtract(encoder.adapter(), fresh)
    assert same(read(reply(update), fresh).update, update)
