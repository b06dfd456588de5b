"""What headquarters' audit log says of a training: who took part, which messages counted, the mean.

A training lies in `HEADQUARTERS/trainings/NUMBER`, a cross-site table in `matrices/NUMBER`, and the
entries of both go to `audit.jsonl` of that headquarters. A simulation has no headquarters, and
nothing is noted.

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
from shared.exchanges import (
    GATE_DECIDED,
    MATRIX_MEASURED,
    MATRIX_TRAINED,
    ROUND_COMPLETED,
    ROUND_FAILED,
)

_KINDS = {"trainings": "training", "matrices": "matrix"}  # by the folder they lie in


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
    """Notes what happens in one training, or one cross-site table.

    Args:
        audit: of headquarters; None notes nothing.
        kind: "training" or "matrix".
        number: of it.
    """

    def __init__(
        self, audit: AuditLog | None = None, *, kind: str = "training", number: int = 0
    ) -> None:
        self._audit, self._kind, self._number = audit, kind, number

    @classmethod
    def of(cls, run_dir: Path) -> "TrainingLog":
        """That of a run's folder: of headquarters if it lies in one, otherwise of nobody."""
        siblings = run_dir.resolve().parent
        headquarters, kind = siblings.parent, _KINDS.get(siblings.name)
        if kind is None or not (headquarters / "server.toml").is_file():
            return cls()
        return cls(AuditLog(headquarters / "audit.jsonl"), kind=kind, number=int(run_dir.name))

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
            **_meeting_facts(cohort, rejected, traffic),
        }
        self._append(GATE_DECIDED, facts)

    def abandoned(self, reason: str) -> None:
        """Note that it is given up; what it found so far stays."""
        self._append(f"{self._kind}.abandoned", {"reason": reason})

    def matrix_trained(self, record: RoundRecord, traffic: Traffic) -> None:
        """Note a round that one region trained alone, to share the adapter that comes of it."""
        self._append(MATRIX_TRAINED, _round_facts(record, traffic))

    def matrix_measured(
        self, *, cohort: Iterable[str], rejected: Iterable[Mapping[str, str]], traffic: Traffic
    ) -> None:
        """Note what a cross-site table was made of; `matrix.json` is not written yet."""
        self._append(MATRIX_MEASURED, _meeting_facts(cohort, rejected, traffic))

    def _append(self, event: str, facts: Mapping[str, JsonValue]) -> None:
        if self._audit is not None:
            self._audit.append(event, **{self._kind: self._number}, **facts)


def _round_facts(record: RoundRecord, traffic: Traffic) -> dict[str, JsonValue]:
    return {"round": record.round, **_meeting_facts(record.cohort, record.rejected, traffic)}


def _meeting_facts(
    cohort: Iterable[str], rejected: Iterable[Mapping[str, str]], traffic: Traffic
) -> dict[str, JsonValue]:
    return {
        "cohort": [*sorted(cohort)],
        "rejected": [dict(entry) for entry in rejected],
        **traffic.facts(),
    }
