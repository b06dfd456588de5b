"""Queries of many kinds must find their products: `tests/e2e/regression_queries.json`.

The encoder here knows words only, so what is held is everything around it: tokenizers, spelling,
codes, rules, filters, fallbacks, and that no query of whatever signs fails.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from words_shop import WordsShop, ids, write_shop_region

from client.service.messages import MAX_QUERY_CHARS, SearchRequest
from shared.schema import CATALOG_COLUMNS

HERE = Path(__file__).parent
KEPT = json.loads((HERE.parent / "e2e" / "regression_queries.json").read_text("utf-8"))


def rows_of(products: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Products as a catalog has them."""
    rows = [dict.fromkeys(CATALOG_COLUMNS) | product for product in products]
    for row in rows:
        pairs = (row["attributes"] or {}).items()
        row["attributes"] = [{"key": key, "value": value} for key, value in pairs]
        row["price"] = float(row["price"])
    return rows


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, WordsShop]]:
    opened = {}
    for locale, products in KEPT["catalogs"].items():
        folder = tmp_path_factory.mktemp("shops") / locale
        write_shop_region(folder, rows_of(products), '[serve]\nrules = "rules.toml"\n')
        toml = (folder / "region.toml").read_text("utf-8")
        (folder / "region.toml").write_text(f'locale = "{locale}"\n{toml}', encoding="utf-8")
        (folder / "rules.toml").write_text(KEPT["rules"], encoding="utf-8")
        opened[locale] = WordsShop(folder, 1)
    yield opened
    for shop in opened.values():
        shop.close()


@pytest.mark.parametrize(
    "kept", KEPT["queries"], ids=lambda kept: f"{kept['locale']}: {kept['why']}"
)
def test_it_finds_what_it_must(shops: dict[str, WordsShop], kept: dict[str, Any]) -> None:
    shop = shops[kept["locale"]].shop
    text = (kept["query"] * kept.get("repeated", 1))[:MAX_QUERY_CHARS]
    asked = {"query": text, "filters": kept.get("filters", {}), "facets": True, "explain": True}
    found = shop.search(SearchRequest.model_validate(asked))
    if "correction" in kept:
        assert found.correction == kept["correction"]
        found = shop.search(SearchRequest(query=found.correction))
    within = kept.get("within", len(kept["finds"]))
    assert set(kept["finds"]) <= set(ids(found)[:within])
    assert found.hits, "no page is empty"
    assert not set(kept.get("not", ())) & set(ids(found))
    assert list(found.relaxed) == kept.get("relaxed", [])
    assert found.total == kept.get("total", found.total)
    assert found.ranker == kept.get("ranker", "hybrid")
