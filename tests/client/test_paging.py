"""Pages of one answer are cut from one answer, for as long as it is kept, and not for longer."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_shelf import DIM, answer_of, ids_of, shelf_of

import client.service.paging
from client.service.failures import RequestError
from client.service.paging import KEPT_FOR_S, Answer, Answers, cursor_of
from shared.schema import CATALOG_COLUMNS

SHELF = shelf_of({f"p{number}": f"title {number}" for number in range(7)})
ANSWER = answer_of(SHELF)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def named(name: str, asked: str = "fingerprint") -> Answer:
    return answer_of(SHELF, request_id=name, asked=asked)


def code_of(answers: Answers, cursor: str, asked: str = "fingerprint") -> str:
    try:
        answers.page(cursor, asked=asked)
    except RequestError as error:
        assert "\n" not in str(error)
        return error.code
    return ""


@pytest.mark.parametrize("k", [1, 2, 3, 7, 10])
def test_all_pages_together_are_the_answer(k: int) -> None:
    answers = Answers()
    answers.keep(ANSWER)
    shown, offset = [], 0
    while True:
        shown += ANSWER.found.rows[offset : offset + k].tolist()
        cursor = cursor_of(ANSWER, offset + k)
        if cursor is None:
            break
        answer, offset = answers.page(cursor, asked="fingerprint")
        assert answer is ANSWER
    assert shown == ANSWER.found.rows.tolist()
    assert len(shown) == 7


def test_a_change_meanwhile_does_not_move_the_pages() -> None:
    answers, shelf = Answers(), shelf_of({"a": "one", "b": "two", "c": "three"})
    answer = answer_of(shelf)
    answers.keep(answer)
    before = ids_of(shelf, answer.found)
    nothing = pl.DataFrame(schema=CATALOG_COLUMNS)
    later = shelf.changed(nothing, [], np.empty((0, DIM), np.float32), before[:2])
    assert ids_of(later, later.find(answer.ask)) == before[2:]
    kept, _ = answers.page(str(cursor_of(answer, 1)), asked="fingerprint")
    assert ids_of(kept.shelf, kept.found) == before


def test_there_is_no_cursor_past_the_end() -> None:
    assert [cursor_of(ANSWER, offset) is None for offset in (0, 6, 7, 8)] == [False, False] + [
        True
    ] * 2


@pytest.mark.parametrize(
    "cursor",
    ["", ".", "r1", "r1.", "r1.x", "r1.-1", "r1.1.0", "r1.1000000", "r1.\u0661", "r1. 1", "r1.1\n"],
)
def test_what_is_no_cursor_is_invalid(cursor: str) -> None:
    answers = Answers()
    answers.keep(ANSWER)
    assert code_of(answers, cursor) == "invalid"
    assert code_of(answers, "r1.1") == ""


@given(cursor=st.text(max_size=30))
def test_no_text_does_more_than_be_refused(cursor: str) -> None:
    answers = Answers()
    answers.keep(named("r1"))
    assert code_of(answers, cursor) in ("invalid", "gone") or cursor.startswith("r1.")


def test_an_unknown_answer_is_gone() -> None:
    with pytest.raises(RequestError, match="no longer known; search again without it") as caught:
        Answers().page("r1.1", asked="fingerprint")
    assert caught.value.code == "gone"


def test_a_cursor_goes_with_its_request_only() -> None:
    answers = Answers()
    answers.keep(ANSWER)
    with pytest.raises(RequestError, match="of another request") as caught:
        answers.page("r1.1", asked="another")
    assert caught.value.code == "invalid"
    assert answers.page("r1.1", asked="fingerprint") == (ANSWER, 1)


def test_an_answer_is_kept_for_so_long_however_often_it_is_used() -> None:
    clock = Clock()
    answers = Answers(clock=clock)
    answers.keep(ANSWER)
    clock.now += KEPT_FOR_S
    assert code_of(answers, "r1.1") == ""
    clock.now += 0.1
    assert code_of(answers, "r1.1") == "gone"
    clock.now -= 1
    assert code_of(answers, "r1.1") == "gone"  # dropped, not only hidden


def test_the_least_recently_used_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.service.paging, "MAX_KEPT", 3)
    answers = Answers()
    for name in "abc":
        answers.keep(named(name))
    assert code_of(answers, "a.1") == ""
    answers.keep(named("d"))
    assert [code_of(answers, f"{name}.1") for name in "abcd"] == ["", "gone", "", ""]


def test_a_former_shelf_is_let_go_though_nobody_asks_for_it_again() -> None:
    """An old release's shelf is much memory, and its scratch folder goes with it."""
    clock = Clock()
    answers = Answers(clock=clock)
    shelf = shelf_of({"a": "one"})
    gone = weakref.ref(shelf)
    answers.keep(answer_of(shelf, request_id="old"))
    del shelf
    clock.now += KEPT_FOR_S
    answers.keep(named("young"))
    gc.collect()
    assert gone() is not None
    clock.now += 1.0
    answers.keep(named("younger"))
    gc.collect()
    assert gone() is None
    assert code_of(answers, "young.1") == ""


def test_threads_may_keep_and_page_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.service.paging, "MAX_KEPT", 20)
    answers, start = Answers(), threading.Barrier(4)

    def work(worker: int) -> list[str]:
        start.wait(30)
        codes = []
        for number in range(200):
            name = f"{worker}-{number}"
            answers.keep(named(name, asked=name))
            codes.append(code_of(answers, f"{name}.2", asked=name))
            codes.append(
                code_of(answers, f"{worker}-{number - 5}.2", asked=f"{worker}-{number - 5}")
            )
        return codes

    with ThreadPoolExecutor(4) as pool:
        codes = {code for codes in pool.map(work, range(4)) for code in codes}
    assert codes <= {"", "gone"} and "" in codes
    assert code_of(answers, "0-0.0", asked="0-0") == "gone"
