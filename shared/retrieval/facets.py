"""What the found products can be narrowed down by, with counts.

Segments number their words each in its own way, so each counts its own rows by those numbers, and
only the values that some found row has become text and are added up. Attribute keys differ from
catalog to catalog, so what was found decides which are counted unasked: frequent ones, with no
more values than a person would read.
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Final

import numpy as np

from shared.retrieval.filters import ATTRIBUTE_PREFIX, MAX_VALUE_CHARS, Filters
from shared.retrieval.segments import Rows, Segment

MAX_ATTRIBUTE_FACETS: Final = 10  # keys that are counted without being asked for ...
MAX_ATTRIBUTE_VALUES: Final = 200  # ... none with more distinct values than a person would read
_MIN_SHARE_INVERSE: Final = 10  # ... and only keys that one in so many of the rows has
_STOCK: Final = ("false", "true")


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
class Found:
    """The found rows of one segment, and how many of them have what.

    Attributes:
        segment: where they are.
        rows: as numbered in there, (R,), none twice.
    """

    segment: Segment
    rows: Rows

    def counts(self, name: str) -> dict[str, int]:
        """How many of the rows have each value of a facet that is no range.

        Args:
            name: "category", "brand", "in_stock" or "attributes.KEY"; any other counts nothing.

        Returns:
            Value -> number of rows; values without a row are left out.
        """
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
        """How many values of an attribute these rows have; cheaper than to list them.

        Args:
            name: "attributes.KEY"; any other has none.
        """
        return int(np.count_nonzero(self._pair_counts(name)))

    @cached_property
    def key_counts(self) -> dict[str, int]:
        """Attribute key -> number of rows that have it; keys without a row are left out."""
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


def count_facets(
    found: Sequence[Found], filters: Filters, *, names: Sequence[str] | None, max_values: int
) -> list[Facet]:
    """The facets of all found rows.

    Args:
        found: the found rows by segment, no row twice.
        filters: what was asked; its values are listed even where no found row has them.
        names: facets to count; None for all that suit these rows, in the order category, brand,
            price, rating, in_stock, then attribute keys by how many of the rows have them.
        max_values: listed in one facet, beside those in `filters`.

    Returns:
        Facets in that order; one without any value is left out, and so are values too long to be
        asked for.
    """
    if names is None:
        keys = _attribute_keys(found, filters)
        names = ["category", "brand", "price", "rating", "in_stock"]
        names += [ATTRIBUTE_PREFIX + key for key in keys]
    facets = [_facet(name, found, filters, max_values) for name in names]
    return [facet for facet in facets if facet.values or facet.minimum is not None]


def _attribute_keys(found: Sequence[Found], filters: Filters) -> list[str]:
    """Keys worth a facet, most frequent first, ties by key; those asked for are among them."""
    counts: Counter[str] = Counter()
    for part in found:
        counts.update(part.key_counts)
    num_rows = sum(len(part.rows) for part in found)
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


def _is_readable(key: str, found: Sequence[Found]) -> bool:
    """Whether a key has neither one value only nor more than a person would read."""
    name = ATTRIBUTE_PREFIX + key
    if any(part.num_values(name) > MAX_ATTRIBUTE_VALUES for part in found):
        return False  # before anything is listed: every product may have its own
    values = {value for part in found for value in part.counts(name)}
    return 2 <= len(values) <= MAX_ATTRIBUTE_VALUES


def _facet(name: str, found: Sequence[Found], filters: Filters, max_values: int) -> Facet:
    if name in ("price", "rating"):
        return _range_facet(name, found)
    counts: Counter[str] = Counter()
    for part in found:
        counts.update(part.counts(name))
    selected = _selected(name, filters)
    listed = ((value, count) for value, count in counts.items() if len(value) <= MAX_VALUE_CHARS)
    most = heapq.nsmallest(max_values, listed, key=_frequent_first)
    shown = {**{value: counts[value] for value in selected}, **dict(most)}
    ordered = sorted(shown.items(), key=_frequent_first)
    return Facet(
        name, tuple(FacetValue(value, count, value in selected) for value, count in ordered)
    )


def _frequent_first(counted: tuple[str, int]) -> tuple[int, str]:
    value, count = counted
    return -count, value


def _range_facet(name: str, found: Sequence[Found]) -> Facet:
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
