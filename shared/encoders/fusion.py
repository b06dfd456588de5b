"""How a product's text and photo become one vector, and the temperature of the loss.

A base names one of `KINDS`; it decides what a vector means, so it is part of the base's fingerprint
and two kinds' vectors are never compared. With t and v the unit vectors of text and photo, and
weights w = softmax(gate) over what is there, a product's vector is

    weighted-sum   w_t t + w_v v, back to unit length
    average        (t + v) / 2, back to unit length; nothing is trained
    maximum        the larger of t_i and v_i in each dimension, back to unit length; nothing either
    attention      the weighted sum with softmax(gate + [a_t . t, a_v . v]): each item's own vectors
                   say how much of each counts (the gate of GMU, arXiv:1702.01992, as a softmax)
    concatenation  [sqrt(w_t) t, sqrt(w_v) v], of 2 D numbers and of unit length as it is

A product with one modality only is that one's vector, and one with neither that of its empty text.
In a concatenation, where a half that is missing would cost a product that share of its score, the
half that is there stands in both places.

A query is a unit vector u of D numbers: its text, its photo, or of both the sum with equal weights,
back to unit length, whatever the kind. Only a concatenation must bring it to the products' length:
[sqrt(w_t) u, sqrt(w_v) u], whose inner product with a product is w_t u . t + w_v u . v, so that
both the photo and the text are compared with every query.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from shared.config import ATTENTION, AVERAGE, CONCATENATION, FUSIONS, MAXIMUM, WEIGHTED_SUM

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 1.0
GATE: Final = "gate"
TEXT_ATTENTION, IMAGE_ATTENTION = "text_attention", "image_attention"
_LEAST_LENGTH = 1e-6  # of a vector that has a direction

Parameters = Mapping[str, Tensor]
Mix = Callable[[Tensor, Tensor, Tensor, Tensor, Parameters], Tensor]
Place = Callable[[Tensor, Parameters], Tensor]


def fuse(text: Tensor, image: Tensor, has_text: Tensor, has_image: Tensor, gate: Tensor) -> Tensor:
    """Gate-weighted sum of the modalities that are there, back on the unit sphere.

    Args:
        text: unit vectors, (B, D), also of rows without text.
        image: unit vectors, (B, D); rows without a photo may hold anything finite.
        has_text: (B,) bool.
        has_image: (B,) bool.
        gate: logits of text and image, (2,), or of each row's own, (B, 2).

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


def fuse_equally(text: Tensor, image: Tensor, has_text: Tensor, has_image: Tensor) -> Tensor:
    """`fuse` with equal weights: what a query of text and photo is."""
    return fuse(text, image, has_text, has_image, text.new_zeros(2))


def filled(
    text: Tensor, image: Tensor, has_text: Tensor, has_image: Tensor
) -> tuple[Tensor, Tensor]:
    """Text and photo vectors (B, D) where what is missing is replaced by what is there.

    Args:
        text: as for `fuse`, like all that follow.
        image: of the photos.
        has_text: which rows have text.
        has_image: which rows have a photo.

    Returns:
        Both; of a row with neither both are its text vector.
    """
    lone_photo = (has_image & ~has_text)[:, None]
    return torch.where(lone_photo, image, text), torch.where(has_image[:, None], image, text)


def largest(text: Tensor, image: Tensor, has_text: Tensor, has_image: Tensor) -> Tensor:
    """Element-wise maximum of the modalities that are there, back on the unit sphere.

    Args:
        text: as for `fuse`, like all that follow.
        image: of the photos.
        has_text: which rows have text.
        has_image: which rows have a photo.

    Returns:
        Unit vectors, (B, D). Where the maximum is 0 in every dimension, it is the text's vector.
    """
    text, image = filled(text, image, has_text, has_image)
    most = torch.maximum(text, image)  # (B, D)
    flat = most.detach().norm(dim=1, keepdim=True) < _LEAST_LENGTH
    return nn.functional.normalize(torch.where(flat, text, most), dim=1)


def side_by_side(text: Tensor, image: Tensor, gate: Tensor) -> Tensor:
    """Concatenation whose inner products are gate-weighted sums: [sqrt(w_t) t, sqrt(w_v) v].

    Args:
        text: unit vectors, (B, D).
        image: unit vectors, (B, D).
        gate: logits of text and image, (2,).

    Returns:
        Unit vectors, (B, 2 D).
    """
    # The root of a softmax as half its logarithm: finite gradients where a weight rounds to 0.
    root = torch.exp(torch.log_softmax(gate, dim=0) / 2)  # (2,)
    return torch.cat([root[0] * text, root[1] * image], dim=1)


def attended(
    text: Tensor, image: Tensor, has_text: Tensor, has_image: Tensor, parameters: Parameters
) -> Tensor:
    """Weighted sum whose gate hears each item's own vectors.

    Args:
        text: as for `fuse`, like all but the last.
        image: of the photos.
        has_text: which rows have text.
        has_image: which rows have a photo.
        parameters: gate (2,), and what is listened for in text and photo, (D,) each.

    Returns:
        Unit vectors, (B, D); those of `fuse`, bit for bit, where nothing is listened for.
    """
    heard = torch.stack(
        [text @ parameters[TEXT_ATTENTION], image @ parameters[IMAGE_ATTENTION]], dim=1
    )  # (B, 2)
    return fuse(text, image, has_text, has_image, parameters[GATE] + heard)


@dataclass(frozen=True)
class Kind:
    """One way of fusing.

    Attributes:
        mix: text (B, D), photo (B, D), whether there are (B,) each, parameters -> products (B, V).
        place: query vectors (B, D), parameters -> the same among the products, (B, V).
        has_gate: whether gate logits (2,) are among its parameters.
        width: V / D.
    """

    mix: Mix
    place: Place
    has_gate: bool
    width: int = 1


def _as_it_is(query: Tensor, _: Parameters) -> Tensor:
    return query


KINDS: Final[Mapping[str, Kind]] = {
    WEIGHTED_SUM: Kind(
        lambda t, v, has_t, has_v, p: fuse(t, v, has_t, has_v, p[GATE]), _as_it_is, has_gate=True
    ),
    AVERAGE: Kind(
        lambda t, v, has_t, has_v, _: fuse_equally(t, v, has_t, has_v), _as_it_is, has_gate=False
    ),
    MAXIMUM: Kind(
        lambda t, v, has_t, has_v, _: largest(t, v, has_t, has_v), _as_it_is, has_gate=False
    ),
    CONCATENATION: Kind(
        lambda t, v, has_t, has_v, p: side_by_side(*filled(t, v, has_t, has_v), p[GATE]),
        lambda query, p: side_by_side(query, query, p[GATE]),
        has_gate=True,
        width=2,
    ),
    ATTENTION: Kind(attended, _as_it_is, has_gate=True),
}
assert tuple(KINDS) == FUSIONS, "the names that options take"


def clamp_log_temperature(log_temperature: Tensor) -> Tensor:
    """The log temperature held within [MIN_TEMPERATURE, MAX_TEMPERATURE], shape ()."""
    return log_temperature.clamp(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))


class Fusion(nn.Module):
    """What is trainable of a fusion, and the log temperature (): a few numbers that travel.

    Args:
        image_weight: weight of the photo relative to the text's 1 before any training, > 0.
        temperature: of the contrastive loss before any training.
        kind: one of `KINDS`.
        dim: D, of the towers; only attention needs it.
    """

    def __init__(
        self, *, image_weight: float, temperature: float, kind: str = WEIGHTED_SUM, dim: int = 0
    ) -> None:
        super().__init__()
        self.kind = kind
        if self.has_gate:
            self.gate = nn.Parameter(torch.tensor([0.0, math.log(image_weight)]))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        if kind == ATTENTION:  # nothing is listened for yet: the weighted sum
            self.text_attention = nn.Parameter(torch.zeros(dim))
            self.image_attention = nn.Parameter(torch.zeros(dim))

    @property
    def has_gate(self) -> bool:
        """Whether this kind has a gate."""
        return KINDS[self.kind].has_gate

    def temperature(self) -> Tensor:
        """The clamped temperature, shape ()."""
        return clamp_log_temperature(self.log_temperature).exp()

    def products(self, text: Tensor, image: Tensor, has_text: Tensor, has_image: Tensor) -> Tensor:
        """Product vectors (B, V) from those of text and photo (B, D) and what there is (B,)."""
        return KINDS[self.kind].mix(text, image, has_text, has_image, self._numbers())

    def queries(self, text: Tensor, image: Tensor, has_text: Tensor, has_image: Tensor) -> Tensor:
        """Query vectors (B, V) from the same; text and photo count equally."""
        return self.place(fuse_equally(text, image, has_text, has_image))

    def place(self, query: Tensor) -> Tensor:
        """Query vectors (B, D) among the products, (B, V)."""
        return KINDS[self.kind].place(query, self._numbers())

    def _numbers(self) -> Parameters:
        return dict(self.named_parameters())
