"""Photos on disk: drawn by worker processes, written whole, and never drawn twice.

A file's name holds a digest of the look and of the drawing code, so a file that exists is right.
The workers are bare interpreters that run this module: a fork would copy torch's threads, and
spawned `multiprocessing` workers would import the caller's main program first.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cache
from pathlib import Path
from threading import Lock

import PIL

from shared.errors import DataError
from simulations.world.drawing import photo
from simulations.world.drawing.parts import Look

Progress = Callable[[int, int], None]  # photos done, photos in all
Job = tuple[Look, Path]
_FEW = 48  # below this a worker's start takes longer than drawing here


def photo_path(folder: Path, look: Look, name: str) -> Path:
    """Where the photo of a look lies: `name`, a digest, ".jpg"."""
    digest = hashlib.sha256(f"{_drawing_digest()}/{look}".encode()).hexdigest()[:12]
    return folder / f"{name}-{digest}.jpg"


@cache
def _drawing_digest() -> str:
    """Of all drawing code: other code draws other photos, which get other names."""
    sources = sorted(Path(photo.__file__).parent.glob("*.py"))
    code = b"".join(source.read_bytes() for source in sources)
    return hashlib.sha256(code + PIL.__version__.encode()).hexdigest()


def write_photos(
    jobs: Sequence[Job], *, processes: int | None = None, progress: Progress | None = None
) -> None:
    """Draw every photo that does not exist yet.

    Args:
        jobs: looks and the files to write; folders are made.
        processes: worker processes; by default one a core this process may use.
        progress: called with the number of photos done and in all, from any thread, one at a time.

    Raises:
        DataError: a folder or file cannot be written.

    The bytes of a photo depend on its look alone, not on `processes`.
    """
    missing = [(look, path) for look, path in jobs if not path.exists()]
    tick = _counter(len(jobs) - len(missing), len(jobs), progress)
    try:
        for folder in {path.parent for _, path in jobs}:
            folder.mkdir(parents=True, exist_ok=True)
        workers = 1 if len(missing) < _FEW else processes or _cores()
        _draw_here(missing, tick) if workers == 1 else _draw_apart(missing, workers, tick)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot write photos: {error.strerror}") from None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _counter(done: int, total: int, progress: Progress | None) -> Callable[[], None]:
    lock, count = Lock(), done
    if progress and total:
        progress(done, total)

    def tick() -> None:
        nonlocal count
        with lock:
            count += 1
            if progress:
                progress(count, total)

    return tick


def _draw_here(jobs: Sequence[Job], tick: Callable[[], None]) -> None:
    for look, path in jobs:
        _write(look, path)
        tick()


def _write(look: Look, path: Path) -> None:
    """Write beside and rename: a kill leaves no half photo under the final name."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(photo.photo_jpeg(look))
    beside.replace(path)


def _draw_apart(jobs: Sequence[Job], workers: int, tick: Callable[[], None]) -> None:
    with ThreadPoolExecutor(workers) as threads:
        shares = [threads.submit(_run_worker, jobs[at::workers], tick) for at in range(workers)]
        for share in shares:
            share.result()


def _run_worker(jobs: Sequence[Job], tick: Callable[[], None]) -> None:
    """Draw a share of the photos in an interpreter of its own, which says a line for each."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryFile("w+") as orders, tempfile.TemporaryFile("w+") as trouble:
        orders.writelines(json.dumps([asdict(look), str(file)]) + "\n" for look, file in jobs)
        orders.seek(0)
        command = [sys.executable, "-m", __name__]
        with subprocess.Popen(
            command,
            stdin=orders,
            stdout=subprocess.PIPE,
            stderr=trouble,
            env={**os.environ, "PYTHONPATH": path},
        ) as worker:
            for _ in worker.stdout or ():
                tick()
        if worker.returncode:
            trouble.seek(0)
            raise DataError(_reason(jobs[0][1].parent, worker.returncode, trouble.read()))


def _reason(folder: Path, code: int, trouble: str) -> str:
    last = (trouble.strip().splitlines() or [f"exit status {code}"])[-1]
    return f"{folder}: a process drawing photos failed: {last}"


def _main() -> None:
    """A worker: one JSON line of look and file in, one empty line out when it is written."""
    for order in sys.stdin:
        look, path = json.loads(order)
        _write(Look(**look), Path(path))
        print(flush=True)


if __name__ == "__main__":
    _main()
