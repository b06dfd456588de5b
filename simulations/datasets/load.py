"""From what `--data` says to a `Source`: the one place that knows which sources there are."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from shared.errors import ConfigError, DataError
from simulations.datasets.fashion import load_fashion
from simulations.datasets.icecat import load_icecat
from simulations.datasets.source import Source

SYNTHETIC = "synthetic"
Progress = Callable[[int, int], None]
_FROM_FOLDER = ("fashion", "icecat")
CHOICES = f"{SYNTHETIC}, {', '.join(f'{kind}:DIR' for kind in _FROM_FOLDER)}"


def parse_data(spec: str) -> tuple[str, Path | None]:
    """Read the option `--data`.

    Args:
        spec: "synthetic", "fashion:DIR" or "icecat:DIR".

    Returns:
        The kind of source and its folder, None for synthetic.

    Raises:
        ConfigError: no such kind, or a folder missing or too many.
    """
    kind, colon, folder = spec.partition(":")
    if spec == SYNTHETIC:
        return SYNTHETIC, None
    if kind in _FROM_FOLDER and folder:
        return kind, Path(folder).expanduser()
    if kind in _FROM_FOLDER:
        raise ConfigError(f"--data {spec}: names no folder; write {kind}:DIR")
    if kind == SYNTHETIC and colon:
        raise ConfigError(f"--data {spec}: is made, not read; write {SYNTHETIC}")
    raise ConfigError(f"--data {spec}: unknown; choose one of {CHOICES}")


def load_source(
    spec: str,
    *,
    regions: Sequence[str],
    seed: int,
    folder: Path,
    progress: Progress | None = None,
) -> Source:
    """Read or make the world that `--data` names.

    Args:
        spec: as for `parse_data`.
        regions: names of the regions, for a world that is made with them.
        seed: of every choice.
        folder: where drawn photos are written, and found again by a later run.
        progress: called with (photos drawn, photos in all).

    Returns:
        The source; one without photos of its own borrows the synthetic public slice, so that the
        image tower has something to be aligned on.

    Raises:
        ConfigError: the option is wrong.
        DataError: the folder or what is in it is wrong.
    """
    kind, place = parse_data(spec)
    if place is None:
        from simulations.world import build_world  # loads the drawing code; others do without

        return build_world(regions=regions, seed=seed, folder=folder, progress=progress)
    if not place.is_dir():
        raise DataError(f"{place}: no such folder; --data {kind}:DIR needs one")
    if kind == "fashion":
        return load_fashion(place, seed=seed)
    from simulations.world import build_public

    public = build_public(folder=folder, progress=progress)
    return replace(load_icecat(place, seed=seed), public=public)
