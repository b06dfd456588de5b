"""What encoding and a training step make of a GPU: achieved against measured rate and bandwidth.

    python -m benchmarks.gpu [--device auto] [--small] [--batch 256]

Towers have the shapes of preset siglip2-base (a SigLIP text tower of 64 tokens, a ViT-B/16 of 224
pixels) with random weights, which cost what trained ones do. Everything is on the device. A
training step is what a round runs: the last two blocks, forward and backward, on kept activations,
and AdamW.
`--small` is a dry run of the same code with towers of a few thousand parameters, for any machine.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from benchmarks.floor import bandwidth, best_seconds, matrix_rate, operations
from benchmarks.report import Report, machine_facts, table
from shared.encoders.encoder import pick_device
from shared.encoders.lora import attach_lora, lora_targets
from shared.encoders.split import SplitTower, find_blocks
from shared.errors import FedshelfError

RANK: Final = 8
ADAPTER_BLOCKS: Final = 2


@dataclass(frozen=True)
class Shapes:
    """Of a pair of towers.

    Attributes:
        hidden: width of both.
        layers: blocks of both.
        heads: of attention.
        tokens: of a text.
        pixels: side of a photo.
        patch: side of a patch.
        vocabulary: of the text tower.
    """

    hidden: int
    layers: int
    heads: int
    tokens: int
    pixels: int
    patch: int
    vocabulary: int


SIGLIP_BASE: Final = Shapes(768, 12, 12, 64, 224, 16, 256_000)
SMALL: Final = Shapes(32, 3, 2, 8, 32, 16, 100)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; exit 1 with one line where there is no such device."""
    parser = argparse.ArgumentParser(prog="bench-gpu", description="Measure a GPU's use.")
    parser.add_argument("--device", default="cuda", help="cuda, cpu or auto")
    parser.add_argument("--small", action="store_true", help="a dry run with tiny towers")
    parser.add_argument("--batch", type=int, default=256, help="items a batch")
    parser.add_argument("--out", type=Path, default=Path("bench-gpu.json"))
    given = parser.parse_args(arguments)
    try:
        device = pick_device(given.device)
    except FedshelfError as error:
        sys.exit(f"error: {error}")
    facts = {"device": _name(device), "small": given.small, "batch": given.batch}
    report = Report(machine_facts(threads=torch.get_num_threads()), facts)
    measure_device(report, device, SMALL if given.small else SIGLIP_BASE, batch=given.batch)
    report.write(given.out)
    print(table(report.figures))


def measure_device(report: Report, device: torch.device, shapes: Shapes, *, batch: int) -> None:
    """Put down the device's rates, and what encoding and training reach of them.

    Args:
        report: figures go there.
        device: that works.
        shapes: of the towers.
        batch: items a batch.
    """
    small = shapes is SMALL
    report.add(
        "device", "bandwidth", bandwidth(device, size=2**20 if small else None) / 1e9, "GB/s"
    )
    kinds = {"float32": torch.float32}
    if device.type == "cuda":
        kinds["bfloat16"] = torch.bfloat16
    for name, dtype in kinds.items():
        rate = matrix_rate(device, dtype=dtype, side=64 if small else None)
        report.add("device", f"matrix rate, {name}", rate / 1e12, "TFLOP/s")
        towers = (("text", text_tower(shapes)), ("image", image_tower(shapes)))
        for kind, (model, example) in towers:
            items = example(batch).to(device)
            adapted = adapt(model.to(device))
            label = f"{kind} tower, {name}"
            encode = in_dtype(partial(model, items), device, dtype)
            _put_down(report, f"{label}, encoding", torch.no_grad()(encode), device, rate, batch)
            step = training_step(model, adapted, items, device, dtype)
            _put_down(report, f"{label}, a training step", step, device, rate, batch)


def text_tower(shapes: Shapes) -> tuple[nn.Module, Callable[[int], Tensor]]:
    """A random SigLIP text tower, and what makes token ids (B, L) for it."""
    from transformers import SiglipTextConfig, SiglipTextModel

    config = SiglipTextConfig(
        vocab_size=shapes.vocabulary,
        hidden_size=shapes.hidden,
        projection_size=shapes.hidden,
        intermediate_size=4 * shapes.hidden,
        num_hidden_layers=shapes.layers,
        num_attention_heads=shapes.heads,
        max_position_embeddings=shapes.tokens,
        bos_token_id=1,
        eos_token_id=2,
    )
    model: nn.Module = SiglipTextModel(config)
    return model.eval(), lambda batch: torch.randint(3, shapes.vocabulary, (batch, shapes.tokens))


def image_tower(shapes: Shapes) -> tuple[nn.Module, Callable[[int], Tensor]]:
    """A random vision transformer as timm builds SigLIP's, and what makes pixels for it."""
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=shapes.pixels,
        patch_size=shapes.patch,
        embed_dim=shapes.hidden,
        depth=shapes.layers,
        num_heads=shapes.heads,
        class_token=False,
        global_pool="map",
        num_classes=0,
    ).eval()
    return model, lambda batch: torch.randn(batch, 3, shapes.pixels, shapes.pixels)


def adapt(model: nn.Module) -> Any:
    """LoRA on the last blocks and above, as a preset has it; returns the peft model around it."""
    name, blocks = find_blocks(model)
    first = [child for child, _ in model.named_children()]
    below = [getattr(model, child) for child in first[: first.index(name.partition(".")[0])]]
    frozen = [*below, *blocks[: len(blocks) - ADAPTER_BLOCKS]]
    return attach_lora(model, lora_targets(model, frozen), rank=RANK, alpha=2 * RANK).to(
        next(model.parameters()).device
    )


def training_step(
    model: nn.Module, adapted: Any, items: Tensor, device: torch.device, dtype: torch.dtype
) -> Callable[[], None]:
    """One step of the last blocks on kept activations: forward, backward, AdamW."""
    split = SplitTower(model, find_blocks(model)[1], ADAPTER_BLOCKS)
    with torch.no_grad():
        kept = split.capture(lambda: model(items)).detach()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        with split.replay(kept):
            found = in_dtype(lambda: model(items), device, dtype)()
        pooled = getattr(found, "pooler_output", found)
        optimizer.zero_grad()
        pooled.float().square().mean().backward()
        optimizer.step()

    return step


def in_dtype(
    call: Callable[[], Any], device: torch.device, dtype: torch.dtype
) -> Callable[[], Any]:
    """The call under autocast, unless that is what it does anyway."""

    def run() -> Any:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            return call()

    return run


def _put_down(
    report: Report,
    name: str,
    call: Callable[[], Any],
    device: torch.device,
    rate: float,
    batch: int,
) -> None:
    """Items a second, what of the matrix rate that is, and the floor."""
    counted, seconds = operations(call), best_seconds(call, device)
    report.add(name, "items", batch / seconds, "1/s")
    report.add(name, "achieved", counted / seconds / 1e12, "TFLOP/s")
    report.add(name, "seconds / floor of its operations", seconds * rate / counted, "ratio")


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


if __name__ == "__main__":
    main()
