"""Words of many languages: what meets what, and that a text always finds itself."""

import pytest
import tantivy
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.retrieval.tokenize import Analysis, Piece, analysis_of, language_of, typed_words

LOCALES = ("en", "de-AT", "fr", "sv", "tr", "ru", "el", "ar", "ta", "pl", "ja", "zh-TW", "ko", "th")
ANALYSES = {locale: analysis_of(locale) for locale in LOCALES}


def _indexed_terms(analysis: Analysis, text: str) -> list[str]:
    return analysis.analyzer.analyze(analysis.indexed(text))


def _terms(locale: str, text: str) -> list[str]:
    return [piece.term for piece in analysis_of(locale).pieces(text)]


@pytest.mark.parametrize(
    ("locale", "language"),
    [("en", "en"), ("de-AT", "de"), ("pt_BR", "pt"), ("zh-Hant-TW", "zh"), (" EN ", "en")],
)
def test_a_locale_is_read_by_its_first_part(locale: str, language: str) -> None:
    assert language_of(locale) == language


@pytest.mark.parametrize(("locale", "stemmer"), [("en", "english"), ("de", "german")])
def test_english_and_german_are_cut_as_ever(locale: str, stemmer: str) -> None:
    # Published figures were measured with exactly this chain.
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
    builder = builder.filter(tantivy.Filter.remove_long(40)).filter(tantivy.Filter.lowercase())
    builder = builder.filter(tantivy.Filter.ascii_fold()).filter(tantivy.Filter.stemmer(stemmer))
    text = "Größere Häuser, running shoes' WH-1000XM5 don't 東京 a_b x² " + "long" * 20
    assert _indexed_terms(analysis_of(locale), text) == builder.build().analyze(text)


@pytest.mark.parametrize(
    ("locale", "typed", "written"),
    [
        ("en", "running shoe", "Run SHOES"),
        ("de", "gruen haus", "Gruen Häuser"),
        ("fr", "chaussure legere", "Chaussures légère"),
        ("es", "camion", "camiones"),
        ("it", "qualita", "qualità"),
        ("nl", "jas creme", "Jassen crème"),
        ("pt", "camera", "câmeras"),
        ("sv", "tröja", "tröjor"),
        ("da", "bukse", "bukser"),
        ("nb", "jakke", "jakker"),
        ("no", "jakke", "jakker"),
        ("fi", "laukku", "laukut"),
        ("ru", "черный ботинки", "чёрные ботинками"),
        ("hu", "cipok", "cipők"),
        ("ro", "camasa", "cămăși"),
        ("tr", "istanbul isik", "İSTANBUL IŞIK"),
        ("ar", "حذاء", "الحذاء"),
        ("el", "παπουτσια", "ΠΑΠΟΎΤΣΙΑ"),
        ("ta", "சட்டை", "சட்டை"),
        ("pl", "zolty", "żołty"),
    ],
)
def test_inflected_and_unaccented_words_meet(locale: str, typed: str, written: str) -> None:
    assert _terms(locale, typed) == _terms(locale, written) != []


def test_an_unknown_language_is_not_stemmed() -> None:
    assert _terms("xx", "Running shoes") == ["running", "shoes"]


def test_nordic_letters_tell_words_apart_and_foreign_accents_do_not() -> None:
    assert _terms("sv", "får") != _terms("sv", "far")
    assert _terms("da-DK", "køl") != _terms("da-DK", "kol")
    assert _terms("sv", "Nestlé") == _terms("sv", "nestle")


@pytest.mark.parametrize("locale", LOCALES)
def test_a_letter_and_its_accent_may_be_two_characters(locale: str) -> None:
    assert _terms(locale, "cafe\u0301 bla\u030a") == _terms(locale, "caf\xe9 bl\xe5")


def test_hindi_words_stay_whole() -> None:
    assert _terms("hi", "हिन्दी कपड़े") == ["हिन्दी", "कपड़े"]


def test_characters_and_pairs_are_indexed_and_latin_words_stay_words() -> None:
    text = "ソニーWH-1000XM5の靴"
    expected = ["ソ", "ニ", "ー", "ソニ", "ニー", "wh", "1000xm5", "の", "靴", "の靴"]
    assert _indexed_terms(analysis_of("ja"), text) == expected


@pytest.mark.parametrize(
    ("locale", "query", "terms"),
    [
        ("ja", "靴", ["靴"]),
        ("ja", "の", ["の"]),
        ("ja", "赤い靴", ["赤", "赤い", "い靴", "靴"]),
        ("zh", "運動 nike", ["運", "運動", "動", "nike"]),
        ("ko", "여름 옷", ["여름", "옷"]),
        ("th", "กข", ["กข"]),
        ("ja", "\uff8d\uff6f\uff84\uff9e", ["ヘッ", "ッド"]),  # half-width kana
    ],
)
def test_queries_look_for_pairs_and_for_what_means_something_alone(
    locale: str, query: str, terms: list[str]
) -> None:
    assert _terms(locale, query) == terms


@settings(max_examples=200)
@given(locale=st.sampled_from(LOCALES), text=st.text(max_size=60))
def test_a_text_has_every_piece_of_itself(locale: str, text: str) -> None:
    analysis = ANALYSES[locale]
    pieces = list(analysis.pieces(text))
    assert {piece.term for piece in pieces} <= set(_indexed_terms(analysis, text))
    normalized = analysis.normalized(text)
    for piece in pieces:
        assert 0 <= piece.start < piece.end <= len(normalized)


@settings(max_examples=100)
@given(
    locale=st.sampled_from(("ja", "zh", "ko", "th")),
    text=st.text(st.sampled_from("赤い靴ヘッド여름กข ab1-"), max_size=12),
    start=st.integers(0, 11),
)
def test_a_part_of_a_word_without_spaces_is_found(locale: str, text: str, start: int) -> None:
    analysis = ANALYSES.get(locale) or analysis_of(locale)
    part = "".join(letter for letter in text[start : start + 2] if letter > "\u0e00")
    if part and part in text:
        assert {piece.term for piece in analysis.pieces(part)} <= set(
            _indexed_terms(analysis, text)
        )


def test_positions_are_those_of_the_typed_words() -> None:
    text = "👢 Größe, HÄUSER"
    pieces = list(analysis_of("de").pieces(text))
    assert [text[piece.start : piece.end] for piece in pieces] == ["Größe", "HÄUSER"]


def test_overlapping_pieces_are_one_stretch_and_each_stretch_comes_once() -> None:
    pieces = [Piece(0, 1, "赤"), Piece(0, 2, "赤い"), Piece(1, 3, "い靴"), Piece(4, 5, "赤")]
    assert typed_words("赤い靴 赤", pieces) == ("赤い靴", "赤")
    assert typed_words("赤い赤い", [Piece(0, 2, "赤い"), Piece(2, 4, "赤い")]) == ("赤い",)
    assert typed_words("red", []) == ()
