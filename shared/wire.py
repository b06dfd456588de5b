"""How a region describes itself, and the train messages between headquarters and it.

Arrays and scalars only. Every reply is checked here before it counts; what is wrong with it is said
without quoting it. The records that messages are made of: `shared.records`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from shared.adapter import (
    Adapter,
    completed,
    rank_axis,
    require_same_form,
    trained_names,
    within_rank,
)
from shared.config import (
    ENCODINGS,
    KNOWN_ITEM_SOURCES,
    MAX_VIEWS,
    TRAINED_FACTORS,
    TrainConfig,
)
from shared.decorrelation import Statistics
from shared.errors import WireError
from shared.gaussians import Gaussians
from shared.records import (
    ARRAYS,
    CONFIG,
    CONTROL,
    METRICS,
    NUM_EXAMPLES,
    arrays_of,
    check_types,
    config_of,
    dashed,
    decode_adapter,
    metrics_of,
    read_count,
    read_number,
    read_update,
    underscored,
    write_update,
)
from shared.wire_vectors import (
    given_gaussian,
    given_statistics,
    sent_gaussians,
    sent_statistics,
    write_gaussian,
    write_gaussians,
    write_statistics,
)

PROTOCOL_VERSION = 7
DESCRIBE = "query.describe"
ROUND, LOCAL = TRAIN_PURPOSES = ("round", "local")
VERDICTS = ("", "accepted", "declined", "waiting", "rolled_back")
_MAX_TEXT = 300  # characters


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
    write_statistics(content, statistics)
    write_gaussians(content, gaussians)
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
        statistics=sent_statistics(content, config),
        gaussians=sent_gaussians(content, config),
    )
    if counted is None and CONTROL not in content:
        return plain
    if not isinstance(counted, list) or not all(type(number) is int for number in counted):
        raise WireError("train message: a control variate comes with a list of receipts")
    control = decode_adapter(arrays_of(content, CONTROL))
    trained = trained_names(adapter, config.trained_factors)
    require_same_form(control, {name: adapter[name] for name in trained})
    return replace(plain, control=control, counted=tuple(counted))


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
    write_statistics(content, statistics)
    write_gaussian(content, gaussian, encoding)
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
    statistics = given_statistics(content, dim, num_examples)
    gaussian = given_gaussian(content, gaussian_dim, encoding)
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


def _train_metrics(num_examples: int, loss: float, seconds: float) -> MetricRecord:
    return MetricRecord({NUM_EXAMPLES: num_examples, "loss": loss, "seconds": seconds})
