"""A small region on disk and the real shop over it, with an encoder that knows words and colours.

Everything is the service's own: index folder, shelf, store, overlay. Only the encoder is small: a
text is the sum of one random vector a word, a photo is the word of its colour, and a release turns
every word, so that vectors of two releases have nothing to do with one another.
"""

import copy
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from small_registry import BASE, HashEncoder

from client.indexing import write_region_index
from client.region import Region, open_region
from client.service.encoding import Edition
from client.service.events import EventStore, EventTables, read_tables
from client.service.messages import Product, SearchResponse
from client.service.observe import Observer
from client.service.overlay import Overlay
from client.service.priority import Priority
from client.service.shop import Opened, Shop
from client.service.store import EVENTS_FILE, Store
from client.shelves import open_shelf
from shared.errors import DataError
from shared.retrieval.manifest import OpenIndex
from shared.schema import CATALOG_COLUMNS, ServeConfig, load_region_config

COLOURS = {
    "red": (220, 10, 10),
    "green": (10, 220, 10),
    "blue": (10, 10, 220),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
}
KINDS = ("boots", "shoes", "hat", "scarf", "jacket", "bag")
DIM = 256


class WordEncoder(HashEncoder):
    """Sums of a random vector a word, other ones in every release; 0 is the base.

    All texts have much in common, so that everything answers every query, in some order.
    """

    def __init__(self, release: int = 0) -> None:
        super().__init__(None)
        self._release = adapter_of(release) if release else b""

    def replica(self) -> "WordEncoder":
        return copy.copy(self)

    def encode_queries(
        self, texts: Sequence[str | None], images: Sequence[BinaryIO | Path | None]
    ) -> NDArray[np.float32]:
        rows = [
            self._of_words([*(text or "").lower().split(), *_colour_of(image)])
            for text, image in zip(texts, images, strict=True)
        ]
        return np.array(rows, np.float32)

    encode_products = encode_queries  # type: ignore[assignment]

    def _of_words(self, words: Sequence[str]) -> NDArray[np.float64]:
        seeds = [[*self._release, 0, *word.encode()] for word in [*words, *(5 * [""])]]
        vector = sum(np.random.default_rng(seed).standard_normal(DIM) for seed in seeds)
        return np.asarray(vector) / float(np.linalg.norm(vector))


def _colour_of(image: BinaryIO | Path | None) -> list[str]:
    if image is None:
        return []
    try:
        with Image.open(image) as photo:
            mean = np.asarray(photo.convert("RGB")).mean(axis=(0, 1))
    except UnidentifiedImageError:
        raise DataError("a photo: not a readable picture") from None
    return [min(COLOURS, key=lambda name: float(np.abs(mean - COLOURS[name]).sum()))]


def adapter_of(release: int) -> bytes:
    """The bytes by which a `WordEncoder` tells releases apart."""
    return f"release {release}".encode()


def small_catalog() -> list[dict[str, Any]]:
    """Thirty products, every kind in every colour; the boots are variants of one model."""
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        for colour in COLOURS:
            number = len(rows)
            attributes = {"colour": colour, "ean": f"40123450{number:04d}9"}
            if kind == "boots":
                attributes["model"] = "boots"
            rows.append(
                {
                    "product_id": f"p{number:02d}",
                    "title": f"{colour} {kind} no{number}",
                    "brand": "Acme" if kind == "boots" else ("Acme", "Bell", "Corex")[number % 3],
                    "category": kind,
                    "attributes": [{"key": key, "value": attributes[key]} for key in attributes],
                    "price": 10.0 + number,
                    "currency": "EUR",
                    "rating": 1.0 + number % 5,
                    "review_count": 10 * number,
                    "sales": 100 - number,
                    "in_stock": number % 4 != 0,
                    "image": f"{colour}.png" if number % 2 == 0 else None,
                }
            )
    return rows


def write_shop_region(folder: Path, rows: Sequence[Mapping[str, Any]] = (), toml: str = "") -> Path:
    """A region's folder with these products, by default the thirty."""
    (folder / "images").mkdir(parents=True)
    for colour, pixel in COLOURS.items():
        Image.new("RGB", (8, 8), pixel).save(folder / "images" / f"{colour}.png")
    (folder / "region.toml").write_text(
        'region = "north"\ndata.text_fields = ["title"]\n[base]\npath = "../base"\n'
        f'fingerprint = "{BASE}"\nrelease_key = "{"0" * 64}"\nreleases = "../releases"\n{toml}',
        encoding="utf-8",
    )
    export(folder, rows or small_catalog())
    return folder


def export(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the catalog, as a retailer does once a night."""
    table = pl.DataFrame(list(rows), CATALOG_COLUMNS)
    table.write_parquet(folder / "catalog.parquet")


class WordsShop:
    """A shop from its start to its end; open another one on the same folder for a restart.

    Attributes:
        indexes: of each release, as it was last built.
    """

    def __init__(self, folder: Path, *releases: int, seed: int = 0, **options: Any) -> None:
        self.folder = folder
        self.config = load_region_config(folder).serve or ServeConfig(**options)
        self.store = Store(folder / "state" / EVENTS_FILE)
        self.events, self.overlay = EventStore(self.store), Overlay.open(self.store)
        self.observer = Observer()
        self.indexes: dict[int, OpenIndex] = {}
        self.shop = Shop(
            open_region(folder),
            self.config,
            events=self.events,
            overlay=self.overlay,
            observer=self.observer,
            priority=Priority(),
            seed=seed,
        )
        if releases:
            self.use(*releases)

    def __enter__(self) -> "WordsShop":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.shop.close()
        self.store.close()

    def use(self, *releases: int, rebuild: bool = False) -> None:
        """Open the region anew and answer from these releases, the current one first."""
        region = open_region(self.folder)
        opened = [self._open(region, release, rebuild) for release in releases]
        self.shop.put_in_use(opened, region)
        self.overlay.retire(region.caught_up, region.overlay_seq)

    def _open(self, region: Region, release: int, rebuild: bool) -> Opened:
        encoder = WordEncoder(release)
        if rebuild or release not in self.indexes:
            self.indexes[release] = build_index(region, encoder, release)
        scratch = self.folder / "state" / "scratch"
        shelf = open_shelf(region, self.indexes[release], encoder.encode_products, scratch=scratch)
        return Opened(shelf, Edition(encoder.digest, encoder))

    def tables(self) -> EventTables:
        """What is on record, once everything that was queued is."""
        self.store.submit(lambda connection: None).result()
        return read_tables(self.store.path)


def build_index(region: Region, encoder: WordEncoder, release: int) -> OpenIndex:
    """The index of a release over a region's products as they are now."""
    vectors = encoder.encode_products(region.texts, region.image_paths)
    digest = encoder.digest
    return write_region_index(region, vectors, release=release, encoder_digest=digest)


def killed(folder: Path, to: Path) -> Path:
    """What is on disk at this instant, as after a kill: nothing was closed or written out."""
    return shutil.copytree(folder, to)


def product(product_id: str, title: str, **more: Any) -> Product:
    return Product(product_id=product_id, title=title, **more)


def ids(response: SearchResponse) -> list[str]:
    return [hit.product_id for hit in response.hits]
