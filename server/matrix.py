"""The cross-site table: every adapter on every agreeing region's gate clicks.

Rows are the base, every release, and an adapter trained on the clicks of one region alone for each
region that agrees to share one; columns are the regions that agree to measure. Nobody who has not
agreed in `region.toml` is asked, and a region refuses on its own if it is asked all the same.
"""

import logging
from collections.abc import Callable
from dataclasses import replace

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from server.gate_round import compare_in_regions
from server.handshake import Meeting
from server.history import History, RoundRecord
from server.replies import sort_replies
from server.traffic import Traffic, TrainingLog
from shared import wire, wire_evaluation
from shared.adapter import Adapter, add, trained_names
from shared.config import FederationConfig
from shared.errors import FederationError
from shared.exchanges import digest
from shared.records import encode_adapter

log = logging.getLogger("fedshelf.server")


def run_matrix(
    grid: Grid,
    config: FederationConfig,
    history: History,
    *,
    meet: Callable[[Grid], Meeting],
    audit: TrainingLog,
) -> None:
    """Make the table and keep it as `matrix.json`.

    Args:
        grid: Flower's way to the regions.
        config: `num_rounds` is how many rounds an adapter of one region trains.
        history: its `references` are the releases; the table is written there.
        meet: the handshake.
        audit: told of every message that counted.

    Raises:
        FederationError: no region agrees to measure.
    """
    meeting = meet(grid)
    measuring = _those_that(meeting, "in_matrix")
    if not measuring.cohort:
        raise FederationError(
            "no region agrees to the cross-site table; set sharing.matrix in their region.toml"
        )
    base, releases = history.adapter(0), history.references()
    rows = {"release 0": base} | {f"release {n}": found for n, found in releases.items() if n}
    for node, region in sorted(_those_that(meeting, "shares_local").cohort.items()):
        rank = meeting.descriptions[region].rank
        adapter = _train_alone(grid, config, base, node, region, audit, rank=rank)
        if adapter is not None:
            rows[f"{region} alone"] = adapter
    names = list(rows)
    differences, metrics, rejected, traffic = compare_in_regions(
        grid,
        config,
        measuring,
        base,
        dict(enumerate(rows.values())),
        purpose=wire_evaluation.MATRIX,
    )
    audit.matrix_measured(cohort=measuring.cohort.values(), rejected=rejected, traffic=traffic)
    cells = {
        name: {
            region: metrics[region].get("ndcg@10", 0.0) - found.mean
            for region, found in differences[number].items()
        }
        for number, name in enumerate(names)
    }
    queries = {region: found.num_queries for region, found in differences[0].items()}
    history.keep(
        "matrix.json",
        {"metric": "ndcg@10", "rows": cells, "num_queries": queries, "rejected": rejected},
    )


def _those_that(meeting: Meeting, agree: str) -> Meeting:
    cohort = {
        node: region
        for node, region in meeting.cohort.items()
        if getattr(meeting.descriptions[region], agree)
    }
    return replace(meeting, cohort=cohort, refused=[])


def _train_alone(
    grid: Grid,
    config: FederationConfig,
    adapter: Adapter,
    node: int,
    region: str,
    audit: TrainingLog,
    *,
    rank: int,
) -> Adapter | None:
    """An adapter trained by one region alone, or None if one of its rounds fails."""
    for number in range(1, config.num_rounds + 1):
        arrays, settings = encode_adapter(adapter), config.train_config(number)
        request = wire.train_request(arrays, settings, number, purpose=wire.LOCAL)
        trained = trained_names(adapter, settings.trained_factors)
        updates, rejected = sort_replies(
            grid.send_and_receive(
                [Message(request, node, MessageType.TRAIN)], timeout=config.round_timeout_s
            ),
            {node: region},
            _update_check(config, {name: adapter[name] for name in trained}, rank),
            where=f'"{region}" alone, round {number}',
            timeout_s=config.round_timeout_s,
        )
        answers = {name: found for name, (_, found) in updates.items()}
        audit.matrix_trained(
            RoundRecord(number, cohort=[region], rejected=rejected),
            Traffic({MessageType.TRAIN: digest(request)}, {MessageType.TRAIN: answers}),
        )
        if region not in updates:
            return None
        adapter = add(adapter, updates[region][0].update)
    return adapter


def _update_check(
    config: FederationConfig, trained: Adapter, rank: int
) -> Callable[[str, RecordDict], tuple[wire.TrainReply, str]]:
    return lambda region, content: (
        wire.read_train_reply(
            content,
            trained,
            encoding=config.update_encoding,
            max_examples=config.max_examples,
            max_norm=config.max_update_norm,
            rank=rank,
        ),
        digest(content),
    )
