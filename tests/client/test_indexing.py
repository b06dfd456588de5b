"""Pull, verify, index, check, swap: whatever fails, the region keeps what it had."""

import hashlib
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from client.indexing import build_region_index, check_index, load_region_encoder, pull_release
from client.region import Region, open_region
from server.releases import generate_signing_key, publish_release, write_release
from shared.errors import ReleaseError, RetrievalError
from shared.release import MODEL_FILES, ReleaseBase, ReleaseFacts
from shared.retrieval.index import build_index, search_index
from shared.retrieval.manifest import open_current_index, open_index_folder, read_pointer

BASE, ENCODER = "b" * 64, "e" * 64
NOW = datetime(2030, 1, 1, tzinfo=UTC)


class HashEncoder:
    """Unit vectors that depend on nothing but the text."""

    def __init__(self, digest: str = ENCODER) -> None:
        self.digest = digest

    def encode_products(
        self, texts: Sequence[str | None], images: Sequence[Path | None]
    ) -> NDArray[np.float32]:
        assert len(texts) == len(images)
        vectors = np.array([_from_hash(text or "") for text in texts])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


class Headquarters:
    """A registry with its key, and a folder of adapter files to release."""

    def __init__(self, folder: Path) -> None:
        self.registry, self.key, self.files = folder / "releases", folder / "key.pem", folder / "f"
        self.public = generate_signing_key(self.key)
        for name in MODEL_FILES:
            (self.files / name).parent.mkdir(parents=True, exist_ok=True)
            (self.files / name).write_bytes(name.encode())

    def release(self, base: str = BASE, now: datetime = NOW) -> int:
        facts = ReleaseFacts(
            base=ReleaseBase(fingerprint=base, ids={"text": "tiny"}),
            dims={"shared": 16},
            encoder_digest=ENCODER,
            rounds=1,
            strategy="fedavg",
        )
        number = write_release(self.registry, files=self.files, facts=facts, signing_key=self.key)
        self.publish(number, now)
        return number

    def publish(self, number: int, now: datetime = NOW) -> None:
        publish_release(self.registry, number, signing_key=self.key, now=now)


@pytest.fixture
def headquarters(tmp_path: Path) -> Headquarters:
    return Headquarters(tmp_path)


@pytest.fixture
def folder(tmp_path: Path, headquarters: Headquarters) -> Path:
    folder = tmp_path / "north"
    folder.mkdir()
    (folder / "region.toml").write_text(
        'region = "north"\ndata.text_fields = ["title"]\n[base]\npath = "../base"\n'
        f'fingerprint = "{BASE}"\nrelease_key = "{headquarters.public}"\nreleases = "../releases"\n'
    )
    titles = ["red boots", "blue boots", "red boots", "a phone", "größe"]
    ids = [f"sku-{number}" for number in range(5)]
    pl.DataFrame({"product_id": ids, "title": titles}).write_parquet(folder / "catalog.parquet")
    return folder


@pytest.fixture
def region(folder: Path) -> Region:
    return open_region(folder)


def test_a_release_is_pulled_whole(folder: Path, headquarters: Headquarters) -> None:
    headquarters.release(now=datetime.now(UTC))
    pulled = pull_release(folder)
    assert pulled == folder / "state" / "releases" / "1"
    assert _contents(pulled) == _contents(headquarters.registry / "1")
    assert pull_release(folder) == pulled


def test_the_newest_statement_is_followed_also_back(
    folder: Path, headquarters: Headquarters
) -> None:
    headquarters.release()
    headquarters.release()
    assert pull_release(folder, now=NOW).name == "2"
    headquarters.publish(1)
    assert pull_release(folder, now=NOW).name == "1"
    assert {path.name for path in (folder / "state" / "releases").iterdir() if path.is_dir()} == {
        "1",
        "2",
    }


@pytest.mark.parametrize("name", [*MODEL_FILES, "README.md", "MANIFEST.json", "MANIFEST.sig"])
def test_a_damaged_release_changes_nothing_here(
    folder: Path, headquarters: Headquarters, name: str
) -> None:
    headquarters.release()
    before = _contents(pull_release(folder, now=NOW).parent)
    headquarters.release()
    damaged = headquarters.registry / "2" / name
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ReleaseError, match="2/"):
        pull_release(folder, now=NOW)
    assert _contents(folder / "state" / "releases") == before


def test_a_half_copied_release_is_pulled_again(folder: Path, headquarters: Headquarters) -> None:
    headquarters.release()
    pulled = pull_release(folder, now=NOW)
    (pulled / "fusion.safetensors").unlink()
    (pulled.parent / ".2.partial").mkdir()
    assert _contents(pull_release(folder, now=NOW)) == _contents(headquarters.registry / "1")
    assert not (pulled.parent / ".2.partial").exists()


def test_a_copy_that_goes_wrong_leaves_nothing(
    folder: Path, headquarters: Headquarters, monkeypatch: pytest.MonkeyPatch
) -> None:
    headquarters.release()

    def short_copy(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:-1])

    with monkeypatch.context() as patched:
        patched.setattr("client.indexing.shutil.copyfile", short_copy)
        with pytest.raises(ReleaseError, match="copy the release"):
            pull_release(folder, now=NOW)
    assert {path.name for path in (folder / "state" / "releases").iterdir()} == {".lock"}
    assert pull_release(folder, now=NOW).name == "1"


def test_an_old_statement_cannot_be_replayed(folder: Path, headquarters: Headquarters) -> None:
    headquarters.release()
    kept = _contents(headquarters.registry)
    headquarters.release()
    pull_release(folder, now=NOW)
    for name in ("current.json", "current.json.sig"):
        (headquarters.registry / name).write_bytes(kept[name])
    with pytest.raises(ReleaseError, match="sequence 1, but sequence 2 was seen before"):
        pull_release(folder, now=NOW)


def test_an_expired_a_foreign_and_an_absent_release_are_refused(
    folder: Path, headquarters: Headquarters
) -> None:
    with pytest.raises(ReleaseError, match=r"current\.json: not found"):
        pull_release(folder, now=NOW)
    headquarters.release()
    with pytest.raises(ReleaseError, match="expired"):
        pull_release(folder, now=NOW + timedelta(days=365))
    headquarters.release(base="a" * 64)
    with pytest.raises(ReleaseError, match='made for base aaaaaaaaaaaa, region "north" has bbbb'):
        pull_release(folder, now=NOW)
    config = folder / "region.toml"
    config.write_text(config.read_text().replace(headquarters.public, "0" * 64))
    with pytest.raises(ReleaseError, match="no signature"):
        pull_release(folder, now=NOW)


def test_an_index_is_built_stamped_and_in_use(region: Region) -> None:
    built = build_region_index(region, HashEncoder(), release=1)
    assert built == region.state / "indexes" / f"1-{region.catalog_digest[:12]}"
    opened = open_current_index(region.state, expected_digest=ENCODER)
    assert opened.folder == built
    assert opened.ids.tolist() == [f"sku-{number}" for number in range(5)]
    assert opened.manifest.catalog_digest == region.catalog_digest


def test_given_vectors_make_the_same_index(region: Region) -> None:
    encoder = HashEncoder()
    built = build_region_index(region, encoder, release=1)
    vectors = encoder.encode_products(region.texts, region.image_paths)
    again = build_region_index(region, encoder, release=1, vectors=vectors)
    assert (built / "index.faiss").read_bytes() == (again / "index.faiss").read_bytes()


def test_the_former_index_stays_until_the_next_but_one(region: Region) -> None:
    built = [build_region_index(region, HashEncoder(), release=n) for n in (1, 2, 2, 3)]
    assert [folder.exists() for folder in built] == [False, False, True, True]
    assert read_pointer(region.state).index == built[-1].name


def test_a_failing_check_leaves_the_former_index_in_use(
    region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_region_index(region, HashEncoder(), release=1)
    before = (region.state / "current").read_bytes()

    def shuffled(vectors: NDArray[np.float32]) -> object:
        return build_index(np.roll(vectors, 1, axis=0))

    with monkeypatch.context() as patched:
        patched.setattr("client.indexing.build_index", shuffled)
        with pytest.raises(RetrievalError, match="row 0 does not find itself"):
            build_region_index(region, HashEncoder("f" * 64), release=2)
    assert (region.state / "current").read_bytes() == before
    assert open_current_index(region.state, expected_digest=ENCODER).manifest.release == 1


def test_products_with_equal_vectors_pass_the_check(region: Region) -> None:
    vectors = np.tile(np.eye(1, 8, dtype=np.float32), (len(region.texts), 1))
    folder = build_region_index(region, HashEncoder(), release=1, vectors=vectors)
    check_index(open_index_folder(folder), vectors)


def test_products_that_differ_in_the_last_bits_pass_the_check(region: Region) -> None:
    """One text, computed in two batches: row 1 finds row 0, which scores as well."""
    vectors = np.tile(np.full((1, 4), 0.5, np.float32), (len(region.texts), 1))
    vectors[0] += np.float32(1e-6)
    folder = build_region_index(region, HashEncoder(), release=1, vectors=vectors)
    _, found = search_index(open_index_folder(folder).index, vectors, 1)
    assert set(found.ravel()) == {0}
    assert (vectors[0] != vectors[1]).all()


def test_an_encoder_that_gives_nan_changes_nothing(region: Region) -> None:
    vectors = np.full((len(region.texts), 8), np.nan, np.float32)
    with pytest.raises(RetrievalError, match="5 of 5 product vectors"):
        build_region_index(region, HashEncoder(), release=1, vectors=vectors)
    assert not (region.state / "current").exists()


@pytest.mark.parametrize(("digest", "sound"), [(ENCODER, True), ("f" * 64, False)])
def test_a_release_must_give_the_digest_it_names(
    folder: Path,
    region: Region,
    headquarters: Headquarters,
    monkeypatch: pytest.MonkeyPatch,
    digest: str,
    sound: bool,
) -> None:
    class Loaded:
        digest = "0" * 64

        def load_release(self, folder: Path) -> None:
            self.digest = digest

    instead = ModuleType("encoder")  # the real one imports torch, for seconds
    instead.load_encoder = lambda *_, **__: Loaded()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shared.encoders.encoder", instead)
    headquarters.release()
    pull_release(folder, now=NOW)
    assert load_region_encoder(folder, region.config, release=0).digest == "0" * 64
    if sound:
        assert load_region_encoder(folder, region.config, release=1).digest == ENCODER
    else:
        with pytest.raises(
            ReleaseError, match="gives encoder ffffffffffff, its manifest names eee"
        ):
            load_region_encoder(folder, region.config, release=1)


def _from_hash(text: str) -> NDArray[np.float64]:
    digest = hashlib.sha256(text.encode()).digest()
    return np.frombuffer(digest[:16], np.uint8) - 127.5


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
