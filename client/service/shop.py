"""What a region answers shoppers, whatever wire they came by.

The shop holds the shelf in use and the one before it, each with the encoder that made it, and swaps
them as a whole: a search works on one of them from its first to its last line, so no answer is of
two releases, and none fails because another release came into use.

A change to the catalog is written to disk, then put on every open shelf, then acknowledged.
"""

import hashlib
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.region import Region, photo_problem, product_texts
from client.service.doorway import photo_path
from client.service.encoding import Edition, QueryEncoding
from client.service.events import POPULAR, EventStore, Impression, Impressions
from client.service.experiment import explored, interleaved
from client.service.failures import RequestError
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
    Ranker,
    SearchRequest,
    SearchResponse,
    SimilarRequest,
    Suggestion,
    SuggestRequest,
    SuggestResponse,
    UpsertRequest,
)
from client.service.observe import Observer
from client.service.overlay import Overlay, catalog_rows
from client.service.paging import Answer, Answers, cursor_of
from client.service.priority import Priority
from shared.errors import RetrievalError
from shared.retrieval.facets import Facet
from shared.retrieval.shelf import Ask, Found, Shelf
from shared.schema import ServeConfig

MIN_CHANGES = 1000  # rows appended or dead before an index is built afresh ...
CHANGED_SHARE = 0.1  # ... and also this share of all of them
RECENT_DECAY = 0.8  # weight of a product a shopper looked at, per product looked at since

Vector = NDArray[np.float32]
_NO_VECTORS: Vector = np.empty((0, 0), np.float32)


@dataclass(frozen=True)
class Opened:
    """A shelf with the encoder that made it."""

    shelf: Shelf
    edition: Edition


class Shop:
    """Answers requests; made once a process, shelves come and go.

    Args:
        region: whose shop it is; it may be opened anew while the shop is open.
        config: `[serve]` of region.toml.
        events: where impressions and events are written.
        overlay: where changes to the catalog are written.
        observer: told what takes how long.
        priority: held while a request is answered.
        seed: of exploration and interleaving; None draws one.
    """

    def __init__(
        self,
        region: Region,
        config: ServeConfig,
        *,
        events: EventStore,
        overlay: Overlay,
        observer: Observer,
        priority: Priority,
        seed: int | None = None,
    ) -> None:
        self._region, self._config = region, config
        self._events, self._overlay = events, overlay
        self._observer, self.priority = observer, priority
        self._random = np.random.default_rng(seed)
        self._answers, self._encoding = Answers(), QueryEncoding()
        self._changing = threading.Lock()  # one change, or one swap, at a time
        self._opened: tuple[Opened, ...] = ()  # the current one first; replaced as a whole
        self._stale = False  # whether a change that is on disk could not be put on them

    # -- shelves -------------------------------------------------------------------------------

    def put_in_use(self, opened: Sequence[Opened], region: Region) -> None:
        """Answer from other shelves from now on; searches in flight end on theirs.

        Args:
            opened: the current one first, then the one before it, if there is one.
            region: whose catalog they are true to; changes since it was opened are put on them.
        """
        with self._changing:
            self._region = region
            rows, deleted = self._overlay.changes(after_seq=region.overlay_seq)
            vectors = [self._vectors(one, rows) for one in opened]
            self._change(opened, rows, vectors, deleted)
            self._stale = False

    def _use(self, opened: Sequence[Opened]) -> None:
        self._opened = tuple(opened)
        self._observer.opened(opened[0].shelf)

    @property
    def ready(self) -> bool:
        """Whether there is an index to answer from."""
        return bool(self._opened)

    @property
    def index(self) -> str:
        """Name of the index in use, empty where none is, or where it must be opened again."""
        return self._opened[0].shelf.index if self._opened and not self._stale else ""

    @property
    def wants_rebuild(self) -> bool:
        """Whether so much has changed that the index should be built afresh."""
        if not self._opened:
            return False
        shelf = self._opened[0].shelf
        return shelf.num_changes > max(MIN_CHANGES, CHANGED_SHARE * shelf.products.num_rows)

    def close(self) -> None:
        """Answer what is waiting for the encoder, then no more."""
        self._encoding.close()

    # -- finding -------------------------------------------------------------------------------

    def search(self, request: SearchRequest, *, deadline: float | None = None) -> SearchResponse:
        """Products for words; without words, popular ones."""
        text = " ".join(request.query.split())

        def ask(opened: Opened) -> Ask:
            vector = None
            if text and request.ranker != "lexical":
                vector = self._vector(opened, text, None, deadline)
            return _ask(request, text=text, vector=vector, ranker=request.ranker or "hybrid")

        return self._answer(request, "text", text, ask)

    def search_by_image(
        self, request: ImageSearchRequest, *, deadline: float | None = None
    ) -> SearchResponse:
        """Products like a photo, and like words if there are any."""
        text = " ".join(request.query.split())

        def ask(opened: Opened) -> Ask:
            vector = self._vector(opened, text, request.image, deadline)
            return _ask(request, vector=vector)

        return self._answer(request, "image", text, ask)

    def similar(self, request: SimilarRequest, *, deadline: float | None = None) -> SearchResponse:
        """Products like one of the catalog."""
        text = " ".join(request.query.split())

        def ask(opened: Opened) -> Ask:
            vector = _vectors_of(opened.shelf, [request.product_id])[0]
            if text:
                vector = _unit(vector + self._vector(opened, text, None, deadline))
            return _ask(request, vector=vector, hidden=(request.product_id,))

        return self._answer(request, "similar", text, ask)

    def for_you(self, request: ForYouRequest, *, deadline: float | None = None) -> SearchResponse:
        """Products like those a shopper has looked at; ids that are not here are passed over."""

        def ask(opened: Opened) -> Ask:
            known = [one for one in request.recent if opened.shelf.products.row_of(one) is not None]
            vector = None
            if known:
                weight = RECENT_DECAY ** np.arange(len(known))[::-1]
                vector = _unit(weight @ _vectors_of(opened.shelf, known))
            return _ask(request, vector=vector, hidden=request.recent)

        return self._answer(request, "for_you", "", ask)

    def suggest(self, request: SuggestRequest) -> SuggestResponse:
        """Ways to go on typing."""
        suggester = self._current().shelf.suggester
        found = suggester.suggest(request.prefix, request.limit) if suggester else []
        return SuggestResponse(
            suggestions=tuple(Suggestion(text=one.text, kind=one.kind) for one in found)
        )

    # -- changing ------------------------------------------------------------------------------

    def upsert(self, request: UpsertRequest) -> ChangeResponse:
        """Add products, or put them in the place of those with the same id."""
        products = list({one.product_id: one for one in request.products}.values())
        self._check_photos(products)
        with self._changing:
            opened, rows = self._require_open(), catalog_rows(products)
            vectors = [self._vectors(one, rows) for one in opened]  # may fail, so before the rest
            self._overlay.upsert(products)
            self._change(opened, rows, vectors, [])
        return ChangeResponse(changed=len(products))

    def delete(self, request: DeleteRequest) -> ChangeResponse:
        """Take products away; they do not come back with the next release or an old export."""
        ids = list(dict.fromkeys(request.product_ids))
        with self._changing:
            opened, none = self._require_open(), catalog_rows([])
            known = [one for one in ids if opened[0].shelf.products.row_of(one) is not None]
            self._overlay.delete(ids)
            self._change(opened, none, [_NO_VECTORS] * len(opened), ids)
        return ChangeResponse(changed=len(known))

    def _change(
        self,
        opened: Sequence[Opened],
        rows: pl.DataFrame,
        vectors: Sequence[Vector],
        deleted: Sequence[str],
    ) -> None:
        """Put a change that is on disk on every shelf."""
        try:
            changes = zip(opened, vectors, strict=True)
            self._use([self._after(one, rows, new, deleted) for one, new in changes])
        except RetrievalError:
            self._stale = True  # the next look opens the shelves again, with this change on them
            raise

    def log_events(self, request: EventsRequest) -> EventsResponse:
        """Keep what shoppers did; acknowledged once it is on disk."""
        return self._events.log_events(list(request.events), datetime.now(UTC))

    # -- about itself --------------------------------------------------------------------------

    def info(self) -> InfoResponse:
        """How the service stands."""
        opened = self._require_open()
        shelf = opened[0].shelf
        return InfoResponse(
            region=self._region.config.region,
            locale=self._region.config.locale,
            version=version("fedshelf"),
            releases=tuple(dict.fromkeys(one.shelf.release for one in opened)),
            encoder_digest=shelf.encoder_digest,
            index=shelf.index,
            num_products=int(shelf.products.alive.sum()),
            num_changes=shelf.num_changes,
            dense_weight=shelf.dense_weight,
        )

    def photo(self, product_id: str) -> Path:
        """A product's photo.

        Raises:
            RequestError: no such product, or it has none.
        """
        products = self._current().shelf.products
        row = products.row_of(product_id)
        name = products.product(row)["image"] if row is not None else None
        if name is None:
            raise RequestError("not_found", "no photo of such a product here")
        return self._images / str(name)

    @property
    def _images(self) -> Path:
        return self._region.folder / self._region.config.data.images

    # -- one request ---------------------------------------------------------------------------

    def _answer(
        self, request: PagedRequest, kind: str, text: str, ask: Callable[[Opened], Ask]
    ) -> SearchResponse:
        start = time.perf_counter()
        with self.priority.serving():
            if request.cursor is not None:
                answer, offset = self._answers.page(request.cursor, asked=_fingerprint(request))
            else:
                answer, offset = self._find(request, ask), 0
                self._answers.keep(answer)
            with self._observer.stage("page"):
                response = self._page(request, answer, offset, text)
            if request.log:
                self._events.log_impressions(self._shown(request, answer, response, kind, text))
        took_ms = (time.perf_counter() - start) * 1e3
        return response.model_copy(update={"took_ms": round(took_ms, 3)})

    def _find(self, request: PagedRequest, ask: Callable[[Opened], Ask]) -> Answer:
        opened = self._named(request.release)
        asked = ask(opened)
        found = opened.shelf.find(asked, stage=self._observer.stage)
        answer = Answer(
            request_id=uuid.uuid4().hex,
            shelf=opened.shelf,
            ask=asked,
            found=found,
            ranker=_ranker(asked, found),
            asked=_fingerprint(request),
        )
        self._observer.found(len(found.rows), found.fallback)
        chosen = request.release is not None or request.ranker is not None
        if request.sort != "relevance" or chosen or found.fallback:
            return answer
        return self._explored(self._interleaved(answer, ask), request.k)

    def _page(
        self, request: PagedRequest, answer: Answer, offset: int, text: str
    ) -> SearchResponse:
        shelf, found = answer.shelf, answer.found
        places = range(offset, min(offset + request.k, len(found.rows)))
        facets = shelf.facets(answer.ask, found) if request.facets and offset == 0 else []
        suggester = shelf.suggester
        return SearchResponse(
            request_id=answer.request_id,
            region=self._region.config.region,
            release=shelf.release,
            encoder_digest=shelf.encoder_digest,
            ranker=answer.ranker,
            total=len(found.rows),
            hits=tuple(hit for x in places if (hit := self._hit(request, answer, x)) is not None),
            facets=tuple(map(_facet, facets)),
            next_cursor=cursor_of(answer, offset + request.k),
            correction=suggester.correct(text) if suggester and text else "",
            fallback=found.fallback,
            relaxed=found.relaxed,
        )

    def _hit(self, request: PagedRequest, answer: Answer, place: int) -> Hit | None:
        """One place of an answer; None where the product has been deleted since it was found."""
        shelf, found = answer.shelf, answer.found
        row = int(found.rows[place])
        product = shelf.products.product(row)
        if self._current().shelf.products.row_of(product["product_id"]) is None:
            return None
        names = ("title", "brand", "category", "price", "currency")
        more = ("rating", "review_count", "in_stock")
        others = [shelf.products.product(other)["product_id"] for other in found.variants[place]]
        has_photo = product["image"] is not None
        return Hit(
            position=place + 1,
            product_id=product["product_id"],
            **{name: product[name] for name in (*names, *more)},
            image=photo_path(product["product_id"]) if has_photo else None,
            score=float(found.scores[place]),
            propensity=(place + 1) ** -self._config.position_bias,
            variants=tuple(others),
            explanation=_explanation(answer, row) if request.explain else None,
            **(_details(product) if request.details else {}),
        )

    def _shown(
        self,
        request: PagedRequest,
        answer: Answer,
        response: SearchResponse,
        kind: str,
        text: str,
    ) -> Impressions:
        teams = answer.teams
        return Impressions(
            request_id=answer.request_id,
            ts=datetime.now(UTC),
            query=text,
            kind=kind,
            user_key=request.user_key,
            ranker=answer.ranker,
            release=answer.shelf.release,
            products=tuple(
                Impression(
                    product_id=hit.product_id,
                    position=hit.position,
                    propensity=hit.propensity,
                    team=teams[hit.position - 1] if hit.position <= len(teams) else "",
                    explored=hit.position - 1 == answer.explored,
                )
                for hit in response.hits
            ),
        )

    def _interleaved(self, answer: Answer, ask: Callable[[Opened], Ask]) -> Answer:
        """Two ways to answer in one list, where the region has an experiment running."""
        experiment = self._config.experiment
        if experiment is None or self._random.random() >= experiment.share:
            return answer
        alone = len(self._require_open()) == 1 and "previous" in (experiment.a, experiment.b)
        if alone or not answer.ask.text:  # the two ways would be one, and every answer a tie
            return answer
        ways = (experiment.a, experiment.b)
        a, b = (self._by_way(way, answer, ask) for way in ways)
        return interleaved(answer, a, b, ways=ways, rng=self._random)

    def _by_way(self, way: str, answer: Answer, ask: Callable[[Opened], Ask]) -> list[str]:
        """Ids in the order of one way to answer; none where it finds nothing that was asked for."""
        if way == "current":
            shelf, found = answer.shelf, answer.found
        elif way == "previous":
            former = self._require_open()[-1]
            shelf = former.shelf
            found = shelf.find(ask(former))
        else:
            shelf = answer.shelf
            found = shelf.find(replace(answer.ask, ranker=cast(Ranker, way)))
        if found.fallback:  # what breaks the shopper's filters, or is merely popular
            return []
        return [shelf.products.product(int(row))["product_id"] for row in found.rows]

    def _explored(self, answer: Answer, k: int) -> Answer:
        if self._random.random() >= self._config.exploration:
            return answer
        return explored(answer, k, rng=self._random)

    # -- shelves, inside -----------------------------------------------------------------------

    def _require_open(self) -> tuple[Opened, ...]:
        if not self._opened:
            raise RequestError("unavailable", "no index yet; it is being built, ask again later")
        return self._opened

    def _current(self) -> Opened:
        return self._require_open()[0]

    def _named(self, release: int | None) -> Opened:
        opened = self._require_open()
        if release is None:
            return opened[0]
        for one in opened:
            if one.shelf.release == release:
                return one
        here = ", ".join(str(one.shelf.release) for one in opened)
        raise RequestError("not_found", f"release {release} has no open index; there is: {here}")

    def _vector(
        self, opened: Opened, text: str, image: bytes | None, deadline: float | None
    ) -> Vector:
        _require_one_digest(opened)
        with self._observer.stage("encode"):
            return self._encoding.vector(opened.edition, text or None, image, deadline=deadline)

    def _vectors(self, opened: Opened, rows: pl.DataFrame) -> Vector:
        """Vectors of changed products; those of the same text and photo as before are kept."""
        _require_one_digest(opened)
        shelf, fields = opened.shelf, self._region.config.data.text_fields
        seen = ("product_id", *fields, "image")
        before = [shelf.products.row_of(one) for one in rows["product_id"].to_list()]
        kept = [
            row is not None and all(shelf.products.product(row)[x] == new[x] for x in seen)
            for row, new in zip(before, rows.select(seen).iter_rows(named=True), strict=True)
        ]
        vectors = np.empty((rows.height, shelf.vectors.dim), np.float32)
        same = [row for row, is_kept in zip(before, kept, strict=True) if is_kept]
        vectors[kept] = shelf.vectors.vectors_of(np.array(same, np.int64))
        if not all(kept):
            anew = rows.filter(~pl.Series(kept, dtype=pl.Boolean))
            photos = [name and self._images / name for name in anew["image"]]
            texts = product_texts(anew, fields)
            vectors[~np.array(kept)] = self._encoding.products(opened.edition, texts, photos)
        return vectors

    def _after(
        self, opened: Opened, rows: pl.DataFrame, vectors: Vector, deleted: Sequence[str]
    ) -> Opened:
        if not rows.height and not deleted:
            return opened
        texts = product_texts(rows, self._region.config.data.text_fields)
        return replace(opened, shelf=opened.shelf.changed(rows, texts, vectors, deleted))

    def _check_photos(self, products: Sequence[Product]) -> None:
        for number, product in enumerate(products):
            problem = product.image and photo_problem(self._images, product.image)
            if problem:
                raise RequestError("invalid", f"products.{number}.{problem}")


def _require_one_digest(opened: Opened) -> None:
    if opened.edition.digest != opened.shelf.encoder_digest:
        raise RetrievalError(
            f"encoder {opened.edition.digest[:12]} for an index of"
            f" {opened.shelf.encoder_digest[:12]}; start the service again"
        )


def _ask(
    request: PagedRequest,
    *,
    text: str = "",
    vector: Vector | None = None,
    ranker: Ranker = "dense",
    hidden: tuple[str, ...] = (),
) -> Ask:
    return Ask(
        text=text,
        vector=vector,
        filters=request.filters,
        sort=request.sort,
        ranker=ranker,
        hidden=hidden,
    )


def _ranker(ask: Ask, found: Found) -> str:
    """What ordered an answer, for its readers and for the click log."""
    if found.fallback == "popular" or (not ask.text and ask.vector is None):
        return POPULAR
    return ask.ranker if ask.sort == "relevance" else ask.sort


def _fingerprint(request: PagedRequest) -> str:
    """Of all that must be repeated for the next page."""
    free = {"cursor", "k", "log", "facets", "explain", "details"}
    content = request.model_dump_json(exclude={*free, "image"})  # JSON holds no photo's bytes
    photo = getattr(request, "image", b"")
    parts = (type(request).__name__.encode(), content.encode(), photo)
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _vectors_of(shelf: Shelf, product_ids: Sequence[str]) -> Vector:
    rows = [shelf.products.row_of(one) for one in product_ids]
    if None in rows:
        raise RequestError("not_found", "no such product here")
    return shelf.vectors.vectors_of(np.array(rows, np.int64))


def _unit(vector: NDArray[np.floating[Any]]) -> Vector:
    length = float(np.linalg.norm(vector))
    return (vector / max(length, 1e-9)).astype(np.float32)


def _facet(facet: Facet) -> FacetCount:
    values = (FacetValue(**asdict(value)) for value in facet.values)
    return FacetCount(
        name=facet.name, values=tuple(values), minimum=facet.minimum, maximum=facet.maximum
    )


def _details(product: dict[str, Any]) -> dict[str, Any]:
    """What a product says of itself beyond its line in a list."""
    values_of: dict[str, dict[str, None]] = {}
    for one in product["attributes"] or ():
        if one["key"] and one["value"]:  # a catalog may leave either empty
            values_of.setdefault(one["key"], {})[one["value"]] = None  # each once, in their order
    return {
        "description": product["description"],
        "attributes": {key: ", ".join(values) for key, values in values_of.items()},
    }


def _explanation(answer: Answer, row: int) -> Explanation:
    """Why a row is where it is; a ranker that did not find it says nothing."""
    said: dict[str, float | int] = {}
    evidence, text = answer.found.evidence, answer.ask.text
    places = [] if evidence is None else np.flatnonzero(evidence.rows == row).tolist()
    for place in places:
        for name, nothing in (("dense", -1.0), ("lexical", 0.0)):
            scores = getattr(evidence, name)
            if scores[place] > nothing:
                rank = 1 + int((scores > scores[place]).sum())
                said |= {f"{name}_score": float(scores[place]), f"{name}_rank": rank}
    return Explanation(
        **said,
        dense_weight=answer.shelf.dense_weight,
        words=answer.shelf.lexical.matched_words(text, row) if text else (),
        rule="first" if row in answer.found.pinned else "",
    )
