"""Carry a training through Flower: start the run, follow it, release what the gate accepts.

Flower's control API is asked on loopback only. The rounds themselves are in the training's folder,
so a run that failed, or was killed with everything around it, is followed by another run that goes
on after the last complete round: at once where Flower has only lost sight of its process.
"""

import json
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from server.candidate import measured_quality, release_best
from server.control import Control, RunStatus, SuperLinkAway, run_config_toml, stage_app
from server.headquarters import Headquarters
from server.history import RoundRecord
from server.processes import CONNECTION
from server.releases import publish_release
from server.training import (
    Training,
    abandon,
    gate_references,
    read_adapter,
    release_numbers,
    start_training,
    trainings,
)
from shared.adapter import save_adapter
from shared.audit import AuditLog
from shared.config import RunConfig
from shared.durable import canonical_json, replace_file
from shared.encoders.encoder import Encoder, load_encoder
from shared.errors import FederationError
from shared.release import CurrentRelease, read_release
from shared.supervise import program_beside_python

POLL_S = 1.0
ASK_S = 5.0  # asking Flower how a run is doing takes its command two seconds of a processor
OUTAGE_S = 60.0  # a SuperLink that was killed is up again within seconds, and its runs go on
LOST = "No heartbeat received from the task"  # Flower's word for a ServerApp that died
IN_VAIN_AT_MOST = 3  # such runs in a row without a new round; then something kills them all


def base_encoder(hq: Headquarters) -> Encoder:
    """Headquarters' own encoder, on the CPU: it only packs adapters into releases."""
    return load_encoder(hq.base, device="cpu", expected=hq.fingerprint)


def new_training(hq: Headquarters, run_config: RunConfig, *, seed: int) -> Training:
    """Make the next training, from the release in use or from the base.

    Args:
        hq: headquarters.
        run_config: knobs that differ from the defaults.
        seed: of the federation.

    Raises:
        FederationError: the former training is not over.
    """
    encoder = base_encoder(hq)
    encoder.reset(seed=seed)
    base = encoder.adapter()
    parent, references = gate_references(
        hq.releases, hq.adapters, public_key_hex=hq.release_key, base=base
    )
    initial = base if parent is None else read_adapter(hq.adapters, parent)
    return start_training(
        hq.trainings,
        initial=initial,
        base_fingerprint=hq.fingerprint,
        dim=encoder.dim,
        references=references,
        parent=parent,
        run_config={**run_config, "seed": seed},
    )


def new_matrix(hq: Headquarters, run_config: RunConfig, *, seed: int) -> Training:
    """Make a training folder whose task is the cross-site table of all releases.

    A table is not resumed, so one that was cut off is given up.
    """
    former = trainings(hq.matrices)
    if former and not former[-1].over:
        abandon(former[-1], "cut off, and asked for anew")
    encoder = base_encoder(hq)
    encoder.reset(seed=seed)
    numbers = [int(path.stem) for path in hq.adapters.glob("*.safetensors")]
    return start_training(
        hq.matrices,
        initial=encoder.adapter(),
        base_fingerprint=hq.fingerprint,
        dim=encoder.dim,
        references={number: read_adapter(hq.adapters, number) for number in sorted(numbers)},
        parent=None,
        run_config={**run_config, "seed": seed, "task": "matrix"},
    )


def latest(hq: Headquarters) -> Training:
    """The newest training.

    Raises:
        FederationError: there is none.
    """
    found = trainings(hq.trainings)
    if not found:
        raise FederationError(f'{hq.trainings}: empty; start with "fedshelf server train"')
    return found[-1]


def follow(
    hq: Headquarters, control: Control, training: Training, *, on_line: Callable[[str], None]
) -> None:
    """Run a training, or what is left of it, and wait until it is over.

    A run whose ServerApp died without a word (killed, out of memory, out of Flower's sight) is
    followed by another one, which waits for it if it should still be alive.

    Args:
        hq: headquarters, with its processes up.
        control: Flower's control API.
        training: what to run.
        on_line: told of every round, rejection and decision, one line each.

    Raises:
        FederationError: the run failed; complete rounds are kept.
    """
    run_id = _run_of(training, control) or _start(hq, control, training)
    told = in_vain = 0
    while True:
        on_line(f"training {training.number}: Flower run {run_id}")
        before = len(training.history.rounds())
        status, told = _follow_run(control, training, run_id, told, on_line)
        if training.complete:
            return
        in_vain = 0 if told > before else in_vain + 1
        if status.details != LOST or training.is_matrix or in_vain == IN_VAIN_AT_MOST:
            raise _failed(hq, training, run_id, status)
        on_line(f"Flower run {run_id}: {LOST}; goes on after the last complete round")
        run_id = _start(hq, control, training)


def by_hand(hq: Headquarters, training: Training) -> str:
    """What to type so that Flower's own command runs a training, or what is left of it.

    Args:
        hq: headquarters; its processes need not be up yet.
        training: what will run. Once it has, `follow` returns at once and `release` releases it.

    Returns:
        One line for a shell.
    """
    app, knobs = stage_app(hq.flower / "app"), training.folder / "run-config.toml"
    replace_file(knobs, run_config_toml(_run_config(training)).encode())
    flwr = program_beside_python("flwr")
    words = (flwr, "run", str(app), CONNECTION, "--stream", "--run-config", str(knobs.resolve()))
    AuditLog(hq.audit).append("training.handed_over", training=training.number)
    return f"FLWR_HOME={shlex.quote(str(hq.flower.resolve()))} {shlex.join(words)}"


def release(hq: Headquarters, training: Training) -> int | None:
    """Turn a complete training into a signed release, if the gate accepted it.

    After a kill at any instant it can be called again, and makes no second release.

    Returns:
        The release's number, also if it was made before; None if the gate declined.
    """
    gate = training.history.gate()
    if gate is None or not gate["decision"]["accepted"]:
        return None
    if training.release is not None:
        return training.release
    encoder = base_encoder(hq)
    encoder.load_adapter(training.history.adapter(training.history.best_round()))
    number = _written(hq, training, encoder.digest) or release_best(
        training.history,
        encoder,
        registry=hq.releases,
        signing_key=hq.signing_key,
        former_key=hq.former_signing_key,
        parent=training.config["parent"],
        quality={"training": training.number, **measured_quality(training.history)},
    )
    save_adapter(hq.adapters / f"{number}.safetensors", encoder.adapter(), {})
    AuditLog(hq.audit).append(
        "release.written",
        release=number,
        training=training.number,
        encoder_digest=encoder.digest,
        round=gate["round"],
    )
    training.released(number)  # last: until then all of this is done again
    return number


def put_into_use(hq: Headquarters, number: int, *, event: str) -> CurrentRelease:
    """Sign the statement that a release is the one in use.

    Args:
        hq: headquarters, with its signing key in place.
        number: of the release.
        event: how the audit log calls it: "release.promoted" or "release.rolled_back".
    """
    current = publish_release(
        hq.releases, number, signing_key=hq.signing_key, former_key=hq.former_signing_key
    )
    AuditLog(hq.audit).append(event, release=number, sequence=current.sequence)
    return current


def _written(hq: Headquarters, training: Training, digest: str) -> int | None:
    """The release of this training, if one was signed before `release` was cut off.

    It can only be the newest, since no other training starts before this one is over.
    """
    for number in release_numbers(hq.releases)[-1:]:
        manifest = read_release(hq.releases / str(number), public_key_hex=hq.release_key)
        if (manifest.quality.get("training"), manifest.encoder_digest) == (training.number, digest):
            return number
    return None


def _follow_run(
    control: Control, training: Training, run_id: int, told: int, on_line: Callable[[str], None]
) -> tuple[RunStatus, int]:
    """Tell of a run's rounds until it ends; returns how it ended, and the rounds told so far."""
    for status in _watch(control, training, run_id):
        records = training.history.rounds()
        for line in _lines(records[told:]):
            on_line(line)
        told = len(records)
        if status.finished:
            return status, told
    raise AssertionError("a run is watched until it has ended")


def _failed(
    hq: Headquarters, training: Training, run_id: int, status: RunStatus
) -> FederationError:
    ending = f"{status.sub_status} {status.details}".rstrip()
    again = "matrix" if training.is_matrix else "train --resume"
    return FederationError(
        f"training {training.number}: Flower run {run_id} ended as {ending}; "
        f'"FLWR_HOME={hq.flower} flwr log {run_id} prod" says more; go on with '
        f'"fedshelf server {again}"'
    )


def _watch(control: Control, training: Training, run_id: int) -> Iterator[RunStatus]:
    """How a run is doing, every `POLL_S`; asked anew every `ASK_S`, or once its files are there."""
    while True:
        status, ask_again = _status(control, run_id), time.monotonic() + ASK_S
        yield status
        while time.monotonic() < ask_again and not training.complete:
            time.sleep(POLL_S)
            yield status
        time.sleep(POLL_S)


def _status(control: Control, run_id: int) -> RunStatus:
    """How a run is doing; a SuperLink that is away for a moment is waited for."""
    give_up = time.monotonic() + OUTAGE_S
    while True:
        try:
            return control.run_status(run_id)
        except SuperLinkAway:
            if time.monotonic() > give_up:
                raise
        time.sleep(POLL_S)


def _start(hq: Headquarters, control: Control, training: Training) -> int:
    run_id = control.start_run(stage_app(hq.flower / "app"), _run_config(training))
    replace_file(training.folder / "run.json", canonical_json({"run_id": run_id}))
    AuditLog(hq.audit).append("training.started", training=training.number, run_id=run_id)
    return run_id


def _run_config(training: Training) -> RunConfig:
    return {**training.config["run_config"], "run-dir": str(training.folder.resolve())}


def _run_of(training: Training, control: Control) -> int | None:
    """The Flower run that is still at work on a training, if one is."""
    path: Path = training.folder / "run.json"
    if not path.is_file():
        return None
    run_id = int(json.loads(path.read_text("utf-8"))["run_id"])
    return None if _status(control, run_id).finished else run_id


def _lines(records: list[RoundRecord]) -> Iterator[str]:
    for record in records:
        yield round_line(record)
        for entry in record.rejected:
            yield f"  {entry['region']}: {entry['reason']}"


def round_line(record: RoundRecord) -> str:
    """One round in one line."""
    loss = "" if record.loss is None else f"loss {record.loss:.4f}, "
    bias = "" if record.relative_bias is None else f"bias {record.relative_bias:.2%}, "
    return (
        f"round {record.round}: {loss}{bias}validation nDCG@10 {record.mean('ndcg@10'):.4f}, "
        f"{len(record.validation)} of {len(record.cohort)} regions, {record.seconds:.1f} s"
    )


def gate_lines(gate: dict[str, Any]) -> Iterator[str]:
    """What the gate found, one line a check."""
    decision = gate["decision"]
    yield f"gate: round {gate['round']} is {'accepted' if decision['accepted'] else 'declined'}"
    for check in decision["checks"]:
        verdict = "passed" if check["passed"] else "failed"
        yield (
            f"  against release {check['reference']}, {check['scope']}: {check['mean']:+.4f}, "
            f"lower bound {check['lower']:+.4f}, {check['num_queries']} queries, "
            f"{verdict if check['counted'] else 'not counted'}"
        )
    for reason in decision["reasons"]:
        yield f"  {reason}"
