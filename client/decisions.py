"""What a region has seen and decided about releases: `state/publication.json`.

One record, replaced whole, so that a kill leaves the old one or the new one. It and `state/current`
change together under one lock that is held for an instant only: an operator's wish never waits for
an index that is being built.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self

from pydantic import AwareDatetime, Field

from shared.durable import Record, locked, replace_file
from shared.errors import ReleaseError
from shared.release import CurrentRelease, Sha256
from shared.retrieval.manifest import IndexPointer

MAX_REASON = 300  # characters; headquarters is told, and takes no longer lines
Verdict = Literal["accepted", "declined", "waiting", "rolled_back"]


class Decision(Record):
    """What this region said of one release.

    Attributes:
        release: its number.
        verdict: "waiting" is for the operator; "rolled_back" was in use until an older one was
            wanted again.
        reason: why, one line without query text, product content or paths.
        time: when.
        encoder_digest: of the encoder with that release.
        catalog_digest: of the catalog it was tried on.
        num_queries: gate queries it was measured on, None where it was not measured.
        mean_difference: nDCG@10, it minus the release in use then.
        lower_bound: of that difference, one-sided.
    """

    release: int = Field(ge=0)
    verdict: Verdict
    reason: str = Field(max_length=MAX_REASON)
    time: AwareDatetime
    encoder_digest: Sha256
    catalog_digest: Sha256
    num_queries: int | None = None
    mean_difference: float | None = None
    lower_bound: float | None = None


class PublicationState(Record):
    """publication.json.

    Attributes:
        seen: the newest statement of headquarters that was verified; an older one is a replay.
        pinned: the release that the operator wants whatever headquarters says, 0 for the base.
        wanted: the release that the operator has accepted, until it is in use.
        previous: the index in use before the present release was.
        decisions: the last one on each release, oldest first.
    """

    format: Literal[1] = 1
    seen: CurrentRelease | None = None
    pinned: int | None = Field(default=None, ge=0)
    wanted: int | None = Field(default=None, ge=1)
    previous: IndexPointer | None = None
    decisions: tuple[Decision, ...] = ()

    def decision_on(self, release: int) -> Decision | None:
        """The last decision on a release."""
        return next((made for made in self.decisions if made.release == release), None)

    def decided(self, decision: Decision) -> Self:
        """The state with a decision in the place of any earlier one on that release."""
        others = (made for made in self.decisions if made.release != decision.release)
        return self.model_copy(update={"decisions": (*others, decision)})


def read_state(state: Path) -> PublicationState:
    """What this region has seen and decided so far.

    Args:
        state: the region's state folder.

    Raises:
        ReleaseError: the record is damaged.
    """
    path = state / "publication.json"
    try:
        return PublicationState.from_bytes(path.read_bytes())
    except FileNotFoundError:
        return PublicationState()
    except ValueError as error:
        raise ReleaseError(
            f"{path}: damaged ({error}); restore a copy, or remove it: what was decided is then"
            " forgotten, and an old statement of headquarters would be believed"
        ) from None


def write_state(state: Path, record: PublicationState) -> None:
    """Replace the record. Hold `changing(state)` since it was read."""
    replace_file(state / "publication.json", record.to_bytes())


@contextmanager
def changing(state: Path) -> Iterator[None]:
    """Hold the right to change `publication.json` and `current`; not reentrant.

    Args:
        state: the region's state folder, made if missing. What killed writers left of the two
            files is removed.

    Yields:
        Nothing.
    """
    with locked(state / "publication.lock"):
        for name in ("publication.json", "current"):
            for leftover in state.glob(f".{name}.*.partial"):
                leftover.unlink()
        yield


def newest_decision(state: Path) -> Decision | None:
    """The decision on the highest release this region has looked at.

    Args:
        state: the region's state folder.

    Raises:
        ReleaseError: the record is damaged.
    """
    return max(read_state(state).decisions, key=lambda made: made.release, default=None)
