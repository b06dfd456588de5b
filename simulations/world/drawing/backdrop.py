"""Photo styles: each region's studio has its backdrop, framing and light."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from simulations.world.drawing.colours import Rgb, mixed
from simulations.world.drawing.parts import Look, pick
from simulations.world.drawing.textures import CANVAS


@dataclass(frozen=True)
class Style:
    """One studio.

    Attributes:
        walls: colours at the top of the backdrop, one is picked a photo.
        floor: how far the bottom goes from the wall towards `ground`.
        ground: colour of the floor.
        horizon: height of a table's edge as a share of the photo, or 0 for none.
        disc: whether a paler disc stands behind the product.
        fill: share of the photo that the product's box takes.
        tilt: largest turn of what is laid flat, in degrees.
        shade: opacity of the shadow, 0 to 1.
        softness: blur of the shadow, in pixels of a photo.
        tint: what the light multiplies red, green and blue by.
    """

    walls: tuple[Rgb, ...]
    ground: Rgb
    floor: float
    horizon: float
    disc: bool
    fill: float
    tilt: float
    shade: float
    softness: float
    tint: tuple[float, float, float]


STYLES: dict[str, Style] = {
    "studio": Style(
        walls=((248, 249, 251), (240, 243, 247), (251, 250, 249)),
        ground=(202, 208, 217), floor=0.75, horizon=0.0, disc=False,
        fill=0.86, tilt=3.0, shade=0.36, softness=4.5, tint=(0.99, 1.0, 1.01),
    ),
    "parlour": Style(
        walls=((236, 220, 198), (230, 211, 190), (226, 215, 196)),
        ground=(176, 136, 100), floor=0.85, horizon=0.74, disc=False,
        fill=0.78, tilt=7.0, shade=0.5, softness=3.5, tint=(1.03, 1.0, 0.95),
    ),
    "gallery": Style(
        walls=((205, 217, 226), (214, 221, 214), (222, 214, 222)),
        ground=(172, 188, 201), floor=0.6, horizon=0.0, disc=True,
        fill=0.76, tilt=5.0, shade=0.4, softness=5.0, tint=(0.98, 1.0, 1.02),
    ),
    "pop": Style(
        walls=((255, 196, 178), (168, 222, 206), (250, 218, 130), (190, 196, 244), (246, 190, 214)),
        ground=(255, 255, 255), floor=0.28, horizon=0.0, disc=False,
        fill=0.84, tilt=14.0, shade=0.42, softness=1.6, tint=(1.02, 1.01, 1.0),
    ),
}  # fmt: skip


def backdrop(look: Look) -> Image.Image:
    """An empty set for one photo, RGB, CANVAS × CANVAS."""
    style, dice = STYLES[look.style], look.dice("backdrop")
    top = pick(dice, style.walls)
    bottom = mixed(top, style.ground, style.floor)
    image = _gradient(top, mixed(top, bottom, 0.35) if style.horizon else bottom)
    if style.horizon:
        _table(image, style, dice, bottom)
    if style.disc:
        _disc(image, mixed(top, (255, 255, 255), 0.55), dice)
    return image


def _gradient(top: Rgb, bottom: Rgb) -> Image.Image:
    """From the upper left light to the lower right."""
    corners = np.array([[top, mixed(top, bottom, 0.3)], [mixed(top, bottom, 0.7), bottom]])
    small = Image.fromarray(corners.astype(np.uint8))
    return small.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC)


def _table(image: Image.Image, style: Style, dice: np.random.Generator, colour: Rgb) -> None:
    edge = int(CANVAS * (style.horizon + dice.uniform(-0.03, 0.03)))
    image.paste(_gradient(mixed(colour, (255, 240, 220), 0.25), colour), (0, edge))
    ImageDraw.Draw(image).line(
        (0, edge, CANVAS, edge), fill=mixed(colour, (60, 36, 20), 0.35), width=2
    )


def _disc(image: Image.Image, colour: Rgb, dice: np.random.Generator) -> None:
    x, y = CANVAS * dice.uniform(0.46, 0.54), CANVAS * dice.uniform(0.44, 0.52)
    r = CANVAS * dice.uniform(0.38, 0.42)
    ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), fill=colour)
