"""An index on disk, and the pointer to the one in use.

    state/indexes/<release>-<catalog digest>/index.faiss   plain FAISS; ids are row numbers
                                             ids.npy       row number -> product id
                                             INDEX.json    what it is, with sha256 of the two
    state/current                                          which of these folders answers

An index is only worth something together with the encoder that made it, so the manifest names that
encoder's digest, and opening an index for another encoder is refused.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import faiss
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from shared.durable import Record, locked, new_folder, replace_file, sha256_file
from shared.errors import RetrievalError
from shared.retrieval.index import FACTORY, METRIC

INDEX_FILES = ("ids.npy", "index.faiss")
_HEX = r"^[0-9a-f]{64}$"


class IndexManifest(Record):
    """INDEX.json: what an index was made from.

    Attributes:
        release: number of the release whose adapter encoded it; 0 is the base alone.
        encoder_digest: of the encoder that made its vectors.
        catalog_digest: of the catalog its rows are.
        num_products: rows.
        dim: D, length of every vector.
        files: sha256 of each file.
        created: when; no other field but the checksum depends on it.
        checksum: sha256 of this record with an empty checksum.
    """

    format: Literal[1] = 1
    release: int = Field(ge=0)
    encoder_digest: str = Field(pattern=_HEX)
    catalog_digest: str = Field(pattern=_HEX)
    num_products: int = Field(ge=1)
    dim: int = Field(ge=1)
    metric: Literal["inner_product"] = METRIC
    factory: str = FACTORY
    files: dict[str, str]
    created: datetime
    checksum: str = ""

    def checked(self) -> "IndexManifest":
        """The same manifest with its right checksum."""
        bare = self.model_copy(update={"checksum": ""})
        checksum = hashlib.sha256(bare.to_bytes()).hexdigest()
        return self.model_copy(update={"checksum": checksum})


class IndexPointer(Record):
    """`state/current`: the index that answers searches.

    Attributes:
        index: name of its folder under `state/indexes`.
        release: number of the release it was made with.
        encoder_digest: of the encoder it was made with.
    """

    index: str = Field(pattern=r"^[0-9]+-[0-9a-f]{12}(-[0-9]+)?$")
    release: int = Field(ge=0)
    encoder_digest: str = Field(pattern=_HEX)


@dataclass(frozen=True)
class OpenIndex:
    """A verified index, in memory.

    Attributes:
        folder: where it was read from.
        index: the FAISS index; its ids are row numbers.
        ids: product id of each row, (N,) of fixed-width text.
        manifest: what INDEX.json says.
    """

    folder: Path
    index: faiss.Index
    ids: NDArray[np.str_]
    manifest: IndexManifest


def write_index_folder(
    parent: Path,
    index: faiss.Index,
    ids: Sequence[str],
    *,
    release: int,
    encoder_digest: str,
    catalog_digest: str,
) -> Path:
    """Write an index beside the others; none of them is touched.

    Args:
        parent: `state/indexes`, made if missing.
        index: from `build_index`.
        ids: product id of each row, N.
        release: number of the release whose adapter encoded it; 0 is the base alone.
        encoder_digest: of the encoder that made its vectors.
        catalog_digest: of the catalog its rows are.

    Returns:
        The new folder, whole and on disk: `<release>-<catalog digest>`, with `-2` and so on after
        it where that name is taken.
    """
    assert index.ntotal == len(ids), "one product id a row"
    with locked(parent):
        final = _free_folder(parent, f"{release}-{catalog_digest[:12]}")
        with new_folder(final) as folder:
            manifest = IndexManifest(
                release=release,
                encoder_digest=encoder_digest,
                catalog_digest=catalog_digest,
                num_products=len(ids),
                dim=index.d,
                files=_write_files(folder, index, ids),
                created=datetime.now(UTC),
            )
            (folder / "INDEX.json").write_bytes(manifest.checked().to_bytes())
    return final


def open_index_folder(folder: Path, *, expected_digest: str | None = None) -> OpenIndex:
    """Read an index and verify every byte of it.

    Args:
        folder: one folder under `state/indexes`.
        expected_digest: encoder digest that the caller's encoder has.

    Returns:
        The index, its product ids and its manifest.

    Raises:
        RetrievalError: missing, damaged, incomplete, or made by another encoder.
    """
    manifest = _read_manifest(folder)
    if expected_digest is not None and manifest.encoder_digest != expected_digest:
        raise RetrievalError(
            f"{folder}: index made by encoder {manifest.encoder_digest[:12]}, this one is"
            f" {expected_digest[:12]}; build the index again with the release in use"
        )
    _verify_files(folder, manifest)
    index = faiss.read_index(str(folder / "index.faiss"))
    ids = np.load(folder / "ids.npy", allow_pickle=False)
    if not index.ntotal == len(ids) == manifest.num_products or index.d != manifest.dim:
        raise _damaged(folder, f"{index.ntotal} vectors for {len(ids)} product ids")
    return OpenIndex(folder, index, ids, manifest)


def read_pointer(state: Path) -> IndexPointer:
    """Which index answers searches.

    Args:
        state: the region's state folder.

    Returns:
        The content of `state/current`.

    Raises:
        RetrievalError: no index has been built yet, or the pointer is damaged.
    """
    path = state / "current"
    try:
        return IndexPointer.from_bytes(path.read_bytes())
    except FileNotFoundError:
        raise RetrievalError(
            f"{path}: not found, so this region has no index yet; pull a release and build one"
        ) from None
    except ValueError as error:
        raise RetrievalError(f"{path}: damaged ({error}); build the index again") from None


def write_pointer(state: Path, folder: Path) -> IndexPointer:
    """Let a verified index answer searches from now on.

    Args:
        state: the region's state folder.
        folder: the index folder, under `state/indexes`.

    Returns:
        What `state/current` now says.
    """
    manifest = _read_manifest(folder)
    pointer = IndexPointer(
        index=folder.name, release=manifest.release, encoder_digest=manifest.encoder_digest
    )
    replace_file(state / "current", pointer.to_bytes())
    return pointer


def open_current_index(state: Path, *, expected_digest: str | None = None) -> OpenIndex:
    """Open the index that answers searches; as `open_index_folder`.

    Args:
        state: the region's state folder.
        expected_digest: encoder digest that the caller's encoder has.

    Returns:
        The index, its product ids and its manifest.

    Raises:
        RetrievalError: no current index, or one that is damaged or made by another encoder.
    """
    pointer = read_pointer(state)
    return open_index_folder(state / "indexes" / pointer.index, expected_digest=expected_digest)


def _free_folder(parent: Path, name: str) -> Path:
    names = [name, *(f"{name}-{number}" for number in range(2, 2 + len(os.listdir(parent))))]
    return next(parent / free for free in names if not (parent / free).exists())


def _write_files(folder: Path, index: faiss.Index, ids: Sequence[str]) -> dict[str, str]:
    faiss.write_index(index, str(folder / "index.faiss"))
    np.save(folder / "ids.npy", np.array(ids, dtype=np.str_), allow_pickle=False)
    return {name: sha256_file(folder / name) for name in INDEX_FILES}


def _read_manifest(folder: Path) -> IndexManifest:
    try:
        raw = (folder / "INDEX.json").read_bytes()
        manifest = IndexManifest.from_bytes(raw)
    except (FileNotFoundError, NotADirectoryError):
        raise RetrievalError(
            f"{folder}: no INDEX.json, so this is no index or half of one; build the index again"
        ) from None
    except ValueError as error:
        raise _damaged(folder, f"INDEX.json: {error}") from None
    if raw != manifest.checked().to_bytes():
        raise _damaged(folder, "INDEX.json is not the file that was written")
    return manifest


def _verify_files(folder: Path, manifest: IndexManifest) -> None:
    for name in INDEX_FILES:
        path = folder / name
        if not path.is_file():
            raise _damaged(folder, f"{name} is missing")
        if sha256_file(path) != manifest.files.get(name):
            raise _damaged(folder, f"{name} is not the file that was written")


def _damaged(folder: Path, found: str) -> RetrievalError:
    return RetrievalError(f"{folder}: index damaged: {found}; build the index again")
