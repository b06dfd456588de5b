"""What both sides' audit logs say of messages, and how one log is held against the other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from shared import wire
from shared.audit import AuditEntry, AuditLog, read_audit
from shared.envelope import pack, unpack
from shared.errors import WireError
from shared.exchanges import compare_logs, digest, exchange_facts

REQUEST = wire.describe_request()
TRAINED: dict[str, Any] = {"encoding": "float32", "num_examples": 4, "loss": 0.5, "seconds": 0.25}
REPLY = wire.train_reply({"a": torch.ones(3)}, **TRAINED)


def entries(path: Path, *facts: dict[str, Any]) -> list[AuditEntry]:
    """A log with the facts of one entry each; its event is among them."""
    for given in facts:
        AuditLog(path).append(**given)
    return read_audit(path)


def counted(event: str = "round.completed", **digests: str) -> dict[str, Any]:
    """What headquarters notes of a round in which one region trained."""
    train = {"sent": {"train": digest(REQUEST)}, "received": {"train": digests}}
    return {"event": event, "round": 1, **train}


def answered(kind: str = "train", reply: RecordDict = REPLY) -> dict[str, Any]:
    return {"event": "message.answered", **exchange_facts(kind, pack(REQUEST), pack(reply))}


def test_both_sides_name_a_message_alike() -> None:
    facts = exchange_facts("train", pack(REQUEST), pack(REPLY))
    assert facts == {
        "kind": "train",
        "received": digest(REQUEST),
        "received_bytes": len(pack(REQUEST)),
        "sent": digest(REPLY),
        "sent_bytes": len(pack(REPLY)),
    }
    assert digest(unpack(pack(REPLY), max_bytes=10**6)) == digest(REPLY)


def test_one_number_more_or_less_is_another_message() -> None:
    other = wire.train_reply({"a": torch.tensor([1.0, 1.0, 1.0 + 2**-23])}, **TRAINED)
    assert digest(other) != digest(REPLY)


def test_what_no_worker_can_have_sent_has_no_digest() -> None:
    with pytest.raises(WireError, match="a record holds bytes"):
        digest(RecordDict({"config": ConfigRecord({"code": b"\x80"}), "arrays": ArrayRecord()}))


def test_every_message_that_counted_is_looked_for(tmp_path: Path) -> None:
    ours = entries(
        tmp_path / "hq.jsonl",
        {"event": "training.started", "training": 1},
        counted(north=digest(REPLY), east="e" * 64),
        counted("gate.decided", north=digest(REPLY)),
        counted("round.failed", east="e" * 64),
    )
    theirs = entries(
        tmp_path / "north.jsonl",
        {"event": "region.enrolled"},
        {"event": "message.refused", "kind": "train", "error": "WireError"},
        answered("query.describe"),
        answered(),
    )
    assert compare_logs(ours, theirs, "north") == (2, [])
    assert compare_logs(ours, theirs, "east") == (2, ["entry 2, train", "entry 4, train"])
    assert compare_logs(ours, theirs, "south") == (0, [])


@pytest.mark.parametrize(
    "noted", [answered("evaluate"), answered(reply=REQUEST)], ids=["other kind", "other answer"]
)
def test_request_answer_and_kind_belong_together(tmp_path: Path, noted: dict[str, Any]) -> None:
    ours = entries(tmp_path / "hq.jsonl", counted(north=digest(REPLY)))
    theirs = entries(tmp_path / "north.jsonl", noted)
    assert compare_logs(ours, theirs, "north") == (1, ["entry 1, train"])
