"""One message's content as bytes, for the way between the ClientApp and the region's worker.

Flower carries a message only between its own processes. From the ClientApp to the worker it goes
over a local socket, and whoever writes into that socket is not trusted. So the form is one
safetensors container, which cannot hold code: arrays are tensors named `<record>/<array>`, and
everything else is JSON in the container's metadata. It needs numpy and no torch, because Flower
starts a new Python process for every message and that process only passes bytes on.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from safetensors.numpy import load, save

from shared.arrays import to_array, values_of
from shared.errors import WireError

_RECORDS = "records"  # the one metadata key: [[record name, type, array names or values], ...]
_FORMS = {form.__name__: form for form in (ArrayRecord, ConfigRecord, MetricRecord)}
_DTYPES = {"bool", *(f"{kind}int{bits}" for kind in ("", "u") for bits in (8, 16, 32, 64))} | {
    f"float{bits}" for bits in (16, 32, 64)
}
# Python objects take many times the bytes of the JSON they are read from.
MAX_HEADER_BYTES = 4 * 2**20


def pack(content: RecordDict) -> bytes:
    """A message's content as one safetensors container.

    Args:
        content: arrays of plain numbers; configs and metrics of numbers, strings and lists of them.

    Returns:
        The container; equal contents in equal order give equal bytes.

    Raises:
        WireError: bytes among the values, an array that is none, or a name that cannot be written.
    """
    records, tensors = list[list[Any]](), dict[str, np.ndarray]()
    for name, record in content.items():
        if "/" in name:
            raise WireError("a record's name holds a slash, which parts record and array")
        if isinstance(record, ArrayRecord):
            records.append([name, ArrayRecord.__name__, list(record)])
            tensors.update((f"{name}/{key}", _values(array)) for key, array in record.items())
        else:
            records.append([name, type(record).__name__, _plain(record)])
    try:
        data = save(tensors, metadata={_RECORDS: json.dumps(records)})
    except ValueError as error:  # half a surrogate pair in a name, or a number without end
        raise WireError(f"the content cannot be written ({type(error).__name__})") from None
    _check_header(data)
    return data


def unpack(data: bytes, *, max_bytes: int) -> RecordDict:
    """Read what `pack` wrote; nothing in it is believed before it is checked.

    Args:
        data: the container.
        max_bytes: a longer one is refused unread.

    Returns:
        The content: same records in the same order, same dtypes, shapes and numbers.

    Raises:
        WireError: these bytes are no such container; nothing of them is quoted.
    """
    if len(data) > max_bytes:
        raise WireError(f"the container has {len(data)} bytes, allowed are {max_bytes}")
    _check_header(data)
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + _header_bytes(data)])
        content = RecordDict()
        for name, form, body in json.loads(header["__metadata__"][_RECORDS]):
            if name in content:
                raise WireError("the container names a record twice")
            content[name] = _record(name, form, body, tensors)
    except WireError:
        raise
    except Exception as error:  # the bytes are a stranger's: anything may be wrong with them
        raise WireError(f"not a container of records ({type(error).__name__})") from None
    if tensors:
        raise WireError(f"the container has {len(tensors)} tensors that belong to no record")
    return content


def _record(
    name: str, form: str, body: Any, tensors: dict[str, np.ndarray]
) -> ArrayRecord | ConfigRecord | MetricRecord:
    """Build one record, taking its tensors out of `tensors`; Flower checks the values' types."""
    if _FORMS[form] is not ArrayRecord:
        return _FORMS[form](body)
    arrays = {key: tensors.pop(f"{name}/{key}") for key in body}
    return ArrayRecord({key: to_array(values) for key, values in arrays.items()})


def _values(array: Array) -> np.ndarray:
    """An array's numbers in C order, if its bytes are what its description says."""
    try:
        values = np.asarray(values_of(array), order="C")
    except Exception as error:  # the bytes are a stranger's here too
        raise WireError(f"unreadable array ({type(error).__name__})") from None
    if (str(values.dtype), values.shape) != (array.dtype, tuple(array.shape)):
        raise WireError("an array's bytes do not fit its description")
    if array.dtype not in _DTYPES:  # this also refuses foreign byte order
        raise WireError("an array's dtype is none that travels")
    return values


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    for value in record.values():
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, bytes):  # a list's values are all of one type; Flower sees to that
            raise WireError("a record holds bytes; arrays, numbers and strings travel")
    return dict(record)


def _check_header(data: bytes) -> None:
    if _header_bytes(data) > MAX_HEADER_BYTES:
        raise WireError(f"the container's header is above {MAX_HEADER_BYTES} bytes")


def _header_bytes(data: bytes) -> int:
    return int.from_bytes(data[:8], "little")
