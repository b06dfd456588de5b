"""Each row of a region's check: sound regions pass, and every fault fails its own row alone."""

import http.server
import json
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from rich.console import Console
from small_world import prepare_run, write_fashion

from client import check
from client.check import (
    MAX_AHEAD_S,
    MAX_BEHIND_S,
    CheckRow,
    Estimate,
    Work,
    check_region,
    clock_finding,
    disk_finding,
    exit_code,
    measure,
    memory_finding,
    render,
    time_finding,
    to_json,
)
from client.clicks import make_examples, make_validation_set, split_by_time
from client.indexing import build_region_index, load_region_encoder, pull_release
from client.region import open_region, read_clicks
from server.releases import publish_release, write_release
from shared.encoders.encoder import Encoder
from shared.encoders.prefix_cache import image_prefixes, text_prefixes
from shared.release import ReleaseBase, ReleaseFacts
from shared.schema import RegionConfig, load_region_config, render_region_toml

QUESTIONS = [
    *("configuration", "permissions", "catalog", "photos", "clicks", "judgments", "splits"),
    *("device", "base", "release", "disk", "memory", "connection", "clock", "time"),
]
DAY = timedelta(days=1)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two regions with nothing trained; nobody changes it."""
    run = tmp_path_factory.mktemp("check") / "run"
    prepare_run(run, write_fashion(run.parent / "fashion"))
    return run


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A region with nothing wrong but too few gate queries, which is allowed for."""
    folder = shutil.copytree(prepared, tmp_path / "run") / "regions" / "north"
    folder.chmod(0o700)
    return change(folder, publication={"min_queries": 2})


def change(folder: Path, **sections: object) -> Path:
    """Change keys of `region.toml`, section by section."""
    values = load_region_config(folder).model_dump(mode="json", exclude_none=True)
    for name, value in sections.items():
        values[name] = {**values.get(name, {}), **value} if isinstance(value, dict) else value
    toml = render_region_toml(RegionConfig.model_validate(values))
    (folder / "region.toml").write_text(toml, encoding="utf-8")
    return folder


def rows_of(folder: Path, **options: object) -> dict[str, CheckRow]:
    rows = check_region(folder, sample=8, **options)  # type: ignore[arg-type]
    return {row.what: row for row in rows}


def verdicts(rows: dict[str, CheckRow], verdict: str) -> list[str]:
    return [what for what, row in rows.items() if row.verdict == verdict]


def contents(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file and folder below: mode, time of change, bytes."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.stat()
        data = b"" if path.is_dir() else path.read_bytes()
        found[str(path)] = (status.st_mode, status.st_mtime_ns, data)
    return found


# -- the whole -------------------------------------------------------------------------------------


def test_a_sound_region_passes_and_nothing_is_written(folder: Path) -> None:
    before, seen = contents(folder.parents[1]), list[CheckRow]()
    rows = check_region(folder, sample=8, on_row=seen.append)
    assert [row.what for row in rows] == QUESTIONS
    assert {row.verdict for row in rows} == {"ok"}, [row for row in rows if row.verdict != "ok"]
    assert exit_code(rows) == 0
    assert seen == rows
    assert contents(folder.parents[1]) == before


def test_a_region_without_any_state_is_left_without(folder: Path) -> None:
    shutil.rmtree(folder / "state")
    before = contents(folder)
    assert verdicts(rows_of(folder), "ok") == QUESTIONS
    assert contents(folder) == before


def test_warnings_alone_do_not_fail() -> None:
    rows = [CheckRow("a", "ok", "", ""), CheckRow("b", "warn", "", "")]
    assert exit_code(rows) == 0
    assert exit_code([*rows, CheckRow("c", "fail", "", "")]) == 1


def test_the_table_shows_every_row_as_it_is() -> None:
    rows = [
        CheckRow("catalog", "ok", "1,240 products [bold]", ""),
        CheckRow("clock", "fail", "900 seconds ahead", "set the clock"),
    ]
    console = Console(width=100)
    with console.capture() as shown:
        console.print(render(rows))
    text = shown.get()
    for expected in ("catalog", "ok", "1,240 products [bold]", "clock", "fail", "→ set the clock"):
        assert expected in text
    assert json.loads(to_json(rows)) == {
        "exit_code": 1,
        "rows": [
            {"what": "catalog", "verdict": "ok", "found": "1,240 products [bold]", "advice": ""},
            {
                "what": "clock",
                "verdict": "fail",
                "found": "900 seconds ahead",
                "advice": "set the clock",
            },
        ],
    }


# -- configuration and files -----------------------------------------------------------------------


def test_an_unknown_key_fails_and_the_rest_is_not_checked(folder: Path) -> None:
    with (folder / "region.toml").open("a", encoding="utf-8") as file:
        file.write("\n[colour]\nred = 3\n")
    rows = rows_of(folder)
    assert verdicts(rows, "fail") == ["configuration"]
    assert "colour" in rows["configuration"].found
    assert rows["configuration"].advice == "correct or remove this key"
    others = [row for what, row in rows.items() if what != "configuration"]
    assert all(row.found.startswith("not checked") for row in others)


def test_a_folder_without_region_toml_fails(tmp_path: Path) -> None:
    rows = rows_of(tmp_path)
    assert "region.toml: not found" in rows["configuration"].found
    assert verdicts(rows, "fail") == ["configuration"]


def test_what_others_can_read_is_named(folder: Path) -> None:
    folder.chmod(0o755)
    row = rows_of(folder)["permissions"]
    assert row.verdict == "warn"
    assert "the folder, catalog.parquet, clicks.parquet, images" in row.found
    folder.chmod(0o711)  # as a worker's socket in it needs
    (folder / "clicks.parquet").chmod(0o600)
    row = rows_of(folder)["permissions"]
    assert "the folder" not in row.found
    assert "clicks" not in row.found
    assert "catalog.parquet" in row.found


@pytest.mark.parametrize(("mode", "verdict"), [(0o600, "ok"), (0o640, "fail"), (0o604, "fail")])
def test_the_key_is_its_owners_alone(folder: Path, mode: int, verdict: str) -> None:
    key = folder / "enrolment" / "node.key"
    key.parent.mkdir()
    key.write_bytes(b"secret")
    key.chmod(mode)
    row = rows_of(change(folder, headquarters={"address": f"127.0.0.1:{free_port()}"}))[
        "permissions"
    ]
    assert row.verdict == verdict
    assert row.advice == ("" if verdict == "ok" else f"chmod 600 {key}")


def test_a_region_without_its_key_must_enrol(folder: Path) -> None:
    rows = rows_of(change(folder, headquarters={"address": f"127.0.0.1:{free_port()}"}))
    assert rows["permissions"].verdict == "fail"
    assert "node.key: not found" in rows["permissions"].found


# -- data ------------------------------------------------------------------------------------------


def edit(path: Path, change_rows: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    change_rows(pl.read_parquet(path)).write_parquet(path)


def set_cell(name: str, row: int, value: object) -> Callable[[pl.DataFrame], pl.DataFrame]:
    def change_rows(table: pl.DataFrame) -> pl.DataFrame:
        cells = table[name].to_list()
        cells[row] = value
        return table.with_columns(pl.Series(name, cells, dtype=table[name].dtype))

    return change_rows


def test_bad_rows_are_counted_and_the_first_is_named(folder: Path) -> None:
    catalog = folder / "catalog.parquet"
    num = pl.read_parquet(catalog).height
    edit(catalog, set_cell("title", 3, None))
    edit(catalog, set_cell("price", 7, -1.0))
    edit(catalog, lambda table: pl.concat([table, table[:1]]))
    row = rows_of(folder)["catalog"]
    assert row.verdict == "warn"
    assert f"{num - 1:,} products, 2 rows left out, 1 cell emptied" in row.found
    assert "(first: catalog.parquet row 4: title: missing)" in row.found
    assert "1 duplicate," in row.found
    assert row.advice == "correct these rows in catalog.parquet"


def test_products_without_text_and_photo_are_counted(folder: Path) -> None:
    change(folder, data={"text_fields": ["brand"]})
    edit(folder / "catalog.parquet", set_cell("brand", 5, None))
    edit(folder / "catalog.parquet", set_cell("image", 5, None))
    row = rows_of(folder)["catalog"]
    assert row.verdict == "warn"
    assert "without both" in row.found
    region = open_region(folder)
    empty = sum(not text for text in region.texts)
    photoless = sum(path is None for path in region.image_paths)
    assert f"{empty:,} without text, {photoless:,} without photo" in row.found


def test_a_missing_catalog_stops_only_what_needs_it(folder: Path) -> None:
    (folder / "catalog.parquet").unlink()
    rows = rows_of(folder)
    assert verdicts(rows, "fail") == ["catalog"]
    assert rows["catalog"].found.endswith("catalog.parquet: not found")
    assert rows["catalog"].advice == "see [data] in region.toml"
    stopped = ["photos", "clicks", "judgments", "splits", "disk", "memory", "time"]
    assert verdicts(rows, "warn") == stopped
    assert rows["memory"].found == "not checked; it needs what the row disk did not find"


def test_a_catalog_that_may_not_be_read_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "images")

    monkeypatch.setattr("client.region.open_region", refuse)  # root may read everything
    row = rows_of(folder)["catalog"]
    assert (row.verdict, row.found) == ("fail", "images: Permission denied")


def test_unreadable_photos_are_counted(folder: Path) -> None:
    region = open_region(folder)
    broken = [path for path in region.image_paths if path][:2]
    for path in broken:  # a copy: the original is shared by hard links
        path.unlink()
        path.write_bytes(b"not a photo")
    rows = rows_of(folder)
    assert rows["photos"].verdict == "warn"
    assert "2 unreadable (first: catalog.parquet row " in rows["photos"].found
    assert rows["catalog"].verdict == "ok"


def test_clicks_of_unknown_products_are_counted(folder: Path) -> None:
    edit(folder / "clicks.parquet", set_cell("product_id", 0, 'it\'s a secret; "query" row 9: x'))
    row = rows_of(folder)["clicks"]
    assert row.verdict == "warn"
    assert "1 row left out, 0 cells emptied" in row.found
    assert "(first: clicks.parquet row 1: unknown product_id)" in row.found
    assert "1 impression of products that the catalog lacks" in row.found


def test_too_many_bad_clicks_fail_without_showing_one(folder: Path) -> None:
    change(folder, data={"max_bad_rows": 0})
    edit(folder / "clicks.parquet", set_cell("product_id", 0, "a secret; query"))
    rows = rows_of(folder)
    assert rows["clicks"].verdict == "fail"
    assert "1 bad rows, 0 allowed" in rows["clicks"].found
    assert "secret" not in to_json(list(rows.values()))
    assert verdicts(rows, "warn") == ["splits"]


def test_a_csv_without_its_header_is_not_shown(folder: Path) -> None:
    (folder / "clicks.csv").write_text("r1,2025-01-01,a secret; query,p1,1,true\n", "utf-8")
    rows = rows_of(change(folder, data={"clicks": "clicks.csv"}))
    (folder / "clicks.csv").write_text("r1,2025-01-01,a secret; query,p1,1,true\n" * 2, "utf-8")
    again = rows_of(folder)
    assert rows["clicks"].verdict == again["clicks"].verdict == "fail"
    assert "no column request_id" in again["clicks"].found
    assert again["clicks"].advice == "add or rename it"
    assert "secret" not in to_json([*rows.values(), *again.values()])


def test_bad_judgments_are_counted(folder: Path) -> None:
    edit(folder / "qrels.parquet", set_cell("grade", 0, -1))
    row = rows_of(folder)["judgments"]
    assert row.verdict == "warn"
    assert (
        "1 row left out, 0 cells emptied (first: qrels.parquet row 1: grade: below 0)" in row.found
    )


def test_judgments_are_asked_for_only_where_they_are_named(folder: Path) -> None:
    values = load_region_config(folder).model_dump(mode="json", exclude_none=True)
    del values["data"]["qrels"]
    toml = render_region_toml(RegionConfig.model_validate(values))
    (folder / "region.toml").write_text(toml, encoding="utf-8")
    assert "judgments" not in rows_of(folder)


def test_a_log_without_clicks_has_nothing_to_train_on(folder: Path) -> None:
    edit(folder / "clicks.parquet", lambda table: table.with_columns(clicked=pl.lit(False)))
    edit(folder / "clicks.parquet", lambda t: t.with_columns(carted=False, purchased=False))
    rows = rows_of(folder)
    assert verdicts(rows, "fail") == ["splits"]
    assert "0 training examples" in rows["splits"].found
    assert "for training a round: no examples" in rows["time"].found


@pytest.mark.parametrize(
    ("sections", "word"),
    [
        ({"publication": {"min_queries": 3000}}, "fewer than 3,000 gate queries"),
        ({"splits": {"validation": 0.0}}, "splits.validation"),
    ],
)
def test_too_few_held_out_queries_warn(
    folder: Path, sections: dict[str, object], word: str
) -> None:
    row = rows_of(change(folder, **sections))["splits"]
    assert row.verdict == "warn"
    assert word in row.advice


def test_no_row_holds_a_query_a_title_or_an_id(folder: Path) -> None:
    text = to_json(check_region(folder, sample=8))
    clicks, catalog = (
        pl.read_parquet(folder / f"{name}.parquet") for name in ("clicks", "catalog")
    )
    private = {*clicks["query"], *catalog["title"], *catalog["product_id"], *clicks["request_id"]}
    assert len(private) > 100
    assert not [word for word in private if word in text]


# -- model -----------------------------------------------------------------------------------------


def test_a_changed_base_fails_and_what_needs_no_base_goes_on(folder: Path) -> None:
    weights = folder.parents[1] / "base" / "text" / "config.json"
    changed = weights.read_bytes() + b" "
    weights.unlink()  # a hard link into the cache
    weights.write_bytes(changed)
    rows = rows_of(folder)
    assert verdicts(rows, "fail") == ["base"]
    assert rows["base"].found.endswith("text/config.json: changed")
    assert rows["base"].advice == "copy the base again"
    assert verdicts(rows, "warn") == ["disk", "memory", "time"]


def test_another_base_fails(folder: Path) -> None:
    row = rows_of(change(folder, base={"fingerprint": "f" * 64}))["base"]
    assert row.verdict == "fail"
    assert "expected ffffffffffff" in row.found


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_fails_and_the_base_is_still_checked(folder: Path) -> None:
    rows = rows_of(change(folder, device="cuda"))
    assert verdicts(rows, "fail") == ["device"]
    assert rows["device"].found == '"cuda": no GPU answers'
    assert rows["base"].verdict == "ok"


# -- release ---------------------------------------------------------------------------------------


@pytest.fixture
def released(folder: Path) -> Path:
    """A region that pulled a release and answers from it."""
    config = load_region_config(folder)
    encoder = load_region_encoder(folder, config, release=0)
    with torch.no_grad():
        encoder.trainable()[0].add_(0.01)
    files, registry = folder.parents[1] / "files", folder.parents[1] / "headquarters" / "releases"
    files.mkdir()
    encoder.save_release_files(files)
    facts = ReleaseFacts(
        base=ReleaseBase(fingerprint=config.base.fingerprint, ids={"text": "tiny"}),
        dims={"shared": encoder.dim},
        encoder_digest=encoder.digest,
        rounds=1,
        strategy="fedavg",
    )
    key = registry.parent / "signing.key"
    number = write_release(registry, files=files, facts=facts, signing_key=key)
    publish_release(registry, number, signing_key=key)
    pull_release(folder)
    build_region_index(open_region(folder), encoder, release=number)
    return folder


def test_the_release_in_use_is_verified(released: Path) -> None:
    row = rows_of(released)["release"]
    assert row.verdict == "ok"
    assert row.found.startswith("release 1 in use, verified, with an index of 50 products; ")
    assert "named release 1 until " in row.found


def test_an_expired_statement_warns(released: Path) -> None:
    row = rows_of(released, now=datetime.now(UTC) + 4000 * DAY)["release"]
    assert row.verdict == "warn"
    assert row.found.endswith("which is past")


def test_a_changed_release_fails(released: Path) -> None:
    (released / "state" / "releases" / "1" / "fusion.safetensors").write_bytes(b"")
    row = rows_of(released)["release"]
    assert row.verdict == "fail"
    assert row.found.endswith("fusion.safetensors: not the file that was signed")


def test_an_index_of_another_encoder_fails(released: Path, encoder: Encoder) -> None:
    build_region_index(open_region(released), encoder, release=1)
    row = rows_of(released)["release"]
    assert row.verdict == "fail"
    assert "index made by encoder" in row.found


def test_a_catalog_newer_than_its_index_warns(released: Path) -> None:
    edit(released / "catalog.parquet", lambda table: table[:-1])
    row = rows_of(released)["release"]
    assert (row.verdict, row.advice) == ("warn", "build the index again")


def test_the_base_alone_may_be_in_use(folder: Path, encoder: Encoder) -> None:
    build_region_index(open_region(folder), encoder, release=0)
    row = rows_of(folder)["release"]
    assert row.verdict == "ok"
    assert row.found.endswith("nothing heard from headquarters yet")


def test_damaged_records_fail(released: Path) -> None:
    (released / "state" / "publication.json").write_bytes(b"[]")
    assert "publication.json: damaged" in rows_of(released)["release"].found
    (released / "state" / "current").write_bytes(b"{}")
    row = rows_of(released)["release"]
    assert row.verdict == "fail"
    assert "state/current: damaged" in row.found


# -- room and time ---------------------------------------------------------------------------------


def estimate_of(folder: Path, encoder: Encoder, sample: int) -> Estimate:
    region = open_region(folder)
    parts, ids = split_by_time(read_clicks(region), region.config.splits), region.catalog
    splits = (
        make_examples(parts.train, ids["product_id"]),
        make_validation_set(parts.validation, ids["product_id"]),
        make_validation_set(parts.gate, ids["product_id"]),
    )
    return measure(region, encoder, splits, sample)


def keep_everything(folder: Path, encoder: Encoder) -> None:
    """As a worker does."""
    region, cache = open_region(folder), folder / "state" / "prefix_cache"
    parts, ids = split_by_time(read_clicks(region), region.config.splits), region.catalog
    examples = make_examples(parts.train, ids["product_id"])
    held_out = [
        make_validation_set(part, ids["product_id"]) for part in (parts.validation, parts.gate)
    ]
    fingerprint = encoder.base.fingerprint
    for texts in (region.texts, examples.queries, *(part.queries for part in held_out)):
        text_prefixes(cache, encoder.text, fingerprint, texts)
    image_prefixes(cache, encoder.image, fingerprint, region.image_paths)


def test_what_a_sample_of_everything_says_is_what_is_written(
    folder: Path, encoder: Encoder
) -> None:
    cache = folder / "state" / "prefix_cache"
    shutil.rmtree(cache)
    foreseen = estimate_of(folder, encoder, sample=1000)
    keep_everything(folder, encoder)
    written = sum(path.stat().st_size for path in cache.rglob("*.npy"))
    headers = 128 * len(list(cache.rglob("*.npy")))
    assert 0 <= written - foreseen.cache_bytes <= headers + 4 * 8  # a list has one offset more
    index = build_region_index(open_region(folder), encoder, release=0)
    assert sum(path.stat().st_size for path in index.iterdir()) == pytest.approx(
        foreseen.index_bytes, abs=8
    )


def test_a_small_sample_comes_near(folder: Path, encoder: Encoder) -> None:
    shutil.rmtree(folder / "state")
    small, whole = (estimate_of(folder, encoder, sample=size) for size in (10, 1000))
    assert small.cache_bytes == pytest.approx(whole.cache_bytes, rel=0.2)
    assert (small.texts.items, small.photos.items) == (whole.texts.items, whole.photos.items)
    assert small.matrix_bytes == whole.matrix_bytes == 50 * encoder.dim * 4


def test_what_is_kept_costs_nothing_more(folder: Path, encoder: Encoder) -> None:
    keep_everything(folder, encoder)
    kept = estimate_of(folder, encoder, sample=8)
    assert kept.cache_bytes == 0
    assert kept.texts.seconds == kept.queries.seconds == kept.photos.seconds == 0
    edit(folder / "catalog.parquet", set_cell("title", 0, "another"))
    photo = next(row for row, path in enumerate(open_region(folder).image_paths) if path)
    edit(folder / "catalog.parquet", set_cell("image", photo, None))
    anew = estimate_of(folder, encoder, sample=8)
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
    round_s=600.0,
)


def test_disk_holds_kept_activations_and_everything_else_twice() -> None:
    # 1000 * 2000 + 1000 * 3000 + 2 * 1e6 + 2 * 5e5
    enough, short = (disk_finding(ESTIMATE, free_bytes=free) for free in (8_000_000, 7_999_999))
    assert (enough.verdict, short.verdict) == ("ok", "fail")
    assert "8.0 MB free; about 8.0 MB needed" in enough.found
    assert "kept activations 5.0 MB, two indexes 2.0 MB, two releases 1.0 MB" in enough.found


def test_a_full_disk_fails_the_region(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(folder)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    rows = rows_of(folder)
    assert verdicts(rows, "fail") == ["disk"]
    assert rows["disk"].found.startswith("10 B free; ")


def test_memory_holds_the_measured_peak_two_matrices_and_a_batch() -> None:
    def finding(available: int) -> check.Finding:
        return memory_finding(ESTIMATE, peak_bytes=3_000_000_000, available_bytes=available)

    assert finding(3_005_000_000).verdict == "ok"
    assert finding(3_004_999_999).verdict == "fail"
    assert "3.0 GB available; about 3.0 GB needed" in finding(3_005_000_000).found


def test_a_system_that_does_not_tell_its_memory_warns(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(path: str, name: str) -> int:
        raise FileNotFoundError(path)

    monkeypatch.setattr(check, "_kilobytes", missing)
    assert verdicts(rows_of(folder), "warn") == ["memory"]


def test_it_measures_with_the_workers_threads_and_gives_the_former_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = torch.get_num_threads(), list[int]()

    def spy(*arguments: object) -> Estimate:
        seen.append(torch.get_num_threads())
        return ESTIMATE

    monkeypatch.setattr(check, "measure", spy)
    rows = rows_of(change(folder, worker={"threads": before + 1}))
    assert rows["device"].found.endswith(f"{before + 1} threads")
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_a_first_round_that_headquarters_would_not_await_warns() -> None:
    # 1000 * 0.06 + 800 * 0.3 + 600 s
    in_time, late = (time_finding(ESTIMATE, round_timeout_s=wait) for wait in (900.0, 899.0))
    assert (in_time.verdict, late.verdict) == ("ok", "warn")
    assert in_time.found == (
        "about, for activations: texts 1.0 min, queries none, kept already, photos 4.0 min; for"
        " training a round: 10.0 min; for indexing: 0.5 min"
    )
    assert "15.0 min" in late.advice


# -- headquarters ----------------------------------------------------------------------------------


class Authority:
    """A certificate authority of the test's own."""

    def __init__(self, name: str = "test authority") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        basics = x509.BasicConstraints(ca=True, path_length=0)
        made = builder(self.name, self.name, self.key, valid_for=3650 * DAY)
        self.certificate = made.add_extension(basics, critical=True).sign(self.key, SHA256())

    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(
        self, path: Path, *, host: str = "127.0.0.1", valid_for: timedelta = 90 * DAY
    ) -> Path:
        """Write a server's key and certificate into one file."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test server")])
        name = x509.IPAddress(ip_address(host)) if host[0].isdigit() else x509.DNSName(host)
        made = builder(subject, self.name, key, valid_for=valid_for)
        made = made.add_extension(x509.SubjectAlternativeName([name]), critical=False)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        public = made.sign(self.key, SHA256()).public_bytes(Encoding.PEM)
        path.write_bytes(private + public)
        return path


def builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    *,
    valid_for: timedelta,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 5000 * DAY)
        .not_valid_after(now + valid_for)
    )


class Answers(NamedTuple):
    """What a headquarters answers."""

    health: int = 200
    release: int = 200
    ahead: timedelta | None = timedelta()  # of its Date header; None: no such header
    body: bytes = b"ok"
    instead: bytes = b""  # of anything in HTTP


@pytest.fixture
def serve() -> Iterator[Callable[[Answers, Path | None], int]]:
    """Start a server on loopback, with TLS if it is given a certificate; returns its port."""
    servers: list[tuple[http.server.ThreadingHTTPServer, threading.Thread]] = []

    def start(answers: Answers, certificate: Path | None) -> int:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), speaker(answers))
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        servers.append((server, thread))
        return server.server_port

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join(10)
        server.server_close()


def speaker(answers: Answers) -> type[http.server.BaseHTTPRequestHandler]:
    statuses = {"/healthz": answers.health, "/releases/current.json": answers.release}

    class Speaker(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if answers.instead:
                self.wfile.write(answers.instead)
                return
            self.send_response_only(statuses[self.path])
            if answers.ahead is not None:
                date = format_datetime(datetime.now(UTC) + answers.ahead, usegmt=True)
                self.send_header("Date", date)
            self.send_header("Content-Length", str(len(answers.body)))
            self.end_headers()
            self.wfile.write(answers.body)

        def log_message(self, *_: object) -> None:
            pass

    return Speaker


@pytest.fixture
def authority(folder: Path) -> Authority:
    """Whom the region believes; the region has its key too."""
    made = Authority()
    (folder / "enrolment").mkdir()
    (folder / "enrolment" / "ca.crt").write_bytes(made.pem())
    (folder / "enrolment" / "node.key").write_bytes(b"secret")
    (folder / "enrolment" / "node.key").chmod(0o600)
    return made


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
    return port


def visit(
    folder: Path, port: int, host: str = "127.0.0.1", **options: object
) -> dict[str, CheckRow]:
    change(folder, headquarters={"address": f"{host}:{port}"})
    edit(folder / "catalog.parquet", lambda table: table[:2])  # the rows in question need no more
    return rows_of(folder, **options)


Serve = Callable[[Answers, Path | None], int]


@pytest.mark.parametrize(
    ("release", "word"), [(200, "a release is published"), (404, "no release yet")]
)
def test_a_sound_headquarters_is_verified(
    folder: Path, authority: Authority, serve: Serve, tmp_path: Path, release: int, word: str
) -> None:
    port = serve(Answers(release=release), authority.issue(tmp_path / "server.pem"))
    before = contents(folder / "enrolment")
    rows = visit(folder, port)
    assert (rows["connection"].verdict, rows["clock"].verdict) == ("ok", "ok")
    until = datetime.now(UTC) + 90 * DAY
    assert rows["connection"].found == (
        f"127.0.0.1:{port} verified by enrolment/ca.crt, certificate until {until:%Y-%m-%d}; {word}"
    )
    assert contents(folder / "enrolment") == before


def test_a_long_answer_is_not_read_to_its_end(
    folder: Path, authority: Authority, serve: Serve, tmp_path: Path
) -> None:
    port = serve(Answers(body=b"x" * 300_000), authority.issue(tmp_path / "server.pem"))
    assert visit(folder, port)["connection"].verdict == "ok"


def failure(folder: Path, port: int, host: str = "127.0.0.1") -> str:
    """What the row of a connection that fails found; the clock is then not compared."""
    rows = visit(folder, port, host)
    assert rows["connection"].verdict == "fail"
    assert rows["connection"].advice
    assert rows["clock"].found == "not checked; it needs what the row connection did not find"
    assert rows["base"].verdict == "ok"
    return rows["connection"].found


def test_an_expired_certificate_fails(
    folder: Path, authority: Authority, serve: Serve, tmp_path: Path
) -> None:
    port = serve(Answers(), authority.issue(tmp_path / "server.pem", valid_for=-DAY))
    found = failure(folder, port)
    assert found == f"127.0.0.1:{port}: its certificate, or its authority's, has expired"


@pytest.mark.parametrize("name", ["test authority", "another"])  # every federation's has one name
def test_a_certificate_of_another_authority_fails(
    folder: Path, authority: Authority, serve: Serve, tmp_path: Path, name: str
) -> None:
    port = serve(Answers(), Authority(name).issue(tmp_path / "server.pem"))
    assert "of another authority than headquarters.ca" in failure(folder, port)


@pytest.mark.parametrize(("host", "word"), [("localhost", "name"), ("127.0.0.1", "address")])
def test_a_certificate_for_another_host_fails(
    folder: Path, authority: Authority, serve: Serve, tmp_path: Path, host: str, word: str
) -> None:
    port = serve(Answers(), authority.issue(tmp_path / "server.pem", host="elsewhere.example"))
    assert f"its certificate is for another {word}" in failure(folder, port, host)


def test_a_port_where_nobody_listens_fails(folder: Path, authority: Authority) -> None:
    assert "connection refused" in failure(folder, free_port())


def test_a_port_that_cannot_be_fails(folder: Path, authority: Authority) -> None:
    assert "no such port" in failure(folder, 99999)


def test_a_host_that_cannot_be_fails(folder: Path, authority: Authority) -> None:
    assert "no such host" in failure(folder, 443, "-.invalid")


def test_a_server_without_tls_fails(folder: Path, authority: Authority, serve: Serve) -> None:
    assert "does not speak TLS" in failure(folder, serve(Answers(), None))


def test_a_server_without_http_fails(
    folder: Path, authority: Authority, serve: Serve, tmp_path: Path
) -> None:
    port = serve(Answers(instead=b"hello\r\n"), authority.issue(tmp_path / "server.pem"))
    assert "does not speak HTTP" in failure(folder, port)


def test_a_silent_server_fails_in_time(
    folder: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and never shakes hands
        found = failure(folder, silent.getsockname()[1])
    assert "no answer within 0.2 s" in found


def test_a_headquarters_that_is_not_well_fails(
    folder: Path, authority: Authority, serve: Serve, tmp_path: Path
) -> None:
    port = serve(Answers(health=503), authority.issue(tmp_path / "server.pem"))
    rows = visit(folder, port)
    assert rows["connection"].verdict == "fail"
    assert "/healthz answers 503, not 200" in rows["connection"].found
    assert rows["clock"].verdict == "ok"  # it did say the time


@pytest.mark.parametrize(
    ("answers", "days", "word"),
    [(Answers(), 29, "renew"), (Answers(release=500), 90, "log")],
)
def test_what_will_soon_be_wrong_warns(
    folder: Path,
    authority: Authority,
    serve: Serve,
    tmp_path: Path,
    answers: Answers,
    days: int,
    word: str,
) -> None:
    certificate = authority.issue(tmp_path / "server.pem", valid_for=days * DAY)
    row = visit(folder, serve(answers, certificate))["connection"]
    assert row.verdict == "warn"
    assert word in row.advice


@pytest.mark.parametrize(
    ("content", "word"), [(None, "ca.crt: not found"), (b"x", "ca.crt: not a certificate in PEM")]
)
def test_a_region_without_its_authority_fails(
    folder: Path, authority: Authority, content: bytes | None, word: str
) -> None:
    path = folder / "enrolment" / "ca.crt"
    path.unlink() if content is None else path.write_bytes(content)
    assert failure(folder, free_port()).endswith(word)


@pytest.mark.parametrize(
    ("ahead_s", "verdict"), [(0, "ok"), (100, "warn"), (3600, "fail"), (-60, "fail")]
)
def test_the_clock_is_held_against_headquarters(
    folder: Path,
    authority: Authority,
    serve: Serve,
    tmp_path: Path,
    ahead_s: int,
    verdict: str,
) -> None:
    answers = Answers(ahead=timedelta(seconds=ahead_s))
    row = visit(folder, serve(answers, authority.issue(tmp_path / "server.pem")))["clock"]
    assert row.verdict == verdict
    assert ("behind" in row.found.partition("headquarters")[0]) == (ahead_s > 0) or ahead_s == 0


def test_an_answer_without_a_date_leaves_the_clock_unchecked(
    folder: Path, authority: Authority, serve: Serve, tmp_path: Path
) -> None:
    port = serve(Answers(ahead=None), authority.issue(tmp_path / "server.pem"))
    rows = visit(folder, port)
    assert rows["connection"].verdict == "ok"
    assert rows["clock"].found.startswith("not checked")


@pytest.mark.parametrize(
    ("offset_s", "verdict"),
    [
        (0.4, "ok"),
        (2.0, "ok"),
        (2.1, "warn"),
        (4.9, "warn"),
        (5.0, "fail"),
        (-60.0, "ok"),
        (-60.1, "warn"),
        (-304.9, "warn"),
        (-305.0, "fail"),
    ],
)
def test_a_clock_may_be_late_rather_than_early(offset_s: float, verdict: str) -> None:
    assert clock_finding(offset_s).verdict == verdict


def test_the_clock_is_held_to_what_flower_bears() -> None:
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

    assert MAX_AHEAD_S == SYSTEM_TIME_TOLERANCE
    assert MAX_BEHIND_S == TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
