"""`fedshelf search`: what it prints, its exit codes, and that its help imports nothing heavy."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

import client.text_queries
from client.cli import app
from client.indexing import build_region_index
from client.region import open_region
from shared.errors import ConfigError, RetrievalError
from shared.retrieval.lexical import LexicalIndex
from shared.retrieval.manifest import LEXICAL, open_current_index

WORDS = ["red", "blue", "boots", "phone"]
runner = CliRunner()


class BagOfWords:
    """One dimension a word; a photo is the word in its file name."""

    digest, distance = "e" * 64, "cosine"

    def encode_products(
        self, texts: Sequence[str | None], images: Sequence[Path | None]
    ) -> NDArray[np.float32]:
        both = [
            (text or "").split() + ([image.stem] if image else [])
            for text, image in zip(texts, images, strict=True)
        ]
        counts = np.array([[words.count(word) for word in WORDS] for words in both], np.float32)
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1)

    encode_queries = encode_products


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "region.toml").write_text(
        'region = "north"\n[base]\npath = "base"\nfingerprint = "b"\nrelease_key = "k"\n'
        'releases = "releases"\n'
    )
    catalog = {
        "product_id": ["a", "b", "c"],
        "title": ["red boots", "blue boots", "phone"],
        "brand": ["[bold]Acme", None, "Bell"],
        "price": [1234.5, 8.0, None],
        "currency": ["EUR", None, None],
    }
    pl.DataFrame(catalog).write_parquet(tmp_path / "catalog.parquet")
    build_region_index(open_region(tmp_path), BagOfWords(), release=4)
    monkeypatch.setattr(client.text_queries, "load_query_encoder", lambda *_, **__: BagOfWords())
    return tmp_path


def test_a_table_of_hits_with_its_stamp(folder: Path) -> None:
    result = runner.invoke(app, ["search", "--region", str(folder), "red boots"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    first = next(line for line in lines if "red boots" in line)
    for cell in ("1", "a", "[bold]Acme", "1,234.50 EUR", "1.000"):
        assert cell in first
    assert lines[-1] == "region north, release 4, encoder eeeeeeeeeeee"


def test_json_says_the_same(folder: Path) -> None:
    arguments = ["--region", str(folder), "red boots", "--k", "2", "--json"]
    result = runner.invoke(app, ["search", *arguments])
    answer = json.loads(result.stdout)
    assert {key: answer[key] for key in answer if key != "hits"} == {
        "region": "north",
        "release": 4,
        "encoder_digest": "e" * 64,
        "changes": 0,
    }
    assert [(hit["rank"], hit["product_id"]) for hit in answer["hits"]] == [(1, "a"), (2, "b")]
    assert answer["hits"][0]["score"] == pytest.approx(1)  # the best by words and by meaning
    assert answer["hits"][0] == {
        "rank": 1,
        "score": answer["hits"][0]["score"],
        "product_id": "a",
        "title": "red boots",
        "brand": "[bold]Acme",
        "price": 1234.5,
        "currency": "EUR",
        "image": None,
    }


def answer_of(folder: Path, *arguments: str) -> dict[str, Any]:
    result = runner.invoke(app, ["search", "--region", str(folder), *arguments, "--json"])
    assert result.exit_code == 0, result.exception
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def scores_of(folder: Path, *arguments: str) -> dict[str, float]:
    return {hit["product_id"]: hit["score"] for hit in answer_of(folder, *arguments)["hits"]}


def test_scores_are_those_of_the_mix(folder: Path) -> None:
    """Cosines 1, 1/2, 0; words: b shares one of two, and both are in one product more.

    The last one is neither near nor shares a word, so it is no answer.
    """
    opened = open_current_index(folder / "state")
    lexical = LexicalIndex.open(opened.folder / LEXICAL, scratch=folder / "scratch")
    rows, bm25 = lexical.search("red boots", 3)
    assert rows.tolist() == [0, 1]
    w, words = opened.manifest.dense_weight, float(bm25[1] / bm25[0])
    assert 0 < w < 1
    assert scores_of(folder, "red boots") == {
        "a": pytest.approx(1),
        "b": pytest.approx(w * (1 / 2 + 1) / 2 + (1 - w) * words),
    }


def test_one_ranker_alone(folder: Path) -> None:
    dense = {"a": pytest.approx(1), "b": pytest.approx(3 / 4)}
    assert scores_of(folder, "red boots", "--ranker", "dense") == dense
    assert list(scores_of(folder, "red boots", "--ranker", "lexical")) == ["a", "b"]


def test_words_alone_need_no_encoder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BagOfWords, "encode_queries", None)
    assert list(scores_of(folder, "blue", "--ranker", "lexical")) == ["b"]


def test_an_exact_product_id_comes_first(folder: Path) -> None:
    assert next(iter(scores_of(folder, "C"))) == "c"


def test_what_is_popular_instead_says_so(folder: Path) -> None:
    arguments = ["--region", str(folder), "xylophone", "--ranker", "lexical"]
    result = runner.invoke(app, ["search", *arguments])
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "Nothing was found; these are popular."
    assert "phone" in result.stdout


def test_a_photo_and_a_photo_with_words(folder: Path) -> None:
    for photo, words, best in (("phone", [], "c"), ("boots", ["blue"], "b")):
        path = folder / f"{photo}.jpg"
        path.touch()
        arguments = ["--region", str(folder), *words, "--image", str(path), "--json"]
        answer = json.loads(runner.invoke(app, ["search", *arguments]).stdout)
        assert answer["hits"][0]["product_id"] == best
        assert answer["hits"][0]["score"] == pytest.approx(1)  # by the encoder alone


def test_an_index_of_an_older_catalog_says_so(folder: Path) -> None:
    catalog = pl.read_parquet(folder / "catalog.parquet")
    catalog.filter(pl.col("product_id") != "a").write_parquet(folder / "catalog.parquet")
    result = runner.invoke(app, ["search", "--region", str(folder), "red boots"])
    assert result.exit_code == 0
    assert "1 products have changed since this index was built." in result.stdout
    assert "red boots" not in result.stdout
    assert answer_of(folder, "red boots")["changes"] == 1


def test_a_catalog_newer_than_the_index_is_searched(folder: Path) -> None:
    catalog = pl.read_parquet(folder / "catalog.parquet")
    new = catalog[:1].with_columns(product_id=pl.lit("d"), title=pl.lit("red phone"))
    cheaper = catalog.with_columns(price=pl.Series([2.0, 8.0, None]))
    pl.concat([cheaper, new]).write_parquet(folder / "catalog.parquet")
    answer = answer_of(folder, "red phone")
    assert answer["hits"][0]["product_id"] == "d"
    assert {hit["product_id"]: hit["price"] for hit in answer["hits"]}["a"] == 2.0
    assert answer["changes"] == 2


@pytest.mark.parametrize(
    "arguments",
    [[], ["  "], ["red", "--k", "0"], ["red", "--colour"], ["red", "--ranker", "best"]],
)
def test_wrong_usage_is_exit_code_2(folder: Path, arguments: list[str]) -> None:
    assert runner.invoke(app, ["search", "--region", str(folder), *arguments]).exit_code == 2


def test_what_a_person_can_mend_is_a_named_error(folder: Path, tmp_path: Path) -> None:
    cases = (
        (["--region", str(tmp_path / "nowhere"), "red"], ConfigError, "region.toml"),
        (["--region", str(folder), "--image", "none.jpg"], RetrievalError, "none.jpg: not found"),
    )
    for arguments, kind, message in cases:
        error = runner.invoke(app, ["search", *arguments]).exception
        assert isinstance(error, kind)
        assert message in str(error)


def test_another_encoder_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BagOfWords, "digest", "f" * 64)
    error = runner.invoke(app, ["search", "--region", str(folder), "red"]).exception
    assert isinstance(error, RetrievalError)
    assert "made by encoder eeeeeeeeeeee" in str(error)


def test_a_release_that_comes_into_use_meanwhile_answers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index changes after it was read which release is in use, and before it is opened."""
    newer = BagOfWords()
    newer.digest = "f" * 64

    def load(*_: object, release: int, **__: object) -> BagOfWords:
        if release == 4:
            build_region_index(open_region(folder), newer, release=5)
            return BagOfWords()
        return newer

    monkeypatch.setattr(client.text_queries, "load_query_encoder", load)
    result = runner.invoke(app, ["search", "--region", str(folder), "red boots", "--json"])
    assert json.loads(result.stdout)["release"] == 5


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "faiss", "polars", "numpy", "transformers", "timm", "peft", "flwr", "rich")
    code = (
        "import atexit, sys, fedshelf; sys.argv[1:] = ['--help']; "
        f"atexit.register(lambda: print([m for m in {heavy} if m in sys.modules])); "
        "fedshelf.main()"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[0].startswith("Usage: ")
    assert found.stdout.splitlines()[-1] == "[]"
