"""Releases are numbered, signed and immutable; nothing damaged or foreign is believed."""

import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server import releases
from server.releases import (
    generate_signing_key,
    model_card,
    public_key_hex,
    publish_release,
    write_release,
)
from shared.errors import ReleaseError
from shared.release import (
    MODEL_FILES,
    ReleaseBase,
    ReleaseFacts,
    read_current,
    read_release,
)

FILES = (*MODEL_FILES, "README.md", "MANIFEST.json", "MANIFEST.sig")
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def facts(**changes: object) -> ReleaseFacts:
    known = {
        "base": ReleaseBase(fingerprint="b" * 64, ids={"text": "minilm"}, revisions={"text": "r1"}),
        "dims": {"shared": 384},
        "encoder_digest": "e" * 64,
        "rounds": 8,
        "strategy": "fedavg",
        "quality": {"ndcg@10": 0.7},
    }
    return ReleaseFacts.model_validate({**known, **changes})


@pytest.fixture
def key(tmp_path: Path) -> Path:
    generate_signing_key(tmp_path / "key.pem")
    return tmp_path / "key.pem"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    for name in MODEL_FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 3)
    (folder / "text" / "README.md").write_text("peft writes this; it is left behind")
    return folder


@pytest.fixture
def release(tmp_path: Path, files: Path, key: Path) -> Path:
    number = write_release(tmp_path / "releases", files=files, facts=facts(), signing_key=key)
    return tmp_path / "releases" / str(number)


def test_what_was_written_is_read_back(release: Path, files: Path, key: Path) -> None:
    manifest = read_release(release, public_key_hex=public_key_hex(key), expected_number=1)
    assert (
        ReleaseFacts.model_validate(manifest.model_dump(include=set(ReleaseFacts.model_fields)))
        == facts()
    )
    assert {p.relative_to(release).as_posix() for p in release.rglob("*") if p.is_file()} == {
        *FILES
    }
    for name in MODEL_FILES:
        assert (release / name).read_bytes() == (files / name).read_bytes()
    assert (release / "README.md").read_text() == model_card(manifest)


def test_releases_are_numbered_and_stay_as_they_are(release: Path, files: Path, key: Path) -> None:
    before = {name: (release / name).read_bytes() for name in FILES}
    second = write_release(release.parent, files=files, facts=facts(parent=1), signing_key=key)
    third = write_release(release.parent, files=files, facts=facts(parent=1), signing_key=key)
    assert (second, third) == (2, 3)
    assert before == {name: (release / name).read_bytes() for name in FILES}


def test_no_path_of_this_machine_is_in_a_release(release: Path, tmp_path: Path) -> None:
    for name in FILES:
        assert str(tmp_path).encode() not in (release / name).read_bytes()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("position", [0, 0.5, -1])
@pytest.mark.parametrize("flip", [0x01, 0xFF])
def test_a_flipped_byte_is_found(
    release: Path, key: Path, name: str, position: float, flip: int
) -> None:
    raw = bytearray((release / name).read_bytes())
    raw[int(position * len(raw)) if position >= 0 else -1] ^= flip
    (release / name).write_bytes(raw)
    message = "MANIFEST.json: no signature" if "MANIFEST" in name else f"{name}: not the file"
    with pytest.raises(ReleaseError, match=f"{message}.*headquarters"):
        read_release(release, public_key_hex=public_key_hex(key))


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(release: Path, key: Path, name: str) -> None:
    (release / name).unlink()
    with pytest.raises(ReleaseError, match=f"{name}: (missing|not found)"):
        read_release(release, public_key_hex=public_key_hex(key))


@pytest.mark.parametrize("name", ["extra", "text/adapter_model.bin", ".hidden"])
def test_an_extra_file_is_named(release: Path, key: Path, name: str) -> None:
    (release / name).touch()
    with pytest.raises(ReleaseError, match=f"{name}: not part of the release"):
        read_release(release, public_key_hex=public_key_hex(key))


def test_a_link_is_refused_even_to_the_right_bytes(release: Path, key: Path, files: Path) -> None:
    (release / "fusion.safetensors").unlink()
    (release / "fusion.safetensors").symlink_to(files / "fusion.safetensors")
    with pytest.raises(ReleaseError, match="a link"):
        read_release(release, public_key_hex=public_key_hex(key))


def test_another_key_another_number_and_no_key_are_refused(
    release: Path, tmp_path: Path, key: Path
) -> None:
    stranger = generate_signing_key(tmp_path / "stranger.pem")
    with pytest.raises(ReleaseError, match=f"that of key {stranger[:12]}"):
        read_release(release, public_key_hex=stranger)
    with pytest.raises(ReleaseError, match="holds release 1, expected 2"):
        read_release(release, public_key_hex=public_key_hex(key), expected_number=2)
    with pytest.raises(ReleaseError, match="not an ed25519 public key"):
        read_release(release, public_key_hex="nonsense")


def test_a_half_written_release_is_refused(tmp_path: Path, files: Path, key: Path) -> None:
    with pytest.raises(ReleaseError, match=r"MANIFEST\.json: not found"):
        read_release(files, public_key_hex=public_key_hex(key))
    with pytest.raises(ReleaseError, match=r"MANIFEST\.json: not found"):
        read_release(tmp_path / "nowhere", public_key_hex=public_key_hex(key))


@pytest.mark.parametrize(
    "name", ["../key.pem", "/etc/passwd", "text/../../x", ".lock", "a//b", "MANIFEST.sig"]
)
def test_a_signed_manifest_still_names_no_file_outside(release: Path, key: Path, name: str) -> None:
    manifest = json.loads((release / "MANIFEST.json").read_bytes())
    manifest["files"][name] = "0" * 64
    sign_again(release, manifest, key)
    with pytest.raises(ReleaseError, match=r"files: .*not a file name a release may hold"):
        read_release(release, public_key_hex=public_key_hex(key))


def test_a_signed_statement_is_not_taken_for_a_manifest(release: Path, key: Path) -> None:
    publish_release(release.parent, 1, signing_key=key)
    shutil.copy(release.parent / "current.json", release / "MANIFEST.json")
    shutil.copy(release.parent / "current.json.sig", release / "MANIFEST.sig")
    with pytest.raises(ReleaseError, match=r"MANIFEST\.json: .*required"):
        read_release(release, public_key_hex=public_key_hex(key))


def sign_again(release: Path, manifest: dict[str, object], key: Path) -> None:
    raw = json.dumps(manifest).encode()
    (release / "MANIFEST.json").write_bytes(raw)
    (release / "MANIFEST.sig").write_text(releases._load_key(key).sign(raw).hex() + "\n")


@pytest.mark.parametrize("name", MODEL_FILES)
def test_a_release_without_all_its_files_is_not_written(
    tmp_path: Path, files: Path, key: Path, name: str
) -> None:
    (files / name).unlink()
    with pytest.raises(ReleaseError, match=f"{name}: not found"):
        write_release(tmp_path / "releases", files=files, facts=facts(), signing_key=key)
    assert [path.name for path in (tmp_path / "releases").iterdir()] == [".lock"]


def test_bad_facts_are_refused_before_anything_is_written(
    tmp_path: Path, files: Path, key: Path
) -> None:
    for bad, message in (
        (facts(parent=4), "no release 4"),
        (facts(quality={"loss": float("nan")}), "JSON"),
    ):
        with pytest.raises(ReleaseError, match=message):
            write_release(tmp_path / "releases", files=files, facts=bad, signing_key=key)
    assert [path.name for path in (tmp_path / "releases").iterdir()] == [".lock"]


def test_a_signing_key_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "new" / "key.pem"
    public = generate_signing_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert public == public_key_hex(path)
    with pytest.raises(ReleaseError, match="there already"):
        generate_signing_key(path)
    assert public == public_key_hex(path)


def test_what_is_no_signing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="no signing key there"):
        public_key_hex(tmp_path / "nowhere")
    (tmp_path / "text").write_text("not a key")
    with pytest.raises(ReleaseError, match="not an unencrypted ed25519 key"):
        public_key_hex(tmp_path / "text")


def test_current_counts_up_also_when_it_goes_back(release: Path, files: Path, key: Path) -> None:
    registry, public = release.parent, public_key_hex(key)
    write_release(registry, files=files, facts=facts(parent=1), signing_key=key)
    for sequence, number in enumerate((1, 2, 1), start=1):
        published = publish_release(registry, number, signing_key=key)
        assert read_current(registry, public_key_hex=public) == published
        assert (published.release, published.sequence) == (number, sequence)


def test_current_expires_and_can_be_published_again(release: Path, key: Path) -> None:
    registry, public = release.parent, public_key_hex(key)
    publish_release(registry, 1, signing_key=key, valid_for=timedelta(days=1), now=NOW)
    assert read_current(registry, public_key_hex=public, now=NOW).sequence == 1
    with pytest.raises(ReleaseError, match="expired on 2030-01-02"):
        read_current(registry, public_key_hex=public, now=NOW + timedelta(days=2))
    publish_release(registry, 1, signing_key=key, now=NOW + timedelta(days=2))
    assert read_current(registry, public_key_hex=public, now=NOW + timedelta(days=2)).sequence == 2


@pytest.mark.parametrize("name", ["current.json", "current.json.sig"])
@pytest.mark.parametrize("position", [0, 0.5, -1])
def test_a_flipped_byte_in_current_is_found(
    release: Path, key: Path, name: str, position: float
) -> None:
    publish_release(release.parent, 1, signing_key=key)
    raw = bytearray((release.parent / name).read_bytes())
    raw[int(position * len(raw)) if position >= 0 else -1] ^= 1
    (release.parent / name).write_bytes(raw)
    with pytest.raises(ReleaseError, match="no signature"):
        read_current(release.parent, public_key_hex=public_key_hex(key))


def test_a_kill_while_publishing_leaves_the_former_statement_valid(
    release: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, public = release.parent, public_key_hex(key)
    former = publish_release(registry, 1, signing_key=key)
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if target.name == "current.json":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            publish_release(registry, 1, signing_key=key)
    assert read_current(registry, public_key_hex=public) == former
    assert publish_release(registry, 1, signing_key=key).sequence == former.sequence + 1
    assert read_current(registry, public_key_hex=public).sequence == former.sequence + 1


def test_only_a_sound_release_is_published(release: Path, key: Path) -> None:
    (release / "README.md").write_text("changed")
    with pytest.raises(ReleaseError, match="not the file that was signed"):
        publish_release(release.parent, 1, signing_key=key)
    with pytest.raises(ReleaseError, match="not found"):
        publish_release(release.parent, 2, signing_key=key)
    assert not (release.parent / "current.json").exists()


def test_the_card_says_what_the_release_is(release: Path, key: Path) -> None:
    card = model_card(read_release(release, public_key_hex=public_key_hex(key)))
    for words in (
        "# Release 1",
        "b" * 64,
        "e" * 64,
        "8 rounds, fedavg",
        "`minilm`, revision `r1`",
        "ndcg@10: 0.7",
    ):
        assert words in card


# -- rotation of the signing key -------------------------------------------------------------------


@pytest.fixture
def new_key(tmp_path: Path) -> Path:
    generate_signing_key(tmp_path / "new.pem")
    return tmp_path / "new.pem"


def test_during_a_rotation_either_key_is_believed(
    release: Path, files: Path, key: Path, new_key: Path
) -> None:
    registry = release.parent
    publish_release(registry, 1, signing_key=key, now=NOW)
    number = write_release(
        registry, files=files, facts=facts(), signing_key=new_key, former_key=key
    )
    current = publish_release(registry, number, signing_key=new_key, former_key=key, now=NOW)
    assert (current.release, current.sequence) == (2, 2)
    for either in (key, new_key):
        public = public_key_hex(either)
        assert read_release(registry / "2", public_key_hex=public).number == 2
        assert read_current(registry, public_key_hex=public, now=NOW) == current


def test_an_older_release_is_signed_anew_when_it_is_published(
    release: Path, key: Path, new_key: Path
) -> None:
    with pytest.raises(ReleaseError, match="no signature"):
        publish_release(release.parent, 1, signing_key=new_key)
    publish_release(release.parent, 1, signing_key=new_key, former_key=key)
    assert read_release(release, public_key_hex=public_key_hex(new_key)).number == 1


def test_a_rotation_is_over_when_the_former_key_is_gone(
    release: Path, key: Path, new_key: Path
) -> None:
    publish_release(release.parent, 1, signing_key=new_key, former_key=key, now=NOW)
    key.unlink()
    publish_release(release.parent, 1, signing_key=new_key, former_key=key, now=NOW)
    assert (
        read_current(release.parent, public_key_hex=public_key_hex(new_key), now=NOW).sequence == 2
    )


def test_a_damaged_release_is_not_signed_anew(release: Path, key: Path, new_key: Path) -> None:
    (release / "fusion.safetensors").write_bytes(b"damaged")
    before = (release / "MANIFEST.sig").read_bytes()
    with pytest.raises(ReleaseError):
        publish_release(release.parent, 1, signing_key=new_key, former_key=key)
    assert (release / "MANIFEST.sig").read_bytes() == before
