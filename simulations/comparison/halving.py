"""Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943, algorithm 1).

Many candidates get few rounds, the best of them more. Written over any objective, so that it can be
held against one whose best candidate is known; `search` gives it federated validation.
"""

from collections.abc import Callable
from dataclasses import dataclass

Objective = Callable[[int, int], float]  # candidate, rounds -> the more the better


@dataclass(frozen=True)
class Rung:
    """One budget.

    Attributes:
        rounds: that each candidate got.
        scores: by candidate.
    """

    rounds: int
    scores: dict[int, float]


def successive_halving(
    num_candidates: int, objective: Objective, *, eta: int, first_rounds: int, max_rounds: int
) -> tuple[int, list[Rung]]:
    """Find a good candidate without training all of them to the end.

    Args:
        num_candidates: >= 1; numbered from 0.
        objective: measures a candidate after so many rounds.
        eta: one in so many goes on, with eta times the rounds; >= 2.
        first_rounds: of the first rung, >= 1.
        max_rounds: no rung has more; the one that has as many is the last.

    Returns:
        The winner, of equals the one with the lowest number, and what each rung measured.
    """
    alive, rounds, rungs = list(range(num_candidates)), first_rounds, list[Rung]()
    while len(alive) > 1:
        rounds = min(rounds, max_rounds)
        scores = {candidate: objective(candidate, rounds) for candidate in alive}
        rungs.append(Rung(rounds, scores))
        ordered = sorted(alive, key=lambda candidate: (-scores[candidate], candidate))
        left = 1 if rounds == max_rounds else max(1, len(alive) // eta)
        alive, rounds = ordered[:left], rounds * eta
    return alive[0], rungs


def rounds_spent(rungs: list[Rung]) -> int:
    """Rounds of training in all rungs together."""
    return sum(rung.rounds * len(rung.scores) for rung in rungs)
