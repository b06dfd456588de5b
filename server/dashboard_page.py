"""Turns a snapshot of headquarters into the dashboard's page: words, figures and geometry.

`templates/dashboard.html.j2` alone knows markup. Everything passes through Jinja's escaping: names,
reasons and facts are other people's text. There is no inline style, because the page's content
security policy allows none; colours are classes of `dashboard.css`.
"""

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment

from shared.pages import line_path, page_environment, spread, ticks

REFRESH_S = 5
MISSING = "\N{EN DASH}"
NUM_COLOURS = 7  # series colours in dashboard.css (Okabe and Ito 2008, safe for colour-blind eyes)
BASE_ROW = "release 0"  # how a cross-site table names the untrained base
STATES = {  # in the order in which the page lists them
    "admitted": "admitted",
    "unknown": "not enrolled",
    "invited": "invited",
    "expired": "invitation expired",
    "revoked": "revoked",
}
_MAX_LABELLED = 10  # lines; more would cover each other's names
_TEMPLATES = Path(__file__).parent / "templates"
_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
_UNITS = ((86400.0, "day"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def render_page(found: Mapping[str, Any], *, alone: bool = False) -> str:
    """The page as text.

    Args:
        found: from `snapshot` of `server.dashboard_facts`.
        alone: as a file to keep, with its style in it; else it asks its server for style and news.
    """
    return (
        _environment()
        .get_template("dashboard.html.j2")
        .render(
            found=found,
            style=(_TEMPLATES / "dashboard.css").read_text("utf-8") if alone else None,
            now=datetime.fromisoformat(found["made"]),
            refresh_s=REFRESH_S,
            state=_state_tile(found["state"]),
            tiles=_tiles(found),
            charts=_charts(found["training"]),
            forests=_forests(found["gate"]),
            heat=_heat(found["matrix"]),
            regions=_by_state(found["regions"]),
            states=STATES,
        )
    )


@cache
def _environment() -> Environment:
    environment = page_environment(_TEMPLATES)
    filters = {
        "ago": _ago,
        "bytes": _bytes,
        "clock": _clock,
        "fact": _fact,
        "figure": _figure,
        "grouped": _grouped,
        "reference": _reference,
        "seconds": _seconds,
        "signed": _signed,
    }
    environment.filters.update(filters)
    return environment


# -- words and figures -----------------------------------------------------------------------------


def _figure(value: float | None, digits: int = 3) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"


def _signed(value: float | None, digits: int = 3) -> str:
    return MISSING if value is None else f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _grouped(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} GB"


def _seconds(value: float) -> str:
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s"


def _clock(moment: str) -> str:
    return f"{datetime.fromisoformat(moment):%Y-%m-%d %H:%M} UTC"


def _ago(moment: str, now: datetime) -> str:
    """Roughly how long ago, or how long until."""
    away = (now - datetime.fromisoformat(moment).astimezone(UTC)).total_seconds()
    size, name = next((pair for pair in _UNITS if abs(away) >= pair[0]), (1.0, "s"))
    number = math.floor(abs(away) / size)
    if name == "s":
        return "just now" if away >= 0 else "in a moment"
    words = f"{number} {name}{'s' if name == 'day' and number != 1 else ''}"
    return f"{words} ago" if away >= 0 else f"in {words}"


def _reference(number: int | None) -> str:
    return f"release {number}" if number else "the base"


def _fact(value: Any) -> str:
    """A fact of an audit entry; digests are cut short."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return _DIGEST.sub(r"\1", text)


def _state_tile(state: Mapping[str, Any]) -> dict[str, str]:
    """What headquarters is at."""
    if state["kind"] == "idle":
        return {"figure": "idle", "label": "no training is open", "note": "", "to": "training"}
    figure, label = {
        "matrix": ("table", f"cross-site table {state['number']} is being made"),
        "gate": ("gate", f"regions judge training {state['number']}"),
        "release": ("accepted", f"training {state['number']} is not released yet"),
        "training": (_progress(state), f"round of training {state['number']}"),
    }[state["kind"]]
    tile = {"figure": figure, "label": label, "note": "under way", "to": "training"}
    return {**tile, "note": "no news for a while", "mood": "warn"} if state["quiet"] else tile


def _progress(state: Mapping[str, Any]) -> str:
    rounds = state["num_rounds"]
    return f"{state['round']} of {'?' if rounds is None else rounds}"


def _by_state(rows: Sequence[Mapping[str, Any]] | None) -> list[Mapping[str, Any]] | None:
    order = list(STATES)
    return None if rows is None else sorted(rows, key=lambda row: order.index(row["state"]))


def _tiles(found: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        _release_tile(found["releases"]["current"], datetime.fromisoformat(found["made"])),
        _state_tile(found["state"]),
        _regions_tile(found["regions"]),
        _gate_tile(found["gate"]),
        _audit_tile(found["audit"]),
    ]


def _release_tile(current: Mapping[str, Any] | None, now: datetime) -> dict[str, str]:
    tile = {"figure": "none", "label": "release in use", "note": "regions use the base"}
    if current:
        verb = "expired" if current["expired"] else "expires"
        note = f"{verb} {_ago(current['expiry'], now)}"
        tile |= {"figure": str(current["release"]), "note": note}
        tile |= {"mood": "bad"} if current["expired"] else {}
    return {**tile, "to": "releases"}


def _regions_tile(rows: Sequence[Mapping[str, Any]] | None) -> dict[str, str]:
    tile = {"label": "regions admitted", "to": "regions"}
    if rows is None:
        return {**tile, "figure": MISSING, "note": "cannot be read", "mood": "bad"}
    states = [row["state"] for row in rows]
    numbers = {STATES[state]: states.count(state) for state in STATES if state != "admitted"}
    numbers["refused"] = sum(row["refused"] is not None for row in rows)
    note = ", ".join(f"{number} {words}" for words, number in numbers.items() if number)
    mood = {"mood": "warn"} if numbers["refused"] else {}
    return {**tile, "figure": str(states.count("admitted")), "note": note, **mood}


def _gate_tile(gate: Mapping[str, Any] | None) -> dict[str, str]:
    tile = {"label": "last gate decision", "to": "gate"}
    if gate is None:
        return {**tile, "figure": MISSING, "note": "none yet"}
    note = f"training {gate['training']}"
    means = [check for check in gate["checks"] if check["scope"] == "mean"]
    if means:
        least = min(means, key=lambda check: check["lower"])
        note += f": {_signed(least['mean'])} nDCG@10 against {_reference(least['reference'])}"
    if gate["accepted"]:
        return {**tile, "figure": "accepted", "note": note}
    return {**tile, "figure": "declined", "note": note, "mood": "warn"}


def _audit_tile(audit: Mapping[str, Any]) -> dict[str, str]:
    tile = {"label": "audit log", "to": "audit"}
    if audit["broken"]:
        return {**tile, "figure": "broken", "note": "do not trust it: see Audit", "mood": "bad"}
    number = audit["num_entries"]
    note = f"{number:,} entr{'y' if number == 1 else 'ies'}"
    return {**tile, "figure": "unbroken" if number else "empty", "note": note}


# -- line charts -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """Maps values from `low` to `high` to pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a value lies; in the middle if there is only one."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.start + share * (self.end - self.start), 1)


Line = tuple[str, Mapping[int, float | None]]  # name, value by round


def _charts(training: Mapping[str, Any] | None) -> dict[str, Any]:
    """Learning curves and loss, each for a wide and a narrow page; None without any value."""
    if training is None:
        return {"curves": None, "loss": None, "legend": []}
    numbers = [record["round"] for record in training["rounds"]]
    lines: list[Line] = [
        (name, dict(zip(numbers, values, strict=True)))
        for name, values in training["curves"].items()
    ]
    means = ("mean", {record["round"]: record["mean"] for record in training["rounds"]})
    losses = ("loss", {record["round"]: record["loss"] for record in training["rounds"]})
    best, labelled = training["best_round"], len(lines) <= _MAX_LABELLED
    chosen = "chosen" if training["complete"] else "best so far"
    mark = None if best is None else (best, chosen)
    return {
        "curves": _sizes([*lines, means], mark, ((690, 330), (350, 300)), labelled=labelled),
        "loss": _sizes([losses], None, ((400, 330), (350, 220)), labelled=False),
        "legend": [(name, _colour(place)) for place, (name, _) in enumerate(lines)],
    }


def _colour(place: int) -> str:
    """Class of a line; the second time round its colours are dashed."""
    return f"c{place % NUM_COLOURS}{' dashed' if place >= NUM_COLOURS else ''}"


def _sizes(
    lines: Sequence[Line],
    mark: tuple[int, str] | None,
    sizes: Sequence[tuple[int, int]],
    *,
    labelled: bool,
) -> list[dict[str, Any]] | None:
    known = [(n, v) for _, line in lines for n, v in line.items() if v is not None]
    if not known:
        return None
    numbers, values = [n for n, _ in known], [v for _, v in known]
    marks, digits = ticks(min(values), max(values))
    return [
        _chart(size, lines, mark, (min(numbers), max(numbers)), (marks, digits), labelled=labelled)
        for size in sizes
    ]


def _chart(
    size: tuple[int, int],
    lines: Sequence[Line],
    mark: tuple[int, str] | None,
    rounds: tuple[int, int],
    axis: tuple[Sequence[float], int],
    *,
    labelled: bool,
) -> dict[str, Any]:
    (width, height), (marks, digits) = size, axis
    x = Scale(*rounds, 46, width - (96 if labelled else 18))
    y = Scale(marks[0], marks[-1], height - 40, 26)
    series = [_series((x, y), place, *line) for place, line in enumerate(lines)]
    series[-1]["colour"] = "mean"  # also a lone line: ink, not a region's colour
    shown = [line for line in series if line["points"]]
    ends = [line["label"]["y"] for line in shown]
    for line, place in zip(shown, spread(ends, y.start, 15.0), strict=True):
        line["label"]["y"] = place
    step = max(1, math.ceil((rounds[1] - rounds[0]) / ((x.end - x.start) / 34)))
    return {
        "width": width,
        "height": height,
        "x": x,
        "y": y,
        "series": shown,
        "labelled": labelled,
        "y_ticks": [(y.at(tick), f"{tick:.{digits}f}") for tick in marks],
        "x_ticks": [(x.at(number), number) for number in range(rounds[0], rounds[1] + 1, step)],
        "mark": None if mark is None else {"x": x.at(mark[0]), "round": mark[0], "text": mark[1]},
    }


def _series(
    scales: tuple[Scale, Scale], place: int, name: str, line: Mapping[int, float | None]
) -> dict[str, Any]:
    """One line: its points with hover titles, and its path, broken where a value is unknown."""
    points, places = [], list[tuple[float, float] | None]()
    for number, value in line.items():
        places.append(None if value is None else (scales[0].at(number), scales[1].at(value)))
        if places[-1] is not None:
            x, y = places[-1]
            points.append({"x": x, "y": y, "title": f"{name}, round {number}: {value:.3f}"})
    end = points[-1] if points else {"x": 0.0, "y": 0.0}
    label = {"x": end["x"], "end": end["y"], "y": end["y"]}
    return {
        "name": name,
        "colour": _colour(place),
        "points": points,
        "path": line_path(places),
        "label": label,
    }


# -- forest plot -----------------------------------------------------------------------------------


def _forests(gate: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The gate's checks as a forest plot, for a wide and a narrow page."""
    if gate is None or not gate["checks"]:
        return []
    wide = {"width": 760, "left": 150, "right": 230, "row": 30, "drop": 0}
    narrow = {"width": 350, "left": 10, "right": 10, "row": 50, "drop": 18}
    return [_forest(gate, form) for form in (wide, narrow)]


def _forest(gate: Mapping[str, Any], form: Mapping[str, int]) -> dict[str, Any]:
    """`drop`: how far the interval lies below its words, which stand beside it if that is 0."""
    marks, digits = ticks(*_extent(gate), most=6 if form["drop"] else 8)
    right = form["width"] - form["right"]
    scale = Scale(marks[0], marks[-1], form["left"], right)
    rows: list[dict[str, Any]] = []
    y = 34
    for check in gate["checks"]:
        if not rows or rows[-1]["reference"] != check["reference"]:
            rows.append({"reference": check["reference"], "y": y, "check": None})
            y += 26
        rows.append(_interval(check, scale) | {"y": y, "bar_y": y + form["drop"]})
        y += form["row"]
    return {
        "width": form["width"],
        "height": y + 26,
        "bottom": y - 8,
        "bands": _bands(rows, y - 8) if form["drop"] else [(20, y - 8)],
        "narrow": form["drop"] > 0,
        "scale": scale,
        "rows": rows,
        "zero_x": scale.at(0.0),
        "tolerance_x": scale.at(-gate["tolerance"]),
        "x_ticks": [(scale.at(t), _signed(t, digits) if round(t, 6) else "0") for t in marks],
    }


def _bands(rows: Sequence[Mapping[str, Any]], bottom: int) -> list[tuple[int, int]]:
    """Where upright lines are drawn on a narrow page: not through the words above an interval."""
    bars = [row["bar_y"] for row in rows if row["check"]]
    return [(16, 22), *((y - 9, y + 9) for y in bars), (bottom - 4, bottom)]


def _interval(check: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    return {
        "reference": check["reference"],
        "check": check,
        "low_x": scale.at(max(check["lower"], scale.low)),
        "mean_x": scale.at(check["mean"]),
        "cut": check["lower"] < scale.low,
        "verdict": _verdict(check),
    }


def _extent(gate: Mapping[str, Any]) -> tuple[float, float]:
    """Range of the axis. A check that did not count may have a bound far away; it is cut off."""
    checks = [check for check in gate["checks"] if check["counted"]] or gate["checks"]
    means = [check["mean"] for check in gate["checks"]]
    lowest = min(max(check["lower"], check["mean"] - 0.25) for check in checks)
    return min(lowest, -1.5 * gate["tolerance"], *means), max(0.0, *means)


def _verdict(check: Mapping[str, Any]) -> str:
    if not check["counted"]:
        return "not counted"
    return "passed" if check["passed"] else "failed"


# -- heat map --------------------------------------------------------------------------------------


def _heat(matrix: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The cross-site table; a cell's colour is its gain over the base in the same region.

    The regions' levels differ more than the adapters', so the bare figures would colour columns.
    """
    if matrix is None:
        return None
    columns, base = sorted(matrix["num_queries"]), matrix["rows"].get(BASE_ROW, {})
    ordered = dict(sorted(matrix["rows"].items(), key=_row_order))
    gains = {
        (name, region): row[region] - base[region]
        for name, row in ordered.items()
        for region in columns
        if region in row and region in base
    }
    most = max((abs(gain) for gain in gains.values()), default=0.0)
    rows = [
        {"name": name, "label": "base, untrained" if name == BASE_ROW else name}
        | {"cells": [_cell(row.get(region), gains.get((name, region)), most) for region in columns]}
        | {"mean": _row_mean(row, columns)}
        for name, row in ordered.items()
    ]
    for place in range(len(columns)):
        cells = [row["cells"][place] for row in rows]
        top = max((cell["value"] for cell in cells if cell["value"] is not None), default=None)
        for cell in cells:
            cell["best"] = top is not None and cell["value"] == top
    return {"columns": columns, "rows": rows}


def _row_order(row: tuple[str, object]) -> tuple[int, str]:
    """The base, the releases by number, then what single regions trained alone."""
    number = row[0].removeprefix("release ")
    return (int(number), "") if number.isdecimal() else (sys.maxsize, row[0])


def _cell(value: float | None, gain: float | None, most: float) -> dict[str, Any]:
    level = round(4 * gain / most) if gain is not None and most else 0
    shade = f"{'up' if level > 0 else 'down'}{abs(level)}" if level else "level"
    return {"value": value, "gain": gain, "shade": shade}


def _row_mean(row: Mapping[str, float | None], columns: Sequence[str]) -> float | None:
    """Mean over regions; unknown where any is, so that it stays comparable."""
    values = [value for name in columns if (value := row.get(name)) is not None]
    return sum(values) / len(values) if values and len(values) == len(columns) else None
