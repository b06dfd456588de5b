"""Augmented views of what a region trains on, kept like the originals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from shared.augmentation import Synonyms, augment_text
from shared.encoders.prefix_cache import ImagePrefixes, TextPrefixes


@dataclass(frozen=True)
class Views:
    """Views beside the originals; entry v of each list holds one view of every item.

    Attributes:
        queries: of the training queries.
        texts: of the catalog's texts.
        images: of the catalog's photos.
    """

    queries: list[TextPrefixes]
    texts: list[TextPrefixes]
    images: list[ImagePrefixes]


def make_views(
    number: int,
    queries: Sequence[str],
    texts: Sequence[str],
    *,
    keep_texts: Callable[[list[str]], TextPrefixes],
    keep_photos: Callable[[int], ImagePrefixes],
    synonyms: Synonyms,
) -> Views:
    """Make the views 1 to `number`, or open them where they are kept.

    Args:
        number: of views, > 0.
        queries: of the training examples.
        texts: of the catalog.
        keep_texts: gives the kept activations of texts.
        keep_photos: gives those of the catalog's photos in a view.
        synonyms: of a word.
    """
    views = range(1, number + 1)
    return Views(
        queries=[keep_texts(changed_texts(queries, view, synonyms)) for view in views],
        texts=[keep_texts(changed_texts(texts, view, synonyms)) for view in views],
        images=[keep_photos(view) for view in views],
    )


def changed_texts(texts: Sequence[str], view: int, synonyms: Synonyms) -> list[str]:
    """Each text changed once; the same view of the same texts is the same again."""
    rng = np.random.default_rng(view)
    return [augment_text(text, rng, synonyms) for text in texts]
