"""The Flower ClientApp: pass a message on to the region's worker and its answer back.

A Flower node runs whatever app headquarters sends it, so this process must be worth nothing: in a
deployment it holds no data, runs as a user who may read none, and passes each message to the
worker's socket (`worker-socket` in the node config). In a simulation it answers in its own
process. An exception in a region never travels: headquarters learns its kind, the region's own log
has the rest.

Flower starts a new Python process for every message; hence nothing heavy is imported up here.
"""

import logging
from functools import cache
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from client.rpc import RemoteFailure, forward
from shared.config import parse_run_config
from shared.errors import ConfigError, FedshelfError

log = logging.getLogger("fedshelf.client")
REGION_FAILED = 100  # error code of a reply; Flower's own codes are below it

app = ClientApp()


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Answer who this region is and what it has."""
    return _reply(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round and answer with the update."""
    return _reply(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure adapters on this region's held-out clicks."""
    return _reply(message, context)


def region_folder(context: Context) -> Path:
    """Where this node's region is, when it is answered for in this process.

    A node may name it (`region-dir` in its node config). A simulated node i works on the i-th
    sorted name in the run's regions folder.

    Raises:
        ConfigError: neither is given, or there are fewer regions than nodes.
    """
    if "region-dir" in context.node_config:
        return Path(str(context.node_config["region-dir"]))
    run_dir = parse_run_config(context.run_config).run_dir
    number = int(context.node_config["partition-id"])
    if not run_dir:
        raise ConfigError(
            'run config: "run-dir" is empty; pass the folder "fedshelf simulate" made'
        )
    folders = _simulated_regions(run_dir)
    if number >= len(folders):
        raise ConfigError(f"{run_dir}: node {number}, but only {len(folders)} regions")
    return folders[number]


@cache  # once a process, not once a message: there may be thousands
def _simulated_regions(run_dir: str) -> list[Path]:
    return sorted(path.parent for path in Path(run_dir, "regions").glob("*/region.toml"))


def _reply(message: Message, context: Context) -> Message:
    try:
        return Message(_answer(message, context), reply_to=message)
    except RemoteFailure as error:
        log.error("%s", error)
        reason = error.kind
    except FedshelfError as error:
        log.error("%s", error)
        reason = type(error).__name__
    except Exception as error:
        log.exception("%s failed", message.metadata.message_type)
        reason = type(error).__name__
    return Message(Error(code=REGION_FAILED, reason=reason), reply_to=message)


def _answer(message: Message, context: Context) -> RecordDict:
    kind = message.metadata.message_type
    if "worker-socket" in context.node_config:
        socket = Path(str(context.node_config["worker-socket"]))
        # Headquarters waits no longer than this for anybody.
        timeout_s = parse_run_config(context.run_config).round_timeout_s
        return forward(socket, kind, message.content, timeout_s=timeout_s)
    from client.answers import answer
    from client.worker import get_worker

    return answer(get_worker(region_folder(context)), kind, message.content)
