"""Which adapters a region may answer with, and that only what is better beyond luck is chosen."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from test_training import CONFIG, QUERIES, TITLES

from client.batches import make_batch
from client.clicks import Examples
from client.known_items import make_known_items
from client.objective import Objective, TrainingData, make_training_data
from client.personal import RELEASE
from client.personalization import ENSEMBLE, GATE, choose, make_candidates, make_ensemble, tune_gate
from client.training import train
from shared.adapter import Adapter, parted
from shared.encoders.encoder import Encoder, ProductPrefixes
from shared.encoders.prefix_cache import image_prefixes, text_prefixes
from shared.schema import PersonalizationConfig
from shared.wire_evaluation import Difference

SETTINGS = PersonalizationConfig(
    passes=2,
    learning_rate=0.005,
    weights=(0.5, 1.0),
    alone_passes=2,
    alone_share=0.3,
    alone_prior=0,
)


@pytest.fixture
def training_data(encoder: Encoder, photos: list[Path], tmp_path: Path) -> TrainingData:
    """Query i was clicked with product i."""
    same = np.arange(len(QUERIES))
    weight = np.ones(len(QUERIES), np.float32)
    examples = Examples(QUERIES, same, same, weight, same * (len(TITLES) + 1), len(TITLES))
    kept = partial(text_prefixes, tmp_path, encoder.text, encoder.base.fingerprint)
    shown = [*photos[:5], None]
    images = image_prefixes(tmp_path, encoder.image, encoder.base.fingerprint, shown)
    products = ProductPrefixes(kept(TITLES), images, np.ones(len(TITLES), np.bool_))
    known = make_known_items(TITLES, np.arange(5), seed=0)
    return make_training_data(encoder, examples, known, kept, products)


# -- candidates ------------------------------------------------------------------------------------


def made(encoder: Encoder, data: TrainingData, start: Adapter) -> dict[str, Adapter]:
    encoder.load_adapter(start)
    return make_candidates(encoder, data, CONFIG, SETTINGS, seed=[1])


def test_the_gate_alone_moves_nothing_else(
    encoder: Encoder, training_data: TrainingData, trained: Adapter
) -> None:
    gate = made(encoder, training_data, trained)[GATE]
    moved = [name for name in trained if not gate[name].equal(trained[name])]
    assert moved == ["fusion/gate"]


def test_the_gate_is_moved_by_the_gradient_of_the_whole_loss(
    encoder: Encoder, training_data: TrainingData, trained: Adapter
) -> None:
    """One step of Adam goes its rate against the sign of the gradient, here the slow way's."""
    encoder.load_adapter(trained)
    whole = make_batch(training_data.examples, np.arange(len(QUERIES)))
    gate = encoder.fusion.gate
    gate.grad = None
    Objective(encoder, training_data, CONFIG, [gate]).backward(whole, None)
    gradient = gate.grad
    assert gradient is not None and gradient.abs().min() > 1e-4
    config = replace(CONFIG, local_epochs=1, batch_size=len(QUERIES))
    tune_gate(encoder, training_data, config, learning_rate=0.25, seed=[1])
    expected = trained["fusion/gate"] - 0.25 * gradient.sign()
    torch.testing.assert_close(encoder.fusion.gate.detach(), expected)


def test_the_whole_way_is_plain_training_from_the_release(
    encoder: Encoder, training_data: TrainingData, trained: Adapter
) -> None:
    candidates = made(encoder, training_data, trained)
    assert list(candidates) == [GATE, "tuned-0.5", "tuned-1", ENSEMBLE]
    encoder.load_adapter(trained)
    config = replace(CONFIG, local_epochs=2, learning_rate=0.005)
    train(encoder, training_data, config, seed=[1])
    tuned = encoder.adapter()
    assert all(candidates["tuned-1"][name].equal(tuned[name]) for name in tuned)
    for name, half in candidates["tuned-0.5"].items():
        torch.testing.assert_close(half, (trained[name] + tuned[name]) / 2)


def test_an_ensemble_is_the_release_beside_what_was_trained_without_it(
    encoder: Encoder, training_data: TrainingData, trained: Adapter
) -> None:
    release, home, share = parted(made(encoder, training_data, trained)[ENSEMBLE])
    assert share == pytest.approx(0.3)
    assert all(release[name].equal(trained[name]) for name in trained)
    encoder.reset(seed=CONFIG.seed)
    for number, rate in enumerate(
        (SETTINGS.alone_learning_rate, SETTINGS.alone_learning_rate / 10)
    ):
        config = replace(CONFIG, local_epochs=1, learning_rate=rate)
        train(encoder, training_data, config, seed=[1, number])
    assert all(home[name].equal(tensor) for name, tensor in encoder.adapter().items())


def test_who_wants_no_ensemble_trains_none(
    encoder: Encoder, training_data: TrainingData, trained: Adapter
) -> None:
    encoder.load_adapter(trained)
    settings = SETTINGS.model_copy(update={"alone_share": 0.0})
    candidates = make_candidates(encoder, training_data, CONFIG, settings, seed=[1])
    assert list(candidates) == [GATE, "tuned-0.5", "tuned-1"]
    assert make_ensemble(encoder, training_data, CONFIG, settings, seed=[1]) == {}


def test_an_ensemble_is_the_same_with_and_without_other_candidates(
    encoder: Encoder, training_data: TrainingData, trained: Adapter
) -> None:
    whole = made(encoder, training_data, trained)[ENSEMBLE]
    encoder.load_adapter(trained)
    config = replace(CONFIG, local_epochs=2, part=1, rounds_per_epoch=3)  # of some federation's
    (one,) = make_ensemble(encoder, training_data, config, SETTINGS, seed=[1]).values()
    assert one.keys() == whole.keys()
    assert all(whole[name].equal(tensor) for name, tensor in one.items())


def test_the_same_clicks_make_the_same_candidates(
    encoder: Encoder, training_data: TrainingData, trained: Adapter
) -> None:
    one, again = (made(encoder, training_data, trained) for _ in range(2))
    for name, adapter in one.items():
        assert all(again[name][key].equal(adapter[key]) for key in adapter)


# -- the choice ------------------------------------------------------------------------------------


def gain(mean: float, variance: float = 0.0, num_queries: int = 100) -> Difference:
    return Difference(num_queries, mean, variance)


def chosen(**gains: Difference) -> str:
    return choose(gains, confidence=0.95, min_queries=100)[0]


def test_the_best_of_those_that_win_is_chosen() -> None:
    assert chosen(a=gain(0.01), b=gain(0.03), c=gain(-0.5)) == "b"
    assert chosen(a=gain(0.01), b=gain(0.03, variance=1.0)) == "a"  # b's may be luck


def test_nothing_better_beyond_luck_leaves_the_release() -> None:
    assert chosen() == chosen(a=gain(0.0)) == chosen(a=gain(-0.1), b=gain(-0.2)) == RELEASE


def test_an_ensemble_need_only_not_lose() -> None:
    assert chosen(ensemble=gain(-0.01, variance=1.0)) == ENSEMBLE  # 0.1 standard errors
    assert chosen(ensemble=gain(-0.18, variance=1.0)) == RELEASE  # 1.8, where 1.645 are enough
    assert chosen(ensemble=gain(-0.01, variance=1.0), a=gain(0.02, variance=1.0)) == ENSEMBLE
    assert chosen(ensemble=gain(0.01, variance=1.0), a=gain(0.02)) == "a"  # which surely wins
    assert chosen(ensemble=gain(0.03), a=gain(0.02)) == ENSEMBLE


@pytest.mark.parametrize(("others", "expected"), [((), RELEASE), ((ENSEMBLE,), ENSEMBLE)])
def test_too_few_queries_choose_nothing(others: tuple[str, ...], expected: str) -> None:
    """Not what seems to win by far; and an ensemble that seems to lose is not refused by them."""
    gains = {"a": gain(0.5, num_queries=99)} | {name: gain(-0.5, num_queries=99) for name in others}
    choice, reason, measured = choose(gains, confidence=0.95, min_queries=100)
    assert (choice, measured) == (expected, ())
    assert reason == "too few clicks to choose by (100 queries needed)"


@pytest.mark.parametrize(("others", "choice"), [(0, "a"), (1, RELEASE)])
def test_more_candidates_must_win_by_more(others: int, choice: str) -> None:
    """One of one needs 1.645 standard errors, one of two 1.960; this one has 1.8."""
    field = {f"other-{number}": gain(-1.0) for number in range(others)}
    assert chosen(a=gain(0.18, variance=1.0), **field) == choice


def test_the_figures_of_every_candidate_are_kept() -> None:
    gains = {"a": gain(0.05, variance=0.04), "b": gain(-0.1)}
    choice, reason, measured = choose(gains, confidence=0.9, min_queries=2)
    bound = 0.05 - NormalDist().inv_cdf(0.95) * 0.2 / 10  # 0.1 shared out between two
    assert [(one.candidate, one.mean_difference) for one in measured] == [("a", 0.05), ("b", -0.1)]
    assert measured[0].lower_bound == pytest.approx(bound)
    assert choice == "a"
    other = 0.1 - bound
    assert measured[0].upper_bound == pytest.approx(other)
    assert reason == (
        f"a +0.0500 nDCG@10 on validation clicks, between {bound:+.4f} and {other:+.4f}"
    )


def test_noise_alone_seldom_wins(seed: int = 0) -> None:
    """Equally good candidates, 2,000 regions: about 5 % at most take one."""
    generator = torch.Generator().manual_seed(seed)
    regions = torch.randn(2000, 5, 100, generator=generator, dtype=torch.float64)
    wins = sum(_wins(region) for region in regions)
    assert 0.02 * 2000 < wins < 0.065 * 2000


def _wins(region: torch.Tensor) -> bool:
    means, variances = region.mean(dim=1), region.var(dim=1)
    gains = {
        str(number): gain(float(mean), float(variance))
        for number, (mean, variance) in enumerate(zip(means, variances, strict=True))
    }
    return choose(gains, confidence=0.95, min_queries=100)[0] != RELEASE


def test_the_adapter_trained_alone_has_the_more_say_the_more_examples_it_had(
    encoder: Encoder, training_data: TrainingData, trained: Adapter
) -> None:
    encoder.load_adapter(trained)
    number = len(training_data.examples.weight)
    half = SETTINGS.model_copy(update={"alone_prior": float(number)})
    (made,) = make_ensemble(encoder, training_data, CONFIG, half, seed=[1]).values()
    assert parted(made)[2] == pytest.approx(SETTINGS.alone_share / 2)
    assert half.share_of_alone(3 * number) == pytest.approx(SETTINGS.alone_share * 3 / 4)
    assert half.model_copy(update={"alone_prior": 0.0}).share_of_alone(1) == SETTINGS.alone_share
