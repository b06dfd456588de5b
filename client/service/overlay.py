"""Changes to the catalog that came in while serving, until the catalog itself has them.

A retailer sends a new price or a new product to the running service and exports the whole catalog
once a night. So a change must outlive restarts, new releases and exports that are older than it.
The overlay keeps the last change of every product and wins over the catalog until the catalog
catches up:

- an upsert, until the catalog's row is newer (`updated_at` later than the change) or the same;
- a delete, until the catalog's row is newer. An export that lists the product still, without such
  a time, does not bring it back; so deletes are never removed from the overlay.

Both compare a time of the retailer's with one of the service's clock.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Self

import polars as pl
from pydantic import ValidationError

from client.service.failures import RequestError
from client.service.messages import Product
from client.service.store import Store, from_us, reading, to_us
from shared.errors import DataError
from shared.schema import CATALOG_COLUMNS

_TEXT_COLUMNS = [name for name, dtype in CATALOG_COLUMNS.items() if dtype == pl.String()]


@dataclass(frozen=True)
class Change:
    """The last change of one product.

    Attributes:
        seq: number of the change; later ones are higher, and none is given twice.
        ts: when the service took it, UTC.
        product_id: of the product.
        product: as it is now; None where it was deleted.
    """

    seq: int
    ts: datetime
    product_id: str
    product: Product | None


class Overlay:
    """The writing side, for the service.

    Args:
        store: the region's open store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @classmethod
    def open(cls, store: Store) -> Self:
        """The overlay that a store keeps."""
        return cls(store)

    def upsert(self, products: Sequence[Product], *, now: datetime | None = None) -> int:
        """Keep products, new or changed; returns once they are on disk.

        Args:
            products: at least one; of two with one id the later stays.
            now: time of the change; the clock's by default.

        Returns:
            The number of the last of these changes.

        Raises:
            RequestError: "invalid" for a blank id or title, which no catalog may have;
                "overloaded" or "unavailable". Nothing is kept then.
        """
        for number, product in enumerate(products):
            for name in ("product_id", "title"):
                if not getattr(product, name).strip():
                    raise RequestError("invalid", f"products.{number}.{name}: blank; fill it in")
        ts = to_us(now or datetime.now(UTC))
        rows = [
            (ts, one.product_id, "upsert", one.model_dump_json(exclude_none=True))
            for one in products
        ]
        return self._store.submit(partial(_insert, rows), num_rows=len(rows)).result()

    def delete(self, product_ids: Sequence[str], *, now: datetime | None = None) -> int:
        """Keep that products are gone, known or not; returns once that is on disk.

        Args:
            product_ids: at least one.
            now: time of the change; the clock's by default.

        Returns:
            The number of the last of these changes.

        Raises:
            RequestError: "overloaded" or "unavailable". Nothing is kept then.
        """
        ts = to_us(now or datetime.now(UTC))
        rows = [(ts, product_id, "delete", None) for product_id in product_ids]
        return self._store.submit(partial(_insert, rows), num_rows=len(rows)).result()

    def changes(self, after_seq: int = 0) -> tuple[pl.DataFrame, list[str]]:
        """What an index lacks that holds the changes up to a number.

        Args:
            after_seq: that number.

        Returns:
            Products as rows in `CATALOG_COLUMNS`, and ids of deleted ones, each in order of their
            numbers. A product is in one of the two, by its last change.

        Raises:
            DataError: the store is damaged.
        """
        found = read_changes(self._store.path, after_seq=after_seq)
        deleted = [change.product_id for change in found if change.product is None]
        return _rows([change for change in found if change.product]), deleted

    def retire(self, product_ids: Iterable[str], up_to_seq: int) -> int:
        """Remove upserts that the catalog has caught up with; deletes stay.

        Args:
            product_ids: of `merge`.
            up_to_seq: the highest number that `merge` saw; what came later stays.

        Returns:
            How many were removed.

        Raises:
            RequestError: "overloaded" or "unavailable".
        """
        rows = [(product_id, up_to_seq) for product_id in product_ids]
        return self._store.submit(partial(_retire, rows), num_rows=len(rows)).result()


def read_changes(path: Path, *, after_seq: int = 0) -> list[Change]:
    """The last change of every product, as the store has it now; never makes the file.

    Args:
        path: of the store; where there is none, nothing has changed.
        after_seq: only changes of higher numbers.

    Returns:
        Changes by number.

    Raises:
        DataError: the store is damaged.
    """
    if not path.is_file():
        return []
    with reading(path) as connection:
        rows = connection.execute(
            "SELECT seq, ts, product_id, product FROM changes WHERE seq > ? ORDER BY seq",
            (after_seq,),
        ).fetchall()
    return [
        Change(seq, from_us(ts), name, _product(path, seq, text)) for seq, ts, name, text in rows
    ]


def merge(catalog: pl.DataFrame, changes: Sequence[Change]) -> tuple[pl.DataFrame, list[str]]:
    """A catalog as the overlay changes it.

    Args:
        catalog: products in `CATALOG_COLUMNS`, each id once; further columns are allowed.
        changes: of `read_changes`.

    Returns:
        The products: those of the catalog in their order, changed ones in their old places, new
        ones at the end by number of their change. A changed or new one has the time of its change
        as `updated_at`, and null in further columns. And the ids of upserts that the catalog has
        caught up with, by number, for `Overlay.retire`.
    """
    there = catalog.filter(_is_among(changes)).to_dicts()
    former = {row["product_id"]: row for row in there}
    caught_up, winning = [], []
    for change in changes:
        row = former.get(change.product_id)
        newer = row is not None and row["updated_at"] is not None and row["updated_at"] > change.ts
        if change.product and row is not None and (newer or _content(row) == _content(change)):
            caught_up.append(change.product_id)
        elif not newer:
            winning.append(change)
    return _replaced(catalog, winning), caught_up


def catalog_rows(products: Sequence[Product]) -> pl.DataFrame:
    """Products of a request as a catalog has them.

    Args:
        products: of an upsert.

    Returns:
        One row a product in `CATALOG_COLUMNS`; blank texts and empty maps are null, as they are in
        a checked catalog, and so is `updated_at`.
    """
    return pl.DataFrame([_row(product) for product in products], CATALOG_COLUMNS)


def _replaced(catalog: pl.DataFrame, winning: Sequence[Change]) -> pl.DataFrame:
    """The catalog without these products, then with those of them that are not deleted."""
    place = "place in the catalog"
    placed = catalog.with_row_index(place)
    upserts = _rows([change for change in winning if change.product])
    upserts = upserts.join(placed.select("product_id", place), on="product_id", how="left")
    kept = placed.filter(~_is_among(winning))
    # The sort is stable, and nulls are last: new products stay in the order of their numbers.
    both = pl.concat([kept, upserts], how="diagonal")
    return both.sort(place, nulls_last=True, maintain_order=True).select(catalog.columns)


def _is_among(changes: Sequence[Change]) -> pl.Expr:
    ids = pl.Series([change.product_id for change in changes], dtype=pl.String)
    return pl.col("product_id").is_in(ids.implode())


def _rows(upserts: Sequence[Change]) -> pl.DataFrame:
    rows = catalog_rows([change.product for change in upserts if change.product])
    times = pl.Series([change.ts for change in upserts], dtype=CATALOG_COLUMNS["updated_at"])
    return rows.with_columns(updated_at=times)


def _row(product: Product) -> dict[str, Any]:
    row = product.model_dump()
    for name in _TEXT_COLUMNS:
        if row[name] is not None and not row[name].strip():
            row[name] = None
    pairs = [{"key": key, "value": value} for key, value in product.attributes.items()]
    return {**row, "attributes": pairs or None, "updated_at": None}


def _content(of: dict[str, Any] | Change) -> dict[str, Any]:
    """What must be equal for a catalog to have caught up: all but the time, in any map's order."""
    if isinstance(of, Change):
        assert of.product is not None, "a delete has no content"
        row = _row(of.product)
    else:
        row = {name: of[name] for name in CATALOG_COLUMNS}
    pairs = sorted((pair["key"], pair["value"] or "") for pair in row["attributes"] or [])
    return {**row, "attributes": pairs, "updated_at": None}


def _product(path: Path, seq: int, text: str | None) -> Product | None:
    try:
        return None if text is None else Product.model_validate_json(text)
    except ValidationError:  # its text would hold product content
        raise DataError(
            f"{path}: change {seq} is not a product as this fedshelf knows it; use the fedshelf"
            " that wrote it, or restore the file from a backup"
        ) from None


def _insert(rows: Sequence[tuple[object, ...]], connection: sqlite3.Connection) -> int:
    # REPLACE gives the product a new, higher number.
    connection.executemany(
        "INSERT OR REPLACE INTO changes (ts, product_id, kind, product) VALUES (?, ?, ?, ?)", rows
    )
    return int(connection.execute("SELECT ifnull(max(seq), 0) FROM changes").fetchone()[0])


def _retire(rows: Sequence[tuple[str, int]], connection: sqlite3.Connection) -> int:
    removed = connection.executemany(
        "DELETE FROM changes WHERE kind = 'upsert' AND product_id = ? AND seq <= ?", rows
    )
    return max(removed.rowcount, 0)
