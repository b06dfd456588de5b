"""One product photo from one `Look`: backdrop, shadow, parts with light and volume, JPEG.

Drawn at three times the size and averaged down. Volume comes from each part's own outline: its
mask, blurred, is taken for a height map, and the slope against the light gives shade and shine.
"""

import io
import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from simulations.world.drawing import carried, clothes, home, shoes
from simulations.world.drawing.backdrop import STYLES, backdrop
from simulations.world.drawing.colours import FINISHES, Finish, Rgb, luminance, mixed, palette
from simulations.world.drawing.parts import Look, Paint, Part
from simulations.world.drawing.paths import Placement, Points, outline
from simulations.world.drawing.textures import CANVAS, cloth

PHOTO = CANVAS // 3  # pixels a side
_QUALITY = 88
_COARSE = 4  # light is computed on masks this many times smaller
_SMALLEST = 80.0  # units: what is smaller than this stays a little smaller on the photo
_HARD = Finish(gloss=0.8, depth=0.7)  # soles, metal, wood: whatever is not the product's material

SHAPES = {
    "ankle boots": shoes.ankle_boots,
    "trainers": shoes.trainers,
    "sandals": shoes.sandals,
    "heels": shoes.heels,
    "loafers": shoes.loafers,
    "t-shirt": clothes.t_shirt,
    "shirt": clothes.shirt,
    "jumper": clothes.jumper,
    "hoodie": clothes.hoodie,
    "dress": clothes.dress,
    "skirt": clothes.skirt,
    "trousers": clothes.trousers,
    "jacket": clothes.jacket,
    "scarf": clothes.scarf,
    "cap": clothes.cap,
    "backpack": carried.backpack,
    "handbag": carried.handbag,
    "watch": carried.watch,
    "sunglasses": carried.sunglasses,
    "belt": carried.belt,
    "mug": home.mug,
    "lamp": home.lamp,
    "cushion": home.cushion,
    "chair": home.chair,
    "kettle": home.kettle,
}
# What stands on the floor keeps upright and has its shadow underneath.
STANDING = frozenset(
    {"ankle boots", "trainers", "heels", "loafers", "backpack", "handbag", "belt"}
    | {"mug", "lamp", "chair", "kettle"}
)


def photo_jpeg(look: Look) -> bytes:
    """Draw one product photo, PHOTO × PHOTO pixels, as JPEG."""
    file = io.BytesIO()
    draw_photo(look).save(file, "JPEG", quality=_QUALITY, subsampling=0)
    return file.getvalue()


def draw_photo(look: Look) -> Image.Image:
    """Draw one product photo, RGB, PHOTO × PHOTO pixels."""
    parts = SHAPES[look.kind](look, look.dice("shape"))
    place = _placement(look, parts)
    shapes = [(part, _landed(part, place)) for part in parts]
    image = backdrop(look)
    _cast_shadow(image, look, place, parts)
    _Painter(image, look, place).paint(shapes)
    return _tinted(image.reduce(3), STYLES[look.style].tint)


def _placement(look: Look, parts: list[Part]) -> Placement:
    """Where the product lands: each studio frames and tilts in its own way."""
    style, dice = STYLES[look.style], look.dice("placement")
    standing = look.kind in STANDING
    tilt = math.radians(style.tilt) * dice.uniform(-1, 1) * (0.12 if standing else 1.0)
    low, high = _extent(parts)
    place = Placement(
        x=CANVAS * dice.uniform(0.48, 0.52),
        y=CANVAS * ((0.525 if standing else 0.5) + dice.uniform(-0.015, 0.015)),
        scale=CANVAS * style.fill * dice.uniform(0.93, 1.03) / max(*(high - low), _SMALLEST),
        stretch=dice.uniform(0.95, 1.05),
        angle=tilt,
        mirrored=bool(dice.random() < 0.4) and standing,
    )
    off = place.apply((low + high)[None] / 2)[0]
    return replace(place, x=2 * place.x - float(off[0]), y=2 * place.y - float(off[1]))


def _extent(parts: list[Part]) -> tuple[Points, Points]:
    """Corners of the bodies' and thick lines' rectangle in the 100 × 100 box, (2,) each."""
    seen = [part for part in parts if part.mode == "body" or part.width > 2]
    points = np.concatenate([_unplaced(part) for part in seen])
    return points.min(axis=0), points.max(axis=0)


def _unplaced(part: Part) -> Points:
    points = outline(part.path)
    return np.stack([100 - points[:, 0], points[:, 1]], axis=1) if part.mirrored else points


def _landed(part: Part, place: Placement) -> Points:
    return place.apply(_unplaced(part))


def _flat(points: Points) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in points]


def _stroke(
    draw: ImageDraw.ImageDraw, points: Points, width: int, fill: tuple[int, ...] | int
) -> None:
    draw.line(_flat(points), fill=fill, width=max(width, 1), joint="curve")
    if width > 5:  # round ends, which Pillow's lines lack
        r = width / 2 - 0.5
        for x, y in (points[0], points[-1]):
            draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def _cast_shadow(image: Image.Image, look: Look, place: Placement, parts: list[Part]) -> None:
    """Darken the backdrop where the product keeps the light away."""
    style, small = STYLES[look.style], Image.new("L", (PHOTO, PHOTO))
    drop = style.fill * (3.0 if look.kind in STANDING else 4.0)
    silhouette = ImageDraw.Draw(small)
    _silhouettes(silhouette, parts, place.shrunk(3, drop, drop * 0.8))
    if look.kind in STANDING:
        _contact(silhouette, parts, place.shrunk(3))
    soft = small.filter(ImageFilter.GaussianBlur(style.softness)).point(lambda v: v * style.shade)
    image.paste((40, 34, 44), mask=soft.resize(image.size, Image.Resampling.BILINEAR))


def _silhouettes(draw: ImageDraw.ImageDraw, parts: list[Part], place: Placement) -> None:
    for part in parts:
        points = _landed(part, place)
        if part.mode == "line" and part.width > 1.5:
            _stroke(draw, points, round(part.width * place.scale), 255)
        elif part.mode == "body":
            draw.polygon(_flat(points), fill=255)


def _contact(draw: ImageDraw.ImageDraw, parts: list[Part], place: Placement) -> None:
    """The dark pool under something that stands."""
    points = np.concatenate([_landed(part, place) for part in parts if part.mode == "body"])
    left, right, low = points[:, 0].min(), points[:, 0].max(), points[:, 1].max()
    draw.ellipse((left + 1, low - 4, right + 3, low + 4), fill=255)


def _tinted(image: Image.Image, tint: tuple[float, float, float]) -> Image.Image:
    table = [min(255, round(value * gain)) for gain in tint for value in range(256)]
    return image.point(table)


class _Painter:
    """Paints the parts of one product onto its backdrop, back to front."""

    def __init__(self, image: Image.Image, look: Look, place: Placement) -> None:
        self.image = image
        self.place = place
        self.paints = palette(look)
        self.cloth = cloth(look, self.paints, place)
        self.finish = FINISHES[look.material]
        self.draw = ImageDraw.Draw(image, "RGBA")

    def paint(self, shapes: list[tuple[Part, Points]]) -> None:
        """Paint every part in order."""
        for part, points in shapes:
            if part.mode == "body":
                self._body(part, points)
            else:
                self._plain(part, points)

    def _plain(self, part: Part, points: Points) -> None:
        fill = (*self.paints[part.paint], round(255 * part.opacity))
        if part.mode == "flat":
            self.draw.polygon(_flat(points), fill=fill)
        else:
            _stroke(self.draw, points, round(part.width * self.place.scale), fill)

    def _body(self, part: Part, points: Points) -> None:
        """Texture, shade, shine and edge of one body, all within its own rectangle."""
        area = _area(points)
        left, top = area[:2]
        inside = Image.new("L", (area[2] - left, area[3] - top))
        local = _flat(points - (left, top))
        ImageDraw.Draw(inside).polygon(local, fill=255)
        self.image.paste(self._surface(part.paint, area), (left, top), inside)
        self._light(part.paint, inside, (left, top))
        edge = mixed(self.paints[part.paint], (16, 12, 24), 0.6)
        self.draw.line([*_flat(points), _flat(points)[0]], fill=(*edge, 120), width=2)

    def _surface(self, paint: Paint, area: tuple[int, int, int, int]) -> Image.Image | Rgb:
        if paint == "main":
            return self.cloth.crop(area)
        return self.paints[paint]

    def _light(self, paint: Paint, inside: Image.Image, corner: tuple[int, int]) -> None:
        own = paint in ("main", "tone", "deep", "pale", "accent")
        dark, light = _slopes(inside, self.finish if own else _HARD)
        colour = self.paints[paint]
        shade = mixed(colour, (18, 10, 40), 0.86 if luminance(colour) < 200 else 0.62)
        self._veil(shade, ImageChops.multiply(dark, inside), corner)
        self._veil((255, 253, 246), ImageChops.multiply(light, inside), corner)

    def _veil(self, colour: Rgb, mask: Image.Image, corner: tuple[int, int]) -> None:
        x, y = corner
        self.image.paste(colour, (x, y, x + mask.width, y + mask.height), mask)


def _area(points: Points) -> tuple[int, int, int, int]:
    """The whole pixels around the points, within the canvas and never empty."""
    low = np.clip(np.floor(points.min(axis=0)), 0, CANVAS - 8).astype(int)
    high = np.clip(np.ceil(points.max(axis=0)) + 1, low + 8, CANVAS).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _slopes(inside: Image.Image, finish: Finish) -> tuple[Image.Image, Image.Image]:
    """Masks of shade and of shine for one body, of its rectangle's size."""
    height = _height(inside)
    slope = _toward_light(height)
    down = np.linspace(-0.1, 0.22, height.shape[0])[:, None]
    rim = np.clip(0.75 - height, 0, 1) * 0.55
    dark = np.clip(-slope * 1.5 + rim + down, 0, 0.72) * finish.depth * 0.8
    shine = np.clip(slope * 1.9, 0, 1) ** 1.5 * (0.18 + 0.75 * finish.gloss)
    shine = shine + np.clip(-down, 0, 1) * 0.8
    return _grown(dark, inside.size), _grown(shine, inside.size)


def _height(inside: Image.Image) -> NDArray[np.float64]:
    """The mask, blurred, on a coarser grid with a margin: 0 outside to 1 deep inside."""
    coarse = inside.reduce(_COARSE)
    reach = max(2.0, min(7.0, min(coarse.size) / 5))
    margin = int(reach * 2)
    wide = Image.new("L", (coarse.width + 2 * margin, coarse.height + 2 * margin))
    wide.paste(coarse, (margin, margin))
    blurred = np.asarray(wide.filter(ImageFilter.GaussianBlur(reach)), dtype=np.float64) / 255
    return blurred[margin - 2 : -margin + 2, margin - 2 : -margin + 2]


def _toward_light(height: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slope against a light from the upper left; same grid."""
    padded = np.pad(height, 2, mode="edge")
    rise: NDArray[np.float64] = padded[4:, 4:] - padded[:-4, :-4]
    return rise


def _grown(values: NDArray[np.float64], size: tuple[int, int]) -> Image.Image:
    """Back from the coarse grid (with its margin of two) to a mask of `size`."""
    cut = np.clip(values[2:-2, 2:-2] * 255, 0, 255).astype(np.uint8)
    return Image.fromarray(cut).resize(size, Image.Resampling.BILINEAR)
