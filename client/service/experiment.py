"""Learning from shoppers on purpose: two ways to answer in one list, and now and then a wild card.

Interleaving compares two rankers on the same shopper, the same query and the same page (Radlinski,
Kurup and Joachims 2008). Exploration shows a product that the ranker would not have shown, so that
its clicks are not only those the ranker asked for. Both happen only where the region's own
configuration says so, and both are on record with every impression. An answer that is not what was
asked for (a fallback) takes part in neither.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.service.events import interleaved_ranker
from client.service.paging import Answer
from shared.interleaving import NO_TEAM, TEAM_A, TEAM_B, team_draft
from shared.retrieval.shelf import Found

DEPTH: Final = 50  # places that are interleaved; below them the answer's own order goes on
_TEAMS: Final = {TEAM_A: "a", TEAM_B: "b", NO_TEAM: ""}


def interleaved(
    answer: Answer,
    a: Sequence[str],
    b: Sequence[str],
    *,
    ways: tuple[str, str],
    rng: np.random.Generator,
) -> Answer:
    """Interleave two orders of product ids into an answer.

    Args:
        answer: whose shelf has the products; ids it does not have are left out.
        a: ids, best first, of the first way.
        b: ids, best first, of the second way.
        ways: names of the two, for the record.
        rng: tosses the coins.

    Returns:
        The answer in the interleaved order, with the team of each place, and as long as before:
        what its total and its facets say of it stays true.
    """
    own = answer.found.rows.tolist()
    depth = min(DEPTH, len(own))
    drafted, teams = team_draft(_rows_of(answer, a), _rows_of(answer, b), depth, rng)
    rows = list(dict.fromkeys([*drafted.tolist(), *own]))[: len(own)]
    return replace(
        answer,
        found=_in_order(answer.found, rows),
        ranker=interleaved_ranker(*ways),
        teams=tuple(_TEAMS[team] for team in teams.tolist()),
    )


def explored(answer: Answer, k: int, *, rng: np.random.Generator) -> Answer:
    """Put one product from below the first page somewhere on it, but not above what is pinned.

    Args:
        answer: to put it into.
        k: places of the first page.
        rng: which product, and where.

    Returns:
        The answer with its wild card, or the same one if there is nothing below the page, or no
        place on it.
    """
    rows, teams = answer.found.rows.tolist(), list(answer.teams)
    top = next((n for n, row in enumerate(rows) if row not in answer.found.pinned), len(rows))
    if len(rows) <= k or top >= k:
        return answer
    place, pick = int(rng.integers(top, k)), int(rng.integers(k, len(rows)))
    rows.insert(place, rows.pop(pick))
    if teams:  # the wild card is nobody's choice
        del teams[pick : pick + 1]
        teams.insert(place, "")
    found = _in_order(answer.found, rows)
    return replace(answer, found=found, teams=tuple(teams), explored=place)


def _rows_of(answer: Answer, ids: Sequence[str]) -> NDArray[np.int64]:
    """Rows of products; one whose variant the answer has stands as that one, so none is twice."""
    products, shown = answer.shelf.products, answer.found.rows
    known = [row for row in map(products.row_of, ids) if row is not None]
    groups = products.group(np.array(known, np.int64)).tolist()
    row_of = dict(zip(products.group(shown).tolist(), shown.tolist(), strict=True))
    rows = [row_of.get(group, row) for group, row in zip(groups, known, strict=True)]
    return np.array(list(dict.fromkeys(rows)), np.int64)


def _in_order(found: Found, rows: Sequence[int]) -> Found:
    """The same findings in another order; a product of the other way alone has no score here."""
    place = {row: number for number, row in enumerate(found.rows.tolist())}
    places = [place.get(row) for row in rows]
    return replace(
        found,
        rows=np.array(rows, np.int64),
        scores=np.array([0.0 if p is None else found.scores[p] for p in places], np.float32),
        variants=tuple(() if p is None else found.variants[p] for p in places),
    )
