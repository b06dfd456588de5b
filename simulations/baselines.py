"""What a federation is compared with: each region alone, and all data in one place.

The same training code, examples, number of passes and learning rates as in the federation, round
by round; only the averaging is missing, and the pool's rate is scaled by `CENTRALIZED_SCALE`.
Pooling is allowed in a simulation only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.clicks import Examples
from client.objective import TrainingData, make_training_data
from client.training import OnStep, order_seed, train
from client.worker import Worker
from server.history import History, RoundRecord
from shared.adapter import Adapter
from shared.config import FederationConfig
from shared.encoders.encoder import Encoder, ProductPrefixes
from shared.encoders.prefix_cache import ImagePrefixes, TextPrefixes

# Pooled training takes as many steps a pass as all regions together, so it wants a smaller rate, as
# development queries (seen ones kept out of training) showed. Without this the baseline would be
# weaker than it can be, and the federation would win for the wrong reason.
CENTRALIZED_SCALE = 0.3


@dataclass(frozen=True)
class Pool:
    """One training set, and the regions whose validation clicks stop it.

    Attributes:
        name: what the seed and the folder are named by.
        data: what is trained on.
        workers: measured after every pass.
        learning_rate_scale: of the federation's learning rates; see `CENTRALIZED_SCALE`.
    """

    name: str
    data: TrainingData
    workers: Sequence[Worker]
    learning_rate_scale: float = 1.0


def train_alone(
    pool: Pool,
    encoder: Encoder,
    config: FederationConfig,
    history: History,
    *,
    on_step: OnStep | None = None,
) -> None:
    """Train on one pool for as many rounds as the federation has, keeping every round.

    Args:
        pool: see `Pool`.
        encoder: the resident encoder.
        config: of the federation; its rounds, passes and learning rates are used.
        history: where rounds are kept; complete ones are not repeated.
        on_step: called with (steps done, steps in all) of a round.
    """
    done = history.rounds()
    first = done[-1].round + 1 if done else 0
    pool = with_public(pool, config)
    for number in range(first, config.num_rounds + 1):
        encoder.load_adapter(history.adapter(max(number - 1, 0)))
        record = RoundRecord(
            number, cohort=[worker.region.config.region for worker in pool.workers]
        )
        if number > 0:
            record.loss = train_round(pool, encoder, config, number, on_step=on_step)
        adapter = encoder.adapter()
        record.validation = validate(pool.workers, adapter)
        history.append(record, adapter)


def with_public(pool: Pool, config: FederationConfig) -> Pool:
    """The pool with the base's public products, if the federation trains with them."""
    return replace(pool, data=pool.workers[0].with_public(pool.data, config.train_config(1)))


def train_round(
    pool: Pool,
    encoder: Encoder,
    config: FederationConfig,
    number: int,
    *,
    on_step: OnStep | None = None,
) -> float:
    """Train on one pool for one round, in place.

    Args:
        pool: see `with_public`.
        encoder: holds what the round before ended with.
        config: of the federation.
        number: of the round, from 1.
        on_step: called with (steps done, steps in all).

    Returns:
        Mean loss over the steps, nats.
    """
    settings = config.train_config(number)
    seed = order_seed(settings, number, pool.name)
    rate = settings.learning_rate * pool.learning_rate_scale
    settings = replace(settings, learning_rate=rate, decorrelation_weight=0.0, drawn_negatives=0)
    rank = max(worker.rank for worker in pool.workers)
    return train(encoder, pool.data, settings, seed=seed, rank=rank, on_step=on_step)


def validate(workers: Sequence[Worker], adapter: Adapter) -> dict[str, dict[str, float]]:
    """Validation metrics of an adapter in each region, by its name."""
    return {worker.region.config.region: worker.evaluate(adapter)[1] for worker in workers}


def pooled_data(
    workers: Sequence[Worker], parts: Sequence[TrainingData] | None = None
) -> TrainingData:
    """All regions' examples over all regions' catalogs, one behind the other.

    The same query text in two regions is one query; a product stays its region's own.

    Args:
        workers: of the regions.
        parts: what each of them trains on; all that it has by default.
    """
    parts = parts or [worker.training_data for worker in workers]
    products = pooled_products([part.products for part in parts])
    return make_training_data(
        workers[0].encoder,
        pooled_examples([part.examples for part in parts]),
        pooled_examples([part.known for part in parts]),
        workers[0].query_prefixes,
        products,
    )


def pooled_examples(parts: Sequence[Examples]) -> Examples:
    """Regions' examples over their catalogs, one behind the other."""
    starts = np.cumsum([0, *(part.num_products for part in parts)])
    queries = sorted({query for part in parts for query in part.queries})
    row_of, total = {query: row for row, query in enumerate(queries)}, int(starts[-1])
    query_index, product_row, weight = [], [], []
    positives, skipped = list[NDArray[np.int64]](), list[NDArray[np.int64]]()
    for part, start in zip(parts, starts[:-1], strict=True):
        to_pool = np.array([row_of[query] for query in part.queries], dtype=np.int64)
        query_index.append(to_pool[part.query_index])
        product_row.append(part.product_row + start)
        weight.append(part.weight)
        for keys, pooled in ((part.positives, positives), (part.skipped, skipped)):
            query, row = np.divmod(keys, part.num_products)
            pooled.append(to_pool[query] * total + row + start)
    return Examples(
        queries=queries,
        query_index=np.concatenate(query_index),
        product_row=np.concatenate(product_row),
        weight=np.concatenate(weight),
        positives=np.sort(np.concatenate(positives)),
        num_products=total,
        skipped=np.sort(np.concatenate(skipped)),
    )


def pooled_products(parts: Sequence[ProductPrefixes]) -> ProductPrefixes:
    """Catalogs one behind the other."""
    texts, images = [part.texts for part in parts], [part.images for part in parts]
    starts = np.cumsum([0, *(text.offsets[-1] for text in texts)])
    offsets = [text.offsets[:-1] + start for text, start in zip(texts, starts, strict=False)]
    maps = [image.maps for image in images]
    shape = max((part.shape[1:] for part in maps), key=len)  # of a region that has photos
    whole = [
        part if part.shape[1:] == shape else np.zeros((len(part), *shape), np.float16)
        for part in maps
    ]
    return ProductPrefixes(
        TextPrefixes(
            np.concatenate([text.tokens for text in texts]),
            np.concatenate([*offsets, starts[-1:]]).astype(np.int64),
        ),
        ImagePrefixes(np.concatenate(whole), np.concatenate([i.present for i in images])),
        np.concatenate([part.has_text for part in parts]),
    )


def best_adapter(history: History) -> Adapter:
    """The adapter of the round that is best on validation clicks."""
    return history.adapter(history.best_round())


def local_pool(worker: Worker) -> Pool:
    """A region alone, stopped on its own validation clicks."""
    return Pool(worker.region.config.region, worker.training_data, [worker])


def central_pool(workers: Sequence[Worker], parts: Sequence[TrainingData] | None = None) -> Pool:
    """All regions together, stopped on the mean of their validation clicks.

    Args:
        workers: of the regions.
        parts: see `pooled_data`.
    """
    return Pool("centralized", pooled_data(workers, parts), workers, CENTRALIZED_SCALE)


def baselines_folder(run: Path, name: str) -> Path:
    """Where a baseline's rounds are kept."""
    return run / "baselines" / name
