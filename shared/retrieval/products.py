"""A region's products as columns: what a search filters by, counts, sorts, groups and shows.

One search touches every product's price or brand but shows only ten products, so the columns that
conditions look at are kept as numpy arrays (words as codes, attributes as an inverted list), and
the rest stays in Polars, from which one product's cells are read in microseconds.

A table never changes. `changed` makes another one that shares all that did not change, so searches
in flight go on undisturbed. Rows are kept in segments: the catalog is the first, every change adds
one, and short neighbours are merged, so that there are at most about log2(appended rows) of them
and a row is copied about as often (the log-structured merge of O'Neil et al., 1996).
"""

import heapq
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import islice, pairwise
from typing import Any, Final, Self, TypeVar, overload

import numpy as np
import polars as pl
from numpy.typing import NDArray

from shared.retrieval.filters import ATTRIBUTE_PREFIX, MAX_VALUE_CHARS, Filters, Range, Sort
from shared.schema import CATALOG_COLUMNS

MAX_ATTRIBUTE_FACETS: Final = 10  # keys that are counted without being asked for ...
MAX_ATTRIBUTE_VALUES: Final = 200  # ... none with more distinct values than a person would read
_MIN_SHARE_INVERSE: Final = 10  # ... and only keys that one in so many of the rows has

# Attribute keys, in any case, whose values name a product; the second kind are numbers of GS1, for
# which spaces, hyphens and leading zeros mean nothing.
_PLAIN_KEYS: Final = frozenset({"sku", "mpn"})
_NUMBER_KEYS: Final = frozenset({"ean", "gtin", "upc", "isbn"})
_SEPARATORS: Final = re.compile(r"[\s\-\u2010-\u2015]+")
_STOCK: Final = ("false", "true")
_GTIN_DIGITS: Final = 14  # UPC-12, EAN-13 and EAN-8 are GTIN-14 with zeros before them

Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]
_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True)
class FacetValue:
    """One value that products can be filtered by, and how many of the found ones have it."""

    value: str
    count: int
    selected: bool = False


@dataclass(frozen=True)
class Facet:
    """A facet of the found products.

    Attributes:
        name: "category", "brand", "in_stock" or "attributes.KEY"; or "price", "rating".
        values: most frequent first, ties by value; empty for a range.
        minimum: of a range, else None.
        maximum: of a range, else None.
    """

    name: str
    values: tuple[FacetValue, ...] = ()
    minimum: float | None = None
    maximum: float | None = None


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
class _Words:
    """A column of text as codes; -1 is unknown."""

    codes: NDArray[np.int32]  # (n,)
    words: Sequence[str]
    code_of: Mapping[str, int]

    @classmethod
    def of(cls, column: pl.Series) -> Self:
        cells = column.to_list()
        words = sorted(set(cells) - {None})
        code_of = {word: code for code, word in enumerate(words)}
        return cls(np.array([code_of.get(cell, -1) for cell in cells], np.int32), words, code_of)

    def among(self, wanted: Iterable[str]) -> Mask:
        chosen = np.zeros(len(self.words) + 1, np.bool_)  # the last place is code -1
        chosen[[self.code_of[word] for word in wanted if word in self.code_of]] = True
        return chosen[self.codes]

    def counts(self, rows: Rows) -> dict[str, int]:
        counts = np.bincount(self.codes[rows] + 1, minlength=1)[1:]
        return {self.words[code]: int(counts[code]) for code in np.flatnonzero(counts).tolist()}


@dataclass(frozen=True, eq=False)
class _Attributes:
    """Which rows have which (key, value) pair, both ways round.

    Pairs are numbered by key, then value. A row has a pair once, however often it names it.
    """

    keys: Sequence[str]
    span_of: Mapping[str, tuple[int, int]]  # key -> its first pair, and the one after its last
    values: pl.Series  # (P,) sorted within a key
    key_of: NDArray[np.int32]  # (P,)
    pair_starts: Rows  # (P + 1,) into `rows_by_pair`
    rows_by_pair: NDArray[np.int32]
    row_starts: Rows  # (n + 1,) into `pairs_by_row`
    pairs_by_row: NDArray[np.int32]
    opens_key: Mask  # of `pairs_by_row`: whether it is its row's first pair of that key

    @classmethod
    def of(cls, column: pl.Series) -> Self:
        pairs, vocabulary = _pairs_of(column)
        pair, row = np.divmod(pairs, max(len(column), 1))
        keys = vocabulary["key"].unique().sort().to_list()
        key_of = vocabulary["key"].rank("dense").to_numpy().astype(np.int32) - 1
        by_row = np.argsort(row, kind="stable")
        row_key = np.stack([row[by_row], key_of[pair[by_row]]])
        return cls(
            keys=keys,
            span_of=dict(zip(keys, pairwise(_starts_of(key_of, len(keys)).tolist()), strict=True)),
            values=vocabulary["value"],
            key_of=key_of,
            pair_starts=_starts_of(pair, len(vocabulary)),
            rows_by_pair=row.astype(np.int32),
            row_starts=_starts_of(row, len(column)),
            pairs_by_row=pair[by_row].astype(np.int32),
            opens_key=np.any(np.diff(row_key, axis=1, prepend=-1), axis=0),
        )

    def among(self, key: str, wanted: Iterable[str]) -> Mask:
        chosen = np.zeros(len(self.row_starts) - 1, np.bool_)
        for value in wanted:
            pair = self._pair(key, value)
            if pair is not None:
                chosen[self.rows_with(pair)] = True
        return chosen

    def rows_with(self, pair: int) -> NDArray[np.int32]:
        return self.rows_by_pair[self.pair_starts[pair] : self.pair_starts[pair + 1]]

    def counts(self, rows: Rows) -> tuple[Rows, Rows]:
        """How many of the rows have each pair (P,), and each key (K,)."""
        starts = self.row_starts[rows]
        lengths = self.row_starts[rows + 1] - starts
        before = np.cumsum(lengths) - lengths
        places = np.repeat(starts - before, lengths) + np.arange(lengths.sum())
        pairs = self.pairs_by_row[places]
        keys = self.key_of[pairs[self.opens_key[places]]]
        by_pair = np.bincount(pairs, minlength=len(self.key_of))
        return by_pair, np.bincount(keys, minlength=len(self.keys))

    def _pair(self, key: str, value: str) -> int | None:
        # A dictionary of all pairs would outweigh the catalog where every product has values of its
        # own, so the sorted column is searched; not by Polars, whose queue costs more than that.
        first, after = self.span_of.get(key, (0, 0))
        pair = bisect_left(self.values, value, first, after)
        return pair if pair < after and self.values[pair] == value else None


@dataclass(frozen=True)
class _Recipe:
    """What every segment of a table is made with, so that all of them can be compared.

    Attributes:
        group_attribute: attribute that variants of one product share, or None.
        mean_rating: of the catalog; what an unrated product is taken to deserve.
        prior_reviews: how many reviews it takes to believe a product's own rating by half.
    """

    group_attribute: str | None
    mean_rating: float
    prior_reviews: float

    @classmethod
    def of(cls, catalog: pl.DataFrame, group_attribute: str | None) -> Self:
        mean = catalog["rating"].cast(pl.Float64).mean()
        reviews = catalog["review_count"].filter(catalog["review_count"] > 0).median()
        number = float(reviews) if isinstance(reviews, int | float) else 1.0
        return cls(group_attribute, float(mean) if isinstance(mean, float) else 0.0, number)


@dataclass(frozen=True, eq=False)
class _Segment:
    """Consecutive rows. Row numbers in here count from the segment's own first row."""

    frame: pl.DataFrame  # the columns of `CATALOG_COLUMNS`, in one chunk
    row_of: Mapping[str, int]  # product id -> its last row here
    category: _Words
    brand: _Words
    price: NDArray[np.float64]  # (n,) NaN is unknown
    rating: NDArray[np.float64]  # (n,) NaN is unknown
    in_stock: NDArray[np.int8]  # (n,) 1, 0, or -1 for unknown
    attributes: _Attributes
    groups: Rows  # (n,)
    codes: Sequence[Mapping[str, Sequence[int]]]  # of each kind of code, rows by its spelling
    popularity_keys: NDArray[np.float64]  # (3, n) the most important first, the best least
    by_popularity: Rows  # (n,)

    @classmethod
    def of(cls, frame: pl.DataFrame, recipe: _Recipe) -> Self:
        ids = frame["product_id"].to_list()
        attributes = _Attributes.of(frame["attributes"])
        keys = _popularity_keys(frame, recipe)
        return cls(
            frame=frame,
            row_of={product_id: row for row, product_id in enumerate(ids)},
            category=_Words.of(frame["category"]),
            brand=_Words.of(frame["brand"]),
            price=_numbers(frame["price"], unknown=np.nan),
            rating=_numbers(frame["rating"], unknown=np.nan),
            in_stock=_numbers(frame["in_stock"], unknown=-1).astype(np.int8),
            attributes=attributes,
            groups=_groups(frame, recipe.group_attribute),
            codes=_codes(ids, attributes),
            popularity_keys=keys,
            by_popularity=np.lexsort(keys[::-1]),  # stable: ties by row
        )

    def __len__(self) -> int:
        return self.frame.height

    def conditions(self, filters: Filters) -> Iterator[Mask]:
        if filters.category:
            yield self.category.among(filters.category)
        if filters.brand:
            yield self.brand.among(filters.brand)
        if filters.price.bounded:
            yield _within(self.price, filters.price)
        if filters.rating.bounded:
            yield _within(self.rating, filters.rating)
        if filters.in_stock is not None:
            yield self.in_stock == int(filters.in_stock)
        for key, values in filters.attributes.items():
            yield self.attributes.among(key, values)


@dataclass(frozen=True, eq=False)
class _Found:
    """The found rows of one segment, and how many of them have what."""

    segment: _Segment
    rows: Rows

    def counts(self, name: str) -> dict[str, int]:
        """Value -> number of rows, of a facet that is no range; values without a row left out."""
        if name == "in_stock":
            stock = np.bincount(self.segment.in_stock[self.rows] + 1, minlength=3)
            return {
                word: int(count) for word, count in zip(_STOCK, stock[1:], strict=True) if count
            }
        if name == "category":
            return self.segment.category.counts(self.rows)
        if name == "brand":
            return self.segment.brand.counts(self.rows)
        attributes, (first, _) = self.segment.attributes, self._span(name)
        counts = self._pair_counts(name)
        values = attributes.values
        return {values[int(first + at)]: int(counts[at]) for at in np.flatnonzero(counts)}

    def num_values(self, name: str) -> int:
        return int(np.count_nonzero(self._pair_counts(name)))

    @cached_property
    def key_counts(self) -> dict[str, int]:
        _, counts = self._attribute_counts
        keys = self.segment.attributes.keys
        return {keys[key]: int(counts[key]) for key in np.flatnonzero(counts).tolist()}

    @cached_property
    def _attribute_counts(self) -> tuple[Rows, Rows]:
        return self.segment.attributes.counts(self.rows)

    def _pair_counts(self, name: str) -> Rows:
        first, after = self._span(name)
        return self._attribute_counts[0][first:after]

    def _span(self, name: str) -> tuple[int, int]:
        key = name.removeprefix(ATTRIBUTE_PREFIX)
        return self.segment.attributes.span_of.get(key, (0, 0)) if key != name else (0, 0)


@dataclass(frozen=True, eq=False)
class ProductTable:
    """Products by row number: 0 to N-1 in catalog order, then what was added live.

    A replaced or deleted product's row stays where it was and is dead.
    """

    _segments: tuple[_Segment, ...]
    _starts: tuple[int, ...]  # first row of each segment, then N
    _alive: Mask
    _recipe: _Recipe

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
        recipe = _Recipe.of(frame, group_attribute)
        alive = np.ones(frame.height, np.bool_)
        return cls._of((_Segment.of(frame, recipe),), alive, recipe)

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
        segments = _appended(self._segments, _tidy(upserts), self._recipe)
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
        if names is None:
            keys = _attribute_keys(found, len(rows), filters)
            names = ["category", "brand", "price", "rating", "in_stock"]
            names += [ATTRIBUTE_PREFIX + key for key in keys]
        facets = [_facet(name, found, filters, max_values) for name in names]
        return [facet for facet in facets if facet.values or facet.minimum is not None]

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
        ids = (self.row_of(text.strip()), self.row_of(_normal(text)))
        rows = [row for row in ids if row is not None]
        for kind, code in enumerate(_spellings(text)):
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
    def _of(cls, segments: tuple[_Segment, ...], alive: Mask, recipe: _Recipe) -> Self:
        starts = np.cumsum([0, *map(len, segments)]).tolist()
        assert starts[-1] == len(alive), "one mark a row"
        alive.flags.writeable = False
        return cls(segments, tuple(starts), alive, recipe)

    def _newest_first(self) -> Iterator[tuple[_Segment, int]]:
        return zip(reversed(self._segments), reversed(self._starts[:-1]), strict=True)

    def _place(self, row: int) -> tuple[int, int]:
        """Which segment a row is in, and its number there."""
        assert 0 <= row < self.num_rows, "a row of this table"
        at = bisect_right(self._starts, row) - 1
        return at, int(row) - self._starts[at]

    def _locate(self, row: int) -> tuple[_Segment, int]:
        at, local = self._place(row)
        return self._segments[at], local

    def _found(self, rows: Rows) -> list[_Found]:
        at = self._segment_numbers(rows)
        return [
            _Found(segment, rows[at == number] - start)
            for number, (segment, start) in enumerate(
                zip(self._segments, self._starts, strict=False)
            )
        ]

    def _gather(
        self, rows: Rows, column: Callable[[_Segment], NDArray[_Scalar]]
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


def _appended(
    segments: tuple[_Segment, ...], upserts: pl.DataFrame, recipe: _Recipe
) -> tuple[_Segment, ...]:
    """One segment more, into which those before it that are not longer are merged.

    The catalog's own segment stays as it is: to merge it would cost as much as to read it.
    """
    if not upserts.height:
        return segments
    kept, tail, height = list(segments), [upserts], upserts.height
    while len(kept) > 1 and len(kept[-1]) <= height:
        tail.append(kept.pop().frame)
        height += tail[-1].height
    return (*kept, _Segment.of(pl.concat(reversed(tail), rechunk=True), recipe))


def _pairs_of(column: pl.Series) -> tuple[Rows, pl.DataFrame]:
    """Distinct (pair, row), sorted, each as pair * number of rows + row; and the pairs' words."""
    named = column.alias("pair").to_frame().with_row_index("row").explode("pair").unnest("pair")
    named = named.drop_nulls()  # no attributes at all, or a key without a value
    vocabulary = named.select("key", "value").unique().sort("key", "value").with_row_index("number")
    numbered = named.join(vocabulary, on=["key", "value"])
    pairs = numbered["number"].to_numpy().astype(np.int64)
    return np.unique(pairs * len(column) + numbered["row"].to_numpy()), vocabulary


def _starts_of(sorted_codes: NDArray[np.integer[Any]], count: int) -> Rows:
    """Where each code 0 to count-1 begins once codes are sorted, and the end, (count + 1,)."""
    return np.concatenate([[0], np.cumsum(np.bincount(sorted_codes, minlength=count))])


def _numbers(column: pl.Series, *, unknown: float) -> NDArray[np.float64]:
    numbers = column.cast(pl.Float64).to_numpy()  # null is NaN
    return np.where(np.isnan(numbers), unknown, numbers)


def _within(numbers: NDArray[np.float64], bounds: Range) -> Mask:
    low = -np.inf if bounds.ge is None else bounds.ge
    high = np.inf if bounds.le is None else bounds.le
    return (numbers >= low) & (numbers <= high)  # NaN is neither


def _cell(column: pl.Series, row: int) -> Any:
    value = column[row]
    return value.to_list() if isinstance(value, pl.Series) else value


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _groups(frame: pl.DataFrame, group_attribute: str | None) -> Rows:
    """A number for each row's variant group: a hash, so that no segment need know of the others.

    At 64 bits, two of a million groups coincide with a chance of 3e-8.
    """
    shared = _first_values(frame["attributes"], group_attribute)
    brands = {brand: _normal(brand or "") for brand in frame["brand"].unique()}
    keys = (
        repr((value is None, _normal(title) if value is None else value, brands[brand]))
        for value, title, brand in zip(shared, frame["title"], frame["brand"], strict=True)
    )
    digests = b"".join(blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, np.int64)


def _first_values(attributes: pl.Series, key: str | None) -> list[str | None]:
    """Each row's first value for a key, normalized; None where it has none, or a blank one."""
    if key is None:
        return [None] * len(attributes)
    named = attributes.alias("pair").to_frame().with_row_index("row").explode("pair")
    named = named.unnest("pair").drop_nulls().filter(pl.col("key") == key)
    named = named.unique("row", keep="first", maintain_order=True)
    values: list[str | None] = [None] * len(attributes)
    for row, value in zip(named["row"], named["value"], strict=True):
        values[row] = _normal(value) or None
    return values


def _codes(ids: Sequence[str], attributes: _Attributes) -> tuple[dict[str, list[int]], ...]:
    """Rows by each kind of code, in the order of `_spellings`."""
    by_id: dict[str, list[int]] = {}
    for row, product_id in enumerate(ids):
        if (code := _normal(product_id)) != product_id:  # else `row_of` knows it
            by_id.setdefault(code, []).append(row)
    plain = _rows_by_code(attributes, _PLAIN_KEYS, _normal)
    return by_id, plain, _rows_by_code(attributes, _NUMBER_KEYS, _article_number)


def _rows_by_code(
    attributes: _Attributes, keys: frozenset[str], spelling: Callable[[str], str]
) -> dict[str, list[int]]:
    rows_of: dict[str, list[int]] = {}
    spans = (span for key, span in attributes.span_of.items() if _normal(key) in keys)
    for pair in (pair for span in spans for pair in range(*span)):
        if code := spelling(attributes.values[pair]):
            rows_of.setdefault(code, []).extend(attributes.rows_with(pair).tolist())
    return rows_of


def _spellings(text: str) -> tuple[str, str, str]:
    """A text as an id, as SKU or MPN, and as an article number would be kept."""
    return _normal(text), _normal(text), _article_number(text)


def _article_number(text: str) -> str:
    number = _SEPARATORS.sub("", _normal(text))
    is_gtin = number.isascii() and number.isdecimal() and 8 <= len(number) <= _GTIN_DIGITS
    return number.zfill(_GTIN_DIGITS) if is_gtin else number


def _popularity_keys(frame: pl.DataFrame, recipe: _Recipe) -> NDArray[np.float64]:
    """In stock, sales and believed rating, negative so that the best sort first, (3, n)."""
    in_stock = _numbers(frame["in_stock"], unknown=0.5)
    sales = _numbers(frame["sales"], unknown=0)
    rating = _numbers(frame["rating"], unknown=recipe.mean_rating)
    # A rating without a count is one person's at least.
    reviews = np.maximum(_numbers(frame["review_count"], unknown=1), 0)
    believed = reviews / (reviews + recipe.prior_reviews)
    mean = recipe.mean_rating + believed * (rating - recipe.mean_rating)  # exact for the unrated
    return -np.stack([in_stock, sales, mean])


def _attribute_keys(found: Sequence[_Found], num_rows: int, filters: Filters) -> list[str]:
    """Keys worth a facet, most frequent first, ties by key; those asked for are among them."""
    counts: Counter[str] = Counter()
    for part in found:
        counts.update(part.key_counts)
    asked = list(filters.attributes)
    frequent = [
        key
        for key, count in counts.items()
        if count * _MIN_SHARE_INVERSE >= num_rows and len(key) <= MAX_VALUE_CHARS
    ]
    frequent.sort(key=lambda key: (-counts[key], key))
    fitting = (key for key in frequent if key not in asked and _is_readable(key, found))
    keys = [*asked, *islice(fitting, max(0, MAX_ATTRIBUTE_FACETS - len(asked)))]
    return sorted(keys, key=lambda key: (-counts[key], key))


def _is_readable(key: str, found: Sequence[_Found]) -> bool:
    """Whether a key has neither one value only nor more than a person would read."""
    name = ATTRIBUTE_PREFIX + key
    if any(part.num_values(name) > MAX_ATTRIBUTE_VALUES for part in found):
        return False  # before anything is listed: every product may have its own
    values = {value for part in found for value in part.counts(name)}
    return 2 <= len(values) <= MAX_ATTRIBUTE_VALUES


def _facet(name: str, found: Sequence[_Found], filters: Filters, max_values: int) -> Facet:
    if name in ("price", "rating"):
        return _range_facet(name, found)
    counts: Counter[str] = Counter()
    for part in found:
        counts.update(part.counts(name))
    selected = _selected(name, filters)
    listed = ((value, count) for value, count in counts.items() if len(value) <= MAX_VALUE_CHARS)
    most = heapq.nsmallest(max_values, listed, key=_frequent_first)
    shown = {**{value: counts[value] for value in selected}, **dict(most)}
    return Facet(
        name,
        tuple(
            FacetValue(value, count, value in selected)
            for value, count in sorted(shown.items(), key=_frequent_first)
        ),
    )


def _frequent_first(counted: tuple[str, int]) -> tuple[int, str]:
    value, count = counted
    return -count, value


def _range_facet(name: str, found: Sequence[_Found]) -> Facet:
    numbers = np.concatenate([getattr(part.segment, name)[part.rows] for part in found])
    known = numbers[~np.isnan(numbers)]
    if not len(known):
        return Facet(name)
    return Facet(name, minimum=float(known.min()), maximum=float(known.max()))


def _selected(name: str, filters: Filters) -> tuple[str, ...]:
    """The values of a facet that a shopper asked for."""
    if name == "in_stock":
        return () if filters.in_stock is None else (str(filters.in_stock).lower(),)
    if name == "category":
        return filters.category
    if name == "brand":
        return filters.brand
    key = name.removeprefix(ATTRIBUTE_PREFIX)
    return filters.attributes.get(key, ()) if key != name else ()
