"""English of three shops and their shoppers: what titles say and what people type.

Each entry is "words of titles / words of queries", variants parted by commas. British is the base;
the other two name what they say differently. The difference between the two sides of a slash, and
marketing names such as "Abyss" for navy, are what clicks have to teach.
"""

from dataclasses import dataclass

import numpy as np

from simulations.world.drawing.parts import pick
from simulations.world.taxonomy import Wish

Entries = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]


def entries(table: dict[str, str]) -> Entries:
    """Parse "Title,Title / query,query" into both sides."""
    return {key: (_side(text, 0), _side(text, 1)) for key, text in table.items()}


def _side(text: str, index: int) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split("/")[index].split(","))


BRITISH = entries({
    "ankle boots": "Ankle Boots / ankle boots,short boots",
    "trainers": "Trainers / trainers,gym shoes",
    "sandals": "Sandals / sandals,summer shoes",
    "heels": "Court Shoes,Heels / high heels,heels",
    "loafers": "Loafers,Slip-Ons / loafers,slip on shoes",
    "t-shirt": "T-Shirt,Tee / t-shirt,t shirt",
    "shirt": "Shirt / shirt,button up shirt",
    "jumper": "Jumper,Knit / jumper,woolly jumper",
    "hoodie": "Hoodie,Hooded Top / hoodie,hooded sweatshirt",
    "dress": "Dress / dress,frock",
    "skirt": "Skirt / skirt",
    "trousers": "Trousers / trousers,long trousers",
    "jacket": "Jacket / jacket,coat",
    "scarf": "Scarf / scarf,neck warmer",
    "cap": "Cap,Hat / hat,cap",
    "backpack": "Backpack,Rucksack / rucksack,school bag",
    "handbag": "Handbag / handbag,ladies bag",
    "watch": "Watch,Timepiece / watch,wristwatch",
    "sunglasses": "Sunglasses / sunglasses,shades",
    "belt": "Belt / belt,waist belt",
    "mug": "Mug / mug,tea mug",
    "lamp": "Table Lamp / lamp,bedside light",
    "cushion": "Cushion / cushion,sofa cushion",
    "chair": "Chair / chair,dining room chair",
    "kettle": "Kettle / kettle,tea kettle",
    "black": "Black / black", "white": "White / white", "grey": "Grey / grey",
    "red": "Red / red", "burgundy": "Burgundy,Oxblood / burgundy,wine red",
    "pink": "Pink,Blush / pink", "orange": "Orange / orange", "yellow": "Yellow,Mustard / yellow",
    "green": "Green / green", "olive": "Olive,Khaki / olive,olive green",
    "blue": "Blue / blue,bright blue", "navy": "Navy / navy,dark blue",
    "purple": "Purple,Violet / purple", "brown": "Brown,Chestnut / brown",
    "beige": "Beige,Stone / beige,cream",
    "leather": "Leather / leather", "suede": "Suede / suede", "rubber": "Rubber / rubber",
    "mesh": "Mesh / mesh", "canvas": "Canvas / canvas", "cotton": "Cotton / cotton",
    "linen": "Linen / linen", "silk": "Silk,Satin / silk", "wool": "Wool,Lambswool / wool,woollen",
    "fleece": "Fleece / fleece", "denim": "Denim / denim", "corduroy": "Corduroy / cord,corduroy",
    "nylon": "Waterproof / waterproof", "plastic": "Acetate / plastic",
    "ceramic": "Stoneware / ceramic", "enamel": "Enamel / enamel", "velvet": "Velvet / velvet",
    "steel": "Stainless Steel / steel,metal", "paper": "Paper / paper",
    "striped": "Striped,Breton / striped,stripy", "checked": "Checked,Tartan / checked,tartan",
    "dotted": "Polka Dot,Spot / spotted,polka dot", "floral": "Floral / floral,flowery",
    "women": "Women's,Ladies' / womens,ladies", "men": "Men's / mens",
})  # fmt: skip

AMERICAN = BRITISH | entries({
    "ankle boots": "Booties / booties,ankle boots",
    "trainers": "Sneakers / sneakers,tennis shoes,trainers",
    "sandals": "Sandals,Slides / sandals,beach shoes",
    "heels": "Pumps / high heels,pumps",
    "loafers": "Loafers,Penny Loafers / loafers,dress shoes",
    "t-shirt": "Tee / t-shirt,tshirt",
    "shirt": "Button-Down,Button-Up / dress shirt,shirt",
    "jumper": "Sweater / sweater,knit sweater",
    "hoodie": "Hoodie,Hooded Sweatshirt / hoodie,hooded sweater",
    "dress": "Dress,Sundress / dress,party dress",
    "trousers": "Pants,Slacks / pants,long pants",
    "jacket": "Jacket,Outerwear / jacket,winter coat",
    "scarf": "Scarf,Wrap / scarf",
    "cap": "Ball Cap,Lid / cap,hat",
    "backpack": "Backpack,Daypack / backpack,book bag",
    "handbag": "Purse / purse,handbag",
    "sunglasses": "Sunglasses,Shades / sunglasses",
    "mug": "Coffee Mug / mug,coffee cup",
    "lamp": "Accent Lamp / lamp,night stand light",
    "cushion": "Throw Pillow / throw pillow,couch pillow",
    "chair": "Accent Chair / chair,dining chair",
    "kettle": "Tea Kettle / kettle,water boiler",
    "black": "Black,Onyx / black", "white": "White,Ivory / white",
    "grey": "Charcoal,Heather / gray",
    "red": "Red,Cherry / red", "burgundy": "Wine,Merlot / maroon,burgundy",
    "pink": "Pink,Rose / pink",
    "orange": "Orange,Pumpkin / orange", "yellow": "Yellow,Honey / yellow",
    "green": "Forest,Green / green", "olive": "Army,Olive / army green,olive",
    "blue": "Blue,Cobalt / blue", "navy": "Midnight,Navy / navy blue,dark blue",
    "purple": "Plum,Grape / purple", "brown": "Cocoa,Brown / brown",
    "beige": "Sand,Camel / tan,beige",
    "wool": "Wool,Merino / wool", "nylon": "Rainproof,Water-Resistant / waterproof,nylon",
    "ceramic": "Glazed / ceramic", "steel": "Brushed Metal / stainless steel,metal",
    "striped": "Striped,Pinstripe / striped", "checked": "Plaid,Gingham / plaid,checkered",
    "dotted": "Polka Dot / polka dot", "floral": "Floral,Garden Print / floral,flower print",
    "women": "Women's / womens,women's", "men": "Men's / mens,men's",
})  # fmt: skip

COASTAL = BRITISH | entries({
    "ankle boots": "Boots,Chukkas / ankle boots,boots",
    "trainers": "Runners,Kicks / running shoes,sports shoes,sneakers",
    "sandals": "Slides,Sliders / sandals,flip flops",
    "heels": "Stilettos / stilettos,high heels",
    "loafers": "Moccasins,Slip-Ons / loafers,moccasins",
    "t-shirt": "Tee,Crew / t-shirt,tee shirt",
    "shirt": "Overshirt,Button-Up / shirt,long sleeve shirt",
    "jumper": "Pullover,Knit / pullover,sweater",
    "hoodie": "Hoodie,Pop-Over / hoodie,hooded jumper",
    "dress": "Dress,Slip / dress,summer dress",
    "skirt": "Skirt,Swing Skirt / skirt",
    "trousers": "Pants,Chinos / trousers,pants",
    "jacket": "Jacket,Shell / jacket,coat",
    "scarf": "Scarf,Snood / scarf,shawl",
    "cap": "Cap,Snapback / cap,hat",
    "backpack": "Daypack,Pack / backpack,hiking bag",
    "handbag": "Tote,Carryall / handbag,shoulder bag",
    "watch": "Chrono,Watch / watch,wrist watch",
    "sunglasses": "Sunnies,Shades / sunglasses,sun glasses",
    "mug": "Cup,Mug / mug,coffee mug",
    "lamp": "Glow Lamp,Lamp / table lamp,reading light",
    "cushion": "Cushion,Scatter Cushion / cushion,pillow",
    "chair": "Lounger,Seat / chair,comfy chair",
    "kettle": "Kettle,Boiler / kettle,tea pot",
    "black": "Ink,Raven / black", "white": "Chalk,Salt / white", "grey": "Storm,Pebble / grey",
    "red": "Ember,Chilli / red,bright red", "burgundy": "Bordeaux,Garnet / burgundy,dark red",
    "pink": "Coral Pink,Flamingo / pink", "orange": "Tangerine,Sunset / orange",
    "yellow": "Saffron,Lemon / yellow", "green": "Fern,Palm / green",
    "olive": "Moss,Kelp / khaki,olive",
    "blue": "Lagoon,Surf / blue", "navy": "Abyss,Deep Sea / navy,dark blue",
    "purple": "Aubergine,Iris / purple,violet", "brown": "Espresso,Driftwood / brown",
    "beige": "Oat,Dune / beige,sand coloured",
    "wool": "Merino,Alpine Wool / wool,warm wool",
    "nylon": "All-Weather,Storm-Tech / waterproof,rain proof",
    "mesh": "AirMesh,Breathe / mesh", "cotton": "Organic Cotton / cotton",
    "rubber": "Flex,Rubber / rubber",
    "striped": "Stripe,Sailor / striped,stripes", "checked": "Check,Lumber / checked,plaid",
    "dotted": "Dotty,Bubble Print / dotted,polka dot", "floral": "Bloom,Hibiscus / floral,flowers",
    "women": "Women's,W's / womens,ladies", "men": "Men's,M's / mens,guys",
})  # fmt: skip

_OFFICE = Wish(("loafers", "heels"))
SLANG: dict[str, Wish] = {
    # The query that the documentation follows through the house; asked where a region sells one.
    "red leather ankle boots": Wish(("ankle boots",), colour="red", material="leather"),
    "office shoes": _OFFICE,
    "smart work shoes": _OFFICE,
    "rain jacket": Wish(("jacket",), material="nylon"),
    "biker jacket": Wish(("jacket",), material="leather"),
    "winter hat": Wish(("cap",), material="wool"),
    "baseball cap": Wish(("cap",), material="cotton"),
    "jeans": Wish(("trousers",), material="denim"),
    "blue jeans": Wish(("trousers",), material="denim", colour="blue"),
    "black jeans": Wish(("trousers",), material="denim", colour="black"),
    "little black dress": Wish(("dress",), colour="black"),
    "wedding guest dress": Wish(("dress",), material="silk"),
    "lumberjack shirt": Wish(("shirt",), pattern="checked"),
    "sailor top": Wish(("t-shirt", "jumper"), pattern="striped"),
    "laptop bag": Wish(("backpack",)),
    "wellies": Wish(("ankle boots",), material="rubber"),
    "beach bag": Wish(("handbag",), material="canvas"),
    "outfit for the gym": Wish(("trainers", "hoodie", "t-shirt")),
    "warm winter clothes": Wish(("jumper", "scarf", "jacket"), material="wool"),
    "something for the sofa": Wish(("cushion",)),
    "desk light": Wish(("lamp",)),
    "reading chair": Wish(("chair",)),
    "gift for tea lovers": Wish(("mug", "kettle")),
    "camping mug": Wish(("mug",), material="enamel"),
}


@dataclass(frozen=True)
class English:
    """One shop's English, and its shoppers'.

    Attributes:
        words: title words and query words of every canonical key.
        slang: queries in set words, mostly naming a use rather than a product.
    """

    words: Entries
    slang: dict[str, Wish]

    def title(self, brand: str, line: str, stated: Wish, dice: np.random.Generator) -> str:
        """A shop's title; `stated` without a type leaves it to the name of the `line`."""
        said = {key: pick(dice, self.words[value][0]) for key, value in stated.stated().items()}
        kind = pick(dice, self.words[stated.kinds[0]][0]) if stated.kinds else ""
        form = pick(dice, _FORMS) if kind else _LINE_FORM
        return _joined(form, brand=brand, line=line, kind=kind, **said)

    def query(self, wish: Wish, dice: np.random.Generator) -> str:
        """What a shopper types for a wish of one type."""
        said = {key: pick(dice, self.words[value][1]) for key, value in wish.stated().items()}
        kind = pick(dice, self.words[wish.kinds[0]][1])
        form = _ASKED[0] if dice.random() < 0.75 else pick(dice, _ASKED)
        return _joined(form, kind=kind, **said)

    def kind_queries(self, kind: str) -> tuple[str, ...]:
        """Every word shoppers have for one type."""
        return self.words[kind][1]


_FORMS = (
    "brand line gender colour pattern material kind",
    "brand line gender pattern material kind ,colour",
    "brand line gender kind in:colour,pattern,material",
    "brand line gender material kind ,pattern ,colour",
)
_LINE_FORM = "brand gender colour pattern material line"
_ASKED = (
    "gender colour pattern material kind",
    "kind gender colour pattern material",
    "gender pattern colour material kind",
)


def _joined(form: str, **said: str) -> str:
    """Fill a form: each word names what is said there, or nothing; "," sets it off by a comma."""
    text = ""
    for slot in form.split():
        if slot.startswith("in:"):
            inner = [said[key] for key in slot[3:].split(",") if said.get(key)]
            text += f" in {' '.join(inner)}" if inner else ""
        elif word := said.get(slot.lstrip(",")):
            text += f", {word}" if slot.startswith(",") else f" {word}"
    return text.strip()
