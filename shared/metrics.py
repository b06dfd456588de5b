"""Ranking metrics: how good is an ordered list of products, given judged ones?

Every table, the release gate and early stopping count with these few functions, so that all methods
are measured alike. They are pure numpy, work on all queries at once and return one value a query:
means, worst regions and paired differences are the caller's business. The numbers equal those of
ranx (`ndcg_burges`, `recall`, `mrr`), which a test holds; ranx itself compiles for half a minute
and so is only a development dependency.

A ranking is an int64 matrix (Q, K) of catalog row numbers, best first, padded with -1. Relevance is
one `(rows, grades)` pair a query; a row occurs at most once in it, and grade 0 means judged and not
relevant. A query with nothing relevant scores 0 by every metric, as in ranx; a table leaves such
queries out and counts them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Scores = NDArray[np.float64]
Qrels = Sequence[tuple[Rows, NDArray[np.integer]]]

UNJUDGED = -1
RELEVANT_GRADE = 1  # ranx's rel_lvl: this grade and above count as relevant


def grades_of(ranked: Rows, qrels: Qrels) -> NDArray[np.int64]:
    """Look up the grade of every ranked product.

    Args:
        ranked: row numbers, best first, padded with -1, (Q, K).
        qrels: `(rows, grades)` of each query, length Q.

    Returns:
        Grades, (Q, K); -1 where unjudged or padding.
    """
    keys, grades = _flat_qrels(ranked, qrels)
    if keys.size == 0:
        return np.full(ranked.shape, UNJUDGED, dtype=np.int64)
    wanted = _keys(np.arange(len(ranked))[:, None], ranked, _stride(ranked, qrels))
    place = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
    found = (keys[place] == wanted) & (ranked >= 0)
    return np.where(found, grades[place], UNJUDGED)


def ndcg_at_k(ranked: Rows, qrels: Qrels, *, k: int) -> Scores:
    """Discounted gain over the best possible, gain (2^grade - 1) / log2(rank + 1).

    This is nDCG in the form of Burges et al. 2005, ranx's `ndcg_burges`. The ideal list holds the
    k best judged products, whether or not they could be ranked.

    Args:
        ranked: row numbers, best first, padded with -1, (Q, K).
        qrels: `(rows, grades)` of each query, length Q.
        k: how many ranks count, >= 1.

    Returns:
        One value in [0, 1] a query, (Q,).
    """
    return _ndcg(grades_of(ranked[:, :k], qrels), qrels, k)


def ndcg_of_gains(lists: Sequence[NDArray[np.float64]], *, k: int) -> float:
    """Gain found over gain possible, summed over queries first, discount log2(rank + 1).

    For gains that are noisy estimates. The mean of each query's own ratio would be biased: a wildly
    overestimated gain also inflates its query's ideal, and so mutes the queries that say most. The
    sum of found gain is unbiased if the gains are, and the sum of ideals is the same for every
    ranking of the same products.

    Args:
        lists: gains in ranked order, (R,) each, >= 0; the ideal list has them in falling order.
        k: how many ranks count, >= 1.

    Returns:
        A value in [0, 1]; 0 where nothing has any gain.
    """
    found, ideal = gain_found(lists, k=k).sum(), ideal_gain(lists, k=k).sum()
    return min(float(found / ideal), 1.0) if ideal > 0 else 0.0  # the two sums may round apart


def ideal_gain(lists: Sequence[NDArray[np.float64]], *, k: int) -> NDArray[np.float64]:
    """`gain_found` of the best order of each list, (Q,)."""
    return gain_found([np.sort(gains)[::-1] for gains in lists], k=k)


def gain_found(lists: Sequence[NDArray[np.float64]], *, k: int) -> NDArray[np.float64]:
    """Discounted gain of each ranked list down to rank k, (Q,)."""
    return np.array([_discounted(gains[:k]) for gains in lists])


def difference_of_gains(
    found: NDArray[np.float64], other: NDArray[np.float64], ideal: NDArray[np.float64]
) -> tuple[float, float]:
    """How two rankings of the same products differ in `ndcg_of_gains`, and how sure that is.

    The ratio of sums R = sum(found - other) / sum(ideal), and the variance of its linearization
    (Cochran 1977, Sampling Techniques, 3rd ed., eq. 6.9):

        e_q = (found_q - other_q - R ideal_q) / mean(ideal)

    Args:
        found: discounted gain of each query in one ranking, (Q,).
        other: in the other, (Q,).
        ideal: the most there is to find, (Q,).

    Returns:
        R, and the variance of one query's e; R's squared standard error is that over Q. Both 0
        where nothing has any gain, the variance also for a single query.
    """
    if ideal.sum() <= 0:
        return 0.0, 0.0
    ratio = float((found - other).sum() / ideal.sum())
    linear = (found - other - ratio * ideal) / ideal.mean()
    variance = float((linear**2).sum() / (len(ideal) - 1)) if len(ideal) > 1 else 0.0
    return ratio, variance


def self_normalized(weights: Sequence[NDArray[np.float64]], *, k: int) -> float:
    """SNIPS: the mean discount of clicked products, each click weighing 1 / propensity.

    With w_i the inverse propensity of click i and rank_i where a ranking puts the product that was
    clicked, sum of w_i [rank_i <= k] / log2(rank_i + 1) over the sum of w_i. The self-normalized
    estimator (Swaminathan and Joachims, NeurIPS 2015) divides by the weights that were drawn
    instead of their expectation, so a few large ones cannot push it out of [0, 1].

    Args:
        weights: summed w of each product that was shown, in ranked order, (R,) each.
        k: how many ranks count, >= 1.

    Returns:
        A value in [0, 1]; 0 where there is no click.
    """
    total = sum(float(part.sum()) for part in weights)
    return min(float(gain_found(weights, k=k).sum()) / total, 1.0) if total > 0 else 0.0


def effective_sample_size(weights: float, squares: float) -> float:
    """How many equally weighted clicks would know as much: (sum of w)^2 / sum of w^2 (Kish 1965).

    Args:
        weights: sum of w, >= 0.
        squares: sum of w^2.
    """
    return weights**2 / squares if squares > 0 else 0.0


def _discounted(gains: NDArray[np.float64]) -> float:
    return float((gains / np.log2(np.arange(2, len(gains) + 2))).sum())


def ndcg_judged_at_k(ranked: Rows, qrels: Qrels, *, k: int) -> Scores:
    """`ndcg_at_k` after unjudged products are taken out of the ranking (Sakai 2007, condensed).

    Judgments pooled from one kind of method favour that kind, since what others find is unjudged
    and counts as irrelevant; here it does not count at all. The cut at k comes after the removal,
    so `ranked` should be much deeper than k.
    """
    grades = grades_of(ranked, qrels)
    judged_first = np.argsort(grades == UNJUDGED, axis=1, kind="stable")
    return _ndcg(np.take_along_axis(grades, judged_first, axis=1)[:, :k], qrels, k)


def recall_at_k(ranked: Rows, qrels: Qrels, *, k: int) -> Scores:
    """Share of all relevant products (grade >= 1) that are among the first k, (Q,).

    The divisor is every relevant product, not min(k, relevant): with more than k relevant products
    1 cannot be reached. So does ranx's `recall`.
    """
    hits = (grades_of(ranked[:, :k], qrels) >= RELEVANT_GRADE).sum(axis=1)
    return _quotient(hits, np.maximum(_num_relevant(qrels), 1))


def mrr_at_k(ranked: Rows, qrels: Qrels, *, k: int) -> Scores:
    """1 / rank of the first relevant product (grade >= 1) within k, else 0, (Q,)."""
    relevant = grades_of(ranked[:, :k], qrels) >= RELEVANT_GRADE
    reciprocal = _quotient(relevant, np.arange(1, relevant.shape[1] + 1))
    best: Scores = reciprocal.max(axis=1, initial=0.0)
    return best


def judged_at_k(ranked: Rows, qrels: Qrels, *, k: int) -> Scores:
    """Share of the products shown within k that are judged at all, any grade, (Q,).

    Where a list is shorter than k, its length divides; an empty list scores 0. A low value says
    that nDCG over all products says little about this method.
    """
    judged = (grades_of(ranked[:, :k], qrels) != UNJUDGED).sum(axis=1)
    return _quotient(judged, np.maximum((ranked[:, :k] >= 0).sum(axis=1), 1))


def _quotient(part: NDArray[Any], whole: NDArray[np.int64]) -> Scores:
    quotient: Scores = part / whole
    return quotient


def _ndcg(grades: NDArray[np.int64], qrels: Qrels, k: int) -> Scores:
    """DCG of ranked grades (Q, <=k) over the DCG of the best possible list."""
    ideal = _dcg(_ideal_grades(qrels, k))
    return _dcg(grades) / np.where(ideal > 0, ideal, 1.0)


def _dcg(grades: NDArray[np.int64]) -> Scores:
    """Discounted cumulative gain of each row of grades; -1 gains nothing."""
    gains = np.exp2(np.maximum(grades, 0)) - 1.0  # (Q, K)
    discounts = np.log2(np.arange(2, grades.shape[1] + 2))  # (K,)
    scores: Scores = (gains / discounts).sum(axis=1)
    return scores


def _ideal_grades(qrels: Qrels, k: int) -> NDArray[np.int64]:
    """The k highest grades of each query, descending, padded with 0, (Q, k)."""
    ideal = np.zeros((len(qrels), k), dtype=np.int64)
    for line, (_, grades) in zip(ideal, qrels, strict=True):
        best = np.sort(grades)[::-1][:k]
        line[: len(best)] = best
    return ideal


def _num_relevant(qrels: Qrels) -> NDArray[np.int64]:
    counts = [np.count_nonzero(grades >= RELEVANT_GRADE) for _, grades in qrels]
    return np.asarray(counts, dtype=np.int64)


def _flat_qrels(ranked: Rows, qrels: Qrels) -> tuple[Rows, NDArray[np.int64]]:
    """All judgments as one sorted key array with their grades."""
    lengths = [len(rows) for rows, _ in qrels]
    assert len(lengths) == len(ranked), "one (rows, grades) pair a ranked query"
    rows = np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in qrels)])
    grades = np.concatenate([np.empty(0, np.int64), *(grades for _, grades in qrels)])
    keys = _keys(np.repeat(np.arange(len(qrels)), lengths), rows, _stride(ranked, qrels))
    order = np.argsort(keys)
    return keys[order], grades[order].astype(np.int64)


def _keys(query: Rows, row: Rows, stride: int) -> Rows:
    return query * stride + row + 1  # + 1: the padding -1 must not reach the query before


def _stride(ranked: Rows, qrels: Qrels) -> int:
    """More than any row number in sight, so that a key names one query and one row."""
    tops = [int(rows.max()) for rows, _ in qrels if len(rows)]
    return max([int(ranked.max(initial=0)), *tops]) + 2
