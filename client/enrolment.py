"""How a region joins: its own key, what headquarters handed it, and the base.

    enrolment/ENROLMENT.json  the enrolment file without its token
    enrolment/ca.crt          the one authority this region believes
    enrolment/node.key        this region's private key; made here, never leaves, never overwritten
    enrolment/node.pub        the public half, for headquarters
    base/                     fetched from headquarters, or copied
    state/                    empty yet
    region.toml               written if there is none

A SuperNode's and a ClientApp's user must reach the worker's socket below this folder and nothing
else of it. So a folder that is made here can be entered by all and listed by its owner alone, and
everything made in it is its owner's alone.

The base is large and its sender need not be believed: its fingerprint is in the enrolment file, and
BASE.json, which that fingerprint is of, lists the sha256 of everything else.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_ssh_private_key,
)

from client.download import Download
from shared.durable import canonical_json, locked, new_folder, replace_file
from shared.enrolment import (
    MAX_ENROLMENT_BYTES,
    Enrolment,
    KeyProof,
    key_fingerprint,
    openssh_line,
    prove,
    token_digest,
)
from shared.errors import BaseError, ConfigError, FederationError
from shared.release import SAFE_NAME
from shared.schema import (
    BaseConfig,
    HeadquartersConfig,
    RegionConfig,
    load_region_config,
    render_region_toml,
)

MAX_BASE_JSON_BYTES = 2**20
MAX_BASE_BYTES = 8 * 2**30
SILENCE_S = 30.0  # longest wait for the next byte
FETCH_LIMIT_S = 4 * 3600.0  # for the whole base, however slowly its bytes drip
_SHA256 = re.compile(r"[0-9a-f]{64}")
_INSTEAD = "try again, or copy the base from headquarters and pass --base FOLDER"


@dataclass(frozen=True)
class EnrolledRegion:
    """What a region has after it enrolled.

    Attributes:
        config: its `region.toml`.
        public_key: the file to hand to headquarters.
        public_line: that file's one line.
        key_fingerprint: what `ssh-keygen -l` prints of the key.
        expires: headquarters must admit the key by then.
    """

    config: RegionConfig
    public_key: Path
    public_line: str
    key_fingerprint: str
    expires: datetime


def enrol(
    folder: Path, file: Path, *, base: Path | None = None, now: datetime | None = None
) -> EnrolledRegion:
    """Enrol this region; harmless if repeated, for its key is made once.

    Args:
        folder: the region's folder, made if missing.
        file: the enrolment file from headquarters.
        base: a copy of the base; by default it is fetched from headquarters.
        now: time to hold the file's expiry against; the clock's by default.

    Returns:
        What the region has now.

    Raises:
        ConfigError: not an enrolment file, or `region.toml` says otherwise; nothing is written.
        FederationError: the file has expired; nothing is written.
        BaseError: the base cannot be had, or is not the one that the file names.
    """
    enrolment = _read_enrolment(file, now or datetime.now(UTC))
    config = _agreed_config(folder, enrolment)
    with _private(folder):
        proof = _write_credentials(folder / "enrolment", enrolment)
        _provide_base(folder, config, enrolment, base)
        (folder / config.state).mkdir(parents=True, exist_ok=True)
        if not (folder / "region.toml").exists():
            replace_file(folder / "region.toml", render_region_toml(config).encode())
    return EnrolledRegion(
        config=config,
        public_key=folder / "enrolment" / "node.pub",
        public_line=proof.to_line().strip(),
        key_fingerprint=key_fingerprint(proof.public_key),
        expires=enrolment.expires,
    )


def fetch_base(
    address: str, *, ca: Path, fingerprint: str, target: Path, max_bytes: int = MAX_BASE_BYTES
) -> None:
    """Fetch the base from headquarters and verify it; it appears whole or not at all.

    Args:
        address: "host:port" of headquarters.
        ca: the one authority to believe there, PEM.
        fingerprint: what the base must have.
        target: where it shall be; must not exist. Hold `locked(target.parent)`.
        max_bytes: more than this, of all files together, is refused while it arrives.

    Raises:
        BaseError: headquarters cannot be reached, is another one, or sends anything but this base.
    """
    from shared.encoders.base import read_base  # torch, which asking for a file does not need

    place = f"https://{address}/base"
    with (
        Download(
            place,
            ca,
            silence_s=SILENCE_S,
            limit_s=FETCH_LIMIT_S,
            error=BaseError,
            advice=_INSTEAD,
        ) as download,
        new_folder(target) as made,
    ):
        left = max_bytes - _fetch(download, "BASE.json", made, fingerprint, MAX_BASE_JSON_BYTES)
        for name, digest in sorted(_listed(made / "BASE.json", place).items()):
            left -= _fetch(download, name, made, digest, left)
        read_base(made, expected=fingerprint)


def _fetch(download: Download, name: str, folder: Path, digest: str, max_bytes: int) -> int:
    """Fetch one file into a folder; returns its length once its sha256 is right."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    found = download.fetch(name, max_bytes, path)
    if found != digest:
        url = f"{download.place}/{name}"
        raise BaseError(f"{url}: sha256 {found[:12]}, expected {digest[:12]}; {_INSTEAD}")
    return path.stat().st_size


def _listed(path: Path, place: str) -> dict[str, str]:
    """The files that BASE.json lists, with their sha256; none may lie outside the base."""
    try:
        files = json.loads(path.read_bytes())["files"]
        _require_names(files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseError(
            f"{place}/BASE.json: damaged ({error}); headquarters must hand out another base"
        ) from None
    return dict(files)


def _require_names(files: dict[str, str]) -> None:
    for name, digest in files.items():
        folders = {str(folder) for folder in PurePosixPath(name).parents}
        if not SAFE_NAME.fullmatch(name) or name == "BASE.json" or folders & files.keys():
            raise ValueError(f"{name!r} is not a file name a base may hold")
        if not _SHA256.fullmatch(digest):
            raise ValueError(f"{name}: {digest!r} is not a sha256")


@contextmanager
def _private(folder: Path) -> Iterator[None]:
    """Make a folder that all may enter, if there is none; what is made inside is private."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    before = os.umask(0o077)
    try:
        if not folder.exists():
            folder.mkdir()
            folder.chmod(0o711)
        yield
    finally:
        os.umask(before)


def _read_enrolment(file: Path, now: datetime) -> Enrolment:
    try:
        with file.open("rb") as handle:
            raw = handle.read(MAX_ENROLMENT_BYTES + 1)
        if len(raw) > MAX_ENROLMENT_BYTES:
            raise ValueError("far too long")
        enrolment = Enrolment.from_bytes(raw)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"{file}: {reason}; expected an enrolment file, ask headquarters for one"
        ) from None
    if now > enrolment.expires:
        raise FederationError(
            f"{file}: this invitation expired on {enrolment.expires:%Y-%m-%d}; ask headquarters for"
            " a new one"
        )
    return enrolment


def _agreed_config(folder: Path, enrolment: Enrolment) -> RegionConfig:
    """The region's own `region.toml`, which must agree with the enrolment file, or a new one."""
    fresh = RegionConfig(
        region=enrolment.region,
        base=BaseConfig(
            path="base",
            fingerprint=enrolment.base_fingerprint,
            release_key=enrolment.release_key,
            releases=f"https://{enrolment.address}/releases",
        ),
        headquarters=HeadquartersConfig(address=enrolment.address),
    )
    if not (folder / "region.toml").exists():
        return fresh
    config = load_region_config(folder)
    found, expected = _shared_settings(config), _shared_settings(fresh)
    for key, value in expected.items():
        if found[key] != value:
            has = "is not set" if found[key] is None else f'is "{found[key]}"'
            raise ConfigError(
                f'{folder / "region.toml"}: {key} {has}, the enrolment file has "{value}"; set it'
                " to that, or enrol in another folder"
            )
    return config


def _shared_settings(config: RegionConfig) -> dict[str, str | None]:
    """What `region.toml` and an enrolment file must agree on, by key."""
    base, headquarters = config.base, config.headquarters
    return {
        "region": config.region,
        "base.fingerprint": base.fingerprint,
        "base.release_key": base.release_key,
        "base.releases": base.releases,
        "headquarters.address": headquarters.address if headquarters else None,
        "headquarters.ca": headquarters.ca if headquarters else None,
        "headquarters.key": headquarters.key if headquarters else None,
    }


def _write_credentials(folder: Path, enrolment: Enrolment) -> KeyProof:
    with locked(folder):
        key = _own_key(folder / "node.key")
        public = openssh_line(key.public_key())
        digest = token_digest(enrolment.token)
        proof = KeyProof(
            region=enrolment.region,
            public_key=public,
            proof=prove(digest, region=enrolment.region, public_key=public),
        )
        kept = enrolment.model_dump(mode="json", exclude={"token"})
        replace_file(folder / "ENROLMENT.json", canonical_json(kept))
        replace_file(folder / "ca.crt", enrolment.ca_pem.encode())
        replace_file(folder / "node.pub", proof.to_line().encode())
    return proof


def _own_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The region's private key, made if there is none, in the form that Flower loads."""
    if not path.exists():
        fresh = ec.generate_private_key(ec.SECP384R1())
        pem = fresh.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        replace_file(path, pem, private=True)
    try:
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError):  # TypeError: it is encrypted
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp384r1":
        raise ConfigError(
            f"{path}: not an unencrypted OpenSSH key of type ecdsa-sha2-nistp384; move it away and"
            " enrol again"
        )
    return key


def _provide_base(
    folder: Path, config: RegionConfig, enrolment: Enrolment, base: Path | None
) -> None:
    """Have the base at the place that `region.toml` names: there already, copied or fetched."""
    from shared.encoders.base import read_base

    target, expected = folder / config.base.path, enrolment.base_fingerprint
    with locked(target.parent):
        if target.exists():
            read_base(target, expected=expected)
        elif base is None:
            ca = folder / "enrolment" / "ca.crt"
            fetch_base(enrolment.address, ca=ca, fingerprint=expected, target=target)
        else:
            read_base(base, expected=expected)
            with new_folder(target) as made:
                shutil.copytree(base, made, copy_function=shutil.copyfile, dirs_exist_ok=True)
                made.chmod(0o700)  # as its source is, otherwise
                read_base(made, expected=expected)  # the copy: its source may have changed
