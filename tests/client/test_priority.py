"""Training gives way while searches are at work, and never for ever."""

import threading
import time

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
