"""The worker as a process of its own: answers messages, and takes releases into use.

One process owns a region's encoders. Messages from headquarters and looks at its releases take
turns on them: a message that comes while an index is built waits until it is done.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from client.isolation import harden_process
from client.publication import Outcome, Publication
from client.region import Region
from client.rpc import Stopping, WorkerServer
from client.worker import Worker, forget_workers, get_worker
from shared.adapter import Adapter
from shared.errors import FedshelfError
from shared.schema import load_region_config
from shared.wire import GATE, Difference

log = logging.getLogger("fedshelf.worker")


def run_worker(folder: Path, *, group: str | None, on_line: Callable[[str], None]) -> None:
    """Be the worker of a region until told to stop; the encoders are resident all the while.

    Hardens the whole process (`client.isolation.harden_process`), so it wants one of its own.

    Args:
        folder: of the region.
        group: name or number of the group that may connect; None for this user alone.
        on_line: told in one line of what changes.

    Raises:
        FedshelfError: region, base or the socket's place is wrong, or another worker runs.
    """
    config = load_region_config(folder)
    harden_process()
    torch.set_num_threads(config.worker.threads or len(os.sched_getaffinity(0)))
    with _stopped_by_signals() as stop:
        while not stop.is_set():
            worker = get_worker(folder)
            worker.on_step = worker.on_cache = _until(stop)
            _serve(worker, stop, group=group, on_line=on_line)
            forget_workers()  # the catalog has changed: everything is opened again


def _serve(
    worker: Worker, stop: threading.Event, *, group: str | None, on_line: Callable[[str], None]
) -> None:
    """Answer and look for releases until told to stop, or until the catalog changes."""
    region, name = worker.region, worker.region.config.region
    before = _stamp(region)
    _ = worker.encoder  # loads it
    publication = Publication(
        region,
        encoder=lambda: worker.encoder,
        products=lambda: worker.products,
        gate=lambda candidate, current: _gate(worker, candidate, current),
    )
    server = WorkerServer(worker, region.folder / region.config.worker.socket, group=group)
    server.start()
    on_line(f"region {name}: the worker answers")
    said = ""
    try:
        while not stop.is_set() and _stamp(region) == before:
            with server.exclusive():
                said = _look(publication, on_line, said)
            stop.wait(region.config.publication.poll_s)
    finally:
        server.stop()


def _look(publication: Publication, on_line: Callable[[str], None], before: str) -> str:
    """One look at headquarters; what goes wrong is said once, and the next look tries again."""
    try:
        outcome = publication.step()
    except Stopping:
        return before
    except FedshelfError as error:
        if str(error) != before:
            log.warning("%s", error)
        return str(error)
    if outcome.swapped:
        on_line(_said(outcome))
    return ""


def _said(outcome: Outcome) -> str:
    reason = f": {outcome.reason}" if outcome.reason else ""
    return f"release {outcome.release} answers searches{reason}"


def _gate(worker: Worker, candidate: Adapter, current: Adapter) -> Difference:
    _, _, differences = worker.compare(candidate, {0: current}, purpose=GATE)
    return differences[0]


def _stamp(region: Region) -> Mapping[str, tuple[int, int]]:
    """What changes when someone replaces the catalog or the configuration."""
    paths = (region.folder / region.config.data.catalog, region.folder / "region.toml")
    return {
        path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in paths if path.exists()
    }


def _until(stop: threading.Event) -> Callable[..., None]:
    def go_on(*_: object) -> None:
        if stop.is_set():
            raise Stopping("the worker was told to stop; whoever serves the socket next answers")

    return go_on


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()

    def told(number: int, frame: FrameType | None) -> None:
        stop.set()

    former = {number: signal.signal(number, told) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
