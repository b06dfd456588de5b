"""Teach a small image tower the language of a frozen text tower (LiT, arXiv:2111.07991).

The text side is locked. Targets are soft: two products whose texts are close may have photos that
are close, so the image-to-text distribution is trained towards the text-to-text one instead of
towards the identity.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class AlignConfig:
    """How long and how fast to align.

    Attributes:
        epochs: passes over the pairs.
        batch: pairs a step.
        learning_rate: peak of AdamW, warmed up and cosine-decayed to zero.
        weight_decay: of AdamW.
        temperature: of the image-to-text distribution.
        target_temperature: of the text-to-text distribution; smaller is closer to identity.
    """

    epochs: int = 16
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    temperature: float = 0.07
    target_temperature: float = 0.05


def soft_alignment_loss(
    image: Tensor, text: Tensor, *, temperature: float, target_temperature: float
) -> Tensor:
    """Cross-entropy of image-to-text against text-to-text similarity, both ways.

    Args:
        image: unit vectors, (B, D).
        text: unit vectors of the same products, (B, D), without gradients.
        temperature: > 0, of image-to-text cosines.
        target_temperature: > 0, of text-to-text cosines.

    Returns:
        Mean loss in nats, shape ().
    """
    targets = torch.softmax(text @ text.T / target_temperature, dim=1)  # (B, B)
    logits = image @ text.T / temperature  # (B, B)
    forward = nn.functional.cross_entropy(logits, targets)
    backward = nn.functional.cross_entropy(logits.T, targets)
    return (forward + backward) / 2


def align(
    model: nn.Module,
    pixels: Tensor,
    text: Tensor,
    config: AlignConfig,
    *,
    seed: int,
    progress: Progress | None = None,
) -> None:
    """Train `model` in place; it is left in eval mode, its batch-norm statistics settled.

    Args:
        model: the image tower, all its weights trainable.
        pixels: normalized photos, (N, 3, S, S).
        text: unit vectors of the products' texts, (N, D).
        config: see `AlignConfig`.
        seed: of order and augmentation.
        progress: called with (steps done, steps in all).
    """
    generator = torch.Generator().manual_seed(seed)
    batch = min(config.batch, len(pixels))
    steps = config.epochs * (len(pixels) // batch)
    model.to(memory_format=torch.channels_last)  # the order a CPU convolves fastest in
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=steps, pct_start=0.15
    )
    model.train()
    for step, rows in enumerate(_batches(len(pixels), batch, config.epochs, generator)):
        photos = augment(pixels[rows], generator).contiguous(memory_format=torch.channels_last)
        image = nn.functional.normalize(model(photos), dim=1)
        loss = soft_alignment_loss(
            image,
            text[rows],
            temperature=config.temperature,
            target_temperature=config.target_temperature,
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if progress:
            progress(step + 1, steps)
    model.to(memory_format=torch.contiguous_format).eval()


def _batches(count: int, batch: int, epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator)
        yield from torch.split(order[: count // batch * batch], batch)


def augment(pixels: Tensor, generator: torch.Generator, *, shift: int = 5) -> Tensor:
    """Flip half of the photos and shift the batch by up to `shift` pixels, white coming in.

    Args:
        pixels: (B, 3, S, S), normalized.
        generator: CPU generator.
        shift: pixels.
    """
    flip = torch.rand(len(pixels), generator=generator) < 0.5
    flipped = torch.where(flip[:, None, None, None], pixels.flip(3), pixels)
    white = float(pixels.max())
    padded = nn.functional.pad(flipped, (shift,) * 4, value=white)
    down, right = torch.randint(0, 2 * shift + 1, (2,), generator=generator).tolist()
    size = pixels.shape[-1]
    return padded[:, :, down : down + size, right : right + size]
