"""What a shelf finds, one thing at a time, and what changes and odd queries do to it."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from slow_shelf import (
    DIM,
    FILTERS,
    RANKERS,
    SORTS,
    SlowShelf,
    check,
    found_ids,
    frame,
    hybrid,
    ids_of,
    product,
    same,
    shelf_of,
    upsert,
    vector_of,
)

import shared.retrieval.shelf
from shared.errors import RetrievalError
from shared.retrieval.filters import Filters, Range, Sort
from shared.retrieval.index import build_index
from shared.retrieval.relevance import (
    Bar,
)
from shared.retrieval.rules import Rules
from shared.retrieval.shelf import Ask, Ranker, Shelf
from shared.retrieval.vectors import VectorIndex

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
