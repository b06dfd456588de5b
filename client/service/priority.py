"""Searches come first: training gives way between its steps while anybody waits for an answer.

A step of training holds both cores for some fifty milliseconds. It is not interrupted, but before
the next one the trainer looks whether searches are being answered, and waits until they are; never
longer than a bound, so that a busy shop still trains, only more slowly.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_WAIT_S = 0.5  # a step


class Priority:
    """Counts searches at work; training asks it for leave."""

    def __init__(self, *, longest_wait_s: float = LONGEST_WAIT_S) -> None:
        self._longest_wait_s = longest_wait_s
        self._changed = threading.Condition()
        self._serving = 0

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Hold this while a search is answered."""
        with self._changed:
            self._serving += 1
        try:
            yield
        finally:
            with self._changed:
                self._serving -= 1
                if self._serving == 0:
                    self._changed.notify_all()

    def give_way(self) -> None:
        """Wait until no search is at work, or for as long as training may be held up at once."""
        with self._changed:
            self._changed.wait_for(lambda: self._serving == 0, timeout=self._longest_wait_s)
