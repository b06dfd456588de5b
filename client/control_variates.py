"""The control variate of one region, c_i of SCAFFOLD, kept from round to round.

One file a round under `state/control/`. A round that is trained again after an interruption begins
with the same c_i and sends the same again. Headquarters lists the receipts of the newest answer
that it counted of each region; a c_i whose answer is not on that list never reached the common
control variate, so the region goes back to the one before. A training numbers its rounds from 1,
and knows none of the receipts of an earlier one.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from client.feedback import RoundFiles
from client.optimization import next_control
from shared.adapter import Adapter, add, receipt, subtract
from shared.compression import rounded
from shared.config import TrainConfig

FOLDER: Final = "control"
_RECEIPT: Final = "receipt"


@dataclass(frozen=True)
class Control:
    """What a region knows of the gradients as a round begins.

    Attributes:
        everyones: c, as headquarters sent it.
        own: c_i, of the same names and shapes.
    """

    everyones: Adapter
    own: Adapter

    def correction(self, names: Sequence[str]) -> list[Tensor]:
        """What is added to the gradient of every step: c - c_i."""
        return [self.everyones[name] - self.own[name] for name in names]

    def change(self, update: Adapter, config: TrainConfig, *, steps: int) -> Adapter:
        """By how much c_i moves in a round, as it arrives at headquarters.

        Args:
            update: what training moved, before anything is rounded.
            config: of the round.
            steps: of the optimizer in it.
        """
        rate = config.learning_rate
        reached = next_control(self.own, self.everyones, update, steps=steps, learning_rate=rate)
        return rounded(subtract(reached, self.own), config.update_encoding)


class ControlVariates:
    """Those of one region.

    Args:
        state: the region's state folder.
    """

    def __init__(self, state: Path) -> None:
        self._files = RoundFiles(state / FOLDER)

    def before(self, server_round: int, everyones: Adapter, counted: Collection[int]) -> Control:
        """Both, c_i as headquarters knows it: zeros before the first answer that counted.

        Args:
            server_round: the round at hand.
            everyones: c.
            counted: receipts, as headquarters sent them.
        """
        return Control(everyones, self._own_before(server_round, everyones, counted))

    def _own_before(self, server_round: int, form: Adapter, counted: Collection[int]) -> Adapter:
        wanted = {**form, _RECEIPT: _number(0)}
        while kept := self._files.before(server_round, wanted):
            if int(kept.pop(_RECEIPT, _number(-1))) in counted and kept.keys() == form.keys():
                return kept
            self._files.drop_before(server_round)
        return {name: torch.zeros_like(tensor) for name, tensor in form.items()}

    def keep(self, before: Control, change: Adapter, server_round: int) -> None:
        """Write down c_i as of this round, and which answer it belongs to.

        Args:
            before: as the round began.
            change: of c_i, as it arrives at headquarters.
            server_round: the round at hand.
        """
        own = add(before.own, change)
        self._files.keep({**own, _RECEIPT: _number(receipt(change))}, server_round)


def _number(value: int) -> Tensor:
    return torch.tensor(value, dtype=torch.int64)
