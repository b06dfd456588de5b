"""Regions of different ranks in whole small federations: the tiny base has rank 2, north trains 1.

What holds for one reply is in tests/server/test_mixed_ranks.py and tests/shared/test_wire_rank.py.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import small_runs
import torch
from flwr.app import Context, Message, RecordDict
from small_runs import federate_in_two_goes, same
from small_world import run_config
from test_engines import FLOWER

from client.app import app
from client.rpc import WorkerServer
from client.worker import Worker, forget_workers, get_worker
from server.history import History
from shared import wire
from shared.adapter import completed, load_adapter, norm, rank_axis, subtract, within_rank
from shared.config import ENCODINGS, FLOAT32, TrainConfig, parse_run_config
from shared.errors import ConfigError, FederationError
from shared.records import encode_adapter
from shared.schema import load_region_config, render_region_toml
from simulations.baselines import Pool, local_pool, train_alone
from simulations.engine import LocalGrid

NewRun = Callable[[str], Path]
federate = partial(small_runs.federate, num_rounds=3)


def bound(run: Path, region: str, max_rank: int, **sharing: bool) -> Path:
    """Set `worker.max_rank` as a region's operator does."""
    folder = run / "regions" / region
    config = load_region_config(folder)
    changed = config.model_copy(
        update={
            "worker": config.worker.model_copy(update={"max_rank": max_rank}),
            "sharing": config.sharing.model_copy(update=sharing),
        }
    )
    (folder / "region.toml").write_text(render_region_toml(changed), encoding="utf-8")
    forget_workers(folder)
    return folder


def mixed(run: Path) -> Path:
    bound(run, "north", 1)
    return run


def settings(**knobs: str | float) -> TrainConfig:
    return parse_run_config({k.replace("_", "-"): v for k, v in knobs.items()}).train_config(1)


def worker_of(run: Path, region: str) -> Worker:
    return get_worker(run / "regions" / region)


# -- whole federations -----------------------------------------------------------------------------


@pytest.mark.parametrize("max_rank", [2, 5])
def test_the_rank_of_the_base_is_as_no_rank_at_all(max_rank: int, new_run: NewRun) -> None:
    plain, named = new_run("plain"), new_run("named")
    for region in ("north", "south"):
        bound(named, region, max_rank)
    ours, theirs = (federate(run, num_rounds=2) for run in (plain, named))
    for number in (1, 2):
        assert same(ours.adapter(number), theirs.adapter(number))
    pairs = zip(ours.rounds(), theirs.rounds(), strict=True)
    assert all(mine.uplink_bytes == other.uplink_bytes for mine, other in pairs)


@pytest.mark.parametrize("aggregation", ["factors", "exact", "alternate", "freeze_a"])
def test_mixed_ranks_after_an_interruption_end_bit_equal(aggregation: str, new_run: NewRun) -> None:
    whole = federate(mixed(new_run("whole")), aggregation=aggregation)
    cut = mixed(new_run("cut"))
    again = federate_in_two_goes(cut, num_rounds=3, aggregation=aggregation)
    for number in range(1, 4):
        assert same(whole.adapter(number), again.adapter(number))
        assert whole.rounds()[number].rejected == []
    assert whole.regions()["north"]["rank"] == 1 and whole.regions()["south"]["rank"] == 2
    if aggregation in ("alternate", "freeze_a"):
        assert [record.bias for record in whole.rounds()[1:]] == [0.0] * 3


@pytest.mark.slow  # Ray; `test_engines` compares the engines with one rank in `make test`
@pytest.mark.timeout(900)
def test_both_engines_end_with_the_same_adapter(new_run: NewRun) -> None:
    local, flower = mixed(new_run("local")), mixed(new_run("flower"))
    ours = federate(local, num_rounds=2)
    patient = run_config(flower, describe_timeout_s=600)  # see `test_engines`
    command = [sys.executable, "-c", FLOWER, json.dumps(patient)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = History(flower / "headquarters")
    for mine, other in zip(ours.rounds(), theirs.rounds(), strict=True):
        assert mine.rejected == other.rejected == []
        assert mine.uplink_bytes == other.uplink_bytes
        adapter = theirs.adapter(mine.round)
        for name, tensor in ours.adapter(mine.round).items():
            torch.testing.assert_close(adapter[name], tensor, atol=1e-6, rtol=0, msg=name)


def test_a_federation_of_smaller_ranks_moves_its_components_alone(new_run: NewRun) -> None:
    run = new_run("run")
    for region in ("north", "south"):
        bound(run, region, 1)
    history = federate(run)
    start, end = history.adapter(0), history.adapter(3)
    for name in start:
        axis = rank_axis(name)
        if axis is not None:
            assert torch.equal(end[name].narrow(axis, 1, 1), start[name].narrow(axis, 1, 1))
            assert not torch.equal(end[name].narrow(axis, 0, 1), start[name].narrow(axis, 0, 1))


@pytest.mark.parametrize(
    ("knobs", "what"),
    [
        ({"strategy": "FedMedian"}, "FedMedian"),
        ({"control_variates": True, "optimizer": "sgd"}, "control-variates"),
    ],
)
def test_where_one_rank_is_wanted_a_smaller_one_is_refused_and_the_rest_go_on(
    knobs: dict[str, str | float], what: str, new_run: NewRun
) -> None:
    run = mixed(new_run("run"))
    history = federate(run, num_rounds=1, **knobs)
    for record in history.rounds():
        assert record.cohort == ["south"]
        (entry,) = record.rejected
        assert f'region "north": it trains rank 1 of 2, and {what} wants the' in entry["reason"]
    with pytest.raises(FederationError, match="1 of 2 nodes can take part, min-regions is 2"):
        federate(run, min_regions=2, **knobs)


def test_a_region_that_is_asked_for_control_variates_all_the_same_refuses(run: Path) -> None:
    worker = worker_of(mixed(run), "north")
    adapter = worker.encoder.adapter()
    with pytest.raises(ConfigError, match=r"rank, 2; remove worker\.max_rank, now 1, from region"):
        worker.train(adapter, settings(optimizer="sgd"), 1, control=adapter)


# -- one region ------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_update_holds_what_is_trained_and_nothing_else(encoding: str, run: Path) -> None:
    north = worker_of(mixed(run), "north")
    assert (north.rank, north.describe().rank, worker_of(run, "south").describe().rank) == (1, 1, 2)
    sent = History(run / "headquarters").adapter(0)
    trained = north.train(sent, settings(update_encoding=encoding), 1)
    form = {name: tensor.shape for name, tensor in within_rank(sent, 1).items()}
    assert {name: tensor.shape for name, tensor in trained.update.items()} == form
    if encoding == FLOAT32:  # the encoder ends where headquarters believes it to have ended
        moved = subtract(north.encoder.adapter(), sent)
        assert same(completed(trained.update, sent), moved)


def test_what_rounding_took_of_a_smaller_rank_is_in_the_next_update(run: Path) -> None:
    north, kept = worker_of(mixed(run), "north"), run / "regions/north/state/feedback"
    sent, config = History(run / "headquarters").adapter(0), settings()
    plain = north.train(sent, settings(update_encoding=FLOAT32), 2).update
    first = north.train(sent, config, 1).update
    lost = load_adapter(kept / "round-1.safetensors")
    assert {n: t.shape for n, t in lost.items()} == {n: t.shape for n, t in sent.items()}
    assert norm(lost) == pytest.approx(norm(within_rank(lost, 1))) and norm(lost) > 0
    again = north.train(sent, config, 1).update
    assert same(first, again)
    second = north.train(sent, config, 2).update
    left = within_rank(load_adapter(kept / "round-2.safetensors"), 1)
    for name, tensor in within_rank(lost, 1).items():  # what arrives and what is left is all of it
        whole = plain[name] + tensor
        torch.testing.assert_close(second[name] + left[name], whole, atol=1e-6, rtol=1e-5)


def test_what_lies_beyond_a_rank_that_was_lowered_waits(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sent, config = History(run / "headquarters").adapter(0), settings()
    kept = run / "regions/north/state/feedback"
    worker_of(run, "north").train(sent, config, 1)
    before = load_adapter(kept / "round-1.safetensors")
    bound(run, "north", 1)
    worker_of(run, "north").train(sent, config, 2)
    after = load_adapter(kept / "round-2.safetensors")
    beyond = 0.0
    for name in before:
        axis = rank_axis(name)
        if axis is not None:
            assert torch.equal(after[name].narrow(axis, 1, 1), before[name].narrow(axis, 1, 1))
            beyond += float(before[name].narrow(axis, 1, 1).abs().sum())
    assert beyond > 0
    assert "unreadable" not in caplog.text


def test_an_adapter_of_one_region_for_the_table_has_its_rank_too(run: Path) -> None:
    folder = bound(run, "north", 1, local_adapter=True)
    worker = get_worker(folder)
    sent, config = History(run / "headquarters").adapter(0), settings()
    alone = worker.train(sent, config, 1, purpose=wire.LOCAL).update
    assert same(alone, worker.train(sent, config, 1).update)


def test_baselines_train_what_their_regions_may(run: Path) -> None:
    mixed(run)
    workers = [worker_of(run, name) for name in ("north", "south")]
    pools = [*map(local_pool, workers), Pool("both", workers[0].training_data, workers)]
    config = parse_run_config(run_config("", num_rounds=2))
    for pool, moves in zip(pools, (False, True, True), strict=True):
        history = History(run / "alone" / pool.name)
        start = History(run / "headquarters").adapter(0)
        history.start(start, base_fingerprint="f")
        train_alone(pool, workers[0].encoder, config, history)
        end = history.adapter(2)
        second = [name for name in start if name.endswith(".lora_B.weight")]
        moved = any(
            not torch.equal(end[n].narrow(1, 1, 1), start[n].narrow(1, 1, 1)) for n in second
        )
        assert moved == moves


def test_a_deployed_region_announces_and_sends_the_same(run: Path) -> None:
    """Behind its worker's socket, whose path must be short, as in this process."""
    folder = Path(tempfile.mkdtemp(prefix="ranks-"))
    north = worker_of(mixed(run), "north")
    server = WorkerServer(north, folder / "run" / "worker.sock", group=None)
    server.start()
    node = {"worker-socket": str(folder / "run" / "worker.sock")}
    LocalGrid(app, 1, {})

    def ask(content: RecordDict, kind: str) -> RecordDict:
        context = Context(1, 2, node, RecordDict(), run_config(""))  # type: ignore[arg-type]
        return app(Message(content, dst_node_id=2, message_type=kind), context).content

    try:
        said = wire.read_description(ask(wire.describe_request(), wire.DESCRIBE))
        sent, config = History(run / "headquarters").adapter(0), settings()
        content = ask(wire.train_request(encode_adapter(sent), config, 1), "train")
    finally:
        server.stop()
        shutil.rmtree(folder)
    assert said.rank == 1
    reply = wire.read_train_reply(
        content,
        sent,
        encoding=config.update_encoding,
        max_examples=10**6,
        max_norm=100,
        rank=said.rank,
    )
    assert same(reply.update, completed(north.train(sent, config, 1).update, sent))
