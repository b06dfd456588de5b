"""The event store's file: what is acknowledged is there, what failed is not, nobody else reads."""

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from threading import Event

import pytest

from client.service import store as store_module
from client.service.events import read_tables
from client.service.failures import RequestError
from client.service.overlay import read_changes
from client.service.store import SCHEMA_VERSION, Store, erase, from_us, open_writer, reading, to_us
from shared.errors import DataError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "events.sqlite"


def add_bot(key):
    def change(connection):
        connection.execute("INSERT INTO bots VALUES (?, 'requests')", (key,))
        return key

    return change


def bots(path):
    with reading(path) as connection:
        return [row[0] for row in connection.execute("SELECT user_key FROM bots ORDER BY 1")]


class Gate:
    """Keeps the writer at work until it is opened, so that a test fills the queue behind it."""

    def __init__(self, store):
        self.entered, self.opened = Event(), Event()
        self.done = store.submit(self._wait)
        assert self.entered.wait(60)

    def _wait(self, connection):
        self.entered.set()
        assert self.opened.wait(60)


def test_what_is_acknowledged_is_there_for_other_connections_at_once(path):
    with Store(path) as store:
        assert store.submit(add_bot("a")).result() == "a"
        assert bots(path) == ["a"]
    assert bots(path) == ["a"]
    with Store(path) as store:
        store.submit(add_bot("b")).result()
    assert bots(path) == ["a", "b"]


def test_everything_queued_is_one_transaction(path):
    statements = []
    with Store(path) as store:
        store.submit(lambda connection: connection.set_trace_callback(statements.append)).result()
        gate = Gate(store)
        waiting = [store.submit(add_bot(key)) for key in "abc"]
        assert store.queued_rows == 3
        gate.opened.set()
        assert [done.result() for done in waiting] == ["a", "b", "c"]
        assert store.queued_rows == 0
    # What set the callback, the gate, and the three together.
    assert statements.count("COMMIT") == 3


def test_readers_see_whole_groups_only(path):
    with Store(path) as store:
        gate, seen = Gate(store), []
        store.submit(add_bot("a"))
        store.submit(lambda _: seen.append(bots(path)))  # in the midst of the group
        last = store.submit(add_bot("b"))
        gate.opened.set()
        last.result()
    assert seen == [[]]
    assert bots(path) == ["a", "b"]


def test_a_change_that_fails_is_undone_alone(path):
    def broken(connection):
        add_bot("half")(connection)
        raise ValueError("no")

    with Store(path) as store:
        gate = Gate(store)
        first, second, third = (store.submit(c) for c in (add_bot("a"), broken, add_bot("b")))
        twice = store.submit(add_bot("a"))
        gate.opened.set()
        assert first.result() + third.result() == "ab"
        with pytest.raises(ValueError, match="no"):
            second.result()
        with pytest.raises(sqlite3.IntegrityError):  # a mistake of ours is not blamed on the disk
            twice.result()
    assert bots(path) == ["a", "b"]


def test_a_full_queue_turns_callers_away_and_what_was_taken_is_kept(path):
    with Store(path, max_queued_rows=3) as store:
        gate = Gate(store)
        store.submit(add_bot("a"), num_rows=2)
        with pytest.raises(RequestError, match="2 rows wait to be written, 3 may") as caught:
            store.submit(add_bot("b"), num_rows=2)
        assert caught.value.code == "overloaded"
        store.submit(add_bot("c"), num_rows=1)
        gate.opened.set()
    assert bots(path) == ["a", "c"]


def test_more_than_the_limit_is_taken_where_nothing_waits(path):
    with Store(path, max_queued_rows=3) as store:
        assert store.submit(add_bot("a"), num_rows=10).result() == "a"


def test_closing_writes_what_is_queued_then_takes_no_more(path):
    store = Store(path)
    gate = Gate(store)
    waiting = [store.submit(add_bot(key)) for key in "abc"]
    gate.opened.set()
    store.close()
    store.close()
    assert [done.result(timeout=0) for done in waiting] == ["a", "b", "c"]
    with pytest.raises(RequestError, match="about to stop") as caught:
        store.submit(add_bot("d"))
    assert caught.value.code == "unavailable"
    assert bots(path) == ["a", "b", "c"]


def test_a_caller_who_gives_up_in_time_leaves_nothing(path):
    with Store(path) as store:
        gate = Gate(store)
        given_up = store.submit(add_bot("a"))
        assert given_up.cancel()
        gate.opened.set()
        store.submit(add_bot("b")).result()
    assert bots(path) == ["b"]


def test_a_full_disk_refuses_the_change_and_the_store_lives_on(path):
    def fill(connection):
        connection.execute("INSERT INTO bots VALUES ('big', ?)", ("x" * 2**20,))

    with Store(path) as store:
        store.submit(add_bot("a")).result()
        (pages,) = store.submit(lambda c: c.execute("PRAGMA page_count").fetchone()).result()
        store.submit(lambda c: c.execute(f"PRAGMA max_page_count = {pages}").fetchone()).result()
        with pytest.raises(RequestError, match=r"events.sqlite: cannot.*SQLITE_FULL") as caught:
            store.submit(fill).result()
        assert caught.value.code == "unavailable"
        store.submit(lambda c: c.execute("PRAGMA max_page_count = 100000").fetchone()).result()
        assert store.submit(add_bot("b")).result() == "b"
    assert bots(path) == ["a", "b"]


LIMITED = """
import resource, sys
from pathlib import Path
from client.service.failures import RequestError
from client.service.store import Store

def add(key, size=1):
    return lambda c: c.execute("INSERT INTO bots VALUES (?, ?)", (key, "x" * size)) and None

store = Store(Path(sys.argv[1]))
store.submit(add("a")).result()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    store.submit(add("big", 2**20)).result()
except RequestError as error:
    print(error.code, "SQLITE_IOERR" in str(error) or "SQLITE_FULL" in str(error))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
store.submit(add("b")).result()
store.close()
"""


def test_a_write_that_the_system_refuses_leaves_nothing_half_written(path):
    answer = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True
    )
    assert answer.stdout.split() == ["unavailable", "True"]
    assert bots(path) == ["a", "b"]
    open_writer(path).close()  # which checks every page


def test_a_commit_waits_for_the_disk_and_deletes_overwrite(path):
    with Store(path) as store:
        asked = ("synchronous", "secure_delete", "journal_mode")
        values = [store.submit(_pragma(name)).result() for name in asked]
    assert values == [2, 1, "wal"]


def _pragma(name):
    return lambda connection: connection.execute(f"PRAGMA {name}").fetchone()[0]


def test_only_the_owner_reads_it(path):
    with Store(path) as store:
        store.submit(add_bot("a")).result()
        modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        assert len(list(path.parent.iterdir())) == 3  # with the log and its index
    assert modes == {0o600}
    path.chmod(0o644)
    Store(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def foreign(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()


def of_another_version(path):
    Store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()


def torn(path):
    with Store(path) as store:
        store.submit(lambda c: c.executemany("INSERT INTO bots VALUES (?, ?)", LONG).rowcount)
    path.write_bytes(path.read_bytes()[: 4096 * 20] + b"\0" * 4096 * 20)


LONG = [(f"key {number}" + "x" * 500, "requests") for number in range(500)]


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (foreign, "not an event store of fedshelf; move it out of the way"),
        (of_another_version, f"event store of version {SCHEMA_VERSION + 1}, .* reads 1; use the"),
        (lambda path: path.write_bytes(b"garbage" * 1000), r"damaged, .*\(SQLITE_NOTADB\); move"),
        (torn, r"damaged, .*\(SQLITE_CORRUPT\); move"),
        (lambda path: path.mkdir(), r"cannot be used \(SQLITE_CANTOPEN\); look whether"),
    ],
)
def test_an_unusable_file_is_refused_in_one_line_and_left_as_it_is(tmp_path, spoil, match):
    path = tmp_path / "events.sqlite"
    spoil(path)
    before = path.is_file() and path.read_bytes()
    with pytest.raises(DataError, match=match) as caught:
        Store(path)
    assert "\n" not in str(caught.value)
    assert (path.is_file() and path.read_bytes()) == before


def test_reading_refuses_the_same_files(tmp_path):
    for number, spoil in enumerate((foreign, of_another_version)):
        spoil(tmp_path / str(number))
        with pytest.raises(DataError, match="event store of"), reading(tmp_path / str(number)):
            pass


def test_reading_neither_makes_nor_changes_the_file(path):
    with pytest.raises(DataError, match="SQLITE_CANTOPEN"), reading(path):
        pass
    assert not path.parent.exists()
    Store(path).close()
    before = path.read_bytes()
    with (
        pytest.raises(DataError, match="SQLITE_READONLY"),
        reading(path) as connection,
    ):
        connection.execute("INSERT INTO bots VALUES ('a', 'b')")
    assert path.read_bytes() == before


def test_a_file_whose_maker_was_killed_at_once_is_empty_not_damaged(path):
    path.parent.mkdir()
    path.touch()
    assert bots(path) == []
    assert path.read_bytes() == b""
    with Store(path) as store:
        store.submit(add_bot("a")).result()
    assert bots(path) == ["a"]


@pytest.mark.parametrize("rewrite", [False, True])
def test_erasing_empties_the_log_while_the_store_is_open(path, rewrite):
    with Store(path) as store:
        store.submit(add_bot("a" * 100)).result()
        removed = erase(path, lambda c: c.execute("DELETE FROM bots").rowcount, rewrite=rewrite)
        assert removed == 1
        assert path.with_name("events.sqlite-wal").stat().st_size == 0
        store.submit(add_bot("b")).result()
    assert b"a" * 100 not in path.read_bytes()
    assert bots(path) == ["b"]


def test_erasing_says_when_a_reader_keeps_the_old_state(path, monkeypatch):
    monkeypatch.setattr(store_module, "BUSY_TIMEOUT_S", 0.05)
    with Store(path) as store:
        store.submit(add_bot("a")).result()
        with reading(path) as connection:
            assert connection.execute("SELECT count(*) FROM bots").fetchone() == (1,)
            with pytest.raises(DataError, match=r"been reading it .* run this again"):
                erase(path, lambda c: c.execute("DELETE FROM bots").rowcount, rewrite=True)
    assert erase(path, lambda c: c.execute("DELETE FROM bots").rowcount, rewrite=True) == 0


def test_times_come_back():
    for microseconds in (0, 1, -1, 1_767_225_600_123_456):
        assert to_us(from_us(microseconds)) == microseconds
    assert to_us(from_us(5).replace(tzinfo=None)) == 5


CHILD = """
import sys
from pathlib import Path
from client.service.events import EventStore, Impression, Impressions
from client.service.messages import Event, Product
from client.service.overlay import Overlay
from client.service.store import Store, from_us

run, store = sys.argv[2], Store(Path(sys.argv[1]))
events, overlay = EventStore(store), Overlay.open(store)
for number in range(100_000):
    name = f"{run}-{number}"
    events.log_impressions(
        Impressions(name, from_us(0), "q", "text", "", "hybrid", 1, (Impression("p", 1, 1.0),))
    )
    event = Event(event_id=name, request_id=name, product_id="p", type="click")
    answer = events.log_events([event])
    assert (answer.accepted, answer.unknown) == (1, 0)
    assert events.log_events([event]).repeated == 1
    overlay.upsert([Product(product_id=name, title="t")])
    if number:
        overlay.delete([f"{run}-{number - 1}"])
    print(number, flush=True)
"""


def test_nothing_acknowledged_is_lost_or_doubled_when_the_process_is_killed(path):
    rng, acknowledged = random.Random(7), {}
    for run in "abcd":
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path), run], stdout=subprocess.PIPE, text=True
        )
        enough = rng.randrange(1, 40)
        for line in child.stdout:
            acknowledged[run] = int(line)
            if int(line) >= enough:
                break
        os.kill(child.pid, signal.SIGKILL)
        rest = child.stdout.read().split()  # said before the kill, but not read yet
        child.stdout.close()
        assert child.wait() == -signal.SIGKILL
        acknowledged[run] = int(rest[-1]) if rest else acknowledged[run]
        _check_acknowledged(path, acknowledged)
    Store(path).close()  # every page is sound


def _check_acknowledged(path: Path, acknowledged: dict[str, int]) -> None:
    tables, changes = read_tables(path), read_changes(path)
    kept = {change.product_id: change.product is not None for change in changes}
    requests, events = tables.requests["request_id"], tables.events
    for run, last in acknowledged.items():
        for number in range(last + 1):
            assert (requests == f"{run}-{number}").sum() == 1
            assert (events["request_id"] == f"{run}-{number}").sum() == 1
            if number < last:
                assert kept[f"{run}-{number}"] is False
        assert f"{run}-{last}" in kept  # its delete may have been on its way
    assert len(changes) == len(kept)
    assert not events["doubled"].any()
