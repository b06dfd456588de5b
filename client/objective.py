"""What a region minimizes: a click term, and beside it what keeps clicks from spoiling the rest.

Each term is a pure function of unit vectors in `shared.losses`; here they get their vectors, from
kept activations, and their weights, from the federation's knobs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.batches import Batch, positives_among
from client.clicks import Examples
from client.recent import RecentProducts
from client.views import Views
from shared.config import TrainConfig
from shared.decorrelation import Statistics, anchored, decorrelation_loss, statistics_of
from shared.encoders.encoder import Encoder, ProductPrefixes
from shared.encoders.prefix_cache import ImagePrefixes, ImageViews, TextPrefixes, TextViews
from shared.gaussians import Gaussians, drawn
from shared.losses import (
    drift,
    image_text_loss,
    log_inclusion,
    masked_info_nce,
    match_loss,
    too_alike,
)

_VIEWS = 0x76  # keeps the draw of views apart from the order of examples
_DRAWN = 0x64  # and that of vectors from both
_STEPS_DRAWN = 32  # so many steps' vectors are drawn at once, and used again after them
_QUERY, _TEXT, _IMAGE, _ASKED, _ANSWER = ("query", "text", "image", "asked", "answer")
_PUBLIC_TEXT, _PUBLIC_IMAGE = "public text", "public image"


@dataclass(frozen=True)
class TrainingData:
    """What a region trains on.

    Attributes:
        examples: from its clicks.
        known: words of titles (`client.known_items`), some a step.
        known_texts: kept activations of the texts that answer them, a row of `known` each.
        queries: kept activations of `examples.queries`.
        known_queries: kept activations of `known.queries`.
        products: kept activations of its catalog.
        base_queries: where the base puts `examples.queries`, unit vectors, (Q, D).
        clicked: catalog rows that occur in the examples, ascending, (P,) int64.
        base_texts: where the base puts their texts, unit vectors, (P, D).
        views: augmented views of queries and products, beside the originals.
        public: kept activations of products that belong to no region, where they take part.
    """

    examples: Examples
    known: Examples
    known_texts: TextPrefixes
    queries: TextPrefixes
    known_queries: TextPrefixes
    products: ProductPrefixes
    base_queries: NDArray[np.float32]
    clicked: NDArray[np.int64]
    base_texts: NDArray[np.float32]
    views: Views | None = None
    public: ProductPrefixes | None = None

    @property
    def num_public(self) -> int:
        """How many of them there are."""
        return 0 if self.public is None else len(self.public.has_text)


def make_training_data(
    encoder: Encoder,
    examples: Examples,
    known: Examples,
    kept: Callable[[list[str]], TextPrefixes],
    products: ProductPrefixes,
) -> TrainingData:
    """Add to examples their activations, and where the base puts them.

    Args:
        encoder: of the base; its adapter does not matter and stays.
        examples: from clicks.
        known: from the catalog.
        kept: gives the kept activations of queries.
        products: kept activations of the catalog.
    """
    clicked, queries = np.unique(examples.product_row), kept(examples.queries)
    return TrainingData(
        examples=examples,
        known=known,
        known_texts=products.texts,
        queries=queries,
        known_queries=kept(known.queries),
        products=products,
        base_queries=encoder.base_text_matrix(queries, np.arange(len(examples.queries))),
        clicked=clicked,
        base_texts=encoder.base_text_matrix(products.texts, clicked),
    )


class Objective:
    """The joint loss of one region in one round, and its gradient.

    Args:
        encoder: of the region's base.
        data: see `TrainingData`.
        config: weights of the terms, and which negatives there are.
        parameters: what is trained, and nothing else gets a gradient; by default the factors that
            the config names, and the scalars.
        federation: encoding statistics of all regions; None before there are any, and then those
            of a step's examples are all that the decorrelation term knows.
        gaussians: of the regions' product vectors, of which negatives are drawn; None before there
            are any.
    """

    def __init__(
        self,
        encoder: Encoder,
        data: TrainingData,
        config: TrainConfig,
        parameters: list[nn.Parameter] | None = None,
        federation: Statistics | None = None,
        gaussians: Gaussians | None = None,
    ) -> None:
        self._encoder, self._data, self._config = encoder, data, config
        self._federation = federation.to(encoder.device).to(torch.float32) if federation else None
        self._gaussians = gaussians.to(encoder.device) if gaussians else None
        self._drawn: list[Tensor] = []  # a step's each
        self._steps = 0
        self._recent = RecentProducts(config.queue_size, encoder.dim, encoder.device)
        self._log_q = _log_q(data.examples, config) if config.logq_correction else None
        self._trained = parameters or encoder.trainable(config.trained_factors)
        self._queries: TextPrefixes | TextViews = data.queries
        self._texts: TextPrefixes | TextViews = data.products.texts
        self._images: ImagePrefixes | ImageViews = data.products.images

    def draw(self, seed: list[int]) -> None:
        """Choose views and draw negatives, which stay until that is done again."""
        self._draw_views(seed)
        number = self._config.drawn_negatives
        if self._gaussians is not None and number > 0:
            rng = np.random.default_rng([*seed, _DRAWN])
            vectors = drawn(self._gaussians, _STEPS_DRAWN * number, rng)
            mixed = torch.from_numpy(rng.permutation(len(vectors))).to(vectors.device)
            self._drawn = list(torch.split(vectors[mixed], number))

    def _draw_views(self, seed: list[int]) -> None:
        """Show each query and product as its original or as one of its views."""
        views, products = self._data.views, self._data.products
        if views is None:
            return
        rng = np.random.default_rng([*seed, _VIEWS])
        query = rng.integers(len(views.queries) + 1, size=len(self._data.examples.queries))
        text, image = rng.integers(len(views.texts) + 1, size=(2, len(products.has_text)))
        self._queries = TextViews([self._data.queries, *views.queries], query)
        self._texts = TextViews([products.texts, *views.texts], text)
        self._images = ImageViews([products.images, *views.images], image)

    def loss(self, batch: Batch, known: Batch | None) -> Tensor:
        """The loss of a step, nats, shape (), with its graph."""
        return self._joint(self._encoded(self._wanted(batch, known)), batch, known)[0]

    def backward(self, batch: Batch, known: Batch | None) -> Tensor:
        """Add a step's gradient to the adapter's, and remember its products.

        Returns:
            The loss, nats, shape (), without a graph.
        """
        wanted = self._wanted(batch, known)
        if self._config.chunk_size > 0:
            loss, product = self._backward_by_chunks(wanted, batch, known)
        else:
            loss, product = self._joint(self._encoded(wanted), batch, known)
            loss.backward(inputs=self._trained)  # type: ignore[no-untyped-call]
        self._recent.push(batch.product_rows, product)
        self._steps += 1
        return loss.detach()

    def _backward_by_chunks(
        self, wanted: Mapping[str, "_Rows"], batch: Batch, known: Batch | None
    ) -> tuple[Tensor, Tensor]:
        """The same gradient with the memory of one chunk (GradCache, arXiv:2101.06983).

        All vectors are made without a graph; the loss gives the gradient of each; then they are
        made again, chunk by chunk, and each chunk passes its part on to the adapter.
        """
        size = self._config.chunk_size
        with torch.no_grad():
            made = {k: torch.cat([*map(self._alone, v.chunks(size))]) for k, v in wanted.items()}
        vectors = {name: tensor.requires_grad_() for name, tensor in made.items()}
        loss, product = self._joint(vectors, batch, known)
        inputs = [*vectors.values(), *self._trained]
        loss.backward(inputs=inputs)  # type: ignore[no-untyped-call]
        for name, part in wanted.items():
            gradient = vectors[name].grad
            assert gradient is not None  # every vector is in the loss
            for chunk, given in zip(part.chunks(size), torch.split(gradient, size), strict=True):
                again = self._alone(chunk)
                if again.requires_grad:  # photos that nobody has are zeros
                    again.backward(given, inputs=self._trained)  # type: ignore[no-untyped-call]
        return loss, product

    def _wanted(self, batch: Batch, known: Batch | None) -> dict[str, "_Rows"]:
        """What a step has to encode."""
        wanted = {
            _QUERY: _Rows(self._queries, batch.query_rows),
            _TEXT: _Rows(self._texts, batch.product_rows),
            _IMAGE: _Rows(self._images, batch.product_rows),
        }
        if known is not None:
            wanted[_ASKED] = _Rows(self._data.known_queries, known.query_rows)
            wanted[_ANSWER] = _Rows(self._data.known_texts, known.product_rows)
        if (public := self._data.public) and len(batch.public_rows) > 0:
            wanted[_PUBLIC_TEXT] = _Rows(public.texts, batch.public_rows)
            wanted[_PUBLIC_IMAGE] = _Rows(public.images, batch.public_rows)
        return wanted

    def _encoded(self, wanted: Mapping[str, "_Rows"]) -> dict[str, Tensor]:
        """Vectors (B, D) of each; all texts together, since small passes cost more than rows."""
        texts = {
            name: (part.kept, part.rows)
            for name, part in wanted.items()
            if isinstance(part.kept, TextPrefixes | TextViews)
        }
        others = {name: self._alone(wanted[name]) for name in wanted if name not in texts}
        vectors = self._encoder.text_vectors_of(list(texts.values()))
        return {**dict(zip(texts, vectors, strict=True)), **others}

    def _alone(self, part: "_Rows") -> Tensor:
        """Vectors (B, D) of one."""
        if isinstance(part.kept, TextPrefixes | TextViews):
            return self._encoder.text_vectors(part.kept, part.rows)
        return self._encoder.image_vectors(part.kept, part.rows)

    def _joint(
        self, vectors: Mapping[str, Tensor], batch: Batch, known: Batch | None
    ) -> tuple[Tensor, Tensor]:
        """All terms with their weights, (), and the products' vectors, a row each."""
        encoder, data, config = self._encoder, self._data, self._config
        temperature = encoder.fusion.temperature()
        asked, clicked = vectors[_QUERY], vectors[_TEXT][: batch.num_clicked]
        query, product = encoder.fusion.place(asked), self._products(vectors, batch)
        loss = self.clicks(query, product, batch, temperature, self._strangers(vectors, batch))
        if known is not None:
            loss = loss + config.known_item_weight * self._contrast(
                vectors[_ASKED], vectors[_ANSWER], known, self._known_temperature(temperature)
            )
        image, text, present = self._pairs(vectors, batch)
        distance = encoder.distance
        alignment = image_text_loss(
            image, text, present, temperature=temperature, distance=distance
        )
        base_query, base_text = (base.to(encoder.device) for base in _base_vectors(data, batch))
        away = drift(asked, base_query) + drift(clicked, base_text)
        loss = loss + config.alignment_weight * alignment + config.anchor_weight * away
        if config.match_weight > 0:
            match = match_loss(image, text, present, temperature=temperature, distance=distance)
            loss = loss + config.match_weight * match
        if config.decorrelation_weight > 0:
            loss = loss + config.decorrelation_weight * self._decorrelation(query, product, batch)
        return loss, product

    def _products(self, vectors: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The batch's products, fused."""
        products, rows = self._data.products, batch.product_rows
        return self._encoder.fused(vectors[_TEXT], vectors[_IMAGE], products, rows)

    def _strangers(self, vectors: Mapping[str, Tensor], batch: Batch) -> Tensor | None:
        """Negatives that are not the region's own, (W, V); None where there are none.

        They are the batch's public products, fused, and vectors drawn, which get no gradient.
        """
        strangers = [self._drawn[self._steps % len(self._drawn)]] if self._drawn else []
        if self._data.public is not None and _PUBLIC_TEXT in vectors:
            text, image = vectors[_PUBLIC_TEXT], vectors[_PUBLIC_IMAGE]
            strangers.append(self._encoder.fused(text, image, self._data.public, batch.public_rows))
        return torch.cat(strangers) if strangers else None

    def _pairs(self, vectors: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Photos and texts of the batch's products, public ones too, and which have both."""
        image, text = [vectors[_IMAGE]], [vectors[_TEXT]]
        present = [_has_both(self._data.products)[batch.product_rows]]
        if self._data.public is not None and _PUBLIC_TEXT in vectors:
            image.append(vectors[_PUBLIC_IMAGE])
            text.append(vectors[_PUBLIC_TEXT])
            present.append(_has_both(self._data.public)[batch.public_rows])
        both = torch.from_numpy(np.concatenate(present)).to(self._encoder.device)
        return torch.cat(image), torch.cat(text), both

    def _decorrelation(self, query: Tensor, product: Tensor, batch: Batch) -> Tensor:
        """DCCO's loss a dimension, (), so that its weight means the same in every base."""
        device = query.device
        statistics = statistics_of(
            query[batch.query_index.to(device)],  # (E, D)
            product[batch.product_index.to(device)],
            batch.weight.to(device),
        )
        if self._federation is not None:
            statistics = anchored(statistics, self._federation)
        lost = decorrelation_loss(statistics, self._config.decorrelation_off_diagonal)
        return lost / self._encoder.dim

    def clicks(
        self,
        query: Tensor,
        product: Tensor,
        batch: Batch,
        temperature: Tensor,
        strangers: Tensor | None = None,
    ) -> Tensor:
        """The click term, against the products of the batch and of recent steps.

        Args:
            query: vectors of the batch's queries, (U, V).
            product: of its products.
            batch: see `client.batches.Batch`.
            temperature: of the term, ().
            strangers: vectors of negatives that are in no catalog here, (W, V), if there are any.
        """
        examples, limit = self._data.examples, self._config.negative_max_cosine
        rows, recent = self._recent.others(batch.product_rows)
        known = batch.known_positive
        if len(rows) > 0:
            product = torch.cat([product, recent])
            known = torch.cat([known, positives_among(examples, batch.query_rows, rows)], dim=1)
        if strangers is not None:
            product = torch.cat([product, strangers])
            known = nn.functional.pad(known, (0, len(strangers)))
        known = known.to(query.device)
        if limit < 1:
            known = known | too_alike(
                product,
                batch.query_index.to(query.device),
                batch.product_index.to(query.device),
                num_queries=len(query),
                cosine=limit,
            )
        if self._log_q is None:
            return self._contrast(query, product, batch, temperature, known)
        log_q = (
            self._log_q[0][torch.from_numpy(batch.query_rows)],
            self._log_q_of(np.concatenate([batch.product_rows, rows]), len(product)),
        )
        return self._contrast(query, product, batch, temperature, known, log_q)

    def _log_q_of(self, rows: NDArray[np.int64], number: int) -> Tensor:
        """Of products in the catalog, and of as many public ones as `number` leaves."""
        assert self._log_q is not None
        own, strangers = self._log_q[1][torch.from_numpy(rows)], number - len(rows)
        share = strangers / max(self._data.num_public, 1)
        drawn = torch.full((strangers,), share).log() * self._config.logq_correction
        return torch.cat([own, drawn])

    def _contrast(
        self,
        query: Tensor,
        product: Tensor,
        batch: Batch,
        temperature: Tensor,
        known_positive: Tensor | None = None,
        log_q: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """`masked_info_nce` of a batch, by the base's own distance."""
        device = query.device
        known = batch.known_positive.to(device) if known_positive is None else known_positive
        return masked_info_nce(
            query,
            product,
            query_index=batch.query_index.to(device),
            product_index=batch.product_index.to(device),
            weight=batch.weight.to(device),
            known_positive=known,
            temperature=temperature,
            log_q_query=None if log_q is None else log_q[0].to(device),
            log_q_product=None if log_q is None else log_q[1].to(device),
            distance=self._encoder.distance,
        )

    def _known_temperature(self, temperature: Tensor) -> Tensor:
        """A fixed one, or the clicks' own, which must not follow easier queries."""
        fixed = self._config.known_item_temperature
        return torch.full_like(temperature, fixed) if fixed > 0 else temperature.detach()


@dataclass(frozen=True)
class _Rows:
    """Texts or photos of which vectors are to be made: these rows (B,) of what is kept."""

    kept: TextPrefixes | TextViews | ImagePrefixes | ImageViews
    rows: NDArray[np.int64]

    def chunks(self, size: int) -> list["_Rows"]:
        """The same in parts of so many rows."""
        starts = range(0, len(self.rows), size)
        return [_Rows(self.kept, self.rows[start : start + size]) for start in starts]


def _log_q(examples: Examples, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """What is subtracted from the logits of each query (Q,) and each product (N,)."""
    sizes = len(examples.queries), examples.num_products
    counts = (
        torch.from_numpy(np.bincount(rows, minlength=size))
        for rows, size in zip((examples.query_index, examples.product_row), sizes, strict=True)
    )
    query, product = (log_inclusion(count, batch_size=config.batch_size) for count in counts)
    return config.logq_correction * query, config.logq_correction * product


def _has_both(products: ProductPrefixes) -> NDArray[np.bool_]:
    """Which products have photo and text, (N,)."""
    return products.images.present & products.has_text


def _base_vectors(data: TrainingData, batch: Batch) -> tuple[Tensor, Tensor]:
    """Where the base puts a batch's queries (U, D) and the texts of its clicked products."""
    rows = np.searchsorted(data.clicked, batch.product_rows[: batch.num_clicked])
    return torch.from_numpy(data.base_queries[batch.query_rows]), torch.from_numpy(
        data.base_texts[rows]
    )
