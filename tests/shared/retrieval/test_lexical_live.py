"""The lexical index on disk, and changes to it while it is searched."""

import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import RetrievalError
from shared.retrieval.filters import Filters
from shared.retrieval.lexical import RECORD, LexicalDocument, LexicalIndex

WORDS = ("red", "blue", "boots", "shoes")
BASE = [LexicalDocument(text) for text in ("red boots", "blue boots", "red red shoes", "red boots")]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    folder = tmp_path / "lexical"
    LexicalIndex.write(folder, BASE)
    return folder


def _digests(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.iterdir()
    }


def _found(index: LexicalIndex, query: str, k: int = 999) -> list[tuple[int, float]]:
    rows, scores = index.search(query, k)
    return list(zip(rows.tolist(), scores.tolist(), strict=True))


def _folders(scratch: Path) -> list[Path]:
    return [path for path in scratch.iterdir() if path.is_dir()]


def test_what_was_written_is_opened_and_answers_alike(tmp_path: Path, written: Path) -> None:
    opened = LexicalIndex.open(written, scratch=tmp_path / "scratch")
    assert opened.num_products == 4
    for query in ("red", "red boots", "shoe", "nothing"):
        assert _found(opened, query) == _found(LexicalIndex.build(BASE), query)


def test_the_language_is_kept_on_disk(tmp_path: Path) -> None:
    LexicalIndex.write(tmp_path / "lexical", ["赤い靴"], locale="ja-JP")
    index = LexicalIndex.open(tmp_path / "lexical", scratch=tmp_path / "scratch")
    index = index.changed(added=[(1, LexicalDocument("靴下"))])
    assert index.search("靴", 9)[0].tolist() == [1, 0]  # the shorter text first


def test_one_segment_and_no_lock_file_is_written(tmp_path: Path) -> None:
    LexicalIndex.write(tmp_path / "lexical", ["red boots"] * 5000)
    meta = json.loads((tmp_path / "lexical" / "meta.json").read_text())
    assert [segment["max_doc"] for segment in meta["segments"]] == [5000]
    assert not list((tmp_path / "lexical").glob("*.lock"))


def test_no_products_make_an_index_too(tmp_path: Path) -> None:
    LexicalIndex.write(tmp_path / "lexical", [])
    index = LexicalIndex.open(tmp_path / "lexical", scratch=tmp_path / "scratch")
    assert _found(index, "red") == []
    assert index.changed(added=[(0, BASE[0])]).search("red", 9)[0].tolist() == [0]


def _refuse(*_: object) -> None:
    raise OSError("no such thing as links")


@pytest.mark.parametrize("lacking", [(), ("link",), ("link", "symlink")])
def test_changes_leave_every_byte_of_the_folder_alone(
    tmp_path: Path, written: Path, lacking: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in lacking:  # links across file systems, and links at all
        monkeypatch.setattr(os, name, _refuse)
    before = _digests(written)
    index = LexicalIndex.open(written, scratch=tmp_path / "scratch")
    for number in range(9):  # enough for tantivy to merge
        index = index.changed(removed_rows=[number], added=[(4 + number, BASE[number % 4])])
    assert index.search("red", 99)[0].size == 3
    assert index.num_products == 4
    del index
    gc.collect()
    assert _digests(written) == before
    assert _folders(tmp_path / "scratch") == []


def test_a_version_answers_as_of_its_own_time(tmp_path: Path, written: Path) -> None:
    first = LexicalIndex.open(written, scratch=tmp_path / "scratch")
    answers = [_found(first, "red boots")]
    versions = [first]
    for number in range(10):
        newer = versions[-1].changed(removed_rows=[number], added=[(4 + number, BASE[0])])
        versions.append(newer)
        answers.append(_found(newer, "red boots"))
    assert [_found(version, "red boots") for version in versions] == answers
    assert len({tuple(row for row, _ in answer) for answer in answers}) == len(answers)
    assert not first.matched_words("red", 4)
    assert versions[-1].matched_words("red", 4) == ()
    assert versions[-1].matched_words("red", 13) == ("red",)


def test_additions_score_as_if_they_had_been_there_from_the_start() -> None:
    added = [LexicalDocument("red shoes in blue"), LexicalDocument("boots")]
    index = LexicalIndex.build(BASE)
    for row, document in enumerate(added, start=4):
        index = index.changed(added=[(row, document)])
    whole = LexicalIndex.build([*BASE, *added])
    for query in ("red", "blue boots", "shoes red blue"):
        assert _found(index, query) == _found(whole, query)
    assert index.document_frequency("boots") == 4
    assert dict(index.vocabulary()) == dict(whole.vocabulary())


@pytest.mark.parametrize("num_live", [1, 9, 40])
def test_ties_go_by_row_wherever_the_cut_is_and_however_many_segments(num_live: int) -> None:
    index = LexicalIndex.build([LexicalDocument("same words")] * 20)
    for row in reversed(range(20, 20 + num_live)):  # later segments have lower rows
        index = index.changed(added=[(row, LexicalDocument("same words"))])
    index = index.changed(removed_rows=[0, 21])
    rows = [row for row in range(20 + num_live) if row not in (0, 21)]
    for k in (1, 5, 19, 20, 21, 30, 99):
        assert index.search("words", k)[0].tolist() == rows[:k]


changes = st.lists(
    st.tuples(
        st.lists(st.integers(0, 30), max_size=3),
        st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3), max_size=3),
        st.booleans(),
    ),
    max_size=14,
)


@settings(max_examples=25)
@given(num_base=st.integers(0, 6), changes=changes)
def test_any_changes_against_a_dictionary(
    num_base: int, changes: list[tuple[list[int], list[list[str]], bool]]
) -> None:
    model = {row: LexicalDocument(WORDS[row % 4], in_stock=row % 2 == 0) for row in range(num_base)}
    index, next_row = LexicalIndex.build(model.values()), num_base
    for removed, texts, in_stock in changes:
        documents = [LexicalDocument(" ".join(words), in_stock=in_stock) for words in texts]
        added = list(enumerate(documents, start=next_row))
        removed = [row for row in removed if row < next_row]
        index, next_row = index.changed(removed_rows=removed, added=added), next_row + len(added)
        for row in removed:
            model.pop(row, None)
        model.update(added)
        assert index.num_products == len(model)
        _check_against(index, model)


def _check_against(index: LexicalIndex, model: dict[int, LexicalDocument]) -> None:
    for word in WORDS:
        rows, scores = index.search(word, 999)
        assert sorted(rows) == sorted(row for row, each in model.items() if word in each.text)
        assert (np.lexsort((rows, -scores)) == np.arange(len(rows))).all()
        for k in range(1, len(rows)):
            assert index.search(word, k)[0].tolist() == rows[:k].tolist()
        there = index.search(word, 999, filters=Filters(in_stock=True))[0]
        assert there.tolist() == [row for row in rows.tolist() if model[row].in_stock]


def test_a_row_that_is_sent_again_is_there_once() -> None:
    index = LexicalIndex.build(BASE).changed(added=[(4, BASE[0])]).changed(added=[(4, BASE[2])])
    assert index.num_products == 5
    assert index.search("shoes", 9)[0].tolist() == [2, 4]


def test_only_the_newest_version_is_changed() -> None:
    index = LexicalIndex.build(BASE)
    index.changed(removed_rows=[0])
    with pytest.raises(AssertionError, match="newest version"):
        index.changed(removed_rows=[1])


def test_a_failed_change_changes_nothing_and_may_be_sent_again(
    tmp_path: Path, written: Path
) -> None:
    index = LexicalIndex.open(written, scratch=tmp_path / "scratch")
    index = index.changed(removed_rows=[0])
    (linked,) = _folders(tmp_path / "scratch")
    linked.rename(tmp_path / "away")
    with pytest.raises(RetrievalError, match=r"cannot be written .* free space of the scratch"):
        index.changed(removed_rows=[1], added=[(4, BASE[0])])
    assert index.search("boots", 9)[0].tolist() == [1, 3]
    (tmp_path / "away").rename(linked)
    index = index.changed(removed_rows=[1], added=[(4, BASE[0])])
    assert index.search("boots", 9)[0].tolist() == [3, 4]
    assert index.num_products == 3


def test_searches_go_on_while_the_index_changes() -> None:
    newest = [LexicalIndex.build(BASE)]
    wrong: list[list[int]] = []
    done = threading.Event()

    def search() -> None:
        while not done.is_set():
            rows = newest[0].search("shoes", 9)[0].tolist()
            if len(rows) != 1:  # one product has shoes at any time
                wrong.append(rows)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for row in range(4, 24):
        gone = newest[0].search("shoes", 9)[0].tolist()
        newest[0] = newest[0].changed(removed_rows=gone, added=[(row, BASE[2])])
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []


_KILLED = """
import os, signal, sys
from pathlib import Path
from shared.retrieval.lexical import LexicalDocument, LexicalIndex
index = LexicalIndex.open(Path(sys.argv[1]), scratch=Path(sys.argv[2]))
index = index.changed(removed_rows=[0], added=[(4, LexicalDocument("red boots"))])
assert index.search("boots", 9)[0].tolist() == [1, 3, 4]
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_loses_the_scratch_and_nothing_else(tmp_path: Path, written: Path) -> None:
    before, scratch = _digests(written), tmp_path / "scratch"
    in_use = LexicalIndex.open(written, scratch=scratch)
    (kept,) = _folders(scratch)
    root = Path(__file__).parents[3]
    child = [sys.executable, "-c", _KILLED, str(written), str(scratch)]
    assert subprocess.run(child, cwd=root, check=False).returncode == -signal.SIGKILL
    assert len(_folders(scratch)) == 2
    again = LexicalIndex.open(written, scratch=scratch)
    assert len(_folders(scratch)) == 2
    assert kept in _folders(scratch)
    assert _found(again, "boots") == _found(LexicalIndex.build(BASE), "boots")
    assert in_use.changed(removed_rows=[1]).num_products == 3
    assert _digests(written) == before


def _truncate(folder: Path) -> None:
    (path,) = folder.glob("*.term")
    path.write_bytes(path.read_bytes()[:-9])


def _miscount(folder: Path) -> None:
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({**record, "num_products": 5}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / RECORD).unlink(),
        lambda folder: (folder / RECORD).write_text("{}"),
        lambda folder: (folder / "meta.json").write_text("{"),
        lambda folder: (folder / ".managed.json").write_text("["),
        lambda folder: next(folder.glob("*.idx")).unlink(),
        _truncate,
        _miscount,
    ],
)
def test_a_damaged_folder_is_one_line_that_says_what_to_do(
    tmp_path: Path, written: Path, damage: Callable[[Path], object]
) -> None:
    damage(written)
    with pytest.raises(RetrievalError, match=r"lexical: .* cannot be opened .* build it again$"):
        LexicalIndex.open(written, scratch=tmp_path / "scratch")
    left = (tmp_path / "scratch").glob("*")
    assert {path.name for path in left} <= {".lock"}  # of the scratch folder itself
