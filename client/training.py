"""Local training: one region, one round, from kept activations.

The optimizer starts afresh every round, so a region carries nothing from round to round and a run
that was interrupted goes on exactly where it stopped.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from client.batches import Batch, epoch_batches, num_batches
from client.clicks import Examples
from shared.config import TrainConfig
from shared.encoders.encoder import Encoder, ProductPrefixes
from shared.encoders.prefix_cache import TextPrefixes
from shared.losses import image_text_loss, masked_info_nce

OnStep = Callable[[int, int], None]  # steps done, steps in all


@dataclass(frozen=True)
class TrainingData:
    """What a region trains on.

    Attributes:
        examples: from its clicks.
        queries: kept activations of `examples.queries`.
        products: kept activations of its catalog.
    """

    examples: Examples
    queries: TextPrefixes
    products: ProductPrefixes


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
        data: see `TrainingData`.
        config: hyper-parameters of this round.
        seed: of the order of examples.
        on_step: called with (steps done, steps in all).

    Returns:
        Mean loss over the steps, nats.
    """
    parameters = encoder.trainable()
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    total = torch.zeros((), device=encoder.device)
    steps, done = config.local_epochs * num_batches(data.examples, config.batch_size), 0
    for epoch in range(config.local_epochs):
        batches = epoch_batches(data.examples, batch_size=config.batch_size, seed=[*seed, epoch])
        for batch in batches:
            loss = batch_loss(encoder, data, batch, config.alignment_weight)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, config.clip_norm)
            optimizer.step()
            total += loss.detach()
            done += 1
            if on_step:
                on_step(done, steps)
    return float(total) / max(steps, 1)


def batch_loss(
    encoder: Encoder, data: TrainingData, batch: Batch, alignment_weight: float
) -> Tensor:
    """Click term plus `alignment_weight` times the image-text term, nats, shape ()."""
    device, temperature = encoder.device, encoder.fusion.temperature()
    query = encoder.text_vectors(data.queries, batch.query_rows)  # (U, D)
    text = encoder.text_vectors(data.products.texts, batch.product_rows)  # (V, D)
    image = encoder.image_vectors(data.products.images, batch.product_rows)  # (V, D)
    product = encoder.fused(text, image, data.products, batch.product_rows)  # (V, D)
    clicks = masked_info_nce(
        query,
        product,
        query_index=batch.query_index.to(device),
        product_index=batch.product_index.to(device),
        weight=batch.weight.to(device),
        known_positive=batch.known_positive.to(device),
        temperature=temperature,
    )
    both = data.products.images.present & data.products.has_text
    present = torch.from_numpy(both[batch.product_rows]).to(device)
    alignment = image_text_loss(image, text, present, temperature=temperature)
    return clicks + alignment_weight * alignment
