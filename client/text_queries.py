"""Vectors of text queries for one command, without loading what only photos and training need.

`fedshelf search` starts a process for a single query. The resident encoder holds both towers and
their adapters in peft, which takes longer to import than all the rest; here the release's factors
are folded into the plain text tower, which gives the same vectors to float tolerance. A service
keeps the resident encoder.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from client.indexing import load_region_encoder, read_for_base
from shared import adapter as adapters
from shared.adapter import Adapter, read_release_adapter
from shared.schema import RegionConfig

if TYPE_CHECKING:  # transformers takes a second or more, and a search by words needs none
    from torch import Tensor

    from shared.encoders.base import BaseInfo
    from shared.encoders.encoder import Encoder
    from shared.encoders.text import PlainText


class QueryEncoder(Protocol):
    """What a search needs of an encoder."""

    @property
    def digest(self) -> str:
        """Encoder digest."""

    def encode_queries(
        self, texts: Sequence[str | None], images: Sequence[Path | None]
    ) -> NDArray[np.float32]:
        """Unit vectors (Q, D) of queries."""

    def encode_products(
        self, texts: Sequence[str | None], images: Sequence[Path | None]
    ) -> NDArray[np.float32]:
        """Unit vectors (N, D) of products that are new since the index was built."""


class TextQueries:
    """Text queries by the folded text tower; anything else by the whole encoder, once asked for.

    Args:
        folder: the base artefact, verified.
        base: what it says.
        adapter: of the release, verified.
        device: where the text tower is to live.
        whole: loads the resident encoder with the same release.
    """

    def __init__(
        self,
        folder: Path,
        base: "BaseInfo",
        adapter: Adapter,
        *,
        device: str,
        whole: Callable[[], "Encoder"],
    ) -> None:
        self._folder, self._base, self._adapter = folder, base, adapter
        self._device, self._load = device, whole
        self.digest = adapters.encoder_digest(base.fingerprint, adapter)

    def encode_queries(
        self, texts: Sequence[str | None], images: Sequence[Path | None]
    ) -> NDArray[np.float32]:
        """Unit vectors (Q, D) of queries."""
        if all(texts) and not any(images):
            return self._placed(self._text.encode([t or "" for t in texts]).cpu())
        return self._whole.encode_queries(texts, images)

    def encode_products(
        self, texts: Sequence[str | None], images: Sequence[Path | None]
    ) -> NDArray[np.float32]:
        """Unit vectors (N, D) of products."""
        return self._whole.encode_products(texts, images)

    def _placed(self, query: "Tensor") -> NDArray[np.float32]:
        """Vectors of text (Q, D) among the products', (Q, V)."""
        from shared.encoders.fusion import KINDS

        mine = "fusion/"
        numbers = {k.removeprefix(mine): v for k, v in self._adapter.items() if k.startswith(mine)}
        vectors: NDArray[np.float32] = KINDS[self._base.fusion].place(query, numbers).numpy()
        return vectors

    @cached_property
    def _text(self) -> "PlainText":
        from shared.encoders.encoder import pick_device
        from shared.encoders.lora import fold
        from shared.encoders.text import PlainText

        config, mine = self._base.text, "text/"
        tower = PlainText(self._folder / "text", config, pick_device(self._device))
        factors = {k.removeprefix(mine): v for k, v in self._adapter.items() if k.startswith(mine)}
        fold(tower.model, factors, scaling=config.alpha / config.rank)
        return tower

    @cached_property
    def _whole(self) -> "Encoder":
        return self._load()


def load_query_encoder(
    folder: Path, config: RegionConfig, *, release: int, encoder_digest: str = ""
) -> QueryEncoder:
    """What encodes the queries of one command, with one of the region's pulled releases.

    Args:
        folder: the region's folder.
        config: its `region.toml`.
        release: number of a pulled release; 0 is the base alone.
        encoder_digest: of the encoder that made the index.

    Raises:
        BaseError: the base is missing, damaged or another one.
        ReleaseError: the release is missing, damaged, or gives another digest than it names.
    """
    from shared.encoders.base import read_base

    def whole() -> "Encoder":
        return load_region_encoder(folder, config, release=release, encoder_digest=encoder_digest)

    if release == 0:  # its digest covers a fresh adapter, which only the whole encoder makes
        return whole()
    place = folder / config.base.path
    base = read_base(place, expected=config.base.fingerprint)
    pulled = folder / config.state / "releases" / str(release)
    manifest = read_for_base(pulled, release, config)
    adapter = read_release_adapter(pulled)
    found = TextQueries(place, base, adapter, device=config.device, whole=whole)
    if found.digest == manifest.encoder_digest == (encoder_digest or found.digest):
        return found
    return whole()  # a release with a residual, what the region has made of one, or a mistake
