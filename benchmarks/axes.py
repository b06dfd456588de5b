"""Axes of a picture: where a value lies, which ticks there are, and how a number is written.

Bytes are decimal: 1 kB is 1,000.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

from shared.pages import ticks

_MOST: Final = 6  # ticks of a log axis
_LEAST: Final = 0.02  # reach of an axis that is not; less would make noise look like a slope
_PREFIXES: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels.

    Attributes:
        ends: least and greatest value shown.
        pixels: where those two are.
        marks: values that get a tick.
        log: whether it is logarithmic; then all values are > 0.
    """

    ends: tuple[float, float]
    pixels: tuple[float, float]
    marks: tuple[float, ...]
    log: bool

    def at(self, value: float) -> float:
        """The pixel of a value, to a tenth."""
        low, high, here = (self._scaled(each) for each in (*self.ends, value))
        start, end = self.pixels
        return round(start + (here - low) / (high - low) * (end - start), 1)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value


def value_axis(values: Sequence[float], pixels: tuple[float, float], *, log: bool) -> Axis:
    """An axis whose ends are ticks.

    Args:
        values: what must lie on it; > 0 where it is logarithmic.
        pixels: of its ends.
        log: whether it is logarithmic.
    """
    low, high = min(values), max(values)
    marks = _log_marks(low, high) if log else ticks(min(low, high - _LEAST), high)[0]
    return Axis((marks[0], marks[-1]), pixels, tuple(marks), log)


def size_axis(sizes: Sequence[float], pixels: tuple[float, float], *, log: bool) -> Axis:
    """An axis whose ticks are the sizes that were measured, with some room at either end.

    Args:
        sizes: rising; > 0 where it is logarithmic.
        pixels: of its ends.
        log: whether it is logarithmic.
    """
    low, high = sizes[0], sizes[-1]
    if log:
        room = max((high / low) ** 0.08, 1.1)
        return Axis((low / room, high * room), pixels, tuple(sizes), log)
    room = max((high - low) * 0.08, 0.1)
    return Axis((low - room, high + room), pixels, tuple(sizes), log)


def written(value: float, unit: str = "") -> str:
    """A number in few letters, of three digits: 1.54 MB, 0.15, 10k.

    Args:
        value: any.
        unit: "bytes" is written with the number; others are left to the axis's name.
    """
    for size, prefix in _PREFIXES:
        short = unit == "bytes" or abs(value) >= 9995 or value % 1000 == 0
        if abs(value) >= size * 0.9995 and short:
            number = _three_digits(value / size)
            return f"{number} {prefix}B" if unit == "bytes" else f"{number}{prefix}"
    return f"{_three_digits(value)} B" if unit == "bytes" else _three_digits(value)


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _log_marks(low: float, high: float) -> list[float]:
    """Two or more round numbers that enclose a range, the closer the narrower it is."""
    for every in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,)):
        marks = _enclosing(low, high, every)
        if len(marks) <= _MOST:
            return marks
    step = math.ceil(len(marks) / _MOST)  # powers of a hundred, a thousand, ...
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**power for power in range(first, last + step, step)]


def _enclosing(low: float, high: float, mantissas: Sequence[float]) -> list[float]:
    rising = (
        float(f"{mantissa}e{power}")
        for power in count(math.floor(math.log10(low)) - 1)
        for mantissa in mantissas
    )
    marks: list[float] = []
    for mark in rising:
        if mark <= low * (1 + 1e-9):
            marks = [mark]
        else:
            marks.append(mark)
            if mark >= high * (1 - 1e-9):
                return marks
    raise AssertionError("the marks rise without end")
