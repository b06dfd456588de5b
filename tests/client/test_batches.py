"""Batches: every example once, in seeded order, with the positives it must not push away."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.batches import epoch_batches, make_batch, num_batches
from client.clicks import Examples


def random_examples(seed: int, size: int, *, queries: int = 7, products: int = 11) -> Examples:
    """`size` distinct pairs of query and product; some pairs were clicked in other ways too."""
    rng = np.random.default_rng(seed)
    pairs = np.sort(rng.choice(queries * products, size=size, replace=False))
    others = rng.choice(queries * products, size=5)
    return Examples(
        queries=[f"query {number}" for number in range(queries)],
        query_index=pairs // products,
        product_row=pairs % products,
        weight=rng.uniform(0.1, 3.0, size).astype(np.float32),
        positives=np.unique(np.concatenate([pairs, others])),
        num_products=products,
    )


@given(
    seed=st.integers(0, 99),
    size=st.integers(0, 40),
    batch_size=st.integers(1, 50),
    parts=st.integers(1, 5),
)
def test_an_epoch_holds_every_example_exactly_once(
    seed: int, size: int, batch_size: int, parts: int
) -> None:
    examples = random_examples(seed, size)
    parts = min(parts, max(size, 1))
    each = [
        list(epoch_batches(examples, batch_size=batch_size, seed=[seed], part=part, parts=parts))
        for part in range(parts)
    ]
    for part, batches in enumerate(each):
        assert len(batches) == num_batches(size, batch_size, part, parts)
        assert all(len(batch.weight) == batch_size for batch in batches[:-1])
    lengths = [sum(len(batch.weight) for batch in batches) for batches in each]
    assert max(lengths) - min(lengths) <= 1
    seen = [
        (batch.query_rows[query], batch.product_rows[product], weight)
        for batches in each
        for batch in batches
        for query, product, weight in zip(
            batch.query_index.tolist(),
            batch.product_index.tolist(),
            batch.weight.tolist(),
            strict=True,
        )
    ]
    expected = zip(examples.query_index, examples.product_row, examples.weight, strict=True)
    assert sorted(seen) == sorted(expected)


def test_a_round_of_fewer_examples_than_parts_has_one_all_the_same() -> None:
    """A region that trained on nothing would answer a round with an update that says nothing."""
    examples = random_examples(0, 2)
    trained = [
        batch.weight.tolist()
        for part in range(3)
        for batch in epoch_batches(examples, batch_size=8, seed=[0], part=part, parts=3)
    ]
    assert [len(weights) for weights in trained] == [1, 1, 1]
    assert sorted({weight for weights in trained for weight in weights}) == sorted(examples.weight)


def test_the_order_follows_the_seed() -> None:
    examples = random_examples(0, 40)

    def order(*seed: int) -> list[float]:
        batches = epoch_batches(examples, batch_size=8, seed=list(seed))
        return [weight for batch in batches for weight in batch.weight.tolist()]

    assert order(7, 1) == order(7, 1)
    assert order(7, 1) != order(7, 2)
    assert order(7, 1) != order(8, 1)


@pytest.mark.parametrize("seed", range(5))
def test_known_positives_are_those_of_a_slow_look_up(seed: int) -> None:
    examples = random_examples(seed, 30)
    batch = make_batch(examples, np.arange(0, 30, 2))
    clicked = {divmod(int(key), examples.num_products) for key in examples.positives}
    slow = [[(q, p) in clicked for p in batch.product_rows] for q in batch.query_rows]
    assert batch.known_positive.tolist() == slow


def test_an_examples_own_product_is_a_known_positive() -> None:
    batch = make_batch(random_examples(3, 20), np.arange(20))
    assert batch.known_positive[batch.query_index, batch.product_index].all()


def test_a_query_or_product_that_repeats_is_encoded_once() -> None:
    examples = Examples(
        queries=["red", "blue"],
        query_index=np.array([0, 0, 1]),
        product_row=np.array([2, 5, 5]),
        weight=np.array([1, 2, 3], np.float32),
        positives=np.array([2, 5, 15]),  # blue (1) and product 5 of 10: 1 * 10 + 5
        num_products=10,
    )
    batch = make_batch(examples, np.array([0, 1, 2]))
    assert batch.query_rows.tolist() == [0, 1]
    assert batch.product_rows.tolist() == [2, 5]
    assert batch.query_index.tolist() == [0, 0, 1]
    assert batch.product_index.tolist() == [0, 1, 1]
    assert batch.known_positive.tolist() == [[True, True], [False, True]]


def with_skipped(seed: int) -> Examples:
    """Random examples that skip every product that is no positive, for half of the queries."""
    examples = random_examples(seed, 20)
    others = np.setdiff1d(np.arange(4 * examples.num_products), examples.positives)
    return dataclasses.replace(examples, skipped=others)


@pytest.mark.parametrize("seed", range(5))
def test_hard_negatives_are_skipped_products_of_the_batchs_queries(seed: int) -> None:
    examples, chosen = with_skipped(seed), np.arange(0, 20, 3)
    plain, hard = make_batch(examples, chosen), make_batch(examples, chosen, hard_negatives=2)
    extra = hard.product_rows[hard.num_clicked :]
    assert hard.num_clicked == plain.num_clicked == len(plain.product_rows)
    assert hard.product_rows[: hard.num_clicked].tolist() == plain.product_rows.tolist()
    assert len(np.unique(hard.product_rows)) == len(hard.product_rows)
    assert len(extra) <= 2 * len(hard.query_rows)
    keys = hard.query_rows[:, None] * examples.num_products + extra
    assert np.isin(keys, examples.skipped).any(axis=0).all()
    assert torch.equal(hard.product_index, plain.product_index)
    assert torch.equal(hard.known_positive[:, : hard.num_clicked], plain.known_positive)


def test_all_skipped_products_join_where_there_are_few() -> None:
    examples = dataclasses.replace(random_examples(0, 20), skipped=np.array([3]))
    positive = np.isin(examples.positives, [3]).any()
    batch = make_batch(examples, np.arange(20), hard_negatives=5)
    assert not positive and set(batch.product_rows[batch.num_clicked :]) <= {3}
    assert 3 in batch.product_rows


def test_hard_negatives_do_not_change_which_examples_are_in_a_batch() -> None:
    examples = with_skipped(1)
    plain = epoch_batches(examples, batch_size=6, seed=[3])
    hard = epoch_batches(examples, batch_size=6, seed=[3], hard_negatives=1)
    for one, other in zip(plain, hard, strict=True):
        assert torch.equal(one.weight, other.weight)


def test_no_examples_make_no_batches() -> None:
    examples = random_examples(0, 0)
    assert num_batches(0, 8) == num_batches(0, 8, 1, 3) == 0
    assert list(epoch_batches(examples, batch_size=8, seed=[1])) == []
