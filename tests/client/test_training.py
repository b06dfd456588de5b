"""Local training on a toy world: the loss it computes, that it learns, that it leaks nothing."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from client.batches import Batch, make_batch
from client.clicks import Examples
from client.known_items import make_known_items
from client.objective import Objective, TrainingData, make_training_data
from client.training import num_steps, order_seed, train
from client.views import Views
from shared.adapter import Adapter, rank_axis, within_rank
from shared.config import TrainConfig
from shared.encoders.encoder import Encoder, ProductPrefixes
from shared.encoders.prefix_cache import TextPrefixes, image_prefixes, text_prefixes
from shared.freed_memory import FREED

QUERIES = ["shoe", "coat", "lamp", "phone"]
TITLES = ["leather boot", "wool jacket", "desk light", "smart mobile", "old boot", "no photo"]
CONFIG = TrainConfig(
    seed=7,
    local_epochs=1,
    rounds_per_epoch=1,
    part=0,
    batch_size=4,
    optimizer="adamw",
    learning_rate=0.01,
    weight_decay=0.01,
    clip_norm=1.0,
    proximal_mu=0.0,
    alignment_weight=0.1,
    anchor_weight=1.0,
    known_item_weight=0.3,
    known_item_source="catalog",
    known_item_temperature=0.0,
    match_weight=0.0,
    decorrelation_weight=0.0,
    decorrelation_off_diagonal=20.0,
    logq_correction=0.0,
    hard_negatives=0,
    public_negatives=0,
    drawn_negatives=0,
    negative_max_cosine=1.0,
    queue_size=0,
    chunk_size=0,
    augmented_views=0,
    patience=0,
    update_encoding="float32",
    trained_factors="both",
)


@pytest.fixture
def data(encoder: Encoder, photos: list[Path], tmp_path: Path) -> TrainingData:
    """Query i was clicked with product i, and query 0 with product 4 too; product 5: no photo."""
    examples = Examples(
        queries=QUERIES,
        query_index=np.array([0, 0, 1, 2, 3]),
        product_row=np.array([0, 4, 1, 2, 3]),
        weight=np.array([1.0, 0.5, 2.0, 1.0, 1.0], np.float32),
        positives=np.array([0, 4, 7, 14, 21]),
        num_products=6,
    )
    fingerprint = encoder.base.fingerprint
    products = ProductPrefixes(
        text_prefixes(tmp_path, encoder.text, fingerprint, TITLES),
        image_prefixes(tmp_path, encoder.image, fingerprint, [*photos[:5], None]),
        np.ones(6, np.bool_),
    )
    known = make_known_items(TITLES, np.arange(5), seed=0)
    kept = partial(text_prefixes, tmp_path, encoder.text, fingerprint)
    return make_training_data(encoder, examples, known, kept, products)


def again_from(encoder: Encoder, data: TrainingData, examples: Examples) -> TrainingData:
    kept = {tuple(QUERIES): data.queries, tuple(data.known.queries): data.known_queries}
    return make_training_data(
        encoder, examples, data.known, lambda queries: kept[tuple(queries)], data.products
    )


def run(encoder: Encoder, data: TrainingData, start: Adapter, **changes: float) -> Adapter:
    encoder.load_adapter(start)
    train(encoder, data, dataclasses.replace(CONFIG, **changes), seed=[7, 1])
    return encoder.adapter()


def equal(a: Adapter, b: Adapter) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def whole(data: TrainingData) -> Batch:
    return make_batch(data.examples, np.arange(len(data.examples.weight)))


def all_known(data: TrainingData) -> Batch:
    return make_batch(data.known, np.arange(len(data.known.weight)))


# -- the loss --------------------------------------------------------------------------------------


def weighed(alignment: float, anchor: float, known: float = 0.0) -> TrainConfig:
    return dataclasses.replace(
        CONFIG, alignment_weight=alignment, anchor_weight=anchor, known_item_weight=known
    )


def slow_loss(
    encoder: Encoder,
    data: TrainingData,
    photos: list[Path],
    alignment: float,
    anchor: float,
    known: float,
) -> float:
    """The definition, example by example, on vectors computed from scratch."""
    titles = [TITLES[row] for row in range(5)]
    product = torch.from_numpy(encoder.encode_products(titles, photos[:5]))
    query = torch.from_numpy(encoder.encode_queries(QUERIES, [None] * 4))
    temperature = float(encoder.fusion.temperature().detach())
    clicks = _slow_contrast(query, product, data.examples, temperature)
    asked = torch.from_numpy(encoder.encode_queries(data.known.queries, [None] * 5))
    plain = torch.from_numpy(encoder.encode_products(titles, [None] * 5))
    by_words = _slow_contrast(asked, plain, data.known, temperature)
    text = torch.from_numpy(encoder.encode_products(titles, [None] * 5))
    image = torch.from_numpy(encoder.encode_products([None] * 5, photos[:5]))
    aligned = sum(
        _nll(image[i], text[i], list(text), temperature) / 2
        + _nll(text[i], image[i], list(image), temperature) / 2
        for i in range(5)
    )
    adapter = encoder.adapter()
    encoder.reset(seed=0)
    base_text = torch.from_numpy(encoder.encode_products(titles, [None] * 5))
    base_query = torch.from_numpy(encoder.encode_queries(QUERIES, [None] * 4))
    encoder.load_adapter(adapter)
    away = sum(1 - float(text[i] @ base_text[i]) for i in range(5)) / 5
    away += sum(1 - float(query[i] @ base_query[i]) for i in range(4)) / 4
    return clicks + known * by_words + alignment * aligned / 5 + anchor * away


def _slow_contrast(query: Tensor, product: Tensor, examples: Examples, temperature: float) -> float:
    """Each example against whatever is not known to belong to it, both ways."""
    answers = {divmod(key, examples.num_products) for key in examples.positives.tolist()}
    products = sorted(set(examples.product_row.tolist()))
    total = weights = 0.0
    for q, p, weight in zip(
        examples.query_index.tolist(),
        examples.product_row.tolist(),
        examples.weight.tolist(),
        strict=True,
    ):
        to_product = [product[o] for o in products if o == p or (q, o) not in answers]
        to_query = [query[o] for o in range(len(query)) if o == q or (o, p) not in answers]
        loss = _nll(query[q], product[p], to_product, temperature) / 2
        loss += _nll(product[p], query[q], to_query, temperature) / 2
        total, weights = total + weight * loss, weights + weight
    return total / weights


def _nll(anchor: Tensor, target: Tensor, candidates: list[Tensor], temperature: float) -> float:
    logits = torch.stack([anchor @ candidate / temperature for candidate in candidates])
    return float(torch.logsumexp(logits, 0) - anchor @ target / temperature)


@pytest.mark.parametrize(
    ("alignment", "anchor", "known"),
    [(0.0, 0.0, 0.0), (0.1, 0.0, 0.0), (1.0, 0.0, 0.0), (0.1, 2.0, 0.0), (0.1, 0.3, 1.0)],
)
def test_the_loss_is_that_of_its_definition(
    encoder: Encoder,
    data: TrainingData,
    photos: list[Path],
    trained: Adapter,
    alignment: float,
    anchor: float,
    known: float,
) -> None:
    encoder.load_adapter(trained)
    config = weighed(alignment, anchor, known)
    fast = float(Objective(encoder, data, config).loss(whole(data), all_known(data)).detach())
    slow = slow_loss(encoder, data, photos, alignment, anchor, known)
    assert fast == pytest.approx(slow, abs=2e-2)  # kept activations are float16


def test_known_items_teach_the_catalogs_own_words(encoder: Encoder, data: TrainingData) -> None:
    start, losses = encoder.adapter(), []
    for used in (0.0, 3.0):
        run(encoder, data, start, known_item_weight=used, anchor_weight=0.0, local_epochs=10)
        both = [
            Objective(encoder, data, weighed(0.0, 0.0, x))
            .loss(whole(data), all_known(data))
            .detach()
            for x in (1.0, 0.0)
        ]
        losses.append(float(both[0] - both[1]))
    assert losses[1] < losses[0]


def test_an_empty_catalog_of_words_changes_nothing(encoder: Encoder, data: TrainingData) -> None:
    start, nothing = encoder.adapter(), make_known_items(TITLES, np.empty(0, np.int64), seed=0)
    without = dataclasses.replace(data, known=nothing)
    assert equal(run(encoder, without, start), run(encoder, data, start, known_item_weight=0.0))


def test_where_the_base_puts_texts_does_not_depend_on_the_adapter(
    encoder: Encoder, data: TrainingData, trained: Adapter
) -> None:
    encoder.load_adapter(trained)
    again = again_from(encoder, data, data.examples)
    assert np.array_equal(again.base_texts, data.base_texts)
    assert np.array_equal(again.base_queries, data.base_queries)
    assert equal(encoder.adapter(), trained)


def test_a_heavier_anchor_holds_texts_nearer_to_the_base(
    encoder: Encoder, data: TrainingData
) -> None:
    start, nearness = encoder.adapter(), []
    for weight in (0.0, 1.0, 100.0):
        run(encoder, data, start, anchor_weight=weight, local_epochs=10)
        now = encoder.query_matrix(data.queries)
        nearness.append(float((now * data.base_queries).sum(axis=1).mean()))
    assert nearness[0] < nearness[1] < nearness[2] <= 1.0 + 1e-6


def test_a_product_without_photo_takes_no_part_in_the_alignment(
    encoder: Encoder, data: TrainingData
) -> None:
    """Its photo vector is zero: as an entry of the softmax it would change the loss."""
    examples = dataclasses.replace(
        data.examples,
        query_index=np.append(data.examples.query_index, 3),
        product_row=np.append(data.examples.product_row, 5),
        weight=np.append(data.examples.weight, np.float32(0)),
        positives=np.append(data.examples.positives, 3 * 6 + 5),
    )
    data = again_from(encoder, data, examples)
    batches = make_batch(examples, np.arange(5)), make_batch(examples, np.arange(6))

    def alignment(batch: Batch) -> float:
        losses = [
            Objective(encoder, data, weighed(weight, 0.0)).loss(batch, None).detach()
            for weight in (1.0, 0.0)
        ]
        return float(losses[0] - losses[1])

    assert alignment(batches[1]) == pytest.approx(alignment(batches[0]), abs=1e-5)


# -- negatives -------------------------------------------------------------------------------------


def gradients(encoder: Encoder, objective: Objective, *batches: Batch | None) -> Adapter:
    encoder.fusion.zero_grad()
    for parameter in encoder.trainable():
        parameter.grad = None
    objective.backward(*batches)
    return {
        str(at): p.grad.clone() for at, p in enumerate(encoder.trainable()) if p.grad is not None
    }


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 100])
def test_a_chunk_at_a_time_gives_the_gradient_of_the_whole_batch(
    encoder: Encoder, data: TrainingData, trained: Adapter, chunk_size: int
) -> None:
    encoder.load_adapter(trained)
    config = dataclasses.replace(
        CONFIG, match_weight=0.1, logq_correction=1.0, decorrelation_weight=0.1
    )
    chunked = dataclasses.replace(config, chunk_size=chunk_size)
    batches = whole(data), all_known(data)
    at_once = gradients(encoder, Objective(encoder, data, config), *batches)
    in_chunks = gradients(encoder, Objective(encoder, data, chunked), *batches)
    assert at_once.keys() == in_chunks.keys() and len(at_once) == len(encoder.trainable())
    for name, gradient in at_once.items():
        torch.testing.assert_close(in_chunks[name], gradient, atol=1e-5, rtol=1e-4)


def test_a_batch_without_photos_can_be_encoded_in_chunks(
    encoder: Encoder, data: TrainingData
) -> None:
    images = dataclasses.replace(data.products.images, present=np.zeros(6, np.bool_))
    bare = dataclasses.replace(data, products=dataclasses.replace(data.products, images=images))
    config = dataclasses.replace(CONFIG, chunk_size=2)
    assert gradients(encoder, Objective(encoder, bare, config), whole(bare), None)


def test_a_queue_makes_recent_products_negatives(encoder: Encoder, data: TrainingData) -> None:
    """The second of two batches tells its queries' products from those of the first, too."""
    config = dataclasses.replace(weighed(0.0, 0.0), queue_size=10)
    first, second = (
        make_batch(data.examples, np.array([0, 1])),
        make_batch(data.examples, np.array([2, 3])),
    )
    objective = Objective(encoder, data, config)
    alone = float(objective.loss(second, None).detach())
    objective.backward(first, None)
    queued = float(objective.loss(second, None).detach())
    query = encoder.query_matrix(data.queries)
    product, rows = encoder.product_matrix(data.products), [0, 4, 1, 2]
    temperature = float(encoder.fusion.temperature().detach())
    logits = torch.from_numpy(query[[1, 2]] @ product[rows].T) / temperature
    weight = torch.tensor([2.0, 1.0])
    target = torch.tensor([2, 3])
    to_product = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    to_query = torch.nn.functional.cross_entropy(
        logits[:, 2:].T, torch.tensor([0, 1]), reduction="none"
    )
    expected = float(((to_product + to_query) / 2 * weight).sum() / 3)
    assert queued == pytest.approx(expected, abs=1e-4)
    assert queued > alone


def test_a_queued_product_that_answers_the_query_is_no_negative(
    encoder: Encoder, data: TrainingData
) -> None:
    config = dataclasses.replace(weighed(0.0, 0.0), queue_size=10)
    objective = Objective(encoder, data, config)
    batch = make_batch(data.examples, np.array([0]))
    alone = float(objective.loss(batch, None).detach())
    objective.backward(make_batch(data.examples, np.array([1])), None)  # query 0, product 4
    assert float(objective.loss(batch, None).detach()) == pytest.approx(alone, abs=1e-6)


def test_hard_negatives_are_pushed_away(encoder: Encoder, data: TrainingData) -> None:
    """Query "coat" (1) skipped product 5, which nobody clicked."""
    start, scores = encoder.adapter(), []
    skipping = dataclasses.replace(data.examples, skipped=np.array([1 * 6 + 5]))
    hard = again_from(encoder, data, skipping)
    for count in (0, 1):
        run(encoder, hard, start, hard_negatives=count, local_epochs=10, anchor_weight=0.0)
        query = encoder.query_matrix(data.queries)[1]
        scores.append(query @ encoder.product_matrix(data.products)[5])
    assert scores[1] < scores[0]


def test_a_product_too_like_a_clicked_one_is_no_negative(
    encoder: Encoder, data: TrainingData
) -> None:
    """With every product too alike, a batch of one query each has nothing to tell apart."""
    config = dataclasses.replace(weighed(0.0, 0.0), negative_max_cosine=1e-3)
    vectors = encoder.product_matrix(data.products)
    assert (vectors[:5] @ vectors[:5].T > 1e-3).all()
    strict = Objective(encoder, data, config).loss(whole(data), None)
    assert float(strict.detach()) == pytest.approx(0.0, abs=1e-6)


def test_known_items_may_have_a_temperature_of_their_own(
    encoder: Encoder, data: TrainingData
) -> None:
    own = float(encoder.fusion.temperature().detach())
    losses = [
        float(
            Objective(encoder, data, dataclasses.replace(CONFIG, known_item_temperature=fixed))
            .loss(whole(data), all_known(data))
            .detach()
        )
        for fixed in (0.0, own, 10 * own)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert losses[2] != pytest.approx(losses[0], abs=1e-3)


# -- augmented views -------------------------------------------------------------------------------


def seen_upside_down(data: TrainingData) -> TrainingData:
    """One view of each: that of the item at the other end of the list."""
    queries, texts = (reverse(kept) for kept in (data.queries, data.products.texts))
    maps = data.products.images.maps[::-1].copy()
    images = dataclasses.replace(data.products.images, maps=maps)
    return dataclasses.replace(data, views=Views([queries], [texts], [images]))


def reverse(kept: TextPrefixes) -> TextPrefixes:
    parts = [kept.tokens_of(row).numpy() for row in range(len(kept.lengths()))][::-1]
    return TextPrefixes(np.concatenate(parts), np.cumsum([0, *map(len, parts)]))


def test_a_batch_shows_originals_and_views_as_they_were_drawn(
    encoder: Encoder, data: TrainingData
) -> None:
    config = weighed(0.0, 0.0)
    objective = Objective(encoder, seen_upside_down(data), config)

    def loss(objective: Objective) -> float:
        return float(objective.loss(whole(data), None).detach())

    undrawn, drawn = loss(objective), []
    for number in (0, 1, 2, 3, 0):
        objective.draw([number])
        drawn.append(loss(objective))
    assert undrawn == loss(Objective(encoder, data, config))
    assert len({undrawn, *drawn}) > 2
    assert drawn[0] == drawn[-1]


def test_views_are_the_same_for_both_passes_of_a_chunked_step(
    encoder: Encoder, data: TrainingData, trained: Adapter
) -> None:
    encoder.load_adapter(trained)
    found = []
    for chunk_size in (0, 2):
        config = dataclasses.replace(CONFIG, chunk_size=chunk_size)
        objective = Objective(encoder, seen_upside_down(data), config)
        objective.draw([3])
        found.append(gradients(encoder, objective, whole(data), all_known(data)))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-4)


def test_views_change_what_is_learned(encoder: Encoder, data: TrainingData) -> None:
    start = encoder.adapter()
    assert not equal(run(encoder, seen_upside_down(data), start), run(encoder, data, start))


# -- rank ------------------------------------------------------------------------------------------


def trained_within(
    encoder: Encoder, data: TrainingData, start: Adapter, rank: int | None, **changes: float | str
) -> Adapter:
    encoder.load_adapter(start)
    config = dataclasses.replace(CONFIG, local_epochs=3, **changes)  # type: ignore[arg-type]
    train(encoder, data, config, seed=[7, 1], rank=rank)
    return encoder.adapter()


def beyond_first(name: str, tensor: Tensor) -> Tensor:
    """What of a factor lies beyond its first component; nothing of a scalar."""
    axis = rank_axis(name)
    return tensor.flatten()[:0] if axis is None else tensor.narrow(axis, 1, tensor.shape[axis] - 1)


@pytest.mark.parametrize("rank", [2, 3, 10**9])
def test_the_rank_of_the_base_changes_no_bit(
    encoder: Encoder, data: TrainingData, trained: Adapter, rank: int
) -> None:
    assert encoder.rank == 2
    assert equal(
        trained_within(encoder, data, trained, rank), trained_within(encoder, data, trained, None)
    )


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("factors", ["both", "a", "b"])
@pytest.mark.parametrize("mu", [0.0, 5.0])
def test_only_the_first_components_move_weight_decay_included(
    encoder: Encoder, data: TrainingData, trained: Adapter, optimizer: str, factors: str, mu: float
) -> None:
    end = trained_within(
        encoder,
        data,
        trained,
        1,
        optimizer=optimizer,
        trained_factors=factors,
        weight_decay=0.5,
        proximal_mu=mu,
    )
    moves = set(encoder.trainable_names(factors))
    for name, start in trained.items():
        assert torch.equal(beyond_first(name, end[name]), beyond_first(name, start)), name
        first = within_rank({name: start}, 1)[name], within_rank({name: end[name]}, 1)[name]
        assert torch.equal(*first) == (name not in moves), name


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("chunk_size", [0, 2])
def test_a_smaller_rank_is_training_with_the_others_frozen(
    encoder: Encoder, data: TrainingData, trained: Adapter, optimizer: str, chunk_size: int
) -> None:
    """The slow way: every gradient beyond the first component is made zero as it arises."""
    changes: dict[str, float | str] = {"optimizer": optimizer, "chunk_size": chunk_size}
    changes |= {"weight_decay": 0.0, "clip_norm": 0.1, "proximal_mu": 0.5}
    fast = trained_within(encoder, data, trained, 1, **changes)

    def frozen(name: str, gradient: Tensor) -> Tensor:
        kept = gradient.clone()
        beyond_first(name, kept).zero_()
        return kept

    named = zip(encoder.trainable_names(), encoder.trainable(), strict=True)
    hooks = [parameter.register_hook(partial(frozen, name)) for name, parameter in named]
    slow = trained_within(encoder, data, trained, None, **changes)
    for hook in hooks:
        hook.remove()
    for name, tensor in slow.items():
        torch.testing.assert_close(fast[name], tensor, atol=1e-6, rtol=1e-5, msg=name)


def test_the_others_take_part_in_the_forward_pass(
    encoder: Encoder, data: TrainingData, trained: Adapter
) -> None:
    """With the others at zero the same components learn something else."""
    alone = {name: tensor.clone() for name, tensor in trained.items()}
    for name, tensor in alone.items():
        beyond_first(name, tensor).zero_()
    ends = [trained_within(encoder, data, start, 1) for start in (trained, alone)]
    moves = [
        within_rank({n: end[n] - start[n] for n in end}, 1)
        for end, start in zip(ends, (trained, alone), strict=True)
    ]
    assert not equal(*moves)


# -- early stopping --------------------------------------------------------------------------------


def test_a_round_ends_when_validation_falls_and_keeps_the_best_epoch(
    encoder: Encoder, data: TrainingData
) -> None:
    start, values, seen = encoder.adapter(), iter([0.3, 0.5, 0.4, 0.2]), list[Adapter]()

    def validate() -> float:
        seen.append(encoder.adapter())
        return next(values)

    config = dataclasses.replace(CONFIG, local_epochs=9, patience=2)
    train(encoder, data, config, seed=[7, 1], validate=validate)
    assert len(seen) == 4
    assert equal(encoder.adapter(), seen[1])
    assert equal(run(encoder, data, start, local_epochs=2), seen[1])


def test_a_round_that_ends_by_itself_keeps_the_best_epoch_too(
    encoder: Encoder, data: TrainingData
) -> None:
    values, seen = iter([0.5, 0.4]), list[Adapter]()

    def validate() -> float:
        seen.append(encoder.adapter())
        return next(values)

    config = dataclasses.replace(CONFIG, local_epochs=2, patience=5)
    train(encoder, data, config, seed=[7, 1], validate=validate)
    assert equal(encoder.adapter(), seen[0])


def test_without_patience_nobody_asks_for_validation(encoder: Encoder, data: TrainingData) -> None:
    def validate() -> float:
        raise AssertionError("asked")

    train(encoder, data, CONFIG, seed=[7, 1], validate=validate)


def test_freed_memory_is_given_back_while_training(
    encoder: Encoder, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = list[str]()
    monkeypatch.setattr(FREED, "give_back", lambda: events.append("given back"))
    config = dataclasses.replace(CONFIG, local_epochs=2)
    train(encoder, data, config, seed=[7, 1], on_step=lambda *_: events.append("step"))
    assert len(events) == 2 * num_steps(data, config)
    assert events[::2] == ["given back"] * num_steps(data, config)


# -- learning --------------------------------------------------------------------------------------


def test_the_loss_falls_and_clicked_products_come_first(
    encoder: Encoder, data: TrainingData
) -> None:
    first = train(encoder, data, CONFIG, seed=[0])
    later = train(encoder, data, dataclasses.replace(CONFIG, local_epochs=40), seed=[1])
    last = train(encoder, data, CONFIG, seed=[2])
    assert last < later < first
    scores = encoder.query_matrix(data.queries) @ encoder.product_matrix(data.products)[:5].T
    assert scores.argmax(axis=1).tolist() in ([0, 1, 2, 3], [4, 1, 2, 3])


def test_every_part_of_the_adapter_moves(encoder: Encoder, data: TrainingData) -> None:
    start = encoder.adapter()
    end = run(encoder, data, start, local_epochs=2)  # B is 0 at first, so A moves second
    assert [name for name in start if torch.equal(start[name], end[name])] == []


def test_the_frozen_base_does_not_move(encoder: Encoder, data: TrainingData) -> None:
    start = encoder.adapter()
    before = encoder.product_matrix(data.products)
    run(encoder, data, start, local_epochs=3)
    encoder.load_adapter(start)
    np.testing.assert_array_equal(encoder.product_matrix(data.products), before)


def test_the_same_seed_gives_the_same_adapter(encoder: Encoder, data: TrainingData) -> None:
    start = encoder.adapter()
    assert equal(run(encoder, data, start), run(encoder, data, start))


def test_another_seed_gives_another_order(encoder: Encoder, data: TrainingData) -> None:
    start = encoder.adapter()
    one = run(encoder, data, start, batch_size=2)
    encoder.load_adapter(start)
    train(encoder, data, dataclasses.replace(CONFIG, batch_size=2), seed=[7, 2])
    assert not equal(encoder.adapter(), one)


def test_an_update_is_bounded_by_the_step_size(encoder: Encoder, data: TrainingData) -> None:
    """One AdamW step moves no number by more than the learning rate, decay apart."""
    start = encoder.adapter()
    end = run(encoder, data, start, batch_size=5, learning_rate=1e-3, weight_decay=0.0)
    for name, tensor in start.items():
        assert (end[name] - tensor).abs().max() <= 1e-3 * 1.001


def test_steps_are_counted(encoder: Encoder, data: TrainingData) -> None:
    seen: list[tuple[int, int]] = []
    config = dataclasses.replace(CONFIG, local_epochs=2)
    train(encoder, data, config, seed=[0], on_step=lambda *step: seen.append(step))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]  # 5 examples, 4 a batch, 2 passes


def test_rounds_that_share_an_epoch_train_what_one_round_of_it_does(
    encoder: Encoder, data: TrainingData
) -> None:
    """SGD carries nothing from step to step, so two halves in turn are the whole, bit for bit."""
    few = {
        name: getattr(data.examples, name)[:4] for name in ("query_index", "product_row", "weight")
    }
    four = again_from(encoder, data, dataclasses.replace(data.examples, **few))
    start, changes = encoder.adapter(), {"optimizer": "sgd", "batch_size": 2, "learning_rate": 0.1}
    plain = dataclasses.replace(CONFIG, **changes)
    train(encoder, four, plain, seed=order_seed(plain, 3, "north"))
    whole_epoch = encoder.adapter()
    encoder.load_adapter(start)
    for part in (0, 1):
        config = dataclasses.replace(plain, rounds_per_epoch=2, part=part)
        assert num_steps(four, config) == 1
        train(encoder, four, config, seed=order_seed(config, 3 + part, "north"))
        assert equal(encoder.adapter(), whole_epoch) == (part == 1)


def test_two_regions_on_one_encoder_do_not_leak_into_each_other(
    encoder: Encoder, data: TrainingData
) -> None:
    """Training another region in between changes no bit of this one's result."""
    start = encoder.adapter()
    other = dataclasses.replace(
        data, examples=dataclasses.replace(data.examples, weight=data.examples.weight[::-1].copy())
    )
    alone = run(encoder, data, start)
    assert not equal(run(encoder, other, start, local_epochs=3), alone)
    assert equal(run(encoder, data, start), alone)
