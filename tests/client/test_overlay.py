"""The overlay wins over the catalog until the catalog catches up, whatever happens in between."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from client.service.failures import RequestError
from client.service.messages import Product
from client.service.overlay import Change, Overlay, catalog_rows, merge, read_changes
from client.service.store import Store
from shared.errors import DataError
from shared.schema import CATALOG_COLUMNS

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def at(second):
    return NOON + timedelta(seconds=second)


def catalog_of(*rows):
    """Products from (id, title, second of `updated_at` or None)."""
    cells = [
        {"product_id": one, "title": title, "updated_at": None if second is None else at(second)}
        for one, title, second in rows
    ]
    return pl.DataFrame(cells, CATALOG_COLUMNS)


def upsert(seq, product_id, title, second, **cells):
    product = Product(product_id=product_id, title=title, **cells)
    return Change(seq, at(second), product_id, product)


def delete(seq, product_id, second):
    return Change(seq, at(second), product_id, None)


def titles(catalog):
    return dict(catalog.select("product_id", "title").rows())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.sqlite"


def test_nothing_changes_nothing():
    catalog = catalog_of(("a", "boot", 0), ("b", "shoe", None))
    merged, caught_up = merge(catalog, [])
    assert merged.equals(catalog)
    assert caught_up == []


def test_changed_products_stay_in_their_places_and_new_ones_follow():
    catalog = catalog_of(("a", "boot", 0), ("b", "shoe", 0), ("c", "sock", 0), ("d", "hat", 0))
    changes = [
        upsert(3, "z", "cap", 9),
        upsert(5, "c", "red sock", 9),
        delete(6, "a", 9),
        upsert(7, "y", "belt", 9),
        delete(8, "nowhere", 9),
    ]
    merged, caught_up = merge(catalog, changes)
    assert merged.schema == pl.Schema(CATALOG_COLUMNS)
    wanted = [("b", "shoe"), ("c", "red sock"), ("d", "hat"), ("z", "cap"), ("y", "belt")]
    assert merged.select("product_id", "title").rows() == wanted
    assert merged["updated_at"].to_list() == [at(0), at(9), at(0), at(9), at(9)]
    assert caught_up == []


@pytest.mark.parametrize(
    ("row", "change", "title", "caught_up"),
    [
        (("a", "old", 8), upsert(1, "a", "new", 9), "new", []),
        (("a", "old", 9), upsert(1, "a", "new", 9), "new", []),  # later, not as late
        (("a", "old", None), upsert(1, "a", "new", 9), "new", []),
        (("a", "newest", 10), upsert(1, "a", "new", 9), "newest", ["a"]),
        (("a", "new", 0), upsert(1, "a", "new", 9), "new", ["a"]),
        (("a", "new", None), upsert(1, "a", "new", 9), "new", ["a"]),
        (("a", "old", 8), delete(1, "a", 9), None, []),
        (("a", "old", 9), delete(1, "a", 9), None, []),
        (("a", "old", None), delete(1, "a", 9), None, []),
        (("a", "back", 10), delete(1, "a", 9), "back", []),
    ],
)
def test_when_the_catalog_has_caught_up(row, change, title, caught_up):
    merged, found = merge(catalog_of(row, ("b", "other", None)), [change])
    assert titles(merged) == {"b": "other"} | ({"a": title} if title else {})
    assert found == caught_up


FULL = {
    "description": "Warm",
    "brand": "Aco",
    "category": "Shoes",
    "attributes": {"Size": "42", "Colour": "red"},
    "price": 10.1,
    "currency": "EUR",
    "rating": 4.5,
    "review_count": 3,
    "sales": 2**62,
    "in_stock": False,
    "image": "sub/a.png",
    "locale": "en",
}


def test_every_column_is_brought_and_compared():
    change = upsert(1, "a", "boot", 9, **FULL)
    (row,) = merge(catalog_of(), [change])[0].to_dicts()
    pairs = [{"key": "Size", "value": "42"}, {"key": "Colour", "value": "red"}]
    same = FULL | {"product_id": "a", "title": "boot"}
    assert row == same | {"attributes": pairs, "updated_at": at(9)}
    older = row | {"updated_at": at(0), "attributes": pairs[::-1]}
    assert merge(pl.DataFrame([older], CATALOG_COLUMNS), [change])[1] == ["a"]
    for name in [*FULL, "title"]:
        other = older | {name: None}
        merged, caught_up = merge(pl.DataFrame([other], CATALOG_COLUMNS), [change])
        assert caught_up == []
        assert merged[name].to_list() == [row[name]]


def test_blank_cells_are_null_as_in_a_checked_catalog():
    (row,) = catalog_rows([Product(product_id="a", title="t", brand=" ", image="")]).to_dicts()
    assert {name for name, cell in row.items() if cell is not None} == {"product_id", "title"}
    assert catalog_rows([]).schema == pl.Schema(CATALOG_COLUMNS)


def test_further_columns_are_kept():
    catalog = catalog_of(("a", "boot", 0), ("b", "shoe", 0)).with_columns(row=pl.Series([1, 2]))
    merged, _ = merge(catalog, [upsert(1, "a", "new", 9), upsert(2, "c", "cap", 9)])
    assert merged["row"].to_list() == [None, 2, None]


def test_changes_are_there_after_a_restart_by_the_last_of_each_product(path):
    boot, cap = (Product(product_id=one, title=one) for one in ("boot", "cap"))
    with Store(path) as store:
        overlay = Overlay.open(store)
        first = overlay.upsert([boot, cap, boot.model_copy(update={"title": "new"})], now=at(1))
        second = overlay.delete(["cap", "unknown"], now=at(2))
        assert first < second
    changes = read_changes(path)
    assert [(c.product_id, c.ts, c.product and c.product.title) for c in changes] == [
        ("boot", at(1), "new"),
        ("cap", at(2), None),
        ("unknown", at(2), None),
    ]
    assert (changes[0].seq, changes[-1].seq) == (first, second)
    with Store(path) as store:
        overlay = Overlay.open(store)
        third = overlay.upsert([cap])
        assert third > second
        upserts, deleted = overlay.changes(after_seq=first)
        assert (upserts["product_id"].to_list(), deleted) == (["cap"], ["unknown"])
        assert upserts.schema == pl.Schema(CATALOG_COLUMNS)
        upserts, deleted = overlay.changes(after_seq=third)
        assert (upserts.height, deleted) == (0, [])


def test_retired_upserts_are_gone_but_neither_deletes_nor_later_ones(path):
    with Store(path) as store:
        overlay = Overlay.open(store)
        overlay.delete(["gone"])
        seen = overlay.upsert([Product(product_id=one, title="t") for one in ("a", "b")])
        later = overlay.upsert([Product(product_id="b", title="new")])
        assert overlay.retire(["a", "b", "gone", "unknown"], seen) == 1
        assert [change.product_id for change in read_changes(path)] == ["gone", "b"]
        assert overlay.retire(["b"], later) == 1
        assert overlay.retire([], later) == 0
        # The number of a row that is gone is never given again.
        assert overlay.delete(["c"]) > later


@pytest.mark.parametrize("name", ["product_id", "title"])
def test_a_product_that_no_catalog_may_have_is_refused(path, name):
    good = Product(product_id="a", title="t")
    with Store(path) as store:
        with pytest.raises(RequestError, match=rf"products.1.{name}: blank; fill") as caught:
            Overlay.open(store).upsert([good, good.model_copy(update={name: " "})])
        assert caught.value.code == "invalid"
    assert read_changes(path) == []


def test_a_product_of_another_fedshelf_is_an_error_without_its_content(path):
    with Store(path) as store:
        Overlay.open(store).upsert([Product(product_id="a", title="t")])
        broken = """UPDATE changes SET product = '{"product_id": "a", "secret": 1}'"""
        store.submit(lambda connection: connection.execute(broken).rowcount).result()
    with pytest.raises(DataError, match="change 1 is not a product") as caught:
        read_changes(path)
    assert "secret" not in str(caught.value)


def test_reading_makes_no_store(path):
    assert read_changes(path) == []
    assert not path.exists()


IDS = st.sampled_from("abcde")
TITLES = st.sampled_from(["boot", "shoe", "sock"])


class Retailer(RuleBasedStateMachine):
    """Upserts, deletes, exports and restarts, beside a dictionary that knows what must be found.

    The clock goes one second a step. An export either stamps its rows with the time at which the
    retailer last touched them or has no times at all.
    """

    folder = None

    @initialize()
    def begin(self):
        self.path = Retailer.folder / "events.sqlite"
        for file in Retailer.folder.iterdir():
            file.unlink()
        self.store = Store(self.path)
        self.clock = 0
        self.own = {}  # of the retailer: title and time of its last change there
        self.exported = catalog_of()
        self.served = {}  # last change while serving: title or None, and its time

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()

    def tick(self):
        self.clock += 1
        return self.clock

    @rule(ids=st.lists(IDS, min_size=1, max_size=3), title=TITLES)
    def upserts(self, ids, title):
        now = self.tick()
        products = [Product(product_id=one, title=title) for one in ids]
        Overlay.open(self.store).upsert(products, now=at(now))
        self.served |= {one: (title, now) for one in ids}

    @rule(ids=st.lists(IDS, min_size=1, max_size=3))
    def deletes(self, ids):
        now = self.tick()
        Overlay.open(self.store).delete(ids, now=at(now))
        self.served |= {one: (None, now) for one in ids}

    @rule(one=IDS, title=TITLES)
    def changes_at_home(self, one, title):
        self.own[one] = (title, self.tick())

    @rule(one=IDS)
    def takes_away_at_home(self, one):
        self.tick()
        self.own.pop(one, None)

    @rule(with_times=st.booleans())
    def exports(self, with_times):
        own = self.own.items()
        rows = [(one, title, time if with_times else None) for one, (title, time) in own]
        self.exported = catalog_of(*rows)

    @rule()
    def restarts(self):
        self.store.close()
        self.store = Store(self.path)

    @rule()
    def rebuilds_and_retires(self):
        """What the model forgets here, the catalog says from now on."""
        changes = read_changes(self.path)
        _, caught_up = merge(self.exported, changes)
        Overlay.open(self.store).retire(caught_up, max((c.seq for c in changes), default=0))
        for one in caught_up:
            assert self.served[one][0] is not None, "a delete is never retired"
            del self.served[one]

    @invariant()
    def the_merged_catalog_is_what_the_dictionary_says(self):
        if not hasattr(self, "store"):
            return
        wanted = titles(self.exported)
        times = dict(self.exported.select("product_id", "updated_at").rows())
        for one, (title, time) in self.served.items():
            if times.get(one) is not None and times[one] > at(time):
                continue
            wanted.pop(one, None)
            if title is not None:
                wanted[one] = title
        merged, caught_up = merge(self.exported, read_changes(self.path))
        assert titles(merged) == wanted
        assert merged.height == len(wanted)
        # Retiring changes nothing that is found.
        left = [c for c in read_changes(self.path) if c.product_id not in caught_up]
        assert titles(merge(self.exported, left)[0]) == wanted


def test_any_history_of_changes_exports_and_restarts(tmp_path):
    Retailer.folder = tmp_path
    bounded = settings(max_examples=25, stateful_step_count=20)
    run_state_machine_as_test(Retailer, settings=bounded)
