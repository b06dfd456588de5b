from itertools import product

import numpy as np
import polars as pl
import pytest
from PIL import Image

from shared.errors import DataError
from shared.schema import CATALOG_COLUMNS
from simulations.datasets.fashion import load_fashion, make_queries, phrase

HEADER = "id,gender,masterCategory,articleType,baseColour,productDisplayName"


def write(folder, lines, *, header=HEADER, photos=()):
    (folder / "images").mkdir(exist_ok=True)
    (folder / "styles.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    for name in photos:
        Image.new("RGB", (6, 8), "red").save(folder / "images" / f"{name}.jpg")
    return folder


def lines(number=40):
    kinds = product(("Men", "Women"), ("Tshirts", "Heels"), ("Red", "Navy Blue"))
    cells = list(kinds) * (number // 8)
    return [
        f"{n},{who},Apparel,{kind},{colour},Title {n // 2}"
        for n, (who, kind, colour) in enumerate(cells)
    ]


def world(folder):
    return write(folder, lines(), photos=range(40))


def test_products_have_their_text_alone_and_their_photo(tmp_path):
    source = load_fashion(world(tmp_path), seed=7)
    assert dict(source.products.schema) == CATALOG_COLUMNS
    assert source.text_fields == ("title",)
    assert source.problems == []
    row = source.products.row(0, named=True)
    number = int(row["product_id"])
    assert row["title"] == f"Title {number // 2}"
    assert row["image"] == str(tmp_path / "images" / f"{number}.jpg")
    assert {pair["key"] for pair in row["attributes"]} == {"colour", "gender"}
    assert row["description"] is None


def test_the_public_slice_is_seeded_and_shares_no_title_with_the_regions(tmp_path):
    world(tmp_path)
    source, same, other = (load_fashion(tmp_path, seed=seed) for seed in (7, 7, 8))
    assert 0 < source.public.height < 40
    assert source.public.height + source.products.height == 40
    assert not set(source.public["title"]) & set(source.products["title"])
    assert source.public.equals(same.public)
    assert not source.public.equals(other.public)
    assert load_fashion(tmp_path, seed=7, public_share=0.0).public.height == 0


def test_grades_are_those_of_a_slow_comparison(tmp_path):
    source = load_fashion(world(tmp_path), seed=7)
    facts = [
        (row["category"], *(pair["value"] for pair in row["attributes"]))
        for row in source.products.iter_rows(named=True)
    ]
    by_text = {phrase(*fact): fact for fact in facts}
    assert {query.text for query in source.queries} == set(by_text)
    for query in source.queries:
        kind, colour, gender = by_text[query.text]
        slow = [(3 if c == colour else 2) if g == gender else 1 for k, c, g in facts if k == kind]
        assert query.grades.tolist() == slow
        assert query.rows.tolist() == [n for n, fact in enumerate(facts) if fact[0] == kind]
        assert query.popularity == pytest.approx(slow.count(3) ** 0.5)


def test_a_product_without_colour_gives_no_query_but_may_be_found():
    table = pl.DataFrame(
        {"category": ["Heels"] * 2, "colour": ["", "Red"], "gender": ["Women", "Women"]}
    )
    [query] = make_queries(table)
    assert query.rows.tolist() == [0, 1]
    assert query.grades.tolist() == [2, 3]


def test_one_intent_is_always_phrased_alike_and_names_its_attributes():
    intents = list(product(("Casual Shoes", "Tops"), ("Navy Blue", "Red"), ("Men", "Girls")))
    for intent in intents:
        text = phrase(*intent)
        assert text == phrase(*intent) == text.lower()
        assert all(word.lower() in text for word in intent)
    assert phrase("Caps", "Multi", "Unisex").count("multicolour") == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("99,Men,Apparel,Tshirts,Red,Shirt, with comma", "7 fields, expected 6"),
        ("99,Men,Apparel,Tshirts,Red", "5 fields, expected 6"),
        (",Men,Apparel,Tshirts,Red,Shirt", "id empty"),
        ("99,Men,Apparel,,Red,", "productDisplayName, articleType empty"),
        ("1,Men,Apparel,Tshirts,Red,Shirt", "id occurs before"),
        ("../99,Men,Apparel,Tshirts,Red,Shirt", "id is not made of letters"),
        ('99,Men,Apparel,Tshirts,Red,"Shirt', "unexpected end of data"),
    ],
)
def test_a_broken_row_is_named_and_left_out(tmp_path, line, reason):
    rows = lines()
    write(tmp_path, [*rows[:3], line, *rows[3:]], photos=range(40))
    source = load_fashion(tmp_path, seed=7)
    [problem] = source.problems
    assert problem.startswith(f"styles.csv line 5: {reason}")
    assert source.products.height + source.public.height == 40


def test_bytes_that_are_not_utf8_spoil_one_row_only(tmp_path):
    world(tmp_path)
    with (tmp_path / "styles.csv").open("ab") as table:
        table.write(b"99,Men,Apparel,Tshirts,Red,Shirt \xff\n")
    assert load_fashion(tmp_path, seed=7).problems == [
        "styles.csv line 42: not UTF-8; row left out"
    ]


def test_a_quoted_comma_is_part_of_the_title(tmp_path):
    write(tmp_path, ['1,Men,Apparel,Tshirts,Red,"Shirt, red"'], photos=[1])
    source = load_fashion(tmp_path, seed=7, public_share=0.0)
    assert source.products["title"].to_list() == ["Shirt, red"]


def test_photos_that_cannot_be_read_are_named_and_their_products_kept(tmp_path):
    world(tmp_path)
    images = tmp_path / "images"
    (images / "0.jpg").unlink()
    (images / "1.jpg").write_text("no photo")
    Image.effect_noise((64, 64), 90).convert("RGB").save(images / "2.jpg")
    (images / "2.jpg").write_bytes((images / "2.jpg").read_bytes()[:900])
    source = load_fashion(tmp_path, seed=7, public_share=0.0)
    assert [problem.partition(";")[0] for problem in source.problems] == [
        "images/0.jpg: no such file",
        "images/1.jpg: not an image",
        "images/2.jpg: cannot be decoded (OSError)",
    ]
    assert np.flatnonzero(source.products["image"].is_null()).tolist() == [0, 1, 2]


def test_public_products_without_photo_are_counted(tmp_path):
    write(tmp_path, lines())
    source = load_fashion(tmp_path, seed=7)
    assert source.public.height == 0
    lost = 40 - source.products.height
    assert source.problems[-1].startswith(f"styles.csv: {lost} products of the public slice")


@pytest.mark.parametrize(
    ("rows", "header", "match"),
    [
        ([], HEADER, "styles.csv: no usable product"),
        (["1,Men"], HEADER, "styles.csv: no usable product"),
        (["1,Men"], "id,gender", "column articleType, baseColour, productDisplayName missing"),
        ([], "", "line 1 has nothing"),
    ],
)
def test_a_table_without_use_is_refused(tmp_path, rows, header, match):
    with pytest.raises(DataError, match=match):
        load_fashion(write(tmp_path, rows, header=header), seed=7)


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"styles.csv: No such file.*--data fashion:DIR needs"):
        load_fashion(tmp_path, seed=7)
