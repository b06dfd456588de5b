"""What the image tower sees of a photo, and that a photo's vector depends on it alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared.encoders.encoder import Encoder
from shared.encoders.image import load_pixels
from shared.errors import DataError

WHITE, RED = (255, 255, 255), (200, 30, 30)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "1"])
def test_every_mode_is_seen_as_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGB", (8, 8), WHITE).convert(mode)
    pixels = load_pixels(saved(image, tmp_path / "photo.tif"), 8)
    assert (pixels.shape, pixels.dtype) == ((8, 8, 3), np.uint8)
    assert (pixels == 255).all()


def test_the_whole_picture_stands_between_white_margins(tmp_path: Path) -> None:
    path = saved(Image.new("RGB", (8, 16), RED), tmp_path / "tall.png")
    pixels = load_pixels(path, 16)
    assert (pixels[:, 4:12] == RED).all()
    assert (pixels[:, :4] == WHITE).all()
    assert (pixels[:, 12:] == WHITE).all()


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_a_cut_out_product_stands_on_white(tmp_path: Path, suffix: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))  # black under the transparency, as usual
    image.paste((*RED, 255), (0, 0, 8, 4))
    pixels = load_pixels(saved(image, tmp_path / f"cut.{suffix}", lossless=True), 8)
    assert (pixels[:4] == RED).all()
    assert (pixels[4:] == WHITE).all()


def test_a_transparent_palette_colour_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, *RED])
    path = saved(image, tmp_path / "cut.gif", transparency=0)
    assert (load_pixels(path, 4) == 255).all()


def test_a_photo_taken_upside_down_is_turned(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), WHITE)
    image.paste(RED, (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 3  # orientation: rotated by 180 degrees
    pixels = load_pixels(saved(image, tmp_path / "turned.png", exif=exif), 8)
    assert (pixels[:4] == WHITE).all()
    assert (pixels[4:] == RED).all()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "FileNotFoundError"), (b"", "UnidentifiedImageError"), (b"\x89PNG\r\n\x1a\n", "Error")],
)
def test_an_unreadable_photo_is_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "broken.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"broken\.png: not a readable picture \(.*{reason}\)"):
        load_pixels(path, 8)


def test_half_a_photo_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path = saved(image, tmp_path / "half.jpg")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"half\.jpg: not a readable picture"):
        load_pixels(path, 8)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # it is one
def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = saved(Image.new("1", (10_000, 10_000)), tmp_path / "huge.png")
    with pytest.raises(DataError, match=r"huge\.png: 10000x10000 pixels; at most 64 million"):
        load_pixels(path, 8)


def test_white_and_black_are_normalized_by_hand(encoder: Encoder) -> None:
    pixels = np.array([0, 255], dtype=np.uint8).reshape(2, 1, 1, 1) * np.ones((1, 2, 2, 3), "u1")
    batch = encoder.image.normalize(pixels)
    assert batch.shape == (2, 3, 2, 2)
    assert torch.equal(batch[0], torch.full((3, 2, 2), -1.0))  # (0 - 0.5) / 0.5
    assert torch.equal(batch[1], torch.full((3, 2, 2), 1.0))  # (1 - 0.5) / 0.5


def test_the_company_of_a_photo_does_not_matter(encoder: Encoder, photos: list[Path]) -> None:
    tower = encoder.image
    together = tower.suffix(tower.prefix(photos))
    alone = torch.cat([tower.suffix(tower.prefix([path])) for path in photos])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
