"""Recall against a plain count of the truth, and the effort that is chosen by it."""

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.retrieval import recall
from shared.retrieval.index import build_index
from shared.retrieval.plan import build_planned
from shared.retrieval.recall import RecallReport, measure_recall
from shared.retrieval.vectors import VectorIndex


def unit(rows: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_recall_of_an_exact_index_is_measured_to_be_one() -> None:
    vectors = unit(700, 24)
    vectors[100:300] = vectors[5]
    report = measure_recall(VectorIndex.over(build_index(vectors)), vectors, seed=0)
    assert report == RecallReport(
        k=10,
        num_queries=256,
        effort=0,
        unfiltered=1.0,
        filtered={"0.5": 1.0, "0.05": 1.0, "0.005": 1.0},
        reaches_target=True,
    )
    assert RecallReport.from_bytes(report.to_bytes()) == report


def test_recall_counts_what_is_missing() -> None:
    vectors = np.eye(4, dtype=np.float32)
    # Three of four rows hold another vector than the one they were made of.
    wrong = VectorIndex.over(build_index(vectors[[0, 0, 0, 0]]))
    report = measure_recall(wrong, vectors, queries=vectors, k=1, selectivities=(), seed=0)
    assert report.unfiltered == 1 / 4
    assert not report.reaches_target


@pytest.mark.parametrize("seed", [0, 1])
def test_recall_is_that_of_a_plain_count(seed: int) -> None:
    vectors, queries = unit(3000, 32, seed), unit(50, 32, seed=9)
    built = build_planned(vectors, factory="HNSW4", seed=seed)
    built.hnsw.efSearch = 4
    index = VectorIndex.over(built)
    scores = queries.astype(float) @ vectors.T.astype(float)
    right = np.argsort(-scores, axis=1)[:, :10]
    _, found = index.search(queries, 10)
    pairs = zip(found.tolist(), right.tolist(), strict=True)
    expected = np.mean([len(set(one) & set(other)) / 10 for one, other in pairs])
    report = measure_recall(index, vectors, queries=queries, selectivities=(), seed=seed)
    assert report.unfiltered == pytest.approx(expected, abs=1e-12)
    assert report.unfiltered < 1
    assert (report.effort, report.num_queries) == (4, 50)


def test_filtered_recall_uses_the_filtered_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "_BLOCK_ROWS", 77)  # the reference goes block by block
    vectors = unit(400, 8)
    report = measure_recall(
        VectorIndex.over(build_index(vectors)), vectors, k=7, selectivities=(0.3, 0.005), seed=2
    )
    assert report.filtered == {"0.3": 1.0, "0.005": 1.0}  # 0.005 leaves two rows, fewer than k


def test_the_effort_is_the_smallest_that_reaches_the_target() -> None:
    vectors = unit(1200, 6)
    built = build_planned(vectors, factory="IVF32,Flat", seed=0)
    chosen = built.nprobe
    assert 1 < chosen < 32

    def reaches(nprobe: int) -> bool:
        built.nprobe = nprobe
        # Seed 1 gives the sample that it was chosen by.
        index = VectorIndex.over(built)
        return measure_recall(index, vectors, selectivities=(0.5,), seed=1).reaches_target

    assert reaches(chosen)
    assert not reaches(chosen // 2)


def test_an_index_of_codes_is_tuned_for_what_it_is_served_with() -> None:
    vectors = unit(1500, 6)
    bare = build_planned(vectors, factory="IVF32,SQ4", seed=0)
    kept = build_planned(vectors, factory="IVF32,SQ4", seed=0, keeps_vectors=True)
    assert bare.nprobe == 32  # 4-bit codes never reach the target, so the ladder was climbed
    assert kept.nprobe < 32
    report = measure_recall(VectorIndex.over(kept, matrix=vectors), vectors, seed=0)
    assert report.reaches_target
    assert not measure_recall(VectorIndex.over(bare), vectors, seed=0).reaches_target
