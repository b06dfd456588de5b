"""Adapt a release to one region's clicks, and answer from that only where it is not worse for it.

The candidates beside the release as it is:

    gate       the fusion gate alone, fine-tuned: how much photos count here (FedPer's idea of a
               part that stays at home, arXiv:1912.00818); not where the base's fusion has no gate
    tuned-w    release + w (fine-tuned - release), number by number (WiSE-FT, arXiv:2109.01903,
               eq. 1): w = 1 is the adapter after some passes over the region's own clicks, less
               forgets less of what the other regions taught
    ensemble   the release beside an adapter that the region trains alone, from the base: every
               similarity is a weighted mean of both (the mixture of a global and a local model of
               APFL, arXiv:2003.13461, of outputs and not of weights), in which the one trained
               alone has the more say the more examples it had

The region's validation clicks choose: a candidate must beat the release with `confidence`, shared
out among the candidates (Bonferroni), so that many candidates are no better than few at winning by
luck. Failing that it is the ensemble, unless the clicks show as surely that it is worse: encoders
that were trained apart err apart, so their mean is seldom below the better of the two, and held-out
clicks, which know only what was shown, hardly see it (docs/personalization.md). With too few
validation queries they choose nothing, and the ensemble is taken as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from client.acceptance import lower_bound
from client.batches import epoch_batches
from client.objective import Objective, TrainingData
from client.personal import RELEASE, Measured
from client.training import OnStep, train
from shared.adapter import Adapter, interpolate, paired
from shared.config import BOTH, TrainConfig, half_cosine
from shared.encoders.batches import batches_by_length
from shared.encoders.encoder import Encoder, ProductPrefixes
from shared.encoders.prefix_cache import TextPrefixes
from shared.schema import PersonalizationConfig
from shared.wire_evaluation import Difference

GATE, ENSEMBLE = "gate", "ensemble"
_LAST_RATE = 0.1  # of training alone, of its first


def make_candidates(
    encoder: Encoder,
    data: TrainingData,
    config: TrainConfig,
    settings: PersonalizationConfig,
    *,
    seed: Sequence[int],
    on_step: OnStep | None = None,
) -> dict[str, Adapter]:
    """Adapters that a region might answer with instead of the release.

    Args:
        encoder: holds the release; it is left with any of the candidates.
        data: what the region trains on.
        config: of a round; passes and learning rate are those of `settings`.
        settings: of `region.toml`.
        seed: of the order of examples.
        on_step: called with (steps done, steps in all) of training.

    Returns:
        By name, in the order of the module's docstring.
    """
    release = encoder.adapter()
    passes, rate = settings.passes, settings.learning_rate
    config = replace(_alike(config), local_epochs=passes, learning_rate=rate)
    candidates = dict[str, Adapter]()
    if encoder.fusion.has_gate:
        tune_gate(encoder, data, config, learning_rate=settings.gate_learning_rate, seed=seed)
        candidates[GATE] = encoder.adapter()
        encoder.load_adapter(release)
    train(encoder, data, config, seed=[*seed], on_step=on_step)
    tuned = encoder.adapter()
    candidates |= {
        f"tuned-{weight:g}": interpolate(release, tuned, weight) for weight in settings.weights
    }
    encoder.load_adapter(release)
    return candidates | make_ensemble(encoder, data, config, settings, seed=seed, on_step=on_step)


def make_ensemble(
    encoder: Encoder,
    data: TrainingData,
    config: TrainConfig,
    settings: PersonalizationConfig,
    *,
    seed: Sequence[int],
    on_step: OnStep | None = None,
) -> dict[str, Adapter]:
    """The one candidate that needs no choice; arguments are those of `make_candidates`.

    Returns:
        It, by its name; nothing where `settings` want none.
    """
    if settings.alone_share == 0:
        return {}
    release = encoder.adapter()
    train_alone(encoder, data, _alike(config), settings, seed=seed, on_step=on_step)
    share = settings.share_of_alone(len(data.examples.weight))
    return {ENSEMBLE: paired(release, encoder.adapter(), share)}


def _alike(config: TrainConfig) -> TrainConfig:
    """How a region trains by itself: whole passes over both factors, and nobody to share with."""
    return replace(
        config,
        rounds_per_epoch=1,
        part=0,
        trained_factors=BOTH,
        patience=0,
        decorrelation_weight=0.0,
        drawn_negatives=0,
    )


def train_alone(
    encoder: Encoder,
    data: TrainingData,
    config: TrainConfig,
    settings: PersonalizationConfig,
    *,
    seed: Sequence[int],
    on_step: OnStep | None = None,
) -> None:
    """Train from the base as if there were no other regions, in place.

    Args:
        encoder: of the base; whatever adapter it holds is replaced.
        data: what the region trains on.
        config: of a round; passes and learning rate are those of `settings`.
        settings: of `region.toml`.
        seed: of the order of examples.
        on_step: called with (steps done, steps in all) of a pass.
    """
    encoder.reset(seed=config.seed)
    first, last = settings.alone_learning_rate, settings.alone_learning_rate * _LAST_RATE
    for number in range(settings.alone_passes):
        progress = number / max(settings.alone_passes - 1, 1)
        rate = half_cosine(first, last, progress)
        config = replace(config, local_epochs=1, learning_rate=rate)
        train(encoder, data, config, seed=[*seed, number], on_step=on_step)


def tune_gate(
    encoder: Encoder,
    data: TrainingData,
    config: TrainConfig,
    *,
    learning_rate: float,
    seed: Sequence[int],
) -> None:
    """Train the fusion gate in place, and nothing else.

    Neither tower depends on the gate, so all their vectors are computed once and a pass costs next
    to nothing. Of the loss only the click term depends on it: that of known items asks for titles
    alone, which no gate weighs.

    Args:
        encoder: holds the release, of a base whose fusion has a gate.
        data: what the region trains on.
        config: of a round.
        learning_rate: of Adam.
        seed: of the order of examples.
    """
    products, queries = data.products, _asked(encoder, data.queries)  # (Q, D)
    text, image = _modalities(encoder, products)  # (N, D) each
    gate, temperature = encoder.fusion.gate, encoder.fusion.temperature().detach()
    objective = Objective(encoder, data, config, [gate])
    optimizer = torch.optim.Adam([gate], lr=learning_rate)
    for epoch in range(config.local_epochs):
        for batch in epoch_batches(
            data.examples,
            batch_size=config.batch_size,
            seed=[*seed, epoch],
            hard_negatives=config.hard_negatives,
        ):
            rows = batch.product_rows
            product = encoder.fused(text[rows], image[rows], products, rows)
            query = encoder.fusion.place(queries[batch.query_rows])
            optimizer.zero_grad()
            loss = objective.clicks(query, product, batch, temperature)
            loss.backward(inputs=[gate])  # type: ignore[no-untyped-call]
            optimizer.step()


@torch.no_grad()
def _asked(encoder: Encoder, queries: TextPrefixes) -> Tensor:
    """What the text tower makes of queries, (Q, D)."""
    text = torch.zeros(len(queries.lengths()), encoder.tower_dim, device=encoder.device)
    for rows in batches_by_length(queries.lengths()):
        text[rows] = encoder.text_vectors(queries, rows)
    return text


@torch.no_grad()
def _modalities(encoder: Encoder, products: ProductPrefixes) -> tuple[Tensor, Tensor]:
    """Text and photo vectors of a whole catalog, (N, D) each."""
    text = torch.zeros(len(products.has_text), encoder.tower_dim, device=encoder.device)
    image = torch.zeros_like(text)
    for rows in batches_by_length(products.texts.lengths()):
        text[rows] = encoder.text_vectors(products.texts, rows)
        image[rows] = encoder.image_vectors(products.images, rows)
    return text, image


def choose(
    gains: Mapping[str, Difference], *, confidence: float, min_queries: int
) -> tuple[str, str, tuple[Measured, ...]]:
    """The best candidate that beats the release, or an ensemble that does not lose, or the release.

    Args:
        gains: nDCG@10 of each candidate less that of the release, on validation clicks.
        confidence: that luck makes no candidate win, in (0.5, 1), over all of them.
        min_queries: fewer choose nothing: it is the ensemble, if there is one; >= 2.

    Returns:
        The candidate's name or `RELEASE`; why, one line; and every candidate's figures.
    """
    enough = {name: one for name, one in gains.items() if one.num_queries >= min_queries}
    single = 1 - (1 - confidence) / max(len(enough), 1)
    measured = tuple(_measured(name, one, confidence=single) for name, one in enough.items())
    if not measured:
        choice = ENSEMBLE if ENSEMBLE in gains else RELEASE
        return choice, f"too few clicks to choose by ({min_queries} queries needed)", ()
    surest = [one for one in measured if one.lower_bound > 0]
    unrefuted = [one for one in measured if one.candidate == ENSEMBLE and one.upper_bound >= 0]
    best = max(surest or unrefuted or measured, key=lambda one: one.mean_difference)
    figures = f"{best.candidate} {best.mean_difference:+.4f} nDCG@10 on validation clicks"
    reason = f"{figures}, between {best.lower_bound:+.4f} and {best.upper_bound:+.4f}"
    return (best.candidate if surest or unrefuted else RELEASE), reason, measured


def _measured(name: str, one: Difference, *, confidence: float) -> Measured:
    """A candidate's gain with both bounds, each of this confidence."""
    lower, loss = (
        lower_bound(one.num_queries, mean, one.variance, confidence=confidence)
        for mean in (one.mean, -one.mean)
    )
    return Measured(candidate=name, mean_difference=one.mean, lower_bound=lower, upper_bound=-loss)
