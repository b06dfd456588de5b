"""Commands for whoever checks a region or headquarters. `fedshelf.py` puts them beside the others.

Only typer is imported up here, so that `--help` stays quick.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pydantic import JsonValue
    from rich.table import Table

    from shared.audit import AuditEntry, AuditHead

app = typer.Typer(help="What headquarters and regions keep alike.")
audit = typer.Typer(help="Check or read an audit log.", no_args_is_help=True)
app.add_typer(audit, name="audit")

_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
_Log = Annotated[Path, typer.Argument(metavar="PATH", help="An audit.jsonl, or its folder.")]
_Json = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]


def line_printer(as_json: bool) -> Callable[[str], None]:
    """Prints one line at a time: as text, or as one JSON object a line."""
    return (lambda line: typer.echo(json.dumps({"event": line}))) if as_json else typer.echo


@audit.command()
def verify(
    path: _Log,
    head: Annotated[
        str | None, typer.Option(metavar="SEQ:HASH", help="A head noted earlier, elsewhere.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Check that no line was changed, removed, inserted or moved."""
    from shared.audit import EMPTY, read_audit

    log = _file(path)
    entries = read_audit(log, None if head is None else _parse_head(head))
    newest = entries[-1].head() if entries else EMPTY
    if as_json:
        typer.echo(json.dumps({"path": str(log), "entries": len(entries), "head": str(newest)}))
    else:
        noun = "entry" if len(entries) == 1 else "entries"
        typer.echo(f"{log.name}: {len(entries)} {noun}, unbroken, head {newest}")


@audit.command()
def show(
    path: _Log,
    last: Annotated[int, typer.Option(min=1, help="How many of the newest entries.")] = 20,
    as_json: _Json = False,
) -> None:
    """Show the newest entries of a log that verifies."""
    from shared.audit import read_audit

    entries = read_audit(_file(path))[-last:]
    if as_json:
        typer.echo(json.dumps([entry.model_dump() for entry in entries], ensure_ascii=False))
    else:
        from rich.console import Console

        Console().print(_table(entries))


@audit.command()
def compare(
    headquarters: _Log,
    region: _Log,
    name: Annotated[str, typer.Option("--region", help="Its name, as headquarters knows it.")],
    as_json: _Json = False,
) -> None:
    """Look for every update and evaluation that headquarters counted in a region's own log."""
    from shared.audit import read_audit
    from shared.errors import AuditError
    from shared.exchanges import compare_logs

    log = _file(region)
    count, missing = compare_logs(read_audit(_file(headquarters)), read_audit(log), name)
    if not count:
        raise typer.BadParameter("headquarters counted no message of it", param_hint="--region")
    if missing:
        raise AuditError(
            f"{log}: {len(missing)} of {count} messages that headquarters counted are not in it "
            f"({'; '.join(missing[:3])}); ask both sides what they sent"
        )
    if as_json:
        typer.echo(json.dumps({"region": name, "messages": count}))
        return
    noun = "message" if count == 1 else "messages"
    typer.echo(f"{name}: {count} {noun} counted by headquarters, all in the region's log")


def _file(path: Path) -> Path:
    return path / "audit.jsonl" if path.is_dir() else path


def _parse_head(text: str) -> "AuditHead":
    from shared.audit import AuditHead

    try:
        return AuditHead.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--head") from None


def _table(entries: "list[AuditEntry]") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "time (UTC)", "event", "facts")
    for entry in entries:
        facts = ", ".join(f"{name} {_shown(value)}" for name, value in entry.facts.items())
        cells = (entry.time[:19], entry.event, facts)  # without fraction and offset
        table.add_row(str(entry.seq), *(escape(cell) for cell in cells))
    return table


def _shown(value: "JsonValue") -> str:
    """A fact as JSON, so no control character reaches the terminal; digests cut short."""
    return _DIGEST.sub(r"\1…", json.dumps(value))
