"""Losses of click learning: pure functions on unit vectors."""

import torch
from torch import Tensor, nn


def masked_info_nce(
    query: Tensor,
    product: Tensor,
    *,
    query_index: Tensor,
    product_index: Tensor,
    weight: Tensor,
    known_positive: Tensor,
    temperature: Tensor,
) -> Tensor:
    """Weighted, symmetric in-batch contrastive loss (CLIP, arXiv:2103.00020, fig. 3).

    Each distinct query and product of the batch is encoded once; an example points at its two
    rows. Products known to answer a query are never its negatives (and the other way round):
    without that, every popular product would be pushed away from the queries it belongs to.

    Args:
        query: unit vectors of the distinct queries, (U, D).
        product: unit vectors of the distinct products, (V, D).
        query_index: row in `query` of each example, (E,) int64.
        product_index: row in `product` of each example, (E,) int64.
        weight: of each example, (E,), >= 0, not all 0.
        known_positive: (U, V) bool; true where the product is known to answer the query.
        temperature: > 0, shape ().

    Returns:
        Weighted mean over the examples of both directions' mean, in nats, shape ().
    """
    logits = query @ product.T / temperature  # (U, V)
    to_product = _masked_cross_entropy(logits, known_positive, query_index, product_index)
    to_query = _masked_cross_entropy(logits.T, known_positive.T, product_index, query_index)
    per_example = (to_product + to_query) / 2  # (E,)
    return (per_example * weight).sum() / weight.sum()


def _masked_cross_entropy(logits: Tensor, mask: Tensor, row: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy (E,) of `target` in logits[row], other masked entries left out."""
    others = mask[row].scatter(1, target[:, None], False)  # (E, V)
    return nn.functional.cross_entropy(
        logits[row].masked_fill(others, -torch.inf), target, reduction="none"
    )


def image_text_loss(image: Tensor, text: Tensor, present: Tensor, *, temperature: Tensor) -> Tensor:
    """Symmetric contrastive loss between photos and texts of the same products (CLIP, fig. 3).

    Keeps the two towers in one space while clicks move them.

    Args:
        image: unit vectors, (B, D).
        text: unit vectors, (B, D).
        present: (B,) bool; rows that have both.
        temperature: > 0, shape ().

    Returns:
        Mean loss in nats, shape (); 0 where fewer than two rows have both.
    """
    rows = present.nonzero().flatten()
    if len(rows) < 2:
        return image.new_zeros(())
    logits = image[rows] @ text[rows].T / temperature  # (P, P)
    target = torch.arange(len(rows), device=logits.device)
    forward = nn.functional.cross_entropy(logits, target)
    backward = nn.functional.cross_entropy(logits.T, target)
    return (forward + backward) / 2


def drift(vectors: Tensor, base: Tensor) -> Tensor:
    """How far vectors have moved from where the frozen base puts them.

    A click log asks for what shoppers ask for; nothing in it holds the rest of the language in
    place. This term does, as in learning without forgetting (Li and Hoiem, arXiv:1606.09282), on
    vectors instead of class probabilities.

    Args:
        vectors: unit vectors, (B, D).
        base: of the same items without an adapter, unit vectors, (B, D).

    Returns:
        Mean of 1 - cosine, shape (); 0 where nothing moved.
    """
    return (1 - (vectors * base).sum(dim=1)).mean()
