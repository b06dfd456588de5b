"""A shelf is true to the catalog as it is now, and encodes only what it must."""

import gc
import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from PIL import Image
from small_registry import HashEncoder, Headquarters, contents, write_region

import client.shelves
from client.indexing import build_region_index
from client.region import Region, open_region
from client.service.messages import Product
from client.service.overlay import Overlay
from client.service.store import Store
from client.shelves import open_shelf, region_rules, scratch_folder
from shared.errors import ConfigError, RetrievalError
from shared.retrieval.filters import Filters, Range
from shared.retrieval.hybrid import Tuned
from shared.retrieval.manifest import OpenIndex, open_index_folder
from shared.retrieval.shelf import Ask, Ranker, Shelf

TITLES = ("red boots", "blue boots", "red hat", "a phone", "green scarf", "old shoes")
CHEAP = Filters(price=Range(le=5.0))


class CountingEncoder(HashEncoder):
    """Says how often, and of what, it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str | None] = []
        self.images: list[Path | None] = []
        self.calls = 0

    def encode_products(
        self, texts: Sequence[str | None], images: Sequence[Path | None]
    ) -> NDArray[np.float32]:
        self.calls += 1
        self.texts += texts
        self.images += images
        return super().encode_products(texts, images)


class Market:
    """A region whose catalog moves on while its index stays."""

    def __init__(self, folder: Path) -> None:
        self.headquarters = Headquarters(folder)
        self.folder = write_region(folder / "north", self.headquarters)
        self.scratch = folder / "scratch"
        self.rows = [
            {
                "product_id": f"sku-{number}",
                "title": title,
                "brand": "Acme" if number % 2 else None,
                "price": 10.0 + number,
                "image": None,
            }
            for number, title in enumerate(TITLES)
        ]

    def index(self, **options: Any) -> OpenIndex:
        return open_index_folder(
            build_region_index(self.region(), HashEncoder(), release=3, **options)
        )

    def region(self) -> Region:
        schema = {"price": pl.Float64, "brand": pl.String, "image": pl.String}
        table = pl.DataFrame(self.rows, schema_overrides=schema)
        table.write_parquet(self.folder / "catalog.parquet")
        return open_region(self.folder)

    def photo(self, name: str, colour: str) -> None:
        (self.folder / "images").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(self.folder / "images" / name)

    def configure(self, extra: str) -> None:
        with (self.folder / "region.toml").open("a") as file:
            file.write(extra)

    def open(self, opened: OpenIndex, encoder: HashEncoder | None = None) -> Shelf:
        encode = (encoder or HashEncoder()).encode_products
        return open_shelf(self.region(), opened, encode, scratch=self.scratch)


@pytest.fixture
def market(tmp_path: Path) -> Market:
    return Market(tmp_path)


def vector_of(text: str) -> NDArray[np.float32]:
    return HashEncoder().encode_queries([text], [None])[0]


def found_ids(
    shelf: Shelf, text: str, filters: Filters | None = None, ranker: Ranker = "hybrid"
) -> list[str]:
    ask = Ask(text=text, vector=vector_of(text), filters=filters or Filters(), ranker=ranker)
    found = shelf.find(ask)
    return [] if found.fallback else ids_of(shelf, found.rows)


def ids_of(shelf: Shelf, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
    return [shelf.products.product(int(row))["product_id"] for row in rows]


def alive_ids(shelf: Shelf) -> list[str]:
    return ids_of(shelf, np.flatnonzero(shelf.products.alive))


def agrees_with_its_catalog(shelf: Shelf, region: Region) -> None:
    """Product for product: cells, vector and words."""
    assert sorted(alive_ids(shelf)) == sorted(region.catalog["product_id"])
    assert shelf.lexical.num_products == region.catalog.height
    for cells, text in zip(region.catalog.iter_rows(named=True), region.texts, strict=True):
        row = shelf.products.row_of(cells["product_id"])
        assert row is not None
        assert shelf.products.product(row) == cells
        vector = shelf.vectors.vectors_of(np.array([row]))[0]
        np.testing.assert_array_equal(vector, vector_of(text))
        assert row in shelf.lexical.search(text, 99)[0]


def test_an_unchanged_catalog_is_not_encoded_at_all(market: Market) -> None:
    opened, encoder = market.index(tuned=Tuned(0.3, {0.3: 0.5}, 20)), CountingEncoder()
    shelf = market.open(opened, encoder)
    assert encoder.calls == 0
    assert (shelf.num_changes, shelf.vectors.num_appended) == (0, 0)
    assert (shelf.index, shelf.release) == (opened.folder.name, 3)
    assert (shelf.encoder_digest, shelf.dense_weight) == (encoder.digest, 0.3)
    assert shelf.products.alive.all()
    assert alive_ids(shelf) == opened.ids.tolist()
    agrees_with_its_catalog(shelf, market.region())


def test_another_order_of_the_export_is_no_change(market: Market) -> None:
    opened, encoder = market.index(), CountingEncoder()
    market.rows.reverse()
    shelf = market.open(opened, encoder)
    assert (encoder.calls, shelf.num_changes) == (0, 0)
    agrees_with_its_catalog(shelf, market.region())


def test_a_new_time_stamp_on_every_row_is_no_change(market: Market) -> None:
    for row in market.rows:
        row["updated_at"] = "2030-01-01T00:00:00Z"
    opened, encoder = market.index(), CountingEncoder()
    for row in market.rows:
        row["updated_at"] = "2030-01-02T00:00:00Z"
    shelf = market.open(opened, encoder)
    assert (encoder.calls, shelf.num_changes, shelf.vectors.num_appended) == (0, 0, 0)
    agrees_with_its_catalog(shelf, market.region())


def test_a_price_alone_is_not_encoded_but_both_rankers_filter_by_it(market: Market) -> None:
    opened, encoder = market.index(), CountingEncoder()
    market.rows[2]["price"] = 1.0
    market.rows[0]["brand"] = "Bell"
    shelf = market.open(opened, encoder)
    assert (encoder.calls, shelf.num_changes) == (0, 2)
    for ranker in ("dense", "lexical", "hybrid"):
        assert found_ids(shelf, "red hat", CHEAP, ranker) == ["sku-2"]
        assert found_ids(shelf, "red boots", Filters(brand=("Bell",)), ranker) == ["sku-0"]
        dear = Filters(price=Range(ge=12.0, le=12.0))
        assert found_ids(shelf, "red hat", dear, ranker) == []  # what it was
    agrees_with_its_catalog(shelf, market.region())


def test_a_price_alone_is_not_encoded_where_codes_are_searched(market: Market) -> None:
    market.configure('[serve]\nindex_factory = "IVF1,SQ8"\n')
    opened, encoder = market.index(), CountingEncoder()
    stored = opened.vectors().vectors_of(np.arange(len(TITLES)))
    for row in market.rows:
        row["price"] = 1.0
    shelf = market.open(opened, encoder)
    assert (encoder.calls, shelf.num_changes) == (0, len(TITLES))
    for at, (title, product_id) in enumerate(zip(TITLES, opened.ids.tolist(), strict=True)):
        assert found_ids(shelf, title, CHEAP, "dense")[0] == product_id
        row = shelf.products.row_of(product_id)
        assert row is not None and row >= len(TITLES)
        np.testing.assert_array_equal(shelf.vectors.vectors_of(np.array([row]))[0], stored[at])


def test_a_changed_title_is_encoded_and_the_former_one_forgotten(market: Market) -> None:
    opened, encoder = market.index(), CountingEncoder()
    market.rows[3]["title"] = "a violet umbrella"
    shelf = market.open(opened, encoder)
    assert encoder.texts == ["a violet umbrella"]
    for ranker in ("dense", "lexical"):
        assert found_ids(shelf, "a violet umbrella", ranker=ranker)[0] == "sku-3"
    assert found_ids(shelf, "phone", ranker="lexical") == []
    assert len(found_ids(shelf, "a phone", ranker="dense")) == len(TITLES)
    agrees_with_its_catalog(shelf, market.region())


def test_a_changed_photo_is_encoded(market: Market) -> None:
    market.photo("p.png", "red")
    market.rows[1]["image"] = "p.png"
    opened, same, other = market.index(), CountingEncoder(), CountingEncoder()
    market.open(opened, same)
    assert same.calls == 0
    market.photo("p.png", "blue")
    shelf = market.open(opened, other)
    assert other.texts == ["blue boots"]
    assert other.images == [market.folder / "images" / "p.png"]
    assert shelf.num_changes == 1


def test_what_is_gone_is_not_found_and_what_is_new_is(market: Market) -> None:
    opened, encoder = market.index(), CountingEncoder()
    del market.rows[0], market.rows[-1]
    market.rows.insert(1, {**market.rows[0], "product_id": "sku-9", "title": "silver spoon"})
    shelf = market.open(opened, encoder)
    assert encoder.texts == ["silver spoon"]
    assert shelf.num_changes == 3
    for ranker in ("dense", "lexical"):
        assert found_ids(shelf, "silver spoon", ranker=ranker)[0] == "sku-9"
        assert not {"sku-0", "sku-5"} & set(found_ids(shelf, "red boots", ranker=ranker))
    assert found_ids(shelf, "sku-0", ranker="lexical") == []
    assert shelf.products.row_of("sku-0") is None
    everything = shelf.find(Ask()).candidates
    assert sorted(ids_of(shelf, everything)) == ["sku-1", "sku-2", "sku-3", "sku-4", "sku-9"]
    agrees_with_its_catalog(shelf, market.region())


def test_every_kind_of_change_at_once_gives_each_product_its_own_vector(market: Market) -> None:
    """New, encoded anew and kept ones among each other; none gets another one's vector."""
    opened, encoder = market.index(), CountingEncoder()
    market.rows[0]["price"] = 1.0
    market.rows[1]["title"] = "amber ring"
    market.rows[4]["price"] = 2.0
    market.rows[5]["title"] = "ivory comb"
    del market.rows[3]
    market.rows.insert(2, {**market.rows[0], "product_id": "sku-8", "title": "copper pot"})
    market.rows.reverse()
    shelf = market.open(opened, encoder)
    assert encoder.calls == 1
    assert sorted(map(str, encoder.texts)) == ["amber ring", "copper pot", "ivory comb"]
    assert shelf.num_changes == 6
    assert found_ids(shelf, "red boots", CHEAP, "dense")[0] == "sku-0"
    agrees_with_its_catalog(shelf, market.region())


def test_a_catalog_of_which_nothing_is_left_but_new_products(market: Market) -> None:
    opened = market.index()
    market.rows = [{**row, "product_id": f"n-{at}"} for at, row in enumerate(market.rows[:2])]
    shelf = market.open(opened)
    assert sorted(alive_ids(shelf)) == ["n-0", "n-1"]
    assert found_ids(shelf, "red boots")[0] == "n-0"


def test_changes_taken_while_serving_are_on_the_shelf(market: Market) -> None:
    opened = market.index()
    (market.folder / "state").mkdir(exist_ok=True)
    with Store(market.folder / "state" / "events.sqlite") as store:
        overlay = Overlay.open(store)
        overlay.upsert([Product(product_id="live", title="silver spoon", price=2.0)])
        overlay.delete(["sku-1"])
    shelf = market.open(opened)
    assert found_ids(shelf, "silver spoon", CHEAP) == ["live"]
    assert shelf.products.row_of("sku-1") is None


@pytest.mark.parametrize("num_new", [2, 3])
def test_too_many_changes_wait_for_the_next_index(
    market: Market, monkeypatch: pytest.MonkeyPatch, num_new: int
) -> None:
    """Only what must be encoded counts: new prices of everything are no hindrance."""
    monkeypatch.setattr(client.shelves, "MAX_LATE", 2)
    opened, encoder = market.index(), CountingEncoder()
    for row in market.rows:
        row["price"] = 1.0
    for number in range(num_new):
        market.rows[number]["title"] = f"another {number}"
    if num_new <= 2:
        assert market.open(opened, encoder).num_changes == len(TITLES)
    else:
        expected = f"{opened.folder.name}: 3 products are new or have changed .* more than 2; "
        with pytest.raises(RetrievalError, match=expected):
            market.open(opened, encoder)
        assert encoder.calls == 0
    gc.collect()
    assert _folders(market.scratch) == []


def test_an_index_is_left_byte_for_byte_and_the_scratch_is_left_empty(market: Market) -> None:
    opened = market.index()
    before = {name: _digest(raw) for name, raw in contents(opened.folder).items()}
    stamps = _times(opened.folder)
    market.rows[0]["title"] = "silver spoon"
    del market.rows[5]
    shelves = [market.open(opened), market.open(opened)]  # two of them side by side
    for number in range(5):
        table = market.region().catalog[:1].with_columns(product_id=pl.lit(f"live-{number}"))
        shelves = [one.changed(table, ["x"], vector_of("x")[None], []) for one in shelves]
    assert all(len(found_ids(one, "x", ranker="lexical")) == 1 for one in shelves)
    assert len(_folders(market.scratch)) == 2
    assert before == {name: _digest(raw) for name, raw in contents(opened.folder).items()}
    assert stamps == _times(opened.folder)
    del shelves
    gc.collect()
    assert {path.name for path in market.scratch.iterdir()} <= {".lock"}
    open_index_folder(opened.folder)


def test_the_regions_own_rules_and_groups_hold(market: Market) -> None:
    (market.folder / "rules.toml").write_text(
        'synonyms = [["umbrella", "boots"]]\n[[block]]\nproducts = ["sku-0"]\n'
        '[[pin]]\nquery = "scarf"\nproducts = ["sku-3"]\n'
    )
    market.configure('[serve]\nrules = "rules.toml"\ngroup_attribute = "Model"\n')
    for row in market.rows:
        row["attributes"] = [{"key": "Model", "value": "m"}] if row["brand"] is None else []
    shelf = market.open(market.index())
    assert found_ids(shelf, "scarf")[0] == "sku-3"
    assert found_ids(shelf, "umbrella", ranker="lexical") == ["sku-1"]
    assert not {"sku-0"} & set(found_ids(shelf, "red boots"))
    found = shelf.find(Ask(vector=vector_of("green scarf")))
    assert ids_of(shelf, found.rows[:1]) == ["sku-4"]
    assert ids_of(shelf, found.variants[0]) == ["sku-2"]  # sku-0 is blocked


def test_a_region_without_rules_has_none_and_wrong_ones_are_named(market: Market) -> None:
    assert region_rules(market.region()).pins == ()
    market.configure('[serve]\nrules = "none.toml"\n')
    with pytest.raises(ConfigError, match=r"none\.toml: not found"):
        market.open(market.index())


def test_suggestions_come_from_the_catalog_as_it_is_now(market: Market) -> None:
    opened = market.index()
    market.rows[3]["title"] = "violet umbrella"
    suggester = market.open(opened).suggester
    assert suggester is not None
    assert any("umbrella" in one.text for one in suggester.suggest("umb", 5))
    assert suggester.suggest("pho", 5) == []


def test_scratch_is_a_folder_that_nobody_else_can_write(tmp_path: Path) -> None:
    folder = scratch_folder(tmp_path)
    if folder != tmp_path / "scratch":
        found = folder.lstat()
        assert stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
        assert stat.S_IMODE(found.st_mode) & 0o022 == 0
    assert scratch_folder(tmp_path) == folder


@pytest.mark.parametrize("spoil", ["link", "file", "no memory"])
def test_a_scratch_folder_that_was_laid_there_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    memory, elsewhere = tmp_path / "shm", tmp_path / "elsewhere"
    elsewhere.mkdir()
    mine = memory / f"fedshelf-{os.getuid()}"
    monkeypatch.setattr(client.shelves, "MEMORY", memory)
    if spoil != "no memory":
        memory.mkdir()
        assert scratch_folder(tmp_path / "state") == mine
        mine.rmdir()
    if spoil == "link":
        mine.symlink_to(elsewhere)
    elif spoil == "file":
        mine.touch()
    assert scratch_folder(tmp_path / "state") == tmp_path / "state" / "scratch"


def test_an_own_scratch_folder_that_others_can_write_is_closed_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.shelves, "MEMORY", tmp_path)
    mine = tmp_path / f"fedshelf-{os.getuid()}"
    mine.mkdir()
    mine.chmod(0o777)
    assert scratch_folder(tmp_path / "state") == mine
    assert stat.S_IMODE(mine.stat().st_mode) == 0o700


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def _folders(scratch: Path) -> list[Path]:
    return [path for path in scratch.iterdir() if path.is_dir()]
