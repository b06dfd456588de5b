"""One region's products as one release finds them: two rankers, one order, filters, rules.

A shelf is what a search is answered from. It never changes: a product that is added, replaced or
deleted makes another shelf, which shares nearly everything with the former one, so searches in
flight go on undisturbed. Service, command line and evaluation all search through `Shelf.find`.

    rules ─ synonyms ─► lexical candidates ─┐
    query ─ vector ───► dense candidates ───┴► fused ─► cut ─► pins, codes ─► variants ─► sorted
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from shared.retrieval.facets import Facet
from shared.retrieval.filters import Filters, Sort, active, without
from shared.retrieval.hybrid import Fused, fuse
from shared.retrieval.lexical import LexicalDocument, LexicalIndex
from shared.retrieval.products import ProductTable
from shared.retrieval.relevance import NO_FLOOR, Bar, bar_of
from shared.retrieval.rules import Rules
from shared.retrieval.suggest import Suggester
from shared.retrieval.vectors import VectorIndex

DEPTH: Final = 300  # candidates of each ranker
MAX_POPULAR: Final = 1000
MAX_MATCHING: Final = 10_000  # looked through to see which filter is in the way

NO_FILTERS: Final = Filters()

Rows = NDArray[np.int64]
Scores = NDArray[np.float32]
Vector = NDArray[np.float32]
Ranker = Literal["hybrid", "dense", "lexical"]
Stage = Callable[[str], AbstractContextManager[None]]  # told what is being worked on


def _nobody(name: str) -> AbstractContextManager[None]:
    """A `Stage` of which nobody is told."""
    return nullcontext()


@dataclass(frozen=True)
class Ask:
    """One search.

    Attributes:
        text: what was typed; the lexical ranker reads it.
        vector: of the query, unit, (D,); None asks the lexical ranker alone, or, without text,
            for what is popular.
        filters: what a product must satisfy.
        sort: of what was found.
        ranker: one alone, or both.
        hidden: ids that are not shown, such as the product whose likes are asked for.
    """

    text: str = ""
    vector: Vector | None = None
    filters: Filters = NO_FILTERS
    sort: Sort = "relevance"
    ranker: Ranker = "hybrid"
    hidden: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """What a search found, best first.

    Attributes:
        rows: one row a group of variants, (F,).
        scores: of the mix, (F,).
        variants: the other rows of each group.
        candidates: every row that satisfied query and filters, variants too, by relevance.
        pinned: rows that a rule or an exact code put first.
        evidence: what the rankers said of the candidates; None where nobody was asked.
        bar: what the candidates had to reach; None where nobody was asked.
        fallback: "" if this is what was asked for.
        relaxed: names of filters that were dropped because nothing satisfied them all.
    """

    rows: Rows
    scores: Scores
    variants: tuple[tuple[int, ...], ...]
    candidates: Rows
    pinned: frozenset[int] = frozenset()
    evidence: Fused | None = None
    bar: Bar | None = None
    fallback: Literal["", "relaxed", "popular"] = ""
    relaxed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shelf:
    """Everything a search needs, of one release and one state of the catalog.

    Attributes:
        index: name of the index folder it was opened from.
        release: number of the release; 0 is the base alone.
        encoder_digest: of the encoder that made its vectors; queries must be made by it too.
        products: the catalog as columns.
        vectors: of the products.
        lexical: their words.
        dense_weight: of the dense ranker in the mix, tuned on validation clicks.
        dense_floor: a query whose best cosine is less is about nothing that is here.
        rules: of the region's search team.
        suggester: ways to go on typing, and spelling.
        num_changes: rows appended or deleted since the index was built.
    """

    index: str
    release: int
    encoder_digest: str
    products: ProductTable
    vectors: VectorIndex
    lexical: LexicalIndex
    dense_weight: float
    dense_floor: float = NO_FLOOR
    rules: Rules = field(default_factory=Rules.empty)
    suggester: Suggester | None = None
    num_changes: int = 0

    def find(self, ask: Ask, *, stage: Stage = _nobody) -> Found:
        """Search.

        Args:
            ask: what for; its vector was made by the encoder of `encoder_digest`.
            stage: told what is being worked on: "dense", "lexical", "fuse".

        Returns:
            What was found. Where nothing satisfies all filters, the fewest are dropped; where
            nothing is found at all, it is what is popular, and says so.
        """
        found = self._find(ask, stage)
        if not len(found.rows) and (dropped := self._in_the_way(ask, found.bar)):
            fewer = replace(ask, filters=_without_all(ask.filters, dropped))
            found = self._find(fewer, stage, found.bar)
            found = replace(found, fallback="relaxed", relaxed=dropped)
        return found if len(found.rows) else self._instead(ask)

    def facets(self, ask: Ask, found: Found) -> list[Facet]:
        """Count values to filter by among what was found.

        A facet that is filtered by counts as if it were not, so that another of its values can be
        chosen (multi-select).

        Args:
            ask: as for `find`.
            found: its answer.

        Returns:
            Facets in a fixed order.
        """
        ask = replace(ask, filters=_without_all(ask.filters, found.relaxed))
        facets = self.products.facets(found.candidates, ask.filters)
        for name in active(ask.filters):
            wider = replace(ask, filters=without(ask.filters, name))
            wider_found = self._find(wider, _nobody, found.bar)
            again = self.products.facets(wider_found.candidates, ask.filters, names=[name])
            facets = [next((one for one in again if one.name == f.name), f) for f in facets]
            facets += [one for one in again if one.name not in {f.name for f in facets}]
        return facets

    def changed(
        self, upserts: pl.DataFrame, texts: Sequence[str], vectors: Vector, deleted: Sequence[str]
    ) -> "Shelf":
        """The shelf after a change; this one stays as it is.

        Args:
            upserts: products in `CATALOG_COLUMNS`, U of them, each id once.
            texts: what the lexical index reads of each.
            vectors: of each, (U, D), by the encoder of `encoder_digest`.
            deleted: ids that are gone.

        Returns:
            A shelf that finds the new ones and not the old ones.
        """
        first = self.products.num_rows
        taken = self._rows(frozenset(deleted))
        gone = np.union1d(taken, self._rows(frozenset(upserts["product_id"])))
        products = self.products.changed(upserts, deleted)
        added = [
            (first + number, LexicalDocument.of(text, product))
            for number, (text, product) in enumerate(
                zip(texts, upserts.iter_rows(named=True), strict=True)
            )
        ]
        return replace(
            self,
            products=products,
            vectors=self.vectors.with_rows(vectors) if len(vectors) else self.vectors,
            lexical=self.lexical.changed(removed_rows=gone.tolist(), added=added),
            num_changes=self.num_changes + upserts.height + len(taken),
        )

    # -- one search, without fallbacks ---------------------------------------------------------

    def _find(self, ask: Ask, stage: Stage, bar: Bar | None = None) -> Found:
        hidden = self._hidden(ask)
        if not ask.text.strip() and ask.vector is None:
            return self._popular(ask, hidden)
        eligible, codes = self._eligible(ask.filters, hidden), self._codes(ask)
        dense = self._dense(ask, eligible, DEPTH, stage)
        lexical = self._lexical(ask, hidden, DEPTH, stage)
        if bar is None:
            bar = self._bar(ask, hidden, dense, lexical, is_code=_is_code(ask.text, codes))
        with stage("fuse"):
            return self._ordered(ask, self._first(ask, eligible, codes), dense, lexical, bar)

    def _hidden(self, ask: Ask) -> Rows:
        return self._rows(self.rules.blocked(ask.text) | set(ask.hidden))

    def _bar(
        self,
        ask: Ask,
        hidden: Rows,
        dense: tuple[Rows, Scores],
        lexical: tuple[Rows, Scores],
        *,
        is_code: bool,
    ) -> Bar:
        """What an answer must reach: by the best there is, whether or not it passes the filters."""
        if active(ask.filters):
            ask = replace(ask, filters=NO_FILTERS)
            dense = self._dense(ask, self._eligible(NO_FILTERS, hidden), 1)
            lexical = self._lexical(ask, hidden, 1)
        bar = bar_of(
            float(dense[1].max(initial=-1.0)),
            float(lexical[1].max(initial=0.0)),
            dense_floor=self.dense_floor if ask.text.strip() else NO_FLOOR,
        )
        if not _by_meaning(ask):
            return bar.by_words()
        return bar.by_most_words() if is_code else bar

    def _eligible(self, filters: Filters, hidden: Rows) -> NDArray[np.bool_] | None:
        """Rows that may be shown, None for all of them."""
        if not active(filters) and not len(hidden) and self.products.alive.all():
            return None
        eligible = self.products.eligible(filters)
        eligible[hidden] = False
        return eligible

    def _dense(
        self, ask: Ask, eligible: NDArray[np.bool_] | None, depth: int, stage: Stage = _nobody
    ) -> tuple[Rows, Scores]:
        if ask.vector is None or not _by_meaning(ask):
            return _NOTHING
        with stage("dense"):
            scores, rows = self.vectors.search(ask.vector[None], depth, eligible=eligible)
        there = rows[0] >= 0
        return rows[0][there], scores[0][there]

    def _lexical(
        self, ask: Ask, hidden: Rows, depth: int, stage: Stage = _nobody
    ) -> tuple[Rows, Scores]:
        if not ask.text.strip() or (ask.ranker == "dense" and ask.vector is not None):
            return _NOTHING
        with stage("lexical"):
            return self.lexical.search(
                ask.text,
                depth,
                filters=ask.filters,
                synonyms=self.rules.synonyms_for(ask.text),
                excluded_rows=hidden.tolist(),
            )

    def _ordered(
        self,
        ask: Ask,
        first: Sequence[int],
        dense: tuple[Rows, Scores],
        lexical: tuple[Rows, Scores],
        bar: Bar,
    ) -> Found:
        fused = self._fused(ask, dense, lexical)
        fused = fused.where(bar.reached(fused.dense, fused.lexical))
        found = self._grouped(*_put_first(first, fused.rows, fused.scores), ask.sort)
        pinned = frozenset(first if ask.sort == "relevance" else ())
        return replace(found, pinned=pinned, evidence=fused, bar=bar)

    def _grouped(self, rows: Rows, scores: Scores, sort: Sort) -> Found:
        """The first of each group of variants stands for it; then they are sorted."""
        kept, variants = self.products.first_of_groups(rows)
        score_of = dict(zip(rows.tolist(), scores.tolist(), strict=True))
        variants_of = dict(zip(kept.tolist(), variants, strict=True))
        kept = self.products.sort_rows(kept, sort)
        return Found(
            rows=kept,
            scores=np.array([score_of[row] for row in kept.tolist()], np.float32),
            variants=tuple(tuple(map(int, variants_of[row])) for row in kept.tolist()),
            candidates=rows,
        )

    def _fused(self, ask: Ask, dense: tuple[Rows, Scores], lexical: tuple[Rows, Scores]) -> Fused:
        vector, weight = ask.vector, {"dense": 1.0, "lexical": 0.0}.get(ask.ranker)
        return fuse(
            dense,
            lexical,
            dense_weight=self.dense_weight if weight is None else weight,
            dense_score_of=None
            if vector is None
            else lambda rows: self.vectors.scores_of(vector, rows),
        )

    def _first(
        self, ask: Ask, eligible: NDArray[np.bool_] | None, codes: Sequence[int]
    ) -> list[int]:
        """Rows of exact codes and of pins; pins come first of all."""
        if ask.ranker != "hybrid" or not ask.text.strip():
            return []
        pins = [self.products.row_of(one) for one in self.rules.pinned(ask.text)]
        rows = [*(row for row in pins if row is not None), *codes]
        allowed = [row for row in rows if eligible is None or eligible[row]]
        return list(dict.fromkeys(allowed))

    def _codes(self, ask: Ask) -> list[int]:
        """Rows that the text names by an exact code."""
        return self.products.find_code(ask.text) if ask.ranker == "hybrid" else []

    # -- without words, or without luck -----------------------------------------------------------

    def _popular(self, ask: Ask, hidden: Rows) -> Found:
        eligible = self.products.eligible(ask.filters)
        eligible[hidden] = False
        rows = self.products.popular(eligible, MAX_POPULAR)
        return self._grouped(rows, np.zeros(len(rows), np.float32), ask.sort)

    def _in_the_way(self, ask: Ask, bar: Bar | None) -> tuple[str, ...]:
        """The fewest filters to drop so that something is found; none where nothing ever is."""
        names = active(ask.filters)
        rows = self._matching(ask, bar) if names else _NOTHING[0]
        if not len(rows):
            return ()
        order = sorted(names, key=lambda name: (_DROPPED.index(name.partition(".")[0]), name))
        only = [_without_all(ask.filters, [n for n in names if n != name]) for name in order]
        failed = np.stack([~self.products.eligible(one)[rows] for one in only])  # (F, R)
        counts = failed.sum(axis=0)
        left, dropped = np.flatnonzero(counts == counts.min()), set[str]()
        for name, fails in zip(order, failed, strict=True):
            if fails[left].any():
                left = left[fails[left]]
                dropped.add(name)
        return tuple(name for name in names if name in dropped)

    def _matching(self, ask: Ask, bar: Bar | None) -> Rows:
        """Rows that the query finds if nothing is filtered; not only the best of them."""
        ask, hidden = replace(ask, filters=NO_FILTERS), self._hidden(ask)
        shown = self.products.eligible(NO_FILTERS)
        shown[hidden] = False
        if bar is None:  # nothing was asked for in particular
            return np.flatnonzero(shown)
        depth = min(self.products.num_rows, MAX_MATCHING)
        fused = self._fused(ask, self._dense(ask, shown, depth), self._lexical(ask, hidden, depth))
        rows = fused.rows[bar.reached(fused.dense, fused.lexical)]
        return np.union1d(rows, np.array(self._first(ask, shown, self._codes(ask)), np.int64))

    def _instead(self, ask: Ask) -> Found:
        popular = self._popular(Ask(sort=ask.sort), self._hidden(ask))
        return replace(popular, fallback="popular", relaxed=tuple(active(ask.filters)))

    def _rows(self, ids: frozenset[str]) -> Rows:
        rows = [self.products.row_of(one) for one in ids]
        return np.array(sorted(row for row in rows if row is not None), np.int64)


def _by_meaning(ask: Ask) -> bool:
    """Whether products are looked for by their vectors."""
    return ask.vector is not None and not (ask.ranker == "lexical" and ask.text.strip())


def _is_code(text: str, named: Sequence[int]) -> bool:
    """Whether likeness to a text means nothing: it names products, and is no word that names them.

    An id or a SKU may be a common word ("boots"), which shoppers mean otherwise; it has no digit.
    """
    return bool(named) and any(map(str.isdigit, text))


_NOTHING = (np.empty(0, np.int64), np.empty(0, np.float32))


# Where it makes no difference to their number, filters are dropped in this order.
_DROPPED = ("attributes", "price", "rating", "brand", "in_stock", "category")


def _without_all(filters: Filters, names: Sequence[str]) -> Filters:
    for name in names:
        filters = without(filters, name)
    return filters


def _put_first(first: Sequence[int], rows: Rows, scores: Scores) -> tuple[Rows, Scores]:
    if not first:
        return rows, scores
    top = np.array(first, np.int64)
    others = ~np.isin(rows, top)
    best = scores.max() if len(scores) else 0.0
    return (
        np.concatenate([top, rows[others]]),
        np.concatenate([np.full(len(top), best, np.float32), scores[others]]),
    )
