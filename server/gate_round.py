"""After the last round: let the regions compare the best adapter with what it would replace.

They use their gate clicks, which neither training nor the choice of the round has seen; the figures
and the decision go into `gate.json`, and from there into the release's manifest.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from server.gate import GateRule, decide, to_json
from server.handshake import Meeting
from server.history import History
from server.replies import sort_replies
from server.traffic import Traffic, TrainingLog
from shared import wire_evaluation
from shared.adapter import Adapter
from shared.config import FederationConfig
from shared.exchanges import digest
from shared.records import encode_adapter

log = logging.getLogger("fedshelf.server")

Differences = dict[int, dict[str, wire_evaluation.Difference]]  # by reference, by region


class Comparison(NamedTuple):
    """What regions say of one candidate.

    Attributes:
        differences: by reference and region.
        metrics: the candidate's, by region.
        rejected: region and reason of every reply that did not count.
        traffic: the messages.
    """

    differences: Differences
    metrics: dict[str, dict[str, float]]
    rejected: list[dict[str, str]]
    traffic: Traffic


def ask_gate(
    grid: Grid,
    config: FederationConfig,
    history: History,
    *,
    meet: Callable[[Grid], Meeting],
    audit: TrainingLog,
) -> None:
    """Ask the regions about the best round, unless it has been done, and keep the decision.

    Args:
        grid: Flower's way to the regions.
        config: holds the gate's rule.
        history: holds the candidate and its references; the decision is written there.
        meet: the handshake.
        audit: told of the decision.
    """
    if history.gate() is not None:
        return
    best, references = history.best_round(), history.references()
    meeting = meet(grid)
    differences, metrics, rejected, traffic = compare_in_regions(
        grid, config, meeting, history.adapter(best), references, purpose=wire_evaluation.GATE
    )
    if history.gate() is not None:
        return  # given up meanwhile
    decision = decide(differences, gate_rule(config))
    log.info(
        "gate: round %d is %s%s",
        best,
        "accepted" if decision.accepted else "declined",
        "".join(f"; {reason}" for reason in decision.reasons),
    )
    audit.gate_decided(
        best, decision, cohort=meeting.cohort.values(), rejected=rejected, traffic=traffic
    )
    history.keep(
        "gate.json",
        {
            "round": best,
            "candidate": metrics,
            "differences": {
                str(number): {region: asdict(found) for region, found in regions.items()}
                for number, regions in differences.items()
            },
            "rejected": rejected,
            "decision": to_json(decision),
        },
    )


def gate_rule(config: FederationConfig) -> GateRule:
    """The rule that the run config states."""
    return GateRule(
        tolerance=config.gate_tolerance,
        confidence=config.gate_confidence,
        min_queries=config.gate_min_queries,
    )


def compare_in_regions(
    grid: Grid,
    config: FederationConfig,
    meeting: Meeting,
    candidate: Adapter,
    references: Mapping[int, Adapter],
    *,
    purpose: str,
) -> Comparison:
    """Send one candidate and its references to regions, and check what comes back.

    Args:
        grid: Flower's way to the regions.
        config: bounds on counts, and the timeout.
        meeting: who is asked.
        candidate: the adapter in question.
        references: what it is compared with, by number.
        purpose: `wire_evaluation.GATE` or `wire_evaluation.MATRIX`.

    Returns:
        What counts of their answers, and who was rejected.
    """
    request = wire_evaluation.evaluate_request(
        encode_adapter(candidate),
        0,
        purpose=purpose,
        references={number: encode_adapter(found) for number, found in references.items()},
    )
    messages = [Message(request, node, MessageType.EVALUATE) for node in sorted(meeting.cohort)]
    passed, rejected = sort_replies(
        grid.send_and_receive(messages, timeout=config.round_timeout_s),
        meeting.cohort,
        lambda region, content: (
            wire_evaluation.read_comparison_reply(
                content, references, max_examples=config.max_examples
            ),
            digest(content),
        ),
        where=purpose,
        timeout_s=config.round_timeout_s,
    )
    answers: dict[str, Any] = {region: passed[region][0] for region in sorted(passed)}
    differences = {
        number: {region: found[number] for region, (_, found) in answers.items()}
        for number in references
    }
    metrics = {region: dict(reply.metrics) for region, (reply, _) in answers.items()}
    traffic = Traffic(
        sent={MessageType.EVALUATE: digest(request)},
        received={MessageType.EVALUATE: {region: found for region, (_, found) in passed.items()}},
    )
    return Comparison(differences, metrics, [*meeting.refused, *rejected], traffic)
