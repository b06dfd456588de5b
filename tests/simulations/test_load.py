from pathlib import Path

import pytest

from shared.errors import ConfigError, DataError
from simulations.datasets.load import load_source, parse_data


def test_sources_are_named_by_kind_and_folder():
    assert parse_data("synthetic") == ("synthetic", None)
    assert parse_data("fashion:some/dir") == ("fashion", Path("some/dir"))
    assert parse_data("icecat:C:/x") == ("icecat", Path("C:/x"))


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("amazon", "unknown; choose one of synthetic, fashion:DIR, icecat:DIR"),
        ("", "unknown; choose one of"),
        ("fashion", "names no folder; write fashion:DIR"),
        ("icecat:", "names no folder"),
        ("synthetic:dir", "is made, not read"),
    ],
)
def test_a_wrong_spec_is_refused(spec, match):
    with pytest.raises(ConfigError, match=match):
        parse_data(spec)


def test_a_missing_folder_is_refused(tmp_path):
    for kind in ("fashion", "icecat"):
        with pytest.raises(DataError, match=rf"no such folder; --data {kind}:DIR needs one"):
            load_source(f"{kind}:{tmp_path / 'no'}", regions=["north"], seed=7, folder=tmp_path)
