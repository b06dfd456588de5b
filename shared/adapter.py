"""What an adapter is, apart from any encoder: named float32 tensors, their schema, their norm."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from safetensors.torch import load_file
from torch import Tensor

from shared.config import ONLY_A, ONLY_B
from shared.durable import replace_file
from shared.errors import FederationError, WireError

Adapter = dict[str, Tensor]
_Factor = TypeVar("_Factor", bound=Tensor)
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"  # as peft names the factors of a layer
_KEPT_DOWN, _KEPT_UP = ".residual_A.weight", ".residual_B.weight"  # see `is_residual`
_HOME, _SHARE = "home/", "home-share"  # see `paired`
_DIGEST = "sha256"  # key in a file's metadata


def schema_hash(adapter: Mapping[str, Tensor]) -> str:
    """sha256 over names and dtypes of what can be trained, hex.

    Ranks are left out: regions may differ in them. So is a residual: any base can take one.
    """
    own = {name: tensor for name, tensor in adapter.items() if not is_residual(name)}
    schema = [[name, str(tensor.dtype)] for name, tensor in sorted(own.items())]
    return hashlib.sha256(json.dumps(schema).encode()).hexdigest()


def factor_names(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Names of the factors B and A by adapted layer, in name order; other tensors are left out."""
    known = set(names)
    layers = sorted(name.removesuffix(_DOWN) for name in known if name.endswith(_DOWN))
    pairs = {layer: (layer + _UP, layer + _DOWN) for layer in layers}
    return {layer: pair for layer, pair in pairs.items() if known.issuperset(pair)}


def is_residual(name: str) -> bool:
    """Whether a tensor is a factor of the residual that exact aggregation keeps.

    A residual is added to what the adapter's own factors make of a layer, with the same scaling. It
    travels to regions and is never trained.
    """
    return name.endswith((_KEPT_DOWN, _KEPT_UP))


def residual_names(layer: str) -> tuple[str, str]:
    """Names of the residual's factors B and A of a layer that `factor_names` names."""
    return layer + _KEPT_UP, layer + _KEPT_DOWN


def as_factors(residual: Mapping[str, _Factor]) -> dict[str, _Factor]:
    """A residual under the names of the factors that it stands beside."""
    return {
        name.replace(_KEPT_DOWN, _DOWN).replace(_KEPT_UP, _UP): tensor
        for name, tensor in residual.items()
    }


def as_residual(factors: Mapping[str, _Factor]) -> dict[str, _Factor]:
    """The inverse of `as_factors`."""
    return {
        name.replace(_DOWN, _KEPT_DOWN).replace(_UP, _KEPT_UP): tensor
        for name, tensor in factors.items()
    }


def trained_names(names: Iterable[str], factors: str) -> list[str]:
    """Names of the tensors that a round trains and an update holds, sorted.

    Args:
        names: of a whole adapter.
        factors: "both", "a" or "b" (`shared.config.TRAINED_FACTORS`); what is no LoRA factor is
            trained in every round, and a residual in none.
    """
    frozen = {ONLY_A: (_UP,), ONLY_B: (_DOWN,)}.get(factors, ())
    return sorted(n for n in names if not is_residual(n) and not n.endswith(frozen))


def rank_axis(name: str) -> int | None:
    """Which axis of a LoRA factor is its rank: the first of A, the second of B; None of the rest.

    A residual is among the rest: nobody trains it, so it has no rank to train.
    """
    return 0 if name.endswith(_DOWN) else 1 if name.endswith(_UP) else None


def rank_of(adapter: Mapping[str, Tensor]) -> int:
    """The most components that a LoRA pair of an adapter has; 0 where there is no pair."""
    return max((len(adapter[down]) for _, down in factor_names(adapter).values()), default=0)


def within_rank(adapter: Mapping[str, Tensor], rank: int) -> Adapter:
    """The first components of every LoRA pair: columns of B, rows of A. The rest stays whole.

    Args:
        adapter: or an update, of B (out, r) and A (r, in).
        rank: k >= 1; a pair of fewer components stays whole too.

    Returns:
        B (out, k) and A (k, in), views of the tensors given.
    """
    cut = dict(adapter)
    for name, tensor in adapter.items():
        axis = rank_axis(name)
        if axis is not None:
            cut[name] = tensor.narrow(axis, 0, min(rank, tensor.shape[axis]))
    return cut


def completed(update: Mapping[str, Tensor], form: Mapping[str, Tensor]) -> Adapter:
    """An update `within_rank` as one of whole tensors: zeros where nothing was trained.

    Args:
        update: of some of the names in `form`, with their shapes or beginnings of them.
        form: tensors of the shapes to complete to.
    """
    return {name: _completed(tensor, form[name].shape) for name, tensor in update.items()}


def beginning(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The first entries along every axis, as a view of that shape."""
    return tensor[tuple(slice(length) for length in shape)]


def subtract(adapter: Mapping[str, Tensor], sent: Mapping[str, Tensor]) -> Adapter:
    """The update: a region's adapter minus what it was sent, of the tensors in the first."""
    return {name: adapter[name] - sent[name] for name in sorted(adapter)}


def add(sent: Mapping[str, Tensor], update: Mapping[str, Tensor]) -> Adapter:
    """What was sent, moved by an update; tensors that it does not name stay."""
    return {
        name: sent[name] + update[name] if name in update else sent[name] for name in sorted(sent)
    }


def interpolate(start: Mapping[str, Tensor], end: Mapping[str, Tensor], weight: float) -> Adapter:
    """On the line through two adapters: exactly `start` at weight 0, exactly `end` at 1."""
    return {name: torch.lerp(start[name], end[name], weight) for name in sorted(start)}


def paired(adapter: Mapping[str, Tensor], home: Mapping[str, Tensor], share: float) -> Adapter:
    """Two adapters that encode side by side, as one: `Encoder.load_adapter` takes it.

    Args:
        adapter: of a release.
        home: what a region has trained alone; of the same base.
        share: of it in every similarity, in (0, 1).

    Returns:
        All tensors of both, and the share, shape ().
    """
    beside = {_HOME + name: tensor for name, tensor in home.items()}
    return dict(sorted({**adapter, **beside, _SHARE: torch.tensor(share)}.items()))


def parted(adapter: Mapping[str, Tensor]) -> tuple[Adapter, Adapter, float]:
    """The inverse of `paired`; of a single adapter the second is empty and its share is 0."""
    home = {n.removeprefix(_HOME): t for n, t in adapter.items() if n.startswith(_HOME)}
    own = {n: t for n, t in adapter.items() if not n.startswith(_HOME) and n != _SHARE}
    return own, home, float(adapter.get(_SHARE, 0.0))


def norm(update: Mapping[str, Tensor]) -> float:
    """L2 norm over all tensors of an update."""
    squares = [tensor.double().square().sum() for tensor in update.values()]
    return float(torch.stack(squares).sum().sqrt())


def receipt(update: Mapping[str, Tensor]) -> int:
    """A number that only this update has, below 2^60: who knows it knows that it arrived."""
    return int(_digest(save(_plain({name: update[name] for name in sorted(update)})))[:15], 16)


def require_same_form(adapter: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Hold an adapter to the names and shapes of another one.

    Raises:
        WireError: names the first tensor that is missing, unknown or of another shape.
    """
    for name in sorted(expected.keys() | adapter.keys()):
        found = tuple(adapter[name].shape) if name in adapter else "nothing"
        wanted = tuple(expected[name].shape) if name in expected else "nothing"
        if found != wanted:
            raise WireError(f"adapter: {name}: found {found}, expected {wanted}; of another base?")


def save_adapter(
    path: Path, adapter: Adapter, metadata: dict[str, str], *, durable: bool = True
) -> None:
    """Write an adapter as safetensors with a digest of its numbers, beside and renamed.

    Args:
        path: the file; its folder is made if missing.
        adapter: on the CPU.
        metadata: goes into the file's header.
        durable: as in `shared.durable.replace_file`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = _plain(adapter)
    data = save(tensors, metadata={**metadata, _DIGEST: _digest(save(tensors))})
    replace_file(path, data, durable=durable)


def load_adapter(path: Path) -> Adapter:
    """Read an adapter that `save_adapter` wrote.

    Raises:
        FederationError: missing, or damaged in any byte that matters.
    """
    try:
        with safe_open(path, framework="pt") as file:
            said = (file.metadata() or {}).get(_DIGEST)
            adapter = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except FileNotFoundError:
        raise FederationError(f"{path}: not found; the run folder is incomplete") from None
    except SafetensorError:
        said, adapter = None, {}
    # A flipped byte would go unseen otherwise.
    if said is None or said != _digest(save(_plain(adapter))):
        raise FederationError(f"{path}: damaged; remove the run folder and start again")
    return adapter


def encoder_digest(fingerprint: str, adapter: Adapter) -> str:
    """sha256 over base fingerprint and adapter, hex; vectors of one digest may be compared.

    Args:
        fingerprint: of the base.
        adapter: all of it in the order of `Encoder.adapter`, float32 on the CPU.
    """
    state = hashlib.sha256(fingerprint.encode())
    for name, tensor in adapter.items():
        state.update(name.encode() + b"\0" + tensor.numpy().tobytes())
    return state.hexdigest()


def read_release_adapter(folder: Path) -> Adapter:
    """The adapter in the files of a verified release folder, in name order, as it lies there.

    What a release keeps beside the trained factors has been concatenated to them; see
    `shared.encoders.lora.split_release`.
    """
    files = {part: folder / part / "adapter_model.safetensors" for part in ("text", "image")}
    files["fusion"] = folder / "fusion.safetensors"
    found = {
        f"{part}/{name}": tensor
        for part, path in files.items()
        for name, tensor in load_file(path).items()
    }
    return dict(sorted(found.items()))


def _completed(part: Tensor, shape: torch.Size) -> Tensor:
    if part.shape == shape:
        return part
    whole = part.new_zeros(shape)
    beginning(whole, part.shape).copy_(part)
    return whole


def _plain(adapter: Adapter) -> dict[str, NDArray[Any]]:
    """For the numpy side of safetensors: the same bytes as from its torch side, in a seventh."""
    return {name: np.asarray(tensor.numpy(), order="C") for name, tensor in adapter.items()}


def _digest(saved: bytes) -> str:
    return hashlib.sha256(saved).hexdigest()
