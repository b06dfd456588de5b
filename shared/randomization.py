"""Could two rankers differ this much by the luck of which queries were asked?

Every comparison in a report comes with this answer. It assumes nothing of how the scores are
distributed, which a t-test would: if the two rankers were one, each query's two scores might as
well have been swapped, so the difference seen is held against those after random swaps.
"""

from itertools import product
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Alternative = Literal["two-sided", "greater"]

MAX_ENUMERATED: Final = 15  # differing queries: 2^15 sign patterns take milliseconds
_CHUNK_NUMBERS = 2_000_000  # random signs held at once
# Sums of the same numbers in other orders or signs differ in their last bits and are still ties.
_TIE_TOLERANCE = 1e-12


def paired_randomization_test(
    a: NDArray[np.floating],
    b: NDArray[np.floating],
    *,
    num_permutations: int = 10_000,
    seed: int,
    alternative: Alternative = "two-sided",
) -> float:
    """p-value of Fisher's paired randomization test on the difference of means.

    Smucker, Allan and Carterette 2007 recommend it for retrieval. With at most 15 queries on which
    the two differ every swap is tried and the value is exact; with more, `num_permutations` random
    ones are, and the value is (r + 1) / (n + 1), r of n being at least as far apart: the order
    seen is one of the possible ones, so no value is 0 (Phipson and Smyth 2010).

    Args:
        a: one score a query, (Q,).
        b: the other ranker's, of the same queries in the same order, (Q,).
        num_permutations: n, >= 1.
        seed: of the random swaps.
        alternative: "two-sided": the two differ; "greater": the mean of `a` is greater.

    Returns:
        In (0, 1]; 1 where the two never differ.
    """
    assert a.shape == b.shape and a.ndim == 1, "two scores a query"
    assert num_permutations >= 1, "no permutation, no test"
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    difference = difference[difference != 0]  # swapping equal scores changes nothing
    if len(difference) <= MAX_ENUMERATED:
        signs = np.array(list(product((-1, 1), repeat=len(difference))), np.int8)
        return _at_least_as_far(signs, difference, alternative) / len(signs)
    rng = np.random.default_rng(seed)
    extreme = _sampled(difference, num_permutations, rng, alternative)
    return (extreme + 1) / (num_permutations + 1)


def _sampled(
    difference: NDArray[np.float64],
    num_permutations: int,
    rng: np.random.Generator,
    alternative: Alternative,
) -> int:
    """How many of so many random swaps leave the means at least as far apart."""
    step = max(1, _CHUNK_NUMBERS // len(difference))
    extreme = 0
    for start in range(0, num_permutations, step):
        shape = (min(step, num_permutations - start), len(difference))
        signs = 2 * rng.integers(0, 2, shape, np.int8) - 1
        extreme += _at_least_as_far(signs, difference, alternative)
    return extreme


def _at_least_as_far(
    signs: NDArray[np.int8], difference: NDArray[np.float64], alternative: Alternative
) -> int:
    """Rows of `signs` (P, Q) under which the sum is at least as far out as it was."""
    tie = _TIE_TOLERANCE * np.abs(difference).sum()
    swapped, seen = signs @ difference, difference.sum()
    if alternative == "greater":
        return int(np.count_nonzero(swapped >= seen - tie))
    return int(np.count_nonzero(np.abs(swapped) >= abs(seen) - tie))
