import io
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from simulations.world.drawing.backdrop import STYLES
from simulations.world.drawing.colours import COLOURS, FINISHES
from simulations.world.drawing.parts import Look
from simulations.world.drawing.paths import Placement, box, ellipse, outline
from simulations.world.drawing.photo import PHOTO, SHAPES, photo_jpeg
from simulations.world.taxonomy import KINDS, PATTERNS

BOOT = Look("ankle boots", "red", "plain", "leather", "studio", "1")


def pixels(look: Look) -> NDArray[np.float64]:
    image = Image.open(io.BytesIO(photo_jpeg(look)))
    assert image.format == "JPEG" and image.size == (PHOTO, PHOTO)
    return np.asarray(image, dtype=np.float64)


def distance(a: Look, b: Look) -> float:
    return float(np.abs(pixels(a) - pixels(b)).mean())


def test_same_look_same_bytes() -> None:
    assert photo_jpeg(BOOT) == photo_jpeg(replace(BOOT))
    assert photo_jpeg(BOOT) != photo_jpeg(replace(BOOT, token="2"))


def test_every_type_can_be_drawn_and_is_described() -> None:
    assert set(SHAPES) == set(KINDS)
    materials = {material for kind in KINDS.values() for material in kind.materials}
    assert materials <= set(FINISHES)


def test_two_types_differ() -> None:
    looks = [replace(BOOT, kind=kind, material=KINDS[kind].materials[0]) for kind in KINDS]
    seen = [pixels(look) for look in looks]
    assert min(float(np.abs(a - b).mean()) for a, b in combinations(seen, 2)) > 5


@pytest.mark.parametrize("colour", [name for name in COLOURS if name != "red"])
def test_two_colours_differ_where_the_product_is(colour: str) -> None:
    cushion = replace(BOOT, kind="cushion", material="cotton")
    middle = slice(PHOTO // 3, 2 * PHOTO // 3)
    means = [
        pixels(look)[middle, middle].mean(axis=(0, 1))
        for look in (cushion, replace(cushion, colour=colour))
    ]
    assert np.abs(means[0] - means[1]).max() > 25


def test_patterns_and_styles_differ() -> None:
    shirt = replace(BOOT, kind="shirt", material="cotton")
    for a, b in combinations(PATTERNS, 2):
        assert distance(replace(shirt, pattern=a), replace(shirt, pattern=b)) > 2
    for a, b in combinations(STYLES, 2):
        assert distance(replace(shirt, style=a), replace(shirt, style=b)) > 5


def test_outline_of_lines_and_curves() -> None:
    assert outline("M1 2 L3 4 L-5 6.5 Z").tolist() == [[1, 2], [3, 4], [-5, 6.5]]
    curve = outline("M0 0 Q50 100 100 0")
    assert curve[-1].tolist() == [100, 0]
    assert curve[:, 1].max() == pytest.approx(50)  # a parabola's top: half its control point
    assert outline(box(10, 20, 30, 40)).min(axis=0).tolist() == [10, 20]
    radii = np.linalg.norm(outline(ellipse(50, 50, 10)) - 50, axis=1)
    assert radii == pytest.approx(np.full(len(radii), 10), rel=1e-3)


def test_placement_moves_scales_turns_and_mirrors() -> None:
    points = np.array([[50.0, 50.0], [60.0, 50.0]])
    assert Placement(7, 8, 2).apply(points).tolist() == [[7, 8], [27, 8]]
    assert Placement(0, 0, 1, mirrored=True).apply(points).tolist() == [[0, 0], [-10, 0]]
    turned = Placement(0, 0, 1, angle=np.pi / 2).apply(points)
    assert turned == pytest.approx(np.array([[0, 0], [0, 10]]))  # clockwise, as y points down
    half = Placement(8, 4, 2).shrunk(2).apply(points)
    assert half == pytest.approx(Placement(8, 4, 2).apply(points) / 2)
