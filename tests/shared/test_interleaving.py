"""The drafting laws, then the verdict against exact fractions."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.interleaving import NO_TEAM, TEAM_A, TEAM_B, team_draft, verdict

rankings = st.lists(st.integers(0, 15), max_size=10, unique=True).map(
    lambda rows: np.array(rows, np.int64)
)
seeds = st.integers(0, 1000)


class Coin:
    """A generator whose tosses are chosen: 0 lets A begin a turn, 1 lets B."""

    def __init__(self, *tosses):
        self.tosses = list(tosses)

    def integers(self, high):
        assert high == 2
        return self.tosses.pop(0)


def papers_draft(a, b, k, rng):
    """Algorithm 2 of the paper, word by word: whoever has fewer picks next, a coin at a tie."""
    listed, teams = [], []
    while len(listed) < k and not {*a} <= {*listed} and not {*b} <= {*listed}:
        count_a, count_b = teams.count(TEAM_A), teams.count(TEAM_B)
        if count_a == count_b:
            team = int(rng.integers(2))
        else:
            team = TEAM_A if count_a < count_b else TEAM_B
        listed.append(next(row for row in (a, b)[team] if row not in listed))
        teams.append(team)
    return listed, teams


def draft(a, b, k, seed):
    rows, teams = team_draft(a, b, k, np.random.default_rng(seed))
    return rows.tolist(), teams.tolist()


def test_draft_by_hand():
    a, b = np.array([1, 2, 3, 4]), np.array([2, 5, 1, 6])
    rows, teams = team_draft(a, b, 4, Coin(0, 1))
    # A takes 1, B takes 2; then B takes 5 and A, whose 2 is gone, takes 3.
    assert rows.tolist() == [1, 2, 5, 3]
    assert teams.tolist() == [TEAM_A, TEAM_B, TEAM_B, TEAM_A]


def test_what_one_ranker_has_left_plays_for_nobody():
    rows, teams = team_draft(np.array([1]), np.array([2, 3, 4]), 3, Coin(0))
    assert rows.tolist() == [1, 2, 3]
    assert teams.tolist() == [TEAM_A, TEAM_B, NO_TEAM]
    alone = team_draft(np.array([7, 8]), np.empty(0, np.int64), 5, Coin())
    assert alone[0].tolist() == [7, 8]
    assert alone[1].tolist() == [NO_TEAM, NO_TEAM]


def test_no_turn_begins_that_one_team_might_not_answer():
    # Had B begun and taken 1, A would have had nothing; so neither plays.
    rows, teams = team_draft(np.array([1]), np.array([1, 2]), 5, Coin())
    assert rows.tolist() == [1, 2]
    assert teams.tolist() == [NO_TEAM, NO_TEAM]


@given(st.permutations(range(12)), st.permutations(range(12)), st.integers(0, 8), seeds)
def test_while_neither_runs_out_the_draft_is_the_papers(a, b, k, seed):
    a, b = a[:9], b[:9]
    found = draft(np.array(a), np.array(b), k, seed)
    assert found == papers_draft(a, b, k, np.random.default_rng(seed))


@given(rankings, rankings, st.integers(0, 20), seeds)
def test_every_row_once_as_many_as_asked_for_and_none_from_elsewhere(a, b, k, seed):
    rows, _ = draft(a, b, k, seed)
    assert len(set(rows)) == len(rows) == min(k, len({*a.tolist(), *b.tolist()}))
    assert {*rows} <= {*a.tolist(), *b.tolist()}


@given(rankings, rankings, st.integers(0, 19), seeds)
def test_a_shorter_list_is_the_beginning_of_a_longer_one(a, b, k, seed):
    short, long = draft(a, b, k, seed), draft(a, b, k + 1, seed)
    assert [part[: len(short[0])] for part in long] == list(short)


@given(rankings, rankings, st.integers(0, 20), seeds)
def test_both_teams_bring_as_many_but_for_the_last_turn(a, b, k, seed):
    _, teams = draft(a, b, k, seed)
    assert abs(teams.count(TEAM_A) - teams.count(TEAM_B)) <= 1


def test_equal_rankings_favour_nobody_at_any_rank():
    same = np.arange(4)
    drafts = [
        team_draft(same, same, 4, Coin(first, second)) for first in (0, 1) for second in (0, 1)
    ]
    assert all(rows.tolist() == [0, 1, 2, 3] for rows, _ in drafts)
    # Over all sides of the coins each team holds every rank in half of the lists.
    assert np.mean([teams == TEAM_A for _, teams in drafts], axis=0).tolist() == [0.5] * 4


@given(rankings.map(lambda rows: rows[:6]), rankings.map(lambda rows: rows[:6]), st.integers(0, 8))
def test_over_both_sides_of_every_coin_the_teams_bring_equally_many(a, b, k):
    tossed = [team_draft(a, b, k, Coin(*coins))[1] for coins in product((0, 1), repeat=6)]
    assert sum((teams == TEAM_A).sum() - (teams == TEAM_B).sum() for teams in tossed) == 0


def test_swapping_rankers_and_coins_swaps_the_teams():
    a, b = np.array([3, 1, 4, 5]), np.array([1, 5, 9, 2])
    rows, teams = team_draft(a, b, 6, Coin(0, 1, 1))
    swapped_rows, swapped_teams = team_draft(b, a, 6, Coin(1, 0, 0))
    assert rows.tolist() == swapped_rows.tolist()
    assert (1 - teams[:4]).tolist() == swapped_teams[:4].tolist()


def test_types_of_an_empty_list():
    empty = np.empty(0, np.int64)
    rows, teams = team_draft(empty, empty, 10, np.random.default_rng(0))
    assert rows.dtype == np.int64 and teams.dtype == np.int8 and len(rows) == len(teams) == 0


# -- verdict --------------------------------------------------------------------------------------


def exact_sign_test(wins_a, wins_b):
    few, decided = min(wins_a, wins_b), wins_a + wins_b
    ways, tail = 1, 0
    for wins in range(few + 1):
        tail += ways
        ways = ways * (decided - wins) // (wins + 1)
    return float(min(Fraction(1), Fraction(2 * tail, 2**decided)))


@given(st.integers(0, 120), st.integers(0, 120))
def test_sign_test_is_the_exact_binomial(wins_a, wins_b):
    got = verdict(wins_a, wins_b, 0).p_value
    assert got == pytest.approx(exact_sign_test(wins_a, wins_b), rel=1e-9)


@pytest.mark.parametrize(("wins_a", "wins_b"), [(2100, 1950), (0, 1500), (2000, 2000)])
def test_sign_test_of_many_requests(wins_a, wins_b):
    got = verdict(wins_a, wins_b, 0).p_value
    assert got == pytest.approx(exact_sign_test(wins_a, wins_b), rel=1e-8)


def test_verdict_by_hand():
    said = verdict(8, 2, 90)
    assert (said.wins_a, said.wins_b, said.ties, said.share_a) == (8, 2, 90, 0.8)
    assert said.p_value == pytest.approx(2 * (1 + 10 + 45) / 2**10)
    # Wilson (1927) for 8 of 10 at 95 %: z^2 = 3.8414588
    z2 = 3.841458820694124
    centre, half = 8 + z2 / 2, (z2 * 1.6 + z2 * z2 / 4) ** 0.5
    assert said.low == pytest.approx((centre - half) / (10 + z2))
    assert said.high == pytest.approx((centre + half) / (10 + z2))


def test_nobody_has_won():
    said = verdict(0, 0, 12)
    assert (said.share_a, said.low, said.high, said.p_value) == (0.5, 0.0, 1.0, 1.0)


@given(st.integers(0, 500), st.integers(0, 500), st.floats(0.5, 0.99))
def test_it_does_not_matter_who_is_a(wins_a, wins_b, confidence):
    one = verdict(wins_a, wins_b, 3, confidence=confidence)
    other = verdict(wins_b, wins_a, 3, confidence=confidence)
    assert one.p_value == other.p_value
    assert one.share_a == pytest.approx(1 - other.share_a)
    assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low), abs=1e-9)
    assert one.low <= one.share_a <= one.high


@given(st.integers(1, 200), st.integers(0, 200))
def test_more_confidence_is_a_wider_interval(wins_a, wins_b):
    narrow = verdict(wins_a, wins_b, 0, confidence=0.8)
    wide = verdict(wins_a, wins_b, 0, confidence=0.99)
    assert wide.low <= narrow.low and narrow.high <= wide.high
    assert wide.p_value == narrow.p_value


def test_counts_are_not_negative():
    with pytest.raises(AssertionError, match="counts"):
        verdict(3, -1, 0)
