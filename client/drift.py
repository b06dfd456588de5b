"""Which of a region's releases are compared when somebody asks how much one changes."""

from pathlib import Path

from client.decisions import read_state
from client.indexes import release_of, whole_folders
from shared.errors import RetrievalError
from shared.retrieval.drift import Drift, neighbour_drift
from shared.retrieval.manifest import IndexPointer, open_index_folder, read_pointer
from shared.schema import load_region_config


def release_drift(
    folder: Path, *, before: int | None = None, after: int | None = None
) -> tuple[int, int, Drift]:
    """How much one release's index disagrees with another's; nothing is encoded or written.

    Args:
        folder: of the region.
        before: number of a release whose index is on disk; by default that of the release which
            was in use before the present one.
        after: the same; by default the release in use.

    Returns:
        The two numbers, and the drift from one to the other.

    Raises:
        ConfigError: the folder is no region.
        RetrievalError: there is no index of one of them, it is damaged, or they have too few
            products in common.
    """
    state = folder / load_region_config(folder).state
    places = (
        _index_of(state, before) if before is not None else _former(state),
        _index_of(state, after) if after is not None else read_pointer(state).index,
    )
    opened = [open_index_folder(state / "indexes" / place) for place in places]
    drift = neighbour_drift(*opened)
    return opened[0].manifest.release, opened[1].manifest.release, drift


def _former(state: Path) -> str:
    former: IndexPointer | None = read_state(state).previous
    if former is None:
        raise RetrievalError(
            f"{state}: no release was in use before the present one; give the numbers of two"
            ' releases that "fedshelf region releases" shows with an index'
        )
    return former.index


def _index_of(state: Path, release: int) -> str:
    names = [path.name for path in whole_folders(state / "indexes") if release_of(path) == release]
    if not names:
        raise RetrievalError(
            f"{state}: no index of release {release}; choose one that"
            ' "fedshelf region releases" shows with an index'
        )
    return names[-1]
