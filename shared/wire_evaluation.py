"""The messages by which headquarters asks regions to measure adapters, and what they answer.

Every answer is checked here before it counts; what is wrong with it is said without quoting it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from shared.adapter import Adapter
from shared.errors import WireError
from shared.records import (
    ARRAYS,
    CONFIG,
    METRICS,
    NUM_EXAMPLES,
    arrays_of,
    config_of,
    decode_adapter,
    metrics_of,
    read_count,
    read_number,
    underscored,
)

VALIDATION, GATE, MATRIX = PURPOSES = ("validation", "gate", "matrix")
_REFERENCE, _MEAN, _VARIANCE = "reference-", "difference-", "variance-"
_REFERENCE_NAME = re.compile(r"reference-([0-9]{1,9})")
_MAX_VARIANCE = 1e6  # of one query's difference; beside few clicks one query can weigh much
_METRIC_NAME = re.compile(r"[a-z][a-z0-9_@]{0,31}")


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
