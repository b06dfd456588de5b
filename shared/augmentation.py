"""Small changes that leave a text or a photo what it is: more to learn from than a log has.

An augmented view is made once and its frozen activations are kept like those of the original
(`shared.encoders.prefix_cache`), so training sees a few fixed views of each item instead of endless
ones, and stays as fast as it was.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

VERSION: Final = 1  # part of what kept activations are found by: raise it with any change here
SHARE: Final = 0.1  # of a text's words that one operation changes, at least one
ANGLE: Final = 10.0  # degrees, either way
ZOOM: Final = 0.15  # in or out
LIGHT: Final = 0.2  # brightness and contrast, more or less
NOISE: Final = 6.0  # standard deviation, of 255
_WHITE: Final = (255, 255, 255)

Synonyms = Callable[[str], Sequence[str]]
Operation = Callable[[list[str], int, np.random.Generator], list[str]]


def augment_text(text: str, rng: np.random.Generator, synonyms: Synonyms) -> str:
    """One of four small changes to a text's words (EDA, Wei and Zou, arXiv:1901.11196).

    A synonym in a word's place, a synonym somewhere beside it, two words swapped, or a word left
    out; each of those that can be done is equally likely, and is done to a tenth of the words.

    Args:
        text: any.
        rng: draws.
        synonyms: gives those of a word, none where it has none.

    Returns:
        The changed text; a text of a single word without a synonym stays.
    """
    words = text.split()
    known = {word: found for word in dict.fromkeys(words) if (found := tuple(synonyms(word)))}
    operations: list[Operation] = []
    if known:
        operations += [_replaces(known), _inserts(known)]
    if len(words) > 1:
        operations += [_swap, _delete]
    if not operations:
        return text
    times = max(1, round(SHARE * len(words)))
    return " ".join(operations[int(rng.integers(len(operations)))](words, times, rng))


def _replaces(known: dict[str, tuple[str, ...]]) -> Operation:
    def replace(words: list[str], times: int, rng: np.random.Generator) -> list[str]:
        places = [place for place, word in enumerate(words) if word in known]
        drawn = set(rng.permutation(places)[:times].tolist())
        return [_one(known[w], rng) if at in drawn else w for at, w in enumerate(words)]

    return replace


def _inserts(known: dict[str, tuple[str, ...]]) -> Operation:
    def insert(words: list[str], times: int, rng: np.random.Generator) -> list[str]:
        longer = list(words)
        for _ in range(times):
            word = _one(tuple(known), rng)
            longer.insert(int(rng.integers(len(longer) + 1)), _one(known[word], rng))
        return longer

    return insert


def _swap(words: list[str], times: int, rng: np.random.Generator) -> list[str]:
    swapped = list(words)
    for _ in range(times):
        one, other = rng.choice(len(words), 2, replace=False)
        swapped[one], swapped[other] = swapped[other], swapped[one]
    return swapped


def _delete(words: list[str], times: int, rng: np.random.Generator) -> list[str]:
    gone = set(rng.permutation(len(words))[: min(times, len(words) - 1)].tolist())
    return [word for place, word in enumerate(words) if place not in gone]


def _one(items: Sequence[str], rng: np.random.Generator) -> str:
    return items[int(rng.integers(len(items)))]


def augment_photo(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Flip, small rotation, zoom, brightness, contrast and noise, each by chance.

    Args:
        pixels: (S, S, 3), as the tower sees a photo.
        rng: draws.

    Returns:
        (S, S, 3); what comes in at the edges is white, as a photo's margin is.
    """
    image = Image.fromarray(pixels)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = _turned(image, float(rng.uniform(-ANGLE, ANGLE)), float(rng.uniform(-ZOOM, ZOOM)))
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast):
        image = enhance(image).enhance(1 + float(rng.uniform(-LIGHT, LIGHT)))
    noise = rng.normal(0, rng.uniform(0, NOISE), pixels.shape)
    return np.clip(np.rint(np.asarray(image) + noise), 0, 255).astype(np.uint8)


def _turned(image: Image.Image, degrees: float, zoom: float) -> Image.Image:
    """Rotated about its middle and scaled by 1 + zoom."""
    angle, scale, middle = np.deg2rad(degrees), 1 / (1 + zoom), image.width / 2
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    shift = middle - cos * middle - sin * middle, middle + sin * middle - cos * middle
    matrix = tuple(map(float, (cos, sin, shift[0], -sin, cos, shift[1])))
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=_WHITE
    )
