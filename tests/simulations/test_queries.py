import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.datasets.source import Query
from simulations.queries import (
    cold_mask,
    is_cold,
    is_test,
    localize,
    make_qrels,
    normalize,
    share_of,
    split_queries,
)

WORDS = st.lists(
    st.sampled_from(["red", "Shoes", "men's", "NAVY", "t-shirt", "ß", "50"]), min_size=1
)


def query(text, rows=(), grades=(), region=None):
    return Query(text, np.array(rows, np.int64), np.array(grades, np.int8), region)


@given(words=WORDS, seed=st.randoms(use_true_random=False))
def test_reordered_words_land_on_the_same_side(words, seed):
    shuffled = list(words)
    seed.shuffle(shuffled)
    one, other = " ".join(words), "  ".join(shuffled)
    assert normalize(one) == normalize(other)
    assert is_test(one) == is_test(other)
    assert is_cold(one) == is_cold(other)


@given(st.text())
def test_normalizing_twice_changes_nothing_and_share_is_in_the_unit_interval(text):
    assert normalize(normalize(text)) == normalize(text)
    assert 0.0 <= share_of(text, salt="s") < 1.0


def test_case_punctuation_and_apostrophes_do_not_matter():
    assert normalize("Men's RED shoes!") == normalize("shoes, red (mens)") == "mens red shoes"
    assert normalize("?!") == "?!"


def test_the_sides_are_fixed_for_ever():
    # Golden: a change here would show yesterday's test queries in today's training.
    texts = ["black tshirts for men", "women red heels", "hp notebook", "desk lamp", "usb hub"]
    assert [round(share_of(text, salt="fedshelf query"), 3) for text in texts] == [
        0.367,
        0.633,
        0.123,
        0.02,
        0.828,
    ]


def test_shares_are_about_what_was_asked():
    texts = [f"query number {n}" for n in range(4000)]
    assert np.mean([is_test(text) for text in texts]) == pytest.approx(0.2, abs=0.02)
    assert np.mean([is_test(text, share=0.5) for text in texts]) == pytest.approx(0.5, abs=0.03)
    assert cold_mask(texts).mean() == pytest.approx(0.1, abs=0.02)


def test_split_parts_queries_and_keeps_each_once():
    queries = [query(f"q {n}") for n in range(100)]
    seen, test = split_queries(queries)
    assert sorted(q.text for q in seen + test) == sorted(q.text for q in queries)
    assert not {normalize(q.text) for q in seen} & {normalize(q.text) for q in test}


def test_localize_translates_rows_and_keeps_what_is_asked_here():
    world = [query("a", [1, 3, 5], [3, 2, 1]), query("b", [2], [3]), query("c", [3], [3], "south")]
    local = localize(world, np.array([5, 1, 0]), num_products=6, region="north")
    assert [q.text for q in local] == ["a", "b"]
    assert local[0].rows.tolist() == [0, 1]
    assert local[0].grades.tolist() == [1, 3]
    assert local[1].rows.tolist() == []


def test_localizing_the_whole_world_changes_nothing():
    [local] = localize([query("a", [0, 2], [1, 3])], np.arange(3), num_products=3, region="north")
    assert local.rows.tolist() == [0, 2]
    assert local.grades.tolist() == [1, 3]


def test_qrels_name_products():
    qrels = make_qrels([query("a", [0, 2], [1, 3]), query("b")], ["x", "y", "z"])
    assert qrels.rows() == [("a", "x", 1), ("a", "z", 3)]
    assert make_qrels([], ["x"]).height == 0
