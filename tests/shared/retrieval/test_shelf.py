"""A shelf against a plain list of products, looked through one by one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from slow_shelf import (
    CATALOGS,
    IDS,
    PRODUCTS,
    Product,
    SlowShelf,
    asks,
    check,
    left_out,
    pairs_of,
    same,
    shelf_of,
    upsert,
)

from shared.retrieval.filters import Filters, active, without
from shared.retrieval.rules import Rules
from shared.retrieval.shelf import Ask, Found, Shelf


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
