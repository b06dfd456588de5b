"""Filters as query clauses, against a slow reference that reads one product after the other."""

import datetime as dt
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.retrieval.filters import Filters, Range
from shared.retrieval.lexical import LexicalDocument, LexicalIndex, documents_of
from shared.schema import CATALOG_COLUMNS

WORDS = ("red", "blue", "boots", "shoes")
VALUES = ("", "a", "A", "b", "a:b")
NUMBERS = (-1.0, -0.0, 0.0, 0.5, 2.0, 1e300)


def _satisfies(document: LexicalDocument, filters: Filters) -> bool:
    return (
        (not filters.category or document.category in filters.category)
        and (not filters.brand or document.brand in filters.brand)
        and _within(document.price, filters.price)
        and _within(document.rating, filters.rating)
        and filters.in_stock in (None, document.in_stock)
        and all(
            any((key, value) in document.attributes for value in values)
            for key, values in filters.attributes.items()
        )
    )


def _within(number: float | None, bounds: Range) -> bool:
    if bounds.ge is None and bounds.le is None:
        return True
    if number is None:
        return False
    return (bounds.ge is None or number >= bounds.ge) and (bounds.le is None or number <= bounds.le)


def _slow_search(
    documents: list[LexicalDocument], query: list[str], filters: Filters, excluded: set[int]
) -> list[tuple[float, int]]:
    """BM25 by hand: (-score, row), best first."""
    texts = [document.text.split() for document in documents]
    average = sum(map(len, texts)) / len(texts)
    found = []
    for row, words in enumerate(texts):
        score = 0.0
        for word in query:
            containing = sum(word in text for text in texts)
            idf = math.log(1 + (len(texts) - containing + 0.5) / (containing + 0.5))
            tf = words.count(word)
            score += idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * len(words) / average))
        if score > 0 and row not in excluded and _satisfies(documents[row], filters):
            found.append((-score, row))
    return sorted(found)


numbers = st.none() | st.sampled_from(NUMBERS)
documents = st.builds(
    LexicalDocument,
    text=st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join),
    category=st.none() | st.sampled_from(VALUES),
    brand=st.none() | st.sampled_from(VALUES),
    price=numbers,
    rating=numbers,
    in_stock=st.sampled_from((None, True, False)),
    attributes=st.lists(
        st.tuples(st.sampled_from(VALUES), st.sampled_from(VALUES)), max_size=3
    ).map(tuple),
)
values = st.lists(st.sampled_from(VALUES), max_size=2).map(tuple)
ranges = st.tuples(numbers, numbers).map(
    lambda ends: Range(ge=min(ends), le=max(ends)) if None not in ends else Range(ge=ends[0])
)
all_filters = st.builds(
    Filters,
    category=values,
    brand=values,
    price=ranges,
    rating=ranges,
    in_stock=st.sampled_from((None, None, True, False)),
    attributes=st.dictionaries(st.sampled_from(VALUES), values, max_size=2),
)


@settings(max_examples=60)
@given(
    catalog=st.lists(documents, min_size=1, max_size=12),
    query=st.lists(st.sampled_from(WORDS), min_size=1, max_size=3, unique=True),
    asked=st.lists(all_filters, min_size=1, max_size=6),
    excluded=st.sets(st.integers(0, 15), max_size=3),
)
@example(
    catalog=[LexicalDocument("red", price=-0.0), LexicalDocument("red", price=0.0)],
    query=["red"],
    asked=[Filters(price=Range(ge=0.0)), Filters(price=Range(le=-0.0))],
    excluded=set(),
)
def test_filters_find_what_a_reader_of_every_product_finds(
    catalog: list[LexicalDocument], query: list[str], asked: list[Filters], excluded: set[int]
) -> None:
    index = LexicalIndex.build(catalog)
    for filters in asked:
        expected = _slow_search(catalog, query, filters, excluded)
        rows, scores = index.search(
            " ".join(query), 99, filters=filters, excluded_rows=sorted(excluded)
        )
        assert sorted(rows.tolist()) == sorted(row for _, row in expected)
        np.testing.assert_allclose(scores, [-score for score, _ in expected], rtol=1e-5)


@pytest.mark.parametrize("value", ["word", "two words", "CAFÉ", "a\x00b", "x" * 200, "👢", "\x1f"])
def test_values_are_compared_letter_by_letter(value: str) -> None:
    index = LexicalIndex.build(
        [
            LexicalDocument("red", category=value, brand=value, attributes=((value, value),)),
            LexicalDocument("red", category=value + "x", brand=value.swapcase() + "."),
        ]
    )
    for filters in (
        Filters(category=(value,)),
        Filters(brand=(value,)),
        Filters(attributes={value: (value,)}),
    ):
        assert index.search("red", 9, filters=filters)[0].tolist() == [0]


def test_keys_and_values_of_attributes_do_not_run_together() -> None:
    index = LexicalIndex.build(
        [
            LexicalDocument("red", attributes=(("a", "b:c"),)),
            LexicalDocument("red", attributes=(("a:b", "c"),)),
            LexicalDocument("red", attributes=(("size", "M"), ("size", "L"))),
        ]
    )
    assert index.search("red", 9, filters=Filters(attributes={"a": ("b:c",)}))[0].tolist() == [0]
    assert index.search("red", 9, filters=Filters(attributes={"a:b": ("c",)}))[0].tolist() == [1]
    either = Filters(attributes={"size": ("L", "XS")})
    assert index.search("red", 9, filters=either)[0].tolist() == [2]


def test_a_price_that_is_no_number_is_unknown() -> None:
    index = LexicalIndex.build([LexicalDocument("red", price=math.nan), LexicalDocument("red")])
    assert index.search("red", 9, filters=Filters(price=Range(ge=0)))[0].size == 0


def test_filters_and_exclusions_leave_scores_as_they_are() -> None:
    documents = [LexicalDocument(f"red {'shoe ' * row}", in_stock=row > 1) for row in range(5)]
    index = LexicalIndex.build(documents)
    plain = dict(zip(*(part.tolist() for part in index.search("red shoe", 9)), strict=True))
    for wanted in ({"filters": Filters(in_stock=True)}, {"excluded_rows": [0, 1]}):
        rows, scores = index.search("red shoe", 9, **wanted)  # type: ignore[arg-type]
        assert sorted(rows.tolist()) == [2, 3, 4]
        assert scores.tolist() == [plain[row] for row in rows.tolist()]


def test_a_catalog_row_becomes_a_document() -> None:
    product = {
        "product_id": "P1",
        "title": "Red shoe",
        "brand": "Acme",
        "price": 9.5,
        "in_stock": False,
        "attributes": [{"key": "size", "value": "M"}, {"key": "colour", "value": None}],
        "updated_at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    }
    catalog = pl.DataFrame([product, {"product_id": "P2", "title": "x"}], schema=CATALOG_COLUMNS)
    first, second = documents_of(catalog, ["red shoe", "x"])
    assert first == LexicalDocument(
        "red shoe", brand="Acme", price=9.5, in_stock=False, attributes=(("size", "M"),)
    )
    assert second == LexicalDocument("x")
