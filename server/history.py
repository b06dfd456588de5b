"""What headquarters keeps of a run: the adapter after every round, and the story of the rounds.

    headquarters/initial.safetensors      what round 1 starts from; metadata: base fingerprint
    headquarters/rounds/0001.safetensors  the global adapter after round 1
    headquarters/memory/0001.safetensors  what is remembered of round 1 beside the adapter, if any
    headquarters/history.json             one record a round
    headquarters/regions.json             what each region last said of itself, and when
    headquarters/references/3.safetensors adapters of earlier releases, for the gate to compare with
    headquarters/gate.json                what the gate decided, from which figures
    headquarters/matrix.json              the cross-site table, where it was asked for

Adapter and memory of a round are written before its record, each beside and renamed: after a kill
at any instant the records name only adapters that are whole, and the run goes on after the last.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from shared.adapter import Adapter, load_adapter, save_adapter
from shared.durable import canonical_json, replace_file
from shared.errors import FederationError

Refused = Sequence[Mapping[str, str]]  # region and reason
# Less in mean validation nDCG@10 is noise; docs/simulation.md says how this was found.
NOISE = 0.01


@dataclass
class RoundRecord:
    """What happened in one round; round 0 is the evaluation before training.

    Attributes:
        round: number.
        loss: mean training loss over the cohort, weighted by examples, nats; None in round 0.
        seconds: wall time.
        uplink_bytes: of all accepted updates' arrays.
        downlink_bytes: of all adapters sent for training and evaluation.
        cohort: names of the regions asked.
        rejected: region and reason of every reply that did not count.
        validation: metrics on validation clicks by region.
        method: Flower's name of the strategy, and what was averaged if not plain factors.
        bias: see `server.aggregation.Mean`; None where it was not measured.
        relative_bias: the same.
    """

    round: int
    loss: float | None = None
    seconds: float = 0.0
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    cohort: list[str] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)
    validation: dict[str, dict[str, float]] = field(default_factory=dict)
    method: str = "FedAvg"
    bias: float | None = None
    relative_bias: float | None = None

    def mean(self, metric: str) -> float:
        """Unweighted mean of a validation metric over the regions that measured it; 0 if none."""
        values = [row[metric] for row in self.validation.values() if metric in row]
        return sum(values) / len(values) if values else 0.0


class History:
    """The folder `headquarters/` of one run.

    Args:
        folder: made by `start`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, initial: Adapter, *, base_fingerprint: str, dim: int = 0) -> None:
        """Write what round 1 starts from.

        Args:
            initial: adapter.
            base_fingerprint: of the base it was made for.
            dim: of that base's vectors; 0 where nobody will ask.
        """
        metadata = {"base_fingerprint": base_fingerprint}
        if dim > 0:
            metadata["dim"] = str(dim)
        save_adapter(self.folder / "initial.safetensors", initial, metadata)

    def base_fingerprint(self) -> str:
        """Fingerprint of the base that the initial adapter was made for.

        Raises:
            FederationError: there is no initial adapter, or it is damaged.
        """
        path = self.folder / "initial.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                return str((file.metadata() or {})["base_fingerprint"])
        except (OSError, SafetensorError, KeyError):
            raise FederationError(
                f'{path}: missing or damaged; make the run folder with "fedshelf simulate"'
            ) from None

    def dim(self) -> int:
        """How many dimensions the base's vectors have.

        Raises:
            FederationError: there is no initial adapter, it is damaged, or it does not say.
        """
        path = self.folder / "initial.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                return int((file.metadata() or {})["dim"])
        except (OSError, SafetensorError, KeyError, ValueError):
            raise FederationError(
                f"{path}: does not say how long vectors are, which decorrelation-weight and "
                "drawn-negatives need; "
                "start a new training"
            ) from None

    def adapter(self, server_round: int) -> Adapter:
        """The global adapter after a round; round 0 is the initial one."""
        return load_adapter(self._path(server_round))

    def rounds(self) -> list[RoundRecord]:
        """Records of the rounds that are complete, oldest first; empty before the first.

        Raises:
            FederationError: history.json is damaged.
        """
        path = self.folder / "history.json"
        if not path.is_file():
            return []
        try:
            return [RoundRecord(**record) for record in json.loads(path.read_text("utf-8"))]
        except (ValueError, TypeError):
            raise FederationError(
                f"{path}: damaged; remove the run folder and start again"
            ) from None

    def append(self, record: RoundRecord, adapter: Adapter) -> None:
        """Keep a finished round: its adapter first, then its record."""
        self.keep_adapter(record.round, adapter)
        self.keep_record(record)

    def keep_adapter(self, server_round: int, adapter: Adapter) -> Path:
        """Write the adapter of a round (that of round 0 is there already); returns its file."""
        path = self._path(server_round)
        if server_round > 0:
            save_adapter(path, adapter, {"round": str(server_round)})
        return path

    def memory(self, server_round: int) -> Adapter:
        """What headquarters remembers of a round besides its adapter; nothing of round 0.

        Raises:
            FederationError: it is missing or damaged.
        """
        return load_adapter(self._memory_path(server_round)) if server_round > 0 else {}

    def keep_memory(self, server_round: int, memory: Adapter) -> None:
        """Write what is remembered of a round, and remove all but the round's before it."""
        kept = {self._memory_path(number) for number in (server_round, server_round - 1)}
        for path in set((self.folder / "memory").glob("*.safetensors")) - kept:
            path.unlink()
        if memory:
            save_adapter(self._memory_path(server_round), memory, {"round": str(server_round)})

    def keep_record(self, record: RoundRecord) -> None:
        """Write the record of a round whose adapter is written; then it is complete."""
        records = [asdict(kept) for kept in [*self.rounds(), record]]
        text = json.dumps(records, indent=1) + "\n"
        replace_file(self.folder / "history.json", text.encode())

    def best_round(self, metric: str = "ndcg@10") -> int:
        """The latest round whose mean validation metric is within `NOISE` of the highest.

        The learning rate falls from round to round, so a later round is the better one unless the
        clicks clearly say otherwise.
        """
        rounds = self.rounds()
        if not rounds:
            raise FederationError(f"{self.folder}: no round is complete; run the federation first")
        highest = max(record.mean(metric) for record in rounds)
        return max(one.round for one in rounds if one.mean(metric) >= highest - NOISE)

    def note_regions(self, said: Mapping[str, Mapping[str, Any]], refused: Refused) -> None:
        """Keep what regions say of themselves, and who was refused and why, with the time."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        known = self.regions()
        for region, description in said.items():
            known[region] = {**description, "seen": now, "refused": None}
        for entry in refused:
            known[entry["region"]] = {
                **known.get(entry["region"], {}),
                "refused": entry["reason"],
                "refused_at": now,
            }
        replace_file(self.folder / "regions.json", canonical_json(known))

    def regions(self) -> dict[str, dict[str, Any]]:
        """What each region last said, by name; empty before the first handshake."""
        return self._json("regions.json") or {}

    def references(self) -> dict[int, Adapter]:
        """What the gate compares a candidate with, by release number; the base is number 0."""
        paths = sorted(
            (self.folder / "references").glob("*.safetensors"), key=lambda p: int(p.stem)
        )
        return {int(path.stem): load_adapter(path) for path in paths} or {0: self.adapter(0)}

    def keep(self, name: str, value: Mapping[str, Any]) -> None:
        """Write one of this folder's JSON files: "gate.json" or "matrix.json"."""
        replace_file(self.folder / name, canonical_json(value))

    def gate(self) -> dict[str, Any] | None:
        """What the gate decided, or None before it did."""
        return self._json("gate.json")

    def matrix(self) -> dict[str, Any] | None:
        """The cross-site table, or None where it was not asked for."""
        return self._json("matrix.json")

    def _json(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            return dict(json.loads(path.read_text("utf-8")))
        except (ValueError, TypeError):
            raise FederationError(f"{path}: damaged; remove it and run again") from None

    def _memory_path(self, server_round: int) -> Path:
        return self.folder / "memory" / f"{server_round:04d}.safetensors"

    def _path(self, server_round: int) -> Path:
        if server_round == 0:
            return self.folder / "initial.safetensors"
        return self.folder / "rounds" / f"{server_round:04d}.safetensors"


def by_region(
    history: list[RoundRecord], metric: str = "ndcg@10"
) -> Mapping[str, list[float | None]]:
    """Learning curves: a validation metric of each region, round 0 first; None where unknown."""
    names = sorted({name for record in history for name in record.cohort})
    return {
        name: [record.validation.get(name, {}).get(metric) for record in history] for name in names
    }
