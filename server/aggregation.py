"""Means of adapters, as pure arithmetic."""

from collections.abc import Mapping

from torch import Tensor

from shared.adapter import Adapter


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
