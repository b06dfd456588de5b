"""Pages of one answer stay pages of one answer.

A shopper who asks for page two must not see a product again, or miss one, because a release came
into use or a product was added meanwhile. So an answer's order is kept for a while, with the shelf
it came from, and a cursor names it. What is kept is bounded in number and in time; a cursor that is
no longer known says so, and the page searches again.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from client.service.failures import RequestError
from shared.retrieval.shelf import Ask, Found, Shelf

MAX_KEPT = 2000  # answers; 600 rows of 20 bytes each make 24 MB
KEPT_FOR_S = 900.0


@dataclass(frozen=True)
class Answer:
    """One answer, all pages of it.

    Attributes:
        request_id: names it in events, and in cursors.
        shelf: what it was found on.
        ask: what was asked.
        found: in the order in which it is shown.
        ranker: what ordered it.
        asked: fingerprint of the request, cursor and page size apart.
        teams: for interleaving, "a" or "b" of each row, or empty.
        explored: place of the one wild card, or -1.
    """

    request_id: str
    shelf: Shelf
    ask: Ask
    found: Found
    ranker: str
    asked: str
    teams: tuple[str, ...] = ()
    explored: int = -1


class Answers:
    """Answers that may be paged through, the least recently used one dropped first.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[float, Answer]] = OrderedDict()

    def keep(self, answer: Answer) -> None:
        """Keep an answer for its later pages."""
        with self._lock:
            self._kept[answer.request_id] = (self._clock(), answer)
            while len(self._kept) > MAX_KEPT or self._is_old(next(iter(self._kept.values()))[0]):
                self._kept.popitem(last=False)

    def page(self, cursor: str, *, asked: str) -> tuple[Answer, int]:
        """The answer that a cursor names, and where its next page begins.

        Args:
            cursor: from `cursor_of`.
            asked: fingerprint of the request that came with it.

        Raises:
            RequestError: no cursor of ours, no longer known, or of another request.
        """
        request_id, _, offset = cursor.partition(".")
        if not (offset.isascii() and offset.isdecimal() and len(offset) <= 6):
            raise RequestError("invalid", "cursor: not one of this service; leave it out")
        with self._lock:
            kept_at, answer = self._kept.get(request_id, (0.0, None))
            if answer is None or self._is_old(kept_at):
                self._kept.pop(request_id, None)
                raise RequestError("gone", "cursor: no longer known; search again without it")
            self._kept.move_to_end(request_id)
        if answer.asked != asked:
            raise RequestError("invalid", "cursor: of another request; repeat that one, or none")
        return answer, int(offset)

    def _is_old(self, kept_at: float) -> bool:
        return self._clock() - kept_at > KEPT_FOR_S


def cursor_of(answer: Answer, offset: int) -> str | None:
    """A cursor for the page that begins at `offset`; None past the end."""
    return f"{answer.request_id}.{offset}" if offset < len(answer.found.rows) else None
