"""Compare choices of training on development queries, so that no test query is tuned on.

    python -m simulations.development RUN [--set known-item-weight=0.1] [--rounds 8] [--seed 7]
                                          [--fusion NAME] [--distance NAME] [--pooled]

RUN is a folder that `fedshelf simulate` has made. A share of the queries that its shoppers asked in
training is held out: every click on them is left out in every region, the rest is federated anew
from the base, and a line is printed after each round. Test queries and human judgments take no
part. nDCG@10 of the encoder alone, through exact search:

    own         the held-out queries over each region's own catalog, mean over the regions
    union       the same over all catalogs in one index
    titles      a few neighbouring words of a title, over all catalogs; what has them is relevant
    validation  of the regions' later clicks, over what was shown: what chooses the round

--fusion and --distance put others in the place of those of the run's base: the towers, what is kept
of them and the clicks stay, and nothing is written. (The clicks are those that shoppers made on
lists of the run's base, which fused and compared by the defaults.)

With --pooled one model is trained instead on what all regions have together, with the same knobs
and as `centralized` is (docs/simulation.md): how far the federation is from pooling.

With --personalize each region then makes its candidates (docs/personalization.md) from the last
round, by the settings in its `region.toml` and, as everywhere, by the defaults of a run, without
the held-out clicks too. A line says what each candidate would do if every region took it, and the
last one what the regions choose:

    gain        nDCG@10 on `own` less that of the last round, mean over the regions
    worst       the same, of the region that loses most or gains least

With --ensembles each region trains alone on parts of what it was asked, and a line tells the
examples that it had (a part without any is left out) and nDCG@10 on `own` of the ensemble by the
share of the adapter trained alone: 0 is the last round, which has seen all of the examples, and 1
is training alone.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from pydantic import ValidationError

from client.clicks import Examples, examples_of
from client.evaluation import K, rank
from client.known_items import known_items_of, make_known_items
from client.objective import TrainingData, make_training_data
from client.region import open_region
from client.statistics import encoding_statistics, product_gaussian
from client.training import order_seed, train
from client.worker import Worker
from server.aggregator import Aggregator, Outcome
from server.extrapolation import trained_from
from server.gaussians import FederationGaussians
from server.history import History
from server.statistics import FederationStatistics
from shared.adapter import Adapter
from shared.config import (
    DISTANCES,
    FUSIONS,
    FederationConfig,
    parse_knobs,
    parse_run_config,
    run_defaults,
)
from shared.encoders.base import read_base
from shared.encoders.encoder import Encoder, pick_device
from shared.encoders.presets import cache_root
from shared.errors import ConfigError, FedshelfError
from shared.schema import ClicksConfig
from simulations.baselines import (
    central_pool,
    pooled_products,
    train_round,
    validate,
    with_public,
)
from simulations.candidates import ensemble_figures, ndcg, personal_gains
from simulations.datasets.load import load_source
from simulations.partition import region_names
from simulations.queries import make_qrels, normalize, share_of, split_queries
from simulations.table import TestSet, judgments

HELD_OUT: Final = 0.15  # of the queries asked in training
TITLE_QUERIES: Final = 1500
MAX_ANSWERS: Final = 400  # words that more products have find nothing in particular
PARTS: Final = (0.1, 0.2, 0.4, 1.0)  # of the queries that a region was asked
_TITLES_SEED: Final = 1  # not the one that known items are trained with


@dataclass(frozen=True)
class Development:
    """Queries that nothing is trained on, and what answers them.

    Attributes:
        own: the held-out queries over each region's own catalog.
        union: the same over all catalogs, one behind the other.
        titles: words of titles, over all catalogs.
    """

    own: list[TestSet]
    union: TestSet
    titles: TestSet

    @property
    def texts(self) -> set[str]:
        """All of them, normalized."""
        return {normalize(text) for text in (*self.union.queries, *self.titles.queries)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Federate with the knobs given and print what each round reaches; exit 1 with one line."""
    parser = argparse.ArgumentParser(prog="development", description="Measure one choice.")
    parser.add_argument("run", type=Path, help='folder that "fedshelf simulate" made')
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="knobs")
    parser.add_argument(
        "--clicks", action="append", default=[], metavar="KEY=VALUE", help="[clicks] of region.toml"
    )
    parser.add_argument("--seed", type=int, help="of training; the run's own by default")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pooled", action="store_true", help="train one model on all clicks")
    parser.add_argument("--personalize", action="store_true", help="and adapt the last round")
    parser.add_argument("--ensembles", action="store_true", help="and ensembles, by examples")
    parser.add_argument("--fusion", help=f"{', '.join(FUSIONS)}; the base's own by default")
    parser.add_argument("--distance", help=f"{', '.join(DISTANCES)}; the base's own by default")
    given = parser.parse_args(arguments)
    _require_known("--fusion", given.fusion, FUSIONS)
    _require_known("--distance", given.distance, DISTANCES)
    try:
        torch.set_num_threads(given.threads)
        config = _config(given.run, given.rounds, given.knobs, given.seed)
        workers = _workers(given.run, _clicks_config(given.clicks), given.fusion, given.distance)
        development = develop(given.run, workers)
        rounds = _pool if given.pooled else _federate
        adapter = rounds(given.run, workers, development, config)
        if given.personalize:
            _say_personal(workers, development, adapter)
        if given.ensembles:
            _say_ensembles(workers, development, adapter)
    except FedshelfError as error:
        sys.exit(f"error: {error}")


def develop(run: Path, workers: Sequence[Worker]) -> Development:
    """Hold out queries of a run, and make some of its titles.

    Args:
        run: folder that `fedshelf simulate` made.
        workers: of its regions.
    """
    spec = _read_spec(run)
    names, photos = region_names(spec["regions"]), cache_root() / "photos"
    source = load_source(spec["data"], regions=names, seed=spec["seed"], folder=photos)
    seen, _ = split_queries(source.queries)
    held_out = [query for query in seen if share_of(query.text, salt="development") < HELD_OUT]
    qrels = make_qrels(held_out, source.products["product_id"].to_list())
    catalogs = [worker.region.catalog["product_id"] for worker in workers]
    texts = [text for worker in workers for text in worker.region.texts]
    return Development(
        own=[judgments(qrels, ids) for ids in catalogs],
        union=judgments(qrels, pl.concat(catalogs)),
        titles=title_queries(texts, pl.concat(catalogs)),
    )


def title_queries(texts: Sequence[str], product_ids: pl.Series) -> TestSet:
    """Words of titles as queries, and every product that has them as an answer.

    Args:
        texts: of the products, N of them.
        product_ids: of the same.
    """
    rows = np.random.default_rng(_TITLES_SEED).permutation(len(texts))[: 2 * TITLE_QUERIES]
    made = make_known_items(texts, np.sort(rows), seed=_TITLES_SEED)
    query, row = np.divmod(made.positives, made.num_products)
    named = pl.DataFrame({"query": pl.Series(made.queries).gather(query), "row": row})
    few = named.filter(pl.len().over("query") <= MAX_ANSWERS)
    kept = (
        few["query"]
        .unique()
        .sort()
        .sample(min(TITLE_QUERIES, few["query"].n_unique()), seed=_TITLES_SEED)
    )
    few = few.filter(pl.col("query").is_in(kept.implode()))
    return judgments(
        few.select("query", product_id=product_ids.gather(few["row"]), grade=pl.lit(3, pl.Int64)),
        product_ids,
    )


def training_without(worker: Worker, held_out: set[str]) -> TrainingData:
    """What a region trains on if nobody had asked the held-out queries.

    Args:
        worker: of the region.
        held_out: normalized texts.
    """
    region, ids = worker.region, worker.region.catalog["product_id"]
    clicks = worker.log.train
    kept = [normalize(text) not in held_out for text in clicks["query"]]
    clicks = clicks.filter(pl.Series(kept, dtype=pl.Boolean))
    return make_training_data(
        worker.encoder,
        examples_of(clicks, ids, region.config.clicks),
        _without(known_items_of(region.texts, ids, clicks), held_out),
        worker.query_prefixes,
        worker.products,
    )


def measure(
    workers: Sequence[Worker], development: Development, adapter: Adapter
) -> dict[str, float]:
    """nDCG@10 of one adapter, by kind of query; see the module."""
    encoder = workers[0].encoder
    encoder.load_adapter(adapter)
    own = [
        ndcg(rank(encoder, worker.products, worker.query_prefixes(tests.queries), k=K), tests)
        for worker, tests in zip(workers, development.own, strict=True)
    ]
    union, titles = development.union, development.titles
    asked = workers[0].query_prefixes([*union.queries, *titles.queries])
    found = rank(encoder, pooled_products([w.products for w in workers]), asked, k=K)
    clicks = [row["ndcg@10"] for row in validate(workers, adapter).values()]
    return {
        "own": float(np.mean(own)),
        "union": ndcg(found[: len(union.queries)], union),
        "titles": ndcg(found[len(union.queries) :], titles),
        "validation": float(np.mean(clicks)),
    }


def _federate(
    run: Path, workers: Sequence[Worker], development: Development, config: FederationConfig
) -> Adapter:
    """All rounds, a line each; what the last one ended with."""
    data = [
        worker.prepared(training_without(worker, development.texts), config.train_config(1))
        for worker in workers
    ]
    adapter = _initial(run, workers[0].encoder)
    memory: Adapter = {}
    _say("base", measure(workers, development, adapter))
    for number in range(1, config.num_rounds + 1):
        outcome = _round(workers, data, config, number, adapter, memory)
        adapter, memory = outcome.adapter, outcome.memory
        _say(f"round {number}", measure(workers, development, adapter))
    return adapter


def _pool(
    run: Path, workers: Sequence[Worker], development: Development, config: FederationConfig
) -> Adapter:
    """As many rounds of one model on all regions' examples, a line each."""
    parts = [training_without(worker, development.texts) for worker in workers]
    pool, encoder = with_public(central_pool(workers, parts), config), workers[0].encoder
    adapter = _initial(run, encoder)
    _say("base", measure(workers, development, adapter))
    for number in range(1, config.num_rounds + 1):
        encoder.load_adapter(adapter)
        train_round(pool, encoder, config, number)
        adapter = encoder.adapter()
        _say(f"round {number}", measure(workers, development, adapter))
    return adapter


def _say_personal(workers: Sequence[Worker], development: Development, adapter: Adapter) -> None:
    """What candidates give, and what the regions choose."""
    config = run_defaults().train_config(1)
    gains = [
        personal_gains(worker, training_without(worker, development.texts), tests, adapter, config)
        for worker, tests in zip(workers, development.own, strict=True)
    ]
    for name in gains[0]:
        values = [by_name[name] for by_name in gains]
        _say(name, {"gain": float(np.mean(values)), "worst": min(values)})


def _say_ensembles(workers: Sequence[Worker], development: Development, adapter: Adapter) -> None:
    """A line for each region and part of its queries: what it has, and what each share reaches."""
    config = run_defaults().train_config(1)
    for worker, tests in zip(workers, development.own, strict=True):
        for part in PARTS:
            kept_out = development.texts | _left_out(worker, part)
            data = training_without(worker, kept_out)
            if not len(data.examples.weight):
                continue
            found = ensemble_figures(worker, data, tests, adapter, config)
            told = {f"{share:g}": figure for share, figure in found.items()}
            region, examples = worker.region.config.region, len(data.examples.weight)
            _say(f"{region}: {examples} examples, {len(tests.queries)} queries", told)


def _left_out(worker: Worker, part: float) -> set[str]:
    """Normalized texts of queries that are not in a part of what a region was asked."""
    asked = {normalize(text) for text in worker.examples.queries}
    return {text for text in asked if share_of(text, salt="part") >= part}


def _initial(run: Path, encoder: Encoder) -> Adapter:
    """What the run's federation started from, with the fusion that the encoder starts with."""
    encoder.reset(seed=0)
    fresh, mine = encoder.adapter(), "fusion/"
    started = History(run / "headquarters").adapter(0)
    towers = {name: tensor for name, tensor in started.items() if not name.startswith(mine)}
    own = {name: tensor for name, tensor in fresh.items() if name.startswith(mine)}
    return dict(sorted((own | towers).items()))


def _workers(
    run: Path, clicks: ClicksConfig, fusion: str | None, distance: str | None
) -> list[Worker]:
    """Of a run's regions, with one encoder that fuses and compares as asked; None asks nothing."""
    folders = [path.parent for path in sorted((run / "regions").glob("*/region.toml"))]
    workers = [_worker(folder, clicks) for folder in folders]
    if fusion or distance:
        base = read_base(run / "base")
        base = replace(base, fusion=fusion or base.fusion, distance=distance or base.distance)
        encoder = Encoder(run / "base", base, pick_device(workers[0].region.config.device))
        for worker in workers:
            worker.encoder = encoder
    return workers


def _worker(folder: Path, clicks: ClicksConfig) -> Worker:
    region = open_region(folder)
    config = region.config.model_copy(update={"clicks": clicks})
    return Worker(replace(region, config=config))


def _round(
    workers: Sequence[Worker],
    data: Sequence[TrainingData],
    config: FederationConfig,
    number: int,
    adapter: Adapter,
    memory: Adapter,
) -> Outcome:
    """One round of the federation, updates as they are."""
    adapter = trained_from(adapter, memory)
    aggregator, settings = Aggregator(config, number, adapter, memory), config.train_config(number)
    for worker, part in zip(workers, data, strict=True):
        seed = order_seed(settings, number, worker.region.config.region)
        worker.encoder.load_adapter(adapter)
        loss = train(
            worker.encoder,
            part,
            settings,
            seed=seed,
            rank=worker.rank,
            federation=FederationStatistics(memory).mean(),
            gaussians=FederationGaussians(memory).value(),
            validate=worker.validated,
        )
        update = worker.encoder.update(adapter, settings.trained_factors)
        asked = settings.decorrelation_weight > 0
        statistics = encoding_statistics(worker.encoder, part) if asked else None
        drawn = settings.drawn_negatives > 0
        gaussian = product_gaussian(worker.encoder, part.products, seed=seed) if drawn else None
        aggregator.add(update, len(part.examples.weight), loss, statistics, gaussian)
    return aggregator.outcome()


def _require_known(option: str, value: str | None, known: Sequence[str]) -> None:
    """Refuse a wrong word as a usage error, in one line."""
    if value is not None and value not in known:
        told = f'error: {option}: "{value}" is unknown; choose one of {", ".join(known)}'
        print(told, file=sys.stderr)
        sys.exit(2)


def _without(known: Examples, held_out: set[str]) -> Examples:
    kept = np.array([normalize(text) not in held_out for text in known.queries], np.bool_)
    asked = kept[known.query_index]
    return replace(
        known,
        query_index=known.query_index[asked],
        product_row=known.product_row[asked],
        weight=known.weight[asked],
    )


def _say(when: str, figures: dict[str, float]) -> None:
    told = "  ".join(f"{name} {figure:.4f}" for name, figure in figures.items())
    print(f"{when:10}  {told}", flush=True)


def _clicks_config(pairs: Sequence[str]) -> ClicksConfig:
    parts = [pair.partition("=") for pair in pairs]
    try:
        return ClicksConfig.model_validate({key: value for key, _, value in parts})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        known = ", ".join(ClicksConfig.model_fields)
        raise ConfigError(f"--clicks {key}: {first['msg']}; keys: {known}") from None


def _config(run: Path, rounds: int, knobs: Sequence[str], seed: int | None) -> FederationConfig:
    seed = _read_spec(run)["seed"] if seed is None else seed
    config = parse_run_config(
        {**parse_knobs(knobs), "run-dir": str(run), "num-rounds": rounds, "seed": seed}
    )
    if config.control_variates:  # they live in a region's state, which is not touched here
        raise ConfigError('--set control-variates=true: measure it with "fedshelf simulate"')
    return config


def _read_spec(run: Path) -> dict[str, Any]:
    path = run / "run.json"
    if not path.is_file():
        raise ConfigError(f'{run}: no run; make it with "fedshelf simulate --out {run}"')
    return dict(json.loads(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
