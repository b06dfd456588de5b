"""Hand-worked fusion first, then what the weights at the ends promise, then tuning and its law."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.metrics import ndcg_of_gains
from shared.retrieval.hybrid import (
    DEFAULT_DENSE_WEIGHT,
    MIN_QUERIES,
    WEIGHTS,
    _choose,
    _flatten,
    _log_likelihood,
    combine,
    fuse,
    reciprocal_rank_fusion,
    tune_dense_weight,
)

NOTHING = (np.empty(0, np.int64), np.empty(0, np.float32))


def ranking(scores_by_row):
    """A ranker's list: best first, equal scores in row order."""
    found = sorted(scores_by_row.items(), key=lambda pair: (-pair[1], pair[0]))
    rows = np.array([row for row, _ in found], np.int64)
    return rows, np.array([score for _, score in found], np.float32)


def cosines_from(scores_by_row):
    return lambda rows: np.array([scores_by_row[row] for row in rows.tolist()], np.float32)


def slow_fuse(dense, lexical, weight, cosine_of):
    """The formula, one row at a time."""
    cosine = dict(zip(dense[0].tolist(), dense[1].tolist(), strict=True))
    bm25 = dict(zip(lexical[0].tolist(), lexical[1].tolist(), strict=True))
    rows = sorted({*cosine, *bm25})
    cosine = {row: cosine.get(row, cosine_of.get(row, -1.0)) for row in rows}
    top_cosine = max(cosine.values(), default=-1.0)
    top_bm25 = max(bm25.values(), default=0.0)
    scores = {}
    for row in rows:
        meaning = (cosine[row] + 1) / (top_cosine + 1) if top_cosine > -1 else 0.0
        words = bm25.get(row, 0.0) / top_bm25 if top_bm25 > 0 else 0.0
        scores[row] = weight * meaning + (1 - weight) * words
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))


# Sixteenths, so that equal scores are common and no two scores differ by rounding alone.
cosines = st.integers(-15, 16).map(lambda number: number / 16)
bm25s = st.integers(1, 80).map(lambda number: number / 16)
rows_in = st.integers(0, 12)
dense_lists = st.dictionaries(rows_in, cosines, max_size=8)
lexical_lists = st.dictionaries(rows_in, bm25s, max_size=8)


def test_fusion_by_hand():
    found = fuse(
        ranking({4: 0.5, 2: 0.25}),
        ranking({7: 8.0, 2: 4.0}),
        dense_weight=0.5,
        dense_score_of=cosines_from({7: -0.25}),
    )
    # Row 4: 1/2 (1.5 / 1.5). Row 2: 1/2 (1.25 / 1.5) + 1/2 (4 / 8). Row 7: 1/2 (0.75 / 1.5) + 1/2.
    assert found.rows.tolist() == [7, 2, 4]
    assert found.scores == pytest.approx([0.75, 0.5 * (1.25 / 1.5) + 0.25, 0.5])
    assert found.dense.tolist() == [-0.25, 0.25, 0.5]
    assert found.lexical.tolist() == [8.0, 4.0, 0.0]


def test_a_cosine_that_nobody_computes_is_the_least_there_is():
    found = fuse(ranking({1: 0.5}), ranking({2: 3.0}), dense_weight=0.75)
    assert found.rows.tolist() == [1, 2]
    assert found.scores.tolist() == [0.75, 0.25]
    assert found.dense.tolist() == [0.5, -1.0]


def test_only_rows_without_a_cosine_are_asked_for_and_once():
    asked = []

    def cosine(rows):
        asked.append(rows.tolist())
        return np.zeros(len(rows), np.float32)

    dense = ranking({5: 0.5, 3: 0.25})
    fuse(dense, ranking({9: 1.0, 3: 2.0, 1: 3.0}), dense_weight=0.5, dense_score_of=cosine)
    fuse(dense, ranking({3: 2.0}), dense_weight=0.5, dense_score_of=cosine)
    assert asked == [[1, 9]]


def test_equal_scores_go_by_row():
    found = fuse(ranking({9: 0.5, 1: 0.5, 4: 0.5}), NOTHING, dense_weight=0.5)
    assert found.rows.tolist() == [1, 4, 9]


def test_lists_that_found_nothing():
    assert fuse(NOTHING, NOTHING, dense_weight=0.5).rows.tolist() == []
    words = fuse(NOTHING, ranking({3: 1.0, 2: 2.0}), dense_weight=0.9)
    assert words.rows.tolist() == [2, 3]
    meaning = fuse(ranking({3: -0.5, 2: 0.25}), NOTHING, dense_weight=0.1)
    assert meaning.rows.tolist() == [2, 3]
    assert np.isfinite([*words.scores, *meaning.scores]).all()


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_outside_0_to_1_is_our_own_mistake(weight):
    with pytest.raises(AssertionError, match="convex"):
        fuse(ranking({1: 0.5}), NOTHING, dense_weight=weight)


@given(dense_lists, lexical_lists, st.sampled_from(WEIGHTS[1:-1]), st.booleans())
def test_fuse_is_the_formula(dense, lexical, weight, exact):
    cosine_of = {row: (row - 6) / 16 for row in range(13)} if exact else {}
    found = fuse(
        ranking(dense),
        ranking(lexical),
        dense_weight=weight,
        dense_score_of=cosines_from(cosine_of) if exact else None,
    )
    slow = slow_fuse(ranking(dense), ranking(lexical), weight, cosine_of)
    # The two may round a sum apart, so what is held is that every score is where it belongs.
    assert sorted(found.rows.tolist()) == sorted(row for row, _ in slow)
    assert found.scores == pytest.approx([score for _, score in slow])
    assert found.scores == pytest.approx([dict(slow)[row] for row in found.rows.tolist()])


@given(dense_lists, lexical_lists)
def test_weight_0_is_the_lexical_order_then_the_rest_by_cosine(dense, lexical):
    found = fuse(ranking(dense), ranking(lexical), dense_weight=0.0)
    rest = {row: cosine for row, cosine in dense.items() if row not in lexical}
    assert found.rows.tolist() == [*ranking(lexical)[0], *ranking(rest)[0]]


@given(dense_lists, lexical_lists)
def test_weight_1_is_the_dense_order_then_the_rest_by_words(dense, lexical):
    found = fuse(ranking(dense), ranking(lexical), dense_weight=1.0)
    rest = {row: score for row, score in lexical.items() if row not in dense}
    assert found.rows.tolist() == [*ranking(dense)[0], *ranking(rest)[0]]


@given(dense_lists, lexical_lists)
def test_weight_1_with_every_cosine_known_is_the_order_by_cosine(dense, lexical):
    cosine_of = {row: (5 * row % 13 - 6) / 16 for row in range(13)}
    found = fuse(
        ranking(dense),
        ranking(lexical),
        dense_weight=1.0,
        dense_score_of=cosines_from(cosine_of),
    )
    known = {row: dense.get(row, cosine_of[row]) for row in {*dense, *lexical}}
    assert found.rows.tolist() == ranking(known)[0].tolist()


def test_the_ends_keep_scores_apart_that_normalizing_would_round_together():
    tiny = ranking({2: 1e-30, 1: 0.0, 5: 0.75})
    assert fuse(tiny, NOTHING, dense_weight=1.0).rows.tolist() == [5, 2, 1]


@given(dense_lists, lexical_lists, st.sampled_from(WEIGHTS))
def test_scores_lie_in_0_to_1_and_never_rise(dense, lexical, weight):
    scores = fuse(ranking(dense), ranking(lexical), dense_weight=weight).scores
    assert ((scores >= 0) & (scores <= 1 + 1e-6)).all()
    assert (np.diff(scores) <= 0).all()


def test_reciprocal_rank_fusion_by_hand():
    rows, scores = reciprocal_rank_fusion([np.array([7, 2]), np.array([2, 5, 7])])
    assert rows.tolist() == [2, 7, 5]
    assert scores == pytest.approx([1 / 62 + 1 / 61, 1 / 61 + 1 / 63, 1 / 62])


def test_reciprocal_rank_fusion_of_one_ranking_and_of_none():
    assert reciprocal_rank_fusion([np.array([5, 1, 3])])[0].tolist() == [5, 1, 3]
    assert reciprocal_rank_fusion([])[0].tolist() == []
    assert reciprocal_rank_fusion([np.array([9]), np.array([4])])[0].tolist() == [4, 9]


# -- tuning ---------------------------------------------------------------------------------------


def clicks(seed, *, num_queries=MIN_QUERIES, dense_helps=1.0, lexical_helps=1.0):
    """Shown products of which some are relevant, and two rankers that know something of it."""
    rng = np.random.default_rng(seed)
    rows, gains, dense, lexical = [], [], [], []
    for _ in range(num_queries):
        size = int(rng.integers(2, 25))
        relevant = rng.random(size) < 0.3
        relevant[0] = True
        rows.append(np.sort(rng.permutation(200)[:size]))
        gains.append(relevant * rng.uniform(0.5, 3.0, size))
        cosine = 0.3 + 0.1 * (dense_helps * relevant + rng.normal(size=size))
        dense.append(np.clip(cosine, -0.9, 1.0).astype(np.float32))
        words = lexical_helps * relevant + rng.normal(size=size)
        lexical.append((5 * np.maximum(words, 0)).astype(np.float32))  # some share no word
    return {
        "rows": rows,
        "gains": gains,
        "dense": dense,
        "lexical": lexical,
        "dense_max": np.array([part.max() + 0.05 for part in dense]),
        "lexical_max": np.array([part.max() + 2.0 for part in lexical]),
    }


def alone(shown, ranker):
    """Pooled nDCG@10 of one ranker, by plain sorting; rows it says nothing of go by the other."""
    ordered = []
    for rows, gains, dense, lexical in zip(
        shown["rows"], shown["gains"], shown["dense"], shown["lexical"], strict=True
    ):
        key = {
            "dense": lambda i, dense=dense, rows=rows: (-dense[i], rows[i]),
            "lexical": lambda i, d=dense, x=lexical, rows=rows: (
                -x[i],
                -d[i] * (x[i] == 0),
                rows[i],
            ),
        }[ranker]
        ordered.append(gains[sorted(range(len(rows)), key=key)])
    return ndcg_of_gains(ordered, k=10)


@given(
    st.integers(0, 10_000),
    st.integers(MIN_QUERIES, 40),
    st.floats(-1.0, 2.0),
    st.floats(-1.0, 2.0),
)
def test_tuned_is_never_worse_than_the_better_ranker_alone(seed, queries, dense, lexical):
    shown = clicks(seed, num_queries=queries, dense_helps=dense, lexical_helps=lexical)
    tuned = tune_dense_weight(**shown)
    assert tuned.figures[0.0] == pytest.approx(alone(shown, "lexical"))
    assert tuned.figures[1.0] == pytest.approx(alone(shown, "dense"))
    best_alone = max(tuned.figures[0.0], tuned.figures[1.0])
    assert tuned.figures[tuned.dense_weight] >= best_alone
    assert tuned.num_queries == queries


def test_figures_order_as_serving_does():
    shown = clicks(3)
    figures = tune_dense_weight(**shown).figures
    for weight in WEIGHTS:
        ordered = []
        for number, rows in enumerate(shown["rows"]):
            scores = combine(
                shown["dense"][number],
                shown["lexical"][number],
                dense_max=shown["dense_max"][number],
                lexical_max=shown["lexical_max"][number],
                dense_weight=weight,
            )
            order = sorted(range(len(rows)), key=lambda i, s=scores, r=rows: (-s[i], r[i]))
            ordered.append(shown["gains"][number][order])
        if 0 < weight < 1:  # the ends are held against the rankers alone, above
            assert figures[weight] == pytest.approx(ndcg_of_gains(ordered, k=10))


def test_a_ranker_that_knows_nothing_gets_no_weight():
    assert tune_dense_weight(**clicks(1, num_queries=300, dense_helps=-1.0)).dense_weight == 0.0
    assert tune_dense_weight(**clicks(1, num_queries=300, lexical_helps=-1.0)).dense_weight == 1.0


def test_two_rankers_that_know_something_together_know_more():
    tuned = tune_dense_weight(**clicks(1, num_queries=300))
    assert 0 < tuned.dense_weight < 1
    assert tuned.figures[tuned.dense_weight] > max(tuned.figures[0.0], tuned.figures[1.0]) + 0.01


def test_the_scale_is_that_of_the_whole_catalog_not_of_what_was_shown():
    # Row 0 is right. Its cosine is 1/8 of the way ahead, (1.5 - 1.25) / 2, and so is row 1's BM25,
    # 2 / 16 of the best in the catalog: row 0 comes first from w = 1/2 on, there as the lower row.
    # By the best of what was shown, 0.5 and 2, it would take w > 6/7.
    tuned = tune_dense_weight(
        rows=[np.array([0, 1])] * MIN_QUERIES,
        gains=[np.array([1.0, 0.0])] * MIN_QUERIES,
        dense=[np.array([0.5, 0.25], np.float32)] * MIN_QUERIES,
        lexical=[np.array([0.0, 2.0], np.float32)] * MIN_QUERIES,
        dense_max=np.full(MIN_QUERIES, 1.0),
        lexical_max=np.full(MIN_QUERIES, 16.0),
    )
    right = [weight for weight, figure in tuned.figures.items() if figure == 1.0]
    assert right == list(WEIGHTS[10:])
    assert tuned.dense_weight in right


def test_the_choice_by_hand():
    figures = {0.0: 0.70, 0.25: 0.72, 0.5: 0.69, 0.75: 0.71, 1.0: 0.60}
    # 0.5 is the likeliest, but worse here than BM25 alone.
    likelihood = {0.0: -9.0, 0.25: -5.0, 0.5: -3.0, 0.75: -4.0, 1.0: -3.5}
    assert _choose(figures, likelihood) == 0.75
    assert _choose({**figures, 0.5: 0.70}, likelihood) == 0.5
    assert _choose({**figures, 0.25: 0.1, 0.75: 0.1}, likelihood) == 0.0


def test_of_equally_likely_weights_the_nearest_to_the_default_is_chosen():
    assert DEFAULT_DENSE_WEIGHT == 0.6
    equal = {0.0: 0.5, 0.35: 0.5, 0.7: 0.5, 1.0: 0.5}
    assert _choose(equal, dict.fromkeys(equal, -2.0)) == 0.7


def shoppers(seed, *, num_queries, weight, steepness):
    """Shown products, and clicks that follow the fused score at a known weight and steepness."""
    shown, rng = clicks(seed, num_queries=num_queries), np.random.default_rng(seed)
    for number, rows in enumerate(shown["rows"]):
        scores = combine(
            shown["dense"][number],
            shown["lexical"][number],
            dense_max=shown["dense_max"][number],
            lexical_max=shown["lexical_max"][number],
            dense_weight=weight,
        )
        odds = np.exp(steepness * scores)
        shown["gains"][number] = rng.multinomial(1, odds / odds.sum()).astype(np.float64)
        assert len(rows) == len(scores)
    return shown


@pytest.mark.parametrize("weight", [0.3, 0.8])
def test_the_weight_that_shoppers_clicked_by_is_found(weight):
    shown = shoppers(4, num_queries=4000, weight=weight, steepness=12.0)
    assert tune_dense_weight(**shown).dense_weight == pytest.approx(weight, abs=0.051)


@given(st.integers(0, 1000), st.sampled_from(WEIGHTS))
def test_the_likelihood_is_the_best_of_any_steepness(seed, weight):
    shown = clicks(seed, num_queries=5)
    flat = _flatten(**shown)
    scores = [
        combine(dense, lexical, dense_max=most, lexical_max=words, dense_weight=weight)
        for dense, lexical, most, words in zip(
            *(shown[name] for name in ("dense", "lexical", "dense_max", "lexical_max")), strict=True
        )
    ]
    tried = [
        sum(
            gains @ (s * score - np.log(np.exp(s * score).sum()))
            for gains, score in zip(shown["gains"], scores, strict=True)
        )
        for s in np.linspace(0, 128, 1025)
    ]
    found = _log_likelihood(flat)[weight]
    assert max(tried) <= found + 1e-9
    assert found == pytest.approx(max(tried), rel=0.01)


def test_a_few_dozen_queries_tell_the_better_ranker():
    """At each of ten logs of 30 queries the weight lies on the side of the one that knows more."""
    for seed in range(10):
        by_dense = shoppers(seed, num_queries=30, weight=0.95, steepness=40.0)
        by_words = shoppers(seed, num_queries=30, weight=0.05, steepness=40.0)
        dense, words = (tune_dense_weight(**log).dense_weight for log in (by_dense, by_words))
        assert words < 0.5 < dense


@pytest.mark.parametrize("num_queries", [0, 1, MIN_QUERIES - 1])
def test_too_few_queries_leave_the_default(num_queries):
    tuned = tune_dense_weight(**clicks(5, num_queries=num_queries, dense_helps=-1.0))
    assert tuned.dense_weight == DEFAULT_DENSE_WEIGHT
    assert tuned.num_queries == num_queries
    assert len(tuned.figures) == (len(WEIGHTS) if num_queries else 0)


def test_queries_without_a_gain_do_not_count():
    shown = clicks(5, num_queries=MIN_QUERIES + 5, dense_helps=-1.0)
    for gains in shown["gains"][:6]:
        gains[:] = 0.0
    tuned = tune_dense_weight(**shown)
    assert tuned.num_queries == MIN_QUERIES - 1
    assert tuned.dense_weight == DEFAULT_DENSE_WEIGHT


def test_a_query_that_showed_nothing_or_matched_no_word_does_no_harm():
    shown = clicks(6)
    without = tune_dense_weight(**shown)
    shown["rows"].append(np.empty(0, np.int64))
    for name in ("gains", "dense", "lexical"):
        shown[name].append(np.empty(0))
    shown["dense_max"] = np.append(shown["dense_max"], 0.5)
    shown["lexical_max"] = np.append(shown["lexical_max"], 0.0)
    assert tune_dense_weight(**shown) == without


def test_one_number_a_shown_product():
    shown = clicks(6)
    shown["lexical"][3] = shown["lexical"][3][:-1]
    with pytest.raises(AssertionError, match="one number a shown product"):
        tune_dense_weight(**shown)
