"""Batches of items that are alike, and several of them at once, each on one thread of torch.

What a tower does between its matrices (decoding photos, cutting words, calling torch) takes one
thread, and small matrices are too small for two, which wait for each other. So a batch a thread
is faster than all threads for one batch after another.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

BATCH: Final = 256  # rows that are worked on at once, of all threads together, ...
MIN_BATCH: Final = 32  # ... unless this leaves a thread less
Item = TypeVar("Item")
Result = TypeVar("Result")


def batch_size() -> int:
    """Rows that one of torch's threads should have at once."""
    return max(MIN_BATCH, BATCH // torch.get_num_threads())


def batches_of(rows: NDArray[np.int64], batch: int = 0) -> list[NDArray[np.int64]]:
    """Rows (N,) in batches of so many; 0 for what a thread should have at once."""
    size = batch or batch_size()
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def batches_by_length(lengths: NDArray[np.int64], batch: int = 0) -> list[NDArray[np.int64]]:
    """`batches_of` row numbers, of similar length, so that little padding is computed."""
    return batches_of(np.argsort(lengths, kind="stable").astype(np.int64), batch)


def for_each(
    items: Sequence[Item], work: Callable[[Item], Result], take: Callable[[Item, Result], object]
) -> None:
    """Hand each item and what was made of it to `take`, in order and in the caller's thread.

    As many are worked on at once as torch has threads. Only so many results wait for their turn,
    whatever their number. The first error ends it, once what had been begun is done.

    Args:
        items: worked on one by one where torch has a single thread.
        work: may run in several threads at once, which know nothing of the caller's contexts, such
            as torch.inference_mode.
        take: gets every result.
    """
    threads = min(torch.get_num_threads(), len(items))
    if threads < 2:
        for item in items:
            take(item, work(item))
        return
    # a new thread takes over the number that torch has then
    with torch_threads(1), ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[Item, Future[Any]]] = deque()
        try:
            for item in items:
                if len(waiting) > threads:
                    _take_first(waiting, take)
                waiting.append((item, pool.submit(work, item)))
            while waiting:
                _take_first(waiting, take)
        finally:
            pool.shutdown(cancel_futures=True)


def _take_first(
    waiting: deque[tuple[Any, Future[Any]]], take: Callable[[Any, Any], object]
) -> None:
    item, made = waiting.popleft()
    take(item, made.result())


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Within the context torch has so many threads here and in new threads; 0 changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
