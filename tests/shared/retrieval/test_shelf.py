"""A shelf against a plain list of products, looked through one by one."""

import contextlib
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

import shared.retrieval.shelf
from shared.errors import RetrievalError
from shared.retrieval.filters import Filters, Range, Sort, active, without
from shared.retrieval.index import build_index
from shared.retrieval.lexical import LexicalIndex, documents_of
from shared.retrieval.products import ProductTable
from shared.retrieval.relevance import (
    DENSE_ALONE,
    DENSE_TOGETHER,
    LEXICAL_ALONE,
    LEXICAL_TOGETHER,
    Bar,
)
from shared.retrieval.rules import Rules, read_rules
from shared.retrieval.shelf import Ask, Found, Ranker, Shelf
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


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Rules:
    path = tmp_path_factory.mktemp("rules") / "rules.toml"
    path.write_text(RULES)
    return read_rules(path)


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


@settings(max_examples=150)
@given(products=CATALOGS, questions=st.lists(asks(), min_size=1, max_size=6))
def test_every_answer_is_that_of_a_search_through_a_list(
    rules: Rules, products: list[Product], questions: list[Ask]
) -> None:
    shelf, slow = shelf_of(products, rules), SlowShelf.of(products, rules)
    for ask in questions:
        check(shelf, slow, ask)


@settings(max_examples=100)
@given(products=CATALOGS, ask=asks())
def test_facets_count_as_if_their_own_filter_were_off(
    rules: Rules, products: list[Product], ask: Ask
) -> None:
    shelf, slow = shelf_of(products, rules), SlowShelf.of(products, rules)
    check_facets(shelf, slow, ask)


def check_facets(shelf: Shelf, slow: SlowShelf, ask: Ask) -> None:
    found = shelf.find(ask)
    kept = left_out(ask.filters, found.relaxed)
    facets = {facet.name: facet for facet in shelf.facets(ask, found)}
    assert len(facets) == len(shelf.facets(ask, found))
    plain = [name for name in facets if not name.startswith("attributes.")]
    assert plain == [name for name in PLAIN_FACETS if name in plain]
    for name in {*PLAIN_FACETS, *active(kept), *facets}:
        rows = counted_rows(shelf, slow, replace(ask, filters=kept), found, name)
        cells = [cell for row in rows for cell in cells_of(slow.items[row], name)]
        facet, selected = facets.get(name), selected_values(kept, name)
        if name in ("price", "rating"):
            bounds = None if facet is None else (facet.minimum, facet.maximum)
            assert bounds == ((min(cells), max(cells)) if cells else None)
        elif facet is not None:
            counts = {value.value: value.count for value in facet.values}
            assert counts == {**dict.fromkeys(selected, 0), **Counter(cells)}
            assert {value.value for value in facet.values if value.selected} == set(selected)
        else:
            assert not cells and not selected


PLAIN_FACETS = ("category", "brand", "price", "rating", "in_stock")


def counted_rows(shelf: Shelf, slow: SlowShelf, ask: Ask, found: Found, name: str) -> Sequence[int]:
    """The candidates of the same search without this filter."""
    if name not in active(ask.filters):
        return found.candidates.tolist()
    wider = replace(ask, filters=without(ask.filters, name))
    return slow.find_once(shelf, wider).candidates


def cells_of(item: Product, name: str) -> list[Any]:
    if name.startswith("attributes."):
        return [value for key, value in pairs_of(item) if name == f"attributes.{key}"]
    cell = item[name]
    return [] if cell is None else [str(cell).lower() if name == "in_stock" else cell]


def selected_values(filters: Filters, name: str) -> tuple[str, ...]:
    if name == "in_stock":
        return () if filters.in_stock is None else (str(filters.in_stock).lower(),)
    if name.startswith("attributes."):
        return filters.attributes.get(name.removeprefix("attributes."), ())
    return getattr(filters, name) if name in ("category", "brand") else ()


class ChangingShelf(RuleBasedStateMachine):
    """Changes of all kinds; whatever was answered before is answered alike afterwards."""

    shelf: Shelf
    slow: SlowShelf
    former: list[tuple[Shelf, Ask, Found]]

    @initialize(products=CATALOGS)
    def fill(self, products: list[Product]) -> None:
        self.shelf, self.slow = shelf_of(products), SlowShelf.of(products, Rules.empty())
        self.former = []

    @rule(products=st.lists(PRODUCTS, max_size=3, unique_by=lambda one: one["product_id"]))
    def upsert(self, products: list[Product]) -> None:
        self.shelf = upsert(self.shelf, *products)
        self.slow.change(products, [])

    @rule(ids=st.lists(st.sampled_from([*IDS, "nowhere"]), max_size=3, unique=True))
    def delete(self, ids: list[str]) -> None:
        self.shelf = upsert(self.shelf, deleted=ids)
        self.slow.change([], ids)

    @rule(product=PRODUCTS, others=st.lists(st.sampled_from(IDS), max_size=2, unique=True))
    def both(self, product: Product, others: list[str]) -> None:
        self.shelf = upsert(self.shelf, product, deleted=others)
        self.slow.change([product], others)

    @rule(ask=asks())
    def search(self, ask: Ask) -> None:
        self.former.append((self.shelf, ask, check(self.shelf, self.slow, ask)))

    @precondition(lambda self: any(self.slow.alive))
    @rule(ask=asks())
    def count(self, ask: Ask) -> None:
        check_facets(self.shelf, self.slow, ask)

    @invariant()
    def rows_agree(self) -> None:
        shelf = self.shelf
        assert shelf.products.num_rows == shelf.vectors.num_rows == len(self.slow.items)
        assert shelf.products.alive.tolist() == self.slow.alive
        assert shelf.lexical.num_products == sum(self.slow.alive)

    def teardown(self) -> None:
        for shelf, ask, found in getattr(self, "former", ()):
            assert same(shelf.find(ask), found)


TestChangingShelf = ChangingShelf.TestCase
TestChangingShelf.settings = settings(max_examples=40, stateful_step_count=20)


# -- one thing at a time ---------------------------------------------------------------------------

SHOP = [
    product("A0", "red boots", brand="Acme", price=20.0, category="shoes"),
    product("A1", "blue boots", brand="Acme", price=None, category="shoes"),
    product("A2", "red hat", brand="Bell", price=5.0, category="hats", in_stock=False),
    product("A3", "blue hat", brand="Bell", price=9.0, category="hats", sales=3),
    product("A4", "old shoes", brand=None, price=1.0, attributes=[("SKU", "X-77")]),
]


@pytest.fixture
def _all_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the order of candidates alone: none is too far from the query."""
    monkeypatch.setattr(
        shared.retrieval.shelf, "bar_of", lambda *_, dense_floor: Bar(-2.0, 0.0, -2.0, 0.0)
    )


def near_and_far() -> Shelf:
    """Cosines 1, 0.6, 0.4 and -1 with the query vector `EAST`; two have its word."""
    products = [
        product("near", "red boots", price=9.0, brand="Acme", category="shoes"),
        product("other", "blue sandals", price=7.0, brand="Acme", category="shoes"),
        product("far", "red car", price=5.0, brand="Bell", category="cars"),
        product("away", "green tea", price=1.0, brand="Cook", attributes=[("SKU", "T-1")]),
    ]
    cosines = np.array([1.0, 0.6, 0.4, -1.0])
    vectors = np.zeros((4, DIM), np.float32)
    vectors[:, 0], vectors[:, 1] = cosines, np.sqrt(1 - cosines**2)
    return shelf_of(products, vectors=VectorIndex.over(build_index(vectors)))


EAST = np.eye(1, DIM, dtype=np.float32)[0]


def test_what_is_far_from_a_query_is_no_answer_to_it() -> None:
    shelf = near_and_far()
    assert found_ids(shelf, Ask(vector=EAST)) == ["near", "other"]
    assert found_ids(shelf, Ask(vector=EAST, sort="price_asc")) == ["other", "near"]
    assert found_ids(shelf, Ask(text="boots", vector=EAST)) == ["near", "other"]
    # One of two words is not enough by itself, but together with some nearness it is.
    assert found_ids(shelf, Ask(text="red boots", vector=EAST)) == ["near", "far", "other"]
    assert shelf.find(Ask(text="tea", vector=EAST)).candidates.tolist() == [0, 1, 3]


def test_a_query_about_nothing_that_is_here_finds_what_has_its_words() -> None:
    shelf = replace(near_and_far(), dense_floor=0.7)
    weak = (0.65 * EAST + np.eye(DIM, dtype=np.float32)[2] * np.sqrt(1 - 0.65**2)).astype("f4")
    assert found_ids(shelf, Ask(text="tea", vector=weak)) == ["away"]
    nothing = shelf.find(Ask(text="zzzzqq", vector=weak))
    assert (nothing.fallback, len(nothing.rows)) == ("popular", 4)
    assert found_ids(shelf, Ask(vector=weak)) == ["near", "other"]  # a photo has another scale


def test_a_code_finds_its_product_and_nothing_that_is_like_it() -> None:
    shelf = near_and_far()
    assert found_ids(shelf, Ask(text="T-1", vector=EAST)) == ["away"]
    assert found_ids(shelf, Ask(text="T-1", vector=EAST, ranker="dense")) == ["near", "other"]


def test_a_code_that_is_a_word_comes_first_and_what_is_like_it_follows() -> None:
    assert found_ids(near_and_far(), Ask(text="away", vector=EAST)) == ["away", "near", "other"]


def test_a_filter_is_dropped_rather_than_filled_with_something_else() -> None:
    shelf = near_and_far()
    found = shelf.find(Ask(text="boots", vector=EAST, filters=Filters(brand=("Cook",))))
    assert (found.relaxed, ids_of(shelf, found.rows)) == (("brand",), ["near", "other"])
    one = Ask(text="boots", vector=EAST, filters=Filters(brand=("Acme",)))
    brands = next(facet for facet in shelf.facets(one, shelf.find(one)) if facet.name == "brand")
    assert [(value.value, value.count) for value in brands.values] == [("Acme", 2)]


@pytest.mark.usefixtures("_all_answer")
def test_each_ranker_alone_is_that_ranker() -> None:
    shelf = shelf_of(SHOP)
    for text in ("red", "blue hat", "red red boots"):
        _, dense = shelf.vectors.search(vector_of(text)[None], 5)
        lexical, _ = shelf.lexical.search(text, 5)
        assert shelf.find(hybrid(text, ranker="dense")).rows.tolist() == dense[0].tolist()
        for ask in (hybrid(text, ranker="lexical"), Ask(text=text, ranker="lexical")):
            assert shelf.find(ask).rows.tolist() == lexical.tolist()
        weights = {"dense": 1.0, "lexical": 0.0}
        for name in ("dense", "lexical"):
            ends = replace(shelf, dense_weight=weights[name])
            alone = shelf.find(hybrid(text, ranker=name)).rows.tolist()
            assert ends.find(hybrid(text)).rows.tolist()[: len(alone)] == alone


@pytest.mark.usefixtures("_all_answer")
def test_a_ranker_gives_so_many_candidates_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = shelf_of(SHOP)
    monkeypatch.setattr(shared.retrieval.shelf, "DEPTH", 2)
    for text in ("red blue", "hat boots"):
        dense = shelf.vectors.search(vector_of(text)[None], 2)[1][0].tolist()
        lexical = shelf.lexical.search(text, 2)[0].tolist()
        assert set(shelf.find(hybrid(text)).candidates.tolist()) == {*dense, *lexical}
        assert shelf.find(hybrid(text, ranker="dense")).candidates.tolist() == dense


@pytest.mark.usefixtures("_all_answer")
def test_what_only_words_found_has_the_same_cosine_to_the_last_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    products = [product(f"c{n}", "red" if n >= 20 else "blue", brand=f"b{n}") for n in range(40)]
    numbers = np.random.default_rng(0).normal(size=(2, 384))
    query, vector = (numbers / np.linalg.norm(numbers, axis=1, keepdims=True)).astype(np.float32)
    shelf = shelf_of(products, vectors=VectorIndex.over(build_index(np.tile(vector, (40, 1)))))
    monkeypatch.setattr(shared.retrieval.shelf, "DEPTH", 7)
    found = shelf.find(Ask(text="red", vector=query))
    assert sorted(found.candidates.tolist()) == [*range(7), *range(20, 27)]
    assert found.evidence is not None
    assert len(set(found.evidence.dense.tolist())) == 1
    assert found.rows.tolist() == [*range(20, 27), *range(7)]


def test_evidence_says_what_each_ranker_said() -> None:
    shelf = shelf_of(SHOP)
    evidence = shelf.find(hybrid("red hat")).evidence
    assert evidence is not None
    words = dict(zip(*(part.tolist() for part in shelf.lexical.search("red hat", 5)), strict=True))
    scores, rows = shelf.vectors.search(vector_of("red hat")[None], 5)
    cosines = dict(zip(rows[0].tolist(), scores[0].tolist(), strict=True))
    for row, dense, lexical in zip(
        evidence.rows.tolist(), evidence.dense.tolist(), evidence.lexical.tolist(), strict=True
    ):
        assert (dense, lexical) == (cosines[row], words.get(row, 0.0))
    assert shelf.find(Ask()).evidence is None


def test_pins_come_first_then_codes_and_neither_lets_a_filter_through(rules: Rules) -> None:
    shelf = shelf_of([*SHOP, product("A5", "red", price=3.0)], rules)
    found = shelf.find(hybrid("RED"))
    assert ids_of(shelf, found.rows[:3]) == ["A3", "A1", "A2"]  # A5 is blocked
    assert ids_of(shelf, sorted(found.pinned)) == ["A1", "A2", "A3"]
    assert found.scores[0] == found.scores[2] == found.scores.max()
    assert (np.diff(found.scores) <= 0).all()
    cheap = shelf.find(hybrid("red", filters=Filters(price=Range(le=9.0))))
    assert ids_of(shelf, cheap.rows[:2]) == ["A3", "A2"]
    assert "A1" not in ids_of(shelf, cheap.rows)
    assert found_ids(shelf, hybrid("x-77"))[0] == found_ids(shelf, hybrid(" a4 "))[0] == "A4"
    assert found_ids(shelf, Ask(text="x-77")) == ["A4"]  # though no text has that word
    assert shelf.find(hybrid("red", sort="price_asc")).pinned == frozenset()
    assert found_ids(shelf, hybrid("red", sort="price_asc"))[0] == "A4"


def test_a_pinned_product_that_was_deleted_is_not_there(rules: Rules) -> None:
    shelf = upsert(shelf_of(SHOP, rules), deleted=["A3"])
    assert found_ids(shelf, hybrid("red"))[:2] == ["A1", "A2"]
    assert "A3" not in found_ids(shelf, hybrid("red"))


def test_what_is_blocked_or_hidden_is_nowhere(rules: Rules) -> None:
    shelf = shelf_of([*SHOP, product("A5", "blue hat", sales=99)], rules)
    for text in ("blue", "  BLUE?", "A5", "A2", "", "nothing of it"):
        for vector in (None, vector_of("blue hat")):
            ask = Ask(text=text, vector=vector, hidden=("A0",))
            found = shelf.find(ask)
            ids = {*ids_of(shelf, found.rows), *ids_of(shelf, found.candidates)}
            assert not ids & {"A0", "A5"}
            assert ("A2" in ids) == ("blue" not in text.lower())
            counts = {f.name: f for f in shelf.facets(ask, found)}["category"].values
            assert {value.value: value.count for value in counts}.get("shoes", 0) <= 1


def test_synonyms_find_what_is_called_otherwise(rules: Rules) -> None:
    assert found_ids(shelf_of(SHOP, rules), Ask(text="cap")) == ["A4", "A2", "A3"]
    assert shelf_of(SHOP).find(Ask(text="cap")).fallback == "popular"


def test_no_variant_is_lost_and_none_is_shown_twice() -> None:
    pairs = [("Model", "m1"), ("Model", "m2")]
    shoes = [
        product(f"v{n}", "red boots", brand="Acme", price=float(n), attributes=[pairs[n % 2]])
        for n in range(6)
    ]
    shelf = shelf_of([*shoes, product("other", "red boots", brand="Bell")])
    for sort in SORTS:
        found = shelf.find(hybrid("red boots", sort=sort))
        assert len(found.rows) == 3
        shown = [*found.rows.tolist(), *(row for rows in found.variants for row in rows)]
        assert sorted(shown) == sorted(found.candidates.tolist()) == list(range(7))
    assert found.variants[0] == (2, 4)
    cheap = shelf.find(hybrid("red boots", filters=Filters(price=Range(ge=3.0))))
    assert sorted(len(rows) for rows in cheap.variants) == [0, 1]  # 3 and 5; 4


@pytest.mark.usefixtures("_all_answer")
@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("price_asc", ["A4", "A2", "A3", "A0", "A1"]),
        ("price_desc", ["A0", "A3", "A2", "A4", "A1"]),
        ("rating_desc", ["r5", "r1", "none"]),
    ],
)
def test_unknown_numbers_come_last_in_every_order(sort: Sort, expected: list[str]) -> None:
    rated = [product("none"), product("r1", "a", rating=1.0), product("r5", "b", rating=5.0)]
    shelf = shelf_of(rated if sort == "rating_desc" else SHOP)
    for ask in (Ask(sort=sort), Ask(vector=vector_of("x"), sort=sort)):
        assert found_ids(shelf, ask) == expected


def test_as_few_filters_as_possible_are_dropped() -> None:
    shelf = shelf_of(SHOP)
    three = Filters(category=("hats",), brand=("Acme",), price=Range(ge=100.0))
    found = shelf.find(hybrid("hat", filters=three))
    assert (found.fallback, found.relaxed) == ("relaxed", ("brand", "price"))
    assert set(ids_of(shelf, found.rows)) == {"A2", "A3"}
    # Either of two would do: that which a shopper minds less.
    two = Filters(category=("hats",), price=Range(ge=10.0))
    found = shelf.find(hybrid("hat", filters=two))
    assert (found.relaxed, set(ids_of(shelf, found.rows))) == (("price",), {"A2", "A3"})
    # Words alone: rows without them do not count, however well they fit the filters.
    found = shelf.find(Ask(text="boots", filters=Filters(category=("hats",), in_stock=False)))
    assert (found.relaxed, set(ids_of(shelf, found.rows))) == (
        ("category", "in_stock"),
        {"A0", "A1"},
    )
    found = shelf.find(Ask(filters=Filters(brand=("Bell",), rating=Range(ge=4.0))))
    assert (found.relaxed, ids_of(shelf, found.rows)) == (("rating",), ["A3", "A2"])


@pytest.mark.usefixtures("_all_answer")
def test_relaxed_filters_that_were_kept_still_count_as_filters() -> None:
    shelf = shelf_of(SHOP)
    ask = hybrid("hat", filters=Filters(category=("hats",), brand=("nobody",)))
    found = shelf.find(ask)
    assert found.relaxed == ("brand",)
    facets = {facet.name: facet.values for facet in shelf.facets(ask, found)}
    category = {value.value: (value.count, value.selected) for value in facets["category"]}
    assert category == {"shoes": (2, False), "hats": (2, True)}
    assert {value.value: (value.count, value.selected) for value in facets["brand"]} == {
        "Bell": (2, False)
    }


def test_where_nothing_is_found_it_is_what_is_popular_and_says_so() -> None:
    shelf = shelf_of(SHOP)
    found = shelf.find(Ask(text="xylophone", filters=Filters(brand=("Acme",))))
    assert (found.fallback, found.relaxed) == ("popular", ("brand",))
    assert found.rows.tolist() == shelf.find(Ask()).rows.tolist() == [3, 0, 1, 4, 2]
    assert shelf.find(Ask()).fallback == ""
    assert not found.scores.any()
    for facet in shelf.facets(Ask(text="xylophone", filters=Filters(brand=("Acme",))), found):
        assert not any(value.selected for value in facet.values)


def test_a_shelf_of_nothing_answers_with_nothing() -> None:
    shelf = upsert(shelf_of(SHOP), deleted=[one["product_id"] for one in SHOP])
    for ask in (Ask(), hybrid("red"), Ask(text="red"), Ask(filters=Filters(brand=("Acme",)))):
        found = shelf.find(ask)
        assert (len(found.rows), found.fallback) == (0, "popular")
        assert all(not value.count for f in shelf.facets(ask, found) for value in f.values)


def test_whoever_measures_is_told_what_is_worked_on() -> None:
    told: list[str] = []

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[None]:
        told.append(name)
        yield

    shelf = shelf_of(SHOP)
    cases: dict[Ranker, list[str]] = {
        "hybrid": ["dense", "lexical", "fuse"],
        "dense": ["dense", "fuse"],
        "lexical": ["lexical", "fuse"],
    }
    for ranker, stages in cases.items():
        shelf.find(hybrid("red", ranker=ranker), stage=stage)
        assert told == stages
        told.clear()


# -- changes ---------------------------------------------------------------------------------------

Kind = Literal["new", "replaced", "deleted", "unknown", "returned"]


@pytest.mark.parametrize(
    ("change", "expected", "num_changes"),
    [
        ("new", {"A0", "A1", "A2", "A3", "A4", "A9"}, 1),
        ("replaced", {"A0", "A1", "A2", "A3", "A4"}, 1),
        ("deleted", {"A0", "A1", "A3", "A4"}, 1),
        ("unknown", {"A0", "A1", "A2", "A3", "A4"}, 0),
        ("returned", {"A0", "A1", "A2", "A3", "A4"}, 2),
    ],
)
def test_a_change_is_found_at_once_and_the_former_shelf_stays(
    change: Kind, expected: set[str], num_changes: int
) -> None:
    former = shelf_of(SHOP)
    questions = [
        *(hybrid(text, ranker=ranker) for text in ("scarf", "red hat") for ranker in RANKERS),
        Ask(text="A2"),
        Ask(sort="price_asc"),
        Ask(vector=vector_of("green scarf"), filters=Filters(brand=("New",))),
    ]
    before = [former.find(ask) for ask in questions]
    scarf = {"title": "green scarf", "brand": "New", "price": 0.5}
    later = {
        "new": lambda: upsert(former, product("A9", **scarf)),
        "replaced": lambda: upsert(former, product("A2", **scarf)),
        "deleted": lambda: upsert(former, deleted=["A2"]),
        "unknown": lambda: upsert(former, deleted=["nowhere", "A9"]),
        "returned": lambda: upsert(upsert(former, deleted=["A2"]), product("A2", **scarf)),
    }[change]()
    assert all(same(former.find(ask), one) for ask, one in zip(questions, before, strict=True))
    assert set(found_ids(later, Ask())) == expected
    assert (later.num_changes, former.num_changes) == (num_changes, 0)
    if change in ("new", "replaced", "returned"):
        fresh = "A9" if change == "new" else "A2"
        for ranker in RANKERS:
            assert found_ids(later, hybrid("green scarf", ranker=ranker))[0] == fresh
            ask = hybrid("green scarf", ranker=ranker, filters=Filters(brand=("New",)))
            assert found_ids(later, ask) == [fresh]
        assert found_ids(later, Ask(sort="price_asc"))[0] == fresh
    hats = found_ids(later, Ask(text="red hat", ranker="lexical"))
    assert ("A2" in hats) == (change in ("new", "unknown"))


def test_an_empty_change_changes_nothing() -> None:
    former = shelf_of(SHOP)
    later = upsert(former)
    for ask in (hybrid("red hat"), Ask(text="blue"), Ask()):
        assert same(later.find(ask), former.find(ask))
    assert later.num_changes == 0


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.eye(1, DIM + 1, dtype=np.float32), "9 dimensions for an index of 8"),
        (np.full((1, DIM), 2.0, np.float32), "not of unit length"),
        (np.full((1, DIM), np.nan, np.float32), "not of unit length"),
    ],
)
def test_vectors_of_another_encoder_are_refused_and_harm_nothing(
    vectors: NDArray[np.float32], message: str
) -> None:
    shelf = shelf_of(SHOP)
    before = shelf.find(hybrid("red"))
    with pytest.raises(RetrievalError, match=message):
        shelf.changed(frame([product("A9", "red")]), ["red"], vectors, [])
    assert same(shelf.find(hybrid("red")), before)
    assert found_ids(upsert(shelf, product("A9", "green scarf")), Ask(text="scarf")) == ["A9"]


def test_searches_in_flight_go_on_undisturbed() -> None:
    shelf = shelf_of(SHOP)
    questions = [hybrid(text) for text in ("red", "blue hat", "old shoes", "A3")]
    expected = [shelf.find(ask) for ask in questions]

    def search(number: int) -> bool:
        at = number % len(questions)
        return same(shelf.find(questions[at]), expected[at])

    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(search, number) for number in range(200)]
        later = shelf
        for number in range(25):
            later = upsert(later, product(f"A{number % 7}", "red boots"), deleted=["A6"])
        assert all(answer.result() for answer in answers)
    assert all(search(number) for number in range(len(questions)))


# -- queries of any kind ---------------------------------------------------------------------------

ODD = (
    "x" * 10_000,
    "red " * 2_500,
    "👢🧢 red",
    'red "boots',
    "red (boots AND",
    "red\0boots",
    "\0",
    "!?…—",
    "()[]{}\"'`",
    "AND OR NOT",
    "red^2 boots~ brand:Acme *",
    "\ud7ff\uffff\u202e",
    "\uff52\uff45\uff44",  # red, in full width
    "赤いブーツ",
)


@pytest.mark.parametrize("text", ODD)
def test_odd_queries_are_answered(rules: Rules, text: str) -> None:
    shelf, slow = shelf_of(SHOP, rules), SlowShelf.of(SHOP, rules)
    for vector in (None, vector_of(text)):
        for ranker in RANKERS:
            ask = Ask(text=text, vector=vector, ranker=ranker)
            found = check(shelf, slow, ask)
            assert len(found.rows)
            shelf.facets(ask, found)
    if "red" in text.lower() and "\0" not in text:
        assert {"A0", "A2"} <= set(found_ids(shelf, Ask(text=text)))


@settings(max_examples=150)
@given(text=st.text(max_size=40), filters=FILTERS)
def test_any_text_is_answered(rules: Rules, text: str, filters: Filters) -> None:
    for ask in (hybrid(text, filters=filters), Ask(text=text, filters=filters)):
        found = ANY_SHELF.find(ask)
        assert 0 < len(found.rows) == len(set(found.rows.tolist()))
        assert np.isfinite(found.scores).all()


ANY_SHELF = shelf_of(SHOP)
