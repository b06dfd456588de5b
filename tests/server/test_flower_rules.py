"""Flower's strategies on updates: hand-worked values, and what a strategy remembers of a round."""

import numpy as np
import pytest
import torch

from server import aggregator, flower_rules
from server.aggregator import Aggregator
from server.flower_rules import apply_rule, server_step
from shared.adapter import Adapter
from shared.config import RULES, SERVER_OPTIMIZERS, FederationConfig, parse_run_config
from shared.errors import FederationError

NAMES = ("fusion/t", "text/x.lora_A.weight", "text/x.lora_B.weight")  # the first is a scalar


def of(number: float) -> Adapter:
    return {
        NAMES[0]: torch.tensor(number),
        **{name: torch.full((2, 2), number) for name in NAMES[1:]},
    }


def value(adapter: Adapter) -> float:
    """The number that all tensors hold."""
    (found,) = {float(x) for tensor in adapter.values() for x in tensor.flatten()}
    return found


def configured(strategy: str, **knobs: float) -> FederationConfig:
    dashed = {name.replace("_", "-"): knob for name, knob in knobs.items()}
    return parse_run_config({"strategy": strategy, **dashed})


def ruled(strategy: str, *updates: float, sent: float = 1.0, **knobs: float) -> float:
    replies = [(of(update), 10 * place, 2.0) for place, update in enumerate(updates, 1)]
    return value(apply_rule(configured(strategy, **knobs), 1, of(sent), replies))


# -- server optimizers -----------------------------------------------------------------------------


def test_momentum_by_hand() -> None:
    """Towards the mean by 1, then by 1 and half of the step before."""
    config = configured("FedAvgM", server_momentum=0.5)
    first, memory = server_step(config, 1, of(0.0), of(1.0), {})
    assert value(first) == 1.0
    second, _ = server_step(config, 2, first, of(2.0), memory)
    assert value(second) == 2.5


def test_momentum_of_0_and_a_rate_of_1_is_the_mean() -> None:
    found, _ = server_step(configured("FedAvgM", server_momentum=0.0), 1, of(0.5), of(3.0), {})
    assert value(found) == 3.0


@pytest.mark.parametrize("strategy", ["FedAdam", "FedYogi"])
def test_adaptive_steps_follow_the_papers_algorithm_2(strategy: str) -> None:
    """Two rounds, number by number; Flower's FedAdam corrects the bias of its moments besides."""
    b1, b2, tau, rate, x, memory = 0.9, 0.99, 1e-3, 0.05, 1.0, Adapter()
    config = configured(strategy, server_learning_rate=rate)
    m = v = 0.0
    for number, mean in ((1, 1.5), (2, 0.7)):
        delta = mean - x
        m = b1 * m + (1 - b1) * delta
        if strategy == "FedAdam":
            v = b2 * v + (1 - b2) * delta**2
            height = rate * np.sqrt(1 - b2 ** (number + 1)) / (1 - b1 ** (number + 1))
        else:
            v, height = v - (1 - b2) * delta**2 * np.sign(v - delta**2), rate
        found, memory = server_step(config, number, of(x), of(mean), memory)
        expected = x + height * m / (np.sqrt(v) + tau)
        assert value(found) == pytest.approx(expected, rel=1e-6)
        x = value(found)


@pytest.mark.parametrize("strategy", SERVER_OPTIMIZERS)
def test_memory_of_what_was_not_trained_waits(strategy: str) -> None:
    """As under `alternate`: the moments of A are those of A's own rounds."""
    config, first = configured(strategy), {name: of(1.0)[name] for name in NAMES[:2]}
    _, memory = server_step(config, 1, first, {name: of(2.0)[name] for name in first}, {})
    other = {NAMES[2]: of(1.0)[NAMES[2]]}
    _, later = server_step(config, 2, other, {NAMES[2]: of(2.0)[NAMES[2]]}, memory)
    assert memory.keys() < later.keys()
    assert all(torch.equal(later[name], tensor) for name, tensor in memory.items())


# -- rules -----------------------------------------------------------------------------------------


def test_the_median_ignores_one_that_lies() -> None:
    assert ruled("FedMedian", 0.25, 0.5, 1000.0) == 1.5


def test_the_trimmed_mean_leaves_out_both_ends() -> None:
    assert ruled("FedTrimmedAvg", -99.0, 1.0, 3.0, 99.0, trimmed_share=0.25) == 3.0


def test_krum_takes_one_that_has_company() -> None:
    assert ruled("Krum", 0.5, 0.5, 0.5, 0.5, 99.0, malicious_regions=1) == 1.5


def test_multi_krum_averages_those_that_have_company_by_examples() -> None:
    """0.5 with 20 examples and 0.75 with 30: 1 + (10 + 22.5) / 50."""
    updates = (99.0, 0.5, 0.75, -99.0, 300.0)
    assert ruled("MultiKrum", *updates, malicious_regions=1, selected_regions=2) == pytest.approx(
        1.65
    )


def test_bulyan_withstands_one_of_seven() -> None:
    assert ruled("Bulyan", *[0.5] * 6, 99.0, malicious_regions=1) == 1.5


def test_fairness_of_0_is_one_region_one_vote() -> None:
    assert ruled("QFedAvg", 1.0, 2.0, 6.0, fairness=0.0) == pytest.approx(4.0)


def test_fairness_listens_to_the_region_that_is_worse_off() -> None:
    """q-FedAvg, arXiv:1905.10497, eq. 5 and 6, worked for two regions and one number each."""
    config, q = configured("QFedAvg", fairness=1.0), 1.0
    lipschitz = 1 / config.train_config(1).learning_rate
    replies = [({"a": torch.tensor([0.1])}, 1, 4.0), ({"a": torch.tensor([-0.1])}, 1, 1.0)]
    (found,) = apply_rule(config, 1, {"a": torch.tensor([1.0])}, replies)["a"].tolist()
    top = bottom = 0.0
    for update, loss in ((0.1, 4.0), (-0.1, 1.0)):
        step = -lipschitz * update
        top += loss**q * step
        bottom += q * loss ** (q - 1) * step**2 + lipschitz * loss**q
    assert found == pytest.approx(1 - top / bottom, rel=1e-5)
    assert found > 1


@pytest.mark.parametrize("strategy", RULES)
def test_regions_that_agree_are_followed_by_every_rule(strategy: str) -> None:
    assert ruled(strategy, *[0.5] * 4, fairness=0.0) == pytest.approx(1.5)


@pytest.mark.parametrize(("strategy", "least"), [("Krum", 5), ("MultiKrum", 5), ("Bulyan", 7)])
def test_too_few_to_tell_who_lies(strategy: str, least: int) -> None:
    with pytest.raises(FederationError, match=f"4 regions answered well, {strategy} wants {least}"):
        ruled(strategy, *[0.5] * 4, malicious_regions=1)


# -- a round ---------------------------------------------------------------------------------------


def test_a_cohort_too_large_for_a_rule_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregator, "MAX_AT_ONCE", 2)
    round_ = Aggregator(configured("FedMedian"), 3, of(0.0), {})
    for _ in range(2):
        round_.add(of(1.0), 1, 0.0)
    with pytest.raises(FederationError, match=r"round 3: FedMedian needs all replies at once.* 2;"):
        round_.add(of(1.0), 1, 0.0)


@pytest.mark.parametrize("strategy", [*RULES, *SERVER_OPTIMIZERS])
def test_what_was_not_trained_stays_bit_for_bit(strategy: str) -> None:
    config = parse_run_config({"strategy": strategy, "aggregation": "freeze_a"})
    round_ = Aggregator(config, 1, of(0.1), {})
    for _ in range(5):
        round_.add({name: of(0.3)[name] for name in (NAMES[0], NAMES[2])}, 2, 1.5)
    outcome = round_.outcome()
    assert outcome.adapter.keys() == of(0.1).keys()
    assert torch.equal(outcome.adapter[NAMES[1]], of(0.1)[NAMES[1]])
    assert (outcome.loss, outcome.bias) == (1.5, None)


def test_every_name_is_one_of_flowers_classes() -> None:
    for strategy in (*RULES, *SERVER_OPTIMIZERS):
        assert hasattr(flower_rules, strategy)
