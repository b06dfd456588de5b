"""From the scores of single queries to what the tables say; nothing here trains or ranks.

A figure is the mean over queries, then regions, then seeds, each counting the same at its level.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from shared.randomization import paired_randomization_test
from simulations.comparison.measure import SETS, TEST, UNION, UNION_SETS
from simulations.comparison.spec import HELD, Experiment, MethodSpec
from simulations.comparison.statistics import (
    LEVEL,
    RegionTests,
    Stratum,
    bootstrap_means,
    first_reaching,
    gap_closed,
    gap_interval,
    holm,
    interval,
    mean_scores,
    region_tests,
    text_means,
    verdicts,
)
from simulations.table import JUDGED

NDCG: Final = "ndcg@10"
REACHED: Final = 0.95  # of pooled quality
_SEED: Final = 0  # of resampling and swaps: equal scores give equal tables


def summarize_experiment(
    experiment: Experiment, scores: pl.DataFrame, facts: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Every figure of an experiment.

    Args:
        experiment: what was asked for.
        scores: data, seed, method and `SCORE_SCHEMA`, one row a query.
        facts: of every world: data, seed, and by method what its training took.

    Returns:
        What `result.json` holds, but for how it was made.
    """
    names = [method.name for method in experiment.method]
    tables = []
    for data in experiment.data:
        part = scores.filter(pl.col("data") == data.label)
        mine = [world for world in facts if world["data"] == data.label]
        tables.append({"data": data.label, **_summarize_data(experiment, names, part, mine)})
    _correct(tables)
    return {
        "experiment": experiment.model_dump(mode="json"),
        "methods": names,
        "tables": tables,
        "worlds": list(facts),
    }


def _summarize_data(
    experiment: Experiment,
    names: Sequence[str],
    scores: pl.DataFrame,
    facts: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    tests = scores.filter(pl.col("set") == TEST)
    strata = strata_of(tests, names)
    draws = bootstrap_means(strata, seed=_SEED)
    at = {name: number for number, name in enumerate(names)}
    means = mean_scores(strata)
    regions = _regions(experiment, names, scores)
    federated = [method for method in experiment.method if method.kind in HELD]
    return {
        "num_queries": len(text_means(strata)),
        "methods": {
            name: {
                "mean": float(means[at[name]]),
                "interval": list(interval(draws[:, at[name]])),
                "by_seed": _by_seed(tests, name),
                "worst": _worst(experiment, regions, name),
                "other_metrics": _other_metrics(scores, name),
            }
            for name in names
        },
        "sets": {which: _set_means(scores, names, which) for which in SETS},
        "regions": regions,
        "federated": {
            method.name: _held_against(experiment, method, scores, means, draws, at, facts)
            for method in federated
        },
        "tests": _tests(pairs_of(experiment), names, strata),
        "union": _union(experiment, names, scores),
        "equal_training": _equal_training(experiment, facts),
    }


def strata_of(scores: pl.DataFrame, names: Sequence[str], *, metric: str = NDCG) -> list[Stratum]:
    """Scores by seed and region, with equal texts numbered alike.

    Args:
        scores: of one data set and one set of queries.
        names: methods, M of them; each has the same queries.
        metric: a column.
    """
    wide = scores.pivot(on="method", index=("seed", "region", "query"), values=metric)
    wide = wide.sort("seed", "region", "query").with_columns(
        text=pl.col("query").rank("dense").cast(pl.Int64) - 1,
        number=pl.col("seed").rank("dense").cast(pl.Int64) - 1,
    )
    return [
        Stratum(
            seed=int(part["number"][0]),
            text=part["text"].to_numpy(),
            scores=part.select(names).to_numpy().astype(np.float64),
        )
        for _, part in wide.group_by("seed", "region", maintain_order=True)
    ]


def _set_means(scores: pl.DataFrame, names: Sequence[str], which: str) -> dict[str, Any]:
    part = scores.filter(pl.col("set") == which)
    if part.is_empty():
        return {"num_queries": 0, "methods": {}}
    strata = strata_of(part, names)
    means, draws = mean_scores(strata), bootstrap_means(strata, seed=_SEED)
    rows = {
        name: {"mean": float(means[at]), "interval": list(interval(draws[:, at]))}
        for at, name in enumerate(names)
    }
    return {"num_queries": sum(len(stratum.text) for stratum in strata), "methods": rows}


def _by_seed(scores: pl.DataFrame, name: str) -> dict[str, float]:
    """Means of one set, over queries, then regions."""
    part = scores.filter(pl.col("method") == name)
    regions = part.group_by("seed", "region").agg(pl.col(NDCG).mean())
    means = regions.group_by("seed").agg(pl.col(NDCG).mean()).sort("seed")
    return {str(seed): float(mean) for seed, mean in means.rows()}


def _other_metrics(scores: pl.DataFrame, name: str) -> dict[str, float]:
    part = scores.filter((pl.col("set") == TEST) & (pl.col("method") == name))
    metrics = ("recall@10", "mrr@10")
    regions = part.group_by("seed", "region").agg(pl.col(metrics).mean())
    seeds = regions.group_by("seed").agg(pl.col(metrics).mean())
    return {metric: float(seeds[metric].mean()) for metric in metrics}  # type: ignore[arg-type]


# -- regions ---------------------------------------------------------------------------------------


def _regions(
    experiment: Experiment, names: Sequence[str], scores: pl.DataFrame
) -> list[dict[str, Any]]:
    """One row a region and seed, with what may be claimed of federated methods against alone."""
    rows = []
    tests = scores.filter(pl.col("set") == TEST)
    for (seed,), world in tests.group_by("seed", maintain_order=True):
        found = []
        for (region,), part in world.group_by("region", maintain_order=True):
            by_method = {name: _column(part, name) for name in names}
            found.append({"seed": seed, "region": region, "scores": by_method})
        rows += _claimed(experiment, found)
    return rows


def _column(part: pl.DataFrame, method: str) -> NDArray[np.float64]:
    """A method's scores on a region's queries, by query."""
    return part.filter(pl.col("method") == method).sort("query")[NDCG].to_numpy()


def _claimed(experiment: Experiment, regions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    what = experiment.experiment
    rows = []
    for row in regions:
        count = len(next(iter(row["scores"].values())))
        rows.append(
            {
                "seed": row["seed"],
                "region": row["region"],
                "num_queries": count,
                "counted": count >= what.min_queries,
                "means": {name: float(np.mean(found)) for name, found in row["scores"].items()},
                "claims": {},
            }
        )
    for method in experiment.method:
        alone = experiment.alone_of(method) if method.kind in HELD else None
        if alone is None:
            continue
        tests = [
            _region_test(row["scores"], method.name, alone, what.margin)
            if kept["counted"]
            else None
            for row, kept in zip(regions, rows, strict=True)
        ]
        for kept, test, verdict in zip(rows, tests, verdicts(tests), strict=True):
            p = test._asdict() if test else None
            kept["claims"][method.name] = {"against": alone, "verdict": verdict, "p": p}
    return rows


def _region_test(
    scores: Mapping[str, NDArray[np.float64]], a: str, b: str, margin: float
) -> RegionTests:
    return region_tests(scores[a], scores[b], margin=margin, seed=_SEED)


def _worst(experiment: Experiment, regions: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Mean over seeds of the worst region that has queries enough; None where a seed has none."""
    worst = []
    for seed in experiment.experiment.seeds:
        counted = [row for row in regions if row["seed"] == seed and row["counted"]]
        if not counted:
            return None
        worst.append(min(row["means"][name] for row in counted))
    return float(np.mean(worst))


# -- federated methods -----------------------------------------------------------------------------


def _held_against(
    experiment: Experiment,
    method: MethodSpec,
    scores: pl.DataFrame,
    means: NDArray[np.float64],
    draws: NDArray[np.float64],
    at: Mapping[str, int],
    facts: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """A federated method, personalized or not, beside pooling and beside each region alone."""
    pooled, alone = experiment.pooled_of(method), experiment.alone_of(method)
    mine, tests = at[method.name], scores.filter(pl.col("set") == TEST)
    row: dict[str, Any] = {"pooled": pooled, "alone": alone}
    if pooled is not None:
        row |= _ratio(means, draws, mine, at[pooled])
        row["reached"] = _reached(method.name, _by_seed(tests, pooled), facts)
    if pooled is not None and alone is not None:
        low, top = at[alone], at[pooled]
        found = gap_interval(draws[:, low], draws[:, mine], draws[:, top])
        row["gap_closed"] = gap_closed(float(means[low]), float(means[mine]), float(means[top]))
        row["gap"] = float(means[top] - means[low])
        row["gap_closed_interval"] = None if found is None else list(found)
    return row


def _reached(
    name: str, pooled: Mapping[str, float], facts: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """By seed: the first round at 95 % of the pool's test nDCG@10, and the bytes up to its end."""
    rows = []
    for world in facts:
        mine = world["methods"][name]
        if "curve" in mine:
            target = REACHED * pooled[str(world["seed"])]
            first = first_reaching(mine["curve"], target)
            sent = None if first is None else sum(mine["bytes"][: first + 1])
            rows.append({"seed": world["seed"], "target": target, "round": first, "bytes": sent})
    return rows


# -- human judgments -------------------------------------------------------------------------------


def _union(
    experiment: Experiment, names: Sequence[str], scores: pl.DataFrame
) -> dict[str, dict[str, Any]] | None:
    """By set: methods with one encoder for all regions over all catalogs; None without judgments.

    The judged queries are the same under every seed, so a query is drawn with all of them.
    """
    found = {which: scores.filter(pl.col("set") == which) for which in UNION_SETS}
    mine = [name for name in names if name in found[UNION]["method"].unique()]
    if not mine:
        return None
    return {which: _judged(experiment, mine, part) for which, part in found.items()}


def _judged(experiment: Experiment, names: Sequence[str], scores: pl.DataFrame) -> dict[str, Any]:
    strata = strata_of(scores, names)
    means, draws = mean_scores(strata), bootstrap_means(strata, seed=_SEED)
    judged = dict(scores.group_by("method").agg(pl.col(JUDGED).mean()).iter_rows())
    at = {name: number for number, name in enumerate(names)}
    pairs = [(a, b) for a, b in pairs_of(experiment) if a in at and b in at]
    return {
        "num_queries": len(text_means(strata)),
        "methods": {
            name: {
                "mean": float(means[column]),
                "interval": list(interval(draws[:, column])),
                "by_seed": _by_seed(scores, name),
                JUDGED: judged[name],
            }
            for name, column in at.items()
        },
        "ratios": {
            method.name: _ratio(means, draws, at[method.name], at[pooled]) | {"pooled": pooled}
            for method in experiment.method
            if method.kind in HELD
            and method.name in at
            and (pooled := experiment.pooled_of(method)) in at
        },
        "tests": _tests(pairs, names, strata),
    }


def _ratio(
    means: NDArray[np.float64], draws: NDArray[np.float64], mine: int, top: int
) -> dict[str, Any]:
    """Of pooled quality; without an interval where a draw leaves the pool nothing."""
    sure = bool(np.all(draws[:, top] > 0))
    return {
        "ratio": float(means[mine] / means[top]) if means[top] > 0 else None,
        "ratio_interval": list(interval(draws[:, mine] / draws[:, top])) if sure else None,
    }


# -- tests -----------------------------------------------------------------------------------------


def pairs_of(experiment: Experiment) -> list[tuple[str, str]]:
    """The differences that a reader will draw conclusions from.

    Each federated or personalized method against each region alone, pooling, the base, the first
    federated method of the file and what it is made of; each hybrid against words and its encoder.
    """
    first, words = experiment.first("federated"), experiment.first("bm25")
    base = experiment.first("zero_shot")
    pairs: list[tuple[str, str | None]] = []
    for method in experiment.method:
        if method.kind in HELD:
            named = (experiment.alone_of(method), experiment.pooled_of(method), base, first)
            others = dict.fromkeys((*named, method.of))  # each once
            pairs += [(method.name, other) for other in others]
        elif method.kind == "hybrid":
            pairs += [(method.name, words), (method.name, method.of)]
    return [(a, b) for a, b in pairs if b is not None and a != b]


def _tests(
    pairs: Sequence[tuple[str, str]], names: Sequence[str], strata: Sequence[Stratum]
) -> list[dict[str, Any]]:
    means, at = text_means(strata), {name: number for number, name in enumerate(names)}
    rows = []
    for a, b in pairs:
        first, second = means[:, at[a]], means[:, at[b]]
        rows.append(
            {
                "a": a,
                "b": b,
                "difference": float(np.mean(first - second)),
                "p": paired_randomization_test(first, second, seed=_SEED),
                "num_queries": len(first),
            }
        )
    return rows


def _correct(tables: Sequence[dict[str, Any]]) -> None:
    """Holm over all tests of the experiment, since a reader sees them all."""
    tests = [test for table in tables for test in table["tests"]]
    tests += [
        test
        for table in tables
        if table["union"]
        for part in table["union"].values()
        for test in part["tests"]
    ]
    for test, adjusted in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = adjusted
        test["rarely_luck"] = adjusted <= LEVEL


def _equal_training(experiment: Experiment, facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Steps and examples of every trained method, and whether they are equal.

    Pooled batches are filled across regions, so the pool takes up to one step a region and pass
    fewer; examples are equal to the last one.
    """
    trained = {m.name: m for m in experiment.method if m.trained}
    rows = [
        {
            "seed": world["seed"],
            "steps": {name: world["methods"][name]["steps"] for name in trained},
            "examples": {name: world["methods"][name]["examples"] for name in trained},
        }
        for world in facts
    ]
    compared = [name for name, method in trained.items() if not method.unequal]
    equal = all(len({row["examples"][name] for name in compared}) <= 1 for row in rows)
    reasons = {method.name: method.unequal for method in experiment.method if method.unequal}
    return {"equal": equal, "unequal": reasons, "worlds": rows}
