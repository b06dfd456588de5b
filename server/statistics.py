"""The federation's encoding statistics (DCCO, arXiv:2210.00092), as headquarters keeps them.

The mean of those of the newest round in which any region sent some, weighted by examples, as
updates are: only then do the regions' gradients add up to that of all pairs in one place.
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from shared.adapter import Adapter
from shared.decorrelation import MOMENTS, Statistics, combined

_KEY: Final = "decorrelation/"
_WEIGHT: Final = _KEY + "weight"


class FederationStatistics:
    """Those of one round.

    Args:
        memory: what headquarters remembers of the round before; empty at first.
    """

    def __init__(self, memory: Mapping[str, Tensor]) -> None:
        self._found: Statistics | None = None
        self._former: Statistics | None = None
        if float(memory.get(_WEIGHT, 0)) > 0:
            means = {name: memory[_KEY + name] for name in MOMENTS}
            self._former = Statistics(**means, weight=memory[_WEIGHT])

    def add(self, statistics: Statistics, num_examples: int) -> None:
        """Count a region's in; its weight is its number of examples, not that of its clicks."""
        weight = torch.tensor(num_examples, dtype=torch.float64)
        means = statistics.to(torch.float64).moments()
        part = Statistics(**means, weight=weight)
        self._found = part if self._found is None else combined([self._found, part])

    def mean(self) -> Statistics | None:
        """Of this round, or else of the one before; None before anybody sent any. Float64."""
        return self._found or self._former

    def memory(self) -> Adapter:
        """What to remember; never nothing, so that it can be missed."""
        mean = self.mean()
        if mean is None:
            return {_WEIGHT: torch.zeros((), dtype=torch.float64)}
        return {_WEIGHT: mean.weight} | {_KEY + k: v for k, v in mean.moments().items()}
