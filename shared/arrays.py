"""Flower's arrays to numpy and back, without parsing the same header ever again.

A Flower `Array` holds the bytes of a .npy file, whose header is a Python literal: reading it takes
longer than a small tensor is worth, and a federation reads the same few headers with every message.
Here each distinct header is parsed once. Anything out of the ordinary goes the ordinary way, which
is Flower's and numpy's; what both give is the same (`tests/shared/test_arrays.py`).
"""

from functools import lru_cache
from io import BytesIO
from typing import Any, Final

import numpy as np
from flwr.app import Array
from numpy.lib import format as npy
from numpy.typing import NDArray

_STYPE: Final = "numpy.ndarray"
_MAGIC: Final = b"\x93NUMPY\x01\x00"  # format version 1.0; two bytes of header length follow
_FIXED: Final = len(_MAGIC) + 2
_MAX_HEADER: Final = 512  # bytes of a header worth remembering


def to_array(values: NDArray[Any]) -> Array:
    """`Array(values)`, byte for byte.

    Args:
        values: of any shape and plain dtype.
    """
    if not values.flags.c_contiguous or values.dtype.hasobject:
        return Array(values)
    shape = tuple(values.shape)
    data = _header_of(values.dtype.str, shape) + values.tobytes()
    return Array(dtype=str(values.dtype), shape=shape, stype=_STYPE, data=data)


def values_of(array: Array) -> NDArray[Any]:
    """`array.numpy()`; the numbers may be read-only.

    Raises:
        Exception: any; the bytes may be a stranger's.
    """
    data, start = array.data, _start(array.data)
    if array.stype != _STYPE or start > _MAX_HEADER or not data.startswith(_MAGIC):
        return array.numpy()
    dtype, shape, plain = _read_header(data[:start])
    if not plain or len(data) != start + dtype.itemsize * _size(shape):
        return array.numpy()
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


def _start(data: bytes) -> int:
    """Where the numbers of a .npy file begin."""
    return _FIXED + int.from_bytes(data[len(_MAGIC) : _FIXED], "little")


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


@lru_cache(maxsize=1024)
def _header_of(dtype: str, shape: tuple[int, ...]) -> bytes:
    written = BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(written, header)
    return written.getvalue()


@lru_cache(maxsize=1024)
def _read_header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """Dtype, shape, and whether the numbers follow in C order with nothing to be careful about."""
    read = BytesIO(header)
    npy.read_magic(read)
    shape, fortran, dtype = npy.read_array_header_1_0(read)
    plain = not (fortran and len(shape) > 1) and not dtype.hasobject and dtype.itemsize > 0
    return dtype, shape, plain and all(length > 0 for length in shape)
