"""What a region minimizes: a click term, and beside it what keeps clicks from spoiling the rest.

Each term is a pure function of unit vectors in `shared.losses`; here they get their vectors, from
kept activations, and their weights, from the federation's knobs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.batches import Batch
from client.clicks import Examples
from shared.config import TrainConfig
from shared.encoders.encoder import Encoder, ProductPrefixes
from shared.encoders.prefix_cache import TextPrefixes
from shared.losses import drift, image_text_loss, masked_info_nce


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


class Objective:
    """The joint loss of one region in one round.

    Args:
        encoder: its adapter is what is trained.
        data: see `TrainingData`.
        config: weights of the terms.
    """

    def __init__(self, encoder: Encoder, data: TrainingData, config: TrainConfig) -> None:
        self._encoder, self._data, self._config = encoder, data, config

    def loss(self, batch: Batch, known: Batch | None) -> Tensor:
        """Click term plus the weighted known-item, image-text and drift terms, nats, shape ()."""
        encoder, data, config = self._encoder, self._data, self._config
        temperature = encoder.fusion.temperature()
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
        present = torch.from_numpy(both[batch.product_rows]).to(encoder.device)
        alignment = image_text_loss(image, text, present, temperature=temperature)
        base_query, base_text = (base.to(encoder.device) for base in _base_vectors(data, batch))
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


def _base_vectors(data: TrainingData, batch: Batch) -> tuple[Tensor, Tensor]:
    """Where the base puts a batch's queries (U, D) and product texts (V, D)."""
    rows = np.searchsorted(data.clicked, batch.product_rows)
    return torch.from_numpy(data.base_queries[batch.query_rows]), torch.from_numpy(
        data.base_texts[rows]
    )
