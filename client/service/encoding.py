"""Queries become vectors on one thread, as many at once as are waiting.

Ten threads that each encode one query fight over two cores; one thread that encodes ten queries in
one pass does not, and an encoder need not be safe for several threads. Vectors of words are kept
beside the encoder that made them, so a vector of one release can never meet the index of another.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from client.service.failures import RequestError
from shared.errors import DataError

MAX_BATCH = 16
KEPT_VECTORS = 10_000

Vector = NDArray[np.float32]


class ServingEncoder(Protocol):
    """What serving needs of an encoder."""

    @property
    def digest(self) -> str:
        """Encoder digest."""

    def encode_queries(
        self, texts: Sequence[str | None], images: Sequence[BinaryIO | None]
    ) -> NDArray[np.float32]:
        """Unit vectors (Q, D) of queries given as text, photo or both."""

    def encode_products(
        self, texts: Sequence[str | None], images: Sequence[Path | None]
    ) -> NDArray[np.float32]:
        """Unit vectors (N, D) of products."""


class KeptVectors:
    """Vectors of what was typed lately, the least recently used one dropped first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Vector] = OrderedDict()

    def recall(self, text: str) -> Vector | None:
        """The vector of a text, (D,), if it is kept."""
        with self._lock:
            if text not in self._kept:
                return None
            self._kept.move_to_end(text)
            return self._kept[text]

    def keep(self, text: str, vector: Vector) -> None:
        """Keep the vector of a text."""
        with self._lock:
            self._kept[text] = vector
            while len(self._kept) > KEPT_VECTORS:
                self._kept.popitem(last=False)

    def clear(self) -> None:
        """Keep nothing of what was typed so far."""
        with self._lock:
            self._kept.clear()


@dataclass(frozen=True)
class Edition:
    """An encoder with its digest, which costs something to compute, and what it encoded."""

    digest: str
    encoder: ServingEncoder
    kept: KeptVectors = field(default_factory=KeptVectors, compare=False)


class _Job(NamedTuple):
    edition: Edition
    text: str | None
    image: bytes | None
    deadline: float | None  # of time.monotonic
    future: "Future[Vector]"


class _Task(NamedTuple):
    run: Callable[[], Vector]
    future: "Future[Vector]"


class QueryEncoding:
    """The thread and what it has in hand; close it when nobody asks any more."""

    def __init__(self) -> None:
        self._jobs: deque[_Job | _Task] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="encode", daemon=True)
        self._thread.start()

    def vector(
        self,
        edition: Edition,
        text: str | None,
        image: bytes | None = None,
        *,
        deadline: float | None = None,
    ) -> Vector:
        """A query's unit vector, (D,).

        Args:
            edition: of the index that will be searched with it.
            text: what was typed, or None.
            image: a photo's bytes, or None; one of the two is there.
            deadline: of `time.monotonic`; a query that waits longer is not encoded.

        Raises:
            RequestError: not a readable photo, too late, or the service stops.
        """
        if image is None and (found := edition.kept.recall(text or "")) is not None:
            return found
        job = _Job(edition, text or None, image, deadline, Future())
        self._put(job)
        vector = self._result(job)
        if image is None:
            edition.kept.keep(text or "", vector)
        return vector

    def products(
        self, edition: Edition, texts: Sequence[str], photos: Sequence[Path | None]
    ) -> Vector:
        """Unit vectors of products, (N, D), made on the same thread as those of queries.

        A batch at a time, so that queries which come meanwhile wait for one batch and not for all.

        Raises:
            RequestError: a photo cannot be read, or the service stops.
        """
        if not texts:
            return np.empty((0, 0), np.float32)
        vectors = []
        for start in range(0, len(texts), MAX_BATCH):
            part = slice(start, start + MAX_BATCH)
            encode = partial(edition.encoder.encode_products, texts[part], photos[part])
            task = _Task(encode, Future())
            self._put(task)
            vectors.append(task.future.result())
        return np.concatenate(vectors)

    def close(self) -> None:
        """Finish what is waiting, then end the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _put(self, job: "_Job | _Task") -> None:
        with self._wake:
            if self._closed:
                raise RequestError("unavailable", "the service stops; ask again in a moment")
            self._jobs.append(job)
            self._wake.notify()

    def _result(self, job: _Job) -> Vector:
        left = None if job.deadline is None else max(0.0, job.deadline - time.monotonic())
        try:
            return job.future.result(timeout=left)
        except FutureTimeoutError:
            raise RequestError("deadline", "the query was not encoded in time") from None

    def _run(self) -> None:
        while taken := self._take():
            for task in (one for one in taken if isinstance(one, _Task)):
                _run(task)
            jobs = [one for one in taken if isinstance(one, _Job) and not _expired(one)]
            for edition in {job.edition.digest: job.edition for job in jobs}.values():
                _encode(edition, [job for job in jobs if job.edition.digest == edition.digest])

    def _take(self) -> list[_Job | _Task]:
        """What is waiting, at most a batch of it; nothing once closed and done."""
        with self._wake:
            self._wake.wait_for(lambda: self._jobs or self._closed)
            return [self._jobs.popleft() for _ in range(min(MAX_BATCH, len(self._jobs)))]


def _run(task: _Task) -> None:
    try:
        task.future.set_result(task.run())
    except Exception as error:
        task.future.set_exception(_said(error))


def _expired(job: _Job) -> bool:
    late = job.deadline is not None and time.monotonic() > job.deadline
    if late:
        job.future.set_exception(RequestError("deadline", "the query waited too long"))
    return late


def _encode(edition: Edition, jobs: list[_Job]) -> None:
    """One pass for all of them; if it fails, each by itself, so that one bad photo fails alone."""
    try:
        vectors = edition.encoder.encode_queries(
            [job.text for job in jobs],
            [None if job.image is None else BytesIO(job.image) for job in jobs],
        )
    except Exception as error:
        if len(jobs) == 1:
            jobs[0].future.set_exception(_said(error))
        else:
            for job in jobs:
                _encode(edition, [job])
        return
    for job, vector in zip(jobs, vectors, strict=True):
        job.future.set_result(vector)


def _said(error: Exception) -> Exception:
    return RequestError("invalid", str(error)) if isinstance(error, DataError) else error
