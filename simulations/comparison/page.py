"""Write `report.html` of an experiment: one self-contained page, in the style of a run's report.

This file turns figures into geometry and words; `templates/compare.html.j2` alone knows markup.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment

from shared.durable import replace_file
from shared.pages import page_environment
from simulations.comparison.measure import QUADRANTS, UNION, UNION_JUDGED
from simulations.curves import line_chart, series_colour
from simulations.report import MISSING, bytes_in_words, figure, percent
from simulations.table import JUDGED

QUADRANT_WORDS: Final = {
    "unseen_seen": "new query, product in the log",
    "unseen_cold": "new query, cold product",
    "seen_seen": "trained query, product in the log",
    "seen_cold": "trained query, cold product",
}
UNION_WORDS: Final = {UNION: "all products", UNION_JUDGED: "judged products alone"}
VERDICTS: Final = {
    "better": "better",
    "not worse": "not worse",
    "worse": "worse",
    "open": "open",
    "no claim": "too few queries",
}


def write_page(folder: Path, result: Mapping[str, Any]) -> Path:
    """Write an experiment's page; replaced at once or not at all.

    Args:
        folder: of the experiment.
        result: what `result.json` holds.
    """
    path = folder / "report.html"
    replace_file(path, render_page(result).encode())
    return path


def render_page(result: Mapping[str, Any]) -> str:
    """The page as text."""
    what = result["experiment"]["experiment"]
    kinds = {method["name"]: method["kind"] for method in result["experiment"]["method"]}
    worlds = result["worlds"]
    return (
        _environment()
        .get_template("compare.html.j2")
        .render(
            what=what,
            kinds=kinds,
            methods=[_method(method) for method in result["experiment"]["method"]],
            tables=[_table(table, kinds, worlds) for table in result["tables"]],
            words=QUADRANT_WORDS,
            command=result["command"],
            made_by=result["made_by"],
        )
    )


@cache
def _environment() -> Environment:
    environment = page_environment(Path(__file__).parents[1] / "templates")
    environment.filters |= {"colour": series_colour, "figure": figure, "percent": percent}
    return environment


def _method(method: Mapping[str, Any]) -> dict[str, str]:
    knobs = ", ".join(f"{key} = {value}" for key, value in method["set"].items())
    made = {"hybrid": "BM25 and {of}", "personalized": "{of}, adapted by each region"}
    what = knobs or made.get(method["kind"], "").format(of=method["of"])
    return {"name": method["name"], "kind": method["kind"], "what": what}


def _table(
    table: Mapping[str, Any], kinds: Mapping[str, str], worlds: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    curves = _curves(table, worlds)
    return {
        "title": table["data"],
        "num_queries": table["num_queries"],
        "bars": [_bar(name, kinds[name], row) for name, row in table["methods"].items()],
        "charts": [line_chart(curves, width=width, mean=False) for width in (500, 350)],
        "held": [_held(name, row) for name, row in table["federated"].items()],
        "quadrants": _quadrants(table),
        "tests": [_test(test) for test in table["tests"]],
        "claims": _claims(table),
        "union": _union(table["union"]) if table["union"] else None,
        "training": _training(table["equal_training"]),
    }


def _bar(name: str, kind: str, row: Mapping[str, Any]) -> dict[str, Any]:
    low, high = row["interval"]
    seeds = [(seed, value) for seed, value in row["by_seed"].items()]
    return {
        "name": name,
        "kind": kind,
        "mean": row["mean"],
        "low": low,
        "high": high,
        "text": figure(row["mean"]),
        "interval": interval_in_words(row["interval"]),
        "worst": figure(row["worst"]),
        "seeds": seeds,
        "other_metrics": [figure(value) for value in row["other_metrics"].values()],
    }


def interval_in_words(found: Sequence[float] | None, *, share: bool = False) -> str:
    """Two ends of an interval, as figures or as percentages."""
    if found is None:
        return "no interval"
    return " to ".join(percent(end) if share else figure(end) for end in found)


def _curves(
    table: Mapping[str, Any], worlds: Sequence[Mapping[str, Any]]
) -> dict[str, list[float | None]]:
    """Mean over seeds of every federated method's rounds."""
    lines: dict[str, list[float | None]] = {}
    for name in table["federated"]:
        found = [
            world["methods"][name]["curve"]
            for world in worlds
            if world["data"] == table["data"] and "curve" in world["methods"][name]
        ]
        if found:
            lines[name] = [sum(values) / len(values) for values in zip(*found, strict=True)]
    return lines


def _held(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A federated method beside the pool and beside each region alone."""
    reached = row.get("reached", [])
    return {
        "name": name,
        "pooled": row["pooled"] or MISSING,
        "alone": row["alone"] or MISSING,
        "ratio": figure(row.get("ratio")),
        "ratio_interval": interval_in_words(row.get("ratio_interval")),
        "gap": percent(row.get("gap_closed")),
        "gap_note": gap_note(row),
        "reached": [reached_in_words(entry) for entry in reached],
    }


def gap_note(row: Mapping[str, Any]) -> str:
    """The interval of the gap closed, or why there is none."""
    if row.get("gap") is None:
        return ""
    if row["gap"] <= 0:
        return "undefined: pooling is not above training alone"
    if row["gap_closed_interval"] is None:
        return "no interval: resampling often leaves no gap"
    return interval_in_words(row["gap_closed_interval"], share=True)


def reached_in_words(entry: Mapping[str, Any]) -> str:
    """When one seed's federation came to 95 % of the pool, and what it had sent by then."""
    if entry["round"] is None:
        return f"seed {entry['seed']}: never"
    sent = bytes_in_words(entry["bytes"])
    return f"seed {entry['seed']}: round {entry['round']}, {sent}"


def _quadrants(table: Mapping[str, Any]) -> dict[str, Any]:
    sets = {name: table["sets"][name] for name in QUADRANTS}
    rows = []
    for method in table["methods"]:
        cells = [found["methods"].get(method) for found in sets.values()]
        rows.append(
            {
                "name": method,
                "cells": [
                    {"text": figure(cell and cell["mean"])}
                    | {"title": interval_in_words(cell["interval"]) if cell else ""}
                    for cell in cells
                ],
            }
        )
    columns = [(QUADRANT_WORDS[name], found["num_queries"]) for name, found in sets.items()]
    return {"columns": columns, "rows": rows}


def _test(test: Mapping[str, Any]) -> dict[str, str]:
    ahead = test["a"] if test["difference"] > 0 else test["b"]
    return {
        "pair": f"{test['a']} against {test['b']}",
        "difference": f"{test['difference']:+.3f}",
        "num_queries": f"{test['num_queries']:,} queries",
        "p": p_in_words(test["p"]),
        "p_holm": p_in_words(test["p_holm"]),
        "reading": f"{ahead} is better" if test["rarely_luck"] else "may be luck",
    }


def p_in_words(p: float) -> str:
    """A p-value to three digits."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _claims(table: Mapping[str, Any]) -> dict[str, Any]:
    """One row a region and seed: means of all methods, and the verdict on each federated one."""
    rows = [
        {
            "region": row["region"],
            "seed": row["seed"],
            "num_queries": row["num_queries"],
            "counted": row["counted"],
            "means": [figure(value) for value in row["means"].values()],
            "verdicts": [VERDICTS[claim["verdict"]] for claim in row["claims"].values()],
        }
        for row in table["regions"]
    ]
    claimed = list(table["regions"][0]["claims"]) if table["regions"] else []
    return {"methods": list(table["methods"]), "claimed": claimed, "rows": rows}


def _union(sets: Mapping[str, Any]) -> dict[str, Any]:
    """Human judgments: one row a method, what it scores in either set and of pooled."""
    rows = []
    for name in sets[UNION]["methods"]:
        cells = [_of_set(part, name) for part in sets.values()]
        rows.append({"name": name, "cells": cells, "judged": judged_in_words(sets, name)})
    tests = [
        _test(test) | {"where": UNION_WORDS[which]}
        for which, part in sets.items()
        for test in part["tests"]
    ]
    columns = [UNION_WORDS[which] for which in sets]
    count = sets[UNION]["num_queries"]
    return {"columns": columns, "num_queries": count, "rows": rows, "tests": tests}


def _of_set(part: Mapping[str, Any], name: str) -> dict[str, str]:
    """Of one method: its mean, and its share of pooled quality where it is held against that."""
    row, held = part["methods"][name], part["ratios"].get(name)
    of_pooled = (
        f"{figure(held['ratio'])} of {held['pooled']}, {interval_in_words(held['ratio_interval'])}"
        if held
        else ""
    )
    return {
        "text": figure(row["mean"]),
        "note": interval_in_words(row["interval"]),
        "held": of_pooled,
    }


def judged_in_words(sets: Mapping[str, Any], name: str) -> str:
    """Which share of the ten best products of a method anybody judged."""
    return percent(sets[UNION]["methods"][name][JUDGED])


def _training(equal: Mapping[str, Any]) -> dict[str, Any]:
    steps = [
        (world["seed"], [(name, f"{count:,}") for name, count in world["steps"].items()])
        for world in equal["worlds"]
    ]
    return {"equal": equal["equal"], "unequal": equal["unequal"], "steps": steps}
