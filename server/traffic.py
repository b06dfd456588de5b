"""What headquarters' audit log says of a training: who took part, which messages counted, the mean.

A training lies in `HEADQUARTERS/trainings/NUMBER`, and its entries go to `audit.jsonl` of that
headquarters. A simulation has no headquarters, and nothing is noted.

Each entry is written before the file it tells of (`history.json`, `gate.json`). So after a kill
between the two a round is noted twice rather than never: what is not in the history is run again,
and a round that is run again is another entry of the same number. One that is in the history is
neither run nor noted again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from server.gate import GateDecision
from server.history import RoundRecord
from shared.audit import AuditLog
from shared.durable import sha256_file
from shared.exchanges import GATE_DECIDED, ROUND_COMPLETED, ROUND_FAILED


@dataclass
class Traffic:
    """Digests (`shared.exchanges.digest`) of the messages of one round.

    Attributes:
        sent: of the request, which is the same for the whole cohort, by kind.
        received: of every reply that counted, by kind and region.
    """

    sent: dict[str, str] = field(default_factory=dict)
    received: dict[str, dict[str, str]] = field(default_factory=dict)

    def facts(self) -> dict[str, JsonValue]:
        """As the audit log has them."""
        received: dict[str, JsonValue] = {
            kind: dict(sorted(replies.items())) for kind, replies in self.received.items()
        }
        return {"sent": dict(self.sent), "received": received}


class TrainingLog:
    """Notes what happens in one training.

    Args:
        audit: of headquarters; None notes nothing.
        training: its number.
    """

    def __init__(self, audit: AuditLog | None = None, *, training: int = 0) -> None:
        self._audit, self._training = audit, training

    @classmethod
    def of(cls, run_dir: Path) -> "TrainingLog":
        """That of a run's folder: of headquarters if it lies in one, otherwise of nobody."""
        trainings = run_dir.resolve().parent
        headquarters = trainings.parent
        if trainings.name != "trainings" or not (headquarters / "server.toml").is_file():
            return cls()
        return cls(AuditLog(headquarters / "audit.jsonl"), training=int(run_dir.name))

    def round_completed(self, record: RoundRecord, traffic: Traffic, adapter: Path) -> None:
        """Note a round whose adapter is in a file; its record is not in the history yet.

        The file's sha256 is noted, because anybody can ask for it. The same adapter written once
        more can have another, as safetensors puts its metadata in any order.

        Raises:
            AuditError: the log is damaged or cannot be written.
        """
        if self._audit is not None:
            facts = {**_round_facts(record, traffic), "adapter": sha256_file(adapter)}
            self._append(ROUND_COMPLETED, facts)

    def round_failed(self, record: RoundRecord, traffic: Traffic, reason: str) -> None:
        """Note a round that cannot go on: who was asked, who was rejected and why.

        Raises:
            AuditError: the log is damaged or cannot be written.
        """
        self._append(ROUND_FAILED, {**_round_facts(record, traffic), "reason": reason})

    def gate_decided(
        self,
        server_round: int,
        decision: GateDecision,
        *,
        cohort: Iterable[str],
        rejected: Iterable[Mapping[str, str]],
        traffic: Traffic,
    ) -> None:
        """Note what the gate says of a round's adapter; `gate.json` is not written yet."""
        facts: dict[str, JsonValue] = {
            "round": server_round,
            "verdict": "accepted" if decision.accepted else "declined",
            "reasons": [*decision.reasons],
            "cohort": [*sorted(cohort)],
            "rejected": [dict(entry) for entry in rejected],
            **traffic.facts(),
        }
        self._append(GATE_DECIDED, facts)

    def _append(self, event: str, facts: Mapping[str, JsonValue]) -> None:
        if self._audit is not None:
            self._audit.append(event, training=self._training, **facts)


def _round_facts(record: RoundRecord, traffic: Traffic) -> dict[str, JsonValue]:
    return {
        "round": record.round,
        "cohort": list(record.cohort),
        "rejected": [dict(entry) for entry in record.rejected],
        **traffic.facts(),
    }
