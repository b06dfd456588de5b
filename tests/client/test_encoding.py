"""Queries are encoded together and come back apart, each to whoever asked."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from numpy.typing import NDArray

from client.service.encoding import MAX_BATCH, Edition, KeptVectors, QueryEncoding
from client.service.failures import RequestError
from shared.errors import DataError


class Letters:
    """Counts letters; notes how many queries came at once, and waits until told to go on."""

    def __init__(self, digest: str = "a" * 64) -> None:
        self.digest = digest
        self.batches: list[int] = []
        self.busy = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def encode_queries(
        self, texts: Sequence[str | None], images: Sequence[BinaryIO | None]
    ) -> NDArray[np.float32]:
        self.busy.set()
        self.go_on.wait(10)
        self.batches.append(len(texts))
        for image in images:
            if image is not None and image.read() == b"bad":
                raise DataError("the photo: not a readable picture")
        return np.array([[(text or "").count(x) for x in "abc"] for text in texts], np.float32)

    def encode_products(
        self, texts: Sequence[str | None], images: Sequence[Path | None]
    ) -> NDArray[np.float32]:
        return self.encode_queries(texts, [None] * len(texts))


@pytest.fixture
def encoding() -> Iterator[QueryEncoding]:
    made = QueryEncoding()
    yield made
    made.close()


def edition(encoder: Letters) -> Edition:
    return Edition(encoder.digest, encoder)


def test_a_query_gets_its_own_vector(encoding: QueryEncoding) -> None:
    one = edition(Letters())
    assert encoding.vector(one, "abba").tolist() == [2, 2, 0]
    assert encoding.vector(one, "cab").tolist() == [1, 1, 1]


def test_what_waits_is_encoded_together(encoding: QueryEncoding) -> None:
    encoder = Letters()
    encoder.go_on.clear()
    texts = ["a" * number for number in range(1, 2 * MAX_BATCH)]
    with ThreadPoolExecutor(len(texts)) as pool:
        waiting = [pool.submit(encoding.vector, edition(encoder), text) for text in texts]
        while len(encoding._jobs) < len(texts) - MAX_BATCH:
            time.sleep(0.001)
        encoder.go_on.set()
        found = [future.result(timeout=10)[0] for future in waiting]
    assert found == list(range(1, 2 * MAX_BATCH))
    assert max(encoder.batches) > 1 and max(encoder.batches) <= MAX_BATCH


def test_the_same_words_are_encoded_once_for_each_encoder(encoding: QueryEncoding) -> None:
    first, second = Letters(), Letters("b" * 64)
    one, other = edition(first), edition(second)
    for each in (one, other, one, other):
        encoding.vector(each, "abc")
    assert (first.batches, second.batches) == ([1], [1])


def test_what_is_cleared_is_encoded_again(encoding: QueryEncoding) -> None:
    encoder = Letters()
    one = edition(encoder)
    encoding.vector(one, "abc")
    one.kept.clear()
    encoding.vector(one, "abc")
    assert encoder.batches == [1, 1]


def test_the_text_used_least_lately_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.service.encoding.KEPT_VECTORS", 2)
    kept, vector = KeptVectors(), np.ones(3, np.float32)
    for text in ("a", "b"):
        kept.keep(text, vector)
    kept.recall("a")
    kept.keep("c", vector)
    assert [kept.recall(text) is None for text in "abc"] == [False, True, False]


def test_one_bad_photo_fails_alone(encoding: QueryEncoding) -> None:
    encoder = Letters()
    encoder.go_on.clear()
    with ThreadPoolExecutor(4) as pool:
        held = pool.submit(encoding.vector, edition(encoder), "aa")
        assert encoder.busy.wait(10)
        bad = pool.submit(encoding.vector, edition(encoder), None, b"bad")
        good = pool.submit(encoding.vector, edition(encoder), "bb", b"good")
        while len(encoding._jobs) < 2:
            time.sleep(0.001)
        encoder.go_on.set()
        assert held.result(timeout=10).tolist() == [2, 0, 0]
        assert good.result(timeout=10).tolist() == [0, 2, 0]
        with pytest.raises(RequestError, match="not a readable picture") as failed:
            bad.result(timeout=10)
    assert failed.value.code == "invalid"


def test_a_query_that_waited_too_long_is_not_encoded(encoding: QueryEncoding) -> None:
    encoder = Letters()
    with pytest.raises(RequestError, match=r"in time|too long") as failed:
        encoding.vector(edition(encoder), "a", deadline=time.monotonic() - 1)
    assert failed.value.code == "deadline"
    encoding.vector(edition(encoder), "b")
    assert encoder.batches == [1]


def test_products_are_encoded_too(encoding: QueryEncoding) -> None:
    one = edition(Letters())
    assert encoding.products(one, ["ab", "c"], [None, None]).tolist() == [[1, 1, 0], [0, 0, 1]]
    assert len(encoding.products(one, [], [])) == 0


def test_after_closing_nobody_waits_for_ever() -> None:
    encoding = QueryEncoding()
    encoding.close()
    with pytest.raises(RequestError, match="stops") as failed:
        encoding.vector(edition(Letters()), "a")
    assert failed.value.code == "unavailable"
