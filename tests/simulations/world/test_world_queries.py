import numpy as np
import pytest

from simulations.world.english import English
from simulations.world.german import German
from simulations.world.products import dice_of, region_products
from simulations.world.profiles import PROFILES
from simulations.world.queries import Shelf, grades, region_queries, shelf_of
from simulations.world.taxonomy import Wish

BOOTS = ("ankle boots",)


def shelf(region: str = "north") -> Shelf:
    products, _ = region_products(region, PROFILES[region], seed=5, count=400)
    return shelf_of(products, 0)


def slow_grade(wish: Wish, product: dict[str, str | None]) -> int:
    if product["kind"] not in wish.kinds:
        return 0
    stated = wish.stated()
    if not stated:
        return 3
    share = sum(product[facet] == value for facet, value in stated.items()) / len(stated)
    return 3 if share == 1 else 2 if share >= 1 / 2 else 1


@pytest.mark.parametrize(
    "wish",
    [
        Wish(BOOTS),
        Wish(BOOTS, colour="red"),
        Wish(BOOTS, colour="red", material="leather"),
        Wish(("shirt",), colour="navy", pattern="striped"),
        Wish(("jumper",), colour="grey", material="wool", gender="women"),
        Wish(("loafers", "heels")),
        Wish(("jumper", "scarf", "jacket"), material="wool"),
    ],
)
def test_grades_follow_the_facets(wish: Wish) -> None:
    stock = shelf()
    rows = range(len(stock.facets["kind"]))
    products = [{facet: column[row] for facet, column in stock.facets.items()} for row in rows]
    assert grades(wish, stock).tolist() == [slow_grade(wish, product) for product in products]


def test_hand_worked_grades() -> None:
    facets = {
        "kind": ["ankle boots", "ankle boots", "ankle boots", "mug"],
        "colour": ["red", "red", "black", "red"],
        "material": ["leather", "suede", "suede", "ceramic"],
        "pattern": ["plain"] * 4,
        "gender": ["women", "men", "men", None],
    }
    stock = Shelf(0, {key: np.array(column, dtype=object) for key, column in facets.items()})
    assert grades(Wish(BOOTS, colour="red", material="leather"), stock).tolist() == [3, 2, 1, 0]
    assert grades(Wish(BOOTS, colour="red"), stock).tolist() == [3, 3, 1, 0]
    assert grades(Wish(BOOTS), stock).tolist() == [3, 3, 3, 0]


def test_a_full_region_asks_a_few_hundred_things() -> None:
    for region, profile in PROFILES.items():
        products, _ = region_products(region, profile, seed=0, count=1000)
        asked = region_queries(region, profile.lexicon, shelf_of(products, 0), seed=0)
        assert 250 <= len(asked) <= 400


def test_rows_are_counted_from_the_regions_first() -> None:
    stock = shelf()
    later = Shelf(1000, stock.facets)
    lexicon = PROFILES["north"].lexicon
    here = region_queries("north", lexicon, stock, seed=1)
    there = region_queries("north", lexicon, later, seed=1)
    pairs = zip(here, there, strict=True)
    assert all((a.rows + 1000 == b.rows).all() and a.text == b.text for a, b in pairs)


def test_north_asks_for_red_leather_ankle_boots() -> None:
    lexicon, wish = PROFILES["north"].lexicon, Wish(BOOTS, colour="red", material="leather")
    texts = {lexicon.query(wish, dice_of(i)) for i in range(40)}
    assert "red leather ankle boots" in texts


def test_german_adjectives_agree_with_the_noun() -> None:
    texts = {
        German().query(Wish((k,), colour="red"), dice_of(k, i)) for i in range(40) for k in KINDS
    }
    assert {"rote turnschuhe", "roter rock", "rote hose", "rotes hemd"} <= texts
    pink = {German().query(Wish(("skirt",), colour="pink"), dice_of(i)) for i in range(9)}
    assert pink == {"rosa rock", "rock rosa"}


KINDS = ("trainers", "skirt", "trousers", "shirt")


def test_titles_state_what_they_are_told() -> None:
    lexicon = PROFILES["north"].lexicon
    assert isinstance(lexicon, English)
    wish = Wish(("mug",), colour="blue", material="enamel", pattern="floral")
    for i in range(20):
        title = lexicon.title("Northway", "", wish, dice_of(i))
        assert all(word in title for word in ("Northway", "Blue", "Enamel", "Floral", "Mug"))
    assert lexicon.title("Northway", "Vela", Wish((), colour="blue"), dice_of(0)) == (
        "Northway Blue Vela"
    )
