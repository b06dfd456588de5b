"""Things for the home."""

import numpy as np

from simulations.world.drawing.parts import Look, Part, body, both, flat, line, pick
from simulations.world.drawing.paths import ellipse


def mug(look: Look, dice: np.random.Generator) -> list[Part]:
    """A mug with its handle to the right."""
    side = pick(dice, [_STRAIGHT, _ROUND])
    handle = "M66 38 C92 32 96 74 64 72"
    return [
        line(handle, "deep", 9.5),
        line(handle, "tone", 7.0),
        line("M70 40 C86 40 88 62 72 67", "pale", 1.4, 0.6),
        body(side),
        body(ellipse(44, 24, 29, 7.5), "pale"),
        flat(ellipse(44, 25.5, 25.5, 5.6), "deep", 0.75),
        flat("M22 36 C23 54 25 68 28 80 L32 81 C29 68 27 54 27 37 Z", "white", 0.4),
    ]


_STRAIGHT = "M15 24 C15 33 73 33 73 24 L70 84 C68 93 20 93 18 84 Z"
_ROUND = "M15 24 C15 33 73 33 73 24 C76 50 74 74 62 88 C54 92 34 92 26 88 C14 74 12 50 15 24 Z"


def lamp(look: Look, dice: np.random.Generator) -> list[Part]:
    """A table lamp, its shade in the product's colour."""
    shade = pick(
        dice,
        ["M36 8 L64 8 L82 48 C66 54 34 54 18 48 Z", "M26 10 L74 10 L78 48 C66 53 34 53 22 48 Z"],
    )
    foot = pick(dice, [_stem, _vase, _tripod])()
    return [*foot, body(shade), flat("M30 47 C40 51 60 51 70 47 L60 16 L40 16 Z", "glow", 0.2)]


def _stem() -> list[Part]:
    return [
        body("M48 48 L52 48 L52 88 L48 88 Z", "gold"),
        body("M32 90 C32 86 68 86 68 90 L68 94 C68 97 32 97 32 94 Z", "gold"),
    ]


def _vase() -> list[Part]:
    return [body("M46 50 L54 50 L54 58 C66 64 68 84 60 95 L40 95 C32 84 34 64 46 58 Z", "white")]


def _tripod() -> list[Part]:
    legs = both(body("M46 50 L50 50 L33 96 L28 96 Z", "wood"))
    return [*legs, body("M48 50 L52 50 L52 95 L48 95 Z", "wood")]


def cushion(look: Look, dice: np.random.Generator) -> list[Part]:
    """A square cushion with pinched corners."""
    pillow = (
        "M10 12 C24 18 76 18 90 12 C92 14 92 16 91 18 C84 36 84 64 91 82 C92 86 90 90 88 90 "
        "C72 84 28 84 12 90 C9 90 8 86 9 82 C16 64 16 36 9 18 C8 15 8 13 10 12 Z"
    )
    button = [body(ellipse(50, 50, 3.4), "deep")]
    tassels = [Part(f"M{x} {y} L{a} {b}", "accent", "line", 3.0) for x, y, a, b in _CORNERS]
    return [
        *(tassels if dice.random() < 0.4 else []),
        body(pillow),
        line("M13 15 C26 20 74 20 87 15", "stitch", 0.8, 0.7),
        line("M14 87 C28 81 72 81 86 87", "stitch", 0.8, 0.7),
        *both(
            line("M20 24 C27 29 31 33 33 38", "deep", 1.6, 0.3),
            line("M20 78 C27 74 31 70 33 64", "deep", 1.6, 0.3),
        ),
        *(button if dice.random() < 0.4 else []),
    ]


_CORNERS = ((10, 12, 4, 5), (90, 12, 96, 5), (88, 90, 95, 97), (12, 90, 5, 97))


def chair(look: Look, dice: np.random.Generator) -> list[Part]:
    """A chair on four legs: an upholstered armchair or a dining chair."""
    return pick(dice, [_armchair, _dining])()


def _armchair() -> list[Part]:
    return [
        *both(body("M26 80 L32 80 L28 97 L25 97 Z", "wood")),
        body("M26 16 C34 9 66 9 74 16 C78 30 78 46 76 62 L24 62 C22 46 22 30 26 16 Z"),
        line("M50 14 L50 54", "deep", 0.9, 0.4),
        body("M20 84 C18 80 20 66 24 64 L76 64 C80 66 82 80 80 84 Z", "deep"),
        body(
            "M24 54 C36 51 64 51 76 54 C78 60 78 66 76 69 C60 72 40 72 24 69 C22 66 22 60 24 54 Z"
        ),
        *both(body("M12 46 C16 41 24 42 26 48 L27 84 L17 86 C14 74 11 58 12 46 Z")),
    ]


def _dining() -> list[Part]:
    return [
        *both(body("M32 52 L36 52 L38 88 L35.4 88 Z", "wood")),
        body("M28 8 C40 4 60 4 72 8 C74 22 73 38 70 52 L30 52 C27 38 26 22 28 8 Z"),
        *both(body("M25 62 L31 62 L27 97 L23.4 97 Z", "wood")),
        body("M26 50 C40 47 60 47 74 50 L80 61 C80 65 78 67 75 67 L25 67 C22 67 20 65 20 61 Z"),
        line("M21 62 L79 62", "deep", 0.8, 0.5),
    ]


def kettle(look: Look, dice: np.random.Generator) -> list[Part]:
    """A kettle: a stove kettle with an arched handle, or an electric jug."""
    return pick(dice, [_stove, _jug])()


def _stove() -> list[Part]:
    return [
        line("M30 42 C26 8 74 8 70 42", "dark", 5.0),
        line("M38 19 C45 15 55 15 62 19", "wood", 5.6),
        body("M68 66 C80 62 82 46 94 38 L98 42 C90 54 90 76 72 82 Z", "deep"),
        body(
            "M50 36 C70 36 82 56 82 80 C82 88 78 91 70 91 L30 91 "
            "C22 91 18 88 18 80 C18 56 30 36 50 36 Z"
        ),
        body("M34 40 C40 34 60 34 66 40 C60 44 40 44 34 40 Z", "deep"),
        body(ellipse(50, 33, 4), "dark"),
        flat("M28 62 C30 54 34 48 39 46 L43 47 C36 52 33 62 32 76 L27 78 Z", "white", 0.4),
        line("M19 84 L81 84", "steel", 1.4, 0.8),
    ]


def _jug() -> list[Part]:
    return [
        line("M28 24 C2 22 4 76 26 78", "dark", 6.0),
        body("M66 22 L88 24 L70 42 Z"),
        body("M30 20 L68 20 C72 44 76 66 77 84 L23 84 C24 66 28 44 30 20 Z"),
        body("M30 20 C32 13 66 13 68 20 Z", "dark"),
        body(ellipse(49, 12.5, 4, 3), "dark"),
        body("M21 84 L79 84 C81 90 80 93 76 93 L24 93 C20 93 19 90 21 84 Z", "dark"),
        flat("M34 27 L40 27 C36 46 34 62 33 78 L28 78 C29 62 31 44 34 27 Z", "white", 0.38),
        flat("M58 42 L61 42 L63 74 L59 74 Z", "dark", 0.5),
    ]
