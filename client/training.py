"""Local training: one region, one round, from kept activations.

The optimizer starts afresh every round, so a region carries nothing from round to round and a run
that was interrupted goes on exactly where it stopped.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.batches import Batch, epoch_batches, num_batches
from client.clicks import Examples
from shared.config import TrainConfig
from shared.encoders.encoder import Encoder, ProductPrefixes
from shared.encoders.prefix_cache import TextPrefixes
from shared.losses import drift, image_text_loss, masked_info_nce

OnStep = Callable[[int, int], None]  # steps done, steps in all


@dataclass(frozen=True)
class TrainingData:
    """What a region trains on.

    Attributes:
        examples: from its clicks.
        queries: kept activations of `examples.queries`.
        products: kept activations of its catalog.
        base_queries: where the base puts `examples.queries`, unit vectors, (Q, D).
        clicked: catalog rows that occur in the examples, ascending, (P,) int64.
        base_texts: where the base puts their texts, unit vectors, (P, D).
    """

    examples: Examples
    queries: TextPrefixes
    products: ProductPrefixes
    base_queries: NDArray[np.float32]
    clicked: NDArray[np.int64]
    base_texts: NDArray[np.float32]


def make_training_data(
    encoder: Encoder, examples: Examples, queries: TextPrefixes, products: ProductPrefixes
) -> TrainingData:
    """Add to examples and kept activations where the base puts them."""
    clicked = np.unique(examples.product_row)
    return TrainingData(
        examples=examples,
        queries=queries,
        products=products,
        base_queries=encoder.base_text_matrix(queries, np.arange(len(examples.queries))),
        clicked=clicked,
        base_texts=encoder.base_text_matrix(products.texts, clicked),
    )


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
            loss = batch_loss(encoder, data, batch, config)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, config.clip_norm)
            optimizer.step()
            total += loss.detach()
            done += 1
            if on_step:
                on_step(done, steps)
    return float(total) / max(steps, 1)


def batch_loss(encoder: Encoder, data: TrainingData, batch: Batch, config: TrainConfig) -> Tensor:
    """Click term plus the weighted image-text and drift terms, nats, shape ()."""
    device, temperature = encoder.device, encoder.fusion.temperature()
    query = encoder.text_vectors(data.queries, batch.query_rows)  # (U, D)
    text = encoder.text_vectors(data.products.texts, batch.product_rows)  # (V, D)
    image = encoder.image_vectors(data.products.images, batch.product_rows)  # (V, D)
    product = encoder.fused(text, image, data.products, batch.product_rows)  # (V, D)
    loss = masked_info_nce(
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
    base_query, base_text = (base.to(device) for base in _base_vectors(data, batch))
    away = drift(query, base_query) + drift(text, base_text)
    return loss + config.alignment_weight * alignment + config.anchor_weight * away


def _base_vectors(data: TrainingData, batch: Batch) -> tuple[Tensor, Tensor]:
    """Where the base puts a batch's queries (U, D) and product texts (V, D)."""
    rows = np.searchsorted(data.clicked, batch.product_rows)
    return torch.from_numpy(data.base_queries[batch.query_rows]), torch.from_numpy(
        data.base_texts[rows]
    )
