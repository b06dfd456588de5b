"""A region made of the corpus, as `fedshelf region serve` finds one: catalog, index, region.toml.

Vectors are given, so that no product is encoded twice. There is no headquarters: the region answers
from release 0, the base alone.
"""

import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.corpus import Corpus
from benchmarks.report import Report
from client.indexing import build_region_index
from client.region import Region, open_region
from client.shelves import open_shelf, scratch_folder
from server.releases import generate_signing_key
from shared.encoders.encoder import Encoder
from shared.retrieval.manifest import open_current_index
from shared.retrieval.shelf import Shelf
from shared.schema import BaseConfig, PublicationConfig, RegionConfig, ServeConfig
from simulations.regions import write_catalog, write_region_toml

SECTION: Final = "region"
_HOUR_S: Final = 3600.0


def make_region(
    folder: Path, corpus: Corpus, encoder: Encoder, base: Path, *, http: str, max_requests: int
) -> Region:
    """Write a region's folder and build its index.

    Args:
        folder: not there yet.
        corpus: its products.
        encoder: that made the corpus's vectors.
        base: folder of its base.
        http: address to answer at.
        max_requests: at work and waiting.

    Returns:
        The region, opened, with an index in use.
    """
    write_catalog(folder, corpus.products)
    key = generate_signing_key(folder / "signing.key")
    config = RegionConfig(
        region="bench",
        device="cpu",
        base=BaseConfig(
            path=str(base.resolve()),
            fingerprint=encoder.base.fingerprint,
            release_key=key,
            releases="releases",
        ),
        publication=PublicationConfig(poll_s=_HOUR_S),
        serve=ServeConfig(http=http, grpc="", page=False, max_requests=max_requests),
    )
    write_region_toml(folder, config)
    region = open_region(folder)
    build_region_index(region, encoder, release=0, vectors=corpus.vectors)
    return region


def measure_region(
    report: Report, folder: Path, corpus: Corpus, encoder: Encoder, base: Path
) -> tuple[Shelf, faiss.Index]:
    """Make a region and open it; put down what that takes and holds.

    Args:
        report: figures go there.
        folder: of the region, not there yet.
        corpus: its products.
        encoder: that made the corpus's vectors.
        base: folder of its base.

    Returns:
        The shelf that searches are answered from, and the FAISS index in it.
    """
    name = f"{len(corpus.vectors):,} products"
    start = time.perf_counter()
    make_region(folder, corpus, encoder, base, http="", max_requests=1)
    report.add(SECTION, f"{name}, both indexes built and checked", time.perf_counter() - start, "s")
    start = time.perf_counter()
    shelf, index = opened(folder)
    report.add(SECTION, f"{name}, shelf opened", time.perf_counter() - start, "s")
    held = weighed(folder) / len(corpus.vectors)
    report.add(SECTION, f"{name}, memory of an open shelf, a product", held, "bytes")
    return shelf, index


def opened(folder: Path) -> tuple[Shelf, faiss.Index]:
    """The shelf of a region's index in use, and its FAISS index; its catalog has not changed."""
    region = open_region(folder)
    index, scratch = open_current_index(region.state), scratch_folder(region.state)
    return open_shelf(region, index, _nothing_late, scratch=scratch), index.index


def _nothing_late(texts: list[str], photos: list[Path | None]) -> NDArray[np.float32]:
    raise AssertionError("the index was built from this very catalog")


def weighed(folder: Path) -> int:
    """Bytes that an open shelf adds to a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_weigh, folder).result()


def _weigh(folder: Path) -> int:
    before = _resident_bytes()
    shelf, _ = opened(folder)
    held = _resident_bytes() - before
    assert shelf.products.num_rows
    return held


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
