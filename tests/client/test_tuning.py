"""What tuning reads of the two rankers is what serving would say, product by product."""

import numpy as np
import pytest
from numpy.typing import NDArray

import client.tuning
from client.tuning import ShownScores, dense_scores, lexical_scores, mixed_gains, tune
from shared.metrics import ndcg_of_gains
from shared.retrieval.hybrid import DEFAULT_DENSE_WEIGHT, MIN_QUERIES, WEIGHTS, fuse
from shared.retrieval.lexical import LexicalIndex
from shared.retrieval.plan import build_planned
from shared.retrieval.relevance import dense_floor_of
from shared.retrieval.vectors import VectorIndex

WORDS = ("red", "blue", "boots", "shoes", "hat", "scarf")
NUM_PRODUCTS, NUM_QUERIES, DIM = 60, 40, 8
UNTRAINED = np.arange(NUM_QUERIES) % 2 == 0


def unit(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    numbers = rng.normal(size=(count, DIM))
    return (numbers / np.linalg.norm(numbers, axis=1, keepdims=True)).astype(np.float32)


class Log:
    """A catalog, queries, and what was shown for them, all at random."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.texts = [" ".join(rng.choice(WORDS, rng.integers(1, 5))) for _ in range(NUM_PRODUCTS)]
        self.queries = [" ".join(rng.choice(WORDS, 2)) for _ in range(NUM_QUERIES)]
        self.lexical = LexicalIndex.build(self.texts)
        self.products, self.vectors = unit(rng, NUM_PRODUCTS), unit(rng, NUM_QUERIES)
        sizes = rng.integers(1, 15, NUM_QUERIES)
        self.rows = [np.sort(rng.choice(NUM_PRODUCTS, n, replace=False)) for n in sizes]

    def said(self) -> tuple[ShownScores, ShownScores]:
        return (
            dense_scores(self.vectors, self.products, self.rows),
            lexical_scores(self.lexical, self.queries, self.rows),
        )


def test_words_score_as_in_a_search_and_0_where_there_is_no_hit() -> None:
    log = Log()
    said = lexical_scores(log.lexical, log.queries, log.rows)
    for query, rows, scores, best in zip(
        log.queries, log.rows, said.scores, said.best, strict=True
    ):
        found, values = log.lexical.search(query, NUM_PRODUCTS)
        bm25 = dict(zip(found.tolist(), values.tolist(), strict=True))
        assert scores.tolist() == [bm25.get(row, 0.0) for row in rows.tolist()]
        assert best == max(bm25.values())
    assert any(0 in scores for scores in said.scores)
    assert any(scores.all() for scores in said.scores)


def test_a_word_nobody_has_and_no_word_score_0() -> None:
    lexical = LexicalIndex.build(["red boots", "blue hat"])
    rows = [np.array([0, 1]), np.array([1]), np.array([], np.int64)]
    said = lexical_scores(lexical, ["xylophone", "!", "red"], rows)
    assert [scores.tolist() for scores in said.scores] == [[0, 0], [0], []]
    assert said.best.tolist()[:2] == [0, 0] and said.best[2] > 0
    assert all(scores.dtype == np.float32 for scores in said.scores)


def test_what_is_not_among_the_best_candidates_scores_0(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    monkeypatch.setattr(client.tuning, "DEPTH", 3)
    everything = [np.arange(NUM_PRODUCTS)] * NUM_QUERIES
    said = lexical_scores(log.lexical, log.queries, everything)
    for query, scores in zip(log.queries, said.scores, strict=True):
        found, values = log.lexical.search(query, 3)
        assert np.flatnonzero(scores).tolist() == sorted(found.tolist())
        assert scores[found].tolist() == values.tolist()


def test_cosines_of_what_was_shown_and_the_best_of_all() -> None:
    log = Log()
    said = dense_scores(log.vectors, log.products, log.rows)
    slow = log.vectors.astype(np.float64) @ log.products.T.astype(np.float64)  # (Q, N)
    for line, rows, scores, best in zip(slow, log.rows, said.scores, said.best, strict=True):
        np.testing.assert_allclose(scores, line[rows], atol=1e-6)
        assert best == pytest.approx(line.max(), abs=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.35, 1.0])
def test_the_mix_is_that_of_serving(weight: float) -> None:
    """Every product shown: the scores, and the order, of the fused lists."""
    log = Log()
    log.rows = [np.arange(NUM_PRODUCTS)] * NUM_QUERIES
    index = VectorIndex.over(build_planned(log.products, seed=0))
    gains = [np.arange(float(NUM_PRODUCTS))] * NUM_QUERIES  # a row's number is its gain
    ordered = mixed_gains(*log.said(), log.rows, gains, dense_weight=weight)
    for at, found in enumerate(ordered):
        cosines, rows = index.search(log.vectors[at][None], NUM_PRODUCTS)
        words = log.lexical.search(log.queries[at], NUM_PRODUCTS)
        fused = fuse((rows[0], cosines[0]), words, dense_weight=weight)
        assert found.astype(int).tolist() == fused.rows.tolist()


def gains_by(scores: list[NDArray[np.float32]]) -> list[NDArray[np.float64]]:
    """Only the best one of what was shown is worth anything."""
    return [(one == one.max()).astype(np.float64) for one in scores]


def test_clicks_that_only_one_ranker_explains_are_given_to_it() -> None:
    log = Log()
    dense, lexical = log.said()
    by_dense = tune(dense, lexical, log.rows, gains_by(dense.scores), untrained=UNTRAINED)
    by_words = tune(dense, lexical, log.rows, gains_by(lexical.scores), untrained=UNTRAINED)
    assert by_dense.dense_weight > by_words.dense_weight
    assert by_dense.figures[1.0] == pytest.approx(1.0)
    assert by_dense.figures[0.0] < by_dense.figures[1.0]
    assert by_words.figures[0.0] > by_words.figures[1.0]
    assert by_words.num_queries == NUM_QUERIES


def test_the_floor_is_of_queries_that_were_not_trained_on() -> None:
    log = Log()
    dense, lexical = log.said()
    tuned = tune(dense, lexical, log.rows, gains_by(dense.scores), untrained=UNTRAINED)
    assert tuned.dense_floor == dense_floor_of(dense.best[::2])


@pytest.mark.parametrize("seed", range(5))
def test_the_mix_is_never_worse_on_these_clicks_than_either_alone(seed: int) -> None:
    log, rng = Log(seed), np.random.default_rng(seed)
    dense, lexical = log.said()
    gains = [rng.random(len(rows)) * (rng.random(len(rows)) < 0.5) for rows in log.rows]
    tuned = tune(dense, lexical, log.rows, gains, untrained=UNTRAINED)
    assert set(tuned.figures) == set(WEIGHTS)
    best_alone = max(tuned.figures[0.0], tuned.figures[1.0])
    assert tuned.figures[tuned.dense_weight] >= best_alone
    for weight in (0.0, 0.25, 0.6, 1.0):
        ordered = mixed_gains(dense, lexical, log.rows, gains, dense_weight=weight)
        assert ndcg_of_gains(ordered, k=10) == pytest.approx(tuned.figures[weight])


def test_too_few_clicks_leave_the_default() -> None:
    log = Log()
    dense, lexical = log.said()
    gains = gains_by(dense.scores)
    few = [gain * (number < MIN_QUERIES - 1) for number, gain in enumerate(gains)]
    tuned = tune(dense, lexical, log.rows, few, untrained=UNTRAINED)
    assert (tuned.dense_weight, tuned.num_queries) == (DEFAULT_DENSE_WEIGHT, MIN_QUERIES - 1)
    none = tune(*[ShownScores([], np.array([]))] * 2, [], [], untrained=np.array([], np.bool_))
    assert (none.dense_weight, none.figures, none.num_queries) == (DEFAULT_DENSE_WEIGHT, {}, 0)
