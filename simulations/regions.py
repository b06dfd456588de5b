"""Write exactly what a real region would bring, so the rest of the house cannot tell them apart.

A region folder comes about in steps, because clicks need rankings and those need the base: first
the catalog and its photos, then clicks and qrels, last `region.toml`. A folder without
`region.toml` is unfinished. Every file is written beside its place and renamed.
"""

import os
import shutil
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import polars as pl

from shared.durable import replace_file
from shared.errors import DataError
from shared.schema import (
    CATALOG_COLUMNS,
    CLICK_COLUMNS,
    QREL_COLUMNS,
    RegionConfig,
    render_region_toml,
)
from simulations.datasets.source import Query
from simulations.queries import make_qrels


def write_catalog(folder: Path, products: pl.DataFrame) -> pl.DataFrame:
    """Write a region's catalog.parquet and images/ into a folder that is not there yet.

    Args:
        folder: of the region; its parent is made if missing.
        products: its rows of `Source.products`; `image` holds absolute paths or null.

    Returns:
        The catalog as written: `CATALOG_COLUMNS`, image relative to images/.

    Raises:
        DataError: the folder exists, or something cannot be written. Nothing is left behind.
    """
    if folder.exists():
        raise DataError(f"{folder}: is there already; name another --out or remove it")
    names = _image_names(products["image"].to_list() if "image" in products.columns else [])
    catalog = _catalog(products, names)
    beside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        # No fsync, unlike `shared.durable`: thousands of photos would take longer than training,
        # and a simulation that lost its power starts again.
        _place_images(names, beside / "images")
        catalog.write_parquet(beside / "catalog.parquet")
        beside.rename(folder)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise DataError(f"{folder}: cannot be written: {error}") from None
    return catalog


def write_clicks(folder: Path, clicks: pl.DataFrame) -> None:
    """Write a region's clicks.parquet, in `CLICK_COLUMNS`."""
    _write_parquet(folder / "clicks.parquet", clicks.select(*CLICK_COLUMNS))


def write_qrels(path: Path, queries: Sequence[Query], product_ids: Sequence[str]) -> int:
    """Write which products of a region's whole catalog, cold ones included, answer queries.

    Args:
        path: qrels.parquet of the region for its test queries.
        queries: with this region's row numbers.
        product_ids: of its catalog, in row order.

    Returns:
        How many queries were left out because nothing in this catalog is relevant.
    """
    kept = [query for query in queries if len(query.rows)]
    qrels = make_qrels(kept, product_ids)
    _write_parquet(path, qrels.select(*QREL_COLUMNS))
    return len(queries) - len(kept)


def write_region_toml(folder: Path, config: RegionConfig) -> None:
    """Write region.toml, which makes the folder a region."""
    replace_file(folder / "region.toml", render_region_toml(config).encode())


def _catalog(products: pl.DataFrame, names: dict[str, str]) -> pl.DataFrame:
    absent = [pl.lit(None).alias(name) for name in CATALOG_COLUMNS if name not in products.columns]
    whole = products.with_columns(absent)
    typed = whole.select(pl.col(name).cast(dtype) for name, dtype in CATALOG_COLUMNS.items())
    images = [names[path] if path else None for path in typed["image"].to_list()]
    return typed.with_columns(pl.Series("image", images, dtype=pl.String))


def _image_names(paths: Sequence[str | None]) -> dict[str, str]:
    """File name of each distinct photo: its own, numbered where two photos share one."""
    distinct = list(dict.fromkeys(path for path in paths if path))
    names = [Path(path).name for path in distinct]
    if len(set(names)) < len(names):
        names = [f"{number:06d}-{name}" for number, name in enumerate(names)]
    return dict(zip(distinct, names, strict=True))


def _place_images(names: dict[str, str], folder: Path) -> None:
    """Hard-link photos where the file system allows it, else copy: none is changed in place."""
    folder.mkdir(parents=True)
    for source, name in names.items():
        try:
            os.link(source, folder / name)
        except OSError:
            shutil.copyfile(source, folder / name)


def _write_parquet(path: Path, table: pl.DataFrame) -> None:
    buffer = BytesIO()
    table.write_parquet(buffer)
    replace_file(path, buffer.getvalue())


def rows_of(regions: Sequence[str], region: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Rows that a partition gave to one region, ascending, (N,)."""
    return np.flatnonzero(np.asarray(regions) == region).astype(np.int64)
