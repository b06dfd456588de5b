"""How a product's text and photo become one vector, and the temperature of the loss.

Two gate logits and one temperature are all the numbers there are; they travel with the adapter.
"""

import math

import torch
from torch import Tensor, nn

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 1.0


def fuse(text: Tensor, image: Tensor, has_text: Tensor, has_image: Tensor, gate: Tensor) -> Tensor:
    """Gate-weighted sum of the modalities that are there, back on the unit sphere.

    Args:
        text: unit vectors, (B, D), also of rows without text.
        image: unit vectors, (B, D); rows without a photo may hold anything finite.
        has_text: (B,) bool.
        has_image: (B,) bool.
        gate: logits of text and image, (2,).

    Returns:
        Unit vectors, (B, D). A row with one modality is that modality's vector, whatever the gate;
        a row with neither is its text vector (that of the empty text): an export has such rows,
        and one of them must not make a whole batch NaN.
    """
    present = torch.stack([has_text | ~has_image, has_image], dim=1)  # (B, 2)
    logits = gate.expand(len(text), 2).masked_fill(~present, -math.inf)
    weight = torch.softmax(logits, dim=1)  # (B, 2)
    mixed = weight[:, :1] * text + weight[:, 1:] * image  # (B, D)
    return nn.functional.normalize(mixed, dim=1)


def clamp_log_temperature(log_temperature: Tensor) -> Tensor:
    """The log temperature held within [MIN_TEMPERATURE, MAX_TEMPERATURE], shape ()."""
    return log_temperature.clamp(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))


class Fusion(nn.Module):
    """The trainable fusion scalars: gate logits (2,) and log temperature ().

    Args:
        image_weight: weight of the photo relative to the text's 1 before any training, > 0.
        temperature: of the contrastive loss before any training.
    """

    def __init__(self, *, image_weight: float, temperature: float) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.tensor([0.0, math.log(image_weight)]))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    def temperature(self) -> Tensor:
        """The clamped temperature, shape ()."""
        return clamp_log_temperature(self.log_temperature).exp()
