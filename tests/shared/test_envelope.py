"""One container for a message's content: exact both ways, and deaf to whatever is not one."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from safetensors.numpy import save

from shared.envelope import MAX_HEADER_BYTES, pack, unpack
from shared.errors import WireError

ROOM = 2**20
DTYPES = ("bool", "int8", "uint8", "int64", "uint64", "float16", "float32", "float64")


def example() -> RecordDict:
    return RecordDict(
        {
            "b": ArrayRecord({"z": Array(np.arange(6, dtype=np.float32).reshape(2, 3))}),
            "a": ConfigRecord({"rate": 1.0, "rounds": 1, "on": True, "names": ["x", "y"]}),
            "c": MetricRecord({"loss": 0.1, "n": 3}),
        }
    )


# -- there and back --------------------------------------------------------------------------------

numbers = st.one_of(
    *(arrays_of.arrays(dtype, arrays_of.array_shapes(min_dims=0, min_side=0)) for dtype in DTYPES)
)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = [st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False)]
plain = [*scalars, st.booleans(), st.text(max_size=8)]


def lists_of(kinds: list[st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    return st.one_of(*kinds, *(st.lists(kind, max_size=3) for kind in kinds))


records = st.one_of(
    st.dictionaries(names, numbers.map(Array), max_size=3).map(ArrayRecord),
    st.dictionaries(names, lists_of(plain), max_size=3).map(ConfigRecord),
    st.dictionaries(names, lists_of(scalars), max_size=3).map(MetricRecord),
)
contents = st.dictionaries(names.filter(lambda name: "/" not in name), records, max_size=3)


def forms(value: Any) -> Any:
    """A value with the types that `==` does not tell apart: 1, 1.0 and True."""
    return [type(value), *map(forms, value)] if isinstance(value, list) else (type(value), value)


def shown(content: RecordDict) -> list[Any]:
    """Everything in a content, in order, with its types."""
    return [
        (name, type(record), [(key, _value(value)) for key, value in record.items()])
        for name, record in content.items()
    ]


def _value(value: Any) -> Any:
    if isinstance(value, Array):
        return value.dtype, tuple(value.shape), value.stype, value.numpy().tobytes()
    return forms(value)


@given(contents)
def test_what_comes_out_is_what_went_in(records: dict[str, Any]) -> None:
    content = RecordDict(records)
    data = pack(content)
    back = unpack(data, max_bytes=len(data))
    assert shown(back) == shown(content)
    assert pack(back) == data


def test_a_number_that_is_none_travels_too() -> None:
    # Headquarters refuses it by name, so it must arrive there.
    content = RecordDict({"m": MetricRecord({"loss": float("nan"), "x": float("-inf")})})
    back = unpack(pack(content), max_bytes=ROOM)["m"]
    assert np.isnan(back["loss"])
    assert back["x"] == float("-inf")


def test_an_array_in_column_order_keeps_its_numbers() -> None:
    values = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    back = unpack(pack(RecordDict({"a": ArrayRecord({"x": Array(values)})})), max_bytes=ROOM)
    assert (back.array_records["a"]["x"].numpy() == values).all()


def test_it_is_a_plain_safetensors_container() -> None:
    from safetensors.numpy import load

    assert list(load(pack(example()))) == ["b/z"]


def test_it_needs_no_torch() -> None:
    code = "import sys, shared.envelope; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# -- what cannot travel ----------------------------------------------------------------------------

FLOAT32 = Array(np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"a": ConfigRecord({"x": b"1"})}, "holds bytes"),
        ({"a": ConfigRecord({"x": [b"1"]})}, "holds bytes"),
        ({"a": ConfigRecord({"x": 10**5000})}, "cannot be written"),
        ({"a/b": ConfigRecord()}, "slash"),
        ({"a": ArrayRecord({"\ud800": FLOAT32})}, "cannot be written"),
        ({"a": ArrayRecord({"x": Array(np.array(["red"]))})}, "dtype"),
        ({"a": ArrayRecord({"x": Array(np.zeros(3, ">f4"))})}, "dtype"),
        ({"a": ArrayRecord({"x": Array("float32", (3,), "numpy.ndarray", b"?")})}, "unreadable"),
        ({"a": ArrayRecord({"x": Array("float32", (3,), "pickle", FLOAT32.data)})}, "unreadable"),
        ({"a": ArrayRecord({"x": Array("float32", (4,), "numpy.ndarray", FLOAT32.data)})}, "fit"),
        ({"a": ArrayRecord({"x": Array("int8", (3,), "numpy.ndarray", FLOAT32.data)})}, "fit"),
        ({"a": ConfigRecord({"x": "y" * MAX_HEADER_BYTES})}, "header is above"),
    ],
)
def test_what_cannot_travel_is_refused_here(content: dict[str, Any], reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        pack(RecordDict(content))


# -- what is no container --------------------------------------------------------------------------


def container(records: object, **tensors: np.ndarray) -> bytes:
    text = records if isinstance(records, str) else json.dumps(records)
    return save(tensors, metadata={"records": text})


def header(text: str, data: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + data


ONE = np.zeros(1, np.float32)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x05cposix\nsystem\n(S'true'\ntR.",  # a pickle
        header("{}"),
        header('{"__metadata__":{"records":"[]"}}', b"more"),
        header("[" * 100_000),
        save({"a": ONE}),
        container("no JSON"),
        container("[" * 100_000),
        container({"a": 1}),
        container([["a"]]),
        container([["a", "Pickle", {}]]),
        container([[1, "ConfigRecord", {}]]),
        container([["a", "ConfigRecord", []]] * 2),
        container([["a", "ConfigRecord", {"x": None}]]),
        container([["a", "ConfigRecord", {"x": {"y": 1}}]]),
        container([["a", "ConfigRecord", {"x": [1, "y"]}]]),
        container([["a", "MetricRecord", {"x": "0.5"}]]),
        container([["a", "MetricRecord", {"x": True}]]),
        container([["a", "ArrayRecord", ["x"]]]),
        container([["a", "ArrayRecord", ["x", "x"]]], **{"a/x": ONE}),
        container([], **{"a/x": ONE}),
        header('{"a/x":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}', b"12"),
        header('{"a/x":{"dtype":"F32","shape":[0,9223372036854775807],"data_offsets":[0,0]}}'),
        header(json.dumps({"a": {"dtype": "U8", "shape": [1] * 80, "data_offsets": [0, 1]}}), b"1"),
    ],
)
def test_what_is_no_container_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        unpack(data, max_bytes=ROOM)


def test_a_container_is_refused_unread_above_the_bound() -> None:
    data = pack(example())
    unpack(data, max_bytes=len(data))
    with pytest.raises(WireError, match="allowed are"):
        unpack(data, max_bytes=len(data) - 1)


def test_a_header_that_would_unfold_in_memory_is_refused_unread() -> None:
    text = json.dumps({"__metadata__": {"records": "[" + "[]," * (MAX_HEADER_BYTES // 3) + "0]"}})
    with pytest.raises(WireError, match="header is above"):
        unpack(header(text), max_bytes=2 * len(text))


def read(data: bytes) -> None:
    """Read a container or refuse it; any other exception fails the test."""
    try:
        content = unpack(data, max_bytes=ROOM)
    except WireError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(content, RecordDict)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    read(data)


@given(st.integers(0, len(pack(example())) - 1))
def test_a_container_cut_short_is_refused(length: int) -> None:
    with pytest.raises(WireError):
        unpack(pack(example())[:length], max_bytes=ROOM)


@given(st.data())
def test_a_container_with_bytes_flipped_is_read_or_refused(data: st.DataObject) -> None:
    spoilt = bytearray(pack(example()))
    for _ in range(data.draw(st.integers(1, 4))):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    read(bytes(spoilt))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
kinds = st.sampled_from(["ArrayRecord", "ConfigRecord", "MetricRecord"])


@given(st.lists(st.tuples(st.just("a") | json_values, kinds | json_values, json_values)))
def test_any_json_in_a_container_is_read_or_refused(records: list[Any]) -> None:
    read(container(records, **{"a/x": ONE}))
