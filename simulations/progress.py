"""Progress of a long run on the terminal: one bar for what is going on, one line for what is done.

Goes to standard error, so that `--json` leaves standard output to the result.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich import progress as rich
from rich.console import Console

Report = Callable[[int, int], None]  # done, total


class Progress(Protocol):
    """Who is told what is going on."""

    def bar(self, title: str) -> Report:
        """A callback that shows `title` with a bar."""

    def line(self, text: str) -> None:
        """Print one line."""


class RunProgress:
    """Bars, lines and stage times of one run.

    Args:
        console: where it goes.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}
        columns = (rich.TextColumn("{task.description}"), rich.BarColumn())
        self._bars = rich.Progress(
            *columns,
            rich.MofNCompleteColumn(),
            rich.TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks, self._titles = dict[int, rich.TaskID](), dict[int, str]()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Show bars within the context, and the lines that headquarters and regions log."""
        handler = _Lines(self.console)
        logger = logging.getLogger("fedshelf")
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        try:
            with self._bars:
                yield
        finally:
            logger.removeHandler(handler)

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """Time a stage and say that it began."""
        self.console.print(f"[bold]{title}[/bold]")
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self.seconds[name] = round(self.seconds.get(name, 0.0) + elapsed, 2)
            for task in self._tasks.values():
                self._bars.update(task, visible=False)

    def line(self, text: str) -> None:
        """Print one line above the bars."""
        self.console.print(f"  {text}", markup=False, highlight=False, soft_wrap=True)

    def bar(self, title: str, place: int = 0) -> Report:
        """A callback that shows `title` with a bar; each place has one bar at a time."""
        if place not in self._tasks:
            self._tasks[place] = self._bars.add_task("", total=None, visible=False)
        task = self._tasks[place]

        def report(done: int, total: int) -> None:
            if self._titles.get(place) != title:
                self._titles[place] = title
                self._bars.reset(task, description=f"  {title}")  # its clock is of what it shows
            self._bars.update(task, completed=done, total=total, visible=True)

        return report


class _Lines(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        text = f"  {record.getMessage()}"
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
