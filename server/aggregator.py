"""What becomes of one round's checked replies: the next adapter, and what is said of the round.

The one way for it: headquarters goes it behind its checks, and `simulations.development` without
a wire. Replies go in one at a time and in a fixed order.
"""

from dataclasses import dataclass, replace

from server.aggregation import new_mean
from server.extrapolation import StepLength, between
from server.flower_rules import MAX_AT_ONCE, Reply, apply_rule, server_step
from server.gaussians import FederationGaussians
from server.statistics import FederationStatistics
from shared.adapter import Adapter, interpolate, subtract, trained_names
from shared.config import FACTORS, FEDEXP, RULES, SERVER_OPTIMIZERS, FederationConfig
from shared.decorrelation import Statistics
from shared.errors import FederationError
from shared.gaussians import Gaussians


@dataclass(frozen=True)
class Outcome:
    """Of one round.

    Attributes:
        adapter: the next global one.
        memory: what headquarters must remember for the next round; empty for plain FedAvg.
        loss: mean training loss, weighted by examples, nats.
        bias: see `server.aggregation.Mean`; None under a server optimizer or rule, whose adapter is
            not meant to be the mean.
        relative_bias: the same.
    """

    adapter: Adapter
    memory: Adapter
    loss: float
    bias: float | None
    relative_bias: float | None


class Aggregator:
    """Takes the replies of one round.

    Args:
        config: names aggregation and strategy.
        server_round: of the federation.
        sent: the adapter that the regions started from.
        memory: of the outcome of the round before.
    """

    def __init__(
        self, config: FederationConfig, server_round: int, sent: Adapter, memory: Adapter
    ) -> None:
        self._config, self._round, self._sent, self._memory = config, server_round, sent, memory
        self._mean = new_mean(config.aggregation, sent, residual_rank=config.residual_rank)
        self._statistics = FederationStatistics(memory)
        self._gaussians = FederationGaussians(memory, seed=[config.seed, server_round])
        self._replies: list[Reply] = []
        self._length = StepLength()
        self._losses, self._weight = 0.0, 0

    def add(
        self,
        update: Adapter,
        num_examples: int,
        loss: float,
        statistics: Statistics | None = None,
        gaussian: Gaussians | None = None,
    ) -> None:
        """Count a region in.

        Args:
            update: of the adapter.
            num_examples: its weight.
            loss: of training, nats.
            statistics: of its encodings, where it sent some.
            gaussian: of its product vectors, where it sent one.

        Raises:
            FederationError: the strategy needs all replies at once, and these are too many.
        """
        self._losses += loss * num_examples
        self._weight += num_examples
        if statistics is not None:
            self._statistics.add(statistics, num_examples)
        if gaussian is not None:
            self._gaussians.add(gaussian)
        if self._config.strategy not in RULES:
            self._mean.add(update, num_examples)
            if self._config.strategy == FEDEXP:
                self._length.add(update, num_examples)
            return
        self._replies.append((update, num_examples, loss))
        if len(self._replies) > MAX_AT_ONCE:
            raise FederationError(
                f"round {self._round}: {self._config.strategy} needs all replies at once, and there"
                f" are more than {MAX_AT_ONCE}; choose a smaller cohort or another strategy"
            )

    def outcome(self) -> Outcome:
        """What the replies make together; at least one must have been added.

        Raises:
            FederationError: too few replies for the strategy.
        """
        outcome = self._step()
        memory = outcome.memory
        if self._config.decorrelation_weight > 0:
            memory = memory | self._statistics.memory()
        if self._config.drawn_negatives > 0:
            memory = memory | self._gaussians.memory()
        return replace(outcome, memory=memory)

    def _step(self) -> Outcome:
        loss, strategy = self._losses / self._weight, self._config.strategy
        trained = trained_names(self._sent, self._config.factors_of(self._round))
        start = {name: self._sent[name] for name in trained}
        if strategy in RULES:
            ends = apply_rule(self._config, self._round, start, self._replies)
            return Outcome(self._sent | ends, self._memory, loss, None, None)
        mean = self._mean.value()
        reached = {name: mean.adapter[name] for name in trained}
        if strategy == FEDEXP:
            ends = interpolate(start, reached, self._length.of(subtract(reached, start)))
            middle, memory = between(self._sent, self._sent | ends, self._memory)
            return Outcome(middle, self._memory | memory, loss, None, None)
        if strategy not in SERVER_OPTIMIZERS:
            return Outcome(mean.adapter, self._memory, loss, mean.bias, mean.relative_bias)
        ends, memory = server_step(self._config, self._round, start, reached, self._memory)
        return Outcome(self._sent | ends, memory, loss, None, None)


def method_name(config: FederationConfig) -> str:
    """How updates become an adapter, for people: Flower's name, and what differs from FedAvg."""
    said = [config.strategy]
    if config.aggregation != FACTORS:
        said.append(config.aggregation)
    if config.proximal_mu > 0:
        said.append("FedProx")
    if config.control_variates:
        said.append("SCAFFOLD")
    return ", ".join(said)
