"""Pictures of how cost grows: `python -m benchmarks.plots bench.json docs/`.

Each picture is an SVG of its own, some panels beside each other; the same file gives the same
bytes. There is no background, and every colour stands out from white and from black alike, so a
picture can be put on a page of either.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from benchmarks.axes import Axis, size_axis, value_axis, written
from benchmarks.points import (
    AT_START,
    BEST_10,
    BEST_OF_A_MIX,
    BUILD,
    CLIENT_ROUND,
    EXAMPLES,
    KEPT,
    ON_DISK,
    PEAK,
    PHOTOS,
    QUALITY,
    RECALL,
    RELEASE,
    UPDATE,
    Point,
    read_points,
)
from benchmarks.report import Figure
from shared.durable import replace_file
from shared.errors import ConfigError, FedshelfError
from shared.pages import line_path

WIDTH, HEIGHT = 380, 256  # of a panel, pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 18, 52, 48
_HEAD, _FOOT = 30, 26  # of a picture
_ROOM = 14  # below the lowest tick, for the numbers at points
_INK: Final = "#7a7f87"  # contrast of 4 with white, of 4.7 with GitHub's black
_SERIES: Final = ("#2a84c6", "#d55e00")  # after Okabe and Ito 2008, safe for colour-blind eyes
_FONT: Final = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"


@dataclass(frozen=True)
class Panel:
    """One measure.

    Attributes:
        title: what is up.
        names: of the figures drawn, one line each; two at most.
        across: name of the figure that goes right; None for the size.
        log: whether up is logarithmic.
    """

    title: str
    names: tuple[str, ...]
    across: str | None = None
    log: bool = True


@dataclass(frozen=True)
class Picture:
    """What grows, and panels of what it costs.

    Attributes:
        section: of the points.
        title: above all panels.
        size: what goes right, with its unit.
        panels: in order, two a row.
        log: whether right is logarithmic.
    """

    section: str
    title: str
    size: str
    panels: tuple[Panel, ...]
    log: bool = True

    @property
    def file(self) -> str:
        """Its name in the folder."""
        return f"scaling-{self.section.replace(' ', '-')}.svg"


_LEARNING: Final = (
    Panel("examples a second in training", (EXAMPLES,)),
    Panel("nDCG@10 on validation clicks", (QUALITY,), log=False),
    Panel("bytes of an update", (UPDATE["float32"], UPDATE["int8"])),
)
_MEMORY: Final = Panel("peak memory of the process", (PEAK, AT_START))


def _cut(tower: str, item: str) -> Picture:
    panels = (
        *_LEARNING,
        Panel("quality against speed, by adapted blocks", (QUALITY,), across=EXAMPLES, log=False),
        Panel(f"bytes kept of a {item}", (KEPT[tower],)),
        Panel("products a second for a new release", (RELEASE,)),
    )
    title = f"Adapted blocks of the {tower} tower"
    return Picture(f"{tower} blocks", title, "last blocks that are adapted", panels, log=False)


PICTURES: Final = (
    Picture(
        "products",
        "Products in an index",
        "vectors",
        (
            Panel("seconds to build, one thread", (BUILD,)),
            Panel("milliseconds a query", (BEST_10, BEST_OF_A_MIX)),
            Panel("bytes on disk", (ON_DISK,)),
            _MEMORY,
            Panel("recall@10", (RECALL,), log=False),
        ),
    ),
    Picture(
        "regions",
        "Regions in a simulation, engine local",
        "regions",
        (
            Panel("milliseconds a client-round", (CLIENT_ROUND,)),
            Panel("peak memory of all processes, added up", (PEAK,)),
        ),
    ),
    Picture("rank", "Rank of the LoRA factors", "rank", (*_LEARNING, _MEMORY)),
    Picture(
        "image size",
        "Size of the photos",
        "pixels a side",
        (
            Panel("photos a second from scratch", (PHOTOS,)),
            Panel("bytes kept of a photo", (KEPT["image"],)),
            _MEMORY,
        ),
    ),
    _cut("text", "text"),
    _cut("image", "photo"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw what a file has points of; exit 1 with one line where it has none."""
    parser = argparse.ArgumentParser(prog="bench-plots", description="Draw how cost grows.")
    parser.add_argument("file", type=Path, help="bench.json of benchmarks.scaling")
    parser.add_argument("folder", type=Path, help="the pictures go there")
    given = parser.parse_args(arguments)
    try:
        for path in draw_all(given.file, given.folder):
            print(path)
    except FedshelfError as error:
        sys.exit(f"error: {error}")


def draw_all(file: Path, folder: Path) -> list[Path]:
    """Draw every picture that there are points of.

    Args:
        file: that `benchmarks.scaling` wrote.
        folder: made if missing.

    Returns:
        The pictures.

    Raises:
        ConfigError: there is no point, or points of one picture are of different settings.
    """
    points, drawn = read_points(file), list[Path]()
    if not points:
        raise ConfigError(f'{file}: no points; make some with "python -m benchmarks.scaling RUN"')
    folder.mkdir(parents=True, exist_ok=True)
    for picture in PICTURES:
        own = [point for point in points if point.section == picture.section]
        if own:
            _require_comparable(file, own)
            replace_file(folder / picture.file, draw(picture, own))
            drawn.append(folder / picture.file)
    return drawn


def draw(picture: Picture, points: Sequence[Point]) -> bytes:
    """One picture as SVG.

    Args:
        picture: what to draw.
        points: of its section, by size; at least one.
    """
    panels = [panel for panel in picture.panels if _lines(panel, points)]
    width, height = 2 * WIDTH, _HEAD + _FOOT + (len(panels) + 1) // 2 * HEIGHT
    svg = ElementTree.Element("svg", xmlns="http://www.w3.org/2000/svg", role="img")
    svg.attrib |= {"viewBox": f"0 0 {width} {height}", "font-family": _FONT, "font-size": "12"}
    svg.attrib |= {"width": str(width), "height": str(height), "fill": _INK}
    ElementTree.SubElement(svg, "title").text = picture.title
    _text(svg, 12, 20, picture.title, size=15, weight="600")
    for number, panel in enumerate(panels):
        place = f"translate({number % 2 * WIDTH} {_HEAD + number // 2 * HEIGHT})"
        _draw_panel(ElementTree.SubElement(svg, "g", transform=place), picture, panel, points)
    _text(svg, 12, height - 9, _machine(points), size=11)
    ElementTree.indent(svg, " ")
    return ElementTree.tostring(svg) + b"\n"


def _require_comparable(file: Path, points: Sequence[Point]) -> None:
    for point in points[1:]:
        if not point.comparable(points[0]):
            sizes = f"{points[0].at:,} and {point.at:,}"
            raise ConfigError(
                f"{file}: {point.section}: the points {sizes} are of different settings or "
                "machines; measure them again alike"
            )


def _lines(panel: Panel, points: Sequence[Point]) -> dict[str, list[tuple[Point, Figure]]]:
    """The figures of a panel's lines that there are, by name."""
    found = {
        name: [(point, figure) for point in points if (figure := point.figure(name))]
        for name in panel.names
    }
    return {name: line for name, line in found.items() if line}


def _draw_panel(
    group: ElementTree.Element, picture: Picture, panel: Panel, points: Sequence[Point]
) -> None:
    lines = _lines(panel, points)
    across, up = _axes(picture, panel, lines)
    _text(group, _LEFT, 16, panel.title, weight="600")
    name = picture.size if panel.across is None else panel.across + ", a second"
    _text(group, (_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 6, name, anchor="middle", size=11)
    _draw_ticks(group, across, up, next(iter(lines.values()))[0][1].unit)
    if panel.across is None:
        labels = {point.at: point.label for line in lines.values() for point, _ in line}
        _write_sizes(group, across, [(size, labels[size]) for size in sorted(labels)])
    else:
        _write_sizes(group, across, [(mark, "") for mark in across.marks])
    last = {name: line[-1][1].value for name, line in lines.items()}
    for number, (name, line) in enumerate(lines.items()):
        colour, above = _SERIES[number], last[name] == max(last.values())
        _draw_line(group, panel, line, (across, up), colour, above=above)
        if len(lines) > 1:
            _write_legend(group, number, name, colour)


def _axes(
    picture: Picture, panel: Panel, lines: dict[str, list[tuple[Point, Figure]]]
) -> tuple[Axis, Axis]:
    pairs = [pair for line in lines.values() for pair in line]
    ends = [
        end
        for _, figure in pairs
        for end in (figure.value, figure.low, figure.high)
        if end is not None
    ]
    up = value_axis(ends, (HEIGHT - _BOTTOM - _ROOM, _TOP), log=panel.log)
    right = (_LEFT, WIDTH - _RIGHT)
    if panel.across is None:
        return size_axis(sorted({point.at for point, _ in pairs}), right, log=picture.log), up
    return value_axis([_across(panel, point) for point, _ in pairs], right, log=True), up


def _across(panel: Panel, point: Point) -> float:
    figure = point.figure(panel.across) if panel.across else None
    return figure.value if figure else float(point.at)


def _draw_ticks(group: ElementTree.Element, across: Axis, up: Axis, unit: str) -> None:
    """A line across at each tick of the one, a short one below at each of the other."""
    for mark in up.marks:
        y = up.at(mark)
        _line(group, across.pixels[0], y, across.pixels[1], y, opacity="0.3")
        _text(group, _LEFT - 6, y + 4, written(mark, unit), anchor="end", size=11)
    bottom = HEIGHT - _BOTTOM
    for mark in across.marks:
        _line(group, across.at(mark), bottom, across.at(mark), bottom + 4)


def _write_sizes(
    group: ElementTree.Element, across: Axis, marks: Sequence[tuple[float, str]]
) -> None:
    for mark, label in marks:
        x = across.at(mark)
        _text(group, x, HEIGHT - _BOTTOM + 16, written(mark), anchor="middle", size=11)
        if label:
            _text(group, x, HEIGHT - _BOTTOM + 28, label, anchor="middle", size=9)


def _draw_line(
    group: ElementTree.Element,
    panel: Panel,
    line: Sequence[tuple[Point, Figure]],
    axes: tuple[Axis, Axis],
    colour: str,
    *,
    above: bool,
) -> None:
    """A line through the measured points, each with its quartiles and its number."""
    across, up = axes
    places = [
        (across.at(_across(panel, point)), up.at(figure.value), point, figure)
        for point, figure in line
    ]
    path = line_path([(x, y) for x, y, _, _ in places])
    style = {"fill": "none", "stroke": colour, "stroke-width": "1.5"}
    ElementTree.SubElement(group, "path", {"d": path, **style})
    for x, y, point, figure in places:
        low, high = y, y
        if figure.low is not None and figure.high is not None:
            low, high = up.at(figure.low), up.at(figure.high)
            _line(group, x, low, x, high, colour=colour)
        ElementTree.SubElement(group, "circle", cx=f"{x}", cy=f"{y}", r="3.5", fill=colour)
        told = written(figure.value, figure.unit) if panel.across is None else str(point.at)
        beside = min(high, y - 3.5) - 5 if above else max(low, y + 3.5) + 12
        _text(group, x, beside, told, anchor="middle", size=10)


def _write_legend(group: ElementTree.Element, number: int, name: str, colour: str) -> None:
    x = _LEFT + number * 145
    ElementTree.SubElement(group, "circle", cx=f"{x + 4}", cy="28", r="3.5", fill=colour)
    _text(group, x + 12, 32, name, size=11)


def _machine(points: Sequence[Point]) -> str:
    """What the figures come from, and whether other things ran."""
    machine, dates = points[0].machine, sorted({str(p.machine["date"])[:10] for p in points})
    days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    facts = f"{machine['cpu']}, {machine['cores']} cores, {machine['torch_threads']} threads"
    busy = sum(bool(point.machine["busy"]) for point in points)
    told = f"; other work ran beside {busy} of {len(points)} points" if busy else ""
    return f"{facts}, {days}{told}"


def _line(
    group: ElementTree.Element,
    x1: float,
    y1: float,
    x2: float,
    y2: float,
    *,
    colour: str = _INK,
    opacity: str = "1",
) -> None:
    ends = {"x1": f"{x1}", "y1": f"{y1}", "x2": f"{x2}", "y2": f"{y2}"}
    ElementTree.SubElement(group, "line", {**ends, "stroke": colour, "stroke-opacity": opacity})


def _text(
    group: ElementTree.Element,
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    size: int = 12,
    weight: str = "400",
) -> None:
    style = {"text-anchor": anchor, "font-size": f"{size}", "font-weight": weight}
    ElementTree.SubElement(group, "text", {"x": f"{x}", "y": f"{y}", **style}).text = words


if __name__ == "__main__":
    main()
