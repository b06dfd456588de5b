"""BM25 against a slow reference, and any text a shopper may type."""

import math

import numpy as np
import pytest

from shared.retrieval.lexical import LexicalIndex

TEXTS = [
    "red leather boots",
    "red shoes red laces",
    "blue boots with a leather strap and a buckle",
    "phone case",
    "red leather boots",
]


def test_scores_are_the_bm25_formula() -> None:
    # Texts up to 40 words: tantivy stores longer lengths rounded, and the formula would differ.
    rows, scores = LexicalIndex.build(TEXTS).search("red leather buckle", 10)
    expected = _slow_bm25(["red", "leather", "buckle"])
    assert sorted(rows.tolist()) == [row for row, score in enumerate(expected) if score > 0]
    np.testing.assert_allclose(scores, [expected[row] for row in rows], rtol=1e-5)
    assert (np.diff(scores) <= 0).all()


def _slow_bm25(words: list[str], k1: float = 1.2, b: float = 0.75) -> list[float]:
    documents = [text.split() for text in TEXTS]
    average = sum(map(len, documents)) / len(documents)
    scores = [0.0] * len(documents)
    for word in words:
        containing = sum(word in document for document in documents)
        idf = math.log(1 + (len(documents) - containing + 0.5) / (containing + 0.5))
        for row, document in enumerate(documents):
            tf, norm = document.count(word), k1 * (1 - b + b * len(document) / average)
            scores[row] += idf * tf * (k1 + 1) / (tf + norm)
    return scores


def test_equal_texts_tie_in_row_order_wherever_the_cut_is() -> None:
    index = LexicalIndex.build(["same words"] * 300 + ["other"])
    for k in (1, 7, 300):
        assert index.search("words", k)[0].tolist() == list(range(k))


def test_two_builds_answer_alike() -> None:
    first, second = LexicalIndex.build(TEXTS * 50), LexicalIndex.build(TEXTS * 50)
    for one, other in zip(
        first.search("red boots", 99), second.search("red boots", 99), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "query",
    [
        "red (",
        '"red',
        "red AND",
        "text:red",
        "+red -boots",
        "red\\",
        "red~2^ b*",
        "red 👢",
        "RÉD",
        "[red TO",
    ],
)
def test_punctuation_has_no_meaning(query: str) -> None:
    assert 1 in LexicalIndex.build(TEXTS).search(query, 5)[0]


@pytest.mark.parametrize("query", ["", "   ", "👢 !?", "()", "unheard"])
def test_nothing_to_look_for_is_an_empty_answer(query: str) -> None:
    rows, scores = LexicalIndex.build(TEXTS).search(query, 5)
    assert (rows.shape, rows.dtype) == ((0,), np.int64)
    assert (scores.shape, scores.dtype) == ((0,), np.float32)


def test_words_meet_across_inflection_case_and_accents() -> None:
    english = LexicalIndex.build(["Running shoes", "CAFÉ cup"], language="en")
    assert english.search("run shoe", 5)[0].tolist() == [0]
    assert english.search("cafe", 5)[0].tolist() == [1]
    german = LexicalIndex.build(["Rote Häuser", "Straßenschuhe"], language="de")
    assert german.search("rotes haus", 5)[0].tolist() == [0]
    assert german.search("strassenschuh", 5)[0].tolist() == [1]


def test_no_texts_empty_texts_and_a_long_query() -> None:
    assert LexicalIndex.build([]).search("red", 5)[0].size == 0
    index = LexicalIndex.build(["", "red", ""])
    assert index.search("red " * 5000, 5)[0].tolist() == [1]
    assert index.search("red", 0)[0].size == 0
