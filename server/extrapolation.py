"""FedExP's step of the server (arXiv:2301.09604): beyond the mean where regions disagree.

Where regions learn different things, each is divided by their number in the mean, and a federation
falls behind training on pooled data, which adds them up. How much they disagree says how far beyond
the mean it is safe to go; where they agree the step is the mean itself.

Long steps swing to and fro over what they are after, so the middle of the last two places is nearer
to it, as the paper advises. Regions train from where the server has stepped to, which only
headquarters remembers; measured, judged and released is the middle.
"""

from collections.abc import Mapping
from typing import Final

from torch import Tensor

from shared.adapter import Adapter, interpolate, norm

_KEY: Final = "reached/"


def trained_from(adapter: Adapter, memory: Mapping[str, Tensor]) -> Adapter:
    """What the next round starts from: the last step's end, or else the adapter itself.

    Args:
        adapter: of the last round, as it was measured.
        memory: what headquarters remembers of that round.
    """
    reached = {k.removeprefix(_KEY): v for k, v in memory.items() if k.startswith(_KEY)}
    return adapter | reached


def between(
    sent: Adapter, reached: Adapter, memory: Mapping[str, Tensor]
) -> tuple[Adapter, Adapter]:
    """The round's adapter, and what to remember of it.

    Args:
        sent: where this step began.
        reached: where it ended.
        memory: of the round before; without a step in it, the first step's end is taken as it is.
    """
    began = any(name.startswith(_KEY) for name in memory)
    adapter = interpolate(sent, reached, 0.5) if began else reached
    return adapter, {_KEY + name: tensor for name, tensor in reached.items()}


class StepLength:
    """How long a step to take along the mean update; memory does not grow with the cohort."""

    def __init__(self) -> None:
        self._weight = 0
        self._squares, self._orthogonal = 0.0, 0.0  # sums of w ||u||^2, and of w^2 ||u||^2

    def add(self, update: Mapping[str, Tensor], weight: int) -> None:
        """Count a region's update in; see `WeightedMean.add`."""
        square = norm(update) ** 2
        self._weight += weight
        self._squares += weight * square
        self._orthogonal += weight**2 * square

    def of(self, mean: Mapping[str, Tensor]) -> float:
        """The factor of the mean update, 1 or more (algorithm 1, with weights).

        max(1, mean ||u_i||^2 / (2 ||mean u||^2)) over the regions' updates u_i. Updates that cancel
        would make it endless; the paper adds a small number to the divisor, which knows the scale
        of what is trained. Here the divisor is at least what it is of orthogonal updates, so of
        regions that weigh the same at most half of their number is added up.

        Args:
            mean: of the updates that were added.
        """
        least = self._orthogonal / self._weight**2
        square = max(norm(mean) ** 2, least)
        return max(1.0, self._squares / self._weight / (2 * square)) if square > 0 else 1.0
