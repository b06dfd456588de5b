"""Pictures of points that are written by hand: the same bytes each time, every point in them."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.axes import size_axis, value_axis, written
from benchmarks.plots import main

SVG = "{http://www.w3.org/2000/svg}"
MACHINE = {
    "cpu": "Some CPU",
    "cores": 2,
    "python": "3.11.7",
    "versions": {},
    "torch_threads": 2,
    "date": "2026-11-22T10:00:00+00:00",
    "busy": False,
}


def point(section: str, at: int, figures: dict[str, float], **changes: Any) -> dict[str, Any]:
    rows = [
        {"section": section, "name": name, "value": value, "unit": "", "low": None, "high": None}
        for name, value in figures.items()
    ]
    machine = MACHINE | changes.pop("machine", {})
    return {"section": section, "at": at, "settings": {}, "machine": machine, "figures": rows} | (
        changes
    )


def file_of(folder: Path, *points: dict[str, Any]) -> Path:
    path = folder / "bench.json"
    path.write_text(json.dumps({"points": points}))
    return path


def drawn(file: Path, folder: Path) -> dict[str, ElementTree.Element]:
    main([str(file), str(folder)])
    return {path.name: ElementTree.parse(path).getroot() for path in sorted(folder.glob("*"))}


def words(picture: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in picture.iter(f"{SVG}text")]


def test_every_point_is_marked_and_told(tmp_path: Path) -> None:
    file = file_of(
        tmp_path,
        *(point("regions", n, {"a client-round": 40 + n, "peak memory": n}) for n in (4, 64, 256)),
        point("image size", 32, {"photos from scratch": 1234.5}),
    )
    pictures = drawn(file, tmp_path / "docs")
    assert list(pictures) == ["scaling-image-size.svg", "scaling-regions.svg"]
    regions = pictures["scaling-regions.svg"]
    assert len(list(regions.iter(f"{SVG}circle"))) == 6
    assert {"4", "64", "256", "44", "104", "296"} <= set(words(regions))
    assert words(regions)[-1] == "Some CPU, 2 cores, 2 threads, 2026-11-22"
    assert "1,234" in words(pictures["scaling-image-size.svg"])


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    points = [point("rank", rank, {"examples in training": 400 / rank}) for rank in (2, 4)]
    drawn(file_of(tmp_path, *points), tmp_path / "one")
    drawn(file_of(tmp_path, *reversed(points)), tmp_path / "two")
    one, two = (tmp_path / name / "scaling-rank.svg" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_quality_against_speed_goes_by_adapted_blocks(tmp_path: Path) -> None:
    quality = "nDCG@10 on validation clicks"
    points = [
        point("text blocks", blocks, {"examples in training": 400 / blocks, quality: 0.6})
        for blocks in (1, 6)
    ]
    picture = drawn(file_of(tmp_path, *points), tmp_path / "docs")["scaling-text-blocks.svg"]
    panel = next(group for group in picture.iter(f"{SVG}g") if "against" in words(group)[0])
    left, right = (float(circle.get("cx", "")) for circle in panel.iter(f"{SVG}circle"))
    assert left > right  # one block is faster
    assert words(panel)[-2:] == ["1", "6"]


def test_points_of_a_busy_machine_say_so(tmp_path: Path) -> None:
    busy = point("rank", 4, {"examples in training": 9}, machine={"busy": True})
    file = file_of(tmp_path, point("rank", 2, {"examples in training": 9}), busy)
    picture = drawn(file, tmp_path / "docs")["scaling-rank.svg"]
    assert words(picture)[-1].endswith("other work ran beside 1 of 2 points")


@pytest.mark.parametrize("change", [{"settings": {"passes": 2}}, {"machine": {"cpu": "Other"}}])
def test_points_that_do_not_belong_together_are_not_joined(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    other = point("rank", 4, {"examples in training": 9}, **change)
    file = file_of(tmp_path, point("rank", 2, {"examples in training": 9}), other)
    with pytest.raises(SystemExit, match="rank: the points 2 and 4 are of different settings"):
        main([str(file), str(tmp_path / "docs")])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{}", "no points; make some with"),
        ("not json", "no file of figures"),
        ('{"points": [{"section": "rank"}]}', "points: not as written"),
    ],
)
def test_a_file_without_points_is_one_line(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "bench.json").write_text(content)
    with pytest.raises(SystemExit, match=told):
        main([str(tmp_path / "bench.json"), str(tmp_path)])


def test_a_log_axis_has_equal_ways_for_equal_ratios() -> None:
    axis = value_axis([3.0, 700.0], (200, 0), log=True)
    assert axis.marks == (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
    by_ten = [axis.at(10 * mark) - axis.at(mark) for mark in (3.0, 10.0, 30.0, 100.0)]
    assert by_ten == pytest.approx([by_ten[0]] * 4, abs=0.2) and axis.at(3.0) == 200


@pytest.mark.parametrize(
    ("low", "high"), [(7.5, 7.5), (10, 10), (364, 454), (1e-3, 1e9), (1, 1e40)]
)
def test_ends_of_an_axis_enclose_what_lies_on_it(low: float, high: float) -> None:
    axis = value_axis([low, high], (0, 100), log=True)
    assert axis.ends[0] <= low and high <= axis.ends[1] and axis.ends[0] < axis.ends[1]
    assert 2 <= len(axis.marks) <= 7


def test_a_linear_axis_does_not_make_a_slope_of_noise() -> None:
    axis = value_axis([0.999, 1.0], (0, 100), log=False)
    assert axis.ends == pytest.approx((0.98, 1.0))


@pytest.mark.parametrize("log", [True, False])
def test_sizes_lie_within_their_axis(log: bool) -> None:
    axis = size_axis([1, 2, 6], (10, 110), log=log)
    assert 10 < axis.at(1) < axis.at(2) < axis.at(6) < 110
    assert size_axis([5], (0, 100), log=log).at(5) == 50


@pytest.mark.parametrize(
    ("value", "unit", "told"),
    [
        (0.1534, "ms", "0.153"),
        (1234.5, "1/s", "1,234"),
        (10_000, "", "10k"),
        (1_000_000, "", "1M"),
        (1_544_090, "bytes", "1.54 MB"),
        (999_999, "bytes", "1 MB"),
        (576, "bytes", "576 B"),
    ],
)
def test_numbers_are_short(value: float, unit: str, told: str) -> None:
    assert written(value, unit) == told
