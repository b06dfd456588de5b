"""What a region answers to each kind of message is what its worker says, and nothing else."""

from pathlib import Path

import pytest
from flwr.app import RecordDict
from small_world import federation, prepare_run, write_fashion

from client.answers import answer
from client.worker import Worker, forget_workers, get_worker
from shared import wire, wire_evaluation
from shared.config import INT8
from shared.errors import WireError
from shared.records import encode_adapter


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    prepare_run(folder / "run", write_fashion(folder / "fashion"))
    return folder / "run"


@pytest.fixture
def worker(run: Path) -> Worker:
    forget_workers()
    worker = get_worker(run / "regions" / "north")
    worker.encoder.reset(seed=7)
    return worker


def test_it_describes(worker: Worker) -> None:
    reply = answer(worker, wire.DESCRIBE, wire.describe_request())
    assert wire.read_description(reply) == worker.describe()


def test_it_trains(worker: Worker, run: Path) -> None:
    adapter, config = worker.encoder.adapter(), federation(run).train_config(1)
    request = wire.train_request(encode_adapter(adapter), config, 1)
    reply = wire.read_train_reply(
        answer(worker, "train", request), adapter, encoding=INT8, max_examples=10**6, max_norm=100
    )
    trained = worker.train(adapter, config, 1)
    assert (reply.num_examples, reply.loss) == (trained.num_examples, trained.loss)
    assert all((reply.update[name] == trained.update[name]).all() for name in adapter)


def test_it_evaluates(worker: Worker) -> None:
    adapter = worker.encoder.adapter()
    reply = answer(worker, "evaluate", wire_evaluation.evaluate_request(encode_adapter(adapter), 1))
    measured = wire_evaluation.read_evaluate_reply(reply, max_examples=10**6)
    assert (measured.num_examples, measured.metrics) == worker.evaluate(adapter)


def test_it_compares(worker: Worker) -> None:
    candidate = worker.encoder.adapter()
    worker.encoder.reset(seed=8)
    reference = worker.encoder.adapter()
    request = wire_evaluation.evaluate_request(
        encode_adapter(candidate),
        1,
        purpose=wire_evaluation.GATE,
        references={3: encode_adapter(reference)},
    )
    reply, differences = wire_evaluation.read_comparison_reply(
        answer(worker, "evaluate", request), [3], max_examples=10**6
    )
    expected = worker.compare(candidate, {3: reference}, purpose=wire_evaluation.GATE)
    assert (reply.num_examples, reply.metrics, differences) == expected


@pytest.mark.parametrize("kind", ["", "query", "query.clicks", "system", "../train", "Train"])
def test_nothing_else_can_be_asked(worker: Worker, kind: str) -> None:
    with pytest.raises(WireError, match="unknown kind"):
        answer(worker, kind, RecordDict())


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_an_empty_message_is_refused(worker: Worker, kind: str) -> None:
    with pytest.raises(WireError):
        answer(worker, kind, RecordDict())
