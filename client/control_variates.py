"""The control variate of one region, c_i of SCAFFOLD, kept from round to round.

One file a round under `state/control/`. A round that is trained again after an interruption begins
with the same c_i and sends the same again. Headquarters lists the receipts of the newest answer
that it counted of each region; a c_i whose answer is not on that list never reached the common
control variate, so the region goes back to the one before. A training numbers its rounds from 1,
and knows none of the receipts of an earlier one.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from client.feedback import RoundFiles
from shared.adapter import Adapter, receipt

FOLDER: Final = "control"
_RECEIPT: Final = "receipt"


class ControlVariates:
    """Those of one region.

    Args:
        state: the region's state folder.
    """

    def __init__(self, state: Path) -> None:
        self._files = RoundFiles(state / FOLDER)

    def before(self, server_round: int, form: Adapter, counted: Collection[int]) -> Adapter:
        """c_i as headquarters knows it, zeros before the first answer that counted.

        Args:
            server_round: the round at hand.
            form: tensors of the names and shapes of c_i.
            counted: receipts, as headquarters sent them.
        """
        wanted = {**form, _RECEIPT: _number(0)}
        while kept := self._files.before(server_round, wanted):
            if int(kept.pop(_RECEIPT, _number(-1))) in counted and kept.keys() == form.keys():
                return kept
            self._files.drop_before(server_round)
        return {name: torch.zeros_like(tensor) for name, tensor in form.items()}

    def keep(self, own: Adapter, change: Adapter, server_round: int) -> None:
        """Write down c_i as of this round, and which answer it belongs to.

        Args:
            own: c_i after the round.
            change: of it, as it arrives at headquarters.
            server_round: the round at hand.
        """
        self._files.keep({**own, _RECEIPT: _number(receipt(change))}, server_round)


def _number(value: int) -> Tensor:
    return torch.tensor(value, dtype=torch.int64)
