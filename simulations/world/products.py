"""Products of one region: what they are, what the shop says of them, what they cost.

A title leaves some facets out; those must be seen in the photo or learned from clicks.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
from numpy.typing import NDArray

from shared.schema import CATALOG_COLUMNS
from simulations.world.drawing.colours import COLOURS
from simulations.world.drawing.parts import Look, pick
from simulations.world.profiles import WORLD_BRANDS, Profile, assortment
from simulations.world.taxonomy import KINDS, PATTERNS, PRICE_OF, Wish

LINES = (
    *("Strider", "Halden", "Aria", "Nova", "Tempo", "Orbit", "Quill", "Vela", "Sorrel", "Juno"),
    *("Pike", "Rook", "Talon", "Mira", "Basalt", "Cinder", "Larch", "Zephyr", "Onda", "Kito"),
    *("Brio", "Sable", "Tarn", "Wren", "Osprey", "Lyra", "Fable", "Drift", "Mistral", "Pavo"),
)
_BRANDS_CARRIED = 5  # of the profile's own, beside the world's
_NEWEST = datetime(2025, 6, 30, tzinfo=UTC)  # fixed: a world does not depend on the day it is built
# How often a title states a facet that the product has.
_SAID = {"colour": 0.65, "material": 0.6, "pattern": 0.75, "gender": 0.85}

_FACETS = ("kind", "colour", "material", "pattern", "gender")


@dataclass(frozen=True)
class Item:
    """The facets of one product, all canonical; `gender` is "" where it makes no sense."""

    kind: str
    colour: str
    material: str
    pattern: str
    gender: str


def dice_of(*names: object) -> np.random.Generator:
    """A random stream named by its arguments, the same in every process."""
    digest = hashlib.sha256("/".join(str(name) for name in names).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def region_products(
    region: str, profile: Profile, *, seed: int, count: int
) -> tuple[pl.DataFrame, list[Look]]:
    """Draw a region's catalog.

    Args:
        region: its name; also names its random stream and starts its product ids.
        profile: its kind of region.
        seed: of the world.
        count: number of products.

    Returns:
        The products with the columns of `CATALOG_COLUMNS` (without `image`) plus `region` and one
        column a facet (`kind` is `category`), and the look of each product's photo.
    """
    dice = dice_of(seed, region, "products")
    items = _items(profile, dice, count)
    ids = [f"{region}-{row:05d}" for row in range(count)]
    brands = _brands(profile, dice, count)
    texts = [_text(item, brand, profile, dice) for item, brand in zip(items, brands, strict=True)]
    frame = pl.DataFrame(
        {
            "product_id": ids,
            "title": [title for title, _ in texts],
            "description": [description for _, description in texts],
            "brand": brands,
            "category": [item.kind for item in items],
            "attributes": [_attributes(item) for item in items],
            **_numbers(items, brands, profile, dice),
            **{key: [getattr(item, key) or None for item in items] for key in _FACETS[1:]},
        },
        schema_overrides={
            **{k: v for k, v in CATALOG_COLUMNS.items() if k != "image"},
            **dict.fromkeys(_FACETS[1:], pl.String()),
        },
        strict=False,
    ).with_columns(
        currency=pl.lit(profile.currency), locale=pl.lit(profile.locale), region=pl.lit(region)
    )
    return frame, [
        look_of(i, profile.style, f"{seed}/{p}") for i, p in zip(items, ids, strict=True)
    ]


def look_of(item: Item, style: str, token: str) -> Look:
    """The photo of a product in a studio's style."""
    return Look(item.kind, item.colour, item.pattern, item.material, style, token)


def _items(profile: Profile, dice: np.random.Generator, count: int) -> list[Item]:
    """Facets of `count` products; each region leans towards some types and colours."""
    kinds = _leaning(np.array(assortment(profile)), 12.0, dice)
    colours = _leaning(np.ones(len(COLOURS)), 20.0, dice)
    kind_of = np.array(list(KINDS))[dice.choice(len(KINDS), count, p=kinds)]
    colour_of = np.array(list(COLOURS))[dice.choice(len(COLOURS), count, p=colours)]
    return [
        item_of(str(kind), str(colour), profile.plain_share, dice)
        for kind, colour in zip(kind_of, colour_of, strict=True)
    ]


def _leaning(
    weights: NDArray[np.float64], spread: float, dice: np.random.Generator
) -> NDArray[np.float64]:
    """Shares around `weights` (Dirichlet), none below a quarter of an even share."""
    even = np.full(len(weights), 1 / len(weights))
    shares: NDArray[np.float64] = (
        0.75 * dice.dirichlet(weights / weights.mean() * spread) + 0.25 * even
    )
    return shares


def item_of(kind: str, colour: str, plain_share: float, dice: np.random.Generator) -> Item:
    """One product of a type and colour: its material, pattern and for whom it is cut."""
    made = KINDS[kind]
    material = made.materials[min(int(dice.exponential(1.1)), len(made.materials) - 1)]
    pattern = (
        pick(dice, made.patterns[1:])
        if _patterned(material, made.patterns, plain_share, dice)
        else PATTERNS[0]
    )
    return Item(kind, colour, material, pattern, pick(dice, made.genders) if made.genders else "")


def _patterned(
    material: str, patterns: tuple[str, ...], plain: float, dice: np.random.Generator
) -> bool:
    printable = material not in ("leather", "suede", "denim", "corduroy", "enamel")
    return bool(dice.random() > plain) and printable and len(patterns) > 1


def _brands(profile: Profile, dice: np.random.Generator, count: int) -> list[str]:
    own = dice.permutation(np.array(profile.brands))[:_BRANDS_CARRIED]
    names = [*WORLD_BRANDS, *own.tolist()]
    return [str(names[i]) for i in dice.integers(0, len(names), count)]


def line_of(brand: str, kind: str) -> str:
    """The name a brand gives its line of one product type; no two types of a brand share one."""
    order = dice_of("line", brand).permutation(len(LINES))
    return LINES[order[list(KINDS).index(kind)]]


def _text(item: Item, brand: str, profile: Profile, dice: np.random.Generator) -> tuple[str, str]:
    """Title and description, both in the shop's language."""
    lexicon, full = profile.lexicon, wish_for(item)
    untold = [facet for facet, share in _SAID.items() if dice.random() > share]
    told, nameless = full.without(*untold), dice.random() < profile.line_share
    line = line_of(brand, item.kind) if nameless or dice.random() < 0.3 else ""
    shown = Wish((), told.colour, told.material, told.pattern, told.gender) if nameless else told
    title = lexicon.title(brand, line, shown, dice)
    return title, _description(lexicon.title("", "", full, dice), brand, profile.locale, dice)


def wish_for(item: Item) -> Wish:
    """All that can be said of a product; that it is plain or for everybody goes without saying."""
    pattern = item.pattern if item.pattern != PATTERNS[0] else None
    gender = item.gender if item.gender in ("women", "men") else None
    return Wish((item.kind,), item.colour, item.material, pattern, gender)


_PRAISE = {
    "en": (
        "{} by {}. Made to last.",
        "{}. Designed by {} for every day.",
        "{}, from {}'s new season.",
    ),
    "de": ("{} von {}. Gemacht für viele Jahre.", "{}. Von {} für jeden Tag.", "{}, neu bei {}."),
}


def _description(text: str, brand: str, locale: str, dice: np.random.Generator) -> str:
    return pick(dice, _PRAISE[locale]).format(text[0].upper() + text[1:], brand)


def _attributes(item: Item) -> list[dict[str, str]]:
    pairs = [(key, getattr(item, key)) for key in _FACETS[1:]]
    return [{"key": key, "value": value} for key, value in pairs if value]


def _numbers(
    items: list[Item], brands: list[str], profile: Profile, dice: np.random.Generator
) -> dict[str, object]:
    """Price, rating, sales and stock; what sells well is also reviewed more."""
    count = len(items)
    usual = np.array([KINDS[i.kind].price * PRICE_OF.get(i.material, 1.0) for i in items])
    dear = {name: dice_of("dear", name).uniform(0.75, 1.5) for name in set(brands)}
    price = (
        usual * np.array([dear[b] for b in brands]) * profile.price * dice.lognormal(0, 0.22, count)
    )
    fame = dice.lognormal(3.0, 1.2, count)
    age = dice.integers(0, 365 * 24 * 60, count)
    return {
        "price": np.round(np.maximum(np.floor(price), 2.0) + profile.ending, 2),
        "rating": np.round(1 + 4 * dice.beta(8, 2.2, count), 1),
        "review_count": (fame * dice.uniform(0.2, 0.9, count)).astype(np.int64),
        "sales": (fame * dice.uniform(3, 9, count)).astype(np.int64),
        "in_stock": dice.random(count) < 0.92,
        "updated_at": [_NEWEST - timedelta(minutes=int(minutes)) for minutes in age],
    }
