"""A shelf of a few products whose vectors depend on their title and on nothing else.

All of them are near each other, so that everything answers every query, in some order.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.service.paging import Answer
from shared.retrieval.index import build_index
from shared.retrieval.lexical import LexicalIndex, documents_of
from shared.retrieval.products import ProductTable
from shared.retrieval.rules import Rules
from shared.retrieval.shelf import Ask, Found, Shelf
from shared.retrieval.vectors import VectorIndex
from shared.schema import CATALOG_COLUMNS

DIM = 8


class TitleEncoder:
    """Unit vectors, as an encoder makes them; says how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def encode_queries(
        self, texts: Sequence[str | None], images: Sequence[Path | None]
    ) -> NDArray[np.float32]:
        assert len(texts) == len(images)
        self.calls += 1
        return np.array([vector_of(text or "") for text in texts])


def vector_of(text: str) -> NDArray[np.float32]:
    """A unit vector that depends on the text and on nothing else, (D,); near all others."""
    numbers = np.frombuffer(hashlib.sha256(text.encode()).digest()[:DIM], np.uint8) + 128.0
    return (numbers / np.linalg.norm(numbers)).astype(np.float32)


def shelf_of(
    titles: Mapping[str, str], *, brands: Sequence[str] = (), rules: Rules | None = None
) -> Shelf:
    """Titles by product id; products with equal titles are variants unless brands differ."""
    bare = {name: [None] * len(titles) for name in CATALOG_COLUMNS}
    cells = {"product_id": list(titles), "title": list(titles.values())}
    if brands:
        cells["brand"] = list(brands)
    catalog = pl.DataFrame({**bare, **cells}, schema=CATALOG_COLUMNS)
    vectors = np.array([vector_of(title) for title in titles.values()])
    return Shelf(
        index="1-cccccccccccc",
        release=1,
        encoder_digest="e" * 64,
        products=ProductTable.build(catalog, group_attribute=None),
        vectors=VectorIndex.over(build_index(vectors)),
        lexical=LexicalIndex.build(documents_of(catalog, list(titles.values()))),
        dense_weight=0.6,
        rules=rules or Rules.empty(),
    )


def answer_of(shelf: Shelf, ask: Ask | None = None, **changes: Any) -> Answer:
    """What the shelf answers, by default with all it has."""
    asked = ask or Ask(vector=vector_of("anything"), ranker="dense")
    return Answer(
        **{
            "request_id": "r1",
            "shelf": shelf,
            "ask": asked,
            "found": shelf.find(asked),
            "ranker": asked.ranker,
            "asked": "fingerprint",
            **changes,
        }
    )


def ids_of(shelf: Shelf, found: Found) -> list[str]:
    return [shelf.products.product(int(row))["product_id"] for row in found.rows]
