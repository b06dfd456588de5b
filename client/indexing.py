"""A release's way into a region: pull, verify, index, check, swap.

At every step the region keeps answering from what it had. Nothing of a release is used before its
signature and every file's hash hold; the new index is built beside the old one and searched once
before `state/current` names it; a kill at any instant leaves the old release and index in use.
"""

import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from client.region import Region
from shared.durable import locked, new_folder, replace_file, set_aside
from shared.errors import ReleaseError, RetrievalError
from shared.release import (
    CurrentRelease,
    ReleaseManifest,
    read_current,
    read_release,
)
from shared.retrieval.index import build_index, search_index
from shared.retrieval.manifest import (
    OpenIndex,
    open_index_folder,
    read_pointer,
    write_index_folder,
    write_pointer,
)
from shared.schema import RegionConfig, load_region_config

if TYPE_CHECKING:  # torch takes seconds to import, and pulling a release needs none of it
    from shared.encoders.encoder import Encoder

CHECKED_PRODUCTS = 256
_EQUAL_TOLERANCE = 1e-5  # far above the last bits of a unit vector's numbers, far below a word
_SELF_SCORE_TOLERANCE = 1e-3  # twice what `build_index` lets a vector's length be off


class ProductEncoder(Protocol):
    """What building an index needs of an encoder."""

    @property
    def digest(self) -> str:
        """Encoder digest; it stamps the index."""

    def encode_products(
        self, texts: Sequence[str | None], images: Sequence[Path | None]
    ) -> NDArray[np.float32]:
        """Unit vectors (N, D) of products."""


def pull_release(folder: Path, *, now: datetime | None = None) -> Path:
    """Bring the release in use from headquarters' folder into the region's state.

    Args:
        folder: the region's folder; its `base.releases` says where to pull from.
        now: time to hold the expiry against; the clock's by default.

    Returns:
        `state/releases/<number>`, verified; its index is not built yet.

    Raises:
        ReleaseError: nothing published, damaged, expired, replayed or signed by another key, or
            made for another base. The region's own releases are as before.
    """
    config = load_region_config(folder)
    registry, store = folder / config.base.releases, folder / config.state / "releases"
    current = read_current(registry, public_key_hex=config.base.release_key, now=now)
    with locked(store):
        _refuse_replay(store, current)
        _copy_release(registry / str(current.release), store, current.release, config)
        replace_file(store / "current.json", current.to_bytes())
    return store / str(current.release)


def build_region_index(
    region: Region,
    encoder: ProductEncoder,
    *,
    release: int,
    vectors: NDArray[np.float32] | None = None,
) -> Path:
    """Encode a region's products, index them, check the index, let it answer.

    Args:
        region: the opened region.
        encoder: with that release loaded.
        release: number of the release; 0 is the base alone.
        vectors: unit product vectors (N, D) that this encoder has made already, in catalog order.

    Returns:
        The index folder that `state/current` now names. Of older ones only the last is kept.

    Raises:
        RetrievalError: the vectors cannot be indexed, or the index on disk does not give them back.
            The former index still answers then.
    """
    digest = encoder.digest
    if vectors is None:
        vectors = encoder.encode_products(region.texts, region.image_paths)  # (N, D)
    folder = write_index_folder(
        region.state / "indexes",
        build_index(vectors),
        region.catalog["product_id"].to_list(),
        release=release,
        encoder_digest=digest,
        catalog_digest=region.catalog_digest,
    )
    check_index(open_index_folder(folder, expected_digest=digest), vectors)
    former = _current_name(region.state)
    write_pointer(region.state, folder)
    _remove_indexes(folder.parent, keep={folder.name, former})
    return folder


def check_index(index: OpenIndex, vectors: NDArray[np.float32]) -> None:
    """Search an index for some of its own products: each must find itself, or its equal.

    Args:
        index: as read back from disk.
        vectors: unit product vectors it was made of, (N, D).

    Raises:
        RetrievalError: a product does not find itself; names the row.
    """
    step = -(-len(vectors) // CHECKED_PRODUCTS)
    rows = np.arange(0, len(vectors), step)
    scores, found = search_index(index.index, vectors[rows], 1)  # (C, 1) each
    # Two products of one text may differ in the last bits, being computed in different batches.
    apart = np.abs(vectors[found[:, 0]] - vectors[rows]).max(axis=1)  # (C,)
    wrong_score = np.abs(scores[:, 0] - 1) > _SELF_SCORE_TOLERANCE
    wrong = rows[wrong_score | (apart > _EQUAL_TOLERANCE)]
    if len(wrong):
        raise RetrievalError(
            f"{index.folder}: product in row {wrong[0]} does not find itself; the former index"
            " stays in use; build the index again"
        )


def load_region_encoder(folder: Path, config: RegionConfig, *, release: int) -> "Encoder":
    """The region's encoder with one of its pulled releases, all verified.

    Args:
        folder: the region's folder.
        config: its `region.toml`.
        release: number of a pulled release; 0 is the base alone.

    Returns:
        An encoder whose digest is the release's.

    Raises:
        BaseError: the base is missing, damaged or another one.
        ReleaseError: the release is missing, damaged, or gives another digest than it names.
    """
    from shared.encoders.encoder import load_encoder

    base = config.base
    encoder = load_encoder(folder / base.path, device=config.device, expected=base.fingerprint)
    if release == 0:
        return encoder
    pulled = folder / config.state / "releases" / str(release)
    manifest = _read_for_base(pulled, release, config)
    encoder.load_release(pulled)
    if encoder.digest != manifest.encoder_digest:
        raise ReleaseError(
            f"{pulled}: gives encoder {encoder.digest[:12]}, its manifest names"
            f" {manifest.encoder_digest[:12]}; update fedshelf or pull another release"
        )
    return encoder


def _refuse_replay(store: Path, current: CurrentRelease) -> None:
    """An old statement, though signed, must not bring an old release back."""
    path = store / "current.json"
    if not path.exists():
        return
    try:
        seen = CurrentRelease.from_bytes(path.read_bytes())
    except ValueError as error:
        raise ReleaseError(f"{path}: {error}; remove it and pull again") from None
    if current.sequence < seen.sequence or (
        current.sequence == seen.sequence and current.release != seen.release
    ):
        raise ReleaseError(
            f"current.json names release {current.release} with sequence {current.sequence}, but"
            f" sequence {seen.sequence} was seen before; ask headquarters which one is right"
        )


def _copy_release(source: Path, store: Path, number: int, config: RegionConfig) -> None:
    """Verify, copy, verify the copy, rename; an equal release already here is left alone."""
    manifest = _read_for_base(source, number, config)
    target = store / str(number)
    if _is_sound(target, manifest, config):
        return
    if target.exists():
        set_aside(target)
    with new_folder(target) as folder:
        for name in (*manifest.files, "MANIFEST.json", "MANIFEST.sig"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)
        _read_for_base(folder, number, config)


def _is_sound(target: Path, manifest: ReleaseManifest, config: RegionConfig) -> bool:
    try:
        return _read_for_base(target, manifest.number, config) == manifest
    except ReleaseError:
        return False


def _read_for_base(folder: Path, number: int, config: RegionConfig) -> ReleaseManifest:
    key, expected = config.base.release_key, config.base.fingerprint
    manifest = read_release(folder, public_key_hex=key, expected_number=number)
    if manifest.base.fingerprint != expected:
        raise ReleaseError(
            f'{folder}: made for base {manifest.base.fingerprint[:12]}, region "{config.region}"'
            f" has {expected[:12]}; fetch that base and name it in region.toml"
        )
    return manifest


def _current_name(state: Path) -> str:
    try:
        return read_pointer(state).index
    except RetrievalError:  # none yet, or damaged: nothing worth keeping either way
        return ""


def _remove_indexes(parent: Path, *, keep: set[str]) -> None:
    """The former index stays, for a reader that has just looked up the pointer."""
    with locked(parent):
        for folder in parent.iterdir():
            if folder.is_dir() and folder.name not in keep:
                shutil.rmtree(folder)
