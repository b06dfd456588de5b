"""Training examples as batches of rows: which queries, which products, who answers whom.

A query or product that occurs several times in a batch is encoded once. Order is seeded; nothing
here touches a tensor on a device.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.clicks import Examples


@dataclass(frozen=True)
class Batch:
    """One step's worth of examples.

    Attributes:
        query_rows: distinct queries, rows of `Examples.queries`, (U,).
        product_rows: distinct products, catalog rows, (V,).
        query_index: row in `query_rows` of each example, (E,) int64.
        product_index: row in `product_rows` of each example, (E,) int64.
        weight: of each example, (E,) float32.
        known_positive: (U, V) bool; true where the product was ever clicked for the query.
    """

    query_rows: NDArray[np.int64]
    product_rows: NDArray[np.int64]
    query_index: Tensor
    product_index: Tensor
    weight: Tensor
    known_positive: Tensor


def make_batch(examples: Examples, chosen: NDArray[np.int64]) -> Batch:
    """Gather the examples `chosen` (E,) into a batch."""
    queries, query_index = np.unique(examples.query_index[chosen], return_inverse=True)
    products, product_index = np.unique(examples.product_row[chosen], return_inverse=True)
    keys = queries[:, None] * examples.num_products + products[None, :]  # (U, V)
    return Batch(
        query_rows=queries,
        product_rows=products,
        query_index=torch.from_numpy(query_index),
        product_index=torch.from_numpy(product_index),
        weight=torch.from_numpy(examples.weight[chosen]),
        known_positive=torch.from_numpy(np.isin(keys, examples.positives)),
    )


def epoch_batches(examples: Examples, *, batch_size: int, seed: list[int]) -> Iterator[Batch]:
    """Every example once, in seeded random order; the last batch may be smaller.

    Args:
        examples: E of them.
        batch_size: examples a batch.
        seed: of numpy's generator; the same numbers give the same order.
    """
    order = np.random.default_rng(seed).permutation(len(examples.weight))
    for start in range(0, len(order), batch_size):
        yield make_batch(examples, order[start : start + batch_size])


def num_batches(examples: Examples, batch_size: int) -> int:
    """Batches of one epoch."""
    return -(-len(examples.weight) // batch_size)
