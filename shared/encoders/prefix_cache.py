"""Frozen activations of a list of items, computed once and memory-mapped.

A cache folder is named by what it depends on: base fingerprint, cut and the items' content. Any
change of those is another folder, so nothing can go stale; a damaged one is found by its digest and
made again. Values are kept as float16: half the disk, and cosines agree to 1e-3 or better.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.augmentation import VERSION as AUGMENTATION
from shared.augmentation import augment_photo
from shared.durable import canonical_json, locked, new_folder, set_aside, sha256_file
from shared.encoders.batches import batches_by_length, batches_of, for_each
from shared.encoders.image import ImageTower, load_pixels
from shared.encoders.packing import pack
from shared.encoders.text import TextTower
from shared.errors import DataError

_MAPPED_BYTES = 256 * 2**10  # less is read: a mapping keeps its file open, a simulation has many
Progress = Callable[[int, int], None]  # items done, items in all


@dataclass(frozen=True)
class TextPrefixes:
    """Activations of N texts: rows `offsets[i]:offsets[i + 1]` of `tokens` belong to text i.

    Attributes:
        tokens: (T, H) float16, memory-mapped where they are many.
        offsets: (N + 1,) int64.
    """

    tokens: NDArray[np.float16]
    offsets: NDArray[np.int64]

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Activations (T, H) float32 of the texts `rows` (B,), packed, and their lengths (B,)."""
        return pack([self.tokens_of(row) for row in rows.tolist()])

    def tokens_of(self, row: int) -> Tensor:
        """Activations (L, H) float16 of one text."""
        return torch.from_numpy(self.tokens[self.offsets[row] : self.offsets[row + 1]].copy())

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text, (N,)."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class ImagePrefixes:
    """Activations of N photos; a row whose photo is missing holds zeros.

    Attributes:
        maps: (N, ...) float16, memory-mapped where they are many.
        present: (N,) bool.
    """

    maps: NDArray[np.float16]
    present: NDArray[np.bool_]

    def batch(self, rows: NDArray[np.int64]) -> Tensor:
        """Activations (B, ...) float32 of the photos `rows` (B,)."""
        return torch.from_numpy(self.maps[rows].astype(np.float32))


@dataclass(frozen=True)
class TextViews:
    """N texts, each as one of several views of it.

    Attributes:
        views: of the same N texts, the originals first.
        chosen: which view of each text, (N,) int64.
    """

    views: Sequence[TextPrefixes]
    chosen: NDArray[np.int64]

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """As `TextPrefixes.batch`, of the views chosen."""
        return pack([self.views[self.chosen[row]].tokens_of(row) for row in rows.tolist()])


@dataclass(frozen=True)
class ImageViews:
    """N photos, each as one of several views of it.

    Attributes:
        views: of the same N photos, the originals first.
        chosen: which view of each photo, (N,) int64.
    """

    views: Sequence[ImagePrefixes]
    chosen: NDArray[np.int64]

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which photos there are, (N,)."""
        return self.views[0].present

    def batch(self, rows: NDArray[np.int64]) -> Tensor:
        """As `ImagePrefixes.batch`, of the views chosen."""
        maps = [self.views[self.chosen[row]].maps[row] for row in rows.tolist()]
        return torch.from_numpy(np.stack(maps).astype(np.float32))


def text_folder(cache: Path, tower: TextTower, fingerprint: str, texts: Sequence[str]) -> Path:
    """Where the activations of `texts` are kept; it appears whole, once they are.

    Args:
        cache: the region's `prefix_cache` folder.
        tower: that computes them.
        fingerprint: of the base the tower belongs to, `BaseInfo.towers`.
        texts: N texts, in their order.

    Returns:
        The folder, which need not exist.
    """
    content = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    return cache / _name("text", fingerprint, tower.config.adapter_blocks, content)


def image_folder(
    cache: Path,
    tower: ImageTower,
    fingerprint: str,
    paths: Sequence[Path | None],
    *,
    view: int = 0,
) -> Path:
    """Where the activations of photos are kept; it appears whole, once they are.

    Args:
        cache: the region's `prefix_cache` folder.
        tower: that computes them.
        fingerprint: of the base the tower belongs to, `BaseInfo.towers`.
        paths: N photos, None where a product has none.
        view: number of an augmented view; 0 is the photos as they are.

    Returns:
        The folder, which need not exist.

    Raises:
        DataError: a photo cannot be read.
    """
    content = [_photo_digest(path) if path else "" for path in paths]
    if view > 0:
        content.append(f"view {view} of version {AUGMENTATION}")
    return cache / _name("image", fingerprint, tower.config.adapter_blocks, content)


def text_prefixes(
    cache: Path,
    tower: TextTower,
    fingerprint: str,
    texts: Sequence[str],
    progress: Progress | None = None,
) -> TextPrefixes:
    """Open the kept activations of `texts`, computing them first where they are not kept yet.

    Args:
        cache: the region's `prefix_cache` folder.
        tower: computes what is missing.
        fingerprint: of the base the tower belongs to, `BaseInfo.towers`.
        texts: N texts, in the order their rows will be asked for.
        progress: called with (done, N) after every batch.
    """

    def compute(folder: Path) -> None:
        _compute_texts(folder, tower, texts, progress)

    folder = _kept(text_folder(cache, tower, fingerprint, texts), compute)
    return TextPrefixes(_open(folder, "data.npy"), _open(folder, "offsets.npy"))


def image_prefixes(
    cache: Path,
    tower: ImageTower,
    fingerprint: str,
    paths: Sequence[Path | None],
    progress: Progress | None = None,
    *,
    view: int = 0,
) -> ImagePrefixes:
    """Open the kept activations of photos, computing them first where they are not kept yet.

    Args:
        cache: the region's `prefix_cache` folder.
        tower: computes what is missing.
        fingerprint: of the base the tower belongs to, `BaseInfo.towers`.
        paths: N photos, None where a product has none.
        progress: called with (done, number of photos) after every batch.
        view: number of an augmented view; 0 is the photos as they are.

    Raises:
        DataError: a photo cannot be read.
    """

    def compute(folder: Path) -> None:
        _compute_images(folder, tower, paths, progress, view)

    folder = _kept(image_folder(cache, tower, fingerprint, paths, view=view), compute)
    return ImagePrefixes(_open(folder, "data.npy"), np.array([path is not None for path in paths]))


def evict(cache: Path, *, max_bytes: int) -> list[str]:
    """Remove the entries that were opened longest ago, until the others fit.

    Whoever has an entry open reads on in it; whoever asks for it again computes it again.

    Args:
        cache: the region's `prefix_cache` folder.
        max_bytes: of all files together. The entry that was opened last stays, however large.

    Returns:
        Names of what was removed, newest first.
    """
    with locked(cache):
        entries = [path for path in cache.iterdir() if path.is_dir()]
        entries.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        sizes = [sum(file.stat().st_size for file in path.iterdir()) for path in entries]
        removed = []
        for entry, total in list(zip(entries, accumulate(sizes), strict=True))[1:]:
            if total > max_bytes:
                set_aside(entry)
                removed.append(entry.name)
    if removed:
        with locked(cache):  # which removes what was set aside
            pass
    return removed


def _compute_texts(
    folder: Path, tower: TextTower, texts: Sequence[str], progress: Progress | None
) -> None:
    lengths = tower.lengths(texts)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    np.save(folder / "offsets.npy", offsets, allow_pickle=False)
    kept, report = _Kept(folder, int(offsets[-1])), _counted(progress, len(texts))

    def keep(rows: NDArray[np.int64], hidden: list[Tensor]) -> None:
        places = [np.arange(offsets[row], offsets[row + 1]) for row in rows]
        kept.put(np.concatenate(places), torch.cat(hidden))
        report(len(rows))

    batches = batches_by_length(lengths)  # equal lengths together: no padding computed
    for_each(batches, lambda rows: tower.prefix([texts[row] for row in rows]), keep)
    kept.close()


def _compute_images(
    folder: Path,
    tower: ImageTower,
    paths: Sequence[Path | None],
    progress: Progress | None,
    view: int,
) -> None:
    photos = {row: path for row, path in enumerate(paths) if path is not None}
    kept, report = _Kept(folder, len(paths)), _counted(progress, len(photos))

    def activations(rows: NDArray[np.int64]) -> Tensor:
        some = [photos[row] for row in rows.tolist()]
        return tower.prefix(some) if view == 0 else _augmented(tower, some, rows.tolist(), view)

    def keep(rows: NDArray[np.int64], hidden: Tensor) -> None:
        kept.put(rows, hidden)
        report(len(rows))

    for_each(batches_of(np.array(list(photos), np.int64)), activations, keep)
    kept.close()


class _Kept:
    """The array of an entry, made when its first rows come, since only they tell its shape.

    Args:
        folder: of the entry.
        rows: how many it has.
    """

    def __init__(self, folder: Path, rows: int) -> None:
        self._folder, self._rows = folder, rows
        self._data: NDArray[np.float16] | None = None

    def put(self, rows: NDArray[np.int64], hidden: Tensor) -> None:
        """Activations (B, ...) of these rows (B,)."""
        if self._data is None:
            self._data = _new_array(self._folder, (self._rows, *hidden.shape[1:]))
        self._data[rows] = hidden.numpy()

    def close(self) -> None:
        """Nothing more comes; an entry of nothing has its file all the same."""
        if self._data is None:
            _new_array(self._folder, (self._rows, 1))


def _counted(progress: Progress | None, total: int) -> Callable[[int], None]:
    """What is to be called with the size of every batch that is done."""
    done = 0

    def report(number: int) -> None:
        nonlocal done
        done += number
        if progress:
            progress(done, total)

    return report


def _augmented(tower: ImageTower, paths: Sequence[Path], rows: Sequence[int], view: int) -> Tensor:
    """Activations of one view of photos; which changes each gets follows from view and row."""
    made = [
        augment_photo(load_pixels(path, tower.config.size), np.random.default_rng([view, row]))
        for path, row in zip(paths, rows, strict=True)
    ]
    return tower.prefix_of(np.stack(made))


def _new_array(folder: Path, shape: tuple[int, ...]) -> NDArray[np.float16]:
    if 0 in shape:  # an empty file cannot be mapped
        np.save(folder / "data.npy", np.zeros(shape, np.float16), allow_pickle=False)
        return np.lib.format.open_memmap(folder / "data.npy", mode="c")
    return np.lib.format.open_memmap(folder / "data.npy", "w+", np.float16, shape)


def _photo_digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise DataError(f"{path}: {reason}; put the photo there") from None


def _name(kind: str, fingerprint: str, adapter_blocks: int, content: Sequence[str]) -> str:
    parts = json.dumps([kind, fingerprint, adapter_blocks, list(content)])
    return f"{kind}-{hashlib.sha256(parts.encode()).hexdigest()[:24]}"


def _kept(folder: Path, compute: Callable[[Path], None]) -> Path:
    """The cache folder, whole and verified; computed beside and renamed if it is not."""
    with locked(folder.parent):
        if _is_whole(folder):
            os.utime(folder)  # `evict` goes by when an entry was opened last
            return folder
        if folder.exists():
            set_aside(folder)
        with new_folder(folder, durable=False) as made:  # its digests tell what is missing
            compute(made)
            (made / "DIGESTS.json").write_bytes(canonical_json(_digests(made)))
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        expected = json.loads((folder / "DIGESTS.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return False
    return bool(expected == _digests(folder))


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("*.npy"))
    return {path.name: sha256_file(path) for path in files}


def _open(folder: Path, name: str) -> Any:
    path = folder / name
    mode: Literal["r"] | None = "r" if path.stat().st_size > _MAPPED_BYTES else None
    return np.load(path, mmap_mode=mode, allow_pickle=False)
