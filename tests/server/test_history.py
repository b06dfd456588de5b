"""What headquarters keeps: whole after a kill, one line where it is damaged."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from server.history import History, RoundRecord, by_region
from shared.adapter import Adapter, save_adapter
from shared.errors import FederationError

INITIAL: Adapter = {"a": torch.zeros(3)}


@pytest.fixture
def history(tmp_path: Path) -> History:
    history = History(tmp_path / "headquarters")
    history.start(INITIAL, base_fingerprint="f" * 64)
    return history


def record(number: int, **ndcg: float) -> RoundRecord:
    validation = {region: {"ndcg@10": value} for region, value in ndcg.items()}
    return RoundRecord(number, cohort=["east", "north"], validation=validation)


def adapter(number: int) -> Adapter:
    return {"a": torch.full((3,), float(number))}


def keep(history: History, *values: float) -> None:
    for number, value in enumerate(values):
        history.append(record(number, east=value), adapter(number))


def test_what_is_kept_is_read_back(history: History) -> None:
    kept = RoundRecord(
        1, 0.5, 1.25, 10, 20, ["east"], [{"region": "x", "reason": "y"}], {"east": {}}
    )
    history.append(record(0, east=0.1), INITIAL)
    history.append(kept, adapter(1))
    assert history.rounds() == [record(0, east=0.1), kept]
    assert torch.equal(history.adapter(1)["a"], adapter(1)["a"])
    assert history.base_fingerprint() == "f" * 64


def test_round_0_is_the_initial_adapter(history: History) -> None:
    history.append(record(0), adapter(5))
    assert torch.equal(history.adapter(0)["a"], INITIAL["a"])


def test_before_the_first_round_there_are_none(history: History) -> None:
    assert history.rounds() == []
    with pytest.raises(FederationError, match="no round is complete"):
        history.best_round()


def test_a_kill_between_adapter_and_record_leaves_the_rounds_as_before(history: History) -> None:
    keep(history, 0.1, 0.2)
    before = history.rounds()
    save_adapter(history.folder / "rounds" / "0002.safetensors", adapter(99), {})
    assert history.rounds() == before
    assert history.best_round() == 1
    history.append(record(2, east=0.3), adapter(2))  # the round done again replaces it
    assert torch.equal(history.adapter(2)["a"], adapter(2)["a"])


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"colour": 1}]', '{"round": 1}', "[null]"])
def test_a_damaged_history_is_one_line(history: History, text: str) -> None:
    (history.folder / "history.json").write_text(text)
    with pytest.raises(FederationError, match=r"history\.json: damaged; remove the run folder"):
        history.rounds()


@pytest.mark.parametrize("content", [b"", b"\x00" * 4, b"no tensors at all, just words"])
def test_a_damaged_adapter_is_one_line(history: History, content: bytes) -> None:
    keep(history, 0.1, 0.2)
    (history.folder / "rounds" / "0001.safetensors").write_bytes(content)
    with pytest.raises(FederationError, match=r"0001\.safetensors: damaged; remove the run folder"):
        history.adapter(1)


def test_a_cut_off_adapter_is_one_line(history: History) -> None:
    path = history.folder / "initial.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FederationError, match=r"initial\.safetensors: damaged"):
        history.adapter(0)
    with pytest.raises(FederationError, match=r"initial\.safetensors: missing or damaged"):
        history.base_fingerprint()


def test_an_adapter_that_is_not_there_is_one_line(history: History) -> None:
    with pytest.raises(FederationError, match=r"0007\.safetensors: not found"):
        history.adapter(7)


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ((0.3, 0.1), 0),
        ((0.1, 0.3, 0.2), 1),
        ((0.1, 0.3, 0.3), 2),
        ((0.2, 0.2), 1),
        ((0.1, 0.2), 1),
        ((0.1, 0.3, 0.292, 0.28), 2),
        ((0.1, 0.3, 0.28, 0.294), 3),
        ((0.3, 0.289), 0),
        ((0.0, 0.0), 1),  # nobody has validation clicks
    ],
)
def test_the_best_round_is_the_latest_that_the_clicks_cannot_tell_from_the_highest(
    history: History, values: tuple[float, ...], best: int
) -> None:
    keep(history, *values)
    assert history.best_round() == best


def test_the_best_round_counts_every_region_the_same(history: History) -> None:
    history.append(record(0, east=0.9, north=0.1), INITIAL)  # mean 0.5
    history.append(record(1, east=0.6, north=0.6), adapter(1))  # mean 0.6
    assert history.best_round() == 1


# -- who was there ---------------------------------------------------------------------------------


def test_before_the_first_handshake_nobody_is_known(history: History) -> None:
    assert history.regions() == {}
    assert history.gate() is None
    assert history.matrix() is None


def test_what_a_region_said_last_is_kept_with_the_time(history: History) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    history.note_regions({"east": {"device": "cpu"}, "north": {"device": "cpu"}}, [])
    history.note_regions({"east": {"device": "cuda"}}, [])
    known = history.regions()
    assert known.keys() == {"east", "north"}
    assert (known["east"]["device"], known["north"]["device"]) == ("cuda", "cpu")
    for region in known.values():
        assert before <= datetime.fromisoformat(region["seen"]) <= datetime.now(UTC)
        assert region["refused"] is None


def test_who_is_refused_is_kept_with_reason_and_what_was_said_before(history: History) -> None:
    history.note_regions({"east": {"device": "cpu"}}, [])
    seen = history.regions()["east"]["seen"]
    refused = [{"region": "east", "reason": "another base"}, {"region": "south", "reason": "late"}]
    history.note_regions({}, refused)
    east, south = history.regions()["east"], history.regions()["south"]
    assert (east["device"], east["seen"], east["refused"]) == ("cpu", seen, "another base")
    assert datetime.fromisoformat(east["refused_at"]) >= datetime.fromisoformat(seen)
    assert south.keys() == {"refused", "refused_at"}
    history.note_regions({"east": {"device": "cpu"}}, [])
    assert history.regions()["east"]["refused"] is None
    assert history.regions()["south"]["refused"] == "late"


def test_who_is_refused_in_the_handshake_where_it_also_spoke_is_refused(history: History) -> None:
    history.note_regions({"east": {"device": "cpu"}}, [{"region": "east", "reason": "twice"}])
    assert history.regions()["east"]["refused"] == "twice"


# -- gate and table --------------------------------------------------------------------------------


def test_without_references_there_is_the_base(history: History) -> None:
    keep(history, 0.1, 0.2)
    ((number, reference),) = history.references().items()
    assert number == 0
    assert torch.equal(reference["a"], INITIAL["a"])


def test_references_are_read_back_in_the_order_of_their_numbers(history: History) -> None:
    for number in (10, 2, 1):
        path = history.folder / "references" / f"{number}.safetensors"
        save_adapter(path, adapter(number), {"release": str(number)})
    found = history.references()
    assert list(found) == [1, 2, 10]  # without the base, once there are releases
    assert all(torch.equal(one["a"], adapter(number)["a"]) for number, one in found.items())


@pytest.mark.parametrize("name", ["gate", "matrix"])
def test_what_is_kept_of_gate_and_table_is_read_back(history: History, name: str) -> None:
    value = {"round": 1, "differences": {"0": {"east": {"mean": -0.25}}}, "rejected": []}
    history.keep(f"{name}.json", value)
    assert getattr(history, name)() == value
    other = {"gate": "matrix", "matrix": "gate"}[name]
    assert getattr(history, other)() is None
    history.keep(f"{name}.json", {"round": 2})
    assert getattr(history, name)() == {"round": 2}
    assert [path.name for path in history.folder.glob(".*")] == []


def test_what_json_cannot_say_is_not_written(history: History) -> None:
    history.keep("gate.json", {"round": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        history.keep("gate.json", {"round": float("nan")})
    assert history.gate() == {"round": 1}


@pytest.mark.parametrize("name", ["gate", "matrix", "regions"])
@pytest.mark.parametrize("text", ["", "{", "7", "[1]"])
def test_a_damaged_file_is_one_line(history: History, name: str, text: str) -> None:
    (history.folder / f"{name}.json").write_text(text)
    with pytest.raises(FederationError, match=rf"{name}\.json: damaged; remove it and run again"):
        getattr(history, name)()


def test_the_mean_is_over_regions_that_measured() -> None:
    assert record(0, east=0.5, north=0.25).mean("ndcg@10") == 0.375
    assert record(0, east=0.5).mean("ndcg@10") == 0.5
    assert RoundRecord(0, validation={"east": {}}).mean("ndcg@10") == 0.0


def test_a_round_without_a_region_leaves_a_gap_in_its_curve(history: History) -> None:
    rounds = [record(0, east=0.1, north=0.2), record(1, east=0.3), record(2, east=0.4, north=0.5)]
    assert by_region(rounds) == {"east": [0.1, 0.3, 0.4], "north": [0.2, None, 0.5]}


def test_a_region_that_never_measured_has_a_curve_without_values() -> None:
    nothing = RoundRecord(0, cohort=["east"], validation={"east": {}})
    assert by_region([nothing]) == {"east": [None]}
