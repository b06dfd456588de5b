"""A small shop that answers the search page: a few dozen products in memory, honest answers.

It stands behind the service's own HTTP wire, so that the page cannot ask for what the service does
not take, and reads refusals as they really are; ranking, filters, facets and pages are the plainest
that are true. The photos are generated: a shape in the product's colour, so that a search by photo
has a right answer.
"""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from client.service.asked import METHODS
from client.service.doorway import photo_path
from client.service.failures import RequestError
from client.service.listen import serve_wires
from client.service.messages import (
    ChangeResponse,
    DeleteRequest,
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
from client.service.observe import Observer
from client.service.page.page import page_routes
from shared.retrieval.filters import Filters
from shared.schema import ServeConfig

COLOURS = {
    "red": (200, 40, 45),
    "green": (40, 140, 70),
    "blue": (45, 80, 190),
    "black": (30, 30, 34),
    "white": (236, 236, 232),
    "yellow": (230, 190, 50),
}
KINDS = {"Sneakers": 59.0, "Boots": 129.0, "T-Shirt": 19.5, "Jacket": 149.0, "Backpack": 79.0}
BRANDS = ("Northlight", "Alder & Co", "Quiet Mile")
DIGESTS = {release: f"{release:x}" * 4 + "3f2a91cc07de" * 5 for release in (11, 12)}
DETAILS = {"description", "attributes"}
PATHS = {method.request: method.path for method in METHODS}
Vector = np.ndarray[Any, np.dtype[np.float32]]


def small_products() -> list[Product]:
    """Ninety products: every kind in every colour of every brand."""
    made = []
    for kind, price in KINDS.items():
        for colour in COLOURS:
            for brand in BRANDS:
                number = len(made)
                made.append(
                    Product(
                        product_id=f"p{number}",
                        title=f"{brand} {colour} {kind.lower()}",
                        description=f"{kind} by {brand}.\nMade to last.",
                        brand=brand,
                        category=kind,
                        attributes={"colour": colour, "sizes": "S, M, L"},
                        price=price + number % 7,
                        currency="EUR",
                        rating=None if number % 11 == 0 else 2.5 + number % 6 * 0.5,
                        review_count=number * 3,
                        sales=(number * 37) % 90,
                        in_stock=number % 8 != 0,
                        image=None if number % 13 == 5 else f"{number}.png",
                    )
                )
    return made


def drawn_photo(kind: str, colour: str) -> bytes:
    """A PNG of a shape for the kind, in the colour, on white."""
    picture = Image.new("RGB", (96, 120), "white")
    pen = ImageDraw.Draw(picture)
    box = (14, 26, 82, 94)
    shapes = [pen.ellipse, pen.rectangle, pen.pieslice, pen.rounded_rectangle, pen.chord]
    extra: list[dict[str, Any]] = [
        {},
        {},
        {"start": 20, "end": 300},
        {"radius": 18},
        {"start": 0, "end": 220},
    ]
    at = list(KINDS).index(kind)
    shapes[at](box, fill=COLOURS[colour], outline=(120, 120, 120), **extra[at])
    return _encoded(picture)


def _encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def colour_of(photo: bytes) -> Vector:
    """Mean colour of what is not background, as a unit vector around grey (3,)."""
    with Image.open(io.BytesIO(photo)) as opened:
        pixels = np.asarray(opened.convert("RGB"), np.float32).reshape(-1, 3)
    kept = pixels[pixels.min(axis=1) < 235]
    mean = (kept if len(kept) else pixels).mean(axis=0) - 128
    return (mean / max(float(np.linalg.norm(mean)), 1e-6)).astype(np.float32)


@dataclass
class Shop:
    """What the shop has, what it was asked, and what goes wrong next.

    Attributes:
        failures: (path, error) of answers still to be refused, in order.
        asked: (path, request) of everything that was not refused so.
        expired: cursors that are gone.
        folder: where photos become files, while it is open.
    """

    products: Sequence[Product]
    photos: dict[str, bytes]
    region: str = "harbour"
    locale: str = "en-IE"
    releases: tuple[int, ...] = (12, 11)
    failures: list[tuple[str, Exception]] = field(default_factory=list)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    expired: set[str] = field(default_factory=set)
    folder: Path = Path()
    ready = True

    def __post_init__(self) -> None:
        self.by_id = {product.product_id: product for product in self.products}
        self.colours = {key: colour_of(photo) for key, photo in self.photos.items()}
        self.texts = [_words(product) for product in self.products]

    def last(self, path: str) -> dict[str, Any]:
        """The latest request to a path."""
        return [request for asked, request in self.asked if asked == path][-1]

    def count(self, path: str) -> int:
        """How many requests a path was sent."""
        return sum(asked == path for asked, _ in self.asked)

    def search(self, request: SearchRequest, *, deadline: float | None = None) -> SearchResponse:
        return self._page(request)

    def search_by_image(
        self, request: ImageSearchRequest, *, deadline: float | None = None
    ) -> SearchResponse:
        return self._page(request)

    def similar(self, request: SimilarRequest, *, deadline: float | None = None) -> SearchResponse:
        return self._page(request)

    def for_you(self, request: ForYouRequest, *, deadline: float | None = None) -> SearchResponse:
        return self._page(request)

    def suggest(self, request: SuggestRequest) -> SuggestResponse:
        """Brands, categories and titles that begin with what was typed."""
        self._note(request)
        prefix = request.prefix.lower().strip()
        named = [
            *((brand, "brand") for brand in dict.fromkeys(p.brand for p in self.products)),
            *((kind, "category") for kind in dict.fromkeys(p.category for p in self.products)),
            *((p.title.partition(" ")[2], "phrase") for p in self.products),
        ]
        matching = {text: kind for text, kind in named if text and text.lower().startswith(prefix)}
        chosen = list(matching.items())[: request.limit]
        return SuggestResponse(
            suggestions=tuple(Suggestion(text=text, kind=kind) for text, kind in chosen)
        )

    def upsert(self, request: UpsertRequest) -> ChangeResponse:
        raise RequestError("invalid", "this shop keeps its products as they are")

    def delete(self, request: DeleteRequest) -> ChangeResponse:
        raise RequestError("invalid", "this shop keeps its products as they are")

    def log_events(self, request: EventsRequest) -> EventsResponse:
        self._note(request)
        self.events.extend(event.model_dump() for event in request.events)
        return EventsResponse(accepted=len(request.events), repeated=0, unknown=0)

    def info(self) -> InfoResponse:
        return InfoResponse(
            region=self.region,
            locale=self.locale,
            version="0",
            releases=self.releases,
            encoder_digest=DIGESTS[self.releases[0]],
            index="12-abc",
            num_products=len(self.products),
            num_changes=0,
            dense_weight=0.5,
        )

    def photo(self, product_id: str) -> Path:
        if product_id not in self.photos:
            raise RequestError("not_found", "no photo of such a product here")
        return self.folder / product_id

    def lexical(self, query: str) -> list[float]:
        """Shared words of the query, a product each."""
        words = query.lower().split()
        return [float(sum(word in text for word in words)) for text in self.texts]

    def dense(self, query: str, release: int) -> list[float]:
        """Likeness of letter n-grams, shorter ones in the older release, a product each."""
        size = 3 if release == max(self.releases) else 2
        wanted = _grams(query.lower(), size)
        return [
            len(wanted & found) / max(1.0, len(wanted) * len(found)) ** 0.5
            for found in (_grams(" ".join(sorted(text)), size) for text in self.texts)
        ]

    def like(self, colour: Vector) -> list[float]:
        """Likeness of colours, a product each."""
        return [
            float(self.colours[product.product_id] @ colour)
            if product.product_id in self.colours
            else -1.0
            for product in self.products
        ]

    def answer(self, request: PagedRequest) -> SearchResponse:
        """One page for any of the ways to search."""
        release = request.release or self.releases[0]
        ranker = request.ranker or "hybrid"
        lexical, dense = self._scores(request, release)
        weight = {"hybrid": 0.5, "dense": 1.0, "lexical": 0.0}[ranker]
        mixed = [weight * d + (1 - weight) * w for d, w in zip(dense, lexical, strict=True)]
        exact = [product.product_id == _query(request) for product in self.products]
        mixed = [10.0 if here else score for here, score in zip(exact, mixed, strict=True)]
        found, fallback, relaxed = self._found(request, mixed)
        rows = sorted(found, key=lambda row: self._key(row, mixed, request.sort))
        start = int(request.cursor or 0)
        page = rows[start : start + request.k]
        end = start + len(page)
        ranks = [_ranks(dense), _ranks(lexical)]
        hits = []
        for position, row in enumerate(page, start + 1):
            reasons = None
            if request.explain:
                reasons = Explanation(
                    dense_score=dense[row],
                    dense_rank=ranks[0][row],
                    lexical_score=lexical[row] or None,
                    lexical_rank=ranks[1][row] if lexical[row] else None,
                    dense_weight=weight,
                    words=tuple(w for w in _query(request).lower().split() if w in self.texts[row]),
                    rule="first" if exact[row] else "",
                )
            hits.append(self._hit(row, position, mixed[row], reasons, details=request.details))
        return SearchResponse(
            request_id=f"r{len(self.asked)}",
            region=self.region,
            release=release,
            encoder_digest=DIGESTS[release],
            ranker="popular" if fallback == "popular" else ranker,
            total=len(rows),
            hits=tuple(hits),
            facets=self._facets(rows, request.filters) if request.facets else (),
            next_cursor=str(end) if end < len(rows) else None,
            correction="red sneakers" if _query(request) == "red sneekers" else "",
            fallback=fallback,
            relaxed=relaxed,
            took_ms=3.2,
        )

    def _note(self, request: Any) -> None:
        """Put on record what is asked; or it goes wrong, where the test wants that."""
        path = PATHS[type(request)]
        for failure in self.failures:
            if failure[0] == path:
                self.failures.remove(failure)
                raise failure[1]
        self.asked.append((path, request.model_dump()))

    def _page(self, request: PagedRequest) -> SearchResponse:
        self._note(request)
        if request.cursor in self.expired:
            self.expired.discard(request.cursor)
            raise RequestError("gone", "this cursor is not known any more; search again")
        return self.answer(request)

    def _scores(self, request: PagedRequest, release: int) -> tuple[list[float], list[float]]:
        query = _query(request)
        lexical = self.lexical(query) if query else [0.0] * len(self.products)
        if isinstance(request, ImageSearchRequest):
            dense = self.like(colour_of(request.image))
        elif isinstance(request, SimilarRequest):
            dense = self.dense(self.by_id[request.product_id].title, release)
        elif isinstance(request, ForYouRequest):
            dense = self.dense(self.by_id[request.recent[-1]].title, release)
        elif query:
            dense = self.dense(query, release)
        else:
            dense = [float(product.sales or 0) for product in self.products]
        return lexical, dense

    def _found(self, request: PagedRequest, scores: list[float]) -> tuple[list[int], Any, Any]:
        seen = getattr(request, "recent", ()) or (getattr(request, "product_id", ""),)
        rows = [
            row
            for row, score in enumerate(scores)
            if (score > 0.05 or not _query(request)) and self.products[row].product_id not in seen
        ]
        kept = [row for row in rows if _satisfies(self.products[row], request.filters)]
        if kept or not rows:
            return (kept, "", ()) if rows else (list(range(len(scores))), "popular", ())
        return rows, "relaxed", tuple(name for name in ("brand", "price") if _has(request, name))

    def _key(self, row: int, scores: list[float], sort: str) -> tuple[float, int]:
        product = self.products[row]
        keys = {
            "relevance": -scores[row],
            "price_asc": product.price or 0.0,
            "price_desc": -(product.price or 0.0),
            "rating_desc": -(product.rating or 0.0),
        }
        return keys[sort], row

    def _hit(
        self, row: int, position: int, score: float, reasons: Explanation | None, *, details: bool
    ) -> Hit:
        product = self.products[row]
        told = Hit.model_fields.keys() & Product.model_fields.keys() - {"image"}
        return Hit(
            position=position,
            score=score,
            propensity=position**-0.7,
            image=photo_path(product.product_id) if product.image else None,
            variants=("p2", "p20", "p40") if row % 9 == 1 else (),
            explanation=reasons,
            **product.model_dump(include=told if details else told - DETAILS),
        )

    def _facets(self, rows: list[int], filters: Filters) -> tuple[FacetCount, ...]:
        found = [self.products[row] for row in rows]
        lists = {
            "category": ([p.category for p in found], filters.category),
            "brand": ([p.brand for p in found], filters.brand),
            "in_stock": ([str(p.in_stock).lower() for p in found], ()),
            "attributes.colour": (
                [p.attributes.get("colour") for p in found],
                filters.attributes.get("colour", ()),
            ),
        }
        made = [
            FacetCount(
                name=name,
                values=tuple(
                    FacetValue(value=value, count=count, selected=value in chosen)
                    for value, count in Counter(filter(None, values)).most_common(20)
                ),
            )
            for name, (values, chosen) in lists.items()
        ]
        for name in ("price", "rating"):
            numbers = [getattr(p, name) for p in found if getattr(p, name) is not None]
            low, high = (min(numbers), max(numbers)) if numbers else (None, None)
            made.append(FacetCount(name=name, minimum=low, maximum=high))
        return tuple(made)


def _query(request: PagedRequest) -> str:
    return getattr(request, "query", "")


def _words(product: Product) -> set[str]:
    return set(f"{product.title} {product.category}".lower().split())


def _grams(text: str, size: int) -> set[str]:
    return {text[at : at + size] for at in range(len(text) - size + 1)}


def _ranks(scores: list[float]) -> dict[int, int]:
    order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))
    return {row: rank for rank, row in enumerate(order, 1)}


def _has(request: PagedRequest, name: str) -> bool:
    value = getattr(request.filters, name)
    return bool(value) if isinstance(value, tuple) else value.ge is not None or value.le is not None


def _satisfies(product: Product, filters: Filters) -> bool:
    def inside(value: float | None, bounds: Any) -> bool:
        if bounds.ge is None and bounds.le is None:
            return True
        low = -np.inf if bounds.ge is None else bounds.ge
        high = np.inf if bounds.le is None else bounds.le
        return value is not None and bool(low <= value <= high)

    return (
        (not filters.category or product.category in filters.category)
        and (not filters.brand or product.brand in filters.brand)
        and inside(product.price, filters.price)
        and inside(product.rating, filters.rating)
        and (filters.in_stock is None or product.in_stock is filters.in_stock)
        and all(product.attributes.get(key) in values for key, values in filters.attributes.items())
    )


def small_shop(**options: Any) -> Shop:
    """A shop of the small products with their generated photos."""
    products = small_products()
    photos = {
        product.product_id: drawn_photo(str(product.category), product.attributes["colour"])
        for product in products
        if product.image
    }
    return Shop(products, photos, **options)


@contextmanager
def open_shop(shop: Shop) -> Iterator[str]:
    """The shop on a free port of loopback while the block runs; yields its URL."""
    config = ServeConfig.model_construct(http="127.0.0.1:0", grpc="")
    page = page_routes(locale=shop.locale)
    with TemporaryDirectory() as folder:
        shop.folder = Path(folder)
        for product_id, photo in shop.photos.items():
            (shop.folder / product_id).write_bytes(photo)
        with serve_wires(
            shop, config, folder=shop.folder, observer=Observer(), page=page
        ) as servers:
            yield f"{servers.http}/"
