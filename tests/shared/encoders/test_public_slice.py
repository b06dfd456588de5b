"""What a base hands out beside its towers: products that belong to no region."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.encoders.base import read_base
from shared.encoders.image import load_pixels
from shared.encoders.presets import PRESETS, make_base
from shared.encoders.public import PublicSlice, read_public
from shared.errors import BaseError

TINY = PRESETS["tiny"]


@pytest.fixture
def public(photos: list[Path]) -> PublicSlice:
    return PublicSlice([f"thing {number}" for number in range(len(photos))], photos)


def test_a_base_hands_out_what_it_was_given(public: PublicSlice) -> None:
    base, _ = make_base(TINY, public, seed=0)
    found = read_public(base)
    assert list(found.titles) == list(public.titles)
    for here, there in zip(found.photos, public.photos, strict=True):
        given = load_pixels(there, TINY.image.size).astype(float)
        seen = load_pixels(here, TINY.image.size).astype(float)
        with Image.open(here) as opened:
            assert opened.size == (TINY.image.size, TINY.image.size)
        assert np.abs(seen - given).mean() < 4  # what JPEG takes


def test_no_more_than_the_preset_says_and_the_same_every_time(public: PublicSlice) -> None:
    few = replace(TINY, public_products=3)
    base, info = make_base(few, public, seed=0)
    found = list(read_public(base).titles)
    assert len(found) == 3 and found == [title for title in public.titles if title in found]
    assert list(public.sample(3, seed=0).titles) == found
    assert make_base(few, public, seed=0)[1] == info
    assert public.sample(99, seed=1).titles == list(public.titles)


def test_the_fingerprint_covers_them(public: PublicSlice) -> None:
    base, info = make_base(TINY, public, seed=0)
    fewer = PublicSlice(public.titles[1:], public.photos[1:])
    assert make_base(TINY, fewer, seed=0)[1].fingerprint != info.fingerprint
    assert make_base(TINY, PublicSlice(), seed=0)[1].fingerprint != info.fingerprint
    photo = read_public(base).photos[0]
    whole = photo.read_bytes()
    try:
        photo.write_bytes(whole[:-1])
        with pytest.raises(BaseError, match=r"public/photos/00000\.jpg: changed"):
            read_base(base)
    finally:
        photo.write_bytes(whole)


def test_a_base_without_them_hands_out_nothing() -> None:
    base, _ = make_base(TINY, PublicSlice(), seed=0)
    assert not (base / "public").exists()
    assert read_public(base) == PublicSlice()


@pytest.mark.parametrize("content", ['{"a": 1}', '["a", 2]'])
def test_titles_that_are_none_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "titles.json").write_text(content)
    with pytest.raises(BaseError, match=r"titles\.json: not a list of texts"):
        read_public(tmp_path)


def test_other_choices_keep_them(public: PublicSlice) -> None:
    base, _ = make_base(TINY, public, seed=0, fusion="concatenation")
    assert list(read_public(base).titles) == list(public.titles)
