"""What has been freed goes back to the system, but not at every call."""

import ctypes
from pathlib import Path

import pytest

from shared.freed_memory import FreedMemory


def resident_kib() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmRSS:")[1].split()[0])


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc alone has it")
def test_freed_memory_is_given_back_when_it_is_time() -> None:
    FreedMemory(every_s=0.0).give_back()  # what tests before this one have freed
    before = resident_kib()
    blocks = [bytes(1000) for _ in range(100_000)]
    kept, grown = blocks[::1000], resident_kib()  # some stay, so that the heap cannot shrink
    del blocks
    half = (before + grown) / 2
    FreedMemory(every_s=3600.0).give_back()
    assert resident_kib() > half
    FreedMemory(every_s=0.0).give_back()
    assert resident_kib() < half
    assert len(kept) == 100
