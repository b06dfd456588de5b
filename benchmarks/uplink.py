"""Bytes of an update of a preset, from the shapes of its towers alone; no weight is needed.

Towers are built on torch's meta device, which knows shapes and holds no number.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.gpu import SIGLIP_BASE, adapt, image_tower, text_tower
from shared.adapter import Adapter
from shared.encoders.fusion import Fusion
from shared.records import record_bytes
from shared.wire import train_reply


def siglip_update() -> Adapter:
    """An update of zeros in the shapes of preset siglip2-base (rank 8, last two blocks)."""
    with torch.device("meta"):
        towers = {"text": text_tower(SIGLIP_BASE)[0], "image": image_tower(SIGLIP_BASE)[0]}
        for model in towers.values():
            adapt(model)
    factors = {
        f"{part}/{name}": torch.zeros(tensor.shape)
        for part, model in towers.items()
        for name, tensor in _factors(model)
    }
    fusion = Fusion(image_weight=1.0, temperature=0.1)
    return factors | {f"fusion/{k}": torch.zeros(v.shape) for k, v in fusion.named_parameters()}


def update_bytes(update: Adapter, encoding: str) -> int:
    """Bytes of the arrays of a region's answer, as they cross the wire."""
    reply = train_reply(update, encoding=encoding, num_examples=1, loss=0.0, seconds=0.0)
    return record_bytes(reply)


def _factors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)
