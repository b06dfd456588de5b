"""The image tower: any timm model with a chain of blocks, run in two halves.

Its classifier is the head that maps features to D, so head and tower are one plain timm model that
anyone can load. Batch normalization stays in eval mode: running statistics that moved would be
carried by no adapter and would make every kept activation stale.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor, nn

from shared.encoders.lora import attach_lora, lora_targets
from shared.encoders.split import SplitTower, find_blocks
from shared.errors import DataError

MAX_PIXELS = 64_000_000  # a larger picture is refused before it is decoded
WHITE = (255, 255, 255)
FIT = (
    "JPEG decoded at a reduced scale not below the size (Pillow draft), turned upright by EXIF, "
    "transparency on white, padded to a white square, bicubic"
)


@dataclass(frozen=True)
class ImageConfig:
    """How the image tower sees.

    Attributes:
        name: timm architecture.
        revision: hub revision its weights came from, or None for weights made here.
        dim: D of the head; 0 where the tower already gives D features.
        size: side of the square input, pixels.
        mean: per channel, of pixels in 0..1.
        std: per channel.
        adapter_blocks: how many of the last blocks get LoRA factors, with all above them.
        rank: of the LoRA factors.
        alpha: LoRA scaling is alpha / rank.
    """

    name: str
    revision: str | None
    dim: int
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    adapter_blocks: int
    rank: int
    alpha: int


def create_image_model(config: ImageConfig) -> nn.Module:
    """The plain timm model with fresh weights; its output is (B, D).

    Vision transformers are built for `config.size`; conv nets take any size.
    """
    import timm  # not up there: who reads texts alone need not wait for it

    sized: dict[str, Any] = {"img_size": config.size} if "vit" in config.name else {}
    model: nn.Module = timm.create_model(config.name, num_classes=config.dim, **sized)
    return model


def load_pixels(photo: Path | BinaryIO, size: int) -> NDArray[np.uint8]:
    """A photo as the towers see it: RGB, whole picture, white margins to a square.

    `image_config_json` tells readers without our code the same, and the base's fingerprint covers
    it: change the two together.

    Args:
        photo: any format Pillow reads; a file's path, or its bytes as a stream.
        size: side in pixels.

    Returns:
        (size, size, 3) uint8.

    Raises:
        DataError: not a readable picture, or more than MAX_PIXELS.
    """
    try:
        with Image.open(photo) as image:
            if image.width * image.height > MAX_PIXELS:
                found = f"{image.width}x{image.height} pixels"
                raise DataError(f"{_name(photo)}: {found}; at most 64 million")
            image.draft("RGB", (size, size))
            upright = _on_white(ImageOps.exif_transpose(image))
            square = ImageOps.pad(upright, (size, size), color=WHITE)
            return np.array(square, dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        found = f"not a readable picture ({type(error).__name__})"
        raise DataError(f"{_name(photo)}: {found}; replace the file") from None


def _name(photo: Path | BinaryIO) -> str:
    return str(photo) if isinstance(photo, Path) else "the photo"


def _on_white(image: Image.Image) -> Image.Image:
    """RGB; cut-out product photos get a white background, not what lies under the transparency."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    cut_out = image.convert("RGBA")
    backdrop = Image.new("RGBA", cut_out.size, WHITE)
    return Image.alpha_composite(backdrop, cut_out).convert("RGB")


class ImageTower:
    """A frozen image encoder with LoRA factors in its last blocks.

    Args:
        folder: holds `model.safetensors` of the plain timm model.
        config: see `ImageConfig`.
        device: where it lives.
    """

    def __init__(self, folder: Path, config: ImageConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        model: Any = create_image_model(config).eval()
        model.load_state_dict(load_file(folder / "model.safetensors"))
        name, blocks = find_blocks(model)
        below = _children_before(model, name.partition(".")[0])
        conv_stem = tuple(below) if not hasattr(model, "patch_embed") else ()
        self.split = SplitTower(model, blocks, config.adapter_blocks, stem=conv_stem)
        frozen = [*below, *blocks[: len(blocks) - config.adapter_blocks]]
        self.peft = attach_lora(
            model, lora_targets(model, frozen), rank=config.rank, alpha=config.alpha
        ).to(device)
        self._model = model
        self._mean = torch.tensor(config.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(config.std, device=device).view(1, 3, 1, 1)

    def normalize(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Pixels (B, S, S, 3) uint8 as model input (B, 3, S, S) float32."""
        batch = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float() / 255
        return (batch - self._mean) / self._std

    @torch.no_grad()  # not inference_mode: the suffix trains on what this gives
    def prefix(self, paths: Sequence[Path]) -> Tensor:
        """Frozen activations at the cut, (B, ...) float32 on the CPU.

        Raises:
            DataError: a photo cannot be read.
        """
        return self.prefix_of(np.stack([load_pixels(path, self.config.size) for path in paths]))

    @torch.no_grad()
    def prefix_of(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Frozen activations at the cut, (B, ...) float32 on the CPU, of pixels (B, S, S, 3)."""
        batch = self.normalize(pixels)
        return self.split.capture(lambda: self._model(batch)).float().cpu()

    def suffix(self, hidden: Tensor) -> Tensor:
        """Unit vectors (B, D) from frozen activations (B, ...), with gradients for LoRA."""
        size = self.config.size
        dummy = (
            hidden
            if not hasattr(self._model, "patch_embed")
            else hidden.new_zeros(len(hidden), 3, size, size)
        )
        with self.split.replay(hidden):
            return nn.functional.normalize(self._model(dummy), dim=1)

    @torch.inference_mode()
    def encode(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Unit vectors (B, D) of pixels (B, S, S, 3) in one pass, nothing kept."""
        return nn.functional.normalize(self._model(self.normalize(pixels)), dim=1)


def image_config_json(config: ImageConfig) -> str:
    """What a reader without our code needs to rebuild the plain timm model."""
    fields = {"architecture": config.name, "num_classes": config.dim, "img_size": config.size}
    pixels = {"mean": config.mean, "std": config.std, "fit": FIT}
    return json.dumps({**fields, **pixels}, indent=2) + "\n"


def _children_before(model: nn.Module, name: str) -> list[nn.Module]:
    """Direct children of `model` that come before the child `name`."""
    names = [child for child, _ in model.named_children()]
    return [
        module for child, module in model.named_children() if child in names[: names.index(name)]
    ]
