"""Two engines for the same two apps: our own, or Flower's simulation engine.

Both put simulated node i on the i-th sorted region folder of the run and hand both apps the same
run config, so for one seed they end with the same adapter. `local` answers in this process, or in
some that share the regions, with one resident encoder in each; `flower` starts Ray, whose workers
each load their own.
"""

import copy
import json
import logging
import os
import resource
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity

from client.rpc import MAX_MESSAGE_BYTES
from shared.config import RUN_CONFIG_VARIABLE
from shared.envelope import pack, unpack
from shared.errors import ConfigError

ENGINES = ("local", "flower")
FLOWER_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_FIRST_NODE_ID = 2  # 1 is the server's
_MANY_FILES = 65_536  # open at once, where the system sets no limit
_AHEAD = 8  # messages that each process has, at work and waiting


class Answering(Protocol):
    """Processes that answer messages (`simulations.processes`)."""

    number: int
    threads: int  # of torch, in each

    def submit(
        self, place: int, header: Mapping[str, Any], body: bytes
    ) -> Future[tuple[Mapping[str, Any], bytes]]:
        """Ask one process."""

    def tell_all(self, header: Mapping[str, Any]) -> None:
        """Ask every process the same and wait for all."""


class LocalGrid(Grid):
    """A Flower grid in this process: a pushed message is answered at once by the ClientApp.

    Args:
        client_app: answers for every node.
        num_nodes: simulated nodes; node i gets `partition-id` i.
        run_config: what both apps see as their run config.

    Attributes:
        contexts: of the nodes, by id.
    """

    def __init__(
        self, client_app: ClientApp, num_nodes: int, run_config: Mapping[str, Any]
    ) -> None:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self._app, self._replies = client_app, dict[str, Message]()
        self.contexts = {
            _FIRST_NODE_ID + number: Context(
                run_id=1,
                node_id=_FIRST_NODE_ID + number,
                node_config={"partition-id": number, "num-partitions": num_nodes},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for number in range(num_nodes)
        }

    def set_run(self, run: Any) -> None:
        """Flower's way to say which run this is; here there is one."""

    @property
    def run(self) -> Any:
        """The one run."""
        return SimpleNamespace(run_id=1)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to a node (Flower's older way to make one)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All simulated nodes."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Answer each message now; replies wait to be pulled."""
        ids = []
        for message in messages:
            reply = self.answer(message)
            ids.append(message.metadata.message_id)
            self._replies[ids[-1]] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to the given messages, each once."""
        return [self._replies.pop(name) for name in list(message_ids) if name in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Answer each message when its reply is asked for, so that one is held at a time.

        Nothing here can time out.
        """
        return map(self.answer, messages)

    def answer(self, message: Message) -> Message:
        """The ClientApp's reply, or Flower's error reply where it fails."""
        message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
        context = self.contexts[message.metadata.dst_node_id]
        try:
            return self._app(_copied(message), context)
        except Exception as error:  # as Flower does: a failing ClientApp is an error reply
            return Message(Error(code=2, reason=type(error).__name__), reply_to=message)


class SharedGrid(LocalGrid):
    """A grid whose nodes are answered for by several processes, each for its own.

    Args:
        client_app: of `LocalGrid`; each process has its own.
        places: which process each node goes to.
        run_config: what both apps see as their run config.
        processes: they answer.
    """

    def __init__(
        self,
        client_app: ClientApp,
        places: Sequence[int],
        run_config: Mapping[str, Any],
        processes: Answering,
    ) -> None:
        super().__init__(client_app, len(places), run_config)
        self._processes = processes
        self._places = dict(zip(self.contexts, places, strict=True))
        told = {"regions": len(places), "run_config": dict(run_config)}
        processes.tell_all({"task": "federation", **told})

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Replies in the order of the messages, of which no more are held than keep all busy."""
        waiting = deque[tuple[Message, Future[tuple[Mapping[str, Any], bytes]]]]()
        for message in messages:
            waiting.append((message, self._asked(message)))
            if len(waiting) >= _AHEAD * self._processes.number:
                yield _reply(*waiting.popleft())
        while waiting:
            yield _reply(*waiting.popleft())

    def answer(self, message: Message) -> Message:
        """The reply of the process whose node it is."""
        return _reply(message, self._asked(message))

    def _asked(self, message: Message) -> Future[tuple[Mapping[str, Any], bytes]]:
        told = message.metadata
        told.__dict__["_message_id"] = str(uuid.uuid4())
        header = {"node": told.dst_node_id, "kind": told.message_type, "group": told.group_id}
        place = self._places[told.dst_node_id]
        return self._processes.submit(place, {"task": "message", **header}, pack(message.content))


def _reply(message: Message, answer: Future[tuple[Mapping[str, Any], bytes]]) -> Message:
    header, body = answer.result()
    if "refused" in header:
        code, reason = header["refused"]
        return Message(Error(code=code, reason=reason), reply_to=message)
    return Message(unpack(body, max_bytes=MAX_MESSAGE_BYTES), reply_to=message)


def shares(weights: Sequence[int], number: int) -> list[int]:
    """Which process each of so many regions goes to: the heaviest first, to the least busy.

    Args:
        weights: of the regions, any unit.
        number: of processes.

    Returns:
        By region.
    """
    busy, place = [0] * number, [0] * len(weights)
    for region in sorted(range(len(weights)), key=lambda one: (-weights[one], one)):
        place[region] = min(range(number), key=lambda one: (busy[one], one))
        busy[place[region]] += weights[region]
    return place


def _copied(message: Message) -> Message:
    """A message of its own, but for the bytes of its arrays, which nobody can change."""
    arrays = [list(record.values()) for record in message.content.array_records.values()]
    kept = {id(array): array for array in chain.from_iterable(arrays)}
    return copy.deepcopy(message, memo=kept)


def run_engine(
    engine: str,
    run_config: Mapping[str, Any],
    *,
    num_regions: int,
    processes: Answering | None = None,
) -> None:
    """Run the federation to its end.

    Args:
        engine: "local" or "flower".
        run_config: for both apps; names the run's folder.
        num_regions: simulated nodes.
        processes: that share the regions under "local"; under "flower" there are as many actors.
            None for this process alone, and as many actors as there are cores for its threads.

    Raises:
        ConfigError: no such engine.
        FederationError: the run could not go on.
    """
    from client.app import app as client_app
    from server.app import app as server_app

    logging.getLogger("flwr").setLevel(logging.ERROR)
    if engine == "local":
        _allow_open_files()
        if processes is None or processes.number == 1:
            grid = LocalGrid(client_app, num_regions, run_config)
        else:
            places = _places(Path(str(run_config["run-dir"])), num_regions, processes.number)
            grid = SharedGrid(client_app, places, run_config, processes)
        _run_local(server_app, grid, run_config)
    elif engine == "flower":
        _run_flower(server_app, client_app, run_config, num_regions, processes)
    else:
        raise ConfigError(f'engine "{engine}" is unknown; choose one of {", ".join(ENGINES)}')


def _allow_open_files() -> None:
    """As many as the system lets this process have: every open region maps some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MANY_FILES if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _places(run: Path, regions: int, number: int) -> list[int]:
    """Regions among processes by the size of their click logs, which is what training takes."""
    folders = sorted(path.parent for path in (run / "regions").glob("*/region.toml"))[:regions]
    logs = [sum(path.stat().st_size for path in one.glob("clicks*")) for one in folders]
    return shares(logs, number)


def _run_local(server_app: ServerApp, grid: Grid, run_config: Mapping[str, Any]) -> None:
    context = Context(
        run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=dict(run_config)
    )
    server_app(grid=grid, context=context)


def _run_flower(
    server_app: ServerApp,
    client_app: ClientApp,
    run_config: Mapping[str, Any],
    nodes: int,
    processes: Answering | None,
) -> None:
    """Flower's Python API passes no run config on, so it goes through the environment."""
    from flwr.simulation import run_simulation

    # Ray starts an actor for every so many cores.
    cores = os.cpu_count() or 1
    threads = processes.threads if processes else min(torch.get_num_threads(), cores)
    each = max(1, cores // processes.number) if processes else threads
    resources: dict[str, Any] = {"client_resources": {"num_cpus": each, "num_gpus": 0.0}}
    variables = {
        RUN_CONFIG_VARIABLE: json.dumps(dict(run_config)),
        "OMP_NUM_THREADS": str(threads),
    }
    with _environment({**FLOWER_ENVIRONMENT, **variables}):
        run_simulation(server_app, client_app, nodes, backend_config=resources)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
