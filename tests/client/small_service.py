"""A retrieval service of a few products in a dictionary: honest, slow, and easy to hold up."""

import threading
import time
from pathlib import Path

from PIL import Image

from client.service.failures import RequestError
from client.service.messages import (
    ChangeResponse,
    DeleteRequest,
    Event,
    EventsRequest,
    EventsResponse,
    Explanation,
    FacetCount,
    FacetValue,
    ForYouRequest,
    Hit,
    ImageSearchRequest,
    InfoResponse,
    PagedRequest,
    Product,
    SearchRequest,
    SearchResponse,
    SimilarRequest,
    Suggestion,
    SuggestRequest,
    SuggestResponse,
    UpsertRequest,
)

DIGEST = "ab" * 32
TITLES = {"p1": "red shoe", "p2": "blue shoe", "p3": "red hat", "a/b ü": "green scarf"}


class SmallService:
    """Finds products that share a word with the query.

    Attributes:
        ready: as the protocol has it; a test may change it.
        entered: released once by every search that is at work.
        go_on: a search waits for it; set from the start.
        failure: raised by every search, if there is one.
        deadlines: what each search was given.
    """

    def __init__(self, folder: Path) -> None:
        self.products = {key: _product(key) for key in TITLES}
        self.photo_path = folder / "p1.png"
        Image.new("RGB", (8, 6), "red").save(self.photo_path)
        self.events: dict[str, Event] = {}
        self.ready = True
        self.entered, self.go_on = threading.Semaphore(0), threading.Event()
        self.go_on.set()
        self.failure: BaseException | None = None
        self.deadlines: list[float | None] = []
        self.images: list[bytes] = []

    def search(self, request: SearchRequest, *, deadline: float | None = None) -> SearchResponse:
        return self._find(request, request.query, deadline)

    def search_by_image(
        self, request: ImageSearchRequest, *, deadline: float | None = None
    ) -> SearchResponse:
        self.images.append(request.image)
        return self._find(request, request.query, deadline)

    def similar(self, request: SimilarRequest, *, deadline: float | None = None) -> SearchResponse:
        if request.product_id not in self.products:
            raise RequestError("not_found", "no such product here")
        return self._find(request, self.products[request.product_id].title, deadline)

    def for_you(self, request: ForYouRequest, *, deadline: float | None = None) -> SearchResponse:
        recent = [self.products[one].title for one in request.recent if one in self.products]
        return self._find(request, " ".join(recent), deadline)

    def suggest(self, request: SuggestRequest) -> SuggestResponse:
        found = [p.title for p in self.products.values() if p.title.startswith(request.prefix)]
        return SuggestResponse(
            suggestions=tuple(Suggestion(text=t, kind="phrase") for t in found[: request.limit])
        )

    def upsert(self, request: UpsertRequest) -> ChangeResponse:
        self.products |= {product.product_id: product for product in request.products}
        return ChangeResponse(changed=len(request.products))

    def delete(self, request: DeleteRequest) -> ChangeResponse:
        gone = [self.products.pop(one, None) for one in request.product_ids]
        return ChangeResponse(changed=sum(one is not None for one in gone))

    def log_events(self, request: EventsRequest) -> EventsResponse:
        new = {event.event_id: event for event in request.events} if request.events else {}
        fresh = new.keys() - self.events.keys()
        self.events |= {one: new[one] for one in fresh}
        return EventsResponse(
            accepted=len(fresh), repeated=len(request.events) - len(fresh), unknown=0
        )

    def info(self) -> InfoResponse:
        return InfoResponse(
            region="north",
            locale="en",
            version="0",
            releases=(2, 1),
            encoder_digest=DIGEST,
            index="2-ab",
            num_products=len(self.products),
            num_changes=3,
            dense_weight=0.5,
        )

    def photo(self, product_id: str) -> Path:
        if product_id not in ("p1", "a/b ü"):
            raise RequestError("not_found", "no such product, or one without a photo")
        return self.photo_path

    def _find(self, request: PagedRequest, text: str, deadline: float | None) -> SearchResponse:
        self.deadlines.append(deadline)
        self.entered.release()
        self.go_on.wait(30)
        if self.failure is not None:
            raise self.failure
        if request.release not in (None, 1, 2):
            raise RequestError("not_found", "no index of that release here")
        words = set(text.split())
        found = [p for p in self.products.values() if words & set(p.title.split())]
        shown = found or list(self.products.values())
        offset = _offset(request.cursor)
        page = shown[offset : offset + request.k]
        after = offset + len(page)
        return SearchResponse(
            request_id=f"r{time.monotonic_ns()}",
            region="north",
            release=request.release or 2,
            encoder_digest=DIGEST,
            ranker=request.ranker or "hybrid",
            total=len(shown),
            hits=tuple(
                _hit(offset + place, product, request, words)
                for place, product in enumerate(page, 1)
            ),
            facets=(_facet(),) if request.facets else (),
            next_cursor=str(after) if after < len(shown) else None,
            fallback="" if found else "popular",
            took_ms=0.5,
        )


def _offset(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 9):
        raise RequestError("gone", "this cursor is not known any more; search again")
    return int(cursor)


def _product(product_id: str) -> Product:
    title = TITLES[product_id]
    colour = {"Colour": title.split()[0]}
    return Product(product_id=product_id, title=title, description=f"A {title}.", attributes=colour)


def _hit(position: int, product: Product, request: PagedRequest, words: set[str]) -> Hit:
    shared = sorted(words & set(product.title.split()))
    return Hit(
        position=position,
        product_id=product.product_id,
        title=product.title,
        brand=product.brand,
        price=product.price,
        image="/v1/photos/p1" if product.product_id == "p1" else None,
        score=float(len(shared)),
        propensity=1 / position,
        variants=("v1", "v2") if product.product_id == "p1" else (),
        description=product.description if request.details else None,
        attributes=product.attributes if request.details else {},
        explanation=Explanation(dense_weight=0.5, words=tuple(shared)) if request.explain else None,
    )


def _facet() -> FacetCount:
    return FacetCount(name="brand", values=(FacetValue(value="Acme", count=2, selected=True),))
