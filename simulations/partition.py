"""Cut one catalog into regions that differ as real ones do.

Label skew by Dirichlet draws is the usual way to make clients unlike each other (Hsu et al.,
arXiv:1909.06335); a column keeps each of its values whole, as suppliers or brands are.
"""

import math
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from shared.errors import ConfigError, DataError

_COMPASS = ("north", "south", "east", "west")
_MIN_PRODUCTS = 10  # a region below this is no shop; the same floor as NIID-Bench
_MAX_DRAWS = 200


def region_names(regions: int) -> list[str]:
    """Name the regions of a simulation, sorted as the engines will find them only up to order.

    Args:
        regions: how many, at least one.

    Returns:
        The first of north, south, east, west; "region-01", "region-02", ... when there are more.

    Raises:
        ConfigError: fewer than one region.
    """
    if regions < 1:
        raise ConfigError(f"--regions {regions}: needs at least one region")
    if regions <= len(_COMPASS):
        return list(_COMPASS[:regions])
    width = max(2, len(str(regions)))
    return [f"region-{number:0{width}}" for number in range(1, regions + 1)]


def partition(products: pl.DataFrame, *, rule: str, regions: int, seed: int) -> list[str]:
    """Give every product exactly one region.

    Args:
        products: `Source.products`; needs product_id and the column the rule speaks of.
        rule: a column, whose values each go wholly to one region (largest first, to the region
            that is smallest so far), or "dirichlet:ALPHA" over `category`. A column `region`
            names the regions itself.
        regions: how many.
        seed: settles ties and draws.

    Returns:
        The region of each row, in row order; no region is empty.

    Raises:
        ConfigError: the rule names no column or no valid ALPHA.
        DataError: this rule cannot fill so many regions.
    """
    names = region_names(regions)
    if products.height < regions:
        raise DataError(
            f"{products.height} products cannot fill {regions} regions; lower --regions"
        )
    if rule == "region" and "region" in products.columns:
        return _given(products["region"], regions)
    rng = np.random.default_rng(seed)
    if rule.startswith("dirichlet:"):
        numbers = _dirichlet(products, _alpha(rule), regions, rng)
    else:
        numbers = _by_column(products, rule, regions, rng)
    return [names[number] for number in numbers]


def _given(column: pl.Series, regions: int) -> list[str]:
    values: list[str] = column.to_list()
    if column.null_count() or column.n_unique() != regions:
        found = ", ".join(sorted({str(value) for value in values}))
        raise ConfigError(f"--regions {regions}: column region holds {found}; give that number")
    return values


def _alpha(rule: str) -> float:
    try:
        alpha = float(rule.partition(":")[2])
    except ValueError:
        alpha = math.nan
    if not 0.0 < alpha < math.inf:
        raise ConfigError(f"--partition {rule}: ALPHA must be a number above 0, as dirichlet:0.5")
    return alpha


def _dirichlet(
    products: pl.DataFrame, alpha: float, regions: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw shares of each category over regions; redraw while a region is too small, (N,)."""
    groups = _category_rows(products)
    floor = min(_MIN_PRODUCTS, max(1, products.height // (4 * regions)))
    for _ in range(_MAX_DRAWS):
        numbers = _draw(groups, products.height, alpha, regions, rng)
        if np.bincount(numbers, minlength=regions).min() >= floor:
            return numbers
    raise DataError(
        f"dirichlet:{alpha:g} over {len(groups)} categories left one of {regions} regions with "
        f"fewer than {floor} products in {_MAX_DRAWS} draws; raise ALPHA or lower --regions"
    )


def _category_rows(products: pl.DataFrame) -> list[NDArray[np.int64]]:
    """Rows of each category, both in an order that the rows' own order does not change."""
    if "category" not in products.columns:
        raise ConfigError(f"--partition dirichlet needs a category; {_columns(products)}")
    table = products.select("product_id", "category").with_row_index("row")
    ordered = table.sort("category", "product_id", nulls_last=True)
    grouped = ordered.group_by("category", maintain_order=True).agg("row")
    return [rows.to_numpy().astype(np.int64) for rows in grouped["row"]]


def _draw(
    groups: Sequence[NDArray[np.int64]],
    num_products: int,
    alpha: float,
    regions: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    numbers = np.empty(num_products, dtype=np.int64)
    for rows in groups:
        shares = rng.dirichlet(np.full(regions, alpha))
        numbers[rows] = rng.choice(regions, size=len(rows), p=shares / shares.sum())
    return numbers


def _by_column(
    products: pl.DataFrame, column: str, regions: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Deal the values of a column to regions, (N,) region numbers."""
    if column not in products.columns:
        raise ConfigError(f"--partition {column}: no such column; {_columns(products)}")
    values = _as_text(products[column])
    counts = dict(values.value_counts().rows())
    if len(counts) < regions:
        raise DataError(
            f"--partition {column}: {len(counts)} values cannot fill {regions} regions; "
            "choose another column or lower --regions"
        )
    owner = _deal(counts, regions, rng)
    return np.array([owner[value] for value in values.to_list()], dtype=np.int64)


def _as_text(column: pl.Series) -> pl.Series:
    if column.dtype.is_nested():
        raise ConfigError(f"--partition {column.name}: a column of lists; name one of plain values")
    return column.cast(pl.String).fill_null("")


def _deal(counts: dict[str, int], regions: int, rng: np.random.Generator) -> dict[str, int]:
    """Largest value first, to the smallest region so far; equals in a seeded order."""
    ties = dict(zip(sorted(counts), rng.permutation(len(counts)).tolist(), strict=True))
    sizes = [0] * regions
    owner: dict[str, int] = {}
    for value in sorted(counts, key=lambda value: (-counts[value], ties[value])):
        owner[value] = sizes.index(min(sizes))
        sizes[owner[value]] += counts[value]
    return owner


def _columns(products: pl.DataFrame) -> str:
    plain = [name for name, dtype in products.schema.items() if not dtype.is_nested()]
    return f"choose dirichlet:ALPHA or one of {', '.join(plain)}"
