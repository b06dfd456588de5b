"""Train in a run folder, round by round: the federation, and whatever trains without one.

`fedshelf simulate` and `fedshelf compare` train through these few functions, so a method is the
same in both. Every complete round is kept, and none of them is trained twice.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from client.encoders import resident_encoder
from client.worker import Worker, get_worker
from server.history import History
from shared.config import FederationConfig, parse_run_config
from shared.encoders.encoder import Encoder
from simulations.baselines import Pool, train_alone
from simulations.engine import Answering, run_engine
from simulations.progress import Progress


def federate(
    run: Path,
    run_config: Mapping[str, Any],
    *,
    device: str,
    engine: str,
    processes: Answering,
    progress: Progress,
) -> FederationConfig:
    """Run the federation over a run's regions, or what is left of it.

    Args:
        run: holds `regions/` and `base/`; rounds are kept in its `headquarters/`.
        run_config: of both apps, but for the run's folder.
        device: that the initial adapter is made on.
        engine: "local" or "flower".
        processes: that share the regions under "local".
        progress: told what is going on.

    Returns:
        The parsed run config.
    """
    whole = {**run_config, "run-dir": str(run.resolve())}
    config, history = parse_run_config(whole), History(run / "headquarters")
    workers = open_workers(run, progress)
    encoder = resident_encoder(
        run / "base", device=device, fingerprint=workers[0].region.config.base.fingerprint
    )
    start(history, encoder, seed=config.seed)
    run_engine(engine, whole, num_regions=len(workers), processes=processes)
    return config


def train_pool(
    pool: Pool, encoder: Encoder, config: FederationConfig, history: History, progress: Progress
) -> None:
    """Train one pool from the adapter that the federation starts from, or what is left of it.

    Args:
        pool: see `Pool`.
        encoder: the resident encoder.
        config: of the federation; see `train_alone`.
        history: where rounds are kept.
        progress: told what is going on.
    """
    start(history, encoder, seed=config.seed)
    train_alone(pool, encoder, config, history, on_step=progress.bar(f"{pool.name}: steps"))
    best = history.best_round()
    score = history.rounds()[best].mean("ndcg@10")
    progress.line(f"{pool.name}: best after pass {best}, validation nDCG@10 {score:.4f}")


def start(history: History, encoder: Encoder, *, seed: int) -> None:
    """Write the adapter that everybody starts from, equal for equal seeds; once."""
    if not (history.folder / "initial.safetensors").is_file():
        encoder.reset(seed=seed)
        fingerprint = encoder.base.fingerprint
        history.start(encoder.adapter(), base_fingerprint=fingerprint, dim=encoder.dim)


def open_workers(run: Path, progress: Progress) -> list[Worker]:
    """The workers of a run's regions, sorted by name."""
    folders = sorted(path.parent for path in (run / "regions").glob("*/region.toml"))
    return [open_worker(folder, progress) for folder in folders]


def open_worker(folder: Path, progress: Progress) -> Worker:
    """A region's worker, which tells of its steps and of what it keeps."""
    worker = get_worker(folder)
    worker.on_step = progress.bar(f"{worker.region.config.region}: steps")
    worker.on_cache = _cache_bar(progress, worker.region.config.region)
    return worker


def _cache_bar(progress: Progress, region: str) -> Callable[[str, int, int], None]:
    return lambda what, done, total: progress.bar(f"{region}: {what}")(done, total)
