"""Open what a region brings: its catalog, photos, click log and judgments.

This is the one gate between a retailer's export and the rest of the house. Whatever comes through
has the columns and types of `shared.schema`; whatever does not is named with file, row and reason,
and nothing is dropped silently. Four rules cover every case:

- a file that cannot be used at all (missing, empty, a required column absent) is a `DataError`;
- a click log without a row is sound, and so is a service's own store that is not there yet: a
  region's first day. Such a region takes releases, and part in rounds once shoppers have clicked;
- a row without a sound required cell, or that contradicts another one, is left out and reported;
- an unsound optional cell (a price that is no number, a photo that cannot be read) is emptied and
  reported; the row stays.

More reports than `data.max_bad_rows` in one file is a `DataError`. Reports name rows (1-based, a
CSV's header not counted) and hold nothing that was read (`client.table`).

What came in while serving (`client.service.overlay`) is merged into the catalog here, so that every
index, and every round, is made of the products that are searched. The service has acknowledged
those changes, so they are reported by their number but never refuse the region.
"""

import hashlib
import io
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from client.service.overlay import merge, read_changes
from client.service.store import EVENTS_FILE
from client.table import ROW, Table
from shared.errors import DataError
from shared.schema import (
    CATALOG_COLUMNS,
    CATALOG_REQUIRED,
    CLICK_COLUMNS,
    CLICK_REQUIRED,
    QREL_COLUMNS,
    QREL_REQUIRED,
    RegionConfig,
    load_region_config,
)

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # not EPS: Pillow runs a program for it
MAX_IMAGE_PIXELS = 50_000_000  # a small file may unpack to gigabytes ("decompression bomb")
MAX_IMAGE_BYTES = 64 * 2**20
DECODE_THREADS = 4  # reading, hashing and decoding release the GIL

_CHANGED = "changed"  # whether a row is of the overlay; then its number is the change's

_STORE_SUFFIX = ".sqlite"


@dataclass(frozen=True)
class Region:
    """One retailer partition, opened and checked.

    Attributes:
        config: `region.toml`, validated.
        folder: the region's folder.
        catalog: sound products in `CATALOG_COLUMNS`, in file order, as the overlay of
            `state/events.sqlite` changes them; a product's row number here is its id everywhere
            else (index, qrels, examples).
        texts: what the text tower reads of each product, one a catalog row.
        image_paths: the photo of each product, one a catalog row, or None.
        digests: of each row, (N, 2) uint64: of what its vector is made from (text and photo), and
            of all its cells.
        catalog_digest: sha256 over locale and digests: if equal, so are the indexes of an encoder.
        state: where this region keeps its indexes, caches and releases.
        problems: everything left out or emptied so far, one line each; `read_clicks` and
            `read_qrels` add theirs.
        overlay_seq: number of the last change that is in `catalog`; 0 for none.
        caught_up: ids of upserts that the catalog's file has itself by now; for the service, which
            may write, to retire from the overlay.
    """

    config: RegionConfig
    folder: Path
    catalog: pl.DataFrame
    texts: list[str]
    image_paths: list[Path | None]
    digests: NDArray[np.uint64]
    catalog_digest: str
    state: Path
    problems: list[str] = field(default_factory=list)
    overlay_seq: int = 0
    caught_up: tuple[str, ...] = ()


def open_region(folder: Path) -> Region:
    """Open the region described by `folder/region.toml`; every photo is decoded once.

    Nothing is written, so a service may be running.

    Args:
        folder: the region's folder.

    Returns:
        The region with its checked catalog.

    Raises:
        ConfigError: `region.toml` is missing or wrong.
        DataError: the catalog is missing, empty, lacks a column or has too many bad rows; or
            `state/events.sqlite` is damaged.
    """
    config = load_region_config(folder)
    data, state = config.data, folder / config.state
    table = Table(folder / data.catalog, data.max_bad_rows)
    overlay = Table(state / EVENTS_FILE, data.max_bad_rows, unit="change")
    rows, overlay_seq, caught_up = _merge_overlay(table, overlay, _check_products(table))
    rows, photo_digests = _check_photos(table, overlay, rows, folder / data.images)
    catalog = table.finish(rows).drop(_CHANGED)
    texts = product_texts(catalog, data.text_fields)
    digests = _row_digests(catalog, texts, photo_digests)
    return Region(
        config=config,
        folder=folder,
        catalog=catalog,
        texts=texts,
        image_paths=[name and folder / data.images / name for name in catalog["image"]],
        digests=digests,
        catalog_digest=_digest(config.locale, digests),
        state=state,
        problems=table.problems() + overlay.problems(),
        overlay_seq=overlay_seq,
        caught_up=tuple(caught_up),
    )


def read_clicks(region: Region) -> pl.DataFrame:
    """Read and check the region's click log, one row an impression.

    A log whose name ends in .sqlite is the service's own store, read as it is now. What was shown
    of products that have left the catalog since is left out of it: that is how a catalog goes on,
    so it makes one line in `problems` and counts for no bad row.

    Args:
        region: the opened region; what is left out is added to its `problems`.

    Returns:
        Sound impressions in `CLICK_COLUMNS`, in file order. `query` is empty only where there is a
        `query_image`; `carted` and `purchased` are false where unknown.

    Raises:
        DataError: the log is missing, no table, lacks a column or has too many bad rows.
    """
    data = region.config.data
    table = Table(region.folder / data.clicks, data.max_bad_rows, may_be_empty=True)
    if table.path == region.state / EVENTS_FILE and not table.path.exists():
        return pl.DataFrame(schema=CLICK_COLUMNS)
    rows = table.read(CLICK_COLUMNS, CLICK_REQUIRED)
    by_photo = pl.col("query_image").is_not_null() & pl.col("query").is_null()
    rows = rows.with_columns(query=pl.when(by_photo).then(pl.lit("")).otherwise("query"))
    rows = table.require(rows, CLICK_REQUIRED)
    if table.path.suffix == _STORE_SUFFIX:
        rows = _leave_out_former_products(region, table, rows)
    rows = _drop_unknown_products(table, rows, region.catalog)
    rows = table.drop(rows, pl.col("position") < 1, "position: below 1")
    outside = (pl.col("propensity") <= 0) | (pl.col("propensity") > 1)
    rows = table.clear(rows, "propensity", outside, "propensity: outside (0, 1]")
    clicks = table.finish(rows)
    _remember(region, table)
    return clicks.with_columns(pl.col("carted", "purchased").fill_null(False))


def read_qrels(region: Region) -> pl.DataFrame:
    """Read and check the region's relevance judgments.

    Args:
        region: the opened region; what is left out is added to its `problems`.

    Returns:
        Judgments in `QREL_COLUMNS`, in file order; a pair of query and product occurs once.

    Raises:
        DataError: none are named, or the file is missing, empty, lacks a column or is too bad.
    """
    data = region.config.data
    if data.qrels is None:
        raise DataError(f"{region.folder / 'region.toml'}: data.qrels: not set; name a qrels file")
    table = Table(region.folder / data.qrels, data.max_bad_rows)
    rows = table.require(table.read(QREL_COLUMNS, QREL_REQUIRED), QREL_REQUIRED)
    rows = _drop_unknown_products(table, rows, region.catalog)
    rows = table.drop(rows, pl.col("grade") < 0, "grade: below 0")
    again = ~pl.struct("query", "product_id").is_first_distinct()
    rows = table.drop(rows, again, "second grade for one query and product_id")
    qrels = table.finish(rows)
    _remember(region, table)
    return qrels


def photo_problem(images: Path, name: str) -> str:
    """What is wrong with one photo, in the words in which a catalog's photos are reported.

    Args:
        images: the region's images folder.
        name: path of the photo in it.

    Returns:
        One line, or nothing.
    """
    Image.init()
    return _read_photo(images, name).problem


def product_texts(catalog: pl.DataFrame, fields: Iterable[str]) -> list[str]:
    """What the text tower and the lexical index read of each product.

    Args:
        catalog: products in `CATALOG_COLUMNS`.
        fields: names of text columns, in order.

    Returns:
        One text a row: its non-null fields joined by a space.
    """
    joined = pl.concat_str([pl.col(name) for name in fields], separator=" ", ignore_nulls=True)
    return catalog.select(joined.alias("text"))["text"].fill_null("").to_list()


def _check_products(table: Table) -> pl.DataFrame:
    rows = table.read(CATALOG_COLUMNS, CATALOG_REQUIRED)
    rows = table.require(rows, CATALOG_REQUIRED)
    again = ~pl.col("product_id").is_first_distinct()
    rows = table.drop(rows, again, "duplicate product_id")
    return table.clear(rows, "price", pl.col("price") < 0, "price: below 0")


def _merge_overlay(
    table: Table, overlay: Table, rows: pl.DataFrame
) -> tuple[pl.DataFrame, int, list[str]]:
    """The rows as the service's overlay changes them, its last number, and what it may retire."""
    changes = read_changes(overlay.path)
    if not changes:
        return rows.with_columns(pl.col(ROW).cast(pl.Int64), pl.lit(False).alias(_CHANGED)), 0, []
    merged, caught_up = merge(rows, changes)
    if rows.height and not merged.height:
        raise DataError(
            f"{table.path}: all of its products were deleted while serving; export products that"
            " are new, or that have an updated_at later than that"
        )
    numbers = pl.DataFrame(
        {
            "product_id": [change.product_id for change in changes],
            "seq": [change.seq for change in changes],
        },
        {"product_id": pl.String, "seq": pl.Int64},
    )
    merged = merged.join(numbers, on="product_id", how="left", maintain_order="left")
    row = pl.coalesce(pl.col(ROW).cast(pl.Int64), "seq")
    numbered = merged.with_columns(row.alias(ROW), pl.col(ROW).is_null().alias(_CHANGED))
    return numbered.drop("seq"), changes[-1].seq, caught_up


class _Photo(NamedTuple):
    digest: str = ""
    problem: str = ""


def _check_photos(
    table: Table, overlay: Table, rows: pl.DataFrame, folder: Path
) -> tuple[pl.DataFrame, list[str]]:
    """Decode every photo once; returns the rows and the sha256 of each photo ("" without one)."""
    Image.init()  # not thread-safe, so before the threads
    with ThreadPoolExecutor(DECODE_THREADS) as pool:  # which starts none where there is no photo
        read = pool.map(partial(_read_photo, folder), rows["image"].drop_nulls())
        photos = [_Photo() if name is None else next(read) for name in rows["image"]]
    problems = pl.Series([photo.problem for photo in photos], dtype=pl.String)
    for problem in problems.filter(problems != "").unique(maintain_order=True):
        bad = pl.lit(problems == problem)
        rows = table.clear(rows, "image", bad & ~pl.col(_CHANGED), problem)
        rows = overlay.clear(rows, "image", bad & pl.col(_CHANGED), problem)
    return rows, [photo.digest for photo in photos]


def _read_photo(folder: Path, name: str) -> _Photo:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return _Photo(problem="image: outside the images folder")
    try:
        content = _bounded_bytes(folder / name)
        _decode(content)
    except FileNotFoundError:
        return _Photo(problem="image: file not found")
    except (_TooLarge, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return _Photo(problem=f"image: above {MAX_IMAGE_PIXELS:,} pixels or {MAX_IMAGE_BYTES:,} B")
    except Exception:  # a decoder fed with garbage may raise anything
        return _Photo(problem="image: cannot be decoded")
    return _Photo(digest=hashlib.sha256(content).hexdigest())


class _TooLarge(Exception):
    """The photo is over a limit."""


def _bounded_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MAX_IMAGE_BYTES + 1)
    if len(content) > MAX_IMAGE_BYTES:
        raise _TooLarge
    return content


def _decode(content: bytes) -> None:
    with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise _TooLarge
        image.draft("L", (64, 64))  # JPEG: an eighth of the work, and a cut-off file still shows
        image.load()


def _row_digests(
    catalog: pl.DataFrame, texts: list[str], photo_digests: list[str]
) -> NDArray[np.uint64]:
    """Of each product what its vector is made from, and all its cells but `updated_at`, (N, 2)."""
    shown = pl.struct(pl.exclude("updated_at"))  # an export may stamp every row every night
    cells = catalog.select(shown.struct.json_encode().alias("cells"))["cells"]
    rows = zip(catalog["product_id"], texts, photo_digests, cells, strict=True)
    digests = [(_short(*seen), _short(*seen, all_of_it)) for *seen, all_of_it in rows]
    return np.array(digests, np.uint64).reshape(-1, 2)


def _digest(locale: str, digests: NDArray[np.uint64]) -> str:
    return hashlib.sha256(locale.encode() + b"\0" + digests.tobytes()).hexdigest()


def _short(*parts: str) -> int:
    # JSON: no two lists of parts share one spelling.
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big")


def _drop_unknown_products(table: Table, rows: pl.DataFrame, catalog: pl.DataFrame) -> pl.DataFrame:
    known = catalog["product_id"].implode()
    return table.drop(rows, ~pl.col("product_id").is_in(known), "unknown product_id")


def _leave_out_former_products(region: Region, table: Table, rows: pl.DataFrame) -> pl.DataFrame:
    former = ~pl.col("product_id").is_in(region.catalog["product_id"].implode())
    left_out = rows.filter(former)
    if left_out.height == rows.height:
        raise DataError(
            f"{table.path}: all {rows.height} impressions are of products that the catalog no"
            " longer has; serve for a while, or name another log as data.clicks in region.toml"
        )
    if left_out.height:
        line = (
            f"{table.path.name}: {left_out.height} impressions of"
            f" {left_out['product_id'].n_unique()} products that the catalog no longer has left out"
        )
        region.problems.extend([line] if line not in region.problems else [])
    return rows.remove(former)


def _remember(region: Region, table: Table) -> None:
    """Add the table's reports to the region's, once however often the file is read."""
    region.problems.extend(line for line in table.problems() if line not in region.problems)
