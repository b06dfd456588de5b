"""Worlds of an experiment: made once for each data, regions, seed and preset, and shared.

A world is what `simulations.prepare` leaves behind: region folders, base, click logs. Methods never
train in it. Each works in a run folder of its own whose regions are views of the world's: files are
linked, and `state/` is the method's own, so that whatever a method lets a region remember between
rounds is not found by the next one. Kept activations depend on the base alone and are shared.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.durable import canonical_json, replace_file
from shared.errors import ConfigError
from simulations.comparison.digests import code_digest, digest_of, folder_digest, library_versions
from simulations.comparison.spec import DataSpec, Experiment
from simulations.prepare import WorldOptions, prepare
from simulations.progress import RunProgress

SYNTHETIC = "synthetic"
_CACHE = "prefix_cache"


@dataclass(frozen=True)
class Cell:
    """One world of an experiment; every method is measured in it.

    Attributes:
        data: which.
        seed: of the world and of all training in it.
        folder: where the data set lies; None for one that is made.
        preset: of the base.
        device: of every region.
        digest: of all of this but where the folder is, of what lies in it, of the number of
            threads and of the code that makes the world.
    """

    data: DataSpec
    seed: int
    folder: Path | None
    preset: str
    device: str
    digest: str

    @property
    def label(self) -> str:
        """In progress lines and tables."""
        return f"{self.data.label}, seed {self.seed}"

    @property
    def source(self) -> str:
        """As `--data` of `fedshelf simulate` takes it."""
        return self.data.source if self.folder is None else f"{self.data.source}:{self.folder}"


def cells_of(experiment: Experiment, folders: Mapping[str, Path]) -> list[Cell]:
    """All worlds of an experiment, seed by seed, so that a first seed is complete early.

    Args:
        experiment: what is asked for.
        folders: where the data sets lie, by source.

    Raises:
        ConfigError: a data set has no folder.
    """
    places = {data.source: _place(data.source, folders) for data in experiment.data}
    contents = {
        source: folder_digest(folder) if folder else "" for source, folder in places.items()
    }
    what = experiment.experiment
    alike = {"preset": what.preset, "device": what.device, "threads": what.threads}
    made_by = {"code": code_digest("simulations.prepare"), "libraries": library_versions()}
    cells = []
    for seed in what.seeds:
        for data in experiment.data:
            made_of = {"data": data.model_dump(), "seed": seed, "contents": contents[data.source]}
            cells.append(
                Cell(
                    data=data,
                    seed=seed,
                    folder=places[data.source],
                    preset=what.preset,
                    device=what.device,
                    digest=digest_of(made_of | alike | made_by),
                )
            )
    return cells


def _place(source: str, folders: Mapping[str, Path]) -> Path | None:
    if source == SYNTHETIC:
        return None
    if source not in folders:
        raise ConfigError(
            f"{source}: nobody said where it lies; "
            f"add --data-dir {source}=DIR or set FEDSHELF_{source.upper()}"
        )
    if not folders[source].is_dir():
        raise ConfigError(f"{folders[source]}: no such folder; {source} needs one")
    return folders[source]


def make_world(cell: Cell, root: Path, progress: RunProgress) -> Path:
    """The folder of a cell's world, made if it is not complete yet.

    Args:
        cell: which.
        root: the folder of experiments.
        progress: told what is going on.
    """
    world = root / "worlds" / cell.digest
    if not (world / "world.json").is_file():
        world.mkdir(parents=True, exist_ok=True)
        replace_file(world / "cell.json", canonical_json(_told(cell)))
        prepare(world, _options(cell), progress)
    return world


def _options(cell: Cell) -> WorldOptions:
    return WorldOptions(
        data=cell.source,
        regions=cell.data.regions,
        rule=cell.data.partition,
        preset=cell.preset,
        device=cell.device,
        seed=cell.seed,
        fusion=cell.data.fusion,
        distance=cell.data.distance,
    )


def _told(cell: Cell) -> dict[str, Any]:
    """For a person who looks into the folder; no path, so that it can be handed on."""
    return {**cell.data.model_dump(), "seed": cell.seed, "preset": cell.preset}


def region_folders(world: Path) -> list[Path]:
    """The region folders of a world or of a view of it, sorted by name."""
    return sorted(path.parent for path in (world / "regions").glob("*/region.toml"))


def view_world(world: Path, view: Path) -> None:
    """Make a run folder whose regions are the world's, with state of their own; once.

    Args:
        world: a complete world.
        view: the run folder; what is in its regions' state stays.
    """
    view.mkdir(parents=True, exist_ok=True)
    _link(world / "base", view / "base")
    for folder in region_folders(world):
        region = view / "regions" / folder.name
        (region / "state").mkdir(parents=True, exist_ok=True)
        (folder / "state" / _CACHE).mkdir(parents=True, exist_ok=True)
        _link(folder / "state" / _CACHE, region / "state" / _CACHE)
        for name in ("catalog.parquet", "clicks.parquet", "qrels.parquet", "images"):
            _link(folder / name, region / name)
        shutil.copyfile(folder / "region.toml", region / "region.toml")  # last: it is a region now


def _link(target: Path, link: Path) -> None:
    if not link.is_symlink():
        link.symlink_to(os.path.relpath(target, link.parent))  # the root may be moved as a whole
