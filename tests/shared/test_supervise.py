"""Real child processes: they start in order, come back, and never outlive whoever started them."""

import os
import pwd
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from shared import supervise
from shared.errors import ConfigError, FederationError
from shared.supervise import Process, Restarts, Supervisor, flower_environment

ROOT = Path(__file__).parents[2]
DEADLINE_S = 20
SOON = Restarts(first_delay_s=0.01, longest_delay_s=0.02, max_failures=2)
SLEEP = "import time; time.sleep(600)"
# Writes its process id and that of a child, which deafens itself to every polite signal and makes a
# process group of its own.
PARENT = """
import os, subprocess, sys, time
deaf = "import os, signal, sys, time; os.setpgid(0, 0); signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN); open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
open("child.pid", "w").write(str(os.getpid()))
subprocess.Popen([sys.executable, "-c", deaf, "grandchild.pid"])
time.sleep(600)
"""  # noqa: E501

Make = Callable[..., Supervisor]


def wait_until(what: Callable[[], Any]) -> Any:
    give_up = time.monotonic() + DEADLINE_S
    while not (value := what()):
        assert time.monotonic() < give_up, "waited too long"
        time.sleep(0.02)
    return value


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def children(pid: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def in_folder(folder: Path) -> list[int]:
    """Processes that work in this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended, or belongs to somebody we may not ask
            if (path / "cwd").readlink() == folder and alive(int(path.name)):
                found.append(int(path.name))
    return found


def number_in(path: Path) -> int:
    return int(wait_until(lambda: path.is_file() and path.read_text()))


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., Process]:
    """A process that runs these lines of Python in `tmp_path`."""

    def make(name: str, code: str, **options: Any) -> Process:
        argv = (sys.executable, "-I", "-S", "-c", code)
        log = tmp_path / f"{name}.log"
        return Process(name, argv, {"PATH": os.defpath}, tmp_path, log, **options)

    return make


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def supervise_(events: list[str]) -> Iterator[Make]:
    """A supervisor of these processes; stopped at the end of the test."""
    made: list[Supervisor] = []

    def make(*processes: Process, restarts: Restarts = SOON) -> Supervisor:
        made.append(Supervisor(processes, on_event=events.append, restarts=restarts))
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.stop()


@pytest.fixture
def running(supervise_: Make) -> Iterator[Make]:
    """Like `supervise_`, with `run` at work in a thread once all are ready."""
    threads: list[tuple[Supervisor, threading.Thread]] = []

    def make(*processes: Process, restarts: Restarts = SOON) -> Supervisor:
        supervisor = supervise_(*processes, restarts=restarts)
        supervisor.start()
        threads.append((supervisor, threading.Thread(target=supervisor.run)))
        threads[-1][1].start()
        return supervisor

    yield make
    for supervisor, thread in threads:
        supervisor.stop()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def names(events: list[str], what: str) -> list[str]:
    return [event.partition(":")[0] for event in events if event.partition(": ")[2] == what]


def test_each_starts_when_the_one_before_is_ready_and_the_last_stops_first(
    python: Callable[..., Process], supervise_: Make, events: list[str], tmp_path: Path
) -> None:
    mark = "import time; time.sleep(0.3); open('up', 'w').close(); " + SLEEP
    first = python("first", mark, ready=lambda: (tmp_path / "up").is_file())
    second = python("second", f"import os; assert os.path.exists('up'); {SLEEP}")
    supervisor = supervise_(first, second)
    supervisor.start()
    pids = [supervisor.pid("first"), supervisor.pid("second")]
    assert [event.split()[:2] for event in events] == [
        ["first:", "started"],
        ["first:", "ready"],
        ["second:", "started"],
    ]
    supervisor.stop()
    assert names(events, "stopped") == ["second", "first"]
    assert not any(alive(pid) for pid in pids if pid)
    assert supervisor.pid("first") is None


def test_a_killed_process_comes_back(
    python: Callable[..., Process], running: Make, events: list[str]
) -> None:
    supervisor = running(python("steady", SLEEP), python("victim", SLEEP))
    steady, victim = supervisor.pid("steady"), supervisor.pid("victim")
    assert victim
    os.kill(victim, signal.SIGKILL)
    again = wait_until(lambda: supervisor.pid("victim") not in (None, victim))
    assert again
    assert supervisor.pid("steady") == steady
    assert any("victim: ended with signal SIGKILL, starts again in" in event for event in events)


def test_what_a_dead_process_left_behind_ends_before_it_comes_back(
    python: Callable[..., Process], running: Make, tmp_path: Path
) -> None:
    supervisor = running(python("parent", PARENT))
    first = supervisor.pid("parent")
    grandchild = number_in(tmp_path / "grandchild.pid")
    assert first
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: supervisor.pid("parent") not in (None, first))
    assert not alive(grandchild)


def test_a_restarted_process_that_never_gets_ready_has_failed(
    python: Callable[..., Process], supervise_: Make, tmp_path: Path
) -> None:
    # Ready the first time only: when it starts again it takes the mark away.
    code = f"import os; os.remove('up') if os.path.exists('up') else open('up', 'w'); {SLEEP}"
    up = tmp_path / "up"
    process = python("shy", code, ready=up.is_file, ready_timeout_s=0.3)
    supervisor = supervise_(process, restarts=Restarts(0.01, 0.01, max_failures=1))
    supervisor.start()
    pid = supervisor.pid("shy")
    assert pid
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(FederationError, match=r"shy: not ready after 0.3 s, failed 2 times"):
        supervisor.run()


def test_it_gives_up_on_a_process_that_fails_again_and_again(
    python: Callable[..., Process], supervise_: Make, events: list[str], tmp_path: Path
) -> None:
    code = "import sys; print('why', file=sys.stderr); sys.exit(3)"
    supervisor = supervise_(python("steady", SLEEP), python("broken", code))
    with pytest.raises(FederationError) as raised:
        supervisor.run()
    text = str(raised.value)
    assert text.startswith("broken: ended with exit code 3, failed 3 times within 600 s; read ")
    assert str(tmp_path / "broken.log") in text
    assert (tmp_path / "broken.log").read_text() == 3 * "why\n"
    assert names(events, "stopped") == ["steady"]


def test_delays_double_up_to_a_bound(
    python: Callable[..., Process], supervise_: Make, events: list[str]
) -> None:
    rules = Restarts(first_delay_s=0.01, longest_delay_s=0.025, max_failures=3)
    with pytest.raises(FederationError):
        supervise_(python("broken", "raise SystemExit(1)"), restarts=rules).run()
    said = [event.split(" again in ")[1].split()[0] for event in events if " again in " in event]
    assert said == ["0.01", "0.02", "0.025"]


def test_a_process_may_ask_for_a_longer_delay(
    python: Callable[..., Process], supervise_: Make, events: list[str]
) -> None:
    slow = python("broken", "raise SystemExit(1)", restart_after_s=0.05)
    with pytest.raises(FederationError):
        supervise_(slow, restarts=Restarts(0.01, 0.02, max_failures=2)).run()
    said = [event.split(" again in ")[1].split()[0] for event in events if " again in " in event]
    assert said == ["0.05", "0.05"]


def test_a_process_may_fall_with_another_one(
    python: Callable[..., Process], supervise_: Make, events: list[str]
) -> None:
    follower = python("follower", SLEEP, falls_with="broken")
    broken = python("broken", "import time; time.sleep(0.5); raise SystemExit(3)")
    rules = Restarts(0.01, 0.02, max_failures=1)
    with pytest.raises(FederationError, match="broken: ended with exit code 3"):
        supervise_(python("steady", SLEEP), follower, broken, restarts=rules).run()
    starts = [event.partition(": started")[0] for event in events if ": started" in event]
    assert starts == ["steady", "follower", "broken", "follower", "broken"]
    (fell,) = [event for event in events if "ended with broken" in event]
    assert fell.startswith("follower: ended with broken, starts again in 0.01 s (log: ")


def test_a_process_that_ends_at_its_start_stops_the_others(
    python: Callable[..., Process], supervise_: Make, events: list[str], tmp_path: Path
) -> None:
    never = python("never", "raise SystemExit(7)", ready=lambda: False)
    supervisor = supervise_(python("before", SLEEP), never)
    with pytest.raises(FederationError, match="never: ended with exit code 7 at its start; read"):
        supervisor.start()
    assert "before: stopped" in events


def test_a_process_that_is_not_ready_in_time_is_named(
    python: Callable[..., Process], supervise_: Make
) -> None:
    late = python("late", SLEEP, ready=lambda: False, ready_timeout_s=0.2)
    with pytest.raises(FederationError, match=r"late: not ready after 0.2 s at its start; read "):
        supervise_(late).start()


def test_stop_interrupts_a_start_that_waits(
    python: Callable[..., Process], supervise_: Make, events: list[str]
) -> None:
    supervisor = supervise_(python("late", SLEEP, ready=lambda: False), python("next", SLEEP))
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    wait_until(lambda: supervisor.pid("late"))
    supervisor.stop()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert events[-1] == "late: stopped"
    assert not any(event.startswith("next") for event in events)


def test_stop_leaves_no_grandchild_however_deaf(
    python: Callable[..., Process], supervise_: Make, tmp_path: Path
) -> None:
    supervisor = supervise_(python("parent", PARENT, grace_s=0.2))
    supervisor.start()
    pids = [number_in(tmp_path / f"{name}.pid") for name in ("child", "grandchild")]
    assert all(alive(pid) for pid in pids)
    supervisor.stop()
    assert not any(alive(pid) for pid in pids)


def test_a_polite_process_has_time_to_end(
    python: Callable[..., Process], supervise_: Make, tmp_path: Path
) -> None:
    code = (
        "import signal, time\n"
        "def end(*_): time.sleep(0.3); open('tidy', 'w').close(); raise SystemExit\n"
        "signal.signal(signal.SIGINT, end); open('up', 'w').close(); time.sleep(600)"
    )
    up = tmp_path / "up"
    supervisor = supervise_(python("polite", code, ready=up.is_file, stop_signal=signal.SIGINT))
    supervisor.start()
    supervisor.stop()
    assert (tmp_path / "tidy").is_file()


@pytest.fixture
def outside(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A supervisor in a process of its own, with a child and a deaf grandchild."""
    code = (
        "import sys; from pathlib import Path\n"
        "from shared.supervise import Process, Supervisor\n"
        "here, code = Path(sys.argv[1]), sys.argv[2]\n"
        "argv = (sys.executable, '-I', '-S', '-c', code)\n"
        "one = Process('one', argv, {}, here, here / 'log', grace_s=0.2)\n"
        "Supervisor([one], on_event=lambda event: print(event, flush=True)).run()"
    )
    command = [sys.executable, "-c", code, str(tmp_path), PARENT]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        number_in(tmp_path / "grandchild.pid")
        yield process
        process.kill()
    for pid in in_folder(tmp_path):  # should a test have failed, nothing must stay
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def family(outside: "subprocess.Popen[str]", tmp_path: Path) -> list[int]:
    found = [number_in(tmp_path / f"{name}.pid") for name in ("child", "grandchild")]
    assert all(alive(pid) for pid in found)
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_in_order(
    outside: "subprocess.Popen[str]", family: list[int], number: signal.Signals
) -> None:
    outside.send_signal(number)
    said, _ = outside.communicate(timeout=DEADLINE_S)
    assert outside.returncode == 0
    assert said.endswith("one: stopped\n")
    assert not any(alive(pid) for pid in family)


def test_a_killed_supervisor_leaves_nothing(
    outside: "subprocess.Popen[str]", family: list[int]
) -> None:
    guard = [pid for pid in children(outside.pid) if pid not in family]
    outside.kill()
    wait_until(lambda: not any(alive(pid) for pid in family + guard))


def test_a_killed_guard_is_replaced(outside: "subprocess.Popen[str]", family: list[int]) -> None:
    (guard,) = (pid for pid in children(outside.pid) if pid not in family)
    os.kill(guard, signal.SIGKILL)
    wait_until(lambda: set(children(outside.pid)) - {guard, *family})
    outside.kill()
    wait_until(lambda: not any(alive(pid) for pid in family))


def test_logs_are_appended_and_private(
    python: Callable[..., Process], supervise_: Make, tmp_path: Path
) -> None:
    log = tmp_path / "talk.log"
    log.write_text("before\n")
    supervise_(python("talk", f"print('now', flush=True); {SLEEP}")).start()
    wait_until(lambda: log.read_text() == "before\nnow\n")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_a_full_log_is_moved_aside_while_the_process_writes_on(
    python: Callable[..., Process], running: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "_MAX_LOG_BYTES", 1000)
    log, older = tmp_path / "talk.log", tmp_path / "talk.log.1"
    running(
        python("talk", "import time\nwhile True: print(99 * 'x', flush=True); time.sleep(0.01)")
    )
    first = wait_until(lambda: older.is_file() and older.read_text())
    assert len(first) > 1000
    wait_until(lambda: older.read_text() != first)
    assert set(log.read_text() + older.read_text()) <= {"x", "\n"}  # no hole of zeros
    assert stat.S_IMODE(older.stat().st_mode) == 0o600


def test_a_missing_program_is_named(tmp_path: Path, supervise_: Make) -> None:
    gone = Process("gone", (str(tmp_path / "nothing"),), {}, tmp_path, tmp_path / "log")
    with pytest.raises(ConfigError, match=r"^gone: cannot start .*nothing in .*: No such file"):
        supervise_(gone).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_root_gives_up_its_rights(tmp_path: Path, supervise_: Make) -> None:
    # Not our Python, and not our folder: both may be where only root can go.
    argv, log = ("/bin/sh", "-c", "id -u; id -G; sleep 600"), tmp_path / "log"
    process = Process("dropped", argv, {"PATH": os.defpath}, Path("/"), log, user="nobody")
    supervise_(process).start()
    wait_until(lambda: log.read_text().count("\n") == 2)
    nobody = pwd.getpwnam("nobody")
    assert log.read_text() == f"{nobody.pw_uid}\n{nobody.pw_gid}\n"
    unknown = Process("unknown", argv, {}, Path("/"), log, user="no-such-user")
    with pytest.raises(ConfigError, match='unknown: there is no user "no-such-user"'):
        supervise_(unknown).start()


def test_flower_gets_neither_secrets_nor_a_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "SECRET_KEY", "FLWR_DATABASE"):
        monkeypatch.setenv(name, "anything")
    environment = flower_environment(tmp_path)
    assert "anything" not in environment.values()
    assert environment["FLWR_HOME"] == str(tmp_path)
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_programs_are_found_beside_python() -> None:
    assert Path(supervise.program_beside_python("flwr")).is_file()
    with pytest.raises(ConfigError, match="no-such-program: not found; install fedshelf again"):
        supervise.program_beside_python("no-such-program")
