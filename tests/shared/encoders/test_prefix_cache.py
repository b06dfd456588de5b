"""Kept activations give the vectors that fresh ones give, and nothing stale or damaged is used."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shared.adapter import Adapter
from shared.encoders.encoder import Encoder, ProductPrefixes
from shared.encoders.prefix_cache import (
    ImagePrefixes,
    ImageViews,
    TextPrefixes,
    TextViews,
    evict,
    image_folder,
    image_prefixes,
    text_folder,
    text_prefixes,
)
from shared.encoders.text import TextTower
from shared.errors import DataError
from shared.losses import image_text_loss, masked_info_nce

TEXTS = ["red boots", "a much longer title of a product", "x", "blue shirt, cotton"]
BASE = "b" * 64


class Counted:
    """Notices whether anything was computed: progress is reported after every batch."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))


def folders(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.name != ".lock")


def fresh_texts(encoder: Encoder, texts: list[str]) -> TextPrefixes:
    """As the cache gives them, but float32 and never on disk."""
    rows = [row.numpy() for row in encoder.text.prefix(texts)]
    offsets = np.cumsum([0, *(len(row) for row in rows)])
    return TextPrefixes(np.concatenate(rows), offsets)


def fresh_images(encoder: Encoder, photos: list[Path]) -> ImagePrefixes:
    return ImagePrefixes(encoder.image.prefix(photos).numpy(), np.ones(len(photos), dtype=np.bool_))


def test_a_list_is_kept_where_it_is_said_to_be(
    tmp_path: Path, encoder: Encoder, photos: list[Path]
) -> None:
    places = [
        text_folder(tmp_path, encoder.text, BASE, TEXTS),
        image_folder(tmp_path, encoder.image, BASE, [None, *photos]),
    ]
    assert folders(tmp_path) == []
    text_prefixes(tmp_path, encoder.text, BASE, TEXTS)
    image_prefixes(tmp_path, encoder.image, BASE, [None, *photos])
    assert folders(tmp_path) == sorted(place.name for place in places)
    assert {place.parent for place in places} == {tmp_path}
    with pytest.raises(DataError, match="No such file"):
        image_folder(tmp_path, encoder.image, BASE, [tmp_path / "gone.png"])


def test_kept_and_fresh_vectors_agree(
    tmp_path: Path, encoder: Encoder, trained: Adapter, photos: list[Path]
) -> None:
    encoder.load_adapter(trained)
    kept_texts = text_prefixes(tmp_path, encoder.text, BASE, TEXTS)
    kept_images = image_prefixes(tmp_path, encoder.image, BASE, photos)
    rows, all_photos = np.arange(len(TEXTS)), np.arange(len(photos))
    pairs = [
        (
            encoder.text_vectors(kept_texts, rows),
            encoder.text_vectors(fresh_texts(encoder, TEXTS), rows),
        ),
        (
            encoder.image_vectors(kept_images, all_photos),
            encoder.image_vectors(fresh_images(encoder, photos), all_photos),
        ),
    ]
    for kept, fresh in pairs:
        assert (1 - (kept * fresh).sum(dim=1)).abs().max() < 1e-3  # float16 on disk


def training_loss(encoder: Encoder, texts: TextPrefixes, images: ImagePrefixes) -> Tensor:
    """Queries 0, 1 clicked products 2, 3, as in a region."""
    products = ProductPrefixes(texts, images, np.ones(4, dtype=np.bool_))
    query = encoder.text_vectors(texts, np.array([0, 1]))
    text = encoder.text_vectors(texts, np.array([2, 3]))
    image = encoder.image_vectors(images, np.array([2, 3]))
    clicks = masked_info_nce(
        query,
        encoder.fused(text, image, products, np.array([2, 3])),
        query_index=torch.arange(2),
        product_index=torch.arange(2),
        weight=torch.ones(2),
        known_positive=torch.eye(2, dtype=torch.bool),
        temperature=encoder.fusion.temperature(),
    )
    both = torch.ones(2, dtype=torch.bool)
    aligned = image_text_loss(image, text, both, temperature=encoder.fusion.temperature())
    return clicks + 0.1 * aligned


def gradient(encoder: Encoder, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, encoder.trainable())])


def test_training_sees_the_same_loss_and_gradient(
    tmp_path: Path, encoder: Encoder, trained: Adapter, photos: list[Path]
) -> None:
    encoder.load_adapter(trained)
    kept = training_loss(
        encoder,
        text_prefixes(tmp_path, encoder.text, BASE, TEXTS),
        image_prefixes(tmp_path, encoder.image, BASE, photos[:4]),
    )
    fresh = training_loss(encoder, fresh_texts(encoder, TEXTS), fresh_images(encoder, photos[:4]))
    torch.testing.assert_close(kept, fresh, rtol=1e-2, atol=0)
    ours, theirs = gradient(encoder, kept), gradient(encoder, fresh)
    assert nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.999
    assert float(ours.norm() / theirs.norm()) == pytest.approx(1, abs=1e-2)


def test_rows_come_back_in_the_order_asked_for(tmp_path: Path, encoder: Encoder) -> None:
    kept = text_prefixes(tmp_path, encoder.text, BASE, TEXTS)
    assert kept.lengths().tolist() == [len(row) for row in encoder.text.prefix(TEXTS)]
    tokens, lengths = kept.batch(np.array([2, 0, 2]))
    assert lengths.tolist() == [3, 10, 3]
    first, second = (kept.batch(np.array([row]))[0] for row in (2, 0))
    assert torch.equal(tokens, torch.cat([first, second, first]))


def test_more_texts_than_a_batch_are_kept_in_order(tmp_path: Path, encoder: Encoder) -> None:
    texts = [f"{'x' * (number % 7)} {number}" for number in range(300)]
    counted = Counted()
    kept = text_prefixes(tmp_path, encoder.text, BASE, texts, counted)
    assert counted.calls == [(256, 300), (300, 300)]  # tests have one thread of torch
    for row in (0, 128, 299):
        expected = encoder.text.prefix([texts[row]])[0]
        torch.testing.assert_close(kept.batch(np.array([row]))[0], expected, rtol=0, atol=5e-3)


def test_what_several_threads_keep_is_what_one_would(
    tmp_path: Path, encoder: Encoder, photos: list[Path]
) -> None:
    texts = [f"{'x' * (number % 7)} {number}" for number in range(300)]
    paths, all_of_them = ([*photos, *photos[:2]] * 50)[:300], np.ones(300, np.bool_)
    made = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        kept = text_prefixes(tmp_path / str(threads), encoder.text, BASE, texts)
        images = image_prefixes(tmp_path / str(threads), encoder.image, BASE, paths)
        vectors = encoder.product_matrix(ProductPrefixes(kept, images, all_of_them))
        made.append([kept.tokens, images.maps, vectors, encoder.encode_products(texts, paths)])
    for one, three in zip(*made, strict=True):
        np.testing.assert_allclose(one, three, rtol=0, atol=2e-3)


def test_what_is_kept_is_not_computed_again(
    tmp_path: Path, encoder: Encoder, photos: list[Path]
) -> None:
    for expected in ([(4, 4)], []):
        counted = Counted()
        text_prefixes(tmp_path, encoder.text, BASE, TEXTS, counted)
        assert counted.calls == expected
    for expected in ([(6, 6)], []):
        counted = Counted()
        image_prefixes(tmp_path, encoder.image, BASE, photos, counted)
        assert counted.calls == expected


def test_a_training_step_leaves_it_valid(
    tmp_path: Path, encoder: Encoder, trained: Adapter
) -> None:
    before = text_prefixes(tmp_path, encoder.text, BASE, TEXTS)
    encoder.load_adapter(trained)
    expected = encoder.text.prefix(TEXTS)
    for row, hidden in enumerate(expected):
        torch.testing.assert_close(before.batch(np.array([row]))[0], hidden, rtol=0, atol=5e-3)


def with_cut(tower: TextTower, adapter_blocks: int) -> TextTower:
    other = object.__new__(TextTower)
    other.__dict__ = {**tower.__dict__}
    other.config = dataclasses.replace(tower.config, adapter_blocks=adapter_blocks)
    return other


def test_another_base_text_order_or_cut_is_another_folder(tmp_path: Path, encoder: Encoder) -> None:
    tower = encoder.text
    text_prefixes(tmp_path, tower, BASE, TEXTS)
    text_prefixes(tmp_path, tower, "c" * 64, TEXTS)
    text_prefixes(tmp_path, tower, BASE, [*TEXTS[:-1], "blue shirt; cotton"])
    text_prefixes(tmp_path, tower, BASE, TEXTS[::-1])
    text_prefixes(tmp_path, with_cut(tower, 2), BASE, TEXTS)
    assert len(folders(tmp_path)) == 5
    text_prefixes(tmp_path, tower, BASE, TEXTS)
    assert len(folders(tmp_path)) == 5


def test_another_photo_under_the_same_name_is_another_folder(
    tmp_path: Path, encoder: Encoder, photos: list[Path]
) -> None:
    path = tmp_path / "photo.png"
    for photo in photos[:2]:
        path.write_bytes(photo.read_bytes())
        kept = image_prefixes(tmp_path / "cache", encoder.image, BASE, [path])
        fresh = encoder.image.prefix([photo])
        torch.testing.assert_close(kept.batch(np.array([0])), fresh, rtol=0, atol=5e-3)
    assert len(folders(tmp_path / "cache")) == 2


@pytest.mark.parametrize("name", ["data.npy", "offsets.npy", "DIGESTS.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_folder_is_made_again(
    tmp_path: Path, encoder: Encoder, name: str, damage: str
) -> None:
    good = np.array(text_prefixes(tmp_path, encoder.text, BASE, TEXTS).tokens)
    path = next(tmp_path.glob("text-*")) / name
    raw = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        raw[-1] ^= 0xFF
        path.write_bytes(raw if damage == "flip" else raw[: len(raw) // 2])
    counted = Counted()
    again = text_prefixes(tmp_path, encoder.text, BASE, TEXTS, counted)
    assert counted.calls
    assert np.array_equal(again.tokens, good)


def test_what_a_killed_writer_left_is_not_used(tmp_path: Path, encoder: Encoder) -> None:
    text_prefixes(tmp_path, encoder.text, BASE, TEXTS)
    (whole,) = tmp_path.glob("text-*")
    whole.rename(tmp_path / f".{whole.name}.partial")  # killed before the rename
    counted = Counted()
    text_prefixes(tmp_path, encoder.text, BASE, TEXTS, counted)
    assert counted.calls
    assert folders(tmp_path) == [whole.name]


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path, encoder: Encoder) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        text_prefixes(tmp_path, encoder.text, BASE, TEXTS, interrupt)
    assert folders(tmp_path) == []


def test_missing_photos_hold_zeros_and_are_said_to_be_missing(
    tmp_path: Path, encoder: Encoder, photos: list[Path]
) -> None:
    kept = image_prefixes(tmp_path, encoder.image, BASE, [None, photos[0], None])
    assert kept.present.tolist() == [False, True, False]
    assert not np.array(kept.maps[[0, 2]]).any()
    vectors = encoder.image_vectors(kept, np.array([2, 1, 0]))
    torch.testing.assert_close(vectors.norm(dim=1), torch.tensor([0.0, 1.0, 0.0]))


def test_no_photo_at_all(tmp_path: Path, encoder: Encoder) -> None:
    kept = image_prefixes(tmp_path, encoder.image, BASE, [None, None])
    assert torch.equal(encoder.image_vectors(kept, np.array([0, 1])), torch.zeros(2, encoder.dim))


def test_what_is_small_keeps_no_file_open(tmp_path: Path, encoder: Encoder) -> None:
    """A simulation has hundreds of small regions open; a process may open a thousand files."""
    many = [f"{number} boots" for number in range(3000)]
    text_prefixes(tmp_path, encoder.text, BASE, TEXTS)
    text_prefixes(tmp_path, encoder.text, BASE, many)
    before = len(os.listdir("/proc/self/fd"))
    small = text_prefixes(tmp_path, encoder.text, BASE, TEXTS)
    assert len(os.listdir("/proc/self/fd")) == before
    large = text_prefixes(tmp_path, encoder.text, BASE, many)
    assert len(os.listdir("/proc/self/fd")) == before + 1  # its offsets are small
    assert isinstance(large.tokens, np.memmap) and not isinstance(small.tokens, np.memmap)


def test_an_empty_list(tmp_path: Path, encoder: Encoder) -> None:
    for _ in range(2):  # computed, then kept
        texts = text_prefixes(tmp_path, encoder.text, BASE, [])
        images = image_prefixes(tmp_path, encoder.image, BASE, [])
        assert (len(texts.lengths()), len(images.present)) == (0, 0)
        products = ProductPrefixes(texts, images, np.ones(0, dtype=np.bool_))
        assert encoder.product_matrix(products).shape == (0, encoder.dim)
        assert encoder.query_matrix(texts).shape == (0, encoder.dim)


@pytest.mark.parametrize("content", [None, b"no picture"])
def test_an_unreadable_photo_is_named_and_nothing_is_kept(
    tmp_path: Path, encoder: Encoder, photos: list[Path], content: bytes | None
) -> None:
    path = tmp_path / "broken.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.jpg: "):
        image_prefixes(tmp_path / "cache", encoder.image, BASE, [photos[0], path])
    assert not list((tmp_path / "cache").glob("*image*"))


# -- views -----------------------------------------------------------------------------------------


def test_views_are_gathered_as_they_are_chosen(encoder: Encoder, tmp_path: Path) -> None:
    texts = ["red boots", "a blue wool hat", "lamp"]
    kept = [
        text_prefixes(tmp_path, encoder.text, encoder.base.fingerprint, texts),
        text_prefixes(tmp_path, encoder.text, encoder.base.fingerprint, texts[::-1]),
    ]
    chosen, rows = np.array([0, 1, 1]), np.array([2, 0, 1])
    tokens, lengths = TextViews(kept, chosen).batch(rows)
    expected = [kept[1].tokens_of(2), kept[0].tokens_of(0), kept[1].tokens_of(1)]
    assert lengths.tolist() == [len(part) for part in expected]
    assert torch.equal(tokens, torch.cat(expected).float())
    plain = TextViews(kept, np.zeros(3, np.int64)).batch(rows)
    assert all(torch.equal(*pair) for pair in zip(plain, kept[0].batch(rows), strict=True))


def test_an_augmented_photo_is_kept_apart_from_its_original(
    encoder: Encoder, photos: list[Path], tmp_path: Path
) -> None:
    paths, fingerprint = [photos[0], None, photos[1]], encoder.base.fingerprint
    views = [
        image_prefixes(tmp_path, encoder.image, fingerprint, paths, view=view)
        for view in (0, 1, 2, 1)
    ]
    assert np.array_equal(views[1].maps, views[3].maps)
    assert not np.array_equal(views[0].maps, views[1].maps)
    assert not np.array_equal(views[1].maps, views[2].maps)
    assert all(np.array_equal(view.present, [True, False, True]) for view in views)
    assert all((view.maps[1] == 0).all() for view in views)
    assert image_folder(tmp_path, encoder.image, fingerprint, paths) == image_folder(
        tmp_path, encoder.image, fingerprint, paths, view=0
    )
    chosen = ImageViews(views[:3], np.array([2, 0, 1]))
    assert np.array_equal(chosen.present, views[0].present)
    expected = np.stack([views[1].maps[2], views[2].maps[0]]).astype(np.float32)
    assert torch.equal(chosen.batch(np.array([2, 0])), torch.from_numpy(expected))


# -- a bound on the disk ---------------------------------------------------------------------------


def entry_bytes(cache: Path, name: str) -> int:
    return sum(path.stat().st_size for path in (cache / name).iterdir())


def test_what_was_opened_longest_ago_goes_first(tmp_path: Path, encoder: Encoder) -> None:
    lists = [["red boots"], ["a blue shirt"], ["x"]]
    names = [text_folder(tmp_path, encoder.text, BASE, texts).name for texts in lists]
    for age, texts in enumerate(lists):
        text_prefixes(tmp_path, encoder.text, BASE, texts)
        os.utime(tmp_path / names[age], ns=(age, age))
    text_prefixes(tmp_path, encoder.text, BASE, lists[0])  # opened again, so the newest now
    two = entry_bytes(tmp_path, names[0]) + entry_bytes(tmp_path, names[2])
    assert evict(tmp_path, max_bytes=two + entry_bytes(tmp_path, names[1])) == []
    assert evict(tmp_path, max_bytes=two) == [names[1]]
    assert folders(tmp_path) == sorted([names[0], names[2]])


def test_the_newest_stays_and_what_is_open_can_be_read_on(tmp_path: Path, encoder: Encoder) -> None:
    opened = text_prefixes(tmp_path, encoder.text, BASE, TEXTS)
    before = opened.batch(np.arange(len(TEXTS)))[0]
    os.utime(text_folder(tmp_path, encoder.text, BASE, TEXTS), ns=(1, 1))
    text_prefixes(tmp_path, encoder.text, BASE, ["x"])
    assert len(evict(tmp_path, max_bytes=1)) == 1
    assert folders(tmp_path) == [text_folder(tmp_path, encoder.text, BASE, ["x"]).name]
    assert torch.equal(opened.batch(np.arange(len(TEXTS)))[0], before)
    again = text_prefixes(tmp_path, encoder.text, BASE, TEXTS)
    assert torch.equal(again.batch(np.arange(len(TEXTS)))[0], before)
