"""An update of a smaller rank: exactly what was announced crosses, and zeros stand for the rest."""

from dataclasses import asdict
from itertools import pairwise
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, RecordDict

from shared import wire
from shared.adapter import Adapter, completed, norm, rank_of, trained_names, within_rank
from shared.compression import rounded
from shared.config import ENCODINGS, FLOAT32
from shared.errors import WireError
from shared.records import record_bytes

RANK = 4
SHAPES = {
    "fusion/gate": (2,),
    "image/conv.lora_A.weight": (2, 5, 1, 1),  # a pair of fewer components, as another tower's
    "image/conv.lora_B.weight": (4, 2, 1, 1),
    "text/x.lora_A.weight": (RANK, 6),
    "text/x.lora_B.weight": (7, RANK),
}


def draw(seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


SENT, UPDATE = draw(0), draw(1)


def shapes(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in adapter.items()}


def same(left: Adapter, right: Adapter) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def reply(update: Adapter, encoding: str = FLOAT32) -> RecordDict:
    return wire.train_reply(update, encoding=encoding, num_examples=3, loss=1.0, seconds=0.1)


def read(content: RecordDict, rank: int | None, **changes: Any) -> wire.TrainReply:
    known = {"sent": SENT, "encoding": FLOAT32, "max_examples": 9, "max_norm": 100.0, **changes}
    return wire.read_train_reply(content, known.pop("sent"), rank=rank, **known)


# -- what is within a rank -------------------------------------------------------------------------


def test_columns_of_b_and_rows_of_a_by_hand() -> None:
    part = within_rank({"x.lora_A.weight": torch.eye(2), "x.lora_B.weight": torch.eye(2)}, 1)
    assert part["x.lora_A.weight"].tolist() == [[1.0, 0.0]]
    assert part["x.lora_B.weight"].tolist() == [[1.0], [0.0]]


def test_a_pair_of_fewer_components_and_what_is_no_pair_stay_whole() -> None:
    assert rank_of(SENT) == RANK and rank_of({"fusion/gate": torch.zeros(2)}) == 0
    assert shapes(within_rank(SENT, 3)) == SHAPES | {
        "text/x.lora_A.weight": (3, 6),
        "text/x.lora_B.weight": (7, 3),
    }
    assert same(within_rank(SENT, RANK), SENT) and same(within_rank(SENT, 10**9), SENT)


@pytest.mark.parametrize("rank", range(1, RANK + 1))
def test_completing_adds_zeros_and_nothing_else(rank: int) -> None:
    part = within_rank(UPDATE, rank)
    whole = completed(part, SENT)
    assert shapes(whole) == SHAPES
    assert same(within_rank(whole, rank), part)
    assert norm(whole) == pytest.approx(norm(part))


# -- a reply of it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("rank", [1, 3, RANK])
def test_what_arrives_is_the_part_with_zeros(rank: int, encoding: str) -> None:
    part = rounded(within_rank(UPDATE, rank), encoding)
    found = read(reply(part, encoding), rank, encoding=encoding).update
    assert same(found, completed(part, SENT))


def test_the_whole_rank_is_read_as_if_nothing_was_announced() -> None:
    assert same(read(reply(UPDATE), RANK).update, read(reply(UPDATE), None).update)


def test_bytes_shrink_in_proportion() -> None:
    factors = {name: SENT[name] for name in SENT if name.startswith("text/")}
    numbers = [
        sum(array.numel() for array in within_rank(factors, rank).values())
        for rank in range(1, RANK + 1)
    ]
    assert numbers == [(6 + 7) * rank for rank in range(1, RANK + 1)]
    sizes = [record_bytes(reply(within_rank(factors, rank))) for rank in range(1, RANK + 1)]
    assert {b - a for a, b in pairwise(sizes)} == {4 * (6 + 7)}


@pytest.mark.parametrize("factors", ["a", "b"])
def test_one_factor_alone_has_a_rank_too(factors: str) -> None:
    names = trained_names(SENT, factors)
    sent, update = ({n: whole[n] for n in names} for whole in (SENT, UPDATE))
    found = read(reply(within_rank(update, 2)), 2, sent=sent).update
    assert same(found, completed(within_rank(update, 2), sent))


@pytest.mark.parametrize(
    ("found", "announced"), [(3, 2), (RANK, 2), (1, 2), (1, RANK), (3, RANK), (3, None)]
)
def test_another_rank_than_was_announced_is_refused(found: int, announced: int | None) -> None:
    sent, update = (
        {name: whole[name] for name in SHAPES if name.startswith("text/")}
        for whole in (SENT, UPDATE)
    )
    reason = rf"text/x\.lora_A\.weight: of rank {found}, announced was {announced or RANK}$"
    with pytest.raises(WireError, match=reason):
        read(reply(within_rank(update, found)), announced, sent=sent)


def test_a_rank_of_nothing_is_refused() -> None:
    empty = {name: tensor.clone() for name, tensor in UPDATE.items()}
    empty["text/x.lora_A.weight"] = torch.zeros(0, 6)
    with pytest.raises(WireError, match=r"x\.lora_A\.weight: of rank 0, announced was 2"):
        read(reply(empty), 2)


def test_one_factor_of_another_rank_than_its_partner_is_refused() -> None:
    update = within_rank(UPDATE, 2)
    update["text/x.lora_B.weight"] = UPDATE["text/x.lora_B.weight"]
    with pytest.raises(WireError, match=r"x\.lora_B\.weight: of rank 4, announced was 2"):
        read(reply(update), 2)


def test_another_width_is_no_question_of_rank() -> None:
    update = within_rank(UPDATE, 2)
    update["text/x.lora_A.weight"] = torch.zeros(2, 5)
    with pytest.raises(WireError, match=r"float32 \(2, 5\), expected float32 \(2, 6\)"):
        read(reply(update), 2)


def test_the_norm_is_bounded_as_ever() -> None:
    update = {name: 1e3 * tensor for name, tensor in within_rank(UPDATE, 2).items()}
    with pytest.raises(WireError, match=r"update norm .* is above the bound 100"):
        read(reply(update), 2)


def test_control_variates_are_of_the_whole_rank() -> None:
    part = within_rank(UPDATE, 2)
    content = wire.train_reply(
        part, encoding=FLOAT32, num_examples=3, loss=1.0, seconds=0.1, control_change=part
    )
    with pytest.raises(WireError, match=r"float32 \(2, 6\), expected float32 \(4, 6\)"):
        read(content, 2, control=True)


# -- the announcement ------------------------------------------------------------------------------


def description(**changes: Any) -> RecordDict:
    counts = dict.fromkeys(("num_products", "num_examples", "num_validation_queries"), 4)
    said = wire.Description(
        region="north",
        protocol_version=wire.PROTOCOL_VERSION,
        base_fingerprint="b" * 64,
        schema_hash="c" * 64,
        rank=3,
        code_version="0.1.0",
        device="cpu",
        release=0,
        num_gate_queries=0,
        verdict="",
        verdict_release=0,
        verdict_reason="",
        in_matrix=False,
        shares_local=False,
        named=False,
        **counts,
    )
    values = {name.replace("_", "-"): value for name, value in asdict(said).items()} | changes
    return RecordDict({"config": ConfigRecord({k: v for k, v in values.items() if v is not None})})


def test_the_rank_comes_back_as_it_was_announced() -> None:
    assert wire.read_description(description()).rank == 3


@pytest.mark.parametrize("rank", [None, "3", 3.0, True, [3]])
def test_no_rank_and_what_is_none_are_refused(rank: object) -> None:
    with pytest.raises(WireError, match='description: "rank" is missing or not of type int'):
        wire.read_description(description(rank=rank))


def test_an_older_region_that_announces_none_is_refused_for_its_protocol() -> None:
    ours = wire.PROTOCOL_VERSION
    older = description(**{"rank": None, "protocol-version": ours - 1})
    told = f"^protocol {ours - 1}, headquarters speaks {ours}; install the same"
    with pytest.raises(WireError, match=told):
        wire.read_description(older)
