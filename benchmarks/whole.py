"""A whole text query, from words to ranked products, beside what one would write without all this.

The plain pipeline is a sentence encoder and FAISS: tokenize, one forward pass, mean of the tokens,
ten nearest products. Ours also searches words, mixes both rankings of 300, groups variants and
looks for exact codes. Both encode one query at a time on the same number of threads.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from benchmarks.corpus import Corpus, Matrix
from benchmarks.report import Report
from benchmarks.timing import Spread, Way, in_turns, quantile_ms
from shared.encoders.encoder import Encoder
from shared.retrieval.filters import Filters, Range
from shared.retrieval.shelf import Ask, Shelf

SECTION: Final = "text query"
_K = 10


class Stages:
    """How long each stage of each search took."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage; as `Shelf.find` wants it."""
        start = time.perf_counter()
        yield
        self.seconds[name].append(time.perf_counter() - start)


def measure_whole(
    report: Report,
    corpus: Corpus,
    shelf: Shelf,
    encoder: Encoder,
    index: faiss.Index,
    text: Path,
    *,
    calls: int,
    rounds: int,
) -> None:
    """Times of the whole and of its stages, and of the plain pipeline over the same vectors.

    Args:
        report: figures go there.
        corpus: on the shelf.
        shelf: opened from a region's index of it.
        encoder: that made its vectors.
        index: the FAISS index in the shelf, which the plain pipeline searches too.
        text: folder of the plain text model of that encoder's base.
        calls: queries a round.
        rounds: of the comparison.
    """
    name, stages = f"{len(corpus.vectors):,} products", Stages()
    ways = {
        "fedshelf": _ours(corpus, shelf, encoder, stages),
        "encoder and FAISS": plain_pipeline(text, corpus.queries, index),
    }
    with torch.inference_mode():
        taken = in_turns(ways, calls=calls, rounds=rounds)
    report.compare(SECTION, name, taken)
    for stage, seconds in stages.seconds.items():
        for quantile in (0.5, 0.99):
            label = f"{name}, {stage}, p{100 * quantile:.0f}"
            whole = np.array(seconds[-rounds * calls :]).reshape(rounds, calls)
            report.add(SECTION, label, Spread.of(np.quantile(whole, quantile, axis=1) * 1e3), "ms")


def measure_filters(
    report: Report, corpus: Corpus, shelf: Shelf, encoder: Encoder, *, calls: int, rounds: int
) -> None:
    """Times of a search and its facets with filters and without, encoding apart.

    Each filter takes another search for its own facet, and one for the bar of relevance.

    Args:
        report: figures go there.
        corpus: on the shelf.
        shelf: opened from a region's index of it.
        encoder: that made its vectors.
        calls: queries a round.
        rounds: of the comparison.
    """
    asked = corpus.queries[:calls]
    vectors = encoder.encode_queries(asked, [None] * len(asked))
    brands = corpus.products["brand"].drop_nulls().to_list()
    prices = corpus.products["price"].drop_nulls()
    middle = float(prices.median()) if len(prices) else 0.0  # type: ignore[arg-type]

    def way(filters: Callable[[int], Filters]) -> Way:
        def find(number: int) -> Any:
            at = number % len(asked)
            ask = Ask(text=asked[at], vector=vectors[at], filters=filters(at))
            return shelf.facets(ask, shelf.find(ask))

        return find

    ways = {"no filter": way(lambda _: Filters())}
    if brands:
        ways["a brand"] = way(lambda at: Filters(brand=(brands[at % len(brands)],)))
    ways["a price"] = way(lambda _: Filters(price=Range(le=middle)))
    taken = in_turns(ways, calls=calls, rounds=rounds)
    for name, seconds in taken.items():
        for quantile in (0.5, 0.99):
            label = f"{len(corpus.vectors):,} products, with facets, {name}, p{100 * quantile:.0f}"
            report.add(SECTION, label, Spread.of(quantile_ms(seconds, quantile)), "ms")


def plain_pipeline(text: Path, queries: list[str], index: faiss.Index) -> Way:
    """A sentence encoder and FAISS, as a user would write it.

    Args:
        text: folder of the plain model; mean pooling.
        queries: asked in turn.
        index: of the products' vectors.

    Returns:
        Told a number, answers that query with scores and rows (1, 10).
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(text)
    model: Any = AutoModel.from_pretrained(text).eval()

    def encode(query: str) -> Matrix:
        batch = tokenizer([query], truncation=True, max_length=64, return_tensors="pt")
        hidden = model(**batch).last_hidden_state  # (1, L, D); one text has no padding
        vector: Matrix = torch.nn.functional.normalize(hidden.mean(dim=1), dim=1).numpy()
        return vector

    return lambda number: index.search(encode(queries[number % len(queries)]), _K)


def _ours(corpus: Corpus, shelf: Shelf, encoder: Encoder, stages: Stages) -> Way:
    queries = corpus.queries

    def find(number: int) -> Any:
        text = queries[number % len(queries)]
        with stages.stage("encode"):
            vector = encoder.encode_queries([text], [None])[0]
        return shelf.find(Ask(text=text, vector=vector), stage=stages.stage)

    return find
