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
