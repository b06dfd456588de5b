"""The front door of the command line: composes the sub-commands that live beside their code.

A person's mistake is one line and exit code 1 (2 for usage); `--debug` shows the traceback.
"""

import sys
from typing import Annotated

import typer

import client.cli
import simulations.cli
from shared.errors import FedshelfError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(simulations.cli.app)
app.add_typer(client.cli.app)


@app.callback()
def front_door(
    debug: Annotated[bool, typer.Option(help="Show tracebacks of errors.")] = False,
) -> None:
    """Federated product search for retailers whose regions cannot pool their data."""
    del debug  # read by main, before any command runs


def main() -> None:
    """Run the command line; a FedshelfError becomes one line on standard error and exit code 1."""
    try:
        app()
    except FedshelfError as error:
        if "--debug" in sys.argv:
            raise
        line = " ".join(str(error).split())
        typer.echo(f"error: {line}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
