"""Negatives that are in no catalog here: public products, and vectors drawn of Gaussians."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import CONFIG, QUERIES, TITLES

from client.batches import Batch, epoch_batches, make_batch, positives_among
from client.clicks import Examples
from client.known_items import make_known_items
from client.objective import _STEPS_DRAWN, Objective, TrainingData, make_training_data
from client.public import open_public, wants_public
from shared.encoders.encoder import Encoder, ProductPrefixes
from shared.encoders.prefix_cache import image_prefixes, text_prefixes
from shared.encoders.presets import PRESETS, make_base
from shared.encoders.public import PublicSlice
from shared.gaussians import COMPONENTS, Gaussians

STRANGERS = ["red kettle", "garden chair", "paper"]
ALONE = replace(CONFIG, alignment_weight=0.0, anchor_weight=0.0)
PLACES = [(0, 0), (0, 4), (1, 1), (2, 2), (3, 3)]  # query, product


def opened(
    encoder: Encoder, cache: Path, titles: list[str], photos: list[Path | None]
) -> ProductPrefixes:
    fingerprint = encoder.base.fingerprint
    texts = text_prefixes(cache, encoder.text, fingerprint, titles)
    images = image_prefixes(cache, encoder.image, fingerprint, photos)
    return ProductPrefixes(texts, images, np.ones(len(titles), np.bool_))


def examples_of(num_products: int) -> Examples:
    query, product = np.array(PLACES).T
    return Examples(
        queries=QUERIES,
        query_index=query,
        product_row=product,
        weight=np.array([1.0, 0.5, 2.0, 1.0, 1.0], np.float32),
        positives=query * num_products + product,
        num_products=num_products,
    )


@pytest.fixture
def both(encoder: Encoder, photos: list[Path], tmp_path: Path) -> tuple[TrainingData, TrainingData]:
    """Three products as public ones, and the same as the last three of the catalog."""
    own, strangers = [*photos[:5], None], [*photos[:2], None]
    kept = partial(text_prefixes, tmp_path, encoder.text, encoder.base.fingerprint)
    known = make_known_items(TITLES, np.arange(5), seed=0)
    make = partial(make_training_data, encoder, kept=kept, known=known)
    apart = make(examples=examples_of(6), products=opened(encoder, tmp_path, TITLES, own))
    public = opened(encoder, tmp_path, STRANGERS, strangers)
    catalog = opened(encoder, tmp_path, [*TITLES, *STRANGERS], [*own, *strangers])
    return replace(apart, public=public), make(examples=examples_of(9), products=catalog)


def with_everybody(data: TrainingData, catalog: TrainingData) -> tuple[Batch, Batch]:
    """A batch of all examples, with the three either way."""
    apart = make_batch(data.examples, np.arange(len(PLACES)))
    joined = make_batch(catalog.examples, np.arange(len(PLACES)))
    rows = np.concatenate([joined.product_rows, np.arange(6, 9)])
    known = positives_among(catalog.examples, joined.query_rows, rows)
    joined = replace(joined, product_rows=rows, known_positive=known)
    return replace(apart, public_rows=np.arange(3)), joined


@pytest.mark.parametrize(
    "changes",
    [{}, {"match_weight": 0.5}, {"negative_max_cosine": 0.9}, {"chunk_size": 2}],
    ids=lambda changes: next(iter(changes), "plain"),
)
def test_they_are_as_products_of_the_catalog_that_nobody_clicked(
    encoder: Encoder, both: tuple[TrainingData, TrainingData], changes: dict[str, float]
) -> None:
    config = replace(CONFIG, public_negatives=3, **changes)
    found = []
    for data, batch in zip(both, with_everybody(*both), strict=True):
        encoder.reset(seed=3)
        for parameter in encoder.trainable():
            parameter.grad = None
        loss = Objective(encoder, data, config).backward(batch, None)
        found.append((loss, [p.grad.clone() for p in encoder.trainable() if p.grad is not None]))
    (apart, one), (joined, other) = found
    assert float(apart) == pytest.approx(float(joined), abs=1e-5)
    assert len(one) == len(other) > 0
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-3)


def test_they_make_the_click_term_harder_and_answer_nobody(
    encoder: Encoder, both: tuple[TrainingData, TrainingData]
) -> None:
    data, batch = both[0], with_everybody(*both)[0]
    config = replace(CONFIG, alignment_weight=0.0, anchor_weight=0.0)
    objective = Objective(encoder, data, config)
    alone = replace(batch, public_rows=np.arange(0))
    assert objective.loss(batch, None).item() > objective.loss(alone, None).item()
    assert batch.known_positive.shape == (4, 5)


def test_logq_of_a_public_product_is_its_chance_to_be_drawn(
    encoder: Encoder, both: tuple[TrainingData, TrainingData]
) -> None:
    data, batch = both[0], with_everybody(*both)[0]
    objective = Objective(encoder, data, replace(CONFIG, logq_correction=1.0))
    two = replace(batch, public_rows=np.array([0, 2]))
    log_q = objective._log_q_of(two.product_rows, len(two.product_rows) + 2)
    assert log_q[-2:].exp().tolist() == pytest.approx([2 / 3, 2 / 3])
    assert torch.isfinite(objective.loss(two, None))


@pytest.mark.parametrize(("number", "drawn"), [(0, 0), (2, 2), (5, 5), (9, 5)])
def test_every_batch_draws_its_own(number: int, drawn: int) -> None:
    batches = list(epoch_batches(examples_of(6), batch_size=1, seed=[1], public=(5, number)))
    rows = [batch.public_rows.tolist() for batch in batches]
    assert all(row == sorted(set(row)) and len(row) == drawn for row in rows)
    assert all(set(row) <= set(range(5)) for row in rows)
    assert (len({tuple(row) for row in rows}) > 1) == (0 < drawn < 5)
    again = epoch_batches(examples_of(6), batch_size=1, seed=[1], public=(5, number))
    assert [batch.public_rows.tolist() for batch in again] == rows


def test_the_order_of_examples_does_not_depend_on_them_and_parts_draw_anew() -> None:
    plain = list(epoch_batches(examples_of(6), batch_size=2, seed=[1]))
    joined = list(epoch_batches(examples_of(6), batch_size=2, seed=[1], public=(100, 4)))
    assert [b.query_rows.tolist() for b in plain] == [b.query_rows.tolist() for b in joined]
    first, second = (
        next(
            epoch_batches(examples_of(6), batch_size=2, seed=[1], public=(100, 4), part=p, parts=2)
        )
        for p in (0, 1)
    )
    assert first.public_rows.tolist() != second.public_rows.tolist()


# -- from a base -----------------------------------------------------------------------------------


def test_a_round_gets_what_it_asks_for(
    photos: list[Path], tmp_path: Path, both: tuple[TrainingData, TrainingData]
) -> None:
    base, info = make_base(PRESETS["tiny"], PublicSlice(STRANGERS, photos[:3]), seed=0)
    encoder = Encoder(base, info, torch.device("cpu"))
    public, data = open_public(base, encoder, tmp_path), both[1]
    negatives = replace(CONFIG, public_negatives=2)
    words = replace(CONFIG, known_item_source="public")
    assert [wants_public(config) for config in (CONFIG, negatives, words)] == [False, True, True]
    joined = public.joined(data, negatives)
    assert joined.num_public == 3 and joined.known is data.known
    renamed = public.joined(data, words)
    assert renamed.num_public == 0 and set(renamed.known.queries) <= {
        " ".join(title.split()[start:end])
        for title in STRANGERS
        for start in range(3)
        for end in range(start + 1, 4)
    }
    batch = make_batch(renamed.known, np.arange(len(renamed.known.weight)))
    asked = make_batch(renamed.examples, np.arange(len(PLACES)))
    assert torch.isfinite(Objective(encoder, renamed, words).loss(asked, batch))


# -- drawn of Gaussians ----------------------------------------------------------------------------


def still(vectors: torch.Tensor) -> Gaussians:
    """Gaussians without spread: what is drawn is one of the vectors (R, V)."""
    number, dim = vectors.shape
    return Gaussians(vectors, torch.zeros(number, COMPONENTS, dim), torch.zeros(number))


@pytest.fixture
def apart(both: tuple[TrainingData, TrainingData]) -> tuple[TrainingData, Batch]:
    """Training data with a batch of all its examples, nothing public in it."""
    batch = with_everybody(*both)[0]
    return replace(both[0], public=None), replace(batch, public_rows=batch.public_rows[:0])


def test_they_are_as_public_products_with_these_vectors(
    encoder: Encoder, both: tuple[TrainingData, TrainingData], apart: tuple[TrainingData, Batch]
) -> None:
    data, batch = both[0], with_everybody(*both)[0]
    assert data.public is not None
    one = replace(batch, public_rows=batch.public_rows[:1])
    vector = torch.from_numpy(encoder.product_matrix(data.public, one.public_rows))
    drawing = Objective(
        encoder, apart[0], replace(ALONE, drawn_negatives=1), gaussians=still(vector)
    )
    drawing.draw([0])
    with_public = Objective(encoder, data, replace(ALONE, alignment_weight=0.0))
    expected = with_public.loss(one, None).item()
    assert drawing.loss(apart[1], None).item() == pytest.approx(expected, abs=1e-5)


def test_a_loss_without_any_is_that_of_the_batch_alone(
    encoder: Encoder, apart: tuple[TrainingData, Batch]
) -> None:
    data, batch = apart
    plain = Objective(encoder, data, ALONE).loss(batch, None).item()
    nobody = Objective(encoder, data, replace(ALONE, drawn_negatives=4))
    nobody.draw([0])
    assert nobody.loss(batch, None).item() == plain
    zero = Objective(encoder, data, ALONE, gaussians=still(torch.eye(encoder.dim)))
    zero.draw([0])
    assert zero.loss(batch, None).item() == plain


def test_every_step_has_its_own_until_they_come_again(
    encoder: Encoder, apart: tuple[TrainingData, Batch]
) -> None:
    data, batch = apart
    config = replace(ALONE, drawn_negatives=2, chunk_size=2)
    objective = Objective(encoder, data, config, gaussians=still(torch.eye(encoder.dim)))
    objective.draw([0])
    losses = [objective.backward(batch, None).item() for _ in range(_STEPS_DRAWN + 2)]
    assert len(set(losses[:_STEPS_DRAWN])) > _STEPS_DRAWN / 2
    assert losses[_STEPS_DRAWN:] == losses[:2]
    again = Objective(encoder, data, config, gaussians=still(torch.eye(encoder.dim)))
    again.draw([0])
    assert again.backward(batch, None).item() == losses[0]
    again.draw([1])
    assert again.backward(batch, None).item() != losses[1]


def test_they_get_no_gradient_and_give_one(
    encoder: Encoder, apart: tuple[TrainingData, Batch]
) -> None:
    data, batch = apart
    gaussians = still(torch.eye(encoder.dim).requires_grad_())
    objective = Objective(encoder, data, replace(ALONE, drawn_negatives=8), gaussians=gaussians)
    objective.draw([0])
    objective.backward(batch, None)
    assert gaussians.mean.grad is None
    found = [p.grad for p in encoder.trainable() if p.grad is not None]
    assert any(bool(gradient.abs().sum() > 0) for gradient in found)
