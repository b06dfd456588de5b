"""A region's indexes on disk: find one, let it answer, remove those that nobody wants any more."""

from datetime import datetime
from pathlib import Path

from client.acceptance import after_swap
from client.decisions import PublicationState, read_state, write_state
from client.indexing import remove_indexes
from client.personal import remove_personal
from shared.audit import AuditLog
from shared.errors import RetrievalError
from shared.retrieval.manifest import (
    IndexPointer,
    OpenIndex,
    open_index_folder,
    read_pointer,
    write_pointer,
)


def find_index(
    state: Path, release: int, *, encoder_digest: str, catalog_digest: str = ""
) -> OpenIndex | None:
    """A sound index of a release, that of this catalog if there is one.

    An index of an older catalog answers well enough until one of the new catalog is built: search
    leaves out what the catalog no longer has.

    Args:
        state: the region's state folder.
        release: number of the release.
        encoder_digest: of the encoder with it.
        catalog_digest: of the catalog now.

    Returns:
        The index; None where there is none, or none that is undamaged.
    """
    folders = [path for path in whole_folders(state / "indexes") if release_of(path) == release]
    for path in sorted(
        folders, key=lambda path: (_catalog_of(path) != catalog_digest[:12], path.name)
    ):
        try:
            return open_index_folder(path, expected_digest=encoder_digest)
        except RetrievalError:  # damaged, or of another base: as good as none
            continue
    return None


def put_in_use(state: Path, record: PublicationState, opened: OpenIndex, *, now: datetime) -> None:
    """Let an index answer searches. Hold `changing(state)`.

    The record is written before the pointer, so after a kill between them the next step finds what
    was decided and does the rest; events are noted before that, rather twice than never.

    Args:
        state: the region's state folder.
        record: what shall be on record, read since the lock is held.
        opened: the index, just verified.
        now: when.
    """
    former, release = current_pointer(state), opened.manifest.release
    audit = AuditLog(state / "audit.jsonl")
    record = after_swap(record, former, release, now=now)
    if former is not None and former.release > release:
        audit.append("release.rolled_back", release=former.release, to=release)
    audit.append(
        "index.swapped",
        index=opened.folder.name,
        release=release,
        encoder_digest=opened.manifest.encoder_digest,
        catalog_digest=opened.manifest.catalog_digest,
    )
    if record != read_state(state):
        write_state(state, record)
    write_pointer(state, opened.folder)


def remove_unused(state: Path) -> None:
    """Keep the index in use, the previous release's, and those that a person may still want.

    What was made of releases for this region alone is kept and removed with them.

    Args:
        state: the region's state folder. Hold `changing(state)`, and let nobody build an index.
    """
    pointer, record = current_pointer(state), read_state(state)
    keep = {one.index for one in (pointer, record.previous) if one is not None}
    waiting = record.decision_on(record.seen.release) if record.seen else None
    if waiting is not None and waiting.verdict == "waiting":
        keep |= _names(state, waiting.release, waiting.catalog_digest)
    if record.pinned is not None and (pointer is None or pointer.release != record.pinned):
        keep |= _names(state, record.pinned)
    remove_indexes(state, keep=keep)
    in_use = [one for one in (pointer, record.previous) if one is not None]
    releases = {release_of(state / "indexes" / name) for name in keep}
    if record.pinned is not None:
        releases.add(record.pinned)
    remove_personal(state, releases=releases, digests={one.encoder_digest for one in in_use})


def current_pointer(state: Path) -> IndexPointer | None:
    """Which index answers searches, None where none does."""
    try:
        return read_pointer(state)
    except RetrievalError:  # none yet, or damaged: either way an index is put into use anew
        return None


def whole_folders(parent: Path) -> list[Path]:
    """The whole ones: those being written begin with a dot."""
    if not parent.is_dir():
        return []
    return [path for path in sorted(parent.iterdir()) if path.is_dir() and path.name[0] != "."]


def release_of(index: Path) -> int:
    """Number of the release that an index folder is named after."""
    number = index.name.partition("-")[0]
    return int(number) if number.isdecimal() else -1


def _names(state: Path, release: int, catalog_digest: str | None = None) -> set[str]:
    """Indexes of a release, those of one catalog where it is given."""
    return {
        path.name
        for path in whole_folders(state / "indexes")
        if release_of(path) == release
        and (catalog_digest is None or _catalog_of(path) == catalog_digest[:12])
    }


def _catalog_of(index: Path) -> str:
    """The first digits of the catalog digest that an index folder is named after."""
    return "".join(index.name.split("-")[1:2])
