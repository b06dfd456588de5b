"""One modality alone is itself, two are weighted by the gate, and gradients stay finite.

What holds for every kind is under "every kind"; what `fuse` does by itself stands before it.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from shared.config import ATTENTION, AVERAGE, CONCATENATION, FUSIONS, MAXIMUM, WEIGHTED_SUM
from shared.encoders.fusion import KINDS, Fusion, clamp_log_temperature, fuse

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


# -- every kind ------------------------------------------------------------------------------------

HAS_TEXT = torch.tensor([True, True, False, False, True])
HAS_IMAGE = torch.tensor([True, False, True, False, True])


def moved(kind: str) -> Fusion:
    """A fusion whose every number is away from where it starts."""
    module = Fusion(image_weight=0.3, temperature=0.2, kind=kind, dim=8)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    return module


def together(kind: str) -> Tensor:
    """Five products: two with both, one with text, one with a photo, one with neither."""
    return moved(kind).products(units(0), units(1), HAS_TEXT, HAS_IMAGE)


@pytest.mark.parametrize("kind", FUSIONS)
def test_products_and_queries_are_unit_vectors_of_one_length(kind: str) -> None:
    products = together(kind)
    queries = moved(kind).queries(units(2), units(3), HAS_TEXT, HAS_IMAGE)
    assert products.shape == queries.shape == (5, 8 * KINDS[kind].width)
    torch.testing.assert_close(products.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(queries.norm(dim=1), torch.ones(5))


@pytest.mark.parametrize("kind", FUSIONS)
def test_what_there_is_stands_for_what_is_missing(kind: str) -> None:
    """Text alone, photo alone and neither: that of a query by the same vector, at cosine 1."""
    module, text, image = moved(kind), units(0), units(1)
    products = together(kind)
    torch.testing.assert_close(products[1], module.place(text)[1])
    torch.testing.assert_close(products[2], module.place(image)[2])
    torch.testing.assert_close(products[3], module.place(text)[3])


@pytest.mark.parametrize("kind", FUSIONS)
def test_two_equal_modalities_are_as_one(kind: str) -> None:
    module, text, every = moved(kind), units(0), torch.ones(5, dtype=torch.bool)
    torch.testing.assert_close(module.products(text, text, every, every), module.place(text))
    torch.testing.assert_close(module.queries(text, text, every, every), module.place(text))


@pytest.mark.parametrize("kind", FUSIONS)
def test_a_batch_in_another_order_is_the_same_products(kind: str) -> None:
    order = torch.tensor([3, 0, 4, 2, 1])
    text, image = units(0)[order], units(1)[order]
    shuffled = moved(kind).products(text, image, HAS_TEXT[order], HAS_IMAGE[order])
    torch.testing.assert_close(shuffled, together(kind)[order])


@pytest.mark.parametrize("kind", FUSIONS)
def test_what_is_missing_may_hold_anything_and_gets_no_gradient(kind: str) -> None:
    text, image = units(0), units(1)
    text[2], image[[1, 3]] = 0.0, 7.0
    text.requires_grad_(), image.requires_grad_()
    module = moved(kind)
    found = module.products(text, image, HAS_TEXT, HAS_IMAGE)
    torch.testing.assert_close(found, together(kind))
    found[:, 0].sum().backward()
    gradients = [tensor.grad for tensor in (text, image, *module.parameters())]
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)
    assert text.grad is not None and image.grad is not None
    assert not text.grad[2].any()
    assert not image.grad[[1, 3]].any()


@pytest.mark.parametrize("kind", FUSIONS)
def test_a_text_query_is_its_text(kind: str) -> None:
    module, text = moved(kind), units(0)
    alone = module.queries(text, units(1), torch.ones(5).bool(), torch.zeros(5).bool())
    torch.testing.assert_close(alone, module.place(text))


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (WEIGHTED_SUM, ["gate", "log_temperature"]),
        (AVERAGE, ["log_temperature"]),
        (MAXIMUM, ["log_temperature"]),
        (CONCATENATION, ["gate", "log_temperature"]),
        (ATTENTION, ["gate", "log_temperature", "text_attention", "image_attention"]),
    ],
)
def test_what_is_trained_has_a_name(kind: str, names: list[str]) -> None:
    assert [name for name, _ in moved(kind).named_parameters()] == names


def test_the_weighted_sum_is_fuse_bit_for_bit() -> None:
    gate = moved(WEIGHTED_SUM).gate
    assert together(WEIGHTED_SUM).equal(fuse(units(0), units(1), HAS_TEXT, HAS_IMAGE, gate))


def test_attention_that_hears_nothing_is_the_weighted_sum_bit_for_bit() -> None:
    modules = [
        Fusion(image_weight=0.3, temperature=0.2, kind=kind, dim=8)
        for kind in (ATTENTION, WEIGHTED_SUM)
    ]
    first, second = (module.products(units(0), units(1), HAS_TEXT, HAS_IMAGE) for module in modules)
    assert first.equal(second)


def test_attention_by_hand() -> None:
    """Logits ln 3 = gate 0 + 1 * ln 3 for the text, 0 for the photo: weights 3 / 4 and 1 / 4."""
    numbers = {
        "gate": torch.zeros(2),
        "text_attention": torch.tensor([math.log(3), 5.0]),
        "image_attention": torch.tensor([5.0, 0.0]),
    }
    found = KINDS[ATTENTION].mix(EAST, NORTH, YES, YES, numbers)
    torch.testing.assert_close(found, torch.tensor([[3 / math.sqrt(10), 1 / math.sqrt(10)]]))


def test_an_average_is_the_weighted_sum_with_equal_weights() -> None:
    assert together(AVERAGE).equal(fuse(units(0), units(1), HAS_TEXT, HAS_IMAGE, torch.zeros(2)))


def test_a_maximum_by_hand() -> None:
    text, image = torch.tensor([[0.6, -0.8]]), torch.tensor([[-1.0, 0.0]])
    found = KINDS[MAXIMUM].mix(text, image, YES, YES, {})
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0]]))


def test_a_maximum_of_nothing_is_the_text() -> None:
    found = KINDS[MAXIMUM].mix(-EAST, -NORTH, YES, YES, {})
    torch.testing.assert_close(found, -EAST)


def test_an_inner_product_of_concatenations_is_a_weighted_sum_of_cosines() -> None:
    module, query, text, image = moved(CONCATENATION), units(2), units(0), units(1)
    weight = torch.softmax(module.gate.detach(), dim=0)
    both = weight[0] * query @ text.T + weight[1] * query @ image.T  # (5, 5)
    expected = torch.stack(
        [
            both[:, 0],
            (query @ text.T)[:, 1],
            (query @ image.T)[:, 2],
            (query @ text.T)[:, 3],
            both[:, 4],
        ],
        dim=1,
    )
    torch.testing.assert_close(module.place(query) @ together(CONCATENATION).T, expected)


def test_a_gate_that_is_all_on_one_side_gives_a_concatenation_finite_gradients() -> None:
    gate = torch.tensor([0.0, -1e4], requires_grad=True)
    KINDS[CONCATENATION].mix(EAST, NORTH, YES, YES, {"gate": gate}).sum().backward()
    assert gate.grad is not None and gate.grad.isfinite().all()
