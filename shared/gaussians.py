"""Gaussians of product vectors, which a region may tell where its products may not be told.

In a region that sells a few kinds of products, in-batch negatives are of these kinds. Products of
other regions would be the negatives that it lacks, and they may not travel. How they lie in the
space of vectors may: a mean and a covariance, of which others draw vectors to take their place.

A covariance is kept as probabilistic principal components (Tipping and Bishop, "Probabilistic
Principal Component Analysis", J. R. Stat. Soc. B 61, 1999): W Wᵀ + s² I.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

COMPONENTS: Final = 32  # of W
MIN_PRODUCTS: Final = 100  # fewer are described one by one; nothing is told of them
PRODUCTS_A_COMPONENT: Final = 10  # at least, for the same reason
_ROUNDING: Final = 0.05  # of the mean square of a vector, which is 1; int8 moves it by less


@dataclass(frozen=True)
class Gaussians:
    """Some Gaussians over vectors of one length.

    Attributes:
        mean: of each, (R, V).
        factor: Wᵀ of each, (R, C, V); a row of zeros is a component that it does without.
        residual: s² of each, the variance in every direction besides, (R,).
    """

    mean: Tensor
    factor: Tensor
    residual: Tensor

    def to(self, device: torch.device) -> "Gaussians":
        """The same on another device."""
        return Gaussians(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """All three, by name."""
        return {"mean": self.mean, "factor": self.factor, "residual": self.residual}


def forms(number: int, dim: int) -> dict[str, tuple[int, ...]]:
    """The shapes of so many Gaussians over vectors (V,), by name."""
    return {
        "mean": (number, dim),
        "factor": (number, COMPONENTS, dim),
        "residual": (number,),
    }


def fitted(vectors: Tensor) -> Gaussians:
    """The one that is most likely, given vectors (Tipping and Bishop 1999, eq. 7 and 8).

    W = U (L - s² I)^½ of the largest eigenvalues L of the covariance and their vectors U, and s² is
    the mean of the other eigenvalues. So the variances add up to those of the vectors.

    Args:
        vectors: unit vectors, (N, V) with N >= `PRODUCTS_A_COMPONENT` and V > 1.

    Returns:
        R = 1, float32.
    """
    exact = vectors.double()
    mean = exact.mean(dim=0)  # (V,)
    apart = exact - mean
    values, directions = torch.linalg.eigh(apart.T @ apart / len(apart))  # ascending; (V,), (V, V)
    number = min(COMPONENTS, len(apart) // PRODUCTS_A_COMPONENT, len(mean) - 1)
    residual = values[:-number].mean().clamp(min=0)
    scales = (values[-number:] - residual).clamp(min=0).sqrt()
    factor = pad((directions[:, -number:] * scales).T, (0, 0, 0, COMPONENTS - number))
    return Gaussians(mean[None].float(), factor[None].float(), residual[None].float())


def stacked(parts: Sequence[Gaussians]) -> Gaussians:
    """All Gaussians of the parts, in their order; at least one part, all of the same V."""
    names = parts[0].tensors()
    return Gaussians(**{name: torch.cat([p.tensors()[name] for p in parts]) for name in names})


def drawn(gaussians: Gaussians, number: int, rng: np.random.Generator) -> Tensor:
    """Vectors of the Gaussians, each of any of them alike, brought to unit length.

    Args:
        gaussians: at least one.
        number: of vectors.
        rng: of the draw.

    Returns:
        (number, V), on the device of the Gaussians; those of one Gaussian are next to each other.
    """
    counts = np.bincount(rng.integers(len(gaussians.mean), size=number))
    return normalize(torch.cat([_of_one(gaussians, i, n, rng) for i, n in enumerate(counts)]))


def _of_one(gaussians: Gaussians, which: int, number: int, rng: np.random.Generator) -> Tensor:
    mean, factor = gaussians.mean[which], gaussians.factor[which]
    components, vectors = (
        torch.from_numpy(rng.standard_normal((number, size), np.float32)).to(mean.device)
        for size in factor.shape
    )
    return mean + components @ factor + gaussians.residual[which].sqrt() * vectors


def why_impossible(gaussians: Gaussians) -> str | None:
    """Why these cannot be Gaussians of unit vectors, one line; None where they can.

    The mean square of a unit vector is 1: that of the mean and all variances add up to it.

    Args:
        gaussians: finite, of the right shapes.
    """
    if not len(gaussians.mean):
        return "there is none"
    if gaussians.residual.min() < 0:
        return "a variance is negative"
    squares = gaussians.mean.square().sum(dim=1) + gaussians.factor.square().sum(dim=(1, 2))
    whole = squares + gaussians.residual * gaussians.mean.shape[1]  # (R,)
    if ((whole - 1).abs() > _ROUNDING).any():
        return "they are not of unit vectors"
    return None
