"""Losses of click learning: pure functions on unit vectors.

What compares two vectors is a choice of the base; `shared.similarity` says which there are.
"""

from typing import Final

import torch
from torch import Tensor, nn

from shared.config import COSINE
from shared.similarity import BY_NAME

_HALVINGS: Final = 40  # of an interval of logits: below float32's resolution


def masked_info_nce(
    query: Tensor,
    product: Tensor,
    *,
    query_index: Tensor,
    product_index: Tensor,
    weight: Tensor,
    known_positive: Tensor,
    temperature: Tensor,
    log_q_query: Tensor | None = None,
    log_q_product: Tensor | None = None,
    distance: str = COSINE,
) -> Tensor:
    """Weighted, symmetric in-batch contrastive loss (CLIP, arXiv:2103.00020, fig. 3).

    Each distinct query and product of the batch is encoded once; an example points at its two
    rows. Products known to answer a query are never its negatives (and the other way round):
    without that, every popular product would be pushed away from the queries it belongs to.

    Args:
        query: unit vectors of the distinct queries, (U, D).
        product: unit vectors of the distinct products, (V, D); one that no example points at is a
            negative and nothing else.
        query_index: row in `query` of each example, (E,) int64.
        product_index: row in `product` of each example, (E,) int64.
        weight: of each example, (E,), >= 0, not all 0.
        known_positive: (U, V) bool; true where the product is known to answer the query.
        temperature: > 0, shape ().
        log_q_query: subtracted from the logits of each query as a candidate, (U,); see
            `log_inclusion`.
        log_q_product: the same of each product, (V,).
        distance: by which they are compared.

    Returns:
        Weighted mean over the examples of both directions' mean, in nats, shape ().
    """
    logits = BY_NAME[distance].similarity(query, product) / temperature  # (U, V)
    products = logits if log_q_product is None else logits - log_q_product
    queries = logits.T if log_q_query is None else logits.T - log_q_query
    to_product = _masked_cross_entropy(products, known_positive, query_index, product_index)
    to_query = _masked_cross_entropy(queries, known_positive.T, product_index, query_index)
    per_example = (to_product + to_query) / 2  # (E,)
    return (per_example * weight).sum() / weight.sum()


def _masked_cross_entropy(logits: Tensor, mask: Tensor, row: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy (E,) of `target` in logits[row], other masked entries left out."""
    others = mask[row].scatter(1, target[:, None], False)  # (E, V)
    return nn.functional.cross_entropy(
        logits[row].masked_fill(others, -torch.inf), target, reduction="none"
    )


def log_inclusion(counts: Tensor, *, batch_size: int) -> Tensor:
    """Log probability that an item is in a batch: what logQ correction subtracts from its logits.

    In-batch negatives are drawn as often as shoppers click, so a popular product is pushed away far
    more often than a rare one. Subtracting log Q(item) from every logit, the positive's too, makes
    the sampled softmax estimate the full one (Bengio and Senecal 2008; Yi et al., RecSys 2019,
    "Sampling-bias-corrected neural modeling", eq. 3). Of E examples, B are drawn a batch, and

        Q(item) = 1 - (1 - count / E)^B

    is that at least one of them is the item's, since a batch holds an item once.

    Args:
        counts: examples of each item, (N,), >= 0; an item without any counts as if it had one.
        batch_size: B, examples a batch.

    Returns:
        log Q, <= 0, (N,) float32.
    """
    share = counts.clamp(min=1).double() / counts.sum().clamp(min=1)
    absent = (1 - share).clamp(min=0) ** batch_size
    return torch.log1p(-absent).float()


def too_alike(
    product: Tensor, query_index: Tensor, product_index: Tensor, *, num_queries: int, cosine: float
) -> Tensor:
    """Products so like one that was clicked for a query that they may well answer it, too.

    A click log names a few of the products that answer a query; among negatives from the top of a
    list, most of those that it does not name are false (RocketQA, arXiv:2010.08191, section 3.2).

    Args:
        product: unit vectors, (V, D).
        query_index: query of each example, (E,) int64.
        product_index: row in `product` of each example, (E,) int64.
        num_queries: U.
        cosine: what is nearer than this to a clicked product is no negative; 1 leaves all.

    Returns:
        (U, V) bool.
    """
    with torch.no_grad():
        clicked = product.new_zeros(num_queries, len(product))
        clicked[query_index, product_index] = 1
        alike = (product @ product.T > cosine).to(product.dtype)  # (V, V)
        return clicked @ alike > 0


def image_text_loss(
    image: Tensor, text: Tensor, present: Tensor, *, temperature: Tensor, distance: str = COSINE
) -> Tensor:
    """Symmetric contrastive loss between photos and texts of the same products (CLIP, fig. 3).

    Keeps the two towers in one space while clicks move them.

    Args:
        image: unit vectors, (B, D).
        text: unit vectors, (B, D).
        present: (B,) bool; rows that have both.
        temperature: > 0, shape ().
        distance: by which they are compared.

    Returns:
        Mean loss in nats, shape (); 0 where fewer than two rows have both.
    """
    logits = _pair_logits(image, text, present, temperature, distance)  # (P, P)
    if len(logits) < 2:
        return image.new_zeros(())
    target = torch.arange(len(logits), device=logits.device)
    forward = nn.functional.cross_entropy(logits, target)
    backward = nn.functional.cross_entropy(logits.T, target)
    return (forward + backward) / 2


def match_loss(
    image: Tensor, text: Tensor, present: Tensor, *, temperature: Tensor, distance: str = COSINE
) -> Tensor:
    """Binary cross-entropy: do this photo and this text belong to the same product?

    Every pair of the batch is asked on its own (SigLIP, arXiv:2303.15343, eq. 1), with the P true
    pairs and the P (P - 1) false ones counting the same, half each, so that the bias of SigLIP is
    no parameter here: it is the one that fits the batch best, found by halving an interval,
    and the loss is stationary in it.

    Args:
        image: unit vectors, (B, D).
        text: unit vectors, (B, D).
        present: (B,) bool; rows that have both.
        temperature: > 0, shape ().
        distance: by which they are compared.

    Returns:
        Mean loss in nats, shape (); 0 where fewer than two rows have both.
    """
    logits = _pair_logits(image, text, present, temperature, distance)  # (P, P)
    if len(logits) < 2:
        return image.new_zeros(())
    same = torch.eye(len(logits), device=logits.device)
    weight = same / same.sum() / 2 + (1 - same) / (1 - same).sum() / 2  # sums to 1
    return nn.functional.binary_cross_entropy_with_logits(
        logits - _intercept(logits.detach(), same, weight), same, weight=weight, reduction="sum"
    )


def _pair_logits(
    image: Tensor, text: Tensor, present: Tensor, temperature: Tensor, distance: str
) -> Tensor:
    """Similarity over temperature of every photo and text, of rows that have both, (P, P)."""
    rows = present.nonzero().flatten()
    return BY_NAME[distance].similarity(image[rows], text[rows]) / temperature


def _intercept(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """What to subtract from logits so that the mean probability is the mean target, ()."""
    low, high = logits.min() - 1, logits.max() + 1
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        excess = (weight * (torch.sigmoid(logits - middle) - target)).sum()
        low, high = torch.where(excess > 0, middle, low), torch.where(excess > 0, high, middle)
    return (low + high) / 2


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
