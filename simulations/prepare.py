"""From a data source to region folders: exactly what real regions would bring, and nothing else.

After this stage the rest of the run uses only the region folders. Order matters: the click model
shows what rankers find, one ranker is the untrained base, and the base is aligned on photos that
belong to no region.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.region import product_texts
from server.releases import generate_signing_key
from shared.config import COSINE, WEIGHTED_SUM
from shared.durable import canonical_json, replace_file
from shared.encoders.base import BaseInfo
from shared.encoders.encoder import Encoder, ProductPrefixes, pick_device
from shared.encoders.prefix_cache import image_prefixes, text_prefixes
from shared.encoders.presets import (
    cache_root,
    fetch_weights,
    find_preset,
    make_base,
)
from shared.encoders.public import PublicSlice
from shared.errors import DataError, FederationError
from shared.retrieval.index import build_index, search_index
from shared.retrieval.lexical import LexicalIndex
from shared.schema import (
    BaseConfig,
    DataConfig,
    PersonalizationConfig,
    RegionConfig,
    SharingConfig,
)
from simulations.clickmodel import simulate_clicks
from simulations.datasets.load import load_source
from simulations.datasets.source import Query, Source
from simulations.partition import partition, region_names
from simulations.progress import RunProgress
from simulations.queries import cold_mask, localize, split_queries
from simulations.regions import (
    rows_of,
    write_catalog,
    write_clicks,
    write_qrels,
    write_region_toml,
)

SEEN = "seen"  # folder of what answers the queries that training asks; for judging only
LEFTOVERS = ("regions", "headquarters", "base", SEEN)  # of a data stage that was cut off
RANKER_DEPTH = 50  # candidates a ranker hands the click model
REQUESTS_PER_PRODUCT = 2.0
MAX_REQUESTS = 4000  # a region; more of the same log costs time and shows nothing new
MAX_PROBLEMS_SHOWN = 5


@dataclass(frozen=True)
class World:
    """What later stages must know of the data beyond the region folders.

    Attributes:
        data: "synthetic", "fashion" or "icecat".
        fingerprint: of the base.
        release_key: public key of the release signer, hex.
        left_out: test queries without anything relevant in a region's catalog, by region.
        problems: rows and photos left out on import, one line each.
        judged: whether `judged.parquet` holds human judgments for the union table.
    """

    data: str
    fingerprint: str
    release_key: str
    left_out: dict[str, int]
    problems: list[str]
    judged: bool


@dataclass(frozen=True)
class WorldOptions:
    """What a world is made of.

    Attributes:
        data: as `--data` takes it.
        regions: how many.
        rule: as `--partition` takes it, or None for the source's own.
        preset: of the base.
        device: for every region.
        seed: of every choice.
        personalize: whether every region adapts releases to its own clicks.
        fusion: of the base.
        distance: of the base.
    """

    data: str
    regions: int
    rule: str | None
    preset: str
    device: str
    seed: int
    personalize: bool = False
    fusion: str = WEIGHTED_SUM
    distance: str = COSINE


def prepare(run: Path, asked: WorldOptions, progress: RunProgress) -> World:
    """Make the region folders, the base and the signing key of a run; once.

    Args:
        run: the run's folder.
        asked: see `WorldOptions`.
        progress: told what is going on.

    Returns:
        What later stages need; kept in `world.json`, whose presence says this stage is complete.
    """
    path = run / "world.json"
    if path.is_file():
        return _read_world(path)
    for leftover in LEFTOVERS:
        shutil.rmtree(run / leftover, ignore_errors=True)
    fetch_weights(find_preset(asked.preset))  # before minutes of work that would be for nothing
    with progress.stage("data", f"Data: {asked.data}"):
        source, region_of = _write_catalogs(run, asked, progress)
    with progress.stage("base", f"Base: {asked.preset}"):
        base = _make_base(run, source, asked, progress)
        encoder = _ranker(run / "base", base, asked.device)
    with progress.stage("clicks", "Click logs"):
        world = _write_logs(run, source, region_of, base, encoder, asked, progress)
    replace_file(path, canonical_json(asdict(world)))
    return world


def _write_catalogs(
    run: Path, asked: WorldOptions, progress: RunProgress
) -> tuple[Source, list[str]]:
    """Every region's catalog and photos; the source, and the region of each of its products."""
    names = region_names(asked.regions)
    photos, report = cache_root() / "photos", progress.bar("drawing photos")
    source = load_source(asked.data, regions=names, seed=asked.seed, folder=photos, progress=report)
    for problem in source.problems[:MAX_PROBLEMS_SHOWN]:
        progress.line(problem)
    if len(source.problems) > MAX_PROBLEMS_SHOWN:
        progress.line(f"... and {len(source.problems) - MAX_PROBLEMS_SHOWN} more problems")
    rule = asked.rule or source.partition
    region_of = partition(source.products, rule=rule, regions=asked.regions, seed=asked.seed)
    for name in names:
        rows = rows_of(region_of, name)
        write_catalog(run / "regions" / name, source.products[rows])
        progress.line(f"region {name}: {len(rows)} products")
    return source, region_of


def _read_world(path: Path) -> World:
    try:
        return World(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise FederationError(f"{path}: damaged; remove the run folder and start again") from None


def _make_base(run: Path, source: Source, asked: WorldOptions, progress: RunProgress) -> BaseInfo:
    photos = source.public.drop_nulls("image")
    public = PublicSlice(photos["title"].to_list(), [Path(p) for p in photos["image"].to_list()])
    report = progress.bar("aligning the image tower")
    cached, info = make_base(
        find_preset(asked.preset),
        public,
        seed=0,
        progress=report,
        fusion=asked.fusion,
        distance=asked.distance,
    )
    _link_tree(cached, run / "base")
    progress.line(f"base {info.fingerprint[:12]}, {len(public.titles)} public photos")
    return info


def _ranker(folder: Path, base: BaseInfo, device: str) -> Encoder:
    """The untrained base, which shows products in the click logs.

    It fuses and compares as the defaults say, so that equal shoppers make equal logs whatever is
    chosen, and choices can be held against each other.
    """
    from client.encoders import resident_encoder

    if not base.choices:
        return resident_encoder(folder, device=device, fingerprint=base.fingerprint)
    plain = replace(base, fusion=WEIGHTED_SUM, distance=COSINE)
    return Encoder(folder, plain, pick_device(device))


def _link_tree(source: Path, target: Path) -> None:
    """Copy a folder whose files nobody changes in place: by hard links where that is possible."""

    def place(here: str, there: str) -> None:
        try:
            os.link(here, there)
        except OSError:
            shutil.copyfile(here, there)

    shutil.copytree(source, target, copy_function=place)


def _write_logs(
    run: Path,
    source: Source,
    region_of: Sequence[str],
    base: BaseInfo,
    encoder: Encoder,
    asked: WorldOptions,
    progress: RunProgress,
) -> World:
    personalization = PersonalizationConfig(enabled=asked.personalize)
    seen, test = split_queries(source.queries)
    key = run / "headquarters" / "signing.key"
    release_key = generate_signing_key(key)
    left_out = {}
    (run / SEEN).mkdir(exist_ok=True)
    for number, name in enumerate(sorted(set(region_of))):
        folder, rows = run / "regions" / name, rows_of(region_of, name)
        local = [
            localize(part, rows, num_products=len(region_of), region=name) for part in (seen, test)
        ]
        _require_test_query(name, local[1])
        clicks = _clicks(folder, source, local[0], encoder, [asked.seed, number], progress)
        write_clicks(folder, clicks)
        ids = source.products["product_id"][rows].to_list()
        left_out[name] = write_qrels(folder / "qrels.parquet", local[1], ids)
        write_qrels(run / SEEN / f"{name}.parquet", local[0], ids)
        config = _region_config(name, source, base, release_key, asked.device)
        config = config.model_copy(update={"personalization": personalization})
        write_region_toml(folder, config)
        progress.line(f"region {name}: {int(clicks['clicked'].sum())} clicks")
    if source.judged is not None:
        source.judged.write_parquet(run / "judged.parquet")
    return World(
        data=source.name,
        fingerprint=base.fingerprint,
        release_key=release_key,
        left_out=left_out,
        problems=source.problems,
        judged=source.judged is not None,
    )


def _require_test_query(region: str, queries: Sequence[Query]) -> None:
    """Refuse a region that the final table could not measure, before anything is trained."""
    if not any(len(query.rows) for query in queries):
        raise DataError(
            f"region {region}: its catalog answers no test query; "
            "lower --regions, choose another --partition or bring more data"
        )


def _region_config(
    name: str, source: Source, base: BaseInfo, release_key: str, device: str
) -> RegionConfig:
    return RegionConfig.model_validate(
        {
            "region": name,
            "locale": source.locales.get(name, "en"),
            "device": device,
            "base": BaseConfig(
                path="../../base",
                fingerprint=base.fingerprint,
                release_key=release_key,
                releases="../../headquarters/releases",
            ),
            "data": DataConfig.model_validate(
                {"qrels": "qrels.parquet", "text_fields": source.text_fields}
            ),
            "sharing": SharingConfig(product_gaussian=True),  # nobody is there to ask
        }
    )


def _clicks(
    folder: Path,
    source: Source,
    queries: list[Query],
    encoder: Encoder,
    seed: list[int],
    progress: RunProgress,
) -> pl.DataFrame:
    """The region's click log, from lists that BM25 and the untrained base would show."""
    catalog = pl.read_parquet(folder / "catalog.parquet")
    texts = product_texts(catalog, source.text_fields)
    words = [query.text for query in queries]
    depth = min(RANKER_DEPTH, catalog.height)
    lexical = LexicalIndex.build(texts, locale=source.locales.get(folder.name, "en"))
    rankings = {
        "bm25": lexical_rows(lexical, words, depth),
        "dense": _dense_rows(folder, catalog, texts, words, encoder, depth, progress),
    }
    return simulate_clicks(
        queries,
        rankings,
        catalog["product_id"].to_list(),
        np.flatnonzero(~cold_mask(catalog["title"].to_list())),
        requests=min(round(REQUESTS_PER_PRODUCT * catalog.height), MAX_REQUESTS),
        seed=int(np.random.SeedSequence(seed).generate_state(1)[0]),
        prefix=f"{folder.name}-",
    )


def lexical_rows(index: LexicalIndex, queries: Sequence[str], k: int) -> NDArray[np.int64]:
    """BM25's k best rows of every query, (Q, k), -1 where it finds fewer."""
    ranked = np.full((len(queries), k), -1, dtype=np.int64)
    for number, query in enumerate(queries):
        rows, _ = index.search(query, k)
        ranked[number, : len(rows)] = rows
    return ranked


def _dense_rows(
    folder: Path,
    catalog: pl.DataFrame,
    texts: list[str],
    queries: list[str],
    encoder: Encoder,
    depth: int,
    progress: RunProgress,
) -> NDArray[np.int64]:
    """The untrained base's best rows; what is computed for it stays in the region's cache."""
    cache, fingerprint = folder / "state" / "prefix_cache", encoder.base.towers
    paths = [folder / "images" / name if name else None for name in catalog["image"].to_list()]
    bar = progress.bar
    name = folder.name
    products = ProductPrefixes(
        text_prefixes(cache, encoder.text, fingerprint, texts, bar(f"{name}: texts")),
        image_prefixes(cache, encoder.image, fingerprint, paths, bar(f"{name}: photos")),
        np.array([bool(text) for text in texts]),
    )
    encoder.reset(seed=0)
    index = build_index(encoder.product_matrix(products))
    vectors = encoder.query_matrix(text_prefixes(cache, encoder.text, fingerprint, queries))
    return search_index(index, vectors, depth)[1]
