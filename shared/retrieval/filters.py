"""What a shopper narrows a search down to: conditions on a product's columns, and an order of hits.

The dense side turns these into a mask over rows, the lexical side into query clauses, and both
wires carry them, so what a condition means stands here once: any value within one field, all fields
together, values compared letter by letter, and a product whose value is unknown satisfies no
condition on it. Two ways to write the same conditions are equal and hash equally.
"""

from collections.abc import Iterator
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
    model_validator,
)

MAX_VALUES: Final = 100  # of one field
MAX_ATTRIBUTES: Final = 20  # attribute keys in one request
MAX_VALUE_CHARS: Final = 200  # of one value, and of one attribute key
ATTRIBUTE_PREFIX: Final = "attributes."  # before an attribute's key in names of conditions, facets

Sort = Literal["relevance", "price_asc", "price_desc", "rating_desc"]


def _canonical(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(values)))


def _without_empty(attributes: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {key: attributes[key] for key in sorted(attributes) if attributes[key]}


Value = Annotated[str, StringConstraints(max_length=MAX_VALUE_CHARS)]
Values = Annotated[tuple[Value, ...], Field(max_length=MAX_VALUES), AfterValidator(_canonical)]
Attributes = Annotated[
    dict[Value, Values], Field(max_length=MAX_ATTRIBUTES), AfterValidator(_without_empty)
]


class Range(BaseModel):
    """Bounds of a number, both inclusive; None is no bound."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ge: FiniteFloat | None = None
    le: FiniteFloat | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.ge is not None and self.le is not None and self.ge > self.le:
            raise ValueError(f"ge {self.ge:g} is above le {self.le:g}; ge must be at most le")
        return self

    @property
    def bounded(self) -> bool:
        """Whether there is a bound at all."""
        return self.ge is not None or self.le is not None


class Filters(BaseModel):
    """Conditions that a product must satisfy, all of them; a field left empty is no condition.

    Attributes:
        category: any of these.
        brand: any of these.
        price: in the product's own currency.
        rating: of the product.
        in_stock: True for those in stock, False for those out of stock.
        attributes: key -> any of these values. A product may have several values for one key.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    category: Values = ()
    brand: Values = ()
    price: Range = Range()
    rating: Range = Range()
    in_stock: bool | None = None
    attributes: Attributes = Field(default_factory=dict)

    def __hash__(self) -> int:
        attributes = tuple(sorted(self.attributes.items()))
        plain = (self.category, self.brand, self.price, self.rating, self.in_stock)
        return hash((plain, attributes))


def active(filters: Filters) -> list[str]:
    """Names of the conditions there are.

    Args:
        filters: what was asked.

    Returns:
        Some of "category", "brand", "price", "rating", "in_stock", then "attributes.KEY" by key.
    """
    return list(_active(filters))


def without(filters: Filters, name: str) -> Filters:
    """The same conditions but one.

    Args:
        filters: what was asked.
        name: as `active` says it; a name that is not there changes nothing.

    Returns:
        A copy without that condition.
    """
    if name.startswith(ATTRIBUTE_PREFIX):
        key = name.removeprefix(ATTRIBUTE_PREFIX)
        kept = {other: values for other, values in filters.attributes.items() if other != key}
        return filters.model_copy(update={"attributes": kept})
    if name not in Filters.model_fields or name == "attributes":
        return filters
    return filters.model_copy(update={name: Filters.model_fields[name].default})


def _active(filters: Filters) -> Iterator[str]:
    for name in ("category", "brand"):
        if getattr(filters, name):
            yield name
    for name in ("price", "rating"):
        if getattr(filters, name).bounded:
            yield name
    if filters.in_stock is not None:
        yield "in_stock"
    yield from (ATTRIBUTE_PREFIX + key for key in filters.attributes)
