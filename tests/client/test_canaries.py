"""Canaries are looked for as a shopper would look, and the first that is missed is named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_shelf import TitleEncoder, shelf_of

from client.canaries import Canary, failed_canary, read_canaries
from shared.errors import ConfigError
from shared.retrieval.rules import read_rules

TITLES = {"a": "red boots", "b": "blue boots", "c": "green scarf", "d": "a phone"}
SHELF = shelf_of(TITLES)


def canary(query: str, product_id: str, within: int = 1) -> Canary:
    return Canary(query=query, product_id=product_id, within=within)


OWN = [canary(title, product_id) for product_id, title in TITLES.items()]


def test_no_canaries_ask_nobody() -> None:
    encoder = TitleEncoder()
    assert failed_canary([], SHELF, encoder) is None
    assert encoder.calls == 0


def test_all_found_and_encoded_at_once() -> None:
    encoder = TitleEncoder()
    assert failed_canary(OWN, SHELF, encoder) is None
    assert encoder.calls == 1


def test_the_first_missed_one_is_named() -> None:
    missed = canary("red boots", "c")
    assert failed_canary([missed], SHELF, TitleEncoder()) == 1
    assert failed_canary([*OWN, missed, missed], SHELF, TitleEncoder()) == len(OWN) + 1


def test_within_is_the_last_rank_that_counts() -> None:
    """All four are ranked by the mix; each is found within its own rank and not before."""
    for product_id in TITLES:
        ranks = [
            within
            for within in (1, 2, 3, 4)
            if failed_canary([canary("boots", product_id, within)], SHELF, TitleEncoder()) is None
        ]
        assert ranks and ranks == list(range(ranks[0], 5))


def test_words_count_too() -> None:
    """The encoder alone, which knows whole titles only, would not have found it."""
    query = canary("scarf", "c")
    dense = replace(SHELF, dense_weight=1.0)
    words = replace(SHELF, dense_weight=0.0)
    assert failed_canary([query], words, TitleEncoder()) is None
    by_dense = [
        failed_canary([canary(word, one)], dense, TitleEncoder())
        for one, title in TITLES.items()
        for word in title.split()
    ]
    assert 1 in by_dense


def test_a_blocked_or_deleted_product_is_missed(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text('[[block]]\nproducts = ["c"]\n')
    blocked = replace(SHELF, rules=read_rules(path))
    query = [canary("green scarf", "c", within=4)]
    assert failed_canary(query, SHELF, TitleEncoder()) is None
    assert failed_canary(query, blocked, TitleEncoder()) == 1
    assert failed_canary([canary("green scarf", "gone", 4)], SHELF, TitleEncoder()) == 1


def test_a_pin_helps_as_it_helps_a_shopper(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text('[[pin]]\nquery = "boots"\nproducts = ["d"]\n')
    pinned = replace(SHELF, rules=read_rules(path))
    assert failed_canary([canary("Boots!", "d")], SHELF, TitleEncoder()) == 1
    assert failed_canary([canary("Boots!", "d")], pinned, TitleEncoder()) is None


def test_variants_count_one_by_one() -> None:
    shelf = shelf_of({"v0": "red boots", "v1": "red boots", "x": "hat"})
    assert failed_canary([canary("red boots", "v1", within=2)], shelf, TitleEncoder()) is None
    assert failed_canary([canary("red boots", "v1", within=1)], shelf, TitleEncoder()) == 1


def test_a_file_is_read_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "canaries.json"
    path.write_text(json.dumps([{"query": "größe", "product_id": "b"}, OWN[0].model_dump()]))
    assert read_canaries(path, list(TITLES)) == [canary("größe", "b", within=10), OWN[0]]
    path.write_text("[]")
    assert read_canaries(path, []) == []


def test_wrong_files_say_where_without_the_query(tmp_path: Path) -> None:
    path = tmp_path / "canaries.json"
    with pytest.raises(ConfigError, match=r"canaries\.json: No such file .*; write it, or remove"):
        read_canaries(path, [])
    for content, message in (
        ('[{"query": "secret", "product_id": "a", "within": 0}]', "canary 1: within: Input should"),
        ('[{"query": "secret", "product_id": "zz"}]', "canary 1: the catalog has no such product"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=message) as caught:
            read_canaries(path, list(TITLES))
        assert "secret" not in str(caught.value) and "zz" not in str(caught.value)
