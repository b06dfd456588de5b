"""What the shoppers of one region ask, with the grade of each of the region's products.

Grades follow the canonical facets, never the words: 3 where everything stated is true, 2 where the
type is right and at least half of the rest, 1 where only the type is.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from simulations.datasets.source import Query
from simulations.world.products import dice_of
from simulations.world.profiles import Lexicon
from simulations.world.taxonomy import KINDS, Wish

# Facets stated beside the type, and how many different wishes of that form a region has at most.
_FORMS: tuple[tuple[tuple[str, ...], int], ...] = (
    (("colour",), 90),
    (("colour", "material"), 75),
    (("pattern",), 35),
    (("colour", "pattern"), 45),
    (("material",), 30),
    (("gender",), 24),
    (("gender", "colour"), 16),
)
_UNSPOKEN = ("plain", "unisex")  # nobody asks for these
_ZIPF = 0.8  # exponent of popularity over rank


@dataclass(frozen=True)
class Shelf:
    """A region's rows of `Source.products` and their facets.

    Attributes:
        first: number of the region's first row.
        facets: one array of canonical values a facet, (R,) each, None where it has none.
    """

    first: int
    facets: dict[str, NDArray[np.object_]]


def shelf_of(products: pl.DataFrame, first: int) -> Shelf:
    """The facets of a region's products, as `region_products` made them."""
    columns = {"kind": "category", **{k: k for k in ("colour", "material", "pattern", "gender")}}
    return Shelf(first, {k: products[v].to_numpy().astype(object) for k, v in columns.items()})


def region_queries(region: str, lexicon: Lexicon, shelf: Shelf, *, seed: int) -> list[Query]:
    """Everything asked in a region that at least one of its products answers fully.

    Args:
        region: name, set on every query.
        lexicon: the shoppers' words.
        shelf: the region's products.
        seed: of the world.

    Returns:
        Queries of different texts, most popular first.
    """
    dice = dice_of(seed, region, "queries")
    asked: dict[str, Wish] = {}
    for text, wish in _asked(lexicon, shelf, dice):
        asked.setdefault(text, wish)
    graded = [(text, wish, grades(wish, shelf)) for text, wish in asked.items()]
    answered = [(text, wish, grade) for text, wish, grade in graded if (grade == 3).any()]
    # The shorter a query, the more likely it is a popular one.
    order = np.argsort([dice.exponential(1.0) + 0.5 * len(w.stated()) for _, w, _ in answered])
    return [
        _query(*answered[at], region=region, first=shelf.first, popularity=(rank + 1) ** -_ZIPF)
        for rank, at in enumerate(order.tolist())
    ]


def _query(
    text: str, wish: Wish, grade: NDArray[np.int8], *, region: str, first: int, popularity: float
) -> Query:
    rows = np.flatnonzero(grade)
    return Query(text, rows.astype(np.int64) + first, grade[rows], region, popularity)


def _asked(lexicon: Lexicon, shelf: Shelf, dice: np.random.Generator) -> Iterator[tuple[str, Wish]]:
    """Texts and what they mean; a text may come twice, the first meaning counts."""
    yield from ((text, Wish((kind,))) for kind in KINDS for text in lexicon.kind_queries(kind))
    yield from lexicon.slang.items()
    for facets, most in _FORMS:
        for wish in _some(_wishes(shelf, facets), most, dice):
            yield lexicon.query(wish, dice), wish


def _some(wishes: Iterable[Wish], most: int, dice: np.random.Generator) -> list[Wish]:
    found = list(wishes)
    return [found[at] for at in dice.permutation(len(found))[:most].tolist()]


def _wishes(shelf: Shelf, facets: tuple[str, ...]) -> list[Wish]:
    """Every combination of these facets that a product on the shelf has, in a fixed order."""
    values = zip(*(shelf.facets[name] for name in ("kind", *facets)), strict=True)
    combinations = sorted({row for row in values if all(v and v not in _UNSPOKEN for v in row)})
    return [Wish((row[0],), **dict(zip(facets, row[1:], strict=True))) for row in combinations]


def grades(wish: Wish, shelf: Shelf) -> NDArray[np.int8]:
    """The grade of every product on the shelf, (R,), 0 where not even the type is right."""
    right = np.isin(shelf.facets["kind"].astype(str), wish.kinds)
    stated = wish.stated()
    hits = sum((shelf.facets[key] == value for key, value in stated.items()), np.zeros(len(right)))
    grade = np.where(hits == len(stated), 3, np.where(2 * hits >= max(len(stated), 1), 2, 1))
    return np.where(right, grade, 0).astype(np.int8)
