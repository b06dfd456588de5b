"""A headquarters folder is made whole or not at all, and opens without its signing key."""

import os
import shutil
from pathlib import Path

import pytest
from cryptography import x509

from server import headquarters
from server.headquarters import (
    DEFAULT_SUPERLINK_PORT,
    Headquarters,
    init_headquarters,
    open_headquarters,
    rotate_signing_key,
)
from server.releases import generate_signing_key, public_key_hex
from shared.encoders.base import read_base
from shared.errors import BaseError, ConfigError, FedshelfError, ReleaseError


@pytest.fixture
def opened(tmp_path: Path, tiny_base: Path) -> Headquarters:
    return init(tmp_path / "hq", base=tiny_base)


def init(folder: Path, **changes: object) -> Headquarters:
    known: dict[str, object] = {"name": "Shelf One", "address": "hq.example:8443"}
    return init_headquarters(folder, **{**known, **changes})  # type: ignore[arg-type]


def test_what_was_made_opens_again(opened: Headquarters, tiny_base: Path) -> None:
    assert open_headquarters(opened.folder) == opened
    assert (opened.config.name, opened.config.host, opened.config.port) == (
        "Shelf One",
        "hq.example",
        8443,
    )
    assert opened.config.superlink_port == DEFAULT_SUPERLINK_PORT
    assert opened.fingerprint == read_base(tiny_base).fingerprint
    assert opened.release_key == public_key_hex(opened.signing_key)


def test_the_certificate_is_for_the_public_host(opened: Headquarters) -> None:
    certificate = x509.load_pem_x509_certificate(opened.server_certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["hq.example", "localhost"]


def test_every_place_is_there(opened: Headquarters) -> None:
    for file in (opened.ca_certificate, opened.server_key, opened.signing_key, opened.regions):
        assert file.is_file()
    for empty in (opened.releases, opened.trainings, opened.flower, opened.nginx, opened.logs):
        assert list(empty.iterdir()) == []
    assert opened.former_signing_key.name == "signing.former.key"
    assert opened.audit == opened.folder / "audit.jsonl"
    assert not list(opened.folder.parent.glob(".*"))


@pytest.mark.parametrize("mask", [0o077, 0o000])
def test_secrets_are_private_and_what_is_served_is_not(
    tmp_path: Path, tiny_base: Path, mask: int
) -> None:
    former = os.umask(mask)
    try:
        opened = init(tmp_path / "hq", base=tiny_base)
    finally:
        os.umask(former)
    secret = {"tls/ca.key", "tls/server.key", "signing.key", "regions.json"}
    modes = {name: (opened.folder / name).stat().st_mode & 0o777 for name in secret}
    assert modes == dict.fromkeys(secret, 0o600)
    served = [opened.folder, opened.public, *opened.public.rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in served if path.is_dir()} == {0o755}
    assert {path.stat().st_mode & 0o777 for path in served if path.is_file()} == {0o644}


def test_the_base_is_served_and_takes_no_second_copy(opened: Headquarters, tiny_base: Path) -> None:
    served = opened.public / "base"
    assert read_base(served) == read_base(opened.base) == read_base(tiny_base)
    assert (served / "BASE.json").samefile(opened.base / "BASE.json")
    assert not (served / "BASE.json").samefile(tiny_base / "BASE.json")


def test_a_preset_that_needs_no_data_is_made(tmp_path: Path, tiny_base: Path) -> None:
    opened = init(tmp_path / "hq", preset="tiny")
    assert opened.fingerprint == read_base(tiny_base).fingerprint


def test_an_empty_folder_is_taken_and_a_used_one_left_alone(
    tmp_path: Path, tiny_base: Path
) -> None:
    (tmp_path / "empty").mkdir()
    assert init(tmp_path / "empty", base=tiny_base).folder == tmp_path / "empty"
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "letter").write_text("dear")
    (tmp_path / "file").touch()
    for used in ("used", "file", "empty"):
        with pytest.raises(ConfigError, match=f"{used}: in use already"):
            init(tmp_path / used, base=tiny_base)
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["letter"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"address": "hq.example"}, r"server\.toml: address: "),
        ({"address": "hq.example:70000"}, "port must be between 1 and 65535"),
        ({"address": f"hq.example:{DEFAULT_SUPERLINK_PORT}"}, "the port of address"),
        ({"name": "a\nb"}, r"server\.toml: name: "),
        ({"preset": "tiny"}, "either --base FOLDER or --preset NAME"),
        ({"base": None}, "either --base FOLDER or --preset NAME"),
        ({"base": None, "preset": "starter"}, "pass --base RUN/base"),
        ({"base": None, "preset": "huge"}, "unknown; choose one of"),
        ({"base": Path("nowhere")}, "not a base artefact"),
        ({"address": "a..b:8443"}, r"server\.toml: address: "),
        ({"address": "-hq.example:8443"}, r"host '-hq\.example': neither"),
        ({"signing_key": Path("nowhere")}, "no signing key there"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_left(
    tmp_path: Path, tiny_base: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(FedshelfError, match=message) as caught:
        init(tmp_path / "hq", **{"base": tiny_base, **changes})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_base_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "base")
    (tmp_path / "base" / "image" / "config.json").write_text("{}")
    with pytest.raises(BaseError, match=r"image/config\.json: changed"):
        init(tmp_path / "hq", base=tmp_path / "base")


def test_a_base_that_changes_while_it_is_copied_is_refused(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(source: str, target: str) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:-1])

    monkeypatch.setattr(shutil, "copyfile", torn)
    with pytest.raises(BaseError, match="copy the base again"):
        init(tmp_path / "hq", base=tiny_base)
    assert list(tmp_path.iterdir()) == []


def test_a_cut_off_init_leaves_nothing_that_looks_whole(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(source: Path, made: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(headquarters, "_copy_base", cut_off)
        with pytest.raises(KeyboardInterrupt):
            init(tmp_path / "hq", base=tiny_base)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".hq.partial").mkdir()  # as a kill would leave it
    with pytest.raises(ConfigError, match=r"\.hq\.partial: an init is running, or was cut off"):
        init(tmp_path / "hq", base=tiny_base)


def test_a_place_that_cannot_hold_a_folder_is_named(tmp_path: Path, tiny_base: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="hq: cannot be made"):
        init(tmp_path / "file" / "hq", base=tiny_base)


def test_the_signing_key_may_lie_elsewhere(tmp_path: Path, tiny_base: Path) -> None:
    public = generate_signing_key(tmp_path / "stick" / "signing.key")
    opened = init(tmp_path / "hq", base=tiny_base, signing_key=tmp_path / "stick" / "signing.key")
    assert opened.release_key == public
    assert not opened.signing_key.exists()


def test_it_opens_without_the_signing_key(opened: Headquarters) -> None:
    opened.signing_key.unlink()
    assert open_headquarters(opened.folder) == opened


@pytest.mark.parametrize(
    "name", ["tls/ca.crt", "signing.pub", "base/BASE.json", "regions.json", "server.toml"]
)
def test_a_missing_file_is_named(opened: Headquarters, name: str) -> None:
    (opened.folder / name).unlink()
    message = "not a headquarters folder" if name == "server.toml" else f"{name}: missing"
    with pytest.raises(ConfigError, match=message):
        open_headquarters(opened.folder)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("server.toml", "name = ", "not valid TOML"),
        ("server.toml", 'name = "a"\naddress = "b:1"\nport = 2', r"server\.toml: port: "),
        ("server.toml", 'name = "a"\naddress = "b:1"\nsuperlink_port = 0', "superlink_port: "),
        ("signing.pub", "a" * 63, "not an ed25519 public key"),
    ],
)
def test_a_wrong_file_is_named(opened: Headquarters, name: str, text: str, message: str) -> None:
    (opened.folder / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        open_headquarters(opened.folder)


def test_a_rotation_keeps_the_former_key_until_it_is_removed(opened: Headquarters) -> None:
    public = rotate_signing_key(opened.folder)
    assert public != opened.release_key
    assert public_key_hex(opened.former_signing_key) == opened.release_key
    assert open_headquarters(opened.folder).release_key == public_key_hex(opened.signing_key)
    assert opened.signing_key.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match=r"signing\.former\.key: there already"):
        rotate_signing_key(opened.folder)
    opened.former_signing_key.unlink()
    assert rotate_signing_key(opened.folder) != public


@pytest.mark.parametrize("cut_at", ["signing.key", "signing.pub"])
def test_a_rotation_that_was_cut_off_is_completed(
    opened: Headquarters, monkeypatch: pytest.MonkeyPatch, cut_at: str
) -> None:
    replace = os.replace

    def cut(source: Path, target: Path) -> None:
        if target.name == cut_at:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", cut)
        with pytest.raises(KeyboardInterrupt):
            rotate_signing_key(opened.folder)
    public = rotate_signing_key(opened.folder)
    assert public == public_key_hex(opened.signing_key) != opened.release_key
    assert public_key_hex(opened.former_signing_key) == opened.release_key
    assert open_headquarters(opened.folder).release_key == public


def test_a_rotation_needs_the_key(opened: Headquarters) -> None:
    opened.signing_key.unlink()
    with pytest.raises(ReleaseError, match="no signing key there"):
        rotate_signing_key(opened.folder)
    assert open_headquarters(opened.folder) == opened
