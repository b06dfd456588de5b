"""The base artefact: both frozen towers with their preprocessing, under one fingerprint.

    base/BASE.json        what it is, how it reads and sees, sha256 of every file
    base/text/            plain transformers model and tokenizer
    base/image/           plain timm model: config.json, model.safetensors
    base/public/          products that belong to no region, if any (`shared.encoders.public`)

The fingerprint is the sha256 of BASE.json, so it covers weights, configuration and preprocessing.
A base is made once and handed out; a region whose fingerprint differs is refused by name.

How text and photo are fused and how vectors are compared decide what a vector means, so they stand
in BASE.json, too; where they are the defaults they are left out, as in bases from before there was
a choice. What the towers make of an item does not depend on them: `towers` is the fingerprint that
the same base has without them.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.config import COSINE, DISTANCES, FUSIONS, WEIGHTED_SUM
from shared.durable import canonical_json, new_folder, sha256_file
from shared.encoders.fusion import KINDS
from shared.encoders.image import ImageConfig
from shared.encoders.text import TextConfig
from shared.errors import BaseError

FORMAT = 1
_DEFAULTS = {"fusion": WEIGHTED_SUM, "distance": COSINE}


@dataclass(frozen=True)
class BaseInfo:
    """What BASE.json says.

    Attributes:
        preset: name of the recipe, e.g. "starter".
        dim: D, length of what either tower gives.
        text: how the text tower reads.
        image: how the image tower sees.
        image_weight: a photo's weight beside the text's 1 before any training.
        temperature: of the contrastive loss before any training.
        recipe: how the base was made, for its readers.
        fusion: how text and photo become one vector; see `shared.encoders.fusion`.
        distance: how vectors are compared; see `shared.similarity`.
        fingerprint: sha256 of BASE.json.
        towers: the fingerprint without `fusion` and `distance`; kept activations go by it.
    """

    preset: str
    dim: int
    text: TextConfig
    image: ImageConfig
    image_weight: float
    temperature: float
    recipe: dict[str, Any]
    fusion: str = WEIGHTED_SUM
    distance: str = COSINE
    fingerprint: str = ""
    towers: str = ""

    @property
    def vector_dim(self) -> int:
        """V, length of query and product vectors."""
        return self.dim * KINDS[self.fusion].width

    @property
    def choices(self) -> dict[str, str]:
        """Fusion and distance, where they are not the defaults."""
        return {
            key: getattr(self, key) for key in _DEFAULTS if getattr(self, key) != _DEFAULTS[key]
        }


def write_base(folder: Path, info: BaseInfo, fill: Callable[[Path], None]) -> BaseInfo:
    """Write a base artefact beside `folder` and rename it there.

    Args:
        folder: where it shall be; must not exist. Hold `locked(folder.parent)`.
        info: what it is; its fingerprint is computed here.
        fill: writes `text/`, `image/` and perhaps `public/` into the folder it is given.

    Returns:
        `info` with its fingerprint.
    """
    with new_folder(folder) as made:
        fill(made)
        left_out = {"fingerprint", "towers", *_DEFAULTS}
        fields = {key: value for key, value in asdict(info).items() if key not in left_out}
        manifest = {"format": FORMAT, **fields, **info.choices, "files": _files(made)}
        (made / "BASE.json").write_bytes(canonical_json(manifest))
        for path in made.rglob("*"):  # a base is public; safetensors makes its files private
            path.chmod(0o755 if path.is_dir() else 0o644)
    return read_base(folder)


def read_base(folder: Path, *, expected: str | None = None) -> BaseInfo:
    """Read and verify a base artefact, every byte of it.

    Args:
        folder: the artefact.
        expected: fingerprint it must have, if one is agreed.

    Raises:
        BaseError: missing, damaged, or with another fingerprint; names the file.
    """
    try:
        raw = (folder / "BASE.json").read_bytes()
        manifest = json.loads(raw)
        _require_format(folder, manifest.pop("format"))
        files = manifest.pop("files")
        text, image = TextConfig(**manifest.pop("text")), _image_config(manifest.pop("image"))
        towers = _towers(raw)
        info = BaseInfo(**manifest, text=text, image=image, fingerprint=_sha256(raw), towers=towers)
        _require_known(folder, info)
    except FileNotFoundError:
        raise BaseError(f"{folder}: no BASE.json; this is not a base artefact") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseError(f"{folder}/BASE.json: damaged ({error}); copy the base again") from None
    if expected is not None and info.fingerprint != expected:
        raise BaseError(
            f"{folder}: base {info.fingerprint[:12]}, expected {expected[:12]}; "
            "copy the base that headquarters hands out"
        )
    _verify_files(folder, files)
    return info


def _require_format(folder: Path, version: object) -> None:
    """Asked before any other field is read: another format may have other fields."""
    if version != FORMAT:
        raise BaseError(f"{folder}: base format {version}, this program reads {FORMAT}; update it")


def _require_known(folder: Path, info: BaseInfo) -> None:
    for key, known in (("fusion", FUSIONS), ("distance", DISTANCES)):
        if getattr(info, key) not in known:
            raise BaseError(
                f"{folder}: {key} {getattr(info, key)!r} is not one of {', '.join(known)}; update"
                " this program, or use another base"
            )


def _verify_files(folder: Path, expected: dict[str, str]) -> None:
    found = _files(folder)
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            state = "missing" if name not in found else "changed" if name in expected else "extra"
            raise BaseError(f"{folder}/{name}: {state}; copy the base again")


def _files(folder: Path) -> dict[str, str]:
    names = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in names
        if path != folder / "BASE.json"
    }


def _image_config(fields: dict[str, Any]) -> ImageConfig:
    return ImageConfig(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})


def _towers(raw: bytes) -> str:
    """The fingerprint of the same base with the default fusion and distance."""
    manifest = json.loads(raw)
    if not manifest.keys() & _DEFAULTS.keys():
        return _sha256(raw)
    return _sha256(canonical_json({k: v for k, v in manifest.items() if k not in _DEFAULTS}))


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
