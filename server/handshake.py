"""Before every round: who is there, and who may take part.

Regions come and go between rounds. Every node that is connected is asked to describe itself; who
has another base, adapter schema or protocol, a rank that will not do, or another name than the one
its key was admitted under, is refused by name and the rest go on.
"""

import logging
import re
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from flwr.app import Error, Message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid

from shared import wire
from shared.config import FederationConfig
from shared.errors import FederationError, WireError
from shared.schema import REGION_NAME

log = logging.getLogger("fedshelf.server")
_KIND = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True)
class Meeting:
    """Who is there for a round.

    Attributes:
        cohort: node id -> region name of those that take part.
        descriptions: what each of them said, by region name.
        refused: region (or node) and reason of every other one.
    """

    cohort: Mapping[int, str] = field(default_factory=dict)
    descriptions: Mapping[str, wire.Description] = field(default_factory=dict)
    refused: list[dict[str, str]] = field(default_factory=list)


def handshake(
    grid: Grid, config: FederationConfig, fingerprint: str, schema: str, *, rank: int
) -> Meeting:
    """Ask every node who it is; refuse by name those that cannot take part.

    Args:
        grid: Flower's way to the regions.
        config: how many regions to wait for, and how long; and whether ranks may differ.
        fingerprint: of headquarters' base.
        schema: `schema_hash` of headquarters' adapter.
        rank: `rank_of` it.

    Raises:
        FederationError: fewer than `min_regions` are left.
    """
    nodes = wait_for_nodes(grid, config)
    requests = [Message(wire.describe_request(), node, wire.DESCRIBE) for node in sorted(nodes)]
    answered = grid.send_and_receive(requests, timeout=config.describe_timeout_s)
    every = list(answered)
    replies = [reply for reply in every if not from_flower(reply)]
    given_up = len(every) - len(replies)
    descriptions: dict[int, wire.Description] = {}
    taken: set[str] = set()
    silent = nodes.keys() - {reply.metadata.src_node_id for reply in replies}
    refused: dict[int, str] = dict.fromkeys(
        silent, why_silent(len(silent), given_up, timeout_s=config.describe_timeout_s)
    )
    for reply in sorted(replies, key=lambda message: message.metadata.src_node_id):
        node = reply.metadata.src_node_id
        try:
            description = _description(reply)
            _require_same(description, fingerprint, schema)
            _require_own_name(description.region, nodes.get(node, ""), taken)
            _require_examples(description)
            _require_rank(description, config, rank)
            descriptions[node] = description
            taken.add(description.region)
        except WireError as error:
            refused[node] = str(error)
    for node, reason in sorted(refused.items()):
        log.warning("%s refused: %s", nodes.get(node) or f"node {node}", reason)
    if len(descriptions) < config.min_regions:
        raise FederationError(
            f"{len(descriptions)} of {len(nodes)} nodes can take part, min-regions is "
            f"{config.min_regions}; the log names who was refused and why"
        )
    return Meeting(
        cohort={node: found.region for node, found in descriptions.items()},
        descriptions={found.region: found for found in descriptions.values()},
        refused=[
            {"region": nodes.get(node) or f"node {node}", "reason": reason}
            for node, reason in sorted(refused.items())
        ],
    )


def wait_for_nodes(grid: Grid, config: FederationConfig) -> dict[int, str]:
    """Node id -> the name its key was admitted under ("" in a simulation).

    Returns once at least `min_regions` are connected.

    Raises:
        FederationError: they are not there after `region_wait_s`.
    """
    deadline = time.monotonic() + config.region_wait_s
    while True:
        nodes = {node.node_id: node.name for node in grid.get_nodes()}
        if len(nodes) >= config.min_regions:
            return nodes
        if time.monotonic() > deadline:
            raise FederationError(
                f"{len(nodes)} regions connected after {config.region_wait_s:.0f} s, expected "
                f"{config.min_regions}; start the missing ones or lower min-regions"
            )
        time.sleep(0.2)


def from_flower(reply: Message) -> bool:
    """Whether Flower answered in its own name, for a node whose connection was lost.

    It does not say for which.
    """
    return bool(reply.metadata.src_node_id == SUPERLINK_NODE_ID)


def why_silent(silent: int, given_up: int, *, timeout_s: float) -> str:
    """Why nodes have not answered, as far as that can be known.

    Args:
        silent: how many have not.
        given_up: how many of them Flower has given up.
        timeout_s: how long was waited for the others.
    """
    if given_up >= silent:
        return "its connection was lost before it answered"
    late = f"no reply within {timeout_s:.0f} s"
    return f"{late}, or its connection was lost" if given_up else late


def failure_kind(error: Error) -> str:
    """What headquarters may know of a failed region: the kind of its error, never the text.

    Our ClientApp sends no more than that; Flower, and a ClientApp that is not ours, may send a
    whole exception, and its text may quote the region's data.
    """
    if error.code == ErrorCode.CLIENT_APP_CRASHED:  # said by its SuperNode, in Flower's own words
        return "its ClientApp, or the SuperExec that ran it, ended before it answered"
    reason = error.reason or ""
    return reason if _KIND.fullmatch(reason) else f"error code {error.code}"


def _description(reply: Message) -> wire.Description:
    if reply.has_error():
        raise WireError(f"it failed to describe itself: {failure_kind(reply.error)}")
    description = wire.read_description(reply.content)
    if not re.fullmatch(REGION_NAME, description.region):  # it goes into logs and history.json
        raise WireError("the name it gives is not that of a region: a-z, 0-9, _ and -")
    return description


def _require_own_name(region: str, admitted: str, taken: Container[str]) -> None:
    if admitted and admitted != region:
        raise WireError(f'its key was admitted as "{admitted}", it calls itself "{region}"')
    if region in taken:
        raise WireError(f'region "{region}": another node has this name')


def _require_examples(description: wire.Description) -> None:
    if description.num_examples == 0:  # a region's first day
        raise WireError(
            f'region "{description.region}": no clicks to train on yet; it takes releases, and part'
            " in rounds once shoppers have clicked"
        )


def _require_rank(description: wire.Description, config: FederationConfig, rank: int) -> None:
    """It trains as many components of a LoRA pair as the base has, or fewer where that will do."""
    name, said = description.region, description.rank
    if not min(rank, 1) <= said <= rank:
        raise WireError(
            f'region "{name}": it announces rank {said}, the base has {rank}; install the same '
            "release"
        )
    if said < rank and config.wants_one_rank:
        raise WireError(
            f'region "{name}": it trains rank {said} of {rank}, and {config.wants_one_rank} wants '
            "the base's everywhere; remove worker.max_rank from its region.toml"
        )


def _require_same(description: wire.Description, fingerprint: str, schema: str) -> None:
    name = description.region
    if description.protocol_version != wire.PROTOCOL_VERSION:
        raise WireError(f'region "{name}": {wire.other_protocol(description.protocol_version)}')
    if description.base_fingerprint != fingerprint:
        raise WireError(
            f'region "{name}": base {description.base_fingerprint[:12]}, headquarters has '
            f"{fingerprint[:12]}; copy the base that headquarters hands out"
        )
    if description.schema_hash != schema:
        raise WireError(f'region "{name}": its adapter has other tensors; install the same release')
