"""The audit log: whoever touches it is told on, whoever is killed writing it is forgiven."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shared.audit
from shared.audit import EMPTY, AuditHead, AuditLog, read_audit, verify_audit
from shared.errors import AuditError

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
json_values = st.recursive(
    scalars.filter(lambda value: value not in (float("inf"), float("-inf"))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "audit.jsonl"


def head_of(path: Path) -> Path:
    return path.with_name("audit.head")


def filled(path: Path, entries: int = 6) -> list[bytes]:
    """A log of some entries; its lines with their ends."""
    log = AuditLog(path)
    for number in range(entries):
        log.append("update.accepted", region=f"r{number}", digest=f"{number:064x}")
    return path.read_bytes().splitlines(keepends=True)


def killed(*_: object) -> None:
    raise KeyboardInterrupt


# -- form ------------------------------------------------------------------------------------------


def test_what_is_appended_is_read_back(path: Path) -> None:
    log = AuditLog(path)
    log.append("node.joined", region="north", certificate="ab12")
    log.append("round.done", cohort=["north", "süd"], loss=0.1, round=3, release=None, held=True)
    first, second = read_audit(path)
    assert (first.seq, first.event) == (1, "node.joined")
    assert first.facts == {"region": "north", "certificate": "ab12"}
    assert second.facts == {
        "cohort": ["north", "süd"], "loss": 0.1, "round": 3, "release": None, "held": True,
    }  # fmt: skip
    assert verify_audit(path) == 2


def test_the_chain_can_be_checked_without_our_code(path: Path) -> None:
    prev = "0" * 64
    for number, line in enumerate(filled(path), start=1):
        entry = json.loads(line)
        claimed = entry.pop("hash")
        canonical = json.dumps(
            entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()
        assert (entry["seq"], entry["prev"]) == (number, prev)
        assert claimed == sha256(canonical).hexdigest()
        prev = claimed
    assert json.loads(head_of(path).read_text()) == {"seq": 6, "hash": prev}


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=4))
def test_any_json_fact_reads_back(
    tmp_path_factory: pytest.TempPathFactory, facts: dict[str, object]
) -> None:
    path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    AuditLog(path).append("facts.kept", given=facts)  # type: ignore[arg-type]
    [entry] = read_audit(path)
    assert entry.facts == {"given": facts}


@pytest.mark.parametrize("event", ["", "Joined", "1st", "node joined", "node\n", ".x", "größe"])
def test_an_event_has_a_plain_name(path: Path, event: str) -> None:
    with pytest.raises(ValueError, match="event: "):
        AuditLog(path).append(event)
    assert verify_audit(path) == 0


@pytest.mark.parametrize("fact", [float("nan"), float("inf"), {1, 2}, b"bytes", {2: 0, 10: 0}])
def test_a_fact_is_json(path: Path, fact: object) -> None:
    filled(path, 1)
    with pytest.raises((ValueError, TypeError)):
        AuditLog(path).append("release.made", fact=fact)  # type: ignore[arg-type]
    assert verify_audit(path) == 1


# -- tampering -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(1, 7))
def test_a_changed_line_is_named(path: Path, number: int) -> None:
    lines = filled(path)
    lines[number - 1] = lines[number - 1].replace(b'"r', b'"q')
    path.write_bytes(b"".join(lines))
    with pytest.raises(AuditError, match=rf"audit\.jsonl: line {number} was changed"):
        verify_audit(path)


@given(st.data())
def test_no_byte_can_change(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    filled(path, 2)
    raw = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != raw[place]))
    path.write_bytes(raw)
    with pytest.raises(AuditError, match=r"audit\.jsonl: line \d"):
        verify_audit(path)


@pytest.mark.parametrize("rewritten", [b"{}", b"null", b"", b"\xff", b'{"seq": 3}', b"[" * 5000])
def test_a_line_that_is_no_entry_is_named(path: Path, rewritten: bytes) -> None:
    lines = filled(path)
    path.write_bytes(b"".join([*lines[:2], rewritten + b"\n", *lines[3:]]))
    with pytest.raises(AuditError, match=r"line 3 was changed"):
        verify_audit(path)


def test_the_same_entry_in_another_spelling_is_a_change(path: Path) -> None:
    lines = filled(path)
    lines[1] = json.dumps(json.loads(lines[1]), sort_keys=True).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(AuditError, match=r"line 2 was changed"):
        verify_audit(path)


@pytest.mark.parametrize("number", range(1, 6))
def test_a_removed_line_is_named(path: Path, number: int) -> None:
    lines = filled(path)
    del lines[number - 1]
    path.write_bytes(b"".join(lines))
    with pytest.raises(
        AuditError, match=rf"line {number} holds entry {number + 1}, which does not"
    ):
        verify_audit(path)


@pytest.mark.parametrize("kept", range(5))
def test_lines_removed_from_the_end_are_named(path: Path, kept: int) -> None:
    path.write_bytes(b"".join(filled(path)[:kept]))
    with pytest.raises(AuditError, match=rf"line {kept + 1} is missing: audit\.head names entry 6"):
        verify_audit(path)


def test_an_inserted_line_is_named(path: Path) -> None:
    lines = filled(path)
    path.write_bytes(b"".join([*lines[:3], lines[1], *lines[3:]]))
    with pytest.raises(AuditError, match=r"line 4 holds entry 2, which does not follow entry 3"):
        verify_audit(path)


def test_moved_lines_are_named(path: Path) -> None:
    lines = filled(path)
    path.write_bytes(b"".join([*lines[:3], lines[4], lines[3], *lines[5:]]))
    with pytest.raises(AuditError, match=r"line 4 holds entry 5, which does not follow entry 3"):
        verify_audit(path)


def test_a_line_of_another_log_is_named(path: Path, tmp_path: Path) -> None:
    lines, others = filled(path), filled(tmp_path / "other" / "audit.jsonl")
    path.write_bytes(b"".join([*lines[:3], others[3], *lines[4:]]))
    with pytest.raises(AuditError, match=r"line 4 holds entry 4, which does not follow entry 3"):
        verify_audit(path)


def test_a_log_written_anew_is_not_the_one_of_the_old_head(path: Path, tmp_path: Path) -> None:
    filled(path)
    filled(tmp_path / "other" / "audit.jsonl")
    path.write_bytes((tmp_path / "other" / "audit.jsonl").read_bytes())
    with pytest.raises(AuditError, match=r"line 6 is not what audit\.head leads to"):
        verify_audit(path)


def test_an_older_head_put_back_is_named(path: Path) -> None:
    filled(path, 2)
    old = head_of(path).read_bytes()
    filled(path, 2)
    head_of(path).write_bytes(old)
    with pytest.raises(AuditError, match=r"names another entry 2"):
        verify_audit(path)


def test_a_missing_head_is_named(path: Path) -> None:
    filled(path)
    head_of(path).unlink()
    with pytest.raises(AuditError, match=r"audit\.head: not found, but the log has 6 entries"):
        verify_audit(path)


@pytest.mark.parametrize("content", [b"", b"6", b'{"seq": -1}', b"\xff"])
def test_a_damaged_head_is_named(path: Path, content: bytes) -> None:
    filled(path)
    head_of(path).write_bytes(content)
    with pytest.raises(AuditError, match=r"audit\.head: damaged"):
        verify_audit(path)
    with pytest.raises(AuditError, match=r"audit\.head: damaged"):
        AuditLog(path).append("release.made")


@pytest.mark.parametrize(
    "tamper",
    [
        lambda path, lines: path.write_bytes(b"".join(lines[:-2])),
        lambda path, lines: path.write_bytes(b""),
        lambda path, lines: path.unlink(),
        lambda path, lines: path.write_bytes(b"".join([*lines[:-1], lines[-1][:-1]])),
        lambda path, lines: path.write_bytes(b"".join([*lines[:-1], b"{}\n"])),
        lambda path, lines: head_of(path).unlink(),
    ],
    ids=["cut", "emptied", "removed", "line end taken", "last line changed", "head removed"],
)
def test_appending_never_covers_tampering_up(path: Path, tamper: object) -> None:
    tamper(path, filled(path))  # type: ignore[operator]
    before = path.read_bytes() if path.exists() else b""
    with pytest.raises(AuditError):
        AuditLog(path).append("release.made")
    assert path.read_bytes() == before
    with pytest.raises(AuditError):
        verify_audit(path)


def test_messages_hold_no_facts_and_are_one_line(path: Path) -> None:
    AuditLog(path).append("update.declined", reason="rouge")
    path.write_bytes(path.read_bytes().replace(b"rouge", b"vert!"))
    with pytest.raises(AuditError) as caught:
        verify_audit(path)
    assert "vert!" not in str(caught.value)
    assert "\n" not in str(caught.value)


# -- a head noted elsewhere ------------------------------------------------------------------------


def test_every_head_that_ever_was_still_stands(path: Path) -> None:
    heads = [EMPTY]
    for _ in range(4):
        filled(path, 1)
        heads.append(read_audit(path)[-1].head())
    assert [verify_audit(path, expected_head=head) for head in heads] == [4] * 5


def test_a_whole_new_chain_does_not_hold_an_old_head(path: Path) -> None:
    filled(path)
    noted = read_audit(path)[3].head()
    path.unlink()
    head_of(path).unlink()
    filled(path, 3)
    assert verify_audit(path) == 3  # nothing in the files themselves can show it
    with pytest.raises(AuditError, match=r"line 4 is missing: the head noted earlier"):
        verify_audit(path, expected_head=noted)
    filled(path, 3)
    with pytest.raises(AuditError, match=r"line 4 is not the entry of the head noted earlier"):
        verify_audit(path, expected_head=noted)


def test_a_head_reads_back_from_its_text() -> None:
    head = AuditHead(seq=12, hash="3f" * 32)
    assert AuditHead.parse(str(head)) == head


@pytest.mark.parametrize("text", ["", "12", "12:", ":" + "a" * 64, "12:xyz", "-1:" + "a" * 64])
def test_what_is_no_head_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not SEQ:HASH"):
        AuditHead.parse(text)


# -- kills -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [1, 50, 150])
def test_a_torn_line_is_named_then_replaced_by_a_note(path: Path, kept: int) -> None:
    lines = filled(path)
    torn = lines[0][:kept]
    path.write_bytes(b"".join([*lines, torn]))
    with pytest.raises(AuditError, match=rf"line 7 is torn: {kept} bytes .* the next entry"):
        verify_audit(path)
    AuditLog(path).append("release.made", release=1)
    repaired, made = read_audit(path)[-2:]
    assert (repaired.seq, repaired.event) == (7, "audit.repaired")
    assert repaired.facts == {"bytes": kept, "sha256": sha256(torn).hexdigest()}
    assert (made.seq, made.event) == (8, "release.made")


def test_a_torn_first_line_is_replaced_too(path: Path) -> None:
    filled(path, 1)
    path.write_bytes(path.read_bytes()[:40])
    head_of(path).write_bytes(EMPTY.to_bytes())
    AuditLog(path).append("release.made")
    assert [entry.event for entry in read_audit(path)] == ["audit.repaired", "release.made"]


def test_a_torn_tail_longer_than_the_note_is_cut_off(path: Path) -> None:
    lines = filled(path)
    path.write_bytes(b"".join([*lines, b"\x00" * 100_000]))
    AuditLog(path).append("release.made")
    assert read_audit(path)[6].facts["bytes"] == 100_000
    assert verify_audit(path) == 8


def test_a_kill_between_line_and_head_is_mended(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(path, 2)
    for entries in (3, 4):  # twice in a row, so the head must be mended before the next line
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", _killed_at(entries, path))
            with pytest.raises(KeyboardInterrupt):
                AuditLog(path).append("release.made", release=entries)
        assert verify_audit(path) == entries
    AuditLog(path).append("release.made", release=5)
    assert verify_audit(path) == 5
    assert json.loads(head_of(path).read_text())["seq"] == 5


def _killed_at(entries: int, path: Path) -> object:
    """A rename that is killed once the log holds so many entries."""
    rename = os.replace

    def replace(source: Path, target: Path) -> None:
        if path.read_bytes().count(b"\n") == entries:
            raise KeyboardInterrupt
        rename(source, target)

    return replace


@pytest.mark.parametrize("call", ["write", "truncate"])
@pytest.mark.parametrize("cut", [0, 10, 60, 200])
def test_a_kill_while_repairing_is_reported_too(path: Path, call: str, cut: int) -> None:
    """The note was written in part over what was torn, or wholly and the rest not yet cut off."""
    lines = filled(path, 2)
    torn = b"\x00" * 1000
    path.write_bytes(b"".join([*lines, torn]))
    AuditLog(path).append("release.made")
    note = path.read_bytes().splitlines(keepends=True)[2]
    part = note[:cut] if call == "write" else note
    path.write_bytes(b"".join([*lines, part, torn[len(part) :]]))
    head_of(path).write_bytes(read_head(lines[1]).to_bytes())
    AuditLog(path).append("release.made")
    events = [entry.event for entry in read_audit(path)[2:]]
    assert events == ["audit.repaired"] * (1 if call == "write" else 2) + ["release.made"]


def read_head(line: bytes) -> AuditHead:
    entry = json.loads(line)
    return AuditHead(seq=entry["seq"], hash=entry["hash"])


def test_a_kill_before_the_first_line_leaves_an_empty_log(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(shared.audit, "replace_file", killed)
        with pytest.raises(KeyboardInterrupt):
            AuditLog(path).append("release.made")
    assert verify_audit(path) == 0
    AuditLog(path).append("release.made")
    assert verify_audit(path) == 1


def test_what_a_killed_writer_left_beside_is_removed(path: Path) -> None:
    lines = filled(path, 2)
    head_of(path).write_bytes(read_head(lines[0]).to_bytes())
    (path.parent / ".audit.head.0123.partial").touch()
    (path.parent / ".current.0123.partial").touch()  # another writer's, perhaps alive
    AuditLog(path).append("release.made")
    assert {found.name for found in path.parent.iterdir()} == {
        "audit.jsonl", "audit.head", ".current.0123.partial",
    }  # fmt: skip


WRITER = """
import sys
from pathlib import Path
from shared.audit import AuditLog
log = AuditLog(Path(sys.argv[1]))
while True:
    log.append("update.accepted", digest="d" * 64)
"""


def test_a_killed_process_leaves_a_log_that_goes_on(path: Path) -> None:
    for _ in range(3):
        size = path.stat().st_size if path.exists() else 0
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)]) as writer:
            deadline = time.monotonic() + 60
            while not path.exists() or path.stat().st_size < size + 3000:
                assert time.monotonic() < deadline
                assert writer.poll() is None
                time.sleep(0.002)
            writer.send_signal(signal.SIGKILL)
        AuditLog(path).append("run.resumed")
        entries = read_audit(path)
        assert entries[-1].event == "run.resumed"
        assert len(entries) > 10


# -- many writers, long logs, other errors ---------------------------------------------------------


def _append_many(path: Path, writer: int) -> None:
    with ThreadPoolExecutor(2) as threads:
        for thread in range(2):
            for number in range(15):
                threads.submit(AuditLog(path).append, "x", by=[writer, thread, number])


def test_processes_and_threads_take_turns(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_append_many, args=(path, number)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    entries = read_audit(path)
    assert len(entries) == 90
    by = [tuple(entry.facts["by"]) for entry in entries]  # type: ignore[arg-type]
    assert sorted(by) == [(w, t, n) for w in range(3) for t in range(2) for n in range(15)]


def bytes_read() -> int:
    """By this process, in all its reads."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts reads as Linux does")
def test_appending_reads_only_the_end_of_the_log(path: Path) -> None:
    log = AuditLog(path)
    for _ in range(30):
        log.append("round.done", cohort=["r" * 60] * 2000)
    log.append("release.made")
    assert path.stat().st_size > 3_000_000
    before = bytes_read()
    log.append("release.made")
    assert bytes_read() - before < 300_000  # two blocks, and whatever else this process reads
    assert verify_audit(path) == 32


def test_lines_longer_than_a_block_are_read_whole(path: Path) -> None:
    for length in (8000, 8192, 20_000, 1):
        AuditLog(path).append("round.done", note="x" * length)
    assert verify_audit(path) == 4


def test_reading_changes_nothing_and_needs_no_log(path: Path) -> None:
    with pytest.raises(AuditError, match=r"audit\.jsonl: not found; give an audit\.jsonl"):
        verify_audit(path)
    assert not path.parent.exists()


def test_a_folder_in_the_place_of_the_log_is_one_line(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(AuditError, match=r"cannot be read \(Is a directory\)"):
        verify_audit(path)
    with pytest.raises(AuditError, match=r"cannot be written \(Is a directory\)"):
        AuditLog(path).append("release.made")
