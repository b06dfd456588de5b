"""Local training: one region, one round, from kept activations.

The optimizer starts afresh every round, so a region carries nothing from round to round and a run
that was interrupted goes on exactly where it stopped.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice, repeat

import torch
from torch import Tensor

from client.batches import Batch, epoch_batches, num_batches
from client.objective import Objective, TrainingData
from client.optimization import Descent, first_components
from shared.config import TrainConfig
from shared.decorrelation import Statistics
from shared.encoders.encoder import Encoder
from shared.freed_memory import FREED
from shared.gaussians import Gaussians

KNOWN_ITEMS = 16  # a step, at least: fewer have little to be told from
_KNOWN = 0x6B  # keeps the order of known items apart from that of clicks

OnStep = Callable[[int, int], None]  # steps done, steps in all


def train(
    encoder: Encoder,
    data: TrainingData,
    config: TrainConfig,
    *,
    seed: list[int],
    rank: int | None = None,
    correction: Sequence[Tensor] = (),
    federation: Statistics | None = None,
    gaussians: Gaussians | None = None,
    on_step: OnStep | None = None,
    validate: Callable[[], float] | None = None,
) -> float:
    """Train the encoder's adapter in place.

    Args:
        encoder: holds the adapter to start from.
        data: see `client.objective.TrainingData`.
        config: hyper-parameters of this round.
        seed: of the order of examples.
        rank: components of every LoRA pair that are trained, from the first; None for all. The
            others take part in every step and do not move.
        correction: see `client.optimization.Descent`.
        federation: see `client.objective.Objective`.
        gaussians: the same.
        on_step: called with (steps done, steps in all).
        validate: how good the encoder is by later clicks, for early stopping (`patience`); without
            it nothing stops early.

    Returns:
        Mean loss over the steps, nats.
    """
    parameters = encoder.trainable(config.trained_factors)
    names = encoder.trainable_names(config.trained_factors)
    named = dict(zip(names, parameters, strict=True))
    moved = parameters if rank is None else first_components(named, rank)
    descent = Descent(parameters, config, correction, moved)
    objective = Objective(encoder, data, config, parameters, federation, gaussians)
    total = torch.zeros((), device=encoder.device)
    steps, done = num_steps(data, config), 0
    stopping = None
    if validate and config.patience > 0:
        stopping = EarlyStopping(encoder, validate, config.patience)
    for epoch in range(config.local_epochs):
        order = [*seed, epoch]
        objective.draw(order)
        for batch, known in _epoch(data, config, order):
            descent.clear()
            total += objective.backward(batch, known)
            descent.step()
            done += 1
            FREED.give_back()
            if on_step:
                on_step(done, steps)
        if stopping and stopping.after_epoch():
            break
    if stopping:
        stopping.keep_best()
    return float(total) / max(done, 1)


def num_steps(data: TrainingData, config: TrainConfig) -> int:
    """Steps of the optimizer in a round that does not stop early."""
    part = config.part, config.rounds_per_epoch
    return config.local_epochs * num_batches(len(data.examples.weight), config.batch_size, *part)


def order_seed(config: TrainConfig, server_round: int, name: str) -> list[int]:
    """Seed of the order of examples, of whoever trains under this name.

    Rounds that share an epoch share its order, of which each trains its part; so it is that of the
    first of them.
    """
    return [config.seed, server_round - config.part, *name.encode()]


class EarlyStopping:
    """Of several epochs, the one that is best on clicks that were not trained on (Prechelt 1998).

    The adapter that a round starts from is not among them: the average of what regions learned may
    be better than where each of them ends, so a region does not decline a round by sending nothing.

    Args:
        encoder: that is trained.
        validate: how good it is.
        patience: epochs in a row without a better one that end the round, > 0.
    """

    def __init__(self, encoder: Encoder, validate: Callable[[], float], patience: int) -> None:
        self._encoder, self._validate, self._patience = encoder, validate, patience
        self._best, self._adapter, self._worse = -math.inf, encoder.adapter(), 0

    def after_epoch(self) -> bool:
        """Whether the round ends here."""
        value = self._validate()
        if value > self._best:
            self._best, self._adapter, self._worse = value, self._encoder.adapter(), 0
        else:
            self._worse += 1
        return self._worse >= self._patience

    def keep_best(self) -> None:
        """Give the encoder the best epoch's adapter."""
        self._encoder.load_adapter(self._adapter)


def _epoch(
    data: TrainingData, config: TrainConfig, order: list[int]
) -> Iterator[tuple[Batch, Batch | None]]:
    """A round's part of an epoch: each step's clicks and known items, as if it ran as a whole."""
    size, part, parts = len(data.examples.weight), config.part, config.rounds_per_epoch
    earlier = sum(num_batches(size, config.batch_size, p, parts) for p in range(part))
    batches = epoch_batches(
        data.examples,
        batch_size=config.batch_size,
        seed=order,
        hard_negatives=config.hard_negatives,
        public=(data.num_public, config.public_negatives),
        part=part,
        parts=parts,
    )
    return zip(batches, islice(_known_batches(data, config, order), earlier, None), strict=False)


def _known_batches(
    data: TrainingData, config: TrainConfig, seed: list[int]
) -> Iterator[Batch | None]:
    """Batches of known items for as long as anybody asks; None where there are none."""
    size = max(config.batch_size // 4, KNOWN_ITEMS)
    if config.known_item_weight == 0 or len(data.known.weight) == 0:
        yield from repeat(None)
    for lap in count():
        yield from epoch_batches(data.known, batch_size=size, seed=[*seed, _KNOWN, lap])
