"""What may be said of measured scores: intervals, corrected tests, ratios. Pure functions.

Two kinds of luck are in a figure: which queries were asked, and which world, clicks and order of
training a seed has drawn. The bootstrap here resamples both. The same words put to several regions
or under several seeds are one piece of evidence, so a query is drawn with all its scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.randomization import paired_randomization_test

LEVEL: Final = 0.05  # of every test; intervals hold the rest
RESAMPLES: Final = 2000
_CHUNK_NUMBERS = 4_000_000  # weights held at once

Floats = NDArray[np.float64]
Verdict = Literal["better", "not worse", "worse", "open", "no claim"]


@dataclass(frozen=True)
class Stratum:
    """Scores of several methods on one region's queries under one seed.

    Attributes:
        seed: number of the seed, from 0.
        text: number of each query's text, from 0, (Q,) int64; equal texts share it everywhere.
        scores: of each method, (Q, M).
    """

    seed: int
    text: NDArray[np.int64]
    scores: Floats


class Interval(NamedTuple):
    """A percentile interval; None at an end where there is none."""

    low: float
    high: float


def mean_scores(strata: Sequence[Stratum]) -> Floats:
    """Mean over queries, then regions, then seeds, each counting the same at its level, (M,).

    Args:
        strata: those without a query are left out; at least one has some.
    """
    num_texts = 1 + max(int(stratum.text.max(initial=-1)) for stratum in strata)
    num_seeds = 1 + max(stratum.seed for stratum in strata)
    (means,) = _means(strata, np.ones((1, num_texts)), np.ones((1, num_seeds)))
    return np.asarray(means)


def bootstrap_means(
    strata: Sequence[Stratum], *, seed: int, num_resamples: int = RESAMPLES
) -> Floats:
    """`mean_scores` of resampled texts and resampled seeds (Efron 1979), (B, M).

    Args:
        strata: as for `mean_scores`. Texts are drawn with replacement over all of them at once
            (a cluster bootstrap), seeds likewise and apart; with one seed only texts are drawn.
        seed: of the draws.
        num_resamples: B.

    A region none of whose queries was drawn is left out of that draw.
    """
    rng = np.random.default_rng(seed)
    num_texts = 1 + max(int(stratum.text.max(initial=-1)) for stratum in strata)
    seeds = np.unique([stratum.seed for stratum in strata if len(stratum.text)])
    step = max(1, _CHUNK_NUMBERS // max(num_texts, 1))
    parts = []
    for start in range(0, num_resamples, step):
        size = min(step, num_resamples - start)
        texts = rng.multinomial(num_texts, np.full(num_texts, 1 / num_texts), size)
        drawn = rng.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size)
        weights = np.zeros((size, int(seeds.max()) + 1))
        weights[:, seeds] = drawn
        parts.append(_means(strata, texts.astype(np.float64), weights))
    return np.concatenate(parts)


def _means(strata: Sequence[Stratum], texts: Floats, seeds: Floats) -> Floats:
    """Weighted means: texts (B, T) and seeds (B, S) are how often each counts; (B, M)."""
    num_methods = strata[0].scores.shape[1]
    sums = np.zeros((*seeds.shape, num_methods))  # (B, S, M), over regions
    regions = np.zeros(seeds.shape)  # (B, S), that have a query
    for stratum in strata:
        weight = texts[:, stratum.text]  # (B, Q)
        total = weight.sum(1)
        has = total > 0
        sums[has, stratum.seed] += (weight @ stratum.scores)[has] / total[has, None]
        regions[:, stratum.seed] += has
    counted = seeds * (regions > 0)
    by_seed = sums / np.maximum(regions, 1)[:, :, None]
    whole: Floats = (by_seed * counted[:, :, None]).sum(1) / np.maximum(counted.sum(1), 1)[:, None]
    return whole


def interval(draws: Floats, *, level: float = LEVEL) -> Interval:
    """The percentile interval of bootstrap draws, (B,)."""
    low, high = np.quantile(draws, (level / 2, 1 - level / 2))
    return Interval(float(low), float(high))


def gap_closed(low: float, value: float, high: float) -> float | None:
    """Share of the way from `low` to `high` that `value` has gone; None if `high` is not above."""
    return (value - low) / (high - low) if high > low else None


def gap_interval(low: Floats, value: Floats, high: Floats) -> Interval | None:
    """Percentile interval of `gap_closed` over bootstrap draws, (B,) each.

    None where more draws than the interval leaves out have no gap: a ratio whose divisor may be
    zero has no finite interval (Fieller 1954), and one made of the other draws would look too sure.
    """
    gap = high - low
    if np.mean(gap <= 0) > LEVEL / 2:
        return None
    open_gap = gap > 0
    return interval((value - low)[open_gap] / gap[open_gap])


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979, step-down), in the order given.

    Rejecting where the adjusted value is at most alpha keeps the chance of any false rejection in
    the family at alpha, whatever the dependence between the tests.
    """
    adjusted, least = [0.0] * len(p), 0.0
    for rank, number in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        least = max(least, min(1.0, (len(p) - rank) * p[number]))
        adjusted[number] = least
    return adjusted


def text_means(strata: Sequence[Stratum]) -> Floats:
    """One row a distinct text, the mean of its scores over regions and seeds, (T, M)."""
    scores = np.concatenate([stratum.scores for stratum in strata])
    number = np.unique(np.concatenate([s.text for s in strata]), return_inverse=True)[1]
    sums = np.zeros((int(number.max(initial=-1)) + 1, scores.shape[1]))
    np.add.at(sums, number, scores)
    means: Floats = sums / np.bincount(number)[:, None]
    return means


class RegionTests(NamedTuple):
    """One-sided p-values of a method against another in one region.

    Attributes:
        better: that it is better.
        not_worse: that it is not worse by the margin.
        worse: that it is worse.
    """

    better: float
    not_worse: float
    worse: float


def region_tests(a: Floats, b: Floats, *, margin: float, seed: int) -> RegionTests:
    """Hold method `a` against method `b` on one region's queries, (Q,) each.

    "Not worse" is shown, not assumed: it is a test against the claim that `a` loses `margin`
    (non-inferiority), by the same randomization test on `a + margin`.
    """
    pairs = ((a, b), (a + margin, b), (b, a))
    return RegionTests(
        *(paired_randomization_test(x, y, seed=seed, alternative="greater") for x, y in pairs)
    )


def verdicts(tests: Sequence[RegionTests | None], *, level: float = LEVEL) -> list[Verdict]:
    """What may be claimed of each region, each kind of test corrected by Holm over the regions.

    Args:
        tests: one a region; None where it has too few queries for any claim.
        level: of the family of regions.
    """
    counted = [test for test in tests if test is not None]
    kinds = (holm([test[kind] for test in counted]) for kind in range(3))
    adjusted = (RegionTests(*row) for row in zip(*kinds, strict=True))
    return ["no claim" if test is None else _verdict(next(adjusted), level) for test in tests]


def _verdict(p: RegionTests, level: float) -> Verdict:
    if p.better <= level:
        return "better"
    if p.worse <= level:  # said before "not worse": a small loss that is sure is still a loss
        return "worse"
    return "not worse" if p.not_worse <= level else "open"


def first_reaching(curve: Sequence[float], target: float) -> int | None:
    """The first round whose value is at least `target`; None if there is none."""
    return next((number for number, value in enumerate(curve) if value >= target), None)
