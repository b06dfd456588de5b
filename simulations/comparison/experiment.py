"""Run an experiment: every method in every world, what is missing of it, then the tables.

    ROOT/worlds/DIGEST/       region folders, base, click logs
    ROOT/trainings/DIGEST/    rounds of one training; training.json says of which
    ROOT/personalized/DIGEST/ what regions made of one training for themselves
    ROOT/shelves/DIGEST/      indexes that hybrids answer from
    ROOT/scores/DIGEST.*      scores of single queries of one method in one world, and its curve
    ROOT/NAME/                scores.parquet, result.json, report.html of one experiment

Everything above `NAME` is shared between experiments. Whatever is complete is found again, also
after an interruption at any instant, and by another experiment that asks for the same.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from client.evaluation import K
from client.worker import Worker, forget_workers
from shared.adapter import Adapter
from shared.config import RunConfig, run_defaults
from shared.durable import canonical_json, replace_file
from shared.retrieval.manifest import open_current_index
from simulations.comparison.digests import code_digest, digest_of, library_versions
from simulations.comparison.measure import (
    SCORE_SCHEMA,
    TEST,
    Judged,
    Ranked,
    Ranker,
    bm25_ranker,
    dense_ranker,
    hybrid_ranker,
    judged_queries,
    region_scores,
    score_set,
    union_scores,
)
from simulations.comparison.page import write_page
from simulations.comparison.personal import personalized_adapters
from simulations.comparison.search import search_knobs
from simulations.comparison.spec import Experiment, MethodSpec
from simulations.comparison.summary import summarize_experiment
from simulations.comparison.trainings import (
    CENTRALIZED,
    FEDERATED,
    LOCAL,
    Trained,
    Trainer,
    Training,
    adapter_digest,
)
from simulations.comparison.worlds import Cell, cells_of, make_world, view_world
from simulations.prepare import SEEN
from simulations.processes import Processes, processes_for
from simulations.progress import RunProgress
from simulations.training import open_workers
from simulations.union import Union, human_judgments

ALL_REGIONS = None


@dataclass(frozen=True)
class Measured:
    """One method in one world.

    Attributes:
        scores: `SCORE_SCHEMA`.
        facts: for result.json: steps, bytes, rounds, what was searched, the curve.
    """

    scores: pl.DataFrame
    facts: dict[str, Any]


def compare(
    experiment: Experiment,
    root: Path,
    folders: Mapping[str, Path],
    progress: RunProgress,
    *,
    processes: int | None = None,
) -> dict[str, Any]:
    """Run an experiment, or what is left of it.

    Args:
        experiment: what is asked for.
        root: folder of all experiments; made if missing.
        folders: where the data sets lie, by source.
        progress: told what is going on.
        processes: that train at once, each on the experiment's threads, which changes no result;
            None for as many as the machine has room for.

    Returns:
        What `result.json` holds.

    Raises:
        FedshelfError: any mistake in data or folders; what is complete is kept.
    """
    torch.set_num_threads(experiment.experiment.threads)
    cells, tables, facts = cells_of(experiment, folders), [], []
    for number, cell in enumerate(cells, 1):
        progress.line(f"world {number} of {len(cells)}: {cell.label}")
        measured = _measured(experiment, cell, root, processes, progress)
        tables += [_labelled(cell, name, one.scores) for name, one in measured.items()]
        found = {name: one.facts for name, one in measured.items()}
        facts.append({"data": cell.data.label, "seed": cell.seed, "methods": found})
    scores, folder = pl.concat(tables), root / experiment.experiment.name
    folder.mkdir(parents=True, exist_ok=True)
    _write_parquet(folder / "scores.parquet", scores)
    result = {
        **summarize_experiment(experiment, scores, facts),
        "command": " ".join(["fedshelf", *sys.argv[1:]]),
        "made_by": {"code": _code(), "libraries": library_versions()},
    }
    write_page(folder, result)
    replace_file(folder / "result.json", canonical_json(result))  # last: all of it is there
    return result


def _measured(
    experiment: Experiment, cell: Cell, root: Path, processes: int | None, progress: RunProgress
) -> dict[str, Measured]:
    """Every method in one world."""
    forget_workers()
    threads, world = experiment.experiment.threads, make_world(cell, root, progress)
    number = processes or processes_for(
        world / "base",
        device=cell.device,
        threads=len(os.sched_getaffinity(0)) // threads,
        regions=cell.data.regions,
    )
    with Processes(number, threads=threads, progress=progress) as shared:
        return _Bench(experiment, cell, world, root, shared, progress).measure_all()


def _code() -> str:
    return code_digest("simulations.comparison.experiment")


def _labelled(cell: Cell, method: str, scores: pl.DataFrame) -> pl.DataFrame:
    return scores.with_columns(
        data=pl.lit(cell.data.label), seed=pl.lit(cell.seed), method=pl.lit(method)
    ).select("data", "seed", "method", *SCORE_SCHEMA)


class _Bench:
    """One world with its methods on it."""

    def __init__(
        self,
        experiment: Experiment,
        cell: Cell,
        world: Path,
        root: Path,
        processes: Processes,
        progress: RunProgress,
    ) -> None:
        self._experiment, self._cell, self._world = experiment, cell, world
        self._root, self._processes, self._progress = root, processes, progress
        self._trainer = Trainer(cell, world, root, processes, progress)
        self._adapters: dict[str, dict[str, Adapter]] = {}
        self._judged: dict[str, Judged] = {}
        self._all_catalogs: Union | None = None

    def measure_all(self) -> dict[str, Measured]:
        """Train and measure every method; what is made of another one comes after it."""
        later = ("personalized", "hybrid")
        methods = sorted(
            self._experiment.method,
            key=lambda method: later.index(method.kind) + 1 if method.kind in later else 0,
        )
        if self._experiment.search is None:
            self._train_alone()
        measured = {method.name: self._measure(method) for method in methods}
        return {method.name: measured[method.name] for method in self._experiment.method}

    def _measure(self, method: MethodSpec) -> Measured:
        with self._progress.stage(method.name, f"{method.name} ({method.kind})"):
            trained, searched = self._trained(method) if method.trained else ({}, {})
            digest = digest_of(self._measured_of(method, trained))
            path = self._root / "scores" / f"{digest}.parquet"
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                _write_parquet(path, self._scores(method, digest))
            facts = self._facts(method, trained) | ({"search": searched} if searched else {})
            if method.kind == FEDERATED and self._experiment.experiment.curves:
                facts["curve"] = self._curve(trained[ALL_REGIONS], path.with_suffix(".curve.json"))
            scores = pl.read_parquet(path)
        self._progress.line(f"mean nDCG@10 of the regions: {_test_mean(scores):.4f}")
        return Measured(scores, facts)

    # -- training --

    def _train_alone(self) -> None:
        """Everything that needs no federation, at once; what trains on all data takes longest."""
        methods, regions = self._experiment.method, self._trainer.regions
        pooled = [self._training(one, ALL_REGIONS) for one in methods if one.kind == CENTRALIZED]
        alone = [
            self._training(one, region)
            for one in methods
            if one.kind == LOCAL
            for region in regions
        ]
        self._trainer.train_alone([*pooled, *alone])

    def _trained(self, method: MethodSpec) -> tuple[dict[str | None, Trained], dict[str, Any]]:
        """By region for `local_only`, else under `ALL_REGIONS`; and what the search tried."""
        regions = self._trainer.regions if method.kind == LOCAL else [ALL_REGIONS]
        trained, searched = dict[str | None, Trained](), dict[str, Any]()
        for region in regions:
            training = self._training(method, region)
            if self._experiment.search is not None:
                chosen, searched[region or "all"] = search_knobs(
                    self._trainer,
                    training,
                    self._experiment.search,
                    max_rounds=self._experiment.experiment.rounds,
                    say=self._progress.line,
                )
                training = replace(training, run_config={**training.run_config, **chosen})
            trained[region] = self._trainer.train(training)
        self._adapters[method.name] = {
            region: trained.get(region, trained.get(ALL_REGIONS)).adapter  # type: ignore[union-attr]
            for region in self._trainer.regions
        }
        return trained, searched

    def _training(self, method: MethodSpec, region: str | None) -> Training:
        data, seed = self._cell.data, self._cell.seed
        run_config: RunConfig = self._experiment.run_config(method, seed=seed, regions=data.regions)
        return Training(self._cell, method.kind, run_config, region)

    # -- measuring --

    def _measured_of(self, method: MethodSpec, trained: Mapping[Any, Trained]) -> dict[str, Any]:
        """What decides a method's scores."""
        of = self._mixed(method)
        adapters = {
            region: adapter_digest(found) for region, found in self._adapters_of(of).items()
        }
        return {
            "world": self._cell.digest,
            "kind": method.kind,
            "adapters": adapters if method.kind != "bm25" else {},
            "code": code_digest("simulations.comparison.measure", "simulations.union"),
        }

    def _mixed(self, method: MethodSpec) -> MethodSpec:
        """The method whose encoder ranks."""
        return self._experiment.method_named(str(method.of)) if method.kind == "hybrid" else method

    def _adapters_of(self, method: MethodSpec) -> dict[str, Adapter]:
        """By region; the untrained adapter for whatever trains nothing."""
        if method.name not in self._adapters and method.kind == "personalized":
            self._adapters[method.name] = self._personalized(method)
        elif method.name not in self._adapters:
            encoder = self._trainer.workers[0].encoder
            encoder.reset(seed=self._cell.seed)
            initial = encoder.adapter()
            self._adapters[method.name] = dict.fromkeys(self._trainer.regions, initial)
        return self._adapters[method.name]

    def _personalized(self, method: MethodSpec) -> dict[str, Adapter]:
        of = self._experiment.method_named(str(method.of))
        adapters = self._adapters_of(of)
        digest = digest_of(
            {
                "world": self._cell.digest,
                "adapters": {name: adapter_digest(one) for name, one in adapters.items()},
                "defaults": asdict(run_defaults()),
                "code": code_digest("simulations.comparison.personal"),
            }
        )
        folder = self._root / "personalized" / digest
        return personalized_adapters(self._world, folder, adapters, self._processes)

    def _scores(self, method: MethodSpec, digest: str) -> pl.DataFrame:
        workers, tables, view = self._trainer.workers, [], self._root / "shelves" / digest
        if method.kind == "hybrid":
            view_world(self._world, view)
            workers = open_workers(view, self._progress)
        for number, worker in enumerate(workers):
            region = worker.region.config.region
            self._progress.bar(f"{region}: test queries")(number, len(workers))
            ranker = self._ranker(method, region)
            tables.append(region_scores(worker, self._queries(worker), ranker))
        if self._shared(method) and (union := self._union()) is not None:
            tables.append(union_scores(union.tests, self._union_rows(union, method, workers)))
        forget_workers(view)
        return pl.concat(tables)

    def _ranker(self, method: MethodSpec, region: str) -> Ranker:
        if method.kind == "bm25":
            return bm25_ranker
        adapter = self._adapters_of(self._mixed(method))[region]
        return hybrid_ranker(adapter) if method.kind == "hybrid" else dense_ranker(adapter)

    def _union(self) -> Union | None:
        """All catalogs in one index, where people judged queries."""
        if self._all_catalogs is None and (judged := human_judgments(self._world)) is not None:
            self._all_catalogs = Union.of(self._trainer.workers, judged)
        return self._all_catalogs

    def _shared(self, method: MethodSpec) -> bool:
        """Whether all regions have one encoder of it, so that their vectors can be compared."""
        return self._mixed(method).kind not in (LOCAL, "personalized")

    def _union_rows(self, union: Union, method: MethodSpec, workers: Sequence[Worker]) -> Ranked:
        if method.kind == "bm25":
            return union.words()
        (region, *_) = self._trainer.regions
        encoded = union.encoded(self._adapters_of(self._mixed(method))[region])
        if method.kind != "hybrid":
            return union.dense(encoded)
        tuned = [open_current_index(one.region.state).manifest.dense_weight for one in workers]
        weight = float(np.mean(tuned))
        self._progress.line(f"all catalogs: dense weight {weight:g}, the mean")
        return union.mix(encoded, weight)

    def _queries(self, worker: Worker) -> Judged:
        region = worker.region.config.region
        if region not in self._judged:
            seen = pl.read_parquet(self._world / SEEN / f"{region}.parquet")
            self._judged[region] = judged_queries(worker, seen)
        return self._judged[region]

    def _curve(self, trained: Trained, path: Path) -> list[float]:
        """Mean test nDCG@10 over the regions after every round; nothing is chosen by it."""
        if path.is_file():
            return list(json.loads(path.read_text(encoding="utf-8")))
        curve = []
        for record in trained.records:
            adapter = trained.history.adapter(record.round)
            ranker = dense_ranker(adapter)
            tables = [self._tested(worker, ranker) for worker in self._trainer.workers]
            curve.append(_test_mean(pl.concat(tables)))
            self._progress.bar("rounds on test queries")(record.round, len(trained.records) - 1)
        replace_file(path, canonical_json(curve))
        return curve

    def _tested(self, worker: Worker, ranker: Ranker) -> pl.DataFrame:
        """Scores on a region's test queries alone."""
        tests = self._queries(worker).tests
        ranked = ranker(worker, tests.queries, K)
        region = pl.lit(worker.region.config.region).alias("region")
        scored = score_set(tests.queries, ranked, tests.qrels, None)
        return scored.with_columns(region, set=pl.lit(TEST))

    # -- facts --

    def _facts(self, method: MethodSpec, trained: Mapping[Any, Trained]) -> dict[str, Any]:
        if not trained:
            return {}
        parts = list(trained.values())
        facts: dict[str, Any] = {
            "rounds": self._experiment.experiment.rounds,
            "steps": sum(part.steps for part in parts),
            "examples": sum(part.examples for part in parts),
            "best_round": {
                region or "all": part.history.best_round() for region, part in trained.items()
            },
        }
        if method.kind == FEDERATED:
            facts["bytes"] = trained[ALL_REGIONS].bytes_sent
        return facts


def _test_mean(scores: pl.DataFrame) -> float:
    """Mean test nDCG@10 over queries, then regions."""
    tests = scores.filter(pl.col("set") == TEST)
    means = tests.group_by("region").agg(pl.col("ndcg@10").mean()).sort("region")["ndcg@10"]
    return float(np.mean(means.to_numpy()))


def _write_parquet(path: Path, table: pl.DataFrame) -> None:
    buffer = BytesIO()
    table.write_parquet(buffer)
    replace_file(path, buffer.getvalue())
