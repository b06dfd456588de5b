"""A release's way into a region: pull, verify, index, check, swap.

At every step the region keeps answering from what it had. Nothing of a release is used before its
signature and every file's hash hold; the new index is built beside the old one and searched once
before `state/current` names it; a kill at any instant leaves the old release and index in use.

Releases come from a folder or from an https address, by the same steps: `current.json`, whose
signature, sequence and expiry must hold; MANIFEST.json, whose signature must hold before one of its
words is believed; then the files it names, hashed as they arrive and never more bytes than allowed.
Whether a release is wanted at all is for `client.publication`.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from client.decisions import PublicationState, changing, read_state, write_state
from client.personal import adapter_path, read_personal_adapter
from client.region import Region
from client.sources import ReleaseSource, open_source
from shared.audit import AuditLog
from shared.config import COSINE, MANHATTAN
from shared.durable import locked, new_folder, set_aside
from shared.errors import FedshelfError, ReleaseError, RetrievalError, WireError
from shared.release import (
    CurrentRelease,
    ReleaseManifest,
    read_current,
    read_release,
    read_signed,
)
from shared.retrieval.hybrid import Tuned
from shared.retrieval.lexical import documents_of
from shared.retrieval.manifest import (
    IndexParts,
    OpenIndex,
    open_index_folder,
    read_pointer,
    write_index_folder,
    write_pointer,
)
from shared.retrieval.plan import build_planned, plan_factory
from shared.retrieval.recall import measure_recall
from shared.retrieval.vectors import VectorIndex
from shared.schema import RegionConfig, load_region_config

if TYPE_CHECKING:  # torch takes seconds to import, and pulling a release needs none of it
    from shared.adapter import Adapter
    from shared.encoders.encoder import Encoder

CHECKED_PRODUCTS = 256
MAX_STATEMENT_BYTES = 2**16  # current.json, and each file of signatures
MAX_MANIFEST_BYTES = 2**20
RELEASE_SUFFIXES = (".json", ".safetensors", ".md")  # nothing that could hold a program
_EQUAL_TOLERANCE = 1e-5  # far above the last bits of a unit vector's numbers, far below a word
_SELF_SCORE_TOLERANCE = 1e-3  # twice what an index lets a vector's length be off
MIN_QUERIES, MAX_QUERIES = 100, 1000  # that an index is fitted to and measured by
_SEED = 0  # of training samples and recall queries: equal vectors give an equal index


class ProductEncoder(Protocol):
    """What building an index needs of an encoder."""

    @property
    def digest(self) -> str:
        """Encoder digest; it stamps the index."""

    @property
    def distance(self) -> str:
        """By which its vectors are compared."""

    def encode_products(
        self, texts: Sequence[str | None], images: Sequence[Path | None]
    ) -> NDArray[np.float32]:
        """Unit vectors (N, D) of products."""


class ReleaseEncoder(Protocol):
    """An encoder that releases can be loaded into."""

    @property
    def digest(self) -> str:
        """Encoder digest, of base and adapter."""

    def load_release(self, folder: Path) -> None:
        """Swap in the adapter of a verified release folder."""

    def load_adapter(self, adapter: "Adapter") -> None:
        """Swap an adapter in, all of it or nothing."""


def pull_release(folder: Path, *, now: datetime | None = None) -> Path:
    """Bring the release that headquarters names into the region's state.

    Args:
        folder: the region's folder; its `base.releases` says where to pull from.
        now: time to hold the expiry against; the clock's by default.

    Returns:
        `state/releases/<number>`, verified; its index is not built yet.

    Raises:
        ConfigError: the source is not one that may be used.
        ReleaseError: nothing published, damaged, expired, replayed or signed by another key, too
            long or too slow, or made for another base; or the disk is full. The region's own
            releases are as before.
    """
    config = load_region_config(folder)
    statement = read_statement(folder, config, now=now)
    return provide_release(folder, config, statement.release)


def read_statement(
    folder: Path, config: RegionConfig, *, now: datetime | None = None
) -> CurrentRelease:
    """Ask headquarters which release is in use, and remember the answer.

    Args:
        folder: the region's folder.
        config: its `region.toml`.
        now: time to hold the expiry against; the clock's by default.

    Returns:
        The verified statement. From now on an older one is refused.

    Raises:
        ConfigError: the source is not one that may be used.
        ReleaseError: nothing published, unreachable, signed by another key, expired or replayed.
    """
    state = folder / config.state
    store = state / "releases"
    with open_source(folder, config) as source, disk_errors(state):
        with locked(store), _scratch(store) as scratch, _naming(source.place, scratch):
            # In this order, because headquarters replaces the signatures first.
            for name in ("current.json", "current.json.sig"):
                source.fetch(name, MAX_STATEMENT_BYTES, scratch / name)
            statement = read_current(scratch, public_key_hex=config.base.release_key, now=now)
        with changing(state):
            record = read_state(state)
            _refuse_replay(record, statement)
            if statement != record.seen:
                write_state(state, record.model_copy(update={"seen": statement}))
    return statement


def provide_release(folder: Path, config: RegionConfig, number: int) -> Path:
    """Have a release in the region's state: the sound one there is, or pulled.

    Args:
        folder: the region's folder.
        config: its `region.toml`.
        number: of the release, >= 1.

    Returns:
        `state/releases/<number>`, every byte verified.

    Raises:
        ConfigError: the source is not one that may be used.
        ReleaseError: it is not here, and cannot be had whole, signed and for this base.
    """
    state = folder / config.state
    store = state / "releases"
    target = store / str(number)
    with disk_errors(state), locked(store):
        if not is_sound(target, number, config):
            if target.exists():
                set_aside(target)
            with open_source(folder, config) as source:
                manifest = _copy_release(source, target, number, config)
            AuditLog(state / "audit.jsonl").append(
                "release.pulled", release=number, encoder_digest=manifest.encoder_digest
            )
    return target


def is_sound(target: Path, number: int, config: RegionConfig) -> bool:
    """Whether a pulled release is whole, signed and for this region's base."""
    try:
        read_for_base(target, number, config)
    except ReleaseError:  # what is wrong does not matter: it will be pulled again
        return False
    return True


def read_for_base(folder: Path, number: int, config: RegionConfig) -> ReleaseManifest:
    """Verify every byte of a release, and that it is for this region's base.

    Args:
        folder: the release.
        number: it must have.
        config: the region's `region.toml`.

    Returns:
        Its manifest.

    Raises:
        ReleaseError: missing, damaged, signed by another key, or for another base.
    """
    key = config.base.release_key
    manifest = read_release(folder, public_key_hex=key, expected_number=number)
    _require_base(manifest, folder, config)
    return manifest


def build_region_index(
    region: Region,
    encoder: ProductEncoder,
    *,
    release: int,
    vectors: NDArray[np.float32] | None = None,
    tuned: Tuned | None = None,
    queries: NDArray[np.float32] | None = None,
) -> Path:
    """Encode a region's products, index them, check the index, let it answer; nobody is asked.

    Args:
        region: the opened region.
        encoder: with that release loaded.
        release: number of the release; 0 is the base alone.
        vectors: unit product vectors (N, D) that this encoder has made already, in catalog order.
        tuned: weight of the two rankers; None takes the default.
        queries: real query vectors (Q, D) that a large index is fitted to.

    Returns:
        The index folder that `state/current` now names. Of older ones only the last is kept.

    Raises:
        RetrievalError: the vectors cannot be indexed, or the index on disk does not give them back.
            The former index still answers then.
    """
    digest = encoder.digest
    if vectors is None:
        vectors = encoder.encode_products(region.texts, region.image_paths)  # (N, D)
    opened = write_region_index(
        region,
        vectors,
        release=release,
        encoder_digest=digest,
        tuned=tuned,
        queries=queries,
        distance=encoder.distance,
    )
    former = _current_name(region.state)
    write_pointer(region.state, opened.folder)
    remove_indexes(region.state, keep={opened.folder.name, former})
    return opened.folder


def write_region_index(
    region: Region,
    vectors: NDArray[np.float32],
    *,
    release: int,
    encoder_digest: str,
    tuned: Tuned | None = None,
    queries: NDArray[np.float32] | None = None,
    distance: str = COSINE,
) -> OpenIndex:
    """Write a region's index beside the others and check it as it is read back.

    Args:
        region: the opened region.
        vectors: unit product vectors (N, D), in catalog order.
        release: number of the release that made them; 0 is the base alone.
        encoder_digest: of the encoder that made them.
        tuned: weight of the two rankers; None takes the default.
        queries: real query vectors (Q, D) that a large index is fitted to.
        distance: by which that encoder's vectors are compared.

    Returns:
        The index; it does not answer searches yet.

    Raises:
        RetrievalError: the vectors cannot be indexed, or it cannot be written, or what is on disk
            does not give the vectors back.
    """
    parent = region.state / "indexes"
    parts = index_parts(region, vectors, tuned, queries, distance=distance)
    try:
        folder = write_index_folder(
            parent,
            parts,
            release=release,
            encoder_digest=encoder_digest,
            catalog_digest=region.catalog_digest,
        )
        opened = open_index_folder(folder, expected_digest=encoder_digest)
    except RuntimeError:  # FAISS says so when the disk is full; its text is several lines
        raise RetrievalError(
            f"{parent}: FAISS could not write an index and read it back; the former index stays in"
            " use; look whether the disk is full"
        ) from None
    check_index(opened, vectors)
    return opened


def index_parts(
    region: Region,
    vectors: NDArray[np.float32],
    tuned: Tuned | None = None,
    queries: NDArray[np.float32] | None = None,
    *,
    distance: str = COSINE,
) -> IndexParts:
    """What a region's index folder holds, built as its configuration says.

    Args:
        region: the opened region.
        vectors: unit product vectors (N, D), in catalog order.
        tuned: weight of the two rankers; None takes the default.
        queries: real query vectors (Q, D) by which an approximate index chooses its effort and is
            measured; with fewer than `MIN_QUERIES` of them, perturbed products, which are easier.
        distance: by which vectors are compared.

    Raises:
        RetrievalError: the vectors cannot be indexed.
    """
    queries = None if queries is None or len(queries) < MIN_QUERIES else queries[:MAX_QUERIES]
    serve = region.config.serve
    planned = plan_factory(*vectors.shape, distance=distance)
    factory = (serve and serve.index_factory) or planned
    # Of codes, whole vectors beside them put candidates in order.
    coded = "SQ" in factory or ("IVF" in factory and distance != MANHATTAN)
    matrix = vectors.astype(np.float16) if coded else None
    index = build_planned(
        vectors,
        factory=factory,
        seed=_SEED,
        queries=queries,
        keeps_vectors=coded,
        distance=distance,
    )
    searched = VectorIndex.over(index, matrix=matrix)
    return IndexParts(
        index=index,
        factory=factory,
        ids=region.catalog["product_id"].to_list(),
        digests=region.digests,
        documents=list(documents_of(region.catalog, region.texts)),
        locale=region.config.locale,
        recall=measure_recall(searched, vectors, queries=queries, seed=_SEED),
        matrix=matrix,
        tuned=tuned,
    )


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
    scores, found = index.vectors().search(vectors[rows], 1)  # (C, 1) each
    # Two products of one text may differ in the last bits, being computed in different batches.
    apart = np.abs(vectors[found[:, 0]] - vectors[rows]).max(axis=1)  # (C,)
    wrong_score = np.abs(scores[:, 0] - 1) > _SELF_SCORE_TOLERANCE
    wrong = rows[wrong_score | (apart > _EQUAL_TOLERANCE)]
    if len(wrong):
        raise RetrievalError(
            f"{index.folder}: product in row {wrong[0]} does not find itself; the former index"
            " stays in use; build the index again"
        )


def load_region_encoder(
    folder: Path, config: RegionConfig, *, release: int, encoder_digest: str = ""
) -> "Encoder":
    """The region's encoder with one of its pulled releases, all verified.

    Args:
        folder: the region's folder.
        config: its `region.toml`.
        release: number of a pulled release; 0 is the base alone.
        encoder_digest: of the encoder that made an index; see `load_pulled_release`.

    Returns:
        An encoder whose digest is the release's, or that of what this region has made of it.

    Raises:
        BaseError: the base is missing, damaged or another one.
        ReleaseError: the release is missing, damaged, or gives another digest than it names.
    """
    from shared.encoders.encoder import load_encoder

    base = config.base
    encoder = load_encoder(folder / base.path, device=config.device, expected=base.fingerprint)
    if release > 0:
        load_pulled_release(encoder, folder, config, release=release, encoder_digest=encoder_digest)
    return encoder


def load_pulled_release(
    encoder: ReleaseEncoder,
    folder: Path,
    config: RegionConfig,
    *,
    release: int,
    encoder_digest: str = "",
) -> None:
    """Swap a pulled release into an encoder of the region's base.

    Args:
        encoder: its adapter is replaced.
        folder: the region's folder.
        config: its `region.toml`.
        release: number of a pulled release.
        encoder_digest: of the encoder that made an index. Where it is not the release's own and
            this region has made such an encoder of the release (`client.personal`), that one is
            loaded; where it has not, the release is, and opening the index will say so.

    Raises:
        ReleaseError: the release, or what was made of it, is missing, damaged, or gives another
            digest than it is known by.
    """
    pulled = folder / config.state / "releases" / str(release)
    manifest = read_for_base(pulled, release, config)
    encoder.load_release(pulled)
    if encoder.digest != manifest.encoder_digest:
        raise ReleaseError(
            f"{pulled}: gives encoder {encoder.digest[:12]}, its manifest names"
            f" {manifest.encoder_digest[:12]}; update fedshelf or pull another release"
        )
    state = folder / config.state
    if encoder_digest not in ("", manifest.encoder_digest):
        path = adapter_path(state, release, encoder_digest)
        if path.exists():
            load_personal(encoder, state, release=release, encoder_digest=encoder_digest)


def load_personal(
    encoder: ReleaseEncoder, state: Path, *, release: int, encoder_digest: str
) -> None:
    """Swap in what the region has made of a release.

    Args:
        encoder: of the region's base; its adapter is replaced.
        state: the region's state folder.
        release: number of the release.
        encoder_digest: that the encoder must have afterwards.

    Raises:
        ReleaseError: it is missing, damaged, of another base, or gives another digest.
    """
    path = adapter_path(state, release, encoder_digest)
    try:
        encoder.load_adapter(read_personal_adapter(state, release, encoder_digest))
    except WireError as error:
        raise ReleaseError(f"{path}: {error}; the worker adapts the release again") from None
    if encoder.digest != encoder_digest:
        raise ReleaseError(
            f"{path}: gives encoder {encoder.digest[:12]}, expected {encoder_digest[:12]}; the"
            " worker adapts the release again"
        )


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Turn what the operating system says (disk full, not allowed) into an error for people.

    Args:
        place: where files are written, for an error that names none.

    Raises:
        ReleaseError: in the place of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise ReleaseError(
            f"{error.filename or place}: {error.strerror or type(error).__name__}; what was in use"
            " stays in use; mend that, then it goes on"
        ) from None


def remove_indexes(state: Path, *, keep: set[str]) -> None:
    """Remove a region's indexes but those named. Hold the right to swap, or be the only one.

    Args:
        state: the region's state folder.
        keep: names of folders under `state/indexes`.
    """
    parent = state / "indexes"
    with locked(parent):
        for folder in parent.iterdir():
            if folder.is_dir() and folder.name not in keep:
                shutil.rmtree(folder)


def _refuse_replay(record: PublicationState, statement: CurrentRelease) -> None:
    """An old statement, though signed, must not bring an old release back."""
    seen = record.seen
    if seen is None or statement.sequence > seen.sequence:
        return
    if statement.sequence < seen.sequence or statement.release != seen.release:
        raise ReleaseError(
            f"current.json names release {statement.release} with sequence {statement.sequence},"
            f" but sequence {seen.sequence} was seen before; ask headquarters which one is right"
        )


def _copy_release(
    source: ReleaseSource, target: Path, number: int, config: RegionConfig
) -> ReleaseManifest:
    """Fetch, verify, verify the whole, rename. The names come from a manifest that is verified."""
    left = config.publication.max_release_bytes
    with new_folder(target) as folder:
        with _naming(f"{source.place}/{number}", folder):
            for name, limit in (
                ("MANIFEST.json", MAX_MANIFEST_BYTES),
                ("MANIFEST.sig", MAX_STATEMENT_BYTES),
            ):
                source.fetch(f"{number}/{name}", limit, folder / name)
            manifest = _read_manifest(folder, number, config)
            for name, digest in sorted(manifest.files.items()):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                if source.fetch(f"{number}/{name}", left, folder / name) != digest:
                    raise ReleaseError(
                        f"{folder / name}: not the file that was signed; copy the release from"
                        " headquarters again"
                    )
                left -= (folder / name).stat().st_size
        read_for_base(folder, number, config)
    return manifest


def _read_manifest(folder: Path, number: int, config: RegionConfig) -> ReleaseManifest:
    """A manifest whose signature holds, before any of its files is here."""
    path = folder / "MANIFEST.json"
    raw = read_signed(path, folder / "MANIFEST.sig", config.base.release_key)
    try:
        manifest = ReleaseManifest.from_bytes(raw)
        _require_names(manifest.files)
    except ValueError as error:
        raise ReleaseError(f"{path}: {error}; headquarters must release again") from None
    if manifest.number != number:
        raise ReleaseError(f"{path}: is of release {manifest.number}, expected {number}; ask there")
    _require_base(manifest, folder, config)
    return manifest


def _require_names(files: dict[str, str]) -> None:
    """Beyond what the manifest requires itself: kinds of files, and no file that is a folder."""
    for name in files:
        path = PurePosixPath(name)
        if path.suffix not in RELEASE_SUFFIXES:
            raise ValueError(f"{name}: not one of {', '.join(RELEASE_SUFFIXES)}")
        if {str(parent) for parent in path.parents} & files.keys():
            raise ValueError(f"{name}: lies in another file")


def _require_base(manifest: ReleaseManifest, folder: Path, config: RegionConfig) -> None:
    expected = config.base.fingerprint
    if manifest.base.fingerprint != expected:
        raise ReleaseError(
            f'{folder}: made for base {manifest.base.fingerprint[:12]}, region "{config.region}"'
            f" has {expected[:12]}; fetch that base and name it in region.toml"
        )


@contextmanager
def _scratch(store: Path) -> Iterator[Path]:
    """A folder for a moment; one that a killed process left is removed by the next `locked`."""
    with tempfile.TemporaryDirectory(dir=store, prefix=".statement.", suffix=".partial") as name:
        yield Path(name)


@contextmanager
def _naming(place: str, copy: Path) -> Iterator[None]:
    """Let errors name where a file came from: the copy is gone when anybody reads them."""
    try:
        yield
    except FedshelfError as error:
        raise type(error)(str(error).replace(str(copy), place)) from None


def _current_name(state: Path) -> str:
    try:
        return read_pointer(state).index
    except RetrievalError:  # none yet, or damaged: nothing worth keeping either way
        return ""
