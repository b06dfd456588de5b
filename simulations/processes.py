"""Processes that share a simulation's regions, so that several cores train at once.

Small matrices keep one core busy and leave the others waiting, so two processes with a thread each
train faster than one with two threads. Each is `python -m simulations.node`: it answers messages
for the regions that are its own and does whole tasks (`simulations.tasks`). A frame on its standard
input is what is asked, frames on its standard output are what it tells meanwhile, and the answer: a
JSON header and bytes, each behind its length.

How work is shared out changes no result: every region is trained by the same code, in the same
order, on as many threads.
"""

import json
import logging
import os
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

import torch

from shared import errors
from shared.errors import FederationError, FedshelfError
from simulations.progress import RunProgress
from simulations.tasks import TASKS, State

GIB = 2**30
_LENGTHS = struct.Struct(">IQ")
_STOP_S = 10.0  # a process that is told to end has so long
_PROCESS_BYTES = 2.5 * GIB  # of one process beside its weights, as those of the demo take
_COPIES = 4  # of a base's weights: as read, in float32, and gradients and moments at worst

Header = Mapping[str, Any]


def processes_for(base: Path, *, device: str, threads: int, regions: int) -> int:
    """How many processes a federation is worth on this machine.

    Args:
        base: folder of the base, whose weights each process holds.
        device: "auto", "cpu" or "cuda"; on a GPU one process is enough.
        threads: in all, so also the most processes.
        regions: how many there are to share.

    Returns:
        1 or more, and no more than half of the machine's memory has room for.
    """
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        return 1
    weights = sum(path.stat().st_size for path in base.rglob("*.safetensors"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    room = int(memory / 2 / (_PROCESS_BYTES + _COPIES * weights))
    return max(1, min(threads, regions, room))


class Processes:
    """Some processes, started when they are first needed; a context that ends them.

    One is this process itself, where tasks are done one after another.

    Args:
        number: how many.
        threads: of torch, in each.
        progress: told what goes on in each, and what regions log there.
    """

    def __init__(self, number: int, *, threads: int, progress: RunProgress) -> None:
        self.number, self.threads = number, threads
        self._here, self._progress = State(progress), progress
        self._nodes: list[_Node] = []
        self._running = ExitStack()

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        """End them all, whatever they are at: what they write is whole or not there."""
        for node in self._nodes:
            node.stop()
        self._running.close()
        self._nodes = []

    def submit(self, place: int, header: Header, body: bytes = b"") -> Future[tuple[Header, bytes]]:
        """Ask one process; its answers come in the order they were asked for.

        Raises:
            FederationError: from the future: the process ended by itself.
            FedshelfError: from the future: what the task raised there.
        """
        self._start()
        return self._nodes[place].submit(header, body)

    def tell_all(self, header: Header) -> None:
        """Ask every process the same and wait for all."""
        if self.number == 1:
            return self.run([header])
        for future in [self.submit(place, header) for place in range(self.number)]:
            future.result()

    def run(self, tasks: Iterable[Header]) -> None:
        """Do tasks, each by whichever process is free; what takes longest should come first.

        Raises:
            FedshelfError: what the first that failed raised; those that run are waited for.
        """
        if self.number == 1:
            for task in tasks:
                TASKS[task["task"]](self._here, task, b"")
            return
        waiting = deque(tasks)
        if waiting:
            self._start()
        for future in [node.drain(waiting) for node in self._nodes]:
            future.result()

    def peak_bytes(self) -> int:
        """The most that each process but this one has held, added up."""
        return sum(node.peak_bytes() for node in self._nodes)

    def _start(self) -> None:
        while len(self._nodes) < self.number:
            node = _Node(len(self._nodes), self.threads, self._progress)
            self._nodes.append(self._running.enter_context(node))


class _Node:
    """One process, and the thread that asks it."""

    def __init__(self, place: int, threads: int, progress: RunProgress) -> None:
        self._place, self._progress, self._stopped = place, progress, False
        command = [sys.executable, "-m", "simulations.node", str(threads)]
        limits = dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS"), str(threads))
        environment = {**os.environ, **limits}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._asking = ThreadPoolExecutor(1, thread_name_prefix=f"node-{place}")

    def __enter__(self) -> "_Node":
        return self

    def __exit__(self, *_: object) -> None:
        self._asking.shutdown(cancel_futures=True)
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):  # flushes what the process did not live to read
                stream.close()  # type: ignore[union-attr]

    def stop(self) -> None:
        self._stopped = True
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def peak_bytes(self) -> int:
        status = Path(f"/proc/{self._process.pid}/status").read_text("utf-8")
        (kilobytes,) = (line.split()[1] for line in status.splitlines() if "VmHWM" in line)
        return int(kilobytes) * 1024

    def submit(self, header: Header, body: bytes) -> Future[tuple[Header, bytes]]:
        return self._asking.submit(self._ask, header, body)

    def drain(self, waiting: deque[Header]) -> Future[None]:
        return self._asking.submit(self._drain, waiting)

    def _drain(self, waiting: deque[Header]) -> None:
        while waiting:
            try:
                task = waiting.popleft()
            except IndexError:  # another process took the last one
                return
            try:
                self._ask(task, b"")
            except FedshelfError:
                waiting.clear()  # nobody begins another
                raise

    def _ask(self, header: Header, body: bytes) -> tuple[Header, bytes]:
        try:
            write_frame(self._process.stdin, header, body)  # type: ignore[arg-type]
            while (frame := read_frame(self._process.stdout)) is not None:  # type: ignore[arg-type]
                told, content = frame
                if "error" in told:
                    raise getattr(errors, told["error"], FederationError)(told["text"])
                if not self._told(told):
                    return told, content
        except (BrokenPipeError, EOFError):
            pass
        raise FederationError(self._gone())

    def _told(self, told: Header) -> bool:
        """Pass on what the process says on its way to an answer; whether this was such."""
        if "bar" in told:
            self._progress.bar(told["bar"], self._place)(told["done"], told["total"])
        elif "line" in told:
            self._progress.line(told["line"])
        elif "log" in told:
            logging.getLogger(told["log"]).log(told["level"], "%s", told["text"])
        else:
            return False
        return True

    def _gone(self) -> str:
        code = self._process.wait()
        if self._stopped:
            return "interrupted"
        if code < 0:
            how = f"was killed by signal {-code}; if memory ran out, give a smaller --processes"
        else:
            how = f"ended with status {code}; the lines above say why"
        return f"a process of the simulation {how}; the same command goes on where this one stopped"


def write_frame(stream: IO[bytes], header: Header, body: bytes = b"") -> None:
    """Write a JSON header and bytes, each behind its length."""
    head = json.dumps(header).encode()
    stream.write(_LENGTHS.pack(len(head), len(body)) + head)
    stream.write(body)
    stream.flush()


def read_frame(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """Read what `write_frame` wrote; None at the end.

    Raises:
        EOFError: the stream ends within a frame.
    """
    start = stream.read(_LENGTHS.size)
    if not start:
        return None
    if len(start) < _LENGTHS.size:
        raise EOFError
    head, body = _LENGTHS.unpack(start)
    header, content = stream.read(head), stream.read(body)
    if len(header) < head or len(content) < body:
        raise EOFError
    return json.loads(header), content
