"""docs/personalization.md says what `[personalization]` of region.toml is."""

import re
import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from shared.schema import PersonalizationConfig

PAGE = (Path(__file__).parents[1] / "docs" / "personalization.md").read_text("utf-8")


def test_the_page_shows_every_key_with_its_default() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    shown = tomllib.loads(block)["personalization"]
    assert shown.keys() == PersonalizationConfig.model_fields.keys()
    assert PersonalizationConfig(**shown) == PersonalizationConfig(enabled=True)


def test_a_region_adapts_nothing_unless_told_to() -> None:
    assert not PersonalizationConfig().enabled


@pytest.mark.parametrize(
    "wrong",
    [
        {"passes": 0},
        {"learning_rate": 0.0},
        {"gate_learning_rate": 2.0},
        {"weights": [0.0]},
        {"weights": [1.5]},
        {"min_queries": 1},
        {"confidence": 0.5},
        {"epochs": 3},
    ],
)
def test_what_is_out_of_range_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        PersonalizationConfig.model_validate(wrong)
