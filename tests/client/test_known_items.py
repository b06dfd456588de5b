"""A catalog's own words as queries: whatever has them answers, and nothing else."""

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from client.clicks import Examples
from client.known_items import MAX_WORDS, MIN_CHARS, known_items_of, make_known_items
from simulations.baselines import pooled_examples

TEXTS = ["Red Leather Boot", "red leather bag", "boot", "", "a b", "blue bag Red leather"]
ALL = np.arange(len(TEXTS))


def pairs(examples: Examples) -> list[tuple[str, int]]:
    rows = zip(examples.query_index.tolist(), examples.product_row.tolist(), strict=True)
    return [(examples.queries[query], row) for query, row in rows]


def answers(texts: list[str], query: str) -> list[int]:
    """The definition: rows whose words have the query's side by side."""
    wanted, found = query.split(), []
    for row, text in enumerate(texts):
        words = text.lower().split()
        starts = range(len(words) - len(wanted) + 1)
        if any(words[at : at + len(wanted)] == wanted for at in starts):
            found.append(row)
    return found


@given(st.lists(st.text("ab cd", max_size=12), min_size=1, max_size=8), st.integers(0, 99))
def test_every_product_that_has_the_words_is_a_known_answer(texts: list[str], seed: int) -> None:
    known = make_known_items(texts, np.arange(len(texts)), seed=seed)
    for query, row in pairs(known):
        assert len(query) >= MIN_CHARS and len(query.split()) <= MAX_WORDS
        assert row in answers(texts, query)
    expected = [
        number * len(texts) + row
        for number, query in enumerate(known.queries)
        for row in answers(texts, query)
    ]
    assert known.positives.tolist() == expected


def test_a_text_makes_one_query_and_a_text_without_words_none() -> None:
    known = make_known_items(TEXTS, ALL, seed=1)
    assert sorted(known.product_row.tolist()) in ([0, 1, 2, 5], [0, 1, 2, 4, 5])
    assert known.queries == sorted(set(known.queries))
    assert pairs(known) == sorted(pairs(known))
    assert known.weight.tolist() == [1.0] * len(known.query_index)


def test_the_seed_chooses_the_words() -> None:
    made = [make_known_items(TEXTS, ALL, seed=seed).queries for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_only_products_that_shoppers_were_shown_are_asked_for() -> None:
    clicks = pl.DataFrame({"product_id": ["p2", "p0", "p2", "gone"]})
    ids = pl.Series([f"p{row}" for row in ALL])
    assert set(known_items_of(TEXTS, ids, clicks).product_row.tolist()) == {0, 2}


def test_no_products_no_queries() -> None:
    known = make_known_items(TEXTS, np.empty(0, np.int64), seed=0)
    assert (known.queries, len(known.positives)) == ([], 0)


def test_pooled_catalogs_keep_their_own_answers() -> None:
    parts = [make_known_items(TEXTS[:3], ALL[:3], seed=3), make_known_items(TEXTS, ALL, seed=4)]
    pooled = pooled_examples(parts)
    moved = pairs(parts[0]) + [(query, row + 3) for query, row in pairs(parts[1])]
    assert sorted(pairs(pooled)) == sorted(moved)
    known = {divmod(key, pooled.num_products) for key in pooled.positives.tolist()}
    for query, row in pairs(pooled):
        assert (pooled.queries.index(query), row) in known
