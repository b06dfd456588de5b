"""One ranking out of two: what words found and what meaning found.

BM25 knows the words of a title, the encoder knows that a sneaker is a shoe; each misses what the
other finds. Their scores are put on one scale and added with one weight, which every region tunes
on its own clicks, so that an encoder that is worse than plain words there never reaches a shopper.

The sum is the convex combination of scores normalized by their theoretical minimum and their
observed maximum (TM2C2 of Bruch, Gai and Ingber 2023, arXiv:2210.11934):

    score = w (cosine + 1) / (max cosine + 1) + (1 - w) bm25 / max bm25

A cosine is at least -1 and BM25 at least 0; the maxima are those of the two lists of this query.
A row that words did not find shares none with the query, so its BM25 is 0 and not unknown. The
cosine of a row that only words found is asked for, not guessed.

The weights at the ends are the rankers themselves, and not merely nearly so:

    w = 0   the lexical order; then what shares no word, by cosine
    w = 1   the order by cosine; then what has no known cosine, by BM25

Wherever scores are equal the lower row comes first, as in both rankers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.metrics import gain_found, ideal_gain
from shared.retrieval.relevance import NO_FLOOR

Rows = NDArray[np.int64]
Scores = NDArray[np.floating[Any]]
Ranking = tuple[Rows, Scores]  # best first, every row once

WEIGHTS: Final = tuple(step / 20 for step in range(21))
# Best or within 0.0002 nDCG@10 of it, before and after federation, on development queries over a
# real electronics catalog; what a region with too few clicks gets.
DEFAULT_DENSE_WEIGHT: Final = 0.6
MIN_QUERIES: Final = 20  # below this the clicks are mostly chance
K: Final = 10  # ranks that count in `Tuned.figures`
_MIN_COSINE = -1.0
_STEEPEST: Final = 128.0  # of s in `_log_likelihood`, where clicks follow one score to the letter
_HALVINGS: Final = 40


class Fused(NamedTuple):
    """A fused ranking, best first, with what each score was made of.

    Attributes:
        rows: row numbers, (C,) int64.
        scores: in [0, 1], never rising, (C,) float32. The order is that of the sums before they
            are rounded to it.
        dense: cosine of each row, (C,) float32; -1 where it is not known.
        lexical: BM25 of each row, (C,) float32; 0 where no word is shared.
    """

    rows: Rows
    scores: NDArray[np.float32]
    dense: NDArray[np.float32]
    lexical: NDArray[np.float32]

    def where(self, kept: NDArray[np.bool_]) -> "Fused":
        """The rows that a mask (C,) keeps, in the same order."""
        return Fused(self.rows[kept], self.scores[kept], self.dense[kept], self.lexical[kept])


@dataclass(frozen=True)
class Tuned:
    """The weight chosen on a region's clicks, and what it was chosen by.

    Attributes:
        dense_weight: one of `WEIGHTS`, or `DEFAULT_DENSE_WEIGHT` where clicks are too few.
        figures: pooled nDCG@10 at each weight; 0 is BM25 alone, 1 is the encoder alone.
        num_queries: with something clicked, on which the figures stand.
        dense_floor: a query whose best cosine is less is about nothing in this catalog.
    """

    dense_weight: float
    figures: dict[float, float]
    num_queries: int
    dense_floor: float = NO_FLOOR


def fuse(
    dense: Ranking,
    lexical: Ranking,
    *,
    dense_weight: float,
    dense_score_of: Callable[[Rows], Scores] | None = None,
) -> Fused:
    """Merge two rankings of one query by the formula at the top of this file.

    Args:
        dense: rows (A,) and their cosines (A,), best first.
        lexical: rows (B,) and their BM25 scores (B,), > 0, best first.
        dense_weight: w in the formula, from 0 to 1.
        dense_score_of: cosines of given rows, called once with those that only `lexical` has and
            not at all if there are none. Without it they count as -1, the least there is.

    Returns:
        Every row of either list, once.
    """
    assert 0 <= dense_weight <= 1, "a convex combination"
    rows = _distinct(np.concatenate((dense[0], lexical[0])))  # (C,)
    cosine = _spread(rows, dense, _MIN_COSINE)
    bm25 = _spread(rows, lexical, 0.0)
    if dense_score_of is not None:
        _fill(cosine, rows, dense[0], dense_score_of)
    scores = combine(
        cosine,
        bm25,
        dense_max=cosine.max(initial=_MIN_COSINE),
        lexical_max=bm25.max(initial=0.0),
        dense_weight=dense_weight,
    )
    order = np.lexsort(_sort_keys(rows, cosine, bm25, scores, dense_weight))
    return Fused(rows[order], *(part[order].astype(np.float32) for part in (scores, cosine, bm25)))


def combine(
    dense: Scores,
    lexical: Scores,
    *,
    dense_max: float | Scores,
    lexical_max: float | Scores,
    dense_weight: float,
) -> NDArray[np.float64]:
    """The fused score of each candidate.

    Args:
        dense: cosines, (C,).
        lexical: BM25 scores, (C,); 0 where no word is shared.
        dense_max: the largest cosine of the query, () or (C,).
        lexical_max: the largest BM25 score of the query, () or (C,).
        dense_weight: w in the formula, from 0 to 1.

    Returns:
        Scores, (C,) float64; a ranker that found nothing adds nothing.
    """
    meaning = _quotient(np.asarray(dense, np.float64) - _MIN_COSINE, dense_max - _MIN_COSINE)
    words = _quotient(np.asarray(lexical, np.float64), lexical_max)
    return dense_weight * meaning + (1.0 - dense_weight) * words


def reciprocal_rank_fusion(
    rankings: Sequence[Rows], *, k: int = 60
) -> tuple[Rows, NDArray[np.float64]]:
    """Merge rankings by the sum of 1 / (k + rank) (Cormack, Clarke and Buettcher 2009).

    For comparison in reports; no shopper is answered by it, since it has no weight to tune.

    Args:
        rankings: row numbers, best first, every row once in each, (C,) each.
        k: how little the first ranks stand out.

    Returns:
        Every row of any ranking, best first, and its score; equal scores in row order.
    """
    rows = _distinct(np.concatenate([np.empty(0, np.int64), *rankings]))
    scores = np.zeros(len(rows))
    for ranking in rankings:
        scores[np.searchsorted(rows, ranking)] += 1.0 / (k + np.arange(1, len(ranking) + 1))
    order = np.lexsort((rows, -scores))
    return rows[order], scores[order]


def tune_dense_weight(
    rows: Sequence[Rows],
    gains: Sequence[NDArray[np.float64]],
    *,
    dense: Sequence[Scores],
    lexical: Sequence[Scores],
    dense_max: Scores,
    lexical_max: Scores,
) -> Tuned:
    """Choose the weight under which what held-out shoppers clicked is likeliest.

    nDCG of what was shown tells weights apart but dimly: most of what a ranker puts wrong was never
    shown, and a few dozen queries leave it to luck. So the weight is fitted instead, as in a
    conditional logit (McFadden 1974; the top-one likelihood of Cao et al. 2007): of the products
    that query q showed, i is clicked in proportion to exp(s score_i(w)). That w is taken, at its
    own best steepness s, under which the log of all clicks is largest. Which products were shown
    may depend on the scores without biasing this fit.

    Of the 21 weights only those are asked that are, by nDCG on these queries, not worse than the
    better of the two rankers alone; the better ranker itself always is one.

    Args:
        rows: catalog rows that were shown for each query, (R,) each, Q in all.
        gains: their estimated relevance, >= 0, (R,) each.
        dense: their cosines, (R,) each.
        lexical: their BM25 scores, (R,) each; 0 where no word is shared.
        dense_max: the largest cosine of each query over the whole catalog, (Q,), because serving
            divides by that and not by the largest one shown.
        lexical_max: likewise of BM25, (Q,).

    Returns:
        The weight with its figures, without a floor. Fewer than `MIN_QUERIES` queries with a gain
        leave `DEFAULT_DENSE_WEIGHT`, whatever the figures; no query at all leaves no figures.
    """
    num_queries = sum(bool(part.any()) for part in gains)
    if not num_queries:
        return Tuned(DEFAULT_DENSE_WEIGHT, {}, 0)
    shown = _flatten(rows, gains, dense, lexical, dense_max, lexical_max)
    found = {weight: gain_found(_ordered_gains(shown, weight), k=K).sum() for weight in WEIGHTS}
    most = ideal_gain(gains, k=K).sum()
    figures = {weight: min(float(gain / most), 1.0) for weight, gain in found.items()}
    if num_queries < MIN_QUERIES:
        return Tuned(DEFAULT_DENSE_WEIGHT, figures, num_queries)
    return Tuned(_choose(figures, _log_likelihood(shown)), figures, num_queries)


def gains_in_order(
    rows: Sequence[Rows],
    gains: Sequence[NDArray[np.float64]],
    *,
    dense: Sequence[Scores],
    lexical: Sequence[Scores],
    dense_max: Scores,
    lexical_max: Scores,
    dense_weight: float,
) -> list[NDArray[np.float64]]:
    """The gains of what each query showed, in the order that serving would give at one weight.

    Args:
        rows: as for `tune_dense_weight`, like all that follow.
        gains: of the rows.
        dense: of the rows.
        lexical: of the rows.
        dense_max: of each query.
        lexical_max: of each query.
        dense_weight: from 0 to 1.

    Returns:
        The gains of each query, (R,) each, best place first.
    """
    shown = _flatten(rows, gains, dense, lexical, dense_max, lexical_max)
    return _ordered_gains(shown, dense_weight)


class _Shown(NamedTuple):
    """What all queries showed, one query behind the other; all of (sum of R,) but `ends`."""

    query: Rows
    rows: Rows
    gains: NDArray[np.float64]
    dense: Scores
    lexical: Scores
    dense_max: Scores
    lexical_max: Scores
    ends: Rows  # of each query, (Q,)


def _flatten(
    rows: Sequence[Rows],
    gains: Sequence[NDArray[np.float64]],
    dense: Sequence[Scores],
    lexical: Sequence[Scores],
    dense_max: Scores,
    lexical_max: Scores,
) -> _Shown:
    lengths = [len(part) for part in rows]
    for parts in (gains, dense, lexical):
        assert [len(part) for part in parts] == lengths, "one number a shown product"
    query = np.repeat(np.arange(len(rows)), lengths)
    return _Shown(
        query=query,
        rows=np.concatenate(rows),
        gains=np.concatenate(gains),
        dense=np.concatenate(dense),
        lexical=np.concatenate(lexical),
        dense_max=dense_max[query],
        lexical_max=lexical_max[query],
        ends=np.cumsum(lengths),
    )


def _mixed(shown: _Shown, dense_weight: float) -> NDArray[np.float64]:
    """The fused score of everything shown."""
    return combine(
        shown.dense,
        shown.lexical,
        dense_max=shown.dense_max,
        lexical_max=shown.lexical_max,
        dense_weight=dense_weight,
    )


def _ordered_gains(shown: _Shown, dense_weight: float) -> list[NDArray[np.float64]]:
    """The gains of what each query showed, in the order that serving would give."""
    scores = _mixed(shown, dense_weight)
    keys = _sort_keys(shown.rows, shown.dense, shown.lexical, scores, dense_weight)
    order = np.lexsort((*keys, shown.query))
    return np.split(shown.gains[order], shown.ends[:-1])


def _log_likelihood(shown: _Shown) -> dict[float, float]:
    """The log-likelihood of the clicks under each weight, at the steepness best for that weight.

        L(w, s) = sum over q and i of gain_i log p_i,   p_i = exp(s score_i) / sum_j exp(s score_j)

    which is concave in s, so that halving [0, `_STEEPEST`] by the sign of dL/ds finds the best.
    """
    scores = np.stack([_mixed(shown, weight) for weight in WEIGHTS])  # (W, sum of R)
    starts = np.flatnonzero(np.diff(shown.query, prepend=-1))
    clicked = np.add.reduceat(shown.gains, starts)  # (Q with anything shown,)
    low, high = np.zeros(len(WEIGHTS)), np.full(len(WEIGHTS), _STEEPEST)
    for _ in range(_HALVINGS):
        steepness = (low + high) / 2
        odds = np.exp(steepness[:, None] * scores)
        expected = np.add.reduceat(odds * scores, starts, 1) / np.add.reduceat(odds, starts, 1)
        rising = scores @ shown.gains > expected @ clicked
        low, high = np.where(rising, steepness, low), np.where(rising, high, steepness)
    totals = np.log(np.add.reduceat(np.exp(low[:, None] * scores), starts, 1))
    values = low * (scores @ shown.gains) - totals @ clicked
    return dict(zip(WEIGHTS, values.tolist(), strict=True))


def _choose(figures: dict[float, float], likelihood: dict[float, float]) -> float:
    """The likeliest weight that is not worse than either ranker alone; of equals the default's."""
    floor = max(figures[0.0], figures[1.0])
    good = [weight for weight in figures if figures[weight] >= floor]
    return max(good, key=lambda w: (round(likelihood[w], 6), -abs(w - DEFAULT_DENSE_WEIGHT)))


def _sort_keys(
    rows: Rows, dense: Scores, lexical: Scores, scores: Scores, dense_weight: float
) -> tuple[NDArray[Any], ...]:
    """Keys for `np.lexsort`, the first to count last.

    At weights 0 and 1 they are the rankers' own scores: normalized, two that differ could round to
    one. And among rows of which the one ranker that counts knows nothing, the other decides.
    """
    if dense_weight == 0:
        return rows, np.where(lexical > 0, 0.0, -dense), -lexical
    if dense_weight == 1:
        return rows, np.where(dense > _MIN_COSINE, 0.0, -lexical), -dense
    return rows, -scores


def _distinct(rows: Rows) -> Rows:
    """`np.unique`, which takes ten times as long for so few."""
    rows = np.sort(rows)
    return np.concatenate((rows[:1], rows[1:][rows[1:] != rows[:-1]]))


def _spread(rows: Rows, ranking: Ranking, missing: float) -> NDArray[np.float64]:
    """A ranking's scores as one number for each of `rows`, which are sorted and hold all of its."""
    scores = np.full(len(rows), missing)
    scores[np.searchsorted(rows, ranking[0])] = ranking[1]
    return scores


def _fill(
    cosine: NDArray[np.float64], rows: Rows, known: Rows, score_of: Callable[[Rows], Scores]
) -> None:
    """Ask for the cosines of those of `rows` that are not `known`, and put them in their places."""
    missing = np.ones(len(rows), np.bool_)
    missing[np.searchsorted(rows, known)] = False
    if missing.any():
        cosine[missing] = score_of(rows[missing])


def _quotient(part: NDArray[np.float64], whole: float | Scores) -> NDArray[np.float64]:
    """`part / whole`, and 0 where `whole` is 0."""
    divisor = np.asarray(whole, np.float64)
    return part / np.where(divisor > 0, divisor, np.inf)
