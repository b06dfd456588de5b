"""The benchmark runs on a handful of products, and its arithmetic is right; no time is asserted."""

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import pytest

from benchmarks import corpus as corpora
from benchmarks import load, place, search, words
from benchmarks.corpus import Corpus, between, more_vectors, sized
from benchmarks.dense import recall_in_depth
from benchmarks.load import BROKEN, closed_loop, fresh_queries, open_loop
from benchmarks.million import measure_million
from benchmarks.report import Figure, Report, share_in_use, table
from benchmarks.timing import Spread, in_turns, per_second, quantile_ms, ratio
from benchmarks.training import measure_training
from shared.encoders.presets import find_preset, make_base
from shared.encoders.public import PublicSlice
from shared.errors import ConfigError, FederationError
from shared.retrieval.plan import build_planned
from shared.retrieval.vectors import VectorIndex
from shared.schema import CATALOG_COLUMNS

DIM = 32


def small_corpus(size: int = 40) -> Corpus:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(size, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    columns = {
        name: pl.Series([None] * size, dtype=dtype) for name, dtype in CATALOG_COLUMNS.items()
    }
    products = pl.DataFrame(columns).with_columns(
        product_id=pl.Series([f"p{row}" for row in range(size)]),
        title=pl.Series([f"red shoe number {row} left" for row in range(size)]),
    )
    return Corpus("small", products, vectors, ["shoe", "red 3"], vectors[:2].copy(), size)


def test_a_spread_is_the_median_and_the_quartiles() -> None:
    assert Spread.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Spread(3.0, 2.0, 4.0)


def test_ways_take_turns_and_each_call_is_timed_once() -> None:
    called: list[tuple[str, int]] = []
    ways = {name: lambda number, name=name: called.append((name, number)) for name in "ab"}
    taken = in_turns(ways, calls=2, rounds=5)
    a, b = [("a", 0), ("a", 1)], [("b", 0), ("b", 1)]
    assert called == [*a, *b, *(a + b), *(b + a), *(a + b), *(b + a), *(a + b)]
    assert {name: seconds.shape for name, seconds in taken.items()} == {"a": (5, 2), "b": (5, 2)}
    assert all((seconds > 0).all() for seconds in taken.values())


def test_several_callers_make_each_call_once_a_round() -> None:
    called: list[int] = []
    rates = per_second({"a": called.append}, calls=7, rounds=5, callers=3)
    assert sorted(called) == sorted([*range(7)] * 6)  # one round to warm up
    assert rates["a"].shape == (5,)


def test_quantiles_and_ratios_are_round_by_round() -> None:
    seconds = np.array([[0.001, 0.003, 0.002], [0.004, 0.006, 0.005]])
    assert quantile_ms(seconds, 0.5).tolist() == pytest.approx([2.0, 5.0])
    assert ratio(np.array([2.0, 9.0, 4.0]), np.array([1.0, 3.0, 1.0])).median == 3.0


@pytest.mark.parametrize(
    ("value", "unit", "met"),
    [
        (1.05, "ratio", True),
        (1.15, "ratio", False),
        (0.99, "recall", True),
        (0.97, "recall", False),
    ],
)
def test_a_target_is_a_bound_from_the_right_side(value: float, unit: str, met: bool) -> None:
    target = 0.98 if unit == "recall" else 1.1
    figure = Figure("dense", "a", value, unit, target=target)
    assert figure.met is met
    assert ("met" if met else "missed") in table([figure])


def test_made_vectors_lie_between_their_two_and_are_of_unit_length() -> None:
    corpus = small_corpus()
    first, second = np.array([0, 1]), np.array([2, 3])
    made = between(corpus.vectors, first, second)
    assert np.linalg.norm(made, axis=1) == pytest.approx(1)
    apart = np.einsum("nd,nd->n", corpus.vectors[first], corpus.vectors[second])
    for ends in (first, second):
        near = np.einsum("nd,nd->n", made, corpus.vectors[ends])
        assert (near > apart).all() and (near < 1).all()


def test_a_larger_corpus_begins_with_the_real_products() -> None:
    corpus = small_corpus()
    larger = sized(corpus, 100)
    assert larger.num_real == 40
    assert larger.products.height == len(larger.vectors) == 100
    assert larger.products[:40].equals(corpus.products)
    assert np.array_equal(larger.vectors[:40], corpus.vectors)
    assert larger.products["product_id"].n_unique() == 100
    assert dict(larger.products.schema) == CATALOG_COLUMNS
    assert np.array_equal(more_vectors(corpus, 100)[:40], corpus.vectors)
    assert np.linalg.norm(more_vectors(corpus, 100), axis=1) == pytest.approx(1, abs=1e-6)


def test_a_smaller_corpus_is_its_beginning() -> None:
    smaller = sized(small_corpus(), 7)
    assert smaller.num_real == smaller.products.height == len(smaller.vectors) == 7


def test_recall_in_depth_counts_what_a_weak_index_misses() -> None:
    corpus = small_corpus()
    queries = corpus.vectors[:5]
    exact = VectorIndex.over(build_planned(corpus.vectors, seed=0))
    others = VectorIndex.over(build_planned(corpus.vectors[::-1][:30].copy(), seed=0))
    assert recall_in_depth(exact, corpus.vectors, queries) == 1.0
    assert recall_in_depth(others, corpus.vectors, queries) < 1.0


def test_recall_in_depth_is_not_lowered_by_rounded_vectors() -> None:
    corpus = small_corpus()
    rounded = corpus.vectors.astype(np.float16)
    coded = build_planned(corpus.vectors, factory="IVF2,SQ8", seed=0)
    stored = VectorIndex.over(coded, matrix=rounded)
    assert recall_in_depth(stored, corpus.vectors, corpus.vectors[:5]) == 1.0


def test_fresh_queries_do_not_repeat() -> None:
    texts = list(islice(fresh_queries(["a", "b", "c"]), 50))
    assert len(set(texts)) == 50


def test_encodings_are_kept_by_their_texts(tmp_path: Path) -> None:
    class Encoder:
        digest = "d"
        calls = 0

        def encode_products(self, texts: list[str], images: list[None]) -> np.ndarray:
            self.calls += 1
            return np.array([[float(len(text))] for text in texts], np.float32)

    encoder = Encoder()
    for _ in range(2):
        found = corpora._encoded(encoder, ["a", "bb"], tmp_path)  # type: ignore[arg-type]
        assert found.tolist() == [[1.0], [2.0]]
    assert encoder.calls == 1
    assert corpora._encoded(encoder, ["bb", "a"], tmp_path).tolist() == [[2.0], [1.0]]  # type: ignore[arg-type]


class _Answers(BaseHTTPRequestHandler):
    """Refuses every third request, hangs up on every seventh."""

    protocol_version = "HTTP/1.1"
    count = 0
    lock = threading.Lock()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        with self.lock:
            type(self).count += 1
            number = self.count
        if number % 7 == 0:
            self.close_connection = True
            self.connection.close()
            return
        self.send_response(429 if number % 3 == 0 else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    _Answers.count = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_every_request_at_a_rate_is_counted_by_what_came_of_it(url: str) -> None:
    found = asyncio.run(open_loop(url, fresh_queries(["a", "b"]), rate=1000.0, seconds=0.042))
    assert len(found.answers) == 42
    assert found.statuses == {BROKEN: 6, 429: 12, 200: 24}
    assert found.unexpected == 6
    assert found.quantile_ms(0.5) > 0


def test_callers_ask_until_the_time_is_up(url: str) -> None:
    found = asyncio.run(closed_loop(url, fresh_queries(["a"]), callers=2, seconds=0.05))
    assert len(found.answers) >= 2
    assert sum(found.statuses.values()) == len(found.answers)


class _Shop(BaseHTTPRequestHandler):
    """Finds a product from the second search after its upsert on."""

    new: ClassVar[list[str]] = []
    searches = 0

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/upsert":
            type(self).new, type(self).searches = [asked["products"][0]["product_id"]], 0
        else:
            type(self).searches += 1
        found = self.new if self.searches > 1 else []
        body = json.dumps({"hits": [{"product_id": one} for one in found]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_new_product_is_timed_until_a_search_finds_it() -> None:
    report = Report({}, {})
    with ThreadingHTTPServer(("127.0.0.1", 0), _Shop) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        load._put_down_changes(report, "shop", url, ["shoe"])
        server.shutdown()
        thread.join()
    acknowledged, _, found, _ = (figure.value for figure in report.figures)
    assert 0 < acknowledged < found


def test_a_million_is_measured_at_any_size() -> None:
    report = Report({}, {})
    measure_million(report, small_corpus(), size=200, calls=2, rounds=5, callers=1)
    names = [figure.name for figure in report.figures]
    assert any("(40 real)" in name and "build" in name for name in names)
    assert all(np.isfinite(figure.value) for figure in report.figures)


def test_the_whole_benchmark_runs_on_a_few_products(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSHELF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(search, "load_corpus", lambda **_: small_corpus())
    monkeypatch.setattr(search, "measure_load", lambda *_, **__: None)  # a process of its own: e2e
    monkeypatch.setattr(words, "BACKENDS", ("numpy",))
    monkeypatch.setattr(place, "weighed", place._weigh)
    base, _ = make_base(find_preset("tiny"), PublicSlice([], []), seed=0)
    out = tmp_path / "bench.json"
    size = ["--sizes", "60", "--calls", "2", "--rounds", "5", "--threads", "1"]
    search.main([*size, "--base", str(base), "--out", str(out)])
    content = json.loads(out.read_text())
    assert {figure["section"] for figure in content["figures"]} == {
        "dense",
        "lexical",
        "region",
        "text query",
    }
    assert {"cores", "date", "versions", "busy"} <= content["machine"].keys()
    assert content["settings"]["real_products"] == 40


@pytest.mark.parametrize(("idle", "share"), [(100, 0.0), (25, 0.75), (0, 1.0)])
def test_cores_at_work_are_those_that_are_not_idle(
    idle: int, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat, core = tmp_path / "stat", min(os.sched_getaffinity(0))

    def write(idle: int, work: int) -> None:
        others = "cpu 9 9 9 9 9 9 9 9 0 0\ncpu99999 9 9 9 9 9 9 9 9 0 0\nintr 5\n"
        stat.write_text(f"{others}cpu{core} {work} 0 0 {idle} 0 0 0 0 0 0\n", "ascii")

    write(1000, 500)
    monkeypatch.setattr("time.sleep", lambda _: write(1000 + idle, 600 - idle))
    assert share_in_use(stat=stat) == share


def test_too_few_rounds_are_refused() -> None:
    with pytest.raises(SystemExit, match="--rounds 2: give at least 5"):
        search.main(["--rounds", "2"])


def test_training_wants_a_region(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--region .*nowhere: no region\.toml there"):
        measure_training(
            Report({}, {}), tmp_path / "nowhere", tmp_path, ["shoe"], seconds=1, rounds=5
        )


def test_a_service_that_does_not_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with (
        pytest.raises(FederationError, match="did not start; look there for why"),
        load.served(tmp_path, "http://127.0.0.1:9"),
    ):
        pass
