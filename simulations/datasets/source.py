"""The one form every data source is brought to before regions are made of it.

`fashion`, `icecat` and the synthetic world differ only up to here; partitioning, query split, click
model and region folders work on a `Source` and know nothing of where it came from.
"""

from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray


@dataclass(frozen=True)
class Query:
    """One thing shoppers want, in the words they type.

    Attributes:
        text: the words typed.
        rows: row numbers in `Source.products` with a grade above zero, (R,) int64, ascending.
        grades: relevance of those rows, (R,) int8, each in 1..3.
        region: the only region where it is asked, or None for every region.
        popularity: how often it is asked relative to the others, > 0.
    """

    text: str
    rows: NDArray[np.int64]
    grades: NDArray[np.int8]
    region: str | None = None
    popularity: float = 1.0


@dataclass(frozen=True)
class Source:
    """A whole world of products and queries, before it is cut into regions.

    Attributes:
        name: "synthetic", "fashion" or "icecat".
        products: one row a product, in the columns of `shared.schema.CATALOG_COLUMNS` (those it
            has; `image` is here an absolute path as text, or null), plus `region` where the
            source itself assigns regions, plus any column `--partition` may name.
        queries: what shoppers ask, with relevance, before the seen/test split.
        public: photos and texts that belong to no region, to align the image tower on: columns
            `title` (the product text) and `image` (absolute path); zero rows if there are none.
        judged: human judgments (`query`, `product_id`, `grade`) for the union table, or None.
        text_fields: catalog columns that make a product's text, in order.
        partition: the column or rule used where `--partition` is not given.
        locales: locale of each region that is not "en".
        problems: rows and images left out, one line each: file, row, reason.
    """

    name: str
    products: pl.DataFrame
    queries: list[Query]
    public: pl.DataFrame
    judged: pl.DataFrame | None = None
    text_fields: tuple[str, ...] = ("title",)
    partition: str = "dirichlet:0.5"
    locales: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
