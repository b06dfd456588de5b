"""How long a command takes before it does anything, in processes of their own."""

import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks.memory import peak_of_command
from benchmarks.report import Report
from benchmarks.timing import Spread, Way, in_turns
from shared.errors import ConfigError

SECTION: Final = "start-up"
HELP_TARGET_S: Final = 0.3
_FEDSHELF: Final = ("-m", "fedshelf")
_IMPORTS: Final = ("-c", "import torch, transformers")


def measure_startup(report: Report, region: Path, *, rounds: int) -> None:
    """Time `fedshelf --help` and a search against what Python and the libraries alone take.

    Args:
        report: figures go there.
        region: folder of a region with an index.
        rounds: of each command, in turns.

    Raises:
        ConfigError: a command fails, such as a search without an index.
    """
    commands = {
        "fedshelf --help": (*_FEDSHELF, "--help"),
        "python -c pass": ("-c", "pass"),
        "fedshelf search": (*_FEDSHELF, "search", "--region", str(region), "red boots"),
        "import torch, transformers": _IMPORTS,
    }
    ways = {name: _command(*command) for name, command in commands.items()}
    taken = {
        name: seconds[:, 0] for name, seconds in in_turns(ways, calls=1, rounds=rounds).items()
    }
    for name, seconds in taken.items():
        target = HELP_TARGET_S if name.endswith("--help") else None
        report.add(SECTION, name, Spread.of(seconds), "s", target=target)
    for name, command in commands.items():
        peak = peak_of_command([sys.executable, *command])
        report.add(SECTION, f"{name}, peak memory", peak, "bytes")


def _command(*arguments: str) -> Way:
    command = [sys.executable, *arguments]

    def run(number: int) -> None:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            told = (done.stderr.strip().splitlines() or ["no word of it"])[-1]
            raise ConfigError(f"{' '.join(arguments)}: failed ({told}); mend that and try again")

    return run
