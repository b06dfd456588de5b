"""Commands a region's people type. `fedshelf.py` puts them beside the others.

Only typer is imported up here: torch, FAISS and polars take seconds, and `--help` needs none.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.errors import RetrievalError

if TYPE_CHECKING:
    from rich.table import Table

    from client.region import Region
    from shared.retrieval.search import Hit, Searcher

app = typer.Typer(help="A region: search its catalog.")


@app.command()
def search(
    region: Annotated[Path, typer.Option(help="The region's folder, with region.toml.")],
    query: Annotated[str | None, typer.Argument(help="What a shopper would type.")] = None,
    image: Annotated[
        Path | None, typer.Option(help="A photo, instead of words or with them.")
    ] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="How many products.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Search a region's catalog through its current index."""
    text = query if query and query.strip() else None
    if text is None and image is None:
        raise typer.BadParameter("give words, --image PATH, or both", param_hint="QUERY")
    if image is not None and not image.is_file():
        raise RetrievalError(f"{image}: not found; --image needs a photo")
    opened, searcher = _open(region)
    hits = searcher.search(text, image, k)
    (_print_json if as_json else _print_table)(opened, searcher, hits)


def _open(folder: Path) -> "tuple[Region, Searcher]":
    from client.indexing import load_region_encoder
    from client.region import open_region
    from shared.retrieval.manifest import read_pointer
    from shared.retrieval.search import Searcher

    region = open_region(folder)
    release = read_pointer(region.state).release
    encoder = load_region_encoder(folder, region.config, release=release)
    return region, Searcher.open(region.state, encoder, region.catalog)


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
