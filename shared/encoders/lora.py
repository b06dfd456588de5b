"""LoRA adapters in the last blocks of a tower, through peft (LoRA: arXiv:2106.09685).

Targets are chosen by module type and place, never by guessing at names: every linear layer and
every pointwise convolution at or above the cut, squeeze-and-excite gates left out.
"""

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

if TYPE_CHECKING:  # peft takes longer to import than all else together, and `fold` needs none
    from peft import LoraConfig, LoraModel, PeftModel

_OWN, _RESIDUAL = "default", "residual"  # peft's names of the two adapters
_PLAIN: Final = "base_model.model."  # peft's name for the model that it wraps
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


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


def attach_lora(model: Any, targets: list[str], *, rank: int, alpha: int) -> "PeftModel":
    """Freeze `model` and add LoRA factors to `targets`; a fresh adapter changes no output.

    Args:
        model: the plain tower; it is wrapped, its layers are replaced in place.
        targets: from `lora_targets`.
        rank: r of every factor.
        alpha: scaling is alpha / rank.

    Returns:
        The peft model around the tower, in eval mode.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets)
    with warnings.catch_warnings():  # peft 0.21 asks a property that transformers 5 renames
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return get_peft_model(model, config).eval()


def reset_lora(model: "PeftModel", generator: torch.Generator) -> None:
    """Fresh factors: A uniform as in peft (Kaiming, a = sqrt 5), B zero.

    Args:
        model: from `attach_lora`.
        generator: CPU generator; the same state gives the same factors.
    """
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        bound = down[0].numel() ** -0.5
        fresh = torch.empty(down.shape).uniform_(-bound, bound, generator=generator)
        down.data.copy_(fresh)
        up.data.zero_()


def lora_factors(model: "PeftModel", adapter: str = _OWN) -> dict[str, nn.Parameter]:
    """The factors themselves, by peft's own names.

    peft walks the whole model to name them, which takes as long as a small step of training: who
    swaps adapters asks once. By default it would also look for the base's config, on the disk and
    then on the hub.

    Args:
        model: from `attach_lora`.
        adapter: peft's name of the adapter; the one that is trained by default.

    Returns:
        A (r, in) and B (out, r) of every adapted layer, with two more axes of 1 for a convolution;
        not copied.
    """
    from peft.utils import get_peft_model_state_dict

    at = {parameter.data_ptr(): parameter for parameter in model.parameters()}
    state: dict[str, Tensor] = get_peft_model_state_dict(
        model, adapter_name=adapter, save_embedding_layers=False
    )
    return {name: at[tensor.data_ptr()] for name, tensor in state.items()}


def load_residual(model: "PeftModel", factors: Mapping[str, Tensor]) -> None:
    """Add a residual to every adapted layer, or none.

    It is an adapter of its own beside the one that is trained, with the same scaling.

    Args:
        model: from `attach_lora`.
        factors: A (k, in) and B (out, k) of every adapted layer, by peft's own names, k the same
            everywhere; empty takes the residual out.
    """
    active = [_OWN, _RESIDUAL] if factors else [_OWN]
    if factors:
        name = next(iter(factors))
        _make_residual(model, factors[name].shape[_rank_axis(name)])
        with torch.no_grad():
            for name, parameter in lora_factors(model, _RESIDUAL).items():
                parameter.copy_(factors[name])
    if list(_tuner(model).active_adapters) != active:
        _tuner(model).set_adapter(active)


def residual_of(model: "PeftModel") -> dict[str, nn.Parameter]:
    """Factors of the residual that takes part, as `lora_factors`; empty if none does."""
    taking_part = _RESIDUAL in _tuner(model).active_adapters
    return lora_factors(model, _RESIDUAL) if taking_part else {}


def residual_parameters(model: "PeftModel") -> list[nn.Parameter]:
    """The residual's own tensors, whether it takes part or not."""
    there = _RESIDUAL in model.peft_config
    return [*lora_factors(model, _RESIDUAL).values()] if there else []


def _tuner(model: "PeftModel") -> "LoraModel":
    from peft import LoraModel

    tuner = model.base_model
    assert isinstance(tuner, LoraModel), "attach_lora made it"
    return tuner


def _config(model: "PeftModel", adapter: str = _OWN) -> "LoraConfig":
    from peft import LoraConfig

    config = model.peft_config[adapter]
    assert isinstance(config, LoraConfig), "attach_lora made it"
    return config


def _make_residual(model: "PeftModel", rank: int) -> None:
    """Make room for a residual of that rank."""
    if _RESIDUAL in model.peft_config:
        if _config(model, _RESIDUAL).r == rank:
            return
        model.delete_adapter(_RESIDUAL)
    config = _with_rank(_config(model), rank)
    with warnings.catch_warnings():  # as in `attach_lora`
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        model.add_adapter(_RESIDUAL, config)
    model.eval()


def _with_rank(config: "LoraConfig", rank: int) -> "LoraConfig":
    """The same targets and the same scaling, alpha / r, at another rank."""
    alpha: Any = config.lora_alpha * rank / config.r  # peft says int and takes any number
    return replace(config, r=rank, lora_alpha=int(alpha) if alpha == int(alpha) else alpha)


def fold(model: nn.Module, factors: Mapping[str, Tensor], *, scaling: float) -> None:
    """Add LoRA factors to the weights of a plain model in place: W + scaling B A (section 4).

    Args:
        model: the plain tower, without peft.
        factors: A (r, in) and B (out, r) of linear layers, by peft's names.
        scaling: alpha / rank.
    """
    with torch.no_grad():
        for name in (name.removesuffix(_DOWN) for name in factors if name.endswith(_DOWN)):
            layer: Any = model.get_submodule(name.removeprefix(_PLAIN))
            layer.weight.add_(factors[name + _UP] @ factors[name + _DOWN], alpha=scaling)


def save_lora(model: "PeftModel", folder: Path, *, base_name: str) -> None:
    """Write the factors in peft's own layout: adapter_config.json, adapter_model.safetensors.

    A residual that takes part is concatenated behind the factors into one rank; alpha grows with
    the rank, so the scaling stays and plain peft gives the same vectors.

    Args:
        model: from `attach_lora`.
        folder: made if missing.
        base_name: public name of the plain model, for the reader of adapter_config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    factors = {n: factor.detach().cpu().float() for n, factor in lora_factors(model).items()}
    residual, own = residual_of(model), _config(model)
    for name, kept in residual.items():
        axis = _rank_axis(name)
        factors[name] = torch.cat([factors[name], kept.detach().cpu().float()], axis).contiguous()
    rank = own.r + (_config(model, _RESIDUAL).r if residual else 0)
    config = _with_rank(own, rank).to_dict()  # type: ignore[no-untyped-call]
    config |= {"base_model_name_or_path": base_name, "inference_mode": True}
    config["target_modules"] = sorted(config["target_modules"])
    text = json.dumps(config, indent=2, sort_keys=True, default=str)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
    save_file(factors, folder / "adapter_model.safetensors")


def split_release(
    model: "PeftModel", factors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The inverse of how `save_lora` concatenates, bit for bit.

    Args:
        model: from `attach_lora`.
        factors: as a file holds them.

    Returns:
        The factors of the adapter's own rank, and those of the residual; empty if there is none.
    """
    own, residual = dict[str, Tensor](), dict[str, Tensor]()
    for name, tensor in factors.items():
        axis, rank = _rank_axis(name), _config(model).r
        kept = tensor.shape[axis] - rank
        own[name] = tensor.narrow(axis, 0, min(rank, tensor.shape[axis])).contiguous()
        if kept > 0:
            residual[name] = tensor.narrow(axis, rank, kept).contiguous()
    return own, residual


def _rank_axis(name: str) -> int:
    """Which axis of a factor is its rank: the first of A, the second of B."""
    return 1 if name.endswith(".lora_B.weight") else 0
