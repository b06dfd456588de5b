"""Each row of a region's check: sound regions pass, and every fault fails its own row alone."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
import torch
from rich.console import Console
from small_region import change, contents, edit, rows_of, set_cell, verdicts

from client.check import CheckRow, check_region, exit_code, render, to_json
from client.indexing import build_region_index, load_region_encoder, pull_release
from client.region import open_region
from server.releases import publish_release, write_release
from shared.encoders.encoder import Encoder
from shared.release import ReleaseBase, ReleaseFacts
from shared.retrieval.manifest import REBUILD
from shared.schema import RegionConfig, load_region_config, render_region_toml

QUESTIONS = [
    *("configuration", "permissions", "catalog", "photos", "clicks", "judgments", "splits"),
    *("device", "base", "release", "disk", "memory", "connection", "clock", "time"),
]
DAY = timedelta(days=1)


# -- the whole -------------------------------------------------------------------------------------


def test_a_sound_region_passes_and_nothing_is_written(north: Path) -> None:
    before, seen = contents(north.parents[1]), list[CheckRow]()
    rows = check_region(north, sample=8, on_row=seen.append)
    assert [row.what for row in rows] == QUESTIONS
    assert {row.verdict for row in rows} == {"ok"}, [row for row in rows if row.verdict != "ok"]
    assert exit_code(rows) == 0
    assert seen == rows
    assert contents(north.parents[1]) == before


def test_a_region_without_any_state_is_left_without(north: Path) -> None:
    shutil.rmtree(north / "state")
    before = contents(north)
    assert verdicts(rows_of(north), "ok") == QUESTIONS
    assert contents(north) == before


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


def test_an_unknown_key_fails_and_the_rest_is_not_checked(north: Path) -> None:
    with (north / "region.toml").open("a", encoding="utf-8") as file:
        file.write("\n[colour]\nred = 3\n")
    rows = rows_of(north)
    assert verdicts(rows, "fail") == ["configuration"]
    assert "colour" in rows["configuration"].found
    assert rows["configuration"].advice == "correct or remove this key"
    others = [row for what, row in rows.items() if what != "configuration"]
    assert all(row.found.startswith("not checked") for row in others)


def test_a_folder_without_region_toml_fails(tmp_path: Path) -> None:
    rows = rows_of(tmp_path)
    assert "region.toml: not found" in rows["configuration"].found
    assert verdicts(rows, "fail") == ["configuration"]


def test_what_others_can_read_is_named(north: Path) -> None:
    north.chmod(0o755)
    row = rows_of(north)["permissions"]
    assert row.verdict == "warn"
    assert "the folder, catalog.parquet, clicks.parquet, images" in row.found
    north.chmod(0o711)  # as a worker's socket in it needs
    (north / "clicks.parquet").chmod(0o600)
    row = rows_of(north)["permissions"]
    assert "the folder" not in row.found
    assert "clicks" not in row.found
    assert "catalog.parquet" in row.found


@pytest.mark.parametrize(("mode", "verdict"), [(0o600, "ok"), (0o640, "fail"), (0o604, "fail")])
def test_the_key_is_its_owners_alone(north: Path, mode: int, verdict: str) -> None:
    key = north / "enrolment" / "node.key"
    key.parent.mkdir()
    key.write_bytes(b"secret")
    key.chmod(mode)
    row = rows_of(change(north, headquarters={"address": "127.0.0.1:1"}))["permissions"]
    assert row.verdict == verdict
    assert row.advice == ("" if verdict == "ok" else f"chmod 600 {key}")


def test_a_region_without_its_key_must_enrol(north: Path) -> None:
    rows = rows_of(change(north, headquarters={"address": "127.0.0.1:1"}))
    assert rows["permissions"].verdict == "fail"
    assert "node.key: not found" in rows["permissions"].found


# -- service ---------------------------------------------------------------------------------------


def secret(path: Path, text: str = "0123456789abcdef") -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return path


def test_a_service_is_asked_about_only_where_there_is_one(north: Path) -> None:
    assert "service" not in rows_of(north)
    row = rows_of(change(north, serve={"grpc": ""}))["service"]
    assert (row.verdict, row.advice) == ("ok", "")
    assert row.found == "127.0.0.1:8080, in plain, to every user of this machine"


def test_a_service_without_a_token_lets_in_what_headquarters_sends(north: Path) -> None:
    row = rows_of(change(north, headquarters={"address": "127.0.0.1:1"}, serve={}))["service"]
    assert row.verdict == "warn"
    assert "set serve.token_file" in row.advice
    secret(north / "serve.token")
    row = rows_of(change(north, serve={"token_file": "serve.token"}))["service"]
    assert (row.verdict, row.advice) == ("ok", "")
    assert row.found.endswith("to whoever has the token")


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_the_token_is_its_owners_alone(north: Path, mode: int) -> None:
    token = secret(north / "serve.token")
    token.chmod(mode)
    row = rows_of(change(north, serve={"token_file": "serve.token"}))["service"]
    assert (row.verdict, row.advice) == ("fail", f"chmod 600 {token}")


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"token_file": "serve.token"}, "serve.token: cannot be read"),
        ({"token_file": "short.token"}, "short.token: not one token"),
        ({"http": "0.0.0.0:8080"}, "others can reach 0.0.0.0"),
        ({"rules": "rules.toml"}, "rules.toml: not found"),
    ],
)
def test_a_service_that_could_not_start_fails(
    north: Path, keys: dict[str, str], found: str
) -> None:
    secret(north / "short.token", "secret")
    rows = rows_of(change(north, serve=keys))
    assert verdicts(rows, "fail") == ["service"]
    assert found in rows["service"].found


# -- data ------------------------------------------------------------------------------------------


def test_bad_rows_are_counted_and_the_first_is_named(north: Path) -> None:
    catalog = north / "catalog.parquet"
    num = pl.read_parquet(catalog).height
    edit(catalog, set_cell("title", 3, None))
    edit(catalog, set_cell("price", 7, -1.0))
    edit(catalog, lambda table: pl.concat([table, table[:1]]))
    row = rows_of(north)["catalog"]
    assert row.verdict == "warn"
    assert f"{num - 1:,} products, 2 rows left out, 1 cell emptied" in row.found
    assert "(first: catalog.parquet row 4: title: missing)" in row.found
    assert "1 duplicate," in row.found
    assert row.advice == "correct these rows in catalog.parquet"


def test_products_without_text_and_photo_are_counted(north: Path) -> None:
    change(north, data={"text_fields": ["brand"]})
    edit(north / "catalog.parquet", set_cell("brand", 5, None))
    edit(north / "catalog.parquet", set_cell("image", 5, None))
    row = rows_of(north)["catalog"]
    assert row.verdict == "warn"
    assert "without both" in row.found
    region = open_region(north)
    empty = sum(not text for text in region.texts)
    photoless = sum(path is None for path in region.image_paths)
    assert f"{empty:,} without text, {photoless:,} without photo" in row.found


def test_a_missing_catalog_stops_only_what_needs_it(north: Path) -> None:
    (north / "catalog.parquet").unlink()
    rows = rows_of(north)
    assert verdicts(rows, "fail") == ["catalog"]
    assert rows["catalog"].found.endswith("catalog.parquet: not found")
    assert rows["catalog"].advice == "see [data] in region.toml"
    stopped = ["photos", "clicks", "judgments", "splits", "disk", "memory", "time"]
    assert verdicts(rows, "warn") == stopped
    assert rows["memory"].found == "not checked; it needs what the row disk did not find"


def test_a_catalog_that_may_not_be_read_fails(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "images")

    monkeypatch.setattr("client.region.open_region", refuse)  # root may read everything
    row = rows_of(north)["catalog"]
    assert (row.verdict, row.found) == ("fail", "images: Permission denied")


def test_unreadable_photos_are_counted(north: Path) -> None:
    region = open_region(north)
    broken = [path for path in region.image_paths if path][:2]
    for path in broken:  # a copy: the original is shared by hard links
        path.unlink()
        path.write_bytes(b"not a photo")
    rows = rows_of(north)
    assert rows["photos"].verdict == "warn"
    assert "2 unreadable (first: catalog.parquet row " in rows["photos"].found
    assert rows["catalog"].verdict == "ok"


def test_clicks_of_unknown_products_are_counted(north: Path) -> None:
    edit(north / "clicks.parquet", set_cell("product_id", 0, 'it\'s a secret; "query" row 9: x'))
    row = rows_of(north)["clicks"]
    assert row.verdict == "warn"
    assert "1 row left out, 0 cells emptied" in row.found
    assert "(first: clicks.parquet row 1: unknown product_id)" in row.found
    assert "1 impression of products that the catalog lacks" in row.found


def test_too_many_bad_clicks_fail_without_showing_one(north: Path) -> None:
    change(north, data={"max_bad_rows": 0})
    edit(north / "clicks.parquet", set_cell("product_id", 0, "a secret; query"))
    rows = rows_of(north)
    assert rows["clicks"].verdict == "fail"
    assert "1 bad rows, 0 allowed" in rows["clicks"].found
    assert "secret" not in to_json(list(rows.values()))
    assert verdicts(rows, "warn") == ["splits"]


def test_a_csv_without_its_header_is_not_shown(north: Path) -> None:
    (north / "clicks.csv").write_text("r1,2025-01-01,a secret; query,p1,1,true\n", "utf-8")
    rows = rows_of(change(north, data={"clicks": "clicks.csv"}))
    (north / "clicks.csv").write_text("r1,2025-01-01,a secret; query,p1,1,true\n" * 2, "utf-8")
    again = rows_of(north)
    assert rows["clicks"].verdict == again["clicks"].verdict == "fail"
    assert "no column request_id" in again["clicks"].found
    assert again["clicks"].advice == "add or rename it"
    assert "secret" not in to_json([*rows.values(), *again.values()])


def test_bad_judgments_are_counted(north: Path) -> None:
    edit(north / "qrels.parquet", set_cell("grade", 0, -1))
    row = rows_of(north)["judgments"]
    assert row.verdict == "warn"
    assert (
        "1 row left out, 0 cells emptied (first: qrels.parquet row 1: grade: below 0)" in row.found
    )


def test_judgments_are_asked_for_only_where_they_are_named(north: Path) -> None:
    values = load_region_config(north).model_dump(mode="json", exclude_none=True)
    del values["data"]["qrels"]
    toml = render_region_toml(RegionConfig.model_validate(values))
    (north / "region.toml").write_text(toml, encoding="utf-8")
    assert "judgments" not in rows_of(north)


def test_a_region_on_its_first_day_is_sound(north: Path) -> None:
    edit(north / "clicks.parquet", lambda table: table.clear())
    rows = rows_of(north)
    assert (verdicts(rows, "fail"), verdicts(rows, "warn")) == ([], ["splits"])
    assert rows["clicks"].found.startswith("0 requests, 0 impressions, 0 clicks")


def test_a_log_without_clicks_has_nothing_to_train_on(north: Path) -> None:
    edit(north / "clicks.parquet", lambda table: table.with_columns(clicked=pl.lit(False)))
    edit(north / "clicks.parquet", lambda t: t.with_columns(carted=False, purchased=False))
    rows = rows_of(north)
    assert (verdicts(rows, "fail"), verdicts(rows, "warn")) == ([], ["splits"])
    assert "0 training examples" in rows["splits"].found
    assert rows["splits"].advice.startswith("it takes releases, and part in rounds once")
    assert "for training a round: no examples" in rows["time"].found


@pytest.mark.parametrize(
    ("sections", "word"),
    [
        ({"publication": {"min_queries": 3000}}, "fewer than 3,000 gate queries"),
        ({"splits": {"validation": 0.0}}, "splits.validation"),
    ],
)
def test_too_few_held_out_queries_warn(north: Path, sections: dict[str, object], word: str) -> None:
    row = rows_of(change(north, **sections))["splits"]
    assert row.verdict == "warn"
    assert word in row.advice


def test_no_row_holds_a_query_a_title_or_an_id(north: Path) -> None:
    text = to_json(check_region(north, sample=8))
    clicks, catalog = (pl.read_parquet(north / f"{name}.parquet") for name in ("clicks", "catalog"))
    private = {*clicks["query"], *catalog["title"], *catalog["product_id"], *clicks["request_id"]}
    assert len(private) > 100
    assert not [word for word in private if word in text]


# -- model -----------------------------------------------------------------------------------------


def test_a_changed_base_fails_and_what_needs_no_base_goes_on(north: Path) -> None:
    weights = north.parents[1] / "base" / "text" / "config.json"
    changed = weights.read_bytes() + b" "
    weights.unlink()  # a hard link into the cache
    weights.write_bytes(changed)
    rows = rows_of(north)
    assert verdicts(rows, "fail") == ["base"]
    assert rows["base"].found.endswith("text/config.json: changed")
    assert rows["base"].advice == "copy the base again"
    assert verdicts(rows, "warn") == ["disk", "memory", "time"]


@pytest.mark.parametrize(
    ("max_rank", "said"),
    [
        (0, "; trains rank 2 of 2"),
        (1, "; trains rank 1 of 2"),
        (2, "; trains rank 2 of 2"),
        (3, "; trains rank 2, the base's: worker.max_rank, 3, is above it"),
    ],
)
def test_the_rank_that_rounds_train_is_shown(north: Path, max_rank: int, said: str) -> None:
    row = rows_of(change(north, worker={"max_rank": max_rank}))["base"]
    assert (row.verdict, row.advice) == ("ok", "")
    assert row.found.endswith(said)


def test_a_negative_rank_fails_with_its_key(north: Path) -> None:
    with (north / "region.toml").open(encoding="utf-8") as file:
        toml = file.read()
    assert "max_rank = 0" in toml
    (north / "region.toml").write_text(toml.replace("max_rank = 0", "max_rank = -1"))
    rows = rows_of(north)
    assert verdicts(rows, "fail") == ["configuration"]
    assert "worker.max_rank: Input should be greater than or equal to 0" in (
        rows["configuration"].found
    )
    assert rows["configuration"].advice == "correct or remove this key"


def test_another_base_fails(north: Path) -> None:
    row = rows_of(change(north, base={"fingerprint": "f" * 64}))["base"]
    assert row.verdict == "fail"
    assert "expected ffffffffffff" in row.found


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_fails_and_the_base_is_still_checked(north: Path) -> None:
    rows = rows_of(change(north, device="cuda"))
    assert verdicts(rows, "fail") == ["device"]
    assert rows["device"].found == '"cuda": no GPU answers'
    assert rows["base"].verdict == "ok"


# -- release ---------------------------------------------------------------------------------------


@pytest.fixture
def released(north: Path) -> Path:
    """A region that pulled a release and answers from it."""
    config = load_region_config(north)
    encoder = load_region_encoder(north, config, release=0)
    with torch.no_grad():
        encoder.trainable()[0].add_(0.01)
    files, registry = north.parents[1] / "files", north.parents[1] / "headquarters" / "releases"
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
    pull_release(north)
    build_region_index(open_region(north), encoder, release=number)
    return north


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
    assert (row.verdict, row.advice) == ("warn", REBUILD)


def test_the_base_alone_may_be_in_use(north: Path, encoder: Encoder) -> None:
    build_region_index(open_region(north), encoder, release=0)
    row = rows_of(north)["release"]
    assert row.verdict == "ok"
    assert row.found.endswith("nothing heard from headquarters yet")


def test_damaged_records_fail(released: Path) -> None:
    (released / "state" / "publication.json").write_bytes(b"[]")
    assert "publication.json: damaged" in rows_of(released)["release"].found
    (released / "state" / "current").write_bytes(b"{}")
    row = rows_of(released)["release"]
    assert row.verdict == "fail"
    assert "state/current: damaged" in row.found
