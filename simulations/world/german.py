"""German of a shop and its shoppers, with adjectives that agree with the noun.

Nouns carry their gender ("m", "f", "n", or "p" for plural). Queries are in lower case, as typed.
"T-Shirt" and "Pullover" are German too by now.
"""

import numpy as np

from simulations.world.drawing.parts import pick
from simulations.world.english import entries
from simulations.world.taxonomy import Wish

_ENDING = {"m": "er", "f": "e", "n": "es", "p": "e"}
_FIXED = {"rosa", "orange", "lila", "beige"}  # colours that take no ending

NOUNS = entries({
    "ankle boots": "Stiefeletten:p / stiefeletten:p,kurze stiefel:p",
    "trainers": "Turnschuhe:p,Laufschuhe:p / turnschuhe:p,sportschuhe:p",
    "sandals": "Sandalen:p,Sandaletten:p / sandalen:p,sommerschuhe:p",
    "heels": "Absatzschuhe:p,Stöckelschuhe:p / hohe schuhe:p,stöckelschuhe:p",
    "loafers": "Slipper:p,Mokassins:p / halbschuhe:p,slipper:p",
    "t-shirt": "T-Shirt:n,Kurzarmshirt:n / t-shirt:n,kurzarmshirt:n",
    "shirt": "Hemd:n,Oberhemd:n / hemd:n,langarmhemd:n",
    "jumper": "Pullover:m,Strickpulli:m / pullover:m,pulli:m",
    "hoodie": "Kapuzenpullover:m / kapuzenpulli:m,kapuzenpullover:m",
    "dress": "Kleid:n / kleid:n,sommerkleid:n",
    "skirt": "Rock:m / rock:m",
    "trousers": "Hose:f,Langhose:f / hose:f,lange hose:f",
    "jacket": "Jacke:f / jacke:f,mantel:m",
    "scarf": "Schal:m,Halstuch:n / schal:m",
    "cap": "Mütze:f,Kappe:f / mütze:f,kappe:f",
    "backpack": "Rucksack:m / rucksack:m,schulranzen:m",
    "handbag": "Handtasche:f,Henkeltasche:f / handtasche:f,damentasche:f",
    "watch": "Armbanduhr:f,Uhr:f / uhr:f,armbanduhr:f",
    "sunglasses": "Sonnenbrille:f / sonnenbrille:f",
    "belt": "Gürtel:m / gürtel:m,hosengurt:m",
    "mug": "Becher:m,Tasse:f / tasse:f,kaffeebecher:m",
    "lamp": "Tischleuchte:f / lampe:f,nachttischlampe:f",
    "cushion": "Zierkissen:n,Kissen:n / kissen:n,sofakissen:n",
    "chair": "Stuhl:m,Polsterstuhl:m / stuhl:m,esszimmerstuhl:m",
    "kettle": "Wasserkessel:m,Teekessel:m / wasserkocher:m,teekessel:m",
})  # fmt: skip

ADJECTIVES = entries({
    "black": "schwarz / schwarz", "white": "weiß / weiß", "grey": "anthrazit,grau / grau",
    "red": "rot,kirschrot / rot", "burgundy": "bordeaux,weinrot / weinrot,dunkelrot",
    "pink": "rosa / rosa", "orange": "orange / orange", "yellow": "gelb,senfgelb / gelb",
    "green": "grün,tannengrün / grün", "olive": "oliv,olivgrün / olivgrün", "blue": "blau / blau",
    "navy": "marine,nachtblau / dunkelblau", "purple": "lila,violett / lila",
    "brown": "braun,kastanienbraun / braun", "beige": "beige,sandfarben / beige,hell",
    "striped": "gestreift / gestreift", "checked": "kariert / kariert",
    "dotted": "gepunktet / gepunktet", "floral": "geblümt / geblümt",
})  # fmt: skip
_NO_ENDING = _FIXED | {"bordeaux", "oliv", "marine", "anthrazit"}

MATERIALS = entries({
    "leather": "Leder,Nappaleder / leder", "suede": "Wildleder,Velours / wildleder",
    "rubber": "Gummi / gummi", "mesh": "Netzgewebe / netzstoff", "canvas": "Segeltuch / stoff",
    "cotton": "Baumwolle / baumwolle", "linen": "Leinen / leinen", "silk": "Seide / seide",
    "wool": "Schurwolle,Wolle / wolle", "fleece": "Flausch / flausch",
    "denim": "Jeansstoff / jeansstoff", "corduroy": "Cord / cord",
    "nylon": "Wetterschutzgewebe / regenstoff", "plastic": "Kunststoff / plastik",
    "ceramic": "Steingut / keramik", "enamel": "Emaille / emaille", "velvet": "Samt / samt",
    "steel": "Edelstahl / edelstahl,metall", "paper": "Papier / papier",
})  # fmt: skip

_GENDERS = entries({"women": "Damen / damen,frauen", "men": "Herren / herren,männer"})

SLANG: dict[str, Wish] = {
    "rote lederstiefeletten": Wish(("ankle boots",), colour="red", material="leather"),
    "büroschuhe": Wish(("loafers", "heels")),
    "regenjacke": Wish(("jacket",), material="nylon"),
    "motorradjacke": Wish(("jacket",), material="leather"),
    "wintermütze": Wish(("cap",), material="wool"),
    "schirmmütze": Wish(("cap",), material="cotton"),
    "jeanshose": Wish(("trousers",), material="denim"),
    "das kleine schwarze": Wish(("dress",), colour="black"),
    "kleid für hochzeitsgäste": Wish(("dress",), material="silk"),
    "holzfällerhemd": Wish(("shirt",), pattern="checked"),
    "ringelshirt": Wish(("t-shirt", "jumper"), pattern="striped"),
    "gummistiefel": Wish(("ankle boots",), material="rubber"),
    "strandtasche": Wish(("handbag",), material="canvas"),
    "sachen für den sport": Wish(("trainers", "hoodie", "t-shirt")),
    "warme wintersachen": Wish(("jumper", "scarf", "jacket"), material="wool"),
    "etwas fürs sofa": Wish(("cushion",)),
    "schreibtischlicht": Wish(("lamp",)),
    "lesesessel": Wish(("chair",)),
    "geschenk für teetrinker": Wish(("mug", "kettle")),
    "campingbecher": Wish(("mug",), material="enamel"),
}


class German:
    """The German shop's and its shoppers' words; the same calls as `English`."""

    slang = SLANG

    def title(self, brand: str, line: str, stated: Wish, dice: np.random.Generator) -> str:
        """A shop's title; `stated` without a type leaves it to the name of the `line`."""
        form = pick(dice, ["before", "after"]) if stated.kinds else "after"
        words = self._phrase(stated, 0, form, dice)
        return " ".join(word for word in (brand, line, words) if word)

    def query(self, wish: Wish, dice: np.random.Generator) -> str:
        """What a shopper types for a wish of one type."""
        return self._phrase(wish, 1, pick(dice, ["before", "before", "after"]), dice)

    def kind_queries(self, kind: str) -> tuple[str, ...]:
        """Every word shoppers have for one type."""
        return tuple(noun.split(":")[0] for noun in NOUNS[kind][1])

    def _phrase(self, wish: Wish, side: int, form: str, dice: np.random.Generator) -> str:
        """Adjectives before the noun and agreeing with it, or after it and bare."""
        noun, gender = pick(dice, NOUNS[wish.kinds[0]][side]).split(":") if wish.kinds else ("", "")
        adjectives = [pick(dice, ADJECTIVES[k][side]) for k in (wish.pattern, wish.colour) if k]
        whose = pick(dice, _GENDERS[wish.gender][side]) if wish.gender else ""
        made = _made_of(wish, side, form, dice)
        if form == "before":
            words = [whose, *(_agreeing(adjective, gender) for adjective in adjectives), noun, made]
        else:
            words = [whose, noun, made, *adjectives]
        return " ".join(word for word in words if word)


def _made_of(wish: Wish, side: int, form: str, dice: np.random.Generator) -> str:
    if wish.material is None:
        return ""
    material = pick(dice, MATERIALS[wish.material][side])
    return material if form == "after" and side == 1 else f"aus {material}"


def _agreeing(adjective: str, gender: str) -> str:
    if adjective in _NO_ENDING:
        return adjective + ("farben" + _ENDING[gender] if adjective not in _FIXED else "")
    return adjective + _ENDING[gender]
