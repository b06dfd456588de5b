"""Evaluation ranks through FAISS exactly as a slow sort by cosine does, and counts by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from client.evaluation import evaluate, mean_metrics, mean_over, rank
from shared.encoders.encoder import Encoder, ProductPrefixes
from shared.encoders.prefix_cache import TextPrefixes, image_prefixes, text_prefixes

TITLES = ["leather boot", "wool jacket", "desk light", "smart mobile"]
QUERIES = ["boot", "light", "wool"]
Prefixes = tuple[ProductPrefixes, TextPrefixes]


@pytest.fixture
def prefixes(encoder: Encoder, photos: list[Path], tmp_path: Path) -> Prefixes:
    fingerprint = encoder.base.fingerprint
    paths = [photos[0], None, photos[1], None]
    products = ProductPrefixes(
        text_prefixes(tmp_path, encoder.text, fingerprint, TITLES),
        image_prefixes(tmp_path, encoder.image, fingerprint, paths),
        np.ones(4, np.bool_),
    )
    return products, text_prefixes(tmp_path, encoder.text, fingerprint, QUERIES)


def test_the_ranking_is_a_sort_by_cosine(encoder: Encoder, prefixes: Prefixes) -> None:
    products, queries = prefixes
    scores = encoder.query_matrix(queries) @ encoder.product_matrix(products).T
    expected = np.argsort(-scores, axis=1, kind="stable")
    np.testing.assert_array_equal(rank(encoder, products, queries, k=4), expected)
    np.testing.assert_array_equal(rank(encoder, products, queries, k=2), expected[:, :2])


def test_past_the_catalogs_end_is_minus_one(encoder: Encoder, prefixes: Prefixes) -> None:
    ranked = rank(encoder, *prefixes, k=6)
    assert (ranked[:, 4:] == -1).all()
    assert (np.sort(ranked[:, :4], axis=1) == np.arange(4)).all()


def test_metrics_by_hand() -> None:
    ranked = np.array([[3, 1, 0], [2, 0, 1]])
    qrels = [
        (np.array([1]), np.array([2])),  # found second
        (np.array([1, 2]), np.array([1, 3])),  # found first (grade 3) and third (grade 1)
    ]
    first = (3 / math.log2(3)) / 3
    second = (7 + 1 / math.log2(4)) / (7 + 1 / math.log2(3))
    assert mean_metrics(ranked, qrels) == {
        "ndcg@10": pytest.approx((first + second) / 2),
        "recall@10": 1.0,
        "mrr@10": pytest.approx((1 / 2 + 1) / 2),
    }


def test_without_queries_there_is_nothing_to_measure(encoder: Encoder, prefixes: Prefixes) -> None:
    assert evaluate(encoder, *prefixes, []) == {}
    assert mean_metrics(np.empty((0, 10), np.int64), []) == {}


def test_evaluate_measures_the_ranking(encoder: Encoder, prefixes: Prefixes) -> None:
    qrels = [(np.array([row]), np.array([1])) for row in (0, 2, 1)]
    assert evaluate(encoder, *prefixes, qrels) == mean_metrics(
        rank(encoder, *prefixes, k=10), qrels
    )


def test_every_region_counts_the_same() -> None:
    assert mean_over([{"ndcg@10": 1.0}, {"ndcg@10": 0.25}]) == {"ndcg@10": 0.625}
    assert mean_over([]) == {}
