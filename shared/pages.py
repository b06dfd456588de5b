"""What the simulation's report and headquarters' dashboard are both drawn with.

Pages are Jinja templates with every text escaped; charts are inline SVG, so a page needs nothing
but itself.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def page_environment(templates: Path) -> Environment:
    """A Jinja environment that escapes every text and knows no undefined name.

    Args:
        templates: the folder of the templates.
    """
    return Environment(
        loader=FileSystemLoader(templates),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def ticks(low: float, high: float, most: int = 7) -> tuple[list[float], int]:
    """Round numbers that enclose a range, evenly apart.

    Args:
        low: the least value shown.
        high: the greatest value shown, >= low.
        most: how many ticks at most, >= 2.

    Returns:
        The ticks, rising, two or more; and how many digits after the point tell them apart.
    """
    step, digits = next(
        (step, digits) for step, digits in _steps() if _reach(low, high, step) <= most
    )
    first = math.floor(low / step + 1e-9)
    length = max(_reach(low, high, step), 2)
    return [step * number for number in range(first, first + length)], digits


def spread(places: Sequence[float], limit: float, gap: float) -> list[float]:
    """Push labels apart, down first and then up again, so that none covers another.

    Args:
        places: where each label wants to be, pixels from the top.
        limit: no label goes below this.
        gap: pixels between two.

    Returns:
        Where each goes, in the order of `places`.
    """
    moved = list(places)
    order = sorted(range(len(moved)), key=moved.__getitem__)
    place = -math.inf
    for at in order:
        moved[at] = place = max(moved[at], place + gap)
    for at in reversed(order):
        moved[at] = min(moved[at], limit)
        limit = moved[at] - gap
    return moved


def line_path(points: Iterable[tuple[float, float] | None]) -> str:
    """The `d` of an SVG path through points (x, y), broken where one is None."""
    path, pen = "", "M"
    for point in points:
        path += f"{pen}{point[0]} {point[1]}" if point else ""
        pen = "L" if point else "M"
    return path


def _reach(low: float, high: float, step: float) -> int:
    return math.ceil(high / step - 1e-9) - math.floor(low / step + 1e-9) + 1


def _steps() -> Iterator[tuple[float, int]]:
    """0.002, 0.005, 0.01, 0.02, ... with the digits that tell one from the next."""
    for power in count(-3):
        for mantissa in (1, 2, 5):
            if (power, mantissa) != (-3, 1):
                yield mantissa * 10.0**power, max(0, -power)
