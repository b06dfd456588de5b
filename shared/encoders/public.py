"""Products that belong to no region: what the image tower is aligned on, and what a base hands out.

    base/public/titles.json        product texts, in the order of the photos
    base/public/photos/00000.jpg   their photos, as large as the image tower looks at them

A region sells some kinds of products and not others. What it does not sell it never sees as a wrong
answer, unless somebody shows it: these are the same for every region and nobody's secret.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from shared.durable import canonical_json, sha256_file
from shared.encoders.image import load_pixels
from shared.errors import BaseError

FOLDER: Final = "public"
_QUALITY: Final = 95  # of JPEG; photos are a few thousand bytes


@dataclass(frozen=True)
class PublicSlice:
    """Photos and texts that belong to no region.

    Attributes:
        titles: N product texts.
        photos: N readable pictures.
    """

    titles: Sequence[str] = field(default_factory=list)
    photos: Sequence[Path] = field(default_factory=list)

    def digest(self) -> str:
        """sha256 over titles and photo bytes, hex."""
        content = [[t, sha256_file(p)] for t, p in zip(self.titles, self.photos, strict=True)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def sample(self, number: int, *, seed: int) -> "PublicSlice":
        """At most so many of them, drawn evenly, in their order."""
        drawn = np.random.default_rng(seed).permutation(len(self.titles))[:number]
        rows = np.sort(drawn).tolist()
        return PublicSlice([self.titles[row] for row in rows], [self.photos[row] for row in rows])


def write_public(base: Path, public: PublicSlice, *, size: int) -> None:
    """Put products into a base that is being made; none where there are none.

    Args:
        base: the artefact's folder.
        public: what to hand out.
        size: side of the photos, pixels.

    Raises:
        DataError: a photo cannot be read.
    """
    if not public.titles:
        return
    (base / FOLDER / "photos").mkdir(parents=True)
    (base / FOLDER / "titles.json").write_bytes(canonical_json(list(public.titles)))
    for row, photo in enumerate(public.photos):
        pixels = Image.fromarray(load_pixels(photo, size))
        pixels.save(_photo(base, row), quality=_QUALITY, subsampling=0)


def read_public(base: Path) -> PublicSlice:
    """What a base hands out, empty where it has none.

    Args:
        base: the artefact, verified (`shared.encoders.base.read_base`).

    Raises:
        BaseError: its texts are not a list of texts.
    """
    path = base / FOLDER / "titles.json"
    if not path.is_file():
        return PublicSlice()
    titles = json.loads(path.read_text(encoding="utf-8"))
    if not (isinstance(titles, list) and all(isinstance(title, str) for title in titles)):
        raise BaseError(f"{path}: not a list of texts; make the base again")
    return PublicSlice(titles, [_photo(base, row) for row in range(len(titles))])


def _photo(base: Path, row: int) -> Path:
    return base / FOLDER / "photos" / f"{row:05d}.jpg"
