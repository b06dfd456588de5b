"""`fedshelf simulate`, from data to report, in stages that are each done once.

A stage leaves files behind that say it is complete, so a run that was interrupted goes on where it
stopped when the same command is given again, and ends with the same figures.
"""

import json
import resource
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.encoders import resident_encoder
from client.indexing import load_pulled_release
from client.worker import Worker, forget_workers
from server.candidate import measured_quality, release_best
from server.history import History, RoundRecord, by_region
from server.releases import publish_release
from shared.adapter import Adapter
from shared.config import COSINE, WEIGHTED_SUM, RunConfig, default_run_config
from shared.durable import canonical_json, replace_file
from shared.encoders.encoder import Encoder
from shared.errors import ConfigError, FedshelfError
from shared.freed_memory import FREED
from shared.retrieval.manifest import read_pointer
from simulations.baselines import baselines_folder, best_adapter
from simulations.prepare import LEFTOVERS, World, WorldOptions, prepare
from simulations.processes import Processes, processes_for
from simulations.progress import RunProgress
from simulations.report import write_report
from simulations.table import (
    PERSONALIZED,
    RegionTable,
    compare_methods,
    mean_dense_weight,
    region_table,
    summarize,
)
from simulations.training import federate, open_workers
from simulations.union import Union, UnionTable, human_judgments, union_table

SAMPLES_PER_REGION = 2
SAMPLE_PRODUCTS = 6


@dataclass(frozen=True)
class Options:
    """What `fedshelf simulate` was asked for; with the run folder it fixes every figure.

    Attributes:
        data: "synthetic", "fashion:DIR" or "icecat:DIR".
        regions: how many.
        partition: a column, "dirichlet:ALPHA", or None for the source's own.
        rounds: of the federation, and passes of the baselines.
        preset: of the base.
        engine: "local" or "flower".
        device: "auto", "cpu" or "cuda".
        seed: of every choice.
        threads: in all; results are bit-equal only for the same number of them and of processes.
        knobs: keys of the run config that differ from their defaults.
        personalize: whether every region adapts the release to its own clicks.
        fusion: of the base, one of `shared.config.FUSIONS`.
        distance: of the base, one of `shared.config.DISTANCES`.
        processes: that share the regions and the threads; None for as many as pay here.
    """

    data: str
    regions: int
    partition: str | None
    rounds: int
    preset: str
    engine: str
    device: str
    seed: int
    threads: int
    knobs: RunConfig = field(default_factory=dict)
    personalize: bool = False
    fusion: str = WEIGHTED_SUM
    distance: str = COSINE
    processes: int | None = None


def simulate(options: Options, run: Path, progress: RunProgress) -> dict[str, Any]:
    """Run a whole simulated federation, or what is left of it.

    Args:
        options: see `Options`.
        run: the run's folder; made, or continued if it was made with the same options.
        progress: told what is going on.

    Returns:
        What `result.json` holds.

    Raises:
        FedshelfError: any mistake in options, data or run folder; complete stages are kept.
    """
    _claim(run, options)
    result_path = run / "result.json"
    if result_path.is_file():
        progress.line(f"{run} is complete; nothing to do")
        return dict(json.loads(result_path.read_text(encoding="utf-8")))
    torch.set_num_threads(options.threads)
    forget_workers()
    world = _prepare(options, run, progress)
    FREED.give_back()  # other processes train now, and this one waits
    with _processes(options, run, progress) as processes:
        run_config = _federation(options, run, processes, progress)
        _baselines(run_config, run, processes, progress)
        encoder = resident_encoder(
            run / "base", device=options.device, fingerprint=world.fingerprint
        )
        workers = open_workers(run, progress)
        number = _release(options, world, encoder, run, progress)
        _index(workers, number, run, processes, progress)
        others = processes.peak_bytes()
    tables, union = _evaluate(workers, run, options.seed, progress)
    result = _result(options, world, run, tables, union, encoder.digest, number, progress)
    result["peak_rss_bytes"] = others + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    write_report(run, result, _curves(run), _samples(tables, options.seed))
    replace_file(result_path, canonical_json(result))  # last: it says that the run is complete
    return result


# -- stages ----------------------------------------------------------------------------------------


def _claim(run: Path, options: Options) -> None:
    """Make the run folder, or make sure that it was made with these options.

    Until the data is complete nothing depends on the options, so others may be given.
    """
    path, asked = run / "run.json", asdict(options)
    if path.is_file() and (run / "world.json").is_file():
        _require_same_options(path, asked)
        return
    if not path.is_file() and run.exists() and not _is_empty_folder(run):
        raise ConfigError(f"{run}: is not empty and not a run folder; choose another --out")
    try:
        run.mkdir(parents=True, exist_ok=True)
        replace_file(path, canonical_json(asked))
    except OSError as error:
        raise ConfigError(f"{run}: {error.strerror}; choose another --out") from None


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _require_same_options(path: Path, asked: Mapping[str, Any]) -> None:
    try:
        made = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise ConfigError(f"{path}: damaged; choose another --out or remove that folder") from None
    added = {"personalize": False, "fusion": WEIGHTED_SUM, "distance": COSINE, "processes": None}
    made = {**added, **made}  # a run from before there were these options
    for name, value in asked.items():
        if made.get(name) != value:
            option = "set" if name == "knobs" else name
            raise ConfigError(
                f"{path.parent}: was made with --{option} {made.get(name)}, now it is {value}; "
                "choose another --out or remove that folder"
            )


def _prepare(options: Options, run: Path, progress: RunProgress) -> World:
    try:
        return prepare(run, _world_options(options), progress)
    except FedshelfError:
        if not (run / "world.json").is_file():
            _withdraw(run)
        raise


def _world_options(options: Options) -> WorldOptions:
    return WorldOptions(
        data=options.data,
        regions=options.regions,
        rule=options.partition,
        preset=options.preset,
        device=options.device,
        seed=options.seed,
        personalize=options.personalize,
        fusion=options.fusion,
        distance=options.distance,
    )


def _withdraw(run: Path) -> None:
    """Leave nothing half-written behind where the data stage failed."""
    for name in LEFTOVERS:
        shutil.rmtree(run / name, ignore_errors=True)
    for name in ("run.json", "judged.parquet"):
        (run / name).unlink(missing_ok=True)
    if _is_empty_folder(run):
        run.rmdir()


def _processes(options: Options, run: Path, progress: RunProgress) -> Processes:
    """Processes that share the threads; one is this process, with all of them."""
    number = options.processes or processes_for(
        run / "base", device=options.device, threads=options.threads, regions=options.regions
    )
    return Processes(number, threads=max(1, options.threads // number), progress=progress)


def _federation(
    options: Options, run: Path, processes: Processes, progress: RunProgress
) -> RunConfig:
    run_config = {
        **default_run_config(),
        **options.knobs,
        "num-rounds": options.rounds,
        "seed": options.seed,
        "min-regions": options.regions,
    }
    with progress.stage("federated", f"Federation: {options.rounds} rounds, {options.engine}"):
        federate(
            run,
            run_config,
            device=options.device,
            engine=options.engine,
            processes=processes,
            progress=progress,
        )
    return run_config


def _baselines(
    run_config: RunConfig, run: Path, processes: Processes, progress: RunProgress
) -> None:
    """All data in one place, which takes longest, and each region alone."""
    regions = sorted(path.parent.name for path in (run / "regions").glob("*/region.toml"))
    names = {None: "centralized"} | {region: f"local-{region}" for region in regions}
    with progress.stage("baselines", "Baselines: all data in one place, and each region alone"):
        processes.run(
            {
                "task": "train_alone",
                "world": str(run),
                "region": region,
                "run_config": run_config,
                "history": str(baselines_folder(run, name)),
            }
            for region, name in names.items()
        )


def _release(
    options: Options, world: World, encoder: Encoder, run: Path, progress: RunProgress
) -> int:
    history, registry = History(run / "headquarters"), run / "headquarters" / "releases"
    with progress.stage("release", "Release"):
        best, number = history.best_round(), _published_number(registry)
        if number == 0:
            key = run / "headquarters" / "signing.key"
            quality = {
                "data": options.data.partition(":")[0] + ", clicks from a click model",
                **measured_quality(history),
            }
            number = release_best(
                history, encoder, registry=registry, signing_key=key, parent=None, quality=quality
            )
            publish_release(registry, number, signing_key=key)
        encoder.load_adapter(history.adapter(best))
        progress.line(f"release {number}: round {best}, encoder {encoder.digest[:12]}")
    return number


def _published_number(registry: Path) -> int:
    """Number of the newest release whose publication is complete, 0 for none."""
    if not (registry / "current.json").is_file():
        return 0
    return max(int(path.name) for path in registry.iterdir() if path.name.isdecimal())


def _index(
    workers: Sequence[Worker],
    number: int,
    run: Path,
    processes: Processes,
    progress: RunProgress,
) -> None:
    with progress.stage("index", "Indexes"):
        processes.run(
            {
                "task": "index",
                "run": str(run.resolve()),
                "region": str(worker.region.folder),
                "release": number,
            }
            for worker in workers
        )


def _evaluate(
    workers: Sequence[Worker], run: Path, seed: int, progress: RunProgress
) -> tuple[list[RegionTable], UnionTable | None]:
    headquarters = History(run / "headquarters")
    shared: dict[str, Adapter] = {
        "zero_shot": headquarters.adapter(0),
        "federated": best_adapter(headquarters),
        "centralized": best_adapter(History(baselines_folder(run, "centralized"))),
    }
    with progress.stage("evaluation", "Final table"):
        tables = []
        for worker in workers:
            name = f"local-{worker.region.config.region}"
            local = best_adapter(History(baselines_folder(run, name)))
            adapters = {**shared, **_personalized(worker), "local_only": local}
            tables.append(region_table(worker, adapters, seed=seed))
            progress.line(_what_shoppers_get(tables[-1]))
        union, judged = None, human_judgments(run)
        if judged is not None:
            weight = mean_dense_weight(tables)
            union = union_table(Union.of(workers, judged), shared, dense_weight=weight, seed=seed)
            progress.line(f"all catalogs, human judgments: dense weight {weight:g}, the mean")
    workers[0].encoder.load_adapter(shared["federated"])
    return tables, union


def _personalized(worker: Worker) -> dict[str, Adapter]:
    """The adapter with which a region answers, where it has adapted the release for itself."""
    region = worker.region
    if not region.config.personalization.enabled:
        return {}
    pointer = read_pointer(region.state)
    load_pulled_release(
        worker.encoder,
        region.folder,
        region.config,
        release=pointer.release,
        encoder_digest=pointer.encoder_digest,
    )
    return {PERSONALIZED: worker.encoder.adapter()}


def _what_shoppers_get(table: RegionTable) -> str:
    alone = PERSONALIZED if PERSONALIZED in table.rows else "federated"
    names = {"hybrid": "hybrid", "bm25": "words alone", alone: "encoder alone"}
    figures = {word: table.rows[name].get("ndcg@10") for name, word in names.items()}
    told = [f"{word} {figure:.3f}" for word, figure in figures.items() if figure is not None]
    return f"region {table.worker.region.config.region}: nDCG@10 {', '.join(told) or 'unknown'}"


# -- result and report -----------------------------------------------------------------------------


def _result(
    options: Options,
    world: World,
    run: Path,
    tables: Sequence[RegionTable],
    union: UnionTable | None,
    digest: str,
    number: int,
    progress: RunProgress,
) -> dict[str, Any]:
    mean, worst = summarize(tables)
    rounds = [record for record in History(run / "headquarters").rounds() if record.round > 0]
    keys = [field.name for field in fields(RoundRecord) if field.name != "validation"]
    tests = compare_methods(tables, union.scores if union else None, seed=options.seed)
    return {
        "seed": options.seed,
        "data": options.data,
        "preset": options.preset,
        "options": asdict(options) | {"out": str(run)},
        "command": " ".join(["fedshelf", *sys.argv[1:]]),
        "problems": world.problems,
        "regions": [_region_result(table, world) for table in tables],
        "mean": mean,
        "worst": worst,
        "union": union.rows if union else None,
        "tests": [asdict(test) for test in tests],
        "rounds": [{key: asdict(record)[key] for key in keys} for record in rounds],
        "release": {"number": number, "encoder_digest": digest},
        "seconds": progress.seconds,
    }


def _region_result(table: RegionTable, world: World) -> dict[str, Any]:
    region = table.worker.region
    return {
        "name": region.config.region,
        "locale": region.config.locale,
        "num_products": region.catalog.height,
        "num_clicks": table.worker.num_clicks,
        "num_examples": len(table.worker.examples.weight),
        "num_test_queries": len(table.tests.queries),
        "num_test_queries_left_out": world.left_out[region.config.region],
        "rows": table.rows,
    }


def _curves(run: Path) -> Mapping[str, Sequence[float | None]]:
    return by_region(History(run / "headquarters").rounds())


def _samples(tables: Sequence[RegionTable], seed: int) -> list[dict[str, Any]]:
    """Test queries drawn by seed, not by how well they went; what was found before and after."""
    rng = np.random.default_rng(seed)
    samples = []
    for table in tables:
        count = min(SAMPLES_PER_REGION, len(table.tests.queries))
        for number in sorted(rng.choice(len(table.tests.queries), size=count, replace=False)):
            samples.append(
                {
                    "region": table.worker.region.config.region,
                    "query": table.tests.queries[number],
                    "before": _cards(table, "zero_shot", int(number)),
                    "after": _cards(table, "federated", int(number)),
                }
            )
    return samples


def _cards(table: RegionTable, method: str, query: int) -> list[dict[str, Any]]:
    region, (relevant, grades) = table.worker.region, table.tests.qrels[query]
    grade_of = dict(zip(relevant.tolist(), grades.tolist(), strict=True))
    rows = [int(row) for row in table.ranked[method][query][:SAMPLE_PRODUCTS] if row >= 0]
    fields = ("title", "price", "currency", "brand")
    return [
        {name: region.catalog[name][row] for name in fields}
        | {"grade": grade_of.get(row, 0), "image_path": region.image_paths[row]}
        for row in rows
    ]
