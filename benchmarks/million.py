"""A million vectors: what an index of 8-bit codes costs and finds, and how long it takes to build.

Real encodings extended by interpolation between neighbours; see `benchmarks.corpus`.
"""

import resource
from typing import Final

import faiss
import numpy as np

from benchmarks.corpus import Corpus, more_vectors
from benchmarks.dense import build, compare, recalls
from benchmarks.memory import peak_bytes
from benchmarks.report import Report
from shared.retrieval.plan import plan_factory
from shared.retrieval.vectors import VectorIndex

SECTION: Final = "million"
MILLION: Final = 1_000_000
MAX_BYTES: Final = 24 * 2**30  # of address space; torch and FAISS together map a few of them


def measure_million(
    report: Report, corpus: Corpus, *, size: int = MILLION, calls: int, rounds: int, callers: int
) -> None:
    """Build time, bytes a product, recall and times.

    Args:
        report: figures go there.
        corpus: real products; vectors between them are added.
        size: how many vectors in all.
        calls: queries a round.
        rounds: of each comparison.
        callers: threads, where throughput is measured.
    """
    vectors = more_vectors(corpus, size)
    factory = plan_factory(*vectors.shape)
    coded = "IVF" in factory
    name = f"{factory} over {size:,} ({len(corpus.vectors):,} real)"
    index, seconds = build(corpus, vectors, factory, keeps_vectors=coded)
    report.add(SECTION, f"{name}, build, one thread", seconds, "s")
    matrix = vectors.astype(np.float16) if coded else None
    on_disk = faiss.serialize_index(index).nbytes + (0 if matrix is None else matrix.nbytes)
    report.add(SECTION, f"{name}, index and whole vectors, a product", on_disk / size, "bytes")
    searched = VectorIndex.over(index, matrix=matrix)
    recalls(report, SECTION, name, searched, corpus, vectors)
    compare(report, SECTION, name, searched, index, corpus, calls, rounds, callers)
    report.add(SECTION, f"{name}, peak memory of the benchmark", peak_bytes(), "bytes")


def bound_memory() -> None:
    """Let this process map no more than `MAX_BYTES` from now on."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = MAX_BYTES if hard == resource.RLIM_INFINITY else min(MAX_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
