"""The Gaussians of the regions' product vectors (`shared.gaussians`), as headquarters keeps them.

Those of the newest round in which any region sent one. They are handed to every region as they
came, without a name.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch

from shared.adapter import Adapter
from shared.gaussians import Gaussians, stacked

MAX_GAUSSIANS: Final = 32  # of a larger cohort so many by chance: each is 50 KB for every region
_KEY: Final = "gaussians/"
_NUMBER: Final = _KEY + "number"


class FederationGaussians:
    """Those of one round.

    Args:
        memory: what headquarters remembers of the round before; empty at first.
        seed: of the choice among those of a large cohort.
    """

    def __init__(self, memory: Mapping[str, torch.Tensor], seed: Sequence[int] = ()) -> None:
        self._found: list[Gaussians] = []
        self._seen, self._rng = 0, np.random.default_rng(list(seed))
        self._former: Gaussians | None = None
        if float(memory.get(_NUMBER, 0)) > 0:
            names = ("mean", "factor", "residual")
            self._former = Gaussians(**{name: memory[_KEY + name] for name in names})

    def add(self, gaussian: Gaussians) -> None:
        """Count a region's in; each has the same chance to stay (Vitter 1985, algorithm R)."""
        self._seen += 1
        if len(self._found) < MAX_GAUSSIANS:
            self._found.append(gaussian)
            return
        place = int(self._rng.integers(self._seen))
        if place < MAX_GAUSSIANS:
            self._found[place] = gaussian

    def value(self) -> Gaussians | None:
        """Those of this round, or else of the one before; None before anybody sent any."""
        return stacked(self._found) if self._found else self._former

    def memory(self) -> Adapter:
        """What to remember; never nothing, so that it can be missed."""
        value = self.value()
        number = torch.tensor(float(len(value.mean)) if value else 0.0)
        told = {_KEY + name: tensor for name, tensor in value.tensors().items()} if value else {}
        return {_NUMBER: number, **told}
