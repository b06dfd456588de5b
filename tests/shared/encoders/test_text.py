"""A text's vector depends on the text alone, whether the tower masks padding or attends to it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import SiglipTextConfig, SiglipTextModel

from shared.encoders.encoder import Encoder
from shared.encoders.packing import pack
from shared.encoders.text import TextConfig, TextTower, check_text_folder, load_text_model
from shared.errors import BaseError

TEXTS = ["red boots", "a much longer title of a product", "x", ""]
CPU = torch.device("cpu")


@pytest.fixture
def attending(tmp_path: Path, tiny_base: Path) -> TextTower:
    """A random SigLIP text tower: no mask, pooled at the last position."""
    shutil.copytree(tiny_base / "text", tmp_path / "text", ignore=lambda *_: ["model.safetensors"])
    vocab_size = len(json.loads((tmp_path / "text/tokenizer.json").read_text())["model"]["vocab"])
    torch.manual_seed(0)
    config = SiglipTextConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        projection_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=12,
    )
    SiglipTextModel(config).save_pretrained(tmp_path / "text")
    return TextTower(
        tmp_path / "text",
        TextConfig("siglip", None, "pooler", 12, True, adapter_blocks=1, rank=2, alpha=4),
        CPU,
    )


def vectors(tower: TextTower, texts: list[str]) -> Tensor:
    return tower.suffix(*pack(tower.prefix(texts))).detach()


def test_a_tower_that_attends_to_padding_is_always_padded(attending: TextTower) -> None:
    plain = load_text_model(attending.tokenizer.name_or_path)
    ids = [attending.tokenizer(text, truncation=True, max_length=12)["input_ids"] for text in TEXTS]
    padded = torch.tensor([row + [0] * (12 - len(row)) for row in ids])  # (B, 12); [PAD] is 0
    with torch.no_grad():
        expected = nn.functional.normalize(plain(input_ids=padded).pooler_output, dim=1)
    torch.testing.assert_close(vectors(attending, TEXTS), expected, rtol=0, atol=1e-6)


def test_without_padding_that_tower_would_give_other_vectors(attending: TextTower) -> None:
    padded = vectors(attending, ["x"])
    attending.config = replace(attending.config, pad_to_max=False)
    assert not torch.allclose(vectors(attending, ["x"]), padded, atol=1e-2)


def test_gradients_reach_only_the_factors_of_that_tower(attending: TextTower) -> None:
    attending.suffix(*pack(attending.prefix(TEXTS)))[:, 0].sum().backward()
    for name, parameter in attending.peft.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name), name


@pytest.mark.parametrize("kind", ["masks", "attends"])
def test_the_company_of_a_text_does_not_matter(
    encoder: Encoder, attending: TextTower, kind: str
) -> None:
    tower = encoder.text if kind == "masks" else attending
    alone = torch.cat([vectors(tower, [text]) for text in TEXTS])
    torch.testing.assert_close(vectors(tower, TEXTS), alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(vectors(tower, TEXTS[::-1]).flip(0), alone, rtol=0, atol=1e-6)


def test_a_text_is_kept_without_its_padding(encoder: Encoder, attending: TextTower) -> None:
    # One piece a letter, [CLS] and [SEP].
    assert [len(row) for row in encoder.text.prefix(["red boots", "x", ""])] == [10, 3, 2]
    assert [len(row) for row in attending.prefix(["red boots", "x", ""])] == [12, 12, 12]


def test_a_text_is_cut_at_the_maximum(encoder: Encoder) -> None:
    limit = encoder.base.text.max_tokens
    assert [len(row) for row in encoder.text.prefix(["x " * 100, "x " * (limit - 2)])] == [
        limit
    ] * 2
    assert torch.equal(vectors(encoder.text, ["x " * 100]), vectors(encoder.text, ["x " * 200]))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_an_incomplete_folder_is_named(tmp_path: Path, tiny_base: Path, name: str) -> None:
    shutil.copytree(tiny_base / "text", tmp_path / "text")
    check_text_folder(tmp_path / "text")
    (tmp_path / "text" / name).unlink()
    with pytest.raises(BaseError, match=f"text: {name} is missing"):
        check_text_folder(tmp_path / "text")


@pytest.mark.parametrize("architecture", ["NoSuchModel", "AutoModel", "BertConfig"])
def test_a_class_that_is_no_model_is_refused(
    tmp_path: Path, tiny_base: Path, architecture: str
) -> None:
    config = json.loads((tiny_base / "text/config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": [architecture]}))
    with pytest.raises(BaseError, match=f"architecture {architecture} is not in transformers"):
        load_text_model(tmp_path)
