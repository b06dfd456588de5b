"""Training examples as batches of rows: which queries, which products, who answers whom.

A query or product that occurs several times in a batch is encoded once. Order is seeded; nothing
here touches a tensor on a device.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.clicks import Examples

_SKIPPED = 0x73  # keeps the draw of hard negatives apart from the order of examples
_PUBLIC = 0x70  # and that of public products


@dataclass(frozen=True)
class Batch:
    """One step's worth of examples.

    Attributes:
        query_rows: distinct queries, rows of `Examples.queries`, (U,).
        product_rows: distinct products, catalog rows, (V,): first the clicked ones, then those
            that are there as hard negatives alone.
        num_clicked: how many of them are clicked ones.
        query_index: row in `query_rows` of each example, (E,) int64.
        product_index: row in `product_rows` of each example, (E,) int64.
        weight: of each example, (E,) float32.
        known_positive: (U, V) bool; true where the product was ever clicked for the query.
        public_rows: products that belong to no region and answer nobody, (W,), ascending.
    """

    query_rows: NDArray[np.int64]
    product_rows: NDArray[np.int64]
    num_clicked: int
    query_index: Tensor
    product_index: Tensor
    weight: Tensor
    known_positive: Tensor
    public_rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


def make_batch(
    examples: Examples,
    chosen: NDArray[np.int64],
    *,
    hard_negatives: int = 0,
    rng: np.random.Generator | None = None,
) -> Batch:
    """Gather examples into a batch.

    Args:
        examples: of a region.
        chosen: which of them, (E,).
        hard_negatives: skipped products of each of its queries that join it, at most.
        rng: draws them where a query has more.
    """
    queries, query_index = np.unique(examples.query_index[chosen], return_inverse=True)
    clicked, product_index = np.unique(examples.product_row[chosen], return_inverse=True)
    products = clicked
    if hard_negatives > 0:
        rng = rng or np.random.default_rng(0)
        drawn = [_skipped_of(examples, query, hard_negatives, rng) for query in queries.tolist()]
        products = np.concatenate([clicked, np.setdiff1d(np.concatenate(drawn), clicked)])
    return Batch(
        query_rows=queries,
        product_rows=products,
        num_clicked=len(clicked),
        query_index=torch.from_numpy(query_index),
        product_index=torch.from_numpy(product_index),
        weight=torch.from_numpy(examples.weight[chosen]),
        known_positive=positives_among(examples, queries, products),
    )


def positives_among(
    examples: Examples, queries: NDArray[np.int64], products: NDArray[np.int64]
) -> Tensor:
    """Which of these products (V,) were ever clicked for which of these queries (U,), (U, V).

    There is a click at least: without any there is no example, and so nothing to ask about.
    """
    keys, known = queries[:, None] * examples.num_products + products[None, :], examples.positives
    nearest = known[np.searchsorted(known[:-1], keys)]  # np.isin would look at all of them anew
    return torch.from_numpy(nearest == keys)


def _skipped_of(
    examples: Examples, query: int, most: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Rows of at most so many products that were skipped for a query."""
    first, end = np.searchsorted(
        examples.skipped, [query * examples.num_products, (query + 1) * examples.num_products]
    )
    rows = examples.skipped[first:end] % examples.num_products
    return rows if len(rows) <= most else rng.choice(rows, most, replace=False)


def epoch_batches(
    examples: Examples,
    *,
    batch_size: int,
    seed: list[int],
    hard_negatives: int = 0,
    public: tuple[int, int] = (0, 0),
    part: int = 0,
    parts: int = 1,
) -> Iterator[Batch]:
    """Every example once, in seeded random order; the last batch may be smaller.

    Args:
        examples: E of them.
        batch_size: examples a batch.
        seed: of numpy's generator; the same numbers give the same order.
        hard_negatives: skipped products that join a batch for each of its queries, at most.
        public: (N, W): of N public products, W join every batch, or all where there are fewer.
        part: only this one, from 0, of ...
        parts: ... so many equal parts of that order; see `part_size`.
    """
    order = np.random.default_rng(seed).permutation(len(examples.weight))
    rng = np.random.default_rng([*seed, _SKIPPED])
    strangers = np.random.default_rng([*seed, _PUBLIC, part])
    sizes = [part_size(len(order), number, parts) for number in range(part + 1)]
    ours = np.roll(order, -sum(sizes[:-1]))[: sizes[-1]]
    for start in range(0, len(ours), batch_size):
        chosen = ours[start : start + batch_size]
        batch = make_batch(examples, chosen, hard_negatives=hard_negatives, rng=rng)
        rows = strangers.permutation(public[0])[: public[1]]
        yield replace(batch, public_rows=np.sort(rows))


def part_size(total: int, part: int, parts: int) -> int:
    """Examples in one of the parts of an epoch: equally many, give or take one, and never none.

    So of fewer examples than parts some come twice in an epoch.
    """
    return max((part + 1) * total // parts - part * total // parts, min(total, 1))


def num_batches(total: int, batch_size: int, part: int = 0, parts: int = 1) -> int:
    """Batches of one epoch over so many examples, or of a part of it."""
    return -(-part_size(total, part, parts) // batch_size)
