"""The cross-site table: only who agrees is asked, and for no more than was agreed."""

from pathlib import Path

import pytest
import torch
from flwr.app import RecordDict
from small_federation import (
    BASE,
    INITIAL,
    QUERIES,
    STEP,
    SmallGrid,
    SmallRegion,
    fails,
    run_server_app,
)

from server.history import History
from shared import wire
from shared.adapter import Adapter, save_adapter
from shared.errors import FederationError

ROUNDS = 3


def steps(number: float) -> Adapter:
    return {name: tensor + number * STEP for name, tensor in INITIAL.items()}


@pytest.fixture
def history(tmp_path: Path) -> History:
    history = History(tmp_path / "headquarters")
    history.start(INITIAL, base_fingerprint=BASE)
    for number in (1, 2, 10):
        path = history.folder / "references" / f"{number}.safetensors"
        save_adapter(path, steps(number / 4), {})
    return history


@pytest.fixture
def grid() -> SmallGrid:
    """East measures and shares, north measures, south does neither, west only shares."""
    return SmallGrid(
        [
            SmallRegion("east", in_matrix=True, shares_local=True),
            SmallRegion("north", in_matrix=True, measure=lambda steps: 0.3 + 0.1 * steps),
            SmallRegion("south"),
            SmallRegion("west", shares_local=True),
        ]
    )


def make_table(grid: SmallGrid, history: History) -> dict[str, dict[str, float]]:
    config = {"run-dir": str(history.folder.parent), "region-wait-s": 0, "task": "matrix"}
    run_server_app(grid, {**config, "num-rounds": ROUNDS})
    table = history.matrix()
    assert table is not None
    return table["rows"]  # type: ignore[no-any-return]


def test_only_who_agrees_gets_any_message(grid: SmallGrid, history: History) -> None:
    make_table(grid, history)
    assert [region.purposes for region in grid.regions] == [
        ["describe", *["local"] * ROUNDS, "matrix"],
        ["describe", "matrix"],
        ["describe"],
        ["describe", *["local"] * ROUNDS],
    ]


def test_every_adapter_is_measured_in_every_agreeing_region(
    grid: SmallGrid, history: History
) -> None:
    rows = make_table(grid, history)
    expected = {
        "release 0": 0,
        "release 1": 0.25,
        "release 2": 0.5,
        "release 10": 2.5,
        "east alone": ROUNDS,
        "west alone": ROUNDS,
    }
    assert rows == {
        name: {
            "east": pytest.approx(0.5 + 0.05 * number),
            "north": pytest.approx(0.3 + 0.1 * number),
        }
        for name, number in expected.items()
    }
    table = history.matrix()
    assert table is not None
    assert table["num_queries"] == {"east": QUERIES, "north": QUERIES}
    assert table["metric"] == "ndcg@10"
    assert table["rejected"] == []


def test_an_adapter_trained_alone_starts_from_the_base_and_goes_on_from_itself(
    grid: SmallGrid, history: History
) -> None:
    make_table(grid, history)
    trained = [one.request for one in grid.regions[0].asked if one.purpose == wire.LOCAL]
    assert [request.server_round for request in trained] == [1, 2, 3]
    for number, request in enumerate(trained):
        assert all(torch.equal(request.adapter[k], steps(number)[k]) for k in INITIAL)
    rates = [request.config.learning_rate for request in trained]
    assert rates == sorted(rates, reverse=True)


def test_without_releases_there_is_the_base(tmp_path: Path) -> None:
    history = History(tmp_path / "headquarters")
    history.start(INITIAL, base_fingerprint=BASE)
    grid = SmallGrid([SmallRegion("north", in_matrix=True)])
    assert make_table(grid, history) == {"release 0": {"north": 0.5}}


@pytest.mark.parametrize("failing_round", [1, 2])
def test_a_region_that_fails_alone_has_no_row(
    failing_round: int, grid: SmallGrid, history: History
) -> None:
    east = grid.regions[0]

    def fail(reply: RecordDict) -> RecordDict:
        return fails(reply) if east.asked[-1].request.server_round == failing_round else reply

    east.spoilt["local"] = fail
    rows = make_table(grid, history)
    assert "east alone" not in rows
    assert "west alone" in rows
    assert east.purposes == ["describe", *["local"] * failing_round, "matrix"]


def test_a_region_that_measures_badly_is_named_and_the_rest_is_the_table(
    grid: SmallGrid, history: History
) -> None:
    grid.regions[0].spoilt["matrix"] = fails
    rows = make_table(grid, history)
    assert all(row.keys() == {"north"} for row in rows.values())
    table = history.matrix()
    assert table is not None
    assert table["rejected"] == [{"region": "east", "reason": "region failed: ValueError"}]
    assert table["num_queries"].keys() == {"north"}


def test_where_nobody_agrees_nobody_is_asked_and_it_is_said_what_to_set(
    history: History,
) -> None:
    grid = SmallGrid([SmallRegion("south"), SmallRegion("west", shares_local=True)])
    with pytest.raises(FederationError, match=r"no region agrees .*; set sharing\.matrix"):
        make_table(grid, history)
    assert [region.purposes for region in grid.regions] == [["describe"], ["describe"]]
    assert history.matrix() is None


def test_a_table_is_no_training(grid: SmallGrid, history: History) -> None:
    make_table(grid, history)
    assert history.rounds() == []
    assert history.gate() is None
    assert history.regions().keys() == {"east", "north", "south", "west"}
