"""A base's public products in local training: wrong answers of kinds that a region does not sell.

In-batch negatives of a region are what the region sells. Where that is a few kinds of products, its
queries are told apart by colour and cut, and hardly by kind, and the average of such regions
mistakes one kind for another (docs/aggregation.md, "Very unlike regions").
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from client.clicks import Examples
from client.known_items import SEED, make_known_items
from client.objective import TrainingData
from shared.config import PUBLIC, TrainConfig
from shared.encoders.encoder import Encoder, ProductPrefixes
from shared.encoders.prefix_cache import TextPrefixes, image_prefixes, text_prefixes
from shared.encoders.public import read_public
from shared.errors import ConfigError


@dataclass(frozen=True)
class PublicProducts:
    """What belongs to no region, as training needs it.

    Attributes:
        products: kept activations.
        known: words of their titles, as queries.
        known_queries: kept activations of these.
    """

    products: ProductPrefixes
    known: Examples
    known_queries: TextPrefixes

    def joined(self, data: TrainingData, config: TrainConfig) -> TrainingData:
        """Training data with what a round wants of them."""
        if config.public_negatives > 0:
            data = replace(data, public=self.products)
        if config.known_item_source == PUBLIC:
            known, asked, texts = self.known, self.known_queries, self.products.texts
            data = replace(data, known=known, known_queries=asked, known_texts=texts)
        return data


def wants_public(config: TrainConfig) -> bool:
    """Whether a round trains with them."""
    return config.public_negatives > 0 or config.known_item_source == PUBLIC


def open_public(base: Path, encoder: Encoder, cache: Path) -> PublicProducts:
    """Those of a base, with their activations.

    Args:
        base: the artefact, verified.
        encoder: of it.
        cache: the region's `prefix_cache` folder.

    Raises:
        ConfigError: it has none.
    """
    public = read_public(base)
    if not public.titles:
        raise ConfigError(
            f"{base}: this base has no public products; set public-negatives=0 and"
            " known-item-source=catalog, or make a base from data that has a public slice"
        )
    keep = partial(text_prefixes, cache, encoder.text, encoder.base.towers)
    known = make_known_items(public.titles, np.arange(len(public.titles)), seed=SEED)
    photos = image_prefixes(cache, encoder.image, encoder.base.towers, list(public.photos))
    has_text = np.array([bool(title) for title in public.titles])
    return PublicProducts(
        ProductPrefixes(keep(public.titles), photos, has_text), known, keep(known.queries)
    )
