"""What each region makes of a federated adapter for itself, as after a release.

The same code as a deployed region's (`Worker.personalize`): candidates on the way to an adapter
fine-tuned on its own clicks, one of them chosen on validation clicks, or none. That is training
beyond the rounds, which an experiment file must own up to.
"""

from collections.abc import Mapping
from pathlib import Path

from client.worker import forget_workers
from shared.adapter import Adapter, load_adapter, save_adapter
from simulations.comparison.worlds import view_world
from simulations.progress import RunProgress
from simulations.training import open_workers

RELEASE = 1  # the number that seeds a region's training; `fedshelf simulate` has one release


def personalized_adapters(
    world: Path,
    folder: Path,
    adapters: Mapping[str, Adapter],
    progress: RunProgress,
) -> dict[str, Adapter]:
    """Let each region adapt what the federation gave it, or what is left of that.

    Args:
        world: the world's folder.
        folder: where regions' state and results are kept.
        adapters: of the federation, by region.
        progress: told what each region chose.

    Returns:
        By region.
    """
    view_world(world, folder)
    made = {}
    for worker in open_workers(folder, progress):
        region = worker.region.config.region
        path = folder / "adapters" / f"{region}.safetensors"
        if not path.is_file():
            worker.on_step = progress.bar(f"{region}: steps")
            worker.encoder.load_adapter(adapters[region])
            record = worker.personalize(RELEASE)
            progress.line(f"{region}: {record.choice}; {record.reason}")
            save_adapter(path, worker.encoder.adapter(), {"choice": record.choice})
        made[region] = load_adapter(path)
    forget_workers(folder)
    return made
