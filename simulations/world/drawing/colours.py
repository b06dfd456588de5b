"""Colours as RGB, the second colour that suits each, and how each material takes the light."""

from dataclasses import dataclass

import numpy as np

from simulations.world.drawing.parts import Look, Paint, pick

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "black": (38, 38, 42),
    "white": (244, 243, 239),
    "grey": (142, 146, 151),
    "red": (206, 36, 40),
    "burgundy": (112, 22, 44),
    "pink": (240, 148, 178),
    "orange": (240, 122, 32),
    "yellow": (246, 203, 52),
    "green": (44, 142, 76),
    "olive": (112, 112, 54),
    "blue": (52, 120, 214),
    "navy": (28, 42, 88),
    "purple": (122, 66, 162),
    "brown": (116, 72, 42),
    "beige": (216, 190, 150),
}
_SECOND: dict[str, tuple[str, ...]] = {
    "black": ("white", "grey", "red"),
    "white": ("navy", "red", "black", "green", "blue"),
    "grey": ("white", "black", "yellow"),
    "red": ("white", "navy", "black"),
    "burgundy": ("beige", "pink", "white"),
    "pink": ("white", "burgundy", "red"),
    "orange": ("white", "navy", "brown"),
    "yellow": ("white", "grey", "navy"),
    "green": ("white", "navy", "yellow"),
    "olive": ("beige", "black", "orange"),
    "blue": ("white", "navy", "yellow"),
    "navy": ("white", "red", "beige"),
    "purple": ("white", "pink", "yellow"),
    "brown": ("beige", "white", "orange"),
    "beige": ("white", "brown", "navy"),
}
_FIXED: dict[Paint, Rgb] = {
    "dark": (44, 42, 44),
    "white": (250, 250, 248),
    "steel": (186, 192, 200),
    "gold": (214, 172, 84),
    "wood": (184, 134, 84),
    "glow": (255, 236, 186),
    "tan": (196, 158, 112),
}


@dataclass(frozen=True)
class Finish:
    """How a material takes light.

    Attributes:
        gloss: strength of highlights, 0 matte to 1 polished.
        depth: strength of the shaded side.
        grain: name of the surface grain in `textures`, or "" for none.
        strength: how strongly the grain shows, 0 to 1.
    """

    gloss: float
    depth: float
    grain: str = ""
    strength: float = 0.0


FINISHES: dict[str, Finish] = {
    "leather": Finish(0.85, 0.9, "pebble", 0.25),
    "suede": Finish(0.12, 0.65, "nap", 0.45),
    "canvas": Finish(0.18, 0.6, "weave", 0.5),
    "mesh": Finish(0.3, 0.7, "mesh", 0.6),
    "rubber": Finish(0.95, 0.9),
    "cotton": Finish(0.2, 0.6, "nap", 0.15),
    "linen": Finish(0.15, 0.6, "weave", 0.7),
    "wool": Finish(0.15, 0.8, "knit", 0.8),
    "fleece": Finish(0.12, 0.9, "nap", 0.45),
    "denim": Finish(0.15, 0.7, "twill", 0.8),
    "corduroy": Finish(0.2, 0.7, "rib", 0.8),
    "silk": Finish(0.8, 0.8),
    "nylon": Finish(0.6, 1.0, "quilt", 0.55),
    "velvet": Finish(0.45, 1.0, "nap", 0.3),
    "ceramic": Finish(0.9, 0.7),
    "enamel": Finish(1.0, 0.7),
    "steel": Finish(1.0, 1.0, "brush", 0.35),
    "plastic": Finish(0.7, 0.6),
    "wood": Finish(0.35, 0.7, "planks", 0.8),
    "paper": Finish(0.1, 0.4, "weave", 0.25),
}


def mixed(colour: Rgb, other: Rgb, share: float) -> Rgb:
    """`colour` with a `share` of `other`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def luminance(colour: Rgb) -> float:
    """Perceived brightness, 0 to 255 (ITU-R BT.601)."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def palette(look: Look) -> dict[Paint, Rgb]:
    """Every paint of one product: its dye varies a little from one product to the next."""
    dice = look.dice("palette")
    base = np.array(COLOURS[look.colour], dtype=np.float64)
    dye = np.clip(base * dice.uniform(0.93, 1.07) + dice.normal(0.0, 4.0, 3), 8, 252)
    main: Rgb = (round(dye[0]), round(dye[1]), round(dye[2]))
    accent = COLOURS[pick(dice, _SECOND[look.colour])]
    light = luminance(main) > 90
    return {
        **_FIXED,
        "main": main,
        "tone": main,
        "deep": mixed(main, (14, 10, 22), 0.42),
        "pale": mixed(main, (255, 252, 244), 0.38),
        "accent": accent,
        "stitch": _stitch(look, main, light),
        "sole": pick(dice, [(246, 245, 240), (240, 236, 224), (198, 150, 96)]),
    }


def _stitch(look: Look, main: Rgb, light: bool) -> Rgb:
    if look.material == "denim":
        return (222, 160, 74)
    return mixed(main, (20, 16, 24), 0.5) if light else mixed(main, (255, 250, 240), 0.45)
