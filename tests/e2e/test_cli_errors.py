"""A person's mistake: one line that says what, where and what to do, exit code 1 (2 for usage).

No traceback, and whatever was there before is as it was.
"""

import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import polars as pl
import pytest
from small_world import Answer, Call, Stops, options

from client.indexing import build_region_index, load_region_encoder
from client.region import open_region
from shared.errors import DataError
from simulations.run import simulate

Spoil = Callable[[Path], object]


def contents(folder: Path) -> dict[str, str]:
    """Every file with its bytes, locks apart."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(p.relative_to(folder)): sha256(p.read_bytes()).hexdigest() for p in files}


# -- simulate: options and data --------------------------------------------------------------------


def simulate_with(call: Call, data: str, out: Path, *more: str) -> Answer:
    fixed = ("--preset", "tiny", "--rounds", "1", "--regions", "2", "--threads", "1")
    return call("simulate", "--data", data, *fixed, *more, "--out", out)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--preset", "huge"], '"huge" is unknown; choose one of starter, tiny'),
        (["--engine", "steam"], '"steam" is unknown; choose one of local, flower'),
        (["--fusion", "glue"], '"glue" is unknown; choose one of weighted-sum, average, maximum'),
        (["--distance", "far"], '"far" is unknown; choose one of cosine, euclidean, manhattan'),
        (["--device", "abacus"], '"abacus" is unknown; choose one of auto, cpu, cuda'),
        (["--regions", "0"], "0 is not in the range"),
        (["--rounds", "0"], "0 is not in the range"),
        (["--rounds", "many"], "'many' is not a valid integer"),
        (["--colour", "red"], "No such option"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    more: list[str], message: str, call: Call, fashion: Path, tmp_path: Path
) -> None:
    answer = simulate_with(call, f"fashion:{fashion}", tmp_path / "run", *more)
    assert answer.code == 2
    assert message in " ".join(answer.err.replace("│", " ").split())
    assert "Traceback" not in answer.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "more", "message"),
    [
        ("parquet:here", [], "--data parquet:here: unknown; choose one of synthetic, fashion:DIR"),
        ("fashion", [], "--data fashion: names no folder; write fashion:DIR"),
        ("synthetic:here", [], "--data synthetic:here: is made, not read; write synthetic"),
        ("fashion:nowhere", [], "nowhere: no such folder; --data fashion:DIR needs one"),
        ("fashion:{fashion}", ["--regions", "100"], "raise ALPHA or lower --regions"),
        ("fashion:{fashion}", ["--partition", "colour"], "--partition colour: no such column"),
        ("fashion:{fashion}", ["--partition", "dirichlet:-1"], "ALPHA must be a number above 0"),
        ("fashion:{fashion}", ["--partition", "brand"], "1 values cannot fill 2 regions"),
    ],
)
def test_what_cannot_be_simulated_is_one_line_and_leaves_nothing(
    data: str, more: list[str], message: str, call: Call, fashion: Path, tmp_path: Path
) -> None:
    answer = simulate_with(call, data.format(fashion=fashion), tmp_path / "run", *more)
    assert answer.code == 1
    assert message in answer.error
    assert answer.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            None,
            r"styles.csv: No such file or directory; --data fashion:DIR needs styles.csv in DIR",
        ),
        ("", "styles.csv: column id, gender, articleType, baseColour, productDisplayName missing"),
        ("id,gender,articleType,baseColour\n", "column productDisplayName missing; line 1 has id"),
        ("id,gender,articleType,baseColour,productDisplayName\n", "no usable product"),
        ("id,gender,articleType,baseColour,productDisplayName\n1,2\n", "no usable product"),
    ],
)
def test_data_without_a_usable_row_is_one_line(
    table: str | None, message: str, call: Call, tmp_path: Path
) -> None:
    folder = tmp_path / "fashion"
    folder.mkdir()
    if table is not None:
        (folder / "styles.csv").write_text(table)
    answer = simulate_with(call, f"fashion:{folder}", tmp_path / "run")
    assert answer.code == 1
    assert message in answer.error
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run_is_left_alone(call: Call, fashion: Path) -> None:
    before = contents(fashion)
    answer = simulate_with(call, f"fashion:{fashion}", fashion)
    assert answer.code == 1
    assert "is not empty and not a run folder; choose another --out" in answer.error
    assert contents(fashion) == before


def test_other_options_on_a_run_name_the_option(call: Call, fashion: Path, finished: Path) -> None:
    before = contents(finished)
    answer = simulate_with(call, f"fashion:{fashion}", finished, "--seed", "8", "--device", "cpu")
    assert answer.code == 1
    assert "was made with --rounds 2, now it is 1; choose another --out" in answer.error
    assert contents(finished) == before


def test_ctrl_c_says_how_to_go_on(
    call: Call, fashion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("simulations.run.simulate", interrupted)
    answer = simulate_with(call, f"fashion:{fashion}", tmp_path / "run")
    assert answer.code == 130
    assert "Give the same command again to go on." in answer.err.splitlines()[-1]


# -- simulate: regions that went bad ---------------------------------------------------------------


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, fashion: Path) -> Path:
    """A run whose data is complete and whose federation has not begun."""
    run = tmp_path_factory.mktemp("begun") / "run"
    with pytest.raises(KeyboardInterrupt):
        simulate(options(fashion), run, Stops("federated"))
    return run


def rewrite(name: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Spoil:
    def spoil(region: Path) -> None:
        path = region / f"{name}.parquet"
        change(pl.read_parquet(path)).write_parquet(path)

    return spoil


def unknown_product(clicks: pl.DataFrame) -> pl.DataFrame:
    first = pl.int_range(pl.len()) == 0
    return clicks.with_columns(
        product_id=pl.when(first).then(pl.lit("sku-9")).otherwise("product_id")
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            rewrite("clicks", unknown_product),
            "1 bad rows, 0 allowed; first: row 1: unknown product_id; correct",
        ),
        (rewrite("clicks", lambda t: t.drop("clicked")), "clicks.parquet: no column clicked among"),
        (lambda region: (region / "clicks.parquet").unlink(), "clicks.parquet: not found; see"),
    ],
)
def test_a_bad_click_log_is_one_line(
    spoil: Spoil, message: str, begun: Path, fashion: Path, tmp_path: Path, call: Call
) -> None:
    run = Path(shutil.copytree(begun, tmp_path / "run"))
    strict(run / "regions" / "north")
    spoil(run / "regions" / "north")
    asked = ("--data", f"fashion:{fashion}", "--preset", "tiny", "--rounds", "2", "--regions", "2")
    answer = call("simulate", *asked, "--threads", "1", "--device", "cpu", "--out", run)
    assert answer.code == 1
    reasons = answer.err if "1 of 2 nodes" in answer.error else answer.error
    assert message in " ".join(reasons.split())
    assert not (run / "headquarters" / "history.json").exists()


# -- search ----------------------------------------------------------------------------------------


def strict(region: Path) -> None:
    """Allow no bad row."""
    path = region / "region.toml"
    text = path.read_text()
    assert "max_bad_rows = 100" in text
    path.write_text(text.replace("max_bad_rows = 100", "max_bad_rows = 0"))


def replace_in_toml(old: str, new: str) -> Spoil:
    def spoil(region: Path) -> None:
        text = (region / "region.toml").read_text()
        assert old in text
        (region / "region.toml").write_text(text.replace(old, new))

    return spoil


def spoil_photo(region: Path) -> None:
    catalog = pl.read_parquet(region / "catalog.parquet")
    (region / "images" / catalog["image"].drop_nulls()[0]).write_bytes(b"not a photo")


def damage(name: str) -> Spoil:
    def spoil(region: Path) -> None:
        path = region / name
        path.write_bytes(path.read_bytes()[:-1] + b"!")

    return spoil


def remove(name: str) -> Spoil:
    return lambda region: (region / name).unlink()


def index_with_another_encoder(region: Path) -> None:
    opened = open_region(region)
    encoder = load_region_encoder(region, opened.config, release=1)
    encoder.load_adapter({name: value + 0.01 for name, value in encoder.adapter().items()})
    build_region_index(opened, encoder, release=1)


RELEASE = "state/releases/1"
CASES: dict[str, tuple[Spoil, str]] = {
    "missing column": (
        rewrite("catalog", lambda t: t.drop("title")),
        "catalog.parquet: no column title among: product_id",
    ),
    "empty catalog": (
        rewrite("catalog", lambda t: t.clear()),
        "catalog.parquet: no rows; a region needs at least one",
    ),
    "no catalog": (remove("catalog.parquet"), "catalog.parquet: not found; see [data] in region"),
    "no parquet": (
        lambda region: (region / "catalog.parquet").write_text("words"),
        "catalog.parquet: cannot be read (ComputeError); export it again",
    ),
    "duplicate product": (
        rewrite("catalog", lambda t: pl.concat([t, t.head(1)])),
        "bad rows, 0 allowed; first: row",
    ),
    "unreadable photo": (spoil_photo, "row 3: image: cannot be decoded; correct them"),
    "unknown key": (
        replace_in_toml('locale = "en"', 'locale = "en"\ncolour = "red"'),
        "region.toml: colour: Extra inputs are not permitted; correct or remove this key",
    ),
    "bad value": (
        replace_in_toml('device = "cpu"', 'device = "abacus"'),
        "region.toml: device: Input should be 'auto', 'cpu' or 'cuda'; correct",
    ),
    "no TOML": (lambda region: (region / "region.toml").write_text("= ="), "not valid TOML"),
    "no region.toml": (remove("region.toml"), "region.toml: not found; --region needs a folder"),
    "another base": (
        replace_in_toml('fingerprint = "', 'fingerprint = "0'),
        "copy the base that headquarters hands out",
    ),
    "damaged base": (damage("../../base/image/model.safetensors"), "safetensors: changed; copy"),
    "another key": (replace_in_toml('release_key = "', 'release_key = "0'), "is not an ed25519"),
    "half a release": (remove(f"{RELEASE}/fusion.safetensors"), "safetensors: missing; copy"),
    "an unsigned release": (remove(f"{RELEASE}/MANIFEST.sig"), "MANIFEST.sig: not found"),
    "a changed release": (damage(f"{RELEASE}/fusion.safetensors"), "not the file that was signed"),
    "no release": (lambda region: shutil.rmtree(region / RELEASE), "MANIFEST.json: not found"),
    "another digest": (index_with_another_encoder, "made by encoder"),
    "no index": (remove("state/current"), "state/current"),
    "damaged pointer": (damage("state/current"), "state/current"),
}


@pytest.mark.parametrize(("spoil", "message"), CASES.values(), ids=CASES.keys())
def test_search_in_a_region_with_a_fault_is_one_line(
    spoil: Spoil, message: str, finished: Path, tmp_path: Path, call: Call
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    region = run / "regions" / "north"
    strict(region)
    spoil(region)
    before = contents(run)
    answer = call("search", "--region", region, "red shirt")
    assert answer.code == 1
    assert message in answer.error
    assert answer.out == ""
    assert contents(run) == before


@pytest.mark.parametrize("name", ["index.faiss", "ids.npy", "INDEX.json"])
@pytest.mark.parametrize("spoil", [damage, remove])
def test_half_an_index_is_one_line(
    spoil: Callable[[str], Spoil], name: str, finished: Path, tmp_path: Path, call: Call
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    region = run / "regions" / "north"
    (index,) = (path for path in (region / "state" / "indexes").iterdir() if path.is_dir())
    spoil(str((index / name).relative_to(region)))(region)
    answer = call("search", "--region", region, "red shirt")
    assert answer.code == 1
    assert "build the index again" in answer.error


def test_a_photo_that_is_none(finished: Path, tmp_path: Path, call: Call) -> None:
    (tmp_path / "letter.jpg").write_text("dear reader")
    region = finished / "regions" / "north"
    for photo, message in (("letter.jpg", "not a readable picture"), ("gone.jpg", "not found")):
        answer = call("search", "--region", region, "--image", tmp_path / photo)
        assert answer.code == 1
        assert message in answer.error


@pytest.mark.parametrize("arguments", [[], [" "], ["red", "--k", "0"], ["red", "--colour", "1"]])
def test_wrong_usage_of_search_is_exit_code_2(
    arguments: list[str], finished: Path, call: Call
) -> None:
    assert call("search", "--region", finished / "regions" / "north", *arguments).code == 2


def test_debug_shows_where_it_happened(call: Call, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        call("--debug", "simulate", "--data", "fashion:nowhere", "--out", tmp_path / "run")
