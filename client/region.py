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
CSV's header not counted) and hold nothing that was read: where columns have slipped a product id is
a query, and where a CSV lacks its header so is a column's name. Only known column names are named.

What came in while serving (`client.service.overlay`) is merged into the catalog here, so that every
index, and every round, is made of the products that are searched. The service has acknowledged
those changes, so they are reported by their number but never refuse the region.
"""

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from client.service.events import export_clicks
from client.service.overlay import merge, read_changes
from client.service.store import EVENTS_FILE
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

ROW = "row"  # 1-based row number in the file; in a table only while it is being checked
_CHANGED = "changed"  # whether a row is of the overlay; then its number is the change's

_STORE_SUFFIX = ".sqlite"
_KNOWN_COLUMNS = {*CATALOG_COLUMNS, *CLICK_COLUMNS, *QREL_COLUMNS}
_TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_TIME_FORMATS = ("%+", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f")
_READ_ERRORS = (pl.exceptions.PolarsError, OSError, EOFError, ValueError, zlib.error)


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
    table = _Table(folder / data.catalog, data.max_bad_rows)
    overlay = _Table(state / EVENTS_FILE, data.max_bad_rows, unit="change")
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
    table = _Table(region.folder / data.clicks, data.max_bad_rows, may_be_empty=True)
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
    table = _Table(region.folder / data.qrels, data.max_bad_rows)
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


class _Table:
    """One file on its way to a checked table, with the reports it gives rise to."""

    def __init__(
        self, path: Path, max_bad_rows: int, *, unit: str = "row", may_be_empty: bool = False
    ) -> None:
        self.path = path
        self.unit = unit
        self.may_be_empty = may_be_empty
        self.max_bad_rows = max_bad_rows
        self.num_reports = 0
        self._reports: list[tuple[int, str]] = []  # at most max_bad_rows + 1 a check

    def read(self, columns: dict[str, pl.DataType], required: Iterable[str]) -> pl.DataFrame:
        """The file in `columns` plus `row`; cells of another type become null and are reported."""
        raw = self._read_raw()
        self._check_form(raw, required)
        rows = raw.select(ROW, *(_typed(raw, name, dtype) for name, dtype in columns.items()))
        for name in [name for name in columns if name in raw.columns]:
            if rows[name].null_count() == raw[name].null_count():  # as it is in most files
                continue
            unsound = raw[name].is_not_null() & rows[name].is_null() & ~_is_blank(raw[name])
            self.report(rows.filter(unsound), f"{name}: not {_TYPE_WORDS[type(columns[name])]}")
            if name in required:
                raw, rows = raw.filter(~unsound), rows.filter(~unsound)
        return rows

    def require(self, rows: pl.DataFrame, names: Iterable[str]) -> pl.DataFrame:
        """Leave out rows in which one of these columns has no cell."""
        for name in names:
            if rows[name].null_count():
                rows = self.drop(rows, pl.col(name).is_null(), f"{name}: missing")
        return rows

    def drop(self, rows: pl.DataFrame, bad: pl.Expr, reason: str) -> pl.DataFrame:
        """Leave out the rows for which `bad` is true, and report them."""
        wrong = rows.filter(bad)
        self.report(wrong, reason)
        return rows.remove(bad) if wrong.height else rows

    def clear(self, rows: pl.DataFrame, name: str, bad: pl.Expr, reason: str) -> pl.DataFrame:
        """Empty one column's cell in the rows for which `bad` is true, and report them."""
        wrong = rows.filter(bad)
        self.report(wrong, reason)
        if not wrong.height:
            return rows
        return rows.with_columns(pl.when(bad).then(None).otherwise(pl.col(name)).alias(name))

    def report(self, wrong: pl.DataFrame, reason: str) -> None:
        """Report each of these rows."""
        self.num_reports += wrong.height
        self._reports += [(row, reason) for row in wrong[ROW].head(self.max_bad_rows + 1)]

    def finish(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The table without its row numbers; too many reports or no sound row is an error."""
        if self.num_reports > self.max_bad_rows:
            raise DataError(
                f"{self.path}: {self.num_reports} bad rows, {self.max_bad_rows} allowed; first: "
                f"{self._lines()[0]}; correct them or raise data.max_bad_rows in region.toml"
            )
        if rows.height == 0 and self.num_reports:
            raise DataError(f"{self.path}: no sound row; first: {self._lines()[0]}; correct it")
        return rows.drop(ROW)

    def problems(self) -> list[str]:
        """Every report as a line, by row."""
        return [f"{self.path.name} {line}" for line in self._lines()]

    def _lines(self) -> list[str]:
        return [f"{self.unit} {row}: {reason}" for row, reason in sorted(self._reports)]

    def _read_raw(self) -> pl.DataFrame:
        try:
            return self._read_by_suffix()
        except FileNotFoundError:
            raise DataError(f"{self.path}: not found; see [data] in region.toml") from None
        except pl.exceptions.NoDataError:
            raise DataError(f"{self.path}: empty file; export it again") from None
        except _READ_ERRORS as error:
            reason = type(error).__name__  # the text of these errors may hold cell contents
            raise DataError(f"{self.path}: cannot be read ({reason}); export it again") from None

    def _read_by_suffix(self) -> pl.DataFrame:
        match [suffix for suffix in self.path.suffixes if suffix != ".gz"][-1:]:
            case [".parquet"]:
                raw = pl.read_parquet(self.path, glob=False)
            case [".csv"]:
                raw = pl.read_csv(self.path, infer_schema=False, glob=False)
            case [".jsonl"]:
                return self._read_json_lines()
            case [".sqlite"]:
                raw = export_clicks(self.path)
            case _:
                raise DataError(f"{self.path}: unknown kind; use .parquet, .csv or .jsonl")
        return raw.drop(ROW, strict=False).with_row_index(ROW, offset=1)

    def _read_json_lines(self) -> pl.DataFrame:
        """Every value as text, as from a CSV: one way of reading types is enough."""
        records, broken = {}, []
        for number, line in enumerate(_lines_of(self.path), start=1):
            record = _json_object(line)
            if record is not None:
                records[number] = record
            elif line.strip():
                broken.append(number)
        self.report(pl.DataFrame({ROW: broken}, {ROW: pl.UInt32}), "not a JSON object")
        names = {name: None for record in records.values() for name in record if name != ROW}
        cells = {n: [_as_text(record.get(n)) for record in records.values()] for n in names}
        schema = {ROW: pl.UInt32(), **dict.fromkeys(names, pl.String())}
        return pl.DataFrame({ROW: list(records), **cells}, schema)

    def _check_form(self, raw: pl.DataFrame, required: Iterable[str]) -> None:
        missing = [name for name in required if name not in raw.columns]
        empty = raw.height == 0 and self.num_reports == 0
        if empty and not self.may_be_empty:
            raise DataError(f"{self.path}: no rows; a region needs at least one")
        if missing and not (empty and raw.columns == [ROW]):  # JSON Lines without a line
            found = _named([name for name in raw.columns if name != ROW])
            raise DataError(
                f"{self.path}: no column {', '.join(missing)} among: {found}; add or rename it"
            )


def _named(columns: list[str]) -> str:
    """The known ones of a file's columns by name, and how many others there are."""
    known = [name for name in columns if name in _KNOWN_COLUMNS]
    others = len(columns) - len(known)
    return ", ".join(known if known and not others else [*known, f"{others} of other names"])


def _check_products(table: _Table) -> pl.DataFrame:
    rows = table.read(CATALOG_COLUMNS, CATALOG_REQUIRED)
    rows = table.require(rows, CATALOG_REQUIRED)
    again = ~pl.col("product_id").is_first_distinct()
    rows = table.drop(rows, again, "duplicate product_id")
    return table.clear(rows, "price", pl.col("price") < 0, "price: below 0")


def _merge_overlay(
    table: _Table, overlay: _Table, rows: pl.DataFrame
) -> tuple[pl.DataFrame, int, list[str]]:
    """The rows as the service's overlay changes them, its last number, and what it may retire."""
    changes = read_changes(overlay.path)
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
    return numbered.drop("seq"), max((change.seq for change in changes), default=0), caught_up


class _Photo(NamedTuple):
    digest: str = ""
    problem: str = ""


def _check_photos(
    table: _Table, overlay: _Table, rows: pl.DataFrame, folder: Path
) -> tuple[pl.DataFrame, list[str]]:
    """Decode every photo once; returns the rows and the sha256 of each photo ("" without one)."""
    Image.init()  # not thread-safe, so before the threads
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        photos = list(pool.map(partial(_read_photo, folder), rows["image"]))
    problems = pl.Series([photo.problem for photo in photos], dtype=pl.String)
    for problem in problems.filter(problems != "").unique(maintain_order=True):
        bad = pl.lit(problems == problem)
        rows = table.clear(rows, "image", bad & ~pl.col(_CHANGED), problem)
        rows = overlay.clear(rows, "image", bad & pl.col(_CHANGED), problem)
    return rows, [photo.digest for photo in photos]


def _read_photo(folder: Path, name: str | None) -> _Photo:
    if name is None:
        return _Photo()
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


def _drop_unknown_products(
    table: _Table, rows: pl.DataFrame, catalog: pl.DataFrame
) -> pl.DataFrame:
    known = catalog["product_id"].implode()
    return table.drop(rows, ~pl.col("product_id").is_in(known), "unknown product_id")


def _leave_out_former_products(region: Region, table: _Table, rows: pl.DataFrame) -> pl.DataFrame:
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


def _remember(region: Region, table: _Table) -> None:
    """Add the table's reports to the region's, once however often the file is read."""
    region.problems.extend(line for line in table.problems() if line not in region.problems)


def _lines_of(path: Path) -> Iterable[bytes]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        yield from file


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _as_text(value: object) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()  # "\ud800" is JSON, but no text


def _is_blank(column: pl.Series) -> pl.Series:
    if column.dtype != pl.String:
        return pl.repeat(False, len(column), dtype=pl.Boolean, eager=True)
    return column.str.strip_chars() == ""


def _typed(raw: pl.DataFrame, name: str, dtype: pl.DataType) -> pl.Series:
    """One column in the wanted type; null where it is absent, blank or unsound."""
    if name not in raw.columns:
        return pl.Series(name, [None] * raw.height, dtype)
    try:
        return _CASTS[type(dtype)](raw[name]).cast(dtype).alias(name)
    except pl.exceptions.PolarsError:  # no cast between these types at all
        return pl.Series(name, [None] * raw.height, dtype)


def _to_text(column: pl.Series) -> pl.Series:
    text = column.cast(pl.String, strict=False)
    return text.set(_is_blank(text), None)


def _to_float(column: pl.Series) -> pl.Series:
    text_or_number = column.str.strip_chars() if column.dtype == pl.String else column
    number = text_or_number.cast(pl.Float64, strict=False)
    return number.set(~number.is_finite(), None)


def _to_int(column: pl.Series) -> pl.Series:
    """Whole numbers; "12.0" is one, since pandas writes integers so where a cell is missing."""
    if column.dtype.is_integer():
        return column.cast(pl.Int64, strict=False)
    number = _to_float(column)
    return number.set(number != number.floor(), None).cast(pl.Int64, strict=False)


def _to_bool(column: pl.Series) -> pl.Series:
    words = column.cast(pl.String).str.strip_chars().str.to_lowercase()
    return words.replace_strict(_TRUTH, default=None, return_dtype=pl.Boolean)


def _to_time(column: pl.Series) -> pl.Series:
    """Times in UTC; a time without a zone is taken as UTC."""
    if column.dtype == pl.String:
        return _parse_time(column)
    if getattr(column.dtype, "time_zone", None) is not None:
        return column.dt.convert_time_zone("UTC")
    if column.dtype.is_temporal():
        return column.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return pl.Series([None] * len(column), dtype=pl.Datetime("us", "UTC"))


def _parse_time(column: pl.Series) -> pl.Series:
    text = pl.col("text").str.strip_chars()
    midnight = text + pl.lit("T00:00:00")
    tries = [_strptime(text, form) for form in _TIME_FORMATS]
    both = pl.coalesce(*tries, _strptime(midnight, _TIME_FORMATS[1]))
    return column.to_frame("text").select(both)["text"]


def _strptime(text: pl.Expr, form: str) -> pl.Expr:
    return text.str.to_datetime(form, time_unit="us", time_zone="UTC", strict=False)


def _to_attributes(column: pl.Series) -> pl.Series:
    """Key-value lists as Parquet keeps a map, or a JSON object as text."""
    if column.dtype != pl.String:
        return column
    return pl.Series([_json_pairs(text) for text in column], dtype=CATALOG_COLUMNS["attributes"])


def _json_pairs(text: str | None) -> list[dict[str, str | None]] | None:
    record = _json_object(text.encode()) if text else None
    if record is None:
        return None
    return [{"key": _as_text(key), "value": _as_text(value)} for key, value in record.items()]


_CASTS = {
    pl.String: _to_text,
    pl.Float64: _to_float,
    pl.Int64: _to_int,
    pl.Boolean: _to_bool,
    pl.Datetime: _to_time,
    pl.List: _to_attributes,
}
_TYPE_WORDS = {
    pl.String: "text",
    pl.Float64: "a finite number",
    pl.Int64: "a whole number",
    pl.Boolean: "true or false",
    pl.Datetime: "a time such as 2025-03-01T12:00:00Z",
    pl.List: "a map, or a JSON object as text",
}
