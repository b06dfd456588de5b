"""Real electronics with human judgments (querqy/chorus, Open Icecat), brought to a `Source`.

The judgments are test data and stay that: no query made here may equal a judged one, and nothing
else looks at them. Queries to train on come from `icecat_queries`, made of titles and attributes.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from shared.errors import DataError
from shared.schema import CATALOG_COLUMNS
from simulations.datasets.icecat_queries import make_queries
from simulations.datasets.source import Source
from simulations.queries import normalize

PRODUCTS = "products.jsonl.gz"
JUDGMENTS = "judgments.csv"
MAX_GRADE = 3
_NEEDED = ("id", "title", "supplier")
_JUDGED_COLUMNS = ("query", "product_id", "rating")
# Attributes are for a product page and never searched; a handful tells a shopper enough.
_MAX_ATTRIBUTES = 12
_MAX_VALUE = 80

Row = dict[str, Any]


def load_icecat(folder: Path, *, seed: int) -> Source:
    """Read products and judgments and make up queries to train on.

    Args:
        folder: holds `products.jsonl.gz` and `judgments.csv`.
        seed: of the choice of queries.

    Returns:
        The source, without photos and public slice; `products` has a column supplier to
        partition by. Broken rows are left out and named in `problems`.

    Raises:
        DataError: a file is missing or damaged, a column is missing, or no row is usable.
    """
    problems: list[str] = []
    rows = list(_read_products(folder / PRODUCTS, problems))
    if not rows:
        raise DataError(f"{folder / PRODUCTS}: no usable product; each line needs id and title")
    products = _tidy(rows)
    judged = _read_judgments(folder / JUDGMENTS, set(products["product_id"]), problems)
    barred = {normalize(query) for query in judged["query"].unique()}
    return Source(
        name="icecat",
        products=products,
        queries=[q for q in make_queries(rows, seed=seed) if normalize(q.text) not in barred],
        public=pl.DataFrame(schema={"title": pl.String, "image": pl.String}),
        judged=judged,
        text_fields=("title", "description", "brand"),
        partition="supplier",
        problems=problems,
    )


def _read_products(path: Path, problems: list[str]) -> Iterator[Row]:
    seen: set[str] = set()
    try:
        with gzip.open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                row, reason = _parse(line, seen)
                if reason:
                    problems.append(f"{path.name} line {number}: {reason}; row left out")
                else:
                    seen.add(row["id"])
                    yield row
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "not a whole gzip file"
        raise DataError(f"{path}: {reason}; --data icecat:DIR needs it in DIR") from None


def _parse(line: bytes, seen: set[str]) -> tuple[Row, str]:
    """One line as a product and, if it is not usable, the reason."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}, "not JSON"
    if not isinstance(row, dict):
        return {}, "not a JSON object"
    absent = [name for name in _NEEDED if not _is_text(row.get(name))]
    if absent:
        return {}, f"{', '.join(absent)} missing"
    return row, "id occurs before" if row["id"] in seen else ""


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _tidy(rows: Sequence[Row]) -> pl.DataFrame:
    """Rows in the catalog's columns that they have, and supplier."""
    columns: dict[str, Sequence[object]] = {
        "product_id": [row["id"] for row in rows],
        "title": [row["title"] for row in rows],
        "description": [_text(row.get("short_description")) for row in rows],
        "brand": [row["supplier"] for row in rows],
        "attributes": [_attributes(row) for row in rows],
        "price": [_price(row.get("price")) for row in rows],
        "currency": ["USD"] * len(rows),
        "in_stock": [True] * len(rows),
        "image": [None] * len(rows),
        "locale": ["en"] * len(rows),
    }
    table = [pl.Series(name, values, CATALOG_COLUMNS[name]) for name, values in columns.items()]
    return pl.DataFrame(table).with_columns(supplier="brand")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _price(cents: object) -> float | None:
    return cents / 100 if isinstance(cents, int | float) and cents >= 0 else None


def _attributes(row: Row) -> list[dict[str, str]]:
    texts = ((key, value) for key, value in row.items() if key.startswith("attr_t_"))
    named = [
        {"key": key.removeprefix("attr_t_").replace("_", " ").strip(), "value": value}
        for key, value in texts
        if _is_text(value) and len(value) <= _MAX_VALUE
    ]
    return named[:_MAX_ATTRIBUTES]


def _read_judgments(path: Path, known: set[str], problems: list[str]) -> pl.DataFrame:
    """Judged query, product_id, grade; a row that is broken or of no product here is named."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
            reader = csv.DictReader(lines)
            _need_columns(path, reader.fieldnames or [])
            rows = list(_judgments(reader, path.name, known, problems))
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: {reason}; --data icecat:DIR needs it in DIR") from None
    schema = {"query": pl.String, "product_id": pl.String, "grade": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _need_columns(path: Path, found: Sequence[str]) -> None:
    missing = [name for name in _JUDGED_COLUMNS if name not in found]
    if missing:
        raise DataError(f"{path}: column {', '.join(missing)} missing; line 1 needs it")


def _judgments(
    reader: "csv.DictReader[str]", name: str, known: set[str], problems: list[str]
) -> Iterator[tuple[str, str, int]]:
    seen: set[tuple[str, str]] = set()
    for row in reader:
        query, product, rating = (row[column] or "" for column in _JUDGED_COLUMNS)
        reason = _judgment_fault(query, product, rating, known, seen)
        if reason:
            problems.append(f"{name} line {reader.line_num}: {reason}; judgment left out")
            continue
        seen.add((query, product))
        yield query, product, int(rating)


def _judgment_fault(
    query: str, product: str, rating: str, known: set[str], seen: set[tuple[str, str]]
) -> str:
    if not query.strip():
        return "query empty"
    if product not in known:
        return "no such product"
    if rating not in {str(grade) for grade in range(MAX_GRADE + 1)}:
        return f"rating is not 0 to {MAX_GRADE}"
    return "judged before" if (query, product) in seen else ""
