"""Defaults stand once, wrong settings are named, and the learning rate falls along a cosine."""

import json
import math
from dataclasses import asdict, fields, replace

import pytest

from shared.config import (
    RUN_CONFIG_VARIABLE,
    FederationConfig,
    TrainConfig,
    default_run_config,
    parse_knobs,
    parse_run_config,
)
from shared.errors import ConfigError


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RUN_CONFIG_VARIABLE, raising=False)


def test_every_default_is_a_field_and_every_field_has_one() -> None:
    defaults = default_run_config()
    assert [key.replace("-", "_") for key in defaults] == [f.name for f in fields(FederationConfig)]
    assert asdict(parse_run_config({})) == {
        key.replace("-", "_"): value for key, value in defaults.items()
    }


def test_what_travels_is_part_of_the_whole() -> None:
    told = {"trained_factors", "part"}  # follow from the round
    assert {f.name for f in fields(TrainConfig)} - told <= {
        f.name for f in fields(FederationConfig)
    }


def test_what_is_given_wins_over_the_default() -> None:
    config = parse_run_config({"num-rounds": 3, "learning-rate": 1})
    assert (config.num_rounds, config.learning_rate) == (3, 1.0)
    assert isinstance(config.learning_rate, float)
    assert config.batch_size == default_run_config()["batch-size"]


def test_the_variable_is_read_only_where_nothing_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_CONFIG_VARIABLE, json.dumps({"num-rounds": 3}))
    assert parse_run_config({}).num_rounds == 3
    assert parse_run_config({"seed": 1}).num_rounds == default_run_config()["num-rounds"]


def test_an_unknown_key_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match='unknown key "rounds"; known: run-dir, task, num-rounds'):
        parse_run_config({"rounds": 3})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("num-rounds", "3", "int"),
        ("num-rounds", 3.0, "int"),
        ("num-rounds", True, "int"),
        ("learning-rate", "fast", "float"),
        ("learning-rate", True, "float"),
        ("run-dir", 3, "str"),
    ],
)
def test_a_value_of_another_type_is_named(key: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError, match=f'"{key}" is {value!r}, expected {expected}'):
        parse_run_config({key: value})


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("num-rounds", 0, "above 0"),
        ("min-regions", 0, "above 0"),
        ("trimmed-share", 0.5, r"in \[0, 0.5\)"),
        ("server-momentum", 1.0, r"in \[0, 1\)"),
        ("server-beta-2", -0.1, r"in \[0, 1\)"),
        ("server-learning-rate", -1.0, "0 or more"),
        ("malicious-regions", -1, "0 or more"),
        ("fairness", -0.5, "0 or more"),
        ("selected-regions", 0, "above 0"),
        ("server-tau", 0.0, "above 0"),
        ("local-epochs", -1, "above 0"),
        ("rounds-per-epoch", 0, "above 0"),
        ("batch-size", 0, "above 0"),
        ("learning-rate", 0.0, "above 0"),
        ("learning-rate", math.nan, "above 0"),
        ("learning-rate", math.inf, "finite"),
        ("clip-norm", 0.0, "above 0"),
        ("max-update-norm", -1.0, "above 0"),
        ("max-examples", 0, "above 0"),
        ("round-timeout-s", 0.0, "above 0"),
        ("seed", -1, "0 or more"),
        ("region-wait-s", -1.0, "0 or more"),
        ("final-learning-rate", -1e-3, "0 or more"),
        ("weight-decay", math.nan, "0 or more"),
        ("alignment-weight", -0.1, "0 or more"),
        ("match-weight", -0.1, "0 or more"),
        ("decorrelation-weight", -0.1, "0 or more"),
        ("decorrelation-off-diagonal", -1.0, "0 or more"),
        ("logq-correction", -0.1, "0 or more"),
        ("logq-correction", 1.1, "at most 1"),
        ("hard-negatives", -1, "0 or more"),
        ("negative-max-cosine", 0.0, r"in \(0, 1\]"),
        ("negative-max-cosine", 1.1, r"in \(0, 1\]"),
        ("queue-size", -1, "0 or more"),
        ("chunk-size", -1, "0 or more"),
        ("patience", -1, "0 or more"),
        ("augmented-views", -1, "0 or more"),
        ("augmented-views", 9, "at most 8"),
        ("quorum", 0.0, r"in \(0, 1\]"),
        ("quorum", 1.5, r"in \(0, 1\]"),
        ("quorum", math.nan, "finite"),
    ],
)
def test_a_value_out_of_range_is_named(key: str, value: float, rule: str) -> None:
    with pytest.raises(ConfigError, match=f'"{key}" is {value}, must be {rule}'):
        parse_run_config({key: value})


@pytest.fixture
def config() -> FederationConfig:
    return parse_run_config(
        {"num-rounds": 5, "learning-rate": 0.01, "final-learning-rate": 0.001, "seed": 3}
    )


def test_the_learning_rate_starts_and_ends_where_it_was_told(config: FederationConfig) -> None:
    assert config.train_config(1).learning_rate == 0.01
    assert config.train_config(5).learning_rate == 0.001
    assert config.train_config(3).learning_rate == pytest.approx((0.01 + 0.001) / 2)
    quarter = 0.001 + 0.009 * (1 + 1 / math.sqrt(2)) / 2
    assert config.train_config(2).learning_rate == pytest.approx(quarter)


def test_the_learning_rate_never_rises(config: FederationConfig) -> None:
    rates = [config.train_config(number).learning_rate for number in range(1, 6)]
    assert rates == sorted(rates, reverse=True)


def test_a_single_round_is_the_first(config: FederationConfig) -> None:
    assert replace(config, num_rounds=1).train_config(1).learning_rate == 0.01


def test_rounds_that_share_an_epoch_take_its_parts_in_turn(config: FederationConfig) -> None:
    thirds = replace(config, rounds_per_epoch=3)
    assert [thirds.train_config(number).part for number in range(1, 6)] == [0, 1, 2, 0, 1]
    with pytest.raises(ConfigError, match=r'"rounds-per-epoch" is 2.*local-epochs above 1'):
        parse_run_config({"rounds-per-epoch": 2, "local-epochs": 2})


def test_everything_else_is_the_same_in_every_round(config: FederationConfig) -> None:
    first, last = config.train_config(1), config.train_config(5)
    assert replace(first, learning_rate=last.learning_rate) == last
    assert (first.seed, first.local_epochs) == (3, config.local_epochs)


def test_knobs_are_read_as_the_type_of_their_default() -> None:
    given = ["learning-rate=1", "batch-size=8", "gate-min-queries=30"]
    assert parse_knobs(given) == {"learning-rate": 1.0, "batch-size": 8, "gate-min-queries": 30}
    assert type(parse_knobs(given)["learning-rate"]) is float
    assert parse_knobs([]) == {}


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("colour=1", "--set colour=1: expected KEY=VALUE with one of quorum, "),
        ("learning-rate", "--set learning-rate: expected KEY=VALUE with one of"),
        ("learning-rate=fast", "--set learning-rate=fast: expected float"),
        ("batch-size=2.5", "--set batch-size=2.5: expected int"),
        ("batch-size=0", '"batch-size" is 0, must be above 0'),
        ("seed=8", "--set seed=8: expected KEY=VALUE with one of"),
    ],
)
def test_a_knob_that_cannot_be_set_is_one_line(pair: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_knobs([pair])


@pytest.mark.parametrize(
    ("aggregation", "trained"),
    [
        ("factors", ["both", "both", "both"]),
        ("exact", ["both", "both", "both"]),
        ("freeze_a", ["b", "b", "b"]),
        ("alternate", ["b", "a", "b"]),  # B first: while it is zero, A has no gradient
    ],
)
def test_the_aggregation_says_what_is_trained(aggregation: str, trained: list[str]) -> None:
    config = parse_run_config({"aggregation": aggregation})
    assert [config.train_config(number).trained_factors for number in (1, 2, 3)] == trained


@pytest.mark.parametrize("key", ["aggregation", "strategy", "update-encoding"])
def test_an_unknown_method_is_named_with_the_known_ones(key: str) -> None:
    with pytest.raises(ConfigError, match=f'"{key}" is magic, must be one of '):
        parse_run_config({key: "magic"})


def test_a_server_optimizer_would_undo_exact_products() -> None:
    with pytest.raises(ConfigError, match='"strategy" is FedAdam, must be FedAvg where "aggre'):
        parse_run_config({"aggregation": "exact", "strategy": "FedAdam"})
