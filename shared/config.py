"""The federation's knobs: read once at the edge, frozen below it.

Defaults stand once, in `[tool.flwr.app.config]` of pyproject.toml, as in any Flower App. The file
lies beside this package in a checkout and in a Flower bundle, and inside it in an installed wheel.
"""

import json
import math
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from shared.errors import ConfigError

RUN_CONFIG_VARIABLE = "FEDSHELF_RUN_CONFIG"
TASKS = ("train", "matrix")
FLOAT32, FLOAT16, INT8 = ENCODINGS = ("float32", "float16", "int8")  # see `shared.compression`
FACTORS, EXACT, ALTERNATE, FREEZE_A = AGGREGATIONS = ("factors", "exact", "alternate", "freeze_a")
SERVER_OPTIMIZERS = ("FedAvgM", "FedAdam", "FedYogi")  # see `server.flower_rules`
ROBUST = ("FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum", "Bulyan")
RULES = (*ROBUST, "QFedAvg")
FEDEXP = "FedExP"  # see `server.extrapolation`
STRATEGIES = ("FedAvg", FEDEXP, *SERVER_OPTIMIZERS, *RULES)
ADAMW, SGD = OPTIMIZERS = ("adamw", "sgd")
CATALOG, PUBLIC = KNOWN_ITEM_SOURCES = ("catalog", "public")
BOTH, ONLY_A, ONLY_B = TRAINED_FACTORS = ("both", "a", "b")
WEIGHTED_SUM, AVERAGE, MAXIMUM, CONCATENATION, ATTENTION = FUSIONS = (  # see `encoders.fusion`
    *("weighted-sum", "average", "maximum", "concatenation", "attention"),
)
COSINE, EUCLIDEAN, MANHATTAN = DISTANCES = ("cosine", "euclidean", "manhattan")
MAX_VIEWS = 8  # of each item; what they take on disk is that of the originals, so many times
NO_KNOBS = ("run-dir", "task", "gate", "num-rounds", "seed")  # an option says it, or nobody may
_PACKAGE = Path(__file__).resolve().parent

RunConfig = dict[str, str | int | float | bool]


@dataclass(frozen=True)
class TrainConfig:
    """How a region trains in one round; travels with the train message.

    Attributes:
        seed: of the federation; order of examples follows from it, the round and the region.
        local_epochs: passes over the region's examples.
        rounds_per_epoch: rounds that share one pass; above 1, `local_epochs` is 1.
        part: of that pass which this round trains, from 0.
        batch_size: examples a step.
        optimizer: "adamw" or "sgd".
        learning_rate: of it in this round.
        weight_decay: of it.
        clip_norm: bound on the L2 norm of a step's gradient.
        proximal_mu: of FedProx's term, 0 for none.
        alignment_weight: weight of the image-text term.
        anchor_weight: weight of the drift term, which holds texts near where the base puts them.
        known_item_weight: weight of the term for words of titles.
        known_item_source: whose titles: "catalog", the region's own, or "public", the base's.
        known_item_temperature: of that term; 0 takes the clicks' own.
        match_weight: weight of the binary term of photos and texts of one product.
        decorrelation_weight: weight of the term of encoding statistics; with more than 0 they
            travel, see `shared.decorrelation`.
        decorrelation_off_diagonal: its lambda.
        logq_correction: share of log popularity that is taken from logits, 0 to 1.
        hard_negatives: skipped products that join a batch for each of its queries.
        public_negatives: of the base's public products, so many join every batch as negatives.
        drawn_negatives: vectors drawn of the regions' Gaussians, so many join every batch; with
            more than 0 these travel, see `shared.gaussians`.
        negative_max_cosine: a product nearer than this to a clicked one is no negative, at most 1.
        queue_size: products of former steps that are negatives as well.
        chunk_size: items encoded at a time; 0 encodes a batch at once.
        augmented_views: kept views of each query, text and photo beside the original.
        patience: epochs without a better validation that end a round; 0 runs all.
        update_encoding: how the update crosses the wire; see `shared.compression`.
        trained_factors: which LoRA factors are trained in this round, "both", "a" or "b"; the
            others stay, and are not in the update.
    """

    seed: int
    local_epochs: int
    rounds_per_epoch: int
    part: int
    batch_size: int
    optimizer: str
    learning_rate: float
    weight_decay: float
    clip_norm: float
    proximal_mu: float
    alignment_weight: float
    anchor_weight: float
    known_item_weight: float
    known_item_source: str
    known_item_temperature: float
    match_weight: float
    decorrelation_weight: float
    decorrelation_off_diagonal: float
    logq_correction: float
    hard_negatives: int
    public_negatives: int
    drawn_negatives: int
    negative_max_cosine: float
    queue_size: int
    chunk_size: int
    augmented_views: int
    patience: int
    update_encoding: str
    trained_factors: str


@dataclass(frozen=True)
class FederationConfig:
    """Every knob of `[tool.flwr.app.config]`; names are the keys with underscores."""

    run_dir: str
    task: str
    num_rounds: int
    seed: int
    quorum: float
    round_timeout_s: float
    min_regions: int
    region_wait_s: float
    describe_timeout_s: float
    max_examples: int
    max_update_norm: float
    local_epochs: int
    rounds_per_epoch: int
    batch_size: int
    optimizer: str
    learning_rate: float
    final_learning_rate: float
    weight_decay: float
    clip_norm: float
    proximal_mu: float
    control_variates: bool
    alignment_weight: float
    anchor_weight: float
    known_item_weight: float
    known_item_source: str
    known_item_temperature: float
    match_weight: float
    decorrelation_weight: float
    decorrelation_off_diagonal: float
    logq_correction: float
    hard_negatives: int
    public_negatives: int
    drawn_negatives: int
    negative_max_cosine: float
    queue_size: int
    chunk_size: int
    augmented_views: int
    patience: int
    update_encoding: str
    aggregation: str
    residual_rank: int
    strategy: str
    server_learning_rate: float
    server_momentum: float
    server_beta_2: float
    server_tau: float
    trimmed_share: float
    malicious_regions: int
    selected_regions: int
    fairness: float
    gate: bool
    gate_tolerance: float
    gate_confidence: float
    gate_min_queries: int

    def train_config(self, server_round: int) -> TrainConfig:
        """What regions are told in round `server_round` (1-based).

        The learning rate falls from `learning_rate` to `final_learning_rate`.
        """
        progress = (server_round - 1) / max(self.num_rounds - 1, 1)
        rate = half_cosine(self.learning_rate, self.final_learning_rate, progress)
        told: dict[str, Any] = {
            field.name: getattr(self, field.name, None) for field in fields(TrainConfig)
        }
        told |= {"learning_rate": rate, "trained_factors": self.factors_of(server_round)}
        told["part"] = (server_round - 1) % self.rounds_per_epoch
        return TrainConfig(**told)

    @property
    def remembers(self) -> bool:
        """Whether headquarters needs more of the last round than its adapter."""
        more = self.control_variates or self.describes_vectors
        return self.strategy in (FEDEXP, *SERVER_OPTIMIZERS) or more

    @property
    def describes_vectors(self) -> bool:
        """Whether regions are asked how their vectors lie."""
        return self.decorrelation_weight > 0 or self.drawn_negatives > 0

    @property
    def wants_one_rank(self) -> str:
        """What allows no region a smaller rank than the base's; "" if nothing does.

        Robust rules hold regions' numbers against each other, and zeros of what was not trained
        would pass for the opinion of many. SCAFFOLD's corrections cancel in the mean only if every
        region trains what they correct.
        """
        if self.control_variates:
            return "control-variates"
        return self.strategy if self.strategy in ROBUST else ""

    def factors_of(self, server_round: int) -> str:
        """Which factors regions train in a round (1-based).

        `freeze_a` leaves A as it was drawn (FFA-LoRA, arXiv:2403.12313). `alternate` trains B in
        odd rounds and A in even ones (RoLoRA, arXiv:2502.01755): B first, because A has no gradient
        while B is zero.
        """
        if self.aggregation == FREEZE_A:
            return ONLY_B
        if self.aggregation == ALTERNATE:
            return ONLY_B if server_round % 2 else ONLY_A
        return BOTH


def half_cosine(start: float, end: float, progress: float) -> float:
    """A learning rate on its way (SGDR, arXiv:1608.03983, eq. 5, one period).

    Args:
        start: at progress 0.
        end: at progress 1.
        progress: share of the way, 0 to 1.
    """
    height = (1 + math.cos(math.pi * progress)) / 2
    return height * start + (1 - height) * end


def default_run_config() -> dict[str, Any]:
    """The defaults, as the flat dictionary Flower calls a run config."""
    for folder in (_PACKAGE.parent, _PACKAGE):
        path = folder / "pyproject.toml"
        if path.is_file() and (found := _app_config(path)):
            return dict(found)
    raise ConfigError(f"{_PACKAGE}: pyproject.toml is missing; install fedshelf again")


def run_defaults() -> FederationConfig:
    """How rounds are trained and awaited unless headquarters says otherwise."""
    return parse_run_config(default_run_config())


@cache  # it is asked for with every message
def _app_config(path: Path) -> dict[str, Any]:
    tool = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {})
    return dict(tool["flwr"]["app"]["config"]) if "flwr" in tool else {}


@cache  # a message is checked by it, and there are many
def types_of(form: type) -> Mapping[str, Any]:
    """The type of every field of a dataclass, by name."""
    return get_type_hints(form)


def parse_run_config(run_config: Mapping[str, Any]) -> FederationConfig:
    """Validate a run config, filling in defaults.

    Args:
        run_config: what Flower hands over: some or all keys of `[tool.flwr.app.config]`. Flower's
            Python simulation API always hands over nothing; then $FEDSHELF_RUN_CONFIG (JSON) is
            read instead.

    Raises:
        ConfigError: an unknown key, a value of another type, or one out of range.
    """
    if not run_config:
        run_config = json.loads(os.environ.get(RUN_CONFIG_VARIABLE, "{}"))
    defaults, kinds = default_run_config(), types_of(FederationConfig)
    for key in run_config:
        if key not in defaults:
            raise ConfigError(f'run config: unknown key "{key}"; known: {", ".join(defaults)}')
    values = {key.replace("-", "_"): value for key, value in {**defaults, **run_config}.items()}
    config = FederationConfig(**{name: _cast(name, values[name], kinds[name]) for name in values})
    _check_ranges(config)
    return config


def parse_knobs(pairs: Iterable[str]) -> RunConfig:
    """What a command was given as `--set KEY=VALUE`, as run config.

    Args:
        pairs: "KEY=VALUE"; not those keys that have an option of their own, or that nobody may set.

    Returns:
        Values of the type of their default, in range.

    Raises:
        ConfigError: an unknown key, no value, a value of another type, or one out of range.
    """
    defaults = {k: v for k, v in default_run_config().items() if k not in NO_KNOBS}
    knobs: RunConfig = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or key not in defaults:
            raise ConfigError(f"--set {pair}: expected KEY=VALUE with one of {', '.join(defaults)}")
        knobs[key] = _as_type(key, text, type(defaults[key]))
    if knobs:  # of nothing at all it would read the environment
        parse_run_config(knobs)
    return knobs


def _as_type(key: str, text: str, kind: type) -> str | int | float | bool:
    if kind is bool:
        if text not in ("true", "false"):
            raise ConfigError(f"--set {key}={text}: expected true or false")
        return text == "true"
    try:
        return kind(text)  # type: ignore[no-any-return]
    except ValueError:
        raise ConfigError(f"--set {key}={text}: expected {kind.__name__}") from None


def _cast(name: str, value: Any, wanted: type) -> Any:
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:  # not isinstance: true is an int to Python
        key = name.replace("_", "-")
        raise ConfigError(f'run config: "{key}" is {value!r}, expected {wanted.__name__}')
    return value


def _check_ranges(config: FederationConfig) -> None:
    epochs = ("local_epochs", "rounds_per_epoch")
    positive = ("num_rounds", "min_regions", *epochs, "batch_size", "learning_rate")
    limits = ("max_update_norm", "max_examples", "round_timeout_s", "describe_timeout_s")
    for name in (*positive, "clip_norm", *limits):
        _require(getattr(config, name) > 0, config, name, "must be above 0")
    not_negative = ("seed", "final_learning_rate", "weight_decay", "alignment_weight")
    for name in (
        *not_negative,
        "anchor_weight",
        "known_item_weight",
        "known_item_temperature",
        "match_weight",
        "decorrelation_weight",
        "decorrelation_off_diagonal",
        "logq_correction",
        "hard_negatives",
        "public_negatives",
        "drawn_negatives",
        "queue_size",
        "chunk_size",
        "augmented_views",
        "patience",
        "region_wait_s",
        "gate_tolerance",
    ):
        _require(getattr(config, name) >= 0, config, name, "must be 0 or more")
    for name, kind in types_of(FederationConfig).items():
        if kind is float:
            _require(math.isfinite(getattr(config, name)), config, name, "must be finite")
    _require(config.logq_correction <= 1, config, "logq_correction", "must be at most 1")
    even = config.logq_correction == 0 or config.drawn_negatives == 0
    _require(
        even, config, "drawn_negatives", "must be 0 with logq-correction: they have no popularity"
    )
    most = f"must be at most {MAX_VIEWS}: each is as large as the originals' activations"
    _require(config.augmented_views <= MAX_VIEWS, config, "augmented_views", most)
    apart = config.rounds_per_epoch == 1 or config.local_epochs == 1
    _require(apart, config, "rounds_per_epoch", "must be 1 with local-epochs above 1")
    cosine = config.negative_max_cosine
    _require(0 < cosine <= 1, config, "negative_max_cosine", "must be in (0, 1]")
    _require(0 < config.quorum <= 1, config, "quorum", "must be in (0, 1]")
    _require(config.task in TASKS, config, "task", f"must be one of {', '.join(TASKS)}")
    chosen = {"update_encoding": ENCODINGS, "aggregation": AGGREGATIONS, "strategy": STRATEGIES}
    chosen |= {"optimizer": OPTIMIZERS, "known_item_source": KNOWN_ITEM_SOURCES}
    for name, choices in chosen.items():
        rule = f"must be one of {', '.join(choices)}"
        _require(getattr(config, name) in choices, config, name, rule)
    _check_strategy(config)
    _check_control_variates(config)
    confidence = config.gate_confidence
    _require(0.5 < confidence < 1, config, "gate_confidence", "must be in (0.5, 1)")
    _require(config.gate_min_queries >= 2, config, "gate_min_queries", "must be 2 or more")


def _check_strategy(config: FederationConfig) -> None:
    for name in (
        "residual_rank",
        "proximal_mu",
        "server_learning_rate",
        "malicious_regions",
        "fairness",
    ):
        _require(getattr(config, name) >= 0, config, name, "must be 0 or more")
    for name in ("server_momentum", "server_beta_2"):
        _require(0 <= getattr(config, name) < 1, config, name, "must be in [0, 1)")
    for name in ("server_tau", "selected_regions"):
        _require(getattr(config, name) > 0, config, name, "must be above 0")
    _require(0 <= config.trimmed_share < 0.5, config, "trimmed_share", "must be in [0, 0.5)")
    plain = config.strategy == "FedAvg" or config.aggregation != EXACT
    _require(plain, config, "strategy", 'must be FedAvg where "aggregation" is exact')


def _check_control_variates(config: FederationConfig) -> None:
    """SCAFFOLD's derivation wants plain SGD, a plain mean, and the same tensors every round."""
    if config.control_variates:
        needs = '"control-variates" is derived for nothing else'
        _require(config.optimizer == SGD, config, "optimizer", f"must be sgd: {needs}")
        _require(config.strategy == "FedAvg", config, "strategy", f"must be FedAvg: {needs}")
        plain = config.aggregation in (FACTORS, FREEZE_A)
        _require(plain, config, "aggregation", f"must be factors or freeze_a: {needs}")
        _require(config.patience == 0, config, "patience", f"must be 0: {needs}")


def _require(holds: bool, config: FederationConfig, name: str, rule: str) -> None:
    if not holds:
        key = name.replace("_", "-")
        raise ConfigError(f'run config: "{key}" is {getattr(config, name)}, {rule}')
