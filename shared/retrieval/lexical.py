"""BM25 over a region's product texts, in memory.

The words a shopper types are often the words a title has; this is the ranker that knows, the
baseline every dense figure is read against, and one of the rankers of the simulated click logs.
Scores are tantivy's BM25 with k1 = 1.2 and b = 0.75.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tantivy
from numpy.typing import NDArray

Language = Literal["en", "de"]

_STEMMERS: dict[str, str] = {"en": "english", "de": "german"}
_LONGEST_TOKEN = 40  # bytes; tantivy's own default analyser drops longer ones (ids, base64)
# A limit, not an allocation. One segment keeps document numbers equal to row numbers, and a
# writer starts a second segment only when its buffer is full.
_WRITER_BYTES = 2_000_000_000


def language_of(locale: str) -> Language:
    """Whose stemmer suits a region's locale, e.g. "de-AT"; English where we have none."""
    return "de" if locale.lower().startswith("de") else "en"


@dataclass(frozen=True)
class LexicalIndex:
    """BM25 over one list of texts; equal texts give equal indexes, and ties go by row number."""

    _schema: tantivy.Schema
    _analyzer: tantivy.TextAnalyzer
    _searcher: tantivy.Searcher

    @classmethod
    def build(cls, texts: Sequence[str], *, language: Language = "en") -> "LexicalIndex":
        """Index texts by stemmed, lower-cased, ASCII-folded words.

        Args:
            texts: one text a product, in row order; empty ones are never found.
            language: whose stemmer is used.

        Returns:
            The index; it holds no reference to `texts`.
        """
        analyzer = _analyzer_for(language)
        schema = _schema()
        searcher = _index_texts(texts, schema, analyzer)
        assert searcher.num_segments <= 1, "document numbers must be row numbers"
        return cls(schema, analyzer, searcher)

    def search(self, query: str, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows that share at least one word with a query, best first.

        Args:
            query: any text; punctuation separates words and has no other meaning. A word typed
                twice counts twice, as in Lucene.
            k: at most so many rows.

        Returns:
            Row numbers (k',) and their scores (k',), k' <= k; equal scores in row order.
        """
        words = self._analyzer.analyze(query)
        if k < 1 or not words:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        found = self._searcher.search(self._any_of(words), limit=k, count=False).hits
        rows = np.array([address.doc for _, address in found], np.int64)
        return rows, np.array([score for score, _ in found], np.float32)

    def _any_of(self, words: Sequence[str]) -> tantivy.Query:
        # Terms are built, not parsed: tantivy's parser raises on `red (` and on an open quote.
        terms = [tantivy.Query.term_query(self._schema, "text", word, "freq") for word in words]
        return tantivy.Query.boolean_query([(tantivy.Occur.Should, term) for term in terms])


def _analyzer_for(language: Language) -> tantivy.TextAnalyzer:
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
    builder = builder.filter(tantivy.Filter.remove_long(_LONGEST_TOKEN))
    builder = builder.filter(tantivy.Filter.lowercase()).filter(tantivy.Filter.ascii_fold())
    return builder.filter(tantivy.Filter.stemmer(_STEMMERS[language])).build()


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("text", tokenizer_name="product_text", index_option="freq")
    return builder.build()


def _index_texts(
    texts: Sequence[str], schema: tantivy.Schema, analyzer: tantivy.TextAnalyzer
) -> tantivy.Searcher:
    index = tantivy.Index(schema)
    index.register_tokenizer("product_text", analyzer)
    writer = index.writer(_WRITER_BYTES, num_threads=1)  # more threads would shuffle the rows
    for text in texts:
        document = tantivy.Document()
        document.add_text("text", text)
        writer.add_document(document)
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    return index.searcher()
