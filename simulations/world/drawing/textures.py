"""Cloth: the product's colour with its pattern, and the fine grain of its material."""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from simulations.world.drawing.colours import FINISHES, Rgb, mixed
from simulations.world.drawing.parts import Look, Paint, pick
from simulations.world.drawing.paths import Placement, Points

CANVAS = 384  # pixels a side while drawing; the photo is a third of it
_TILE = 2 * CANVAS  # grain is cut from a larger tile so that no two products share a spot

Draw = ImageDraw.ImageDraw


def cloth(look: Look, paints: dict[Paint, Rgb], place: Placement) -> Image.Image:
    """The whole canvas filled with the product's colour, pattern and grain.

    Args:
        look: the product and its photo.
        paints: from `palette`.
        place: where the product lands, so that stripes turn with it.

    Returns:
        An RGB image, CANVAS × CANVAS.
    """
    dice = look.dice("cloth")
    image = Image.new("RGB", (CANVAS, CANVAS), paints["main"])
    if look.pattern != "plain":
        _PATTERNS[look.pattern](ImageDraw.Draw(image, "RGBA"), paints, place, dice)
    return _grained(image, look, dice)


def _polygon(draw: Draw, points: Points, fill: tuple[int, ...]) -> None:
    draw.polygon([(float(x), float(y)) for x, y in points], fill=fill)


def _band(
    draw: Draw, place: Placement, a: float, b: float, across: bool, fill: Rgb | tuple[int, ...]
) -> None:
    """One stripe of the box from `a` to `b`, across or down, far beyond its edges."""
    corners = np.array([(-60.0, a), (160.0, a), (160.0, b), (-60.0, b)])
    _polygon(draw, place.apply(corners if across else corners[:, ::-1]), tuple(fill))


def _striped(
    draw: Draw, paints: dict[Paint, Rgb], place: Placement, dice: np.random.Generator
) -> None:
    step = dice.uniform(9.0, 15.0)
    width, across = step * dice.uniform(0.28, 0.42), bool(dice.random() < 0.7)
    for at in np.arange(-30.0 + dice.uniform(0, step), 130.0, step):
        _band(draw, place, at, at + width, across, paints["accent"])


def _checked(
    draw: Draw, paints: dict[Paint, Rgb], place: Placement, dice: np.random.Generator
) -> None:
    step = dice.uniform(15.0, 22.0)
    for across in (True, False):
        for at in np.arange(-40.0 + dice.uniform(0, step), 140.0, step):
            _band(draw, place, at, at + step * 0.42, across, (*paints["deep"], 135))
            _band(draw, place, at + step * 0.66, at + step * 0.74, across, (*paints["accent"], 225))


def _dotted(
    draw: Draw, paints: dict[Paint, Rgb], place: Placement, dice: np.random.Generator
) -> None:
    step, share = dice.uniform(9.0, 14.0), dice.uniform(0.23, 0.3)
    radius = step * share * place.scale
    for row, y in enumerate(np.arange(-20.0, 120.0, step * 0.87)):
        spots = np.array([(x + (row % 2) * step / 2, y) for x in np.arange(-20.0, 120.0, step)])
        for x, y_pixel in place.apply(spots):
            draw.ellipse(
                (x - radius, y_pixel - radius, x + radius, y_pixel + radius), fill=paints["accent"]
            )


def _floral(
    draw: Draw, paints: dict[Paint, Rgb], place: Placement, dice: np.random.Generator
) -> None:
    step = dice.uniform(15.0, 19.0)
    petals = (paints["accent"], mixed(paints["accent"], paints["pale"], 0.5))
    leaf = mixed((70, 130, 80), paints["main"], 0.15)
    for row, y in enumerate(np.arange(-10.0, 115.0, step * 0.8)):
        for x in np.arange(-10.0 + (row % 2) * step / 2, 115.0, step):
            spot = np.array([x, y]) + dice.uniform(-2.4, 2.4, 2)
            _flower(draw, place, spot, step * dice.uniform(0.17, 0.24), pick(dice, petals), leaf)


def _flower(draw: Draw, place: Placement, at: Points, size: float, petal: Rgb, leaf: Rgb) -> None:
    turn = float(at[0] * 1.7 + at[1])
    for angle, fill, reach, r in _petals(turn, petal, leaf):
        spot = at + size * reach * np.array([math.cos(angle), math.sin(angle)])
        _disc(draw, place, spot, size * r, fill)


def _petals(turn: float, petal: Rgb, leaf: Rgb) -> list[tuple[float, Rgb, float, float]]:
    leaves = [(turn + side, leaf, 1.9, 0.6) for side in (0.4, 3.4)]
    ring = [(turn + k * math.tau / 5, petal, 0.95, 0.72) for k in range(5)]
    return [*leaves, *ring, (0.0, (246, 200, 70), 0.0, 0.55)]


def _disc(draw: Draw, place: Placement, at: Points, radius: float, fill: Rgb) -> None:
    (x, y), r = place.apply(at[None])[0], radius * place.scale
    draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)


Pattern = Callable[[Draw, dict[Paint, Rgb], Placement, np.random.Generator], None]
_PATTERNS: dict[str, Pattern] = {
    "striped": _striped,
    "checked": _checked,
    "dotted": _dotted,
    "floral": _floral,
}


def _grained(image: Image.Image, look: Look, dice: np.random.Generator) -> Image.Image:
    """Darken and lighten by the material's grain; no-op for a material without one."""
    finish = FINISHES[look.material]
    if not finish.grain:
        return image
    dark, light = _grain(finish.grain, finish.strength)
    left, top = (int(v) for v in dice.integers(0, _TILE - CANVAS, 2))
    cut = (left, top, left + CANVAS, top + CANVAS)
    image.paste((12, 8, 16), mask=dark.crop(cut))
    image.paste((255, 252, 246), mask=light.crop(cut))
    return image


@lru_cache(maxsize=32)
def _grain(name: str, strength: float) -> tuple[Image.Image, Image.Image]:
    """Masks of where a grain darkens and where it lightens, each L and _TILE a side."""
    relief = _RELIEFS[name]() * strength
    dark = np.clip(-relief, 0, 1) * 110
    light = np.clip(relief, 0, 1) * 70
    return _mask(dark), _mask(light)


def _mask(values: NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8))


def _axes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, x = np.mgrid[0:_TILE, 0:_TILE].astype(np.float64)
    return x, y


def _noise(cell: int) -> NDArray[np.float64]:
    """Smooth noise in about -1..1 whose spots are `cell` pixels wide; the same in every process."""
    coarse = np.random.Generator(np.random.PCG64(cell)).uniform(0, 255, (_TILE // cell + 1,) * 2)
    smooth = _mask(coarse).resize((_TILE, _TILE), Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=np.float64) / 127.5 - 1.0


def _knit() -> NDArray[np.float64]:
    x, y = _axes()
    zigzag = np.abs((x % 15) - 7.5)  # two legs of one stitch
    return np.sin((y + zigzag * 1.1) * (math.tau / 10)) * 0.8 + (zigzag > 6.4) * -0.5


def _twill() -> NDArray[np.float64]:
    x, y = _axes()
    return np.sin((x + 2 * y) * (math.tau / 11)) * 0.45 + _noise(3) * 0.3 + _noise(90) * 0.55


def _weave() -> NDArray[np.float64]:
    x, y = _axes()
    return np.sin(x * (math.tau / 7)) * 0.35 + np.sin(y * (math.tau / 7)) * 0.35 + _noise(4) * 0.45


def _rib() -> NDArray[np.float64]:
    x, _ = _axes()
    return np.sin(x * (math.tau / 14)) * 0.95


def _mesh() -> NDArray[np.float64]:
    x, y = _axes()
    return np.where(np.sin(x * (math.tau / 9)) * np.sin(y * (math.tau / 9)) > 0.35, -0.9, 0.1)


def _quilt() -> NDArray[np.float64]:
    _, y = _axes()
    seam = (y % 46) / 46
    return np.where(seam < 0.07, -1.2, 0.85 * np.sin(seam * math.pi) - 0.35)


def _planks() -> NDArray[np.float64]:
    x, y = _axes()
    return np.sin((y + _noise(120) * 16 + x * 0.05) * (math.tau / 17)) * 0.6 + _noise(5) * 0.25


def _brush() -> NDArray[np.float64]:
    _, y = _axes()
    return np.sin(y * 2.1) * 0.4 + np.sin(y * 0.71 + 1.0) * 0.5


_RELIEFS: dict[str, Callable[[], NDArray[np.float64]]] = {
    "knit": _knit,
    "twill": _twill,
    "weave": _weave,
    "rib": _rib,
    "mesh": _mesh,
    "quilt": _quilt,
    "planks": _planks,
    "brush": _brush,
    "nap": lambda: _noise(4) * 0.7 + _noise(40) * 0.35,
    "pebble": lambda: _noise(5) * 0.9,
}
