"""Means of adapters, as pure arithmetic: of their factors, or of the products that these stand for.

A layer is changed by B A, so averaging B and A apart is not averaging what regions learned:

    mean(B_i A_i) - mean(B_i) mean(A_i) = mean((B_i - mean B) (A_i - mean A)),

the covariance of the factors over the regions. Every aggregation here says how far the products of
the new adapter are from the mean of the regions' products: its bias. See docs/aggregation.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from torch import Tensor
from torch.nn import functional

from shared.adapter import (
    Adapter,
    add,
    as_factors,
    factor_names,
    is_residual,
    residual_names,
)
from shared.config import EXACT
from shared.low_rank import Product, compressed, product_norm, split_rank, stacked

MAX_MEASURED: Final = 32  # regions whose factors are held to measure the bias of their mean


@dataclass(frozen=True)
class Mean:
    """What the regions of one round make together.

    Attributes:
        adapter: the next global one.
        bias: Frobenius norm, over all layers, of the mean of the regions' products B_i A_i minus
            the products of `adapter`, without LoRA's scaling; None if it was not measured.
        relative_bias: `bias` as a share of the norm of the mean of products; 0 if that is 0.
    """

    adapter: Adapter
    bias: float | None
    relative_bias: float | None


class WeightedMean:
    """FedAvg's mean (arXiv:1602.05629, algorithm 1), one adapter at a time.

    Sums are kept in double precision, and nothing else, so a cohort of any size takes the memory
    of two adapters. They depend on the order in their last bits: add in a fixed one.

    Attributes:
        weight: summed so far.
    """

    def __init__(self) -> None:
        self.weight = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, adapter: Mapping[str, Tensor], weight: int) -> None:
        """Count one adapter in.

        Args:
            adapter: of the same names and shapes as those before it.
            weight: above 0, such as its number of examples.
        """
        self.weight += weight
        for name, tensor in adapter.items():
            part = tensor.double() * weight
            self._sums[name] = self._sums[name] + part if name in self._sums else part

    def value(self) -> Adapter:
        """The mean so far, float32; at least one adapter must have been added."""
        return {name: (total / self.weight).float() for name, total in self._sums.items()}


class FactorMean:
    """The mean of B and the mean of A: plain FedAvg.

    Where updates name only one of a layer's two factors, products are linear in what is averaged:
    there is no bias (FFA-LoRA, arXiv:2403.12313; RoLoRA, arXiv:2502.01755). Otherwise it is
    measured from the factors of up to `MAX_MEASURED` regions; of a larger cohort nothing is kept
    but the sums, and the bias is not known.

    Args:
        sent: the adapter that the regions started from.
    """

    def __init__(self, sent: Adapter) -> None:
        self._sent, self._mean = sent, WeightedMean()
        self._parts: list[tuple[dict[str, Product], int]] | None = []

    def add(self, update: Adapter, weight: int) -> None:
        """Count a region's update in; see `WeightedMean.add`."""
        self._mean.add(update, weight)
        if self._parts is not None:
            self._parts.append((products_of(update), weight))
            if len(self._parts) > MAX_MEASURED:
                self._parts = None

    def value(self) -> Mean:
        """What was sent, plus the mean update."""
        adapter = add(self._sent, self._mean.value())
        if self._parts is None:
            return Mean(adapter, None, None)
        return Mean(adapter, *factor_bias(self._sent, self._parts))


class ExactMean:
    """The mean of the products B_i A_i, from stacked factors; what is no factor is averaged.

    The best part of rank r becomes the next adapter, written so that A stays as near as it can to
    the mean of the regions' A (`shared.low_rank.split_rank`). The best `residual_rank` of the rest
    are kept beside it, as a residual that regions add and do not train; the next round's mean is
    that of products and residual together. What is beyond is lost: the bias. A stack that
    is wider than twice what a layer can have of ranks is compressed without loss, so memory is
    bounded whatever the cohort.

    Args:
        sent: the adapter that the regions started from, with its residual if it has one.
        residual_rank: most ranks to keep beside the adapter's own; 0 keeps none.
    """

    def __init__(self, sent: Adapter, residual_rank: int = 0) -> None:
        self._sent, self._mean, self._kept = sent, WeightedMean(), residual_rank
        self._stacks: dict[str, list[Product]] = {}

    def add(self, update: Adapter, weight: int) -> None:
        """Count a region's update in; see `WeightedMean.add`."""
        self._mean.add(update, weight)
        for layer, product in products_of(add(self._sent, update)).items():
            stack = self._stacks.setdefault(layer, [])
            stack.append(stacked([product], [float(weight)]))
            out, width = len(product.up), product.down.shape[1]
            if sum(len(part.down) for part in stack) > 2 * min(out, width):
                stack[:] = [compressed(stacked(stack))]

    def value(self) -> Mean:
        """The adapter whose products are nearest to the mean of products, for its rank."""
        ends, left, whole = add(self._sent, self._mean.value()), 0.0, 0.0
        adapter = {name: tensor for name, tensor in ends.items() if not is_residual(name)}
        former = products_of(as_factors({n: t for n, t in ends.items() if is_residual(n)}))
        names = factor_names(adapter)
        for layer, stack in self._stacks.items():
            up, down = names[layer]
            total = stacked(stack, [1 / self._mean.weight] * len(stack))
            if layer in former:
                total = stacked([total, former[layer]])
            near = adapter[down].flatten(1)
            best, rest = split_rank(total, len(near), near=near)
            kept = Product(rest.up[:, : self._kept], rest.down[: self._kept])
            lost = Product(rest.up[:, self._kept :], rest.down[self._kept :])
            form = adapter[down].shape[2:]  # of a 1x1 convolution, two axes of 1
            adapter[up], adapter[down] = (_with_axes(factor, form) for factor in best)
            if self._kept:
                kept_up, kept_down = residual_names(layer)
                padded = _padded(kept, self._kept)
                adapter[kept_up], adapter[kept_down] = (_with_axes(f, form) for f in padded)
            left += product_norm(lost) ** 2
            whole += product_norm(total) ** 2
        return Mean(adapter, left**0.5, _share(left, whole))


def new_mean(aggregation: str, sent: Adapter, *, residual_rank: int = 0) -> FactorMean | ExactMean:
    """An empty mean of that name.

    Args:
        aggregation: one of `shared.config.AGGREGATIONS`; `freeze_a` and `alternate` differ from
            `factors` in what regions train, not in how it is averaged.
        sent: the adapter that the regions started from.
        residual_rank: see `ExactMean`; nothing to the others.
    """
    return ExactMean(sent, residual_rank) if aggregation == EXACT else FactorMean(sent)


def products_of(adapter: Mapping[str, Tensor]) -> dict[str, Product]:
    """Factors of the layers of which both are there; those of a 1x1 convolution as matrices."""
    return {
        layer: Product(adapter[up].flatten(1), adapter[down].flatten(1))
        for layer, (up, down) in factor_names(adapter).items()
    }


def factor_bias(sent: Adapter, parts: list[tuple[dict[str, Product], int]]) -> tuple[float, float]:
    """How far the product of means is from the mean of products, absolutely and relatively.

    Args:
        sent: the adapter that the regions started from.
        parts: each region's update, as `products_of` it, and its weight.

    Returns:
        `Mean.bias` and `Mean.relative_bias`.
    """
    total = sum(weight for _, weight in parts)
    shares = [weight / total for _, weight in parts]
    left = whole = 0.0
    for layer, start in products_of(sent).items():
        moves = [products[layer] for products, _ in parts if layer in products]
        if not moves:
            continue
        mean = Product(*(_mean(factors, shares) for factors in zip(*moves, strict=True)))
        apart = [Product(m.up.double() - mean.up, m.down.double() - mean.down) for m in moves]
        covariance = stacked(apart, shares)
        ends = Product(start.up + mean.up, start.down + mean.down)
        left += product_norm(covariance) ** 2
        whole += product_norm(stacked([ends, covariance])) ** 2
    return left**0.5, _share(left, whole)


def _padded(product: Product, rank: int) -> Product:
    """The same matrix with zeros up to a rank, so that a residual has one rank everywhere."""
    missing = rank - len(product.down)
    down = functional.pad(product.down, (0, 0, 0, missing))
    return Product(functional.pad(product.up, (0, missing)), down)


def _with_axes(factor: Tensor, axes: Sequence[int]) -> Tensor:
    """A factor as it travels: float32, with the axes that `products_of` has left out."""
    return factor.float().reshape(*factor.shape, *axes).contiguous()


def _mean(factors: tuple[Tensor, ...], shares: list[float]) -> Tensor:
    return sum(
        (factor.double() * share for factor, share in zip(factors[1:], shares[1:], strict=True)),
        factors[0].double() * shares[0],
    )


def _share(left: float, whole: float) -> float:
    """The root of left / whole, squared norms."""
    return (left / whole) ** 0.5 if whole > 0 else 0.0
