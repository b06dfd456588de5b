"""A region's products by row: what a search filters by, counts, sorts, groups and shows.

A table never changes. `changed` makes another one that shares all that did not change, so searches
in flight go on undisturbed. Rows are kept in segments: the catalog is the first, every change adds
one, and short neighbours are merged, so that there are at most about log2(appended rows) of them
and a row is copied about as often (the log-structured merge of O'Neil et al., 1996).
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar, overload

import numpy as np
import polars as pl
from numpy.typing import NDArray

from shared.retrieval.facets import Facet, Found, count_facets
from shared.retrieval.filters import Filters, Sort
from shared.retrieval.segments import Mask, Recipe, Rows, Segment, appended, normal, spellings
from shared.schema import CATALOG_COLUMNS

_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, eq=False)
class _Runs(Sequence[Rows]):
    """Row numbers in consecutive runs; one is cut out when it is asked for."""

    rows: Rows
    starts: Rows
    ends: Rows

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, place: int) -> Rows: ...

    @overload
    def __getitem__(self, place: slice) -> "_Runs": ...

    def __getitem__(self, place: int | slice) -> "Rows | _Runs":
        if isinstance(place, slice):
            return _Runs(self.rows, self.starts[place], self.ends[place])
        return self.rows[self.starts[place] : self.ends[place]]


@dataclass(frozen=True, eq=False)
class ProductTable:
    """Products by row number: 0 to N-1 in catalog order, then what was added live.

    A replaced or deleted product's row stays where it was and is dead.
    """

    _segments: tuple[Segment, ...]
    _starts: tuple[int, ...]  # first row of each segment, then N
    _alive: Mask
    _recipe: Recipe

    @classmethod
    def build(cls, catalog: pl.DataFrame, *, group_attribute: str | None) -> Self:
        """The products of a catalog; row i is the catalog's row i.

        Args:
            catalog: the columns of `CATALOG_COLUMNS` (others are left out), N rows, product ids
                unique.
            group_attribute: attribute that variants of one product share; None for none.

        Returns:
            The table; every row is alive.
        """
        frame = _tidy(catalog)
        assert frame["product_id"].is_unique().all(), "the region's reader drops repeated ids"
        recipe = Recipe.of(frame, group_attribute)
        alive = np.ones(frame.height, np.bool_)
        return cls._of((Segment.of(frame, recipe),), alive, recipe)

    def changed(self, upserts: pl.DataFrame, deleted: Sequence[str]) -> Self:
        """The table after products came, changed or went; this one stays as it is.

        Args:
            upserts: the columns of `CATALOG_COLUMNS`, U rows; they become rows N to N+U-1, in
                order, so whatever else counts rows may append them alike. Where an id is there
                several times, the last one is alive.
            deleted: product ids, taken out before `upserts` come in; unknown ones are nothing.

        Returns:
            A table of N+U rows. It costs as much as the change, but for one copy of `alive`.
        """
        ids = upserts["product_id"].to_list()
        gone = [row for row in map(self.row_of, {*ids, *deleted}) if row is not None]
        last = {product_id: at for at, product_id in enumerate(ids)}
        fresh = np.array([last[product_id] == at for at, product_id in enumerate(ids)], np.bool_)
        alive = np.concatenate([self._alive, fresh])
        alive[np.array(gone, np.int64)] = False
        segments = appended(self._segments, _tidy(upserts), self._recipe)
        return self._of(segments, alive, self._recipe)

    @property
    def num_rows(self) -> int:
        """N, dead rows too."""
        return self._starts[-1]

    @property
    def alive(self) -> Mask:
        """Which rows can be found, (N,); read-only."""
        return self._alive

    def row_of(self, product_id: str) -> int | None:
        """The row of a product, or None where no such product is alive."""
        for segment, start in self._newest_first():
            row = segment.row_of.get(product_id)
            if row is not None:  # an older segment can only hold a dead row of it
                return start + row if self._alive[start + row] else None
        return None

    def product(self, row: int) -> dict[str, Any]:
        """One product's cells, by the names of `CATALOG_COLUMNS`; a dead row still has them."""
        segment, local = self._locate(row)
        return segment.frame.row(local, named=True)

    def cells(self, rows: Sequence[int] | Rows, names: Sequence[str]) -> list[dict[str, Any]]:
        """Some cells of some products.

        Args:
            rows: row numbers, R.
            names: of `CATALOG_COLUMNS`.

        Returns:
            R dictionaries with these names, in the order of `rows`.
        """
        columns = [
            [(name, segment.frame.get_column(name)) for name in names] for segment in self._segments
        ]
        found = []
        for row in rows:
            at, local = self._place(row)
            found.append({name: _cell(column, local) for name, column in columns[at]})
        return found

    def eligible(self, filters: Filters) -> Mask:
        """Which rows are alive and satisfy every condition.

        Args:
            filters: the conditions.

        Returns:
            A mask of its own, (N,).
        """
        mask = self._alive.copy()
        for segment, start in zip(self._segments, self._starts, strict=False):
            part = mask[start : start + len(segment)]  # a view
            for condition in segment.conditions(filters):
                part &= condition
        return mask

    def facets(
        self,
        rows: Rows,
        filters: Filters,
        *,
        names: Sequence[str] | None = None,
        max_values: int = 20,
    ) -> list[Facet]:
        """What the found products can be narrowed down by, with counts.

        Args:
            rows: the found rows, (R,), none twice.
            filters: what was asked; its values are listed even where no found product has them.
            names: facets to count; None for all that suit these rows: category, brand, price,
                rating, in_stock, and at most ten attribute keys (those asked for in `filters`,
                then the most frequent that at least a tenth of the rows have, with 2 to 200
                values).
            max_values: listed in one facet, beside those in `filters`.

        Returns:
            Facets in that order; one without any value is left out, and so are values too long
            to be asked for.
        """
        found = self._found(rows)
        return count_facets(found, filters, names=names, max_values=max_values)

    def sort_rows(self, rows: Rows, sort: Sort) -> Rows:
        """Rows in a shopper's order.

        Args:
            rows: row numbers in order of relevance, (R,).
            sort: which order.

        Returns:
            The same rows; equal ones keep their order, unknown values come last either way.
        """
        if sort == "relevance":
            return rows
        by_rating = sort == "rating_desc"
        numbers = self._gather(rows, lambda segment: segment.rating if by_rating else segment.price)
        # NaN sorts last, and its negative too.
        return rows[np.argsort(numbers if sort == "price_asc" else -numbers, kind="stable")]

    def group(self, rows: Rows) -> Rows:
        """Which variant group each row is of.

        Variants have the same brand and the same value of `group_attribute`; products without
        that attribute have the same brand and title, whatever their case and spaces.

        Args:
            rows: row numbers, (R,).

        Returns:
            Group numbers, (R,): any int64, equal for variants of one product only.
        """
        return self._gather(rows, lambda segment: segment.groups)

    def first_of_groups(self, rows: Rows) -> tuple[Rows, Sequence[Rows]]:
        """The first row of each variant group, and what it stands for.

        Args:
            rows: row numbers in order, (R,).

        Returns:
            The kept rows (G,), in order, and for each of them the other rows of its group that
            are among `rows`, in order.
        """
        _, first, inverse = np.unique(self.group(rows), return_index=True, return_inverse=True)
        kept = np.sort(first)  # (G,) places in `rows`
        place = np.searchsorted(kept, first)[inverse]  # (R,) which kept row each belongs to
        ends = np.cumsum(np.bincount(place, minlength=len(kept)))
        starts = np.concatenate([[0], ends])[:-1] + 1  # after the kept row itself
        return rows[kept], _Runs(rows[np.argsort(place, kind="stable")], starts, ends)

    def find_code(self, text: str) -> list[int]:
        """Rows that a code names: product id, SKU, MPN, or EAN, GTIN, UPC, ISBN.

        Args:
            text: what was typed; case, spaces around it, and in article numbers spaces, hyphens
                and leading zeros do not count.

        Returns:
            Rows alive: the exact product id, then ids in other case, then SKU and MPN, then
            article numbers; by row within each.
        """
        ids = (self.row_of(text.strip()), self.row_of(normal(text)))
        rows = [row for row in ids if row is not None]
        for kind, code in enumerate(spellings(text)):
            for segment, start in zip(self._segments, self._starts, strict=False):
                rows += sorted(start + row for row in segment.codes[kind].get(code, ()))
        return [row for row in dict.fromkeys(rows) if self._alive[row]]

    def popular(self, eligible: Mask, k: int) -> Rows:
        """The products to show where nothing else is known.

        In stock first, then those of unknown stock; then by sales, then by rating (a Bayesian
        mean, so that one review of five stars does not win), then by row.

        Args:
            eligible: rows to choose from, (N,).
            k: at most so many.

        Returns:
            Rows, best first, (min(k, number of eligible rows),).
        """
        assert len(eligible) == self.num_rows, "one value a row"
        rows, keys = [], []
        for segment, start in zip(self._segments, self._starts, strict=False):
            among = eligible[start : start + len(segment)][segment.by_popularity]
            best = segment.by_popularity[np.flatnonzero(among)[: max(k, 0)]]
            rows.append(start + best)
            keys.append(segment.popularity_keys[:, best])
        order = np.lexsort(np.concatenate(keys, axis=1)[::-1])  # stable: ties by row
        return np.concatenate(rows)[order[: max(k, 0)]]

    @classmethod
    def _of(cls, segments: tuple[Segment, ...], alive: Mask, recipe: Recipe) -> Self:
        starts = np.cumsum([0, *map(len, segments)]).tolist()
        assert starts[-1] == len(alive), "one mark a row"
        alive.flags.writeable = False
        return cls(segments, tuple(starts), alive, recipe)

    def _newest_first(self) -> Iterator[tuple[Segment, int]]:
        return zip(reversed(self._segments), reversed(self._starts[:-1]), strict=True)

    def _place(self, row: int) -> tuple[int, int]:
        """Which segment a row is in, and its number there."""
        assert 0 <= row < self.num_rows, "a row of this table"
        at = bisect_right(self._starts, row) - 1
        return at, int(row) - self._starts[at]

    def _locate(self, row: int) -> tuple[Segment, int]:
        at, local = self._place(row)
        return self._segments[at], local

    def _found(self, rows: Rows) -> list[Found]:
        at = self._segment_numbers(rows)
        return [
            Found(segment, rows[at == number] - start)
            for number, (segment, start) in enumerate(
                zip(self._segments, self._starts, strict=False)
            )
        ]

    def _gather(
        self, rows: Rows, column: Callable[[Segment], NDArray[_Scalar]]
    ) -> NDArray[_Scalar]:
        """A column's values in some rows, whichever segments these are in."""
        if len(self._segments) == 1:
            return column(self._segments[0])[rows]
        at = self._segment_numbers(rows)
        values = np.empty(len(rows), column(self._segments[0]).dtype)
        for number, segment in enumerate(self._segments):
            chosen = at == number
            values[chosen] = column(segment)[rows[chosen] - self._starts[number]]
        return values

    def _segment_numbers(self, rows: Rows) -> Rows:
        return np.searchsorted(self._starts, rows, side="right") - 1


def _tidy(frame: pl.DataFrame) -> pl.DataFrame:
    frame = frame.select(list(CATALOG_COLUMNS))
    assert dict(frame.schema) == CATALOG_COLUMNS, "types are checked where products come in"
    return frame.rechunk()  # one product's cells are read fast from one chunk only


def _cell(column: pl.Series, row: int) -> Any:
    value = column[row]
    return value.to_list() if isinstance(value, pl.Series) else value
