"""One modality alone is itself, two are weighted by the gate, and gradients stay finite."""

import math

import pytest
import torch
from torch import Tensor, nn

from shared.encoders.fusion import Fusion, clamp_log_temperature, fuse

EAST, NORTH = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
YES, NO = torch.tensor([True]), torch.tensor([False])


def units(seed: int, rows: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(rows, 8, generator=generator), dim=1)


@pytest.mark.parametrize("gate", [[0.0, 0.0], [30.0, -30.0], [-30.0, 30.0], [0.0, -1e4]])
def test_one_modality_alone_is_itself_whatever_the_gate(gate: list[float]) -> None:
    logits = torch.tensor(gate)
    torch.testing.assert_close(fuse(EAST, NORTH, YES, NO, logits), EAST)
    torch.testing.assert_close(fuse(EAST, NORTH, NO, YES, logits), NORTH)


def test_a_product_with_neither_is_its_text() -> None:
    torch.testing.assert_close(fuse(EAST, NORTH, NO, NO, torch.zeros(2)), EAST)


def test_equal_weights_by_hand() -> None:
    half = 1 / math.sqrt(2)
    found = fuse(EAST, NORTH, YES, YES, torch.zeros(2))
    torch.testing.assert_close(found, torch.tensor([[half, half]]))


def test_unequal_weights_by_hand() -> None:
    # Weights 1 / 4 and 3 / 4; the unit vector along (1, 3).
    found = fuse(EAST, NORTH, YES, YES, torch.tensor([0.0, math.log(3)]))
    torch.testing.assert_close(found, torch.tensor([[1 / math.sqrt(10), 3 / math.sqrt(10)]]))


def test_only_the_difference_of_the_logits_counts() -> None:
    text, image, both = units(0), units(1), torch.ones(5, dtype=torch.bool)
    first = fuse(text, image, both, both, torch.tensor([0.3, -0.5]))
    second = fuse(text, image, both, both, torch.tensor([7.3, 6.5]))
    torch.testing.assert_close(first, second)


def test_rows_do_not_mix_and_come_out_as_unit_vectors() -> None:
    text, image, gate = units(0), units(1), torch.tensor([0.2, -0.4])
    has_text = torch.tensor([True, True, False, False, True])
    has_image = torch.tensor([True, False, True, False, True])
    together = fuse(text, image, has_text, has_image, gate)
    alone = [
        fuse(text[[i]], image[[i]], has_text[[i]], has_image[[i]], gate) for i in range(len(text))
    ]
    torch.testing.assert_close(together, torch.cat(alone))
    torch.testing.assert_close(together.norm(dim=1), torch.ones(5))


def test_a_masked_modality_gives_no_gradient_and_no_nan() -> None:
    text, image = units(0).requires_grad_(), units(1).requires_grad_()
    gate = torch.zeros(2, requires_grad=True)
    has_text = torch.tensor([True, True, False, False, True])
    has_image = torch.tensor([True, False, True, False, True])
    fuse(text, image, has_text, has_image, gate)[:, 0].sum().backward()
    gradients = [tensor.grad for tensor in (text, image, gate)]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert text.grad is not None and image.grad is not None
    assert not text.grad[2].any()
    assert not image.grad[[1, 3]].any()


def test_only_rows_with_both_move_the_gate() -> None:
    text, image, gate = units(0), units(1), torch.zeros(2, requires_grad=True)
    has_text = torch.tensor([True, False, True, False, True])
    fuse(text, image, has_text, ~has_text, gate)[:, 0].sum().backward()
    torch.testing.assert_close(gate.grad, torch.zeros(2))


@pytest.mark.parametrize(
    ("temperature", "held"),
    [
        (0.001, 0.01),
        (0.01, 0.01),
        (0.05, 0.05),
        (0.5, 0.5),
        (1.0, 1.0),
        (10.0, 1.0),
    ],
)
def test_the_temperature_is_held_within_bounds(temperature: float, held: float) -> None:
    log_temperature = torch.tensor(math.log(temperature))
    assert clamp_log_temperature(log_temperature).exp().item() == pytest.approx(held, rel=1e-5)
    module = Fusion(image_weight=0.3, temperature=temperature)
    assert module.temperature().item() == pytest.approx(held, rel=1e-5)


def test_the_gate_starts_at_the_base_weight() -> None:
    weight = torch.softmax(Fusion(image_weight=0.3, temperature=0.05).gate, dim=0)
    torch.testing.assert_close(weight, torch.tensor([1 / 1.3, 0.3 / 1.3]))
