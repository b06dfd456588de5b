"""Local training: one region, one round, from kept activations.

The optimizer starts afresh every round, so a region carries nothing from round to round and a run
that was interrupted goes on exactly where it stopped.
"""

from collections.abc import Callable, Iterator
from itertools import count, repeat

import torch
from torch import nn

from client.batches import Batch, epoch_batches, num_batches
from client.objective import Objective, TrainingData
from shared.config import TrainConfig
from shared.encoders.encoder import Encoder

_KNOWN = 0x6B  # keeps the order of known items apart from that of clicks

OnStep = Callable[[int, int], None]  # steps done, steps in all


def train(
    encoder: Encoder,
    data: TrainingData,
    config: TrainConfig,
    *,
    seed: list[int],
    on_step: OnStep | None = None,
) -> float:
    """Train the encoder's adapter in place.

    Args:
        encoder: holds the adapter to start from.
        data: see `client.objective.TrainingData`.
        config: hyper-parameters of this round.
        seed: of the order of examples.
        on_step: called with (steps done, steps in all).

    Returns:
        Mean loss over the steps, nats.
    """
    parameters = encoder.trainable(config.trained_factors)
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    objective, total = Objective(encoder, data, config), torch.zeros((), device=encoder.device)
    steps, done = config.local_epochs * num_batches(data.examples, config.batch_size), 0
    for epoch in range(config.local_epochs):
        order = [*seed, epoch]
        batches = epoch_batches(data.examples, batch_size=config.batch_size, seed=order)
        for batch, known in zip(batches, _known_batches(data, config, order), strict=False):
            loss = objective.loss(batch, known)
            optimizer.zero_grad()
            loss.backward(inputs=parameters)  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, config.clip_norm)
            optimizer.step()
            total += loss.detach()
            done += 1
            if on_step:
                on_step(done, steps)
    return float(total) / max(steps, 1)


def _known_batches(
    data: TrainingData, config: TrainConfig, seed: list[int]
) -> Iterator[Batch | None]:
    """Batches of known items for as long as anybody asks; None where there are none."""
    size = max(config.batch_size // 4, 2)  # one alone has nothing to be told from
    if config.known_item_weight == 0 or len(data.known.weight) == 0:
        yield from repeat(None)
    for lap in count():
        yield from epoch_batches(data.known, batch_size=size, seed=[*seed, _KNOWN, lap])
