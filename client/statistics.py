"""What a region tells of its vectors, as its encoder now is.

Encoding statistics are of all its training examples, the Gaussian is of its products.
"""

from collections.abc import Sequence

import numpy as np
import torch

from client.objective import TrainingData
from shared.decorrelation import MIN_EXAMPLES, Statistics, combined, statistics_of
from shared.encoders.encoder import Encoder, ProductPrefixes
from shared.gaussians import MIN_PRODUCTS, Gaussians, fitted

_PART = 4096  # pairs whose vectors are side by side in memory
_MAX_PRODUCTS = 1000  # that a Gaussian is of: they are encoded for it in every round


def encoding_statistics(encoder: Encoder, data: TrainingData) -> Statistics | None:
    """What a region sends of its encodings (DCCO, arXiv:2210.00092), float64 on the CPU.

    Args:
        encoder: with the adapter in question.
        data: originals are encoded, never augmented views.

    Returns:
        None with fewer than `MIN_EXAMPLES` examples, which statistics would describe one by one.
    """
    examples = data.examples
    if len(examples.weight) < MIN_EXAMPLES:
        return None
    queries = torch.from_numpy(encoder.query_matrix(data.queries))  # (Q, D)
    products = torch.from_numpy(encoder.product_matrix(data.products, data.clicked))  # (P, D)
    product_index = np.searchsorted(data.clicked, examples.product_row)
    parts = []
    for start in range(0, len(examples.weight), _PART):
        part = slice(start, start + _PART)
        f = queries[torch.from_numpy(examples.query_index[part])]  # (E, D)
        g = products[torch.from_numpy(product_index[part])]
        weights = torch.from_numpy(examples.weight[part])
        parts.append(statistics_of(f.double(), g.double(), weights.double()))
    return combined(parts)


def product_gaussian(
    encoder: Encoder, products: ProductPrefixes, *, seed: Sequence[int]
) -> Gaussians | None:
    """The Gaussian of a catalog's vectors, or of those of a thousand of its products.

    Args:
        encoder: with the adapter in question.
        products: kept activations of the catalog.
        seed: of which products.

    Returns:
        One; None of fewer than `MIN_PRODUCTS` products, which it would describe one by one.
    """
    there = np.flatnonzero(products.has_text | products.images.present)
    if len(there) < MIN_PRODUCTS:
        return None
    rng = np.random.default_rng(seed)
    rows = rng.choice(there, min(len(there), _MAX_PRODUCTS), replace=False)
    return fitted(torch.from_numpy(encoder.product_matrix(products, np.sort(rows))))
