"""Where releases come from: a folder, or headquarters' https address; both give files by name.

Nothing that a source gives is believed before `client.indexing` has verified it.
"""

import hashlib
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from shared.errors import ConfigError, ReleaseError
from shared.schema import RegionConfig

_BLOCK = 2**20


class ReleaseSource(Protocol):
    """Gives files by name."""

    @property
    def place(self) -> str:
        """Where that is, for people."""

    def fetch(self, name: str, max_bytes: int, target: Path) -> str:
        """Write one file to `target`; returns its sha256. More bytes are a ReleaseError."""


class FolderSource:
    """Releases in a folder that this machine can read.

    Args:
        folder: holds `current.json` and the numbered releases.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def place(self) -> str:
        """The folder."""
        return str(self._folder)

    def fetch(self, name: str, max_bytes: int, target: Path) -> str:
        """Copy one file, at most `max_bytes` long.

        Returns:
            Hex sha256 of what was copied.

        Raises:
            ReleaseError: no such file, or a longer one.
        """
        path = self._folder / name
        if not path.is_file():
            raise ReleaseError(f"{path}: not found; copy the release from headquarters again")
        seen, length = hashlib.sha256(), 0
        with path.open("rb") as source, target.open("wb") as handle:
            while block := source.read(_BLOCK):
                length += len(block)
                if length > max_bytes:
                    raise ReleaseError(
                        f"{path}: longer than the {max_bytes} bytes left for it; ask headquarters,"
                        " or raise publication.max_release_bytes"
                    )
                seen.update(block)
                handle.write(block)
        return seen.hexdigest()


def open_source(folder: Path, config: RegionConfig) -> AbstractContextManager[ReleaseSource]:
    """The place that `base.releases` names.

    Args:
        folder: the region's folder.
        config: its `region.toml`.

    Returns:
        A context manager that gives the source.

    Raises:
        ConfigError: an address that is not https, or no authority to believe there.
    """
    releases = config.base.releases
    if "://" not in releases:
        return nullcontext(FolderSource(folder / releases))
    if config.headquarters is None:
        raise ConfigError(
            f"{folder / 'region.toml'}: base.releases is an address, but there is no"
            " [headquarters], so nobody to believe there; enrol this region"
        )
    from client.download import Download

    return Download(releases, folder / config.headquarters.ca)
