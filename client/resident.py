"""The worker as a process of its own: answers messages and searches, takes releases into use.

One process owns a region's encoders. Messages from headquarters and looks at its releases take
turns on them: a message that comes while an index is built waits until it is done. Searches wait
for neither: they have a replica of their own, and training gives way to them between its steps.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import FrameType

import torch

from client.erasure import FORGOTTEN
from client.isolation import harden_process, require_token
from client.publication import Outcome, Publication
from client.rpc import Stopping, WorkerServer
from client.service.beside import Service, serving
from client.worker import Worker, forget_workers, get_worker
from shared.adapter import Adapter
from shared.errors import FedshelfError
from shared.schema import RegionConfig, ServeConfig, load_region_config
from shared.wire_evaluation import GATE, Difference

log = logging.getLogger("fedshelf.worker")

_Stamp = Mapping[str, tuple[int, int]]  # modification time (ns) and size (bytes) of files, by name


def run_worker(
    folder: Path,
    *,
    group: str | None = None,
    federates: bool = True,
    serves: bool = False,
    on_line: Callable[[str], None],
) -> None:
    """Be the worker of a region until told to stop; the encoders are resident all the while.

    Hardens the whole process (`client.isolation.harden_process`), so it wants one of its own.

    Args:
        folder: of the region.
        group: name or number of the group that may connect; None for this user alone.
        federates: whether it answers the forwarder's messages.
        serves: whether it answers searches even where region.toml has no `[serve]`.
        on_line: told in one line of what changes.

    Raises:
        FedshelfError: region, base or the socket's place is wrong, or another worker runs.
    """
    config = load_region_config(folder)
    if group is not None:  # headquarters' app runs on this machine, as another user
        require_token(folder, config)
    harden_process()
    torch.set_num_threads(config.worker.threads or len(os.sched_getaffinity(0)))
    with _stopped_by_signals() as stop, ExitStack() as stack:
        service = None
        while not stop.is_set():
            try:
                before = _stamp(folder, load_region_config(folder))  # opening may take minutes
                worker = get_worker(folder)
            except FedshelfError as error:  # what was changed is wrong: what was open answers on
                if service is None:
                    raise
                log.warning("%s", error)
                stop.wait(config.publication.poll_s)
                continue
            if service is None and (serves or config.serve is not None):
                settings = config.serve or ServeConfig()
                service = stack.enter_context(serving(worker.region, settings, on_line))
            _attend(
                worker,
                service,
                stop,
                before,
                group=group,
                federates=federates,
                on_line=on_line,
            )
            forget_workers()  # the catalog has changed: everything is opened again


def _attend(
    worker: Worker,
    service: Service | None,
    stop: threading.Event,
    before: _Stamp,
    *,
    group: str | None,
    federates: bool,
    on_line: Callable[[str], None],
) -> None:
    """Answer and look for releases until told to stop, or until the catalog changes."""
    go_on = _between_steps(stop, service)
    worker.on_step = worker.on_cache = go_on
    worker.encoder.on_batch = go_on  # loads it
    publication = _publication(worker)
    with _answering(worker, group=group, on_line=on_line) if federates else nullcontext() as server:
        said, region = "", worker.region
        while not stop.is_set() and _stamp(region.folder, region.config) == before:
            _refresh(service, worker, on_line)
            with server.exclusive() if server else nullcontext():
                said = _look(publication, on_line, said)
            _refresh(service, worker, on_line)
            if service is not None:
                service.keep_house(worker)
            stop.wait(worker.region.config.publication.poll_s)
            if service is not None and service.wants_rebuild:
                return


def _refresh(service: Service | None, worker: Worker, on_line: Callable[[str], None]) -> None:
    if service is not None and service.refresh(worker):
        on_line(f"region {worker.region.config.region}: the index in use answers")


def _publication(worker: Worker) -> Publication:
    return Publication(
        worker.region,
        encoder=lambda: worker.encoder,
        products=lambda: worker.products,
        gate=lambda candidate, current: _gate(worker, candidate, current),
        tune=worker.tune,
        queries=worker.query_vectors,
        personalize=worker.personalize,
    )


@contextmanager
def _answering(
    worker: Worker, *, group: str | None, on_line: Callable[[str], None]
) -> Iterator[WorkerServer]:
    """Answer the forwarder's messages while inside."""
    region = worker.region
    server = WorkerServer(worker, region.folder / region.config.worker.socket, group=group)
    server.start()
    on_line(f"region {region.config.region}: the worker answers")
    try:
        yield server
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


def _stamp(folder: Path, config: RegionConfig) -> _Stamp:
    """What changes when someone replaces catalog, configuration or rules, or erases a shopper."""
    serve = config.serve
    names = (config.data.catalog, "region.toml", *([serve.rules] if serve else []))
    paths = [folder / name for name in names if name]
    paths.append(folder / config.state / FORGOTTEN)
    return {
        path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in paths if path.exists()
    }


def _between_steps(stop: threading.Event, service: Service | None) -> Callable[..., None]:
    """What training and indexing do between two steps: look whether they may go on."""

    def go_on(*_: object) -> None:
        if stop.is_set():
            raise Stopping("the worker was told to stop; whoever serves the socket next answers")
        if service is not None:
            service.priority.give_way()

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
