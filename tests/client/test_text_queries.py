"""A command's text queries have the resident encoder's vectors, without peft, timm or a photo."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from client.text_queries import TextQueries, load_query_encoder
from server.releases import generate_signing_key, write_release
from shared.adapter import Adapter, read_release_adapter
from shared.encoders.encoder import Encoder
from shared.errors import BaseError, ReleaseError
from shared.release import ReleaseBase, ReleaseFacts
from shared.schema import BaseConfig, RegionConfig

QUERIES = ["red boots", "a much longer query about a product", "x"]


def never() -> Encoder:
    raise AssertionError("the whole encoder is not needed for this")


@pytest.fixture
def queries(encoder: Encoder, trained: Adapter, tiny_base: Path, tmp_path: Path) -> TextQueries:
    encoder.load_adapter(trained)
    encoder.save_release_files(tmp_path)
    adapter = read_release_adapter(tmp_path)
    return TextQueries(tiny_base, encoder.base, adapter, device="cpu", whole=never)


def test_vectors_are_those_of_the_resident_encoder(queries: TextQueries, encoder: Encoder) -> None:
    expected = encoder.encode_queries(QUERIES, [None] * 3)
    np.testing.assert_allclose(queries.encode_queries(QUERIES, [None] * 3), expected, atol=1e-5)
    encoder.reset(seed=0)
    assert not np.allclose(encoder.encode_queries(QUERIES, [None] * 3), expected, atol=1e-3)


def test_the_digest_is_that_of_the_resident_encoder(queries: TextQueries, encoder: Encoder) -> None:
    assert queries.digest == encoder.digest


def test_photos_and_new_products_are_left_to_the_whole_encoder(
    encoder: Encoder, trained: Adapter, tiny_base: Path, photos: list[Path]
) -> None:
    encoder.load_adapter(trained)
    queries = TextQueries(tiny_base, encoder.base, trained, device="cpu", whole=lambda: encoder)
    for text in ("red", None):
        expected = encoder.encode_queries([text], photos[:1])
        assert (queries.encode_queries([text], photos[:1]) == expected).all()
    expected = encoder.encode_products(["red"], [None])
    assert (queries.encode_products(["red"], [None]) == expected).all()


def pulled(folder: Path, encoder: Encoder, digest: str) -> RegionConfig:
    """The config of a region in `folder` that has pulled the encoder's adapter as release 1."""
    encoder.save_release_files(folder / "files")
    key, fingerprint = folder / "key.pem", encoder.base.fingerprint
    public = generate_signing_key(key)
    facts = ReleaseFacts(
        base=ReleaseBase(fingerprint=fingerprint, ids={"text": "tiny"}),
        dims={"shared": encoder.dim},
        encoder_digest=digest,
        rounds=1,
        strategy="fedavg",
    )
    releases = folder / "state" / "releases"
    assert write_release(releases, files=folder / "files", facts=facts, signing_key=key) == 1
    base = BaseConfig(
        path="base", fingerprint=fingerprint, release_key=public, releases="../releases"
    )
    return RegionConfig(region="north", base=base, device="cpu")


@pytest.fixture
def folder(tmp_path: Path, tiny_base: Path, encoder: Encoder, trained: Adapter) -> Path:
    shutil.copytree(tiny_base, tmp_path / "base")
    encoder.load_adapter(trained)
    return tmp_path


def test_a_pulled_release_is_verified_and_answers(folder: Path, encoder: Encoder) -> None:
    config = pulled(folder, encoder, encoder.digest)
    found = load_query_encoder(folder, config, release=1)
    assert found.digest == encoder.digest
    expected = encoder.encode_queries(QUERIES, [None] * 3)
    np.testing.assert_allclose(found.encode_queries(QUERIES, [None] * 3), expected, atol=1e-5)
    (folder / "state/releases/1/fusion.safetensors").write_bytes(b"damaged")
    with pytest.raises(ReleaseError, match=r"fusion\.safetensors"):
        load_query_encoder(folder, config, release=1)


def test_another_digest_than_the_manifest_names_is_refused(folder: Path, encoder: Encoder) -> None:
    config = pulled(folder, encoder, "e" * 64)
    with pytest.raises(ReleaseError, match=r"gives encoder .* its manifest names eeeeeeeeeeee"):
        load_query_encoder(folder, config, release=1)


def test_a_damaged_base_is_refused(folder: Path, encoder: Encoder) -> None:
    config = pulled(folder, encoder, encoder.digest)
    with (folder / "base/image/model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BaseError, match=r"image/model\.safetensors: changed"):
        load_query_encoder(folder, config, release=1)


def test_the_base_alone_is_the_whole_encoder(folder: Path, encoder: Encoder) -> None:
    config = pulled(folder, encoder, encoder.digest)
    found = load_query_encoder(folder, config, release=0)
    encoder.reset(seed=0)
    assert isinstance(found, Encoder) and found.digest == encoder.digest


def test_neither_peft_nor_timm_is_imported(folder: Path, encoder: Encoder) -> None:
    config = pulled(folder, encoder, encoder.digest)
    code = (
        "import sys; from pathlib import Path; from client.text_queries import load_query_encoder\n"
        "from shared.schema import RegionConfig\n"
        "config = RegionConfig.model_validate_json(sys.argv[2])\n"
        "found = load_query_encoder(Path(sys.argv[1]), config, release=1)\n"
        "assert found.encode_queries(['red boots'], [None]).shape[0] == 1\n"
        "print([m for m in ('peft', 'timm') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(folder), config.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr[-500:] if done.returncode else "") == ("[]", "")
