"""A fresh adapter changes nothing, a merged one is the unmerged one, and plain peft can read it."""

from pathlib import Path

import pytest
import timm
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from timm.layers import SqueezeExcite as SharedSqueezeExcite
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn

from shared.adapter import Adapter
from shared.encoders.encoder import Encoder
from shared.encoders.image import create_image_model, load_pixels
from shared.encoders.lora import (
    attach_lora,
    lora_factors,
    lora_targets,
    reset_lora,
    save_lora,
)
from shared.encoders.packing import pack
from shared.encoders.split import find_blocks
from shared.encoders.text import load_text_model

TEXTS = ["red boots", "a longer title"]
PEFT_ASKS = "ignore:`is_gradient_checkpointing`:FutureWarning"  # peft 0.21 on transformers 5


@pytest.fixture
def plain_text(tiny_base: Path) -> nn.Module:
    model = load_text_model(tiny_base / "text")
    model.pooler = None  # unused under mean pooling, and not in the adapter
    return model


@pytest.fixture
def plain_image(encoder: Encoder, tiny_base: Path) -> nn.Module:
    model = create_image_model(encoder.base.image).eval()
    model.load_state_dict(load_file(tiny_base / "image/model.safetensors"))
    return model


@torch.no_grad()
def text_vectors(encoder: Encoder, model: nn.Module) -> Tensor:
    ids, mask = encoder.text.tokenize(TEXTS)
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, L, H)
    mean = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    return nn.functional.normalize(mean, dim=1)


@torch.no_grad()
def image_vectors(encoder: Encoder, model: nn.Module, photos: list[Path]) -> Tensor:
    pixels = torch.stack([torch.from_numpy(load_pixels(path, 32)) for path in photos])
    batch = (pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    return nn.functional.normalize(model(batch), dim=1)


def our_text_vectors(encoder: Encoder) -> Tensor:
    return encoder.text.suffix(*pack(encoder.text.prefix(TEXTS))).detach()


def our_image_vectors(encoder: Encoder, photos: list[Path]) -> Tensor:
    return encoder.image.suffix(encoder.image.prefix(photos)).detach()


def test_a_fresh_adapter_changes_nothing(
    encoder: Encoder, plain_text: nn.Module, plain_image: nn.Module, photos: list[Path]
) -> None:
    encoder.reset(seed=5)
    torch.testing.assert_close(
        our_text_vectors(encoder), text_vectors(encoder, plain_text), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(
        our_image_vectors(encoder, photos),
        image_vectors(encoder, plain_image, photos),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.filterwarnings(PEFT_ASKS)
@pytest.mark.parametrize("merge", [False, True])
def test_plain_peft_on_plain_models_gives_equal_vectors(
    tmp_path: Path,
    encoder: Encoder,
    trained: Adapter,
    plain_text: nn.Module,
    plain_image: nn.Module,
    photos: list[Path],
    merge: bool,
) -> None:
    fresh = our_text_vectors(encoder), our_image_vectors(encoder, photos)
    encoder.load_adapter(trained)
    ours = our_text_vectors(encoder), our_image_vectors(encoder, photos)
    save_lora(encoder.text.peft, tmp_path / "text", base_name="plain text")
    save_lora(encoder.image.peft, tmp_path / "image", base_name="plain image")
    text = PeftModel.from_pretrained(plain_text, tmp_path / "text").eval()
    image = PeftModel.from_pretrained(plain_image, tmp_path / "image").eval()
    if merge:
        text, image = text.merge_and_unload(), image.merge_and_unload()
    theirs = text_vectors(encoder, text), image_vectors(encoder, image, photos)
    for before, mine, plain in zip(fresh, ours, theirs, strict=True):
        torch.testing.assert_close(mine, plain, rtol=0, atol=1e-5)
        assert not torch.allclose(mine, before, atol=1e-3)  # else nothing was measured


def test_only_what_travels_is_trainable(encoder: Encoder) -> None:
    travelling = sum(tensor.numel() for tensor in encoder.adapter().values())
    assert sum(parameter.numel() for parameter in encoder.trainable()) == travelling
    for tower in (encoder.text.peft, encoder.image.peft):
        for name, parameter in tower.named_parameters():
            assert parameter.requires_grad == (".lora_" in name), name


def test_linears_above_the_cut_are_adapted_by_hand(plain_text: nn.Module) -> None:
    blocks = find_blocks(plain_text)[1]
    block = "encoder.layer.1."
    linears = ["self.query", "self.key", "self.value", "output.dense"]
    assert lora_targets(plain_text, [plain_text.embeddings, blocks[0]]) == [
        *(f"{block}attention.{name}" for name in linears),
        f"{block}intermediate.dense",
        f"{block}output.dense",
    ]


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "test_efficientnet"])
def test_squeeze_and_excite_gates_are_left_alone(name: str) -> None:
    model = timm.create_model(name, num_classes=8)
    gates = [
        f"{name}."
        for name, module in model.named_modules()
        if isinstance(module, SqueezeExcite | SharedSqueezeExcite)
    ]
    assert gates, "the net has none; choose another one"
    targets = lora_targets(model, [])
    assert not [target for target in targets if target.startswith(tuple(gates))]
    modules = dict(model.named_modules())
    convolutions = [modules[target] for target in targets if "conv" in target]
    assert convolutions
    assert all(conv.kernel_size == (1, 1) and conv.groups == 1 for conv in convolutions)


def test_nothing_below_the_cut_is_adapted(encoder: Encoder) -> None:
    cut = len(find_blocks(create_image_model(encoder.base.image))[1]) - 1
    for name in encoder.adapter():
        if name.startswith("image/") and ".blocks." in name:
            assert int(name.split(".blocks.")[1].split(".")[0]) >= cut, name


def linear_with_lora() -> PeftModel:
    return attach_lora(nn.Sequential(nn.Linear(16, 4)), ["0"], rank=3, alpha=6)


def test_the_seed_makes_the_factors() -> None:
    first, second = linear_with_lora(), linear_with_lora()
    states = []
    for model, seed in ((first, 0), (second, 0), (second, 1)):
        reset_lora(model, torch.Generator().manual_seed(seed))
        factors = lora_factors(model)
        states.append({name: factor.detach().clone() for name, factor in factors.items()})
    down, up = (f"base_model.model.0.lora_{side}.weight" for side in "AB")
    assert torch.equal(states[0][down], states[1][down])
    assert not torch.equal(states[0][down], states[2][down])
    assert torch.equal(states[0][up], torch.zeros(4, 3))


def test_fresh_factors_are_spread_as_peft_spreads_them() -> None:
    wide = nn.Sequential(nn.Linear(100, 4))
    torch.manual_seed(0)
    theirs = get_peft_model(wide, LoraConfig(r=64, target_modules=["0"]))
    bounds = [lora_factors(theirs)["base_model.model.0.lora_A.weight"].abs().max().item()]
    reset_lora(theirs, torch.Generator().manual_seed(0))
    bounds += [lora_factors(theirs)["base_model.model.0.lora_A.weight"].abs().max().item()]
    for bound in bounds:  # of 6,400 uniform numbers within 1 / sqrt(100)
        assert 0.999 / 10 < bound <= 1 / 10
