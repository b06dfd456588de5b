"""A headquarters folder: everything a federation's headquarters owns, in one place.

    server.toml               name, address that regions connect to
    tls/                      certificate authority, server certificate
    signing.key, signing.pub  the release signer's key pair
    base/                     the base artefact
    public/base, public/releases   what everybody who trusts the authority may fetch
    regions.json              who is invited, admitted, revoked; see `server.enrolment`
    trainings/, flower/, nginx/, logs/, audit.jsonl

`signing.key` signs releases and is needed for nothing else. Moved to another medium it is safe from
whoever breaks into headquarters; the folder opens without it.
"""

import json
import os
import re
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from server.authority import issue_server_certificate, make_authority
from server.releases import generate_signing_key, public_key_hex, sign_registry_anew
from shared.durable import Record, locked, new_folder, replace_file, sha256_file
from shared.enrolment import Hex32, key_fingerprint
from shared.errors import ConfigError
from shared.schema import Address

DEFAULT_SUPERLINK_PORT = 19092  # below the range from which systems lend ports
_HEX32 = re.compile(r"[0-9a-f]{64}\n?")
_EMPTY_FOLDERS = ("public/releases", "trainings", "flower", "nginx", "logs")
_TOML = """# A fedshelf headquarters. Paths and keys are fixed by the folder's layout.
name = {name}
address = {address}  # host:port that regions connect to
superlink_port = {port}  # Flower's own, on loopback only
"""


class ServerConfig(BaseModel):
    """`server.toml`: what headquarters' operator decides."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,62}$")
    address: Address
    superlink_port: int = Field(default=DEFAULT_SUPERLINK_PORT, ge=1, le=65535)

    @property
    def host(self) -> str:
        """The public address without its port."""
        return self.address.rpartition(":")[0]

    @property
    def port(self) -> int:
        """The port of the public address."""
        return int(self.address.rpartition(":")[2])

    @model_validator(mode="after")
    def _two_ports(self) -> Self:
        if self.port == self.superlink_port:
            raise ValueError(f"superlink_port is {self.port}, the port of address; choose another")
        return self


class RegionRecord(Record):
    """What headquarters knows of one region.

    Attributes:
        state: "invited" until its key is admitted, "revoked" until it is invited again.
        invited: when.
        expires: an invitation is no good after this.
        token_sha256: of the invitation's token; None once it is used or withdrawn.
        public_key: type and key as OpenSSH writes them; None until admitted.
        node_id: Flower's number for it; None until it is registered there.
        admitted: when.
        revoked: when.
        revoked_keys: its keys of former times. Flower takes no key a second time, nor do we.
    """

    state: Literal["invited", "admitted", "revoked"]
    invited: AwareDatetime
    expires: AwareDatetime
    token_sha256: Hex32 | None = Field(default=None, repr=False)
    public_key: str | None = None
    node_id: int | None = None
    admitted: AwareDatetime | None = None
    revoked: AwareDatetime | None = None
    revoked_keys: tuple[str, ...] = ()

    @property
    def key_fingerprint(self) -> str | None:
        """What `ssh-keygen -l` prints of its key."""
        return key_fingerprint(self.public_key) if self.public_key else None


class RegionList(Record):
    """regions.json.

    Attributes:
        regions: by name.
    """

    format: Literal[1] = 1
    regions: dict[str, RegionRecord] = Field(default_factory=dict)


@dataclass(frozen=True)
class Headquarters:
    """An open headquarters folder.

    Attributes:
        folder: where it is.
        config: `server.toml`.
        fingerprint: of the base that all regions work with.
        release_key: ed25519 public key of the release signer, hex.
    """

    folder: Path
    config: ServerConfig
    fingerprint: str
    release_key: str

    @property
    def tls(self) -> Path:
        """Folder of the authority and the server certificate."""
        return self.folder / "tls"

    @property
    def ca_certificate(self) -> Path:
        """What regions believe."""
        return self.tls / "ca.crt"

    @property
    def server_certificate(self) -> Path:
        """What headquarters shows."""
        return self.tls / "server.crt"

    @property
    def server_key(self) -> Path:
        """The private key of the server certificate."""
        return self.tls / "server.key"

    @property
    def signing_key(self) -> Path:
        """The release signer's private key; need not be there unless a release is written."""
        return self.folder / "signing.key"

    @property
    def former_signing_key(self) -> Path:
        """The key before the last rotation, while regions still trust it."""
        return self.folder / "signing.former.key"

    @property
    def base(self) -> Path:
        """The base artefact."""
        return self.folder / "base"

    @property
    def public(self) -> Path:
        """What is served to everybody."""
        return self.folder / "public"

    @property
    def releases(self) -> Path:
        """The release registry, served as it is."""
        return self.public / "releases"

    @property
    def regions(self) -> Path:
        """Who is invited, admitted, revoked."""
        return self.folder / "regions.json"

    @property
    def trainings(self) -> Path:
        """Numbered trainings."""
        return self.folder / "trainings"

    @property
    def adapters(self) -> Path:
        """The adapter of each release, for the gate and for going on."""
        return self.folder / "adapters"

    @property
    def matrices(self) -> Path:
        """Numbered cross-site tables."""
        return self.folder / "matrices"

    @property
    def flower(self) -> Path:
        """State of Flower's processes."""
        return self.folder / "flower"

    @property
    def nginx(self) -> Path:
        """Configuration and state of the public side."""
        return self.folder / "nginx"

    @property
    def logs(self) -> Path:
        """Logs of all processes."""
        return self.folder / "logs"

    @property
    def audit(self) -> Path:
        """The audit log."""
        return self.folder / "audit.jsonl"


def init_headquarters(
    folder: Path,
    *,
    name: str,
    address: str,
    base: Path | None = None,
    preset: str | None = None,
    signing_key: Path | None = None,
    superlink_port: int = DEFAULT_SUPERLINK_PORT,
) -> Headquarters:
    """Make a headquarters folder, whole or not at all.

    Args:
        folder: where it shall be; must not exist, or be empty.
        name: of the federation, for people.
        address: "host:port" that regions connect to; the certificate is issued for this host.
        base: a base artefact to copy; or give `preset`.
        preset: of a base to make, where that needs no data.
        signing_key: a key kept elsewhere, of which only the public half is noted; by default a new
            one is made in the folder.
        superlink_port: of Flower's SuperLink, on loopback.

    Returns:
        The open folder.

    Raises:
        ConfigError: the folder is in use, or an argument is wrong.
        BaseError: the base is damaged, or cannot be made.
        ReleaseError: `signing_key` is not one.
    """
    folder = folder.resolve()
    config = _server_config(
        "server.toml", {"name": name, "address": address, "superlink_port": superlink_port}
    )
    _require_free(folder)
    source = _base_source(base, preset)
    with _made_beside(folder) as made:
        make_authority(made / "tls")
        issue_server_certificate(made / "tls", [config.host])
        _write_release_key(made, signing_key)
        _copy_base(source, made)
        for empty in _EMPTY_FOLDERS:
            (made / empty).mkdir()
        _make_readable(made, made / "public")
        replace_file(made / "regions.json", RegionList().to_bytes(), private=True)
        replace_file(made / "server.toml", _render(config).encode())
    return open_headquarters(folder)


def open_headquarters(folder: Path) -> Headquarters:
    """Open a headquarters folder; the private signing key need not be there.

    Args:
        folder: made by `init_headquarters`.

    Returns:
        The folder with its configuration. The base's bytes are not read again: they were verified
        when they were copied here, and every region verifies what it fetches.

    Raises:
        ConfigError: not a headquarters folder, or a file of it is missing or wrong.
    """
    folder = folder.resolve()
    path = folder / "server.toml"
    try:
        config = _server_config(str(path), tomllib.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{folder}: no server.toml, so not a headquarters folder; make one with"
            ' "fedshelf server init DIR"'
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    for needed in ("tls/ca.crt", "signing.pub", "base/BASE.json", "regions.json"):
        if not (folder / needed).is_file():
            raise ConfigError(f"{folder / needed}: missing; restore it from a copy of the folder")
    return Headquarters(
        folder=folder,
        config=config,
        fingerprint=sha256_file(folder / "base" / "BASE.json"),
        release_key=_read_release_key(folder / "signing.pub"),
    )


def rotate_signing_key(folder: Path) -> str:
    """Begin a rotation: a new signing key beside the former one.

    Regions trust the key they were enrolled with. So until each has been given the new one,
    everything is signed with both (`signing.key` and `signing.former.key`), the releases that are
    there included; after that, remove the former key and the rotation is over. A rotation that was
    cut off is completed.

    Args:
        folder: of headquarters, with `signing.key` back in place.

    Returns:
        The new public key in hex.

    Raises:
        ReleaseError: the signing key is not there.
        ConfigError: the former rotation is not over.
    """
    key, former = folder / "signing.key", folder / "signing.former.key"
    with locked(folder):
        public = public_key_hex(key)
        if not former.exists():
            os.link(key, former)
        if public_key_hex(former) == public:
            fresh = folder / ".signing.key.partial"
            public = generate_signing_key(fresh)
            os.replace(fresh, key)
        elif _read_release_key(folder / "signing.pub") == public:
            raise ConfigError(
                f"{former}: there already; enrol every region again with the new key, then remove"
                " this file"
            )
        sign_registry_anew(folder / "public/releases", signing_key=key, former_key=former)
        replace_file(folder / "signing.pub", f"{public}\n".encode())
    return public


def _server_config(where: str, values: dict[str, object]) -> ServerConfig:
    try:
        return ServerConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = f"{key}: {first['msg']}" if key else first["msg"]
        raise ConfigError(f"{where}: {message}; correct or remove this key") from None


def _render(config: ServerConfig) -> str:
    name, address = json.dumps(config.name), json.dumps(config.address)
    return _TOML.format(name=name, address=address, port=config.superlink_port)


def _require_free(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(
            f"{folder}: in use already, and nothing is overwritten; name a new folder"
        )


@contextmanager
def _made_beside(folder: Path) -> Iterator[Path]:
    """As `new_folder`, without the lock of a parent folder that is not ours to sweep."""
    beside = folder.with_name(f".{folder.name}.partial")
    if beside.exists():
        raise ConfigError(f"{beside}: an init is running, or was cut off; remove it if none is")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            folder.rmdir()  # empty
        with new_folder(folder) as made:
            yield made
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{folder}: cannot be made ({reason}); name another folder") from None


def _base_source(base: Path | None, preset: str | None) -> Path:
    """A verified base artefact to copy from."""
    from shared.encoders.base import read_base  # torch, which opening a folder does not need
    from shared.encoders.presets import find_preset, make_base
    from shared.encoders.public import PublicSlice

    if base is not None and preset is None:
        read_base(base)
        return base
    if preset is None or base is not None:
        raise ConfigError("headquarters needs a base; give either --base FOLDER or --preset NAME")
    recipe = find_preset(preset)
    if recipe.align is not None:
        raise ConfigError(
            f'preset "{preset}" is aligned on public photos, which headquarters does not have; run'
            ' "fedshelf simulate", which makes one under RUN/base, and pass --base RUN/base'
        )
    return make_base(recipe, PublicSlice([], []), seed=0)[0]


def _copy_base(source: Path, made: Path) -> None:
    """Copy a base into the folder, and once more by name into what is served."""
    from shared.encoders.base import read_base

    shutil.copytree(source, made / "base", copy_function=shutil.copyfile)
    read_base(made / "base")  # the copy: its source may have changed meanwhile
    shutil.copytree(made / "base", made / "public" / "base", copy_function=os.link)


def _make_readable(made: Path, public: Path) -> None:
    """Let the web server's user read what is served, whatever this user's umask is."""
    made.chmod(0o755)
    for path in [public, *public.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def _write_release_key(made: Path, signing_key: Path | None) -> None:
    if signing_key is None:
        public = generate_signing_key(made / "signing.key")
    else:
        public = public_key_hex(signing_key)
    replace_file(made / "signing.pub", f"{public}\n".encode())


def _read_release_key(path: Path) -> str:
    text = path.read_bytes().decode("ascii", errors="replace")
    if not _HEX32.fullmatch(text):
        raise ConfigError(f"{path}: not an ed25519 public key of 64 hex digits; restore it")
    return text.strip()
