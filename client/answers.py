"""What a region answers to each kind of message: decode, let the worker do it, encode.

The one list of what a region can be asked. The same function answers in a simulation, where the
ClientApp calls it in its own process, and behind the worker's socket (`client.rpc`).
"""

from flwr.app import RecordDict

from client.worker import Worker
from shared import wire, wire_evaluation
from shared.errors import WireError


def answer(worker: Worker, kind: str, content: RecordDict) -> RecordDict:
    """Answer one message.

    Args:
        worker: the region's.
        kind: Flower's message type: "query.describe", "train" or "evaluate".
        content: of the message.

    Returns:
        The content of the reply.

    Raises:
        WireError: another kind, or a content that is not the agreed form.
        FedshelfError: what the worker raises.
    """
    if kind not in _ANSWERS:
        raise WireError(f"a message of an unknown kind; known: {', '.join(_ANSWERS)}")
    return _ANSWERS[kind](worker, content)


def _describe(worker: Worker, content: RecordDict) -> RecordDict:
    return wire.describe_reply(worker.describe())


def _train(worker: Worker, content: RecordDict) -> RecordDict:
    asked = wire.read_train_request(content)
    trained = worker.train(
        asked.adapter,
        asked.config,
        asked.server_round,
        purpose=asked.purpose,
        control=asked.control,
        counted=asked.counted,
        federation=asked.statistics,
        gaussians=asked.gaussians,
    )
    return wire.train_reply(
        trained.update,
        encoding=asked.config.update_encoding,
        num_examples=trained.num_examples,
        loss=trained.loss,
        seconds=trained.seconds,
        control_change=trained.control_change,
        statistics=trained.statistics,
        gaussian=trained.gaussian,
    )


def _evaluate(worker: Worker, content: RecordDict) -> RecordDict:
    asked = wire_evaluation.read_evaluate_request(content)
    if asked.purpose == wire_evaluation.VALIDATION:
        num_examples, metrics = worker.evaluate(asked.adapter)
        return wire_evaluation.evaluate_reply(metrics, num_examples=num_examples)
    num_queries, metrics, differences = worker.compare(
        asked.adapter, asked.references, purpose=asked.purpose
    )
    return wire_evaluation.comparison_reply(metrics, differences, num_queries=num_queries)


_ANSWERS = {wire.DESCRIBE: _describe, "train": _train, "evaluate": _evaluate}
