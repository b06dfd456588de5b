"""Files and folders that are either wholly there or not there at all, and records in them.

Releases, indexes and the pointers to them must survive a kill at any instant. The recipe is the
same everywhere, so it stands once: write beside under a hidden name, fsync, rename. Whatever a
killed writer left under such a name is removed by the next writer who takes the folder's lock.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, ValidationError

_PARTIAL = ".partial"


def canonical_json(value: Any) -> bytes:
    """One byte string for one JSON value: sorted keys, two-space indent, UTF-8, final newline.

    Args:
        value: what `json.dumps` takes; NaN and infinities are refused.

    Returns:
        The bytes to write, hash or sign.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot say.
    """
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8")


class Record(BaseModel):
    """One JSON file on disk: never changed once made, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_bytes(self) -> bytes:
        """The file's bytes, as canonical JSON.

        Raises:
            ValueError: a number in it is NaN or infinite.
        """
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: not such a record; one line that names the first wrong key.
        """
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"{key}: {first['msg']}" if key else first["msg"]) from None


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in blocks."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Force a file's or folder's bytes to disk (a rename is only durable after that)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes, *, private: bool = False, durable: bool = True) -> None:
    """Write a file so that every reader, and every kill, sees the old bytes or the new.

    Args:
        path: the file; its folder exists.
        data: its whole new content.
        private: for a secret; at no instant can anyone but the owner read it.
        durable: whether it must survive a power failure too. Without, such a failure may leave the
            file empty: only for what is checked by a digest when read, and can be done without.
    """
    partial = path.with_name(f".{path.name}.{uuid4().hex}{_PARTIAL}")
    try:
        mode = 0o600 if private else 0o666  # the latter less the umask, as ever
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(data)
        if durable:
            sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    if durable:
        sync(path.parent)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's writer lock, made free by the kernel if its holder dies.

    Args:
        folder: made if missing. Leftovers of killed writers in it are removed.

    Yields:
        Nothing; the lock is held inside the `with`. It is not reentrant.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for leftover in folder.glob(f".*{_PARTIAL}"):
            _remove(leftover)
        yield


@contextmanager
def new_folder(final: Path, *, durable: bool = True) -> Iterator[Path]:
    """Fill a folder beside its final place, then rename it there in one step.

    Args:
        final: where it shall appear; must not exist. Hold `locked(final.parent)`.
        durable: as in `replace_file`.

    Yields:
        An empty folder to fill; if the block raises, it is removed and `final` never appears.
    """
    assert not final.exists(), "a folder is written once; the caller chooses a free name"
    partial = final.with_name(f".{final.name}{_PARTIAL}")
    partial.mkdir()
    try:
        yield partial
        if durable:
            for path in [*partial.rglob("*"), partial]:
                sync(path)
        os.rename(partial, final)
    except BaseException:
        _remove(partial)
        raise
    if durable:
        sync(final.parent)


def set_aside(folder: Path) -> None:
    """Take a damaged folder out of the way; the next writer who takes the lock removes it.

    Args:
        folder: the damaged folder. Hold `locked(folder.parent)`.
    """
    os.rename(folder, folder.with_name(f".{folder.name}.{uuid4().hex}{_PARTIAL}"))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
