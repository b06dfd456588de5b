"""Consecutive rows of a product table as columns, made once and never changed.

One search touches every product's price or brand but shows only ten products, so the columns that
conditions look at are kept as numpy arrays (words as codes, attributes as an inverted list), and
the rest stays in Polars, from which one product's cells are read in microseconds. Whatever else a
search asks of a row is worked out when its segment is made: its variant group, its popularity, and
the codes that name it, spelled so that they are found however they are typed.
"""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Any, Final, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from shared.retrieval.filters import Filters, Range

# Attribute keys, in any case, whose values name a product; the second kind are numbers of GS1, for
# which spaces, hyphens and leading zeros mean nothing.
_PLAIN_KEYS: Final = frozenset({"sku", "mpn"})
_NUMBER_KEYS: Final = frozenset({"ean", "gtin", "upc", "isbn"})
_SEPARATORS: Final = re.compile(r"[\s\-\u2010-\u2015]+")
_GTIN_DIGITS: Final = 14  # UPC-12, EAN-13 and EAN-8 are GTIN-14 with zeros before them

Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Words:
    """A column of text as codes; -1 is unknown."""

    codes: NDArray[np.int32]  # (n,)
    words: Sequence[str]  # (W,) by code, sorted
    code_of: Mapping[str, int]

    @classmethod
    def of(cls, column: pl.Series) -> Self:
        """The words of a column of strings, (n,); null is unknown."""
        cells = column.to_list()
        words = sorted(set(cells) - {None})
        code_of = {word: code for code, word in enumerate(words)}
        return cls(np.array([code_of.get(cell, -1) for cell in cells], np.int32), words, code_of)

    def among(self, wanted: Iterable[str]) -> Mask:
        """Which rows have one of these words, (n,); a word that no row has is nothing."""
        chosen = np.zeros(len(self.words) + 1, np.bool_)  # the last place is code -1
        chosen[[self.code_of[word] for word in wanted if word in self.code_of]] = True
        return chosen[self.codes]

    def counts(self, rows: Rows) -> dict[str, int]:
        """Word -> how many of the rows (R,) have it; words without a row are left out."""
        counts = np.bincount(self.codes[rows] + 1, minlength=1)[1:]
        return {self.words[code]: int(counts[code]) for code in np.flatnonzero(counts).tolist()}


@dataclass(frozen=True, eq=False)
class Attributes:
    """Which rows have which (key, value) pair, both ways round.

    Pairs are numbered by key, then value. A row has a pair once, however often it names it.
    """

    keys: Sequence[str]  # (K,) sorted
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
        """The pairs of a column of lists of (key, value), (n,); a null anywhere is no pair."""
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
        """Which rows have one of these values for a key, (n,); unknown ones are nothing."""
        chosen = np.zeros(len(self.row_starts) - 1, np.bool_)
        for value in wanted:
            pair = self._pair(key, value)
            if pair is not None:
                chosen[self.rows_with(pair)] = True
        return chosen

    def rows_with(self, pair: int) -> NDArray[np.int32]:
        """The rows that have a pair, by its number, ascending."""
        return self.rows_by_pair[self.pair_starts[pair] : self.pair_starts[pair + 1]]

    def counts(self, rows: Rows) -> tuple[Rows, Rows]:
        """How many of the rows (R,) have each pair, (P,), and each key, (K,)."""
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
class Recipe:
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
        """The recipe for a catalog and all that is added to it.

        Args:
            catalog: N rows with `rating` and `review_count`.
            group_attribute: attribute that variants of one product share, or None.

        Returns:
            The recipe; a mean of 0 where nothing is rated, a prior of 1 where nothing is reviewed.
        """
        mean = catalog["rating"].cast(pl.Float64).mean()
        reviews = catalog["review_count"].filter(catalog["review_count"] > 0).median()
        number = float(reviews) if isinstance(reviews, int | float) else 1.0
        return cls(group_attribute, float(mean) if isinstance(mean, float) else 0.0, number)


@dataclass(frozen=True, eq=False)
class Segment:
    """Consecutive rows. Row numbers in here count from the segment's own first row."""

    frame: pl.DataFrame  # the columns of `CATALOG_COLUMNS`, in one chunk
    row_of: Mapping[str, int]  # product id -> its last row here
    category: Words
    brand: Words
    price: NDArray[np.float64]  # (n,) NaN is unknown
    rating: NDArray[np.float64]  # (n,) NaN is unknown
    in_stock: NDArray[np.int8]  # (n,) 1, 0, or -1 for unknown
    attributes: Attributes
    groups: Rows  # (n,)
    codes: Sequence[Mapping[str, Sequence[int]]]  # of each kind of code, rows by its spelling
    popularity_keys: NDArray[np.float64]  # (3, n) the most important first, the best least
    by_popularity: Rows  # (n,)

    @classmethod
    def of(cls, frame: pl.DataFrame, recipe: Recipe) -> Self:
        """A segment of some products.

        Args:
            frame: the columns of `CATALOG_COLUMNS` in one chunk, n rows; of an id that is there
                several times, `row_of` knows the last.
            recipe: the table's, so that its segments can be compared.
        """
        ids = frame["product_id"].to_list()
        attributes = Attributes.of(frame["attributes"])
        keys = _popularity_keys(frame, recipe)
        return cls(
            frame=frame,
            row_of={product_id: row for row, product_id in enumerate(ids)},
            category=Words.of(frame["category"]),
            brand=Words.of(frame["brand"]),
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
        """Which rows satisfy each condition there is, (n,) each."""
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


def appended(
    segments: tuple[Segment, ...], upserts: pl.DataFrame, recipe: Recipe
) -> tuple[Segment, ...]:
    """One segment more, into which those before it that are not longer are merged.

    Args:
        segments: of the table so far, the catalog's own first. That one stays as it is: to merge
            it would cost as much as to read it.
        upserts: the columns of `CATALOG_COLUMNS`, U rows.
        recipe: the table's.

    Returns:
        Segments with U rows more, in order; the same ones where U is 0.
    """
    if not upserts.height:
        return segments
    kept, tail, height = list(segments), [upserts], upserts.height
    while len(kept) > 1 and len(kept[-1]) <= height:
        tail.append(kept.pop().frame)
        height += tail[-1].height
    return (*kept, Segment.of(pl.concat(reversed(tail), rechunk=True), recipe))


def spellings(text: str) -> tuple[str, str, str]:
    """How codes are kept that a text may mean.

    Args:
        text: what was typed.

    Returns:
        The text as a product id, as SKU or MPN, and as an article number (EAN, GTIN, UPC, ISBN)
        would be kept: one for each of `Segment.codes`.
    """
    return normal(text), normal(text), _article_number(text)


def normal(text: str) -> str:
    """A text as codes, brands and titles are compared: NFKC, case folded, spaces made one."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


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


def _groups(frame: pl.DataFrame, group_attribute: str | None) -> Rows:
    """A number for each row's variant group: a hash, so that no segment need know of the others.

    At 64 bits, two of a million groups coincide with a chance of 3e-8.
    """
    shared = _first_values(frame["attributes"], group_attribute)
    brands = {brand: normal(brand or "") for brand in frame["brand"].unique()}
    keys = (
        repr((value is None, normal(title) if value is None else value, brands[brand]))
        for value, title, brand in zip(shared, frame["title"], frame["brand"], strict=True)
    )
    digests = b"".join(blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, np.int64)


def _first_values(attributes: pl.Series, key: str | None) -> list[str | None]:
    """Each row's first value for a key that is not blank, normalized; None where it has none."""
    if key is None:
        return [None] * len(attributes)
    named = attributes.alias("pair").to_frame().with_row_index("row").explode("pair")
    named = named.unnest("pair").drop_nulls().filter(pl.col("key") == key)
    values: list[str | None] = [None] * len(attributes)
    for row, value in zip(named["row"], named["value"], strict=True):
        values[row] = values[row] or normal(value) or None
    return values


def _codes(ids: Sequence[str], attributes: Attributes) -> tuple[dict[str, list[int]], ...]:
    """Rows by each kind of code, in the order of `spellings`."""
    by_id: dict[str, list[int]] = {}
    for row, product_id in enumerate(ids):
        if (code := normal(product_id)) != product_id:  # else `row_of` knows it
            by_id.setdefault(code, []).append(row)
    plain = _rows_by_code(attributes, _PLAIN_KEYS, normal)
    return by_id, plain, _rows_by_code(attributes, _NUMBER_KEYS, _article_number)


def _rows_by_code(
    attributes: Attributes, keys: frozenset[str], spelling: Callable[[str], str]
) -> dict[str, list[int]]:
    rows_of: dict[str, list[int]] = {}
    spans = (span for key, span in attributes.span_of.items() if normal(key) in keys)
    for pair in (pair for span in spans for pair in range(*span)):
        if code := spelling(attributes.values[pair]):
            rows_of.setdefault(code, []).extend(attributes.rows_with(pair).tolist())
    return rows_of


def _article_number(text: str) -> str:
    number = _SEPARATORS.sub("", normal(text))
    is_gtin = number.isascii() and number.isdecimal() and 8 <= len(number) <= _GTIN_DIGITS
    return number.zfill(_GTIN_DIGITS) if is_gtin else number


def _popularity_keys(frame: pl.DataFrame, recipe: Recipe) -> NDArray[np.float64]:
    """In stock, sales and believed rating, negative so that the best sort first, (3, n)."""
    in_stock = _numbers(frame["in_stock"], unknown=0.5)
    sales = _numbers(frame["sales"], unknown=0)
    rating = _numbers(frame["rating"], unknown=recipe.mean_rating)
    # A rating without a count is one person's at least.
    reviews = np.maximum(_numbers(frame["review_count"], unknown=1), 0)
    believed = reviews / (reviews + recipe.prior_reviews)
    mean = recipe.mean_rating + believed * (rating - recipe.mean_rating)  # exact for the unrated
    return -np.stack([in_stock, sales, mean])
