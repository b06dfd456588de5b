"""What a change leaves, what it may do, and that it is the same for the same seed."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.augmentation import augment_photo, augment_text

TITLE = "red leather ankle boots for men"
SYNONYMS = {"boots": ["shoes"], "red": ["scarlet", "crimson"]}


def none(word: str) -> list[str]:
    return []


def some(word: str) -> list[str]:
    return SYNONYMS.get(word, [])


def changed(text: str, synonyms=none, seeds=range(200)) -> set[str]:
    return {augment_text(text, np.random.default_rng(seed), synonyms) for seed in seeds}


def test_without_synonyms_two_words_are_swapped_or_one_is_left_out() -> None:
    words = TITLE.split()
    for found in changed(TITLE):
        got = found.split()
        if len(got) == len(words):
            assert Counter(got) == Counter(words)
            assert sum(a != b for a, b in zip(got, words, strict=True)) == 2
        else:
            assert sum((Counter(words) - Counter(got)).values()) == 1 and len(got) == 5


def test_synonyms_take_a_words_place_or_stand_beside_it() -> None:
    found = changed("boots men", some)
    assert found == {"shoes men", "men boots", "boots", "men"} | {
        "shoes boots men",
        "boots shoes men",
        "boots men shoes",
    }


@pytest.mark.parametrize("text", ["", "boots", "   "])
def test_what_cannot_be_changed_stays(text: str) -> None:
    assert changed(text) == {text}


@given(st.text(max_size=60), st.integers(0, 99))
def test_no_text_loses_all_its_words_and_the_seed_decides(text: str, seed: int) -> None:
    one, other = (augment_text(text, np.random.default_rng(seed), some) for _ in range(2))
    assert one == other
    assert bool(one.split()) == bool(text.split())
    allowed = {*text.split(), *(s for group in SYNONYMS.values() for s in group)}
    assert set(one.split()) <= allowed


def test_a_tenth_of_a_long_text_changes() -> None:
    text = " ".join(f"w{number}" for number in range(40))
    lengths = {len(found.split()) for found in changed(text)}
    assert lengths == {36, 40}


def photo(seed: int = 0, size: int = 32) -> NDArray[np.uint8]:
    """Smooth, dark on the left, with a margin."""
    ramp = np.linspace(40, 200, size)[None, :, None] + np.zeros((size, 1, 3))
    ramp[:4] = ramp[-4:] = 255
    return ramp.astype(np.uint8)


@pytest.mark.parametrize("seed", range(5))
def test_a_photo_keeps_its_form_and_is_not_changed_itself(seed: int) -> None:
    original = photo()
    before = original.copy()
    made = augment_photo(original, np.random.default_rng(seed))
    assert (made.shape, made.dtype) == (original.shape, np.uint8)
    assert np.array_equal(original, before)
    assert not np.array_equal(made, original)
    assert np.array_equal(made, augment_photo(original, np.random.default_rng(seed)))


def test_photos_are_flipped_half_the_time_and_stay_recognizable() -> None:
    """A smooth photo stays near itself or its mirror image."""
    original, flips, views = photo().astype(float), 0, 60
    for seed in range(views):
        made = augment_photo(photo(), np.random.default_rng(seed)).astype(float)
        middle = slice(8, 24)
        same, mirrored = (
            np.corrcoef(made[middle, middle].ravel(), other[middle, middle].ravel())[0, 1]
            for other in (original, original[:, ::-1])
        )
        flips += mirrored > same
        assert max(same, mirrored) > 0.9
    assert views / 4 < flips < 3 * views / 4


def test_brightness_zoom_and_angle_differ_from_view_to_view() -> None:
    views = [augment_photo(photo(), np.random.default_rng(seed)) for seed in range(6)]
    assert all(abs(float(a.mean()) - float(b.mean())) > 0.1 for a, b in pairwise(views))
