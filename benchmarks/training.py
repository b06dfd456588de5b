"""Searches while the same process trains: how long they take, and how much training gives way.

The region is one that `fedshelf simulate` has made, because training needs clicks; its worker is
the real process, `fedshelf region worker`, with a service. Two callers ask it over loopback, in
turns while it is at rest and while it trains one round after another.
"""

import asyncio
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
from flwr.app import RecordDict

from benchmarks.load import Outcome, closed_loop, free_port, fresh_queries, served
from benchmarks.report import Report
from benchmarks.timing import Spread, ratio
from client.rpc import forward
from shared import wire
from shared.config import parse_run_config
from shared.encoders.encoder import load_encoder
from shared.errors import ConfigError
from shared.records import encode_adapter
from shared.schema import RegionConfig, ServeConfig, load_region_config
from simulations.regions import write_region_toml

SECTION: Final = "training"
CALLERS: Final = 2
_ROUND_S: Final = 600.0  # longest round of training
_HOUR_S: Final = 3600.0


def measure_training(
    report: Report,
    region: Path,
    scratch: Path,
    queries: Sequence[str],
    *,
    seconds: float,
    rounds: int,
) -> None:
    """Ask a worker at rest and at training, in turns.

    Args:
        report: figures go there.
        region: folder of a simulated region; it stays as it is.
        scratch: a copy of it is made there.
        queries: mixed into new ones.
        seconds: of each turn at rest; one at training lasts until its round is over.
        rounds: of both.

    Raises:
        ConfigError: the folder is no region.
        FederationError: the worker does not start, or does not train.
    """
    address = f"127.0.0.1:{free_port()}"
    folder, config = _copy(region, scratch, address)
    request = _request(folder / config.base.path, config.base.fingerprint)
    socket, texts = folder / config.worker.socket, fresh_queries(queries)

    def train() -> float:
        start = time.perf_counter()
        forward(socket, "train", request, timeout_s=_ROUND_S)
        return time.perf_counter() - start

    with served(folder, f"http://{address}", "worker"), ThreadPoolExecutor(1) as pool:
        train()  # fills its caches
        undisturbed, disturbed = train(), list[float]()
        taken: dict[str, list[Outcome]] = {"at rest": [], "training": []}
        for _ in range(rounds):
            taken["at rest"].append(_asked(address, texts, seconds))
            training = pool.submit(train)
            taken["training"].append(_asked_meanwhile(address, texts, training))
            disturbed.append(training.result())
    _put_down(report, taken)
    report.add(SECTION, "a round of training, no searches", undisturbed, "s")
    report.add(SECTION, f"a round of training, {CALLERS} callers", Spread.of(disturbed), "s")


def _copy(region: Path, scratch: Path, address: str) -> tuple[Path, RegionConfig]:
    """The region with a service, and with nothing to look for elsewhere."""
    if not (region / "region.toml").is_file():
        raise ConfigError(f"--region {region}: no region.toml there; give a simulated region")
    folder = Path(shutil.copytree(region, scratch / "region"))
    config = load_region_config(folder)
    base = config.base.model_copy(update={"path": str((region / config.base.path).resolve())})
    publication = config.publication.model_copy(update={"poll_s": _HOUR_S})
    serve = ServeConfig(http=address, grpc="", page=False)
    changes = {"base": base, "publication": publication, "serve": serve}
    config = config.model_copy(update=changes)
    write_region_toml(folder, config)
    return folder, config


def _request(base: Path, fingerprint: str) -> RecordDict:
    """A round of training from the base, with the default knobs."""
    encoder = load_encoder(base, device="cpu", expected=fingerprint)
    encoder.reset(seed=0)
    config = parse_run_config({"run-dir": "x"}).train_config(1)
    return wire.train_request(encode_adapter(encoder.adapter()), config, 1)


def _asked(address: str, texts: Iterator[str], seconds: float) -> Outcome:
    return asyncio.run(closed_loop(f"http://{address}", texts, callers=CALLERS, seconds=seconds))


def _asked_meanwhile(address: str, texts: Iterator[str], training: "Future[float]") -> Outcome:
    whole = Outcome()
    while not training.done():
        part = _asked(address, texts, 1.0)
        whole.wall_s += part.wall_s
        whole.answers += part.answers
    return whole


def _put_down(report: Report, taken: dict[str, list[Outcome]]) -> None:
    for quantile in (0.5, 0.99):
        label = f"p{100 * quantile:.0f}"
        of = {
            state: np.array([one.quantile_ms(quantile) for one in outcomes])
            for state, outcomes in taken.items()
        }
        for state, milliseconds in of.items():
            name = f"{CALLERS} callers, {state}, {label}"
            report.add(SECTION, name, Spread.of(milliseconds), "ms")
        name = f"{CALLERS} callers, training / at rest, {label}"
        report.add(SECTION, name, ratio(of["training"], of["at rest"]), "ratio")
    unexpected = sum(one.unexpected for outcomes in taken.values() for one in outcomes)
    report.add(SECTION, "neither 200 nor 429", unexpected, "requests", target=0)
