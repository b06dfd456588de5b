"""What a sample says of room and time, held against what is then written and computed."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_region import change, edit, rows_of, set_cell, verdicts

import client.estimate
from client.clicks import make_examples, make_validation_set, split_by_time
from client.estimate import (
    Estimate,
    Work,
    disk_finding,
    measure,
    memory_finding,
    time_finding,
)
from client.finding import Finding
from client.indexing import build_region_index
from client.region import open_region, read_clicks
from shared.encoders.encoder import Encoder
from shared.encoders.prefix_cache import image_prefixes, text_prefixes


def estimate_of(north: Path, encoder: Encoder, sample: int) -> Estimate:
    region = open_region(north)
    parts, ids = split_by_time(read_clicks(region), region.config.splits), region.catalog
    splits = (
        make_examples(parts.train, ids["product_id"]),
        make_validation_set(parts.validation, ids["product_id"]),
        make_validation_set(parts.gate, ids["product_id"]),
    )
    return measure(region, encoder, splits, sample)


def keep_everything(north: Path, encoder: Encoder) -> None:
    """As a worker does."""
    region, cache = open_region(north), north / "state" / "prefix_cache"
    parts, ids = split_by_time(read_clicks(region), region.config.splits), region.catalog
    examples = make_examples(parts.train, ids["product_id"])
    held_out = [
        make_validation_set(part, ids["product_id"]) for part in (parts.validation, parts.gate)
    ]
    fingerprint = encoder.base.fingerprint
    for texts in (region.texts, examples.queries, *(part.queries for part in held_out)):
        text_prefixes(cache, encoder.text, fingerprint, texts)
    image_prefixes(cache, encoder.image, fingerprint, region.image_paths)


def test_what_a_sample_of_everything_says_is_what_is_written(north: Path, encoder: Encoder) -> None:
    cache = north / "state" / "prefix_cache"
    shutil.rmtree(cache)
    foreseen = estimate_of(north, encoder, sample=1000)
    keep_everything(north, encoder)
    written = sum(path.stat().st_size for path in cache.rglob("*.npy"))
    headers = 128 * len(list(cache.rglob("*.npy")))
    assert 0 <= written - foreseen.cache_bytes <= headers + 4 * 8  # a list has one offset more
    index = build_region_index(open_region(north), encoder, release=0)
    files = [path for path in index.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == {index.name, "lexical"}
    assert sum(path.stat().st_size for path in files) == pytest.approx(foreseen.index_bytes, abs=8)


def test_a_small_sample_comes_near(north: Path, encoder: Encoder) -> None:
    shutil.rmtree(north / "state")
    small, whole = (estimate_of(north, encoder, sample=size) for size in (10, 1000))
    assert small.cache_bytes == pytest.approx(whole.cache_bytes, rel=0.2)
    assert (small.texts.items, small.photos.items) == (whole.texts.items, whole.photos.items)
    assert small.base_s > 0
    assert small.matrix_bytes == whole.matrix_bytes == 50 * encoder.dim * 4


def test_what_is_kept_costs_nothing_more(north: Path, encoder: Encoder) -> None:
    keep_everything(north, encoder)
    kept = estimate_of(north, encoder, sample=8)
    assert kept.cache_bytes == 0
    assert kept.texts.seconds == kept.queries.seconds == kept.photos.seconds == 0
    edit(north / "catalog.parquet", set_cell("title", 0, "another"))
    photo = next(row for row, path in enumerate(open_region(north).image_paths) if path)
    edit(north / "catalog.parquet", set_cell("image", photo, None))
    anew = estimate_of(north, encoder, sample=8)
    assert (anew.texts.missing, anew.queries.missing) == (50, 0)
    assert anew.photos.missing == kept.photos.items - 1
    assert anew.photos.missing_bytes == 50 * anew.photos.bytes_each


ESTIMATE = Estimate(
    texts=Work(items=1000, missing=1000, new_rows=1000, bytes_each=2000.0, seconds_each=0.06),
    queries=Work(items=500, missing=0, new_rows=0, bytes_each=500.0, seconds_each=0.06),
    photos=Work(items=800, missing=800, new_rows=1000, bytes_each=3000.0, seconds_each=0.3),
    index_bytes=1e6,
    release_bytes=5e5,
    matrix_bytes=2e6,
    batch_bytes=1e6,
    index_s=30.0,
    base_s=60.0,
    round_s=600.0,
)


def test_disk_holds_kept_activations_and_everything_else_twice() -> None:
    # 1000 * 2000 + 1000 * 3000 + 2 * 1e6 + 2 * 5e5
    enough, short = (disk_finding(ESTIMATE, free_bytes=free) for free in (8_000_000, 7_999_999))
    assert (enough.verdict, short.verdict) == ("ok", "fail")
    assert "8.0 MB free; about 8.0 MB needed" in enough.found
    assert "kept activations 5.0 MB, two indexes 2.0 MB, two releases 1.0 MB" in enough.found


def test_a_full_disk_fails_the_region(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(north)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    rows = rows_of(north)
    assert verdicts(rows, "fail") == ["disk"]
    assert rows["disk"].found.startswith("10 B free; ")


def test_memory_holds_the_measured_peak_two_matrices_and_a_batch() -> None:
    def finding(available: int) -> Finding:
        return memory_finding(ESTIMATE, peak_bytes=3_000_000_000, available_bytes=available)

    assert finding(3_005_000_000).verdict == "ok"
    assert finding(3_004_999_999).verdict == "fail"
    assert "3.0 GB available; about 3.0 GB needed" in finding(3_005_000_000).found


def test_a_system_that_does_not_tell_its_memory_warns(
    north: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(path: str, name: str) -> int:
        raise FileNotFoundError(path)

    monkeypatch.setattr(client.estimate, "_kilobytes", missing)
    assert verdicts(rows_of(north), "warn") == ["memory"]


def test_it_measures_with_the_workers_threads_and_gives_the_former_back(
    north: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = torch.get_num_threads(), list[int]()

    def spy(*arguments: object) -> float:
        seen.append(torch.get_num_threads())
        return 0.0

    monkeypatch.setattr(client.estimate, "_measure_release", spy)
    rows = rows_of(change(north, worker={"threads": before + 1}))
    assert rows["device"].found.endswith(f"{before + 1} threads")
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_a_first_round_that_headquarters_would_not_await_warns() -> None:
    # 1000 * 0.06 + 800 * 0.3 + 60 + 600 s
    in_time, late = (time_finding(ESTIMATE, round_timeout_s=wait) for wait in (960.0, 959.0))
    assert (in_time.verdict, late.verdict) == ("ok", "warn")
    assert in_time.found == (
        "about, for activations: texts 1.0 min, queries none, kept already, photos 4.0 min; for"
        " training a round: 10.0 min (1.0 min more before the first); for indexing: 0.5 min"
    )
    assert "16.0 min" in late.advice


def test_who_adapts_releases_is_told_what_that_takes(north: Path) -> None:
    asked = replace(ESTIMATE, passes=11)
    assert "; for adapting a release: 110.0 min; for indexing" in (
        time_finding(asked, round_timeout_s=960.0).found
    )
    plain = rows_of(north)
    both = rows_of(change(north, personalization={"enabled": True}))
    alone = rows_of(change(north, personalization={"enabled": True, "alone_share": 0.0}))
    assert "adapting" not in plain["time"].found
    assert all("; for adapting a release: " in rows["time"].found for rows in (both, alone))

    def vectors(rows: dict[str, Finding]) -> str:
        return rows["memory"].found.partition("vectors twice ")[2].partition(",")[0]

    assert vectors(plain) == vectors(alone) != vectors(both)  # two adapters, twice the numbers
