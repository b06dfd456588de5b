"""What regions tell of their vectors is remembered: a cut run goes on, but not without it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import federate, federate_in_two_goes, same

from shared.errors import FederationError

NewRun = Callable[[str], Path]
KINDS: list[dict[str, float]] = [{"decorrelation_weight": 0.1}, {"drawn_negatives": 32}]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: next(iter(kind)))


@pytest.fixture(autouse=True)
def small_regions_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regions of the small world are below what is asked of real ones."""
    monkeypatch.setattr("client.statistics.MIN_PRODUCTS", 40)
    for module in ("client.statistics", "shared.wire_vectors"):
        monkeypatch.setattr(f"{module}.MIN_EXAMPLES", 10)


@each_kind
def test_a_run_cut_in_round_two_ends_bit_equal(kind: dict[str, float], new_run: NewRun) -> None:
    knobs = {**kind, "update_encoding": "float32"}
    whole, again = (
        federate(new_run("whole"), **knobs),
        federate_in_two_goes(new_run("cut"), **knobs),
    )
    for number in (1, 2):
        assert len(whole.memory(number)) > 1
        assert same(whole.adapter(number), again.adapter(number))
        assert same(whole.memory(number), again.memory(number))


@each_kind
def test_without_its_memory_a_run_does_not_go_on(kind: dict[str, float], new_run: NewRun) -> None:
    run = new_run("run")
    history = federate(run, num_rounds=1, **kind)
    (history.folder / "memory" / "0001.safetensors").unlink()
    with pytest.raises(FederationError, match=r"memory/0001\.safetensors: not found"):
        federate(run, **kind)
