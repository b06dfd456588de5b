"""An update is a difference: what was sent plus the update is what a region ended with."""

from pathlib import Path

import pytest
import torch

from shared.adapter import (
    Adapter,
    add,
    interpolate,
    load_adapter,
    norm,
    paired,
    parted,
    require_same_form,
    save_adapter,
    schema_hash,
    subtract,
)
from shared.errors import FederationError, WireError


@pytest.fixture
def sent() -> Adapter:
    return {"b": torch.tensor([[1.0, 2.0]]), "a": torch.tensor(3.0)}


@pytest.fixture
def ended() -> Adapter:
    return {"a": torch.tensor(5.5), "b": torch.tensor([[1.0, -2.0]])}


def test_between_two_adapters_by_hand(sent: Adapter, ended: Adapter) -> None:
    half = interpolate(sent, ended, 0.5)
    assert list(half) == ["a", "b"]
    assert half["a"].item() == 4.25
    assert half["b"].tolist() == [[1.0, 0.0]]


def test_both_ends_of_the_way_are_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    start, end = ({"a": torch.randn(999, generator=generator)} for _ in range(2))
    assert interpolate(start, end, 0.0)["a"].equal(start["a"])
    assert interpolate(start, end, 1.0)["a"].equal(end["a"])
    assert interpolate(start, start, 0.3)["a"].equal(start["a"])


def test_a_pair_comes_apart_again(sent: Adapter, ended: Adapter) -> None:
    pair = paired(sent, ended, 0.25)
    assert list(pair) == ["a", "b", "home-share", "home/a", "home/b"]
    own, home, share = parted(pair)
    assert same(own, sent) and same(home, ended) and share == 0.25
    assert parted(sent) == (sent, {}, 0.0)


def same(left: Adapter, right: Adapter) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_sent_plus_update_is_where_the_region_ended(sent: Adapter, ended: Adapter) -> None:
    assert same(add(sent, subtract(ended, sent)), ended)
    assert same(subtract(ended, sent), {"a": torch.tensor(2.5), "b": torch.tensor([[0.0, -4.0]])})


def test_nothing_learned_is_no_update(sent: Adapter) -> None:
    assert norm(subtract(sent, sent)) == 0.0


def test_the_norm_is_that_of_all_numbers_together() -> None:
    assert norm({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}) == 5.0
    assert norm({"a": torch.tensor(1e30), "b": torch.tensor(0.0)}) == pytest.approx(1e30)


def test_the_schema_is_names_and_dtypes(sent: Adapter, ended: Adapter) -> None:
    assert schema_hash(sent) == schema_hash(ended)  # neither values nor order
    assert schema_hash({**sent, "b": torch.zeros(7, 2)}) == schema_hash(sent)  # ranks may differ
    assert schema_hash({**sent, "c": torch.zeros(1)}) != schema_hash(sent)
    assert schema_hash({**sent, "a": torch.tensor(3)}) != schema_hash(sent)


def test_what_was_saved_is_loaded(tmp_path: Path, sent: Adapter) -> None:
    transposed = {**sent, "t": torch.arange(6.0).view(2, 3).T}
    save_adapter(tmp_path / "new" / "one.safetensors", transposed, {"round": "1"})
    assert same(load_adapter(tmp_path / "new" / "one.safetensors"), transposed)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["one.safetensors"]


def test_a_missing_or_damaged_file_is_named(tmp_path: Path, sent: Adapter) -> None:
    path = tmp_path / "one.safetensors"
    with pytest.raises(FederationError, match=r"one\.safetensors: not found"):
        load_adapter(path)
    save_adapter(path, sent, {})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FederationError, match=r"one\.safetensors: damaged; remove the run folder"):
        load_adapter(path)


@pytest.mark.parametrize("position", [-1, -9, 60])  # two numbers, and a letter of the header
def test_a_flipped_byte_is_found(tmp_path: Path, sent: Adapter, position: int) -> None:
    path = tmp_path / "one.safetensors"
    save_adapter(path, sent, {"round": "1"})
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)
    with pytest.raises(FederationError, match=r"one\.safetensors: damaged; remove the run folder"):
        load_adapter(path)


def test_the_first_tensor_of_another_form_is_named(sent: Adapter) -> None:
    require_same_form(sent, sent)
    with pytest.raises(WireError, match="a: found nothing, expected"):
        require_same_form({"b": sent["b"]}, sent)
    with pytest.raises(WireError, match=r"b: found \(2, 1\), expected \(1, 2\)"):
        require_same_form({**sent, "b": sent["b"].T}, sent)
    with pytest.raises(WireError, match=r"c: found \(\), expected nothing"):
        require_same_form({**sent, "c": sent["a"]}, sent)
