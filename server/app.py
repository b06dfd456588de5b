"""The Flower ServerApp: run the rounds, let the gate judge the best, keep what came of it."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.gate_round import ask_gate
from server.handshake import Meeting, handshake
from server.history import History, RoundRecord
from server.matrix import run_matrix
from server.strategy import CheckedFedAvg
from server.traffic import Traffic, TrainingLog
from shared.adapter import Adapter, rank_of, schema_hash
from shared.config import FederationConfig, parse_run_config
from shared.durable import locked
from shared.errors import ConfigError, FederationError
from shared.records import encode_adapter

log = logging.getLogger("fedshelf.server")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Do what the run config describes, from where it stopped."""
    config = parse_run_config(context.run_config)
    if not config.run_dir:
        raise ConfigError(
            'run config: "run-dir" is empty; pass the folder "fedshelf simulate" made'
        )
    history = History(Path(config.run_dir, "headquarters"))
    history.base_fingerprint()  # raises where this is no run folder, before anything is written
    with locked(history.folder):  # a second run of one training waits, and finds it done
        _run(grid, config, history)


def _run(grid: Grid, config: FederationConfig, history: History) -> None:
    audit = TrainingLog.of(Path(config.run_dir))
    if config.task == "matrix":
        run_matrix(grid, config, history, meet=_meet(config, history), audit=audit)
        return
    run_rounds(grid, config, history, audit)
    if config.gate:
        ask_gate(grid, config, history, meet=_meet(config, history), audit=audit)


def run_rounds(
    grid: Grid,
    config: FederationConfig,
    history: History,
    audit: TrainingLog | None = None,
) -> None:
    """Run every round that is not complete yet.

    Args:
        grid: Flower's way to the regions.
        config: of the federation.
        history: holds the initial adapter, and the rounds that are complete.
        audit: told of every round; by default nobody is.

    Raises:
        AuditError: the audit log is damaged or cannot be written; the round is run again then.
        FederationError: too few regions, a round without quorum, or what must be remembered of the
            last round is missing. Complete rounds are kept.
    """
    audit = audit or TrainingLog()
    done = history.rounds()
    last = done[-1].round if done else 0
    if done and last >= config.num_rounds:
        return
    arrays = encode_adapter(history.adapter(last))
    strategy = CheckedFedAvg(
        config,
        meet=_meet(config, history),
        offset=last,
        memory=history.memory(last) if config.remembers else {},
        dim=history.dim() if config.describes_vectors else 0,
        on_round=_keeper(history, config.num_rounds, audit),
    )
    try:
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
    except FederationError as error:
        audit.round_failed(strategy.record, strategy.traffic, str(error))
        raise


def _meet(config: FederationConfig, history: History) -> Callable[[Grid], Meeting]:
    """The handshake, with who was there kept for people to see."""
    fingerprint, initial = history.base_fingerprint(), history.adapter(0)
    schema, rank = schema_hash(initial), rank_of(initial)

    def meet(grid: Grid) -> Meeting:
        meeting = handshake(grid, config, fingerprint, schema, rank=rank)
        said = {region: asdict(found) for region, found in meeting.descriptions.items()}
        history.note_regions(said, meeting.refused)
        return meeting

    return meet


def _keeper(
    history: History, num_rounds: int, audit: TrainingLog
) -> Callable[[RoundRecord, Adapter, Adapter, Traffic], None]:
    def keep(record: RoundRecord, adapter: Adapter, memory: Adapter, traffic: Traffic) -> None:
        path = history.keep_adapter(record.round, adapter)
        history.keep_memory(record.round, memory)
        audit.round_completed(record, traffic, path)
        history.keep_record(record)
        loss = "" if record.loss is None else f"loss {record.loss:.4f}, "
        bias = "" if record.relative_bias is None else f"bias {record.relative_bias:.2%}, "
        log.info(
            "round %d/%d: %s%svalidation nDCG@10 %.4f, %d of %d regions, %.1f s",
            record.round,
            num_rounds,
            loss,
            bias,
            record.mean("ndcg@10"),
            len(record.validation),
            len(record.cohort),
            record.seconds,
        )

    return keep
