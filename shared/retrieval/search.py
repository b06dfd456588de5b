"""Answer one search from a region's current index.

The encoder that reads the query must be the one that made the index: vectors of two releases lie
in two spaces, and comparing them gives results that look plausible and are wrong. So the digests
are compared on opening, before anything is answered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from shared.errors import RetrievalError
from shared.retrieval.index import search_index
from shared.retrieval.manifest import IndexManifest, OpenIndex, open_current_index


class QueryEncoder(Protocol):
    """What a search needs of an encoder."""

    @property
    def digest(self) -> str:
        """Encoder digest; vectors may be compared only where it is equal."""

    def encode_queries(
        self, texts: Sequence[str | None], images: Sequence[Path | None]
    ) -> NDArray[np.float32]:
        """Unit vectors (Q, D) of queries given as text, photo or both."""


@dataclass(frozen=True)
class Hit:
    """One product found.

    Attributes:
        rank: 1 for the best.
        product_id: its id in the catalog.
        score: cosine of query and product.
        title: from the catalog, as the other fields.
        brand: None where the catalog has none.
        price: in `currency`, None where unknown.
        currency: of `price`.
        image: photo, relative to the region's images folder.
    """

    rank: int
    product_id: str
    score: float
    title: str
    brand: str | None
    price: float | None
    currency: str | None
    image: str | None


@dataclass(frozen=True)
class Searcher:
    """One region's current index with the encoder and the catalog that belong to it.

    Attributes:
        num_gone: indexed products that the catalog no longer has; they are never shown.
    """

    num_gone: int
    _index: OpenIndex
    _encoder: QueryEncoder
    _catalog: pl.DataFrame
    _catalog_rows: NDArray[np.int64]  # (N,) catalog row of each index row, -1 where it is gone

    @classmethod
    def open(cls, state: Path, encoder: QueryEncoder, catalog: pl.DataFrame) -> "Searcher":
        """Open the current index of a region.

        Args:
            state: the region's state folder.
            encoder: with the release loaded that made the index.
            catalog: the region's products, in the columns of `CATALOG_COLUMNS`.

        Returns:
            A searcher that answers from memory.

        Raises:
            RetrievalError: no index, a damaged one, or one made by another encoder.
        """
        index = open_current_index(state, expected_digest=encoder.digest)
        row_of = {product: row for row, product in enumerate(catalog["product_id"].to_list())}
        rows = np.array([row_of.get(product, -1) for product in index.ids.tolist()], np.int64)
        return cls(int((rows < 0).sum()), index, encoder, catalog, rows)

    @property
    def manifest(self) -> IndexManifest:
        """What the index was made from: release, encoder digest, catalog digest."""
        return self._index.manifest

    def search(self, text: str | None, image: Path | None, k: int = 10) -> list[Hit]:
        """The k products nearest to a query.

        Args:
            text: what the shopper typed, or None; blank counts as None.
            image: the shopper's photo, or None.
            k: how many products; all of them if that is fewer.

        Returns:
            At most k hits, best first; equal scores in catalog order of the index.

        Raises:
            RetrievalError: neither text nor photo, or k below 1.
        """
        text = text if text and text.strip() else None
        if text is None and image is None:
            raise RetrievalError("nothing to search for: give words, a photo, or both")
        if k < 1:
            raise RetrievalError(f"k is {k}: ask for at least one product")
        query = self._encoder.encode_queries([text], [image])  # (1, D)
        scores, rows = search_index(self._index.index, query, k + self.num_gone)
        shown = self._catalog_rows[rows[0]] >= 0
        found = zip(rows[0][shown], scores[0][shown], strict=True)
        return [self._hit(rank, row, score) for rank, (row, score) in enumerate(found, 1)][:k]

    def _hit(self, rank: int, row: np.int64, score: np.float32) -> Hit:
        product = self._catalog.row(int(self._catalog_rows[row]), named=True)
        fields = {name: product[name] for name in ("title", "brand", "price", "currency", "image")}
        return Hit(rank, str(self._index.ids[row]), float(score), **fields)
