"""What the world sells: product types with their materials, patterns and usual prices.

The keys here are canonical: they appear in `category` and `attributes`, never in a title, which a
shop writes in words of its own (`english.py`, `german.py`).
"""

from dataclasses import dataclass

PATTERNS = ("plain", "striped", "checked", "dotted", "floral")
GENDERS = ("women", "men", "unisex")
_ALL = PATTERNS
_WOVEN = ("plain", "striped", "checked", "dotted")
_PLAIN = ("plain",)


@dataclass(frozen=True)
class Kind:
    """One product type.

    Attributes:
        department: "shoes", "clothes", "bags", "accessories" or "home".
        price: usual price before material, brand and region, in the region's currency.
        materials: what it may be made of, the most usual first.
        patterns: what it may be printed or woven with.
        genders: whom it is cut for; empty where that makes no sense.
    """

    department: str
    price: float
    materials: tuple[str, ...]
    patterns: tuple[str, ...] = _PLAIN
    genders: tuple[str, ...] = GENDERS


_HER = ("women",)
_NONE: tuple[str, ...] = ()

KINDS: dict[str, Kind] = {
    "ankle boots": Kind("shoes", 95, ("leather", "suede", "rubber")),
    "trainers": Kind("shoes", 80, ("mesh", "canvas", "leather"), _WOVEN),
    "sandals": Kind("shoes", 45, ("leather", "suede", "rubber")),
    "heels": Kind("shoes", 75, ("leather", "suede", "silk"), _PLAIN, _HER),
    "loafers": Kind("shoes", 85, ("leather", "suede")),
    "t-shirt": Kind("clothes", 18, ("cotton", "linen"), _ALL),
    "shirt": Kind("clothes", 40, ("cotton", "linen", "silk", "denim"), _ALL),
    "jumper": Kind("clothes", 55, ("wool", "cotton"), _ALL),
    "hoodie": Kind("clothes", 48, ("cotton", "fleece"), _WOVEN),
    "dress": Kind("clothes", 65, ("cotton", "silk", "linen"), _ALL, _HER),
    "skirt": Kind("clothes", 42, ("cotton", "denim", "wool", "silk"), _ALL, _HER),
    "trousers": Kind("clothes", 55, ("denim", "cotton", "corduroy", "linen"), ("plain", "striped")),
    "jacket": Kind("clothes", 130, ("leather", "nylon", "denim", "wool")),
    "scarf": Kind("clothes", 25, ("wool", "silk", "cotton"), _ALL),
    "cap": Kind("clothes", 20, ("cotton", "wool", "denim"), _WOVEN, ("unisex",)),
    "backpack": Kind("bags", 60, ("canvas", "nylon", "leather"), _ALL, ("unisex",)),
    "handbag": Kind("bags", 90, ("leather", "suede", "canvas"), _ALL, _HER),
    "watch": Kind("accessories", 140, ("leather", "rubber"), _PLAIN),
    "sunglasses": Kind("accessories", 60, ("plastic",), _PLAIN),
    "belt": Kind("accessories", 28, ("leather", "canvas"), _PLAIN),
    "mug": Kind("home", 12, ("ceramic", "enamel"), _ALL, _NONE),
    "lamp": Kind("home", 55, ("linen", "paper"), _ALL, _NONE),
    "cushion": Kind("home", 24, ("cotton", "velvet", "linen"), _ALL, _NONE),
    "chair": Kind("home", 180, ("velvet", "wool", "linen"), _ALL, _NONE),
    "kettle": Kind("home", 50, ("steel", "enamel"), _PLAIN, _NONE),
}
_DEAR = {"leather": 1.25, "silk": 1.4, "suede": 1.2, "wool": 1.15, "velvet": 1.15, "rubber": 0.75}
_CHEAP = {"canvas": 0.8, "plastic": 0.9, "paper": 0.7, "enamel": 0.85}
PRICE_OF: dict[str, float] = {**_DEAR, **_CHEAP}  # factor by material, 1 where not named


@dataclass(frozen=True)
class Wish:
    """What is stated about a product: by a shopper's query or by a shop's title.

    Attributes:
        kinds: product types that would do; titles and most queries name one.
        colour: canonical colour, or None where nothing is said.
        material: canonical material, or None.
        pattern: canonical pattern, or None.
        gender: canonical gender, or None.
    """

    kinds: tuple[str, ...]
    colour: str | None = None
    material: str | None = None
    pattern: str | None = None
    gender: str | None = None

    def stated(self) -> dict[str, str]:
        """The facets beside the type about which something is said."""
        named = {
            "colour": self.colour,
            "material": self.material,
            "pattern": self.pattern,
            "gender": self.gender,
        }
        return {facet: value for facet, value in named.items() if value is not None}

    def without(self, *facets: str) -> "Wish":
        """The same with nothing said about `facets`."""
        told = {key: value for key, value in self.stated().items() if key not in facets}
        return Wish(self.kinds, **told)
