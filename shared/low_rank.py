"""Products of LoRA factors, B A, without ever multiplying them out.

A layer of size (out, in) is changed by B A with B (out, k) and A (k, in). Everything here works on
the factors, in double precision, so its cost grows with k and not with out times in. Any number of
products is one more such product: the sum of B_i A_i is [B_1 ... B_n] [A_1; ...; A_n].
"""

from typing import NamedTuple

import torch
from torch import Tensor

_LEAST = 0.1  # smallest share of the largest singular value that A may keep of where it was
_NOTHING = 1e-12  # singular values below this share of the largest are rounding


class Product(NamedTuple):
    """The matrix `up @ down`, as its factors.

    Attributes:
        up: B, (out, k).
        down: A, (k, in).
    """

    up: Tensor
    down: Tensor


def stacked(products: list[Product], weights: list[float] | None = None) -> Product:
    """The weighted sum of products, of any ranks, as one product of the sum of their ranks.

    Args:
        products: B_i (out, k_i) and A_i (k_i, in), at least one.
        weights: one for each; 1 by default.
    """
    shares = weights or [1.0] * len(products)
    ups = [w * product.up.double() for product, w in zip(products, shares, strict=True)]
    return Product(torch.cat(ups, dim=1), torch.cat([p.down.double() for p in products]))


def product_norm(product: Product) -> float:
    """Frobenius norm of `up @ down`: the root of tr((B^T B)(A A^T))."""
    up, down = product.up.double(), product.down.double()
    squared = ((up.mT @ up) * (down @ down.mT)).sum()
    return float(squared.clamp(min=0).sqrt())


def singular(product: Product) -> tuple[Tensor, Tensor, Tensor]:
    """Singular value decomposition of `up @ down`, from that of a small core.

    With B = Q_1 R_1 and A^T = Q_2 R_2 (QR), B A = Q_1 (R_1 R_2^T) Q_2^T, and the core in brackets
    is at most (k, k).

    Returns:
        U (out, m), singular values (m,), falling, and V^T (m, in), with m = min(k, out, in);
        values that are rounding are left out, so m may be smaller, even 0.
    """
    q_up, r_up = torch.linalg.qr(product.up.double())
    q_down, r_down = torch.linalg.qr(product.down.double().mT)
    left, values, right = torch.linalg.svd(r_up @ r_down.mT, full_matrices=False)
    kept = int((values > _NOTHING * values.max()).sum()) if len(values) else 0
    return (q_up @ left)[:, :kept], values[:kept], (q_down @ right.mT)[:, :kept].mT


def compressed(product: Product) -> Product:
    """The same matrix in as few ranks as it has: nothing is lost but the last bits."""
    left, values, right = singular(product)
    return Product(left * values, right)


def split_rank(product: Product, rank: int, *, near: Tensor) -> tuple[Product, Product]:
    """The best approximation of rank r, and what is left of the product.

    Eckart and Young: no matrix of rank r is nearer in the Frobenius norm than the r largest
    singular triples, U S V^T. How they are written as B A is free: any invertible M gives
    B = U S M^-1 and A = M V^T. Training goes on from A and B, so M is chosen to leave A as near as
    possible to where it was: M = near V is the least-squares answer, and where its singular values
    fall below a tenth of the largest they are raised to that, so that M^-1 stays small. If
    `near` already spans the rows of the product, A is `near` itself. Directions that the product
    does not use are filled from `near`, with zeros in B: they can be learned into.

    Args:
        product: of any rank.
        rank: r >= 1.
        near: where A was, (r, in).

    Returns:
        Factors of rank r, and the rest, of the rank that is left (0 if nothing is).
    """
    left, values, right = singular(product)
    best, near = min(rank, len(values)), near.double()
    rows = _completed(right[:best], near)  # V^T, (m, in)
    x, spread, y = torch.linalg.svd(near @ rows.mT, full_matrices=False)
    spread = spread.clamp(min=_LEAST * (float(spread.max()) or 1.0))
    down = (x * spread) @ y @ rows
    inverse = (y.mT / spread) @ x.mT  # M^-1, (m, r), m = min(r, in)
    up = (left[:, :best] * values[:best]) @ inverse[:best]
    rest = Product(left[:, best:] * values[best:], right[best:])
    return Product(up, down), rest


def _completed(right: Tensor, near: Tensor) -> Tensor:
    """Orthonormal rows: those given, (k, in), then what `near` (r, in) has beside them."""
    missing = min(near.shape) - len(right)
    if missing == 0:
        return right
    beside = near - near @ right.mT @ right
    _, _, rows = torch.linalg.svd(beside, full_matrices=False)
    fresh = rows[:missing] - rows[:missing] @ right.mT @ right
    return torch.cat([right, torch.linalg.qr(fresh.mT).Q.mT])
