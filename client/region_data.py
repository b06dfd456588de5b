"""What a region has: its click log, split by time, and the kept activations of its catalog.

Everything is opened when it is first asked for, and stays open. What is done with it is the
worker's business (`client.worker`).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.clicks import (
    Examples,
    Splits,
    ValidationSet,
    examples_of,
    make_validation_set,
    split_log,
)
from client.encoders import resident_encoder
from client.known_items import known_items_of
from client.objective import TrainingData, make_training_data
from client.public import PublicProducts, open_public, wants_public
from client.region import Region, read_clicks
from client.shelves import region_rules
from client.tuning import ShownScores, lexical_scores
from client.views import make_views
from shared.config import TrainConfig
from shared.encoders.encoder import Encoder, ProductPrefixes
from shared.encoders.prefix_cache import (
    ImagePrefixes,
    TextPrefixes,
    evict,
    image_prefixes,
    text_folder,
    text_prefixes,
)
from shared.errors import DataError
from shared.retrieval.lexical import LexicalIndex, documents_of


class RegionData:
    """One region's data, and the resident encoder of its base.

    Args:
        region: opened and validated.
    """

    def __init__(self, region: Region) -> None:
        self.region = region
        self._prepared: dict[tuple[int, bool, str], TrainingData] = {}
        self.on_cache: Callable[[str, int, int], None] | None = None

    @cached_property
    def encoder(self) -> Encoder:
        """The resident encoder of this region's base."""
        base = self.region.config.base
        return resident_encoder(
            self.region.folder / base.path,
            device=self.region.config.device,
            fingerprint=base.fingerprint,
        )

    @cached_property
    def file_bytes(self) -> int:
        """Of catalog and click log on disk."""
        data = self.region.config.data
        paths = [self.region.folder / name for name in (data.catalog, data.clicks)]
        return sum(path.stat().st_size for path in paths if path.is_file())

    @cached_property
    def _clicks(self) -> pl.DataFrame:
        return read_clicks(self.region)

    @property
    def num_clicks(self) -> int:
        """Clicks in the whole log, all splits."""
        return int(self._clicks["clicked"].sum())

    @cached_property
    def log(self) -> Splits:
        """All impressions, split by time, with the propensities that are learned with."""
        return split_log(self._clicks, self.region.config)

    @cached_property
    def _examples(self) -> Examples:
        ids = self.region.catalog["product_id"]
        return examples_of(self.log.train, ids, self.region.config.clicks)

    @property
    def num_examples(self) -> int:
        """Training examples; 0 of a region that takes releases, but no part in a round."""
        return len(self._examples.weight)

    @property
    def examples(self) -> Examples:
        """Training examples, from the oldest clicks.

        Raises:
            DataError: there are none.
        """
        if self.num_examples == 0:
            raise DataError(f'region "{self.region.config.region}": no clicks to train on')
        return self._examples

    @cached_property
    def validation(self) -> ValidationSet:
        """Validation judgments, from later clicks."""
        return self._judged(self.log.validation)

    @cached_property
    def gate(self) -> ValidationSet:
        """Judgments from the newest clicks, for the release gate and acceptance alone."""
        return self._judged(self.log.gate)

    def _judged(self, clicks: pl.DataFrame) -> ValidationSet:
        least = self.region.config.clicks.min_propensity
        return make_validation_set(clicks, self.region.catalog["product_id"], min_propensity=least)

    @cached_property
    def products(self) -> ProductPrefixes:
        """Kept activations of the whole catalog."""
        texts = self.region.texts
        fingerprint, cache = self.encoder.base.towers, self.region.state / "prefix_cache"
        products = ProductPrefixes(
            text_prefixes(cache, self.encoder.text, fingerprint, texts, self._progress("texts")),
            self._photo_prefixes(0),
            np.array([bool(text) for text in texts]),
        )
        self._bound_cache()
        return products

    @property
    def catalog_texts(self) -> Path:
        """Where kept activations of the catalog's texts are, or will be; they hold no query."""
        cache, fingerprint = self.region.state / "prefix_cache", self.encoder.base.towers
        return text_folder(cache, self.encoder.text, fingerprint, self.region.texts)

    def query_prefixes(self, queries: list[str]) -> TextPrefixes:
        """Kept activations of a list of queries."""
        cache = self.region.state / "prefix_cache"
        kept = text_prefixes(cache, self.encoder.text, self.encoder.base.towers, queries)
        self._bound_cache()
        return kept

    def _bound_cache(self) -> None:
        """Let go of the activations opened longest ago, where region.toml sets a bound."""
        max_bytes = self.region.config.worker.cache_max_bytes
        if max_bytes:
            evict(self.region.state / "prefix_cache", max_bytes=max_bytes)

    @cached_property
    def training_data(self) -> TrainingData:
        """Examples with the activations they need."""
        return make_training_data(
            self.encoder, self.examples, self._known_items, self.query_prefixes, self.products
        )

    def with_views(self, data: TrainingData, number: int) -> TrainingData:
        """Training data with so many augmented views, made once and kept; 0 leaves it as it is.

        Synonyms are those of the search team's rules (`serve.rules`), where there are any.
        """
        if number == 0:
            return data
        views = make_views(
            number,
            data.examples.queries,
            self.region.texts,
            keep_texts=self.query_prefixes,
            keep_photos=self._photo_prefixes,
            synonyms=region_rules(self.region).synonyms_for,
        )
        return replace(data, views=views)

    def with_public(self, data: TrainingData, config: TrainConfig) -> TrainingData:
        """Training data with the base's public products, where a round asks for them.

        Raises:
            ConfigError: the base has none.
        """
        return self._public.joined(data, config) if wants_public(config) else data

    def prepared(self, data: TrainingData, config: TrainConfig) -> TrainingData:
        """Training data as a round of the federation wants it."""
        return self.with_public(self.with_views(data, config.augmented_views), config)

    def _training_data_of(self, config: TrainConfig) -> TrainingData:
        """`training_data` as a round wants it; what the last round wanted is still open."""
        wanted = config.augmented_views, config.public_negatives > 0, config.known_item_source
        if wanted not in self._prepared:
            self._prepared = {wanted: self.prepared(self.training_data, config)}
        return self._prepared[wanted]

    @cached_property
    def _public(self) -> PublicProducts:
        base = self.region.folder / self.region.config.base.path
        return open_public(base, self.encoder, self.region.state / "prefix_cache")

    def _photo_prefixes(self, view: int) -> ImagePrefixes:
        cache, report = self.region.state / "prefix_cache", self._progress("photos")
        tower, fingerprint = self.encoder.image, self.encoder.base.towers
        paths = self.region.image_paths
        return image_prefixes(cache, tower, fingerprint, paths, report, view=view)

    @cached_property
    def _known_items(self) -> Examples:
        ids = self.region.catalog["product_id"]
        return known_items_of(self.region.texts, ids, self.log.train)

    @cached_property
    def _validation_prefixes(self) -> TextPrefixes:
        return self.query_prefixes(self.validation.queries)

    @cached_property
    def _gate_prefixes(self) -> TextPrefixes:
        return self.query_prefixes(self.gate.queries)

    @cached_property
    def lexical(self) -> LexicalIndex:
        """Words of the whole catalog, in memory."""
        documents = documents_of(self.region.catalog, self.region.texts)
        return LexicalIndex.build(documents, locale=self.region.config.locale)

    @cached_property
    def _untrained(self) -> NDArray[np.bool_]:
        """Validation queries that nobody clicked in training, (Q,)."""
        trained = {query.casefold() for query in self._examples.queries}
        asked = [query.casefold() not in trained for query in self.validation.queries]
        return np.array(asked, np.bool_)

    @cached_property
    def _validation_words(self) -> ShownScores:
        return lexical_scores(self.lexical, self.validation.queries, self.validation.rows)

    @cached_property
    def _gate_words(self) -> ShownScores:
        return lexical_scores(self.lexical, self.gate.queries, self.gate.rows)

    def _progress(self, what: str) -> Callable[[int, int], None] | None:
        if self.on_cache is None:
            return None
        report = self.on_cache
        return lambda done, total: report(what, done, total)
