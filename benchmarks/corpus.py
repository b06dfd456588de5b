"""Products to search: real titles and their real encodings, and more of both where they run out.

An index's speed and recall depend on its vectors, so they are those of real product titles. Where
there are fewer than are asked for, further products are made between two that are near each other:
their vector on the line between them, their title of half of either's words. Such products have
closer neighbours than real ones would, and every figure that rests on them says how many are real.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import faiss
import numpy as np
import polars as pl
from numpy.typing import NDArray

from shared.encoders.encoder import Encoder
from shared.encoders.presets import cache_root, find_preset, make_base
from shared.encoders.public import PublicSlice
from shared.errors import DataError
from shared.schema import CATALOG_COLUMNS

MAX_QUERIES: Final = 4000
_NEIGHBOURS = 8
_SPAN = (0.25, 0.75)  # where between two products a new one lies
_BATCH = 2048
_SEED = 0

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Corpus:
    """Products with their vectors, and what is asked of them.

    Attributes:
        name: of the data.
        products: in `CATALOG_COLUMNS`, without photos; a product's text is its title.
        vectors: of the titles, unit, (N, D).
        queries: distinct texts, Q.
        query_vectors: of them, unit, (Q, D).
        num_real: products that are not made; they come first.
    """

    name: str
    products: pl.DataFrame
    vectors: Matrix
    queries: list[str]
    query_vectors: Matrix
    num_real: int

    @property
    def titles(self) -> list[str]:
        """Of all products."""
        return self.products["title"].to_list()


def find_base(folder: Path | None) -> Path:
    """The base to encode by: the one given, or preset `starter` from the cache, or made now.

    Args:
        folder: of a base, or None.
    """
    if folder is not None:
        return folder
    from simulations.world import build_public

    public = build_public(folder=cache_root() / "photos")
    photos = [Path(path) for path in public["image"]]
    slice_ = PublicSlice(public["title"].to_list(), photos)
    return make_base(find_preset("starter"), slice_, seed=0)[0]


def load_corpus(
    *, icecat: Path | None, fashion: Path | None, encoder: Encoder, cache: Path
) -> Corpus:
    """Read products and encode their titles.

    Args:
        icecat: folder of that data set, or None.
        fashion: folder of that one, or None; without either, the synthetic world's titles.
        encoder: of titles and queries.
        cache: where encodings are kept for the next run.

    Returns:
        Every real product, in a random order that is always the same.

    Raises:
        DataError: a folder or what is in it is wrong.
    """
    frames, queries, names = _read(icecat, fashion)
    products = pl.concat(frames)
    products = products.with_columns(
        product_id=pl.Series([f"p{number}" for number in range(products.height)])
    )
    order = np.random.default_rng(_SEED).permutation(products.height)
    products = products[order]
    asked = list(dict.fromkeys(queries))[:MAX_QUERIES]
    return Corpus(
        name=" and ".join(names),
        products=products,
        vectors=_encoded(encoder, products["title"].to_list(), cache),
        queries=asked,
        query_vectors=_encoded(encoder, asked, cache),
        num_real=products.height,
    )


def sized(corpus: Corpus, size: int) -> Corpus:
    """A corpus of so many products: some of these, or these and some made between them.

    Args:
        corpus: real products.
        size: N >= 1.
    """
    real = min(size, corpus.products.height)
    made = size - real
    if not made:
        products, vectors = corpus.products[:size], corpus.vectors[:size]
        return replace(corpus, products=products, vectors=vectors, num_real=real)
    first, second = _pairs(corpus.vectors, made)
    return replace(
        corpus,
        products=pl.concat([corpus.products, _mixed(corpus.products, first, second)]),
        vectors=np.concatenate([corpus.vectors, between(corpus.vectors, first, second)]),
    )


def more_vectors(corpus: Corpus, size: int) -> Matrix:
    """Vectors alone, (size, D), as `sized` makes them; a million titles are not needed."""
    first, second = _pairs(corpus.vectors, size - len(corpus.vectors))
    vectors = np.empty((size, corpus.vectors.shape[1]), np.float32)
    vectors[: len(corpus.vectors)] = corpus.vectors
    for start in range(0, len(first), _BATCH):
        some = slice(start, start + _BATCH)
        at = len(corpus.vectors) + start
        part = between(corpus.vectors, first[some], second[some], seed=_SEED + start)
        vectors[at : at + len(part)] = part
    return vectors


def between(
    vectors: Matrix, first: NDArray[np.int64], second: NDArray[np.int64], *, seed: int = _SEED
) -> Matrix:
    """Unit vectors on the lines between pairs of rows.

    Args:
        vectors: unit, (N, D).
        first: rows, (M,).
        second: rows, (M,).
        seed: of the places on the lines.

    Returns:
        (M, D).
    """
    share = np.random.default_rng(seed).uniform(*_SPAN, size=(len(first), 1)).astype(np.float32)
    made = (1 - share) * vectors[first] + share * vectors[second]
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return np.asarray(made, np.float32)


def _pairs(vectors: Matrix, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows (M,) in turn, and for each one of its nearest others."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    wanted = min(count, len(vectors))
    near = index.search(vectors[:wanted], _NEIGHBOURS + 1)[1]  # (W, 9); itself among them
    generator = np.random.default_rng(_SEED)
    first = np.arange(count, dtype=np.int64) % wanted
    second = near[first, generator.integers(0, _NEIGHBOURS + 1, count)]
    itself = (second == first) | (second < 0)
    second[itself] = (first[itself] + 1) % len(vectors)
    return first, second


def _mixed(
    products: pl.DataFrame, first: NDArray[np.int64], second: NDArray[np.int64]
) -> pl.DataFrame:
    """The first of each pair; its title's second half is that of the other."""
    titles = products["title"].to_list()
    halves = [title.split() for title in titles]
    mixed = [
        " ".join((*_half(halves[one], 0), *_half(halves[other], 1))) or titles[one]
        for one, other in zip(first.tolist(), second.tolist(), strict=True)
    ]
    return products[first].with_columns(
        product_id=pl.Series([f"m{number}" for number in range(len(first))]),
        title=pl.Series(mixed),
    )


def _half(words: list[str], which: int) -> list[str]:
    middle = (len(words) + 1) // 2
    return words[middle:] if which else words[:middle]


def _read(
    icecat: Path | None, fashion: Path | None
) -> tuple[list[pl.DataFrame], list[str], list[str]]:
    from simulations.datasets.fashion import load_fashion
    from simulations.datasets.icecat import load_icecat
    from simulations.datasets.load import load_source

    sources = []
    for folder, load in ((icecat, load_icecat), (fashion, load_fashion)):
        if folder is not None:
            if not folder.is_dir():
                raise DataError(f"{folder}: no such folder; name the one that holds the data")
            sources.append(load(folder, seed=_SEED))
    if not sources:
        names = ["east", "north", "west"]  # the profiles with English titles
        photos = cache_root() / "photos"
        sources.append(load_source("synthetic", regions=names, seed=_SEED, folder=photos))
    queries = [query.text for source in sources for query in source.queries]
    frames = [_catalog(source.products) for source in sources]
    return frames, queries, [source.name for source in sources]


def _catalog(products: pl.DataFrame) -> pl.DataFrame:
    absent = [pl.lit(None).alias(name) for name in CATALOG_COLUMNS if name not in products.columns]
    whole = products.with_columns(absent)
    typed = whole.select(pl.col(name).cast(dtype) for name, dtype in CATALOG_COLUMNS.items())
    return typed.with_columns(image=pl.lit(None, dtype=pl.String))


def _encoded(encoder: Encoder, texts: Sequence[str], cache: Path) -> Matrix:
    """Unit vectors (N, D), from the cache if these texts were encoded by this encoder before."""
    name = hashlib.sha256("\0".join((encoder.digest, *texts)).encode()).hexdigest()
    path = cache / f"{name[:32]}.npy"
    if path.is_file():
        kept: Matrix = np.load(path, allow_pickle=False)
        return kept
    parts = []
    for start in range(0, len(texts), _BATCH):
        print(f"  encoding {start:,} of {len(texts):,}", flush=True)
        some = list(texts[start : start + _BATCH])
        parts.append(encoder.encode_products(some, [None] * len(some)))
    cache.mkdir(parents=True, exist_ok=True)
    vectors = np.concatenate(parts)
    np.save(path, vectors)
    return vectors
