"""The table of products against a plain list of products, looked through one by one."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.retrieval.facets import Facet, FacetValue
from shared.retrieval.filters import MAX_VALUE_CHARS, Filters, Range, Sort
from shared.retrieval.products import ProductTable
from shared.schema import CATALOG_COLUMNS

Product = dict[str, Any]
KEYS = ("Colour", "Size", "EAN")
WIDE = {ord(digit): chr(ord(digit) + 0xFEE0) for digit in "0123456789"}  # as typed in Japan


def product(product_id: str, **cells: Any) -> Product:
    """A product of which nothing is known but what is said; attributes as pairs."""
    bare: Product = {**dict.fromkeys(CATALOG_COLUMNS), "product_id": product_id, "title": "thing"}
    pairs = cells.pop("attributes", None)
    if pairs is not None:
        bare["attributes"] = [{"key": key, "value": value} for key, value in pairs]
    return {**bare, **cells}


def frame(products: Sequence[Product]) -> pl.DataFrame:
    return pl.DataFrame(list(products), schema=CATALOG_COLUMNS)


def table(products: Sequence[Product], group_attribute: str | None = None) -> ProductTable:
    return ProductTable.build(frame(products), group_attribute=group_attribute)


def rows(*numbers: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(numbers, np.int64)


def pairs_of(item: Product) -> set[tuple[str, str]]:
    named = {(pair["key"], pair["value"]) for pair in item["attributes"] or () if pair}
    return {(key, value) for key, value in named if key is not None and value is not None}


def satisfies(item: Product, filters: Filters) -> bool:
    """What `filters` says, word by word."""
    conditions = [
        not filters.category or item["category"] in filters.category,
        not filters.brand or item["brand"] in filters.brand,
        filters.in_stock is None or item["in_stock"] is filters.in_stock,
        *(within(item[name], getattr(filters, name)) for name in ("price", "rating")),
        *(
            any((key, value) in pairs_of(item) for value in values)
            for key, values in filters.attributes.items()
        ),
    ]
    return all(conditions)


def within(number: float | None, bounds: Range) -> bool:
    if not bounds.bounded:
        return True
    above = bounds.ge is None or (number is not None and number >= bounds.ge)
    below = bounds.le is None or (number is not None and number <= bounds.le)
    return number is not None and above and below


def value_counts(items: Iterable[Product], name: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for item in items:
        if name.startswith("attributes."):
            key = name.removeprefix("attributes.")
            counts.update(value for other, value in pairs_of(item) if other == key)
        elif item[name] is not None:
            counts[str(item[name]).lower() if name == "in_stock" else item[name]] += 1
    return counts


def variant_key(item: Product, group_attribute: str | None) -> tuple[Any, ...]:
    brand = " ".join((item["brand"] or "").lower().split())
    for pair in item["attributes"] or ():
        if pair and pair["key"] == group_attribute and (pair["value"] or "").strip():
            return ("attribute", " ".join(pair["value"].lower().split()), brand)
    return ("title", " ".join(item["title"].lower().split()), brand)


def popularity(item: Product, mean_rating: float, prior: float) -> tuple[float, ...]:
    stock = {True: 1.0, None: 0.5, False: 0.0}[item["in_stock"]]
    reviews = 1 if item["review_count"] is None else item["review_count"]
    rating = mean_rating if item["rating"] is None else item["rating"]
    believed = mean_rating + reviews / (reviews + prior) * (rating - mean_rating)
    return (-stock, -(item["sales"] or 0), -believed)


def maybe(values: Sequence[Any]) -> st.SearchStrategy[Any]:
    return st.none() | st.sampled_from(values)


def products_with(ids: st.SearchStrategy[str]) -> st.SearchStrategy[Product]:
    pair = st.fixed_dictionaries(
        {"key": maybe(KEYS), "value": maybe(["red", "blue", "ä", "4006381333931", " "])}
    )
    cells = {
        "product_id": ids,
        "title": st.sampled_from(["boots", "Boots ", "red  boots", "phone"]),
        "brand": maybe(["acme", "Acme", ""]),
        "category": maybe(["shoes", "phones", "ä"]),
        "attributes": st.none() | st.lists(st.none() | pair, max_size=3),
        "price": maybe([0.0, 1.0, 2.5]),
        "rating": maybe([1.0, 4.0, 5.0]),
        "review_count": maybe([0, 3, 10]),
        "sales": maybe([0, 7]),
        "in_stock": maybe([True, False]),
    }
    return st.fixed_dictionaries({**{n: st.none() for n in CATALOG_COLUMNS}, **cells})


def catalogs(max_size: int = 8) -> st.SearchStrategy[list[Product]]:
    return st.lists(
        products_with(st.sampled_from([f"p{i}" for i in range(12)])),
        max_size=max_size,
        unique_by=lambda item: item["product_id"],
    )


WORDS = st.lists(st.sampled_from(["shoes", "phones", "acme", "red", "blue", "ä", ""]), max_size=2)
BOUNDS = st.sampled_from([Range(), Range(ge=1), Range(le=1), Range(ge=1, le=4)])
FILTERS = st.builds(
    Filters,
    category=WORDS,
    brand=WORDS,
    price=BOUNDS,
    rating=BOUNDS,
    in_stock=st.none() | st.booleans(),
    attributes=st.dictionaries(st.sampled_from([*KEYS, "none"]), WORDS, max_size=2),
)
CHANGES = st.lists(
    st.tuples(
        st.lists(products_with(st.sampled_from([f"p{i}" for i in range(12)])), max_size=3),
        st.lists(st.sampled_from([f"p{i}" for i in range(14)]), max_size=2),
    ),
    max_size=8,
)


class Shop:
    """The same as a table, as a list of products and a dictionary of those alive."""

    def __init__(self, products: Sequence[Product]) -> None:
        self.products = list(products)
        self.row_of = {item["product_id"]: row for row, item in enumerate(products)}

    def change(self, upserts: Sequence[Product], deleted: Sequence[str]) -> None:
        for product_id in deleted:
            self.row_of.pop(product_id, None)
        for item in upserts:
            self.row_of[item["product_id"]] = len(self.products)
            self.products.append(item)

    @property
    def alive(self) -> list[int]:
        return sorted(self.row_of.values())


def after(products: list[Product], changes: list[Any]) -> tuple[ProductTable, Shop]:
    """A table and a shop after the same changes."""
    changed, shop = table(products, "Size"), Shop(products)
    for upserts, deleted in changes:
        changed = changed.changed(frame(upserts), deleted)
        shop.change(upserts, deleted)
    return changed, shop


@given(catalogs(), FILTERS)
def test_eligible_products_are_those_that_satisfy_every_condition(
    products: list[Product], filters: Filters
) -> None:
    expected = [satisfies(item, filters) for item in products]
    assert table(products).eligible(filters).tolist() == expected


@given(catalogs(), CHANGES, FILTERS)
def test_changes_leave_what_they_would_leave_of_a_dictionary(
    products: list[Product], changes: list[Any], filters: Filters
) -> None:
    changed, shop = after(products, changes)
    assert changed.num_rows == len(shop.products)
    assert np.flatnonzero(changed.alive).tolist() == shop.alive
    for product_id in (f"p{i}" for i in range(14)):
        assert changed.row_of(product_id) == shop.row_of.get(product_id)
    assert [changed.product(row) for row in range(changed.num_rows)] == shop.products
    expected = [row for row in shop.alive if satisfies(shop.products[row], filters)]
    assert np.flatnonzero(changed.eligible(filters)).tolist() == expected


def test_a_blank_value_names_no_group() -> None:
    items = [
        product("a", attributes=[("Size", " "), ("Size", "Red")]),
        product("b", attributes=[("Size", "red"), ("Size", "blue")]),
        product("c", attributes=[("Size", " ")]),
        product("d"),
    ]
    one, other, blank, none = table(items, "Size").group(rows(0, 1, 2, 3)).tolist()
    assert one == other != blank == none


@given(catalogs(), CHANGES, st.integers(0, 5), st.data())
def test_orders_and_groups_of_a_changed_table_are_those_of_its_products(
    products: list[Product], changes: list[Any], k: int, data: st.DataObject
) -> None:
    changed, shop = after(products, changes)
    items = shop.products
    some = data.draw(st.permutations(range(len(items))))
    keys = [variant_key(items[row], "Size") for row in some]
    groups = changed.group(rows(*some)).tolist()
    assert [groups.index(group) for group in groups] == [keys.index(key) for key in keys]
    kept, variants = changed.first_of_groups(rows(*some))
    members: dict[Any, list[int]] = {}
    for row, key in zip(some, keys, strict=True):
        members.setdefault(key, []).append(row)
    assert [[row, *others] for row, others in zip(kept.tolist(), variants, strict=True)] == list(
        members.values()
    )
    for sort, name, sign in SORTS:
        expected = sorted(some, key=lambda row: order_key(items[row][name], sign))
        assert changed.sort_rows(rows(*some), sort).tolist() == expected
    ratings = [item["rating"] for item in products if item["rating"] is not None]
    reviews = [item["review_count"] for item in products if item["review_count"]]
    mean = sum(ratings) / len(ratings) if ratings else 0.0
    prior = float(np.median(reviews)) if reviews else 1.0
    best = sorted(shop.alive, key=lambda row: (*popularity(items[row], mean, prior), row))
    assert changed.popular(changed.alive, k).tolist() == best[:k]


SORTS: list[tuple[Sort, str, int]] = [
    ("price_asc", "price", 1),
    ("price_desc", "price", -1),
    ("rating_desc", "rating", -1),
]


def order_key(number: float | None, sign: int) -> tuple[bool, float]:
    return number is None, sign * (number or 0.0)


@given(catalogs(), CHANGES, FILTERS, st.integers(0, 3))
def test_facets_count_the_values_of_the_found_products(
    products: list[Product], changes: list[Any], filters: Filters, max_values: int
) -> None:
    changed, shop = after(products, changes)
    items = [shop.products[row] for row in shop.alive]
    names = ["category", "brand", "in_stock", "attributes.Colour", "attributes.none"]
    facets = changed.facets(
        np.flatnonzero(changed.alive), filters, names=names, max_values=max_values
    )
    listed = {facet.name: facet for facet in facets}
    for name in names:
        counts = value_counts(items, name)
        asked = asked_for(filters, name)
        order = sorted({*counts, *asked}, key=lambda value: (-counts[value], value))
        most = sorted(counts, key=lambda value: (-counts[value], value))[:max_values]
        expected = tuple(
            FacetValue(value, counts[value], value in asked)
            for value in order
            if value in most or value in asked
        )
        assert listed.get(name, Facet(name)).values == expected


def asked_for(filters: Filters, name: str) -> set[str]:
    if name == "in_stock":
        return set() if filters.in_stock is None else {str(filters.in_stock).lower()}
    if name.startswith("attributes."):
        return set(filters.attributes.get(name.removeprefix("attributes."), ()))
    return set(getattr(filters, name))


@given(catalogs(), CHANGES)
def test_a_changed_table_counts_as_one_built_from_what_is_alive(
    products: list[Product], changes: list[Any]
) -> None:
    changed, shop = after(products, changes)
    built = table([shop.products[row] for row in shop.alive], "Size")
    found = np.flatnonzero(changed.alive)
    everything = np.arange(built.num_rows)
    assert changed.facets(found, Filters()) == built.facets(everything, Filters())


@given(catalogs(), CHANGES)
def test_a_change_leaves_the_former_table_as_it_was(
    products: list[Product], changes: list[Any]
) -> None:
    former = table(products)
    changed = former
    for upserts, deleted in changes:
        changed = changed.changed(frame(upserts), deleted)
    assert former.alive.all()
    assert [former.product(row) for row in range(former.num_rows)] == products
    assert all(former.row_of(item["product_id"]) == row for row, item in enumerate(products))


def test_marks_and_masks_cannot_be_confused() -> None:
    one = table([product("a"), product("b")])
    with pytest.raises(ValueError, match="read-only"):
        one.alive[0] = False
    one.eligible(Filters())[0] = False
    assert one.alive.all()


def test_of_one_id_several_times_the_last_is_alive_and_every_upsert_has_its_row() -> None:
    upserts = frame([product("b", price=1.0), product("a", price=2.0), product("b", price=3.0)])
    changed = table([product("a")]).changed(upserts, [])
    assert changed.alive.tolist() == [False, False, True, True]
    assert changed.cells([1, 2, 3], ["price"]) == [{"price": 1.0}, {"price": 2.0}, {"price": 3.0}]


def test_what_is_deleted_and_upserted_at_once_is_there() -> None:
    changed = table([product("a")]).changed(frame([product("a")]), ["a", "unknown"])
    assert changed.row_of("a") == 1
    assert changed.changed(frame([]), ["a"]).row_of("a") is None


def test_ids_that_a_catalog_repeats_are_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match="repeated ids"):
        table([product("a"), product("a")])


def test_many_single_upserts_make_few_segments_and_leave_the_catalog_alone() -> None:
    one = table([product(f"p{i}") for i in range(10)])
    catalog = one._segments[0]
    for number in range(300):
        one = one.changed(frame([product(f"q{number % 200}", price=float(number))]), [])
        # The catalog, and at most one segment a power of two.
        assert len(one._segments) <= 1 + (number + 1).bit_length()
    assert one._segments[0] is catalog
    assert one.num_rows == 310
    assert np.flatnonzero(one.alive).tolist() == [*range(10), *range(110, 310)]
    assert one.cells([309, 0], ["product_id", "price"]) == [
        {"product_id": "q99", "price": 299.0},
        {"product_id": "p0", "price": None},
    ]


def test_a_row_is_copied_about_as_often_as_the_logarithm_of_what_was_appended() -> None:
    one, built = table([product("p")]), 0
    for number in range(256):
        former = {id(segment) for segment in one._segments}
        one = one.changed(frame([product(f"q{number}")]), [])
        built += sum(len(segment) for segment in one._segments if id(segment) not in former)
    assert built <= 256 * 9  # 1 + log2(256) each


def test_cells_come_as_the_catalog_has_them() -> None:
    item = product("a", attributes=[("Colour", "red"), ("Size", "M")], in_stock=False, sales=3)
    one = table([product("b"), item])
    assert one.product(1) == item
    assert one.cells(rows(1, 0), ["attributes", "sales"]) == [
        {"attributes": item["attributes"], "sales": 3},
        {"attributes": None, "sales": None},
    ]
    for row in (-1, 2):
        with pytest.raises(AssertionError, match="a row of this table"):
            one.product(row)


def test_ranges_are_those_of_the_found_products() -> None:
    one = table([product("a", price=3.0), product("b", price=1.5), product("c"), product("d")])
    names = ["price", "rating"]
    assert one.facets(rows(0, 1, 2), Filters(), names=names) == [
        Facet("price", minimum=1.5, maximum=3.0)
    ]
    assert one.facets(rows(2, 3), Filters(price=Range(ge=9)), names=names) == []


def test_without_a_choice_facets_are_those_that_suit_the_found_products() -> None:
    items = [
        product(
            f"p{i:03}",
            brand="acme",
            attributes=[
                ("two", str(i % 2)),
                ("two", str(i % 2)),  # named twice, there once
                ("one", "same"),
                ("own", str(i)),  # 300 values
                *([("some", str(i % 3))] if i < 30 else []),  # just a tenth
                *([("rare", str(i % 3)), ("rare", "both")] if i < 29 else []),  # not 58
            ],
        )
        for i in range(300)
    ]
    one = table(items)
    facets = one.facets(np.arange(300), Filters())
    assert [facet.name for facet in facets] == ["brand", "attributes.two", "attributes.some"]
    assert facets[0].values == (FacetValue("acme", 300),)
    assert facets[1].values == (FacetValue("0", 150), FacetValue("1", 150))
    asked = Filters(attributes={"rare": ("9",), "one": ("same",)}, in_stock=True)
    facets = one.facets(np.arange(300), asked)
    assert [facet.name for facet in facets][1:] == [
        "in_stock",
        "attributes.one",
        "attributes.two",
        "attributes.some",
        "attributes.rare",
    ]
    assert facets[1].values == (FacetValue("true", 0, selected=True),)
    assert facets[-1].values[-1] == FacetValue("9", 0, selected=True)
    # Of the first 200 products alone, every one's own value is still one a person could read.
    assert "attributes.own" in {f.name for f in one.facets(np.arange(200), Filters())}


def test_at_most_ten_attribute_keys_are_counted_unasked() -> None:
    pairs = [[(f"k{key:02}", str((i + key) % 2)) for key in range(15)] for i in range(4)]
    one = table([product(f"p{i}", attributes=pairs[i]) for i in range(4)])
    names = [facet.name for facet in one.facets(np.arange(4), Filters())]
    assert names == [f"attributes.k{key:02}" for key in range(10)]
    asked = Filters(attributes={"k14": ("0",)})
    names = [facet.name for facet in one.facets(np.arange(4), asked)]
    assert names == [*(f"attributes.k{key:02}" for key in range(9)), "attributes.k14"]


def test_a_value_too_long_to_ask_for_is_not_listed() -> None:
    longest, longer = "x" * MAX_VALUE_CHARS, "x" * (MAX_VALUE_CHARS + 1)
    one = table([product("a", brand=longest), product("b", brand=longer)])
    facets = one.facets(np.arange(2), Filters(), names=["brand"])
    assert facets == [Facet("brand", (FacetValue(longest, 1),))]


def test_a_name_that_is_no_facet_counts_nothing() -> None:
    one = table([product("a", title="t", attributes=[("Colour", "red")])])
    assert one.facets(np.arange(1), Filters(), names=["Colour", "title", "attributes.x"]) == []
    assert one.facets(rows(), Filters()) == []


def test_sorts_keep_the_order_of_equals_and_put_the_unknown_last() -> None:
    prices = [2.0, None, 1.0, 2.0, None]
    one = table([product(f"p{i}", price=price) for i, price in enumerate(prices)])
    found = rows(4, 3, 0, 1, 2)
    assert one.sort_rows(found, "relevance").tolist() == [4, 3, 0, 1, 2]
    assert one.sort_rows(found, "price_asc").tolist() == [2, 3, 0, 4, 1]
    assert one.sort_rows(found, "price_desc").tolist() == [3, 0, 2, 4, 1]
    assert one.sort_rows(found, "rating_desc").tolist() == [4, 3, 0, 1, 2]


def test_variants_share_an_attribute_or_else_their_title_within_one_brand() -> None:
    model, other = [("Model", "X 1")], [("Model", "Y 2")]  # of two, the first counts
    items = [
        product("a", title="Shirt red", brand="acme", attributes=model),
        product("b", title="Shirt blue", brand="ACME", attributes=[("Model", "x  1"), *other]),
        product("c", title="Shirt red", brand="other", attributes=model),
        product("d", title="Shirt red", brand="acme"),
        product("e", title=" SHIRT\u00a0red", brand="acme", attributes=[("Model", " ")]),
        product("f", title="Shirt-red", brand="acme"),
        product("g", title="x 1", brand="acme"),
    ]
    one = table(items, "Model")
    kept, variants = one.first_of_groups(rows(4, 1, 6, 2, 3, 0, 5))
    assert kept.tolist() == [4, 1, 6, 2, 5]
    assert [others.tolist() for others in variants] == [[3], [0], [], [], []]
    assert [others.tolist() for others in variants[:2]] == [[3], [0]]
    assert variants[-1].tolist() == []
    by_title = table(items).group(np.arange(7)).tolist()
    assert by_title[0] == by_title[3] == by_title[4] != by_title[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ab-1", [0, 1]),  # the id itself, then another's SKU
        (" ab-1 ", [0, 1]),
        ("AB-1", [0, 1]),
        ("x9", [2, 3]),
        ("X9", [3, 2]),
        ("4006381333931", [1, 4]),
        ("4-006381-333931", [1, 4]),
        ("4006 3813 3393 1", [1, 4]),
        ("04006381333931", [1, 4]),
        ("036000291452", [5]),
        ("0036000291452", [5]),
        ("00036000291452", [5]),
        ("36000291452", [5]),  # a spreadsheet took the zero
        ("0-306-40615-x", [6]),
        ("4006381333931".translate(WIDE), [1, 4]),  # full-width digits
        ("36000", []),
        ("52", []),
        ("red", []),
        ("", []),
        ("  ", []),
        ("ab1", []),
    ],
)
def test_a_code_finds_its_product_however_it_is_typed(text: str, expected: list[int]) -> None:
    one = table(
        [
            product("Ab-1"),
            product("b", attributes=[("SKU", "ab-1"), ("ean", "4006381333931")]),
            product("x9"),
            product("X9", attributes=[("mpn", "x9"), ("Colour", "red")]),
            product("e", attributes=[("GTIN", "0 4006381 333931"), ("ean", " ")]),
            product("f", attributes=[("UPC", "0 36000 29145 2")]),
            product("g", attributes=[("isbn", "030640615X")]),
            product("h", attributes=[("ean", "0000000000052")]),  # not what "52" means
        ]
    )
    assert one.find_code(text) == expected


def test_a_dead_row_has_no_code_and_a_live_one_keeps_its_rank() -> None:
    sku = [("sku", "s-1")]
    one = table([product("a", attributes=sku), product("b", attributes=sku), product("S-1")])
    assert one.find_code("s-1") == [2, 0, 1]
    changed = one.changed(frame([product("a", attributes=sku)]), ["S-1"])
    assert changed.find_code("s-1") == [1, 3]


def test_the_popular_are_in_stock_then_sold_then_well_rated_by_many() -> None:
    one = table(
        [
            product("out", in_stock=False, sales=99),
            product("one five", in_stock=True, rating=5.0, review_count=1),
            product("many", in_stock=True, rating=4.8, review_count=100),
            product("bad", in_stock=True, rating=1.0, review_count=100),
            product("sold", in_stock=True, sales=1),
            product("unknown"),
            product("unrated", in_stock=True),
            product("also unrated", in_stock=True, review_count=5),
        ]
    )
    # Mean rating 3.6, prior 52.5 reviews: 5.0 once is worth less than 4.8 a hundred times.
    best = one.popular(one.alive, 10).tolist()
    assert best == [4, 2, 1, 6, 7, 3, 5, 0]
    assert one.popular(one.eligible(Filters(in_stock=False)), 3).tolist() == [0]
    assert one.popular(one.alive, 2).tolist() == best[:2]
    assert one.popular(one.alive, 0).tolist() == []


def test_an_empty_catalog_can_be_added_to() -> None:
    one = table([])
    assert one.eligible(Filters(brand=("acme",), attributes={"a": ("b",)})).tolist() == []
    assert one.facets(rows(), Filters()) == []
    assert one.popular(one.alive, 3).tolist() == []
    assert one.find_code("a") == []
    changed = one.changed(frame([product("a", brand="acme")]), ["b"])
    assert changed.eligible(Filters(brand=("acme",))).tolist() == [True]
    assert changed.first_of_groups(rows(0))[0].tolist() == [0]
    assert changed.first_of_groups(rows())[0].tolist() == []
