"""A residual beside the adapter: what it adds, who may see it, and how a release holds it."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from test_lora import PEFT_ASKS, our_image_vectors, our_text_vectors, text_vectors

from shared.adapter import (
    Adapter,
    as_factors,
    as_residual,
    factor_names,
    is_residual,
    residual_names,
    schema_hash,
    trained_names,
)
from shared.encoders.encoder import Encoder
from shared.encoders.text import load_text_model
from shared.errors import WireError

RANK = 3


@pytest.fixture
def whole(trained: Adapter) -> Adapter:
    """The trained adapter with a residual."""
    generator, residual = torch.Generator().manual_seed(5), Adapter()
    for layer, (up, down) in factor_names(trained).items():
        kept_up, kept_down = residual_names(layer)
        out, width = len(trained[up]), trained[down].shape[1:]
        axes = trained[up].shape[2:]
        residual[kept_up] = 0.1 * torch.randn((out, RANK, *axes), generator=generator)
        residual[kept_down] = 0.1 * torch.randn((RANK, *width), generator=generator)
    return dict(sorted({**trained, **residual}.items()))


def same(a: Adapter, b: Adapter) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_what_was_loaded_is_there_and_can_be_taken_out(
    encoder: Encoder, trained: Adapter, whole: Adapter, photos: list[Path]
) -> None:
    encoder.load_adapter(trained)
    without = our_text_vectors(encoder), our_image_vectors(encoder, photos)
    encoder.load_adapter(whole)
    assert same(encoder.adapter(), whole)
    added = our_text_vectors(encoder), our_image_vectors(encoder, photos)
    for before, after in zip(without, added, strict=True):
        assert not torch.allclose(before, after, atol=1e-3)
    encoder.load_adapter(trained)
    assert same(encoder.adapter(), trained)
    assert torch.equal(our_text_vectors(encoder), without[0])


def test_zeros_add_nothing(encoder: Encoder, trained: Adapter, whole: Adapter) -> None:
    encoder.load_adapter(trained)
    before = our_text_vectors(encoder)
    encoder.load_adapter({n: 0 * t if is_residual(n) else t for n, t in whole.items()})
    torch.testing.assert_close(our_text_vectors(encoder), before)


def test_it_is_never_trained_and_no_part_of_schema_or_update(
    encoder: Encoder, trained: Adapter, whole: Adapter
) -> None:
    schema = schema_hash(encoder.adapter())
    encoder.load_adapter(whole)
    assert schema_hash(whole) == schema_hash(encoder.adapter()) == schema
    assert trained_names(whole, "both") == sorted(trained)
    assert encoder.update(whole).keys() == trained.keys()
    assert len(encoder.trainable()) == len(trained)


def test_the_base_alone_is_without_it(encoder: Encoder, whole: Adapter) -> None:
    encoder.reset(seed=0)
    base = our_text_vectors(encoder)
    encoder.load_adapter(whole)
    with encoder.text.peft.disable_adapter():
        torch.testing.assert_close(our_text_vectors(encoder), base, atol=1e-6, rtol=0)
    assert same(encoder.adapter(), whole)
    assert not torch.allclose(our_text_vectors(encoder), base, atol=1e-3)


@pytest.mark.parametrize("taking_part", [True, False])
def test_a_replica_keeps_its_own(
    taking_part: bool, encoder: Encoder, trained: Adapter, whole: Adapter
) -> None:
    """Training swaps adapters while the replica serves."""
    encoder.load_adapter(whole)
    if not taking_part:
        encoder.load_adapter(trained)
    replica = encoder.replica()
    replica.load_adapter(whole)
    before = our_text_vectors(replica)
    encoder.load_adapter({n: t + 1 if is_residual(n) else t for n, t in whole.items()})
    assert torch.equal(our_text_vectors(replica), before)
    assert same(replica.adapter(), whole)


@pytest.mark.filterwarnings(PEFT_ASKS)
def test_a_release_is_one_rank_for_plain_peft_and_comes_back_bit_for_bit(
    tmp_path: Path, encoder: Encoder, whole: Adapter, tiny_base: Path
) -> None:
    encoder.load_adapter(whole)
    ours, digest = our_text_vectors(encoder), encoder.digest
    encoder.save_release_files(tmp_path)
    model = load_text_model(tiny_base / "text")
    model.pooler = None  # unused under mean pooling, and not in the adapter
    plain = PeftModel.from_pretrained(model, tmp_path / "text").eval()
    own = encoder.text.peft.peft_config["default"]
    found = plain.peft_config["default"]
    assert found.r == own.r + RANK
    assert found.lora_alpha / found.r == pytest.approx(own.lora_alpha / own.r)
    torch.testing.assert_close(ours, text_vectors(encoder, plain), rtol=0, atol=1e-6)
    encoder.reset(seed=3)
    encoder.load_release(tmp_path)
    assert same(encoder.adapter(), whole)
    assert encoder.digest == digest


def test_another_rank_takes_its_place(encoder: Encoder, whole: Adapter) -> None:
    encoder.load_adapter(whole)
    narrow = {
        name: tensor.narrow(int(name.endswith("_B.weight")), 0, 1) if is_residual(name) else tensor
        for name, tensor in whole.items()
    }
    encoder.load_adapter(narrow)
    assert same(encoder.adapter(), narrow)


def test_names_go_there_and_back(whole: Adapter) -> None:
    residual = {name: tensor for name, tensor in whole.items() if is_residual(name)}
    assert same(as_residual(as_factors(residual)), residual)


def test_a_residual_that_does_not_fit_is_refused_and_nothing_changes(
    encoder: Encoder, trained: Adapter, whole: Adapter
) -> None:
    encoder.load_adapter(trained)
    name = next(name for name in whole if is_residual(name) and name.endswith("_B.weight"))
    missing = {key: tensor for key, tensor in whole.items() if key != name}
    wider = {**whole, name: torch.cat([whole[name], whole[name]], dim=1)}
    for bad in (missing, wider):
        with pytest.raises(WireError, match=r"residual_B\.weight: found"):
            encoder.load_adapter(bad)
        assert same(encoder.adapter(), trained)
