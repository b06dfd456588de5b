"""The base artefact: every byte of it is what its fingerprint says, or it is refused by name."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from shared.config import FUSIONS
from shared.encoders.base import read_base
from shared.encoders.encoder import load_encoder
from shared.encoders.presets import PRESETS, make_base
from shared.encoders.public import PublicSlice
from shared.errors import BaseError

FILES = [
    "image/config.json",
    "image/model.safetensors",
    "text/config.json",
    "text/model.safetensors",
    "text/tokenizer.json",
    "text/tokenizer_config.json",
]


@pytest.fixture
def base(tmp_path: Path, tiny_base: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def rewrite(base: Path, **changes: object) -> None:
    manifest = json.loads((base / "BASE.json").read_text())
    (base / "BASE.json").write_text(json.dumps({**manifest, **changes}))


def test_a_copy_has_the_fingerprint_of_the_original(base: Path, tiny_base: Path) -> None:
    original = read_base(tiny_base)
    assert read_base(base, expected=original.fingerprint) == original
    assert (original.preset, original.dim, len(original.fingerprint)) == ("tiny", 32, 64)


def test_the_files_are_those_that_the_docstring_names(base: Path) -> None:
    found = {path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file()}
    assert found == {"BASE.json", *FILES}


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_found(base: Path, name: str) -> None:
    raw = bytearray((base / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (base / name).write_bytes(raw)
    with pytest.raises(BaseError, match=f"{name}: changed; copy the base again"):
        read_base(base)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(base: Path, name: str) -> None:
    (base / name).unlink()
    with pytest.raises(BaseError, match=f"{name}: missing"):
        read_base(base)


@pytest.mark.parametrize("name", ["text/pytorch_model.bin", "text/BASE.json", ".hidden"])
def test_an_extra_file_is_named(base: Path, name: str) -> None:
    (base / name).touch()
    with pytest.raises(BaseError, match=f"{name}: extra"):
        read_base(base)


def test_another_fingerprint_is_refused(base: Path) -> None:
    found = read_base(base).fingerprint
    with pytest.raises(BaseError, match=f"base {found[:12]}, expected {'e' * 12}; copy the base"):
        load_encoder(base, device="cpu", expected="e" * 64)


def test_other_preprocessing_is_another_fingerprint(base: Path) -> None:
    found = read_base(base)
    manifest = json.loads((base / "BASE.json").read_text())
    rewrite(base, image={**manifest["image"], "mean": [0.4, 0.5, 0.5]})
    with pytest.raises(BaseError, match=f"expected {found.fingerprint[:12]}"):
        read_base(base, expected=found.fingerprint)


def test_a_folder_that_is_no_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match=r"no BASE\.json; this is not a base artefact"):
        read_base(tmp_path)
    with pytest.raises(BaseError, match=r"no BASE\.json; this is not a base artefact"):
        read_base(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["{", "[]", "3", "{}", '{"format": 1}', "\ufffd"])
def test_a_manifest_that_is_none_is_refused(base: Path, content: str) -> None:
    (base / "BASE.json").write_text(content)
    with pytest.raises(BaseError, match=r"BASE\.json: damaged \(.*\); copy the base again"):
        read_base(base)


def test_an_unknown_field_is_refused(base: Path) -> None:
    rewrite(base, colour="red")
    with pytest.raises(BaseError, match=r"BASE\.json: damaged \(.*colour"):
        read_base(base)


def test_another_format_is_refused_as_such_whatever_its_fields(base: Path) -> None:
    rewrite(base, format=2, colour="red")
    with pytest.raises(BaseError, match="base format 2, this program reads 1; update it"):
        read_base(base)


# -- fusion and distance ---------------------------------------------------------------------------


def chosen(fusion: str, distance: str) -> Path:
    base, _ = make_base(
        PRESETS["tiny"], PublicSlice([], []), seed=0, fusion=fusion, distance=distance
    )
    return base


def test_a_base_from_before_there_was_a_choice_is_the_base_of_the_defaults(tiny_base: Path) -> None:
    """Its manifest names neither, and its fingerprint is that of the bytes that always were."""
    raw = (tiny_base / "BASE.json").read_bytes()
    assert not {"fusion", "distance", "towers"} & json.loads(raw).keys()
    found = read_base(tiny_base)
    assert (found.fusion, found.distance) == ("weighted-sum", "cosine")
    assert found.fingerprint == found.towers == hashlib.sha256(raw).hexdigest()
    assert chosen("weighted-sum", "cosine") == tiny_base


def test_another_choice_is_another_base_with_the_same_towers(tiny_base: Path) -> None:
    plain, other = read_base(tiny_base), read_base(chosen("attention", "manhattan"))
    assert (other.fusion, other.distance) == ("attention", "manhattan")
    assert other.towers == plain.fingerprint != other.fingerprint
    assert other == replace(
        plain, fusion="attention", distance="manhattan", fingerprint=other.fingerprint
    )
    with pytest.raises(BaseError, match=f"expected {plain.fingerprint[:12]}; copy the base"):
        read_base(chosen("attention", "manhattan"), expected=plain.fingerprint)


def test_only_a_concatenation_has_longer_vectors() -> None:
    lengths = {kind: read_base(chosen(kind, "cosine")).vector_dim for kind in FUSIONS}
    assert lengths == {**dict.fromkeys(FUSIONS, 32), "concatenation": 64}


@pytest.mark.parametrize("key", ["fusion", "distance"])
def test_a_choice_that_this_program_does_not_know_is_named(base: Path, key: str) -> None:
    rewrite(base, **{key: "colour"})
    with pytest.raises(BaseError, match=f"{key} 'colour' is not one of (weighted-sum|cosine), "):
        read_base(base)
