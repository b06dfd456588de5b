"""What a release is on disk, and how to tell that one is whole, unchanged and ours.

    releases/current.json      which release is in use: number, sequence, expiry
    releases/current.json.sig  ed25519 over current.json
    releases/1/MANIFEST.json   what it is, sha256 of every other file
    releases/1/MANIFEST.sig    ed25519 over MANIFEST.json
    releases/1/README.md       model card
    releases/1/text/           adapter_config.json, adapter_model.safetensors: plain peft
    releases/1/image/          the same for the image tower
    releases/1/fusion.safetensors

The signature is checked before a single field is believed; after it, every file must be there with
the hash the manifest names, and no other file. A signature file holds one signature or more, in
hex, a line each; one that holds is enough. (Two files cannot be replaced in one step, so while
`current.json` is replaced its signature file holds the old one's signature and the new one's.)
"""

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import AwareDatetime, Field, JsonValue, field_validator

from shared.durable import Record, sha256_file
from shared.errors import ReleaseError

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MODEL_FILES = (
    *(f"{tower}/{name}" for tower in ("text", "image") for name in ADAPTER_FILES),
    "fusion.safetensors",
)
_SIGNED = ("MANIFEST.json", "MANIFEST.sig")
_SIGNATURES = re.compile(r"([0-9a-f]{128}\n)+")
SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_COPY_AGAIN = "copy the release from headquarters again"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ReleaseBase(Record):
    """The base a release's adapter belongs to.

    Attributes:
        fingerprint: of the base artefact.
        ids: where each tower's plain model is found, by tower.
        revisions: the pinned revision of each, None where an id alone says it.
    """

    fingerprint: Sha256
    ids: dict[str, str]
    revisions: dict[str, str | None] = Field(default_factory=dict)


class ReleaseFacts(Record):
    """What the maker of a release knows; writing it adds number, time and file hashes.

    Attributes:
        parent: number of the release it was trained from, None for the first.
        base: the base it belongs to.
        dims: lengths of the vectors, by name.
        pooling: how each tower pools; and the base's fusion and distance, where they are not the
            defaults.
        preprocessing: what happens to text and photos before the towers.
        encoder_digest: of base and adapter together.
        rounds: rounds trained since the parent.
        strategy: how the updates were averaged.
        quality: measured figures; regions by number unless they agreed to be named.
        privacy: what was spent.
    """

    parent: int | None = Field(default=None, ge=1)
    base: ReleaseBase
    dims: dict[str, int]
    pooling: dict[str, str] = Field(default_factory=dict)
    preprocessing: dict[str, JsonValue] = Field(default_factory=dict)
    encoder_digest: Sha256
    rounds: int = Field(ge=0)
    strategy: str
    quality: dict[str, JsonValue] = Field(default_factory=dict)
    privacy: dict[str, JsonValue] = Field(default_factory=dict)


class ReleaseManifest(ReleaseFacts):
    """MANIFEST.json.

    Attributes:
        number: 1, 2, ...
        created: when it was written; the encoder digest does not depend on it.
        files: sha256 of every file but the manifest and its signature.
    """

    format: Literal[1] = 1
    number: int = Field(ge=1)
    created: AwareDatetime
    files: dict[str, Sha256]

    @field_validator("files")
    @classmethod
    def _names_stay_inside(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files:
            if not SAFE_NAME.fullmatch(name) or name in _SIGNED:
                raise ValueError(f"{name!r} is not a file name a release may hold")
        if missing := set(MODEL_FILES) - files.keys():
            raise ValueError(f"{min(missing)} is not listed")
        return files


class CurrentRelease(Record):
    """current.json: which release is in use; an older statement has a lower sequence.

    Attributes:
        release: its number.
        sequence: grows by one with every statement, also with one that goes back to an old release.
        expiry: regions believe it no longer than this.
    """

    release: int = Field(ge=1)
    sequence: int = Field(ge=1)
    expiry: AwareDatetime


def read_release(
    folder: Path, *, public_key_hex: str, expected_number: int | None = None
) -> ReleaseManifest:
    """Read a release's manifest and verify the release, every byte of it.

    Args:
        folder: the release.
        public_key_hex: ed25519 public key of the release signer, 64 hex digits.
        expected_number: the number it must have, if one is agreed.

    Returns:
        Its manifest.

    Raises:
        ReleaseError: unsigned, signed by another key, damaged, half-written, or another one.
    """
    raw = read_signed(folder / "MANIFEST.json", folder / "MANIFEST.sig", public_key_hex)
    try:
        manifest = ReleaseManifest.from_bytes(raw)
    except ValueError as error:
        raise ReleaseError(f"{folder}/MANIFEST.json: {error}; {_COPY_AGAIN}") from None
    if expected_number is not None and manifest.number != expected_number:
        raise ReleaseError(
            f"{folder}: holds release {manifest.number}, expected {expected_number}; {_COPY_AGAIN}"
        )
    _verify_files(folder, manifest)
    return manifest


def read_current(
    releases: Path, *, public_key_hex: str, now: datetime | None = None
) -> CurrentRelease:
    """Which release headquarters says is in use.

    Args:
        releases: the folder that holds the numbered releases and `current.json`.
        public_key_hex: ed25519 public key of the release signer, 64 hex digits.
        now: time to hold the expiry against; the clock's by default.

    Returns:
        The signed statement.

    Raises:
        ReleaseError: nothing published, not signed by this key, damaged or expired.
    """
    current = read_current_of_any_age(releases, public_key_hex=public_key_hex)
    if (now or datetime.now(UTC)) > current.expiry:
        raise ReleaseError(
            f"{releases}/current.json: expired on {current.expiry:%Y-%m-%d}; fetch a newer one, or"
            " let headquarters publish again"
        )
    return current


def read_current_of_any_age(releases: Path, *, public_key_hex: str) -> CurrentRelease:
    """As `read_current`, but an expired statement will do (to count its sequence on)."""
    path = releases / "current.json"
    raw = read_signed(path, releases / "current.json.sig", public_key_hex)
    try:
        return CurrentRelease.from_bytes(raw)
    except ValueError as error:
        raise ReleaseError(f"{path}: {error}; {_COPY_AGAIN}") from None


def read_signed(path: Path, signatures: Path, public_key_hex: str) -> bytes:
    """The bytes of a file, once one of its signatures holds for them.

    Args:
        path: the file.
        signatures: one signature or more over it, in hex, a line each.
        public_key_hex: ed25519 public key of the release signer, 64 hex digits.

    Raises:
        ReleaseError: either is missing, or no signature holds.
    """
    key = _public_key(public_key_hex)
    for needed in (path, signatures):
        if not needed.is_file():
            raise ReleaseError(f"{needed}: not found, so nothing here is signed; {_COPY_AGAIN}")
    raw = path.read_bytes()
    lines = signatures.read_bytes().decode("ascii", errors="replace")
    if not _SIGNATURES.fullmatch(lines) or not any(_holds(key, one, raw) for one in lines.split()):
        raise ReleaseError(
            f"{path}: no signature in {signatures.name} is that of key {public_key_hex[:12]} over"
            f" these bytes; {_COPY_AGAIN}, or correct base.release_key"
        )
    return raw


def _public_key(public_key_hex: str) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key_hex))
    except ValueError:
        raise ReleaseError(
            f"release key {public_key_hex[:12]!r} is not an ed25519 public key of 64 hex digits;"
            " ask headquarters for it"
        ) from None


def _holds(key: Ed25519PublicKey, signature_hex: str, raw: bytes) -> bool:
    try:
        key.verify(bytes.fromhex(signature_hex), raw)
    except InvalidSignature:
        return False
    return True


def _verify_files(folder: Path, manifest: ReleaseManifest) -> None:
    found = _files_in(folder)
    expected = {*manifest.files, *_SIGNED}
    for name in sorted(found ^ expected):
        state = "missing" if name in expected else "not part of the release"
        raise ReleaseError(f"{folder}/{name}: {state}; {_COPY_AGAIN}")
    for name, digest in sorted(manifest.files.items()):
        if sha256_file(folder / name) != digest:
            raise ReleaseError(f"{folder}/{name}: not the file that was signed; {_COPY_AGAIN}")


def _files_in(folder: Path) -> set[str]:
    """Names of all files under a folder; a link is refused, wherever it leads."""
    names: set[str] = set()
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink():
                raise ReleaseError(f"{path}: a link; a release holds plain files; {_COPY_AGAIN}")
        names.update(Path(place, name).relative_to(folder).as_posix() for name in files)
    return names
