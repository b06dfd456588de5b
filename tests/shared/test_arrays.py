"""The short way to and from Flower's arrays gives what Flower's own gives."""

from io import BytesIO

import numpy as np
import pytest
from flwr.app import Array
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, scalar_dtypes
from numpy.typing import NDArray

from shared.arrays import to_array, values_of

ANY = arrays(scalar_dtypes(), array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))


def saved(values: NDArray[np.generic]) -> bytes:
    buffer = BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def of(data: bytes, values: NDArray[np.generic], stype: str = "numpy.ndarray") -> Array:
    return Array(dtype=str(values.dtype), shape=tuple(values.shape), stype=stype, data=data)


@given(ANY)
def test_an_array_is_flowers_own_byte_for_byte(values: NDArray[np.generic]) -> None:
    ours, theirs = to_array(values), Array(values)
    assert (ours.dtype, ours.shape, ours.stype) == (theirs.dtype, theirs.shape, theirs.stype)
    assert ours.data == theirs.data


@given(ANY, st.booleans())
def test_numbers_are_flowers_own(values: NDArray[np.generic], transposed: bool) -> None:
    array = Array(values.T if transposed else values)
    ours, theirs = values_of(array), array.numpy()
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert ours.tobytes() == theirs.tobytes()


@given(st.binary(max_size=200))
def test_bytes_of_a_stranger_end_as_they_do_with_flower(junk: bytes) -> None:
    for data in (junk, saved(np.arange(3))[:-1], b"\x93NUMPY\x01\x00" + junk):
        array = of(data, np.arange(3))
        with pytest.raises(Exception) as theirs:
            array.numpy()
        with pytest.raises(Exception) as ours:
            values_of(array)
        assert ours.value is not theirs.value


def test_bytes_after_the_numbers_are_passed_over_as_flower_does() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert values_of(of(saved(values) + b"more", values)).tolist() == values.tolist()


def test_pickled_objects_and_other_serializations_are_refused() -> None:
    buffer = BytesIO()
    objects = np.array([{}, {}], dtype=object)
    np.save(buffer, objects, allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        values_of(of(buffer.getvalue(), objects))
    with pytest.raises(TypeError, match="serialization type"):
        values_of(of(saved(np.arange(3)), np.arange(3), stype="torch"))


def test_what_was_read_is_not_what_is_kept() -> None:
    first, second = np.arange(4.0), np.arange(4.0) + 1
    assert values_of(to_array(first)).tolist() == first.tolist()
    assert values_of(to_array(second)).tolist() == second.tolist()
