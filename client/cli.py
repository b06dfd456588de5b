"""Commands a region's people type. `fedshelf.py` puts them beside the others.

Only typer is imported up here: torch, FAISS and polars take seconds, and `--help` needs none.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.cli import line_printer
from shared.errors import FedshelfError, RetrievalError

if TYPE_CHECKING:
    from rich.table import Table

    from client.region import Region
    from shared.retrieval.search import Hit, Searcher

app = typer.Typer(help="A region: search its catalog.")
region = typer.Typer(help="Run a region of a federation.", no_args_is_help=True)
app.add_typer(region, name="region")

_Region = Annotated[
    Path, typer.Argument(metavar="[REGION]", help="The region's folder, or its region.toml.")
]
_Number = Annotated[int, typer.Argument(min=1, help="Number of the release.")]
_Json = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
_HERE = Path()


@app.command()
def search(
    folder: Annotated[
        Path, typer.Option("--region", help="The region's folder, with region.toml.")
    ],
    query: Annotated[str | None, typer.Argument(help="What a shopper would type.")] = None,
    image: Annotated[
        Path | None, typer.Option(help="A photo, instead of words or with them.")
    ] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="How many products.")] = 10,
    as_json: _Json = False,
) -> None:
    """Search a region's catalog through its current index."""
    text = query if query and query.strip() else None
    if text is None and image is None:
        raise typer.BadParameter("give words, --image PATH, or both", param_hint="QUERY")
    if image is not None and not image.is_file():
        raise RetrievalError(f"{image}: not found; --image needs a photo")
    opened, searcher = _open(folder)
    hits = searcher.search(text, image, k)
    (_print_json if as_json else _print_table)(opened, searcher, hits)


@region.callback()
def _group() -> None:
    """Run a region of a federation."""


@region.command()
def enroll(
    file: Annotated[Path, typer.Argument(help="The enrolment file from headquarters.")],
    folder: Annotated[Path, typer.Option("--region", help="The region's folder.")] = _HERE,
    base: Annotated[
        Path | None, typer.Option(help="A copy of the base; otherwise it is fetched.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Make this region's key, fetch the base, write region.toml if there is none."""
    from client.enrolment import enrol
    from shared.audit import AuditLog

    made = enrol(folder, file, base=base)
    AuditLog(folder / made.config.state / "audit.jsonl").append(
        "region.enrolled", key=made.key_fingerprint, base_fingerprint=made.config.base.fingerprint
    )
    facts = {
        "region": made.config.region,
        "public_key": str(made.public_key),
        "key_fingerprint": made.key_fingerprint,
    }
    lines = [
        made.public_line,
        f"hand {made.public_key} to headquarters before {made.expires:%Y-%m-%d %H:%M} UTC; "
        f'there: "fedshelf server admit {made.config.region} {made.public_key.name}"',
        'then: "fedshelf region check", and "fedshelf region up"',
    ]
    typer.echo(json.dumps(facts) if as_json else "\n".join(lines))


@region.command()
def check(at: _Region = _HERE, as_json: _Json = False) -> None:
    """Validate data, base, device, disk, memory, connection, clock; estimate time and disk."""
    from rich.console import Console

    from client.check import check_region, exit_code, render, to_json

    rows = check_region(_folder(at))
    if as_json:
        typer.echo(to_json(rows))
    else:
        Console().print(render(rows))
    raise typer.Exit(exit_code(rows))


@region.command()
def up(
    at: _Region = _HERE,
    node_user: Annotated[str | None, typer.Option(help="Runs the SuperNode; as root.")] = None,
    app_user: Annotated[
        str | None, typer.Option(help="Runs what headquarters sends; as root.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Run worker, SuperNode and forwarder until interrupted."""
    from client.processes import region_processes
    from shared.schema import load_region_config
    from shared.supervise import Supervisor

    folder = _folder(at).resolve()
    config = load_region_config(folder)
    processes = region_processes(folder, config, node_user=node_user, app_user=app_user)
    echo = line_printer(as_json)
    if node_user is None:
        echo("all processes run as one user: headquarters' code could read this region")
    supervisor = Supervisor(processes, on_event=echo)
    supervisor.start()
    echo(f"region {config.region} is up; Ctrl-C stops it")
    supervisor.run()


@region.command()
def worker(
    at: _Region = _HERE,
    group: Annotated[
        str | None, typer.Option(help="Group whose members may reach the socket.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Run the worker alone: it owns data, encoders, training and the index."""
    from client.resident import run_worker

    run_worker(_folder(at), group=group, on_line=line_printer(as_json))


@region.command()
def releases(at: _Region = _HERE, as_json: _Json = False) -> None:
    """Releases on disk, what this region said of them, and which is in use."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from client.publication import list_releases

    rows = list_releases(_folder(at))
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows]))
        return
    table = Table("release", "on disk", "index", "said", "why", "")
    for row in rows:
        marks = [mark for mark, set_ in (("in use", row.in_use), ("pinned", row.pinned)) if set_]
        have = [_yes(row.on_disk), _yes(row.indexed), row.verdict, escape(row.reason)]
        table.add_row(str(row.number), *have, ", ".join(marks))
    Console().print(table)


@region.command()
def accept(number: _Number, at: _Region = _HERE, as_json: _Json = False) -> None:
    """Take a waiting or declined release into use."""
    from client.publication import accept as accept_release

    line_printer(as_json)(accept_release(_folder(at), number))


@region.command()
def pin(number: _Number, at: _Region = _HERE, as_json: _Json = False) -> None:
    """Stay with a release whatever headquarters publishes."""
    from client.publication import pin as pin_release

    line_printer(as_json)(pin_release(_folder(at), number))


@region.command()
def unpin(at: _Region = _HERE, as_json: _Json = False) -> None:
    """Follow headquarters again."""
    from client.publication import unpin as unpin_release

    line_printer(as_json)(unpin_release(_folder(at)))


def _folder(at: Path) -> Path:
    return at.parent if at.name == "region.toml" else at


def _yes(value: bool) -> str:
    return "yes" if value else ""


def _open(folder: Path) -> "tuple[Region, Searcher]":
    from client.indexing import load_region_encoder
    from client.region import open_region
    from shared.retrieval.manifest import read_pointer
    from shared.retrieval.search import Searcher

    region = open_region(folder)
    while True:
        pointer = read_pointer(region.state)
        try:
            encoder = load_region_encoder(folder, region.config, release=pointer.release)
            return region, Searcher.open(region.state, encoder, region.catalog)
        except FedshelfError:
            if read_pointer(region.state) == pointer:
                raise  # else another release came into use meanwhile, and that one answers


def _stamp(region: "Region", searcher: "Searcher") -> dict[str, Any]:
    manifest = searcher.manifest
    return {
        "region": region.config.region,
        "release": manifest.release,
        "encoder_digest": manifest.encoder_digest,
        "catalog_changed": manifest.catalog_digest != region.catalog_digest,
    }


def _print_json(region: "Region", searcher: "Searcher", hits: "list[Hit]") -> None:
    typer.echo(
        json.dumps(
            {**_stamp(region, searcher), "hits": [asdict(hit) for hit in hits]}, ensure_ascii=False
        )
    )


def _print_table(region: "Region", searcher: "Searcher", hits: "list[Hit]") -> None:
    from rich.console import Console

    console, stamp = Console(), _stamp(region, searcher)
    console.print(_table(hits))
    console.print(
        f"region {stamp['region']}, release {stamp['release']},"
        f" encoder {stamp['encoder_digest'][:12]}",
        highlight=False,
    )
    if stamp["catalog_changed"]:
        console.print("The catalog has changed since this index was built; build it again.")


def _table(hits: "list[Hit]") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "product", "title", "brand")
    table.add_column("price", justify="right")
    table.add_column("score", justify="right")
    for hit in hits:
        cells = (str(hit.rank), hit.product_id, hit.title, hit.brand or "", _price(hit))
        table.add_row(*(escape(cell) for cell in cells), f"{hit.score:.3f}")
    return table


def _price(hit: "Hit") -> str:
    return "" if hit.price is None else f"{hit.price:,.2f} {hit.currency or ''}".rstrip()
