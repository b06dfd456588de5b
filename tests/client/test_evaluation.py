"""Rankings equal a slow sort by cosine, over the catalog and over what shoppers were shown."""

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from client.clicks import ValidationSet
from client.evaluation import compare, evaluate, mean_metrics, mean_over, rank
from shared.adapter import Adapter
from shared.encoders.encoder import Encoder, ProductPrefixes
from shared.encoders.prefix_cache import TextPrefixes, image_prefixes, text_prefixes
from shared.metrics import effective_sample_size
from shared.wire_evaluation import Difference

TITLES = ["leather boot", "wool jacket", "desk light", "smart mobile"]
QUERIES = ["boot", "light", "wool"]
Prefixes = tuple[ProductPrefixes, TextPrefixes]
Vectors = NDArray[np.float32]
NOTHING = ValidationSet([], [], [], [], [], 0)


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
    assert evaluate(encoder, products, queries, NOTHING) == {}
    assert mean_metrics(np.empty((0, 10), np.int64), []) == {}


def held_out(*gains: dict[int, float]) -> ValidationSet:
    """Of `QUERIES`, what was shown once each and its gains, by catalog row."""
    rows = [np.array(sorted(shown), dtype=np.int64) for shown in gains]
    values = [np.array([shown[row] for row in sorted(shown)], dtype=float) for shown in gains]
    squares, number = [part**2 for part in values], sum(int((v > 0).sum()) for v in values)
    return ValidationSet(QUERIES, rows, values, values, squares, number)


def slowly(encoder: Encoder, prefixes: Prefixes, shown: ValidationSet) -> tuple[float, float]:
    """Gain found over gain possible and over all gain, pair by pair."""
    products, queries = prefixes
    product, query = encoder.product_matrix(products), encoder.query_matrix(queries)
    found = possible = 0.0
    for q, (rows, gains) in enumerate(zip(shown.rows, shown.gains, strict=True)):
        gain = dict(zip(rows.tolist(), gains.tolist(), strict=True))
        ordered = sorted(gain, key=lambda row: -float(query[q] @ product[row]))[:10]
        ideal = sorted(gain.values(), reverse=True)[:10]
        found += sum(gain[row] / math.log2(place + 2) for place, row in enumerate(ordered))
        possible += sum(g / math.log2(place + 2) for place, g in enumerate(ideal))
    return found / possible, found / sum(float(gains.sum()) for gains in shown.gains)


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
            ndcg, snips = slowly(encoder, prefixes, shown)
            metrics = evaluate(encoder, *prefixes, shown)
            assert metrics["ndcg@10"] == pytest.approx(ndcg)
            assert metrics["snips@10"] == pytest.approx(snips)


def test_gains_in_the_encoders_own_order_are_perfect(
    encoder: Encoder, prefixes: Prefixes, trained: Adapter
) -> None:
    encoder.load_adapter(trained)
    ranked = rank(encoder, *prefixes, k=4)
    own = [{int(row): 1 / place for place, row in enumerate(row_list, 1)} for row_list in ranked]
    assert evaluate(encoder, *prefixes, held_out(*own))["ndcg@10"] == pytest.approx(1.0)
    contrary = [{int(row): float(place) for place, row in enumerate(line)} for line in ranked]
    assert evaluate(encoder, *prefixes, held_out(*contrary))["ndcg@10"] < 1


@pytest.mark.parametrize("shown", [{2: 0.5}, {0: 1.0, 1: 1.0, 3: 1.0}])
def test_where_nothing_can_be_ordered_every_adapter_is_perfect(
    encoder: Encoder, prefixes: Prefixes, trained: Adapter, shown: dict[int, float]
) -> None:
    """One product, or all alike: what an adapter does with the others does not count."""
    for adapter in (encoder.adapter(), trained):
        encoder.load_adapter(adapter)
        assert evaluate(encoder, *prefixes, held_out(*[shown] * 3))["ndcg@10"] == 1.0


def test_a_few_heavy_clicks_are_worth_fewer() -> None:
    """Weights 1, 1 and 2: (1 + 1 + 2)^2 / (1 + 1 + 4) of 3 clicks."""
    assert effective_sample_size(4.0, 6.0) == 16 / 6
    assert effective_sample_size(0.0, 0.0) == 0.0


def test_the_effective_share_is_that_of_the_clicks(encoder: Encoder, prefixes: Prefixes) -> None:
    shown = held_out({0: 1.0, 1: 1.0, 2: 0.0}, {3: 2.0}, {0: 0.0})
    assert evaluate(encoder, *prefixes, shown)["effective_share"] == pytest.approx(16 / 6 / 3)
    alike = held_out({0: 5.0}, {3: 5.0}, {0: 0.0, 1: 5.0})
    assert evaluate(encoder, *prefixes, alike)["effective_share"] == pytest.approx(1.0)


# -- one adapter against others --------------------------------------------------------------------

SHOWN = ({0: 1.0, 1: 0.5, 2: 0.0, 3: 0.25}, {0: 0.0, 2: 2.0}, {1: 0.5, 2: 0.75, 3: 1.5})


def others(encoder: Encoder, trained: Adapter) -> dict[int, Adapter]:
    """The fresh adapter, one far beyond the trained one and one far on the other side."""
    fresh = encoder.adapter()
    ways = {0: 0.0, 3: 8.0, 12: -30.0}
    return {
        number: {name: fresh[name] + way * (trained[name] - fresh[name]) for name in fresh}
        for number, way in ways.items()
    }


def test_compare_equals_two_evaluations(
    encoder: Encoder, prefixes: Prefixes, trained: Adapter
) -> None:
    shown, references = held_out(*SHOWN), others(encoder, trained)
    metrics, found = compare(encoder, *prefixes, shown, candidate=trained, references=references)
    encoder.load_adapter(trained)
    assert metrics == {"ndcg@10": evaluate(encoder, *prefixes, shown)["ndcg@10"]}
    assert metrics["ndcg@10"] == pytest.approx(slowly(encoder, prefixes, shown)[0])
    assert list(found) == [0, 3, 12]
    for number, reference in references.items():
        encoder.load_adapter(reference)
        own = evaluate(encoder, *prefixes, shown)["ndcg@10"]
        assert found[number].mean == pytest.approx(metrics["ndcg@10"] - own)
        assert found[number].num_queries == 3
    assert any(abs(one.mean) > 0.01 and one.variance > 0 for one in found.values())


def test_the_variance_of_a_comparison_equals_a_slow_reference(
    encoder: Encoder, prefixes: Prefixes, trained: Adapter
) -> None:
    shown, references = held_out(*SHOWN), others(encoder, trained)
    _, found = compare(encoder, *prefixes, shown, candidate=trained, references=references)
    for number, reference in references.items():
        pairs = list(
            zip(
                gains_and_ideals(encoder, prefixes, shown, trained),
                gains_and_ideals(encoder, prefixes, shown, reference),
                strict=True,
            )
        )
        mean_ideal = sum(ideal for (_, ideal), _ in pairs) / 3
        ratio = sum(mine - other for (mine, _), (other, _) in pairs) / (3 * mean_ideal)
        errors = [
            (mine - other - ratio * ideal) / mean_ideal for (mine, ideal), (other, _) in pairs
        ]
        assert found[number].variance == pytest.approx(sum(e * e for e in errors) / 2)


def gains_and_ideals(
    encoder: Encoder, prefixes: Prefixes, shown: ValidationSet, adapter: Adapter
) -> list[tuple[float, float]]:
    """Of each query, the discounted gain that an adapter finds and the most there is."""
    encoder.load_adapter(adapter)
    products, queries = prefixes
    product, query = encoder.product_matrix(products), encoder.query_matrix(queries)
    pairs = []
    for q, (rows, gains) in enumerate(zip(shown.rows, shown.gains, strict=True)):
        gain = dict(zip(rows.tolist(), gains.tolist(), strict=True))
        ordered = sorted(gain, key=lambda row: -float(query[q] @ product[row]))
        found = sum(gain[row] / math.log2(place + 2) for place, row in enumerate(ordered))
        best = sorted(gain.values(), reverse=True)
        pairs.append((found, sum(g / math.log2(place + 2) for place, g in enumerate(best))))
    return pairs


def test_an_adapter_compared_with_itself_differs_by_nothing(
    encoder: Encoder, prefixes: Prefixes, trained: Adapter
) -> None:
    _, found = compare(
        encoder, *prefixes, held_out(*SHOWN), candidate=trained, references={7: trained}
    )
    assert found == {7: Difference(3, 0.0, 0.0)}


def test_the_other_way_round_the_sign_changes(
    encoder: Encoder, prefixes: Prefixes, trained: Adapter
) -> None:
    shown, far = held_out(*SHOWN), others(encoder, trained)[12]
    _, there = compare(encoder, *prefixes, shown, candidate=trained, references={1: far})
    _, back = compare(encoder, *prefixes, shown, candidate=far, references={1: trained})
    assert there[1].mean == pytest.approx(-back[1].mean)
    assert there[1].mean != 0
    assert there[1].variance == pytest.approx(back[1].variance)


def test_without_held_out_clicks_there_is_nothing_to_compare(
    encoder: Encoder, prefixes: Prefixes, trained: Adapter
) -> None:
    metrics, found = compare(
        encoder, *prefixes, NOTHING, candidate=trained, references={0: trained, 4: trained}
    )
    assert metrics == {}
    assert found == {0: Difference(0, 0.0, 0.0), 4: Difference(0, 0.0, 0.0)}


# -- what shoppers see: the encoder mixed with words ----------------------------------------------


def test_a_mix_is_measured_in_its_own_order(
    encoder: Encoder, prefixes: Prefixes, trained: Adapter
) -> None:
    """It is handed what the encoder says of the whole catalog."""
    shown, references = held_out(*SHOWN), others(encoder, trained)
    handed, first = [], ([1.0, 0.25, 0.0, 0.5], [0.0, 2.0], [1.5, 0.75, 0.5])

    def words(vectors: Vectors, queries: Vectors) -> list[NDArray[np.float64]]:
        handed.append((vectors, queries))
        return [np.array(gains) for gains in first]

    metrics, found = compare(
        encoder, *prefixes, shown, candidate=trained, references=references, mix=words
    )
    discounts = [1 / math.log2(place + 2) for place in range(4)]
    gained = sum(g * d for gains in first for g, d in zip(gains, discounts, strict=False))
    ideal = [sorted(gains, reverse=True) for gains in first]
    most = sum(g * d for gains in ideal for g, d in zip(gains, discounts, strict=False))
    assert metrics == {"ndcg@10": pytest.approx(gained / most)}
    # Words do not change with the adapter, so no reference differs.
    assert found == {number: Difference(3, 0.0, 0.0) for number in references}
    for adapter, (vectors, queries) in zip([trained, *references.values()], handed, strict=True):
        encoder.load_adapter(adapter)
        np.testing.assert_array_equal(vectors, encoder.product_matrix(prefixes[0]))
        np.testing.assert_array_equal(queries, encoder.query_matrix(prefixes[1]))


def test_a_mix_of_nothing_but_cosines_is_the_encoder_alone(
    encoder: Encoder, prefixes: Prefixes, trained: Adapter
) -> None:
    shown, references = held_out(*SHOWN), others(encoder, trained)

    def cosines(vectors: Vectors, queries: Vectors) -> list[NDArray[np.float64]]:
        columns = zip(queries @ vectors.T, shown.rows, shown.gains, strict=True)
        return [gains[np.lexsort((rows, -line[rows]))] for line, rows, gains in columns]

    mix = [
        compare(encoder, *prefixes, shown, candidate=trained, references=references, mix=one)
        for one in (None, cosines)
    ]
    assert mix[0] == mix[1]
    assert any(abs(one.mean) > 0.01 for one in mix[0][1].values())


def test_every_region_counts_the_same() -> None:
    assert mean_over([{"ndcg@10": 1.0}, {"ndcg@10": 0.25}]) == {"ndcg@10": 0.625}
    assert mean_over([]) == {}
