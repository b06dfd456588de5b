"""Open a region's index as a shelf that is true to its catalog as it is now.

An index is a picture of the catalog on the day it was built. Prices, stock and products have moved
since, so each product is compared with its digest in the index: what is the same is searched as it
is, what has other words or another photo is encoded anew, what is gone is not found. So a service
answers from the old index at once, and rightly, while a new one is being built.
"""

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.region import Region
from shared.errors import RetrievalError
from shared.retrieval.lexical import LexicalIndex
from shared.retrieval.manifest import LEXICAL, OpenIndex
from shared.retrieval.products import ProductTable
from shared.retrieval.rules import Rules, read_rules
from shared.retrieval.shelf import Shelf
from shared.retrieval.suggest import Suggester

MEMORY = Path("/dev/shm")  # a file system in memory, where there is one
MAX_LATE = 5000  # products encoded while a shelf is opened; more of them wait for the next index

Encode = Callable[[list[str], list[Path | None]], NDArray[np.float32]]


def open_shelf(region: Region, opened: OpenIndex, encode: Encode, *, scratch: Path) -> Shelf:
    """Make a region's index searchable together with its catalog.

    Args:
        region: opened; its catalog may be newer than the index.
        opened: a verified index of this region.
        encode: texts and photos of products into unit vectors, by the encoder that made the index.
        scratch: a folder for what changes while serving; nothing in it is kept.

    Returns:
        A shelf that finds the catalog's products.

    Raises:
        RetrievalError: so much has changed that the index must be built anew first.
        ConfigError: the region's rules are wrong.
    """
    manifest, serve = opened.manifest, region.config.serve
    ids = pl.DataFrame({"product_id": pl.Series(opened.ids.tolist(), dtype=pl.String)})
    then = ids.join(region.catalog, on="product_id", how="left", maintain_order="left")
    shelf = Shelf(
        index=opened.folder.name,
        release=manifest.release,
        encoder_digest=manifest.encoder_digest,
        products=ProductTable.build(
            then.select(region.catalog.columns).with_columns(pl.col("title").fill_null("")),
            group_attribute=serve.group_attribute if serve else None,
        ),
        vectors=opened.vectors() if region.config.device == "cpu" else opened.vectors().on_gpu(),
        lexical=LexicalIndex.open(opened.folder / LEXICAL, scratch=scratch),
        dense_weight=manifest.dense_weight,
        dense_floor=manifest.dense_floor,
        rules=region_rules(region),
        suggester=_suggester(region),
    )
    return _brought_up(shelf, region, opened, encode)


def scratch_folder(state: Path) -> Path:
    """Where what changes while serving is kept: in memory if that can be had, else on disk.

    Every change is one commit of some fourteen small files, which on disk costs a hundred
    milliseconds and in memory three. Nothing of it needs to outlive the process.
    """
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK):
        folder = MEMORY / f"fedshelf-{os.getuid()}"
        with suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
            # The name can be guessed and everybody may make folders there.
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
                folder.chmod(0o700)
                return folder
    return state / "scratch"


def region_rules(region: Region) -> Rules:
    """The search team's rules, none where region.toml names no file.

    Raises:
        ConfigError: the file is wrong.
    """
    serve = region.config.serve
    if serve is None or serve.rules is None:
        return Rules.empty()
    return read_rules(region.folder / serve.rules)


def _suggester(region: Region) -> Suggester:
    columns = (region.catalog[name].to_list() for name in ("brand", "category"))
    return Suggester.build(region.texts, *columns, locale=region.config.locale)


def _brought_up(shelf: Shelf, region: Region, opened: OpenIndex, encode: Encode) -> Shelf:
    """The shelf with what has changed in the catalog since the index was built."""
    row_then = {product: row for row, product in enumerate(opened.ids.tolist())}
    ids = region.catalog["product_id"].to_list()
    rows = np.array([row_then.get(product, -1) for product in ids], np.int64)  # (N,) in the index
    then = np.where(rows[:, None] >= 0, opened.digests[rows], 0)
    late = np.flatnonzero((rows < 0) | (then != region.digests).any(axis=1))
    gone = sorted(set(row_then) - set(ids))
    if not len(late) and not gone:
        return shelf
    anew = late[(rows[late] < 0) | (then[late, 0] != region.digests[late, 0])]
    if len(anew) > MAX_LATE:
        raise RetrievalError(
            f"{opened.folder}: {len(anew):,} products are new or have changed since this index was"
            f" built, more than {MAX_LATE:,}; the worker builds it again"
        )
    vectors = np.empty((len(late), shelf.vectors.dim), np.float32)
    kept = ~np.isin(late, anew)
    vectors[kept] = shelf.vectors.vectors_of(rows[late[kept]])
    if len(anew):
        texts = [region.texts[row] for row in anew.tolist()]
        vectors[~kept] = encode(texts, [region.image_paths[row] for row in anew.tolist()])
    texts = [region.texts[row] for row in late.tolist()]
    return shelf.changed(region.catalog[late], texts, vectors, gone)
