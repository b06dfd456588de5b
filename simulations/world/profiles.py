"""The four kinds of region: language, brands, assortment, price taste and photo style.

Regions named after a profile get that one; any other names take the profiles that are left in each
block of four, in order, so that exactly one region in four is German.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from simulations.world.english import AMERICAN, BRITISH, COASTAL, SLANG, English
from simulations.world.german import German
from simulations.world.taxonomy import KINDS

Lexicon = English | German

WORLD_BRANDS = ("Avento", "Corvo", "Lumika")  # sold in every region, under the same line names


@dataclass(frozen=True)
class Profile:
    """What the regions of one kind have in common.

    Attributes:
        locale: language of titles and queries.
        currency: ISO 4217 code.
        lexicon: the shop's and its shoppers' words.
        brands: the region's own brands; each region carries some of them.
        style: photo style, a key of `simulations.world.drawing.backdrop.STYLES`.
        favours: departments and types sold more than elsewhere; a type goes before its department.
        price: factor on usual prices.
        ending: what prices end on, such as 0.99.
        line_share: share of titles that give a line's name in place of the type.
        plain_share: share of products without a pattern, where they could have one.
    """

    locale: str
    currency: str
    lexicon: Lexicon
    brands: tuple[str, ...]
    style: str
    favours: dict[str, float]
    price: float
    ending: float
    line_share: float
    plain_share: float


PROFILES: dict[str, Profile] = {
    "east": Profile(
        locale="en",
        currency="USD",
        lexicon=English(AMERICAN, SLANG),
        brands=("Brightwater", "Cobble Lane", "Hudson Pier", "Maple & Main", "Carraway", "Juniper"),
        style="parlour",
        favours={"home": 1.7, "bags": 1.3},
        price=1.15,
        ending=0.99,
        line_share=0.16,
        plain_share=0.5,
    ),
    "north": Profile(
        locale="en",
        currency="GBP",
        lexicon=English(BRITISH, SLANG),
        brands=("Northway", "Harrowgate", "Fellside", "Brackenridge", "Thistle & Co", "Kestrel"),
        style="studio",
        favours={"ankle boots": 3.0, "shoes": 1.5, "clothes": 1.2},
        price=0.9,
        ending=0.0,
        line_share=0.08,
        plain_share=0.6,
    ),
    "south": Profile(
        locale="de",
        currency="EUR",
        lexicon=German(),
        brands=("Bergkind", "Lindenhof", "Nordlicht", "Haselmaus", "Alpenrose", "Kranich"),
        style="gallery",
        favours={"clothes": 1.5, "home": 1.2},
        price=1.0,
        ending=0.95,
        line_share=0.12,
        plain_share=0.55,
    ),
    "west": Profile(
        locale="en",
        currency="CAD",
        lexicon=English(COASTAL, SLANG),
        brands=("Voltride", "Sundrift", "Pacifica", "Saltline", "Wavecrest", "Koa Bay"),
        style="pop",
        favours={"shoes": 1.4, "accessories": 1.8, "bags": 1.5},
        price=1.4,
        ending=0.5,
        line_share=0.22,
        plain_share=0.4,
    ),
}


def profiles_of(regions: Sequence[str]) -> dict[str, Profile]:
    """The profile of each region; each block of four regions has every profile once.

    A region named after a profile has that profile, and the others of its block share the rest.
    """
    chosen: dict[str, Profile] = {}
    for start in range(0, len(regions), len(PROFILES)):
        block = regions[start : start + len(PROFILES)]
        left = [name for name in PROFILES if name not in block]
        for region in block:
            chosen[region] = PROFILES[region if region in PROFILES else left.pop(0)]
    return chosen


def assortment(profile: Profile) -> list[float]:
    """Relative weight of each of `KINDS` in regions of this profile."""
    favours = profile.favours
    return [favours.get(name, favours.get(kind.department, 1.0)) for name, kind in KINDS.items()]
