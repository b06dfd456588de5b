"""Canary queries: the few searches that a region's operator wants to see right in every release.

They are the operator's own words, so errors and verdicts name a canary by its number alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from shared.durable import Record
from shared.errors import ConfigError
from shared.retrieval.shelf import Ask, Shelf


class Canary(Record):
    """One query that must find one product.

    Attributes:
        query: what a shopper would type.
        product_id: must be found.
        within: at this rank or better.
    """

    query: str = Field(min_length=1)
    product_id: str
    within: int = Field(default=10, ge=1)


class QueryEncoder(Protocol):
    """What a canary needs of an encoder."""

    def encode_queries(
        self, texts: Sequence[str | None], images: Sequence[Path | None]
    ) -> NDArray[np.float32]:
        """Unit vectors (Q, D) of queries."""


def read_canaries(path: Path, product_ids: Sequence[str]) -> list[Canary]:
    """Read the file that `publication.canaries` names.

    Args:
        path: JSON, a list of `{"query": text, "product_id": id, "within": 10}`.
        product_ids: of the catalog; a canary for another product could never be found.

    Returns:
        The canaries, in the file's order.

    Raises:
        ConfigError: missing, not such a list, or a product that the catalog lacks.
    """
    try:
        canaries = TypeAdapter(list[Canary]).validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; write it, or remove publication.canaries"
        ) from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = [f"canary {int(part) + 1}" for part in first["loc"][:1]]
        text = ": ".join([*where, *map(str, first["loc"][1:]), first["msg"]])
        raise ConfigError(f"{path}: {text}; correct it") from None
    known = set(product_ids)
    for number, canary in enumerate(canaries, 1):
        if canary.product_id not in known:
            raise ConfigError(
                f"{path}: canary {number}: the catalog has no such product; name another one"
            )
    return canaries


def failed_canary(canaries: Sequence[Canary], shelf: Shelf, encoder: QueryEncoder) -> int | None:
    """Search a shelf for every canary, as a shopper would.

    Args:
        canaries: from `read_canaries`.
        shelf: to search.
        encoder: the one that made its vectors.

    Returns:
        Number of the first canary that fails, from 1; None where all are found.
    """
    if not canaries:
        return None
    queries = encoder.encode_queries([one.query for one in canaries], [None] * len(canaries))
    for number, (canary, vector) in enumerate(zip(canaries, queries, strict=True), 1):
        found = shelf.find(Ask(text=canary.query, vector=vector)).candidates[: canary.within]
        if shelf.products.row_of(canary.product_id) not in found:
            return number
    return None
