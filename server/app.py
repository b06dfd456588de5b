"""The Flower ServerApp: shake hands with the regions, run the rounds, keep what came of them."""

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from server.history import History, RoundRecord
from server.strategy import CheckedFedAvg, failure_kind
from shared import wire
from shared.adapter import Adapter, schema_hash
from shared.config import FederationConfig, parse_run_config
from shared.errors import ConfigError, FederationError, WireError
from shared.schema import REGION_NAME

log = logging.getLogger("fedshelf.server")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run config describes, from where it stopped."""
    config = parse_run_config(context.run_config)
    if not config.run_dir:
        raise ConfigError(
            'run config: "run-dir" is empty; pass the folder "fedshelf simulate" made'
        )
    history = History(Path(config.run_dir, "headquarters"))
    run_rounds(grid, config, history)


def run_rounds(grid: Grid, config: FederationConfig, history: History) -> None:
    """Run every round that is not complete yet.

    Args:
        grid: Flower's way to the regions.
        config: of the federation.
        history: holds the initial adapter, and the rounds that are complete.

    Raises:
        FederationError: too few regions, or a round without quorum. Complete rounds are kept.
    """
    done = history.rounds()
    last = done[-1].round if done else 0
    if done and last >= config.num_rounds:
        return
    adapter = history.adapter(last)
    cohort = handshake(grid, config, history.base_fingerprint(), schema_hash(adapter))
    strategy = CheckedFedAvg(
        config, cohort, offset=last, on_round=_keeper(history, config.num_rounds)
    )
    arrays = wire.encode_adapter(adapter)
    if not done:
        strategy.evaluate_first(arrays, grid)
        strategy.finish_round(arrays)
    strategy.start(
        grid,
        arrays,
        num_rounds=config.num_rounds - last,
        timeout=config.round_timeout_s,
        evaluate_fn=lambda number, result: strategy.finish_round(result) if number else None,
    )


def handshake(
    grid: Grid, config: FederationConfig, fingerprint: str, schema: str
) -> dict[int, str]:
    """Ask every node who it is; refuse by name those that cannot take part.

    Args:
        grid: Flower's way to the regions.
        config: how many regions to wait for, and how long.
        fingerprint: of headquarters' base.
        schema: `schema_hash` of headquarters' adapter.

    Returns:
        Node id -> region name of the cohort.

    Raises:
        FederationError: nobody is left.
    """
    nodes = wait_for_nodes(grid, config)
    requests = [Message(wire.describe_request(), node, wire.DESCRIBE) for node in nodes]
    replies = list(grid.send_and_receive(requests, timeout=config.round_timeout_s))
    cohort: dict[int, str] = {}
    for silent in sorted(set(nodes) - {reply.metadata.src_node_id for reply in replies}):
        log.warning("node %d refused: no reply within %.0f s", silent, config.round_timeout_s)
    for reply in sorted(replies, key=lambda message: message.metadata.src_node_id):
        try:
            description = _description(reply)
            _require_same(description, fingerprint, schema)
            if description.region in cohort.values():
                raise WireError(f'region "{description.region}": another node has this name')
            cohort[reply.metadata.src_node_id] = description.region
        except WireError as error:
            log.warning("node %d refused: %s", reply.metadata.src_node_id, error)
    if len(cohort) < config.min_regions:
        raise FederationError(
            f"{len(cohort)} of {len(nodes)} nodes can take part, min-regions is "
            f"{config.min_regions}; the log names who was refused and why"
        )
    return cohort


def wait_for_nodes(grid: Grid, config: FederationConfig) -> list[int]:
    """Node ids, once at least `min_regions` are connected.

    Raises:
        FederationError: they are not there after `region_wait_s`.
    """
    deadline = time.monotonic() + config.region_wait_s
    while True:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) >= config.min_regions:
            return nodes
        if time.monotonic() > deadline:
            raise FederationError(
                f"{len(nodes)} regions connected after {config.region_wait_s:.0f} s, expected "
                f"{config.min_regions}; start the missing ones or lower min-regions"
            )
        time.sleep(0.2)


def _description(reply: Message) -> wire.Description:
    if reply.has_error():
        raise WireError(f"it failed to describe itself: {failure_kind(reply.error)}")
    description = wire.read_description(reply.content)
    if not re.fullmatch(REGION_NAME, description.region):  # it goes into logs and history.json
        raise WireError("the name it gives is not that of a region: a-z, 0-9, _ and -")
    return description


def _require_same(description: wire.Description, fingerprint: str, schema: str) -> None:
    name = description.region
    if description.protocol_version != wire.PROTOCOL_VERSION:
        raise WireError(
            f'region "{name}": protocol {description.protocol_version}, headquarters speaks '
            f"{wire.PROTOCOL_VERSION}; install the same release of fedshelf"
        )
    if description.base_fingerprint != fingerprint:
        raise WireError(
            f'region "{name}": base {description.base_fingerprint[:12]}, headquarters has '
            f"{fingerprint[:12]}; copy the base that headquarters hands out"
        )
    if description.schema_hash != schema:
        raise WireError(f'region "{name}": its adapter has other tensors; install the same release')


def _keeper(history: History, num_rounds: int) -> Callable[[RoundRecord, Adapter], None]:
    def keep(record: RoundRecord, adapter: Adapter) -> None:
        history.append(record, adapter)
        loss = "" if record.loss is None else f"loss {record.loss:.4f}, "
        log.info(
            "round %d/%d: %svalidation nDCG@10 %.4f, %d of %d regions, %.1f s",
            record.round,
            num_rounds,
            loss,
            record.mean("ndcg@10"),
            len(record.validation),
            len(record.cohort),
            record.seconds,
        )

    return keep
