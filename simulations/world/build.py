"""The whole world: regions with their products, shoppers and photos, and the public slice."""

import re
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from shared.errors import ConfigError
from simulations.datasets.source import Query, Source
from simulations.world.photos import Job, Progress, photo_path, write_photos
from simulations.world.products import region_products
from simulations.world.profiles import Profile, profiles_of
from simulations.world.public import public_frame, public_photos
from simulations.world.queries import region_queries, shelf_of

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_MOST_REGIONS = 100


def build_world(
    *,
    regions: Sequence[str],
    seed: int,
    products_per_region: int = 700,
    folder: Path,
    public_count: int = 3000,
    processes: int | None = None,
    progress: Progress | None = None,
) -> Source:
    """Draw a retail world: the same arguments give the same products, queries and photos.

    Args:
        regions: their names, 1 to 100; "east", "north", "south" and "west" have profiles of their
            own, other names share the four in turn.
        seed: of products, queries and the regions' photos; the public slice has its own.
        products_per_region: at least 1; a query without a full answer is left out.
        folder: photos are written to one sub-folder a region and to `public`.
        public_count: rows of the public slice, at least 1.
        processes: see `write_photos`.
        progress: called with the number of photos done and in all.

    Returns:
        The world, partitioned by its column `region`; beside the catalog's columns it has one a
        facet: `colour`, `material`, `pattern`, `gender`.

    Raises:
        ConfigError: a region's name or a number is out of bounds.
        DataError: the photos cannot be written.
    """
    _check(regions, products_per_region)
    profiles = profiles_of(regions)
    titles, public_jobs = public_photos(folder, public_count)
    products, jobs = _catalogs(profiles, seed, products_per_region, folder.resolve())
    queries = _queries(products, profiles, seed)
    write_photos([*jobs, *public_jobs], processes=processes, progress=progress)
    return Source(
        name="synthetic",
        products=products,
        queries=queries,
        public=public_frame(titles, [path for _, path in public_jobs]),
        partition="region",
        locales={name: p.locale for name, p in profiles.items() if p.locale != "en"},
    )


def _check(regions: Sequence[str], products_per_region: int) -> None:
    if not 1 <= len(regions) <= _MOST_REGIONS:
        raise ConfigError(f"regions: {len(regions)} given, expected 1 to {_MOST_REGIONS}")
    if len(set(regions)) < len(regions):
        raise ConfigError("regions: a name is given twice; every region needs its own")
    for name in regions:
        if not _NAME.fullmatch(name):
            raise ConfigError(f'region "{name}": expected lower-case letters, digits, "-" and "_"')
    if products_per_region < 1:
        raise ConfigError(f"products per region: {products_per_region} given, expected at least 1")


def _catalogs(
    profiles: dict[str, Profile], seed: int, count: int, folder: Path
) -> tuple[pl.DataFrame, list[Job]]:
    frames: list[pl.DataFrame] = []
    jobs: list[Job] = []
    for region, profile in profiles.items():
        frame, looks = region_products(region, profile, seed=seed, count=count)
        ids = frame["product_id"].to_list()
        paths = [photo_path(folder / region, k, i) for k, i in zip(looks, ids, strict=True)]
        frames.append(frame.with_columns(image=pl.Series([str(path) for path in paths])))
        jobs.extend(zip(looks, paths, strict=True))
    return pl.concat(frames), jobs


def _queries(products: pl.DataFrame, profiles: dict[str, Profile], seed: int) -> list[Query]:
    count, queries = products.height // len(profiles), list[Query]()
    for at, (region, profile) in enumerate(profiles.items()):
        shelf = shelf_of(products.slice(at * count, count), at * count)
        queries.extend(region_queries(region, profile.lexicon, shelf, seed=seed))
    return queries
