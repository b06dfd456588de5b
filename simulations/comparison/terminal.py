"""What `fedshelf compare` prints when an experiment is done: one table a data set."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from simulations.comparison.measure import UNION
from simulations.comparison.page import (
    UNION_WORDS,
    gap_note,
    interval_in_words,
    judged_in_words,
    p_in_words,
    reached_in_words,
)
from simulations.report import figure, percent

_SHORT = {  # of the page's words; "trained" and "new" are queries, "log" and "cold" products
    "unseen_seen": "new, log",
    "unseen_cold": "new, cold",
    "seen_seen": "trained, log",
    "seen_cold": "trained, cold",
}


def tables_of(result: Mapping[str, Any]) -> Iterator[Table]:
    """Two tables a data set, a third where people judged; a row a method, within 80 columns."""
    for table in result["tables"]:
        yield _test_queries(table)
        yield _four_sets(table)
        if table["union"]:
            yield _judged(table["union"])


def lines_of(result: Mapping[str, Any]) -> Iterator[str]:
    """What stands under the tables: ratios, tests, claims, training that was not equal."""
    for table in result["tables"]:
        yield f"{table['data']}:"
        for name, row in table["federated"].items():
            yield from _held(name, row)
        for test in table["tests"]:
            yield f"  {_test(test)}"
        yield from _claims(table)
        yield from _of_union(table["union"] or {})
        if not table["equal_training"]["equal"]:
            yield "  trained methods were not shown the same number of examples; see report.html"


def _test_queries(table: Mapping[str, Any]) -> Table:
    found = _headed(table["data"], "nDCG@10 on test queries", ("mean", "95 % interval", "worst"))
    for name, row in table["methods"].items():
        found.add_row(
            name, figure(row["mean"]), interval_in_words(row["interval"]), figure(row["worst"])
        )
    return found


def _four_sets(table: Mapping[str, Any]) -> Table:
    found = _headed("", "nDCG@10 by query, product", tuple(_SHORT.values()))
    for name in table["methods"]:
        cells = [table["sets"][which]["methods"].get(name) for which in _SHORT]
        found.add_row(name, *(figure(cell and cell["mean"]) for cell in cells))
    return found


def _judged(sets: Mapping[str, Any]) -> Table:
    first, headings = "nDCG@10, human judgments", ("all", "judged", "of its ten best judged")
    found = _headed("all catalogs in one index", first, headings)
    for name in sets[UNION]["methods"]:
        means = [figure(part["methods"][name]["mean"]) for part in sets.values()]
        found.add_row(name, *means, judged_in_words(sets, name))
    return found


def _of_union(sets: Mapping[str, Any]) -> Iterator[str]:
    for which, part in sets.items():
        where = f"  human judgments, {UNION_WORDS[which]}:"
        for name, row in part["ratios"].items():
            yield (
                f"{where} {name} / {row['pooled']}: {figure(row['ratio'])} "
                f"({interval_in_words(row['ratio_interval'])})"
            )
        for test in part["tests"]:
            yield f"{where} {_test(test)}"


def _test(test: Mapping[str, Any]) -> str:
    return (
        f"{test['a']} against {test['b']}: {test['difference']:+.3f}, "
        f"p {p_in_words(test['p'])}, corrected {p_in_words(test['p_holm'])}"
    )


def _headed(title: str, first: str, headings: tuple[str, ...]) -> Table:
    found = Table(first, title=title or None)
    for heading in headings:
        found.add_column(heading, justify="right")
    return found


def _held(name: str, row: Mapping[str, Any]) -> Iterator[str]:
    if row["pooled"] is not None:
        yield (
            f"  {name} / {row['pooled']}: {figure(row['ratio'])} "
            f"({interval_in_words(row['ratio_interval'])})"
        )
    if "gap" in row:
        yield f"  gap closed: {percent(row['gap_closed'])} ({gap_note(row)})"
    for entry in row.get("reached", []):
        yield f"  95 % of {row['pooled']}: {reached_in_words(entry)}"


def _claims(table: Mapping[str, Any]) -> Iterator[str]:
    """How many regions each verdict was given, by federated method."""
    for name in table["federated"]:
        given = [row["claims"][name]["verdict"] for row in table["regions"] if row["claims"]]
        if given:
            counted = ", ".join(f"{given.count(one)} {one}" for one in sorted(set(given)))
            yield f"  {name} against training alone, regions: {counted}"
