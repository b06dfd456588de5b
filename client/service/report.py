"""What a region learns from its own shoppers: how it is used, and which of two ways they prefer."""

from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from client.service.events import EventTables, compared_ways, find_bots, read_tables
from shared.interleaving import Verdict, verdict


@dataclass(frozen=True)
class Usage:
    """Answers of one ranker and release, bots left out.

    Attributes:
        answers: given.
        clicked: answers with a click, a cart or a purchase on them.
        first_position: mean position of the first of them, 1-based; None without any.
    """

    ranker: str
    release: int
    answers: int
    clicked: int
    first_position: float | None


@dataclass(frozen=True)
class Experiment:
    """Two ways to answer in one list, under one release, bots left out.

    Attributes:
        a: the first way, as region.toml named it when the answers were given.
        b: the second one.
        release: that was current.
        answers: in which the two were interleaved.
        verdict: what their clicks say.
    """

    a: str
    b: str
    release: int
    answers: int
    verdict: Verdict


@dataclass(frozen=True)
class ServiceReport:
    """What `fedshelf region report` says.

    Attributes:
        usage: by ranker and release, most used first.
        num_bots: shoppers whose answers and events are left out.
        experiments: each pair of ways under each release, in order of their first answers.
    """

    usage: list[Usage]
    num_bots: int
    experiments: list[Experiment]

    def to_json(self) -> dict[str, object]:
        """As plain values."""
        return asdict(self)


def report(path: Path) -> ServiceReport:
    """Read a region's event store.

    Args:
        path: of the store.

    Raises:
        DataError: missing, damaged or not a store.
    """
    return report_of(read_tables(path))


def report_of(tables: EventTables) -> ServiceReport:
    """As `report`, of tables that have been read."""
    found = find_bots(tables.requests, tables.impressions, tables.events)
    bots = pl.concat([tables.bots["user_key"], found["user_key"]]).unique()
    requests = tables.requests.filter(~pl.col("user_key").is_in(bots.implode()))
    events = tables.events.filter(~pl.col("doubled") & ~pl.col("user_key").is_in(bots.implode()))
    shown = requests.join(tables.impressions, left_on="number", right_on="request")
    acted = shown.join(
        events.select("request_id", "product_id").unique(), on=("request_id", "product_id")
    )
    return ServiceReport(
        usage=_usage(requests, acted),
        num_bots=len(bots),
        experiments=_experiments(_wins(shown, acted)),
    )


def _usage(requests: pl.DataFrame, acted: pl.DataFrame) -> list[Usage]:
    first = acted.group_by("number").agg(pl.col("position").min().alias("first"))
    grouped = (
        requests.join(first, on="number", how="left")
        .group_by("ranker", "release")
        .agg(
            pl.len().cast(pl.Int64).alias("answers"),
            pl.col("first").is_not_null().sum().cast(pl.Int64).alias("clicked"),
            pl.col("first").mean().alias("first_position"),
        )
        .sort(["answers", "ranker", "release"], descending=[True, False, False])
    )
    return [Usage(**row) for row in grouped.iter_rows(named=True)]


def _wins(shown: pl.DataFrame, acted: pl.DataFrame) -> pl.DataFrame:
    """Clicked products of each team for every interleaved answer: ranker, release, a, b."""
    counts = acted.group_by("number").agg(
        *((pl.col("team") == team).sum().cast(pl.Int64).alias(team) for team in ("a", "b"))
    )
    interleaved = shown.filter(pl.col("team") != "").select("number", "ranker", "release").unique()
    return interleaved.join(counts, on="number", how="left").fill_null(0).sort("number")


def _experiments(wins: pl.DataFrame) -> list[Experiment]:
    """What is of other ways, or of another release, is another question: nothing is pooled."""
    groups = wins.partition_by("ranker", "release", as_dict=True, maintain_order=True)
    return [
        Experiment(*compared_ways(ranker), release, group.height, _verdict(group))
        for (ranker, release), group in groups.items()
    ]


def _verdict(wins: pl.DataFrame) -> Verdict:
    a, b = (int((wins[x] > wins[y]).sum()) for x, y in (("a", "b"), ("b", "a")))
    ties = int(((wins["a"] == wins["b"]) & (wins["a"] > 0)).sum())
    return verdict(a, b, ties)
