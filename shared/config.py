"""The federation's knobs: read once at the edge, frozen below it.

Defaults stand once, in `[tool.flwr.app.config]` of pyproject.toml, as in any Flower App. The file
lies beside this package in a checkout and in a Flower bundle, and inside it in an installed wheel.
"""

import json
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from shared.errors import ConfigError

RUN_CONFIG_VARIABLE = "FEDSHELF_RUN_CONFIG"
_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class TrainConfig:
    """How a region trains in one round; travels with the train message.

    Attributes:
        seed: of the federation; order of examples follows from it, the round and the region.
        local_epochs: passes over the region's examples.
        batch_size: examples a step.
        learning_rate: of AdamW in this round.
        weight_decay: of AdamW.
        clip_norm: bound on the L2 norm of a step's gradient.
        alignment_weight: weight of the image-text term.
    """

    seed: int
    local_epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    clip_norm: float
    alignment_weight: float


@dataclass(frozen=True)
class FederationConfig:
    """Every knob of `[tool.flwr.app.config]`; names are the keys with underscores."""

    run_dir: str
    num_rounds: int
    seed: int
    quorum: float
    round_timeout_s: float
    min_regions: int
    region_wait_s: float
    max_examples: int
    max_update_norm: float
    local_epochs: int
    batch_size: int
    learning_rate: float
    final_learning_rate: float
    weight_decay: float
    clip_norm: float
    alignment_weight: float

    def train_config(self, server_round: int) -> TrainConfig:
        """What regions are told in round `server_round` (1-based).

        The learning rate falls from `learning_rate` to `final_learning_rate` along half a cosine
        (SGDR, arXiv:1608.03983, eq. 5, one period).
        """
        progress = (server_round - 1) / max(self.num_rounds - 1, 1)
        height = (1 + math.cos(math.pi * progress)) / 2
        rate = self.final_learning_rate + height * (self.learning_rate - self.final_learning_rate)
        shared = {field.name: getattr(self, field.name) for field in fields(TrainConfig)}
        return TrainConfig(**{**shared, "learning_rate": rate})


def default_run_config() -> dict[str, Any]:
    """The defaults, as the flat dictionary Flower calls a run config."""
    for folder in (_PACKAGE.parent, _PACKAGE):
        path = folder / "pyproject.toml"
        if path.is_file():
            tool = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {})
            if "flwr" in tool:
                return dict(tool["flwr"]["app"]["config"])
    raise ConfigError(f"{_PACKAGE}: pyproject.toml is missing; install fedshelf again")


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
    merged = default_run_config()
    for key, value in run_config.items():
        if key not in merged:
            raise ConfigError(f'run config: unknown key "{key}"; known: {", ".join(merged)}')
        merged[key] = _cast(key, value, type(merged[key]))
    config = FederationConfig(**{key.replace("-", "_"): value for key, value in merged.items()})
    _check_ranges(config)
    return config


def _cast(key: str, value: Any, wanted: type) -> Any:
    if wanted is float and isinstance(value, int):
        return float(value)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise ConfigError(f'run config: "{key}" is {value!r}, expected {wanted.__name__}')
    return value


def _check_ranges(config: FederationConfig) -> None:
    positive = ("num_rounds", "min_regions", "local_epochs", "batch_size", "learning_rate")
    for name in (*positive, "clip_norm", "max_update_norm", "max_examples", "round_timeout_s"):
        if not getattr(config, name) > 0:
            key = name.replace("_", "-")
            raise ConfigError(f'run config: "{key}" is {getattr(config, name)}, must be above 0')
    if not 0 < config.quorum <= 1:
        raise ConfigError(f'run config: "quorum" is {config.quorum}, must be in (0, 1]')
