"""A file that a region brings, on its way to a table of sound rows.

Parquet, CSV, JSON Lines and the service's own store are read alike: into columns of known names and
types, with the rows' numbers. What is unsound is reported by row and reason, never by what stands
there: where columns have slipped a product id is a query, and where a CSV lacks its header so is a
column's name. Only known column names are named.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from client.service.events import export_clicks
from shared.errors import DataError
from shared.schema import CATALOG_COLUMNS, CLICK_COLUMNS, QREL_COLUMNS

ROW = "row"  # 1-based row number in the file; in a table only while it is being checked

_KNOWN_COLUMNS = {*CATALOG_COLUMNS, *CLICK_COLUMNS, *QREL_COLUMNS}
_TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_TIME_FORMATS = ("%+", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f")
_READ_ERRORS = (pl.exceptions.PolarsError, OSError, EOFError, ValueError, zlib.error)


class Table:
    """One file on its way to a checked table, with the reports it gives rise to.

    Args:
        path: `.parquet`, `.csv`, `.jsonl`, also with `.gz`, or the service's `.sqlite`.
        max_bad_rows: more reports than this are an error in `finish`.
        unit: what a row is called in reports.
        may_be_empty: whether a file without a row is sound.
    """

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
        """The file in `columns` plus `row`; cells of another type become null and are reported.

        Args:
            columns: names and types wanted; one that the file lacks is all null.
            required: of them; a row whose cell has another type is left out.

        Raises:
            DataError: missing, no table, empty, or without a required column.
        """
        raw = self._read_raw()
        self._check_form(raw, required)
        rows = _in_types(raw, columns)
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
        """The table without its row numbers.

        Raises:
            DataError: too many reports, or no sound row.
        """
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


def _in_types(raw: pl.DataFrame, columns: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Columns in the wanted types, and rows' numbers; null where absent, blank or unsound."""
    typed = {name: _typed(raw, name, dtype) for name, dtype in columns.items()}
    try:
        return raw.select(ROW, **typed)
    except pl.exceptions.PolarsError:  # some column cannot be cast to its type at all
        return raw.select(
            ROW, *(_evaluated(raw, name, typed[name], columns[name]) for name in typed)
        )


def _evaluated(raw: pl.DataFrame, name: str, typed: pl.Expr, dtype: pl.DataType) -> pl.Series:
    """One of them by itself, all null if it cannot be cast."""
    try:
        return raw.select(ROW, typed.alias(name))[name]
    except pl.exceptions.PolarsError:
        return pl.Series(name, [None] * raw.height, dtype)


def _typed(raw: pl.DataFrame, name: str, dtype: pl.DataType) -> pl.Expr:
    if name not in raw.columns:
        return pl.lit(None, dtype)
    return _CASTS[type(dtype)](pl.col(name), raw.schema[name]).cast(dtype)


def _unless(bad: pl.Expr, value: pl.Expr) -> pl.Expr:
    """Null where it is bad; a comparison with null is not bad."""
    return pl.when(bad).then(None).otherwise(value)


def _to_text(column: pl.Expr, _: pl.DataType) -> pl.Expr:
    text = column.cast(pl.String, strict=False)
    return _unless(text.str.strip_chars() == "", text)


def _to_float(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    text_or_number = column.str.strip_chars() if dtype == pl.String else column
    number = text_or_number.cast(pl.Float64, strict=False)
    return _unless(~number.is_finite(), number)


def _to_int(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Whole numbers; "12.0" is one, since pandas writes integers so where a cell is missing."""
    if dtype.is_integer():
        return column.cast(pl.Int64, strict=False)
    number = _to_float(column, dtype)
    return _unless(number != number.floor(), number).cast(pl.Int64, strict=False)


def _to_bool(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if dtype == pl.Boolean:
        return column
    words = column.cast(pl.String).str.strip_chars().str.to_lowercase()
    return words.replace_strict(_TRUTH, default=None, return_dtype=pl.Boolean)


def _to_time(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Times in UTC; a time without a zone is taken as UTC."""
    if dtype == pl.String:
        return _parse_time(column)
    if getattr(dtype, "time_zone", None) is not None:
        return column.dt.convert_time_zone("UTC")
    if dtype.is_temporal():
        return column.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return pl.lit(None, pl.Datetime("us", "UTC"))


def _parse_time(column: pl.Expr) -> pl.Expr:
    text = column.str.strip_chars()
    midnight = text + pl.lit("T00:00:00")
    tries = [_strptime(text, form) for form in _TIME_FORMATS]
    return pl.coalesce(*tries, _strptime(midnight, _TIME_FORMATS[1]))


def _strptime(text: pl.Expr, form: str) -> pl.Expr:
    return text.str.to_datetime(form, time_unit="us", time_zone="UTC", strict=False)


def _to_attributes(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Key-value lists as Parquet keeps a map, or a JSON object as text."""
    if dtype != pl.String:
        return column
    return column.map_batches(_json_pairs_of, return_dtype=CATALOG_COLUMNS["attributes"])


def _json_pairs_of(column: pl.Series) -> pl.Series:
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
