import gzip
import json

import numpy as np
import pytest

from shared.errors import DataError
from simulations.datasets.icecat import load_icecat
from simulations.datasets.icecat_queries import make_queries
from simulations.queries import normalize

# A small shop: two makers of each kind; printers of the second maker never say so in their titles.
INK = {"attr_n_yield": 1.0, "attr_t_ink_type": "Dye", "attr_n_pages": 2.0}
LASER = {"attr_n_ppm": 9.0, "attr_t_print_technology": "Laser", "attr_t_tray": "A4"}


def rows():
    return [
        *(item(f"Acme X{n} ink cartridge {colour(n)}", "Acme", **INK) for n in range(20)),
        *(item(f"Bolt Y{n} ink cartridge {colour(n)}", "Bolt", **INK) for n in range(20)),
        *(item(f"Acme Fast P{n} laser printer", "Acme", **LASER) for n in range(12)),
        *(item(f"Bolt Quick Q{n} laser printer", "Bolt", **LASER) for n in range(12)),
        *(item(f"Bolt Zoom Z{n} 600 DPI", "Bolt", **LASER) for n in range(5)),
    ]


def colour(n):
    return ("Black", "Cyan", "Red")[n % 3]


def item(title, supplier, **attributes):
    return {"title": title, "supplier": supplier, "price": 1250, **attributes}


def write(folder, products, judged=("ink cartridge,0,3", "never made,1,0")):
    numbered = [{"id": str(n), **row} for n, row in enumerate(products)]
    with gzip.open(folder / "products.jsonl.gz", "wt", encoding="utf-8") as lines:
        lines.writelines(f"{json.dumps(row)}\n" for row in numbered)
    (folder / "judgments.csv").write_text("\n".join(["query,product_id,rating", *judged]) + "\n")
    return folder


def found(queries, text):
    [query] = [query for query in queries if query.text == text]
    return dict(zip(query.rows.tolist(), query.grades.tolist(), strict=True))


QUERIES = make_queries(rows(), seed=7)


def test_a_source_with_judgments_and_without_photos(tmp_path):
    source = load_icecat(write(tmp_path, rows()), seed=7)
    assert source.text_fields == ("title", "description", "brand")
    assert source.partition == "supplier"
    assert source.products["price"][0] == 12.50
    assert source.products["supplier"].to_list() == source.products["brand"].to_list()
    assert source.products["image"].null_count() == source.products.height
    assert source.public.height == 0
    assert source.judged.rows() == [("ink cartridge", "0", 3), ("never made", "1", 0)]
    assert source.problems == []


def test_no_query_equals_a_judged_one_in_any_order_of_its_words(tmp_path):
    source = load_icecat(write(tmp_path, rows(), ["Cartridge INK,0,3"]), seed=7)
    texts = {normalize(query.text) for query in source.queries}
    assert normalize("ink cartridge") not in texts
    assert normalize("acme ink cartridge") in texts


def test_a_kind_finds_its_products_also_where_no_word_says_so():
    printers = found(QUERIES, "laser printer")
    assert printers == dict.fromkeys(range(40, 69), 3)


def test_a_missing_brand_costs_two_grades_and_a_missing_word_one():
    brand = found(QUERIES, "acme ink cartridge")
    assert brand == {row: 3 if row < 20 else 1 for row in range(40)}
    word = found(QUERIES, "cyan ink cartridge")
    assert word == {row: 3 if row % 20 % 3 == 1 else 2 for row in range(40)}
    both = found(QUERIES, "bolt red ink cartridge")
    assert {both[row] for row in range(20)} == {1}
    assert [both[row] for row in range(20, 26)] == [2, 2, 3, 2, 2, 3]


def test_queries_differ_and_each_has_a_full_answer():
    texts = [normalize(query.text) for query in QUERIES]
    assert len(set(texts)) == len(texts)
    assert all((query.grades == 3).any() for query in QUERIES)
    assert all((np.diff(query.rows) > 0).all() for query in QUERIES)


def test_the_seed_settles_all_and_the_limit_holds():
    again = make_queries(rows(), seed=7)
    assert [query.text for query in again] == [query.text for query in QUERIES]
    assert len(make_queries(rows(), seed=7, limit=5)) == 5
    few = [{q.text for q in make_queries(rows(), seed=seed, limit=5)} for seed in (7, 8)]
    assert few[0] != few[1]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (item("", "Acme"), "title missing"),
        ({"title": "x"}, "supplier missing"),
        (item("x", "Acme", id="1"), "id occurs before"),
        (item("x", "Acme", id=None), "id missing"),
    ],
)
def test_a_broken_product_is_named_and_left_out(tmp_path, row, reason):
    source = load_icecat(write(tmp_path, [*rows(), row]), seed=7)
    assert source.problems == [f"products.jsonl.gz line 70: {reason}; row left out"]
    assert source.products.height == 69


@pytest.mark.parametrize("line", [b"{not json\n", b"[1]\n", b"\xff\xfe\n"])
def test_a_line_that_is_no_product_is_named(tmp_path, line):
    write(tmp_path, rows())
    path = tmp_path / "products.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + line))
    [problem] = load_icecat(tmp_path, seed=7).problems
    assert problem.startswith("products.jsonl.gz line 70: not")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("x,999,1", "no such product"),
        ("x,2,4", "rating is not 0 to 3"),
        ("x,2", "rating is not 0 to 3"),
        (",2,1", "query empty"),
        ("never made,1,2", "judged before"),
    ],
)
def test_a_broken_judgment_is_named_and_left_out(tmp_path, line, reason):
    source = load_icecat(write(tmp_path, rows(), ["never made,1,0", line]), seed=7)
    assert source.problems == [f"judgments.csv line 3: {reason}; judgment left out"]
    assert source.judged.height == 1


def test_damaged_or_missing_files_are_refused_in_one_line(tmp_path):
    write(tmp_path, rows())
    (tmp_path / "judgments.csv").write_text("query,product_id\n")
    with pytest.raises(DataError, match=r"judgments.csv: column rating missing"):
        load_icecat(tmp_path, seed=7)
    (tmp_path / "judgments.csv").unlink()
    with pytest.raises(DataError, match=r"judgments.csv: No such file"):
        load_icecat(tmp_path, seed=7)
    path = tmp_path / "products.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"products.jsonl.gz: not a whole gzip file"):
        load_icecat(tmp_path, seed=7)
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(DataError, match="no usable product"):
        load_icecat(tmp_path, seed=7)
