"""A service beside a worker of word encoders: what the process of `region serve` has, but small."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from small_registry import NOW
from words_shop import WordEncoder, WordsShop

from client.publication import Publication
from client.region import open_region
from client.service.beside import Service
from client.service.messages import SearchRequest
from client.worker import Worker


class Beside:
    """A shop, the service that keeps it true to `state/current`, and the worker beside it."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.parts = WordsShop(folder, **options)
        parts = self.parts
        self.shop = parts.shop
        self.service = Service(
            parts.shop, parts.events, parts.overlay, parts.observer, parts.config
        )
        self.reopen()

    def reopen(self) -> None:
        """As after a change of the catalog."""
        region = open_region(self.folder)
        texts = region.state / "prefix_cache" / "text-catalog"
        worker = SimpleNamespace(region=region, encoder=WordEncoder(), catalog_texts=texts)
        self.worker = cast(Worker, worker)

    def look(self) -> None:
        """One look at headquarters."""
        Publication(self.worker.region, encoder=WordEncoder).step(now=NOW)

    def refresh(self) -> bool:
        return self.service.refresh(self.worker)

    def search(self, query: str, **options: Any) -> Any:
        return self.shop.search(SearchRequest(query=query, **options))
