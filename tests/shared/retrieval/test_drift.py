"""Neighbourhoods of two indexes, compared by product and not by row."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.errors import RetrievalError
from shared.retrieval.drift import Drift, neighbour_drift
from shared.retrieval.index import FACTORY, build_index
from shared.retrieval.lexical import LexicalDocument
from shared.retrieval.manifest import IndexParts, OpenIndex, open_index_folder, write_index_folder
from shared.retrieval.recall import measure_recall
from shared.retrieval.vectors import VectorIndex

NUM, DIM = 60, 8


@pytest.fixture
def make(tmp_path: Path) -> "Make":
    return Make(tmp_path / "indexes")


class Make:
    """Indexes of any vectors under any ids."""

    def __init__(self, parent: Path) -> None:
        self.parent, self.release = parent, 0

    def __call__(self, vectors: NDArray[np.float32], ids: Sequence[str]) -> OpenIndex:
        index, self.release = build_index(vectors), self.release + 1
        parts = IndexParts(
            index=index,
            factory=FACTORY,
            ids=ids,
            digests=np.zeros((len(ids), 2), np.uint64),
            documents=[LexicalDocument("boots") for _ in ids],
            locale="en",
            recall=measure_recall(VectorIndex.over(index), vectors, seed=0),
        )
        digests = {"encoder_digest": "e" * 64, "catalog_digest": "c" * 64}
        return open_index_folder(
            write_index_folder(self.parent, parts, release=self.release, **digests)
        )


def vectors(seed: int, num: int = NUM) -> NDArray[np.float32]:
    found = np.random.default_rng(seed).normal(size=(num, DIM))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def ids(num: int = NUM) -> list[str]:
    return [f"sku-{number}" for number in range(num)]


def expected(before: NDArray[np.float32], after: NDArray[np.float32], k: int) -> Drift:
    """By brute force, of two matrices with the same rows."""
    near = []
    for matrix in (before, after):
        scores = matrix.astype(np.float64) @ matrix.T.astype(np.float64)
        np.fill_diagonal(scores, -np.inf)
        near.append([set(row) for row in np.argsort(-scores)[:, :k].tolist()])
    kept = np.array([len(one & other) for one, other in zip(*near, strict=True)])
    return Drift(k, len(kept), float(kept.mean() / k), float((kept == k).mean()))


@pytest.mark.parametrize("k", [1, 10, NUM - 1, NUM + 7])
def test_it_is_what_brute_force_finds(make: Make, k: int) -> None:
    before, after = vectors(0), (vectors(0) + vectors(1) / 3)
    after = after / np.linalg.norm(after, axis=1, keepdims=True)
    found = neighbour_drift(make(before, ids()), make(after, ids()), k=k)
    assert found == expected(before, after, min(k, NUM - 1))
    assert k >= NUM - 1 or 0 < found.overlap < 1


def test_a_turned_space_has_not_drifted(make: Make) -> None:
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(DIM, DIM)))[0].astype(np.float32)
    found = neighbour_drift(make(vectors(0), ids()), make(vectors(0) @ turn, ids()))
    assert (found.overlap, found.unchanged) == (1.0, 1.0)


def test_rows_and_products_that_only_one_has_do_not_matter(make: Make) -> None:
    before, names = vectors(0), ids()
    order = np.random.default_rng(3).permutation(NUM)
    more = np.concatenate([vectors(4, 20), before[order]])
    found = neighbour_drift(
        make(before, names), make(more, [*(f"new-{n}" for n in range(20)), *np.array(names)[order]])
    )
    assert (found.num_products, found.overlap, found.unchanged) == (NUM, 1.0, 1.0)


def test_copies_of_a_product_are_neighbours_and_it_is_not_its_own(make: Make) -> None:
    copies = np.repeat(vectors(0, 4), 15, axis=0)
    found = neighbour_drift(make(copies, ids()), make(copies, ids()))
    assert (found.overlap, found.unchanged) == (1.0, 1.0)


def test_a_sample_is_enough(make: Make) -> None:
    found = neighbour_drift(make(vectors(0), ids()), make(vectors(1), ids()), sample=7)
    assert found.num_products == 7


def test_catalogs_with_little_in_common_are_not_compared(make: Make) -> None:
    others = [*ids(1), *(f"other-{n}" for n in range(NUM - 1))]
    with pytest.raises(RetrievalError, match="fewer than two products in common with 1-cccc"):
        neighbour_drift(make(vectors(0), ids()), make(vectors(0), others))
