"""Footwear, drawn from the side with the toe to the right; sandals from above, as a pair."""

import numpy as np

from simulations.world.drawing.parts import Look, Part, body, both, flat, line, pick
from simulations.world.drawing.paths import box, ellipse

_BOOT = (
    "M26 14 C35 11 47 11 55 14 C54 26 54 36 57 44 C61 53 73 56 82 60 C89 63 92 68 92 76 "
    "L20 76 C19 67 22 59 23 49 C24 37 25 26 26 14 Z"
)


def ankle_boots(look: Look, dice: np.random.Generator) -> list[Part]:
    """A boot to above the ankle: elastic sides, laces or a buckled strap."""
    front = pick(dice, [_elastic, _laced, _buckled])()
    heel = "M20 76 L46 76 C44 80 44 83 45 88 L21 88 C19 84 19 80 20 76 Z"
    return [
        body(heel, "dark"),
        line("M31 14 C29 9 30 6 34 6 C38 6 39 9 37 13", "deep", 1.6),
        body(_BOOT),
        flat("M26 14 C35 11 47 11 55 14 C47 17 35 17 26 14 Z", "deep", 0.9),
        *front,
        line("M22 62 C26 66 26 70 25 75", "deep", 0.8, 0.6),
        body(
            "M19 75 L92 75 C94 79 93 84 89 84 L54 84 C46 82 30 80 20 82 C18 79 18 77 19 75 Z",
            "dark",
        ),
        line("M21 75 L91 75", "stitch", 0.6, 0.7),
    ]


def _elastic() -> list[Part]:
    gusset = "M35 18 L48 18 C48 32 46 44 43 52 L38 52 C35 44 34 32 35 18 Z"
    ribs = [line(f"M{x} 19 L{x} 50", "dark", 0.5, 0.5) for x in (38, 40, 42, 44)]
    return [flat(gusset, "dark", 0.8), *ribs]


def _laced() -> list[Part]:
    tongue = "M45 15 L55 14 C54 26 54 36 58 45 L64 51 L58 53 C49 47 45 34 45 15 Z"
    rows = [(47, 20), (47, 27), (48, 34), (51, 41), (56, 47)]
    laces = [line(f"M{x - 3} {y + 1} L{x + 6} {y - 2}", "white", 1.3) for x, y in rows]
    return [flat(tongue, "deep", 0.8), *laces]


def _buckled() -> list[Part]:
    strap = "M22 54 C34 50 48 48 60 47 L63 52 C50 54 36 56 21 61 Z"
    return [
        line("M40 16 C40 30 40 40 42 48", "steel", 0.9, 0.9),
        body(strap, "deep"),
        line("M44 48 L51 47 L52 54 L45 55 Z", "gold", 1.3),
    ]


def trainers(look: Look, dice: np.random.Generator) -> list[Part]:
    """A laced sports shoe with a thick sole and a flash on its side."""
    upper = (
        "M12 69 C10 57 11 46 13 37 C14 33 19 33 21 37 C24 43 30 45 35 41 C38 38 41 35 44 33 "
        "L64 48 C72 53 82 54 87 58 C92 62 93 66 92 70 L12 70 Z"
    )
    sole = (
        "M10 69 C12 66 15 66 18 67 C40 70 66 69 88 66 C93 66 95 71 93 76 C92 80 87 81 80 81 "
        "L20 81 C13 81 8 77 10 69 Z"
    )
    laces = [line(f"M{x} {y} L{x + 9} {y - 5}", "white", 1.5) for x, y in _LACE_HOLES]
    return [
        body("M36 42 L43 27 C46 24 51 26 51 31 L50 42 Z", "deep"),
        body(upper),
        body("M12 69 C10 57 11 46 13 37 C14 34 17 33 19 35 C23 46 23 58 24 69 Z", "accent"),
        body("M73 54 C83 55 93 60 92 70 L72 70 C70 64 70 59 73 54 Z", "tone"),
        line("M73 54 C70 59 70 64 72 70", "stitch", 0.7, 0.8),
        *pick(dice, [_flash, _bars, _wave])(),
        flat("M40 42 L46 35 L67 51 L60 54 Z", "deep", 0.55),
        *laces,
        body(sole, "sole"),
        line("M12 74 C36 77 66 76 92 73", "accent", 1.2, 0.9),
    ]


_LACE_HOLES = ((42, 43), (46, 46.5), (50.5, 50), (55, 53))


def _flash() -> list[Part]:
    return [flat("M27 61 C40 62 52 58 61 53 L65 56 C54 65 40 70 29 68 Z", "accent")]


def _bars() -> list[Part]:
    return [flat(f"M{x} 68 L{x + 6} 50 L{x + 10} 52 L{x + 5} 68 Z", "accent") for x in (30, 38, 46)]


def _wave() -> list[Part]:
    return [line("M26 56 C34 48 38 68 46 62 C52 58 56 58 66 62", "accent", 2.6)]


def sandals(look: Look, dice: np.random.Generator) -> list[Part]:
    """A pair of strapped sandals, seen from above."""
    sole = (
        "M29 7 C40 6 46 18 45 33 C44 44 41 53 43 66 C44 83 39 94 30 94 C21 94 17 84 18 68 "
        "C19 55 13 43 13 29 C13 15 19 8 29 7 Z"
    )
    inner = (
        "M29 11 C38 10 42 20 41 33 C40 44 38 53 39 67 C40 81 36 90 30 90 C24 90 21 82 22 68 "
        "C23 55 17 43 17 29 C17 18 22 12 29 11 Z"
    )
    return both(
        body(sole, "dark"), body(inner, "tan"), *pick(dice, [_two_bands, _crossed, _thong])()
    )


def _two_bands() -> list[Part]:
    return [
        body("M10 24 C22 17 38 17 48 24 L47 37 C38 30 22 30 12 38 Z"),
        body("M14 46 C24 41 37 41 46 46 L44 58 C37 53 26 53 17 58 Z"),
        *[
            line(f"M{x} {y} L{x + 5} {y} L{x + 5} {y + 6} L{x} {y + 6} Z", "gold", 1.2)
            for x, y in ((15, 26), (18, 48))
        ],
    ]


def _crossed() -> list[Part]:
    return [
        body("M11 22 L18 17 C28 30 38 40 46 46 L44 56 C32 48 18 36 11 22 Z"),
        body("M48 22 L41 17 C32 30 22 40 14 46 L17 56 C28 48 41 36 48 22 Z"),
        body("M17 72 C25 66 36 66 44 72 L44 79 C36 74 25 74 17 79 Z"),
    ]


def _thong() -> list[Part]:
    return [
        body(
            "M30 18 C20 26 13 36 13 48 L18 55 C20 42 24 32 30 26 "
            "C35 32 38 42 41 55 L46 48 C46 36 39 26 30 18 Z"
        ),
        flat(ellipse(30, 20, 2.6), "gold"),
    ]


def heels(look: Look, dice: np.random.Generator) -> list[Part]:
    """A court shoe on a high, thin heel, sometimes with an ankle strap or a bow."""
    upper = (
        "M13 30 C16 27 20 29 21 33 C25 44 35 58 51 64 C58 58 66 60 74 67 C82 73 91 79 94 85 "
        "C95 89 93 91 89 91 L74 91 C59 90 48 82 40 72 C33 62 27 57 21 58 C15 53 12 41 13 30 Z"
    )
    lining = "M13 31 C17 27 21 30 24 37 C32 54 47 63 59 61 C47 71 20 60 13 31 Z"
    heel = "M14 47 C16 54 20 57 25 56 C20 65 19 78 18.5 92 L14.5 92 C14.5 78 12 62 14 47 Z"
    return [
        body(heel, "deep"),
        flat(lining, "tan"),
        body(upper),
        flat("M16 31 C18 29 20 31 21 34 C25 45 35 58 51 64 C32 62 24 52 16 31 Z", "deep", 0.4),
        line("M22 58 C28 57 33 62 40 72 C50 85 60 91 74 91.5 L90 91", "dark", 1.5),
        *pick(dice, [_nothing, _ankle_strap, _bow])(),
    ]


def _nothing() -> list[Part]:
    return []


def _ankle_strap() -> list[Part]:
    strap = "M15 33 C20 21 36 19 44 27 C38 35 22 39 15 33"
    return [line(strap, "tone", 2.4), flat(box(39, 25, 44, 31, 1), "gold")]


def _bow() -> list[Part]:
    left = body("M61 62 L51 55 C49 59 50 65 53 68 Z")
    return [left, body("M61 62 L72 58 C75 63 73 69 70 71 Z"), body(ellipse(61.5, 62.5, 2.8))]


def loafers(look: Look, dice: np.random.Generator) -> list[Part]:
    """A low slip-on shoe with a strap or a tassel over the foot."""
    upper = (
        "M10 70 C8 59 8 49 11 43 C13 40 17 41 20 44 C30 51 41 53 49 48 C56 43 63 46 69 51 "
        "C79 55 89 59 92 66 C93 70 92 72 91 73 L10 73 Z"
    )
    return [
        flat("M12 44 C20 37 42 39 50 48 C42 56 22 54 12 44 Z", "tan"),
        flat("M12 44 C20 39 40 41 48 48 C40 51 22 49 12 44 Z", "dark", 0.5),
        body(upper),
        line("M63 48 C72 56 84 58 89 66", "stitch", 0.9, 0.9),
        line("M62 52 C70 60 80 62 86 69", "deep", 0.9, 0.6),
        *pick(dice, [_penny, _tassel])(),
        line("M22 46 C25 56 25 64 24 72", "stitch", 0.6, 0.7),
        body("M9 72 L92 72 C94 75 93 78 89 78 L42 78 L40 84 L11 84 C9 80 8 76 9 72 Z", "dark"),
    ]


def _penny() -> list[Part]:
    return [
        body(
            "M41 52 C47 46 55 43 63 47 L66 51 C60 56 54 64 51 73 L38 73 C38 64 39 57 41 52 Z",
            "deep",
        ),
        flat("M50 55 L58 52 L56 56 L48 59 Z", "dark", 0.9),
    ]


def _tassel() -> list[Part]:
    fringe = [line(f"M58 50 L{x} 65", "deep", 1.4) for x in (50, 53, 56, 59, 62)]
    return [
        line("M22 46 C34 55 48 54 58 48", "stitch", 1.4),
        *fringe,
        body(ellipse(58, 50, 3.2), "deep"),
    ]
