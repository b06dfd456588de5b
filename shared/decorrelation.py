"""DCCO: a loss of encoding statistics, which regions can share where clicks may not be.

Regions with few clicks have small batches, and a contrastive loss or a correlation of few pairs
says little. Vemulapalli et al. ("Federated Training of Dual Encoding Models on Small Non-IID Client
Datasets", arXiv:2210.00092) let every region take its steps by the statistics of all regions: the
loss of all pairs in one place, of which each region knows its own part of the gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

MIN_EXAMPLES: Final = 100  # statistics of fewer describe single clicks; they are not sent
MOMENTS: Final = ("query", "query_squared", "product", "product_squared", "cross")
_LEAST_VARIANCE: Final = 1e-6  # of a dimension; of unit vectors it is about 1 / D
_ROUNDING: Final = 1e-4  # of sums of float32


@dataclass(frozen=True)
class Statistics:
    """Weighted means over clicked pairs of a query vector F and a product vector G.

    Attributes:
        query: <F>, (D,).
        query_squared: <F^2>, element by element, (D,).
        product: <G>, (D,).
        product_squared: <G^2>, (D,).
        cross: <F G^T>, (D, D); row i is of F_i.
        weight: what they count beside others, > 0, shape ().
    """

    query: Tensor
    query_squared: Tensor
    product: Tensor
    product_squared: Tensor
    cross: Tensor
    weight: Tensor

    def moments(self) -> dict[str, Tensor]:
        """The five means by name, in the order of `MOMENTS`."""
        return {name: getattr(self, name) for name in MOMENTS}

    def to(self, target: torch.device | torch.dtype) -> "Statistics":
        """The same on another device, or of another dtype."""
        means = {name: tensor.to(target) for name, tensor in self.moments().items()}
        return Statistics(**means, weight=self.weight.to(target))


def statistics_of(queries: Tensor, products: Tensor, weights: Tensor) -> Statistics:
    """Statistics of pairs (arXiv:2210.00092, section 3).

    Args:
        queries: vectors F of the pairs' queries, (B, D).
        products: vectors G of their products, (B, D).
        weights: of each pair, (B,), >= 0, not all 0; the paper's are all the same.

    Returns:
        With a graph where the vectors have one; its weight is the sum of the pairs'.
    """
    total = weights.sum()
    share = weights / total  # (B,)
    return Statistics(
        query=share @ queries,
        query_squared=share @ queries.square(),
        product=share @ products,
        product_squared=share @ products.square(),
        cross=(queries * share[:, None]).T @ products,  # (D, D)
        weight=total,
    )


def combined(parts: Sequence[Statistics]) -> Statistics:
    """Statistics of all pairs together, of those of parts.

    Args:
        parts: at least one; all of the same D.
    """
    total = torch.stack([part.weight for part in parts]).sum()
    shares = [part.weight / total for part in parts]
    means = {
        name: torch.stack(
            [share * getattr(part, name) for share, part in zip(shares, parts, strict=True)]
        ).sum(dim=0)
        for name in MOMENTS
    }
    return Statistics(**means, weight=total)


def anchored(batch: Statistics, federation: Statistics) -> Statistics:
    """The federation's values with the batch's gradient (arXiv:2210.00092, section 3).

    The paper writes <.>_batch + stop_gradient(<.>_federation - <.>_batch). Here the difference that
    is exactly zero is <.>_batch - stop_gradient(<.>_batch), so that no bit of the value is lost.

    Args:
        batch: of the pairs of a step, with a graph.
        federation: of all regions, of the same D.
    """
    means = {
        name: there.detach() + (here - here.detach())
        for (name, here), there in zip(
            batch.moments().items(), federation.moments().values(), strict=True
        )
    }
    return Statistics(**means, weight=federation.weight)


def cross_correlation(statistics: Statistics) -> Tensor:
    """Pearson correlation of every dimension of F with every one of G, (D, D).

    C_ij = (<F_i G_j> - <F_i><G_j>) / (sqrt(<F_i^2> - <F_i>^2) sqrt(<G_j^2> - <G_j>^2)); a variance
    below 1e-6 counts as that much: a dimension that does not vary correlates with nothing.
    """
    query, product = statistics.query, statistics.product
    covariance = statistics.cross - torch.outer(query, product)  # (D, D)
    query_scale = _deviation(query, statistics.query_squared)
    product_scale = _deviation(product, statistics.product_squared)
    return covariance / torch.outer(query_scale, product_scale)


def _deviation(mean: Tensor, squared: Tensor) -> Tensor:
    """Standard deviation of each dimension, (D,), away from 0, where its root has no slope."""
    return (squared - mean.square()).clamp(min=_LEAST_VARIANCE).sqrt()


def decorrelation_loss(statistics: Statistics, off_diagonal: float) -> Tensor:
    """L = sum_i (1 - C_ii)^2 + lambda / (D - 1) sum_i sum_{j != i} C_ij^2 (arXiv:2210.00092).

    The same dimension of query and product shall tell the same, and different ones different
    things: a whole batch of pairs is compared without a single negative.

    Args:
        statistics: of a step's pairs, or `anchored`.
        off_diagonal: lambda, >= 0; 20 in the paper.

    Returns:
        A sum over D dimensions, shape ().
    """
    correlation = cross_correlation(statistics)  # (D, D)
    same = correlation.diagonal()  # (D,)
    others = correlation - torch.diag(same)
    spread = off_diagonal / max(len(same) - 1, 1)
    return (1 - same).square().sum() + spread * others.square().sum()


def why_impossible(statistics: Statistics) -> str | None:
    """Why these cannot be statistics of unit vectors, one line; None where they can.

    Means of squares add up to 1 at most, no variance is negative, and no mean of a product is
    larger than the root of the means of both squares (Cauchy and Schwarz); all but for rounding.

    Args:
        statistics: finite, of the right shapes.
    """
    for name in ("query", "product"):
        mean, squared = getattr(statistics, name), getattr(statistics, f"{name}_squared")
        if squared.min() < 0 or squared.double().sum() > 1 + _ROUNDING:
            return f"{name}_squared is not of unit vectors"
        if (squared - mean.square()).min() < -_ROUNDING:
            return f"{name}: a variance is negative"
    bound = torch.outer(statistics.query_squared, statistics.product_squared).sqrt()
    if (statistics.cross.abs() - bound).max() > _ROUNDING:
        return "cross is larger than the squares allow"
    return None
