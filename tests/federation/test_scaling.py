"""Each kind of growth is measured on a handful of items; no time is asserted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from benchmarks import scaling
from benchmarks.corpus import Corpus
from benchmarks.growth import Shape, num_blocks, ranked, read_as
from benchmarks.memory import Alone
from benchmarks.plots import PICTURES, draw_all
from benchmarks.points import KEPT, UPDATE, Point, read_points
from benchmarks.report import Report
from benchmarks.simulation import federate
from shared.encoders.base import read_base

SMALL = ["--products", "20", "60", "--regions", "2", "--ranks", "2", "4", "--image-sizes", "32"]
SMALL += ["48", "--blocks", "1", "--passes", "2", "--seeds", "1", "--threads", "1"]


def small_corpus(**_: object) -> Corpus:
    vectors = np.random.default_rng(0).normal(size=(40, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Corpus("small", pl.DataFrame(), vectors, ["shoe", "red 3"], vectors[:4].copy(), 40)


def in_this_process(threads: int, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return Alone(call(*args, **kwargs), peak_bytes=2**30, start_bytes=2**29)


def never(*_: object, **__: object) -> Any:
    raise AssertionError("a point that is in the file was measured again")


@pytest.fixture
def measure(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setattr(scaling, "alone", in_this_process)  # its imports take seconds
    monkeypatch.setattr(
        scaling,
        "federate_alone",
        lambda run, engine, threads, *, rounds: federate(run, engine, rounds=rounds),
    )
    monkeypatch.setattr(scaling, "load_corpus", small_corpus)
    monkeypatch.setattr(scaling, "_CALLS", 5)

    def measured(*options: str) -> dict[tuple[str, int], Point]:
        out = tmp_path / "bench.json"
        scaling.main([str(run), "--out", str(out), *SMALL, *options])
        return {(point.section, point.at): point for point in read_points(out)}

    return measured


def value(point: Point, name: str) -> float:
    figure = point.figure(name)
    assert figure is not None and np.isfinite(figure.value)
    return figure.value


def test_every_kind_is_measured_and_drawn(
    measure: Callable[..., Any], run: Path, tmp_path: Path
) -> None:
    before = sorted(run.rglob("*"))
    points = measure()
    assert sorted(run.rglob("*")) == before
    blocks = num_blocks(run / "base")
    cuts = {(f"{tower} blocks", at) for tower, most in blocks.items() for at in (1, most)}
    sizes = {("products", 20), ("products", 60), ("regions", 2), ("rank", 2), ("rank", 4)}
    assert points.keys() == sizes | cuts | {("image size", 32), ("image size", 48)}
    for picture in PICTURES:
        names = {name for panel in picture.panels for name in panel.names}
        for point in (p for p in points.values() if p.section == picture.section):
            assert all(value(point, name) > 0 for name in names), picture.section
    assert len(draw_all(tmp_path / "bench.json", tmp_path / "docs")) == len(PICTURES)

    whole = points["text blocks", blocks["text"]]
    assert value(whole, UPDATE["int8"]) > value(points["text blocks", 1], UPDATE["int8"])
    assert value(points["rank", 4], UPDATE["float32"]) > value(points["rank", 2], UPDATE["float32"])
    photos = [value(points["image size", size], KEPT["image"]) for size in (32, 48)]
    assert photos[0] < photos[1]


def test_a_point_in_the_file_is_not_measured_again(
    measure: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--only", "image-size", "--image-sizes", "32")
    first = measure(*options)
    Report({"date": "today"}, {}).write(
        tmp_path / "bench.json"
    )  # of another benchmark: points stay
    with monkeypatch.context() as patched:
        patched.setattr(scaling, "alone", never)
        assert measure(*options) == first
        with pytest.raises(AssertionError, match="measured again"):
            measure(*options, "--rounds", "6")
    second = measure(*options, "48")
    assert second.keys() == {("image size", 32), ("image size", 48)}
    assert second["image size", 32] == first["image size", 32]
    again = measure(*options, "--rounds", "6")
    assert again["image size", 32].settings["rounds"] == 6
    assert json.loads((tmp_path / "bench.json").read_text())["machine"]["date"] == "today"


def test_a_point_is_there_as_soon_as_it_is_made(
    measure: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: Any, **kwargs: Any) -> Any:
        if args[-1] == 48:
            raise KeyboardInterrupt
        return in_this_process(*args, **kwargs)

    monkeypatch.setattr(scaling, "alone", stopped)
    with pytest.raises(KeyboardInterrupt):
        measure("--only", "image-size")
    assert [point.at for point in read_points(tmp_path / "bench.json")] == [32]


def test_a_tower_of_another_shape_encodes_as_its_base_does(run: Path) -> None:
    base, photo = run / "base", next((run / "regions" / "north").rglob("*.jpg"))
    shapes = [Shape(), ranked(read_base(base), 8)]
    shapes += [
        Shape(**{tower: {"adapter_blocks": most}}) for tower, most in num_blocks(base).items()
    ]
    found = []
    for shape in shapes:
        encoder = read_as(base, shape)
        encoder.reset(seed=3)
        found.append(encoder.encode_products(["red shoe", "lamp"], [photo, None]))
    assert all(np.allclose(vectors, found[0], atol=1e-5) for vectors in found)


def test_another_rank_scales_its_factors_alike(run: Path) -> None:
    info = read_base(run / "base")
    shaped = ranked(info, 8).of(info)
    assert shaped.text.rank == shaped.image.rank == 8
    assert shaped.text.alpha / shaped.text.rank == info.text.alpha / info.text.rank


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--rounds", "2"], "--rounds 2: give at least 5"),
        (["--passes", "1"], "--passes 1: give at least 2"),
        ([], "no run; make it with"),
    ],
)
def test_what_cannot_be_measured_is_one_line(tmp_path: Path, options: list[str], told: str) -> None:
    with pytest.raises(SystemExit, match=f"error: .*{told}"):
        scaling.main([str(tmp_path), *options])
