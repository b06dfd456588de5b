"""Encoding statistics on the wire: checked like updates, and taken only where asked for."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from numpy.typing import NDArray

from shared import wire
from shared.adapter import Adapter
from shared.config import FLOAT32, parse_run_config
from shared.decorrelation import MIN_EXAMPLES, MOMENTS, Statistics, statistics_of
from shared.envelope import pack, unpack
from shared.errors import WireError
from shared.records import encode_adapter, record_bytes

SENT: Adapter = {"text/a": torch.zeros(3)}
ON = parse_run_config({"decorrelation-weight": 0.1}).train_config(2)
OFF = parse_run_config({}).train_config(2)
EAST = torch.nn.functional.normalize(torch.randn(9, 4, generator=torch.manual_seed(0)), dim=1)
FOUND = statistics_of(EAST, EAST.flip(0), torch.ones(9))


def request(statistics: Statistics | None = FOUND) -> RecordDict:
    return wire.train_request(encode_adapter(SENT), ON, 2, statistics=statistics)


def reply(statistics: Statistics | None = FOUND, num_examples: int = MIN_EXAMPLES) -> RecordDict:
    return wire.train_reply(
        SENT,
        encoding=FLOAT32,
        num_examples=num_examples,
        loss=1.0,
        seconds=0.1,
        statistics=statistics,
    )


def read(content: RecordDict, dim: int = 4) -> wire.TrainReply:
    return wire.read_train_reply(
        content, SENT, encoding=FLOAT32, max_examples=10**6, max_norm=9.0, dim=dim
    )


def crossed(content: RecordDict) -> RecordDict:
    return unpack(pack(content), max_bytes=10**6)


def assert_same(found: Statistics | None, weight: float) -> None:
    assert found is not None and float(found.weight) == weight
    assert all(torch.equal(getattr(found, name), getattr(FOUND, name)) for name in MOMENTS)


def test_they_come_back_as_they_went() -> None:
    assert_same(wire.read_train_request(crossed(request())).statistics, 1)
    assert_same(read(crossed(reply())).statistics, MIN_EXAMPLES)
    assert wire.read_train_request(request(None)).statistics is None


def test_they_take_four_vectors_and_a_matrix_of_float32() -> None:
    bare = record_bytes(RecordDict({"arrays": encode_adapter(SENT)}))
    size = record_bytes(reply()) - bare
    assert 0 < size - 4 * (4 * 4 + 4 * 4) < 5 * 256  # the rest is headers


def test_without_a_weight_a_message_has_none() -> None:
    plain = wire.train_request(encode_adapter(SENT), OFF, 2)
    assert set(plain) == {"arrays", "config"} and set(reply(None)) == {"arrays", "metrics"}
    asked = wire.train_request(encode_adapter(SENT), OFF, 2, statistics=FOUND)
    with pytest.raises(WireError, match="statistics without a decorrelation-weight"):
        wire.read_train_request(asked)
    with pytest.raises(WireError, match="statistics that nobody asked for"):
        read(reply(), dim=0)
    assert read(reply(None), dim=0).statistics is None


def test_a_small_region_must_not_send_any_and_a_larger_one_must() -> None:
    assert read(reply(None, MIN_EXAMPLES - 1)).statistics is None
    with pytest.raises(WireError, match="statistics of fewer than 100 examples"):
        read(reply(FOUND, MIN_EXAMPLES - 1))
    with pytest.raises(WireError, match='no array record "statistics"'):
        read(reply(None))


def spoilt(name: str, values: NDArray[Any]) -> Callable[[RecordDict], None]:
    def spoil(content: RecordDict) -> None:
        content["statistics"][name] = Array(values)

    return spoil


def without_cross(content: RecordDict) -> None:
    del content["statistics"]["cross"]


def without_query(content: RecordDict) -> None:
    del content["statistics"]["query"]


def metrics_instead(content: RecordDict) -> None:
    content["statistics"] = content["config" if "config" in content else "metrics"]


BAD: dict[str, tuple[Callable[[RecordDict], None], str]] = {
    "missing": (without_cross, "statistics are not query, query_squared"),
    "no query": (without_query, "statistics are not query, query_squared"),
    "no arrays": (metrics_instead, 'no array record "statistics"'),
    "more": (spoilt("x", np.zeros(4, np.float32)), "statistics are not query, query_squared"),
    "shape": (spoilt("cross", np.zeros((4, 3), np.float32)), r"cross: float32 \(4, 3\), expected"),
    "dtype": (spoilt("product", np.zeros(4)), "product: float64"),
    "not finite": (spoilt("query", np.full(4, np.nan, np.float32)), "query: not finite"),
    "too long": (spoilt("query_squared", np.ones(4, np.float32)), "not of unit vectors"),
    "variance": (spoilt("query", np.full(4, 0.9, np.float32)), "query: a variance is negative"),
    "cross": (spoilt("cross", np.ones((4, 4), np.float32)), "larger than the squares allow"),
}


@pytest.mark.parametrize(("spoil", "reason"), BAD.values(), ids=BAD.keys())
def test_what_is_wrong_with_them_is_named(spoil: Callable[[RecordDict], None], reason: str) -> None:
    for make, parse in ((reply, read), (request, wire.read_train_request)):
        content = make()
        spoil(content)
        with pytest.raises(WireError, match=reason):
            parse(content)


def test_vectors_of_another_length_are_refused() -> None:
    with pytest.raises(WireError, match=r"cross: float32 \(4, 4\), expected float32 \(5, 5\)"):
        read(reply(), dim=5)


@pytest.mark.parametrize("shape", [(), (0,), (2, 2)])
def test_a_request_of_no_length_is_refused(shape: tuple[int, ...]) -> None:
    content = request()
    content["statistics"]["query"] = Array(np.zeros(shape, np.float32))
    with pytest.raises(WireError, match="statistics are not query"):
        wire.read_train_request(content)


def test_negative_squares_do_not_pass_as_small_ones() -> None:
    changed = replace(FOUND, product_squared=-FOUND.product_squared)
    with pytest.raises(WireError, match="product_squared is not of unit vectors"):
        read(reply(changed))


def test_an_empty_record_is_named() -> None:
    content = reply()
    content["statistics"] = ArrayRecord({})
    with pytest.raises(WireError, match="statistics are not query"):
        read(content)
