"""Flower's own strategies, by name, as arithmetic on replies that have passed our checks.

Two kinds. A server optimizer (FedAvgM, FedAdam, FedYogi) takes a step from what was sent towards
the regions' mean, which is all it is given: it sees one reply, and memory does not grow with the
cohort. A rule (the others) chooses among replies or weighs them, so it needs them all at once.
Flower's classes average weights, hence updates are added to what was sent before they see them.
A class is made anew for every round and handed what it remembered, so that a training which was
interrupted goes on bit for bit.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
)
from numpy.typing import NDArray
from torch import Tensor

from shared.adapter import Adapter
from shared.config import FederationConfig
from shared.errors import FederationError
from shared.records import ARRAYS, METRICS, NUM_EXAMPLES

MAX_AT_ONCE: Final = 256  # replies that a rule is given
_MOMENTUM, _VARIANCE = "momentum/", "variance/"
_LOSS: Final = "loss"

Arrays = dict[str, NDArray[np.float64]]


def server_step(
    config: FederationConfig, server_round: int, sent: Adapter, mean: Adapter, memory: Adapter
) -> tuple[Adapter, Adapter]:
    """A server optimizer's step (FedAvgM: arXiv:1909.06335; FedAdam, FedYogi: arXiv:2003.00295).

    Args:
        config: names the strategy and its numbers.
        server_round: of the federation; Adam's correction of its first rounds depends on it.
        sent: what the regions started from, of the tensors that were trained.
        mean: where they ended on average, the same tensors.
        memory: what the optimizer remembers, by `momentum/` or `variance/` and name.

    Returns:
        The next adapter's tensors, float32, and the new memory, float64. Memory of tensors that
        were not trained in this round is kept as it is.
    """
    former, momentum = _arrays(sent), _remembered(memory, _MOMENTUM, sent)
    reply = _message(_arrays(mean), num_examples=1, loss=0.0)
    strategy = _optimizer(config)
    if isinstance(strategy, FedAvgM):
        strategy.current_arrays, strategy.momentum_vector = _record(former), [*momentum.values()]
        found = _aggregated(strategy, server_round, [reply])
        momentum = dict(zip(former, strategy.momentum_vector, strict=True))
        return found, memory | _tensors(momentum, _MOMENTUM)
    strategy.current_arrays, strategy.m_t = former, momentum
    strategy.v_t = _remembered(memory, _VARIANCE, sent)
    found = _aggregated(strategy, server_round, [reply])
    kept = _tensors(strategy.m_t, _MOMENTUM) | _tensors(strategy.v_t, _VARIANCE)
    return found, memory | kept


def apply_rule(
    config: FederationConfig, server_round: int, sent: Adapter, replies: Sequence["Reply"]
) -> Adapter:
    """What a rule makes of the replies of a round.

    FedMedian and FedTrimmedAvg: arXiv:1803.01498; Krum and MultiKrum: arXiv:1703.02757; Bulyan:
    arXiv:1802.07927; QFedAvg: arXiv:1905.10497.

    Args:
        config: names the strategy and its numbers.
        server_round: of the federation.
        sent: what the regions started from, of the tensors that were trained.
        replies: update (the same tensors), number of examples and loss of each, in a fixed order.

    Returns:
        The next adapter's tensors, float32.

    Raises:
        FederationError: too few replies for the rule to mean anything.
    """
    least = _RULES[config.strategy][1](config)
    if len(replies) < least:
        raise FederationError(
            f"round {server_round}: {len(replies)} regions answered well, {config.strategy} wants "
            f"{least}; lower malicious-regions or selected-regions, or choose another strategy"
        )
    strategy = _RULES[config.strategy][0](config, server_round)
    former = _arrays(sent)
    if isinstance(strategy, QFedAvg):
        strategy.current_arrays = _record(former)
    messages = []
    for update, num_examples, loss in replies:
        ends = {name: former[name] + update[name].double().numpy() for name in former}
        messages.append(_message(ends, num_examples, loss))
    return _aggregated(strategy, server_round, messages)


Reply = tuple[Adapter, int, float]  # update, number of examples, mean training loss in nats

_Make = Callable[[FederationConfig, int], FedAvg]
_RULES: Mapping[str, tuple[_Make, Callable[[FederationConfig], int]]] = {
    "FedMedian": (lambda config, number: FedMedian(), lambda config: 1),
    "FedTrimmedAvg": (
        lambda config, number: FedTrimmedAvg(beta=config.trimmed_share),
        lambda config: 1,
    ),
    "Krum": (
        lambda config, number: Krum(num_malicious_nodes=config.malicious_regions),
        lambda config: 2 * config.malicious_regions + 3,
    ),
    "MultiKrum": (
        lambda config, number: MultiKrum(
            num_malicious_nodes=config.malicious_regions,
            num_nodes_to_select=config.selected_regions,
        ),
        lambda config: max(2 * config.malicious_regions + 3, config.selected_regions),
    ),
    "Bulyan": (
        lambda config, number: Bulyan(num_malicious_nodes=config.malicious_regions),
        lambda config: 4 * config.malicious_regions + 3,
    ),
    "QFedAvg": (
        lambda config, number: QFedAvg(
            client_learning_rate=config.train_config(number).learning_rate,
            q=config.fairness,
            train_loss_key=_LOSS,
        ),
        lambda config: 1,
    ),
}


def _optimizer(config: FederationConfig) -> FedAvgM | FedAdam | FedYogi:
    """The optimizer with its numbers; a learning rate of 0 leaves Flower's own."""
    rate = config.server_learning_rate
    if config.strategy == "FedAvgM":
        return FedAvgM(server_learning_rate=rate or 1.0, server_momentum=config.server_momentum)
    kind, own = (FedAdam, 0.1) if config.strategy == "FedAdam" else (FedYogi, 0.01)
    return kind(
        eta=rate or own,
        beta_1=config.server_momentum,
        beta_2=config.server_beta_2,
        tau=config.server_tau,
    )


def _aggregated(strategy: FedAvg, server_round: int, messages: list[Message]) -> Adapter:
    arrays, _ = strategy.aggregate_train(server_round, messages)
    assert arrays is not None, "there are replies enough"
    return {name: torch.from_numpy(arrays[name].numpy()).float() for name in sorted(arrays)}


def _message(arrays: Arrays, num_examples: int, loss: float) -> Message:
    """A reply as Flower's classes read it; it goes nowhere."""
    metrics = MetricRecord({NUM_EXAMPLES: num_examples, _LOSS: loss})
    metadata = Metadata(0, "", 0, 0, "", "", created_at=0.0, ttl=1.0, message_type="train")
    content = RecordDict({ARRAYS: _record(arrays), METRICS: metrics})
    return make_message(metadata, content)


def _record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(values)) for name, values in arrays.items()})


def _arrays(adapter: Mapping[str, Tensor]) -> Arrays:
    return {name: adapter[name].double().numpy() for name in sorted(adapter)}


def _remembered(memory: Adapter, prefix: str, sent: Adapter) -> Arrays:
    """What was remembered of each tensor, or zeros, as at the beginning."""
    nothing = {prefix + name: torch.zeros_like(tensor) for name, tensor in sent.items()}
    known = nothing | memory
    return _arrays({name: known[prefix + name] for name in sent})


def _tensors(arrays: Mapping[str, NDArray[np.float64]], prefix: str) -> Adapter:
    return {prefix + name: torch.from_numpy(np.asarray(v)) for name, v in arrays.items()}
