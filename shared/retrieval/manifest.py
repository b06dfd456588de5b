"""An index on disk, and the pointer to the one in use.

    state/indexes/<release>-<catalog digest>/index.faiss   plain FAISS; ids are row numbers
                                             ids.npy       row number -> product id
                                             digests.npy   what each product was then
                                             vectors.npy   whole vectors, beside coded ones only
                                             lexical/      tantivy's files; nothing changes them
                                             INDEX.json    what it is, with sha256 of the others
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
from shared.retrieval.hybrid import DEFAULT_DENSE_WEIGHT, Tuned
from shared.retrieval.index import distance_of
from shared.retrieval.lexical import LexicalDocument, LexicalIndex
from shared.retrieval.recall import RecallReport
from shared.retrieval.vectors import VectorIndex

INDEX_FILES = ("digests.npy", "ids.npy", "index.faiss")
LEXICAL, MATRIX = "lexical", "vectors.npy"
REBUILD = 'build the index again: "fedshelf region serve" and "fedshelf region up" do that'
_HEX = r"^[0-9a-f]{64}$"


class IndexManifest(Record):
    """INDEX.json: what an index was made from.

    Attributes:
        release: number of the release whose adapter encoded it; 0 is the base alone.
        encoder_digest: of the encoder that made its vectors.
        catalog_digest: of the catalog its rows are.
        num_products: rows.
        dim: D, length of every vector.
        metric: FAISS's, by which vectors are compared; see `shared.similarity`.
        factory: FAISS's own name for this kind of index.
        recall: what it finds of what an exact search finds.
        dense_weight: of the dense ranker in the mix of the two.
        dense_weights: what was measured at each weight on validation clicks; empty if nothing.
        dense_floor: see `shared.retrieval.relevance`.
        files: sha256 of each file, by its path in the folder.
        created: when; no other field but the checksum depends on it.
        checksum: sha256 of this record with an empty checksum.
    """

    format: Literal[3] = 3
    release: int = Field(ge=0)
    encoder_digest: str = Field(pattern=_HEX)
    catalog_digest: str = Field(pattern=_HEX)
    num_products: int = Field(ge=1)
    dim: int = Field(ge=1)
    metric: Literal["inner_product", "l2", "l1"] = "inner_product"
    factory: str
    recall: RecallReport
    dense_weight: float = Field(ge=0, le=1)
    dense_weights: dict[str, float]
    dense_floor: float = Field(ge=-1, le=1)
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
        digests: of each product as it was then, (N, 2) uint64; see `IndexParts`.
        matrix: whole vectors (N, D) beside an index of codes, mapped from disk; else None.
        manifest: what INDEX.json says.
    """

    folder: Path
    index: faiss.Index
    ids: NDArray[np.str_]
    digests: NDArray[np.uint64]
    matrix: NDArray[np.float16] | None
    manifest: IndexManifest

    def vectors(self) -> VectorIndex:
        """What searches it."""
        return VectorIndex.over(self.index, matrix=self.matrix)


@dataclass(frozen=True)
class IndexParts:
    """What goes into an index folder.

    Attributes:
        index: the vectors, from `build_planned`.
        factory: what it was built as.
        ids: product id of each row, N.
        digests: (N, 2) uint64; of what a product's vector was made from, and of all its cells.
        documents: what the lexical index reads of each row.
        locale: whose words they are.
        recall: of `index`.
        matrix: whole vectors (N, D) beside an index of codes, else None.
        tuned: weight of the mix; None takes the default.
    """

    index: faiss.Index
    factory: str
    ids: Sequence[str]
    digests: NDArray[np.uint64]
    documents: Sequence[LexicalDocument]
    locale: str
    recall: RecallReport
    matrix: NDArray[np.float16] | None = None
    tuned: Tuned | None = None


def write_index_folder(
    parent: Path, parts: IndexParts, *, release: int, encoder_digest: str, catalog_digest: str
) -> Path:
    """Write an index beside the others; none of them is touched.

    Args:
        parent: `state/indexes`, made if missing.
        parts: what it holds.
        release: number of the release whose adapter encoded it; 0 is the base alone.
        encoder_digest: of the encoder that made its vectors.
        catalog_digest: of the catalog its rows are.

    Returns:
        The new folder, whole and on disk: `<release>-<catalog digest>`, with `-2` and so on after
        it where that name is taken.
    """
    tuned = parts.tuned or Tuned(DEFAULT_DENSE_WEIGHT, {}, 0)
    with locked(parent):
        final = _free_folder(parent, f"{release}-{catalog_digest[:12]}")
        with new_folder(final) as folder:
            manifest = IndexManifest(
                release=release,
                encoder_digest=encoder_digest,
                catalog_digest=catalog_digest,
                num_products=len(parts.ids),
                dim=parts.index.d,
                metric=distance_of(parts.index).metric,
                factory=parts.factory,
                recall=parts.recall,
                dense_weight=tuned.dense_weight,
                dense_weights={f"{w:g}": x for w, x in tuned.figures.items()},
                dense_floor=tuned.dense_floor,
                files=_write_files(folder, parts),
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
    digests = np.load(folder / "digests.npy", allow_pickle=False)
    counts = {index.ntotal, len(ids), len(digests), manifest.num_products}
    if len(counts) > 1 or index.d != manifest.dim:
        found = f"{index.ntotal} vectors for {len(ids)} product ids and {len(digests)} digests"
        raise _damaged(folder, found)
    if distance_of(index).metric != manifest.metric:
        raise _damaged(folder, f"index.faiss does not compare by {manifest.metric}")
    matrix = None
    if MATRIX in manifest.files:
        matrix = np.load(folder / MATRIX, mmap_mode="r", allow_pickle=False)
    return OpenIndex(folder, index, ids, digests, matrix, manifest)


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
            f'{path}: not found, so this region has no index yet; "fedshelf region up" pulls a'
            " release and builds one"
        ) from None
    except ValueError as error:
        raise RetrievalError(f"{path}: damaged ({error}); {REBUILD}") from None


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


def _write_files(folder: Path, parts: IndexParts) -> dict[str, str]:
    shape = (parts.index.ntotal, 2)
    assert len(parts.ids) == shape[0] and parts.digests.shape == shape, "one product a row"
    faiss.write_index(parts.index, str(folder / "index.faiss"))
    np.save(folder / "ids.npy", np.array(parts.ids, dtype=np.str_), allow_pickle=False)
    np.save(folder / "digests.npy", parts.digests, allow_pickle=False)
    if parts.matrix is not None:
        np.save(folder / MATRIX, parts.matrix, allow_pickle=False)
    LexicalIndex.write(folder / LEXICAL, parts.documents, locale=parts.locale)
    return {name: sha256_file(folder / name) for name in _file_names(folder)}


def _file_names(folder: Path) -> list[str]:
    """Every file of an index but INDEX.json, by its path in the folder."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return sorted(name for name in names if name != "INDEX.json")


def _read_manifest(folder: Path) -> IndexManifest:
    try:
        raw = (folder / "INDEX.json").read_bytes()
        manifest = IndexManifest.from_bytes(raw)
    except (FileNotFoundError, NotADirectoryError):
        raise RetrievalError(
            f"{folder}: no INDEX.json, so this is no index or half of one; {REBUILD}"
        ) from None
    except ValueError as error:
        raise _damaged(folder, f"INDEX.json: {error}") from None
    if raw != manifest.checked().to_bytes():
        raise _damaged(folder, "INDEX.json is not the file that was written")
    return manifest


def _verify_files(folder: Path, manifest: IndexManifest) -> None:
    for name in INDEX_FILES:
        if name not in manifest.files:
            raise _damaged(folder, f"{name} is not in INDEX.json")
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise _damaged(folder, f"{name} is missing")
        if sha256_file(path) != digest:
            raise _damaged(folder, f"{name} is not the file that was written")


def _damaged(folder: Path, found: str) -> RetrievalError:
    return RetrievalError(f"{folder}: index damaged: {found}; {REBUILD}")
