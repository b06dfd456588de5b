"""FedExP's step of the server (arXiv:2301.09604): beyond the mean where regions disagree.

Where regions learn different things, each is divided by their number in the mean, and a federation
falls behind training on pooled data, which adds them up. How much they disagree says how far beyond
the mean it is safe to go; where they agree the step is the mean itself.
"""

from collections.abc import Mapping

from torch import Tensor

from shared.adapter import norm


class StepLength:
    """How long a step to take along the mean update; memory does not grow with the cohort."""

    def __init__(self) -> None:
        self._squares, self._weight = 0.0, 0

    def add(self, update: Mapping[str, Tensor], weight: int) -> None:
        """Count a region's update in; see `WeightedMean.add`."""
        self._squares += weight * norm(update) ** 2
        self._weight += weight

    def of(self, mean: Mapping[str, Tensor]) -> float:
        """The factor of the mean update, 1 or more (algorithm 1, with weights).

        max(1, mean ||u_i||^2 / (2 ||mean u||^2)) over the regions' updates u_i, so at most half of
        the number of regions where they weigh the same.

        Args:
            mean: of the updates that were added.
        """
        square = norm(mean) ** 2
        return max(1.0, self._squares / self._weight / (2 * square)) if square > 0 else 1.0
