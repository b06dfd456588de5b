"""Local training: one region, one round, from kept activations.

The optimizer starts afresh every round, so a region carries nothing from round to round and a run
that was interrupted goes on exactly where it stopped.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, repeat

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

_KNOWN = 0x6B  # keeps the order of known items apart from that of clicks

OnStep = Callable[[int, int], None]  # steps done, steps in all


@dataclass(frozen=True)
class TrainingData:
    """What a region trains on.

    Attributes:
        examples: from its clicks.
        known: from its catalog (`client.known_items`); a quarter of a batch of them a step.
        queries: kept activations of `examples.queries`.
        known_queries: kept activations of `known.queries`.
        products: kept activations of its catalog.
        base_queries: where the base puts `examples.queries`, unit vectors, (Q, D).
        clicked: catalog rows that occur in the examples, ascending, (P,) int64.
        base_texts: where the base puts their texts, unit vectors, (P, D).
    """

    examples: Examples
    known: Examples
    queries: TextPrefixes
    known_queries: TextPrefixes
    products: ProductPrefixes
    base_queries: NDArray[np.float32]
    clicked: NDArray[np.int64]
    base_texts: NDArray[np.float32]


def make_training_data(
    encoder: Encoder,
    examples: Examples,
    known: Examples,
    kept: Callable[[list[str]], TextPrefixes],
    products: ProductPrefixes,
) -> TrainingData:
    """Add to examples their activations, and where the base puts them.

    Args:
        encoder: of the base; its adapter does not matter and stays.
        examples: from clicks.
        known: from the catalog.
        kept: gives the kept activations of queries.
        products: kept activations of the catalog.
    """
    clicked, queries = np.unique(examples.product_row), kept(examples.queries)
    return TrainingData(
        examples=examples,
        known=known,
        queries=queries,
        known_queries=kept(known.queries),
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
    parameters = encoder.trainable(config.trained_factors)
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    total = torch.zeros((), device=encoder.device)
    steps, done = config.local_epochs * num_batches(data.examples, config.batch_size), 0
    for epoch in range(config.local_epochs):
        order = [*seed, epoch]
        batches = epoch_batches(data.examples, batch_size=config.batch_size, seed=order)
        for batch, known in zip(batches, _known_batches(data, config, order), strict=False):
            loss = batch_loss(encoder, data, batch, known, config)
            optimizer.zero_grad()
            loss.backward(inputs=parameters)  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, config.clip_norm)
            optimizer.step()
            total += loss.detach()
            done += 1
            if on_step:
                on_step(done, steps)
    return float(total) / max(steps, 1)


def batch_loss(
    encoder: Encoder, data: TrainingData, batch: Batch, known: Batch | None, config: TrainConfig
) -> Tensor:
    """Click term plus the weighted known-item, image-text and drift terms, nats, shape ()."""
    device, temperature = encoder.device, encoder.fusion.temperature()
    query = encoder.text_vectors(data.queries, batch.query_rows)  # (U, D)
    text = encoder.text_vectors(data.products.texts, batch.product_rows)  # (V, D)
    image = encoder.image_vectors(data.products.images, batch.product_rows)  # (V, D)
    product = encoder.fused(text, image, data.products, batch.product_rows)  # (V, D)
    loss = _contrast(query, product, batch, temperature)
    if known is not None:
        asked = encoder.text_vectors(data.known_queries, known.query_rows)
        answers = encoder.text_vectors(data.products.texts, known.product_rows)
        # The temperature is the clicks' own: it must not follow easier queries.
        loss = loss + config.known_item_weight * _contrast(
            asked, answers, known, temperature.detach()
        )
    both = data.products.images.present & data.products.has_text
    present = torch.from_numpy(both[batch.product_rows]).to(device)
    alignment = image_text_loss(image, text, present, temperature=temperature)
    base_query, base_text = (base.to(device) for base in _base_vectors(data, batch))
    away = drift(query, base_query) + drift(text, base_text)
    return loss + config.alignment_weight * alignment + config.anchor_weight * away


def _contrast(query: Tensor, product: Tensor, batch: Batch, temperature: Tensor) -> Tensor:
    device = query.device
    return masked_info_nce(
        query,
        product,
        query_index=batch.query_index.to(device),
        product_index=batch.product_index.to(device),
        weight=batch.weight.to(device),
        known_positive=batch.known_positive.to(device),
        temperature=temperature,
    )


def _known_batches(
    data: TrainingData, config: TrainConfig, seed: list[int]
) -> Iterator[Batch | None]:
    """Batches of known items for as long as anybody asks; None where there are none."""
    size = max(config.batch_size // 4, 2)  # one alone has nothing to be told from
    if config.known_item_weight == 0 or len(data.known.weight) == 0:
        yield from repeat(None)
    for lap in count():
        yield from epoch_batches(data.known, batch_size=size, seed=[*seed, _KNOWN, lap])


def _base_vectors(data: TrainingData, batch: Batch) -> tuple[Tensor, Tensor]:
    """Where the base puts a batch's queries (U, D) and product texts (V, D)."""
    rows = np.searchsorted(data.clicked, batch.product_rows)
    return torch.from_numpy(data.base_queries[batch.query_rows]), torch.from_numpy(
        data.base_texts[rows]
    )
