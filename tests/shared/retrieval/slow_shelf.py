"""Shelves of few products, and a plain list of products that is looked through one by one."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.retrieval.filters import Filters, Range, Sort, active, without
from shared.retrieval.index import build_index
from shared.retrieval.lexical import LexicalIndex, documents_of
from shared.retrieval.products import ProductTable
from shared.retrieval.relevance import (
    DENSE_ALONE,
    DENSE_TOGETHER,
    LEXICAL_ALONE,
    LEXICAL_TOGETHER,
)
from shared.retrieval.rules import Rules
from shared.retrieval.shelf import Ask, Found, Shelf
from shared.retrieval.vectors import VectorIndex
from shared.schema import CATALOG_COLUMNS

Product = dict[str, Any]
DIM, WEIGHT, GROUPED_BY = 8, 0.6, "Model"
WORDS = ("red", "blue", "boots", "shoes", "hat")
IDS = tuple(f"A{number}" for number in range(8))
RULES = """
synonyms = [["hat", "cap", "shoes"]]
[[pin]]
query = "red"
products = ["A3", "A5", "nowhere", "A1", "A2"]
[[block]]
products = ["A5"]
[[block]]
query = "Blue!"
products = ["A2"]
"""


def product(product_id: str, title: str = "thing", **cells: Any) -> Product:
    """A product of which nothing is known but what is said; attributes as pairs."""
    pairs = [{"key": key, "value": value} for key, value in cells.pop("attributes", ())]
    bare = {**dict.fromkeys(CATALOG_COLUMNS), "product_id": product_id, "title": title}
    return {**bare, "attributes": pairs or None, **cells}


def frame(products: Sequence[Product]) -> pl.DataFrame:
    return pl.DataFrame(list(products), schema=CATALOG_COLUMNS)


def vector_of(text: str) -> NDArray[np.float32]:
    """A unit vector that depends on the text and on nothing else, (D,)."""
    numbers = np.frombuffer(hashlib.sha256(text.encode()).digest()[:DIM], np.uint8) - 127.5
    return (numbers / np.linalg.norm(numbers)).astype(np.float32)


def vectors_of(products: Sequence[Product]) -> NDArray[np.float32]:
    return np.array([vector_of(one["title"]) for one in products], np.float32).reshape(-1, DIM)


def shelf_of(products: Sequence[Product], rules: Rules | None = None, **changes: Any) -> Shelf:
    titles = [one["title"] for one in products]
    shelf = Shelf(
        index="1-cccccccccccc",
        release=1,
        encoder_digest="e" * 64,
        products=ProductTable.build(frame(products), group_attribute=GROUPED_BY),
        vectors=VectorIndex.over(build_index(vectors_of(products))),
        lexical=LexicalIndex.build(documents_of(frame(products), titles)),
        dense_weight=WEIGHT,
        rules=rules or Rules.empty(),
    )
    return replace(shelf, **changes)


def upsert(shelf: Shelf, *products: Product, deleted: Sequence[str] = ()) -> Shelf:
    titles = [one["title"] for one in products]
    return shelf.changed(frame(products), titles, vectors_of(products), deleted)


def ids_of(shelf: Shelf, rows: NDArray[np.int64] | Sequence[int]) -> list[str]:
    return [shelf.products.product(int(row))["product_id"] for row in rows]


def found_ids(shelf: Shelf, ask: Ask) -> list[str]:
    return ids_of(shelf, shelf.find(ask).rows)


def hybrid(text: str, **changes: Any) -> Ask:
    return Ask(text=text, vector=vector_of(text), **changes)


def same(one: Found, other: Found) -> bool:
    """Whether two answers agree in every bit."""
    arrays = [(one.rows, other.rows), (one.scores, other.scores)]
    arrays += [(one.candidates, other.candidates)]
    if one.evidence is not None and other.evidence is not None:
        arrays += list(zip(one.evidence, other.evidence, strict=True))
    return (
        all(left.tobytes() == right.tobytes() for left, right in arrays)
        and (one.evidence is None) == (other.evidence is None)
        and (one.variants, one.pinned) == (other.variants, other.pinned)
        and (one.fallback, one.relaxed) == (other.fallback, other.relaxed)
    )


# -- a slow shelf ----------------------------------------------------------------------------------


@dataclass
class Expected:
    """What `Found` says, in plain lists."""

    rows: list[int]
    scores: list[float]
    variants: list[tuple[int, ...]]
    candidates: list[int]
    pinned: set[int] = field(default_factory=set)
    fallback: str = ""
    relaxed: tuple[str, ...] = ()


@dataclass
class SlowShelf:
    """A list of all rows there ever were; only BM25's numbers are taken from the real index."""

    items: list[Product]
    alive: list[bool]
    rules: Rules
    mean_rating: float

    @classmethod
    def of(cls, products: Sequence[Product], rules: Rules) -> "SlowShelf":
        ratings = [one["rating"] for one in products if one["rating"] is not None]
        mean = sum(ratings) / len(ratings) if ratings else 0.0
        return cls(list(products), [True] * len(products), rules, mean)

    def change(self, upserts: Sequence[Product], deleted: Sequence[str]) -> None:
        gone = {*deleted, *(one["product_id"] for one in upserts)}
        kept = zip(self.alive, self.items, strict=True)
        self.alive = [alive and item["product_id"] not in gone for alive, item in kept]
        self.items += upserts
        self.alive += [True] * len(upserts)

    def find(self, shelf: Shelf, ask: Ask) -> Expected:
        found = self.find_once(shelf, ask)
        if found.rows:
            return found
        names = active(ask.filters)
        order = sorted(names, key=lambda name: (DROPPED.index(name.split(".")[0]), name))
        for number in range(1, len(order) + 1):
            for dropped in combinations(order, number):
                found = self.find_once(shelf, replace(ask, filters=left_out(ask.filters, dropped)))
                if found.rows:
                    found.fallback = "relaxed"
                    found.relaxed = tuple(name for name in names if name in dropped)
                    return found
        shown = self.shown(ask)
        popular = self.popular(shown, ask.sort)
        popular.fallback, popular.relaxed = "popular", tuple(names)
        return popular

    def find_once(self, shelf: Shelf, ask: Ask) -> Expected:
        shown = self.shown(ask)
        eligible = [row for row in shown if satisfies(self.items[row], ask.filters)]
        text = ask.text.strip()
        if not text and ask.vector is None:
            return self.popular(eligible, ask.sort)
        bm25 = self.bm25(shelf, ask, eligible)
        dense_only = set(eligible) if self.asks_dense(ask) else set()
        ranked = self.fused(ask, sorted(dense_only | bm25.keys()), bm25)
        ranked = [one for one in ranked if self.answers(shelf, ask, one[0])]
        first = self.first(ask, eligible)
        best = max((score for _, score in ranked), default=0.0)
        ranked = [(row, best) for row in first] + [one for one in ranked if one[0] not in first]
        found = self.grouped(ranked, ask.sort)
        found.pinned = set(first) if ask.sort == "relevance" else set()
        return found

    def answers(self, shelf: Shelf, ask: Ask, row: int) -> bool:
        """Whether a row is near enough to the query, measured by the best that may be shown."""
        shown = self.shown(ask)
        bm25 = self.bm25(shelf, ask, shown)
        most = max(bm25.values(), default=0.0)
        if row in bm25 and bm25[row] >= LEXICAL_ALONE * most:
            return True
        some = row in bm25 and bm25[row] >= LEXICAL_TOGETHER * most
        if not self.asks_dense(ask):
            return some
        if self.codes(ask) and re.search("[0-9]", ask.text):
            return False
        cosine, best = self.cosine(ask, row), max(self.cosine(ask, one) for one in shown)
        if some and cosine >= DENSE_TOGETHER * best:
            return True
        floor = shelf.dense_floor if ask.text.strip() else -1.0
        return best >= floor and cosine >= DENSE_ALONE * best

    def shown(self, ask: Ask) -> list[int]:
        hidden = {*ask.hidden, *self.rules.blocked(ask.text)}
        rows = enumerate(zip(self.items, self.alive, strict=True))
        return [row for row, (item, alive) in rows if alive and item["product_id"] not in hidden]

    def asks_dense(self, ask: Ask) -> bool:
        return ask.vector is not None and not (ask.ranker == "lexical" and ask.text.strip())

    def bm25(self, shelf: Shelf, ask: Ask, eligible: Sequence[int]) -> dict[int, float]:
        """Of the eligible rows that share a word with the query or its synonyms."""
        if ask.ranker == "dense" and ask.vector is not None:
            return {}
        synonyms = self.rules.synonyms_for(ask.text)
        rows, scores = shelf.lexical.search(ask.text, len(self.items), synonyms=synonyms)
        found = zip(rows.tolist(), scores.tolist(), strict=True)
        return {row: score for row, score in found if row in eligible}

    def cosine(self, ask: Ask, row: int) -> float:
        if ask.vector is None:
            return -1.0
        pairs = zip(ask.vector.tolist(), vector_of(self.items[row]["title"]).tolist(), strict=True)
        return float(np.float32(np.einsum("d,d->", *np.array(list(pairs)).T)))

    def fused(
        self, ask: Ask, rows: Sequence[int], bm25: Mapping[int, float]
    ) -> list[tuple[int, float]]:
        weight = {"dense": 1.0, "lexical": 0.0}.get(ask.ranker, WEIGHT)
        cosine = {row: self.cosine(ask, row) for row in rows}
        most, most_bm25 = max(cosine.values(), default=-1.0) + 1.0, max(bm25.values(), default=0.0)

        def score(row: int) -> float:
            meaning = (cosine[row] + 1.0) / most if most > 0 else 0.0
            words = bm25.get(row, 0.0) / most_bm25 if most_bm25 > 0 else 0.0
            return weight * meaning + (1.0 - weight) * words

        def key(row: int) -> tuple[float, ...]:
            if weight == 0:
                return (-bm25.get(row, 0.0), 0.0 if row in bm25 else -cosine[row], row)
            if weight == 1:
                return (-cosine[row], 0.0 if cosine[row] > -1 else -bm25.get(row, 0.0), row)
            return (-score(row), row)

        return [(row, float(np.float32(score(row)))) for row in sorted(rows, key=key)]

    def first(self, ask: Ask, eligible: Sequence[int]) -> list[int]:
        if ask.ranker != "hybrid" or not ask.text.strip():
            return []
        pins = self.rules.pinned(" ".join(ask.text.split()))
        found = [row for pin in pins for row in eligible if self.items[row]["product_id"] == pin]
        codes = [row for row in self.codes(ask) if row in eligible]
        return list(dict.fromkeys([*found, *codes]))

    def codes(self, ask: Ask) -> list[int]:
        """Rows alive that the text names by a code, blocked or not."""
        typed = " ".join(ask.text.split())
        if ask.ranker != "hybrid" or not typed:
            return []
        spellings = [
            lambda item: item["product_id"] == ask.text.strip(),
            lambda item: item["product_id"] == typed.lower(),
            lambda item: item["product_id"].lower() == typed.lower(),
            lambda item: ("SKU", typed.lower()) in {(k, v.lower()) for k, v in pairs_of(item)},
        ]
        alive = [row for row in range(len(self.items)) if self.alive[row]]
        found = [row for fits in spellings for row in alive if fits(self.items[row])]
        return list(dict.fromkeys(found))

    def popular(self, rows: Sequence[int], sort: Sort) -> Expected:
        def key(row: int) -> tuple[float, ...]:
            item = self.items[row]
            stock = {True: 1.0, None: 0.5, False: 0.0}[item["in_stock"]]
            rating = self.mean_rating if item["rating"] is None else item["rating"]
            believed = self.mean_rating + 0.5 * (rating - self.mean_rating)
            return (-stock, -(item["sales"] or 0), -believed, row)

        return self.grouped([(row, 0.0) for row in sorted(rows, key=key)], sort)

    def grouped(self, ranked: Sequence[tuple[int, float]], sort: Sort) -> Expected:
        groups: dict[tuple[Any, ...], list[int]] = {}
        for row, _ in ranked:
            groups.setdefault(variant_key(self.items[row]), []).append(row)
        kept = [rows[0] for rows in groups.values()]
        if sort != "relevance":
            name, sign = {"price_asc": ("price", 1), "price_desc": ("price", -1)}.get(
                sort, ("rating", -1)
            )
            cells = {row: self.items[row][name] for row in kept}
            kept.sort(key=lambda row: (cells[row] is None, sign * (cells[row] or 0)))
        variants = {rows[0]: tuple(rows[1:]) for rows in groups.values()}
        score_of = dict(ranked)
        return Expected(
            rows=kept,
            scores=[score_of[row] for row in kept],
            variants=[variants[row] for row in kept],
            candidates=[row for row, _ in ranked],
        )


DROPPED = ("attributes", "price", "rating", "brand", "in_stock", "category")


def left_out(filters: Filters, names: Sequence[str]) -> Filters:
    for name in names:
        filters = without(filters, name)
    return filters


def pairs_of(item: Product) -> set[tuple[str, str]]:
    return {(pair["key"], pair["value"]) for pair in item["attributes"] or ()}


def variant_key(item: Product) -> tuple[Any, ...]:
    models = [pair["value"] for pair in item["attributes"] or () if pair["key"] == GROUPED_BY]
    named = ("model", models[0]) if models else ("title", item["title"])
    return (*named, item["brand"] or "")


def satisfies(item: Product, filters: Filters) -> bool:
    """What `filters` says, word by word."""
    return all(
        [
            not filters.category or item["category"] in filters.category,
            not filters.brand or item["brand"] in filters.brand,
            filters.in_stock is None or item["in_stock"] is filters.in_stock,
            within(item["price"], filters.price),
            within(item["rating"], filters.rating),
            *(
                any((key, value) in pairs_of(item) for value in values)
                for key, values in filters.attributes.items()
            ),
        ]
    )


def within(number: float | None, bounds: Range) -> bool:
    if not bounds.bounded:
        return True
    if number is None:
        return False
    return (bounds.ge is None or number >= bounds.ge) and (bounds.le is None or number <= bounds.le)


def check(shelf: Shelf, slow: SlowShelf, ask: Ask) -> Found:
    """One answer of the shelf, held against the slow one."""
    found, expected = shelf.find(ask), slow.find(shelf, ask)
    assert found.rows.tolist() == expected.rows
    assert found.scores.tolist() == expected.scores
    assert list(found.variants) == expected.variants
    assert found.candidates.tolist() == expected.candidates
    assert set(found.pinned) == expected.pinned
    assert (found.fallback, found.relaxed) == (expected.fallback, expected.relaxed)
    return found


# -- what may come ---------------------------------------------------------------------------------


def maybe(values: Sequence[Any]) -> st.SearchStrategy[Any]:
    return st.none() | st.sampled_from(values)


TITLES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)
PAIRS = st.sampled_from(
    [("Colour", "red"), ("Colour", "blue"), ("Size", "9"), (GROUPED_BY, "m1"), ("SKU", "X-1")]
)
PRODUCTS = st.builds(
    product,
    st.sampled_from(IDS),
    TITLES,
    brand=maybe(["Acme", "Bell"]),
    category=maybe(["shoes", "hats"]),
    price=maybe([0.0, 1.5, 20.0]),
    rating=maybe([1.0, 4.0, 5.0]),
    sales=maybe([0, 7]),
    in_stock=maybe([True, False]),
    attributes=st.lists(PAIRS, max_size=3),
)
CATALOGS = st.lists(PRODUCTS, min_size=1, max_size=8, unique_by=lambda one: one["product_id"])
RANGES = st.sampled_from([Range(), Range(), Range(ge=1.0), Range(le=4.0), Range(ge=100.0)])
FILTERS = st.builds(
    Filters,
    category=st.sampled_from([(), (), ("shoes",), ("shoes", "hats"), ("coats",)]),
    brand=st.sampled_from([(), (), ("Acme",), ("nobody",)]),
    price=RANGES,
    rating=RANGES,
    in_stock=maybe([True, False]),
    attributes=st.dictionaries(
        st.sampled_from(["Colour", "Size"]), st.sampled_from([("red",), ("9", "blue")]), max_size=2
    ),
)
TEXTS = TITLES | st.sampled_from(
    ["", "  ", "A1", "a3", "nowhere", "x-1", " Red ", "blue", "cap", "!", "(red"]
)
RANKERS = ("hybrid", "dense", "lexical")
SORTS = ("relevance", "price_asc", "price_desc", "rating_desc")


@st.composite
def asks(draw: st.DrawFn) -> Ask:
    text, like = draw(TEXTS), draw(st.none() | TITLES)
    return Ask(
        text=text,
        vector=None if like is None else vector_of(like),
        filters=draw(st.just(Filters()) | FILTERS),
        sort=draw(st.sampled_from(SORTS)),
        ranker=draw(st.sampled_from(RANKERS)),
        hidden=draw(st.just(()) | st.just(("A1", "nowhere", "A4"))),
    )
