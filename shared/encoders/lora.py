"""LoRA adapters in the last blocks of a tower, through peft (LoRA: arXiv:2106.09685).

Targets are chosen by module type and place, never by guessing at names: every linear layer and
every pointwise convolution at or above the cut, squeeze-and-excite gates left out.
"""

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn


def lora_targets(model: nn.Module, frozen: Iterable[nn.Module]) -> list[str]:
    """Names of the layers that get LoRA factors.

    Args:
        model: the plain tower.
        frozen: modules below the cut and embeddings; nothing inside them is adapted.

    Returns:
        Dotted names of linear layers and 1x1 convolutions outside `frozen`, in model order.
    """
    below = {id(inner) for module in frozen for inner in module.modules()}
    below |= {
        id(inner)
        for module in model.modules()
        if type(module).__name__ == "SqueezeExcite"  # timm has two classes of this name
        for inner in module.modules()
    }
    return [
        name
        for name, module in model.named_modules()
        if id(module) not in below and _is_pointwise(module)
    ]


def _is_pointwise(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear)


def attach_lora(model: Any, targets: list[str], *, rank: int, alpha: int) -> PeftModel:
    """Freeze `model` and add LoRA factors to `targets`; a fresh adapter changes no output.

    Args:
        model: the plain tower; it is wrapped, its layers are replaced in place.
        targets: from `lora_targets`.
        rank: r of every factor.
        alpha: scaling is alpha / rank.

    Returns:
        The peft model around the tower, in eval mode.
    """
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets)
    with warnings.catch_warnings():  # peft 0.21 asks a property that transformers 5 renames
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return get_peft_model(model, config).eval()


def reset_lora(model: PeftModel, generator: torch.Generator) -> None:
    """Fresh factors: A uniform as in peft (Kaiming, a = sqrt 5), B zero.

    Args:
        model: from `attach_lora`.
        generator: CPU generator; the same state gives the same factors.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        bound = down[0].numel() ** -0.5
        fresh = torch.empty(down.shape).uniform_(-bound, bound, generator=generator)
        down.data.copy_(fresh)
        up.data.zero_()


def lora_factors(model: PeftModel) -> dict[str, nn.Parameter]:
    """The factors themselves, by peft's own names.

    peft walks the whole model to name them, which takes as long as a small step of training: who
    swaps adapters asks once. By default it would also look for the base's config, on the disk and
    then on the hub.

    Args:
        model: from `attach_lora`.

    Returns:
        A (r, in) and B (out, r) of every adapted layer, with two more axes of 1 for a convolution;
        not copied.
    """
    at = {parameter.data_ptr(): parameter for parameter in model.parameters()}
    state: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: at[tensor.data_ptr()] for name, tensor in state.items()}


def save_lora(model: PeftModel, folder: Path, *, base_name: str) -> None:
    """Write the factors in peft's own layout: adapter_config.json, adapter_model.safetensors.

    Args:
        model: from `attach_lora`.
        folder: made if missing.
        base_name: public name of the plain model, for the reader of adapter_config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = model.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": base_name, "inference_mode": True}
    config["target_modules"] = sorted(config["target_modules"])
    text = json.dumps(config, indent=2, sort_keys=True, default=str)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
    factors = {n: factor.detach().cpu().float() for n, factor in lora_factors(model).items()}
    save_file(factors, folder / "adapter_model.safetensors")
