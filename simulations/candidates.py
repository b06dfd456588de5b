"""What a region may make of a release (docs/personalization.md), on queries held out from it.

`simulations.development` gives the queries, and prints what is found.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.evaluation import K, mean_metrics, rank
from client.objective import TrainingData
from client.personal import RELEASE
from client.personalization import choose, make_candidates, train_alone
from client.worker import Worker
from shared.adapter import Adapter, paired
from shared.config import TrainConfig
from simulations.table import TestSet

CHOSEN: Final = "chosen"
SHARES: Final = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)  # of an adapter trained alone


def personal_gains(
    worker: Worker, data: TrainingData, tests: TestSet, adapter: Adapter, config: TrainConfig
) -> dict[str, float]:
    """What each candidate of a region, and the one it chooses, gain on its held-out queries.

    Args:
        worker: of the region.
        data: what it trains on.
        tests: its held-out queries.
        adapter: in the place of a release.
        config: of a round.

    Returns:
        nDCG@10 less that of `adapter`, by candidate; last `CHOSEN`.
    """
    encoder, settings = worker.encoder, worker.region.config.personalization
    encoder.load_adapter(adapter)
    seed = [*worker.region.config.region.encode()]
    candidates = make_candidates(encoder, data, config, settings, seed=seed)
    asked, found = worker.query_prefixes(tests.queries), dict[str, float]()
    for name, candidate in {RELEASE: adapter, **candidates}.items():
        encoder.load_adapter(candidate)
        found[name] = ndcg(rank(encoder, worker.products, asked, k=K), tests)
    choice, reason, _ = choose(
        worker.gains_over(adapter, candidates),
        confidence=settings.confidence,
        min_queries=settings.min_queries,
    )
    if len(data.examples.weight) < settings.min_examples:
        choice, reason = RELEASE, f"{len(data.examples.weight)} examples are too few to train on"
    print(f"{worker.region.config.region}: {choice}; {reason}", flush=True)
    gains = {name: found[name] - found[RELEASE] for name in candidates}
    return gains | {CHOSEN: found[choice] - found[RELEASE]}


def ensemble_figures(
    worker: Worker, data: TrainingData, tests: TestSet, adapter: Adapter, config: TrainConfig
) -> dict[float, float]:
    """What an ensemble with an adapter trained alone reaches on a region's held-out queries.

    Args:
        worker: of the region.
        data: what it trains on alone.
        tests: its held-out queries.
        adapter: in the place of a release.
        config: of a round.

    Returns:
        nDCG@10 by the share of the adapter trained alone; 0 is the release, 1 that adapter.
    """
    encoder, settings = worker.encoder, worker.region.config.personalization
    train_alone(encoder, data, config, settings, seed=[*worker.region.config.region.encode()])
    alone, asked = encoder.adapter(), worker.query_prefixes(tests.queries)
    between = {share: paired(adapter, alone, share) for share in SHARES}
    found = dict[float, float]()
    for share, candidate in {0.0: adapter, **between, 1.0: alone}.items():
        encoder.load_adapter(candidate)
        found[share] = ndcg(rank(encoder, worker.products, asked, k=K), tests)
    return found


def ndcg(ranked: NDArray[np.int64], tests: TestSet) -> float:
    """Mean nDCG@10.

    Args:
        ranked: catalog rows of the best products, a line for each query, (Q, 10).
        tests: the queries, and what answers them.
    """
    return mean_metrics(ranked, tests.qrels)[f"ndcg@{K}"]
