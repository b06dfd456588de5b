"""Commands a region's people type. `fedshelf.py` puts them beside the others.

Only typer is imported up here: torch, FAISS and polars take seconds, and `--help` needs none.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from shared.cli import line_printer
from shared.errors import ConfigError, FedshelfError, RetrievalError

if TYPE_CHECKING:
    from rich.table import Table

    from client.region import Region
    from client.service.report import ServiceReport
    from client.text_queries import QueryEncoder
    from shared.retrieval.shelf import Found, Shelf

app = typer.Typer(help="A region: search its catalog.")
region = typer.Typer(help="Run a region of a federation.", no_args_is_help=True)
app.add_typer(region, name="region")
rules = typer.Typer(help="Synonyms, pinned and blocked products.", no_args_is_help=True)
region.add_typer(rules, name="rules")

_Region = Annotated[
    Path, typer.Argument(metavar="[REGION]", help="The region's folder, or its region.toml.")
]
_Number = Annotated[int, typer.Argument(min=1, help="Number of the release.")]
_Json = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
_HERE = Path()
Ranker = Literal["hybrid", "dense", "lexical"]


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
    ranker: Annotated[
        Ranker, typer.Option(help="One ranker alone, or the region's own mix of both.")
    ] = "hybrid",
    as_json: _Json = False,
) -> None:
    """Search a region's catalog through its current index, as its service would."""
    text = " ".join(query.split()) if query else ""
    if not text and image is None:
        raise typer.BadParameter("give words, --image PATH, or both", param_hint="QUERY")
    if image is not None and not image.is_file():
        raise RetrievalError(f"{image}: not found; --image needs a photo")
    opened, shelf, encoder = _open(folder)
    found = _find(shelf, encoder, text, image, ranker)
    (_print_json if as_json else _print_table)(opened, shelf, found, k)


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
    from client.visit import clock_trouble
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
    if config.headquarters and (trouble := clock_trouble(folder, config.headquarters)):
        echo(trouble)
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
def serve(at: _Region = _HERE, as_json: _Json = False) -> None:
    """Answer searches: the worker without the SuperNode; page, HTTP and gRPC."""
    from client.resident import run_worker

    run_worker(_folder(at), federates=False, serves=True, on_line=line_printer(as_json))


@region.command()
def report(at: _Region = _HERE, as_json: _Json = False) -> None:
    """How the service is used, and which of two ways to answer shoppers prefer."""
    from client.service.report import report as read_report
    from client.service.store import EVENTS_FILE
    from shared.schema import load_region_config

    folder = _folder(at)
    config = load_region_config(folder)
    found = read_report(folder / config.state / EVENTS_FILE)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        _print_report(found)


@region.command()
def forget(
    user_key: Annotated[str, typer.Argument(help="The shopper's key, as it was sent.")],
    at: Annotated[Path, typer.Option("--region", help="The region's folder.")] = _HERE,
    as_json: _Json = False,
) -> None:
    """Erase a shopper from the event store and what is derived from it."""
    from client.erasure import forget_shopper

    counts = forget_shopper(_folder(at), user_key)
    if as_json:
        typer.echo(json.dumps(asdict(counts)))
    else:
        typer.echo(f"erased {counts.impressions} impressions and {counts.events} events")


@rules.command("check")
def check_rules(at: _Region = _HERE, as_json: _Json = False) -> None:
    """Read the search team's rules and hold them against the catalog."""
    from client.region import open_region
    from shared.retrieval.rules import check_rules_file

    opened = open_region(_folder(at))
    serve = opened.config.serve
    if serve is None or serve.rules is None:
        raise ConfigError(
            f"{opened.folder / 'region.toml'}: serve.rules: not set; name a file of rules"
        )
    path = opened.folder / serve.rules
    errors, warnings = check_rules_file(path, opened.catalog["product_id"].to_list())
    if as_json:
        typer.echo(json.dumps({"errors": errors, "warnings": warnings}))
    else:
        lines = [f"error: {line}" for line in errors] + [f"warning: {line}" for line in warnings]
        typer.echo("\n".join(lines or [f"{path.name}: in order"]))
    raise typer.Exit(1 if errors else 0)


@region.command()
def releases(at: _Region = _HERE, as_json: _Json = False) -> None:
    """Releases on disk, what this region said of them, and which is in use."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from client.releases import list_releases

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
def drift(
    at: _Region = _HERE,
    before: Annotated[
        int | None, typer.Option(help="A release; by default the one in use before.")
    ] = None,
    after: Annotated[int | None, typer.Option(help="A release; by default the one in use.")] = None,
    as_json: _Json = False,
) -> None:
    """How many of a product's nearest products change from one release to another."""
    from client.drift import release_drift

    first, second, found = release_drift(_folder(at), before=before, after=after)
    if as_json:
        typer.echo(json.dumps({"before": first, "after": second, **asdict(found)}))
        return
    typer.echo(
        f"release {first} to {second}: {found.k * found.overlap:.1f} of a product's {found.k}"
        f" nearest products stay; {found.unchanged:.0%} of {found.num_products} products asked"
        f" keep all {found.k}"
    )


@region.command()
def accept(number: _Number, at: _Region = _HERE, as_json: _Json = False) -> None:
    """Take a waiting or declined release into use."""
    from client.releases import accept as accept_release

    line_printer(as_json)(accept_release(_folder(at), number))


@region.command()
def pin(number: _Number, at: _Region = _HERE, as_json: _Json = False) -> None:
    """Stay with a release whatever headquarters publishes."""
    from client.releases import pin as pin_release

    line_printer(as_json)(pin_release(_folder(at), number))


@region.command()
def unpin(at: _Region = _HERE, as_json: _Json = False) -> None:
    """Follow headquarters again."""
    from client.releases import unpin as unpin_release

    line_printer(as_json)(unpin_release(_folder(at)))


def _print_report(found: "ServiceReport") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("ranker", "release", "answers", "with a click", "first click at")
    for row in found.usage:
        share = f"{row.clicked / row.answers:.1%}"
        first = "" if row.first_position is None else f"{row.first_position:.1f}"
        ranker = row.ranker.replace(":", ": ")  # a narrow terminal may break the line there
        table.add_row(ranker, str(row.release), str(row.answers), share, first)
    console = Console()
    console.print(table)
    if found.num_bots:
        console.print(f"{found.num_bots} shoppers behave like bots and are left out")
    for one in found.experiments:
        said = one.verdict
        console.print(
            f"{one.a} against {one.b}, release {one.release}: {said.wins_a} to {said.wins_b},"
            f" {said.ties} ties in {one.answers} answers; share {said.share_a:.3f}"
            f" ({said.low:.3f} to {said.high:.3f}), p = {said.p_value:.3g}",
            highlight=False,
        )


def _folder(at: Path) -> Path:
    return at.parent if at.name == "region.toml" else at


def _yes(value: bool) -> str:
    return "yes" if value else ""


def _open(folder: Path) -> "tuple[Region, Shelf, QueryEncoder]":
    from client.region import open_region
    from client.shelves import open_shelf, scratch_folder
    from client.text_queries import load_query_encoder
    from shared.retrieval.manifest import open_current_index, read_pointer

    region = open_region(folder)
    while True:
        pointer = read_pointer(region.state)
        try:
            encoder = load_query_encoder(
                folder,
                region.config,
                release=pointer.release,
                encoder_digest=pointer.encoder_digest,
            )
            index = open_current_index(region.state, expected_digest=encoder.digest)
            shelf = open_shelf(
                region, index, encoder.encode_products, scratch=scratch_folder(region.state)
            )
            return region, shelf, encoder
        except FedshelfError:
            if read_pointer(region.state) == pointer:
                raise  # else another release came into use meanwhile, and that one answers


def _find(
    shelf: "Shelf", encoder: "QueryEncoder", text: str, image: Path | None, ranker: Ranker
) -> "Found":
    """Words by the mix, or by one ranker; a photo, with or without words, by the encoder."""
    from shared.retrieval.shelf import Ask

    if image is None and ranker == "lexical":
        return shelf.find(Ask(text=text, ranker=ranker))
    vector = encoder.encode_queries([text or None], [image])[0]
    if image is not None:
        return shelf.find(Ask(vector=vector, ranker="dense"))
    return shelf.find(Ask(text=text, vector=vector, ranker=ranker))


def _stamp(region: "Region", shelf: "Shelf") -> dict[str, Any]:
    return {
        "region": region.config.region,
        "release": shelf.release,
        "encoder_digest": shelf.encoder_digest,
        "changes": shelf.num_changes,
    }


def _hits(shelf: "Shelf", found: "Found", k: int) -> list[dict[str, Any]]:
    names = ("product_id", "title", "brand", "price", "currency", "image")
    products = shelf.products.cells(found.rows[:k], names)
    ranked = zip(products, found.scores.tolist(), strict=False)
    return [
        {"rank": rank, "score": score, **product}
        for rank, (product, score) in enumerate(ranked, start=1)
    ]


def _print_json(region: "Region", shelf: "Shelf", found: "Found", k: int) -> None:
    answer = {**_stamp(region, shelf), "hits": _hits(shelf, found, k)}
    typer.echo(json.dumps(answer, ensure_ascii=False))


def _print_table(region: "Region", shelf: "Shelf", found: "Found", k: int) -> None:
    from rich.console import Console

    console, stamp = Console(), _stamp(region, shelf)
    console.print(_table(_hits(shelf, found, k)))
    console.print(
        f"region {stamp['region']}, release {stamp['release']},"
        f" encoder {stamp['encoder_digest'][:12]}",
        highlight=False,
    )
    if found.fallback:
        console.print("Nothing was found; these are popular.")
    if shelf.num_changes:
        console.print(f"{shelf.num_changes} products have changed since this index was built.")


def _table(hits: list[dict[str, Any]]) -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "product", "title", "brand")
    table.add_column("price", justify="right")
    table.add_column("score", justify="right")
    for hit in hits:
        cells = (str(hit["rank"]), hit["product_id"], hit["title"], hit["brand"] or "", _price(hit))
        table.add_row(*(escape(cell) for cell in cells), f"{hit['score']:.3f}")
    return table


def _price(hit: dict[str, Any]) -> str:
    price, currency = hit["price"], hit["currency"]
    return "" if price is None else f"{price:,.2f} {currency or ''}".rstrip()
