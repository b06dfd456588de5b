"""Interleaving and exploration change the order of an answer, and nothing else about it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_shelf import answer_of, ids_of, shelf_of, vector_of

import client.service.experiment
from client.service.experiment import explored, interleaved
from client.service.paging import Answer
from shared.interleaving import TEAM_A, TEAM_B, team_draft
from shared.retrieval.rules import read_rules
from shared.retrieval.shelf import Ask

IDS = [f"p{number}" for number in range(12)]
SHELF = shelf_of({one: f"title of {one}" for one in IDS})
ANSWER = answer_of(SHELF)
WAYS = ("hybrid", "lexical")
ORDERS = st.lists(st.sampled_from([*IDS, "nowhere"]), unique=True, max_size=len(IDS))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def shown(answer: Answer) -> list[str]:
    return ids_of(answer.shelf, answer.found)


def cells(answer: Answer) -> dict[int, tuple[float, tuple[int, ...]]]:
    """Score and variants by row."""
    found = answer.found
    columns = zip(found.scores.tolist(), found.variants, strict=True)
    return dict(zip(found.rows.tolist(), columns, strict=True))


# -- interleaving ----------------------------------------------------------------------------------


@settings(max_examples=200)
@given(a=ORDERS, b=ORDERS, seed=st.integers(0, 50))
def test_it_is_the_draft_of_the_products_that_are_here(
    a: list[str], b: list[str], seed: int
) -> None:
    mixed = interleaved(ANSWER, a, b, ways=WAYS, rng=rng(seed))
    rows = [np.array([IDS.index(one) for one in ids if one in IDS], np.int64) for ids in (a, b)]
    drafted, teams = team_draft(rows[0], rows[1], 50, rng(seed))
    assert mixed.found.rows[: len(drafted)].tolist() == drafted.tolist()
    rest = [row for row in ANSWER.found.rows.tolist() if row not in drafted.tolist()]
    assert mixed.found.rows[len(drafted) :].tolist() == rest  # its total is true
    words = {TEAM_A: "a", TEAM_B: "b"}
    assert list(mixed.teams) == [words.get(team, "") for team in teams.tolist()]
    assert cells(mixed) == {row: cells(ANSWER)[row] for row in mixed.found.rows.tolist()}
    assert mixed.found.rows.dtype == np.int64 and mixed.found.scores.dtype == np.float32
    assert mixed.ranker == "interleaved:hybrid|lexical"
    kept = replace(mixed, found=ANSWER.found, ranker=ANSWER.ranker, teams=ANSWER.teams)
    assert kept == ANSWER  # nothing else is another


def test_below_the_draft_the_answer_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.service.experiment, "DEPTH", 4)
    mixed = interleaved(ANSWER, IDS, IDS[::-1], ways=WAYS, rng=rng())
    assert len(mixed.teams) == 4 and set(mixed.teams) == {"a", "b"}
    assert shown(mixed)[4:] == [one for one in shown(ANSWER) if one not in shown(mixed)[:4]]
    assert sorted(shown(mixed)) == sorted(IDS)


def test_two_equal_ways_are_that_way() -> None:
    for seed in range(20):
        assert shown(interleaved(ANSWER, IDS, IDS, ways=WAYS, rng=rng(seed))) == IDS


def test_both_ways_get_as_many_places() -> None:
    counts: Counter[str] = Counter()
    for seed in range(300):
        mixed = interleaved(ANSWER, IDS[:6], IDS[6:], ways=WAYS, rng=rng(seed))
        counts.update(mixed.teams)
    assert counts == {"a": 300 * 6, "b": 300 * 6}


def test_a_product_that_only_the_other_way_found_has_no_score_here() -> None:
    few = answer_of(SHELF, Ask(text="p3 p4", ranker="lexical"))
    assert shown(few) == ["p3", "p4"]
    mixed = interleaved(few, shown(few), ["p7"], ways=WAYS, rng=rng())
    assert sorted(shown(mixed)) == ["p3", "p7"] and sorted(mixed.teams) == ["a", "b"]
    scores = dict(zip(shown(mixed), mixed.found.scores.tolist(), strict=True))
    assert scores == {"p3": few.found.scores[0], "p7": 0.0}
    assert mixed.found.variants == ((), ())
    assert mixed.found.candidates is few.found.candidates


@pytest.mark.parametrize(("a", "b"), [([], IDS[::-1]), (IDS[::-1], []), ([], [])])
def test_a_way_that_finds_nothing_brings_nothing_and_takes_nothing(
    a: Sequence[str], b: Sequence[str]
) -> None:
    mixed = interleaved(ANSWER, a, b, ways=WAYS, rng=rng())
    assert shown(mixed) == list(a or b or shown(ANSWER))
    assert set(mixed.teams) <= {""}


VARIANTS = shelf_of({"v0": "red boots", "v1": "red boots", "v2": "red boots", "other": "blue hat"})


@pytest.mark.parametrize("b", [["v1", "other"], ["v2", "v1", "other", "v0"], ["other", "v1"]])
def test_variants_of_one_product_are_not_shown_twice(b: Sequence[str]) -> None:
    """The two ways may put different variants of it first."""
    answer = answer_of(VARIANTS, Ask(text="red boots", vector=vector_of("red boots")))
    assert shown(answer) == ["v0", "other"]
    for seed in range(10):
        mixed = interleaved(answer, shown(answer), b, ways=WAYS, rng=rng(seed))
        assert sorted(shown(mixed)) == ["other", "v0"]
        assert cells(mixed) == cells(answer)


# -- exploration -----------------------------------------------------------------------------------


@settings(max_examples=200)
@given(k=st.integers(1, 14), seed=st.integers(0, 1000), drafted=st.booleans())
def test_one_product_from_below_the_page_comes_up(k: int, seed: int, drafted: bool) -> None:
    mixed = interleaved(ANSWER, IDS[:9], IDS[3:], ways=WAYS, rng=rng(seed))
    answer = mixed if drafted else ANSWER
    wild = explored(answer, k, rng=rng(seed))
    before, after = answer.found.rows.tolist(), wild.found.rows.tolist()
    if k >= len(before):
        assert wild is answer
        return
    assert 0 <= wild.explored < k
    card = after[wild.explored]
    assert before.index(card) >= k
    assert [row for row in after if row != card] == [row for row in before if row != card]
    assert sorted(after) == sorted(before)
    assert cells(wild) == cells(answer)
    team_of = dict(zip(before, answer.teams, strict=False))
    if drafted:  # it plays for nobody, every other one for whom it played
        assert len(wild.teams) == len(answer.teams)
        assert list(wild.teams) == [
            "" if row == card else team_of[row] for row in after[: len(wild.teams)]
        ]
    else:
        assert wild.teams == ()


def test_a_wild_card_from_below_the_draft_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.service.experiment, "DEPTH", 4)
    drafted = interleaved(ANSWER, IDS, IDS[::-1], ways=WAYS, rng=rng())
    for seed in range(50):
        wild = explored(drafted, 4, rng=rng(seed))
        team_of = dict(zip(drafted.found.rows.tolist(), drafted.teams, strict=False))
        rows = wild.found.rows.tolist()
        assert wild.teams[wild.explored] == ""
        for row, team in zip(rows, wild.teams, strict=False):
            assert team == ("" if row == rows[wild.explored] else team_of[row])


def test_every_place_and_every_product_below_gets_its_turn() -> None:
    wild = [explored(ANSWER, 4, rng=rng(seed)) for seed in range(400)]
    places = Counter(one.explored for one in wild)
    cards = Counter(int(one.found.rows[one.explored]) for one in wild)
    assert set(places) == set(range(4))
    assert set(cards) == set(ANSWER.found.rows[4:].tolist())
    assert min(places.values()) > 60 and min(cards.values()) > 25  # of 100 and of 50 expected


def test_what_is_pinned_stays_on_top(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text('[[pin]]\nquery = "title"\nproducts = ["p4", "p2"]\n')
    shelf = replace(SHELF, rules=read_rules(path))
    answer = answer_of(shelf, Ask(text="title", vector=vector_of("title")))
    for seed in range(50):
        wild = explored(answer, 3, rng=rng(seed))
        assert shown(wild)[:2] == ["p4", "p2"]
        assert wild.explored == 2
        assert explored(answer, 2, rng=rng(seed)) is answer
