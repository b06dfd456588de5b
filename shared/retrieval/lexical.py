"""BM25 over a region's products: on disk, under filters, and changed while it is searched.

The words a shopper types are often the words a title has; this is the ranker that knows, the
baseline every dense figure is read against, and one of the rankers of the simulated click logs.
Scores are tantivy's BM25 with k1 = 1.2 and b = 0.75; `shared.retrieval.tokenize` says what a word
is.

    lexical/LEXICAL.json     language and number of products
            meta.json, ...   tantivy's files; one segment

Nothing in that folder is ever changed, so its checksums hold for good. Live changes go to a scratch
folder that links to the same files: tantivy writes new segments and replaces `meta.json` there, and
writes to no segment file twice. Whatever a kill leaves behind is scratch, and the next `open` in
the same place removes it. tantivy forces every new file to disk, some 14 of them a change, which is
worth nothing here: at 6 ms each a change took 110 ms, and 3 ms with the scratch folder in memory
(tmpfs), in an index of 100,000 products.
"""

import json
import math
import os
import shutil
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import uuid4

import numpy as np
import polars as pl
import tantivy
from numpy.typing import NDArray
from pydantic import Field
from tantivy import FieldType, Occur, Query

from shared.durable import Record, locked
from shared.errors import RetrievalError
from shared.retrieval.tokenize import Analysis, analysis_of, typed_words

if TYPE_CHECKING:
    from shared.retrieval.filters import Filters, Range

RECORD: Final = "LEXICAL.json"
MAX_TERMS: Final = 128  # distinct terms of one query; what is typed after them is not looked for
# Below 1, so that of two equally rare words the typed one counts more. Not tuned.
SYNONYM_WEIGHT: Final = 0.7
# A limit, not an allocation. A writer starts a second segment only when its buffer is full.
_BUILD_BYTES = 2_000_000_000
_LIVE_BYTES = 50_000_000
_TOKENIZER = "product_text"
_LOCK_FILES = (".tantivy-meta.lock", ".tantivy-writer.lock")
_FILTERED_COLUMNS = ("category", "brand", "price", "rating", "in_stock", "attributes")
_REPLACED_FILES = ("meta.json", ".managed.json")  # the only ones tantivy writes again, by renaming

Found = tuple[NDArray[np.int64], NDArray[np.float32]]


@dataclass(frozen=True)
class LexicalDocument:
    """What the lexical index reads of one product.

    Attributes:
        text: what is searched.
        category: to filter by, like all that follow; None where it is unknown.
        attributes: (key, value) pairs; a key may occur more than once.
    """

    text: str
    category: str | None = None
    brand: str | None = None
    price: float | None = None
    rating: float | None = None
    in_stock: bool | None = None
    attributes: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, text: str, product: Mapping[str, Any]) -> "LexicalDocument":
        """What the index reads of a catalog row.

        Args:
            text: what is searched.
            product: cells by name, as in `CATALOG_COLUMNS`; only those it filters by are read.
        """
        pairs = [(pair["key"], pair["value"]) for pair in product["attributes"] or ()]
        return cls(
            text,
            category=product["category"],
            brand=product["brand"],
            price=product["price"],
            rating=product["rating"],
            in_stock=product["in_stock"],
            attributes=tuple(pair for pair in pairs if None not in pair),
        )


def documents_of(catalog: pl.DataFrame, texts: Iterable[str]) -> Iterator[LexicalDocument]:
    """One document a catalog row.

    Args:
        catalog: products in `CATALOG_COLUMNS`.
        texts: what is searched of each, one a row.
    """
    rows = catalog.select(_FILTERED_COLUMNS).iter_rows(named=True)
    return (LexicalDocument.of(text, row) for text, row in zip(texts, rows, strict=True))


class LexicalRecord(Record):
    """LEXICAL.json: what must be known to search the files beside it.

    Attributes:
        locale: whose words it was cut into; see `shared.retrieval.tokenize`.
        num_products: rows.
    """

    format: Literal[1] = 1
    locale: str
    num_products: int = Field(ge=0)


@dataclass
class _Store:
    """What the versions of one index share; only `change` under its lock alters anything.

    Attributes:
        ordered_rows: rows below this lie in one segment, in row order; 0 if it has several.
        version: of the newest `LexicalIndex`.
        writer: opened by the first change: it takes threads and memory.
    """

    index: tantivy.Index
    analysis: Analysis
    ordered_rows: int
    version: int = 0
    writer: tantivy.IndexWriter | None = None
    lock: Lock = field(default_factory=Lock)

    def change(self, removed: Sequence[int], added: Sequence[tuple[int, LexicalDocument]]) -> None:
        """One commit; if it fails, it is as if it had never begun."""
        try:
            self.writer = self.writer or self.index.writer(_LIVE_BYTES, num_threads=1)
            # An added row too: its commit may have succeeded before the reload failed.
            for row in (*removed, *(row for row, _ in added)):
                self.writer.delete_documents_by_term("row", row)  # an integer field: not unsigned
            for row, document in added:
                self.writer.add_document(_stored(row, document, self.analysis))
            self.writer.commit()
            self.index.reload()
        except (ValueError, OSError) as error:
            self.writer = None  # its lock and whatever it had not committed go with it
            raise RetrievalError(
                f"a live change cannot be written to the lexical index ({_kind(error)}); look at"
                " the free space of the scratch folder, then send the change again"
            ) from None


@dataclass(frozen=True)
class LexicalIndex:
    """BM25 over products as they were at one time; `changed` gives the index of a later time.

    Equal products give equal indexes, and ties go by row number. Any number of threads may search.
    Word frequencies count removed products until tantivy merges them away, as in Lucene.
    """

    _store: _Store
    _searcher: tantivy.Searcher
    _version: int = 0

    @classmethod
    def build(
        cls, documents: Iterable[LexicalDocument | str], *, locale: str = "en"
    ) -> "LexicalIndex":
        """Index products in memory.

        Args:
            documents: one a product, in row order; a plain text is one without anything to filter
                by. Empty texts are never found.
            locale: whose words they are, e.g. "de-AT".

        Returns:
            The index; it holds no reference to `documents`.
        """
        analysis = analysis_of(locale)
        return _opened(_filled(_new_index(analysis, None), documents, analysis), analysis)

    @staticmethod
    def write(
        folder: Path, documents: Iterable[LexicalDocument | str], *, locale: str = "en"
    ) -> None:
        """Index products into a folder, which nothing will change afterwards.

        Args:
            folder: made here; the caller decides when its bytes must be on disk.
            documents: as for `build`.
            locale: as for `build`.
        """
        analysis = analysis_of(locale)
        folder.mkdir()
        searcher = _filled(_new_index(analysis, folder), documents, analysis).searcher()
        record = LexicalRecord(locale=locale, num_products=searcher.num_docs)
        (folder / RECORD).write_bytes(record.to_bytes())
        for name in _LOCK_FILES:
            (folder / name).unlink(missing_ok=True)

    @classmethod
    def open(cls, folder: Path, *, scratch: Path) -> "LexicalIndex":
        """Open what `write` wrote; the folder must stay while the index is in use.

        Args:
            folder: with verified checksums. It is only read.
            scratch: where live changes go, in a folder of their own that disappears with the last
                version of this index; made if missing. In memory (tmpfs) changes are fast. Other
                processes may use it too; what killed ones left there is removed.

        Raises:
            RetrievalError: a file is missing or damaged.
        """
        try:
            with ExitStack() as undo:
                record = LexicalRecord.from_bytes((folder / RECORD).read_bytes())
                linked = undo.enter_context(_own_folder(scratch))
                _link_files(folder, linked)
                analysis = analysis_of(record.locale)
                opened = _opened(_prepared(tantivy.Index.open(str(linked)), analysis), analysis)
                if opened.num_products != record.num_products:
                    raise ValueError("another number of products")
                weakref.finalize(opened._store, undo.pop_all().close)
                return opened
        except (ValueError, OSError) as error:
            raise RetrievalError(
                f"{folder}: the lexical index cannot be opened ({_kind(error)}); remove this index"
                " and build it again"
            ) from None

    @property
    def num_products(self) -> int:
        """How many products can be found."""
        return self._searcher.num_docs

    def search(
        self,
        query: str,
        k: int,
        *,
        filters: "Filters | None" = None,
        synonyms: Sequence[str] = (),
        excluded_rows: Sequence[int] = (),
    ) -> Found:
        """Rows that share at least one word with a query, best first.

        Args:
            query: any text; punctuation separates words and has no other meaning. A word typed
                twice counts twice, as in Lucene. Words after the first `MAX_TERMS` do not count.
            k: at most so many rows.
            filters: conditions on the products.
            synonyms: words that count like typed ones, `SYNONYM_WEIGHT` as much; of a phrase, all
                words are needed. Without a typed word nothing is found.
            excluded_rows: rows that are not found.

        Returns:
            Row numbers (k',) and their scores (k',), k' <= k; equal scores in row order. Filters
            and exclusions leave the scores of the others as they are.
        """
        words = self._any_of(query, synonyms)
        if k < 1 or words is None:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        conditions = _conditions(self._schema, filters) if filters else []
        clauses = [(Occur.Must, words)]
        clauses += [(Occur.Must, Query.const_score_query(each, 0.0)) for each in conditions]
        if excluded_rows:
            gone = Query.term_set_query(self._schema, "row", [int(row) for row in excluded_rows])
            clauses.append((Occur.MustNot, gone))
        return self._best(Query.boolean_query(clauses) if len(clauses) > 1 else words, k)

    def changed(
        self,
        *,
        removed_rows: Sequence[int] = (),
        added: Sequence[tuple[int, LexicalDocument]] = (),
    ) -> "LexicalIndex":
        """The index after a change; this one goes on answering as before.

        Args:
            removed_rows: rows that are gone; those that are not there are nothing.
            added: new rows and their products.

        Returns:
            The newest version, the only one that can be changed again.

        Raises:
            RetrievalError: the change could not be written; this version is still the newest.
        """
        removed = [int(row) for row in removed_rows]
        with self._store.lock:
            assert self._version == self._store.version, "only the newest version can be changed"
            self._store.change(removed, [(int(row), document) for row, document in added])
            self._store.version += 1
            return LexicalIndex(self._store, self._store.index.searcher(), self._store.version)

    def matched_words(self, query: str, row: int) -> tuple[str, ...]:
        """The words of a query that a row's text has, as they were typed.

        Args:
            query: as for `search`.
            row: any row number; one that is not there has no words.

        Returns:
            Each word once, in the order of typing. In a language without spaces, the stretches of
            characters of which each pair of neighbours is in the text.
        """
        pieces = list(self._analysis.pieces(query))
        terms = list(dict.fromkeys(piece.term for piece in pieces))[:MAX_TERMS]
        there = {term for term in terms if self._has(row, term)}
        matched = [piece for piece in pieces if piece.term in there]
        return typed_words(self._analysis.normalized(query), matched)

    def document_frequency(self, word: str) -> int:
        """How many products have a word, in whatever inflection; the rarest part of a compound.

        Args:
            word: as typed; 0 for what is not a word.
        """
        terms = {piece.term for piece in self._analysis.pieces(word)}
        return min((self._searcher.doc_freq("text", term) for term in terms), default=0)

    def has_word(self, word: str) -> bool:
        """Whether some product has a word, in whatever inflection."""
        return self.document_frequency(word) > 0

    def vocabulary(self) -> Iterator[tuple[str, int]]:
        """Analysed words (stems) and how many products have each, most frequent first."""
        yield from self._searcher.terms_with_prefix("text", "")

    @property
    def _schema(self) -> tantivy.Schema:
        return self._store.index.schema

    @property
    def _analysis(self) -> Analysis:
        return self._store.analysis

    def _any_of(self, query: str, synonyms: Sequence[str]) -> Query | None:
        # Terms are built, not parsed: tantivy's parser raises on `red (` and on an open quote.
        counts = Counter(piece.term for piece in self._analysis.pieces(query))
        typed = dict(list(counts.items())[:MAX_TERMS])  # in the order of typing
        if not typed:
            return None
        clauses = [_weighted(self._term(term), count) for term, count in typed.items()]
        groups = {tuple(piece.term for piece in self._analysis.pieces(each)) for each in synonyms}
        for group in sorted(groups - {(term,) for term in typed} - {()})[: MAX_TERMS - len(typed)]:
            clauses.append(_weighted(_all_of([self._term(term) for term in group]), SYNONYM_WEIGHT))
        return Query.boolean_query([(Occur.Should, clause) for clause in clauses])

    def _term(self, term: str) -> Query:
        return Query.term_query(self._schema, "text", term, "freq")

    def _has(self, row: int, term: str) -> bool:
        both = _all_of([self._term(term), Query.term_query(self._schema, "row", int(row))])
        return bool(self._searcher.search(both, limit=1, count=False).hits)

    def _best(self, query: Query, k: int) -> Found:
        """The k best rows; more are asked for where equal scores straddle the cut.

        Among equal scores tantivy keeps the first of the first segment. That is right where all it
        kept are rows of the original segment: they lie in row order, through merges too, and every
        other row has a higher number.
        """
        limit = k = min(k, max(1, self._searcher.num_docs))
        while True:
            hits = self._searcher.search(query, limit=limit, count=False).hits
            addresses = [address for _, address in hits]
            rows = np.array(self._searcher.fast_field_values("row", addresses), np.int64)
            scores = np.array([score for score, _ in hits], np.float32)
            if len(hits) < limit or scores[-1] < scores[k - 1] or self._ordered(rows, scores, k):
                order = np.lexsort((rows, -scores))[:k]
                return rows[order], scores[order]
            limit = 4 * limit + 16

    def _ordered(self, rows: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> bool:
        tied = rows[scores == scores[k - 1]]
        return bool((tied < self._store.ordered_rows).all())


def _new_index(analysis: Analysis, folder: Path | None) -> tantivy.Index:
    path = None if folder is None else str(folder)
    return _prepared(tantivy.Index(_schema(), path=path), analysis)


def _prepared(index: tantivy.Index, analysis: Analysis) -> tantivy.Index:
    index.register_tokenizer(_TOKENIZER, analysis.analyzer)
    index.config_reader("manual")  # otherwise a thread looks for changes all the time
    index.reload()
    return index


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("text", tokenizer_name=_TOKENIZER, index_option="freq")
    builder.add_integer_field("row", indexed=True, fast=True)
    for name in ("category", "brand", "attribute"):
        builder.add_text_field(name, tokenizer_name="raw", index_option="basic")
    for name in ("price", "rating"):
        builder.add_float_field(name, fast=True)
    builder.add_boolean_field("in_stock", indexed=True)
    return builder.build()


def _filled(
    index: tantivy.Index, documents: Iterable[LexicalDocument | str], analysis: Analysis
) -> tantivy.Index:
    writer = index.writer(_BUILD_BYTES, num_threads=1)  # more threads would make more segments
    for row, document in enumerate(documents):
        whole = LexicalDocument(document) if isinstance(document, str) else document
        writer.add_document(_stored(row, whole, analysis))
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    return index


def _opened(index: tantivy.Index, analysis: Analysis) -> LexicalIndex:
    searcher = index.searcher()
    ordered_rows = searcher.num_docs if searcher.num_segments == 1 else 0
    return LexicalIndex(_Store(index, analysis, ordered_rows), searcher)


def _stored(row: int, document: LexicalDocument, analysis: Analysis) -> tantivy.Document:
    stored = tantivy.Document()
    stored.add_integer("row", row)
    stored.add_text("text", analysis.indexed(document.text))
    for name, word in (("category", document.category), ("brand", document.brand)):
        if word is not None:
            stored.add_text(name, word)
    for name, number in (("price", document.price), ("rating", document.rating)):
        if number is not None and not math.isnan(number):  # tantivy has it above every number
            stored.add_float(name, _without_sign(number))
    if document.in_stock is not None:
        stored.add_boolean("in_stock", document.in_stock)
    for key, value in document.attributes:
        stored.add_text("attribute", _attribute_term(key, value))
    return stored


def _attribute_term(key: str, value: str) -> str:
    """One term a pair; the key's length keeps ("a", "b:c") apart from ("a:b", "c")."""
    return f"{len(key)}:{key}:{value}"


def _without_sign(number: float) -> float:
    """The same number; to tantivy -0.0 is less than 0.0."""
    return number + 0.0


def _conditions(schema: tantivy.Schema, filters: "Filters") -> list[Query]:
    """One query a condition; a product must satisfy all of them."""
    conditions = [
        Query.term_set_query(schema, name, list(values))
        for name, values in (("category", filters.category), ("brand", filters.brand))
        if values
    ]
    for key, values in filters.attributes.items():
        terms = [_attribute_term(key, value) for value in values]
        conditions.append(Query.term_set_query(schema, "attribute", terms))
    for name, bounds in (("price", filters.price), ("rating", filters.rating)):
        if bounds.ge is not None or bounds.le is not None:
            conditions.append(_within(schema, name, bounds))
    if filters.in_stock is not None:
        conditions.append(Query.term_query(schema, "in_stock", filters.in_stock))
    return conditions


def _within(schema: tantivy.Schema, name: str, bounds: "Range") -> Query:
    low, high = (None if end is None else _without_sign(end) for end in (bounds.ge, bounds.le))
    return Query.range_query(schema, name, FieldType.Float, low, high)


def _weighted(query: Query, weight: float) -> Query:
    return query if weight == 1 else Query.boost_query(query, weight)


def _all_of(queries: Sequence[Query]) -> Query:
    return Query.boolean_query([(Occur.Must, query) for query in queries])


@contextmanager
def _own_folder(scratch: Path) -> Iterator[Path]:
    """An empty folder that is removed afterwards; its lock says that it is in use."""
    folder = scratch / uuid4().hex
    lock_path = folder.with_suffix(".lock")
    with locked(scratch):
        _remove_leftovers(scratch)
        folder.mkdir()
        lock = lock_path.open("w")
        flock(lock, LOCK_EX)
    with lock:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock_path.unlink(missing_ok=True)


def _link_files(folder: Path, linked: Path) -> None:
    for name in _REPLACED_FILES:
        shutil.copyfile(folder / name, linked / name)
    for name in _segment_files(folder):
        _link(folder / name, linked / name)


def _segment_files(folder: Path) -> list[str]:
    managed = json.loads((folder / ".managed.json").read_bytes())
    return [name for name in managed if name not in _REPLACED_FILES]


def _link(source: Path, target: Path) -> None:
    """A hard link; on another file system a symbolic one; where there are none, a copy."""
    try:
        os.link(source, target)
    except OSError:
        try:
            os.symlink(source.resolve(), target)
        except OSError:
            shutil.copyfile(source, target)


def _remove_leftovers(scratch: Path) -> None:
    """Remove what killed processes left; the kernel has freed their locks. Hold `locked`."""
    for linked in [path for path in scratch.iterdir() if path.is_dir()]:
        path = linked.with_suffix(".lock")
        with path.open("w") as lock:
            try:
                flock(lock, LOCK_EX | LOCK_NB)
            except OSError:
                continue  # in use
            shutil.rmtree(linked, ignore_errors=True)
            path.unlink()


def _kind(error: Exception) -> str:
    """What sort of error it was; its text may hold a file's content."""
    return type(error).__name__
