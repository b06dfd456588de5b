"""Adapters go in and out unchanged, digests tell them apart, kept and fresh vectors agree."""

import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared.adapter import Adapter
from shared.encoders.encoder import Encoder, ProductPrefixes, load_encoder, pick_device
from shared.encoders.prefix_cache import image_prefixes, text_prefixes
from shared.errors import ConfigError, DataError, ReleaseError, WireError

TEXTS = ["red boots", "a much longer title of a product", "x", "", "blue shirt", "green"]


def same(left: Adapter, right: Adapter) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


# -- adapters --------------------------------------------------------------------------------------


def test_what_is_loaded_is_what_is_read(encoder: Encoder, trained: Adapter) -> None:
    encoder.load_adapter(trained)
    assert same(encoder.adapter(), trained)


def test_an_adapter_is_read_without_the_disk_or_a_hub(tiny_base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "base"
    shutil.copytree(tiny_base, copy)
    resident = load_encoder(copy, device="cpu")
    shutil.rmtree(copy)
    resident.load_adapter(resident.adapter())  # peft would warn, which is an error here


def test_an_adapter_is_a_copy_in_name_order(encoder: Encoder) -> None:
    adapter = encoder.adapter()
    assert list(adapter) == sorted(adapter)
    for tensor in adapter.values():
        assert (tensor.dtype, tensor.device.type) == (torch.float32, "cpu")
        tensor += 1
    assert not same(encoder.adapter(), adapter)


def test_the_seed_makes_the_fresh_adapter(encoder: Encoder) -> None:
    adapters = []
    for seed in (0, 0, 1):
        encoder.reset(seed=seed)
        adapters.append(encoder.adapter())
    assert same(adapters[0], adapters[1])
    assert not same(adapters[0], adapters[2])


def test_a_reset_forgets_the_training(encoder: Encoder, trained: Adapter) -> None:
    fresh = encoder.adapter()
    encoder.load_adapter(trained)
    encoder.reset(seed=0)
    assert same(encoder.adapter(), fresh)


FACTOR = "image/base_model.model.classifier.lora_A.weight"


@pytest.mark.parametrize("name", ["fusion/gate", FACTOR])
def test_a_missing_tensor_is_named_and_nothing_is_taken(
    encoder: Encoder, trained: Adapter, name: str
) -> None:
    before = encoder.adapter()
    del trained[name]
    with pytest.raises(WireError, match=f"adapter: {name}: found nothing, expected"):
        encoder.load_adapter(trained)
    assert same(encoder.adapter(), before)


@pytest.mark.parametrize("name", ["fusion/gate", FACTOR, "unheard/of"])
def test_a_tensor_that_does_not_fit_is_named_and_nothing_is_taken(
    encoder: Encoder, trained: Adapter, name: str
) -> None:
    before = encoder.adapter()
    with pytest.raises(WireError, match=rf"adapter: {name}: found \(9, 9\), expected"):
        encoder.load_adapter({**trained, name: torch.zeros(9, 9)})
    assert same(encoder.adapter(), before)


# -- digest and release files ----------------------------------------------------------------------


def test_every_tensor_is_in_the_digest(encoder: Encoder) -> None:
    fresh = encoder.adapter()
    digests = {encoder.digest}
    for name in fresh:
        encoder.load_adapter({**fresh, name: fresh[name] + 1e-3})
        digests.add(encoder.digest)
    assert len(digests) == len(fresh) + 1
    encoder.load_adapter(fresh)
    assert encoder.digest in digests
    assert len(digests) == len(fresh) + 1


def test_another_base_is_another_digest(encoder: Encoder, tiny_base: Path) -> None:
    other = load_encoder(tiny_base, device="cpu")
    assert other.digest == encoder.digest
    other.base = dataclasses.replace(other.base, fingerprint="f" * 64)
    assert other.digest != encoder.digest


def test_a_release_gives_back_the_adapter(
    tmp_path: Path, encoder: Encoder, trained: Adapter
) -> None:
    encoder.load_adapter(trained)
    digest = encoder.digest
    encoder.save_release_files(tmp_path / "release")
    encoder.reset(seed=3)
    encoder.load_release(tmp_path / "release")
    assert same(encoder.adapter(), trained)
    assert encoder.digest == digest


def test_a_release_of_another_base_is_refused(tmp_path: Path, encoder: Encoder) -> None:
    encoder.save_release_files(tmp_path)
    path = tmp_path / "text" / "adapter_model.safetensors"
    state = load_file(path)
    save_file({name: tensor[:1].clone() for name, tensor in state.items()}, path)
    with pytest.raises(ReleaseError, match=r"text/.*found .* expected .* made for another base"):
        encoder.load_release(tmp_path)


# -- vectors ---------------------------------------------------------------------------------------


@pytest.fixture
def images(photos: list[Path]) -> list[Path | None]:
    return [photos[0], None, photos[1], photos[2], None, photos[3]]


def kept(
    cache: Path, encoder: Encoder, texts: list[str], images: list[Path | None]
) -> ProductPrefixes:
    fingerprint = encoder.base.fingerprint
    return ProductPrefixes(
        text_prefixes(cache, encoder.text, fingerprint, texts),
        image_prefixes(cache, encoder.image, fingerprint, images),
        np.array([bool(text) for text in texts]),
    )


def test_kept_and_fresh_product_vectors_agree(
    tmp_path: Path, encoder: Encoder, trained: Adapter, images: list[Path | None]
) -> None:
    encoder.load_adapter(trained)
    fresh = encoder.encode_products(TEXTS, images)
    matrix = encoder.product_matrix(kept(tmp_path, encoder, TEXTS, images))
    assert (matrix.dtype, matrix.shape) == (np.float32, (6, 32))
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose((fresh * matrix).sum(axis=1), 1, atol=1e-3)


@pytest.mark.parametrize("rows", [[4], [5, 0, 3], [2, 2], [0, 1, 2, 3, 4, 5], []])
def test_vectors_of_some_rows_are_those_rows_of_all(
    tmp_path: Path,
    encoder: Encoder,
    trained: Adapter,
    images: list[Path | None],
    rows: list[int],
) -> None:
    encoder.load_adapter(trained)
    products = kept(tmp_path, encoder, TEXTS, images)
    some = encoder.product_matrix(products, np.array(rows, dtype=np.int64))
    assert some.shape == (len(rows), 32)
    np.testing.assert_allclose(some, encoder.product_matrix(products)[rows], atol=1e-5)


def test_kept_and_fresh_query_vectors_agree(
    tmp_path: Path, encoder: Encoder, trained: Adapter
) -> None:
    encoder.load_adapter(trained)
    texts = text_prefixes(tmp_path, encoder.text, encoder.base.fingerprint, TEXTS)
    fresh = encoder.encode_queries(TEXTS, [None] * 6)
    np.testing.assert_allclose((encoder.query_matrix(texts) * fresh).sum(axis=1), 1, atol=1e-3)


def test_the_order_of_products_does_not_matter(encoder: Encoder, images: list[Path | None]) -> None:
    forward = encoder.encode_products(TEXTS, images)
    backward = encoder.encode_products(TEXTS[::-1], images[::-1])
    np.testing.assert_allclose(backward[::-1], forward, atol=1e-5)


def test_one_modality_is_enough(encoder: Encoder, photos: list[Path]) -> None:
    text_only, photo_only, empty_text = encoder.encode_products(
        ["red boots", None, ""], [None, photos[0], photos[0]]
    )
    text = encoder.text.suffix(encoder.text.prefix(["red boots"])[0], torch.tensor([10]))
    photo = encoder.image.suffix(encoder.image.prefix([photos[0]]))
    np.testing.assert_allclose(text_only, text[0].detach(), atol=1e-5)
    np.testing.assert_allclose(photo_only, photo[0].detach(), atol=1e-5)
    np.testing.assert_allclose(empty_text, photo_only, atol=1e-6)


def test_a_product_with_neither_has_a_vector_all_the_same(tmp_path: Path, encoder: Encoder) -> None:
    fresh = encoder.encode_products([None, ""], [None, None])
    matrix = encoder.product_matrix(kept(tmp_path, encoder, ["", ""], [None, None]))
    np.testing.assert_allclose(np.linalg.norm(fresh, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose((fresh * matrix).sum(axis=1), 1, atol=1e-3)


def test_a_query_weighs_text_and_photo_equally(
    encoder: Encoder, trained: Adapter, photos: list[Path]
) -> None:
    encoder.load_adapter(trained)
    texts = ["red boots", None, "red boots"]
    text, photo, both = encoder.encode_queries(texts, [None, photos[0], photos[0]])
    np.testing.assert_allclose(both, (text + photo) / np.linalg.norm(text + photo), atol=1e-5)


def test_nothing_to_encode(encoder: Encoder) -> None:
    assert encoder.encode_products([], []).shape == (0, 32)
    assert encoder.encode_queries([], []).shape == (0, 32)


def test_encoding_needs_no_gradient_and_leaves_training_alone(
    tmp_path: Path, encoder: Encoder, photos: list[Path]
) -> None:
    products = kept(tmp_path, encoder, ["red boots"], [photos[0]])
    encoder.product_matrix(products)
    encoder.encode_products(["red boots"], [photos[0]])
    rows = np.array([0])
    text = encoder.text_vectors(products.texts, rows)
    image = encoder.image_vectors(products.images, rows)
    fused = encoder.fused(text, image, products, rows)
    # The temperature is part of the loss, not of a vector.
    moved = [p for p in encoder.trainable() if p is not encoder.fusion.log_temperature]
    assert all(g.isfinite().all() for g in torch.autograd.grad(fused[0, 0], moved))


@pytest.mark.parametrize("mixes", [True, False])
def test_texts_of_several_kinds_in_one_pass_have_the_vectors_they_have_alone(
    tmp_path: Path, encoder: Encoder, mixes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tower that would pad short texts to long ones takes each kind by itself."""
    titles = kept(tmp_path, encoder, ["red leather boots for long winters", "hat"], [None, None])
    queries = text_prefixes(tmp_path, encoder.text, "base", ["boots", "hat", "red"])
    parts = [(titles.texts, np.array([1, 0])), (queries, np.array([2, 0, 1]))]
    passes = []
    suffix = encoder.text.suffix

    def counted(tokens: Tensor, lengths: Tensor) -> Tensor:
        passes.append(len(lengths))
        return suffix(tokens, lengths)

    monkeypatch.setattr(encoder.text, "suffix", counted)
    monkeypatch.setattr(encoder.text, "_packs", mixes)
    together = encoder.text_vectors_of(parts)
    assert passes == ([5] if mixes else [2, 3])
    for vectors, (texts, rows) in zip(together, parts, strict=True):
        alone = encoder.text_vectors(texts, rows)
        torch.testing.assert_close(vectors, alone, rtol=0, atol=1e-6)


# -- small things ----------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match='device "cuda": no GPU answers; use --device cpu'):
        pick_device("cuda")


# -- replicas --------------------------------------------------------------------------------------


def test_a_replica_keeps_its_adapter_whatever_the_other_does(
    encoder: Encoder, trained: Adapter, photos: list[Path]
) -> None:
    encoder.load_adapter(trained)
    replica, digest = encoder.replica(), encoder.digest
    before = replica.encode_queries(["red boots"], [photos[0]])
    encoder.reset(seed=5)
    assert (replica.digest, encoder.digest == digest) == (digest, False)
    assert np.array_equal(replica.encode_queries(["red boots"], [photos[0]]), before)


def test_a_replica_shares_every_frozen_weight(encoder: Encoder) -> None:
    replica = encoder.replica()
    for mine, its in ((encoder.text.peft, replica.text.peft), (encoder.fusion, replica.fusion)):
        for left, right in zip(mine.parameters(), its.parameters(), strict=True):
            shared = left.data_ptr() == right.data_ptr()
            assert shared is not left.requires_grad


def test_two_threads_of_two_replicas_do_not_disturb_each_other(
    encoder: Encoder, trained: Adapter
) -> None:
    first, second = encoder.replica(), encoder.replica()
    second.load_adapter(trained)
    texts, no_photos = TEXTS * 5, [None] * 30
    expected = [one.encode_queries(texts, no_photos) for one in (first, second)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda one: one.encode_queries(texts, no_photos), (first, second)))
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


def test_a_photo_may_come_as_bytes(encoder: Encoder, photos: list[Path]) -> None:
    stream = BytesIO(photos[0].read_bytes())
    by_bytes, by_path = (encoder.encode_queries([None], [one]) for one in (stream, photos[0]))
    assert np.array_equal(by_bytes, by_path)
    with pytest.raises(DataError, match="the photo: not a readable picture"):
        encoder.encode_queries([None], [BytesIO(b"no photo")])
