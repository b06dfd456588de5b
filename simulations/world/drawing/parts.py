"""What a drawn product is made of: bodies with volume, flat details and lines, back to front."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

Paint = Literal[
    "main",  # the product's colour with its pattern and material
    "tone",  # the product's colour without pattern
    "deep",  # the same, darker
    "pale",  # the same, lighter
    "accent",  # the second colour
    "stitch",
    "sole",
    "dark",
    "white",
    "steel",
    "gold",
    "wood",
    "glow",
    "tan",
]
T = TypeVar("T")


@dataclass(frozen=True)
class Look:
    """Everything that decides a photo's bytes.

    Attributes:
        kind: product type, a key of `simulations.world.taxonomy.KINDS`.
        colour: a key of `simulations.world.drawing.colours.COLOURS`.
        pattern: "plain", "striped", "checked", "dotted" or "floral".
        material: a key of `simulations.world.drawing.colours.FINISHES`.
        style: photo style, a key of `simulations.world.drawing.backdrop.STYLES`.
        token: seeds the variation of shape, framing and light.
    """

    kind: str
    colour: str
    pattern: str
    material: str
    style: str
    token: str

    def dice(self, purpose: str) -> np.random.Generator:
        """A random stream of its own for one purpose, the same in every process."""
        digest = hashlib.sha256(f"{self}/{purpose}".encode()).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


@dataclass(frozen=True)
class Part:
    """One outline and how it is painted.

    Attributes:
        path: SVG path in the 100 × 100 box.
        paint: which of the product's paints.
        mode: "body" has texture, volume and an edge; "flat" is a plain area; "line" a stroke.
        width: of a line, in units of the box.
        opacity: in (0, 1], of a flat area or a line.
        mirrored: whether left and right are exchanged.
    """

    path: str
    paint: Paint
    mode: Literal["body", "flat", "line"]
    width: float = 0.0
    opacity: float = 1.0
    mirrored: bool = False


def body(path: str, paint: Paint = "main") -> Part:
    """A part with texture, volume and an edge."""
    return Part(path, paint, "body")


def flat(path: str, paint: Paint, opacity: float = 1.0) -> Part:
    """A plain area."""
    return Part(path, paint, "flat", opacity=opacity)


def line(path: str, paint: Paint, width: float = 0.8, opacity: float = 1.0) -> Part:
    """A stroke of `width` units."""
    return Part(path, paint, "line", width=width, opacity=opacity)


def both(*parts: Part) -> list[Part]:
    """The parts and their mirror images."""
    return [*parts, *(replace(part, mirrored=not part.mirrored) for part in parts)]


def pick(dice: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, evenly."""
    return options[int(dice.integers(len(options)))]
