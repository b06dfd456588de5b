"""Suggestions and spelling against slow, obvious references, and as a shopper would judge them."""

import random
import re
from itertools import chain, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import OSA

from shared.retrieval.suggest import MAX_TYPED_WORDS, Suggester, Suggestion

TITLES = [
    "Runfast Men Red Running Shoes",
    "Runfast Women Red Running Shoes",
    "Runfast Men Blue Sneakers",
    "Colors of Bergamo Women Red Sneakers",
    "Colors of Bergamo Men Blue Rain Jacket",
    "Colors of Bergamo Leather Jacket, Black",
    "Men's T-shirt with Print",
    "Women's T-shirts (pack of 2)",
    "Leather Wallet WX-1000",
]
BRANDS = ["Runfast"] * 3 + ["Colors of Bergamo"] * 3 + [None, "", None]
CATEGORIES = ["Sports Shoes"] * 2 + ["Sneakers"] * 2 + ["Jackets"] * 2 + ["T-Shirts"] * 2 + [None]


@pytest.fixture(scope="module")
def suggester() -> Suggester:
    return Suggester.build(TITLES, BRANDS, CATEGORIES, locale="en-GB")


def texts(suggester: Suggester, prefix: str, limit: int = 8) -> list[str]:
    return [suggestion.text for suggestion in suggester.suggest(prefix, limit)]


@pytest.mark.parametrize(
    ("prefix", "first"),
    [
        ("red runn", "red running"),
        ("red sho", "red shoes"),
        ("Red SHO", "red shoes"),
        ("  red   sho", "red shoes"),
        ("men's blue ja", "men's blue jacket"),
        ("sneakers for wom", "sneakers for women"),  # "for" need not stand in a title
        ("t-sh", "T-Shirts"),
        ("t sh", "T-Shirts"),
        ("snaekers", "Sneakers"),
        ("sneekers", "Sneakers"),
        ("jacet", "Jackets"),
        ("lether w", "leather wallet"),
        ("lether", "leather"),
        ("blak jack", "black jacket"),
        ("red snaek", "red sneakers"),
        ("colrs of ber", "Colors of Bergamo"),
        ("wx", "wx-1000"),
    ],
)
def test_the_first_suggestion_is_what_was_meant(
    suggester: Suggester, prefix: str, first: str
) -> None:
    assert texts(suggester, prefix)[0] == first


def test_a_short_unknown_word_is_neither_corrected_nor_ignored(suggester: Suggester) -> None:
    assert texts(suggester, "xlu sneak") == []  # no product has it


def test_brands_and_categories_are_spelled_as_in_the_catalog_and_named_so(
    suggester: Suggester,
) -> None:
    assert suggester.suggest("runf", 1) == [Suggestion("Runfast", "brand")]
    assert suggester.suggest("sports", 1) == [Suggestion("Sports Shoes", "category")]
    assert Suggestion("Sports Shoes", "category") in suggester.suggest("sho", 8)
    assert Suggestion("Colors of Bergamo", "brand") in suggester.suggest("berg", 8)
    assert Suggestion("leather", "phrase") in suggester.suggest("lea", 8)


def test_what_most_products_have_comes_first() -> None:
    titles = ["red coat"] * 3 + ["red cap"] * 5 + ["red cup"] * 4
    suggester = Suggester.build(titles, [None] * 12, [None] * 12, locale="en")
    assert texts(suggester, "red c") == ["red cap", "red cup", "red coat"]
    assert texts(suggester, "red c", 2) == ["red cap", "red cup"]
    assert texts(suggester, "c") == ["cap", "cup", "coat"]


def test_a_most_frequent_spelling_stands_for_a_brand() -> None:
    brands = ["ACME", "Acme", "Acme", "Aco", "Aco"]
    suggester = Suggester.build(["one"] * 5, brands, [None] * 5, locale="en")
    assert texts(suggester, "ac") == ["Acme", "Aco"]  # all spellings count


def test_one_thing_is_suggested_once(suggester: Suggester) -> None:
    assert texts(suggester, "t-shirt") == ["T-Shirts", "t-shirt with print"]  # no "t-shirt"
    assert texts(suggester, "sneak") == ["Sneakers"]
    titles = ["watch", "watches", "battery", "batteries", "dress", "dresses"]
    plain = Suggester.build(titles, [None] * 6, [None] * 6, locale="en")
    for prefix in ("watch", "batter", "dress"):
        assert len(texts(plain, prefix)) == 1


def test_no_phrase_begins_or_ends_with_a_function_word_or_crosses_punctuation() -> None:
    titles = ["cover for phone, blue", "cover for phone, red", "cover for phone (green)"] * 5
    suggester = Suggester.build(titles, [None] * 15, [None] * 15, locale="en")
    assert texts(suggester, "cover ") == ["cover for phone"]
    assert texts(suggester, "c") == ["cover", "cover for phone"]
    assert texts(suggester, "f") == []
    assert texts(suggester, "p") == ["phone"]


def test_half_a_phrase_is_not_suggested() -> None:
    titles = [f"men red {thing}" for thing in ("coat", "cap", "cup")] * 5
    suggester = Suggester.build(titles, [None] * 15, [None] * 15, locale="en")
    assert "men red" not in texts(suggester, "me", 20)
    assert "red coat" in texts(suggester, "re", 20)
    seldom = Suggester.build([*titles, "men red"], [None] * 16, [None] * 16, locale="en")
    assert "men red" not in texts(seldom, "me", 20)


def test_equally_frequent_ones_come_in_the_order_of_the_alphabet() -> None:
    words = [f"ca{first}{second}" for first in "abcdefgh" for second in "abcdefgh"]
    suggester = Suggester.build(words[::-1], [None] * 64, [None] * 64, locale="en")
    assert texts(suggester, "ca", 2) == ["caaa", "caab"]


def test_a_phrase_needs_a_few_products_but_a_rare_word_is_found_where_nothing_else_is() -> None:
    titles = ["plain shoes"] * 250 + ["zebra shoes", "zealous coat", "plane", "plain shirt"]
    suggester = Suggester.build(titles, [None] * 254, [None] * 254, locale="en")
    assert texts(suggester, "plain sh") == ["plain shoes"]
    assert texts(suggester, "pla") == ["plain", "plain shoes"]
    assert texts(suggester, "zeb") == ["zebra"]
    assert texts(suggester, "shoes z") == ["shoes zebra"]


def test_the_nearest_spelling_wins_over_a_more_frequent_one_further_away() -> None:
    titles = ["speakers"] * 9 + ["sneakers"]
    suggester = Suggester.build(titles, [None] * 10, [None] * 10, locale="en")
    assert suggester.correct("snaekers") == "sneakers"  # one swap; "speakers" is two edits away
    assert texts(suggester, "snaekers") == ["sneakers"]
    equal = Suggester.build(["table", "cable", "cable"], [None] * 3, [None] * 3, locale="en")
    assert equal.correct("xable") == "cable"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("red snaekers", "red sneakers"),
        ("Lether, walet!", "leather, wallet!"),  # what stands between words stays
        ("red sneakers", ""),
        ("sneaker", ""),  # the singular of a known word is known
        ("jacket for women", ""),
        ("with without you", ""),  # function words are known in every catalog
        ("rde cta", ""),  # three letters
        ("wx-1001 sneakesr", "wx-1001 sneakers"),  # a model number is left alone
        ("leathr3", ""),
        ("qqqqqqqq", ""),
        ("", ""),
        ("  \t ", ""),
        ("?!", ""),
    ],
)
def test_corrections(suggester: Suggester, query: str, expected: str) -> None:
    assert suggester.correct(query) == expected


def test_accents_may_be_left_out_and_come_back() -> None:
    titles = ["Jäckchen für Damen", "Straßenschuhe", "Crème"]
    suggester = Suggester.build(titles, ["Müller", None, None], [None] * 3, locale="de-AT")
    assert texts(suggester, "jack") == ["jäckchen", "jäckchen für damen"]
    assert texts(suggester, "jäck") == ["jäckchen", "jäckchen für damen"]
    assert texts(suggester, "strass") == ["straßenschuhe"]
    assert texts(suggester, "mull") == ["Müller"]
    assert texts(suggester, "für") == []
    assert suggester.correct("jackhcen") == "jäckchen"
    assert suggester.correct("creme") == ""


def test_chinese_and_japanese_are_completed_by_character() -> None:
    chinese = Suggester.build(
        ["男士运动鞋透气", "女士运动鞋白色", "运动鞋 轻便"], [None] * 3, [None] * 3, locale="zh-CN"
    )
    assert texts(chinese, "运") == texts(chinese, "运动") == ["运动鞋"]
    titles = ["赤いスニーカー メンズ", "青いスニーカー レディース", "iPhone ケース 透明"]
    japanese = Suggester.build(titles, [None] * 3, [None] * 3, locale="ja-JP")
    assert texts(japanese, "スニ") == ["スニーカー"]
    assert texts(japanese, "青") == ["青いスニーカー"]
    assert texts(japanese, "iphone ケ") == ["iphone ケース"]
    assert texts(japanese, "赤い スニ") == ["赤い スニーカー"]


def test_trademark_signs_are_no_letters() -> None:
    suggester = Suggester.build(["Intel® Core™ laptop"], [None], [None], locale="en")
    assert texts(suggester, "intel c") == ["intel core", "intel core laptop"]


@pytest.mark.parametrize("prefix", ["", " ", "?!", "-", "\x00", "x " * (MAX_TYPED_WORDS + 1)])
def test_nothing_to_complete_suggests_nothing(suggester: Suggester, prefix: str) -> None:
    assert suggester.suggest(prefix, 8) == []


def test_no_limit_no_suggestion(suggester: Suggester) -> None:
    assert suggester.suggest("red", 0) == []


def test_a_catalog_without_words_suggests_nothing() -> None:
    for titles in ([], ["", "  "], ["!!!", "| |"]):
        none = [None] * len(titles)
        suggester = Suggester.build(titles, none, none, locale="en")
        assert suggester.suggest("red sho", 8) == []
        assert suggester.correct("snaekers") == ""


_WORDS = st.text("abc", min_size=3, max_size=9)
_CATALOG = st.lists(st.lists(_WORDS, min_size=1, max_size=4), min_size=1, max_size=20)


def _plain_suggester(catalog: list[list[str]]) -> Suggester:
    none = [None] * len(catalog)
    return Suggester.build([" ".join(words) for words in catalog], none, none, locale="en")


@given(_CATALOG, st.text("abcd", min_size=1, max_size=10))
def test_corrections_are_those_of_measuring_every_word(catalog: list[list[str]], word: str) -> None:
    assert _plain_suggester(catalog).correct(word) == _slow_correction(catalog, word)


def _slow_correction(catalog: list[list[str]], word: str) -> str:
    counts = {w: sum(w in words for words in catalog) for words in catalog for w in words}
    if word in counts or len(word) < 4:  # no word of these letters has a plural that is seen
        return ""
    edits = 2 if len(word) >= 8 else 1
    near = [(OSA.distance(word, w), -counts[w], w) for w in counts]
    near = [found for found in near if found[0] <= edits]
    return min(near)[2] if near else ""


@given(_CATALOG, st.text("abc", min_size=1, max_size=2))
def test_a_word_beside_another_is_counted_in_products_that_have_both(
    catalog: list[list[str]], last: str
) -> None:
    context = catalog[0][0]
    counts = {
        f"{context} {word}": sum(context in words and word in words for words in catalog)
        for word in chain.from_iterable(catalog)
        if word.startswith(last) and word != context
    }
    found = texts(_plain_suggester(catalog), f"{context} {last}", 100)
    assert {text for text, count in counts.items() if count} <= set(found)
    two = [text for text in found if len(text.split()) == 2]
    assert set(two) <= set(counts) or not any(counts.values())  # else a misspelt beginning
    if any(counts.values()):
        assert all(counts[one] >= counts[other] for one, other in pairwise(two))


@settings(max_examples=50)
@given(_CATALOG, st.text("abc ", max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_products_does_not_matter(
    catalog: list[list[str]], prefix: str, rng: random.Random
) -> None:
    shuffled = rng.sample(catalog, len(catalog))
    one, other = _plain_suggester(catalog), _plain_suggester(shuffled)
    assert one.suggest(prefix, 8) == other.suggest(prefix, 8)


@given(st.text(max_size=60), st.integers(0, 5))
def test_any_text_may_be_typed(prefix: str, limit: int) -> None:
    suggester = Suggester.build(TITLES, BRANDS, CATEGORIES, locale="en")
    found = suggester.suggest(prefix, limit)
    assert len(found) <= limit
    assert len({re.sub(r"\W", "", one.text.lower()) for one in found}) == len(found)
    suggester.correct(prefix)


@settings(max_examples=50)
@given(st.lists(st.text(max_size=40), max_size=6), st.text(max_size=10))
def test_any_text_may_stand_in_a_catalog(titles: list[str], prefix: str) -> None:
    suggester = Suggester.build(titles, list(titles), list(titles), locale="ja")
    suggester.suggest(prefix, 8)
    for title in titles:
        suggester.suggest(title, 8)
        suggester.correct(title)
