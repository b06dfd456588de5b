"""Geometry of learning curves; `templates/curves.html.j2` alone knows their markup."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.pages import line_path, spread, ticks

NUM_COLOURS = 7  # series colours in the style (Okabe and Ito 2008, safe for colour-blind eyes)

Curves = Mapping[str, Sequence[float | None]]


def known(value: float | None) -> float | None:
    """A finite number; None for anything else."""
    return None if value is None or not math.isfinite(value) else float(value)


def series_colour(place: int) -> str:
    """The colour of a line, dot or legend entry by its place."""
    return f"var(--series-{place % NUM_COLOURS})"


@dataclass(frozen=True)
class Plane:
    """Maps (round, value) to pixels."""

    width: int
    height: int
    num_rounds: int
    low: float
    high: float
    left: int = 42
    right: int = 92
    top: int = 12
    bottom: int = 44

    def x(self, number: float) -> float:
        """Of a round."""
        share = number / self.num_rounds if self.num_rounds else 0.5
        return round(self.left + share * (self.width - self.left - self.right), 1)

    def y(self, value: float) -> float:
        """Of a value."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.height - self.bottom - share * (self.height - self.top - self.bottom), 1)


def line_chart(curves: Curves, *, width: int, mean: bool) -> dict[str, Any] | None:
    """Geometry of a line chart of values by round.

    Args:
        curves: values of each line after rounds 0 to R; None where unknown.
        width: pixels.
        mean: whether a line of their mean is drawn too.

    Returns:
        What the template needs; None without any value.
    """
    named = {name: [known(value) for value in values] for name, values in curves.items()}
    values = [value for line in named.values() for value in line if value is not None]
    if not values:
        return None
    marks, digits = ticks(min(values), max(max(values), min(values) + 0.02))
    num_rounds = max(map(len, named.values())) - 1
    plane = Plane(width, 310 if width >= 500 else 300, num_rounds, marks[0], marks[-1])
    series = [_series(plane, name, i, line) for i, (name, line) in enumerate(named.items())]
    if mean and len(named) > 1:
        series.append(_series(plane, "mean", None, _mean_line([*named.values()])))
    series = [line for line in series if line["points"]]
    _spread_labels(series, plane)
    step = math.ceil((num_rounds or 1) / (width // 60))
    return {
        "plane": plane,
        "series": series,
        "y_ticks": [(plane.y(tick), f"{tick:.{digits}f}") for tick in marks],
        "x_ticks": [(plane.x(number), number) for number in range(0, num_rounds + 1, step)],
    }


def _series(
    plane: Plane, name: str, place: int | None, line: Sequence[float | None]
) -> dict[str, Any]:
    """One line: its points with hover titles, and its path, broken where a value is unknown."""
    points, places = [], list[tuple[float, float] | None]()
    for number, value in enumerate(line):
        places.append(None if value is None else (plane.x(number), plane.y(value)))
        if places[-1] is None:
            continue
        x, y = places[-1]
        when = "zero-shot" if number == 0 else f"round {number}"
        points.append({"x": x, "y": y, "title": f"{name}, {when}: nDCG@10 {value:.3f}"})
    colour = "var(--ink)" if place is None else series_colour(place)
    return {
        "name": name,
        "place": place,
        "colour": colour,
        "points": points,
        "path": line_path(places),
    }


def _mean_line(lines: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Mean over regions of each round; unknown where any region is, so that it stays one mean."""
    length = max(map(len, lines))
    padded = [[*line, *[None] * (length - len(line))] for line in lines]
    return [_mean(column) for column in zip(*padded, strict=True)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _spread_labels(series: Sequence[dict[str, Any]], plane: Plane) -> None:
    """Put each line's label at its end, pushed apart so that none covers another."""
    bottom = plane.height - plane.bottom
    ends = [line["points"][-1]["y"] for line in series]
    for line, place in zip(
        series, spread(ends, bottom, min(15.0, bottom / len(series))), strict=True
    ):
        line["label_y"] = place
