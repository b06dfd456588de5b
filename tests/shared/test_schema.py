"""`region.toml`: what a region's operator writes is read, or refused by its key."""

from pathlib import Path

import pytest

from shared.errors import ConfigError
from shared.schema import (
    BaseConfig,
    ExperimentConfig,
    RegionConfig,
    ServeConfig,
    load_region_config,
    render_region_toml,
)

TOML = """
region = "north"
[base]
path = "base"
fingerprint = "0"
release_key = "0"
releases = "releases"
[headquarters]
address = "{address}"
"""


def write(folder: Path, address: str) -> Path:
    (folder / "region.toml").write_text(TOML.format(address=address), encoding="utf-8")
    return folder


@pytest.mark.parametrize("address", ["hq.example:443", "10.0.0.1:1", "localhost:65535"])
def test_an_address_is_a_host_and_a_port(tmp_path: Path, address: str) -> None:
    headquarters = load_region_config(write(tmp_path, address)).headquarters
    assert headquarters is not None
    assert headquarters.address == address


@pytest.mark.parametrize(
    "address",
    ["hq.example", "hq.example:0", "hq.example:65536", "a..b:1", ".a:1", "a.:1", "https://a:1"],
)
def test_what_is_no_address_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match=r"region\.toml: headquarters\.address: ") as caught:
        load_region_config(write(tmp_path, address))
    assert "\n" not in str(caught.value)


def test_a_rendered_configuration_reads_back_equal_tables_in_tables_too(tmp_path: Path) -> None:
    config = RegionConfig(
        region="north",
        base=BaseConfig(path="base", fingerprint="ab", release_key="cd", releases="releases"),
        serve=ServeConfig(grpc="", experiment=ExperimentConfig(a="hybrid", b="lexical")),
    )
    (tmp_path / "region.toml").write_text(render_region_toml(config))
    assert load_region_config(tmp_path) == config
