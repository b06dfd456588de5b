"""`state/events.sqlite`: one file, one writer, and nothing lost that was acknowledged.

What shoppers did and what a retailer changed while serving are the only things in a region that
cannot be made again, so they are written here with care. One thread owns the one connection that
writes. Everything that is queued when it wakes becomes one transaction (group commit): a hundred
callers share one wait for the disk, and each is answered only after that. SQLite keeps a log beside
the file (WAL), so readers, each with a connection of its own, never wait and never see half.

Do not open this file by other means in a process that has it open here (to copy or hash it):
closing it again gives SQLite's locks away, since POSIX counts locks by process and file.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Condition, Thread
from typing import Any, Self, TypeVar

from client.service.failures import RequestError
from shared.errors import DataError

EVENTS_FILE = "events.sqlite"  # in a region's state folder
APPLICATION_ID = 0x66736576  # "fsev", in the file's header: tells our files from others
SCHEMA_VERSION = 1
MAX_QUEUED_ROWS = 50_000  # some 20 MB of events; at 1,000 rows a request, fifty requests
BUSY_TIMEOUT_S = 60.0  # another process may be erasing, which rewrites the file
_MAX_LOG_BYTES = 64 * 2**20  # the WAL is cut back to this after a burst

# Times are whole microseconds since 1970, UTC. What is said once an answer stands in `requests`.
_SCHEMA = (
    """CREATE TABLE requests (
        number INTEGER PRIMARY KEY, request_id TEXT NOT NULL UNIQUE, ts INTEGER NOT NULL,
        query TEXT NOT NULL, kind TEXT NOT NULL, user_key TEXT NOT NULL,
        ranker TEXT NOT NULL, release INTEGER NOT NULL)""",
    """CREATE TABLE impressions (
        request INTEGER NOT NULL REFERENCES requests (number), product_id TEXT NOT NULL,
        position INTEGER NOT NULL, propensity REAL NOT NULL, team TEXT NOT NULL,
        explored INTEGER NOT NULL, PRIMARY KEY (request, product_id)) WITHOUT ROWID""",
    """CREATE TABLE events (
        number INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE, request_id TEXT NOT NULL,
        product_id TEXT NOT NULL, type TEXT NOT NULL, ts INTEGER NOT NULL,
        received INTEGER NOT NULL, user_key TEXT NOT NULL, doubled INTEGER NOT NULL DEFAULT 0)""",
    "CREATE TABLE bots (user_key TEXT PRIMARY KEY, rule TEXT NOT NULL) WITHOUT ROWID",
    # AUTOINCREMENT: a sequence number is never given twice, not even after its row is gone.
    """CREATE TABLE changes (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, ts INTEGER NOT NULL,
        product_id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, product TEXT)""",
    "CREATE INDEX requests_by_user ON requests (user_key) WHERE user_key != ''",
    "CREATE INDEX requests_by_time ON requests (ts)",
    "CREATE INDEX events_by_request ON events (request_id, product_id, type)",
    "CREATE INDEX events_by_user ON events (user_key) WHERE user_key != ''",
    "CREATE INDEX events_by_arrival ON events (received)",
)
_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

T = TypeVar("T")
Change = Callable[[sqlite3.Connection], T]


@dataclass(frozen=True)
class _Job:
    change: Change[Any]
    num_rows: int
    done: "Future[Any]"


class Store:
    """The writing end of `events.sqlite`, for the one process that serves the region.

    Args:
        path: the file; made, readable by its owner alone, if it is missing.
        max_queued_rows: how much may wait for the disk before callers are turned away.

    Raises:
        DataError: damaged, not such a file, of another version, or not writable.
    """

    def __init__(self, path: Path, *, max_queued_rows: int = MAX_QUEUED_ROWS) -> None:
        self.path = path
        self._connection = open_writer(path)
        self._max_queued_rows = max_queued_rows
        self._jobs: list[_Job] = []
        self._queued_rows = 0
        self._closing = False
        self._wake = Condition()
        self._thread = Thread(target=self._write, name="event-store", daemon=True)
        self._thread.start()

    @property
    def queued_rows(self) -> int:
        """Rows that wait for the disk now."""
        return self._queued_rows

    def submit(self, change: Change[T], *, num_rows: int = 1) -> "Future[T]":
        """Queue a change; it is made after everything that was queued before.

        Args:
            change: called with the writing connection inside a transaction, which it must not end.
                If it raises, all it did is undone and its future raises that.
            num_rows: about how many rows it writes.

        Returns:
            A future of what `change` returns, done once that is on disk. It raises RequestError
            "unavailable" where the disk refuses; nothing of the change is kept then.

        Raises:
            RequestError: "overloaded" if too much is waiting, "unavailable" after `close`.
        """
        job = _Job(change, num_rows, Future())
        with self._wake:
            if self._closing:
                raise RequestError("unavailable", "the service is about to stop; ask it later")
            if self._jobs and self._queued_rows + num_rows > self._max_queued_rows:
                raise RequestError(
                    "overloaded",
                    f"{self._queued_rows} rows wait to be written, {self._max_queued_rows} may;"
                    " send this again a little later",
                )
            self._jobs.append(job)
            self._queued_rows += num_rows
            self._wake.notify()
        return job.done

    def close(self) -> None:
        """Write what is queued, then close the file. May be called again."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self) -> None:
        while jobs := self._next_jobs():
            # From here on a caller who gives up can no longer cancel.
            self._commit([job for job in jobs if job.done.set_running_or_notify_cancel()])

    def _next_jobs(self) -> list[_Job]:
        """Everything queued, once there is something; nothing when there will be no more."""
        with self._wake:
            self._wake.wait_for(lambda: self._jobs or self._closing)
            jobs, self._jobs, self._queued_rows = self._jobs, [], 0
            return jobs

    def _commit(self, jobs: list[_Job]) -> None:
        try:
            outcomes = self._transact(jobs)
        except Exception as error:  # nothing was kept, and this thread must live on
            outcomes = [(None, self._for_callers(error)) for _ in jobs]
        for job, (result, failure) in zip(jobs, outcomes, strict=True):
            if failure is None:
                job.done.set_result(result)
            else:
                job.done.set_exception(failure)

    def _transact(self, jobs: list[_Job]) -> list[tuple[Any, Exception | None]]:
        connection = self._connection
        if connection.in_transaction:  # left by a failure whose rollback failed too
            connection.execute("ROLLBACK")
        connection.execute("BEGIN IMMEDIATE")
        try:
            outcomes = [self._attempt(job.change) for job in jobs]
            connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # where SQLite has rolled back already
                connection.execute("ROLLBACK")
            raise
        return outcomes

    def _attempt(self, change: Change[Any]) -> tuple[Any, Exception | None]:
        """One change; its failure undoes it alone, where the transaction still stands."""
        self._connection.execute("SAVEPOINT change")
        try:
            result = change(self._connection)
        except Exception as error:
            if not self._connection.in_transaction:  # a full disk ends it for all that are in it
                raise
            self._connection.execute("ROLLBACK TO change")
            self._connection.execute("RELEASE change")
            return None, self._for_callers(error)
        self._connection.execute("RELEASE change")
        return result, None

    def _for_callers(self, error: Exception) -> Exception:
        if not _is_of_the_disk(error):
            return error
        name = getattr(error, "sqlite_errorname", "SQLITE_ERROR")
        return RequestError(
            "unavailable",
            f"{self.path.name}: cannot be written ({name}); nothing of this was kept; send it again"
            " once the disk is in order",
        )


def open_writer(path: Path) -> sqlite3.Connection:
    """A connection that writes; `Store` has one, and commands that erase take one for a moment.

    Args:
        path: of the store; made if it is missing.

    Returns:
        A connection without implicit transactions, waiting up to a minute for other writers. What
        it deletes it overwrites, and what it commits is on disk.

    Raises:
        DataError: damaged, not such a file, of another version, or not writable.
    """
    with _in_one_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # only a new file: see the warning at the top
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            _prepare(connection, path)
        except BaseException:
            connection.close()
            raise
        return connection


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """One consistent view of a store, whatever is written meanwhile; never makes the file.

    Args:
        path: of the store, which exists.

    Yields:
        A connection that cannot write. A file that holds nothing yet reads as an empty store.

    Raises:
        DataError: damaged, not such a file, of another version, or not readable.
    """
    with _in_one_line(path):
        uri = f"{path.resolve().as_uri()}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            if _is_blank(connection, path):  # its maker was killed before the first commit
                connection.close()
                connection = sqlite3.connect(":memory:", isolation_level=None)
                _create(connection)
            connection.execute("BEGIN")
            yield connection
        finally:
            connection.close()


def erase(path: Path, delete: Change[T], *, rewrite: bool) -> T:
    """Delete rows, overwriting them in the file and emptying its log.

    Safe to repeat: what a killed call left undone is done by the next, even if it deletes nothing.

    Args:
        path: of the store, which exists.
        delete: called with the connection inside a transaction.
        rewrite: write the whole file anew, so that no byte of the rows is left in it. Overwriting
            alone misses copies that stay in the unused parts of pages when rows move between them.
            Who writes meanwhile waits, some seconds a gigabyte.

    Returns:
        What `delete` returned.

    Raises:
        DataError: as `open_writer`; or somebody has been reading an old state for a minute, so
            that the log cannot be emptied.
    """
    with _in_one_line(path), closing(open_writer(path)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        result = delete(connection)
        connection.execute("COMMIT")
        if rewrite:
            connection.execute("VACUUM")
        _empty_log(connection, path)
    return result


def to_us(time_utc: datetime) -> int:
    """Microseconds since 1970; a time without a zone is taken as UTC."""
    aware = time_utc if time_utc.tzinfo else time_utc.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)


def from_us(microseconds: int) -> datetime:
    """The time that `to_us` was given, in UTC."""
    return _EPOCH + timedelta(microseconds=microseconds)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables or recognise them, and set what a writer needs."""
    if _is_blank(connection, path):  # before anything is changed: it may be somebody else's file
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        if _is_blank(connection, path):  # nobody else was quicker
            _create(connection)
        connection.execute("COMMIT")
    os.chmod(path, 0o600)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # each commit waits for the disk
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute(f"PRAGMA journal_size_limit = {_MAX_LOG_BYTES}")
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise DataError(_unusable(path, "SQLITE_CORRUPT"))


def _create(connection: sqlite3.Connection) -> None:
    for statement in _SCHEMA:
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _is_blank(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the file holds nothing at all; what is neither blank nor ours is refused."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    num_tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if (application, version, num_tables) == (0, 0, 0):
        return True
    if application != APPLICATION_ID:
        raise DataError(f"{path}: not an event store of fedshelf; move it out of the way")
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{path}: event store of version {version}, this fedshelf reads {SCHEMA_VERSION};"
            " use the fedshelf that wrote it"
        )
    return False


def _empty_log(connection: sqlite3.Connection, path: Path) -> None:
    """Bring all of the log into the file; waits for readers of older states."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
        if time.monotonic() > deadline:
            raise DataError(
                f"{path}: somebody has been reading it for {BUSY_TIMEOUT_S:.0f} s, so its log still"
                " holds what was deleted; run this again"
            )
        time.sleep(0.05)  # SQLite does not wait itself where another one is doing the same


def _is_of_the_disk(error: Exception) -> bool:
    """Full, failing, locked or damaged; not a mistake in a statement of ours."""
    return isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError


def _unusable(path: Path, name: str) -> str:
    if name.startswith(_DAMAGE):
        return (
            f"{path}: damaged, or not an event store ({name}); move it and its -wal file out of the"
            " way, or restore both from a backup"
        )
    return (
        f"{path}: cannot be used ({name}); look whether the disk is full, whether this user may"
        " write there and whether another process holds the file"
    )


@contextmanager
def _in_one_line(path: Path) -> Iterator[None]:
    """What SQLite and the system say, as an error for people."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"{path}: {reason}; let this user read and write it") from None
    except sqlite3.Error as error:
        if not _is_of_the_disk(error):
            raise
        name = getattr(error, "sqlite_errorname", "SQLITE_ERROR")
        raise DataError(_unusable(path, name)) from None
