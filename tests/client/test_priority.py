"""Training gives way while searches are at work, and never for ever."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from words_shop import WordEncoder, WordsShop, write_shop_region

from client.service.messages import SearchRequest
from client.service.priority import Priority


def test_nobody_waits_where_nobody_searches() -> None:
    Priority(longest_wait_s=1e6).give_way()


def test_training_goes_on_when_the_last_search_is_done() -> None:
    priority, went_on = Priority(longest_wait_s=60), threading.Event()

    def train() -> None:
        priority.give_way()
        went_on.set()

    with priority.serving():
        with priority.serving():
            trainer = threading.Thread(target=train)
            trainer.start()
        assert not went_on.wait(0.05)
    assert went_on.wait(10)
    trainer.join()


def test_a_busy_shop_still_trains() -> None:
    priority = Priority(longest_wait_s=0.01)
    with priority.serving():
        before = time.monotonic()
        priority.give_way()
    assert time.monotonic() - before >= 0.01


def test_a_search_is_at_work_from_its_words_to_its_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    class Noting(Priority):
        @contextmanager
        def serving(self) -> Iterator[None]:
            with super().serving():
                seen.append("begins")
                yield
                seen.append("ends")

    def encode(encoder: WordEncoder, texts: Any, images: Any) -> Any:
        seen.append("encodes")
        return plain(encoder, texts, images)

    plain = WordEncoder.encode_queries
    with WordsShop(write_shop_region(tmp_path / "north"), 1) as opened:
        monkeypatch.setattr(WordEncoder, "encode_queries", encode)
        opened.shop.priority = Noting()
        opened.shop.search(SearchRequest(query="red hat"))
    assert seen == ["begins", "encodes", "ends"]
