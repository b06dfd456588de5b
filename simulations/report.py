"""Write `report.html`: one page on which a run can be judged, by someone who did not run it.

The page is self-contained (styles, charts and photos are in the file; nothing is fetched, which a
content security policy in it enforces), so it can be mailed, archived and opened years later. This
file turns figures into geometry and words; `templates/report.html.j2` alone knows markup. All text
passes through Jinja's escaping, since titles and queries are data.
"""

import base64
import io
import math
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment
from PIL import Image

from shared.durable import replace_file
from shared.pages import page_environment
from simulations.curves import Curves, known, line_chart, series_colour

METHODS = {
    "random": ("random", "products in random order"),
    "bm25": ("BM25", "words only, no training"),
    "zero_shot": ("zero-shot", "the base as it is: text and photo, no training"),
    "hybrid_zero_shot": ("hybrid, zero-shot", "BM25 mixed with the untrained base"),
    "local_only": ("local only", "each region trains alone on its own clicks"),
    "federated": ("federated", "regions train together; only adapters travel"),
    "personalized": ("personalized", "federated, adapted at home to each region's own clicks"),
    "hybrid": ("hybrid", "what shoppers get: BM25 mixed with the federated encoder"),
    "rrf": ("RRF", "BM25 and federated fused by rank alone, without a weight"),
    "centralized": ("centralized", "all clicks pooled in one place: what federation avoids"),
}
METRICS = {"ndcg@10": "nDCG@10", "recall@10": "recall@10", "mrr@10": "MRR@10"}
UNION_METRICS = {
    "ndcg@10": "nDCG@10",
    "ndcg@10_judged": "nDCG@10, judged only",
    "judged@10": "judged@10",
}
QUERIES = {"regions": "test queries of the regions", "union": "queries with human judgments"}
RARELY_LUCK = 0.05  # p below it
NOT_DEPLOYABLE = "centralized"  # a bound to compare with, so it does not compete for bold type
GRADES = {3: "exact match", 2: "close match", 1: "related", 0: "not relevant"}
CURRENCY_SIGNS = {"EUR": "€", "USD": "$", "GBP": "£"}
THUMBNAIL_PX = 128
SHOWN_PROBLEMS = 8
_DESCRIBES_VECTORS = ("decorrelation-weight", "drawn-negatives")  # keys; shared/config.py
MISSING = "\N{EN DASH}"


def write_report(
    folder: Path,
    result: Mapping[str, Any],
    curves: Curves,
    samples: Sequence[Mapping[str, Any]],
) -> Path:
    """Write a run's report.

    Args:
        folder: of the run; `report.html` in it is replaced at once or not at all.
        result: what `result.json` holds, with `options` (dict) and `problems` (list of lines).
        curves: validation nDCG@10 of each region after rounds 0 to R; None where unknown.
        samples: `region`, `query`, and the products found `before` and `after`, best first, each
            with `title`, `price`, `currency`, `brand`, `grade` and `image_path` (each may be None).

    Returns:
        Path of the page.
    """
    path = folder / "report.html"
    replace_file(path, render_report(result, curves, samples).encode())
    return path


def render_report(
    result: Mapping[str, Any], curves: Curves, samples: Sequence[Mapping[str, Any]]
) -> str:
    """The page as text; arguments as in `write_report`."""
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            result=result,
            regions=[region["name"] for region in result["regions"]],
            headline=_headline(result["mean"]),
            tiles=_tiles(result),
            bars=_bars(result),
            charts=[line_chart(curves, width=width, mean=True) for width in (500, 350)],
            tables=_tables(result),
            union=_union_table(result["union"]) if result.get("union") else None,
            tests=[_test(test) for test in result.get("tests") or ()],
            rarely_luck=RARELY_LUCK,
            num_rounds=_num_rounds(result["rounds"]),
            rounds=_rounds(result["rounds"], len(result["regions"])),
            samples=[_sample(sample) for sample in samples],
            grades=GRADES,
            problems=result["problems"][:SHOWN_PROBLEMS],
            num_problems=len(result["problems"]),
            command=_command(result["options"]),
            made=_made(result),
            stages=_stages(result["seconds"]),
        )
    )


@cache
def _environment() -> Environment:
    environment = page_environment(Path(__file__).parent / "templates")
    environment.filters["colour"] = series_colour
    return environment


# Words and figures


def figure(value: float | None, digits: int = 3) -> str:
    """A number to so many digits; a dash where there is none."""
    return MISSING if known(value) is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A share in percent; a dash where there is none."""
    return MISSING if known(value) is None else f"{value:.0%}"


def bytes_in_words(count: float) -> str:
    """A number of bytes in the largest unit that leaves it above one."""
    power = min(max(math.floor(math.log10(count)) // 3, 0), 3) if count else 0
    scaled = count / 1000**power
    return f"{scaled:.{1 if power and scaled < 100 else 0}f} {('B', 'kB', 'MB', 'GB')[power]}"


def _seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def _value(rows: Mapping[str, Any], method: str, metric: str = "ndcg@10") -> float | None:
    return known(rows.get(method, {}).get(metric))


def _gap_closed(mean: Mapping[str, Any]) -> float | None:
    """Share of the way from local_only to centralized that federation goes; None if no way."""
    local, federated, centralized = (
        _value(mean, method) for method in ("local_only", "federated", "centralized")
    )
    if local is None or federated is None or centralized is None or centralized - local < 1e-6:
        return None
    return (federated - local) / (centralized - local)


def _difference(mean: Mapping[str, Any], other: str) -> float | None:
    federated, reference = _value(mean, "federated"), _value(mean, other)
    return None if federated is None or reference is None else federated - reference


def _headline(mean: Mapping[str, Any]) -> str:
    gained = _difference(mean, "zero_shot")
    if gained is None:
        return "Product search, trained without pooling data"
    before, after = (figure(_value(mean, method)) for method in ("zero_shot", "federated"))
    verb = "raised" if gained > 0 else "did not raise"
    return f"Federated training {verb} mean nDCG@10: {before} before, {after} after"


def _tiles(result: Mapping[str, Any]) -> list[dict[str, str]]:
    mean = result["mean"]
    versus = [
        _versus(mean, "zero_shot", "the untrained base"),
        _versus(mean, "local_only", "each region alone"),
    ]
    traffic = _traffic_tile(result["rounds"], result["options"].get("knobs", {}))
    return [*versus, _centralized_tile(mean), _gap_tile(mean), traffic]


def _versus(mean: Mapping[str, Any], other: str, words: str) -> dict[str, str]:
    gained = _difference(mean, other)
    name = METHODS[other][0]
    return {
        "figure": MISSING if gained is None else f"{gained:+.3f}",
        "label": f"nDCG@10 against {name}",
        "note": f"{words}: {figure(_value(mean, other))}",
    }


def _centralized_tile(mean: Mapping[str, Any]) -> dict[str, str]:
    federated, pooled = _value(mean, "federated"), _value(mean, "centralized")
    share = federated / pooled if federated is not None and pooled else None
    return {
        "figure": percent(share),
        "label": "of centralized quality",
        "note": f"all clicks pooled: {figure(pooled)}",
    }


def _gap_tile(mean: Mapping[str, Any]) -> dict[str, str]:
    share = _gap_closed(mean)
    none = "centralized is not above local only here"
    between = " to ".join(figure(_value(mean, name)) for name in ("local_only", "centralized"))
    return {
        "figure": percent(share),
        "label": "of the gap from local to centralized closed",
        "note": none if share is None else f"the gap: {between}",
    }


def _traffic_tile(rounds: Sequence[Mapping[str, Any]], knobs: Mapping[str, Any]) -> dict[str, str]:
    described = any(knobs.get(key, 0) > 0 for key in _DESCRIBES_VECTORS)
    what = "adapters, how vectors lie, and counts" if described else "adapters and counts"
    up = sum(entry["uplink_bytes"] for entry in rounds)
    down = sum(entry["downlink_bytes"] for entry in rounds)
    return {
        "figure": bytes_in_words(up + down),
        "label": f"on the wire in {_num_rounds(rounds)} rounds",
        "note": f"{what} only: {bytes_in_words(up)} up, {bytes_in_words(down)} down",
    }


def _num_rounds(rounds: Sequence[Mapping[str, Any]]) -> int:
    return sum(entry["round"] > 0 for entry in rounds)  # round 0 only measures the base


# Tables and bars


def _methods(rows: Mapping[str, Any]) -> list[str]:
    """The methods measured, in the order of METHODS, others after them."""
    listed = [method for method in METHODS if method in rows]
    return listed + [method for method in rows if method not in METHODS]


def _method(name: str) -> dict[str, str]:
    label, meaning = METHODS.get(name, (name, ""))
    return {"name": name, "label": label, "meaning": meaning}


def _bars(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A bar a method (its mean), and on it a dot a region."""
    bars = []
    for name in _methods(result["mean"]):
        values = [(r["name"], _value(r["rows"], name)) for r in result["regions"]]
        dots = [(place, region, value) for place, (region, value) in enumerate(values)]
        mean = _value(result["mean"], name)
        bars.append({**_method(name), "mean": mean, "text": figure(mean), "dots": dots})
    return bars


def _tables(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    columns = {region["name"]: region["rows"] for region in result["regions"]}
    columns |= {"mean": result["mean"], "worst": result["worst"]}
    return [
        {"title": title, "metric": metric, "columns": list(columns)}
        | {"rows": _rows([(c, metric) for c in columns.values()], _methods(result["mean"]))}
        for metric, title in METRICS.items()
    ]


def _rows(
    columns: Sequence[tuple[Mapping[str, Any], str]], methods: Sequence[str]
) -> list[dict[str, Any]]:
    """A row a method; a column is (figures of every method, metric), its best cell marked.

    Figures that look equal are marked alike.
    """
    best = [_best(figures, metric) for figures, metric in columns]
    rows = []
    for name in methods:
        values = [_value(figures, name, metric) for figures, metric in columns]
        competes = name != NOT_DEPLOYABLE
        cells = [
            {"text": figure(value), "best": competes and value is not None and figure(value) == top}
            for value, top in zip(values, best, strict=True)
        ]
        rows.append(_method(name) | {"cells": cells})
    return rows


def _best(column: Mapping[str, Any], metric: str) -> str:
    values = (_value(column, name, metric) for name in column if name != NOT_DEPLOYABLE)
    return figure(max((value for value in values if value is not None), default=None))


def _union_table(union: Mapping[str, Any]) -> dict[str, Any]:
    """All catalogs in one index, human judgments: one row a method, one column a metric."""
    rows = _rows([(union, metric) for metric in UNION_METRICS], _methods(union))
    return {"columns": list(UNION_METRICS.values()), "rows": rows}


def _test(test: Mapping[str, Any]) -> dict[str, str]:
    """One comparison of two methods, as the cells of a row."""
    names = [METHODS.get(test[side], (test[side],))[0] for side in ("a", "b")]
    metric = (METRICS | UNION_METRICS).get(test["metric"], test["metric"])
    queries = QUERIES.get(test["queries"], test["queries"])
    difference = f"{test['difference']:+.3f}"
    return {
        "methods": " against ".join(names),
        "measured": f"{metric}, {test['num_queries']:,} {queries}",
        "difference": "0.000" if float(difference) == 0 else difference,  # no sign of nothing
        "p": "< 0.001" if test["p"] < 0.001 else f"{test['p']:.3f}",
        "reading": _reading(*names, difference=test["difference"], p=test["p"]),
    }


def _reading(a: str, b: str, *, difference: float, p: float) -> str:
    if p >= RARELY_LUCK:
        return "may be luck" if difference else "no difference"
    return f"{a if difference > 0 else b} is better"


def _share(value: float | None) -> str:
    """A share that may be far below a percent; what was not measured is a dash."""
    return MISSING if known(value) is None else f"{value:.2%}"


def _rounds(rounds: Sequence[Mapping[str, Any]], num_regions: int) -> list[dict[str, Any]]:
    """Text for the table of rounds, and bar lengths in percent of the largest transfer."""
    directions = ("uplink_bytes", "downlink_bytes")
    largest = max((entry[d] for entry in rounds for d in directions), default=0) or 1
    return [
        {
            "round": entry["round"],
            "loss": figure(entry["loss"]),
            "bias": _share(entry.get("relative_bias")),
            "seconds": _seconds(entry["seconds"]),
            "cohort": f"{_count(entry['cohort'])} of {num_regions}",
            "rejected": _named(entry["rejected"]),
            "traffic": [(bytes_in_words(entry[d]), 100 * entry[d] / largest) for d in directions],
        }
        for entry in rounds
    ]


def _count(value: Any) -> int:
    """Of what is given as a number or as a list."""
    return value if isinstance(value, int) else len(value)


def _named(value: Any) -> str:
    """A number as it is; a list by its members."""
    if isinstance(value, int):
        return str(value)
    return "; ".join(_entry(member) for member in value) or "0"


def _entry(member: Any) -> str:
    if isinstance(member, Mapping):
        return ": ".join(str(part) for part in member.values())
    return ": ".join(map(str, member)) if isinstance(member, list | tuple) else str(member)


def _made(result: Mapping[str, Any]) -> dict[str, str]:
    """How the run was made, as terms and their descriptions."""
    release = result["release"]
    return {
        "Data": str(result["data"]),
        "Preset": str(result["preset"]),
        "Seed": str(result["seed"]),
        "Release": str(release["number"]),
        "Encoder digest": str(release["encoder_digest"]),
        "Peak memory, processes added up": bytes_in_words(result["peak_rss_bytes"]),
    }


def _command(options: Mapping[str, Any]) -> list[str]:
    """The command line that these options are, in parts; false and unset ones are left out."""
    parts = ["fedshelf simulate"]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is not None and value is not False:
            parts.append(flag if value is True else shlex.join([flag, str(value)]))
    return parts


def _stages(seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    longest = max(seconds.values(), default=0) or 1
    return [
        {"name": name.replace("_", " "), "text": _seconds(value), "percent": 100 * value / longest}
        for name, value in seconds.items()
    ]


# Sample queries


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "region": sample["region"],
        "query": sample["query"],
        "shelves": [
            {"label": label, "cards": [_card(product) for product in sample[key]]}
            for key, label in (("before", "before: zero-shot"), ("after", "after: federated"))
        ],
    }


def _card(product: Mapping[str, Any]) -> dict[str, Any]:
    grade = product["grade"]
    return {
        "title": product["title"],
        "brand": product["brand"] or "",
        "price": _price(product["price"], product["currency"]),
        "grade": grade,
        "meaning": "not judged" if grade is None else GRADES.get(grade, f"grade {grade}"),
        "photo": _thumbnail(product["image_path"]),
    }


def _price(price: float | None, currency: str | None) -> str:
    if known(price) is None:
        return ""
    sign = CURRENCY_SIGNS.get(currency or "")
    return f"{sign}{price:,.2f}" if sign else f"{price:,.2f} {currency or ''}".strip()


def _thumbnail(path: str | Path | None) -> str | None:
    """The photo as a small JPEG data URL; None where there is none that can be read."""
    if path is None:
        return None
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * THUMBNAIL_PX, 2 * THUMBNAIL_PX))
            return _data_url(_on_white(image))
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def _on_white(image: Image.Image) -> Image.Image:
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    layers = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), layers).convert("RGB")


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
