"""Gaussians on the wire: encoded and checked like updates, and taken only where asked for."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, RecordDict
from numpy.typing import NDArray

from shared import wire
from shared.adapter import Adapter
from shared.config import ENCODINGS, FLOAT32, INT8, parse_run_config
from shared.envelope import pack, unpack
from shared.errors import WireError
from shared.gaussians import COMPONENTS, Gaussians, fitted, stacked
from shared.records import encode_adapter, record_bytes

SENT: Adapter = {"text/a": torch.zeros(3)}
ON = parse_run_config({"drawn-negatives": 8}).train_config(2)
OFF = parse_run_config({}).train_config(2)
VECTORS = torch.nn.functional.normalize(torch.randn(200, 4, generator=torch.manual_seed(0)), dim=1)
ONE = fitted(VECTORS)
TWO = stacked([ONE, fitted(VECTORS[:100])])


def request(gaussians: Gaussians | None = TWO) -> RecordDict:
    return wire.train_request(encode_adapter(SENT), ON, 2, gaussians=gaussians)


def reply(gaussian: Gaussians | None = ONE, encoding: str = FLOAT32) -> RecordDict:
    return wire.train_reply(
        SENT, encoding=encoding, num_examples=9, loss=1.0, seconds=0.1, gaussian=gaussian
    )


def read(content: RecordDict, dim: int = 4, encoding: str = FLOAT32) -> wire.TrainReply:
    return wire.read_train_reply(
        content, SENT, encoding=encoding, max_examples=99, max_norm=9.0, gaussian_dim=dim
    )


def crossed(content: RecordDict) -> RecordDict:
    return unpack(pack(content), max_bytes=10**6)


def same(found: Gaussians | None, wanted: Gaussians, atol: float = 0.0) -> bool:
    assert found is not None
    pairs = zip(found.tensors().values(), wanted.tensors().values(), strict=True)
    return all(torch.allclose(one, other, atol=atol, rtol=0) for one, other in pairs)


def test_a_request_brings_all_of_them_as_they_were() -> None:
    assert same(wire.read_train_request(crossed(request())).gaussians, TWO)
    assert wire.read_train_request(request(None)).gaussians is None


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_reply_brings_one_in_the_encoding_of_the_update(encoding: str) -> None:
    found = read(crossed(reply(encoding=encoding)), encoding=encoding).gaussian
    assert same(found, ONE, atol=0.0 if encoding == FLOAT32 else 0.005)
    assert read(reply(None)).gaussian is None


def test_int8_takes_a_byte_a_number() -> None:
    size = record_bytes(reply(encoding=INT8)) - record_bytes(reply(None, INT8))
    assert 0 < size - (4 + COMPONENTS * 4 + 1 + 3 * 4) < 4 * 256  # the rest is headers


def test_nobody_is_told_who_did_not_ask() -> None:
    plain = wire.train_request(encode_adapter(SENT), OFF, 2, gaussians=TWO)
    with pytest.raises(WireError, match="Gaussians without drawn-negatives"):
        wire.read_train_request(plain)
    with pytest.raises(WireError, match="a Gaussian that nobody asked for"):
        read(reply(), dim=0)


def test_a_negative_number_of_draws_is_refused() -> None:
    content = request()
    content["config"]["drawn-negatives"] = -1
    with pytest.raises(WireError, match="drawn-negatives is below 0"):
        wire.read_train_request(content)


def spoilt(name: str, values: NDArray[Any]) -> Callable[[RecordDict], None]:
    def spoil(content: RecordDict) -> None:
        content["gaussians"][name] = Array(values)

    return spoil


def without(name: str) -> Callable[[RecordDict], None]:
    def spoil(content: RecordDict) -> None:
        del content["gaussians"][name]

    return spoil


BAD: dict[str, tuple[Callable[[RecordDict], None], str]] = {
    "no mean": (without("mean"), "missing and . unknown tensors"),
    "no factor": (without("factor"), "1 missing and 0 unknown tensors"),
    "more": (spoilt("x", np.zeros(4, np.float32)), "0 missing and 1 unknown tensors"),
    "shape": (spoilt("factor", np.zeros((1, 3, 4), np.float32)), r"factor: float32 \(1, 3, 4\)"),
    "dtype": (spoilt("residual", np.zeros(1)), "residual: float64"),
    "not finite": (spoilt("mean", np.full((1, 4), np.nan, np.float32)), "mean: not finite"),
    "too long": (spoilt("mean", np.full((1, 4), 2, np.float32)), "not of unit vectors"),
    "negative": (spoilt("residual", np.full(1, -0.1, np.float32)), "a variance is negative"),
}


@pytest.mark.parametrize(("spoil", "reason"), BAD.values(), ids=BAD.keys())
def test_what_is_wrong_with_them_is_named(spoil: Callable[[RecordDict], None], reason: str) -> None:
    for content, parse in ((reply(), read), (request(ONE), wire.read_train_request)):
        spoil(content)
        with pytest.raises(WireError, match=reason):
            parse(content)  # type: ignore[operator]


def test_a_reply_holds_one_of_the_length_that_was_asked_for() -> None:
    with pytest.raises(WireError, match=r"factor: float32 \(2, 32, 4\), expected"):
        read(reply(TWO))
    with pytest.raises(WireError, match=r"factor: float32 \(1, 32, 4\), expected"):
        read(reply(), dim=5)


def test_huge_ones_are_refused() -> None:
    huge = Gaussians(ONE.mean * 1e30, ONE.factor, ONE.residual)
    with pytest.raises(WireError, match=r"Gaussian's norm .* is above the bound 10"):
        read(reply(huge))
