"""What a hit tells of its product when details are asked for, over a real shelf."""

from pathlib import Path
from typing import Any

import pytest
from words_shop import WordsShop, small_catalog, write_shop_region

from client.service.messages import SearchRequest

PAIRS = [
    ("size", "S"),
    ("colour", "red"),
    ("size", "M"),
    ("size", "S"),
    ("care", ""),
    ("fit", None),
]


@pytest.mark.parametrize(
    ("pairs", "told"),
    [(PAIRS, {"size": "S, M", "colour": "red"}), ([], {}), (None, {})],
    ids=["several", "none", "missing"],
)
def test_details_are_the_catalogs_own(tmp_path: Path, pairs: Any, told: dict[str, str]) -> None:
    described = small_catalog()[0] | {
        "description": "Warm.\nDry.",
        "attributes": pairs and [{"key": key, "value": value} for key, value in pairs],
    }
    bare = small_catalog()[1]
    with WordsShop(write_shop_region(tmp_path / "north", [described, bare]), 1) as opened:
        ask = SearchRequest(query=described["title"], details=True)
        first, second = opened.shop.search(ask).hits
        assert (first.description, first.attributes) == ("Warm.\nDry.", told)
        assert list(first.attributes) == list(told)  # in the catalog's order
        assert (second.description, second.attributes["colour"]) == (None, "green")
        plain = opened.shop.search(ask.model_copy(update={"details": False})).hits[0]
        assert (plain.description, plain.attributes) == (None, {})
