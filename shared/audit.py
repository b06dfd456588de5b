"""The audit log of headquarters and of each region: what came, what went, what was decided.

Of messages it holds digests; `shared.exchanges` says which, and holds two logs against each other.

    audit.jsonl   one JSON object a line: seq, time, event, facts, prev, hash
    audit.head    seq and hash of the newest entry, replaced after each one

`hash` is the sha256 of the canonical line without it, and `prev` is the hash of the line before, so
a line that was changed, removed, inserted or moved breaks the chain. Lines removed from the end
break nothing in what is left; `audit.head` tells those.

What this cannot show: whoever may write both files can write a whole new chain, or restore older
copies of both. So copy the head elsewhere now and then (`fedshelf audit verify` prints it): an
auditor who brings a head noted earlier learns whether that entry, and so every one before it, still
stands. Nor does a chain show that an entry was true, or that something else was left out.

Facts are names, numbers and digests. They must never hold query text or product content: this file
may leave the region for an audit.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BufferedRandom
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

from pydantic import Field, JsonValue

from shared.durable import Record, replace_file
from shared.errors import AuditError

REPAIRED = "audit.repaired"
_BLOCK = 8192  # bytes; a few lines
_KEEP = "move the log and its .head aside as evidence; the next entry then begins a new log"
_HEAD = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})")
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class AuditHead(Record):
    """Which entry is the newest; noted elsewhere, it vouches for every entry up to it.

    Attributes:
        seq: of the entry, 0 before the first.
        hash: of the entry, zeros before the first.
    """

    seq: int = Field(ge=0)
    hash: Sha256

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of `str`.

        Raises:
            ValueError: not of the form SEQ:HASH.
        """
        match = _HEAD.fullmatch(text)
        if match is None:
            raise ValueError('not SEQ:HASH as "fedshelf audit verify" prints it')
        return cls(seq=int(match[1]), hash=match[2])


EMPTY = AuditHead(seq=0, hash="0" * 64)


class AuditEntry(Record):
    """One line of the log.

    Attributes:
        seq: 1 for the first, one more for each.
        time: when it was appended, UTC, ISO 8601.
        event: what happened, like "message.answered".
        facts: names, numbers and digests.
        prev: hash of the entry before, zeros for the first.
        hash: sha256 of the canonical line without this field.
    """

    seq: int = Field(ge=1)
    time: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00$")
    event: str = Field(pattern=r"^[a-z][a-z0-9_.-]*$")
    facts: dict[str, JsonValue]
    prev: Sha256
    hash: Sha256

    def line(self) -> bytes:
        """The line as it stands in the log, with its line end."""
        return _canonical(self.model_dump()) + b"\n"

    def head(self) -> AuditHead:
        """What `audit.head` holds once this entry is the newest."""
        return AuditHead(seq=self.seq, hash=self.hash)


class AuditLog:
    """Appends entries. Any number of threads and processes may do so to one file.

    Args:
        path: the log, usually `audit.jsonl`; made with its folder by the first `append`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: str, **facts: JsonValue) -> None:
        """Add one entry; it is on disk when this returns. Reads only the end of the log.

        A line that a killed writer left torn is replaced by an entry "audit.repaired", which says
        how many bytes it had and their sha256.

        Args:
            event: small letters, digits and `_.-`, a letter first.
            facts: names, numbers and digests; never query text or product content.

        Raises:
            AuditError: the end of the log is not what its head names (to go on would hide that),
                or the log cannot be written.
            ValueError, TypeError: the event's name is not of that form, or a fact is not JSON.
        """
        try:
            with _locked_log(self.path) as file:
                tail = _read_tail(file)
                last = _mend_head(self.path, tail)
                if tail.torn:
                    repaired = _entry_after(last, REPAIRED, _describe(tail.torn))
                    last = _write(self.path, file, tail.end, repaired)
                end = file.seek(0, os.SEEK_END)
                _write(self.path, file, end, _entry_after(last, event, facts))
        except OSError as error:
            raise AuditError(
                f"{self.path}: cannot be written ({error.strerror}); mend that and start again"
            ) from None


def read_audit(path: Path, expected_head: AuditHead | None = None) -> list[AuditEntry]:
    """All entries, oldest first, after checking that none was tampered with.

    Args:
        path: the log; its head is beside it.
        expected_head: noted earlier, elsewhere; its entry must still stand.

    Returns:
        The entries. The last may be newer than `audit.head`: a kill can come between the two.

    Raises:
        AuditError: a line was changed, removed, inserted or moved, the last is torn, the log is
            not the one of its head or of `expected_head`, or it cannot be read; names the line.
    """
    lines, head = _snapshot(path)
    torn = lines.pop()
    entries = list(_chain(path, lines))
    _check_head(path, entries[-1] if entries else None, head)
    if torn:
        raise AuditError(
            f"{path}: line {len(lines) + 1} is torn: {len(torn)} bytes without a line end, from a "
            f'write that was interrupted; the next entry replaces it by "{REPAIRED}", then verify'
        )
    if expected_head is not None:
        _check_expected(path, entries, expected_head)
    return entries


def verify_audit(path: Path, expected_head: AuditHead | None = None) -> int:
    """The number of entries, after checking them all; takes and raises what `read_audit` does."""
    return len(read_audit(path, expected_head))


# -- form ------------------------------------------------------------------------------------------


def _canonical(value: Mapping[str, Any]) -> bytes:
    # One line, so not `canonical_json`, which indents.
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _entry_after(last: AuditHead, event: str, facts: Mapping[str, JsonValue]) -> AuditEntry:
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    fields = {"seq": last.seq + 1, "time": time, "event": event, "facts": facts, "prev": last.hash}
    # Read back at once: nothing is written that a verifier could not read.
    return _parse(_canonical({**fields, "hash": _sha256(_canonical(fields))}))


def _parse(line: bytes) -> AuditEntry:
    """Read one line without its end; ValueError unless every byte is as it was written."""
    entry = AuditEntry.from_bytes(line)
    if entry.line() != line + b"\n":
        raise ValueError("not in canonical form")
    if entry.hash != _sha256(_canonical(entry.model_dump(exclude={"hash"}))):
        raise ValueError("not what its hash says")
    return entry


# -- reading ---------------------------------------------------------------------------------------


def _snapshot(path: Path) -> tuple[list[bytes], AuditHead | None]:
    """Lines and head of one moment; after the last line end comes what is torn, or nothing."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            return file.read().split(b"\n"), _read_head(path)
    except FileNotFoundError:
        raise AuditError(f"{path}: not found; give an audit.jsonl or its folder") from None
    except OSError as error:
        raise AuditError(f"{path}: cannot be read ({error.strerror}); mend that first") from None


def _read_head(path: Path) -> AuditHead | None:
    try:
        return AuditHead.from_bytes(_head_path(path).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        raise AuditError(f"{_head_path(path)}: damaged, expected seq and hash; {_KEEP}") from None


def _head_path(path: Path) -> Path:
    return path.with_suffix(".head")


def _chain(path: Path, lines: list[bytes]) -> Iterator[AuditEntry]:
    last = EMPTY
    for number, line in enumerate(lines, start=1):
        entry = _parse_line(path, line, f"line {number}")
        if (entry.seq, entry.prev) != (last.seq + 1, last.hash):
            raise AuditError(
                f"{path}: line {number} holds entry {entry.seq}, which does not follow entry "
                f"{last.seq}: a line was removed, inserted or moved; {_KEEP}"
            )
        yield entry
        last = entry.head()


def _parse_line(path: Path, line: bytes, where: str) -> AuditEntry:
    try:
        return _parse(line)
    except ValueError:
        raise AuditError(f"{path}: {where} was changed since it was written; {_KEEP}") from None


def _check_head(path: Path, last: AuditEntry | None, head: AuditHead | None) -> None:
    """The head names the newest entry, or the one before if a kill came between the two."""
    newest, found = last.head() if last else EMPTY, _head_path(path)
    if head == newest or (head is None and last is None):
        return
    if head is None:
        raise AuditError(f"{found}: not found, but the log has {newest.seq} entries; {_KEEP}")
    if head.seq > newest.seq:
        raise AuditError(
            f"{path}: line {newest.seq + 1} is missing: {found.name} names entry {head.seq}, so "
            f"lines were removed from the end; {_KEEP}"
        )
    if last is None or head != AuditHead(seq=last.seq - 1, hash=last.prev):
        raise AuditError(
            f"{path}: line {newest.seq} is not what {found.name} leads to, which names another "
            f"entry {head.seq}: one of the two files was replaced; {_KEEP}"
        )


def _check_expected(path: Path, entries: list[AuditEntry], expected: AuditHead) -> None:
    if expected.seq > len(entries):
        raise AuditError(
            f"{path}: line {expected.seq} is missing: the head noted earlier names it, the log "
            f"ends with entry {len(entries)}; {_KEEP}"
        )
    found = entries[expected.seq - 1].head() if expected.seq else EMPTY
    if found != expected:
        raise AuditError(
            f"{path}: line {expected.seq} is not the entry of the head noted earlier: the log was "
            f"written anew; {_KEEP}"
        )


# -- writing ---------------------------------------------------------------------------------------


class _Tail(NamedTuple):
    last: bytes  # the last whole line, without its end
    end: int  # where the next line belongs
    torn: bytes  # what lies there already


@contextmanager
def _locked_log(path: Path) -> Iterator[BufferedRandom]:
    # The lock is on the log itself: its folder's lock is for those who remove leftovers there.
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _read_tail(file: BufferedRandom) -> _Tail:
    size = start = file.seek(0, os.SEEK_END)
    tail = b""
    while start > 0 and tail.count(b"\n") < 2:
        step = min(start, _BLOCK)
        start = file.seek(start - step)
        tail = file.read(step) + tail
    whole, _, torn = tail.rpartition(b"\n")
    return _Tail(whole.rpartition(b"\n")[2], size - len(torn), torn)


def _mend_head(path: Path, tail: _Tail) -> AuditHead:
    """Check the end of the log against its head, and bring a head up to date that a kill left."""
    last = _parse_line(path, tail.last, "the last line") if tail.end else None
    head, newest = _read_head(path), last.head() if last else EMPTY
    _check_head(path, last, head)
    if head != newest:  # so the log is never two entries ahead, and never without a head
        for leftover in path.parent.glob(f".{_head_path(path).name}.*"):
            leftover.unlink()
        replace_file(_head_path(path), newest.to_bytes())
    return newest


def _describe(torn: bytes) -> dict[str, JsonValue]:
    return {"bytes": len(torn), "sha256": _sha256(torn)}


def _write(path: Path, file: BufferedRandom, end: int, entry: AuditEntry) -> AuditHead:
    """Write an entry's line over what is torn there, cut off the rest, and name it in the head.

    In this order a kill leaves something torn to be reported, or the line, never a silent gap.
    """
    file.seek(end)
    file.write(entry.line())
    file.truncate(end + len(entry.line()))
    os.fsync(file.fileno())
    replace_file(_head_path(path), entry.head().to_bytes())
    return entry.head()
