"""What one size costs: an index of so many vectors, a tower of such a rank, cut or picture size.

Each function is called in a process that does nothing else (`benchmarks.memory`). Towers of another
rank, cut or picture size are read from the same base folder: the frozen weights are the same, so no
image tower is trained again.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
import torch

from benchmarks.corpus import Corpus, more_vectors
from benchmarks.dense import build, halves
from benchmarks.learning import Ours, default_config, ndcg_shown
from benchmarks.points import (
    BEST_10,
    BEST_OF_A_MIX,
    BUILD,
    EXAMPLES,
    KEPT,
    ON_DISK,
    PHOTOS,
    QUALITY,
    RECALL,
    RELEASE,
    UPDATE,
)
from benchmarks.report import Figure, Report
from benchmarks.timing import Spread, in_turns, quantile_ms
from benchmarks.uplink import update_bytes
from client.region import open_region
from client.worker import Worker
from shared.encoders.base import BaseInfo, read_base
from shared.encoders.encoder import Encoder
from shared.encoders.image import ImageConfig
from shared.encoders.split import find_blocks
from shared.encoders.text import TextConfig
from shared.retrieval.plan import plan_factory
from shared.retrieval.recall import measure_recall
from shared.retrieval.shelf import DEPTH
from shared.retrieval.vectors import VectorIndex

_K: Final = 10
_SEED: Final = 0


@dataclass(frozen=True)
class Shape:
    """How the towers of a base are read, where not as its BASE.json says.

    Attributes:
        text: fields of `TextConfig`.
        image: fields of `ImageConfig`.
    """

    text: Mapping[str, Any] = field(default_factory=dict)
    image: Mapping[str, Any] = field(default_factory=dict)

    def of(self, info: BaseInfo) -> BaseInfo:
        """What the base would say."""
        text, image = replace(info.text, **self.text), replace(info.image, **self.image)
        return replace(info, text=text, image=image)


def ranked(info: BaseInfo, rank: int) -> Shape:
    """Both towers at one rank, their scaling (alpha / rank) as it was."""

    def fields(tower: TextConfig | ImageConfig) -> dict[str, int]:
        return {"rank": rank, "alpha": tower.alpha * rank // tower.rank}

    return Shape(text=fields(info.text), image=fields(info.image))


def num_blocks(base: Path) -> dict[str, int]:
    """How many blocks each tower of a base has, by tower."""
    encoder = read_as(base, Shape())
    models = {"text": encoder.text.peft, "image": encoder.image.peft}
    return {tower: len(find_blocks(model)[1]) for tower, model in models.items()}


def read_as(base: Path, shape: Shape) -> Encoder:
    """An encoder on the frozen weights of a base, its towers read in that shape."""
    return Encoder(base, shape.of(read_base(base)), torch.device("cpu"))


def measure_index(corpus: Corpus, size: int, *, calls: int, rounds: int) -> list[Figure]:
    """An index by plan: build time, bytes, recall, and times of one query.

    Args:
        corpus: real products; vectors between them are added, or some of them taken.
        size: how many vectors in all.
        calls: queries a round.
        rounds: at least `MIN_ROUNDS`.
    """
    faiss.omp_set_num_threads(1)
    few = size <= len(corpus.vectors)
    vectors = corpus.vectors[:size] if few else more_vectors(corpus, size)
    factory = plan_factory(*vectors.shape)
    coded, (_, asked) = "IVF" in factory, halves(corpus)
    report = Report({}, {})
    index, seconds = build(corpus, vectors, factory, keeps_vectors=coded)
    report.add("", BUILD, seconds, "s")
    matrix = vectors.astype(np.float16) if coded else None
    whole = faiss.serialize_index(index).nbytes + (0 if matrix is None else matrix.nbytes)
    report.add("", ON_DISK, whole, "bytes")
    searched = VectorIndex.over(index, matrix=matrix)
    for name, k in ((BEST_10, _K), (BEST_OF_A_MIX, DEPTH)):
        search = partial(searched.search, k=min(k, size))
        ways = {"": lambda n, search=search: search(asked[n % len(asked)][None])}
        taken = in_turns(ways, calls=calls, rounds=rounds)[""]
        report.add("", name, Spread.of(quantile_ms(taken, 0.5)), "ms")
    found = measure_recall(searched, vectors, queries=asked, selectivities=(), seed=_SEED)
    report.add("", RECALL, found.unfiltered, "recall")
    return report.figures


def measure_adapter(
    base: Path, region: Path, scratch: Path, shape: Shape, *, passes: int, seeds: int
) -> list[Figure]:
    """Local training of one region with towers of one shape: speed, quality, bytes.

    Args:
        base: folder of the base.
        region: folder of the region; nothing is written there.
        scratch: kept activations go there; empty, so that every shape computes its own.
        shape: of the towers.
        passes: over the region's examples, of which the first is not timed.
        seeds: fresh adapters that are trained, one after the other.
    """
    worker = Worker(replace(open_region(region), state=scratch))
    worker.encoder = encoder = read_as(base, shape)
    report, taken, quality = Report({}, {}), list[float](), list[float]()
    for seed in range(seeds):
        encoder.reset(seed=seed)
        ours = Ours(encoder, worker.training_data, default_config())
        taken += [_seconds(ours, seed * passes + number) for number in range(passes)][1:]
        quality.append(ndcg_shown(ours, worker))
    num_examples = len(worker.training_data.examples.weight)
    report.add("", EXAMPLES, Spread.of(num_examples / np.array(taken)), "1/s")
    report.add("", QUALITY, Spread.of(quality), "nDCG")
    for encoding, name in UPDATE.items():
        report.add("", name, update_bytes(encoder.adapter(), encoding), "bytes")
    _put_down_kept(report, worker)
    return report.figures


def measure_photos(base: Path, region: Path, size: int, *, rounds: int) -> list[Figure]:
    """Photos encoded from scratch, and what is kept of one, at one size of the input.

    Args:
        base: folder of the base; its image tower must take any size.
        region: whose photos.
        size: side of the square input, pixels.
        rounds: at least `MIN_ROUNDS`.
    """
    encoder, report = read_as(base, Shape(image={"size": size})), Report({}, {})
    photos = [path for path in open_region(region).image_paths if path is not None]
    ways = {"": lambda _: encoder.encode_products([None] * len(photos), photos)}
    taken = in_turns(ways, calls=1, rounds=rounds)[""][:, 0]
    report.add("", PHOTOS, Spread.of(len(photos) / taken), "1/s")
    kept = encoder.image.prefix(photos[:1]).numpy().astype(np.float16)  # as it is on disk
    report.add("", KEPT["image"], kept.nbytes, "bytes")
    return report.figures


def _put_down_kept(report: Report, worker: Worker) -> None:
    """What is kept of a product, and how fast vectors come from it."""
    products, encoder = worker.products, worker.encoder
    texts, images = products.texts, products.images
    report.add("", KEPT["text"], texts.tokens.nbytes / len(texts.lengths()), "bytes")
    if images.present.any():
        report.add("", KEPT["image"], images.maps[0].nbytes, "bytes")
    ways = {"": lambda _: encoder.product_matrix(products)}
    taken = in_turns(ways, calls=1, rounds=5)[""][:, 0]
    report.add("", RELEASE, Spread.of(len(products.has_text) / taken), "1/s")


def _seconds(call: Any, number: int) -> float:
    start = time.perf_counter()
    call(number)
    return time.perf_counter() - start
