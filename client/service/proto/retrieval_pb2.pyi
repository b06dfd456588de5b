import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Range(_message.Message):
    __slots__ = ("ge", "le")
    GE_FIELD_NUMBER: _ClassVar[int]
    LE_FIELD_NUMBER: _ClassVar[int]
    ge: float
    le: float
    def __init__(self, ge: _Optional[float] = ..., le: _Optional[float] = ...) -> None: ...

class Values(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[str]] = ...) -> None: ...

class Filters(_message.Message):
    __slots__ = ("category", "brand", "price", "rating", "in_stock", "attributes")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Values
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Values, _Mapping]] = ...) -> None: ...
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    BRAND_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    RATING_FIELD_NUMBER: _ClassVar[int]
    IN_STOCK_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    category: _containers.RepeatedScalarFieldContainer[str]
    brand: _containers.RepeatedScalarFieldContainer[str]
    price: Range
    rating: Range
    in_stock: bool
    attributes: _containers.MessageMap[str, Values]
    def __init__(self, category: _Optional[_Iterable[str]] = ..., brand: _Optional[_Iterable[str]] = ..., price: _Optional[_Union[Range, _Mapping]] = ..., rating: _Optional[_Union[Range, _Mapping]] = ..., in_stock: _Optional[bool] = ..., attributes: _Optional[_Mapping[str, Values]] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("query", "k", "cursor", "filters", "sort", "facets", "explain", "release", "ranker", "user_key", "log", "details")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    SORT_FIELD_NUMBER: _ClassVar[int]
    FACETS_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    RANKER_FIELD_NUMBER: _ClassVar[int]
    USER_KEY_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    query: str
    k: int
    cursor: str
    filters: Filters
    sort: str
    facets: bool
    explain: bool
    release: int
    ranker: str
    user_key: str
    log: bool
    details: bool
    def __init__(self, query: _Optional[str] = ..., k: _Optional[int] = ..., cursor: _Optional[str] = ..., filters: _Optional[_Union[Filters, _Mapping]] = ..., sort: _Optional[str] = ..., facets: _Optional[bool] = ..., explain: _Optional[bool] = ..., release: _Optional[int] = ..., ranker: _Optional[str] = ..., user_key: _Optional[str] = ..., log: _Optional[bool] = ..., details: _Optional[bool] = ...) -> None: ...

class ImageSearchRequest(_message.Message):
    __slots__ = ("image", "query", "k", "cursor", "filters", "sort", "facets", "explain", "release", "ranker", "user_key", "log", "details")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    SORT_FIELD_NUMBER: _ClassVar[int]
    FACETS_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    RANKER_FIELD_NUMBER: _ClassVar[int]
    USER_KEY_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    query: str
    k: int
    cursor: str
    filters: Filters
    sort: str
    facets: bool
    explain: bool
    release: int
    ranker: str
    user_key: str
    log: bool
    details: bool
    def __init__(self, image: _Optional[bytes] = ..., query: _Optional[str] = ..., k: _Optional[int] = ..., cursor: _Optional[str] = ..., filters: _Optional[_Union[Filters, _Mapping]] = ..., sort: _Optional[str] = ..., facets: _Optional[bool] = ..., explain: _Optional[bool] = ..., release: _Optional[int] = ..., ranker: _Optional[str] = ..., user_key: _Optional[str] = ..., log: _Optional[bool] = ..., details: _Optional[bool] = ...) -> None: ...

class SimilarRequest(_message.Message):
    __slots__ = ("product_id", "query", "k", "cursor", "filters", "sort", "facets", "explain", "release", "ranker", "user_key", "log", "details")
    PRODUCT_ID_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    SORT_FIELD_NUMBER: _ClassVar[int]
    FACETS_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    RANKER_FIELD_NUMBER: _ClassVar[int]
    USER_KEY_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    product_id: str
    query: str
    k: int
    cursor: str
    filters: Filters
    sort: str
    facets: bool
    explain: bool
    release: int
    ranker: str
    user_key: str
    log: bool
    details: bool
    def __init__(self, product_id: _Optional[str] = ..., query: _Optional[str] = ..., k: _Optional[int] = ..., cursor: _Optional[str] = ..., filters: _Optional[_Union[Filters, _Mapping]] = ..., sort: _Optional[str] = ..., facets: _Optional[bool] = ..., explain: _Optional[bool] = ..., release: _Optional[int] = ..., ranker: _Optional[str] = ..., user_key: _Optional[str] = ..., log: _Optional[bool] = ..., details: _Optional[bool] = ...) -> None: ...

class ForYouRequest(_message.Message):
    __slots__ = ("recent", "k", "cursor", "filters", "sort", "facets", "explain", "release", "ranker", "user_key", "log", "details")
    RECENT_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    SORT_FIELD_NUMBER: _ClassVar[int]
    FACETS_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    RANKER_FIELD_NUMBER: _ClassVar[int]
    USER_KEY_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    recent: _containers.RepeatedScalarFieldContainer[str]
    k: int
    cursor: str
    filters: Filters
    sort: str
    facets: bool
    explain: bool
    release: int
    ranker: str
    user_key: str
    log: bool
    details: bool
    def __init__(self, recent: _Optional[_Iterable[str]] = ..., k: _Optional[int] = ..., cursor: _Optional[str] = ..., filters: _Optional[_Union[Filters, _Mapping]] = ..., sort: _Optional[str] = ..., facets: _Optional[bool] = ..., explain: _Optional[bool] = ..., release: _Optional[int] = ..., ranker: _Optional[str] = ..., user_key: _Optional[str] = ..., log: _Optional[bool] = ..., details: _Optional[bool] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("dense_score", "dense_rank", "lexical_score", "lexical_rank", "dense_weight", "words", "rule")
    DENSE_SCORE_FIELD_NUMBER: _ClassVar[int]
    DENSE_RANK_FIELD_NUMBER: _ClassVar[int]
    LEXICAL_SCORE_FIELD_NUMBER: _ClassVar[int]
    LEXICAL_RANK_FIELD_NUMBER: _ClassVar[int]
    DENSE_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    dense_score: float
    dense_rank: int
    lexical_score: float
    lexical_rank: int
    dense_weight: float
    words: _containers.RepeatedScalarFieldContainer[str]
    rule: str
    def __init__(self, dense_score: _Optional[float] = ..., dense_rank: _Optional[int] = ..., lexical_score: _Optional[float] = ..., lexical_rank: _Optional[int] = ..., dense_weight: _Optional[float] = ..., words: _Optional[_Iterable[str]] = ..., rule: _Optional[str] = ...) -> None: ...

class Hit(_message.Message):
    __slots__ = ("position", "product_id", "title", "brand", "category", "price", "currency", "rating", "review_count", "in_stock", "image", "score", "propensity", "variants", "explanation", "description", "attributes")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    POSITION_FIELD_NUMBER: _ClassVar[int]
    PRODUCT_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    BRAND_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_FIELD_NUMBER: _ClassVar[int]
    RATING_FIELD_NUMBER: _ClassVar[int]
    REVIEW_COUNT_FIELD_NUMBER: _ClassVar[int]
    IN_STOCK_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    position: int
    product_id: str
    title: str
    brand: str
    category: str
    price: float
    currency: str
    rating: float
    review_count: int
    in_stock: bool
    image: str
    score: float
    propensity: float
    variants: _containers.RepeatedScalarFieldContainer[str]
    explanation: Explanation
    description: str
    attributes: _containers.ScalarMap[str, str]
    def __init__(self, position: _Optional[int] = ..., product_id: _Optional[str] = ..., title: _Optional[str] = ..., brand: _Optional[str] = ..., category: _Optional[str] = ..., price: _Optional[float] = ..., currency: _Optional[str] = ..., rating: _Optional[float] = ..., review_count: _Optional[int] = ..., in_stock: _Optional[bool] = ..., image: _Optional[str] = ..., score: _Optional[float] = ..., propensity: _Optional[float] = ..., variants: _Optional[_Iterable[str]] = ..., explanation: _Optional[_Union[Explanation, _Mapping]] = ..., description: _Optional[str] = ..., attributes: _Optional[_Mapping[str, str]] = ...) -> None: ...

class FacetValue(_message.Message):
    __slots__ = ("value", "count", "selected")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SELECTED_FIELD_NUMBER: _ClassVar[int]
    value: str
    count: int
    selected: bool
    def __init__(self, value: _Optional[str] = ..., count: _Optional[int] = ..., selected: _Optional[bool] = ...) -> None: ...

class FacetCount(_message.Message):
    __slots__ = ("name", "values", "minimum", "maximum")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    name: str
    values: _containers.RepeatedCompositeFieldContainer[FacetValue]
    minimum: float
    maximum: float
    def __init__(self, name: _Optional[str] = ..., values: _Optional[_Iterable[_Union[FacetValue, _Mapping]]] = ..., minimum: _Optional[float] = ..., maximum: _Optional[float] = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("request_id", "region", "release", "encoder_digest", "ranker", "total", "hits", "facets", "next_cursor", "correction", "fallback", "relaxed", "took_ms")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    ENCODER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RANKER_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    FACETS_FIELD_NUMBER: _ClassVar[int]
    NEXT_CURSOR_FIELD_NUMBER: _ClassVar[int]
    CORRECTION_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    RELAXED_FIELD_NUMBER: _ClassVar[int]
    TOOK_MS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    region: str
    release: int
    encoder_digest: str
    ranker: str
    total: int
    hits: _containers.RepeatedCompositeFieldContainer[Hit]
    facets: _containers.RepeatedCompositeFieldContainer[FacetCount]
    next_cursor: str
    correction: str
    fallback: str
    relaxed: _containers.RepeatedScalarFieldContainer[str]
    took_ms: float
    def __init__(self, request_id: _Optional[str] = ..., region: _Optional[str] = ..., release: _Optional[int] = ..., encoder_digest: _Optional[str] = ..., ranker: _Optional[str] = ..., total: _Optional[int] = ..., hits: _Optional[_Iterable[_Union[Hit, _Mapping]]] = ..., facets: _Optional[_Iterable[_Union[FacetCount, _Mapping]]] = ..., next_cursor: _Optional[str] = ..., correction: _Optional[str] = ..., fallback: _Optional[str] = ..., relaxed: _Optional[_Iterable[str]] = ..., took_ms: _Optional[float] = ...) -> None: ...

class SuggestRequest(_message.Message):
    __slots__ = ("prefix", "limit")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    prefix: str
    limit: int
    def __init__(self, prefix: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class Suggestion(_message.Message):
    __slots__ = ("text", "kind")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    text: str
    kind: str
    def __init__(self, text: _Optional[str] = ..., kind: _Optional[str] = ...) -> None: ...

class SuggestResponse(_message.Message):
    __slots__ = ("suggestions",)
    SUGGESTIONS_FIELD_NUMBER: _ClassVar[int]
    suggestions: _containers.RepeatedCompositeFieldContainer[Suggestion]
    def __init__(self, suggestions: _Optional[_Iterable[_Union[Suggestion, _Mapping]]] = ...) -> None: ...

class Product(_message.Message):
    __slots__ = ("product_id", "title", "description", "brand", "category", "attributes", "price", "currency", "rating", "review_count", "sales", "in_stock", "image", "locale")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PRODUCT_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    BRAND_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_FIELD_NUMBER: _ClassVar[int]
    RATING_FIELD_NUMBER: _ClassVar[int]
    REVIEW_COUNT_FIELD_NUMBER: _ClassVar[int]
    SALES_FIELD_NUMBER: _ClassVar[int]
    IN_STOCK_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    LOCALE_FIELD_NUMBER: _ClassVar[int]
    product_id: str
    title: str
    description: str
    brand: str
    category: str
    attributes: _containers.ScalarMap[str, str]
    price: float
    currency: str
    rating: float
    review_count: int
    sales: int
    in_stock: bool
    image: str
    locale: str
    def __init__(self, product_id: _Optional[str] = ..., title: _Optional[str] = ..., description: _Optional[str] = ..., brand: _Optional[str] = ..., category: _Optional[str] = ..., attributes: _Optional[_Mapping[str, str]] = ..., price: _Optional[float] = ..., currency: _Optional[str] = ..., rating: _Optional[float] = ..., review_count: _Optional[int] = ..., sales: _Optional[int] = ..., in_stock: _Optional[bool] = ..., image: _Optional[str] = ..., locale: _Optional[str] = ...) -> None: ...

class UpsertRequest(_message.Message):
    __slots__ = ("products",)
    PRODUCTS_FIELD_NUMBER: _ClassVar[int]
    products: _containers.RepeatedCompositeFieldContainer[Product]
    def __init__(self, products: _Optional[_Iterable[_Union[Product, _Mapping]]] = ...) -> None: ...

class DeleteRequest(_message.Message):
    __slots__ = ("product_ids",)
    PRODUCT_IDS_FIELD_NUMBER: _ClassVar[int]
    product_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, product_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ChangeResponse(_message.Message):
    __slots__ = ("changed",)
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    changed: int
    def __init__(self, changed: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("event_id", "request_id", "product_id", "type", "ts", "user_key")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PRODUCT_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    TS_FIELD_NUMBER: _ClassVar[int]
    USER_KEY_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    request_id: str
    product_id: str
    type: str
    ts: _timestamp_pb2.Timestamp
    user_key: str
    def __init__(self, event_id: _Optional[str] = ..., request_id: _Optional[str] = ..., product_id: _Optional[str] = ..., type: _Optional[str] = ..., ts: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., user_key: _Optional[str] = ...) -> None: ...

class EventsRequest(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class EventsResponse(_message.Message):
    __slots__ = ("accepted", "repeated", "unknown")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REPEATED_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    repeated: int
    unknown: int
    def __init__(self, accepted: _Optional[int] = ..., repeated: _Optional[int] = ..., unknown: _Optional[int] = ...) -> None: ...

class InfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InfoResponse(_message.Message):
    __slots__ = ("region", "locale", "version", "releases", "encoder_digest", "index", "num_products", "num_changes", "dense_weight")
    REGION_FIELD_NUMBER: _ClassVar[int]
    LOCALE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RELEASES_FIELD_NUMBER: _ClassVar[int]
    ENCODER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    NUM_PRODUCTS_FIELD_NUMBER: _ClassVar[int]
    NUM_CHANGES_FIELD_NUMBER: _ClassVar[int]
    DENSE_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    region: str
    locale: str
    version: str
    releases: _containers.RepeatedScalarFieldContainer[int]
    encoder_digest: str
    index: str
    num_products: int
    num_changes: int
    dense_weight: float
    def __init__(self, region: _Optional[str] = ..., locale: _Optional[str] = ..., version: _Optional[str] = ..., releases: _Optional[_Iterable[int]] = ..., encoder_digest: _Optional[str] = ..., index: _Optional[str] = ..., num_products: _Optional[int] = ..., num_changes: _Optional[int] = ..., dense_weight: _Optional[float] = ...) -> None: ...
