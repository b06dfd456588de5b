"""docs/learning.md names the keys there are, with their defaults."""

import json
import re
import tomllib
from itertools import pairwise
from pathlib import Path

from shared.config import default_run_config
from shared.schema import ClicksConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "learning.md"
TEXT = PAGE.read_text(encoding="utf-8")


def rows() -> list[list[str]]:
    lines = [line for line in TEXT.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_key_stands_with_its_default() -> None:
    defaults, told = default_run_config(), {}
    for row in rows():
        for key, default in pairwise(row):
            name = key.strip("`")
            if name in defaults and key.startswith("`"):
                told[name] = json.loads(default)
    assert len(told) > 10
    assert told == {name: defaults[name] for name in told}


def test_every_key_of_clicks_stands_with_its_default() -> None:
    told = {}
    for row in rows():
        names = re.findall(r"`([a-z_]+)`", row[0])
        if names and set(names) <= set(ClicksConfig.model_fields):
            values = tomllib.loads(f"x = [{row[1].replace('`', '')}]")["x"]
            told |= dict(zip(names, values, strict=True))
    assert told == ClicksConfig().model_dump()
