"""docs/region.md says what a region brings: columns, keys, and an example that opens."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import polars as pl
import pytest
from PIL import Image
from pydantic import TypeAdapter

from client.canaries import Canary
from client.region import open_region, read_clicks
from shared.schema import (
    CATALOG_COLUMNS,
    CATALOG_REQUIRED,
    CLICK_COLUMNS,
    CLICK_REQUIRED,
    BaseConfig,
    RegionConfig,
    render_region_toml,
)

PAGE = (Path(__file__).parents[1] / "docs" / "region.md").read_text("utf-8")
BASE = BaseConfig(path="base", fingerprint="0" * 64, release_key="0" * 64, releases="releases")
ELSEWHERE = {"base", "headquarters", "clicks", "personalization", "serve"}  # on other pages
WORDS = {
    pl.String: "text",
    pl.Float64: "number",
    pl.Int64: "whole number",
    pl.Boolean: "true or false",
    pl.Datetime: "time",
    pl.List: "map",
}


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def columns(section: str) -> dict[str, str]:
    """What the table of a section says of each column's type."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `([a-z_]+)` \| ([^|]+) \|", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("section", "form", "required"),
    [
        ("Products", CATALOG_COLUMNS, CATALOG_REQUIRED),
        ("Clicks", CLICK_COLUMNS, CLICK_REQUIRED),
    ],
)
def test_every_column_stands_with_its_type(
    section: str, form: dict[str, pl.DataType], required: tuple[str, ...]
) -> None:
    told = columns(section)
    assert list(told) == list(form)
    for name, words in told.items():
        assert words.startswith(WORDS[type(form[name])]), name
        assert words.endswith(", required") == (name in required), name


def test_the_example_makes_a_region(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", block("python")], cwd=tmp_path, check=True)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a1.jpg")
    config = RegionConfig(region="north", base=BASE)
    (tmp_path / "region.toml").write_text(render_region_toml(config), "utf-8")
    region = open_region(tmp_path)
    clicks = read_clicks(region)
    assert region.problems == []
    assert region.catalog["title"].to_list()[0] == "Red Leather Ankle Boots"
    assert region.image_paths == [tmp_path / "images" / "a1.jpg", None]
    assert clicks["clicked"].to_list() == [True, False]


def test_every_key_stands_with_its_default() -> None:
    told = tomllib.loads(block("toml"))
    defaults = RegionConfig(region="north", base=BASE).model_dump(mode="json", exclude_none=True)
    here = {name: value for name, value in defaults.items() if name not in ELSEWHERE | {"region"}}
    assert told == here


def test_the_canaries_are_read_as_shown() -> None:
    assert TypeAdapter(list[Canary]).validate_json(block("json")) == [
        Canary(query="red ankle boots", product_id="a1", within=3)
    ]
