"""Peak resident memory of one thing alone: it is done in a process that does nothing else.

A peak is the kernel's `VmHWM` of that process: pages in memory, those of mapped files among them.
`ru_maxrss` will not do, since Linux hands it on to a process that is started: it is never below
what whoever started it held at most.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Final, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# A process too small to matter starts the command: a child's ru_maxrss is at least its starter's.
_STARTER: Final = """
import os, sys
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ,
    file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)])
_, status, usage = os.wait4(process, 0)
print(usage.ru_maxrss * 1024)
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""


@dataclass(frozen=True)
class Alone(Generic[T]):
    """What came of a call in a process of its own.

    Attributes:
        result: of the call.
        peak_bytes: of the process, its interpreter and imports among them.
        start_bytes: what it held before the call, imports of the call's own module among them.
    """

    result: T
    peak_bytes: int
    start_bytes: int


def peak_bytes() -> int:
    """The most that this process has held so far."""
    return _status("VmHWM")


def alone(threads: int, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Alone[T]:
    """Call a function in a fresh process.

    Args:
        threads: of torch there; 0 leaves torch alone, even unloaded.
        call: a function that a module has by that name.
        args: what it takes; whole copies go there.
        kwargs: the same.

    Returns:
        What it returned, and what that took. What it raises is raised here.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_called, threads, partial(call, *args, **kwargs)).result()


def peak_of_command(command: Sequence[str]) -> int:
    """Peak resident bytes of a command, or of the largest process that it waited for.

    Args:
        command: the program's path and its arguments; what it prints is thrown away.

    Raises:
        OSError: it cannot be started, or fails.
    """
    starter = [sys.executable, "-c", _STARTER, *command]
    done = subprocess.run(starter, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: failed: {done.stderr.strip()[-200:]}")
    return int(done.stdout)


def _called(threads: int, call: Callable[[], T]) -> Alone[T]:
    if threads:
        import torch

        torch.set_num_threads(threads)
    start = _status("VmRSS")
    result = call()
    return Alone(result, peak_bytes(), start)


def _status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
