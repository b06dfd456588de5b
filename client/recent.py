"""Vectors of the products of recent steps: more negatives than one batch can hold.

Adapters move little in a step, so what a few steps ago was a product's vector still nearly is
(cross-batch memory, Wang et al., arXiv:1912.06798: "slow drift"). Such vectors cost no encoding and
get no gradient.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class RecentProducts:
    """A queue of product vectors, each product once, the newest last.

    Args:
        size: products it holds at most; 0 holds none.
        dim: D.
        device: of the vectors.
    """

    def __init__(self, size: int, dim: int, device: torch.device) -> None:
        self._size = size
        self.rows: NDArray[np.int64] = np.empty(0, np.int64)
        self.vectors = torch.zeros(0, dim, device=device)

    def others(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], Tensor]:
        """Rows (C,) and vectors (C, D) of what it holds apart from the products `rows`."""
        kept = ~np.isin(self.rows, rows)
        return self.rows[kept], self.vectors[torch.from_numpy(kept).to(self.vectors.device)]

    def push(self, rows: NDArray[np.int64], vectors: Tensor) -> None:
        """Put in the products `rows` (B,), distinct, with their vectors (B, D)."""
        if self._size == 0:
            return
        kept_rows, kept_vectors = self.others(rows)
        self.rows = np.concatenate([kept_rows, rows])[-self._size :]
        self.vectors = torch.cat([kept_vectors, vectors.detach()])[-self._size :]
