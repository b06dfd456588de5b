"""Queries that a catalog asks of itself: a few words of a title must find whatever has them.

Clicks teach what shoppers ask for. Of the rest of the catalog they say nothing, and an encoder that
is trained on them alone forgets names and rare words that nobody has typed yet. A stretch of a
product's own title is a query whose answers are known without any shopper (known-item search;
the inverse cloze task of Lee, Chang and Toutanova 2019, arXiv:1906.00300), so it is trained beside
the clicks. Only products that shoppers were shown are asked for.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.clicks import Examples

MAX_WORDS: Final = 3
SEED: Final = 0  # the same in every federation, so that activations are kept from run to run
MIN_CHARS: Final = 3  # "of", "a4" and a size find nothing in particular


def known_items_of(texts: Sequence[str], product_ids: pl.Series, clicks: pl.DataFrame) -> Examples:
    """Known items of a region: of every product in its training clicks.

    Args:
        texts: of the catalog, N of them.
        product_ids: of the catalog.
        clicks: the impressions that are trained on, in `CLICK_COLUMNS`.
    """
    shown = product_ids.is_in(clicks["product_id"].unique().implode())
    return make_known_items(texts, np.flatnonzero(shown.to_numpy()), seed=SEED)


def make_known_items(texts: Sequence[str], rows: NDArray[np.int64], *, seed: int) -> Examples:
    """Make one query of each product's text, and mark all products that answer it.

    Args:
        texts: of the whole catalog, N of them.
        rows: which products are asked for, ascending, (R,).
        seed: which stretch of a text is taken.

    Returns:
        Examples of weight 1, in canonical order; a text without a stretch of `MIN_CHARS` makes
        none. Every product whose text has the stretch is a known positive.
    """
    rng = np.random.default_rng(seed)
    words = [text.lower().split() for text in texts]
    pairs = sorted(
        (stretch, row) for row in rows.tolist() if (stretch := _stretch(words[row], rng))
    )
    queries = sorted({stretch for stretch, _ in pairs})
    number = {stretch: at for at, stretch in enumerate(queries)}
    return Examples(
        queries=queries,
        query_index=np.array([number[stretch] for stretch, _ in pairs], np.int64),
        product_row=np.array([row for _, row in pairs], np.int64),
        weight=np.ones(len(pairs), np.float32),
        positives=_positives(words, number),
        num_products=len(texts),
    )


def _stretch(words: list[str], rng: np.random.Generator) -> str:
    """One to three neighbouring words, or nothing where they are too short."""
    if not words:
        return ""
    length = min(int(rng.integers(1, MAX_WORDS + 1)), len(words))
    start = int(rng.integers(len(words) - length + 1))
    stretch = " ".join(words[start : start + length])
    return stretch if len(stretch) >= MIN_CHARS else ""


def _positives(words: Sequence[list[str]], number: dict[str, int]) -> NDArray[np.int64]:
    """`query * N + row` of every product that has a query's words side by side, sorted."""
    found = {
        number[stretch] * len(words) + row
        for row, text in enumerate(words)
        for stretch in _stretches(text)
        if stretch in number
    }
    return np.array(sorted(found), np.int64)


def _stretches(words: list[str]) -> Iterator[str]:
    for length in range(1, MAX_WORDS + 1):
        for start in range(len(words) - length + 1):
            yield " ".join(words[start : start + length])
