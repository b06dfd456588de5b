"""The operator's say in which release a region uses: list, accept, pin, unpin.

Each command changes the record of decisions (`client.decisions`) and returns; what follows from it
is done by the worker (`client.publication`), which may run or not.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from client.decisions import PublicationState, Verdict, changing, read_state, write_state
from client.indexes import current_pointer, find_index, put_in_use, release_of, whole_folders
from client.indexing import disk_errors, read_for_base
from client.personal import wanted_digest
from shared.audit import AuditLog
from shared.errors import ReleaseError
from shared.retrieval.manifest import IndexPointer
from shared.schema import load_region_config


@dataclass(frozen=True)
class ReleaseRow:
    """One line of `region releases`.

    Attributes:
        number: of the release, 0 for the base alone.
        on_disk: whether it is here; the base always is.
        indexed: whether an index made with it is here.
        in_use: whether that index answers searches.
        available: whether headquarters names it.
        pinned: whether the operator has pinned it.
        wanted: whether the operator has accepted it and it is not in use yet.
        verdict: this region's, "" where it has none.
        reason: of the verdict.
    """

    number: int
    on_disk: bool
    indexed: bool
    in_use: bool
    available: bool
    pinned: bool
    wanted: bool
    verdict: Verdict | Literal[""]
    reason: str


def list_releases(folder: Path) -> list[ReleaseRow]:
    """Every release this region knows of; nothing is verified here.

    Args:
        folder: the region's folder.

    Returns:
        Rows by number, the base alone first.

    Raises:
        ConfigError: `region.toml` is wrong.
        ReleaseError: the record of decisions is damaged.
    """
    state = folder / load_region_config(folder).state
    record, pointer = read_state(state), current_pointer(state)
    pulled = {int(path.name) for path in whole_folders(state / "releases") if path.name.isdecimal()}
    indexed = {release_of(path) for path in whole_folders(state / "indexes")}
    offered = record.seen.release if record.seen else None
    known = {0, *pulled, *indexed, *(made.release for made in record.decisions)}
    known |= {number for number in (record.pinned, offered) if number is not None}
    return [
        _row(number, record, pointer, on_disk=number in {0, *pulled}, indexed=number in indexed)
        for number in sorted(known)
    ]


def accept(folder: Path, number: int) -> str:
    """Take the release that headquarters names into use, whatever the gate clicks said of it.

    Canaries must be found all the same: they are the operator's own.

    Args:
        folder: the region's folder.
        number: of a release that waits, or was declined, or was not tried yet.

    Returns:
        What happens next, one line.

    Raises:
        ReleaseError: headquarters names another release, or one is pinned.
    """
    state = folder / load_region_config(folder).state
    with disk_errors(state), changing(state):
        record, pointer = read_state(state), current_pointer(state)
        offered = record.seen.release if record.seen else None
        if record.pinned is not None:
            raise ReleaseError(
                f"release {record.pinned} is pinned, so {number} cannot be accepted; unpin first"
            )
        if offered != number:
            raise ReleaseError(
                f"headquarters names {f'release {offered}' if offered else 'no release yet'}, not"
                f" {number}; to use another one, pin it"
            )
        if pointer is not None and pointer.release == number:
            return f"release {number} is in use already"
        AuditLog(state / "audit.jsonl").append("release.requested", release=number)
        write_state(state, record.model_copy(update={"wanted": number}))
    return f"release {number} is accepted; the worker takes it into use when it next looks"


def pin(folder: Path, number: int) -> str:
    """Stay with a release whatever headquarters says; at once, where its index is on disk.

    Args:
        folder: the region's folder.
        number: of a release on disk, or 0 for the base alone.

    Returns:
        What happens next, one line.

    Raises:
        ReleaseError: the release is not on disk, or damaged.
    """
    config = load_region_config(folder)
    state = folder / config.state
    digest = None
    if number > 0:
        pulled = state / "releases" / str(number)
        own = read_for_base(pulled, number, config).encoder_digest
        settings = config.personalization
        digest = wanted_digest(state, number, release_digest=own, settings=settings)
    with disk_errors(state), changing(state):
        AuditLog(state / "audit.jsonl").append("release.pinned", release=number)
        record = read_state(state).model_copy(update={"pinned": number, "wanted": None})
        write_state(state, record)
        pointer = current_pointer(state)
        if pointer is not None and pointer.release == number:
            return f"release {number} is pinned and stays in use"
        found = digest and find_index(state, number, encoder_digest=digest)
        if found:
            put_in_use(state, record, found, now=datetime.now(UTC))
            return f"release {number} is pinned and in use"
    return f"release {number} is pinned; the worker takes it into use when it next looks"


def unpin(folder: Path) -> str:
    """Follow headquarters again.

    Args:
        folder: the region's folder.

    Returns:
        What happens next, one line.

    Raises:
        ReleaseError: the record of decisions is damaged.
    """
    state = folder / load_region_config(folder).state
    with disk_errors(state), changing(state):
        record = read_state(state)
        if record.pinned is None:
            return "no release is pinned"
        AuditLog(state / "audit.jsonl").append("release.unpinned", release=record.pinned)
        write_state(state, record.model_copy(update={"pinned": None}))
    return f"release {record.pinned} is no longer pinned; the worker follows headquarters again"


def _row(
    number: int,
    record: PublicationState,
    pointer: IndexPointer | None,
    *,
    on_disk: bool,
    indexed: bool,
) -> ReleaseRow:
    decision = record.decision_on(number)
    return ReleaseRow(
        number=number,
        on_disk=on_disk,
        indexed=indexed,
        in_use=pointer is not None and pointer.release == number,
        available=record.seen is not None and record.seen.release == number,
        pinned=record.pinned == number,
        wanted=record.wanted == number,
        verdict=decision.verdict if decision else "",
        reason=decision.reason if decision else "",
    )
