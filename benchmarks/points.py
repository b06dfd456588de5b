"""Points of a growing cost, kept in `bench.json` as they are made.

A long measurement is interrupted sooner or later. What is in the file with the same settings, from
the same machine and the same versions, is not measured again; what differs is, and takes its place.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.report import Figure, Report, read_json, write_json
from shared.errors import ConfigError

KEY: Final = "points"  # of the file

# Names of the figures, by which `benchmarks.plots` finds them.
PEAK: Final = "peak memory"
AT_START: Final = "memory before it began"
BUILD: Final = "built, one thread"
BEST_10: Final = "best 10, p50"
BEST_OF_A_MIX: Final = "candidates of a mix, p50"
ON_DISK: Final = "on disk"
RECALL: Final = "recall@10 of the corpus's queries"
CLIENT_ROUND: Final = "a client-round"
EXAMPLES: Final = "examples in training"
QUALITY: Final = "nDCG@10 on validation clicks"
UPDATE: Final = {encoding: f"an update, {encoding}" for encoding in ("float32", "int8")}
KEPT: Final = {"text": "kept activations of a text", "image": "kept activations of a photo"}
RELEASE: Final = "products for a new release"
PHOTOS: Final = "photos from scratch"

_MACHINE: Final = ("cpu", "cores", "python", "versions", "torch_threads")


@dataclass(frozen=True)
class Point:
    """What one size costs.

    Attributes:
        section: what grows, such as "products".
        at: how much of it there is.
        settings: all else that the figures depend on.
        machine: facts of it, from `machine_facts`.
        figures: of this size; empty before it is measured.
        label: what a reader must know of this size alone; may be empty.
    """

    section: str
    at: int
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    figures: tuple[Figure, ...] = ()
    label: str = ""

    def comparable(self, other: "Point") -> bool:
        """Whether the two differ in nothing but their size."""
        same = all(self.machine.get(key) == other.machine.get(key) for key in _MACHINE)
        return same and (self.section, self.settings) == (other.section, other.settings)

    def figure(self, name: str) -> Figure | None:
        """The figure of that name."""
        return next((figure for figure in self.figures if figure.name == name), None)

    def report(self) -> Report:
        """Where its figures are put down."""
        return Report(dict(self.machine), dict(self.settings))


def read_points(path: Path) -> list[Point]:
    """The points of a file, by section and size; none where there is no file.

    Raises:
        ConfigError: the file is not one of ours.
    """
    try:
        rows = read_json(path).get(KEY, [])
        points = [Point(**{**row, "figures": _figures(row["figures"])}) for row in rows]
    except (TypeError, KeyError, AttributeError):
        raise ConfigError(f"{path}: {KEY}: not as written; name another file") from None
    return sorted(points, key=lambda point: (point.section, point.at))


def is_known(points: list[Point], wanted: Point) -> bool:
    """Whether a point has been measured."""
    return any(point.at == wanted.at and point.comparable(wanted) for point in points)


def keep_point(path: Path, point: Point) -> None:
    """Put a point into the file, in the place of the one of its section and size."""
    place = (point.section, point.at)
    others = [each for each in read_points(path) if (each.section, each.at) != place]
    points = sorted([*others, point], key=lambda each: (each.section, each.at))
    write_json(path, {KEY: [asdict(each) for each in points]})


def _figures(rows: list[dict[str, Any]]) -> tuple[Figure, ...]:
    return tuple(Figure(**row) for row in rows)
