"""Two adapters side by side: every similarity is the weighted mean of what each would say."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_encoder import TEXTS, kept, same

from shared.adapter import Adapter, paired
from shared.encoders.encoder import Encoder
from shared.encoders.prefix_cache import text_prefixes
from shared.errors import WireError

SHARE = 0.4


@pytest.fixture
def home(encoder: Encoder, trained: Adapter) -> Adapter:
    """Another adapter of the same base."""
    encoder.reset(seed=5)
    generator = torch.Generator().manual_seed(8)
    return {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in encoder.adapter().items()
    }


@pytest.fixture
def images(photos: list[Path]) -> list[Path | None]:
    return [photos[0], None, photos[1], photos[2], None, photos[3]]


def test_what_is_loaded_is_what_is_read(encoder: Encoder, trained: Adapter, home: Adapter) -> None:
    pair = paired(trained, home, SHARE)
    encoder.load_adapter(pair)
    assert same(encoder.adapter(), pair)
    assert encoder.dim == 64


def test_a_digest_covers_both_and_the_share(
    encoder: Encoder, trained: Adapter, home: Adapter
) -> None:
    pairs = [
        trained,
        home,
        paired(trained, home, SHARE),
        paired(home, trained, SHARE),
        paired(trained, home, 0.5),
    ]
    digests = set()
    for adapter in pairs:
        encoder.load_adapter(adapter)
        digests.add(encoder.digest)
    assert len(digests) == len(pairs)
    schema = encoder.schema
    encoder.load_adapter(trained)
    assert encoder.schema == schema  # what a region may send is that of its base


def scores(encoder: Encoder, adapter: Adapter, images: list[Path | None]) -> NDArray[np.float32]:
    encoder.load_adapter(adapter)
    queries = encoder.encode_queries(["red boots", None, "shirt"], [None, images[0], images[2]])
    products = encoder.encode_products(TEXTS, images)
    for vectors in (queries, products):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    found: NDArray[np.float32] = queries @ products.T
    return found


def test_a_similarity_is_the_weighted_mean_of_both(
    encoder: Encoder, trained: Adapter, home: Adapter, images: list[Path | None]
) -> None:
    both = scores(encoder, paired(trained, home, SHARE), images)
    one, other = (scores(encoder, adapter, images) for adapter in (trained, home))
    assert np.abs(one - other).max() > 0.05  # or the test would see nothing
    np.testing.assert_allclose(both, (1 - SHARE) * one + SHARE * other, atol=1e-5)


def test_kept_and_fresh_vectors_agree(
    tmp_path: Path, encoder: Encoder, trained: Adapter, home: Adapter, images: list[Path | None]
) -> None:
    encoder.load_adapter(paired(trained, home, SHARE))
    products = kept(tmp_path, encoder, TEXTS, images)
    fresh = encoder.encode_products(TEXTS, images)
    np.testing.assert_allclose((fresh * encoder.product_matrix(products)).sum(axis=1), 1, atol=1e-3)
    texts = text_prefixes(tmp_path, encoder.text, encoder.base.fingerprint, TEXTS)
    fresh = encoder.encode_queries(TEXTS, [None] * 6)
    np.testing.assert_allclose((fresh * encoder.query_matrix(texts)).sum(axis=1), 1, atol=1e-3)
    some = encoder.product_matrix(products, np.array([4, 1]))
    np.testing.assert_allclose(some, encoder.product_matrix(products)[[4, 1]], atol=1e-5)


def test_a_photo_may_come_as_a_stream(
    encoder: Encoder, trained: Adapter, home: Adapter, photos: list[Path]
) -> None:
    encoder.load_adapter(paired(trained, home, SHARE))
    file, stream = encoder.encode_queries(
        [None, None], [photos[0], BytesIO(photos[0].read_bytes())]
    )
    np.testing.assert_array_equal(file, stream)


def test_one_adapter_alone_again(encoder: Encoder, trained: Adapter, home: Adapter) -> None:
    """What a round sends, and a release, take the place of a pair; so does a fresh start."""
    pair = paired(trained, home, SHARE)
    encoder.load_adapter(trained)
    alone, digest = encoder.encode_queries(["red boots"], [None]), encoder.digest
    encoder.load_adapter(pair)
    encoder.load_adapter(trained)
    assert same(encoder.adapter(), trained) and encoder.digest == digest
    np.testing.assert_array_equal(encoder.encode_queries(["red boots"], [None]), alone)
    encoder.load_adapter(pair)
    encoder.reset(seed=0)
    assert encoder.dim == 32


@pytest.mark.parametrize("spoilt", ["fusion/gate", "home/fusion/gate"])
def test_of_a_pair_that_does_not_fit_nothing_is_taken(
    encoder: Encoder, trained: Adapter, home: Adapter, spoilt: str
) -> None:
    pair = paired(home, trained, 0.5)
    encoder.load_adapter(pair)
    with pytest.raises(WireError, match=r"adapter: fusion/gate: found \(9, 9\), expected"):
        encoder.load_adapter({**paired(trained, home, SHARE), spoilt: torch.zeros(9, 9)})
    assert same(encoder.adapter(), pair)


def test_a_replica_of_a_pair_is_one_too(encoder: Encoder, trained: Adapter, home: Adapter) -> None:
    encoder.load_adapter(paired(trained, home, SHARE))
    replica = encoder.replica()
    expected = replica.encode_queries(["red boots"], [None])
    encoder.load_adapter(home)
    assert replica.dim == 64
    np.testing.assert_array_equal(replica.encode_queries(["red boots"], [None]), expected)


def test_what_goes_on_between_batches_is_heard_of_both(
    tmp_path: Path, encoder: Encoder, trained: Adapter, home: Adapter, images: list[Path | None]
) -> None:
    calls: list[int] = []
    encoder.on_batch = lambda: calls.append(1)
    encoder.load_adapter(paired(trained, home, SHARE))
    encoder.product_matrix(kept(tmp_path, encoder, TEXTS, images))
    assert len(calls) == 2
