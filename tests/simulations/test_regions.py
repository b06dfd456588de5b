from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from shared.errors import DataError
from shared.schema import (
    CATALOG_COLUMNS,
    CLICK_COLUMNS,
    QREL_COLUMNS,
    BaseConfig,
    DataConfig,
    RegionConfig,
    load_region_config,
    render_region_toml,
)
from simulations.datasets.source import Query
from simulations.regions import (
    rows_of,
    write_catalog,
    write_clicks,
    write_qrels,
    write_region_toml,
)


def products(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir(exist_ok=True)
    (photos / "a.jpg").write_bytes(b"photo a")
    return pl.DataFrame(
        {
            "product_id": ["a", "b"],
            "title": ["Red shoe", "Blue shoe"],
            "supplier": ["s", "t"],
            "price": [1, 2],
            "image": [str(photos / "a.jpg"), None],
        }
    )


def config(**changes):
    base = BaseConfig(path='with "quotes" and \\', fingerprint="3f", release_key="0a", releases="r")
    return RegionConfig(region="north", base=base, **changes)


def test_a_catalog_has_exactly_the_agreed_columns_and_its_photos(tmp_path):
    folder = tmp_path / "regions" / "north"
    written = write_catalog(folder, products(tmp_path))
    read = pl.read_parquet(folder / "catalog.parquet")
    assert read.equals(written)
    assert dict(read.schema) == CATALOG_COLUMNS
    assert read["image"].to_list() == ["a.jpg", None]
    assert (folder / "images" / "a.jpg").read_bytes() == b"photo a"
    assert sorted(path.name for path in folder.iterdir()) == ["catalog.parquet", "images"]


def test_photos_of_one_name_stay_apart(tmp_path):
    table = products(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.jpg").write_bytes(b"photo b")
    paths = [table["image"][0], str(tmp_path / "other" / "a.jpg")]
    written = write_catalog(tmp_path / "north", table.with_columns(image=pl.Series(paths)))
    read = [(tmp_path / "north" / "images" / name).read_bytes() for name in written["image"]]
    assert read == [b"photo a", b"photo b"]


def test_a_photo_that_is_gone_leaves_nothing_behind(tmp_path):
    table = products(tmp_path)
    (tmp_path / "photos" / "a.jpg").unlink()
    with pytest.raises(DataError, match="north: cannot be written"):
        write_catalog(tmp_path / "regions" / "north", table)
    assert list((tmp_path / "regions").iterdir()) == []


def test_what_a_killed_run_left_is_in_nobodys_way(tmp_path):
    (tmp_path / ".north.partial" / "images").mkdir(parents=True)
    write_catalog(tmp_path / "north", products(tmp_path))
    assert not (tmp_path / ".north.partial").exists()


def test_a_region_is_not_written_over(tmp_path):
    (tmp_path / "north").mkdir()
    with pytest.raises(DataError, match="is there already"):
        write_catalog(tmp_path / "north", products(tmp_path))


def test_qrels_leave_out_and_count_what_this_catalog_cannot_answer(tmp_path):
    queries = [
        Query("shoe", np.array([0, 1]), np.array([3, 1], np.int8)),
        Query("lamp", np.empty(0, np.int64), np.empty(0, np.int8)),
    ]
    assert write_qrels(tmp_path / "qrels.parquet", queries, ["a", "b"]) == 1
    qrels = pl.read_parquet(tmp_path / "qrels.parquet")
    assert qrels.rows() == [("shoe", "a", 3), ("shoe", "b", 1)]
    assert dict(qrels.schema) == QREL_COLUMNS


def test_without_any_answerable_query_qrels_are_empty_but_there(tmp_path):
    assert write_qrels(tmp_path / "qrels.parquet", [], ["a"]) == 0
    assert dict(pl.read_parquet_schema(tmp_path / "qrels.parquet")) == QREL_COLUMNS


def test_clicks_are_written_whole(tmp_path):
    row = dict.fromkeys(CLICK_COLUMNS) | {"request_id": "1", "ts": datetime(2025, 1, 1, tzinfo=UTC)}
    clicks = pl.DataFrame([row], schema=CLICK_COLUMNS)
    write_clicks(tmp_path, clicks)
    assert pl.read_parquet(tmp_path / "clicks.parquet").equals(clicks)
    assert [path.name for path in tmp_path.iterdir()] == ["clicks.parquet"]


@pytest.mark.parametrize(
    "wanted",
    [
        config(),
        config(locale="de", data=DataConfig(qrels="qrels.parquet", text_fields=("title", "brand"))),
        config(state="a\tb\u007f\u00e9"),
    ],
)
def test_a_rendered_configuration_is_read_back_equal(tmp_path, wanted):
    write_region_toml(tmp_path, wanted)
    assert load_region_config(tmp_path) == wanted
    assert (tmp_path / "region.toml").read_text(encoding="utf-8") == render_region_toml(wanted)


def test_rows_of_a_region():
    assert rows_of(["north", "south", "north"], "north").tolist() == [0, 2]
