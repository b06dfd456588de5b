"""The commands `fedshelf simulate` and `compare`. Heavy imports happen only when they run."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.config import COSINE, DISTANCES, FUSIONS, WEIGHTED_SUM

if TYPE_CHECKING:
    from rich.table import Table

    from simulations.progress import RunProgress

_METHODS = (
    *("random", "bm25", "zero_shot", "hybrid_zero_shot", "local_only"),
    *("federated", "personalized", "hybrid", "rrf", "centralized"),
)
_UNION_METRICS = ("ndcg@10", "ndcg@10_judged", "judged@10")
_DATA_SETS = ("fashion", "icecat")  # those that lie in a folder
_EXAMPLES = {  # a region and a query worth trying
    "synthetic": ("north", "red leather ankle boots"),
    "fashion": ("north", "black casual shoes for men"),
    "icecat": ("north", "wireless mouse"),
}

app = typer.Typer(help="Whole federations on one machine.")


@app.command()
def simulate(
    data: Annotated[str, typer.Option(help="synthetic, fashion:DIR or icecat:DIR.")] = "synthetic",
    regions: Annotated[int, typer.Option(min=1, max=100, help="How many regions.")] = 4,
    partition: Annotated[
        str | None,
        typer.Option(help="A catalog column or dirichlet:ALPHA; the data's own if not given."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of federated averaging.")] = 8,
    preset: Annotated[str, typer.Option(help="Base: starter, tiny or siglip2-base.")] = "starter",
    engine: Annotated[
        str, typer.Option(help="local (our own) or flower (Flower's simulation engine).")
    ] = "local",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of every choice.")] = 7,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads in all; all cores if not given.")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that share them; as many as pay if not given."),
    ] = None,
    knob: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other key of the run config."),
    ] = None,
    personalize: Annotated[
        bool, typer.Option("--personalize", help="Regions adapt the release to their own clicks.")
    ] = False,
    fusion: Annotated[
        str, typer.Option(help=f"How text and photo become one vector: {', '.join(FUSIONS)}.")
    ] = WEIGHTED_SUM,
    distance: Annotated[
        str, typer.Option(help=f"How vectors are compared: {', '.join(DISTANCES)}.")
    ] = COSINE,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; runs/DATA-SEED if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print result.json.")] = False,
) -> None:
    """Federate simulated store regions, from click logs to search results and a report."""
    from shared.config import parse_knobs

    _check_choices(
        {
            "--preset": (preset, ("starter", "tiny", "siglip2-base")),
            "--engine": (engine, ("local", "flower")),
            "--device": (device, ("auto", "cpu", "cuda")),
            "--fusion": (fusion, FUSIONS),
            "--distance": (distance, DISTANCES),
        }
    )
    run = out or Path("runs", f"{data.partition(':')[0]}-{seed}")
    if threads is None:
        threads = len(os.sched_getaffinity(0))
    fields = {"data": data, "regions": regions, "partition": partition, "rounds": rounds}
    fields |= {"preset": preset, "engine": engine, "device": device, "seed": seed}
    fields |= {"threads": threads, "knobs": parse_knobs(knob or []), "personalize": personalize}
    fields |= {"fusion": fusion, "distance": distance, "processes": processes}
    result = _run(run, fields)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        _print_result(result, run)


def _check_choices(choices: Mapping[str, tuple[str, Sequence[str]]]) -> None:
    """Refuse a wrong word as a usage error, before seconds of imports.

    Args:
        choices: by option, what was given and what may be.
    """
    for option, (value, allowed) in choices.items():
        if value not in allowed:
            message = f'"{value}" is unknown; choose one of {", ".join(allowed)}'
            raise typer.BadParameter(message, param_hint=option)


def _run(run: Path, fields: dict[str, Any]) -> dict[str, Any]:
    from simulations.run import Options, simulate

    with _progress_until_interrupted(run) as progress:
        return simulate(Options(**fields), run, progress)


@contextmanager
def _progress_until_interrupted(kept: Path) -> "Iterator[RunProgress]":
    """Progress on standard error; Ctrl-C ends the command with one line and exit code 130."""
    from rich.console import Console

    from simulations.progress import RunProgress

    progress = RunProgress(Console(stderr=True))
    try:
        with progress.running():
            yield progress
    except KeyboardInterrupt:
        typer.echo(
            f"interrupted; what is complete is kept in {kept}. "
            "Give the same command again to go on.",
            err=True,
        )
        raise typer.Exit(130) from None


@app.command()
def compare(
    config: Annotated[Path, typer.Option(help="The experiment, a TOML file.")],
    data_dir: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE=DIR", help="Where fashion or icecat lies; else $FEDSHELF_*."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of experiments; they share worlds and trainings in it.")
    ] = Path("runs", "experiments"),
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that train at once; one a core if not given."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print result.json.")] = False,
) -> None:
    """Compare methods over data sets and seeds, from one file to one table and one page."""
    from simulations.comparison.spec import read_experiment

    experiment, folders = read_experiment(config), _data_folders(data_dir or [])
    from simulations.comparison.experiment import compare as run_experiment

    with _progress_until_interrupted(out) as progress:
        result = run_experiment(experiment, out, folders, progress, processes=processes)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        _print_experiment(result, out / experiment.experiment.name)


def _data_folders(given: list[str]) -> dict[str, Path]:
    """Where each data set lies: what the environment says, and over it the options."""
    folders = {
        source: Path(os.environ[f"FEDSHELF_{source.upper()}"])
        for source in _DATA_SETS
        if os.environ.get(f"FEDSHELF_{source.upper()}")
    }
    for pair in given:
        source, equals, folder = pair.partition("=")
        if source not in _DATA_SETS or not equals or not folder:
            message = f'"{pair}": expected {" or ".join(f"{name}=DIR" for name in _DATA_SETS)}'
            raise typer.BadParameter(message, param_hint="--data-dir")
        folders[source] = Path(folder).expanduser()
    return folders


def _print_experiment(result: dict[str, Any], folder: Path) -> None:
    from rich.console import Console

    from simulations.comparison.terminal import lines_of, tables_of

    console = Console()
    for table in tables_of(result):
        console.print(table)
    for line in (*lines_of(result), f"report: {folder / 'report.html'}"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _print_result(result: dict[str, Any], run: Path) -> None:
    from rich.console import Console

    console = Console()
    console.print(_table(result))
    if result["union"]:
        console.print(_union_table(result["union"]))
    release = result["release"]
    console.print(
        f"release {release['number']}, encoder {release['encoder_digest'][:12]}; "
        f"clicks come from a click model\nreport: {run / 'report.html'}",
        highlight=False,
        soft_wrap=True,
    )
    region, query = _EXAMPLES[result["data"].partition(":")[0]]
    names = [row["name"] for row in result["regions"]]
    folder = run / "regions" / (region if region in names else names[0])
    console.print(
        f'try: fedshelf search --region {folder} "{query}"',
        highlight=False,
        soft_wrap=True,
    )


def _table(result: dict[str, Any]) -> "Table":
    from rich.table import Table

    table = Table("nDCG@10 on test queries", title=f"{result['data']}, seed {result['seed']}")
    for region in result["regions"]:
        table.add_column(region["name"], justify="right")
    table.add_column("mean", justify="right", style="bold")
    table.add_column("worst", justify="right")
    for method in _in_order(result["mean"]):
        mean = result["mean"][method]
        cells = [region["rows"][method].get("ndcg@10") for region in result["regions"]]
        cells += [mean["ndcg@10"], result["worst"][method]["ndcg@10"]]
        table.add_row(method, *("-" if cell is None else f"{cell:.3f}" for cell in cells))
    return table


def _union_table(union: dict[str, dict[str, float]]) -> "Table":
    from rich.table import Table

    table = Table("human judgments, union of catalogs", "nDCG@10", "judged only", "judged@10")
    for method in _in_order(union):
        row = union[method]
        table.add_row(method, *(f"{row[name]:.3f}" for name in _UNION_METRICS))
    return table


def _in_order(rows: dict[str, dict[str, float]]) -> list[str]:
    """Methods from the weakest to the strongest idea; JSON read back has them by name."""
    return [method for method in _METHODS if method in rows]
