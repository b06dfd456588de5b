"""A packed batch gives the vectors and gradients of a padded one, and never mixes its texts."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from shared.encoders.packing import Grid, enable_packing, pack, packed
from shared.encoders.text import TextConfig, TextTower

TEXTS = ["red boots", "a much longer title of a product", "x", "", "red boots"]
CPU = torch.device("cpu")
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
MODELS = [
    (BertConfig, BertModel),
    (RobertaConfig, RobertaModel),
    (XLMRobertaConfig, XLMRobertaModel),
]


def write_model(folder: Path, tiny_base: Path, config_class: type, model_class: type) -> Path:
    """A random model of a kind, with the tokenizer of the tiny base."""
    shutil.copytree(tiny_base / "text", folder, ignore=lambda *_: ["model.safetensors"])
    vocab_size = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    torch.manual_seed(0)
    config = config_class(vocab_size=vocab_size, num_attention_heads=2, **SIZES)
    model_class(config).save_pretrained(folder)
    return folder


def tower_of(folder: Path, adapter_blocks: int) -> TextTower:
    tower = TextTower(folder, TextConfig("any", None, "mean", 24, False, adapter_blocks, 2, 4), CPU)
    with torch.no_grad():
        for name, parameter in tower.peft.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.linspace(-0.3, 0.3, parameter.numel()).view_as(parameter))
    return tower


def gradients(tower: TextTower, vectors: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, vectors.numel()).view_as(vectors)
    parameters = [p for p in tower.peft.parameters() if p.requires_grad]
    return list(torch.autograd.grad((vectors * weights).sum(), parameters))


def whole(tower: TextTower) -> Tensor:
    """Vectors of the whole adapted model on a padded batch."""
    ids, mask = tower.tokenize(TEXTS)
    hidden = tower.peft(input_ids=ids, attention_mask=mask).last_hidden_state
    mean = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    return nn.functional.normalize(mean, dim=1)


@pytest.mark.parametrize("adapter_blocks", [1, 2])
@pytest.mark.parametrize(("config_class", "model_class"), MODELS)
def test_vectors_and_gradients_are_those_of_the_padded_model(
    tmp_path: Path, tiny_base: Path, config_class: type, model_class: type, adapter_blocks: int
) -> None:
    folder = write_model(tmp_path / "text", tiny_base, config_class, model_class)
    tower = tower_of(folder, adapter_blocks)
    assert tower._packs
    vectors, expected = tower.suffix(*pack(tower.prefix(TEXTS))), whole(tower)
    torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-6)
    ours, theirs = gradients(tower, vectors), gradients(tower, expected)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("config_class", "model_class"),
    [(ModernBertConfig, ModernBertModel), (BertConfig, BertModel)],
    ids=["turns by position", "decodes"],
)
def test_what_knows_a_place_in_its_blocks_is_not_packed(
    config_class: type, model_class: type
) -> None:
    config = config_class(
        num_attention_heads=2, vocab_size=99, pad_token_id=0, is_decoder=True, **SIZES
    )
    model: PreTrainedModel = model_class(config)
    before = model.config._attn_implementation
    assert not enable_packing(model)
    assert model.config._attn_implementation == before


def test_a_tower_that_is_not_packed_is_padded(tmp_path: Path, tiny_base: Path) -> None:
    shutil.copytree(tiny_base / "text", tmp_path / "text", ignore=lambda *_: ["model.safetensors"])
    config = DistilBertConfig(vocab_size=300, dim=32, hidden_dim=64, n_layers=3, n_heads=2)
    torch.manual_seed(0)
    DistilBertModel(config).save_pretrained(tmp_path / "text")
    tower = tower_of(tmp_path / "text", 2)
    assert not tower._packs
    vectors = tower.suffix(*pack(tower.prefix(TEXTS)))
    torch.testing.assert_close(vectors, whole(tower), rtol=0, atol=1e-6)


def test_a_grid_by_hand() -> None:
    tokens, lengths = pack([torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]]).half()])
    assert tokens.tolist() == [[1.0], [2.0], [3.0]]
    assert (tokens.dtype, lengths.tolist()) == (torch.float32, [2, 1])
    grid = Grid(lengths, CPU)
    assert grid.mask.tolist() == [[True, True], [True, False]]
    assert grid.spread(tokens).tolist() == [[[1.0], [2.0]], [[3.0], [0.0]]]
    assert torch.equal(grid.gather(grid.spread(tokens)), tokens)


def test_only_inside_the_context_is_a_batch_packed(tmp_path: Path, tiny_base: Path) -> None:
    folder = write_model(tmp_path / "text", tiny_base, BertConfig, BertModel)
    tower, grid = tower_of(folder, 1), Grid(torch.tensor([2, 3]), CPU)
    before = tower.encode(TEXTS)
    with pytest.raises(KeyboardInterrupt), packed(grid):
        raise KeyboardInterrupt
    assert torch.equal(tower.encode(TEXTS), before)
