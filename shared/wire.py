"""The record keys and forms of everything that crosses between headquarters and a region.

Arrays and scalars only. Every reply is checked here before it counts; what is wrong with it is said
without quoting it. No other module knows a record key.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_type_hints

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from shared.adapter import Adapter, norm
from shared.config import TrainConfig
from shared.errors import WireError

PROTOCOL_VERSION = 1
ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"  # as Flower's strategies name them
NUM_EXAMPLES = "num-examples"
DESCRIBE = "query.describe"
_METRIC_NAME = re.compile(r"[a-z][a-z0-9_@]{0,31}")


@dataclass(frozen=True)
class Description:
    """A region's answer to `query.describe`.

    Attributes:
        region: its name.
        protocol_version: of this module.
        base_fingerprint: of the base it works with.
        schema_hash: of its adapter (`shared.adapter.schema_hash`).
        num_products: in its catalog.
        num_examples: training examples.
        num_validation_queries: queries it evaluates on.
        code_version: of fedshelf.
        device: "cpu" or "cuda".
        release: number of the release in use, 0 before the first.
    """

    region: str
    protocol_version: int
    base_fingerprint: str
    schema_hash: str
    num_products: int
    num_examples: int
    num_validation_queries: int
    code_version: str
    device: str
    release: int


@dataclass(frozen=True)
class TrainReply:
    """A region's checked answer to a train message.

    Attributes:
        update: adapter after local training minus the adapter sent.
        num_examples: it was trained on, > 0.
        loss: mean training loss, nats.
        seconds: of local training.
    """

    update: Adapter
    num_examples: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class EvaluateReply:
    """A region's checked answer to an evaluate message.

    Attributes:
        num_examples: queries measured, >= 0.
        metrics: mean of each metric over them, by name, each in [0, 1].
    """

    num_examples: int
    metrics: dict[str, float]


def encode_adapter(adapter: Mapping[str, Tensor]) -> ArrayRecord:
    """An adapter or update as float32 arrays, in name order."""
    arrays = {k: Array(v.detach().cpu().float().numpy()) for k, v in sorted(adapter.items())}
    return ArrayRecord(arrays)


def decode_adapter(record: ArrayRecord) -> Adapter:
    """The inverse of `encode_adapter`."""
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in sorted(record.items())}


def describe_request() -> RecordDict:
    """The message `query.describe`; it carries nothing but the protocol version."""
    return RecordDict({CONFIG: ConfigRecord({"protocol-version": PROTOCOL_VERSION})})


def describe_reply(description: Description) -> RecordDict:
    """A region's description as a record."""
    return RecordDict({CONFIG: ConfigRecord(_dashed(asdict(description)))})


def read_description(content: RecordDict) -> Description:
    """Read a region's description.

    Raises:
        WireError: a field is missing or of another type. Fields this version does not know are
            passed over, so that a newer region can be refused for its protocol version.
    """
    values = _underscored(_config(content))
    _check_types("description", values, Description)
    return Description(**{field.name: values[field.name] for field in fields(Description)})


def train_request(adapter: ArrayRecord, config: TrainConfig, server_round: int) -> RecordDict:
    """The train message of one round."""
    settings = ConfigRecord({**_dashed(asdict(config)), "server-round": server_round})
    return RecordDict({ARRAYS: adapter, CONFIG: settings})


def read_train_request(content: RecordDict) -> tuple[Adapter, TrainConfig, int]:
    """Read a train message: adapter, hyper-parameters, round.

    Raises:
        WireError: something is missing, unknown or of another type.
    """
    values = _underscored(_config(content))
    server_round = values.pop("server_round", None)
    wanted = {field.name for field in fields(TrainConfig)}
    if type(server_round) is not int or values.keys() != wanted:
        odd = sorted(wanted ^ values.keys())
        raise WireError(f"train message: missing or unknown {odd or 'server-round'}")
    _check_types("train message", values, TrainConfig)
    return decode_adapter(_arrays(content)), TrainConfig(**values), server_round


def train_reply(update: Adapter, *, num_examples: int, loss: float, seconds: float) -> RecordDict:
    """A region's answer to a train message."""
    metrics = _train_metrics(num_examples, loss, seconds)
    return RecordDict({ARRAYS: encode_adapter(update), METRICS: metrics})


def read_train_reply(
    content: RecordDict, sent: Adapter, *, max_examples: int, max_norm: float
) -> TrainReply:
    """Check a region's update before it counts.

    Args:
        content: the reply.
        sent: the adapter it was sent; names, shapes and dtypes must be the same.
        max_examples: a larger claim is refused: it would outweigh everyone.
        max_norm: bound on the update's L2 norm.

    Raises:
        WireError: the reason, without quoting the reply.
    """
    metrics = _metrics(content)
    num_examples = _count(metrics, max_examples)
    if num_examples == 0:
        raise WireError("num-examples is 0: nothing was trained on")
    arrays = _arrays(content)
    _check_arrays(arrays, sent)
    update = decode_adapter(arrays)
    size = norm(update)
    if not size <= max_norm:
        raise WireError(f"update norm {size:.3g} is above the bound {max_norm:.3g}")
    loss, seconds = _finite(metrics, "loss"), _finite(metrics, "seconds")
    return TrainReply(update, num_examples, loss, seconds)


def aggregation_record(adapter: Adapter, reply: TrainReply) -> RecordDict:
    """A checked reply in the form Flower's strategies average: weights, not updates."""
    metrics = _train_metrics(reply.num_examples, reply.loss, reply.seconds)
    return RecordDict({ARRAYS: encode_adapter(adapter), METRICS: metrics})


def _train_metrics(num_examples: int, loss: float, seconds: float) -> MetricRecord:
    return MetricRecord({NUM_EXAMPLES: num_examples, "loss": loss, "seconds": seconds})


def evaluate_request(adapter: ArrayRecord, server_round: int) -> RecordDict:
    """The evaluate message of one round."""
    return RecordDict({ARRAYS: adapter, CONFIG: ConfigRecord({"server-round": server_round})})


def read_evaluate_request(content: RecordDict) -> Adapter:
    """Read an evaluate message: the candidate adapter."""
    return decode_adapter(_arrays(content))


def evaluate_reply(metrics: Mapping[str, float], *, num_examples: int) -> RecordDict:
    """A region's answer to an evaluate message."""
    record = MetricRecord({NUM_EXAMPLES: num_examples})
    for name, value in metrics.items():
        record[name] = float(value)
    return RecordDict({METRICS: record})


def read_evaluate_reply(content: RecordDict, *, max_examples: int) -> EvaluateReply:
    """Check a region's evaluation before it counts.

    Raises:
        WireError: a metric is not a number in [0, 1], or the count is absurd.
    """
    metrics = _metrics(content)
    num_examples = _count(metrics, max_examples)
    names = [name for name in metrics if name != NUM_EXAMPLES]
    if not all(_METRIC_NAME.fullmatch(name) for name in names):  # it is a region's text: not quoted
        raise WireError("a metric has a name that is none, such as ndcg@10")
    means = {name: _finite(metrics, name) for name in names}
    for name, value in means.items():
        if not 0 <= value <= 1:
            raise WireError(f'metric "{name}" is {value:.3g}, must be in [0, 1]')
    return EvaluateReply(num_examples, means)


def record_bytes(content: RecordDict) -> int:
    """Bytes of a message's arrays, as serialized for the wire."""
    return sum(
        len(array.data) for record in content.array_records.values() for array in record.values()
    )


def _check_arrays(arrays: ArrayRecord, sent: Adapter) -> None:
    """Same names, shapes and dtypes as what was sent, every value finite."""
    if arrays.keys() != sent.keys():
        missing, extra = len(sent.keys() - arrays.keys()), len(arrays.keys() - sent.keys())
        raise WireError(f"update has {missing} missing and {extra} unknown tensors")
    for name, tensor in sent.items():
        array = arrays[name]
        found, expected = tuple(array.shape), tuple(tensor.shape)
        if found != expected or array.dtype != "float32":
            raise WireError(f"{name}: {array.dtype} {found}, expected float32 {expected}")
        try:
            values = array.numpy()
        except Exception as error:  # the bytes are the region's; anything may be in them
            raise WireError(f"{name}: unreadable array ({type(error).__name__})") from None
        if values.shape != expected or values.dtype != np.float32:
            raise WireError(f"{name}: its bytes do not fit its header")
        if not np.isfinite(values).all():
            raise WireError(f"{name}: not finite")


def _check_types(where: str, values: Mapping[str, Any], form: type) -> None:
    """Every field of the dataclass `form` is there with its type; an int will do for a float."""
    for name, kind in get_type_hints(form).items():
        accepted = (int, float) if kind is float else (kind,)
        if type(values.get(name)) not in accepted:  # not isinstance: true is an int to Python
            raise WireError(f'{where}: "{name}" is missing or not of type {kind.__name__}')


def _count(metrics: Mapping[str, Any], max_examples: int) -> int:
    value = metrics.get(NUM_EXAMPLES)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= max_examples:
        raise WireError(f"num-examples is missing or not a count within 0..{max_examples}")
    return value


def _finite(metrics: Mapping[str, Any], name: str) -> float:
    value = metrics.get(name)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise WireError(f'metric "{name}" is missing or not a finite number')
    return float(value)


def _arrays(content: RecordDict) -> ArrayRecord:
    record = content.get(ARRAYS)
    if not isinstance(record, ArrayRecord):
        raise WireError(f'the message has no array record "{ARRAYS}"')
    return record


def _metrics(content: RecordDict) -> MetricRecord:
    record = content.get(METRICS)
    if not isinstance(record, MetricRecord):
        raise WireError(f'the message has no metric record "{METRICS}"')
    return record


def _config(content: RecordDict) -> ConfigRecord:
    record = content.get(CONFIG)
    if not isinstance(record, ConfigRecord):
        raise WireError(f'the message has no config record "{CONFIG}"')
    return record


def _dashed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in values.items()}


def _underscored(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("-", "_"): value for name, value in values.items()}
