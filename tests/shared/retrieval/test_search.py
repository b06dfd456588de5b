"""A searcher answers from the current index, and only with the encoder that made it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from shared.errors import RetrievalError
from shared.retrieval.index import build_index
from shared.retrieval.manifest import write_index_folder, write_pointer
from shared.retrieval.search import Searcher
from shared.schema import CATALOG_COLUMNS

TITLES = ["red boots", "blue boots", "red shirt", "phone"]
WORDS = ["red", "blue", "boots", "shirt", "phone"]


class BagOfWords:
    """One dimension a word; a photo is the word in its file name."""

    def __init__(self, digest: str = "e" * 64) -> None:
        self.digest = digest

    def encode_queries(
        self, texts: Sequence[str | None], images: Sequence[Path | None]
    ) -> NDArray[np.float32]:
        both = [
            (text or "").split() + ([image.stem] if image else [])
            for text, image in zip(texts, images, strict=True)
        ]
        counts = np.array([[words.count(word) for word in WORDS] for words in both], np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.fixture
def catalog() -> pl.DataFrame:
    table = {name: [None] * len(TITLES) for name in CATALOG_COLUMNS}
    columns = {"product_id": ["a", "b", "c", "d"], "title": TITLES, "price": [9.5, 8, None, 99]}
    return pl.DataFrame({**table, **columns}, schema=CATALOG_COLUMNS, strict=False)


@pytest.fixture
def state(tmp_path: Path, catalog: pl.DataFrame) -> Path:
    encoder = BagOfWords()
    folder = write_index_folder(
        tmp_path / "indexes",
        build_index(encoder.encode_queries(TITLES, [None] * len(TITLES))),
        catalog["product_id"].to_list(),
        release=3,
        encoder_digest=encoder.digest,
        catalog_digest="c" * 64,
    )
    write_pointer(tmp_path, folder)
    return tmp_path


def test_hits_carry_rank_score_and_catalog_fields(state: Path, catalog: pl.DataFrame) -> None:
    first, second, third = Searcher.open(state, BagOfWords(), catalog).search("red boots", None, 3)
    assert (first.rank, first.product_id, first.title, first.price) == (1, "a", "red boots", 9.5)
    assert first.score == pytest.approx(1)
    assert (second.product_id, third.product_id) == ("b", "c")  # a tie, in catalog order
    assert second.score == third.score == pytest.approx(1 / 2)
    assert third.price is None


def test_a_photo_alone_and_a_photo_with_words(state: Path, catalog: pl.DataFrame) -> None:
    searcher = Searcher.open(state, BagOfWords(), catalog)
    assert searcher.search(None, Path("phone.jpg"), 1)[0].product_id == "d"
    assert searcher.search("blue", Path("boots.jpg"), 1)[0].product_id == "b"


def test_a_product_that_left_the_catalog_is_not_shown(state: Path, catalog: pl.DataFrame) -> None:
    searcher = Searcher.open(state, BagOfWords(), catalog.filter(pl.col("product_id") != "a"))
    hits = searcher.search("red boots", None, 2)
    assert searcher.num_gone == 1
    assert [(hit.rank, hit.product_id) for hit in hits] == [(1, "b"), (2, "c")]


def test_more_places_than_products(state: Path, catalog: pl.DataFrame) -> None:
    assert len(Searcher.open(state, BagOfWords(), catalog).search("red", None, 50)) == 4


def test_another_encoder_is_refused(state: Path, catalog: pl.DataFrame) -> None:
    with pytest.raises(RetrievalError, match="made by encoder eeeeeeeeeeee, this one is 0000"):
        Searcher.open(state, BagOfWords("0" * 64), catalog)


@pytest.mark.parametrize(
    ("text", "k", "message"),
    [(None, 5, "nothing to search for"), (" ", 5, "nothing"), ("a", 0, "k is 0")],
)
def test_an_empty_question_is_refused(
    state: Path, catalog: pl.DataFrame, text: str | None, k: int, message: str
) -> None:
    with pytest.raises(RetrievalError, match=message):
        Searcher.open(state, BagOfWords(), catalog).search(text, None, k)
