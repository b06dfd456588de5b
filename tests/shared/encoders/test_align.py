"""Aligning: the loss is least where photos and texts agree, and the same seed does the same."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from shared.encoders.align import AlignConfig, align, augment, soft_alignment_loss


def units(seed: int, rows: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(rows, 8, generator=generator), dim=1)


def loss_of(image: Tensor, text: Tensor) -> float:
    return float(soft_alignment_loss(image, text, temperature=0.1, target_temperature=0.1))


def test_the_loss_is_least_where_photos_say_what_texts_say() -> None:
    text = units(0)
    probabilities = torch.softmax(text @ text.T / 0.1, dim=1)
    entropy = float(-(probabilities * probabilities.log()).sum(1).mean())
    assert loss_of(text, text) == pytest.approx(entropy)
    for seed in range(1, 20):
        moved = nn.functional.normalize(text + 0.1 * units(seed), dim=1)
        assert loss_of(moved, text) > entropy


def test_there_the_gradient_is_zero() -> None:
    text = units(0)
    image = text.clone().requires_grad_()
    soft_alignment_loss(image, text, temperature=0.1, target_temperature=0.1).backward()
    torch.testing.assert_close(image.grad, torch.zeros_like(text), rtol=0, atol=1e-6)


def test_the_loss_by_hand() -> None:
    # Two orthogonal texts, photos swapped; sharp targets, so the loss is that of the wrong class.
    text = torch.eye(2)
    found = soft_alignment_loss(text.flip(0), text, temperature=1.0, target_temperature=0.01)
    assert float(found) == pytest.approx(math.log(1 + math.e))


def test_the_order_of_the_pairs_does_not_matter() -> None:
    image, text, order = units(0), units(1), torch.tensor([3, 1, 5, 0, 2, 4])
    assert loss_of(image[order], text[order]) == pytest.approx(loss_of(image, text))


def net() -> nn.Module:
    """A small convolutional net with batch normalization."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8, 8))


def colours() -> Tensor:
    """Photos in six pure colours, (6, 3, 12, 12)."""
    corners = [[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1]]
    return torch.tensor(corners).float()[:, :, None, None].expand(6, 3, 12, 12)


def test_aligning_brings_photos_to_their_texts_and_ends_in_eval_mode() -> None:
    model, pixels, text = net(), colours(), units(0)
    steps: list[tuple[int, ...]] = []
    config = AlignConfig(epochs=30, batch=6, learning_rate=0.03)
    align(model, pixels, text, config, seed=0, progress=lambda *counts: steps.append(counts))
    assert not model.training
    assert steps == [(step, 30) for step in range(1, 31)]
    nearest = (nn.functional.normalize(model(pixels), dim=1) @ text.T).argmax(1)
    assert (nearest == torch.arange(6)).float().mean() >= 5 / 6


def test_the_same_seed_gives_the_same_weights() -> None:
    states = []
    for seed in (0, 0, 1):
        model = copy.deepcopy(net())
        align(model, colours(), units(0), AlignConfig(epochs=2, batch=2), seed=seed)
        states.append(torch.cat([tensor.flatten() for tensor in model.state_dict().values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_augmentation_flips_or_not_and_shifts_white_in() -> None:
    pixels = torch.linspace(-1, 1, 4 * 3 * 8 * 8).view(4, 3, 8, 8)
    before = pixels.clone()
    seen = augment(pixels, torch.Generator().manual_seed(0), shift=0)
    for row, photo in zip(seen, pixels, strict=True):
        assert torch.equal(row, photo) or torch.equal(row, photo.flip(2))
    shifted = augment(torch.full((1, 3, 8, 8), -1.0), torch.Generator().manual_seed(1), shift=3)
    assert shifted.shape == (1, 3, 8, 8)
    assert set(shifted.unique().tolist()) <= {-1.0, 1.0}
    assert torch.equal(pixels, before)
