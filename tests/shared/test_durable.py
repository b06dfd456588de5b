"""A kill at any instant leaves the old or the new; a record reads back as it was written."""

import os
from pathlib import Path

import pytest

from shared.durable import Record, canonical_json, locked, new_folder, replace_file, set_aside


class Pair(Record):
    name: str
    count: float


def test_a_record_reads_back_and_its_bytes_are_canonical() -> None:
    pair = Pair(name="größe", count=2)
    assert Pair.from_bytes(pair.to_bytes()) == pair
    assert pair.to_bytes() == '{\n  "count": 2.0,\n  "name": "größe"\n}\n'.encode()


@pytest.mark.parametrize(
    ("raw", "message"),
    [(b"{", "JSON"), (b'{"name": "a"}', "count: "), (b'{"name": "a", "count": 1, "x": 2}', "x: ")],
)
def test_a_record_names_its_first_wrong_key(raw: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pair.from_bytes(raw)


def test_json_cannot_say_nan() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"loss": float("nan")})


def test_replacing_a_file_leaves_the_old_one_if_the_rename_never_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_file(tmp_path / "current", b"old")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", _killed)
        with pytest.raises(KeyboardInterrupt):
            replace_file(tmp_path / "current", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("current", b"old")]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), locked(tmp_path), new_folder(tmp_path / "1") as folder:
        (folder / "half").write_text("written")
        raise KeyboardInterrupt
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}
    with locked(tmp_path), new_folder(tmp_path / "1") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "whole").write_text("written")
        assert not (tmp_path / "1").exists()
    assert (tmp_path / "1" / "sub" / "whole").read_text() == "written"


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / ".2.partial").mkdir()
    (tmp_path / ".2.partial" / "half").touch()
    (tmp_path / "1").mkdir()
    with locked(tmp_path):
        set_aside(tmp_path / "1")
    with locked(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {".lock"}


def _killed(*_: object) -> None:
    raise KeyboardInterrupt
