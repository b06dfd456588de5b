"""The front door of the command line: composes the sub-commands that live beside their code.

A person's mistake is one line on standard error and exit code 1, or 2 where the command itself was
given wrongly; `--debug` shows the traceback.
"""

import sys
from typing import Annotated

import click
import typer
import typer.core

import client.cli
import server.cli
import shared.cli
import simulations.cli
from shared.errors import FedshelfError

typer.core.HAS_RICH = False  # plain help: to import what draws boxes takes as long as all the rest
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(simulations.cli.app)
app.add_typer(client.cli.app)
app.add_typer(server.cli.app)
app.add_typer(shared.cli.app)


@app.callback()
def front_door(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Federated product search for retailers whose regions cannot pool their data."""
    del debug  # read by main, before any command runs


def main() -> None:
    """Run the command line and exit: 0 well, 1 a named error, 2 usage, 130 interrupted."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        typer.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except click.Abort:
        sys.exit(130)
    except FedshelfError as error:
        if "--debug" in sys.argv:
            raise
        _fail(str(error), 1)
    except OSError as error:  # a full disk, or a folder that may not be written
        if "--debug" in sys.argv:
            raise
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror or type(error).__name__}; mend that and try again", 1)


def _fail(message: str, code: int) -> None:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
