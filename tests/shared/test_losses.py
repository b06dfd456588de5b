"""Losses beside slow, obvious references, with values worked by hand and the laws they obey."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shared.losses import (
    image_text_loss,
    log_inclusion,
    masked_info_nce,
    match_loss,
    too_alike,
)

Example = tuple[int, int, float]  # row of the query, row of the product, weight


def units(generator: torch.Generator, rows: int) -> Tensor:
    return nn.functional.normalize(torch.randn(rows, 6, generator=generator), dim=1)


def info_nce(
    query: Tensor,
    product: Tensor,
    examples: list[Example],
    known_positive: Tensor,
    temperature: float = 0.1,
) -> Tensor:
    queries, products, weights = zip(*examples, strict=True)
    return masked_info_nce(
        query,
        product,
        query_index=torch.tensor(queries),
        product_index=torch.tensor(products),
        weight=torch.tensor(weights),
        known_positive=known_positive,
        temperature=torch.tensor(temperature),
    )


def slow_info_nce(
    query: Tensor,
    product: Tensor,
    examples: list[Example],
    known_positive: Tensor,
    temperature: float = 0.1,
) -> float:
    """One example, one candidate at a time, in plain floats."""

    def score(u: int, v: int) -> float:
        return math.exp(float(query[u] @ product[v]) / temperature)

    total = 0.0
    for u, v, weight in examples:
        to_product = sum(
            score(u, other)
            for other in range(len(product))
            if other == v or not known_positive[u, other]
        )
        to_query = sum(
            score(other, v)
            for other in range(len(query))
            if other == u or not known_positive[other, v]
        )
        loss = -math.log(score(u, v) / to_product) - math.log(score(u, v) / to_query)
        total += weight * loss / 2
    return total / sum(weight for _, _, weight in examples)


Batch = tuple[Tensor, Tensor, list[Example], Tensor]


def random_batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    num_queries, num_products, num_examples = number(1, 6), number(1, 7), number(1, 9)
    query, product = units(generator, num_queries), units(generator, num_products)
    examples = [
        (number(0, num_queries), number(0, num_products), float(number(1, 4)))
        for _ in range(num_examples)
    ]
    known = torch.rand(num_queries, num_products, generator=generator) < 0.3
    for u, v, _ in examples:
        known[u, v] = True
    return query, product, examples, known


@settings(derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_it_is_the_slow_reference(seed: int) -> None:
    batch = random_batch(seed)
    assert float(info_nce(*batch)) == pytest.approx(slow_info_nce(*batch), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_examples_does_not_matter(seed: int) -> None:
    query, product, examples, known = random_batch(seed)
    forward = info_nce(query, product, examples, known)
    torch.testing.assert_close(info_nce(query, product, examples[::-1], known), forward)


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_queries_and_products_does_not_matter(seed: int) -> None:
    query, product, examples, known = random_batch(seed)
    last = [(len(query) - 1 - u, len(product) - 1 - v, weight) for u, v, weight in examples]
    mirrored = info_nce(query.flip(0), product.flip(0), last, known.flip(0, 1))
    torch.testing.assert_close(mirrored, info_nce(query, product, examples, known))


@pytest.mark.parametrize("seed", range(5))
def test_queries_and_products_may_change_places(seed: int) -> None:
    query, product, examples, known = random_batch(seed)
    swapped = info_nce(product, query, [(v, u, w) for u, v, w in examples], known.T)
    torch.testing.assert_close(swapped, info_nce(query, product, examples, known))


@pytest.mark.parametrize("seed", range(5))
def test_an_example_of_weight_0_is_no_example(seed: int) -> None:
    query, product, examples, known = random_batch(seed)
    with_nothing = info_nce(query, product, [*examples, (0, 0, 0.0)], known)
    torch.testing.assert_close(with_nothing, info_nce(query, product, examples, known))


@pytest.mark.parametrize("seed", range(5))
def test_twice_the_weight_is_the_example_twice(seed: int) -> None:
    query, product, examples, known = random_batch(seed)
    u, v, weight = examples[0]
    heavier = info_nce(query, product, [(u, v, 2 * weight), *examples[1:]], known)
    torch.testing.assert_close(heavier, info_nce(query, product, [examples[0], *examples], known))


def test_without_repeats_it_is_the_loss_of_clip() -> None:
    generator = torch.Generator().manual_seed(0)
    query, product, target = units(generator, 4), units(generator, 4), torch.arange(4)
    logits = query @ product.T / 0.1
    cross_entropy = nn.functional.cross_entropy
    expected = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    examples = [(i, i, 1.0) for i in range(4)]
    found = info_nce(query, product, examples, torch.eye(4, dtype=torch.bool))
    torch.testing.assert_close(found, expected)


def test_a_known_positive_is_no_negative_by_hand() -> None:
    # One query, two products with cosines 1 and 0, clicked the first, at temperature 1.
    query, product = torch.tensor([[1.0, 0.0]]), torch.eye(2)
    first_known, both_known = torch.tensor([[True, False]]), torch.tensor([[True, True]])
    to_product = math.log(math.e + 1) - 1
    as_negative = info_nce(query, product, [(0, 0, 1.0)], first_known, temperature=1.0)
    assert float(as_negative) == pytest.approx((to_product + 0) / 2)
    as_positive = info_nce(query, product, [(0, 0, 1.0)], both_known, temperature=1.0)
    assert float(as_positive) == 0.0


def test_a_known_positive_is_not_pushed_away() -> None:
    generator = torch.Generator().manual_seed(3)
    query, product = units(generator, 1), units(generator, 3).requires_grad_()
    info_nce(query, product, [(0, 0, 1.0)], torch.tensor([[True, True, False]])).backward()
    assert product.grad is not None
    assert not product.grad[1].any()
    assert product.grad[2].any()


def test_nothing_given_is_changed() -> None:
    query, product, examples, known = random_batch(4)
    before = [tensor.clone() for tensor in (query, product, known)]
    info_nce(query, product, examples, known)
    assert all(torch.equal(a, b) for a, b in zip((query, product, known), before, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_gradients_are_finite(seed: int) -> None:
    query, product, examples, known = random_batch(seed)
    temperature = torch.tensor(0.01, requires_grad=True)
    leaves = [query.requires_grad_(), product.requires_grad_(), temperature]
    masked_info_nce(
        query,
        product,
        query_index=torch.tensor([u for u, _, _ in examples]),
        product_index=torch.tensor([v for _, v, _ in examples]),
        weight=torch.tensor([w for _, _, w in examples]),
        known_positive=torch.ones_like(known),
        temperature=temperature,
    ).backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


# -- photo and text --------------------------------------------------------------------------------


def image_text(image: Tensor, text: Tensor, present: list[bool]) -> Tensor:
    return image_text_loss(image, text, torch.tensor(present), temperature=torch.tensor(0.1))


def test_photo_and_text_beside_a_slow_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = units(generator, 5), units(generator, 5)
    present = [True, False, True, True, False]
    rows = [row for row, is_present in enumerate(present) if is_present]
    total = 0.0
    for row in rows:
        own = float(image[row] @ text[row]) / 0.1
        to_text = [math.exp(float(image[row] @ text[other]) / 0.1) for other in rows]
        to_image = [math.exp(float(image[other] @ text[row]) / 0.1) for other in rows]
        total += (math.log(sum(to_text)) - own + math.log(sum(to_image)) - own) / 2
    assert float(image_text(image, text, present)) == pytest.approx(total / len(rows), rel=1e-4)


@pytest.mark.parametrize("present", [[False] * 4, [True, False, False, False]])
def test_fewer_than_two_pairs_teach_nothing(present: list[bool]) -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = units(generator, 4).requires_grad_(), units(generator, 4)
    loss = image_text(image, text, present)
    assert (float(loss), loss.shape) == (0.0, ())
    (loss + 0 * image.sum()).backward()  # it adds to a loss that has a gradient


def test_rows_without_both_are_not_looked_at() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = units(generator, 4), units(generator, 4)
    blank = image.clone()
    blank[1] = 0
    present = [True, False, True, True]
    assert torch.equal(image_text(image, text, present), image_text(blank, text, present))


def test_photos_and_texts_may_change_places() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = units(generator, 4), units(generator, 4)
    torch.testing.assert_close(
        image_text(image, text, [True] * 4), image_text(text, image, [True] * 4)
    )


# -- popularity ------------------------------------------------------------------------------------


def test_how_likely_an_item_is_in_a_batch_by_hand() -> None:
    counts = torch.tensor([1, 3, 0])
    one = log_inclusion(counts, batch_size=1).exp()
    torch.testing.assert_close(one, torch.tensor([1 / 4, 3 / 4, 1 / 4]))
    two = log_inclusion(counts, batch_size=2).exp()
    torch.testing.assert_close(two, torch.tensor([7 / 16, 15 / 16, 7 / 16]))


def test_an_item_that_every_example_has_is_in_every_batch() -> None:
    assert log_inclusion(torch.tensor([5]), batch_size=3).tolist() == [0.0]


def test_how_likely_it_is_agrees_with_drawing() -> None:
    counts, generator = torch.tensor([1, 2, 7]), torch.Generator().manual_seed(0)
    items = torch.repeat_interleave(torch.arange(3), counts)
    drawn = items[torch.randint(10, (20_000, 4), generator=generator)]
    seen = torch.stack([(drawn == item).any(dim=1).double().mean() for item in range(3)])
    expected = log_inclusion(counts, batch_size=4).double().exp()
    torch.testing.assert_close(seen, expected, atol=0.01, rtol=0)


def corrected(batch: Batch, log_q_query: Tensor, log_q_product: Tensor) -> float:
    query, product, examples, known = batch
    queries, products, weights = zip(*examples, strict=True)
    loss = masked_info_nce(
        query,
        product,
        query_index=torch.tensor(queries),
        product_index=torch.tensor(products),
        weight=torch.tensor(weights),
        known_positive=known,
        temperature=torch.tensor(0.1),
        log_q_query=log_q_query,
        log_q_product=log_q_product,
    )
    return float(loss)


def slow_corrected(batch: Batch, log_q_query: Tensor, log_q_product: Tensor) -> float:
    """Each candidate's exponential over its probability, one at a time."""
    query, product, examples, known = batch

    def score(u: int, v: int, log_q: Tensor) -> float:
        return math.exp(float(query[u] @ product[v]) / 0.1) / math.exp(float(log_q))

    total = 0.0
    for u, v, weight in examples:
        products = [o for o in range(len(product)) if o == v or not known[u, o]]
        queries = [o for o in range(len(query)) if o == u or not known[o, v]]
        own = score(u, v, log_q_product[v]) / sum(score(u, o, log_q_product[o]) for o in products)
        other = score(u, v, log_q_query[u]) / sum(score(o, v, log_q_query[o]) for o in queries)
        total -= weight * (math.log(own) + math.log(other)) / 2
    return total / sum(weight for _, _, weight in examples)


@pytest.mark.parametrize("seed", range(8))
def test_the_correction_divides_by_how_likely_a_candidate_is(seed: int) -> None:
    batch, generator = random_batch(seed), torch.Generator().manual_seed(seed)
    log_q = [-3 * torch.rand(len(vectors), generator=generator) for vectors in batch[:2]]
    slow = slow_corrected(batch, *log_q)
    assert corrected(batch, *log_q) == pytest.approx(slow, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_where_all_are_equally_likely_the_correction_changes_nothing(seed: int) -> None:
    batch = random_batch(seed)
    log_q = [torch.full((len(vectors),), -1.5) for vectors in batch[:2]]
    assert corrected(batch, *log_q) == pytest.approx(float(info_nce(*batch)), abs=1e-5)


# -- false negatives -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_what_is_like_a_clicked_product_is_found_by_looking(seed: int) -> None:
    query, product, examples, _ = random_batch(seed)
    queries, products, _ = zip(*examples, strict=True)
    fast = too_alike(
        product,
        torch.tensor(queries),
        torch.tensor(products),
        num_queries=len(query),
        cosine=0.2,
    )
    slow = [
        [
            any(u == asked and product[v] @ product[other] > 0.2 for asked, v, _ in examples)
            for other in range(len(product))
        ]
        for u in range(len(query))
    ]
    assert fast.tolist() == slow


# -- same product ----------------------------------------------------------------------------------


def match(image: Tensor, text: Tensor, present: list[bool], temperature: float = 0.1) -> Tensor:
    return match_loss(image, text, torch.tensor(present), temperature=torch.tensor(temperature))


def slow_match(image: Tensor, text: Tensor) -> float:
    """One pair at a time, the best of many biases."""
    size = len(image)

    def loss(bias: float) -> float:
        total = 0.0
        for i in range(size):
            for j in range(size):
                z = float(image[i] @ text[j]) / 0.1 + bias
                share = 1 / (2 * size) if i == j else 1 / (2 * size * (size - 1))
                total += share * math.log1p(math.exp(-z if i == j else z))
        return total

    return min(loss(bias / 20) for bias in range(-400, 401))


@pytest.mark.parametrize("seed", range(3))
def test_matching_is_that_of_its_definition(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image, text = units(generator, 4), units(generator, 4)
    fast = float(match(image, text, [True] * 4))
    assert fast == pytest.approx(slow_match(image, text), abs=1e-3)


def test_what_cannot_be_told_apart_costs_one_bit() -> None:
    same = nn.functional.normalize(torch.ones(3, 6), dim=1)
    assert float(match(same, same, [True] * 3)) == pytest.approx(math.log(2))


def test_matching_photos_and_texts_cost_less_than_mixed_up_ones() -> None:
    image = torch.eye(4, 6)
    right, wrong = match(image, image, [True] * 4), match(image, image.roll(1, 0), [True] * 4)
    assert float(right) < 0.01 < math.log(2) <= float(wrong) + 1e-6


def test_matching_leaves_out_rows_that_miss_one_side() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = units(generator, 4), units(generator, 4)
    kept = torch.tensor([0, 2, 3])
    some = match(image, text, [True, False, True, True])
    torch.testing.assert_close(some, match(image[kept], text[kept], [True] * 3))
    assert float(match(image, text, [False, True, False, False])) == 0.0
