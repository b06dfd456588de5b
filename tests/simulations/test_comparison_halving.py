"""On objectives whose best candidate is known."""

from hypothesis import given
from hypothesis import strategies as st

from simulations.comparison.halving import Rung, rounds_spent, successive_halving


def test_by_hand():
    # Nine candidates, candidate 5 the best at any budget: 9 at 1 round, 3 at 3, then one is left.
    asked = []

    def objective(candidate, rounds):
        asked.append((candidate, rounds))
        return -abs(candidate - 5) + 0.1 * rounds

    best, rungs = successive_halving(9, objective, eta=3, first_rounds=1, max_rounds=9)
    assert best == 5
    assert [(rung.rounds, sorted(rung.scores)) for rung in rungs] == [
        (1, [*range(9)]),
        (3, [4, 5, 6]),
    ]
    assert len(asked) == 9 + 3
    assert rounds_spent(rungs) == 9 * 1 + 3 * 3


def test_who_is_slow_at_first_is_given_up():
    """What successive halving costs, and why the first rung must not be too short."""
    best, _ = successive_halving(
        4,
        lambda candidate, rounds: rounds * 10 if candidate == 3 and rounds > 1 else -candidate,
        eta=2,
        first_rounds=1,
        max_rounds=8,
    )
    assert best == 0


def test_the_last_rung_has_all_rounds_and_no_more():
    _, rungs = successive_halving(8, lambda c, r: c, eta=2, first_rounds=3, max_rounds=4)
    assert [(rung.rounds, len(rung.scores)) for rung in rungs] == [(3, 8), (4, 4)]


def test_of_equals_the_first_named():
    assert successive_halving(5, lambda c, r: 0.0, eta=2, first_rounds=1, max_rounds=4)[0] == 0


def test_one_candidate_costs_nothing():
    assert successive_halving(1, lambda c, r: 1 / 0, eta=2, first_rounds=1, max_rounds=4) == (0, [])
    assert rounds_spent([]) == 0


@given(st.integers(1, 30), st.integers(2, 4), st.integers(1, 4), st.integers(4, 20))
def test_a_budget_that_ranks_truly_finds_the_best(candidates, eta, first, most):
    values = [(7 * number) % 31 for number in range(candidates)]
    best, rungs = successive_halving(
        candidates, lambda c, r: values[c], eta=eta, first_rounds=first, max_rounds=most
    )
    assert values[best] == max(values)
    assert all(rung.rounds <= most for rung in rungs)
    sizes = [len(rung.scores) for rung in rungs]
    assert sizes == sorted(sizes, reverse=True)


def test_equal_runs_are_equal():
    arguments = {"eta": 2, "first_rounds": 1, "max_rounds": 8}
    runs = [successive_halving(6, lambda c, r: (c * r) % 5, **arguments) for _ in range(2)]
    assert runs[0] == runs[1]
    assert isinstance(runs[0][1][0], Rung)
