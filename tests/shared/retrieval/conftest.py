"""What the tests of a shelf share."""

import pytest
from slow_shelf import RULES

from shared.retrieval.rules import Rules, read_rules


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Rules:
    path = tmp_path_factory.mktemp("rules") / "rules.toml"
    path.write_text(RULES)
    return read_rules(path)
