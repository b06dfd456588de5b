"""Every way to make an adapter of updates, in whole small federations of the real apps."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import small_runs
import torch
from small_runs import federate_in_two_goes, same
from small_world import options, quiet

from server.history import History, RoundRecord
from shared.adapter import Adapter, load_adapter, norm, subtract
from shared.errors import FederationError
from simulations.run import simulate

NewRun = Callable[[str], Path]
federate = partial(small_runs.federate, num_rounds=3)
METHODS: dict[str, dict[str, str | float]] = {
    "FedAvg, exact": {"aggregation": "exact"},
    "FedAvg, alternate": {"aggregation": "alternate"},
    "FedAvg, freeze_a": {"aggregation": "freeze_a"},
    "FedExP": {"strategy": "FedExP"},
    "FedAvgM": {"strategy": "FedAvgM"},
    "FedAdam, alternate": {
        "strategy": "FedAdam",
        "aggregation": "alternate",
        "server_learning_rate": 0.01,
    },
    "FedMedian": {"strategy": "FedMedian"},
    "FedAvg, SCAFFOLD": {"control_variates": True, "optimizer": "sgd", "learning_rate": 0.1},
}


def moved(history: History, number: int) -> set[str]:
    """Names of the tensors in which any bit is another than the round before."""
    before, after = history.adapter(number - 1), history.adapter(number)
    return {n for n in after if n not in before or not torch.equal(before[n], after[n])}


def of_kind(adapter: Adapter, kind: str) -> set[str]:
    return {name for name in adapter if f".lora_{kind}." in name}


def uplink(records: list[RoundRecord]) -> list[int]:
    return [record.uplink_bytes for record in records[1:]]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_named_and_after_an_interruption_ends_bit_equal(
    name: str, new_run: NewRun
) -> None:
    knobs = METHODS[name]
    whole = federate(new_run("whole"), **knobs)
    again = federate_in_two_goes(new_run("cut"), num_rounds=3, **knobs)
    for number in range(1, 4):
        assert same(whole.adapter(number), again.adapter(number))
        assert moved(whole, number)
        assert whole.rounds()[number].method == name
        assert whole.rounds()[number].rejected == []


def test_a_server_optimizer_without_its_memory_does_not_begin_anew(new_run: NewRun) -> None:
    run = new_run("run")
    federate(run, strategy="FedAvgM")
    (path,) = (run / "headquarters" / "memory").glob("0003.*")
    path.unlink()
    with pytest.raises(FederationError, match=r"memory/0003\.safetensors: not found"):
        federate(run, strategy="FedAvgM", num_rounds=4)


def test_factors_have_a_bias_and_exact_a_smaller_one(new_run: NewRun) -> None:
    factors = federate(new_run("factors")).rounds()
    exact = federate(new_run("exact"), aggregation="exact", residual_rank=0).rounds()
    assert factors[0].bias is None
    assert factors[1].bias is not None and exact[1].bias is not None
    assert 0 < exact[1].bias < factors[1].bias  # round 1 has the same updates in both


def test_exact_keeps_a_residual_and_a_release_with_it_is_published(
    fashion: Path, tmp_path: Path
) -> None:
    """The whole journey: rounds, baselines, release, index and table, with one rank for peft."""
    run = tmp_path / "run"
    result = simulate(options(fashion, knobs={"aggregation": "exact"}), run, quiet())
    assert [entry["method"] for entry in result["rounds"]] == ["FedAvg, exact"] * 2
    history, folder = History(run / "headquarters"), run / "headquarters/releases/1"
    best = history.adapter(history.best_round())
    own = {tensor.shape[0] for name, tensor in best.items() if name.endswith(".lora_A.weight")}
    kept = {tensor.shape[0] for name, tensor in best.items() if name.endswith("residual_A.weight")}
    configs = [json.loads(path.read_text()) for path in folder.glob("*/adapter_config.json")]
    assert {config["r"] for config in configs} == {max(own) + max(kept, default=0)}
    assert (
        json.loads((folder / "MANIFEST.json").read_text())["encoder_digest"]
        == (result["release"]["encoder_digest"])
    )


def test_freeze_a_leaves_a_and_sends_half(new_run: NewRun) -> None:
    history, plain = federate(new_run("run"), aggregation="freeze_a"), federate(new_run("plain"))
    adapter = history.adapter(0)
    for number in range(1, 4):
        assert moved(history, number) == set(adapter) - of_kind(adapter, "A")
        assert history.rounds()[number].bias == 0
    ratio = sum(uplink(history.rounds())) / sum(uplink(plain.rounds()))
    assert 0.3 < ratio < 0.7


def test_alternate_moves_b_and_a_in_turn(new_run: NewRun) -> None:
    history = federate(new_run("run"), aggregation="alternate")
    adapter = history.adapter(0)
    for number, still in ((1, "A"), (2, "B"), (3, "A")):
        assert moved(history, number) == set(adapter) - of_kind(adapter, still)
        assert history.rounds()[number].bias == 0


def test_what_rounding_took_waits_for_the_round_that_sends_it(new_run: NewRun) -> None:
    run = new_run("run")
    federate(run, aggregation="alternate")
    kept = sorted((run / "regions/north/state/feedback").iterdir())
    assert [path.name for path in kept] == ["round-2.safetensors", "round-3.safetensors"]
    second, third = (load_adapter(path) for path in kept)
    assert second.keys() == third.keys() == History(run / "headquarters").adapter(0).keys()
    for name in of_kind(second, "A"):  # trained in round 2, and not in round 3
        assert torch.equal(second[name], third[name])


def test_control_variates_double_what_travels_and_change_the_second_round(new_run: NewRun) -> None:
    sgd: dict[str, str | float] = {"optimizer": "sgd", "learning_rate": 0.1}
    plain = federate(new_run("plain"), **sgd)
    scaffold = federate(new_run("scaffold"), control_variates=True, **sgd)
    assert same(plain.adapter(1), scaffold.adapter(1))  # they are zero
    assert not same(plain.adapter(2), scaffold.adapter(2))
    ratio = sum(uplink(scaffold.rounds())) / sum(uplink(plain.rounds()))
    assert 1.9 < ratio < 2.1


def test_a_proximal_term_keeps_regions_near(new_run: NewRun) -> None:
    moves = []
    for mu in (0.0, 10.0):
        history = federate(new_run(f"mu-{mu}"), proximal_mu=mu, num_rounds=1, local_epochs=3)
        moves.append(norm(subtract(history.adapter(1), history.adapter(0))))
    assert 0 < moves[1] < moves[0]
