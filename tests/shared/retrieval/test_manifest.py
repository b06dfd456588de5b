"""An index on disk is whole and the one that was written, or it is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest

from shared.durable import sha256_file
from shared.errors import RetrievalError
from shared.retrieval.hybrid import DEFAULT_DENSE_WEIGHT, Tuned
from shared.retrieval.index import FACTORY, build_index
from shared.retrieval.lexical import LexicalDocument, LexicalIndex
from shared.retrieval.manifest import (
    IndexManifest,
    IndexParts,
    open_current_index,
    open_index_folder,
    read_pointer,
    write_index_folder,
    write_pointer,
)
from shared.retrieval.plan import build_planned
from shared.retrieval.recall import measure_recall
from shared.retrieval.relevance import NO_FLOOR
from shared.retrieval.vectors import VectorIndex

ENCODER, OTHER, CATALOG = "e" * 64, "f" * 64, "c" * 64
VECTORS = np.eye(4, 8, dtype=np.float32)
IDS = ["sku-1", "größe-2", "3", "a much longer product id"]
TEXTS = ["red boots", "größe", "blue hat", "red hat"]
DIGESTS = np.array([[1, 2], [3, 4], [5, 6], [2**64 - 1, 0]], np.uint64)
INDEX = build_index(VECTORS)
PARTS = IndexParts(
    index=INDEX,
    factory=FACTORY,
    ids=IDS,
    digests=DIGESTS,
    documents=[LexicalDocument(text) for text in TEXTS],
    locale="de",
    recall=measure_recall(VectorIndex.over(INDEX), VECTORS, seed=0),
)
FILES = ("index.faiss", "ids.npy", "digests.npy", "lexical/meta.json", "lexical/LEXICAL.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "indexes")


def write(parent: Path, release: int = 1, *, tuned: Tuned | None = None) -> Path:
    return write_index_folder(
        parent,
        replace(PARTS, tuned=tuned),
        release=release,
        encoder_digest=ENCODER,
        catalog_digest=CATALOG,
    )


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_what_was_written_is_read_back(folder: Path) -> None:
    opened = open_index_folder(folder, expected_digest=ENCODER)
    assert folder.name == "1-cccccccccccc"
    assert opened.ids.tolist() == IDS
    assert (opened.manifest.release, opened.manifest.dim) == (1, 8)
    assert opened.manifest.encoder_digest == ENCODER
    np.testing.assert_array_equal(opened.index.reconstruct_n(0, 4), VECTORS)
    assert opened.digests.dtype == np.uint64
    np.testing.assert_array_equal(opened.digests, DIGESTS)
    assert (opened.manifest.factory, opened.manifest.recall) == (FACTORY, PARTS.recall)
    assert opened.manifest.recall.unfiltered == 1.0


def test_its_words_are_read_back_in_their_language(folder: Path, tmp_path: Path) -> None:
    opened = LexicalIndex.open(folder / "lexical", scratch=tmp_path / "scratch")
    assert opened.num_products == 4
    assert opened.search("rote hat", 4)[0].tolist() == [2, 3]  # no English stems: red is not rote
    assert opened.search("groesse größen", 4)[0].tolist() == [1]


def test_whole_vectors_lie_beside_an_index_of_codes(tmp_path: Path, folder: Path) -> None:
    assert open_index_folder(folder).matrix is None
    assert "vectors.npy" not in contents(folder)
    index = build_planned(VECTORS, factory="IVF1,SQ8", seed=0)
    parts = replace(PARTS, index=index, matrix=VECTORS.astype(np.float16))
    digests = {"encoder_digest": ENCODER, "catalog_digest": CATALOG}
    coded = write_index_folder(tmp_path / "coded", parts, release=1, **digests)
    opened = open_index_folder(coded)
    assert opened.matrix is not None and opened.matrix.dtype == np.float16
    assert isinstance(opened.matrix, np.memmap) and not opened.matrix.flags.writeable
    np.testing.assert_array_equal(opened.vectors().vectors_of(np.arange(4)), VECTORS)
    raw = bytearray((coded / "vectors.npy").read_bytes())
    raw[-1] ^= 1
    (coded / "vectors.npy").write_bytes(raw)
    with pytest.raises(RetrievalError, match=r"vectors\.npy is not the file"):
        open_index_folder(coded)


def test_the_weight_of_the_mix_is_kept_with_what_it_was_chosen_by(tmp_path: Path) -> None:
    tuned = Tuned(0.35, {0.0: 0.25, 0.35: 0.5, 1.0: 1 / 3}, num_queries=40, dense_floor=0.3)
    manifests = [open_index_folder(write(tmp_path, tuned=one)).manifest for one in (tuned, None)]
    assert manifests[0].dense_weight == 0.35
    assert manifests[0].dense_weights == {"0": 0.25, "0.35": 0.5, "1": 1 / 3}
    assert (manifests[1].dense_weight, manifests[1].dense_weights) == (DEFAULT_DENSE_WEIGHT, {})
    assert [manifest.dense_floor for manifest in manifests] == [0.3, NO_FLOOR]


def test_every_file_of_a_folder_is_in_its_manifest(folder: Path) -> None:
    names = set(open_index_folder(folder).manifest.files)
    assert names == contents(folder).keys() - {"INDEX.json"}
    assert {*FILES} <= names
    assert sum(name.startswith("lexical/") for name in names) > 5  # the segment too


def test_nothing_but_the_time_and_the_names_of_segments_differs_between_two(folder: Path) -> None:
    """Equal products: equal vectors, ids, digests and recall, byte for byte."""
    first, again = contents(folder), contents(write(folder.parent))
    for name in ("index.faiss", "ids.npy", "digests.npy", "lexical/LEXICAL.json"):
        assert first[name] == again[name]
    manifests = [json.loads(one["INDEX.json"]) for one in (first, again)]
    for one in manifests:
        for name in ("created", "checksum", "files"):
            del one[name]
    assert manifests[0] == manifests[1]


def test_plain_faiss_and_plain_numpy_read_it(folder: Path) -> None:
    index = faiss.read_index(str(folder / "index.faiss"))
    ids = np.load(folder / "ids.npy", allow_pickle=False)
    _, rows = index.search(VECTORS[[2]], 1)
    assert ids[rows[0, 0]] == "3"


@pytest.mark.parametrize("name", [*FILES, "INDEX.json"])
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


def test_a_flipped_byte_in_any_file_of_the_words_is_found(folder: Path) -> None:
    for name in [name for name in contents(folder) if name.startswith("lexical/")]:
        raw = (folder / name).read_bytes()
        for at in (0, len(raw) // 2, len(raw) - 1):
            (folder / name).write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
            with pytest.raises(RetrievalError, match=f"damaged: {name} is not the file .*; build"):
                open_index_folder(folder)
        (folder / name).write_bytes(raw)
    open_index_folder(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [("INDEX.json", "no INDEX.json"), *((name, f"{name} is missing") for name in FILES)],
)
def test_half_an_index_is_refused(folder: Path, name: str, message: str) -> None:
    (folder / name).unlink()
    with pytest.raises(RetrievalError, match=message):
        open_index_folder(folder)


@pytest.mark.parametrize("name", ["index.faiss", "ids.npy", "digests.npy"])
def test_a_manifest_that_does_not_name_a_file_is_refused(folder: Path, name: str) -> None:
    def leave_out(manifest: IndexManifest) -> IndexManifest:
        files = {other: digest for other, digest in manifest.files.items() if other != name}
        return manifest.model_copy(update={"files": files})

    rewrite(folder, leave_out)
    with pytest.raises(RetrievalError, match=f"{name} is not in INDEX.json"):
        open_index_folder(folder)


@pytest.mark.parametrize("rows", [3, 5])
def test_digests_of_other_products_are_refused(folder: Path, rows: int) -> None:
    """Whole files with right checksums, but not of one index."""
    np.save(folder / "digests.npy", np.zeros((rows, 2), np.uint64))

    def accept(manifest: IndexManifest) -> IndexManifest:
        digest = sha256_file(folder / "digests.npy")
        return manifest.model_copy(update={"files": {**manifest.files, "digests.npy": digest}})

    rewrite(folder, accept)
    with pytest.raises(
        RetrievalError, match=r"4 vectors for 4 product ids and [35] digests; build"
    ):
        open_index_folder(folder)


def test_an_index_of_an_older_form_is_refused(folder: Path) -> None:
    path = folder / "INDEX.json"
    path.write_text(path.read_text().replace('"format": 3', '"format": 2'))
    with pytest.raises(RetrievalError, match=r"INDEX\.json: .*; build the index again"):
        open_index_folder(folder)


def rewrite(folder: Path, change: Callable[[IndexManifest], IndexManifest]) -> None:
    """Change a manifest and give it its right checksum, as nobody but a person with time would."""
    path = folder / "INDEX.json"
    path.write_bytes(change(IndexManifest.from_bytes(path.read_bytes())).checked().to_bytes())


def test_another_encoder_is_refused_by_digest(folder: Path) -> None:
    with pytest.raises(
        RetrievalError, match="made by encoder eeeeeeeeeeee, this one is ffffffffff"
    ):
        open_index_folder(folder, expected_digest=OTHER)


def test_an_index_is_written_beside_the_old_one(folder: Path) -> None:
    before = contents(folder)
    assert [write(folder.parent).name, write(folder.parent).name] == [
        "1-cccccccccccc-2",
        "1-cccccccccccc-3",
    ]
    assert before == contents(folder)


@pytest.mark.parametrize(
    ("owner", "name"), [(np, "save"), (faiss, "write_index"), (LexicalIndex, "write")]
)
def test_a_killed_writer_leaves_no_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, killed)
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
