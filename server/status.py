"""What headquarters knows, read from its folder: for people as tables, for scripts as JSON.

Everything here is read from files, so it works whether or not the processes are up; only "online"
needs Flower's control API, and is None where that does not answer.
"""

from collections.abc import Mapping
from dataclasses import asdict
from html import escape
from typing import Any

from rich.table import Table
from rich.text import Text

from server.authority import certificate_expiry
from server.control import Control
from server.enrolment import regions
from server.headquarters import Headquarters
from server.training import release_numbers, trainings
from shared.errors import FederationError, ReleaseError
from shared.release import CurrentRelease, read_current_of_any_age, read_release

_SAID = (
    "num_products",
    "num_examples",
    "num_validation_queries",
    "num_gate_queries",
    "device",
    "code_version",
    "release",
    "verdict",
    "verdict_release",
    "verdict_reason",
    "seen",
    "refused",
    "refused_at",
)


def read_status(hq: Headquarters) -> dict[str, Any]:
    """Regions, the newest training and the release in use.

    Args:
        hq: headquarters.

    Returns:
        Plain JSON values.
    """
    online, said = _online(hq), _said(hq)
    rows = []
    for name, record in regions(hq).items():
        row: dict[str, Any] = {"region": name, "state": record.state}
        row["online"] = None if online is None else online.get(name, False)
        row |= {key: said.get(name, {}).get(key) for key in _SAID}
        rows.append(row)
    return {
        "name": hq.config.name,
        "address": hq.config.address,
        "base_fingerprint": hq.fingerprint,
        "release": _in_use(hq),
        "release_expires": _expiry(hq),
        "certificate_expires": certificate_expiry(hq.server_certificate).isoformat(),
        "regions": rows,
        "training": _training(hq),
    }


def read_releases(hq: Headquarters) -> list[dict[str, Any]]:
    """Every release in the registry, oldest first; a damaged one says why."""
    in_use = _in_use(hq)
    rows = []
    for number in release_numbers(hq.releases):
        row: dict[str, Any] = {"release": number, "in_use": in_use == number, "damaged": None}
        try:
            manifest = read_release(
                hq.releases / str(number), public_key_hex=hq.release_key, expected_number=number
            )
            row |= {
                "created": manifest.created.isoformat(timespec="seconds"),
                "parent": manifest.parent,
                "rounds": manifest.rounds,
                "encoder_digest": manifest.encoder_digest,
                "quality": manifest.quality,
            }
        except ReleaseError as error:
            row["damaged"] = str(error)
        rows.append(row)
    return rows


def status_tables(found: Mapping[str, Any]) -> list[Any]:
    """`read_status` as things that rich prints."""
    table = Table("region", "state", "last seen", "examples", "release", "said", "refused")
    for row in found["regions"]:
        state = row["state"] + {True: ", online", False: ", offline", None: ""}[row["online"]]
        said = f"{row['verdict']} {row['verdict_release']}" if row["verdict"] else ""
        reason = f": {row['verdict_reason']}" if row["verdict_reason"] else ""
        cells = (row["seen"] or "never", _text(row["num_examples"]), _text(row["release"]))
        words = (said + reason, row["refused"] or "")
        # Text, because what a region says may look like rich's markup.
        table.add_row(row["region"], state, *cells, *map(Text, words))
    training = found["training"]
    until = f", believed until {found['release_expires'][:10]}" if found["release"] else ""
    lines = [
        f"release in use: {found['release'] or 'none yet'}{until}",
        f"server certificate until {found['certificate_expires'][:10]}",
    ]
    if training:
        progress = f"{training['rounds_done']} of {training['num_rounds']} rounds"
        state = "complete" if training["complete"] else "not complete"
        lines.append(f"training {training['number']}: {progress}, {state}")
    return [table, *lines]


def release_table(rows: list[dict[str, Any]]) -> Table:
    """`read_releases` as a table."""
    table = Table("release", "created", "parent", "rounds", "encoder", "gate", "")
    for row in rows:
        if row["damaged"]:
            table.add_row(str(row["release"]), "", "", "", "", Text(row["damaged"]), "damaged")
            continue
        gate = row["quality"].get("gate", {}).get("decision", {})
        means = [check["mean"] for check in gate.get("checks", []) if check["scope"] == "mean"]
        table.add_row(
            str(row["release"]),
            row["created"],
            _text(row["parent"]) or "base",
            str(row["rounds"]),
            row["encoder_digest"][:12],
            ", ".join(f"{mean:+.4f}" for mean in means),
            "in use" if row["in_use"] else "",
        )
    return table


def matrix_table(matrix: Mapping[str, Any]) -> Table:
    """The cross-site table: adapters by regions, nDCG@10 on gate clicks."""
    columns = sorted(matrix.get("num_queries", {}))
    table = Table("adapter", *(f"{name} ({matrix['num_queries'][name]})" for name in columns))
    for name, row in _in_order(matrix).items():
        table.add_row(name, *(f"{row[region]:.4f}" for region in columns))
    return table


def draw_matrix(matrix: Mapping[str, Any]) -> str:
    """The cross-site table as a heat map in SVG, each column on its own scale."""
    columns, rows = sorted(matrix.get("num_queries", {})), _in_order(matrix)
    wide, high, left, top = 110, 34, 150, 40
    parts = [
        f'<text x="{left + wide * at + wide / 2}" y="24" text-anchor="middle">{escape(name)}</text>'
        for at, name in enumerate(columns)
    ]
    for line, (name, row) in enumerate(rows.items()):
        y = top + high * line
        parts.append(f'<text x="{left - 10}" y="{y + 22}" text-anchor="end">{escape(name)}</text>')
        for at, region in enumerate(columns):
            values = [other[region] for other in rows.values()]
            shade = _shade(row[region], min(values), max(values))
            x = left + wide * at
            parts.append(f'<rect x="{x}" y="{y}" width="{wide}" height="{high}" fill="{shade}"/>')
            label = f"{row[region]:.3f}"
            middle = f'x="{x + wide / 2}" y="{y + 22}" text-anchor="middle"'
            parts.append(f"<text {middle}>{label}</text>")
    size = f'width="{left + wide * len(columns) + 10}" height="{top + high * len(rows) + 10}"'
    style = 'font-family="sans-serif" font-size="14"'
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{ground}{"".join(parts)}</svg>'


def _in_order(matrix: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The rows, releases first and by number; the file has them in the order of their text."""

    def place(name: str) -> tuple[bool, int, str]:
        word, _, number = name.partition(" ")
        is_release = word == "release" and number.isdecimal()
        return not is_release, int(number) if is_release else 0, name

    rows = matrix.get("rows", {})
    return {name: rows[name] for name in sorted(rows, key=place)}


def _shade(value: float, low: float, high: float) -> str:
    share = (value - low) / (high - low) if high > low else 0.5
    return f"hsl(205, 70%, {96 - 40 * share:.0f}%)"


def _online(hq: Headquarters) -> dict[str, bool] | None:
    try:
        return {node.name: node.status == "online" for node in Control(hq.flower).list_nodes()}
    except FederationError:  # headquarters is not up: said as "unknown", which is what it is
        return None


def _said(hq: Headquarters) -> dict[str, dict[str, Any]]:
    """What each region said last, over all trainings; newer ones win."""
    said: dict[str, dict[str, Any]] = {}
    for training in trainings(hq.trainings):
        for region, row in training.history.regions().items():
            said[region] = {**said.get(region, {}), **row}
    return said


def _in_use(hq: Headquarters) -> int | None:
    current = _current(hq)
    return current.release if current else None


def _expiry(hq: Headquarters) -> str | None:
    """Until when regions believe the statement in use."""
    current = _current(hq)
    return current.expiry.isoformat() if current else None


def _current(hq: Headquarters) -> CurrentRelease | None:
    if not (hq.releases / "current.json").is_file():
        return None
    return read_current_of_any_age(hq.releases, public_key_hex=hq.release_key)


def _training(hq: Headquarters) -> dict[str, Any] | None:
    found = trainings(hq.trainings)
    if not found:
        return None
    latest = found[-1]
    records = latest.history.rounds()
    return {
        "number": latest.number,
        "rounds_done": records[-1].round if records else 0,
        "num_rounds": latest.config["run_config"].get("num-rounds"),
        "complete": latest.complete,
        "gate": latest.history.gate(),
        "release": latest.release,
        "last_round": asdict(records[-1]) if records else None,
    }


def _text(value: Any) -> str:
    return "" if value is None else str(value)
