"""Clothing, laid flat and seen from the front."""

import numpy as np

from simulations.world.drawing.parts import Look, Part, body, both, flat, line, pick
from simulations.world.drawing.paths import box, ellipse

_TORSO = (
    "M35 13 C42 19 58 19 65 13 L76 18 C79 30 77 42 77 54 C77 68 78 80 79 88 C60 92 40 92 21 88 "
    "C22 80 23 68 23 54 C23 42 21 30 24 18 Z"
)
_SLEEVE = "M26 17 C17 20 13 30 11 42 C8 58 6 70 4 82 L16 86 C20 70 24 56 28 44 C30 34 30 24 26 17 Z"
_CUFF = "M4.6 77 L17.4 81 L15.6 88 L3 84 Z"
_NECK = "M36 13.5 C42 9.5 58 9.5 64 13.5 C58 20 42 20 36 13.5 Z"


def t_shirt(look: Look, dice: np.random.Generator) -> list[Part]:
    """A short-sleeved top with a round or V-shaped neck."""
    shirt = (
        "M35 13 C42 20 58 20 65 13 L75 17 C84 21 91 31 96 41 L82 50 L75.5 42 C76 58 76 74 77 90 "
        "C60 93 40 93 23 90 C24 74 24 58 24.5 42 L18 50 L4 41 C9 31 16 21 25 17 Z"
    )
    neck = pick(dice, ["M35 13 C42 20 58 20 65 13", "M35 13 L50 27 L65 13"])
    inside = neck.replace("M35 13", "M35 13 C42 9.5 58 9.5 65 13 L35 13")
    badge = [flat(ellipse(50, 45, 9), "accent"), flat(ellipse(50, 45, 5.5), "tone")]
    show = look.pattern == "plain" and dice.random() < 0.35
    return [
        body(shirt),
        flat(inside + " Z", "deep"),
        line(neck, "deep", 1.8, 0.8),
        *both(
            line("M25 17 C28 26 27 35 24.5 42", "deep", 0.8, 0.6),
            line("M7 37 L20 46", "stitch", 0.5, 0.6),
        ),
        line("M23.5 86.5 C40 89.5 60 89.5 76.6 86.5", "stitch", 0.5, 0.6),
        *_folds(),
        *(badge if show else []),
    ]


def _folds() -> list[Part]:
    return both(
        line("M29 48 C34 52 37 58 37 64", "deep", 1.6, 0.22),
        line("M30 70 C34 74 36 80 35 86", "deep", 1.6, 0.2),
    )


def shirt(look: Look, dice: np.random.Generator) -> list[Part]:
    """A long-sleeved shirt with collar, button placket and cuffs."""
    collar = body("M36 11 C40 9 46 9 50 16 L44 28 L32 17 Z")
    pocket = [body(box(57, 36, 70, 51, 1.5)), line("M57 40 L70 40", "deep", 0.6, 0.7)]
    return [
        *both(body(_SLEEVE), body(_CUFF)),
        body(_TORSO),
        flat("M38 12 C44 9 56 9 62 12 L50 22 Z", "deep"),
        *both(line("M24.5 18 C28 26 29 34 28 44", "deep", 0.8, 0.5)),
        *both(line("M47.2 20 L47.2 90", "deep", 0.5, 0.7)),
        *(pocket if dice.random() < 0.6 else []),
        *_folds(),
        *both(collar),
        *[flat(ellipse(50, y, 1.3), "white") for y in range(29, 88, 11)],
        *[line(f"M49.5 {y} L50.5 {y}", "dark", 0.6, 0.8) for y in range(29, 88, 11)],
    ]


def jumper(look: Look, dice: np.random.Generator) -> list[Part]:
    """A knitted top with ribbed neck, cuffs and hem."""
    hem = "M21.6 81 C40 85 60 85 78.4 81 L79 89 C60 93 40 93 21 89 Z"
    neck = pick(dice, [_crew, _roll, _vee])()
    return [
        *both(body(_SLEEVE), body(_CUFF, "deep")),
        body(_TORSO),
        *both(line("M24.5 18 C28 26 29 34 28 44", "deep", 1.0, 0.6)),
        *_folds(),
        body(hem, "deep"),
        *[line(f"M{x} 84 L{x} 91", "dark", 0.6, 0.35) for x in range(25, 78, 4)],
        *neck,
    ]


def _crew() -> list[Part]:
    return [flat(_NECK, "dark", 0.7), line("M35 13 C42 20.5 58 20.5 65 13", "deep", 3.4)]


def _roll() -> list[Part]:
    return [
        body("M37 5 C44 3 56 3 63 5 C65 9 65 13 64 17 C56 21 44 21 36 17 C35 13 35 9 37 5 Z"),
        line("M36 10 C44 13 56 13 64 10", "deep", 1.0, 0.6),
        flat("M39 5.5 C45 4 55 4 61 5.5 C55 8 45 8 39 5.5 Z", "dark", 0.6),
    ]


def _vee() -> list[Part]:
    return [
        flat("M36 13 C42 9 58 9 64 13 L50 31 Z", "white"),
        line("M35 13 L50 32 L65 13", "deep", 2.8),
    ]


def hoodie(look: Look, dice: np.random.Generator) -> list[Part]:
    """A sweatshirt with hood, drawstrings and a pouch pocket."""
    hood = "M30 19 C27 8 37 1 50 1 C63 1 73 8 70 19 C66 26 58 29 50 29 C42 29 34 26 30 19 Z"
    pouch = "M35 62 L65 62 L72 81 L28 81 Z"
    zipped = [line("M50 27 L50 89", "steel", 1.4), flat(box(48.8, 30, 51.2, 36, 1), "steel")]
    return [
        *both(body(_SLEEVE), body(_CUFF, "deep")),
        body(_TORSO),
        *both(line("M24.5 18 C28 26 29 34 28 44", "deep", 1.0, 0.6)),
        body("M21.8 82 C40 86 60 86 78.2 82 L79 89 C60 93 40 93 21 89 Z", "deep"),
        body(hood),
        flat(
            "M36 16 C36 8 42 5 50 5 C58 5 64 8 64 16 C60 22 56 25 50 26 C44 25 40 22 36 16 Z",
            "dark",
            0.72,
        ),
        body(pouch),
        *both(line("M35 62 L28 78", "stitch", 0.7, 0.8)),
        *(zipped if dice.random() < 0.35 else []),
        *both(line("M44 25 C43 32 43 38 44 44", "white", 1.4), flat(ellipse(44, 45, 1.2), "steel")),
    ]


def dress(look: Look, dice: np.random.Generator) -> list[Part]:
    """A dress with a fitted waist and a flared skirt."""
    top = (
        "M35 8 L40 8 C41 22 59 22 60 8 L65 8 C65 18 70 23 72 27 "
        "C68 35 66 42 65 47 L35 47 C34 42 32 35 28 27 C30 23 35 18 35 8 Z"
    )
    low = pick(dice, [96.0, 84.0])
    skirt = (
        f"M35 46 L65 46 C71 62 80 {low - 16:.0f} 85 {low - 8:.0f} "
        f"C66 {low + 1:.0f} 34 {low + 1:.0f} 15 {low - 8:.0f} C20 {low - 16:.0f} 29 62 35 46 Z"
    )
    sleeve = both(body("M36 9 C28 11 22 17 18 27 L28 33 C30 27 33 22 36 18 Z"))
    folds = [
        line(f"M{a} 50 C{a} 62 {b} 74 {b} {low - 4:.0f}", "deep", 1.3, 0.35)
        for a, b in ((41, 32), (47, 45), (53, 55), (59, 68))
    ]
    return [
        *(sleeve if dice.random() < 0.5 else []),
        body(skirt),
        *folds,
        body(top),
        body("M34.6 44 L65.4 44 L65.8 49.5 L34.2 49.5 Z", pick(dice, ["deep", "accent"])),
    ]


def skirt(look: Look, dice: np.random.Generator) -> list[Part]:
    """A skirt: flared with pleats, or straight."""
    flared = "M33 20 L67 20 C72 42 84 66 90 82 C68 91 32 91 10 82 C16 66 28 42 33 20 Z"
    straight = (
        "M31 20 L69 20 C74 34 75 46 75 58 L73 88 C60 91 40 91 27 88 L25 58 C25 46 26 34 31 20 Z"
    )
    shape = pick(dice, [flared, flared, straight])
    pleats = [
        line(f"M{a} 22 L{b} 86", "deep", 1.3, 0.45)
        for a, b in ((38, 24), (44, 38), (50, 50), (56, 62), (62, 76))
    ]
    slit = [line("M50 24 L50 66", "deep", 0.8, 0.6), line("M50 66 L50 89", "dark", 1.4, 0.7)]
    return [
        body(shape),
        *(pleats if shape == flared else slit),
        body("M32.6 12 L67.4 12 L68 21 L32 21 Z", "deep"),
        flat(ellipse(50, 16.5, 1.6), "gold"),
    ]


def trousers(look: Look, dice: np.random.Generator) -> list[Part]:
    """Long trousers with waistband, fly and pockets; jeans where the material is denim."""
    wide = pick(dice, [0, 0, 6])
    leg = f"M50 8 L29 8 C27 20 24 36 {24 - wide} 94 L{44} 94 C46 76 48 56 50 40 Z"
    return [
        *both(body(leg)),
        line("M50 10 L50 42", "deep", 0.9, 0.7),
        line("M50 34 C54 33 55 28 55 14", "stitch", 0.7),
        *both(
            line("M29.5 26 C35 25 38 20 39 14", "stitch", 0.9),
            line(f"M{34 - wide / 2} 34 L{34 - wide} 92", "deep", 0.8, 0.3),
            line(f"M{24 - wide} 90 L44 90", "stitch", 0.6, 0.9),
        ),
        body("M28.6 7 L71.4 7 L71.8 14 L28.2 14 Z", "tone"),
        *[flat(box(x - 1, 6, x + 1, 15, 0.5), "deep") for x in (34, 43, 57, 66)],
        line("M28.2 14 L71.8 14", "stitch", 0.6),
        flat(ellipse(50, 10.5, 1.8), "gold"),
    ]


def jacket(look: Look, dice: np.random.Generator) -> list[Part]:
    """A jacket: biker for leather, hooded for nylon, buttoned for denim, a long coat for wool."""
    cut = {"leather": _biker, "nylon": _rain, "denim": _trucker}.get(look.material, _coat)
    return [*both(body(_SLEEVE), line("M5 78 L17 82", "stitch", 0.8, 0.8)), *cut()]


def _biker() -> list[Part]:
    lapel = body("M36 11 L49 22 L42 40 L27 24 Z")
    return [
        body(_TORSO),
        flat("M37 12 C44 9 56 9 63 12 L51 26 Z", "dark", 0.8),
        line("M52 26 C47 50 46 70 46 89", "steel", 1.8),
        *both(lapel, line("M27 66 L36 58", "steel", 1.5)),
        body("M21.6 82 C40 86 60 86 78.4 82 L79 89 C60 93 40 93 21 89 Z", "deep"),
        flat(box(44, 83, 51, 90, 1), "steel"),
    ]


def _rain() -> list[Part]:
    hood = "M31 18 C28 8 38 2 50 2 C62 2 72 8 69 18 C65 25 58 28 50 28 C42 28 35 25 31 18 Z"
    return [
        body(_TORSO),
        body(hood),
        flat(
            "M38 16 C38 9 43 7 50 7 C57 7 62 9 62 16 C58 21 55 23 50 24 C45 23 42 21 38 16 Z",
            "dark",
            0.7,
        ),
        line("M50 25 L50 90", "deep", 3.0),
        line("M50 25 L50 90", "steel", 1.2),
        *both(line("M30 62 L38 76", "dark", 1.4, 0.8), line("M44 24 L43 36", "white", 1.2)),
    ]


def _trucker() -> list[Part]:
    flap = [body(box(29, 34, 44, 40, 1)), line("M29 34 L31 56 L42 56 L44 34", "stitch", 0.7)]
    return [
        body(_TORSO),
        flat("M38 12 C44 9 56 9 62 12 L50 20 Z", "dark", 0.7),
        line("M24 34 L76 34", "stitch", 0.8),
        *both(*flap, line("M46 34 L40 84", "stitch", 0.7), line("M47 20 L47 84", "stitch", 0.7)),
        body("M22 82 C40 86 60 86 78 82 L79 89 C60 93 40 93 21 89 Z", "tone"),
        *both(body("M36 11 C40 9 46 9 50 17 L42 27 L31 17 Z", "tone")),
        *[flat(ellipse(50, y, 1.4), "gold") for y in (28, 40, 52, 64, 76, 86)],
    ]


def _coat() -> list[Part]:
    lapel = body("M37 10 L50 34 L43 44 L31 30 L34 26 L28 20 Z")
    long = (
        "M35 12 C42 16 58 16 65 12 L76 18 C79 30 77 42 77 54 C78 70 80 84 82 97 "
        "C60 99 40 99 18 97 C20 84 22 70 23 54 C23 42 21 30 24 18 Z"
    )
    return [
        body(long),
        flat("M37 11 C44 8 56 8 63 11 L50 34 Z", "dark", 0.65),
        line("M54 36 L54 97", "deep", 0.9, 0.8),
        *both(lapel, body("M27 64 L40 62 L40 67 L27 69 Z", "deep")),
        *[flat(ellipse(x, y, 1.8), "dark") for x in (46, 58) for y in (48, 58, 74)],
    ]


def scarf(look: Look, dice: np.random.Generator) -> list[Part]:
    """A scarf looped around an unseen neck, with two fringed ends."""
    left = "M34 34 L53 38 L50 84 L28 82 Z"
    right = "M46 36 L64 32 L74 72 L54 76 Z"
    ring = "M50 8 C70 8 80 17 80 27 C80 38 66 46 50 46 C34 46 20 38 20 27 C20 17 30 8 50 8 Z"
    fringe = [
        line(f"M{28.5 + 3.5 * i} {82 + 0.3 * i} L{27.5 + 3.7 * i} 92", "tone", 1.5)
        for i in range(7)
    ]
    back = [
        line(
            f"M{55 + 3.6 * i:.1f} {75.5 - 0.7 * i:.1f} L{57 + 3.7 * i:.1f} {85 - 0.7 * i:.1f}",
            "deep",
            1.5,
        )
        for i in range(6)
    ]
    return [
        *back,
        body(right),
        *fringe,
        body(left),
        body(ring),
        flat(
            "M50 13 C63 13 70 17 70 22 C70 27 62 30 50 30 C38 30 30 27 30 22 C30 17 37 13 50 13 Z",
            "dark",
            0.78,
        ),
        line("M24 32 C34 42 62 43 75 33", "deep", 1.2, 0.5),
        line("M26 24 C30 38 52 40 72 36", "deep", 1.0, 0.4),
    ]


def cap(look: Look, dice: np.random.Generator) -> list[Part]:
    """A cap with a peak, or a knitted hat where the material is wool."""
    return _beanie() if look.material == "wool" else _peaked(look, dice)


def _peaked(look: Look, dice: np.random.Generator) -> list[Part]:
    crown = "M12 62 C10 36 24 20 45 20 C66 20 78 36 78 60 C58 66 30 67 12 62 Z"
    peak = (
        "M44 62 C56 57 68 56 78 58 C90 60 98 66 97 71 C96 74 88 73 80 72 "
        "C66 70 54 71 42 73 C40 69 41 65 44 62 Z"
    )
    badge = [body(ellipse(58, 44, 8, 9), "accent")]
    return [
        body(crown),
        line("M45 20 C36 32 33 48 34 65", "stitch", 0.7, 0.8),
        line("M45 20 C60 28 66 44 66 62", "stitch", 0.7, 0.8),
        *(badge if dice.random() < 0.6 and look.pattern == "plain" else []),
        body(ellipse(45, 20, 3, 2), "deep"),
        body(peak, "deep" if dice.random() < 0.5 else "tone"),
        line("M45 66 C60 62 80 63 94 69", "stitch", 0.6, 0.8),
    ]


def _beanie() -> list[Part]:
    crown = "M18 68 C14 36 30 20 50 20 C70 20 86 36 82 68 Z"
    return [
        body(ellipse(50, 15, 10), "pale"),
        body(crown),
        body("M14 62 C36 57 64 57 86 62 L87 80 C64 85 36 85 13 80 Z", "tone"),
        *[line(f"M{x} 61 L{x} 82", "deep", 0.9, 0.5) for x in range(18, 86, 5)],
    ]
