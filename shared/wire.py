"""The record keys and forms of everything that crosses between headquarters and a region.

Arrays and scalars only. Every reply is checked here before it counts; what is wrong with it is said
without quoting it. The records that messages are made of: `shared.records`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from shared.adapter import (
    Adapter,
    completed,
    rank_axis,
    require_same_form,
    trained_names,
    within_rank,
)
from shared.arrays import to_array, values_of
from shared.config import (
    ENCODINGS,
    KNOWN_ITEM_SOURCES,
    MAX_VIEWS,
    TRAINED_FACTORS,
    TrainConfig,
)
from shared.decorrelation import MIN_EXAMPLES, MOMENTS, Statistics, why_impossible
from shared.errors import WireError
from shared.gaussians import Gaussians, forms
from shared.gaussians import why_impossible as why_no_gaussians
from shared.records import (
    ARRAYS,
    CONFIG,
    CONTROL,
    GAUSSIANS,
    METRICS,
    NUM_EXAMPLES,
    STATISTICS,
    arrays_of,
    check_types,
    config_of,
    dashed,
    metrics_of,
    read_arrays,
    read_count,
    read_number,
    read_update,
    underscored,
    write_update,
)

PROTOCOL_VERSION = 7
DESCRIBE = "query.describe"
ROUND, LOCAL = TRAIN_PURPOSES = ("round", "local")
VALIDATION, GATE, MATRIX = PURPOSES = ("validation", "gate", "matrix")
_REFERENCE, _MEAN, _VARIANCE = "reference-", "difference-", "variance-"
_REFERENCE_NAME = re.compile(r"reference-([0-9]{1,9})")
VERDICTS = ("", "accepted", "declined", "waiting", "rolled_back")
_MAX_TEXT = 300  # characters
_MAX_GAUSSIANS_NORM = 10.0  # of unit vectors it is at most about 1
_MAX_VARIANCE = 1e6  # of one query's difference; beside few clicks one query can weigh much
_METRIC_NAME = re.compile(r"[a-z][a-z0-9_@]{0,31}")


@dataclass(frozen=True)
class Description:
    """A region's answer to `query.describe`.

    Attributes:
        region: its name.
        protocol_version: of this module.
        base_fingerprint: of the base it works with.
        schema_hash: of its adapter (`shared.adapter.schema_hash`).
        rank: components of every LoRA pair that it trains and sends; a pair may have fewer.
        num_products: in its catalog.
        num_examples: training examples.
        num_validation_queries: queries it evaluates on.
        code_version: of fedshelf.
        device: "cpu" or "cuda".
        release: number of the release in use, 0 before the first.
        num_gate_queries: queries of its gate clicks.
        verdict: what it said of the newest release it looked at: "" before the first, "accepted",
            "declined", "waiting" for its operator, or "rolled_back".
        verdict_release: number of that release, 0 before the first.
        verdict_reason: why, one line; no query text and no product content.
        in_matrix: whether it agrees to measure other adapters on its gate clicks.
        shares_local: whether it agrees to train an adapter on its clicks alone for that.
        named: whether releases may name it; otherwise it is a number there.
    """

    region: str
    protocol_version: int
    base_fingerprint: str
    schema_hash: str
    rank: int
    num_products: int
    num_examples: int
    num_validation_queries: int
    code_version: str
    device: str
    release: int
    num_gate_queries: int
    verdict: str
    verdict_release: int
    verdict_reason: str
    in_matrix: bool
    shares_local: bool
    named: bool


@dataclass(frozen=True)
class TrainReply:
    """A region's checked answer to a train message.

    Attributes:
        update: adapter after local training minus the adapter sent, of what was trained; whole
            tensors, with zeros beyond the region's rank.
        num_examples: it was trained on, > 0.
        loss: mean training loss, nats.
        seconds: of local training.
        control_change: of the region's control variate (SCAFFOLD's c_i+ - c_i), if it has one.
        statistics: of its encodings (DCCO), of weight num_examples; None where nobody asked, or of
            too few examples.
        gaussian: of its product vectors, a single one; None where it sent none.
    """

    update: Adapter
    num_examples: int
    loss: float
    seconds: float
    control_change: Adapter | None = None
    statistics: Statistics | None = None
    gaussian: Gaussians | None = None


@dataclass(frozen=True)
class EvaluateReply:
    """A region's checked answer to an evaluate message.

    Attributes:
        num_examples: queries measured, >= 0.
        metrics: mean of each metric over them, by name, each in [0, 1].
    """

    num_examples: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class EvaluateRequest:
    """What a region is asked to measure.

    Attributes:
        adapter: the candidate.
        server_round: of the federation.
        purpose: "validation" after every round, "gate" before a release, "matrix" for the
            cross-site table; the last two use the gate clicks.
        references: what the candidate is compared with, by release number (in a matrix, by place
            in it); none for validation.
    """

    adapter: Adapter
    server_round: int
    purpose: str
    references: dict[int, Adapter]


@dataclass(frozen=True)
class Difference:
    """Candidate minus reference on one region's gate clicks, nDCG@10.

    Attributes:
        num_queries: measured, >= 0.
        mean: of the difference.
        variance: of one query's difference; squared standard error = variance / num_queries.
    """

    num_queries: int
    mean: float
    variance: float


def encode_adapter(adapter: Mapping[str, Tensor]) -> ArrayRecord:
    """An adapter or update as float32 arrays, in name order."""
    arrays = {k: to_array(v.detach().cpu().float().numpy()) for k, v in sorted(adapter.items())}
    return ArrayRecord(arrays)


def decode_adapter(record: ArrayRecord) -> Adapter:
    """The inverse of `encode_adapter`."""
    return {
        name: torch.from_numpy(values_of(array).copy()) for name, array in sorted(record.items())
    }


def describe_request() -> RecordDict:
    """The message `query.describe`; it carries nothing but the protocol version."""
    return RecordDict({CONFIG: ConfigRecord({"protocol-version": PROTOCOL_VERSION})})


def describe_reply(description: Description) -> RecordDict:
    """A region's description as a record."""
    return RecordDict({CONFIG: ConfigRecord(dashed(asdict(description)))})


def read_description(content: RecordDict) -> Description:
    """Read a region's description.

    Raises:
        WireError: a field is missing or of another type, or the region speaks an older protocol,
            in which fields may be missing. Fields this version does not know are passed over, so
            that a newer region can be refused for its protocol version.
    """
    values = underscored(config_of(content))
    version = values.get("protocol_version")
    if type(version) is int and version < PROTOCOL_VERSION:
        raise WireError(other_protocol(version))
    check_types("description", values, Description)
    _check_texts(values)
    return Description(**{field.name: values[field.name] for field in fields(Description)})


def other_protocol(version: int) -> str:
    """Why a region cannot be talked to."""
    return (
        f"protocol {version}, headquarters speaks {PROTOCOL_VERSION}; install the same release of"
        " fedshelf"
    )


@dataclass(frozen=True)
class TrainRequest:
    """What a region is asked to train.

    Attributes:
        adapter: to start from.
        config: hyper-parameters of this round.
        server_round: of the federation.
        purpose: "round" of the federation, or "local" for an adapter of this region alone, which
            only the cross-site table uses.
        control: SCAFFOLD's c, of the tensors that are to be trained; None without SCAFFOLD.
        counted: receipts of the answers that c is made of, the newest of each region.
        statistics: of all regions' encodings (DCCO), of weight 1; None before there are any.
        gaussians: of the regions' product vectors; None before there are any.
    """

    adapter: Adapter
    config: TrainConfig
    server_round: int
    purpose: str
    control: Adapter | None = None
    counted: tuple[int, ...] = ()
    statistics: Statistics | None = None
    gaussians: Gaussians | None = None


def train_request(
    adapter: ArrayRecord,
    config: TrainConfig,
    server_round: int,
    *,
    purpose: str = ROUND,
    control: ArrayRecord | None = None,
    counted: Iterable[int] = (),
    statistics: Statistics | None = None,
    gaussians: Gaussians | None = None,
) -> RecordDict:
    """The train message of one round; see `TrainRequest`."""
    settings = ConfigRecord(dashed(asdict(config)))
    settings["server-round"], settings["purpose"] = server_round, purpose
    content = RecordDict({ARRAYS: adapter, CONFIG: settings})
    if control is not None:
        content[CONTROL], settings["counted"] = control, list(counted)
    if statistics is not None:
        content[STATISTICS] = encode_adapter(statistics.moments())
    if gaussians is not None:
        content[GAUSSIANS] = encode_adapter(gaussians.tensors())
    return content


def read_train_request(content: RecordDict) -> TrainRequest:
    """Read a train message.

    Raises:
        WireError: something is missing, unknown or of another type.
    """
    values = underscored(config_of(content))
    server_round, purpose = values.pop("server_round", None), values.pop("purpose", None)
    counted = values.pop("counted", None)
    wanted = {field.name for field in fields(TrainConfig)}
    if type(server_round) is not int or values.keys() != wanted:
        odd = sorted(wanted ^ values.keys())
        raise WireError(f"train message: missing or unknown {odd or 'server-round'}")
    if purpose not in TRAIN_PURPOSES:
        raise WireError(f"train message: purpose is none of {', '.join(TRAIN_PURPOSES)}")
    check_types("train message", values, TrainConfig)
    chosen = {"update_encoding": ENCODINGS, "trained_factors": TRAINED_FACTORS}
    for name, choices in (chosen | {"known_item_source": KNOWN_ITEM_SOURCES}).items():
        if values[name] not in choices:
            key = name.replace("_", "-")
            raise WireError(f"train message: {key} is none of {', '.join(choices)}")
    if not 0 <= values["augmented_views"] <= MAX_VIEWS:  # the region's disk would hold them
        raise WireError(f"train message: augmented-views is not in 0 to {MAX_VIEWS}")
    for name in ("public_negatives", "drawn_negatives"):
        if values[name] < 0:
            raise WireError(f"train message: {name.replace('_', '-')} is below 0")
    if not 0 <= values["part"] < values["rounds_per_epoch"]:
        raise WireError("train message: part is not in 0 to rounds-per-epoch")
    adapter, config = decode_adapter(arrays_of(content)), TrainConfig(**values)
    plain = TrainRequest(
        adapter,
        config,
        server_round,
        purpose,
        statistics=_sent_statistics(content, config),
        gaussians=_sent_gaussians(content, config),
    )
    if counted is None and CONTROL not in content:
        return plain
    if not isinstance(counted, list) or not all(type(number) is int for number in counted):
        raise WireError("train message: a control variate comes with a list of receipts")
    control = decode_adapter(arrays_of(content, CONTROL))
    trained = trained_names(adapter, config.trained_factors)
    require_same_form(control, {name: adapter[name] for name in trained})
    return replace(plain, control=control, counted=tuple(counted))


def _sent_statistics(content: RecordDict, config: TrainConfig) -> Statistics | None:
    if STATISTICS not in content:
        return None
    if config.decorrelation_weight <= 0:
        raise WireError("train message: statistics without a decorrelation-weight")
    shape = arrays_of(content, STATISTICS).get(MOMENTS[0], to_array(np.zeros(0))).shape
    return _read_statistics(content, shape[0] if len(shape) == 1 else 0, weight=1)


def _sent_gaussians(content: RecordDict, config: TrainConfig) -> Gaussians | None:
    if GAUSSIANS not in content:
        return None
    if config.drawn_negatives == 0:
        raise WireError("train message: Gaussians without drawn-negatives")
    record = arrays_of(content, GAUSSIANS)
    shape = record.get("mean", to_array(np.zeros(0))).shape
    arrays = read_arrays(record, forms(*shape) if len(shape) == 2 else {}, "float32")
    return _possible({name: torch.from_numpy(values.copy()) for name, values in arrays.items()})


def _given_gaussian(content: RecordDict, dim: int, encoding: str) -> Gaussians | None:
    """That of a reply, checked; None where there is none."""
    if GAUSSIANS not in content:
        return None
    if dim == 0:
        raise WireError("a Gaussian that nobody asked for")
    form = {name: torch.zeros(shape) for name, shape in forms(1, dim).items()}
    return _possible(read_update(content, GAUSSIANS, form, encoding, _MAX_GAUSSIANS_NORM))


def _possible(tensors: Mapping[str, Tensor]) -> Gaussians:
    found = Gaussians(**tensors)
    if why := why_no_gaussians(found):
        raise WireError(f"Gaussians: {why}")
    return found


def _read_statistics(content: RecordDict, dim: int, *, weight: int) -> Statistics:
    """Statistics of unit vectors (D,), as they crossed, float32.

    Raises:
        WireError: the reason.
    """
    shapes = {name: (dim, dim) if name == "cross" else (dim,) for name in MOMENTS}
    record = arrays_of(content, STATISTICS)
    if dim == 0 or record.keys() != shapes.keys():
        raise WireError(f"statistics are not {', '.join(MOMENTS)}")
    arrays = read_arrays(record, shapes, "float32")
    means = {name: torch.from_numpy(arrays[name].copy()) for name in MOMENTS}
    found = Statistics(**means, weight=torch.tensor(float(weight)))
    if why := why_impossible(found):
        raise WireError(f"statistics: {why}")
    return found


def _check_texts(values: Mapping[str, Any]) -> None:
    """Text from a region goes into logs and onto pages: one short, printable line, or nothing."""
    for field in fields(Description):
        text = values[field.name]
        if isinstance(text, str) and not (text.isprintable() and len(text) <= _MAX_TEXT):
            raise WireError(f'description: "{field.name}" is no short line of text')
    if values["verdict"] not in VERDICTS:
        raise WireError('description: "verdict" is none that is known')


def train_reply(
    update: Adapter,
    *,
    encoding: str,
    num_examples: int,
    loss: float,
    seconds: float,
    control_change: Adapter | None = None,
    statistics: Statistics | None = None,
    gaussian: Gaussians | None = None,
) -> RecordDict:
    """A region's answer to a train message.

    Args:
        update: what arrives is `shared.compression.rounded` of it.
        encoding: as the message asked for.
        num_examples: see `TrainReply`, like the rest.
        loss: of training.
        seconds: of training.
        control_change: of the region's control variate, where the message held one.
        statistics: of its encodings, where the message had a weight for them.
        gaussian: of its product vectors, where the message asked for drawn negatives.
    """
    content = RecordDict({METRICS: _train_metrics(num_examples, loss, seconds)})
    write_update(content, ARRAYS, update, encoding)
    if control_change is not None:
        write_update(content, CONTROL, control_change, encoding)
    if statistics is not None:
        content[STATISTICS] = encode_adapter(statistics.moments())
    if gaussian is not None:
        write_update(content, GAUSSIANS, gaussian.tensors(), encoding)
    return content


def read_train_reply(
    content: RecordDict,
    sent: Adapter,
    *,
    encoding: str,
    max_examples: int,
    max_norm: float,
    rank: int | None = None,
    control: bool = False,
    dim: int = 0,
    gaussian_dim: int = 0,
) -> TrainReply:
    """Check a region's update before it counts.

    Args:
        content: the reply.
        sent: what it was sent of the tensors that were to be trained; names and shapes must be
            the same.
        encoding: the one it was asked for; the dtype must be that.
        max_examples: a larger claim is refused: it would outweigh everyone.
        max_norm: bound on the update's L2 norm, as it is after decoding; of a control variate's
            change, too.
        rank: that the region announced; its factors hold so many components, no more and no
            fewer, and are completed with zeros. None is that of what was sent.
        control: whether it was sent a control variate; then the change of its own must be there,
            with the same names and shapes, and otherwise not.
        dim: of the vectors whose statistics it was asked for, 0 for none; from
            `shared.decorrelation.MIN_EXAMPLES` examples on they must be there, and otherwise not.
        gaussian_dim: of the vectors whose Gaussian it was asked for, 0 for none; it may be missing.

    Raises:
        WireError: the reason, without quoting the reply.
    """
    metrics = metrics_of(content)
    num_examples = read_count(metrics, max_examples)
    if num_examples == 0:
        raise WireError("num-examples is 0: nothing was trained on")
    if not control and CONTROL in content:
        raise WireError("a control variate that nobody asked for")
    part = sent if rank is None else within_rank(sent, rank)
    _require_rank(arrays_of(content), part)
    update = completed(read_update(content, ARRAYS, part, encoding, max_norm), sent)
    change = read_update(content, CONTROL, sent, encoding, max_norm) if control else None
    statistics = _given_statistics(content, dim, num_examples)
    gaussian = _given_gaussian(content, gaussian_dim, encoding)
    loss, seconds = read_number(metrics, "loss"), read_number(metrics, "seconds")
    return TrainReply(update, num_examples, loss, seconds, change, statistics, gaussian)


def _require_rank(arrays: ArrayRecord, form: Adapter) -> None:
    """What a region sends has the rank that it announced, in every factor.

    Raises:
        WireError: names the first factor of another rank; whatever else may be wrong with a shape
            is found later.
    """
    for name in sorted(arrays.keys() & form.keys()):
        axis, found, wanted = rank_axis(name), tuple(arrays[name].shape), form[name].shape
        if axis is not None and len(found) == len(wanted) and found[axis] != wanted[axis]:
            raise WireError(f"{name}: of rank {found[axis]}, announced was {wanted[axis]}")


def _given_statistics(content: RecordDict, dim: int, num_examples: int) -> Statistics | None:
    """Those of a reply, checked; None where there must be none."""
    if dim > 0 and num_examples >= MIN_EXAMPLES:
        return _read_statistics(content, dim, weight=num_examples)
    if STATISTICS in content:
        why = f"of fewer than {MIN_EXAMPLES} examples" if dim > 0 else "that nobody asked for"
        raise WireError(f"statistics {why}")
    return None


def _train_metrics(num_examples: int, loss: float, seconds: float) -> MetricRecord:
    return MetricRecord({NUM_EXAMPLES: num_examples, "loss": loss, "seconds": seconds})


def evaluate_request(
    adapter: ArrayRecord,
    server_round: int,
    *,
    purpose: str = VALIDATION,
    references: Mapping[int, ArrayRecord] | None = None,
) -> RecordDict:
    """The evaluate message; see `EvaluateRequest`."""
    settings = ConfigRecord({"server-round": server_round, "purpose": purpose})
    named = {f"{_REFERENCE}{number}": arrays for number, arrays in (references or {}).items()}
    return RecordDict({ARRAYS: adapter, CONFIG: settings, **named})


def read_evaluate_request(content: RecordDict) -> EvaluateRequest:
    """Read an evaluate message.

    Raises:
        WireError: something is missing, unknown or of another type.
    """
    values = underscored(config_of(content))
    if values.keys() != {"server_round", "purpose"} or type(values["server_round"]) is not int:
        raise WireError("evaluate message: missing or unknown settings")
    if values["purpose"] not in PURPOSES:
        raise WireError(f"evaluate message: purpose is none of {', '.join(PURPOSES)}")
    references = {}
    for name, record in content.array_records.items():
        if name != ARRAYS:
            references[_reference_number(name)] = decode_adapter(record)
    adapter = decode_adapter(arrays_of(content))
    return EvaluateRequest(adapter, values["server_round"], values["purpose"], references)


def _reference_number(name: str) -> int:
    match = _REFERENCE_NAME.fullmatch(name)
    if not match:
        raise WireError("evaluate message: an array record that is no reference")
    return int(match[1])


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
    metrics = metrics_of(content)
    num_examples = read_count(metrics, max_examples)
    names = [name for name in metrics if name != NUM_EXAMPLES]
    if not all(_METRIC_NAME.fullmatch(name) for name in names):  # it is a region's text: not quoted
        raise WireError("a metric has a name that is none, such as ndcg@10")
    means = {name: read_number(metrics, name) for name in names}
    for name, value in means.items():
        if not 0 <= value <= 1:
            raise WireError(f'metric "{name}" is {value:.3g}, must be in [0, 1]')
    return EvaluateReply(num_examples, means)


def comparison_reply(
    metrics: Mapping[str, float], differences: Mapping[int, Difference], *, num_queries: int
) -> RecordDict:
    """A region's answer to an evaluate message with references."""
    record = MetricRecord({NUM_EXAMPLES: num_queries})
    for name, value in metrics.items():
        record[name] = float(value)
    for number, difference in differences.items():
        record[f"{_MEAN}{number}"] = float(difference.mean)
        record[f"{_VARIANCE}{number}"] = float(difference.variance)
    return RecordDict({METRICS: record})


def read_comparison_reply(
    content: RecordDict, references: Iterable[int], *, max_examples: int
) -> tuple[EvaluateReply, dict[int, Difference]]:
    """Check a region's comparison before it counts.

    Args:
        content: the reply.
        references: numbers of the references that were sent; each must be answered.
        max_examples: a larger claim is refused.

    Raises:
        WireError: the reason, without quoting the reply.
    """
    metrics = metrics_of(content)
    num_queries = read_count(metrics, max_examples)
    differences = {}
    for number in references:
        mean, variance = (
            read_number(metrics, f"{_MEAN}{number}"),
            read_number(metrics, f"{_VARIANCE}{number}"),
        )
        if not -1 <= mean <= 1 or not 0 <= variance <= _MAX_VARIANCE:
            raise WireError(f"difference to {number} is outside what nDCG allows")
        differences[number] = Difference(num_queries, mean, variance)
    prefixes = (_MEAN, _VARIANCE)
    plain = {name: metrics[name] for name in metrics if not name.startswith(prefixes)}
    reply = RecordDict({METRICS: MetricRecord(plain)})
    return read_evaluate_reply(reply, max_examples=max_examples), differences
