"""Regions as retailers bring them: sound ones open alike in every form, bad ones are named."""

import gzip
import io
import json
from datetime import UTC, datetime

import polars as pl
import pytest
from PIL import Image

from client.region import open_region, photo_problem, read_clicks, read_qrels
from client.service.events import EventStore, Impression, Impressions
from client.service.messages import Event, Product
from client.service.overlay import Overlay
from client.service.store import Store
from shared.errors import DataError
from shared.schema import CATALOG_COLUMNS, CLICK_COLUMNS, QREL_COLUMNS

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)
CATALOG = [
    {"product_id": "p0", "title": "boot", "brand": "Aco", "price": 10.5, "image": "a.png"},
    {"product_id": "p1", "title": "shoe", "brand": None, "price": 20.0, "image": None},
    {"product_id": "p2", "title": "sock", "brand": "Bix", "price": None, "image": "sub/b.jpg"},
]
CLICK = {
    "request_id": "r0",
    "ts": NOON,
    "query": "boots",
    "product_id": "p0",
    "position": 1,
    "clicked": True,
}


def photo(form="PNG", colour=(9, 9, 200), size=(8, 8)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, form)
    return buffer.getvalue()


def toml(**data):
    lines = [f"{key} = {json.dumps(value)}" for key, value in data.items()]
    base = 'path = "b"\nfingerprint = "f"\nrelease_key = "k"\nreleases = "r"'
    return "\n".join(['region = "north"', "[base]", base, "[data]", *lines])


def write(path, rows):
    """Write rows in the form that the file's name says."""
    if path.suffix == ".parquet":
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)
    elif path.suffix == ".csv":
        pl.DataFrame(rows, infer_schema_length=None).write_csv(path)
    else:
        text = "\n".join(json.dumps(row, default=str) for row in rows).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


@pytest.fixture
def make(tmp_path):
    def make(catalog=CATALOG, clicks=(CLICK,), qrels=None, form="parquet", **data):
        """A region's folder; `clicks` are rows, or the name of a log that is there already."""
        (tmp_path / "images/sub").mkdir(parents=True, exist_ok=True)
        (tmp_path / "images/a.png").write_bytes(photo())
        (tmp_path / "images/sub/b.jpg").write_bytes(photo("JPEG"))
        names = {"catalog": f"catalog.{form}", "clicks": f"clicks.{form}"}
        write(tmp_path / names["catalog"], catalog)
        if isinstance(clicks, str):
            names["clicks"] = clicks
        else:
            write(tmp_path / names["clicks"], clicks)
        if qrels is not None:
            names["qrels"] = f"qrels.{form}"
            write(tmp_path / names["qrels"], qrels)
        (tmp_path / "region.toml").write_text(toml(**(names | data)))
        return tmp_path

    return make


def with_cell(rows, number, **cells):
    return [row | cells if i == number else row for i, row in enumerate(rows)]


def test_a_sound_region_opens_without_problems(make):
    region = open_region(make())
    assert region.problems == []
    assert region.catalog.schema == pl.Schema(CATALOG_COLUMNS)
    assert region.texts == ["boot", "shoe", "sock"]
    assert [p and p.name for p in region.image_paths] == ["a.png", None, "b.jpg"]
    assert region.state == region.folder / "state"


@pytest.mark.parametrize("form", ["csv", "jsonl", "jsonl.gz"])
def test_every_form_opens_alike(make, form):
    parquet, other = open_region(make()), open_region(make(form=form))
    assert other.problems == []
    assert other.catalog.equals(parquet.catalog)
    assert other.catalog_digest == parquet.catalog_digest
    assert read_clicks(other).equals(read_clicks(parquet))
    assert read_clicks(other)["ts"].to_list() == [NOON]


def test_gzipped_csv(make):
    folder = make(form="csv")
    plain = open_region(folder).catalog
    (folder / "catalog.csv.gz").write_bytes(gzip.compress((folder / "catalog.csv").read_bytes()))
    (folder / "region.toml").write_text(toml(catalog="catalog.csv.gz"))
    assert open_region(folder).catalog.equals(plain)


def test_text_fields_in_their_order_without_gaps(make):
    region = open_region(make(text_fields=["brand", "title"]))
    assert region.texts == ["Aco boot", "shoe", "Bix sock"]


def test_attributes_as_json_text_and_as_map(make):
    catalog = with_cell(CATALOG, 0, attributes='{"Colour": "red", "Size": 42}')
    pairs = [{"key": "Colour", "value": "red"}, {"key": "Size", "value": "42"}]
    as_text = open_region(make(catalog, form="csv")).catalog["attributes"].to_list()
    as_object = with_cell(CATALOG, 0, attributes={"Colour": "red", "Size": 42})
    as_map = with_cell(CATALOG, 0, attributes=pairs)
    assert as_text == [pairs, None, None]
    assert open_region(make(as_object, form="jsonl")).catalog["attributes"].to_list() == as_text
    assert open_region(make(as_map)).catalog["attributes"].to_list() == as_text


@pytest.mark.parametrize(
    ("number", "cells", "kept", "reason"),
    [
        (1, {"product_id": None}, 2, "product_id: missing"),
        (1, {"title": "  "}, 2, "title: missing"),
        (1, {"product_id": "p0"}, 2, "duplicate product_id"),
        (1, {"price": -1.0}, 3, "price: below 0"),
        (1, {"price": float("nan")}, 3, "price: not a finite number"),
        (1, {"image": "gone.png"}, 3, "image: file not found"),
        (1, {"image": "../region.toml"}, 3, "image: outside the images folder"),
        (1, {"image": "sub"}, 3, "image: cannot be decoded"),
    ],
)
def test_a_bad_product_is_named_by_file_row_and_reason(make, number, cells, kept, reason):
    region = open_region(make(with_cell(CATALOG, number, **cells)))
    assert region.problems == [f"catalog.parquet row 2: {reason}"]
    assert region.catalog.height == len(region.texts) == len(region.image_paths) == kept
    assert region.image_paths[-1] is not None


def test_an_unsound_optional_cell_is_emptied(make):
    catalog = with_cell(CATALOG, 1, price="cheap", in_stock="maybe", updated_at="soon", sales="1.5")
    region = open_region(make(catalog, form="jsonl"))
    assert region.catalog.height == 3
    assert region.catalog.row(1, named=True)["price"] is None
    assert region.problems == [
        "catalog.jsonl row 2: in_stock: not true or false",
        "catalog.jsonl row 2: price: not a finite number",
        "catalog.jsonl row 2: sales: not a whole number",
        "catalog.jsonl row 2: updated_at: not a time such as 2025-03-01T12:00:00Z",
    ]


def test_a_broken_json_line_is_named_and_the_rest_kept(make):
    folder = make(form="jsonl")
    lines = (folder / "catalog.jsonl").read_text().splitlines()
    (folder / "catalog.jsonl").write_text("\n".join([lines[0], '{"pro', "", "[1]", lines[2]]))
    region = open_region(folder)
    assert region.catalog["product_id"].to_list() == ["p0", "p2"]
    assert region.problems == [f"catalog.jsonl row {row}: not a JSON object" for row in (2, 4)]


UNREADABLE = {
    "empty": b"",
    "garbage": b"garbage",
    "cut-off PNG": photo()[:50],
    "cut-off JPEG": photo("JPEG", size=(99, 99))[:-40],
    "format not allowed": photo("TIFF"),
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_photo_costs_the_photo_not_the_product(make, content):
    folder = make()
    (folder / "images/a.png").write_bytes(content)
    region = open_region(folder)
    assert region.problems == ["catalog.parquet row 1: image: cannot be decoded"]
    assert region.image_paths[0] is None
    assert region.catalog["image"].to_list() == [None, None, "sub/b.jpg"]


def test_a_decompression_bomb_is_not_unpacked(make, monkeypatch):
    monkeypatch.setattr("client.region.MAX_IMAGE_PIXELS", 63)
    region = open_region(make())
    assert [line.split(": ")[2] for line in region.problems] == [
        "above 63 pixels or 67,108,864 B"
    ] * 2


def test_a_row_has_one_digest_of_what_its_vector_sees_and_one_of_everything(make):
    first = open_region(make())
    for change, vector_too in (
        ({"price": 99.0}, False),
        ({"in_stock": False}, False),
        ({"title": "x"}, True),
        ({"image": None}, True),
    ):
        changed = open_region(make(with_cell(CATALOG, 0, **change)))
        differs = changed.digests != first.digests
        assert differs[0].tolist() == [vector_too, True] and not differs[1:].any()
        assert changed.catalog_digest != first.catalog_digest
    folder = make()
    (folder / "images/a.png").write_bytes(photo(colour=(1, 2, 3)))
    assert (open_region(folder).digests != first.digests)[0].all()


def test_the_catalog_digest_knows_the_order_and_the_language(make):
    regions = [open_region(make()), open_region(make(CATALOG[::-1])), open_region(make())]
    german = make()
    toml = (german / "region.toml").read_text()
    (german / "region.toml").write_text('locale = "de"\n' + toml)
    digests = {region.catalog_digest for region in [*regions, open_region(german)]}
    assert len(digests) == 3


def test_too_many_bad_rows_refuse_the_region(make):
    catalog = [CATALOG[0]] * 3
    assert open_region(make(catalog, max_bad_rows=2)).catalog.height == 1
    with pytest.raises(DataError, match="3 bad rows, 2 allowed; first: row 2: duplicate"):
        open_region(make([*catalog, CATALOG[0]], max_bad_rows=2))


@pytest.mark.parametrize(
    ("catalog", "match"),
    [
        ([{"product_id": "p"}], r"catalog.parquet: no column title among: product_id; add"),
        ([row | {"title": None} for row in CATALOG], r"no sound row; first: row 1: title: missing"),
    ],
)
def test_an_unusable_catalog_is_refused_in_one_line(make, catalog, match):
    with pytest.raises(DataError, match=match) as caught:
        open_region(make(catalog))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("catalog.csv", b"", "empty file"),
        ("catalog.csv", b"product_id,title\n", "no rows"),
        ("catalog.csv", b'product_id,title\n1,"secret\xff\n', r"cannot be read \(ComputeError\)"),
        ("catalog.jsonl", b"\n", "no rows"),
        ("catalog.parquet", b"PAR1 not really", "cannot be read"),
        ("catalog.jsonl.gz", b"not gzip", r"cannot be read \(BadGzipFile\)"),
        ("catalog.xlsx", b"", r"unknown kind; use .parquet, .csv or .jsonl"),
        ("catalog.parquet", None, r"not found; see \[data\] in region.toml"),
    ],
)
def test_an_unusable_file_is_refused_in_one_line(tmp_path, name, content, match):
    (tmp_path / "region.toml").write_text(toml(catalog=name))
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=match) as caught:
        open_region(tmp_path)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("a secret; query,p1,title", "title, 2 of other names"),
        ("a secret; query,p1,1", "3 of other names"),
        ("title,brand", "title, brand"),
    ],
)
def test_columns_of_other_names_are_counted_and_not_shown(tmp_path, header, found):
    (tmp_path / "catalog.csv").write_text(f"{header}\n{header}\n")
    (tmp_path / "region.toml").write_text(toml(catalog="catalog.csv"))
    with pytest.raises(DataError, match=rf"no column product_id.* among: {found}; add or rename"):
        open_region(tmp_path)


def test_a_query_that_slipped_into_another_column_is_not_shown(make):
    slipped = CLICK | {"product_id": "a secret; query"}
    region = open_region(make(clicks=[CLICK, slipped], form="csv"))
    read_clicks(region)
    assert region.problems == ["clicks.csv row 2: unknown product_id"]
    again = [CATALOG[0], CATALOG[0] | {"product_id": "a secret"}] * 2
    assert "secret" not in str(open_region(make(again)).problems)
    with pytest.raises(DataError, match="row 3: duplicate product_id; correct") as caught:
        open_region(make(again, max_bad_rows=0))
    assert "secret" not in str(caught.value)


def test_clicks_come_in_their_columns(make):
    clicks = read_clicks(open_region(make()))
    assert clicks.schema == pl.Schema(CLICK_COLUMNS)
    assert clicks.row(0, named=True)["purchased"] is False


@pytest.mark.parametrize(
    ("cells", "kept", "reason"),
    [
        ({"product_id": "p9"}, 1, "unknown product_id"),
        ({"request_id": None}, 1, "request_id: missing"),
        ({"query": " "}, 1, "query: missing"),
        ({"position": 0}, 1, "position: below 1"),
        ({"position": "top"}, 1, "position: not a whole number"),
        ({"clicked": "perhaps"}, 1, "clicked: not true or false"),
        ({"ts": "yesterday"}, 1, "ts: not a time such as 2025-03-01T12:00:00Z"),
        ({"propensity": 0.0}, 2, "propensity: outside (0, 1]"),
        ({"propensity": 1.5}, 2, "propensity: outside (0, 1]"),
    ],
)
def test_a_bad_click_is_named_by_file_row_and_reason(make, cells, kept, reason):
    region = open_region(make(clicks=[CLICK, CLICK | cells], form="jsonl"))
    clicks = read_clicks(region)
    read_clicks(region)
    assert clicks.height == kept
    assert clicks["propensity"].to_list() == [None] * kept
    assert region.problems == [f"clicks.jsonl row 2: {reason}"]


def test_a_query_by_photo_needs_no_words(make):
    region = open_region(make(clicks=[CLICK | {"query": None, "query_image": "q.jpg"}]))
    assert read_clicks(region)["query"].to_list() == [""]
    assert region.problems == []


EMPTY = pl.DataFrame([CLICK]).clear()


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_on_its_first_day_a_region_has_no_clicks(make, form):
    folder = make(form=form)
    write(folder / f"clicks.{form}", [] if form == "jsonl" else EMPTY)
    region = open_region(folder)
    clicks = read_clicks(region)
    assert clicks.schema == pl.Schema(CLICK_COLUMNS)
    assert (clicks.height, region.problems) == (0, [])


def test_nor_has_a_service_that_has_answered_nobody(make):
    region = open_region(make(clicks="state/events.sqlite"))
    assert read_clicks(region).equals(pl.DataFrame(schema=CLICK_COLUMNS))
    other = open_region(make(clicks="elsewhere.sqlite"))
    with pytest.raises(DataError, match=r"elsewhere.sqlite: not found"):
        read_clicks(other)


def test_a_log_without_a_row_still_needs_its_columns(make):
    folder = make()
    EMPTY.drop("clicked").write_parquet(folder / "clicks.parquet")
    with pytest.raises(DataError, match=r"clicks.parquet: no column clicked among"):
        read_clicks(open_region(folder))


def test_too_many_bad_clicks_are_refused(make):
    region = open_region(make(clicks=[CLICK | {"product_id": "p9"}] * 3, max_bad_rows=2))
    with pytest.raises(DataError, match=r"clicks.parquet: 3 bad rows, 2 allowed; first: row 1"):
        read_clicks(region)


def test_qrels(make):
    qrel = {"query": "boots", "product_id": "p0", "grade": 2}
    rows = [qrel, qrel | {"grade": 1}, qrel | {"product_id": "p9"}, qrel | {"query": "x"}]
    region = open_region(make(qrels=[*rows, qrel | {"query": "y", "grade": -1}]))
    qrels = read_qrels(region)
    assert qrels.schema == pl.Schema(QREL_COLUMNS)
    assert qrels["grade"].to_list() == [2, 2]
    assert region.problems == [
        "qrels.parquet row 2: second grade for one query and product_id",
        "qrels.parquet row 3: unknown product_id",
        "qrels.parquet row 5: grade: below 0",
    ]


def test_qrels_that_nobody_named(make):
    with pytest.raises(DataError, match=r"region.toml: data.qrels: not set; name a qrels file"):
        read_qrels(open_region(make()))


# -- what the service keeps ------------------------------------------------------------------------


def changed(folder, *, upserts=(), deleted=()):
    """What a service took, and wrote down, in a region."""
    with Store(folder / "state/events.sqlite") as store:
        if upserts:
            Overlay.open(store).upsert([Product(**cells) for cells in upserts])
        if deleted:
            Overlay.open(store).delete(deleted)
    return folder


def shown(folder, *product_ids, query="boots"):
    """An answer of a service, and a click on its first product."""
    with Store(folder / "state/events.sqlite") as store:
        log = EventStore(store)
        products = tuple(Impression(one, n, 1 / n) for n, one in enumerate(product_ids, 1))
        log.log_impressions(Impressions("r", NOON, query, "text", "", "hybrid", 0, products))
        event = Event(event_id="e", request_id="r", product_id=product_ids[0], type="click")
        log.log_events([event])
    return folder


def test_opening_makes_no_event_store(make):
    region = open_region(make())
    assert not region.state.exists()
    assert (region.overlay_seq, region.caught_up) == (0, ())


def test_changes_that_came_in_while_serving_are_in_the_catalog(make):
    upserts = [
        {"product_id": "p9", "title": "cap", "image": "a.png"},
        {"product_id": "p1", "title": "red shoe", "image": "sub/b.jpg"},
        {"product_id": "p2", "title": "sock", "brand": "Bix", "image": "sub/b.jpg"},
    ]
    region = open_region(changed(make(), upserts=upserts, deleted=["p0"]))
    assert region.catalog["product_id"].to_list() == ["p1", "p2", "p9"]
    assert region.texts == ["red shoe", "sock", "cap"]
    assert [p and p.name for p in region.image_paths] == ["b.jpg", "b.jpg", "a.png"]
    assert region.catalog.schema == pl.Schema(CATALOG_COLUMNS)
    assert region.problems == []
    assert (region.overlay_seq, region.caught_up) == (4, ("p2",))
    export = [{"product_id": "p1", "title": "red shoe", "image": "sub/b.jpg"}, CATALOG[2]]
    write(region.folder / "catalog.parquet", [*export, upserts[0]])
    later = open_region(region.folder)
    assert later.catalog_digest == region.catalog_digest
    assert later.caught_up == ("p9", "p1", "p2")


def test_a_new_price_alone_leaves_what_vectors_are_made_from(make):
    folder = make()
    before = open_region(folder)
    cheaper = CATALOG[0] | {"price": 1.0}
    region = open_region(changed(folder, upserts=[cheaper]))
    differs = region.digests != before.digests
    assert differs.tolist() == [[False, True], [False, False], [False, False]]
    assert region.catalog["price"].to_list() == [1.0, 20.0, None]


def test_the_same_product_sent_again_leaves_every_digest(make):
    """Only `updated_at` differs, which nobody is shown and nobody searches for."""
    folder = make()
    before = open_region(folder)
    region = open_region(changed(folder, upserts=[dict(CATALOG[0])]))
    assert (region.digests == before.digests).all()
    assert region.catalog_digest == before.catalog_digest


def test_bad_photos_of_changes_are_reported_by_number_and_refuse_nothing(make):
    gone = [{"product_id": f"n{n}", "title": "t", "image": f"gone{n}.png"} for n in range(3)]
    catalog = with_cell(CATALOG, 1, image="gone.png")
    region = open_region(changed(make(catalog, max_bad_rows=1), upserts=gone))
    assert region.problems == [
        "catalog.parquet row 2: image: file not found",
        "events.sqlite change 1: image: file not found",
        "events.sqlite change 2: image: file not found",  # no more of them than max_bad_rows + 1
    ]
    assert region.image_paths[-3:] == [None] * 3


def test_a_catalog_of_deleted_products_only_is_refused(make):
    folder = changed(make(), deleted=["p0", "p1", "p2"])
    with pytest.raises(DataError, match=r"all of its products were deleted while serving; export"):
        open_region(folder)


def test_a_damaged_event_store_is_named(make):
    folder = make()
    (folder / "state").mkdir()
    (folder / "state/events.sqlite").write_bytes(b"garbage" * 1000)
    with pytest.raises(DataError, match=r"events.sqlite: damaged, or not an event store"):
        open_region(folder)


def test_clicks_of_the_service_itself(make):
    folder = shown(make(clicks="state/events.sqlite"), "p2", "p0")
    region = open_region(folder)
    clicks = read_clicks(region)
    assert clicks.schema == pl.Schema(CLICK_COLUMNS)
    assert clicks.select("query", "product_id", "position", "clicked", "propensity").rows() == [
        ("boots", "p2", 1, True, 1.0),
        ("boots", "p0", 2, False, 0.5),
    ]
    assert region.problems == []


def test_clicks_of_a_running_service(make):
    folder = shown(make(clicks="state/events.sqlite"), "p2", "p0")
    with Store(folder / "state/events.sqlite") as store:
        region = open_region(folder)
        assert read_clicks(region).height == 2
        answer = Impressions("s", NOON, "x", "text", "", "", 0, (Impression("p0", 1, 1.0),))
        EventStore(store).log_impressions(answer)
        EventStore(store).log_events([])
        assert read_clicks(region).height == 3


def test_impressions_of_former_products_are_no_bad_rows(make):
    names = ["p2", *(f"former{n}" for n in range(5))]
    folder = shown(make(clicks="state/events.sqlite", max_bad_rows=0), *names)
    region = open_region(folder)
    for _ in range(2):
        assert read_clicks(region)["product_id"].to_list() == ["p2"]
    assert region.problems == [
        "events.sqlite: 5 impressions of 5 products that the catalog no longer has left out"
    ]


def test_a_store_without_usable_clicks_says_what_to_do(make):
    folder = shown(make(clicks="state/events.sqlite"), "former")
    match = r"all 1 impressions are of products that the catalog no longer has; serve"
    with pytest.raises(DataError, match=match):
        read_clicks(open_region(folder))


def test_photo_problem_says_what_a_catalog_check_would(make):
    images = make() / "images"
    assert photo_problem(images, "a.png") == ""
    assert photo_problem(images, "gone.png") == "image: file not found"
    assert photo_problem(images, "../region.toml") == "image: outside the images folder"
