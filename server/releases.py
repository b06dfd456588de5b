"""Write, sign and publish releases: the one thing headquarters hands out.

Writing a release and putting it into use are two steps, because the gate stands between them and
because going back to an older release is only the second one.
"""

import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from shared.durable import locked, new_folder, replace_file, sha256_file, sync
from shared.errors import ReleaseError
from shared.release import (
    MODEL_FILES,
    CurrentRelease,
    ReleaseFacts,
    ReleaseManifest,
    read_current_of_any_age,
    read_release,
)

DEFAULT_VALIDITY = timedelta(days=90)

_CARD = """# Release {manifest.number}

An adapter for product search, trained by federated learning: no catalog, no query and no click of
any region is in it. It belongs to one base and is worth nothing without.

- base fingerprint: `{manifest.base.fingerprint}`
- encoder digest: `{manifest.encoder_digest}`
- parent release: {parent}
- trained: {manifest.rounds} rounds, {manifest.strategy}
- vector lengths: {dims}
{towers}
- `fusion.safetensors`: what is trained of the fusion of text and photo, and the temperature

## Measured quality

{quality}

## Verify and load

MANIFEST.sig is an ed25519 signature, in hex, over the bytes of MANIFEST.json, which holds the
sha256 of every other file. `text/` and `image/` load with plain peft on the plain models above.
"""


def generate_signing_key(path: Path) -> str:
    """Make the ed25519 key that signs releases, readable by its owner alone.

    Args:
        path: where the private key is written, as PKCS 8 in PEM; must not exist.

    Returns:
        The public key in hex, for `base.release_key` of every region.

    Raises:
        ReleaseError: there is a file already; a key is never overwritten.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ReleaseError(f"{path}: there already; use it or choose another file") from None
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(pem)
    sync(path)
    return _public_hex(key)


def public_key_hex(path: Path) -> str:
    """The public key, in hex, that belongs to a signing key.

    Args:
        path: the private key, from `generate_signing_key`.

    Raises:
        ReleaseError: no such file, or not an unencrypted ed25519 key.
    """
    return _public_hex(_load_key(path))


def write_release(
    registry: Path,
    *,
    files: Path,
    facts: ReleaseFacts,
    signing_key: Path,
    former_key: Path | None = None,
) -> int:
    """Write and sign the next release; nothing that exists is touched.

    Args:
        registry: the folder of numbered releases, made if missing.
        files: a folder with text/, image/ and fusion.safetensors, as `Encoder.save_release_files`
            writes them; what else is in it is left behind.
        facts: what the release is.
        signing_key: the private key file.
        former_key: the one before it, which signs too while regions still trust it; None, or a file
            that is not there, if no rotation is going on.

    Returns:
        Its number: one more than the highest there is. It is in use only after `publish_release`.

    Raises:
        ReleaseError: a file is missing, the parent does not exist, a figure is not finite, or the
            key cannot be used. Nothing has been written then.
    """
    keys = _load_keys(signing_key, former_key)
    with locked(registry):
        numbers = _numbers(registry)
        if facts.parent is not None and facts.parent not in numbers:
            raise ReleaseError(f"{registry}: no release {facts.parent} to be the parent; name one")
        number = max(numbers, default=0) + 1
        with new_folder(registry / str(number)) as folder:
            _copy_model(files, folder)
            _write_signed(folder, number, facts, keys)
    return number


def publish_release(
    registry: Path,
    number: int,
    *,
    signing_key: Path,
    former_key: Path | None = None,
    valid_for: timedelta = DEFAULT_VALIDITY,
    now: datetime | None = None,
) -> CurrentRelease:
    """Put a release into use: sign a new `current.json` beside the releases.

    Args:
        registry: the folder of numbered releases.
        number: the release; an older one than now is a rollback.
        signing_key: the private key file.
        former_key: as in `write_release`; a release that only it has signed is signed anew.
        valid_for: how long regions believe the statement.
        now: when it is made; the clock's time by default.

    Returns:
        The statement, its sequence one above the former one's.

    Raises:
        ReleaseError: the release or the former statement is damaged or signed by another key.
    """
    keys = _load_keys(signing_key, former_key)
    with locked(registry):
        _sign_anew(registry / str(number), keys)
        read_release(
            registry / str(number), public_key_hex=_public_hex(keys[0]), expected_number=number
        )
        former = _former(registry, keys)
        sequence = former.sequence + 1 if former else 1
        expiry = (now or datetime.now(UTC)) + valid_for
        current = CurrentRelease(release=number, sequence=sequence, expiry=expiry)
        _replace_current(registry, former, current, keys)
    return current


def sign_registry_anew(registry: Path, *, signing_key: Path, former_key: Path) -> None:
    """Let the new key of a rotation sign everything that the former one has signed.

    Args:
        registry: the folder of numbered releases.
        signing_key: the new private key file.
        former_key: the one before it.

    Raises:
        ReleaseError: a key cannot be used, or the statement in use is damaged. A damaged release is
            left as it is.
    """
    keys = _load_keys(signing_key, former_key)
    with locked(registry):
        for number in sorted(_numbers(registry)):
            _sign_anew(registry / str(number), keys)
        current = _former(registry, keys)
        if current is not None:
            _replace_current(registry, current, current, keys)


def model_card(manifest: ReleaseManifest) -> str:
    """README.md of a release, for people who have nothing but the folder.

    Args:
        manifest: the release's manifest; its file hashes are not shown.

    Returns:
        Markdown.
    """
    towers = [
        f"- `{tower}/`: adapter for `{name}`{_revision(manifest.base.revisions.get(tower))}"
        for tower, name in sorted(manifest.base.ids.items())
    ]
    figures = [f"- {name}: {value}" for name, value in sorted(manifest.quality.items())]
    return _CARD.format(
        manifest=manifest,
        parent=manifest.parent or "none",
        dims=", ".join(f"{name} {value}" for name, value in sorted(manifest.dims.items())),
        towers="\n".join(towers),
        quality="\n".join(figures) or "Not measured.",
    )


def _revision(revision: str | None) -> str:
    return f", revision `{revision}`" if revision else ""


def _public_hex(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def _load_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        raise ReleaseError(
            f"{path}: no signing key there; bring it back to sign, then repeat the command"
        ) from None
    except (ValueError, TypeError):  # TypeError: it is encrypted
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ReleaseError(f"{path}: not an unencrypted ed25519 key in PEM; name the right file")
    return key


def _load_keys(signing_key: Path, former_key: Path | None) -> list[Ed25519PrivateKey]:
    """The key that signs, and the former one while it is there."""
    former = [former_key] if former_key is not None and former_key.is_file() else []
    return [_load_key(path) for path in (signing_key, *former)]


def _signatures(keys: Sequence[Ed25519PrivateKey], statement: bytes) -> str:
    return "".join(f"{key.sign(statement).hex()}\n" for key in keys)


def _sign_anew(folder: Path, keys: Sequence[Ed25519PrivateKey]) -> None:
    """Let every key sign a release that one of them has signed and that is whole."""
    for key in keys:
        try:
            read_release(folder, public_key_hex=_public_hex(key))
        except ReleaseError:
            continue
        raw = (folder / "MANIFEST.json").read_bytes()
        signatures = _signatures(keys, raw).encode("ascii")
        if (folder / "MANIFEST.sig").read_bytes() != signatures:
            replace_file(folder / "MANIFEST.sig", signatures)
        return


def _numbers(registry: Path) -> set[int]:
    return {int(path.name) for path in registry.iterdir() if path.name.isdecimal()}


def _copy_model(files: Path, folder: Path) -> None:
    for name in MODEL_FILES:
        if not (files / name).is_file():
            raise ReleaseError(f"{files / name}: not found; a release needs it, save it again")
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(files / name, folder / name)


def _write_signed(
    folder: Path, number: int, facts: ReleaseFacts, keys: Sequence[Ed25519PrivateKey]
) -> None:
    hashes = {name: sha256_file(folder / name) for name in MODEL_FILES}
    known = {**facts.model_dump(), "number": number, "created": datetime.now(UTC)}
    card = model_card(ReleaseManifest(**known, files=hashes))
    (folder / "README.md").write_text(card, encoding="utf-8")
    hashes["README.md"] = sha256_file(folder / "README.md")
    try:
        raw = ReleaseManifest(**known, files=hashes).to_bytes()
    except ValueError as error:
        raise ReleaseError(f"release {number}: {error}; correct its facts") from None
    (folder / "MANIFEST.json").write_bytes(raw)
    (folder / "MANIFEST.sig").write_text(_signatures(keys, raw), encoding="ascii")


def _former(registry: Path, keys: Sequence[Ed25519PrivateKey]) -> CurrentRelease | None:
    """The statement in use, which any of the keys may have signed."""
    if not (registry / "current.json").exists():
        return None
    failure: ReleaseError | None = None
    for key in keys:
        try:
            return read_current_of_any_age(registry, public_key_hex=_public_hex(key))
        except ReleaseError as error:
            failure = failure or error
    assert failure is not None, "there is a key, and it failed"
    raise failure


def _replace_current(
    registry: Path,
    former: CurrentRelease | None,
    current: CurrentRelease,
    keys: Sequence[Ed25519PrivateKey],
) -> None:
    """Signatures of both first, then the statement: a kill in between leaves the former valid."""
    statements = [one.to_bytes() for one in (current, former) if one]
    lines = "".join(_signatures(keys, statement) for statement in statements)
    replace_file(registry / "current.json.sig", lines.encode("ascii"))
    replace_file(registry / "current.json", current.to_bytes())
