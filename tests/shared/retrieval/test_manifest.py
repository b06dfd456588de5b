"""An index on disk is whole and the one that was written, or it is refused."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from shared.errors import RetrievalError
from shared.retrieval.index import build_index
from shared.retrieval.manifest import (
    open_current_index,
    open_index_folder,
    read_pointer,
    write_index_folder,
    write_pointer,
)

ENCODER, OTHER, CATALOG = "e" * 64, "f" * 64, "c" * 64
VECTORS = np.eye(4, 8, dtype=np.float32)
IDS = ["sku-1", "größe-2", "3", "a much longer product id"]
FILES = ("index.faiss", "ids.npy", "INDEX.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "indexes")


def write(parent: Path, release: int = 1) -> Path:
    return write_index_folder(
        parent,
        build_index(VECTORS),
        IDS,
        release=release,
        encoder_digest=ENCODER,
        catalog_digest=CATALOG,
    )


def test_what_was_written_is_read_back(folder: Path) -> None:
    opened = open_index_folder(folder, expected_digest=ENCODER)
    assert folder.name == "1-cccccccccccc"
    assert opened.ids.tolist() == IDS
    assert (opened.manifest.release, opened.manifest.dim) == (1, 8)
    assert opened.manifest.encoder_digest == ENCODER
    np.testing.assert_array_equal(opened.index.reconstruct_n(0, 4), VECTORS)


def test_plain_faiss_and_plain_numpy_read_it(folder: Path) -> None:
    index = faiss.read_index(str(folder / "index.faiss"))
    ids = np.load(folder / "ids.npy", allow_pickle=False)
    _, rows = index.search(VECTORS[[2]], 1)
    assert ids[rows[0, 0]] == "3"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("position", [0, 0.5, -1])
@pytest.mark.parametrize("flip", [0x01, 0xFF])
def test_a_flipped_byte_is_found(folder: Path, name: str, position: float, flip: int) -> None:
    raw = bytearray((folder / name).read_bytes())
    raw[int(position * len(raw)) if position >= 0 else -1] ^= flip
    (folder / name).write_bytes(raw)
    with pytest.raises(RetrievalError, match=f"{folder.name}: index damaged: .*build"):
        open_index_folder(folder)


def test_a_forged_digest_in_the_manifest_is_found(folder: Path) -> None:
    path = folder / "INDEX.json"
    path.write_text(path.read_text().replace(ENCODER, OTHER))
    with pytest.raises(RetrievalError, match=r"INDEX\.json is not the file"):
        open_index_folder(folder, expected_digest=OTHER)


@pytest.mark.parametrize(
    ("name", "message"),
    [("INDEX.json", "no INDEX.json"), ("ids.npy", "missing"), ("index.faiss", "missing")],
)
def test_half_an_index_is_refused(folder: Path, name: str, message: str) -> None:
    (folder / name).unlink()
    with pytest.raises(RetrievalError, match=message):
        open_index_folder(folder)


def test_another_encoder_is_refused_by_digest(folder: Path) -> None:
    with pytest.raises(
        RetrievalError, match="made by encoder eeeeeeeeeeee, this one is ffffffffff"
    ):
        open_index_folder(folder, expected_digest=OTHER)


def test_an_index_is_written_beside_the_old_one(folder: Path) -> None:
    before = {name: (folder / name).read_bytes() for name in FILES}
    assert [write(folder.parent).name, write(folder.parent).name] == [
        "1-cccccccccccc-2",
        "1-cccccccccccc-3",
    ]
    assert before == {name: (folder / name).read_bytes() for name in FILES}


def test_a_killed_writer_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(np, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}
    assert open_index_folder(write(tmp_path)).ids.tolist() == IDS


def test_the_pointer_names_the_index_that_answers(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RetrievalError, match="no index yet"):
        read_pointer(tmp_path)
    assert write_pointer(tmp_path, folder) == read_pointer(tmp_path)
    newer = write(tmp_path / "indexes", release=2)
    assert open_current_index(tmp_path).folder == folder
    write_pointer(tmp_path, newer)
    assert open_current_index(tmp_path, expected_digest=ENCODER).manifest.release == 2


@pytest.mark.parametrize(
    "pointer",
    [
        "",
        "{",
        f'{{"index": "../../etc", "release": 1, "encoder_digest": "{ENCODER}"}}',
        f'{{"index": "1-cccccccccccc", "release": -1, "encoder_digest": "{ENCODER}"}}',
    ],
)
def test_a_damaged_pointer_is_refused(tmp_path: Path, pointer: str) -> None:
    (tmp_path / "current").write_text(pointer)
    with pytest.raises(RetrievalError, match="damaged"):
        read_pointer(tmp_path)
