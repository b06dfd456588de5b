from collections import Counter

import polars as pl
import pytest

from shared.errors import ConfigError, DataError
from simulations.partition import partition, region_names


def shop(rows=200, suppliers=9):
    numbers = range(rows)
    return pl.DataFrame(
        {
            "product_id": [f"p{n:04d}" for n in numbers],
            "supplier": [f"s{n * n % suppliers}" for n in numbers],
            "category": [None if n % 11 == 0 else f"c{n % 5}" for n in numbers],
            "attributes": [[{"key": "k", "value": "v"}]] * rows,
        }
    )


@pytest.mark.parametrize("rule", ["supplier", "category", "dirichlet:0.5", "dirichlet:100"])
@pytest.mark.parametrize("regions", [1, 2, 3, 4])
def test_every_row_gets_exactly_one_region_and_none_is_empty(rule, regions):
    names = partition(shop(), rule=rule, regions=regions, seed=7)
    assert len(names) == 200
    assert set(names) == set(region_names(regions))


@pytest.mark.parametrize("rule", ["supplier", "dirichlet:0.5"])
def test_the_order_of_rows_does_not_matter(rule):
    products = shop()
    shuffled = products.sample(fraction=1.0, shuffle=True, seed=3)
    one = partition(products, rule=rule, regions=3, seed=7)
    other = partition(shuffled, rule=rule, regions=3, seed=7)
    assert dict(zip(products["product_id"], one, strict=True)) == dict(
        zip(shuffled["product_id"], other, strict=True)
    )


def test_same_seed_same_result_other_seed_another():
    def cut(seed):
        return partition(shop(), rule="dirichlet:0.5", regions=4, seed=seed)

    assert cut(7) == cut(7) != cut(8)


def test_a_column_keeps_its_values_whole_and_regions_alike():
    products = shop(rows=1000, suppliers=40)
    names = partition(products, rule="supplier", regions=4, seed=7)
    owners = products.with_columns(owner=pl.Series(names)).group_by("supplier").n_unique()
    assert owners["owner"].max() == 1
    sizes = Counter(names).values()
    assert max(sizes) - min(sizes) <= products["supplier"].value_counts()["count"].max()


def test_large_alpha_makes_regions_alike_and_small_alpha_does_not():
    def largest_share(alpha):
        products = shop(rows=2000)
        names = partition(products, rule=f"dirichlet:{alpha}", regions=4, seed=7)
        counts = products.with_columns(owner=pl.Series(names)).group_by("category", "owner").len()
        return counts["len"].max() / 400

    assert largest_share(1000) < 0.35 < 0.6 < largest_share(0.1)


def test_a_source_that_names_its_regions_is_obeyed():
    products = shop(4).with_columns(region=pl.Series(["a", "b", "a", "b"]))
    assert partition(products, rule="region", regions=2, seed=7) == ["a", "b", "a", "b"]
    with pytest.raises(ConfigError, match="column region holds a, b"):
        partition(products, rule="region", regions=3, seed=7)


def test_names():
    assert region_names(2) == ["north", "south"]
    assert region_names(5)[-1] == "region-05"
    assert region_names(120) == sorted(region_names(120))


@pytest.mark.parametrize(
    ("rule", "regions", "error", "match"),
    [
        ("colour", 2, ConfigError, "no such column; choose .* product_id, supplier, category"),
        ("attributes", 2, ConfigError, "a column of lists"),
        ("dirichlet:", 2, ConfigError, "ALPHA must be a number above 0"),
        ("dirichlet:-1", 2, ConfigError, "ALPHA must be a number above 0"),
        ("dirichlet:nan", 2, ConfigError, "ALPHA must be a number above 0"),
        ("dirichlet:0.0001", 10, DataError, "dirichlet:0.0001 over 6 categories .* raise ALPHA"),
        ("supplier", 6, DataError, "4 values cannot fill 6 regions"),
        ("supplier", 0, ConfigError, "at least one region"),
        ("supplier", 300, DataError, "200 products cannot fill 300 regions"),
    ],
)
def test_impossible_wishes_are_refused(rule, regions, error, match):
    with pytest.raises(error, match=match):
        partition(shop(suppliers=7), rule=rule, regions=regions, seed=7)


def test_dirichlet_needs_a_category():
    with pytest.raises(ConfigError, match="needs a category"):
        partition(shop().drop("category"), rule="dirichlet:1", regions=2, seed=7)


def test_without_any_category_all_products_are_one():
    products = shop().with_columns(category=pl.lit(None, pl.String))
    assert set(partition(products, rule="dirichlet:1", regions=2, seed=7)) == {"north", "south"}
