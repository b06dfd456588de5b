"""Questions of quality come back as they went; a malformed question or answer is refused."""

import math
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from shared.adapter import Adapter
from shared.errors import WireError
from shared.records import encode_adapter
from shared.wire_evaluation import (
    GATE,
    Difference,
    EvaluateReply,
    comparison_reply,
    evaluate_reply,
    evaluate_request,
    read_comparison_reply,
    read_evaluate_reply,
    read_evaluate_request,
)


@pytest.fixture
def sent() -> Adapter:
    return {"a": torch.zeros(3, 4), "b": torch.tensor(0.5)}


def same(left: Adapter, right: Adapter) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_a_question_comes_back_as_it_went(sent: Adapter) -> None:
    asked = read_evaluate_request(evaluate_request(encode_adapter(sent), 2))
    assert same(asked.adapter, sent)
    assert (asked.server_round, asked.purpose, asked.references) == (2, "validation", {})


def test_a_question_with_references_comes_back_as_it_went(sent: Adapter) -> None:
    other = {name: tensor + 1 for name, tensor in sent.items()}
    references = {0: encode_adapter(sent), 12: encode_adapter(other)}
    content = evaluate_request(encode_adapter(other), 2, purpose=GATE, references=references)
    asked = read_evaluate_request(content)
    assert asked.purpose == "gate" and asked.references.keys() == {0, 12}
    assert same(asked.references[0], sent) and same(asked.references[12], other)
    assert same(asked.adapter, other)


@pytest.mark.parametrize(
    ("metrics", "number"), [({"ndcg@10": 0.5, "mrr@10": 1.0, "recall@10": 0.0}, 7), ({}, 0)]
)
def test_an_answer_comes_back_as_it_went(metrics: dict[str, float], number: int) -> None:
    content = evaluate_reply(metrics, num_examples=number)
    assert read_evaluate_reply(content, max_examples=7) == EvaluateReply(number, metrics)


@pytest.mark.parametrize(
    ("metrics", "num_examples", "reason"),
    [
        ({"mrr@10": math.nan}, 5, 'metric "mrr@10" is missing or not a finite number'),
        ({"mrr@10": 1.01}, 5, r'metric "mrr@10" is 1.01, must be in \[0, 1\]'),
        ({"mrr@10": -0.5}, 5, r'metric "mrr@10" is -0.5, must be in \[0, 1\]'),
        ({"mrr@10": 0.5}, 11, r"num-examples is .* within 0\.\.10"),
        ({"mrr@10": 0.5}, -1, r"num-examples is .* within 0\.\.10"),
    ],
)
def test_a_malformed_evaluation_is_refused(
    metrics: dict[str, float], num_examples: int, reason: str
) -> None:
    content = evaluate_reply(metrics, num_examples=num_examples)
    with pytest.raises(WireError, match=reason):
        read_evaluate_reply(content, max_examples=10)


@pytest.mark.parametrize("name", ["", "a secret query", "x\ny", "ndcg" * 20, "Ärger"])
def test_what_a_region_calls_its_metrics_is_not_quoted(name: str) -> None:
    content = evaluate_reply({name: 0.5}, num_examples=5)
    with pytest.raises(WireError) as caught:
        read_evaluate_reply(content, max_examples=10)
    assert str(caught.value) == "a metric has a name that is none, such as ndcg@10"


def test_an_evaluation_without_a_record_is_refused() -> None:
    with pytest.raises(WireError, match='no metric record "metrics"'):
        read_evaluate_reply(RecordDict(), max_examples=10)


def comparison(**changes: Any) -> RecordDict:
    found = {
        0: Difference(5, 0.1, 0.02),
        7: Difference(5, -0.2, 0.0),
    }
    content = comparison_reply({"ndcg@10": 0.5}, found, num_queries=5)
    values = {**content.metric_records["metrics"], **changes}
    return RecordDict(
        {"metrics": MetricRecord({name: v for name, v in values.items() if v is not None})}
    )


def test_a_comparison_comes_back_as_it_went() -> None:
    reply, differences = read_comparison_reply(comparison(), [0, 7], max_examples=10)
    assert reply == EvaluateReply(5, {"ndcg@10": 0.5})
    assert differences == {
        0: Difference(5, 0.1, 0.02),
        7: Difference(5, -0.2, 0.0),
    }


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"difference-7": None}, '"difference-7" is missing'),
        ({"variance-0": math.nan}, '"variance-0" is missing or not a finite number'),
        ({"variance-0": -0.1}, "difference to 0 is outside"),
        ({"difference-7": 1.5}, "difference to 7 is outside"),
        ({"num-examples": -1}, "num-examples is missing or not a count"),
        ({"ndcg@10": 2.0}, 'metric "ndcg@10" is 2'),
        ({"red boots": 0.5}, "a metric has a name that is none"),
    ],
)
def test_a_malformed_comparison_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        read_comparison_reply(comparison(**changes), [0, 7], max_examples=10)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"purpose": "theft"}, "purpose is none of validation, gate, matrix"),
        ({"purpose": None}, "missing or unknown settings"),
        ({"server-round": "1"}, "missing or unknown settings"),
        ({"path": "/etc/passwd"}, "missing or unknown settings"),
    ],
)
def test_a_malformed_evaluate_message_is_refused(
    sent: Adapter, change: dict[str, Any], reason: str
) -> None:
    content = evaluate_request(encode_adapter(sent), 1)
    values = {**content.config_records["config"], **change}
    content["config"] = ConfigRecord({name: v for name, v in values.items() if v is not None})
    with pytest.raises(WireError, match=reason):
        read_evaluate_request(content)


def test_an_array_record_that_is_no_reference_is_refused(sent: Adapter) -> None:
    content = evaluate_request(encode_adapter(sent), 1)
    content["reference-../1"] = encode_adapter(sent)
    with pytest.raises(WireError, match="an array record that is no reference"):
        read_evaluate_request(content)
