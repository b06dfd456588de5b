"""What each region makes of a federated adapter for itself, as after a release.

The same code as a deployed region's (`Worker.personalize`): candidates on the way to an adapter
fine-tuned on its own clicks, one of them chosen on validation clicks, or none. That is training
beyond the rounds, which an experiment file must own up to.
"""

from pathlib import Path

from client.worker import Worker
from shared.adapter import Adapter, save_adapter
from simulations.progress import Progress

RELEASE = 1  # the number that seeds a region's training; `fedshelf simulate` has one release


def personalize_region(worker: Worker, given: Adapter, path: Path, progress: Progress) -> None:
    """Let a region adapt what the federation gave it.

    Args:
        worker: of the region.
        given: the federation's adapter.
        path: where the region's own is written.
        progress: told what the region chose.
    """
    worker.encoder.load_adapter(given)
    record = worker.personalize(RELEASE)
    progress.line(f"{worker.region.config.region}: {record.choice}; {record.reason}")
    save_adapter(path, worker.encoder.adapter(), {"choice": record.choice})
