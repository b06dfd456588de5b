"""Rankings equal a slow sort by cosine, over the catalog and over what shoppers were shown."""

import math
from pathlib import Path

import numpy as np
import pytest

from client.clicks import ValidationSet
from client.evaluation import evaluate, mean_metrics, mean_over, rank
from shared.adapter import Adapter
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
    products, queries = prefixes
    assert evaluate(encoder, products, queries, ValidationSet([], [], [])) == {}
    assert mean_metrics(np.empty((0, 10), np.int64), []) == {}


def held_out(*gains: dict[int, float]) -> ValidationSet:
    """Of `QUERIES`, what was shown and its gains, by catalog row."""
    rows = [np.array(sorted(shown), dtype=np.int64) for shown in gains]
    values = [np.array([shown[row] for row in sorted(shown)], dtype=float) for shown in gains]
    return ValidationSet(QUERIES, rows, values)


def slowly(encoder: Encoder, prefixes: Prefixes, shown: ValidationSet) -> float:
    """Gain found over gain possible, pair by pair."""
    products, queries = prefixes
    product, query = encoder.product_matrix(products), encoder.query_matrix(queries)
    found = possible = 0.0
    for q, (rows, gains) in enumerate(zip(shown.rows, shown.gains, strict=True)):
        gain = dict(zip(rows.tolist(), gains.tolist(), strict=True))
        ordered = sorted(gain, key=lambda row: -float(query[q] @ product[row]))[:10]
        ideal = sorted(gain.values(), reverse=True)[:10]
        found += sum(gain[row] / math.log2(place + 2) for place, row in enumerate(ordered))
        possible += sum(g / math.log2(place + 2) for place, g in enumerate(ideal))
    return found / possible


def test_evaluate_equals_a_slow_reference(
    encoder: Encoder, prefixes: Prefixes, trained: Adapter
) -> None:
    rng = np.random.default_rng(3)
    for adapter in (encoder.adapter(), trained):
        encoder.load_adapter(adapter)
        for _ in range(5):
            shown = held_out(
                *(
                    {int(row): float(rng.uniform(0, 2)) for row in rng.permutation(4)[:size]}
                    for size in (4, 3, 2)
                )
            )
            expected = {"ndcg@10": pytest.approx(slowly(encoder, prefixes, shown))}
            assert evaluate(encoder, *prefixes, shown) == expected


def test_gains_in_the_encoders_own_order_are_perfect(
    encoder: Encoder, prefixes: Prefixes, trained: Adapter
) -> None:
    encoder.load_adapter(trained)
    ranked = rank(encoder, *prefixes, k=4)
    own = [{int(row): 1 / place for place, row in enumerate(row_list, 1)} for row_list in ranked]
    assert evaluate(encoder, *prefixes, held_out(*own)) == {"ndcg@10": pytest.approx(1.0)}
    contrary = [{int(row): float(place) for place, row in enumerate(line)} for line in ranked]
    assert evaluate(encoder, *prefixes, held_out(*contrary))["ndcg@10"] < 1


@pytest.mark.parametrize("shown", [{2: 0.5}, {0: 1.0, 1: 1.0, 3: 1.0}])
def test_where_nothing_can_be_ordered_every_adapter_is_perfect(
    encoder: Encoder, prefixes: Prefixes, trained: Adapter, shown: dict[int, float]
) -> None:
    """One product, or all alike: what an adapter does with the others does not count."""
    for adapter in (encoder.adapter(), trained):
        encoder.load_adapter(adapter)
        assert evaluate(encoder, *prefixes, held_out(*[shown] * 3)) == {"ndcg@10": 1.0}


def test_every_region_counts_the_same() -> None:
    assert mean_over([{"ndcg@10": 1.0}, {"ndcg@10": 0.25}]) == {"ndcg@10": 0.625}
    assert mean_over([]) == {}
