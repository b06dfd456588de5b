"""The file that describes an experiment: what is compared, on what, and for how long.

It is read once, strictly, before anything is made: an unknown key, a knob that the federation does
not have, or two methods that would not train equally long are one line each, not a surprise after
hours. The file names sources of data but no folders: those belong to a machine.
"""

import itertools
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from shared.config import (
    COSINE,
    NO_KNOBS,
    WEIGHTED_SUM,
    RunConfig,
    default_run_config,
    parse_run_config,
)
from shared.errors import ConfigError

Kind = Literal[
    "zero_shot", "bm25", "local_only", "federated", "centralized", "personalized", "hybrid"
]
TRAINED = ("local_only", "federated", "centralized")  # round by round
HELD = ("federated", "personalized")  # against pooling and against each region alone
DENSE = ("zero_shot", *TRAINED, "personalized")
# With the rounds they decide the steps.
SAME_TRAINING = ("local-epochs", "rounds-per-epoch", "batch-size", "patience")
_NAME = r"^[a-z0-9][a-z0-9_.-]{0,62}$"


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # TOML has no tuples


Knob = bool | int | float | str
Values = Annotated[tuple[Knob, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_as_tuple), Field(min_length=1)
]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DataSpec(_Strict):
    """One world, but for its seed.

    Worlds that differ in fusion or distance alone have the same products, shoppers and clicks.
    """

    source: Literal["synthetic", "fashion", "icecat"]
    partition: str | None = None  # a column or dirichlet:ALPHA; None is the source's own
    regions: int = Field(default=4, ge=1, le=100)
    fusion: Literal["weighted-sum", "average", "maximum", "concatenation", "attention"] = (
        "weighted-sum"
    )
    distance: Literal["cosine", "euclidean", "manhattan"] = "cosine"

    @property
    def label(self) -> str:
        """In a table: "fashion dirichlet:0.5, 4 regions"; with what is not the default after it."""
        rule = f" {self.partition}" if self.partition else ""
        chosen = [
            f", {value}"
            for value, default in ((self.fusion, WEIGHTED_SUM), (self.distance, COSINE))
            if value != default
        ]
        return "".join([f"{self.source}{rule}, {self.regions} regions", *chosen])


class MethodSpec(_Strict):
    """One row of the table.

    Attributes:
        name: in the table; unique.
        kind: what is done.
        set: keys of `[tool.flwr.app.config]` that differ from their defaults.
        of: of `hybrid`: the dense method that is mixed with BM25; of `personalized`: the federated
            one that regions adapt to their own clicks.
        alone: of `federated` and `personalized`: the local_only method that they are held against;
            by default the first.
        pooled: likewise the centralized method.
        unequal: why this method may train longer or shorter than the others; empty: it may not.
    """

    name: str = Field(pattern=_NAME)
    kind: Kind
    set: dict[str, Knob] = Field(default_factory=dict)
    of: str | None = None
    alone: str | None = None
    pooled: str | None = None
    unequal: str = ""

    @property
    def trained(self) -> bool:
        """Whether rounds are spent on it."""
        return self.kind in TRAINED


class SearchSpec(_Strict):
    """Successive halving over values of knobs, by validation clicks; see `search`.

    Attributes:
        keys: values to try of each key; candidates are all their combinations.
        eta: one in so many candidates goes on to the next rung, which has eta times the rounds.
        first_rounds: of the first rung.
    """

    keys: dict[str, Values] = Field(min_length=1)
    eta: int = Field(default=3, ge=2)
    first_rounds: int = Field(default=1, ge=1, alias="first-rounds")

    @property
    def candidates(self) -> list[RunConfig]:
        """Every combination of values, the last key changing fastest."""
        combinations = itertools.product(*self.keys.values())
        return [dict(zip(self.keys, values, strict=True)) for values in combinations]


class ExperimentSpec(_Strict):
    """What is the same for every cell of the experiment.

    Attributes:
        name: of its folder.
        seeds: of every choice; each makes other worlds, other clicks and other training.
        rounds: of the federation, and as many passes of whoever trains without one.
        preset: of the base.
        threads: of torch, in each process; results are bit-equal only for the same number.
        device: of every region.
        curves: measure every round of federated methods on the test queries, for "rounds to reach".
        min_queries: a region with fewer test queries is shown, and no claim is made of it.
        margin: nDCG@10 that "not worse" may lose.
    """

    name: str = Field(pattern=_NAME)
    seeds: Seeds
    rounds: int = Field(ge=1)
    preset: Literal["starter", "tiny", "siglip2-base"] = "starter"
    threads: int = Field(default=1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    curves: bool = True
    min_queries: int = Field(default=50, ge=1, alias="min-queries")
    margin: float = Field(default=0.02, ge=0)


class Experiment(_Strict):
    """A whole experiment file."""

    experiment: ExperimentSpec
    data: Annotated[tuple[DataSpec, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
    method: Annotated[tuple[MethodSpec, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
    search: SearchSpec | None = None

    @field_validator("data", "method")
    @classmethod
    def _unique(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [getattr(one, "name", None) or one.label for one in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f'"{twice[0]}" stands there twice')
        return value

    @model_validator(mode="after")
    def _sound(self) -> Self:
        for method in self.method:
            self._check_references(method)
            self._check_knobs(method.name, method.set)
        if self.search is not None:
            self._check_search(self.search)
        self._check_equal_training()
        return self

    def method_named(self, name: str) -> MethodSpec:
        """The method of this name, which is there."""
        return next(method for method in self.method if method.name == name)

    def first(self, kind: Kind) -> str | None:
        """Name of the first method of a kind, if any."""
        return next((method.name for method in self.method if method.kind == kind), None)

    def alone_of(self, method: MethodSpec) -> str | None:
        """The local_only method that a method is held against."""
        return method.alone or self.first("local_only")

    def pooled_of(self, method: MethodSpec) -> str | None:
        """The centralized method that a method is held against."""
        return method.pooled or self.first("centralized")

    def run_config(self, method: MethodSpec, *, seed: int, regions: int) -> RunConfig:
        """The whole run config of a method in a cell, run-dir apart."""
        return {
            **default_run_config(),
            **method.set,
            "num-rounds": self.experiment.rounds,
            "seed": seed,
            "min-regions": regions,
        }

    def _check_references(self, method: MethodSpec) -> None:
        made_of = {"hybrid": DENSE, "personalized": ("federated",)}.get(method.kind, ())
        held = method.kind in HELD
        wanted: dict[str, tuple[str | None, Sequence[str]]] = {
            "of": (method.of, made_of),
            "alone": (method.alone, ("local_only",) if held else ()),
            "pooled": (method.pooled, ("centralized",) if held else ()),
        }
        if made_of and method.of is None:
            raise ValueError(f'method "{method.name}": of: name the method that it is made of')
        if method.kind == "personalized" and not method.unequal:
            raise ValueError(
                f'method "{method.name}": regions train on after the last round; '
                'say so with unequal = "..."'
            )
        for key, (name, kinds) in wanted.items():
            if name is None:
                continue
            if not kinds:
                raise ValueError(f'method "{method.name}": {key}: not for kind {method.kind}')
            if not any(m.name == name and m.kind in kinds for m in self.method):
                raise ValueError(
                    f'method "{method.name}": {key}: "{name}" is no method of kind '
                    f"{' or '.join(kinds)}"
                )
        if method.set and not method.trained:
            raise ValueError(f'method "{method.name}": set: {method.kind} trains nothing')

    def _check_knobs(self, name: str, knobs: Mapping[str, Knob]) -> None:
        taken = sorted({*NO_KNOBS, "min-regions"} & knobs.keys())
        if taken:
            raise ValueError(f'method "{name}": set: "{taken[0]}" is not for a method to set')
        try:
            parse_run_config({**default_run_config(), **knobs})
        except ConfigError as error:
            raise ValueError(f'method "{name}": set: {error}') from None

    def _check_search(self, search: SearchSpec) -> None:
        if search.first_rounds > self.experiment.rounds:
            raise ValueError(
                f"search.first-rounds: {search.first_rounds} is more than the "
                f"experiment's {self.experiment.rounds} rounds"
            )
        uneven = sorted({*SAME_TRAINING} & search.keys.keys())
        if uneven:
            raise ValueError(f'search.keys: "{uneven[0]}" would make methods train unequally long')
        for candidate in search.candidates:
            for method in self.method:
                self._check_knobs(method.name, {**method.set, **candidate})

    def _check_equal_training(self) -> None:
        """Rounds are the experiment's, so passes and steps hang on a few knobs alone."""
        defaults = default_run_config()
        lengths = {
            method.name: {key: method.set.get(key, defaults[key]) for key in SAME_TRAINING}
            for method in self.method
            if method.trained and not method.unequal
        }
        for key in SAME_TRAINING:
            (first, *others) = [(name, row[key]) for name, row in lengths.items()] or [("", 0)]
            for name, value in others:
                if value != first[1]:
                    raise ValueError(
                        f'method "{name}": set: {key} is {value}, of "{first[0]}" it is '
                        f"{first[1]}; "
                        'train equally long, or say why not with unequal = "..."'
                    )


def read_experiment(path: Path) -> Experiment:
    """Read and check an experiment file.

    Args:
        path: a TOML file; see docs/experiments.md.

    Returns:
        The experiment.

    Raises:
        ConfigError: no such file, not TOML, or anything in it is wrong; one line.
    """
    try:
        return Experiment.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name an experiment file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{path}: {key}: {message}" if key else f"{path}: {message}") from None
