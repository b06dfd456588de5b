"""Bags and accessories: what is carried or worn on top."""

import numpy as np

from simulations.world.drawing.parts import Look, Paint, Part, body, both, flat, line, pick
from simulations.world.drawing.paths import box, ellipse

_METALS: tuple[Paint, ...] = ("steel", "gold")


def backpack(look: Look, dice: np.random.Generator) -> list[Part]:
    """A backpack from the front: handle, main zip, front pocket, side straps."""
    sack = (
        "M50 12 C70 12 79 24 80 42 L82 82 C82 90 76 93 68 93 L32 93 "
        "C24 93 18 90 18 82 L20 42 C21 24 30 12 50 12 Z"
    )
    pocket = pick(
        dice,
        [box(28, 56, 72, 86, 7), "M30 58 L70 58 C74 68 74 80 70 87 L30 87 C26 80 26 68 30 58 Z"],
    )
    return [
        line("M41 14 C41 3 59 3 59 14", "deep", 3.2),
        *both(body("M20 46 C12 50 10 64 11 84 L19 88 L22 60 Z", "deep")),
        body(sack),
        line("M24 50 C24 28 34 19 50 19 C66 19 76 28 76 50", "dark", 1.6, 0.85),
        flat(box(72.5, 46, 76.5, 55, 1.5), "steel"),
        body(pocket),
        line("M31 62 L69 62", "dark", 1.5, 0.85),
        flat(box(62, 61, 65, 68, 1), "steel"),
        body(box(41, 33, 59, 43, 2), "accent"),
    ]


def handbag(look: Look, dice: np.random.Generator) -> list[Part]:
    """A handbag with one arched handle; with a flap, or open with a clasp."""
    bag = (
        "M22 42 L78 42 C82 56 86 72 87 86 C87 90 84 92 80 92 L20 92 "
        "C16 92 13 90 13 86 C14 72 18 56 22 42 Z"
    )
    handle = [
        line("M31 46 C31 6 69 6 69 46", "deep", 4.6),
        line("M31 46 C31 7 69 7 69 46", "tone", 2.6),
    ]
    return [*handle, body(bag), *pick(dice, [_flap, _clasp])()]


def _flap() -> list[Part]:
    return [
        body("M20 41 L80 41 C83 52 82 62 74 66 L26 66 C18 62 17 52 20 41 Z"),
        line("M23 60 C25 63 27 64 29 64 L71 64 C73 64 75 63 77 60", "stitch", 0.6, 0.8),
        body(box(43, 59, 57, 72, 2.5), "gold"),
        flat(box(47, 63, 53, 67, 1), "dark", 0.7),
    ]


def _clasp() -> list[Part]:
    return [
        body("M21 41 L79 41 L80.6 49 L19.4 49 Z", "deep"),
        body(ellipse(50, 48, 5), "gold"),
        line("M24 52 L19 88", "stitch", 0.6, 0.8),
        line("M76 52 L81 88", "stitch", 0.6, 0.8),
        *both(flat(ellipse(31, 46, 2.4), "gold")),
    ]


def watch(look: Look, dice: np.random.Generator) -> list[Part]:
    """A wrist watch, its strap in the product's colour."""
    case: Paint = pick(dice, _METALS)
    dark_strap = look.colour in ("black", "navy", "brown", "burgundy", "olive")
    face: Paint = "white" if dark_strap or dice.random() < 0.5 else "dark"
    hands: Paint = "dark" if face == "white" else "white"
    strap = "M39 30 C40 18 41 10 41 3 C46 1 54 1 59 3 C59 10 60 18 61 30 Z"
    lower = "M39 70 C40 82 41 90 42 97 C46 100 54 100 58 97 C59 90 60 82 61 70 Z"
    ticks = [line(path, hands, 1.4) for path in _ticks()]
    return [
        body(strap),
        body(lower),
        *[flat(ellipse(50, y, 1.0), "dark", 0.7) for y in (80, 85, 90)],
        body(box(72, 46, 78, 54, 1.5), case),
        body(ellipse(50, 50, 24.5), case),
        body(ellipse(50, 50, 20.5), face),
        *ticks,
        line("M50 50 L50 36", hands, 1.8),
        line("M50 50 L60 55", hands, 2.2),
        flat(ellipse(50, 50, 2), "gold"),
    ]


def _ticks() -> list[str]:
    turns = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    ends = [(np.cos(t), np.sin(t)) for t in turns]
    return [
        f"M{50 + 15.5 * c:.2f} {50 + 15.5 * s:.2f} L{50 + 18 * c:.2f} {50 + 18 * s:.2f}"
        for c, s in ends
    ]


_LENSES = (
    "M10 40 C18 36 36 36 46 40 C47 52 42 64 29 64 C16 64 9 54 10 40 Z",
    "M12 38 L44 38 C46 46 46 54 42 62 C34 65 22 65 14 62 C10 54 10 46 12 38 Z",
    ellipse(28, 50, 17),
)


def sunglasses(look: Look, dice: np.random.Generator) -> list[Part]:
    """Sunglasses from the front: the frame has the product's colour, the lenses are dark."""
    lens = pick(dice, _LENSES)
    return [
        *both(line("M12 42 C6 38 4 34 6 24", "deep", 2.6)),
        line("M44 45 C47 41 53 41 56 45", "tone", 4.2),
        *both(
            body(lens, "dark"),
            flat("M18 44 L27 42 L18 58 C16 54 16 48 18 44 Z", "white", 0.28),
            line(lens + " " + lens.split(" C")[0].split(" L")[0].replace("M", "L"), "tone", 4.4),
            line(lens, "pale", 1.0, 0.6),
        ),
    ]


def belt(look: Look, dice: np.random.Generator) -> list[Part]:
    """A belt rolled into a ring, its buckle in front and its end hanging free."""
    metal: Paint = pick(dice, _METALS)
    band = "M8 46 C8 62 28 72 50 72 C72 72 92 62 92 46 L92 60 C92 78 72 88 50 88 C28 88 8 78 8 60 Z"
    inside = (
        "M8 46 C8 31 28 22 50 22 C72 22 92 31 92 46 L92 56 C90 42 72 34 50 34 C28 34 10 42 8 56 Z"
    )
    buckle = "M30 66 L54 70 L54 90 L30 86 Z"
    return [
        body(inside, "deep"),
        body(band),
        line("M9 51 C11 66 30 75 50 75 C70 75 89 66 91 51", "stitch", 0.7),
        line("M10 66 C14 77 32 85 50 85 C68 85 86 77 90 66", "stitch", 0.7),
        *[flat(ellipse(x, y, 1.3, 1.7), "dark") for x, y in ((62, 80), (69, 78), (76, 75))],
        line(buckle + " L30 66", metal, 3.4),
        line("M31 76 L56 80", metal, 2.2),
    ]
