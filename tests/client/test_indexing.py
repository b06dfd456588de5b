"""Pull, verify, index, check, swap: whatever fails, the region keeps what it had."""

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from numpy.typing import NDArray
from small_registry import (
    ENCODER,
    NOW,
    HashEncoder,
    Headquarters,
    contents,
    write_region,
)

from client.decisions import read_state
from client.indexing import (
    MAX_MANIFEST_BYTES,
    build_region_index,
    check_index,
    load_region_encoder,
    pull_release,
)
from client.region import Region, open_region
from client.sources import FolderSource
from shared.durable import canonical_json
from shared.errors import ConfigError, ReleaseError, RetrievalError
from shared.release import MODEL_FILES
from shared.retrieval.hybrid import Tuned
from shared.retrieval.index import build_index, search_index
from shared.retrieval.lexical import LexicalIndex
from shared.retrieval.manifest import (
    LEXICAL,
    open_current_index,
    open_index_folder,
    read_pointer,
)
from shared.retrieval.plan import plan_factory
from shared.retrieval.vectors import VectorIndex


@pytest.fixture
def headquarters(tmp_path: Path) -> Headquarters:
    return Headquarters(tmp_path)


@pytest.fixture
def folder(tmp_path: Path, headquarters: Headquarters) -> Path:
    return write_region(tmp_path / "north", headquarters)


@pytest.fixture
def region(folder: Path) -> Region:
    return open_region(folder)


def test_a_release_is_pulled_whole(folder: Path, headquarters: Headquarters) -> None:
    headquarters.release(now=datetime.now(UTC))
    pulled = pull_release(folder)
    assert pulled == folder / "state" / "releases" / "1"
    assert contents(pulled) == contents(headquarters.registry / "1")
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
    before = contents(pull_release(folder, now=NOW).parent)
    headquarters.release()
    damaged = headquarters.registry / "2" / name
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ReleaseError, match="2/"):
        pull_release(folder, now=NOW)
    assert contents(folder / "state" / "releases") == before


def test_a_half_copied_release_is_pulled_again(folder: Path, headquarters: Headquarters) -> None:
    headquarters.release()
    pulled = pull_release(folder, now=NOW)
    (pulled / "fusion.safetensors").unlink()
    (pulled.parent / ".2.partial").mkdir()
    assert contents(pull_release(folder, now=NOW)) == contents(headquarters.registry / "1")
    assert not (pulled.parent / ".2.partial").exists()


def test_a_copy_that_goes_wrong_leaves_nothing(
    folder: Path, headquarters: Headquarters, monkeypatch: pytest.MonkeyPatch
) -> None:
    headquarters.release()
    fetch = FolderSource.fetch

    def short_copy(self: FolderSource, name: str, max_bytes: int, target: Path) -> str:
        digest = fetch(self, name, max_bytes, target)
        if name.endswith("README.md"):
            target.write_bytes(target.read_bytes()[:-1])
        return digest

    with monkeypatch.context() as patched:
        patched.setattr(FolderSource, "fetch", short_copy)
        with pytest.raises(ReleaseError, match=r"README\.md: not the file that was signed"):
            pull_release(folder, now=NOW)
    assert {path.name for path in (folder / "state" / "releases").iterdir()} == {".lock"}
    assert pull_release(folder, now=NOW).name == "1"


def test_nothing_is_read_of_a_release_whose_manifest_is_not_signed(
    folder: Path, headquarters: Headquarters, monkeypatch: pytest.MonkeyPatch
) -> None:
    headquarters.release()
    manifest, fetched = headquarters.registry / "1" / "MANIFEST.json", []
    manifest.write_bytes(manifest.read_bytes().replace(b"fedavg", b"fedavh"))
    fetch = FolderSource.fetch

    def noted(self: FolderSource, name: str, max_bytes: int, target: Path) -> str:
        fetched.append(name)
        return fetch(self, name, max_bytes, target)

    monkeypatch.setattr(FolderSource, "fetch", noted)
    expected = rf"{headquarters.registry.name}/1/MANIFEST\.json: no signature in MANIFEST\.sig"
    with pytest.raises(ReleaseError, match=expected):
        pull_release(folder, now=NOW)
    assert fetched == ["current.json", "current.json.sig", "1/MANIFEST.json", "1/MANIFEST.sig"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../../../outside.json", "not a file name a release may hold"),
        ("/tmp/outside.json", "not a file name a release may hold"),
        ("text/.hidden.json", "not a file name a release may hold"),
        ("text/adapter_model.bin", "not one of .json, .safetensors, .md"),
        ("setup.py", "not one of"),
        ("README.md/more.md", "lies in another file"),
    ],
)
def test_signed_names_must_stay_inside_and_be_of_known_kinds(
    folder: Path, headquarters: Headquarters, name: str, message: str
) -> None:
    headquarters.release()
    _sign_again(headquarters, lambda manifest: manifest["files"].update({name: "0" * 64}))
    before = contents(folder.parent)
    with pytest.raises(ReleaseError, match=message):
        pull_release(folder, now=NOW)
    after = {name for name in contents(folder.parent) if not name.startswith("north/state/")}
    assert after == set(before)


def test_a_manifest_of_another_number_is_refused(folder: Path, headquarters: Headquarters) -> None:
    headquarters.release()
    _sign_again(headquarters, lambda manifest: manifest.update(number=2))
    with pytest.raises(ReleaseError, match="is of release 2, expected 1"):
        pull_release(folder, now=NOW)


def test_a_release_may_not_be_longer_than_allowed(
    tmp_path: Path, headquarters: Headquarters
) -> None:
    headquarters.release()
    sizes = [len(raw) for name, raw in contents(headquarters.registry / "1").items()]
    manifest = len((headquarters.registry / "1" / "MANIFEST.json").read_bytes())
    signature = len((headquarters.registry / "1" / "MANIFEST.sig").read_bytes())
    total = sum(sizes) - manifest - signature
    for limit, allowed in ((total - 1, False), (total, True)):
        extra = f"[publication]\nmax_release_bytes = {limit}\n"
        folder = write_region(tmp_path / f"limit-{allowed}", headquarters, extra)
        if allowed:
            assert pull_release(folder, now=NOW).name == "1"
        else:
            with pytest.raises(ReleaseError, match="bytes left for it"):
                pull_release(folder, now=NOW)
            assert not (folder / "state" / "releases" / "1").exists()


def test_an_endless_manifest_is_given_up(folder: Path, headquarters: Headquarters) -> None:
    headquarters.release()
    with (headquarters.registry / "1" / "MANIFEST.json").open("ab") as handle:
        handle.truncate(MAX_MANIFEST_BYTES + 1)
    with pytest.raises(ReleaseError, match=f"longer than the {MAX_MANIFEST_BYTES} bytes"):
        pull_release(folder, now=NOW)


def test_a_statement_is_remembered_before_its_release_is_here(
    folder: Path, headquarters: Headquarters
) -> None:
    headquarters.release()
    kept = contents(headquarters.registry)
    headquarters.release()
    (headquarters.registry / "2" / "README.md").unlink()
    with pytest.raises(ReleaseError, match=r"README\.md: not found"):
        pull_release(folder, now=NOW)
    seen = read_state(folder / "state").seen
    assert seen is not None and (seen.release, seen.sequence) == (2, 2)
    _restore(headquarters, kept)
    with pytest.raises(ReleaseError, match="sequence 1, but sequence 2 was seen before"):
        pull_release(folder, now=NOW)


def test_a_forged_statement_is_not_remembered(folder: Path, headquarters: Headquarters) -> None:
    headquarters.release()
    current = headquarters.registry / "current.json"
    current.write_bytes(current.read_bytes().replace(b'"sequence": 1', b'"sequence": 9'))
    with pytest.raises(ReleaseError, match=r"no signature in current\.json\.sig"):
        pull_release(folder, now=NOW)
    assert read_state(folder / "state").seen is None


def test_two_statements_of_one_sequence_are_a_contradiction(
    folder: Path, headquarters: Headquarters
) -> None:
    headquarters.release()
    headquarters.release(publish=False)
    pull_release(folder, now=NOW)
    for name in ("current.json", "current.json.sig"):
        (headquarters.registry / name).unlink()
    headquarters.publish(2)
    with pytest.raises(ReleaseError, match="release 2 with sequence 1, but sequence 1 was seen"):
        pull_release(folder, now=NOW)


def test_an_address_must_be_https_with_an_authority(
    tmp_path: Path, headquarters: Headquarters
) -> None:
    folder = write_region(tmp_path / "north", headquarters)
    config = folder / "region.toml"
    address = config.read_text().replace("../releases", "https://localhost:1/releases")
    config.write_text(address)
    with pytest.raises(ConfigError, match=r"there is no \[headquarters\]"):
        pull_release(folder)
    connected = f'{address}[headquarters]\naddress = "localhost:1"\n'
    config.write_text(connected)
    with pytest.raises(ConfigError, match=r"ca\.crt: No such file or directory; enrol"):
        pull_release(folder)
    config.write_text(connected.replace("https:", "http:"))
    with pytest.raises(ConfigError, match="not of the form https://"):
        pull_release(folder)


def test_an_old_statement_cannot_be_replayed(folder: Path, headquarters: Headquarters) -> None:
    headquarters.release()
    kept = contents(headquarters.registry)
    headquarters.release()
    pull_release(folder, now=NOW)
    _restore(headquarters, kept)
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


def test_an_index_holds_digests_words_and_the_weight(region: Region, tmp_path: Path) -> None:
    tuned = Tuned(0.25, {0.25: 0.5}, num_queries=30)
    built = build_region_index(region, HashEncoder(), release=1, tuned=tuned)
    opened = open_index_folder(built)
    np.testing.assert_array_equal(opened.digests, region.digests)
    assert (opened.manifest.dense_weight, opened.manifest.dense_weights) == (0.25, {"0.25": 0.5})
    words = LexicalIndex.open(built / LEXICAL, scratch=tmp_path / "scratch")
    assert words.search("red boot", 5)[0].tolist() == [0, 2, 1]
    assert words.search("größe", 5)[0].tolist() == [4]


def test_an_index_is_planned_measured_and_of_the_operators_kind(
    tmp_path: Path, headquarters: Headquarters
) -> None:
    for name, extra, factory in (
        ("planned", "", plan_factory(5, 16)),
        ("chosen", '[serve]\nindex_factory = "HNSW4"\n', "HNSW4"),
    ):
        region = open_region(write_region(tmp_path / name, headquarters, extra))
        opened = open_index_folder(build_region_index(region, HashEncoder(), release=1))
        assert opened.manifest.factory == factory
        assert opened.manifest.recall.unfiltered == 1.0
        assert opened.manifest.recall.reaches_target
        assert ("HNSW" in type(opened.index).__name__) == (name == "chosen")


@pytest.mark.parametrize("factory", ["IVF1,SQ8", "HNSW4_SQ8", "SQ8"])
def test_an_index_of_codes_has_whole_vectors_beside_it(
    tmp_path: Path, headquarters: Headquarters, factory: str
) -> None:
    extra = f'[serve]\nindex_factory = "{factory}"\n'
    region = open_region(write_region(tmp_path / "coded", headquarters, extra))
    vectors = HashEncoder().encode_products(region.texts, region.image_paths)
    opened = open_index_folder(build_region_index(region, HashEncoder(), release=1))
    codes = VectorIndex.over(opened.index).vectors_of(np.arange(5))
    whole = opened.vectors().vectors_of(np.arange(5))
    np.testing.assert_allclose(whole, vectors, atol=5e-4)
    assert np.abs(codes - vectors).max() > 2 * np.abs(whole - vectors).max()
    check_index(opened, vectors)
    with pytest.raises(RetrievalError, match="row 0 does not find itself"):
        check_index(opened, np.roll(vectors, 1, axis=0))


def test_an_unusable_factory_leaves_the_former_index_in_use(
    tmp_path: Path, headquarters: Headquarters
) -> None:
    region = open_region(write_region(tmp_path / "north-2", headquarters))
    build_region_index(region, HashEncoder(), release=1)
    config = tmp_path / "north-2" / "region.toml"
    config.write_text(config.read_text() + '[serve]\nindex_factory = "PQ3"\n')
    with pytest.raises(RetrievalError, match="index factory 'PQ3' cannot index 5 vectors"):
        build_region_index(open_region(tmp_path / "north-2"), HashEncoder("f" * 64), release=2)
    assert read_pointer(region.state).release == 1


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

    def shuffled(vectors: NDArray[np.float32], **_: object) -> object:
        return build_index(np.roll(vectors, 1, axis=0))

    with monkeypatch.context() as patched:
        patched.setattr("client.indexing.build_planned", shuffled)
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


def _sign_again(headquarters: Headquarters, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest of release 1 and sign it with headquarters' own key."""
    folder = headquarters.registry / "1"
    manifest = json.loads((folder / "MANIFEST.json").read_bytes())
    change(manifest)
    raw = canonical_json(manifest)
    key = load_pem_private_key(headquarters.key.read_bytes(), password=None)
    assert isinstance(key, Ed25519PrivateKey)
    (folder / "MANIFEST.json").write_bytes(raw)
    (folder / "MANIFEST.sig").write_text(key.sign(raw).hex() + "\n")


def _restore(headquarters: Headquarters, kept: dict[str, bytes]) -> None:
    for name in ("current.json", "current.json.sig"):
        (headquarters.registry / name).write_bytes(kept[name])
