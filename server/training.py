"""Trainings at headquarters: what each starts from, and how far it has come.

    trainings/0001/config.json       run config, and the release it started from
    trainings/0001/headquarters/     what `server.history` keeps, and the gate's references
    trainings/0001/release.json      number of the release that came of it, if one did
    adapters/<number>.safetensors    the adapter of each release, for the gate and for going on

A training starts from the release in use, or from the base. It is complete once the gate has
decided; until then it can be resumed, and ends with the same adapter as if nothing had happened. It
is over once what the gate accepted is released; the next one starts only then.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.history import History
from server.traffic import TrainingLog
from shared.adapter import Adapter, load_adapter, save_adapter
from shared.durable import canonical_json, locked, new_folder, replace_file
from shared.errors import FederationError, ReleaseError
from shared.release import read_current_of_any_age, read_release


@dataclass(frozen=True)
class Training:
    """One training's folder.

    Attributes:
        folder: `trainings/<number>`; the run config names it as `run-dir`.
    """

    folder: Path

    @property
    def number(self) -> int:
        """1, 2, ..."""
        return int(self.folder.name)

    @property
    def history(self) -> History:
        """Its rounds, handshakes and gate."""
        return History(self.folder / "headquarters")

    @property
    def complete(self) -> bool:
        """Whether its Flower run is done: the gate has decided, or the table is made."""
        return self.history.gate() is not None or self.history.matrix() is not None

    @property
    def over(self) -> bool:
        """Whether nothing is left to do: it was declined, given up or released, or is a table."""
        gate = self.history.gate()
        if gate is None:
            return self.history.matrix() is not None
        return not gate["decision"]["accepted"] or self.release is not None

    @property
    def config(self) -> dict[str, Any]:
        """`run_config`, and `parent`: the release it started from, or None."""
        return _read_json(self.folder / "config.json")

    @property
    def is_matrix(self) -> bool:
        """Whether its task is the cross-site table."""
        return bool(self.config["run_config"].get("task") == "matrix")

    @property
    def release(self) -> int | None:
        """Number of the release that came of it, or None."""
        path = self.folder / "release.json"
        return int(_read_json(path)["release"]) if path.is_file() else None

    def released(self, number: int) -> None:
        """Note which release came of it."""
        replace_file(self.folder / "release.json", canonical_json({"release": number}))


def trainings(folder: Path) -> list[Training]:
    """Trainings under `trainings/`, oldest first."""
    found = [path for path in folder.glob("[0-9]*") if path.name.isdecimal()]
    return [Training(path) for path in sorted(found, key=lambda path: int(path.name))]


def start_training(
    folder: Path,
    *,
    initial: Adapter,
    base_fingerprint: str,
    dim: int = 0,
    references: Mapping[int, Adapter],
    parent: int | None,
    run_config: Mapping[str, str | int | float | bool],
) -> Training:
    """Make the folder of the next training.

    Args:
        folder: `trainings/`.
        initial: what round 1 starts from.
        base_fingerprint: of the base it belongs to.
        dim: of that base's vectors.
        references: what the gate compares with, by release number; 0 is the base.
        parent: the release that `initial` is, None for the base.
        run_config: knobs that differ from the defaults.

    Raises:
        FederationError: the latest training is not over.
    """
    with locked(folder):
        before = trainings(folder)
        if before and not before[-1].over:
            give_up = "" if before[-1].complete else ', or give it up with "--abandon"'
            raise FederationError(
                f"{before[-1].folder}: this training is not over; go on with "
                f'"fedshelf server train --resume"{give_up}'
            )
        number = before[-1].number + 1 if before else 1
        with new_folder(folder / f"{number:04d}") as partial:
            history = History(partial / "headquarters")
            history.start(initial, base_fingerprint=base_fingerprint, dim=dim)
            for release, adapter in references.items():
                path = history.folder / "references" / f"{release}.safetensors"
                save_adapter(path, adapter, {"release": str(release)})
            config = {"parent": parent, "run_config": dict(run_config)}
            (partial / "config.json").write_bytes(canonical_json(config))
    return Training(folder / f"{number:04d}")


def abandon(training: Training, reason: str) -> None:
    """Declare a training over without a release; its rounds stay for people to look at.

    Raises:
        FederationError: the gate has decided, and what it found stays known.
    """
    if training.complete:
        raise FederationError(
            f"training {training.number}: the gate has decided, so there is nothing to give up; "
            'leave out "--abandon"'
        )
    decision = {"accepted": False, "checks": [], "reasons": [reason]}
    TrainingLog.of(training.folder).abandoned(reason)
    training.history.keep(
        "gate.json",
        {"round": 0, "candidate": {}, "differences": {}, "rejected": [], "decision": decision},
    )


def gate_references(
    registry: Path, adapters: Path, *, public_key_hex: str, base: Adapter
) -> tuple[int | None, dict[int, Adapter]]:
    """The release in use, and what a candidate must not be inferior to.

    These are the release in use and the best earlier one by its own gate figures, so that small
    losses cannot add up; before the first release, the base.

    Args:
        registry: the folder of numbered releases.
        adapters: the folder of their adapters.
        public_key_hex: of the release signer.
        base: the adapter that changes nothing.

    Returns:
        Number of the release in use or None, and adapters by release number, 0 for the base.

    Raises:
        ReleaseError: a release or statement is damaged, or an adapter is not there.
    """
    if not (registry / "current.json").is_file():
        return None, {0: base}
    current = read_current_of_any_age(registry, public_key_hex=public_key_hex).release
    best = max(
        release_numbers(registry), key=lambda n: (_gate_mean(registry, n, public_key_hex), n)
    )
    return current, {n: read_adapter(adapters, n) for n in sorted({current, best})}


def release_numbers(registry: Path) -> list[int]:
    """Numbers of the releases there are, ascending."""
    if not registry.is_dir():
        return []
    return sorted(int(path.name) for path in registry.iterdir() if path.name.isdecimal())


def read_adapter(adapters: Path, number: int) -> Adapter:
    """The adapter of a release, as headquarters kept it.

    Raises:
        ReleaseError: it is not there.
    """
    path = adapters / f"{number}.safetensors"
    if not path.is_file():
        raise ReleaseError(f"{path}: not found; restore it from the backup of headquarters")
    return load_adapter(path)


def _gate_mean(registry: Path, number: int, public_key_hex: str) -> float:
    """Mean over regions of what a release reached on the gate clicks of its time."""
    manifest = read_release(registry / str(number), public_key_hex=public_key_hex)
    gate = manifest.quality.get("gate")
    candidate = gate.get("candidate") if isinstance(gate, dict) else None
    rows = candidate.values() if isinstance(candidate, dict) else []
    values = [row.get("ndcg@10") for row in rows if isinstance(row, dict)]
    known = [value for value in values if isinstance(value, int | float)]
    return sum(known) / len(known) if known else 0.0


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        raise FederationError(f"{path}: missing or damaged; restore it from a backup") from None
