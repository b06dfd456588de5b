"""The common control variate, c of SCAFFOLD (arXiv:1910.06378), as headquarters keeps it.

The paper's c is the mean of all regions' c_i, and its mean update is not weighted. Here updates are
weighted by examples, so c is too: only then do the corrections c - c_i cancel in the mean. What is
kept is the sum of n_i c_i, and of every region the receipt of its newest answer that counted with
its n_i. Regions are sent c and the receipts, not whose they are.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor

from shared.adapter import Adapter, receipt

_SUM: Final = "control/"
_COUNTED: Final = "counted/"


class Counted(NamedTuple):
    """One answer that counted.

    Attributes:
        receipt: of the change of its c_i (`shared.adapter.receipt`).
        num_examples: n_i.
    """

    receipt: int
    num_examples: int


class ControlVariates:
    """Those of one round.

    Args:
        memory: what headquarters remembers of the round before; empty at first.
        form: the tensors that are trained.
    """

    def __init__(self, memory: Adapter, form: Adapter) -> None:
        self._known = {
            name.removeprefix(_COUNTED): Counted(*tensor.tolist())
            for name, tensor in memory.items()
            if name.startswith(_COUNTED)
        }
        self._sums = {
            name: memory.get(_SUM + name, torch.zeros_like(tensor, dtype=torch.float64))
            for name, tensor in form.items()
        }

    def common(self) -> Adapter:
        """c, the mean of all c_i weighted by examples, float32; zeros before the first round."""
        total = sum(known.num_examples for known in self._known.values())
        return {name: (part / max(total, 1)).float() for name, part in self._sums.items()}

    def receipts(self) -> list[int]:
        """Of the newest answer of each region that counted, ascending."""
        return sorted(known.receipt for known in self._known.values())

    def add(self, change: Mapping[str, Tensor], num_examples: int) -> Counted:
        """Count in by how much a region's c_i has changed."""
        for name, tensor in change.items():
            self._sums[name] = self._sums[name] + tensor.double() * num_examples
        return Counted(receipt(change), num_examples)

    def memory(self, counted: Mapping[str, Counted]) -> Adapter:
        """What to remember.

        Args:
            counted: what `add` gave, by region.
        """
        known = {**self._known, **counted}
        kept = {_SUM + name: part for name, part in self._sums.items()}
        return kept | {
            _COUNTED + region: torch.tensor(answer, dtype=torch.int64)
            for region, answer in known.items()
        }
