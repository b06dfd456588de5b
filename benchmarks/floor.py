"""What this machine could do at best: its matrix rate and its memory's bandwidth, measured.

A floor is a count of operations over the matrix rate, or of bytes over the bandwidth. How far a
figure is above its floor is what is left to gain; below the floor nothing can get without counting
less, such as fewer bits a number.
"""

import time
from collections.abc import Callable
from typing import Any, Final

import torch
from torch.utils.flop_counter import FlopCounterMode

from shared.encoders.batches import torch_threads

REPEATS: Final = 5
_MATRIX: Final = {"cpu": 1024, "cuda": 8192}  # side, large enough to be bound by arithmetic
_BUFFER: Final = {"cpu": 2**27, "cuda": 2**30}  # bytes, larger than any cache


def matrix_rate(
    device: torch.device, *, dtype: torch.dtype = torch.float32, side: int | None = None
) -> float:
    """Operations a second of a product of two square matrices, the best of several.

    Args:
        device: that multiplies.
        dtype: of the matrices.
        side: rows of each; by default what suits the device.

    Returns:
        FLOP/s; a product of two (n, n) is 2 n ** 3 of them.
    """
    n = side or _MATRIX[device.type]
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / best_seconds(lambda: a @ b, device)


def bandwidth(device: torch.device, *, size: int | None = None) -> float:
    """Bytes a second of a copy within the device's memory, read and written, the best of several.

    Args:
        device: whose memory.
        size: bytes copied; by default more than a cache holds.
    """
    source = torch.zeros(size or _BUFFER[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / best_seconds(lambda: target.copy_(source), device)


def best_seconds(call: Callable[[], Any], device: torch.device, *, repeats: int = REPEATS) -> float:
    """The shortest of several calls, after one that nobody counts.

    Args:
        call: leaves its work on the device.
        device: that is waited for.
        repeats: that are timed.
    """
    call()
    taken = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        taken.append(time.perf_counter() - start)
    return min(taken)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def operations(call: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products, convolutions and attention in a call.

    Backward passes count too. A multiplication and an addition are two. It runs on one thread of
    torch, so that what would be done in several (`shared.encoders.batches`) is seen.
    """
    counter = FlopCounterMode(display=False)
    with torch_threads(1), counter:
        call()
    return int(counter.get_total_flops())
