"""BM25 against a slow reference, and any text a shopper may type."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.retrieval.lexical import MAX_TERMS, SYNONYM_WEIGHT, LexicalIndex

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
    english = LexicalIndex.build(["Running shoes", "CAFÉ cup"], locale="en")
    assert english.search("run shoe", 5)[0].tolist() == [0]
    assert english.search("cafe", 5)[0].tolist() == [1]
    german = LexicalIndex.build(["Rote Häuser", "Straßenschuhe"], locale="de")
    assert german.search("rotes haus", 5)[0].tolist() == [0]
    assert german.search("strassenschuh", 5)[0].tolist() == [1]


def test_no_texts_empty_texts_and_a_long_query() -> None:
    assert LexicalIndex.build([]).search("red", 5)[0].size == 0
    index = LexicalIndex.build(["", "red", ""])
    assert index.search("red " * 5000, 5)[0].tolist() == [1]
    assert index.search("red", 0)[0].size == 0


ANY_TEXT = LexicalIndex.build(TEXTS)


@settings(max_examples=200)
@given(query=st.text(max_size=200), synonyms=st.lists(st.text(max_size=20), max_size=3))
def test_any_text_may_be_typed(query: str, synonyms: list[str]) -> None:
    typed = set(ANY_TEXT.search(query, 5)[0].tolist())
    assert typed == {row for row in range(5) if ANY_TEXT.matched_words(query, row)}
    assert typed <= set(ANY_TEXT.search(query, 5, synonyms=synonyms)[0].tolist())
    assert ANY_TEXT.document_frequency(query) >= 0


@pytest.mark.parametrize(
    "query", ["x" * 10_000, "red " * 2_500, "(" * 10_000, "\x00red\x00", "👢" * 999]
)
def test_long_and_odd_queries_are_answered(query: str) -> None:
    assert (ANY_TEXT.search(query, 5)[0].size > 0) == ("red" in query)


def test_a_word_typed_twice_counts_twice() -> None:
    once, twice = (dict(_found(ANY_TEXT, query)) for query in ("buckle red", "buckle red red"))
    red = dict(_found(ANY_TEXT, "red"))
    for row, score in twice.items():
        assert score == pytest.approx(once[row] + red.get(row, 0), rel=1e-5)


def test_words_after_the_first_128_different_ones_are_not_looked_for() -> None:
    others = " ".join(f"w{number}" for number in range(MAX_TERMS - 1))
    assert ANY_TEXT.search(f"{others} {others} red", 5)[0].size == 3
    assert ANY_TEXT.search(f"{others} other red", 5)[0].size == 0


def test_more_rows_than_there_are_may_be_asked_for() -> None:
    assert ANY_TEXT.search("red", 10**12)[0].size == 3


def test_synonyms_add_to_what_was_typed_and_weigh_less() -> None:
    index = LexicalIndex.build(["red trainers", "red sneakers", "blue trainers", "green cap"])
    assert set(index.search("trainers", 9)[0].tolist()) == {0, 2}
    typed, wide = dict(_found(index, "trainers")), dict(_found(index, "trainers", ["Sneaker"]))
    only = dict(_found(index, "sneakers"))
    assert wide == {**typed, 1: pytest.approx(SYNONYM_WEIGHT * only[1], rel=1e-5)}
    assert dict(_found(index, "trainers", ["trainer", "", "👢"])) == typed


def test_a_synonym_phrase_needs_all_its_words() -> None:
    index = LexicalIndex.build(["trainers", "sports shoes", "sports bag", "shoes"])
    assert index.search("trainers", 9, synonyms=["sport shoe"])[0].tolist() == [0, 1]


def test_synonyms_never_stand_in_for_typed_words() -> None:
    assert ANY_TEXT.search("👢", 5, synonyms=["boots"])[0].size == 0


def test_matched_words_are_those_of_the_row_as_typed() -> None:
    index = LexicalIndex.build(["Red leather boots", "red shoes"])
    assert index.matched_words("LEATHER shoe, réd!", 0) == ("LEATHER", "réd")
    assert index.matched_words("LEATHER shoe, réd! red", 1) == ("shoe", "réd", "red")
    assert index.matched_words("red", 7) == () == index.matched_words("👢", 0)
    japanese = LexicalIndex.build(["赤い靴", "靴下 WH-1000XM5"], locale="ja")
    assert japanese.matched_words("赤い靴下 1000xm5", 0) == ("赤い靴",)
    assert japanese.matched_words("赤い靴下 1000xm5", 1) == ("靴下", "1000xm5")


def test_document_frequencies_count_products_that_have_a_word_in_any_inflection() -> None:
    assert ANY_TEXT.document_frequency("Boot") == 3
    assert ANY_TEXT.document_frequency("red") == 3  # not four, though one text has it twice
    assert ANY_TEXT.document_frequency("phone-buckle") == 1
    assert ANY_TEXT.document_frequency("phone-sneaker") == 0
    assert ANY_TEXT.document_frequency("👢") == 0
    assert ANY_TEXT.has_word("boots")
    assert not ANY_TEXT.has_word("bots")


def test_the_vocabulary_has_every_stem_and_its_frequency() -> None:
    vocabulary = list(LexicalIndex.build(["red boots", "blue boot", "red red"]).vocabulary())
    assert vocabulary == [("boot", 2), ("red", 2), ("blue", 1)]


@pytest.mark.parametrize(
    ("locale", "text", "query"),
    [
        ("ja", "ソニー WH-1000XM5 ヘッドホン", "1000xm5"),
        ("ja", "赤い靴", "靴"),
        ("ja", "赤い靴", "の靴 赤い"),
        ("zh-Hant-TW", "紅色運動鞋Nike", "nike"),
        ("ko", "여름옷", "옷"),
        ("th", "รองเท้าสีแดง", "รองเท้า"),
        ("ru-RU", "чёрные ботинки", "черный"),
        ("pt_BR", "Câmeras digitais", "camera"),
    ],
)
def test_products_of_many_languages_are_found(locale: str, text: str, query: str) -> None:
    index = LexicalIndex.build(["Nothing 1 เ 無", text], locale=locale)
    assert index.search(query, 5)[0].tolist() == [1]


def test_pairs_of_characters_outweigh_single_ones() -> None:
    index = LexicalIndex.build(["京東", "東京", "東", "北海道"], locale="ja")
    assert index.search("東京", 5)[0].tolist() == [1, 0, 2]


def _found(
    index: LexicalIndex, query: str, synonyms: list[str] | None = None
) -> list[tuple[int, float]]:
    rows, scores = index.search(query, 99, synonyms=synonyms or [])
    return list(zip(rows.tolist(), scores.tolist(), strict=True))
