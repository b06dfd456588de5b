"""The Flower ClientApp: decode a message, hand it to the region's worker, encode the reply.

It holds no data of its own. An exception in a region never travels: headquarters learns its kind,
the region's own log has the rest.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from client.worker import Worker, get_worker
from shared import wire
from shared.config import parse_run_config
from shared.errors import ConfigError, FedshelfError

log = logging.getLogger("fedshelf.client")
REGION_FAILED = 100  # error code of a reply; Flower's own codes are below it

app = ClientApp()


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Answer who this region is and what it has."""
    return _answer(message, context, lambda worker: wire.describe_reply(worker.describe()))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round and answer with the update."""

    def work(worker: Worker) -> RecordDict:
        adapter, config, server_round = wire.read_train_request(message.content)
        trained = worker.train(adapter, config, server_round)
        return wire.train_reply(
            trained.update,
            num_examples=trained.num_examples,
            loss=trained.loss,
            seconds=trained.seconds,
        )

    return _answer(message, context, work)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure an adapter on this region's validation clicks."""

    def work(worker: Worker) -> RecordDict:
        num_examples, metrics = worker.evaluate(wire.read_evaluate_request(message.content))
        return wire.evaluate_reply(metrics, num_examples=num_examples)

    return _answer(message, context, work)


def region_folder(context: Context) -> Path:
    """Where this node's region is.

    A deployed node names it (`region-dir` in its node config). A simulated node i works on the
    i-th sorted name in the run's regions folder.

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
    folders = sorted(path.parent for path in Path(run_dir, "regions").glob("*/region.toml"))
    if number >= len(folders):
        raise ConfigError(f"{run_dir}: node {number}, but only {len(folders)} regions")
    return folders[number]


def _answer(message: Message, context: Context, work: Callable[[Worker], RecordDict]) -> Message:
    try:
        return Message(work(get_worker(region_folder(context))), reply_to=message)
    except FedshelfError as error:
        log.error("%s", error)
        reason = type(error).__name__
    except Exception as error:
        log.exception("%s failed", message.metadata.message_type)
        reason = type(error).__name__
    return Message(Error(code=REGION_FAILED, reason=reason), reply_to=message)
