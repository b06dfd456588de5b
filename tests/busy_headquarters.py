"""A headquarters folder in the middle of its work, made through the classes that write it.

Four regions are admitted, one is invited, one was revoked. Three trainings are over, two of them
released and one declined; a fourth is at its sixth round. There is a cross-site table.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from cryptography.hazmat.primitives.asymmetric import ec

from server.enrolment import admit, invite, revoke, set_node_id
from server.gate import GateRule, decide, to_json
from server.headquarters import Headquarters, init_headquarters
from server.history import History, RoundRecord
from server.releases import publish_release, write_release
from server.training import Training, start_training
from shared.adapter import Adapter
from shared.audit import AuditLog
from shared.enrolment import KeyProof, openssh_line, prove, token_digest
from shared.release import MODEL_FILES, ReleaseBase, ReleaseFacts
from shared.wire import Description
from shared.wire_evaluation import Difference

ADAPTER: Adapter = {"a": torch.zeros(3)}
RULE = GateRule(tolerance=0.02, confidence=0.95, min_queries=30)
START = {"east": 0.512, "north": 0.548, "south": 0.431, "west": 0.476}
QUERIES = {"east": 412, "north": 268, "south": 173, "west": 21}
NORM = "update norm 214 is above the bound 100"


def empty_headquarters(folder: Path, base: Path) -> Headquarters:
    """As `fedshelf server init` leaves it."""
    return init_headquarters(folder, name="Nordwind Retail", address="hq.example:9443", base=base)


def busy_headquarters(folder: Path, base: Path) -> Headquarters:
    """All there is to see."""
    hq = empty_headquarters(folder, base)
    audit = AuditLog(hq.audit)
    audit.append("headquarters.made", base_fingerprint=hq.fingerprint, release_key=hq.release_key)
    for name in (*START, "harbour"):
        admit_region(hq, name)
        audit.append("region.invited", region=name)
        audit.append("region.admitted", region=name, node_id=f"{hash_of(name)}")
    revoke(hq, "harbour")
    audit.append("region.revoked", region="harbour")
    invite(hq, "islands")
    first = train(hq, rounds=8, parent=None, gain=0.09)
    judge(first, {0: differences(0.071)})
    release(hq, first, number=1)
    second = train(hq, rounds=8, parent=1, gain=0.05)
    judge(second, {1: differences(0.024)})
    release(hq, second, number=2)
    third = train(hq, rounds=8, parent=2, gain=0.012)
    worse = differences(0.004) | {"south": Difference(173, -0.031, 0.021)}
    judge(third, {1: differences(0.019), 2: worse})
    fourth = train(hq, rounds=8, done=5, parent=2, gain=0.04)
    audit.append("training.started", training=fourth.number, run_id=7312)
    meet(fourth.history)
    cross_site(hq)
    return hq


def admit_region(hq: Headquarters, name: str) -> None:
    """Through invitation, key and proof, as `fedshelf region enroll` makes them."""
    token = token_digest(invite(hq, name).token)
    public = openssh_line(ec.generate_private_key(ec.SECP384R1()).public_key())
    proof = prove(token, region=name, public_key=public)
    path = hq.folder / "node.pub"
    path.write_text(KeyProof(region=name, public_key=public, proof=proof).to_line())
    admit(hq, name, path)
    set_node_id(hq, name, hash_of(name))
    path.unlink()


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode()[:7], "big")


def train(
    hq: Headquarters, *, rounds: int, parent: int | None, gain: float, done: int | None = None
) -> Training:
    """A training with as many rounds done, all by default."""
    training = start_training(
        hq.trainings,
        initial=ADAPTER,
        base_fingerprint=hq.fingerprint,
        references={0: ADAPTER},
        parent=parent,
        run_config={"num-rounds": rounds, "seed": 7},
    )
    for number in range((rounds if done is None else done) + 1):
        training.history.append(record(number, gain), ADAPTER)
    return training


def record(number: int, gain: float) -> RoundRecord:
    """A round like those of a real run: rising, levelling off, now and then a reply lost."""
    validation = {}
    for place, (name, start) in enumerate(START.items()):
        risen = gain * (1 - math.exp(-number / 2.2)) * (1 + 0.3 * place)
        wobble = 0.006 * math.sin(2.1 * number + 1.7 * place)
        validation[name] = {"ndcg@10": round(start + risen + wobble, 4), "recall@10": 0.6}
    rejected = []
    if number == 3:
        del validation["west"]
        rejected = [{"region": "west", "reason": "no reply within 3600 s"}]
    if number == 5:
        rejected = [{"region": "south", "reason": NORM}]
    return RoundRecord(
        number,
        loss=None if number == 0 else round(2.1 * math.exp(-number / 5) + 0.9, 4),
        seconds=4.2 if number == 0 else 61.5 + 3 * number,
        uplink_bytes=0 if number == 0 else 2_216_000,
        downlink_bytes=4_432_000,
        cohort=list(START),
        rejected=rejected,
        validation=validation,
    )


def differences(mean: float) -> dict[str, Difference]:
    """What the regions measured against one reference; west has too few queries to count."""
    return {
        name: Difference(queries, round(mean + 0.004 * (place - 1), 4), 0.03 + 0.01 * place)
        for place, (name, queries) in enumerate(QUERIES.items())
    }


def judge(training: Training, found: Mapping[int, Mapping[str, Difference]]) -> None:
    """What `server.gate_round` keeps."""
    best = training.history.best_round()
    training.history.keep(
        "gate.json",
        {
            "round": best,
            "candidate": training.history.rounds()[best].validation,
            "differences": {
                str(n): {name: asdict(one) for name, one in rows.items()}
                for n, rows in found.items()
            },
            "rejected": [],
            "decision": to_json(decide(found, RULE)),
        },
    )


def release(hq: Headquarters, training: Training, *, number: int) -> None:
    """Write, sign and publish a training's release."""
    files = hq.folder / "staging"
    for name in MODEL_FILES:
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_bytes(name.encode() * 50)
    gate = training.history.gate() or {}
    decision = {key: gate["decision"][key] for key in ("accepted", "checks")}
    facts = ReleaseFacts(
        parent=training.config["parent"],
        base=ReleaseBase(fingerprint=hq.fingerprint, ids={"text": "minilm", "image": "small"}),
        dims={"vector": 384},
        encoder_digest=f"{number:02x}" * 32,
        rounds=gate["round"],
        strategy="FedAvg",
        quality={"gate": {"decision": decision, "candidate": gate["candidate"]}},
    )
    assert (
        write_release(hq.releases, files=files, facts=facts, signing_key=hq.signing_key) == number
    )
    training.released(number)
    current = publish_release(hq.releases, number, signing_key=hq.signing_key)
    audit = AuditLog(hq.audit)
    audit.append("training.started", training=training.number, run_id=7000 + training.number)
    audit.append(
        "release.written",
        release=number,
        training=training.number,
        encoder_digest=facts.encoder_digest,
        round=gate["round"],
    )
    audit.append("release.promoted", release=number, sequence=current.sequence)


def meet(history: History) -> None:
    """What the regions said of themselves at the last handshake; one was refused there."""
    verdicts = {
        "east": ("accepted", 2, ""),
        "north": ("accepted", 2, ""),
        "south": ("declined", 2, "nDCG@10 -0.031 on 173 own queries, tolerance 0.02"),
        "west": ("waiting", 2, ""),
    }
    said = {
        name: asdict(description(name, place, *verdicts[name])) for place, name in enumerate(START)
    }
    history.note_regions(said, [])
    reason = 'region "west": base 91cc07aa21f0, headquarters has 3f2a1c77d05e; copy the base again'
    history.note_regions({}, [{"region": "west", "reason": reason}])


def description(name: str, place: int, verdict: str, number: int, reason: str) -> Description:
    return Description(
        region=name,
        protocol_version=1,
        base_fingerprint="b" * 64,
        schema_hash="5" * 64,
        rank=16,
        num_products=(48_210, 31_077, 12_450, 9_982)[place],
        num_examples=(182_344, 96_120, 40_871, 21_563)[place],
        num_validation_queries=(802, 511, 340, 44)[place],
        code_version="0.1.0",
        device="cuda" if place == 0 else "cpu",
        release=2 if verdict == "accepted" else 1,
        num_gate_queries=QUERIES[name],
        verdict=verdict,
        verdict_release=number,
        verdict_reason=reason,
        in_matrix=True,
        shares_local=False,
        named=True,
    )


def cross_site(hq: Headquarters) -> None:
    """A table as `server.matrix` keeps it."""
    table = start_training(
        hq.matrices,
        initial=ADAPTER,
        base_fingerprint=hq.fingerprint,
        references={0: ADAPTER},
        parent=None,
        run_config={"task": "matrix"},
    )
    gains = {
        "release 0": (0.0, 0.0, 0.0, 0.0),
        "release 1": (0.062, 0.081, 0.055, 0.094),
        "release 2": (0.083, 0.097, 0.031, 0.121),
        "east alone": (0.071, -0.021, -0.058, 0.012),
        "south alone": (-0.034, -0.012, 0.066, 0.0),
    }
    rows = {
        name: {region: START[region] + gain for region, gain in zip(START, row, strict=True)}
        for name, row in gains.items()
    }
    value = {"metric": "ndcg@10", "rows": rows, "num_queries": QUERIES, "rejected": []}
    table.history.keep("matrix.json", value)
