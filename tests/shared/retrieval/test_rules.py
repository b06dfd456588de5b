"""A search team's rules do what the file says, and a wrong file is refused by name."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ConfigError
from shared.retrieval.rules import (
    MAX_FILE_BYTES,
    MAX_GROUPS,
    MAX_PINS,
    MAX_SYNONYMS,
    Rules,
    check_rules,
    check_rules_file,
    normalize_query,
    read_rules,
)

RULES = """
synonyms = [["trainers", "sneakers"], ["jumper", "sweater", "pullover"], ["T-Shirt", "tee"]]

[[one_way]]
from = "laptop"
to = ["notebook"]

[[pin]]
query = "Gift card!"
products = ["P1", "P2"]

[[block]]
products = ["P9"]

[[block]]
query = "toys"
products = ["P7", "P8"]
"""


def read(folder: Path, text: str) -> Rules:
    path = folder / "rules.toml"
    path.write_text(text, encoding="utf-8")
    return read_rules(path)


@pytest.fixture
def rules(tmp_path: Path) -> Rules:
    return read(tmp_path, RULES)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("sneakers", ("trainers",)),
        ("red SNEAKERS, new", ("trainers",)),
        ("sweater", ("jumper", "pullover")),
        ("t-shirt", ("tee",)),
        ("T shirt", ("tee",)),
        ("tee", ("t shirt",)),
        ("laptop", ("notebook",)),
        ("notebook", ()),  # one way
        ("sneaker", ()),  # whole words only
        ("jumper sweater", ("pullover",)),  # what the query has is not added
        ("", ()),
        ("?!", ()),
    ],
)
def test_synonyms(rules: Rules, query: str, expected: tuple[str, ...]) -> None:
    assert rules.synonyms_for(query) == expected


def test_the_longest_phrase_is_matched_and_comes_first(tmp_path: Path) -> None:
    text = 'synonyms = [["card", "postcard"], ["gift card", "voucher"], ["blue", "navy"]]'
    rules = read(tmp_path, text)
    assert rules.synonyms_for("blue gift card") == ("voucher", "navy")
    assert rules.synonyms_for("card gift") == ("postcard",)
    assert rules.synonyms_for("gift card card") == ("voucher", "postcard")


def test_a_phrase_without_synonyms_does_not_hide_its_words(tmp_path: Path) -> None:
    rules = read(tmp_path, 'synonyms = [["gift card"], ["card", "postcard"]]')
    assert rules.synonyms_for("gift card") == ("postcard",)


def test_synonyms_of_synonyms_are_not_followed(tmp_path: Path) -> None:
    rules = read(tmp_path, 'synonyms = [["a", "b"], ["b", "c"], ["c", "d"]]')
    assert rules.synonyms_for("a") == ("b",)
    assert rules.synonyms_for("b") == ("a", "c")


def test_phrases_are_found_within_scripts_that_have_no_spaces(tmp_path: Path) -> None:
    rules = read(tmp_path, 'synonyms = [["运动鞋", "球鞋"]]')
    assert rules.synonyms_for("红色运动鞋男") == ("球鞋",)


def test_a_long_query_does_not_become_thousands_of_words(tmp_path: Path) -> None:
    groups = [[f"w{number}", f"v{number}"] for number in range(500)]
    rules = read(tmp_path, f"synonyms = {groups}")
    query = " ".join(word for word, _ in groups)
    assert rules.synonyms_for(query) == tuple(f"v{n}" for n in range(MAX_SYNONYMS))


_PHRASES = st.lists(st.text("ab ", min_size=1, max_size=5), max_size=4)


@given(st.lists(_PHRASES, max_size=5), st.text("ab ", max_size=12))
def test_synonyms_are_those_of_a_slow_search(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[str]], query: str
) -> None:
    rules = read(tmp_path_factory.mktemp("rules"), f"synonyms = {groups}")
    assert set(rules.synonyms_for(query)) == _slow_synonyms(groups, query)


def _slow_synonyms(groups: list[list[str]], query: str) -> set[str]:
    words, found = query.split(), set()
    groups = [[" ".join(phrase.split()) for phrase in group] for group in groups]
    for length in range(len(words), 0, -1):
        for start in range(len(words) - length + 1):
            phrase = " ".join(words[start : start + length])
            others = {o for group in groups if phrase in group for o in group} - {phrase, ""}
            if others and "," not in words[start : start + length]:
                found |= others
                words[start : start + length] = [","] * length  # taken
    return {one for one in found if f" {one} " not in f" {' '.join(query.split())} "}


def test_pins_and_blocks(rules: Rules) -> None:
    assert rules.pinned("gift   CARD") == ("P1", "P2")
    assert rules.pinned("gift cards") == ()
    assert rules.blocked("anything") == frozenset({"P9"})
    assert rules.blocked("Toys") == frozenset({"P7", "P8", "P9"})
    assert rules.blocked("wooden toys") == frozenset({"P9"})


def test_a_blocked_product_is_not_pinned(tmp_path: Path) -> None:
    pin = '[[pin]]\nquery = "x"\nproducts = ["P1", "P2", "P3"]\n'
    blocks = '[[block]]\nproducts = ["P1"]\n[[block]]\nquery = "X"\nproducts = ["P2"]\n'
    assert read(tmp_path, pin + blocks).pinned("x") == ("P3",)


def test_two_pins_for_one_query_follow_each_other(tmp_path: Path) -> None:
    pin = '[[pin]]\nquery = "{}"\nproducts = {}\n'
    rules = read(tmp_path, pin.format("x", '["P2", "P1"]') + pin.format("X!", '["P3", "P2"]'))
    assert rules.pinned("x") == ("P2", "P1", "P3")


def test_empty_rules_change_nothing(tmp_path: Path) -> None:
    for rules in (Rules.empty(), read(tmp_path, "")):
        assert rules.synonyms_for("red shoes") == ()
        assert rules.pinned("red shoes") == ()
        assert rules.blocked("red shoes") == frozenset()
        assert check_rules(rules, []) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Red,\tSHOES ", "red shoes"),
        ("shoes red", "shoes red"),
        ("T-Shirt", "t shirt"),
        ("\uff26\uff35\u3000\uff37", "fu w"),
        ("Straße", "strasse"),
        ("soft\u00adhyphen", "softhyphen"),
        ("c++", "c++"),
        ("(“quoted”)…", "quoted"),
        ("हिन्दी", "हिन्दी"),  # vowel signs are no punctuation
        ("", ""),
    ],
)
def test_normalization(text: str, expected: str) -> None:
    assert normalize_query(text) == expected


@given(st.text())
def test_normalizing_twice_is_normalizing_once(text: str) -> None:
    once = normalize_query(text)
    assert normalize_query(once) == once


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("synonyms = [", r"rules\.toml: not valid TOML"),
        (
            "synonym = []",
            r"rules\.toml: synonym: Extra inputs are not permitted; correct or remove",
        ),
        ('synonyms = ["a"]', r"rules\.toml: synonyms 1: "),
        ('synonyms = [["a", "b"], ["c", 3]]', r"rules\.toml: synonyms 2 2: .*string"),
        ('[[pin]]\nquery = "x"', r"pin 1, products: Field required"),
        ('[[pin]]\nquery = "x"\nproducts = []', r"pin 1, products: "),
        ('[[pin]]\nquery = "?"\nproducts = ["P"]', r"pin 1, query: has no letter"),
        ('[[pin]]\nqueri = "x"\nproducts = ["P"]', r"pin 1, "),
        ('[[block]]\nquery = " "\nproducts = ["P"]', r"block 1, query: has no letter"),
        ('[[one_way]]\nfrom = "a"', r"one_way 1, to: Field required"),
        ('[[one_way]]\nsource = "a"\nto = ["b"]', r"one_way 1, from: Field required"),
        (f"synonyms = {[['a', 'b']] * (MAX_GROUPS + 1)}", r"synonyms: .*at most 1000"),
        (f"synonyms = [{['a' * 101]}]", r"synonyms 1 1: .*at most 100"),
        (
            f'[[pin]]\nquery = "x"\nproducts = {["P"] * MAX_PINS}\n'
            '[[pin]]\nquery = "X"\nproducts = ["P"]',
            r"pin: number 2 and those before it .* pin 101 products, 100 are allowed",
        ),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as refused:
        read(tmp_path, text)
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rules\.toml: not found; .*serve\.rules"):
        read_rules(tmp_path / "rules.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_rules(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'synonyms = [["caf\xe9", "bar"]]')
    with pytest.raises(ConfigError, match=r"latin\.toml: not valid TOML"):
        read_rules(tmp_path / "latin.toml")
    (tmp_path / "large.toml").write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigError, match=r"large\.toml: above"):
        read_rules(tmp_path / "large.toml")
    (tmp_path / "deep.toml").write_text("synonyms = " + "[" * 100_000)
    with pytest.raises(ConfigError, match=r"deep\.toml: not valid TOML"):
        read_rules(tmp_path / "deep.toml")


def test_a_sound_file_has_no_findings(rules: Rules) -> None:
    assert check_rules(rules, ["P1", "P2", "P7", "P8", "P9"]) == []


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("synonyms = [[]]", "synonyms 1: fewer than two"),
        ('synonyms = [["a", "b"], ["C", "c!"]]', "synonyms 2: fewer than two"),
        ('synonyms = [["a", "b"], ["c", "B"]]', 'synonyms 2: "b" is in synonyms 1 too'),
        ('[[one_way]]\nfrom = "a"\nto = ["A"]', "one_way 1: leads from nothing or nowhere"),
        (
            '[[pin]]\nquery = "x"\nproducts = ["P1", "U"]',
            'pin 1: 1 product ("U") not in the catalog',
        ),
        ('[[pin]]\nquery = "x"\nproducts = ["P1", "P1"]', 'pin 1: 1 product ("P1") named twice'),
        ('[[pin]]\nquery = "x"\nproducts = ["P9"]', 'pin 1: 1 product ("P9") blocked'),
        (
            '[[pin]]\nquery = "x"\nproducts = ["P1"]\n[[pin]]\nquery = "X"\nproducts = ["P2"]',
            "pin 2: for the same query as pin 1",
        ),
        ('[[block]]\nproducts = ["U", "V"]', 'block 1: 2 products (first "U") not in the catalog'),
    ],
)
def test_findings_for_the_operator(tmp_path: Path, text: str, finding: str) -> None:
    rules = read(tmp_path, f'{text}\n[[block]]\nproducts = ["P9"]\n')
    found = check_rules(rules, ["P1", "P2", "P9"])
    assert len(found) == 1
    assert found[0].startswith(finding)


def test_checking_a_file_tells_errors_from_warnings(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    assert check_rules_file(path, [])[0] == [
        f"{path}: not found; make it, or correct or remove serve.rules in region.toml"
    ]
    path.write_text("synonyms = [[]]", encoding="utf-8")
    errors, warnings = check_rules_file(path, [])
    assert errors == []
    assert [line.partition(": ")[0] for line in warnings] == [str(path)]
