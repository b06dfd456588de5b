"""Gate, cross-site table and release on real small regions: their figures, consent, and kills."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo
from small_federation import InProcessControl, run_server_app, silent
from small_world import federation, run_config

from client.app import app as client_app
from client.worker import Worker, forget_workers, get_worker
from server import conduct
from server.gate import from_json
from server.headquarters import Headquarters, init_headquarters
from server.history import History
from server.training import release_numbers
from shared import wire, wire_evaluation
from shared.adapter import Adapter, add, load_adapter, save_adapter
from shared.errors import ConfigError, FederationError
from shared.metrics import ndcg_of_gains
from shared.records import encode_adapter
from shared.release import read_current, read_release
from shared.retrieval.hybrid import fuse
from shared.retrieval.shelf import DEPTH
from shared.schema import SharingConfig, load_region_config, render_region_toml
from simulations.engine import LocalGrid

NewRun = Callable[[str], Path]
LENIENT: dict[str, Any] = {"gate-tolerance": 1.0, "gate-min-queries": 2}  # tiny regions know little


class Regions(LocalGrid):
    """Real regions as deployed nodes: each names its folder, and its key has a name.

    Args:
        folders: of the regions, by the name their keys were admitted as.
        run_config: of the ClientApp.
    """

    def __init__(self, folders: Mapping[str, Path], run_config: Mapping[str, Any]) -> None:
        super().__init__(client_app, len(folders), run_config)
        self.admitted = list(folders)
        for context, folder in zip(self.contexts.values(), folders.values(), strict=True):
            context.node_config["region-dir"] = str(folder)
        self.asked: list[tuple[str, str]] = []  # region and kind of every message

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [
            NodeInfo(node_id=node, name=name)
            for node, name in zip(self.get_node_ids(), self.admitted, strict=True)
        ]

    def answer(self, message: Message) -> Message:
        name = self.admitted[message.metadata.dst_node_id - 2]
        self.asked.append((name, message.metadata.message_type))
        return super().answer(message)


def folders(run: Path, *names: str) -> dict[str, Path]:
    return {name: run / "regions" / name for name in names or ("north", "south")}


def agree(run: Path, region: str, **sharing: bool) -> None:
    """Write into its region.toml what a region agrees to."""
    folder = run / "regions" / region
    config = load_region_config(folder)
    (folder / "region.toml").write_text(
        render_region_toml(config.model_copy(update={"sharing": SharingConfig(**sharing)}))
    )


def measured(worker: Worker, adapter: Adapter) -> float:
    """Pooled nDCG@10 on a region's gate clicks, query by query as shoppers would see it."""
    worker.encoder.load_adapter(adapter)
    vectors = worker.encoder.product_matrix(worker.products)
    weight, gate = worker.tune(vectors).dense_weight, worker.gate
    queries = worker.encoder.query_matrix(worker.query_prefixes(gate.queries))
    ordered = []
    for text, query, rows, gains in zip(gate.queries, queries, gate.rows, gate.gains, strict=True):
        cosines = vectors @ query
        order = np.lexsort((np.arange(len(cosines)), -cosines))
        words = worker.lexical.search(text, DEPTH)
        fused = fuse((order, cosines[order]), words, dense_weight=weight).rows.tolist()
        ordered.append(gains[np.argsort([fused.index(row) for row in rows.tolist()])])
    return ndcg_of_gains(ordered, k=10)


def moved(adapter: Adapter, seed: int) -> Adapter:
    """An adapter far enough away to order products another way."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + torch.randn(tensor.shape, generator=generator)
        for name, tensor in adapter.items()
    }


# -- the gate --------------------------------------------------------------------------------------


def test_the_gates_figures_are_those_of_gate_clicks(run: Path, workers: list[Worker]) -> None:
    history = History(run / "headquarters")
    references = {number: moved(history.adapter(0), number) for number in (3, 5)}
    for number, reference in references.items():
        save_adapter(history.folder / "references" / f"{number}.safetensors", reference, {})
    run_server_app(Regions(folders(run), run_config(run)), run_config(run))
    gate = history.gate()
    assert gate is not None
    assert gate["rejected"] == []
    candidate = history.adapter(gate["round"])
    for worker in workers:
        name = worker.region.config.region
        own = measured(worker, candidate)
        assert gate["candidate"][name] == {"ndcg@10": pytest.approx(own)}
        for number, reference in references.items():
            found = gate["differences"][str(number)][name]
            assert found["mean"] == pytest.approx(own - measured(worker, reference), abs=1e-9)
            assert found["num_queries"] == len(worker.gate.queries) > 0
            assert found["variance"] > 0
    assert from_json(gate["decision"]).checks


def test_a_region_that_cannot_compare_is_named_by_kind_and_the_other_decides(
    run: Path, workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise ValueError("red boots")

    monkeypatch.setattr(workers[0], "compare", fail)
    config = run_config(run) | LENIENT
    run_server_app(Regions(folders(run), config), config)
    gate = History(run / "headquarters").gate()
    assert gate is not None
    assert gate["rejected"] == [{"region": "north", "reason": "region failed: ValueError"}]
    assert gate["candidate"].keys() == {"south"}
    assert gate["decision"]["accepted"] is True


def test_a_region_under_anothers_key_takes_no_part(run: Path) -> None:
    config = run_config(run) | LENIENT
    nodes = {"south": run / "regions" / "north", "north": run / "regions" / "north"}
    grid = Regions(nodes, config)
    run_server_app(grid, config)
    history = History(run / "headquarters")
    reason = 'its key was admitted as "south", it calls itself "north"'
    for record in history.rounds():
        assert record.cohort == ["north"]
        assert record.rejected == [{"region": "south", "reason": reason}]
    assert {kind for name, kind in grid.asked if name == "south"} == {wire.DESCRIBE}
    gate = history.gate()
    assert gate is not None
    assert gate["rejected"] == [{"region": "south", "reason": reason}]
    assert history.regions()["south"]["refused"] == reason


# -- kills -----------------------------------------------------------------------------------------

ROUND_0, ROUND = 4, 6  # messages to two regions: describe and evaluate; and train between them
CUTS = {
    "in round 0": ROUND_0,
    "before round 1": ROUND_0 + 1,
    "while round 1 trains": ROUND_0 + 4,
    "while round 1 is measured": ROUND_0 + 6,
    "before round 2": ROUND_0 + ROUND + 1,
    "while round 2 is measured": ROUND_0 + 2 * ROUND,
    "before the gate": ROUND_0 + 2 * ROUND + 1,
    "while regions compare": ROUND_0 + 2 * ROUND + 4,
}


class Cut(Regions):
    """Ctrl-C when a message of that number is to be answered, 1 for the first."""

    at = 0

    def answer(self, message: Message) -> Message:
        if len(self.asked) + 1 == self.at:
            raise KeyboardInterrupt
        return super().answer(message)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Iterator[Path]:
    """One copy whose regions serve many headquarters."""
    yield Path(shutil.copytree(prepared, tmp_path_factory.mktemp("world") / "run"))
    forget_workers()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, world: Path) -> History:
    """Of a run that nothing happened to."""
    history = start_like(world, tmp_path_factory.mktemp("whole"))
    config = run_config(history.folder.parent)
    grid = Regions(folders(world), config)
    run_server_app(grid, config)
    assert len(grid.asked) == ROUND_0 + 2 * ROUND + 4
    return history


def start_like(world: Path, folder: Path) -> History:
    before, history = History(world / "headquarters"), History(folder / "headquarters")
    history.start(before.adapter(0), base_fingerprint=before.base_fingerprint())
    return history


@pytest.mark.parametrize("at", CUTS.values(), ids=CUTS.keys())
def test_a_run_cut_off_anywhere_ends_with_the_same_adapter_and_decision(
    at: int, tmp_path: Path, world: Path, uninterrupted: History
) -> None:
    history = start_like(world, tmp_path)
    config = run_config(tmp_path)
    grid = Cut(folders(world), config)
    grid.at = at
    with pytest.raises(KeyboardInterrupt):
        run_server_app(grid, config)
    assert history.gate() is None
    assert len(history.rounds()) == max(0, (at - 1 - ROUND_0) // ROUND + 1)
    again = Regions(folders(world), config)
    run_server_app(again, config)
    assert again.asked[0] == ("north", wire.DESCRIBE)
    assert history.gate() == uninterrupted.gate()
    assert [record.validation for record in history.rounds()] == [
        record.validation for record in uninterrupted.rounds()
    ]
    for number in range(3):
        ours, theirs = history.adapter(number), uninterrupted.adapter(number)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# -- the cross-site table --------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["factors", "alternate"])
def test_the_tables_figures_are_those_of_gate_clicks(new_run: NewRun, aggregation: str) -> None:
    run = new_run("run")
    agree(run, "north", matrix=True, local_adapter=True)
    agree(run, "south", matrix=True)
    history = History(run / "headquarters")
    release = moved(history.adapter(0), 4)
    save_adapter(history.folder / "references" / "4.safetensors", release, {})
    config = run_config(run, aggregation=aggregation) | {"task": "matrix"}
    run_server_app(Regions(folders(run), config), config)
    table = history.matrix()
    assert table is not None
    north, south = (get_worker(folder) for folder in folders(run).values())
    alone, knobs = history.adapter(0), federation(run, aggregation=aggregation)
    for number in (1, 2):
        alone = add(alone, north.train(alone, knobs.train_config(number), number).update)
    expected = {"release 0": history.adapter(0), "release 4": release, "north alone": alone}
    assert table["rows"] == {
        name: {
            "north": pytest.approx(measured(north, adapter), abs=1e-9),
            "south": pytest.approx(measured(south, adapter), abs=1e-9),
        }
        for name, adapter in expected.items()
    }
    assert table["num_queries"] == {
        "north": len(north.gate.queries),
        "south": len(south.gate.queries),
    }
    assert len({tuple(row.values()) for row in table["rows"].values()}) == 3


def test_who_has_not_agreed_gets_no_message_beyond_the_handshake(new_run: NewRun) -> None:
    run = new_run("run")
    agree(run, "north", matrix=True)
    config = run_config(run) | {"task": "matrix"}
    grid = Regions(folders(run), config)
    run_server_app(grid, config)
    assert [kind for name, kind in grid.asked if name == "south"] == [wire.DESCRIBE]
    assert [kind for name, kind in grid.asked if name == "north"] == [wire.DESCRIBE, "evaluate"]
    table = History(run / "headquarters").matrix()
    assert table is not None
    assert table["rows"].keys() == {"release 0"}


@pytest.mark.parametrize("agreed", [{}, {"matrix": True}, {"local_adapter": True}])
def test_a_region_refuses_on_its_own_what_it_has_not_agreed_to(
    agreed: dict[str, bool], new_run: NewRun
) -> None:
    run = new_run("run")
    agree(run, "north", **agreed)
    worker = get_worker(run / "regions" / "north")
    adapter, config = worker.encoder.adapter(), federation(run).train_config(1)
    off = r'region "north": sharing\.{} is off in region\.toml; headquarters asked for it all the'
    if "matrix" not in agreed:
        with pytest.raises(ConfigError, match=off.format("matrix")):
            worker.compare(adapter, {0: adapter}, purpose=wire_evaluation.MATRIX)
    if "local_adapter" not in agreed:
        with pytest.raises(ConfigError, match=off.format("local_adapter")):
            worker.train(adapter, config, 1, purpose=wire.LOCAL)
    # The gate and the federation's rounds are what taking part means.
    assert worker.compare(adapter, {0: adapter}, purpose=wire_evaluation.GATE)[0] > 0
    assert worker.train(adapter, config, 1).num_examples > 0


def test_of_a_refusal_only_its_kind_travels(run: Path) -> None:
    grid = Regions(folders(run), run_config(run))
    arrays = encode_adapter(History(run / "headquarters").adapter(0))
    table = wire_evaluation.evaluate_request(
        arrays, 0, purpose=wire_evaluation.MATRIX, references={0: arrays}
    )
    config = federation(run).train_config(1)
    alone = wire.train_request(arrays, config, 1, purpose=wire.LOCAL)
    messages = [Message(table, 2, "evaluate"), Message(alone, 2, "train")]
    assert [reply.error.reason for reply in grid.send_and_receive(messages)] == ["ConfigError"] * 2


def test_an_adapter_of_one_region_is_trained_as_in_a_round(new_run: NewRun) -> None:
    run = new_run("run")
    agree(run, "south", local_adapter=True)
    worker = get_worker(run / "regions" / "south")
    adapter = History(run / "headquarters").adapter(0)
    config = federation(run).train_config(1)
    alone = worker.train(adapter, config, 1, purpose=wire.LOCAL).update
    in_round = worker.train(adapter, config, 1).update
    assert all(torch.equal(alone[name], in_round[name]) for name in adapter)


# -- the whole way ---------------------------------------------------------------------------------


class Federation:
    """A headquarters whose runs happen in this process, over real regions."""

    def __init__(self, folder: Path, run: Path) -> None:
        self.hq: Headquarters = init_headquarters(
            folder, name="Two", address="hq.example:8443", base=run / "base"
        )
        self.control = InProcessControl(
            lambda run_config: Regions(folders(run), {**run_config, "run-dir": ""})
        )

    def train(self, *, seed: int = 7) -> Any:
        knobs = {"num-rounds": 1, **LENIENT}
        training = conduct.new_training(self.hq, knobs, seed=seed)
        conduct.follow(self.hq, self.control, training, on_line=silent)
        return training

    def table(self) -> Mapping[str, Mapping[str, float]]:
        chosen = conduct.new_matrix(self.hq, {"num-rounds": 1}, seed=7)
        conduct.follow(self.hq, self.control, chosen, on_line=silent)
        table = chosen.history.matrix()
        assert table is not None
        return table["rows"]  # type: ignore[no-any-return]


def test_train_release_promote_train_again_compare_and_roll_back(
    new_run: NewRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conduct, "POLL_S", 0)
    run = new_run("run")
    for region in ("north", "south"):
        agree(run, region, matrix=True)
    two = Federation(tmp_path / "hq", run)
    hq, key = two.hq, {"public_key_hex": two.hq.release_key}
    first = two.train()
    assert conduct.release(hq, first) == 1
    conduct.put_into_use(hq, 1, event="release.promoted")
    second = two.train(seed=8)
    assert conduct.release(hq, second) == 2
    conduct.put_into_use(hq, 2, event="release.promoted")
    assert read_release(hq.releases / "2", **key).parent == 1

    # What regions would load is what they compared.
    workers = [get_worker(folder) for folder in folders(run).values()]
    gates = [training.history.gate() for training in (first, second)]
    rows = two.table()
    for worker in workers:
        name = worker.region.config.region
        for number, gate in zip((1, 2), gates, strict=True):
            worker.encoder.load_release(hq.releases / str(number))
            loaded = worker.encoder.adapter()
            kept = load_adapter(hq.adapters / f"{number}.safetensors")
            assert all(torch.equal(loaded[key], kept[key]) for key in kept)
            figure = gate["candidate"][name]["ndcg@10"]
            assert measured(worker, loaded) == pytest.approx(figure)
            assert rows[f"release {number}"][name] == pytest.approx(figure)
    card = (hq.releases / "2" / "README.md").read_text()
    assert not any(name in card for name in ("north", "south"))

    conduct.put_into_use(hq, 1, event="release.rolled_back")
    current = read_current(hq.releases, **key)
    assert (current.release, current.sequence) == (1, 3)
    assert release_numbers(hq.releases) == [1, 2]


def test_a_run_that_fails_in_real_regions_is_resumed_after_their_restart(
    new_run: NewRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conduct, "POLL_S", 0)
    run = new_run("run")
    two = Federation(tmp_path / "hq", run)

    def fail(done: int, total: int) -> None:
        raise ValueError("red boots")

    for folder in folders(run).values():
        get_worker(folder).on_step = fail
    with pytest.raises(FederationError, match=r"ended as failed FederationError; .* --resume"):
        two.train()
    forget_workers()
    left = conduct.latest(two.hq)
    assert [record.round for record in left.history.rounds()] == [0]
    conduct.follow(two.hq, two.control, left, on_line=silent)
    assert conduct.release(two.hq, left) == 1
