"""Which queries and products training may see, decided before the world is cut into regions.

A query that one region trains on and another is tested on would measure memory, not search, so the
side of a query hangs on its words alone: not on the region, not on the seed. Products are split the
same way on their title, so that two regions selling one thing agree whether it is cold.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from hashlib import sha256

import numpy as np
import polars as pl
from numpy.typing import NDArray

from simulations.datasets.source import Query

TEST_SHARE = 0.2  # of the queries
COLD_SHARE = 0.1  # of the products

_APOSTROPHES = str.maketrans("", "", "'`\u2019")
_WORD = re.compile(r"[^\W_]+")


def normalize(text: str) -> str:
    """Bring a query or title to the form whose hash decides its side.

    Args:
        text: what was typed, or a title.

    Returns:
        Its words, case folded, without punctuation, sorted; so "Men's red shoes" and "red shoes
        mens" are one. Text without any word stays itself.
    """
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_APOSTROPHES)
    return " ".join(sorted(_WORD.findall(folded))) or folded.strip()


def share_of(text: str, *, salt: str) -> float:
    """Spread normalized texts evenly over [0, 1), the same on every machine.

    Args:
        text: what is hashed, normalized first.
        salt: keeps one split independent of another.

    Returns:
        A number in [0, 1); texts that normalize alike share it.
    """
    digest = sha256(f"{salt}\0{normalize(text)}".encode()).digest()
    # 53 bits are exact in a double; with 64 the largest digests would round up to 1.0.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2.0**53


def is_test(text: str, *, share: float = TEST_SHARE) -> bool:
    """Say whether a query is kept for the final table and so never asked in training."""
    return share_of(text, salt="fedshelf query") < share


def is_cold(title: str, *, share: float = COLD_SHARE) -> bool:
    """Say whether products of this title are never shown in training."""
    return share_of(title, salt="fedshelf product") < share


def cold_mask(titles: Iterable[str], *, share: float = COLD_SHARE) -> NDArray[np.bool_]:
    """Tell for each title whether it is cold, (N,)."""
    return np.array([is_cold(title, share=share) for title in titles], dtype=np.bool_)


def split_queries(
    queries: Iterable[Query], *, share: float = TEST_SHARE
) -> tuple[list[Query], list[Query]]:
    """Part queries into those shoppers ask in training and those kept for the final table.

    Args:
        queries: of the whole world.
        share: of the queries to keep.

    Returns:
        Seen and test queries, each in the order given.
    """
    seen: list[Query] = []
    test: list[Query] = []
    for query in queries:
        (test if is_test(query.text, share=share) else seen).append(query)
    return seen, test


def localize(
    queries: Iterable[Query], rows: NDArray[np.int64], *, num_products: int, region: str
) -> list[Query]:
    """Bring queries over the whole world to the row numbers of one region's catalog.

    Args:
        queries: over `Source.products`.
        rows: the region's rows in `Source.products`, in catalog order, (N,) int64.
        num_products: rows of `Source.products`.
        region: its name; queries bound to another region are left out.

    Returns:
        The queries asked here. One with nothing relevant in this catalog stays, without rows, so
        that the caller can count it.
    """
    local = np.full(num_products, -1, dtype=np.int64)
    local[rows] = np.arange(len(rows))
    asked = (query for query in queries if query.region in (None, region))
    return [_translate(query, local) for query in asked]


def _translate(query: Query, local: NDArray[np.int64]) -> Query:
    found = local[query.rows]
    here = np.flatnonzero(found >= 0)
    order = here[np.argsort(found[here])]
    return Query(query.text, found[order], query.grades[order], query.region, query.popularity)


def make_qrels(queries: Sequence[Query], product_ids: Sequence[str]) -> pl.DataFrame:
    """Write queries and their relevant products as judged relevance.

    Args:
        queries: with row numbers of the catalog that `product_ids` lists.
        product_ids: of that catalog, in its order.

    Returns:
        Columns query, product_id, grade; nothing for a query without relevant products.
    """
    sizes = [len(query.rows) for query in queries]
    texts = pl.Series("query", [query.text for query in queries], dtype=pl.String)
    rows = np.concatenate([np.empty(0, np.int64), *(query.rows for query in queries)])
    grades = np.concatenate([np.empty(0, np.int8), *(query.grades for query in queries)])
    return pl.DataFrame(
        {
            "query": texts.gather(np.repeat(np.arange(len(queries)), sizes)),
            "product_id": pl.Series(product_ids, dtype=pl.String).gather(rows),
            "grade": grades.astype(np.int64),
        }
    )
