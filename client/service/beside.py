"""The service beside a region's worker, in one process: shelves follow `state/current`.

Whatever puts another index into use (a release, a rollback, a new catalog) writes
`state/current`; `Service.refresh` looks at it, opens what it names beside what answers now, and
swaps. The encoder of a shelf is a replica on the worker's own frozen weights, so training may swap
adapters in the other.
"""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta

from client.decisions import read_state
from client.erasure import forget_the_past
from client.indexing import load_pulled_release
from client.region import Region
from client.service.encoding import Edition
from client.service.events import EventStore
from client.service.listen import serve_wires
from client.service.observe import Observer, request_lines
from client.service.overlay import Overlay
from client.service.page.page import page_routes
from client.service.priority import Priority
from client.service.shop import Opened, Shop
from client.service.store import EVENTS_FILE, Store
from client.shelves import open_shelf, scratch_folder
from client.worker import Worker
from shared.errors import FedshelfError, RetrievalError
from shared.retrieval.manifest import IndexPointer, OpenIndex, open_index_folder, read_pointer
from shared.schema import ServeConfig

log = logging.getLogger("fedshelf.serve")

HOUSEKEEPING_S = 3600.0


class Service:
    """A region's shop and what follows it about; from `serving`.

    Attributes:
        priority: what a worker's training gives way to.
    """

    def __init__(
        self,
        shop: Shop,
        events: EventStore,
        overlay: Overlay,
        observer: Observer,
        config: ServeConfig,
    ) -> None:
        self.priority = shop.priority
        self._shop, self._events, self._overlay = shop, events, overlay
        self._observer, self._config = observer, config
        self._region: Region | None = None
        self._editions: dict[int, Edition] = {}
        self._kept_house_at = -math.inf  # a clock may have begun to count when the machine did

    @property
    def wants_rebuild(self) -> bool:
        """Whether so much has changed while serving that the index should be built afresh."""
        return self._shop.wants_rebuild

    def refresh(self, worker: Worker) -> bool:
        """Answer from the index in use, if that or the region has changed.

        Args:
            worker: of the region, as it is open now.

        Returns:
            Whether something was swapped. An index that cannot be brought up to the catalog is not
            opened; what answered before goes on until it has been built anew.
        """
        region = worker.region
        try:
            pointer = read_pointer(region.state)
            if pointer.index == self._shop.index and region is self._region:
                return False
            if region is not self._region:  # perhaps because somebody is to be forgotten
                self._forget_queries()
            index = _index(region, pointer)
            current = self._open(worker, pointer, index)
            former = read_state(region.state).previous
            both = [current, self._open_former(worker, former) if former else None]
            opened = [one for one in both if one is not None]
            self._shop.put_in_use(opened, region)
            self._overlay.retire(region.caught_up, region.overlay_seq)
        except FedshelfError as error:
            if self._region is None and not isinstance(error, RetrievalError):
                raise  # at the start: there is nothing that could go on answering
            log.warning("%s", error)
            return False
        self._observer.index_built(index.manifest.created.timestamp())
        self._region = region
        kept = {one.shelf.release for one in opened}
        self._editions = {n: edition for n, edition in self._editions.items() if n in kept}
        return True

    def keep_house(self, worker: Worker) -> None:
        """Now and then: mark bots, and let go of events past their time and what came of them.

        Args:
            worker: of the region, as it is open now.
        """
        if self._region is None or time.monotonic() - self._kept_house_at < HOUSEKEEPING_S:
            return
        self._kept_house_at = time.monotonic()
        retention = timedelta(days=self._config.retention_days)
        try:
            self._events.mark_bots()
            forget_the_past(self._region.state, retention=retention, keep=worker.catalog_texts)
        except FedshelfError as error:  # searches go on; the next time may be a better one
            log.warning("%s", error)

    def _forget_queries(self) -> None:
        """Keep no vector of what was typed before."""
        for edition in self._editions.values():
            edition.kept.clear()

    def _open(self, worker: Worker, pointer: IndexPointer, index: OpenIndex) -> Opened:
        region = worker.region
        edition = self._edition(worker, pointer)
        shelf = open_shelf(
            region,
            index,
            edition.encoder.encode_products,
            scratch=scratch_folder(region.state),
        )
        return Opened(shelf, edition)

    def _open_former(self, worker: Worker, pointer: IndexPointer) -> Opened | None:
        """The index before the current one, for comparison; without it the service does as well."""
        try:
            return self._open(worker, pointer, _index(worker.region, pointer))
        except FedshelfError:  # its release may be gone or damaged, too
            return None

    def _edition(self, worker: Worker, pointer: IndexPointer) -> Edition:
        found = self._editions.get(pointer.release)
        if found is None or found.digest != pointer.encoder_digest:
            region, replica = worker.region, worker.encoder.replica()
            replica.reset(seed=0)
            if pointer.release > 0:
                load_pulled_release(
                    replica,
                    region.folder,
                    region.config,
                    release=pointer.release,
                    encoder_digest=pointer.encoder_digest,
                )
            found = Edition(replica.digest, replica)
            self._editions[pointer.release] = found
        return found


def _index(region: Region, pointer: IndexPointer) -> OpenIndex:
    folder = region.state / "indexes" / pointer.index
    return open_index_folder(folder, expected_digest=pointer.encoder_digest)


@contextmanager
def serving(
    region: Region, config: ServeConfig, on_line: Callable[[str], None]
) -> Iterator[Service]:
    """Listen and answer while inside; searches are refused until the first `refresh`.

    Args:
        region: opened.
        config: its `[serve]`, or the defaults.
        on_line: told in one line where it listens.

    Raises:
        ConfigError: an address is taken or not protected as it must be.
        DataError: the event store is damaged.
    """
    with ExitStack() as stack:
        stack.enter_context(request_lines(sys.stderr))
        store = stack.enter_context(Store(region.state / EVENTS_FILE))
        events, overlay, observer = EventStore(store), Overlay.open(store), Observer()
        observer.watch_store(
            lost_answers=lambda: events.lost_answers, queued_rows=lambda: store.queued_rows
        )
        shop = Shop(
            region, config, events=events, overlay=overlay, observer=observer, priority=Priority()
        )
        stack.callback(shop.close)
        page = page_routes(locale=region.config.locale) if config.page else ()
        wires = stack.enter_context(
            serve_wires(shop, config, folder=region.folder, observer=observer, page=page)
        )
        for address in filter(None, (wires.http, wires.grpc)):
            on_line(f"region {region.config.region}: searches are answered at {address}")
        yield Service(shop, events, overlay, observer, config)
