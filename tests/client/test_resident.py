"""What ties a region's worker and its service together in one process, over real ones of both.

A worker here is the real one, with the tiny encoder and a few clicks; so is the service. Only
signals, sockets and waiting are left out.
"""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_world import federation
from words_shop import WordsShop, ids, product

from client.erasure import forget_shopper
from client.resident import _attend, _stamp
from client.rpc import Stopping
from client.service import shop as service_shop
from client.service.beside import Service
from client.service.messages import SearchRequest, UpsertRequest
from client.service.priority import Priority
from client.worker import Worker, forget_workers, get_worker

NEW = tuple(product(f"new-{number}", f"folding tent {number}") for number in range(4))


class Asked(Priority):
    """Counts how often somebody asked for leave to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def give_way(self) -> None:
        self.times += 1
        super().give_way()


class Polls(threading.Event):
    """Stops whoever waits for it after a few looks, and costs no time."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._left = looks

    def wait(self, timeout: float | None = None) -> bool:
        self._left -= 1
        if self._left <= 0:
            self.set()
        return self.is_set()


class Together:
    """A worker and the service beside it, as `run_worker` has them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.parts = folder, WordsShop(folder)
        self.shop, self.priority = self.parts.shop, Asked()
        self.shop.priority = self.priority
        parts = self.parts
        self.service = Service(
            parts.shop, parts.events, parts.overlay, parts.observer, parts.config
        )
        self.said: list[str] = []

    @property
    def worker(self) -> Worker:
        return get_worker(self.folder)

    def attend(self, stop: threading.Event, *, changed: bool = False) -> None:
        """Until told to stop, or until there is a reason to open the region again."""
        region = self.worker.region
        _attend(
            self.worker,
            self.service,
            stop,
            {} if changed else _stamp(region.folder, region.config),
            group=None,
            federates=False,
            on_line=self.say,
        )

    def say(self, line: str) -> None:
        self.said.append(line)


@pytest.fixture
def together(north: Path) -> Iterator[Together]:
    made = Together(north)
    yield made
    made.parts.close()
    forget_workers()


def test_training_and_indexing_give_way_between_their_steps(together: Together) -> None:
    together.attend(threading.Event(), changed=True)  # nothing is done, but all is wired
    worker, asked = together.worker, together.priority
    assert asked.times == 0
    shutil.rmtree(worker.region.state / "prefix_cache", ignore_errors=True)
    products = worker.products  # texts and photos into kept activations ...
    assert (kept := asked.times) > 0
    worker.encoder.product_matrix(products)  # ... these into vectors
    assert asked.times > kept
    config = federation(together.folder.parent.parent).train_config(1)
    assert worker.training_data is not None
    kept = asked.times
    worker.train(worker.encoder.adapter(), config, 1)
    assert asked.times > kept


def test_training_ends_between_two_steps_when_told_to_stop(together: Together) -> None:
    stop = threading.Event()
    together.attend(stop, changed=True)
    worker = together.worker
    assert worker.training_data is not None
    stop.set()
    config = federation(together.folder.parent.parent).train_config(1)
    with pytest.raises(Stopping):
        worker.train(worker.encoder.adapter(), config, 1)


def test_many_changes_have_the_index_built_afresh(
    together: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_shop, "MIN_CHANGES", len(NEW) - 1)
    monkeypatch.setattr(service_shop, "CHANGED_SHARE", 0.0)
    together.attend(Polls(1))
    index = together.shop.info().index
    few = Polls(3)
    together.shop.upsert(UpsertRequest(products=NEW[:-1]))
    together.attend(few)
    assert few.is_set() and together.shop.info().index == index  # so few are answered beside it
    together.shop.upsert(UpsertRequest(products=NEW[-1:]))
    many = Polls(3)
    together.attend(many)
    assert not many.is_set()  # it came back by itself, for the region to be opened again
    forget_workers()
    together.attend(Polls(2))
    info = together.shop.info()
    assert info.index != index and info.num_changes == 0
    assert set(ids(together.shop.search(SearchRequest(query="folding tent", k=4)))) == {
        one.product_id for one in NEW
    }


def test_an_erasure_has_the_region_opened_again(together: Together) -> None:
    together.attend(Polls(1))
    together.shop.search(SearchRequest(query="red shirts", user_key="me"))

    class Erased(Polls):
        """Somebody runs the command while it waits for the next look."""

        def wait(self, timeout: float | None = None) -> bool:
            forget_shopper(together.folder, "me")
            return super().wait(timeout)

    stop = Erased(3)
    together.attend(stop)
    assert not stop.is_set()
