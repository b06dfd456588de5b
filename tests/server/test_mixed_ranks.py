"""Regions of different ranks in one round: who may, what is counted, and what comes of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from numpy.typing import NDArray
from small_federation import BASE, STEP, SmallGrid, SmallRegion, run_server_app

from server.aggregator import Aggregator, Outcome
from server.app import run_rounds
from server.handshake import handshake
from server.history import History
from shared import wire
from shared.adapter import Adapter, add, completed, residual_names, schema_hash, within_rank
from shared.config import FLOAT32, ROBUST, RULES, STRATEGIES, FederationConfig, parse_run_config
from shared.errors import FederationError
from shared.records import record_bytes

RANK, KEPT = 8, 3
SHAPES = {
    "fusion/gate": (2,),
    "image/conv.lora_A.weight": (RANK, 11, 1, 1),
    "image/conv.lora_B.weight": (12, RANK, 1, 1),
    "text/linear.lora_A.weight": (RANK, 14),
    "text/linear.lora_B.weight": (13, RANK),
}
LAYERS = ("image/conv", "text/linear")
RANKS, WEIGHTS = {"east": 2, "north": 4, "south": 8}, {"east": 3, "north": 1, "south": 6}


def draw(seed: int, scale: float = 1.0) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    return {k: scale * torch.randn(shape, generator=generator) for k, shape in SHAPES.items()}


SENT = draw(0)
PARTS = {
    region: within_rank(draw(seed, 0.3), rank) for seed, (region, rank) in enumerate(RANKS.items())
}


def config(**knobs: str | float) -> FederationConfig:
    given = {name.replace("_", "-"): value for name, value in knobs.items()}
    return parse_run_config({"update-encoding": FLOAT32, "region-wait-s": 0, **given})


def arrived(region: str) -> Adapter:
    """An update as headquarters has it: over the wire and completed."""
    part = PARTS[region]
    content = wire.train_reply(part, encoding=FLOAT32, num_examples=3, loss=1.0, seconds=0.1)
    return wire.read_train_reply(
        content, SENT, encoding=FLOAT32, max_examples=9, max_norm=100, rank=RANKS[region]
    ).update


def outcome_of(**knobs: str | float) -> Outcome:
    aggregator = Aggregator(config(**knobs), 1, SENT, {})
    for region, weight in WEIGHTS.items():
        aggregator.add(arrived(region), weight, 1.0)
    return aggregator.outcome()


def dense(adapter: Adapter, up: str, down: str) -> NDArray[np.float64]:
    b, a = (adapter[name].flatten(1).double().numpy() for name in (up, down))
    return b @ a


def names(layer: str) -> tuple[str, str]:
    return f"{layer}.lora_B.weight", f"{layer}.lora_A.weight"


def mean_product(layer: str) -> NDArray[np.float64]:
    """By numpy alone: each region moves its first components of what was sent."""
    up, down = names(layer)
    products = []
    for region, rank in RANKS.items():
        b, a = (SENT[name].flatten(1).double().numpy().copy() for name in (up, down))
        b[:, :rank] += PARTS[region][up].flatten(1).numpy()
        a[:rank] += PARTS[region][down].flatten(1).numpy()
        products.append(b @ a)
    return np.average(products, axis=0, weights=list(WEIGHTS.values()))


# -- what comes of it ------------------------------------------------------------------------------


def test_exact_is_the_best_part_of_the_dense_mean_of_products() -> None:
    found = outcome_of(aggregation="exact", residual_rank=KEPT)
    lost = 0.0
    for layer in LAYERS:
        left, values, right = np.linalg.svd(mean_product(layer))
        for rank, adapter in ((RANK, False), (RANK + KEPT, True)):
            best = (left[:, :rank] * values[:rank]) @ right[:rank]
            held = dense(found.adapter, *names(layer))
            if adapter:
                held = held + dense(found.adapter, *residual_names(layer))
            np.testing.assert_allclose(held, best, atol=1e-4)
        lost += float(np.sum(values[RANK + KEPT :] ** 2))
    assert found.bias == pytest.approx(lost**0.5, abs=1e-4)
    assert {n: tuple(t.shape) for n, t in found.adapter.items() if n in SHAPES} == SHAPES


def test_with_room_for_everything_exact_loses_nothing() -> None:
    found = outcome_of(aggregation="exact", residual_rank=14)
    for layer in LAYERS:
        held = dense(found.adapter, *names(layer)) + dense(found.adapter, *residual_names(layer))
        np.testing.assert_allclose(held, mean_product(layer), atol=1e-4)
    assert found.bias == pytest.approx(0, abs=1e-5)


def test_factors_take_zeros_for_what_was_not_trained() -> None:
    """Component 5 is trained by south alone, and moves by its share of the examples."""
    found, share = outcome_of().adapter, 6 / 10
    for layer in LAYERS:
        up, down = names(layer)
        own = PARTS["south"]
        expected = SENT[up][:, 5] + share * own[up][:, 5]
        torch.testing.assert_close(found[up][:, 5], expected)
        torch.testing.assert_close(found[down][5], SENT[down][5] + share * own[down][5])
    whole = np.average(
        [arrived(region)["text/linear.lora_A.weight"].numpy() for region in RANKS],
        axis=0,
        weights=list(WEIGHTS.values()),
    )
    moved = found["text/linear.lora_A.weight"] - SENT["text/linear.lora_A.weight"]
    np.testing.assert_allclose(moved.numpy(), whole, atol=1e-6)


def test_the_bias_of_factors_is_measured_from_the_true_products() -> None:
    found = outcome_of()
    between = [mean_product(x) - dense(found.adapter, *names(x)) for x in LAYERS]
    assert found.bias == pytest.approx(float(np.sqrt(sum(np.sum(m**2) for m in between))), rel=1e-4)


def test_one_region_alone_moves_its_own_components_and_no_other() -> None:
    for aggregation in ("factors", "exact"):
        aggregator = Aggregator(config(aggregation=aggregation), 1, SENT, {})
        aggregator.add(arrived("north"), 5, 1.0)
        found = aggregator.outcome().adapter
        ends = add(SENT, completed(PARTS["north"], SENT))
        for layer in LAYERS:
            held, expected = dense(found, *names(layer)), dense(ends, *names(layer))
            np.testing.assert_allclose(held, expected, atol=1e-4)
            if aggregation == "factors":
                up, down = names(layer)
                assert torch.equal(found[up][:, 4:], SENT[up][:, 4:])
                assert torch.equal(found[down][4:], SENT[down][4:])


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s not in ROBUST])
def test_every_other_strategy_takes_completed_updates(strategy: str) -> None:
    found = outcome_of(strategy=strategy).adapter
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == SHAPES
    assert all(torch.isfinite(tensor).all() for tensor in found.values())


# -- who may ---------------------------------------------------------------------------------------


def region(name: str, rank: int, **said: object) -> SmallRegion:
    return SmallRegion(name, SENT, rank=rank, **said)  # type: ignore[arg-type]


def refused(*regions: SmallRegion, **knobs: str | float) -> list[dict[str, str]]:
    grid, schema = SmallGrid(regions), schema_hash(SENT)
    return handshake(grid, config(**knobs), BASE, schema, rank=RANK).refused


@pytest.mark.parametrize("rank", [-1, 0, RANK + 1, 2**62])
def test_a_rank_that_cannot_be_is_refused_by_name(rank: int) -> None:
    said = f'region "south": it announces rank {rank}, the base has 8; install the same release'
    assert refused(region("east", 1), region("south", rank)) == [
        {"region": "south", "reason": said}
    ]


@pytest.mark.parametrize("knob", [*(("strategy", rule) for rule in RULES), ("control_variates", 1)])
def test_what_holds_numbers_against_each_other_wants_the_rank_of_the_base(
    knob: tuple[str, str | int],
) -> None:
    name, value = knob
    knobs: dict[str, str | float] = {name: value}
    if name == "control_variates":
        knobs = {"control_variates": True, "optimizer": "sgd"}
    found = refused(region("east", RANK), region("south", 4), **knobs)
    if value == "QFedAvg":
        assert found == []
        return
    (entry,) = found
    what = value if name == "strategy" else "control-variates"
    assert entry == {
        "region": "south",
        "reason": f'region "south": it trains rank 4 of 8, and {what} wants the base\'s everywhere;'
        " remove worker.max_rank from its region.toml",
    }
    with pytest.raises(FederationError, match="0 of 1 nodes can take part"):
        refused(region("south", 4), **knobs)


# -- what is counted -------------------------------------------------------------------------------


@pytest.fixture
def history(tmp_path: Path) -> History:
    history = History(tmp_path / "headquarters")
    history.start(SENT, base_fingerprint=BASE)
    return history


def test_each_region_is_held_to_its_own_rank_and_fewer_bytes_count(history: History) -> None:
    regions = [region("east", 2), region("south", 8)]
    run_rounds(SmallGrid(regions), config(num_rounds=1), history)
    (_, record), end = history.rounds(), history.adapter(1)
    assert record.rejected == []
    whole, part = (
        record_bytes(wire.train_reply(update, encoding=FLOAT32, **SAID))  # type: ignore[arg-type]
        for update in (SENT, within_rank(SENT, 2))
    )
    assert record.uplink_bytes == whole + part
    assert history.regions()["east"]["rank"] == 2
    for layer in LAYERS:  # both move by STEP; beyond rank 2 only one of the two does
        _, down = names(layer)
        torch.testing.assert_close(end[down][:2], SENT[down][:2] + STEP)
        torch.testing.assert_close(end[down][2:], SENT[down][2:] + STEP / 2)


SAID = {"num_examples": 4, "loss": 1.0, "seconds": 0.0}


@pytest.mark.parametrize("sent", [1, 3, 8])
def test_a_reply_of_another_rank_is_named_and_the_round_goes_on(
    sent: int, history: History
) -> None:
    south = region("south", 2)

    def other(reply: RecordDict) -> RecordDict:
        update = within_rank({n: torch.full(s, STEP) for n, s in SHAPES.items()}, sent)
        return wire.train_reply(update, encoding=FLOAT32, **SAID)  # type: ignore[arg-type]

    south.spoilt["round"] = other
    run_rounds(SmallGrid([region("east", 2), south]), config(num_rounds=1), history)
    reason = f"image/conv.lora_A.weight: of rank {sent}, announced was 2"
    assert history.rounds()[1].rejected == [{"region": "south", "reason": reason}]


def test_a_region_may_announce_another_rank_in_the_next_round(history: History) -> None:
    east = region("east", 2)
    run_rounds(SmallGrid([east]), config(num_rounds=1), history)
    run_rounds(SmallGrid([region("east", 5)]), config(num_rounds=2), history)
    assert [record.rejected for record in history.rounds()] == [[], [], []]
    before, after = history.adapter(1), history.adapter(2)
    for layer in LAYERS:
        _, down = names(layer)
        moved = (after[down] - before[down]).flatten(1).abs().amax(dim=1) > 0
        assert moved.tolist() == [place < 5 for place in range(RANK)]


def test_an_adapter_of_one_region_alone_has_its_rank_in_the_table(history: History) -> None:
    grid = SmallGrid([region("east", 2, in_matrix=True, shares_local=True)])
    asked = {"run-dir": str(history.folder.parent), "region-wait-s": 0, "task": "matrix"}
    run_server_app(grid, {**asked, "num-rounds": 1})
    table = history.matrix()
    assert table is not None and set(table["rows"]) == {"release 0", "east alone"}
