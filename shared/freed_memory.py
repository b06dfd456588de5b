"""What a process has freed and the C library keeps.

Batches of many lengths leave a heap in which what comes next seldom fits, so it grows from step to
step: a region of five thousand products would hold several gigabytes after some hundred of them.
Blocks that are mapped one by one (`M_MMAP_THRESHOLD`) would go back at once, but every step would
then wait for fresh pages.
"""

import ctypes
import time
from typing import Final

_EVERY_S: Final = 10.0  # giving back takes about a tenth of a second


class FreedMemory:
    """The freed memory of this process, given back now and then.

    Args:
        every_s: not more often than that, seconds.
    """

    def __init__(self, every_s: float) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
        self._every_s, self._last = every_s, time.monotonic()

    def give_back(self) -> None:
        """Let the system have it, if it is time."""
        if self._trim is not None and time.monotonic() - self._last >= self._every_s:
            self._trim(0)
            self._last = time.monotonic()


FREED: Final = FreedMemory(_EVERY_S)
"""That of the whole process: whoever frees much calls it, however often."""
