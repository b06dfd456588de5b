"""What a simulation can have done in another process, by name.

A task is told in JSON, and a message's content in bytes; all but messages leave what they make in
files. So a task is the same in any process, and where there is one alone it is done in that one.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flwr.app import Message

from client.app import app, region_folder
from client.indexing import build_region_index, pull_release
from client.rpc import MAX_MESSAGE_BYTES
from client.worker import forget_workers
from server.history import History
from shared.adapter import load_adapter, save_adapter
from shared.config import parse_run_config
from shared.envelope import pack, unpack
from shared.errors import FedshelfError
from simulations.baselines import Pool, central_pool, local_pool
from simulations.engine import LocalGrid
from simulations.progress import Progress
from simulations.training import open_worker, open_workers, train_pool

Answer = tuple[dict[str, Any], bytes]
_DONE: Answer = ({}, b"")


class State:
    """What one process keeps from one task to the next.

    Args:
        progress: told what is going on.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.grid: LocalGrid | None = None
        self._central: dict[Path, Pool] = {}

    def pool(self, world: Path, region: str | None) -> Pool:
        """One region's data, or for None that of all, which stays open for the latest world."""
        if region is not None:
            return local_pool(open_worker(world / "regions" / region, self.progress))
        if world not in self._central:
            self._central = {world: central_pool(open_workers(world, self.progress))}
        return self._central[world]


def _federation(state: State, header: Mapping[str, Any], body: bytes) -> Answer:
    """Begin one: messages are of it from now on."""
    state.grid = LocalGrid(app, header["regions"], header["run_config"])
    return _DONE


def _message(state: State, header: Mapping[str, Any], body: bytes) -> Answer:
    """Answer one message of the federation as its ClientApp does."""
    assert state.grid is not None
    content = unpack(body, max_bytes=MAX_MESSAGE_BYTES)
    node = header["node"]
    message = Message(content, node, header["kind"], group_id=header["group"])
    with suppress(FedshelfError):  # the app meets it too, and its answer says so
        open_worker(region_folder(state.grid.contexts[node]), state.progress)
    reply = state.grid.answer(message)
    if reply.has_error():
        return {"refused": [reply.error.code, reply.error.reason]}, b""
    return {}, pack(reply.content)


def _forget(state: State, header: Mapping[str, Any], body: bytes) -> Answer:
    forget_workers(Path(header["below"]))
    return _DONE


def _train_alone(state: State, header: Mapping[str, Any], body: bytes) -> Answer:
    """Train a pool of a world, or what is left of it."""
    pool = state.pool(Path(header["world"]), header["region"])
    config, history = parse_run_config(header["run_config"]), History(Path(header["history"]))
    train_pool(pool, pool.workers[0].encoder, config, history, state.progress)
    return _DONE


def _personalize(state: State, header: Mapping[str, Any], body: bytes) -> Answer:
    """Let a region adapt what the federation gave it."""
    worker = open_worker(Path(header["region"]), state.progress)
    worker.encoder.load_adapter(load_adapter(Path(header["given"])))
    record = worker.personalize(header["release"])
    state.progress.line(f"{worker.region.config.region}: {record.choice}; {record.reason}")
    save_adapter(Path(header["path"]), worker.encoder.adapter(), {"choice": record.choice})
    return _DONE


def _index(state: State, header: Mapping[str, Any], body: bytes) -> Answer:
    """Take a release into use in a region: adapt it if that is allowed, then build its indexes."""
    worker, number = open_worker(Path(header["region"]), state.progress), header["release"]
    region, encoder = worker.region, worker.encoder
    encoder.load_release(pull_release(region.folder))
    if region.config.personalization.enabled:
        made = worker.personalize(number)
        state.progress.line(f"region {region.config.region}: {made.choice}; {made.reason}")
    vectors = encoder.product_matrix(worker.products)
    tuned = worker.tune(vectors)
    index = build_region_index(
        region,
        encoder,
        release=number,
        vectors=vectors,
        tuned=tuned,
        queries=worker.query_vectors(),
    )
    state.progress.line(
        f"region {region.config.region}: {index.relative_to(Path(header['run']))},"
        f" dense weight {tuned.dense_weight:g}"
    )
    return _DONE


TASKS: Mapping[str, Callable[[State, Mapping[str, Any], bytes], Answer]] = {
    "federation": _federation,
    "message": _message,
    "forget": _forget,
    "train_alone": _train_alone,
    "personalize": _personalize,
    "index": _index,
}
