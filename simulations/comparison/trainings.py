"""Trainings of an experiment, each kept under the digest of all that decides how it ends.

A training is the federation, one region alone, or all data in one place, under one run config for
one number of rounds. Who asks for the same one again finds it; what was interrupted goes on after
its last complete round.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.batches import num_batches, part_size
from client.worker import Worker, forget_workers
from server.history import History, RoundRecord
from shared.adapter import Adapter
from shared.config import RunConfig, parse_run_config
from shared.durable import canonical_json, replace_file
from simulations.baselines import best_adapter
from simulations.comparison.digests import LENGTH, code_digest, digest_of
from simulations.comparison.worlds import Cell, region_folders, view_world
from simulations.processes import Processes
from simulations.progress import RunProgress
from simulations.training import federate, open_workers

FEDERATED, LOCAL, CENTRALIZED = "federated", "local_only", "centralized"


@dataclass(frozen=True)
class Training:
    """One training in one world.

    Attributes:
        cell: the world.
        kind: "federated", "local_only" or "centralized".
        run_config: all of it but the run's folder.
        region: that trains alone; None for the other kinds.
    """

    cell: Cell
    kind: str
    run_config: RunConfig
    region: str | None = None

    @property
    def digest(self) -> str:
        """Name of its folder."""
        return digest_of(
            {
                "world": self.cell.digest,
                "kind": self.kind,
                "region": self.region,
                "run_config": {**self.run_config, "gate": False, "run-dir": ""},
                "code": code_digest("simulations.training"),
            }
        )


@dataclass(frozen=True)
class Trained:
    """A complete training.

    Attributes:
        folder: with its rounds in `headquarters/`.
        records: one a round, round 0 first.
        steps: of the optimizer, summed over all who took them.
        examples: shown to the optimizer, likewise.
    """

    folder: Path
    records: list[RoundRecord]
    steps: int
    examples: int

    @property
    def history(self) -> History:
        """Its rounds and their adapters."""
        return History(self.folder / "headquarters")

    @property
    def adapter(self) -> Adapter:
        """Of the round that validation clicks like best."""
        return best_adapter(self.history)

    @property
    def validation(self) -> float:
        """Mean validation nDCG@10 of that round over the regions that were asked."""
        return self.records[self.history.best_round()].mean("ndcg@10")

    @property
    def bytes_sent(self) -> list[int]:
        """Up and down together, by round from 0."""
        return [record.uplink_bytes + record.downlink_bytes for record in self.records]


class Trainer:
    """Trains in one world, keeping its data open from one training to the next.

    Args:
        cell: the world.
        world: its folder.
        root: of the experiments.
        processes: that train.
        progress: told what is going on.
    """

    def __init__(
        self, cell: Cell, world: Path, root: Path, processes: Processes, progress: RunProgress
    ) -> None:
        self.cell, self.world = cell, world
        self._root, self._processes, self._progress = root, processes, progress

    @property
    def regions(self) -> list[str]:
        """Names, sorted."""
        return [folder.name for folder in region_folders(self.world)]

    @property
    def workers(self) -> list[Worker]:
        """Of the world's own regions, in which nothing is ever trained by a federation."""
        return open_workers(self.world, self._progress)

    def folder(self, training: Training) -> Path:
        """Where a training is kept."""
        return self._root / "trainings" / training.digest

    def train(self, training: Training) -> Trained:
        """Run a training, or what is left of it."""
        if not self._is_complete(training):
            folder = self._begun(training)
            if training.kind == FEDERATED:
                self._federate(training, folder)
            else:
                self._processes.run([self._alone(training, folder)])
        return self._complete(training, self.folder(training))

    def train_alone(self, trainings: Sequence[Training]) -> None:
        """Run trainings of pools, or what is left of them, as many at once as there are processes.

        Args:
            trainings: what takes longest should come first.
        """
        missing = [training for training in trainings if not self._is_complete(training)]
        self._processes.run([self._alone(one, self._begun(one)) for one in missing])

    def _is_complete(self, training: Training) -> bool:
        done = History(self.folder(training) / "headquarters").rounds()
        return bool(done) and done[-1].round >= int(training.run_config["num-rounds"])

    def _begun(self, training: Training) -> Path:
        """Its folder, which says what it is."""
        folder = self.folder(training)
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "training.json", canonical_json(_told(training)))
        return folder

    def _federate(self, training: Training, folder: Path) -> None:
        view_world(self.world, folder)
        federate(
            folder,
            _unreleased(training),
            device=self.cell.device,
            engine="local",
            processes=self._processes,
            progress=self._progress,
        )
        forget_workers(folder)  # nobody asks them again
        self._processes.tell_all({"task": "forget", "below": str(folder)})

    def _alone(self, training: Training, folder: Path) -> dict[str, Any]:
        history = folder / "headquarters"
        history.mkdir(exist_ok=True)
        return {
            "task": "train_alone",
            "world": str(self.world),
            "region": training.region,
            "run_config": _unreleased(training),
            "history": str(history),
        }

    def _complete(self, training: Training, folder: Path) -> Trained:
        records = History(folder / "headquarters").rounds()
        config = parse_run_config(training.run_config)
        steps = examples = 0
        for number, sizes in enumerate(self._sizes(training, records)):
            part = number % config.rounds_per_epoch, config.rounds_per_epoch
            batches = (num_batches(size, config.batch_size, *part) for size in sizes)
            examples += config.local_epochs * sum(part_size(size, *part) for size in sizes)
            steps += config.local_epochs * sum(batches)
        return Trained(folder, records, steps, examples)

    def _sizes(self, training: Training, records: list[RoundRecord]) -> list[list[int]]:
        """Examples of whoever trained in each round: regions whose update counted, or one pool."""
        sizes = {w.region.config.region: len(w.examples.weight) for w in self.workers}
        rounds = [record for record in records if record.round > 0]
        if training.kind == CENTRALIZED:
            return [[sum(sizes.values())] for _ in rounds]
        refused = [{entry["region"] for entry in record.rejected} for record in rounds]
        return [
            [sizes[name] for name in record.cohort if name not in out]
            for record, out in zip(rounds, refused, strict=True)
        ]


def adapter_digest(adapter: Adapter) -> str:
    """Digest of every number in an adapter, with names and shapes."""
    found = hashlib.sha256()
    for name, tensor in sorted(adapter.items()):
        found.update(f"{name}\0{list(tensor.shape)}\0".encode())
        found.update(tensor.detach().cpu().numpy().tobytes())
    return found.hexdigest()[:LENGTH]


def _unreleased(training: Training) -> RunConfig:
    """Its run config, without a gate: nothing is released here."""
    return {**training.run_config, "gate": False}


def _told(training: Training) -> dict[str, Any]:
    """For a person who looks into the folder."""
    cell = training.cell
    world: Mapping[str, Any] = {**cell.data.model_dump(), "seed": cell.seed, "world": cell.digest}
    return {**world, "kind": training.kind, "region": training.region, **training.run_config}
