"""Let shoppers choose between two rankers without their noticing.

Both rankings are drafted into one list, as two captains pick players; a click is a point for the
team that brought the product. That needs about a tenth of the requests that showing each shopper
one of the two would (Chapelle, Joachims, Radlinski and Yue 2012), because every request compares.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

TEAM_A: Final = 0
TEAM_B: Final = 1
NO_TEAM: Final = -1

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Verdict:
    """What requests with clicks say of two rankers.

    Attributes:
        wins_a: requests in which A's products got more clicks.
        wins_b: in which B's did.
        ties: in which both got as many; they decide nothing.
        share_a: wins of A over all wins; 0.5 where nobody has won.
        low: lower end of the Wilson interval of that share.
        high: its upper end.
        p_value: two-sided sign test of "neither is better".
    """

    wins_a: int
    wins_b: int
    ties: int
    share_a: float
    low: float
    high: float
    p_value: float


def team_draft(a: Rows, b: Rows, k: int, rng: np.random.Generator) -> tuple[Rows, NDArray[np.int8]]:
    """Interleave two rankings (Radlinski, Kurup and Joachims 2008, algorithm 2).

    In every turn each team adds its best product that is not yet listed, and a coin says who goes
    first. The draft ends before a turn in which one of them might find nothing to add; what the
    other has left still fills the list, but for nobody, or a ranker would gain by listing more.
    So over both sides of the coins the teams bring equally many, whatever the rankings.

    Args:
        a: row numbers, best first, every row once, (A,).
        b: of the other ranker, (B,).
        k: length of the list, less if the two have fewer rows.
        rng: tosses the coin.

    Returns:
        Rows (k',) and whom each plays for: `TEAM_A`, `TEAM_B` or `NO_TEAM`, (k',) int8. For one
        state of `rng` a shorter list is the beginning of a longer one.
    """
    left = [a[: k + 1].tolist(), b[: k + 1].tolist()]  # what is deeper cannot get into the list
    listed: dict[int, int] = {}  # row -> team, in order
    while len(listed) < k and _both_can_pick(*left):
        first = int(rng.integers(2))
        for team in (first, 1 - first):
            pick = next(row for row in left[team] if row not in listed)
            listed[pick] = team
        left = [[row for row in rows if row not in listed] for rows in left]
    listed |= dict.fromkeys(left[TEAM_A] + left[TEAM_B], NO_TEAM)
    rows, teams = [*listed][:k], [*listed.values()][:k]
    return np.array(rows, np.int64), np.array(teams, np.int8)


def verdict(wins_a: int, wins_b: int, ties: int, *, confidence: float = 0.95) -> Verdict:
    """Judge an interleaving experiment.

    Args:
        wins_a: requests in which A's products got more clicks than B's.
        wins_b: requests in which B's did.
        ties: requests with as many of each.
        confidence: of the interval, in (0, 1).

    Returns:
        The verdict; ties are counted and otherwise left out, as the sign test does.
    """
    assert min(wins_a, wins_b, ties) >= 0, "counts"
    decided = wins_a + wins_b
    low, high = _wilson(wins_a, decided, confidence)
    share = wins_a / decided if decided else 0.5
    return Verdict(wins_a, wins_b, ties, share, low, high, _sign_test(wins_a, wins_b))


def _both_can_pick(a: list[int], b: list[int]) -> bool:
    """Whether, with only these left, either may begin and the other still has a pick."""
    return bool(a and b) and (a[0] != b[0] or min(len(a), len(b)) > 1)


def _sign_test(wins_a: int, wins_b: int) -> float:
    """P(a split at least as uneven) if each request were won by a fair coin; exact binomial.

    The tail is summed from its largest term by ratios of neighbours, since the binomials
    themselves leave floating point at a thousand wins.
    """
    few, decided = min(wins_a, wins_b), wins_a + wins_b
    logs = math.lgamma(few + 1) + math.lgamma(decided - few + 1) - math.lgamma(decided + 1)
    largest = math.exp(-logs - decided * math.log(2))
    below = np.arange(few, 0, -1)
    tail = largest * (1.0 + float(np.cumprod(below / (decided - below + 1)).sum()))
    return min(1.0, 2.0 * tail)


def _wilson(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval (1927), sound also at 0 and at all."""
    if not trials:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = successes / trials, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    # At the ends it touches 0 and 1, which rounding would miss by a hair.
    return (
        max(0.0, centre - half) if successes else 0.0,
        min(1.0, centre + half) if successes < trials else 1.0,
    )
