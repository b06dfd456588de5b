"""Child processes kept running in the foreground: headquarters and every region need a few.

No service manager is assumed, so one terminal, one container or one unit file is enough. Each child
leads a session of its own and ends with everything it started in it. Should the supervisor itself
be killed, a small guard process, which holds the other end of a pipe, kills what is left. Sessions
are read from /proc, so this is for Linux.
"""

import inspect
import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from shared.errors import ConfigError, FederationError

_POLL_S = 0.1
_KILL_S = 5.0  # after SIGKILL only the kernel can still hold a process
_MAX_LOG_BYTES = 64 * 2**20  # then it becomes the one older log that is kept
_INHERITED = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "TMPDIR", "TZ")


@dataclass(frozen=True)
class Process:
    """One program that shall keep running.

    Attributes:
        name: in events and errors.
        argv: absolute path of the program, and its arguments.
        env: its whole environment.
        cwd: its working directory.
        log: stdout and stderr are appended here; readable by the supervisor's user alone.
        user: run as this user and its groups if the supervisor is root, else ignored.
        ready: whether it answers yet; None if it counts as ready at once. Must return soon.
        ready_timeout_s: it has failed if it is not ready after so long.
        stop_signal: asks it, and all it started, to end.
        grace_s: from that signal to SIGKILL.
        restart_after_s: it is not started again sooner than this after it failed.
        falls_with: name of another process; when that one fails, this one is ended and started
            again as if it had failed too. "" if there is none.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    log: Path
    user: str | None = None
    ready: Callable[[], bool] | None = None
    ready_timeout_s: float = 60.0
    stop_signal: signal.Signals = signal.SIGTERM
    grace_s: float = 10.0
    restart_after_s: float = 0.0
    falls_with: str = ""


@dataclass(frozen=True)
class Restarts:
    """How often and how soon a failed process is started again.

    Attributes:
        first_delay_s: before the first restart; doubled for each further failure in the window.
        longest_delay_s: bound on that.
        max_failures: within the window; one more and the supervisor gives up.
        window_s: older failures are forgotten.
    """

    first_delay_s: float = 1.0
    longest_delay_s: float = 30.0
    max_failures: int = 8
    window_s: float = 600.0


def program_beside_python(name: str) -> str:
    """Absolute path of a program that was installed with this Python.

    Raises:
        ConfigError: it is not there.
    """
    path = Path(sys.executable).with_name(name)
    if not path.is_file():
        raise ConfigError(f"{path}: not found; install fedshelf again")
    return str(path)


def flower_environment(flower_home: Path) -> dict[str, str]:
    """The whole environment of a Flower process.

    Args:
        flower_home: where Flower keeps its state and apps.

    Returns:
        Little of our own environment: no secrets, and no proxy, because what these processes talk
        to is named by address. A caller who needs a proxy to reach headquarters adds it.
    """
    ours = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    # Flower finds its own programs (flwr-serverapp, flower-superexec) on PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {
        **ours,
        "PATH": path,
        "PYTHONUNBUFFERED": "1",
        "FLWR_HOME": str(flower_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }


class Supervisor:
    """Start processes in order, start them again when they fail, end them in reverse order.

    Args:
        processes: in the order in which they depend on each other.
        on_event: told of every change in one line, such as "nginx: ready".
        restarts: how patient to be.
    """

    def __init__(
        self,
        processes: Sequence[Process],
        *,
        on_event: Callable[[str], None],
        restarts: Restarts = Restarts(),
    ) -> None:
        self._children = [_Child(process) for process in processes]
        self._on_event, self._restarts = on_event, restarts
        self._stopping, self._lock = threading.Event(), threading.RLock()
        self._guard = _Guard()
        self._started = False

    def start(self) -> None:
        """Start every process, each after the one before it is ready.

        Returns early, with nothing promised, if `stop` was asked for meanwhile.

        Raises:
            ConfigError: a program or a user does not exist.
            FederationError: a process ended or was not ready in time; all are stopped again.
        """
        with self._lock:
            self._started = True
            try:
                for child in self._children:
                    self._launch(child)
                    self._await_ready(child)
            except BaseException:
                self.stop()
                raise

    def run(self) -> None:
        """Start if need be, and keep all running until SIGINT, SIGTERM or `stop`; then stop all.

        Raises:
            ConfigError: a program or a user does not exist.
            FederationError: a process did not come up, or failed too often; all are stopped.
        """
        with self._stop_on_signals():
            try:
                if not self._started:
                    self.start()
                while not self._stopping.wait(_POLL_S):
                    with self._lock:
                        self._guard.keep()
                        for child in self._children:
                            self._tend(child)
            finally:
                self.stop()

    def stop(self) -> None:
        """End every process and all it started, last first; may be called from any thread."""
        self._stopping.set()
        with self._lock:
            for child in reversed(self._children):
                child.due = None
                if child.running is not None:
                    self._end(child)
                    self._on_event(f"{child.process.name}: stopped")
            self._guard.close()

    def pid(self, name: str) -> int | None:
        """Process id of the running process of that name, or None while it is down."""
        for child in self._children:
            if child.process.name == name and child.running is not None:
                return child.running.pid
        return None

    def _launch(self, child: "_Child") -> None:
        if self._stopping.is_set():
            return
        self._guard.keep()
        child.running = _spawn(child.process)
        self._guard.watch(child.running.pid)
        child.ready, child.due = child.process.ready is None, None
        child.ready_by = time.monotonic() + child.process.ready_timeout_s
        self._on_event(f"{child.process.name}: started (process {child.running.pid})")

    def _await_ready(self, child: "_Child") -> None:
        while not child.ready and not self._stopping.is_set():
            if fault := self._fault(child):
                log = child.process.log
                raise FederationError(f"{child.process.name}: {fault} at its start; read {log}")
            self._stopping.wait(_POLL_S)

    def _tend(self, child: "_Child") -> None:
        _bound_log(child.process.log)
        if child.running is None:
            if child.due is not None and time.monotonic() >= child.due:
                self._launch(child)
        elif fault := self._fault(child):
            self._failed(child, fault)
            for other in self._children:
                if other.process.falls_with == child.process.name and other.running is not None:
                    self._failed(other, f"ended with {child.process.name}")

    def _fault(self, child: "_Child") -> str:
        """What is wrong with a child that should run; "" if nothing. Notes when it gets ready."""
        assert child.running is not None, "the caller has looked"
        process, code = child.process, child.running.poll()
        if code is not None:
            return f"ended with {_exit_text(code)}"
        if not child.ready and process.ready is not None:
            if process.ready():
                child.ready = True
                self._on_event(f"{process.name}: ready")
            elif time.monotonic() > child.ready_by:
                return f"not ready after {process.ready_timeout_s:g} s"
        return ""

    def _failed(self, child: "_Child", fault: str) -> None:
        self._end(child)
        now, rules, process = time.monotonic(), self._restarts, child.process
        child.failures.append(now)
        while child.failures[0] < now - rules.window_s:
            child.failures.popleft()
        if len(child.failures) > rules.max_failures:
            raise FederationError(
                f"{process.name}: {fault}, failed {len(child.failures)} times within "
                f"{rules.window_s:g} s; read {process.log}, mend the cause and start again"
            )
        delay = rules.first_delay_s * 2 ** (len(child.failures) - 1)
        delay = max(min(delay, rules.longest_delay_s), child.process.restart_after_s)
        child.due = now + delay
        self._on_event(
            f"{process.name}: {fault}, starts again in {child.due - now:g} s (log: {process.log})"
        )

    def _end(self, child: "_Child") -> None:
        assert child.running is not None, "the caller has looked"
        session, process = child.running.pid, child.process
        # A leader that ended by itself was asked nothing, so what it left is not asked either.
        if child.running.poll() is None:
            _signal_session(session, process.stop_signal)
            _wait_for_session(session, child.running, process.grace_s)
        give_up = time.monotonic() + _KILL_S
        while _members({session}) and time.monotonic() < give_up:
            _signal_session(session, signal.SIGKILL)
            _wait_for_session(session, child.running, _POLL_S)
        child.running.wait(_KILL_S)
        self._guard.forget(session)
        child.running = None

    @contextmanager
    def _stop_on_signals(self) -> Iterator[None]:
        """Only the main thread may hear signals; elsewhere `stop` is the way to end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: FrameType | None) -> None:
            self._stopping.set()

        before = {each: signal.signal(each, ask) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, old in before.items():
                signal.signal(each, old)


@dataclass
class _Child:
    process: Process
    running: "subprocess.Popen[bytes] | None" = None
    ready: bool = False
    ready_by: float = 0.0
    due: float | None = None  # when to start it again
    failures: deque[float] = field(default_factory=deque)


class _Guard:
    """The process that outlives a killed supervisor just long enough to clear up after it."""

    def __init__(self) -> None:
        self._sessions: set[int] = set()
        self._running: subprocess.Popen[bytes] | None = None

    def keep(self) -> None:
        """Start the guard if it does not run (somebody may have killed it)."""
        if self._running is not None and self._running.poll() is None:
            return
        self.close()
        code = "import os, signal, sys, time\n"
        code += "".join(inspect.getsource(part) for part in (_members, _guard)) + "_guard()\n"
        # Isolated and without site-packages: it starts in a moment and stays small. In a session
        # of its own, because Ctrl-C goes to the whole session of the terminal.
        command = [sys.executable, "-I", "-S", "-c", code, *map(str, self._sessions)]
        self._running = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def watch(self, session: int) -> None:
        """Kill this session if the supervisor dies."""
        self._sessions.add(session)
        self._write(session)

    def forget(self, session: int) -> None:
        """This session has ended; its number may be given to another."""
        self._sessions.discard(session)
        self._write(-session)

    def close(self) -> None:
        """End the guard; sessions it still watches are killed."""
        if self._running is None or self._running.stdin is None:
            return
        with suppress(BrokenPipeError):
            self._running.stdin.close()
        try:
            self._running.wait(2 * _KILL_S)
        except subprocess.TimeoutExpired:
            self._running.kill()
            self._running.wait()
        self._running = None

    def _write(self, number: int) -> None:
        assert self._running is not None, "kept before every launch"
        assert self._running.stdin is not None, "opened as a pipe"
        with suppress(BrokenPipeError):  # the next `keep` starts another and tells it everything
            self._running.stdin.write(b"%d\n" % number)
            self._running.stdin.flush()


def _members(sessions: set[int]) -> list[int]:
    """Process ids of everything alive in these sessions (man 5 proc, /proc/PID/stat)."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as handle:
                state, _, _, session = handle.read().rpartition(b")")[2].split()[:4]
        except (OSError, ValueError):  # it ended while we looked
            continue
        if int(session) in sessions and state not in (b"Z", b"X"):
            found.append(int(name))
    return found


def _guard() -> None:
    """The guard's whole program; it sees only what `keep` puts before it."""
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.SIG_IGN)
    sessions = {int(word) for word in sys.argv[1:]}
    for line in sys.stdin.buffer:  # a session to watch, or, negative, to forget
        number = int(line)
        if number > 0:
            sessions.add(number)
        else:
            sessions.discard(-number)
    give_up = time.monotonic() + 5
    while (left := _members(sessions)) and time.monotonic() < give_up:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:  # it is gone; whatever else it is, the others must end too
                continue
        time.sleep(0.05)


def _spawn(process: Process) -> "subprocess.Popen[bytes]":
    log = _open_log(process.log)
    try:
        return subprocess.Popen(
            process.argv,
            env=dict(process.env),
            cwd=process.cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            **_credentials(process),
        )
    except OSError as error:
        program = process.argv[0]
        raise ConfigError(
            f"{process.name}: cannot start {program} in {process.cwd}: {error.strerror}"
        ) from None
    finally:
        os.close(log)


def _open_log(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor


def _bound_log(path: Path) -> None:
    """Move a full log aside; its writers go on at its new start, because they append."""
    with suppress(FileNotFoundError):  # somebody tidied up
        if path.stat().st_size > _MAX_LOG_BYTES:
            shutil.copy2(path, path.with_name(f"{path.name}.1"))
            os.truncate(path, 0)  # lines written since the copy are lost


def _credentials(process: Process) -> dict[str, Any]:
    if process.user is None or os.geteuid() != 0:
        return {}
    try:
        found = pwd.getpwnam(process.user)
    except KeyError:
        raise ConfigError(
            f'{process.name}: there is no user "{process.user}" on this machine; make it first'
        ) from None
    groups = os.getgrouplist(found.pw_name, found.pw_gid)
    return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": groups}


def _signal_session(session: int, number: signal.Signals) -> None:
    for pid in _members({session}):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _wait_for_session(session: int, leader: "subprocess.Popen[bytes]", seconds: float) -> None:
    give_up = time.monotonic() + seconds
    while _members({session}) and time.monotonic() < give_up:
        leader.poll()
        time.sleep(_POLL_S / 2)


def _exit_text(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
