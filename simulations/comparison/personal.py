"""What each region makes of a federated adapter for itself, as after a release.

The same code as a deployed region's (`Worker.personalize`): candidates on the way to an adapter
fine-tuned on its own clicks, one of them chosen on validation clicks, or none. That is training
beyond the rounds, which an experiment file must own up to.
"""

from collections.abc import Mapping
from pathlib import Path

from shared.adapter import Adapter, load_adapter, save_adapter
from simulations.comparison.worlds import view_world
from simulations.processes import Processes

RELEASE = 1  # the number that seeds a region's training; `fedshelf simulate` has one release


def personalized_adapters(
    world: Path, folder: Path, adapters: Mapping[str, Adapter], processes: Processes
) -> dict[str, Adapter]:
    """Let each region adapt what the federation gave it, or what is left of that.

    Args:
        world: the world's folder.
        folder: where regions' state and results are kept.
        adapters: of the federation, by region.
        processes: that do it, a region each at a time.

    Returns:
        By region.
    """
    view_world(world, folder)
    tasks, made = [], {}
    for region, adapter in adapters.items():
        made[region] = folder / "adapters" / f"{region}.safetensors"
        if not made[region].is_file():
            given = folder / "given" / f"{region}.safetensors"
            save_adapter(given, adapter, {})
            of = {"region": str(folder / "regions" / region), "release": RELEASE}
            paths = {"given": str(given), "path": str(made[region])}
            tasks.append({"task": "personalize", **of, **paths})
    if tasks:
        processes.run(tasks)
        processes.tell_all({"task": "forget", "below": str(folder)})
    return {region: load_adapter(path) for region, path in made.items()}
