"""What taking part costs a region in room and time, scaled up from a sample.

The sample is computed with the very functions that later compute the whole, in a temporary folder;
what the region keeps already is left out. Room is held against the disk and the memory there is,
time against how long headquarters waits.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from client.finding import Finding, byte_size, minutes
from shared.config import run_defaults

if TYPE_CHECKING:  # torch and polars take seconds to import
    from client.clicks import Examples, ValidationSet
    from client.objective import TrainingData
    from client.region import Region
    from shared.encoders.encoder import Encoder, ProductPrefixes

Item = TypeVar("Item")

_MEASURED_STEPS = 3
_LENGTH_BATCH = 16  # a cache is made in batches of equal length; so small, a sample's nearly are
_ACTIVATION_COPIES = 4  # rule of thumb: what the suffix and its gradient keep beside its input


@dataclass(frozen=True)
class Work:
    """Items of one kind whose activations are to be kept.

    Attributes:
        items: all of them.
        missing: those that are not kept yet.
        new_rows: that will be written for them; a product without a photo has a row too.
        bytes_each: of one row on disk.
        seconds_each: to compute one item.
    """

    items: int
    missing: int
    new_rows: int
    bytes_each: float
    seconds_each: float

    @property
    def missing_bytes(self) -> float:
        """What the kept file will take beyond what is there."""
        return self.new_rows * self.bytes_each

    @property
    def seconds(self) -> float:
        """How long computing what is missing will take."""
        return self.missing * self.seconds_each


@dataclass(frozen=True)
class Estimate:
    """What taking part costs, scaled up from a sample.

    Attributes:
        texts: product texts.
        queries: queries of the click log.
        photos: product photos.
        index_bytes: of one index on disk.
        release_bytes: of one release on disk.
        matrix_bytes: of all product vectors in memory.
        batch_bytes: of one batch's activations in memory.
        index_s: to index the catalog, activations being kept.
        base_s: to find where the base puts what is trained on, once before the first round.
        round_s: of training in one round, activations being kept; None without examples.
        passes: that adapting a release to this region takes, each as long as a round; 0 if it is
            not asked for.
    """

    texts: Work
    queries: Work
    photos: Work
    index_bytes: float
    release_bytes: float
    matrix_bytes: float
    batch_bytes: float
    index_s: float
    base_s: float
    round_s: float | None
    passes: int = 0

    @property
    def cache_bytes(self) -> float:
        """Activations that are not kept yet."""
        return sum(work.missing_bytes for work in (self.texts, self.queries, self.photos))

    @property
    def disk_bytes(self) -> float:
        """All that will be written; indexes and releases stand beside their successors."""
        return self.cache_bytes + 2 * self.index_bytes + 2 * self.release_bytes


def disk_finding(estimate: Estimate, *, free_bytes: int) -> Finding:
    """Hold what will be written against what is free.

    Args:
        estimate: from a sample.
        free_bytes: where the region's state lies.

    Returns:
        A failure where there is too little.
    """
    need = estimate.disk_bytes
    found = (
        f"{byte_size(free_bytes)} free; about {byte_size(need)} needed: kept activations"
        f" {byte_size(estimate.cache_bytes)}, two indexes {byte_size(2 * estimate.index_bytes)},"
        f" two releases {byte_size(2 * estimate.release_bytes)}"
    )
    if need > free_bytes:
        advice = f"make {byte_size(need - free_bytes)} more room, or move state"
        return Finding("fail", found, advice)
    return Finding("ok", found)


def memory_finding(estimate: Estimate, *, peak_bytes: int, available_bytes: int) -> Finding:
    """Hold what the worker will need against what is available.

    Args:
        estimate: from a sample.
        peak_bytes: most memory this process has used; it held the same data and encoder.
        available_bytes: once this process is gone.

    Returns:
        A failure where there is too little.
    """
    need = peak_bytes + 2 * estimate.matrix_bytes + estimate.batch_bytes
    found = (
        f"{byte_size(available_bytes)} available; about {byte_size(need)} needed: this check's own"
        f" peak with data and encoder {byte_size(peak_bytes)}, all product vectors twice"
        f" {byte_size(2 * estimate.matrix_bytes)}, a batch {byte_size(estimate.batch_bytes)}"
    )
    if need > available_bytes:
        return Finding("fail", found, "end other programs, or use a machine with more memory")
    return Finding("ok", found)


def memory_bytes() -> int | None:
    """Memory there is once this process is gone; None where the system does not say."""
    try:
        available = _kilobytes("/proc/meminfo", "MemAvailable")
        return available + _kilobytes("/proc/self/status", "VmRSS")
    except (OSError, ValueError):
        return None


def _kilobytes(path: str, name: str) -> int:
    """One line of a table of the kernel, in bytes."""
    for line in Path(path).read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise ValueError(name)


def time_finding(estimate: Estimate, *, round_timeout_s: float) -> Finding:
    """Say how long everything will take.

    Args:
        estimate: from a sample.
        round_timeout_s: after which headquarters goes on without this region.

    Returns:
        A warning where the first round, which keeps activations before it trains, would be late.
    """
    kinds = {"texts": estimate.texts, "queries": estimate.queries, "photos": estimate.photos}
    parts = [f"{name} {_cost(work)}" for name, work in kinds.items()]
    one_round = "no examples"
    if estimate.round_s is not None:
        once = minutes(estimate.base_s)
        one_round = f"{minutes(estimate.round_s)} ({once} more before the first)"
        if estimate.passes:
            adapting = minutes(estimate.passes * estimate.round_s)
            one_round += f"; for adapting a release: {adapting}"
    found = (
        f"about, for activations: {', '.join(parts)}; for training a round: {one_round};"
        f" for indexing: {minutes(estimate.index_s)}"
    )
    kept_s = sum(work.seconds for work in kinds.values())
    first = kept_s + estimate.base_s + (estimate.round_s or 0.0)
    if first > round_timeout_s:
        advice = (
            f"the first round would take {minutes(first)}, and headquarters waits"
            f" {minutes(round_timeout_s)} by default; use a GPU, or agree on a longer wait"
        )
        return Finding("warn", found, advice)
    return Finding("ok", found)


def _cost(work: Work) -> str:
    if work.items and not work.missing:
        return "none, kept already"
    return minutes(work.seconds) if work.items else "none"


def measure(
    region: "Region",
    encoder: "Encoder",
    splits: "tuple[Examples, ValidationSet, ValidationSet] | None",
    sample: int,
    *,
    known_items: Sequence[str] = (),
) -> Estimate:
    """Compute a sample in a temporary folder, with the worker's threads, and scale up.

    Args:
        region: the opened region.
        encoder: of its base; its adapter is a fresh one afterwards.
        splits: training examples, validation and gate queries; None where the clicks are unsound.
        sample: how many products, photos and queries to compute at most.
        known_items: queries that the catalog makes of itself.

    Returns:
        What the region as a whole will cost, what it keeps already left out.
    """
    from shared.encoders.batches import torch_threads

    queries = [*(part.queries for part in splits or ()), *([list(known_items)] * bool(known_items))]
    with (
        tempfile.TemporaryDirectory(prefix="fedshelf-check-") as name,
        torch_threads(region.config.worker.threads),
    ):
        beside = Path(name)
        text_work = _text_work(region, encoder, beside, [region.texts], sample)
        query_work = _text_work(region, encoder, beside, queries, sample)
        photo_work = _photo_work(region, encoder, beside, sample)
        data = _sample_data(region, encoder, beside, queries[0] if queries else [], sample)
        index_bytes, index_s = _measure_index(region, encoder, data.products, beside)
        release_bytes = _measure_release(encoder, beside)
        batch_bytes = _batch_bytes(text_work.bytes_each + photo_work.bytes_each)
        examples = splits[0] if splits and len(splits[0].weight) else None
        base_s = _base_seconds(encoder, data, examples) if examples else 0.0
        round_s = _round_seconds(encoder, data, len(examples.weight)) if examples else None
    own = region.config.personalization
    return Estimate(
        texts=text_work,
        queries=query_work,
        photos=photo_work,
        index_bytes=index_bytes * own.num_adapters,
        release_bytes=release_bytes,
        matrix_bytes=region.catalog.height * encoder.dim * own.num_adapters * np.float32().itemsize,
        batch_bytes=batch_bytes,
        index_s=index_s,
        base_s=base_s,
        round_s=round_s,
        passes=own.num_passes,
    )


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _text_work(
    region: "Region", encoder: "Encoder", beside: Path, lists: list[list[str]], sample: int
) -> Work:
    """Each list is kept in a folder of its own, as a whole or not at all."""
    from shared.encoders.batches import batches_by_length
    from shared.encoders.prefix_cache import text_folder, text_prefixes

    fingerprint = encoder.base.towers
    every = [text for texts in lists for text in texts]
    some = [every[row] for row in _spread(len(every), sample)]
    kept = text_prefixes(beside, encoder.text, fingerprint, some)
    missing = sum(
        len(texts)
        for texts in lists
        if not text_folder(_cache(region), encoder.text, fingerprint, texts).exists()
    )
    return Work(
        items=len(every),
        missing=missing,
        new_rows=missing,
        bytes_each=kept.tokens.nbytes / max(len(some), 1) + kept.offsets.itemsize,
        seconds_each=_seconds_each(
            some, batches_by_length(kept.lengths(), _LENGTH_BATCH), encoder.text.prefix
        ),
    )


def _photo_work(region: "Region", encoder: "Encoder", beside: Path, sample: int) -> Work:
    """A catalog's photos are kept in one file with a row for every product."""
    from shared.encoders.batches import batches_of
    from shared.encoders.prefix_cache import image_folder, image_prefixes

    fingerprint = encoder.base.towers
    every = [path for path in region.image_paths if path]
    some = [every[row] for row in _spread(len(every), sample)]
    kept = image_prefixes(beside, encoder.image, fingerprint, some)
    folder = image_folder(_cache(region), encoder.image, fingerprint, region.image_paths)
    missing = not folder.exists()
    return Work(
        items=len(every),
        missing=len(every) * missing,
        new_rows=region.catalog.height * missing,
        bytes_each=kept.maps.nbytes / max(len(some), 1),
        seconds_each=_seconds_each(some, batches_of(np.arange(len(some))), encoder.image.prefix),
    )


def _cache(region: "Region") -> Path:
    return region.state / "prefix_cache"


def _seconds_each(
    items: list[Item], batches: list[NDArray[np.int64]], prefix: Callable[[list[Item]], object]
) -> float:
    """Of one item, of several batches at once as when a cache is made."""
    from shared.encoders.batches import for_each

    start = time.perf_counter()
    for_each(batches, lambda rows: prefix([items[row] for row in rows]), lambda *_: None)
    return (time.perf_counter() - start) / max(len(items), 1)


def _sample_data(
    region: "Region", encoder: "Encoder", beside: Path, queries: list[str], sample: int
) -> "TrainingData":
    """As many products and queries, paired anyhow: how long a step takes is all that is asked."""
    from client.clicks import Examples
    from client.known_items import make_known_items
    from client.objective import make_training_data
    from shared.encoders.encoder import ProductPrefixes
    from shared.encoders.prefix_cache import image_prefixes, text_prefixes

    fingerprint, rows = encoder.base.towers, _spread(region.catalog.height, sample)
    texts = [region.texts[row] for row in rows]
    products = ProductPrefixes(
        text_prefixes(beside, encoder.text, fingerprint, texts),
        image_prefixes(
            beside, encoder.image, fingerprint, [region.image_paths[row] for row in rows]
        ),
        np.array([bool(text) for text in texts]),
    )
    asked = [queries[row] for row in _spread(len(queries), sample)] or texts
    config = run_defaults().train_config(1)
    pair = np.arange(min(max(len(asked), len(texts)), config.batch_size), dtype=np.int64)
    query_index, product_row = pair % len(asked), pair % len(texts)
    examples = Examples(
        queries=asked,
        query_index=query_index,
        product_row=product_row,
        weight=np.ones(len(pair), dtype=np.float32),
        positives=np.sort(query_index * len(texts) + product_row),
        num_products=len(texts),
    )
    known = make_known_items(texts, np.arange(len(texts)), seed=0)
    kept = partial(text_prefixes, beside, encoder.text, fingerprint)
    return make_training_data(encoder, examples, known, kept, products)


def _base_seconds(encoder: "Encoder", data: "TrainingData", examples: "Examples") -> float:
    """Where the base puts all queries and clicked texts, from those of `data`."""
    start = time.perf_counter()  # making `data` warmed up
    encoder.base_text_matrix(data.queries, np.arange(len(data.base_queries)))
    encoder.base_text_matrix(data.products.texts, data.clicked)
    seconds = time.perf_counter() - start
    num_texts = len(examples.queries) + len(np.unique(examples.product_row))
    return seconds / (len(data.base_queries) + len(data.clicked)) * num_texts


def _round_seconds(encoder: "Encoder", data: "TrainingData", num_examples: int) -> float:
    """One round by the defaults, from a few steps after a first one that warms up."""
    from client.training import train

    defaults = run_defaults().train_config(1)
    size, ends = len(data.examples.weight), list[float]()
    train(
        encoder,
        data,
        replace(defaults, batch_size=size, local_epochs=1 + _MEASURED_STEPS),
        seed=[0],
        on_step=lambda done, steps: ends.append(time.perf_counter()),
    )
    encoder.reset(seed=0)
    return (ends[-1] - ends[0]) / (_MEASURED_STEPS * size) * num_examples * defaults.local_epochs


def _measure_index(
    region: "Region", encoder: "Encoder", products: "ProductPrefixes", beside: Path
) -> tuple[float, float]:
    """Bytes and seconds of indexing the whole catalog, from the sample in `products`."""
    from client.indexing import index_parts
    from shared.retrieval.manifest import write_index_folder

    total, num = region.catalog.height, len(products.has_text)
    rows = _spread(total, num)
    sample = replace(
        region,
        catalog=region.catalog[rows],
        texts=[region.texts[row] for row in rows.tolist()],
        digests=region.digests[rows],
    )
    encoder.product_matrix(products)  # the first time warms up
    start = time.perf_counter()
    vectors = encoder.product_matrix(products)
    parts = index_parts(sample, vectors, distance=encoder.distance)
    folder = write_index_folder(
        beside / "indexes",
        parts,
        release=0,
        encoder_digest=encoder.digest,
        catalog_digest=region.catalog_digest,
    )
    seconds = time.perf_counter() - start
    return folder_bytes(folder) * total / num, seconds * total / num


def _measure_release(encoder: "Encoder", beside: Path) -> float:
    folder = beside / "release"
    folder.mkdir()
    encoder.save_release_files(folder)
    return folder_bytes(folder)


def _batch_bytes(item_bytes: float) -> float:
    """Memory of the largest batches, one a thread; on disk an item takes so much, halved."""
    import torch

    from shared.encoders.batches import batch_size

    return batch_size() * torch.get_num_threads() * 2 * item_bytes * _ACTIVATION_COPIES


def _spread(total: int, sample: int) -> NDArray[np.int64]:
    """At most `sample` row numbers, evenly spread over `total` rows."""
    return np.linspace(0, total, min(sample, total), endpoint=False).astype(np.int64)
