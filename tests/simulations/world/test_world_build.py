import hashlib
import re
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest

from shared.errors import ConfigError, DataError
from shared.schema import CATALOG_COLUMNS
from simulations.datasets.source import Query, Source
from simulations.world import build_public, build_world
from simulations.world.english import AMERICAN, BRITISH, COASTAL
from simulations.world.products import LINES, line_of
from simulations.world.profiles import PROFILES, WORLD_BRANDS, profiles_of
from simulations.world.taxonomy import KINDS

FOUR = ["east", "north", "south", "west"]
BORROWED = {"t-shirt", "rucksack", "pullover"}  # the same word in both languages


def world(folder: Path, *, seed: int = 1, processes: int | None = None) -> Source:
    return build_world(
        regions=FOUR,
        seed=seed,
        products_per_region=40,
        folder=folder,
        public_count=30,
        processes=processes,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="module")
def source(folder: Path) -> Source:
    return world(folder, processes=2)


def bytes_of(images: pl.Series) -> list[str]:
    return [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in images]


def plain(queries: list[Query]) -> list[tuple[str, bytes, bytes, str | None, float]]:
    return [(q.text, q.rows.tobytes(), q.grades.tobytes(), q.region, q.popularity) for q in queries]


def test_same_seed_same_world_on_any_number_of_processes(source: Source, tmp_path: Path) -> None:
    again = world(tmp_path, processes=1)
    assert again.products.drop("image").equals(source.products.drop("image"))
    assert plain(again.queries) == plain(source.queries)
    assert again.public["title"].equals(source.public["title"])
    assert bytes_of(again.products["image"]) == bytes_of(source.products["image"])
    assert bytes_of(again.public["image"]) == bytes_of(source.public["image"])


def test_other_seed_other_world_but_same_public_slice(source: Source, folder: Path) -> None:
    other = world(folder, seed=2)
    assert not other.products["title"].equals(source.products["title"])
    assert plain(other.queries) != plain(source.queries)
    assert set(other.products["image"]).isdisjoint(source.products["image"])
    assert other.public.equals(source.public)


def test_photos_that_exist_are_kept(source: Source, folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.jpg")}
    world(folder)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not list(folder.rglob(".*"))  # nothing half-written lies about


def test_catalog_has_its_columns_and_unique_ids(source: Source) -> None:
    types = source.products.schema
    assert {column: types[column] for column in CATALOG_COLUMNS} == CATALOG_COLUMNS
    assert source.products["product_id"].n_unique() == source.products.height == 160
    assert source.products.null_count().drop("gender").sum_horizontal().item() == 0
    assert (source.products["title"].str.strip_chars().str.len_chars() > 0).all()
    assert source.products["rating"].is_between(1, 5).all()
    assert (source.products["price"] > 0).all()
    assert source.partition == "region" and source.name == "synthetic"


def test_every_row_of_a_query_is_of_its_region(source: Source) -> None:
    regions = source.products["region"].to_numpy()
    for query in source.queries:
        assert query.region in FOUR
        assert (regions[query.rows] == query.region).all()
        assert (query.grades == 3).any()
        assert all(a < b for a, b in pairwise(query.rows.tolist()))


def test_a_text_is_asked_once_a_region_and_popularity_falls(source: Source) -> None:
    for region in FOUR:
        asked = [query for query in source.queries if query.region == region]
        assert len({query.text for query in asked}) == len(asked)
        assert asked[0].popularity == 1.0
        assert all(a.popularity > b.popularity for a, b in pairwise(asked))


def test_german_region_has_no_english_type_words(source: Source) -> None:
    assert source.locales == {"south": "de"}
    tables = (BRITISH, AMERICAN, COASTAL)
    sides = [side for table in tables for kind in KINDS for side in table[kind]]
    english = {word.lower() for side in sides for word in side} - BORROWED
    german = source.products.filter(region="south")["title"].to_list()
    german += [query.text for query in source.queries if query.region == "south"]
    pattern = re.compile(r"(?<![\w-])(" + "|".join(map(re.escape, english)) + r")(?![\w-])")
    names = re.compile("|".join([*LINES, *WORLD_BRANDS, *PROFILES["south"].brands]))
    assert [text for text in german if pattern.search(names.sub("", text).lower())] == []


def test_types_have_words_of_their_own() -> None:
    for profile in PROFILES.values():
        words = [word for kind in KINDS for word in profile.lexicon.kind_queries(kind)]
        assert len(set(words)) == len(words)


def test_one_region_in_four_is_german_whatever_the_names() -> None:
    for names in (FOUR, FOUR[::-1], [f"shop-{i}" for i in range(100)], ["south", "a", "b", "c"]):
        locales = [profile.locale for profile in profiles_of(names).values()]
        blocks = [locales[at : at + 4] for at in range(0, len(locales), 4)]
        assert all(block.count("de") == 1 for block in blocks)
    assert profiles_of(["south"])["south"] is PROFILES["south"]


def test_a_brand_names_no_two_lines_alike() -> None:
    assert len({line_of("Avento", kind) for kind in KINDS}) == len(KINDS)


def test_public_slice_is_the_same_alone_and_its_beginning_is_stable(
    source: Source, folder: Path
) -> None:
    alone = build_public(folder=folder, count=20)
    assert alone.equals(source.public.head(20))
    assert alone.columns == ["title", "image"]
    assert all(Path(path).is_absolute() and Path(path).is_file() for path in alone["image"])


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    build_public(folder=tmp_path, count=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("regions", "count", "match"),
    [
        ([], 1, "expected 1 to 100"),
        ([f"r{i}" for i in range(101)], 1, "expected 1 to 100"),
        (["north", "north"], 1, "given twice"),
        (["North Pole"], 1, "lower-case"),
        (["north"], 0, "at least 1"),
    ],
)
def test_bad_arguments(regions: list[str], count: int, match: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=match):
        build_world(regions=regions, seed=0, products_per_region=count, folder=tmp_path)


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "public").write_text("a file, not a folder")
    with pytest.raises(DataError, match="cannot write photos"):
        build_public(folder=tmp_path, count=1)


def test_public_count_below_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        build_public(folder=tmp_path, count=0)
