"""One process of a simulation: answers what `simulations.processes` asks it.

    python -m simulations.node THREADS

Frames come on standard input and go to standard output; whatever else would be printed there goes
to standard error. It ends when its input does, in the middle of a task too: whoever asked is gone,
however that came about. What a task leaves in files is whole at any moment.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from queue import SimpleQueue
from typing import IO, Any

import torch

from shared.errors import FedshelfError
from shared.freed_memory import FREED
from simulations.processes import read_frame, write_frame
from simulations.progress import Report
from simulations.tasks import TASKS, State

_BAR_EVERY_S = 0.1

Frame = tuple[dict[str, Any], bytes]


def main() -> None:
    """Answer until there is nothing more to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this says when it ends
    asked, answers = _own_streams()
    torch.set_num_threads(int(sys.argv[1]))
    frames: SimpleQueue[Frame] = SimpleQueue()
    threading.Thread(target=_read_all, args=(asked, frames), daemon=True).start()
    with suppress(BrokenPipeError):  # whoever asked is gone
        _answer_all(frames, Told(answers))


def _read_all(asked: IO[bytes], frames: "SimpleQueue[Frame]") -> None:
    """Hand on what is asked, and end the process when there is no more."""
    with suppress(EOFError):
        while (frame := read_frame(asked)) is not None:
            frames.put(frame)
    os._exit(0)  # the main thread may be busy for minutes


def _answer_all(frames: "SimpleQueue[Frame]", told: "Told") -> None:
    logger = logging.getLogger("fedshelf")
    logger.setLevel(logging.INFO)
    logger.addHandler(_Logged(told))
    logging.getLogger("flwr").setLevel(logging.ERROR)
    state = State(told)
    while True:
        header, body = frames.get()
        try:
            reply, content = TASKS[header["task"]](state, header, body)
        except FedshelfError as error:
            reply, content = {"error": type(error).__name__, "text": str(error)}, b""
        told.tell(reply, content)
        FREED.give_back()


class Told:
    """Answers, and bars and lines as `RunProgress` has them, for whoever started this process."""

    def __init__(self, answers: IO[bytes]) -> None:
        self._answers, self._lock = answers, threading.Lock()

    def tell(self, header: Mapping[str, Any], body: bytes = b"") -> None:
        """Send one frame, whichever thread it comes from."""
        with self._lock:
            write_frame(self._answers, header, body)

    def bar(self, title: str) -> Report:
        """A callback that shows `title` with a bar, not more often than anybody can see."""
        last = 0.0

        def report(done: int, total: int) -> None:
            nonlocal last
            if done == total or time.monotonic() - last >= _BAR_EVERY_S:
                last = time.monotonic()
                self.tell({"bar": title, "done": done, "total": total})

        return report

    def line(self, text: str) -> None:
        """Print one line."""
        self.tell({"line": text})

    def log(self, record: logging.LogRecord) -> None:
        """Log one record there, with its traceback if it has one."""
        text = logging.Formatter().format(record)
        self.tell({"log": record.name, "level": record.levelno, "text": text})


class _Logged(logging.Handler):
    def __init__(self, told: Told) -> None:
        super().__init__()
        self._told = told

    def emit(self, record: logging.LogRecord) -> None:
        self._told.log(record)


def _own_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Input and output of this process, which nothing else in it reads or writes from now on."""
    asked, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return asked, answers


if __name__ == "__main__":
    main()
