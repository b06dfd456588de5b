"""What the audit logs of both sides say of a message, so that they can be held against each other.

An exchange is one message and its answer. The region's worker notes every one, by its kind and the
sha256 of request and reply; headquarters notes at the end of a round the same digests of the
replies that counted. Neither notes anything of the content. The bytes are those of
`shared.envelope`, which both sides can make again from what Flower hands them.

    region        message.answered   kind, received, received_bytes, sent, sent_bytes
                  message.refused    kind, error: the class of what went wrong
    headquarters  round.completed    sent by kind, received by kind and region, and more
                  round.failed       the same, as far as the round came
                  gate.decided       the same, of the gate's comparison
                  matrix.trained     the same, of a round of one region alone
                  matrix.measured    the same, of the cross-site table
"""

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flwr.app import RecordDict

from shared.envelope import pack

if TYPE_CHECKING:  # the ClientApp's process, which imports this, must start quickly
    from shared.audit import AuditEntry

ANSWERED, REFUSED = "message.answered", "message.refused"
ROUND_COMPLETED, ROUND_FAILED, GATE_DECIDED = "round.completed", "round.failed", "gate.decided"
MATRIX_TRAINED, MATRIX_MEASURED = "matrix.trained", "matrix.measured"
_COUNTED = (ROUND_COMPLETED, ROUND_FAILED, GATE_DECIDED, MATRIX_TRAINED, MATRIX_MEASURED)
_Exchange = tuple[str, str, str]  # kind, digest of the request, digest of the reply


def digest(content: RecordDict) -> str:
    """Hex sha256 of a message's content as `pack` writes it.

    Args:
        content: of a request or reply; the order of its records and arrays counts, and travels.

    Raises:
        WireError: the content is none that a worker can have sent.
    """
    return hashlib.sha256(pack(content)).hexdigest()


def exchange_facts(kind: str, request: bytes, reply: bytes) -> dict[str, str | int]:
    """What a region notes of a message it has answered.

    Args:
        kind: Flower's message type.
        request: what `pack` wrote, as it was received.
        reply: what `pack` wrote, as it is sent.
    """
    return {
        "kind": kind,
        "received": hashlib.sha256(request).hexdigest(),
        "received_bytes": len(request),
        "sent": hashlib.sha256(reply).hexdigest(),
        "sent_bytes": len(reply),
    }


def compare_logs(
    headquarters: Iterable["AuditEntry"], region: Iterable["AuditEntry"], name: str
) -> tuple[int, list[str]]:
    """Look for every exchange that headquarters counted in the region's own log.

    The other way round says nothing: a region answers more than counts, such as descriptions, and
    rounds that were cut off.

    Args:
        headquarters: all entries of its log.
        region: all entries of the region's log.
        name: of the region, as headquarters calls it.

    Returns:
        How many exchanges headquarters counted, and which of them the region does not know.
    """
    known = {_answered(entry.facts) for entry in region if entry.event == ANSWERED}
    counted = [
        (f"entry {entry.seq}, {kind}", (kind, sent, received))
        for entry in headquarters
        if entry.event in _COUNTED
        for kind, sent, received in _counted(entry.facts, name)
    ]
    return len(counted), [where for where, exchange in counted if exchange not in known]


def _answered(facts: dict[str, Any]) -> _Exchange:
    return facts["kind"], facts["received"], facts["sent"]


def _counted(facts: dict[str, Any], name: str) -> list[_Exchange]:
    received = facts["received"].items()
    return [
        (kind, facts["sent"][kind], replies[name]) for kind, replies in received if name in replies
    ]
