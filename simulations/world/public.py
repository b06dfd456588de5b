"""The public slice: photos with texts that say what is seen, of products that no region sells.

It is what anybody could have bought or licensed; the small image tower is aligned on it. Its seed
is its own, so every run and every data set without photos aligns on the same bytes.
"""

from pathlib import Path

import numpy as np
import polars as pl

from shared.errors import ConfigError
from simulations.world.drawing.backdrop import STYLES
from simulations.world.drawing.colours import COLOURS
from simulations.world.drawing.parts import Look, pick
from simulations.world.english import AMERICAN, BRITISH, English
from simulations.world.photos import Progress, photo_path, write_photos
from simulations.world.products import Item, dice_of, item_of, look_of, wish_for
from simulations.world.taxonomy import KINDS

_SEED = "public slice 1"
_BRANDS = ("Openfield", "Commonwealth", "Plainsong", "Everyman", "Parkbench", "Townhall")
_PLAIN_SHARE = 0.4
_SAID = {"colour": 0.97, "material": 0.85, "pattern": 1.0, "gender": 0.25}
_TONGUES = (English(BRITISH, {}), English(AMERICAN, {}))


def build_public(
    *,
    folder: Path,
    count: int = 3000,
    processes: int | None = None,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Draw the public slice.

    Args:
        folder: photos are written to its sub-folder `public`.
        count: number of products; a smaller slice is the beginning of a larger one.
        processes: see `write_photos`.
        progress: see `write_photos`.

    Returns:
        Columns `title` and `image` (absolute path), `count` rows.

    Raises:
        ConfigError: `count` is below one.
        DataError: the photos cannot be written.
    """
    titles, jobs = public_photos(folder, count)
    write_photos(jobs, processes=processes, progress=progress)
    return public_frame(titles, [path for _, path in jobs])


def public_photos(folder: Path, count: int) -> tuple[list[str], list[tuple[Look, Path]]]:
    """Titles, looks and files of the public slice; nothing is drawn."""
    if count < 1:
        raise ConfigError(f"public slice: count is {count}, expected at least 1")
    home, styles = folder.resolve() / "public", list(STYLES)
    titles, jobs = [], []
    for row, item in enumerate(_items(count)):
        look = look_of(item, styles[row % len(styles)], f"{_SEED}/{row}")
        titles.append(_title(item, dice_of(_SEED, row, "title")))
        jobs.append((look, photo_path(home, look, f"public-{row:05d}")))
    return titles, jobs


def public_frame(titles: list[str], paths: list[Path]) -> pl.DataFrame:
    """The form of `Source.public`."""
    images = [str(path) for path in paths]
    return pl.DataFrame(
        {"title": titles, "image": images}, schema={"title": pl.String, "image": pl.String}
    )


def _items(count: int) -> list[Item]:
    """Types in turn, so that each is seen equally often, and colours by chance."""
    kinds, colours = list(KINDS), list(COLOURS)
    dice = [dice_of(_SEED, row, "item") for row in range(count)]
    return [
        item_of(kinds[row % len(kinds)], pick(d, colours), _PLAIN_SHARE, d)
        for row, d in enumerate(dice)
    ]


def _title(item: Item, dice: np.random.Generator) -> str:
    """Mostly shoppers' words in plain English, sometimes a shop's."""
    untold = [facet for facet, share in _SAID.items() if dice.random() > share]
    wish, tongue = wish_for(item).without(*untold), pick(dice, _TONGUES)
    if dice.random() < 0.7:
        return tongue.query(wish, dice).capitalize()
    return tongue.title(pick(dice, _BRANDS), "", wish, dice)
