"""Prefix then suffix is the whole model, with the same gradients; alone it is what it was."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from shared.encoders.encoder import Encoder
from shared.encoders.image import ImageConfig, ImageTower, create_image_model, load_pixels
from shared.encoders.packing import pack
from shared.encoders.presets import HALF
from shared.encoders.split import SplitTower, find_blocks
from shared.encoders.text import TextTower, load_text_model
from shared.errors import BaseError

TEXTS = ["red boots", "a much longer title of a product", "x"]
NETS = ["test_efficientnet", "test_vit", "test_convnext"]
CPU = torch.device("cpu")


def image_tower(folder: Path, name: str, adapter_blocks: int) -> ImageTower:
    """A random net with batch-norm statistics that are not the initial 0 and 1."""
    config = ImageConfig(name, None, 16, 32, HALF, HALF, adapter_blocks, rank=2, alpha=4)
    torch.manual_seed(0)
    state = create_image_model(config).state_dict()
    moved = {
        key: tensor + 0.3 * torch.rand(tensor.shape) if tensor.is_floating_point() else tensor
        for key, tensor in state.items()
    }
    save_file(moved, folder / "model.safetensors")
    return ImageTower(folder, config, CPU)


def pixels_of(tower: ImageTower, photos: list[Path]) -> Tensor:
    return tower.normalize(np.stack([load_pixels(path, 32) for path in photos]))


def perturb(peft: nn.Module) -> None:
    torch.manual_seed(1)
    for parameter in peft.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)


def gradients(peft: nn.Module, vectors: Tensor) -> list[Tensor]:
    """Of a loss that weighs every coordinate differently."""
    weights = torch.linspace(-1, 1, vectors.numel()).view_as(vectors)
    parameters = [p for p in peft.parameters() if p.requires_grad]
    return list(torch.autograd.grad((vectors * weights).sum(), parameters))


def whole_text(tower: TextTower, model: Callable[..., Tensor]) -> Tensor:
    ids, mask = tower.tokenize(TEXTS)
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, L, H)
    mean = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    return nn.functional.normalize(mean, dim=1)


def test_text_prefix_then_suffix_is_the_whole_model(encoder: Encoder, tiny_base: Path) -> None:
    split = encoder.text.suffix(*pack(encoder.text.prefix(TEXTS)))
    plain = load_text_model(tiny_base / "text")
    torch.testing.assert_close(split, whole_text(encoder.text, plain), rtol=0, atol=1e-6)


def test_text_gradients_are_those_of_the_whole_model(encoder: Encoder) -> None:
    tower = encoder.text
    perturb(tower.peft)
    split = tower.suffix(*pack(tower.prefix(TEXTS)))
    whole = whole_text(tower, tower.peft)
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-6)
    ours, theirs = gradients(tower.peft, split), gradients(tower.peft, whole)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("adapter_blocks", [1, 2])
@pytest.mark.parametrize("name", NETS)
def test_image_prefix_then_suffix_is_the_whole_model(
    tmp_path: Path, photos: list[Path], name: str, adapter_blocks: int
) -> None:
    tower = image_tower(tmp_path, name, adapter_blocks)
    perturb(tower.peft)
    split = tower.suffix(tower.prefix(photos))
    whole = nn.functional.normalize(tower.peft(pixels_of(tower, photos)), dim=1)
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-5)
    ours, theirs = gradients(tower.peft, split), gradients(tower.peft, whole)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_a_training_step_moves_no_frozen_weight_and_no_statistic(
    tmp_path: Path, photos: list[Path], name: str
) -> None:
    tower = image_tower(tmp_path, name, 1)
    before = {
        key: tensor.clone() for key, tensor in tower.peft.state_dict().items() if "lora" not in key
    }
    trainable = [p for p in tower.peft.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=0.1)
    tower.suffix(tower.prefix(photos))[:, 0].sum().backward()
    optimizer.step()
    for key, tensor in before.items():
        assert torch.equal(tower.peft.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", NETS)
def test_nothing_is_left_in_force_even_after_an_exception(
    tmp_path: Path, photos: list[Path], name: str
) -> None:
    tower = image_tower(tmp_path, name, 1)
    hidden, before = tower.prefix(photos), tower.peft(pixels_of(tower, photos))
    with pytest.raises(KeyboardInterrupt), tower.split.replay(hidden):
        raise KeyboardInterrupt
    with pytest.raises(ZeroDivisionError):
        tower.split.capture(lambda: 1 // 0)
    with pytest.raises((RuntimeError, ValueError)):  # a shape that no block takes
        tower.suffix(torch.zeros(2, 3))
    assert torch.equal(tower.peft(pixels_of(tower, photos)), before)


@pytest.mark.parametrize("name", NETS)
def test_several_threads_may_run_one_tower_at_once(
    tmp_path: Path, photos: list[Path], name: str
) -> None:
    tower = image_tower(tmp_path, name, 1)
    hidden, plain = tower.prefix(photos), tower.peft(pixels_of(tower, photos)).detach()
    vectors = tower.suffix(hidden).detach()
    ways = [
        (lambda: tower.prefix(photos), hidden),
        (lambda: tower.suffix(hidden).detach(), vectors),
        (lambda: tower.peft(pixels_of(tower, photos)).detach(), plain),
    ]
    with ThreadPoolExecutor(3) as pool:
        made = [(pool.submit(way), expected) for _ in range(20) for way, expected in ways]
        for future, expected in made:
            torch.testing.assert_close(future.result(), expected, rtol=0, atol=1e-6)


class ByKeyword(nn.Module):
    """A tower that names its blocks' argument, as some of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Doubling() for _ in range(3)])

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden_states=hidden, scale=2.0)
        return hidden


class Doubling(nn.Module):
    def forward(self, hidden_states: Tensor, scale: float) -> Tensor:
        return hidden_states * scale


def test_activations_may_be_handed_on_by_keyword() -> None:
    model = ByKeyword()
    split = SplitTower(model, find_blocks(model)[1], adapter_blocks=1)
    kept = split.capture(lambda: model(torch.ones(2, 4)))
    assert torch.equal(kept, torch.full((2, 4), 4.0))
    with split.replay(kept):
        assert torch.equal(model(torch.zeros(2, 4)), torch.full((2, 4), 8.0))
    assert torch.equal(model(torch.ones(2, 4)), torch.full((2, 4), 8.0))


def test_the_chain_of_blocks_is_the_outermost_one() -> None:
    model = nn.ModuleDict({"stages": nn.Sequential(nn.ModuleDict({"blocks": nn.Sequential()}))})
    name, blocks = find_blocks(model)
    assert name == "stages"
    assert blocks == list(model["stages"])


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(BaseError, match="Sequential: no chain of blocks named layer, layers"):
        find_blocks(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("adapter_blocks", [0, 4])
def test_a_cut_outside_the_tower_is_refused(adapter_blocks: int) -> None:
    model = ByKeyword()
    with pytest.raises(BaseError, match=f"adapter_blocks is {adapter_blocks}.*choose 1..3"):
        SplitTower(model, find_blocks(model)[1], adapter_blocks)
