"""What a region has made of a release for itself: `state/personal/`. It never leaves the region.

    state/personal/<release>.json                       what was chosen, by which figures
    state/personal/<release>-<encoder digest>.safetensors   the adapter; none where the release won

The record names the encoder digest of the release it was made from and the settings it was made
with; when either has changed it counts for nothing, and the release is adapted again. An adapter is
found by the digest that its encoder must have, so an index, which names that digest, is never
searched with another encoder, whatever `region.toml` says by now. The adapter is written before the
record that names it, each beside and renamed.
"""

from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from pydantic import AwareDatetime, Field

from shared.durable import Record, locked, replace_file
from shared.errors import FederationError, ReleaseError
from shared.release import Sha256
from shared.schema import PersonalizationConfig

if TYPE_CHECKING:  # torch takes seconds to import, and the operator's commands need none of it
    from shared.adapter import Adapter

FOLDER: Final = "personal"
RELEASE: Final = "release"  # the choice of a region that uses the release as it is


class Measured(Record):
    """A candidate on the validation clicks, less the release as it is.

    Attributes:
        candidate: its name.
        mean_difference: nDCG@10 of the encoder's order of what was shown.
        lower_bound: of that, one-sided, with the confidence shared out among the candidates.
        upper_bound: likewise.
    """

    candidate: str
    mean_difference: float
    lower_bound: float
    upper_bound: float


class Personal(Record):
    """What a region chose to make of a release.

    Attributes:
        release: its number.
        release_digest: encoder digest of the release as it was published.
        encoder_digest: of the encoder that this region answers with.
        choice: name of the candidate, or `RELEASE`.
        reason: why, one line.
        num_queries: validation queries that chose.
        measured: every candidate.
        settings: of `region.toml` when it was made.
        time: when.
    """

    format: Literal[2] = 2
    release: int = Field(ge=1)
    release_digest: Sha256
    encoder_digest: Sha256
    choice: str
    reason: str
    num_queries: int = Field(ge=0)
    measured: tuple[Measured, ...]
    settings: PersonalizationConfig
    time: AwareDatetime


def read_personal(
    state: Path, release: int, *, release_digest: str, settings: PersonalizationConfig
) -> Personal | None:
    """What was chosen for a release, if it still holds.

    Args:
        state: the region's state folder.
        release: its number.
        release_digest: encoder digest of the release as it was published.
        settings: of `region.toml` now.

    Returns:
        The record; None where there is none, or it is damaged, or of other settings or another
        release of that number: then the release is to be adapted again.
    """
    try:
        record = Personal.from_bytes((state / FOLDER / f"{release}.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    made_for = (record.release, record.release_digest, record.settings)
    return record if made_for == (release, release_digest, settings) else None


def wanted_digest(
    state: Path, release: int, *, release_digest: str, settings: PersonalizationConfig
) -> str | None:
    """Encoder digest with which this region wants to answer from a release.

    Args:
        state: the region's state folder.
        release: its number, >= 1.
        release_digest: encoder digest of the release as it was published.
        settings: of `region.toml` now.

    Returns:
        The digest; None where the release is yet to be adapted.
    """
    if not settings.enabled:
        return release_digest
    record = read_personal(state, release, release_digest=release_digest, settings=settings)
    return record.encoder_digest if record else None


def write_personal(state: Path, record: Personal, adapter: "Adapter") -> None:
    """Keep a choice, and the adapter of one that is not the release as it is."""
    with locked(state / FOLDER):
        if record.encoder_digest != record.release_digest:
            from shared.adapter import save_adapter

            save_adapter(adapter_path(state, record.release, record.encoder_digest), adapter, {})
        replace_file(state / FOLDER / f"{record.release}.json", record.to_bytes())


def adapter_path(state: Path, release: int, encoder_digest: str) -> Path:
    """Where the adapter of a personal encoder is kept, if it is."""
    return state / FOLDER / f"{release}-{encoder_digest[:12]}.safetensors"


def read_personal_adapter(state: Path, release: int, encoder_digest: str) -> "Adapter":
    """The adapter of a personal encoder; whoever loads it compares the encoder's digest.

    Raises:
        ReleaseError: missing or damaged.
    """
    from shared.adapter import load_adapter

    path = adapter_path(state, release, encoder_digest)
    try:
        return load_adapter(path)
    except FederationError:
        what = "damaged" if path.exists() else "not found"
        raise ReleaseError(f"{path}: {what}; the worker adapts the release again") from None


def remove_personal(state: Path, *, releases: Set[int], digests: Set[str]) -> None:
    """Remove what was made of releases that nobody wants any more. Let nobody adapt one meanwhile.

    Args:
        state: the region's state folder.
        releases: whose records are kept.
        digests: of encoders that answer, or may answer again; what kept records name is kept too.
    """
    folder = state / FOLDER
    if not folder.is_dir():
        return
    with locked(folder):
        kept = {digest[:12] for digest in digests}
        for path in folder.glob("*.json"):
            if path.stem not in {str(release) for release in releases}:
                path.unlink()
            elif (named := _named_digest(path)) is not None:
                kept.add(named[:12])
        for path in folder.glob("*.safetensors"):
            if path.stem.partition("-")[2] not in kept:
                path.unlink()


def _named_digest(path: Path) -> str | None:
    try:
        return Personal.from_bytes(path.read_bytes()).encoder_digest
    except ValueError:
        return None
