"""Outlines written in SVG's path language, in a 100 × 100 box, and where they land on a photo.

A product type is a handful of outlines; writing them as SVG paths (M, L, C, Q, Z with absolute
coordinates) keeps each shape one line that any vector editor can show.
"""

import math
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (N, 2), x right and y down

_TOKEN = re.compile(r"[MLCQZ]|-?\d+(?:\.\d+)?")
_ARITY = {"M": 2, "L": 2, "Q": 4, "C": 6, "Z": 0}
_STEPS = 10  # chords a curve: under half a pixel from the true curve at this size


@dataclass(frozen=True)
class Placement:
    """Where the 100 × 100 box lands on a photo: mirrored, scaled, turned, moved.

    Attributes:
        x: centre of the box, in pixels.
        y: centre of the box, in pixels.
        scale: pixels per unit of the box, vertically.
        stretch: horizontal scale relative to the vertical one.
        angle: clockwise turn, in radians.
        mirrored: whether left and right are exchanged.
    """

    x: float
    y: float
    scale: float
    stretch: float = 1.0
    angle: float = 0.0
    mirrored: bool = False

    def apply(self, points: Points) -> Points:
        """Map points of the box to pixels, (N, 2) to (N, 2)."""
        centred = (points - 50.0) * self.scale
        centred = centred * (-self.stretch if self.mirrored else self.stretch, 1.0)
        sin, cos = math.sin(self.angle), math.cos(self.angle)
        turned = np.stack([centred @ (cos, -sin), centred @ (sin, cos)], axis=1)
        moved: Points = turned + np.array([self.x, self.y])
        return moved

    def shrunk(self, factor: float, dx: float = 0.0, dy: float = 0.0) -> "Placement":
        """The same placement on a photo `factor` times smaller, then moved by pixels of that."""
        x, y, scale = self.x / factor + dx, self.y / factor + dy, self.scale / factor
        return Placement(x, y, scale, self.stretch, self.angle, self.mirrored)


@lru_cache(maxsize=4096)
def outline(path: str) -> Points:
    """Flatten one SVG path of a single contour.

    Args:
        path: M, L, Q, C and Z with absolute coordinates, such as "M10 10 L90 10 Q90 90 10 90 Z".

    Returns:
        Its points, (N, 2); a closed path is not repeated at its first point.
    """
    tokens, points, at = _TOKEN.findall(path), [np.zeros(2)], 0
    while at < len(tokens):
        command, at = (tokens[at], at + 1) if tokens[at].isalpha() else ("L", at)
        count = _ARITY[command]
        control = np.array(tokens[at : at + count], dtype=np.float64).reshape(-1, 2)
        points.extend(_curve(points[-1], control) if len(control) > 1 else control)
        at += count
    return np.array(points[1:])


def _curve(start: Points, control: Points) -> Points:
    """Points of a Bézier curve after its start, by de Casteljau's algorithm."""
    t = np.linspace(0.0, 1.0, _STEPS + 1)[1:, None, None]
    level = np.broadcast_to(np.vstack([start, control]), (_STEPS, len(control) + 1, 2))
    while level.shape[1] > 1:
        level = level[:, :-1] * (1 - t) + level[:, 1:] * t
    return level[:, 0]


def ellipse(x: float, y: float, rx: float, ry: float | None = None) -> str:
    """The path of an ellipse of radii `rx` and `ry` (`rx` where not given) around (x, y)."""
    ry = rx if ry is None else ry
    kx, ky = 0.5523 * rx, 0.5523 * ry  # the usual cubic approximation of a quarter circle
    return (
        f"M{x - rx:.2f} {y:.2f} "
        f"C{x - rx:.2f} {y - ky:.2f} {x - kx:.2f} {y - ry:.2f} {x:.2f} {y - ry:.2f} "
        f"C{x + kx:.2f} {y - ry:.2f} {x + rx:.2f} {y - ky:.2f} {x + rx:.2f} {y:.2f} "
        f"C{x + rx:.2f} {y + ky:.2f} {x + kx:.2f} {y + ry:.2f} {x:.2f} {y + ry:.2f} "
        f"C{x - kx:.2f} {y + ry:.2f} {x - rx:.2f} {y + ky:.2f} {x - rx:.2f} {y:.2f} Z"
    )


def box(x0: float, y0: float, x1: float, y1: float, r: float = 2.0) -> str:
    """The path of a rectangle from (x0, y0) to (x1, y1) with corners of radius `r`."""
    return (
        f"M{x0 + r:.2f} {y0:.2f} L{x1 - r:.2f} {y0:.2f} Q{x1:.2f} {y0:.2f} {x1:.2f} {y0 + r:.2f} "
        f"L{x1:.2f} {y1 - r:.2f} Q{x1:.2f} {y1:.2f} {x1 - r:.2f} {y1:.2f} "
        f"L{x0 + r:.2f} {y1:.2f} Q{x0:.2f} {y1:.2f} {x0:.2f} {y1 - r:.2f} "
        f"L{x0:.2f} {y0 + r:.2f} Q{x0:.2f} {y0:.2f} {x0 + r:.2f} {y0:.2f} Z"
    )
