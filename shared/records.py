"""Records, the parts that a Flower message is made of: their keys, and what is read out of them.

What is missing, of another form or out of range is refused, and said without quoting it.
`shared.wire`, `shared.wire_evaluation` and `shared.wire_vectors` make messages of them, and nobody
else knows record keys.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from shared.adapter import Adapter, norm
from shared.arrays import to_array, values_of
from shared.compression import MAX_SCALE, compress, expand
from shared.config import INT8, types_of
from shared.errors import WireError

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"  # as Flower's strategies name them
SCALES, CONTROL, STATISTICS, GAUSSIANS = "scales", "control", "statistics", "gaussians"
_SCALES_OF = {ARRAYS: SCALES, CONTROL: "control-scales", GAUSSIANS: "gaussians-scales"}
_NORM_OF = {ARRAYS: "update norm", CONTROL: "control variate's norm", GAUSSIANS: "Gaussian's norm"}
NUM_EXAMPLES = "num-examples"


def record_bytes(content: RecordDict) -> int:
    """Bytes of a message's arrays, as serialized for the wire."""
    return sum(
        len(array.data) for record in content.array_records.values() for array in record.values()
    )


def encode_adapter(adapter: Mapping[str, Tensor]) -> ArrayRecord:
    """An adapter or update as float32 arrays, in name order."""
    arrays = {k: to_array(v.detach().cpu().float().numpy()) for k, v in sorted(adapter.items())}
    return ArrayRecord(arrays)


def decode_adapter(record: ArrayRecord) -> Adapter:
    """The inverse of `encode_adapter`."""
    return {
        name: torch.from_numpy(values_of(array).copy()) for name, array in sorted(record.items())
    }


def write_update(content: RecordDict, name: str, update: Adapter, encoding: str) -> None:
    """Put an update into a record of this name, and its scales beside it."""
    sent = {k: compress(v.detach().cpu().numpy(), encoding) for k, v in sorted(update.items())}
    content[name] = ArrayRecord({key: to_array(values) for key, (values, _) in sent.items()})
    if encoding == INT8:
        scales = np.array([scale for _, scale in sent.values()], np.float32)
        content[_SCALES_OF[name]] = ArrayRecord({SCALES: to_array(scales)})


def read_update(
    content: RecordDict, name: str, sent: Adapter, encoding: str, max_norm: float
) -> Adapter:
    """The update in a record, decoded; its names and shapes are those of `sent`.

    Raises:
        WireError: the reason.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in sent.items()}
    values = read_arrays(arrays_of(content, name), shapes, encoding)
    scales = _read_scales(content, _SCALES_OF[name], values, encoding)
    update = {key: torch.from_numpy(expand(values[key], scales[key])) for key in values}
    size = norm(update)
    if not size <= max_norm:
        raise WireError(f"{_NORM_OF[name]} {size:.3g} is above the bound {max_norm:.3g}")
    return update


def read_arrays(
    arrays: ArrayRecord, shapes: Mapping[str, tuple[int, ...]], dtype: str
) -> dict[str, NDArray[Any]]:
    """The named arrays, sorted: all there, none else, of these shapes and dtype, every one finite.

    Raises:
        WireError: the reason.
    """
    if arrays.keys() != shapes.keys():
        missing, extra = len(shapes.keys() - arrays.keys()), len(arrays.keys() - shapes.keys())
        raise WireError(f"update has {missing} missing and {extra} unknown tensors")
    return {name: _read_array(name, arrays[name], shapes[name], dtype) for name in sorted(shapes)}


def _read_array(name: str, array: Array, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    found = tuple(array.shape)
    if found != shape or array.dtype != dtype:
        raise WireError(f"{name}: {array.dtype} {found}, expected {dtype} {shape}")
    try:
        values = values_of(array)
    except Exception as error:  # the bytes are the region's; anything may be in them
        raise WireError(f"{name}: unreadable array ({type(error).__name__})") from None
    if values.shape != shape or values.dtype != np.dtype(dtype):
        raise WireError(f"{name}: its bytes do not fit its header")
    if not np.isfinite(values).all():
        raise WireError(f"{name}: not finite")
    return values


def _read_scales(
    content: RecordDict, record_name: str, names: Iterable[str], encoding: str
) -> dict[str, float]:
    """The scale of each tensor of an update, 1 where none are sent.

    Raises:
        WireError: they are missing, of another form, or no scales.
    """
    names = list(names)
    if encoding != INT8:
        return dict.fromkeys(names, 1.0)
    record = arrays_of(content, record_name)
    scales = read_arrays(record, {SCALES: (len(names),)}, "float32")[SCALES]
    if not ((scales > 0) & (scales <= MAX_SCALE)).all():
        raise WireError(f"{SCALES}: one is not above 0, or too large to be one")
    return dict(zip(names, scales.tolist(), strict=True))


def check_types(where: str, values: Mapping[str, Any], form: type) -> None:
    """Every field of the dataclass `form` is there with its type; an int will do for a float."""
    for name, kind in types_of(form).items():
        accepted = (int, float) if kind is float else (kind,)
        if type(values.get(name)) not in accepted:  # not isinstance: true is an int to Python
            raise WireError(f'{where}: "{name}" is missing or not of type {kind.__name__}')


def read_count(metrics: Mapping[str, Any], max_examples: int) -> int:
    """How many examples a reply speaks for, at most `max_examples`; WireError if it says none."""
    value = metrics.get(NUM_EXAMPLES)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= max_examples:
        raise WireError(f"num-examples is missing or not a count within 0..{max_examples}")
    return value


def read_number(metrics: Mapping[str, Any], name: str) -> float:
    """A finite metric; WireError if there is none."""
    value = metrics.get(name)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise WireError(f'metric "{name}" is missing or not a finite number')
    return float(value)


def arrays_of(content: RecordDict, name: str = ARRAYS) -> ArrayRecord:
    """The record of arrays with this name; WireError if there is none."""
    record = content.get(name)
    if not isinstance(record, ArrayRecord):
        raise WireError(f'the message has no array record "{name}"')
    return record


def metrics_of(content: RecordDict) -> MetricRecord:
    """The record of metrics; WireError if there is none."""
    record = content.get(METRICS)
    if not isinstance(record, MetricRecord):
        raise WireError(f'the message has no metric record "{METRICS}"')
    return record


def config_of(content: RecordDict) -> ConfigRecord:
    """The record of settings; WireError if there is none."""
    record = content.get(CONFIG)
    if not isinstance(record, ConfigRecord):
        raise WireError(f'the message has no config record "{CONFIG}"')
    return record


def dashed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as they are named in records."""
    return {name.replace("_", "-"): value for name, value in values.items()}


def underscored(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `dashed`."""
    return {name.replace("-", "_"): value for name, value in values.items()}
