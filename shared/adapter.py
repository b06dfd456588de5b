"""What an adapter is, apart from any encoder: named float32 tensors, their schema, their norm."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from shared.durable import replace_file
from shared.errors import FederationError, WireError

Adapter = dict[str, Tensor]
_DIGEST = "sha256"  # key in a file's metadata


def schema_hash(adapter: Mapping[str, Tensor]) -> str:
    """sha256 over names and dtypes, hex. Ranks are left out: regions may differ in them."""
    schema = [[name, str(tensor.dtype)] for name, tensor in sorted(adapter.items())]
    return hashlib.sha256(json.dumps(schema).encode()).hexdigest()


def subtract(adapter: Mapping[str, Tensor], sent: Mapping[str, Tensor]) -> Adapter:
    """The update: a region's adapter minus the adapter it was sent."""
    return {name: adapter[name] - sent[name] for name in sorted(sent)}


def add(sent: Mapping[str, Tensor], update: Mapping[str, Tensor]) -> Adapter:
    """The adapter a region ended with, from what it was sent and its update."""
    return {name: sent[name] + update[name] for name in sorted(sent)}


def norm(update: Mapping[str, Tensor]) -> float:
    """L2 norm over all tensors of an update."""
    squares = [tensor.double().square().sum() for tensor in update.values()]
    return float(torch.stack(squares).sum().sqrt())


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


def save_adapter(path: Path, adapter: Adapter, metadata: dict[str, str]) -> None:
    """Write an adapter as safetensors with a digest of its numbers, beside and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in adapter.items()}
    replace_file(path, save(tensors, metadata={**metadata, _DIGEST: _digest(save(tensors))}))


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
    if said is None or said != _digest(save(adapter)):  # a flipped byte would go unseen otherwise
        raise FederationError(f"{path}: damaged; remove the run folder and start again")
    return adapter


def _digest(saved: bytes) -> str:
    return hashlib.sha256(saved).hexdigest()
