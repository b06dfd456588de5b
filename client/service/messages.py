"""What is asked of the retrieval service, and what it answers: one set of words for both wires.

gRPC and HTTP carry the same messages. They are checked here, once, before anything is looked up,
so that a limit holds however a request came in.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from shared.retrieval.filters import Filters, Sort

MAX_QUERY_CHARS = 1000
MAX_PAGE = 100
MAX_ID_CHARS = 200
MAX_BATCH = 1000  # products or events in one request

Ranker = Literal["hybrid", "dense", "lexical"]
Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
Query = Annotated[str, Field(max_length=MAX_QUERY_CHARS)]


class Message(BaseModel):
    """One message; unknown fields are refused, so that a typing error is no silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PagedRequest(Message):
    """What every way of finding products shares.

    Attributes:
        k: hits a page.
        cursor: from the former page's answer; everything else of the request is repeated.
        filters: what a hit must satisfy.
        sort: order of the hits.
        facets: whether values to filter by are counted.
        explain: whether every hit says why it is where it is.
        details: whether every hit carries its description and attributes.
        release: a release whose index is still here, for comparison; None for the current one.
        ranker: one ranker alone, for comparison; None for the region's own mix.
        user_key: who asks, as an opaque key, or empty; kept for erasure, never shown.
        log: whether what was shown is written to the event store.
    """

    k: int = Field(default=10, ge=1, le=MAX_PAGE)
    cursor: str | None = Field(default=None, max_length=200)
    filters: Filters = Filters()
    sort: Sort = "relevance"
    facets: bool = False
    explain: bool = False
    details: bool = False
    release: int | None = Field(default=None, ge=0)
    ranker: Ranker | None = None
    user_key: str = Field(default="", max_length=MAX_ID_CHARS)
    log: bool = True


class SearchRequest(PagedRequest):
    """Products for words; without words, the region's popular ones."""

    query: Query = ""


class ImageSearchRequest(PagedRequest):
    """Products like a photo, and like words if there are any ("like this, but in red")."""

    image: bytes = Field(min_length=1)
    query: Query = ""


class SimilarRequest(PagedRequest):
    """Products like one of the catalog, and like words if there are any."""

    product_id: Id
    query: Query = ""


class ForYouRequest(PagedRequest):
    """Products like those a shopper has looked at, the most recent one last."""

    recent: tuple[Id, ...] = Field(min_length=1, max_length=50)


class Explanation(Message):
    """Why a hit is where it is.

    Attributes:
        dense_score: cosine of query and product; None where no vector was asked.
        dense_rank: among the candidates, 1 for the best.
        lexical_score: BM25; None where no word is shared.
        lexical_rank: as `dense_rank`.
        dense_weight: share of the dense score in the mix.
        words: words of the query that the product's text has.
        rule: "first" for a pinned product or an exact product code, or empty.
    """

    dense_score: float | None = None
    dense_rank: int | None = None
    lexical_score: float | None = None
    lexical_rank: int | None = None
    dense_weight: float = 0.0
    words: tuple[str, ...] = ()
    rule: str = ""


class Hit(Message):
    """One product found.

    Attributes:
        position: 1-based, over all pages.
        image: path of its photo on this service; None where it has none.
        score: of the mix; comparable within one answer only.
        propensity: probability that a shopper looks at this position.
        variants: ids of its other variants, which are not shown beside it.
        description: None unless `details` were asked for.
        attributes: empty unless `details` were asked for; values of one key are joined by ", ".
        explanation: None unless it was asked for.
    """

    position: int
    product_id: str
    title: str
    brand: str | None = None
    category: str | None = None
    price: float | None = None
    currency: str | None = None
    rating: float | None = None
    review_count: int | None = None
    in_stock: bool | None = None
    image: str | None = None
    score: float
    propensity: float
    variants: tuple[str, ...] = ()
    description: str | None = None
    attributes: dict[str, str] = Field(default_factory=dict)
    explanation: Explanation | None = None


class FacetValue(Message):
    """One value that products can be filtered by, and how many of the found ones have it."""

    value: str
    count: int
    selected: bool = False


class FacetCount(Message):
    """A facet of the found products.

    Attributes:
        name: "category", "brand", "in_stock" or "attributes.KEY"; or "price", "rating".
        values: most frequent first; empty for a range.
        minimum: of a range, else None.
        maximum: of a range, else None.
    """

    name: str
    values: tuple[FacetValue, ...] = ()
    minimum: float | None = None
    maximum: float | None = None


class SearchResponse(Message):
    """What was found.

    Attributes:
        request_id: names this answer in events.
        release: whose encoder answered; 0 is the base alone.
        encoder_digest: of that encoder; query and product vectors were made by it.
        ranker: what ordered the hits, e.g. "hybrid", or "interleaved:hybrid|lexical" where an
            experiment has two ways in one list.
        total: how many products can be paged through.
        next_cursor: for the next page; None on the last.
        correction: a spelling that finds more, or empty.
        fallback: "" if the request was answered as asked; "relaxed" if filters were dropped
            because nothing satisfied them all; "popular" if nothing at all was found.
        relaxed: names of the dropped filters.
    """

    request_id: str
    region: str
    release: int
    encoder_digest: str
    ranker: str
    total: int
    hits: tuple[Hit, ...]
    facets: tuple[FacetCount, ...] = ()
    next_cursor: str | None = None
    correction: str = ""
    fallback: Literal["", "relaxed", "popular"] = ""
    relaxed: tuple[str, ...] = ()
    took_ms: float = 0.0


class SuggestRequest(Message):
    """Ways to go on typing."""

    prefix: Query
    limit: int = Field(default=8, ge=1, le=20)


class Suggestion(Message):
    """One way to go on typing; `kind` says what it is a name of."""

    text: str
    kind: Literal["phrase", "brand", "category"]


class SuggestResponse(Message):
    """Best first."""

    suggestions: tuple[Suggestion, ...]


class Product(Message):
    """One product as a region brings it; the columns of the catalog."""

    product_id: Id
    title: str = Field(min_length=1, max_length=2000)
    description: str | None = Field(default=None, max_length=20_000)
    brand: str | None = Field(default=None, max_length=MAX_ID_CHARS)
    category: str | None = Field(default=None, max_length=MAX_ID_CHARS)
    attributes: dict[str, str] = Field(default_factory=dict, max_length=200)
    price: FiniteFloat | None = Field(default=None, ge=0)
    currency: str | None = Field(default=None, max_length=8)
    rating: FiniteFloat | None = None
    review_count: int | None = Field(default=None, ge=0, lt=2**63)
    sales: int | None = Field(default=None, ge=0, lt=2**63)
    in_stock: bool | None = None
    image: str | None = Field(default=None, max_length=1000)
    locale: str | None = Field(default=None, max_length=35)


class UpsertRequest(Message):
    """Products to add, or to put in the place of those with the same id."""

    products: tuple[Product, ...] = Field(min_length=1, max_length=MAX_BATCH)


class DeleteRequest(Message):
    """Products that are gone."""

    product_ids: tuple[Id, ...] = Field(min_length=1, max_length=MAX_BATCH)


class ChangeResponse(Message):
    """An acknowledged change: it is on disk, and the next search sees it."""

    changed: int


class Event(Message):
    """Something a shopper did with a product that an answer showed.

    Attributes:
        event_id: chosen by the sender; the same id sent again counts once.
        request_id: of the answer.
        ts: when; the time of arrival where it is missing.
    """

    event_id: Id
    request_id: Id
    product_id: Id
    type: Literal["click", "cart", "purchase"]
    ts: datetime | None = None
    user_key: str = Field(default="", max_length=MAX_ID_CHARS)


class EventsRequest(Message):
    """Events to keep."""

    events: tuple[Event, ...] = Field(min_length=1, max_length=MAX_BATCH)


class EventsResponse(Message):
    """An acknowledgement: everything accepted is on disk.

    Attributes:
        accepted: new ones.
        repeated: ids that were there already.
        unknown: events whose answer is not on record; kept, and left out of training.
    """

    accepted: int
    repeated: int
    unknown: int


class InfoRequest(Message):
    """Asks how the service stands."""


class InfoResponse(Message):
    """How the service stands.

    Attributes:
        releases: whose indexes can answer, the current one first.
        encoder_digest: of the current one.
        index: name of its folder.
        num_products: that can be found now.
        num_changes: upserts and deletes that the index does not hold itself yet.
        dense_weight: of the tuned mix.
    """

    region: str
    locale: str
    version: str
    releases: tuple[int, ...]
    encoder_digest: str
    index: str
    num_products: int
    num_changes: int
    dense_weight: float
