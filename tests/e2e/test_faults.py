"""Every process killed in the middle of its work, a region that hangs, disks that are full.

The tests share one deployment of three regions, in the order of this file. As long as nothing is
promoted every training starts from the base, so what it must end with is known from the same
federation in this process: bit for bit where no region was lost, without the lost one otherwise.

What needs no process is tested where it lives: malformed replies in tests/server/test_strategy.py,
flipped bytes in the tests of releases, indexes, kept activations, bases and adapters, replayed and
wrongly signed statements and a kill at any change of the disk in tests/client/test_publication.py,
expired certificates in tests/server/test_authority.py and tests/client/test_region_enrolment.py,
clocks in tests/client/test_check.py. Here a real region's real SuperNode meets some of them too.
"""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from deployment import (
    Daemon,
    Deployment,
    Reference,
    Run,
    leftovers,
    make_reference,
    open_folder,
    require_nginx,
    same,
    session_of,
    skip,
    wait_until,
    wait_until_busy,
)

from client.decisions import changing, read_state
from server.conduct import put_into_use
from server.headquarters import open_headquarters
from server.training import Training
from shared.audit import read_audit
from shared.durable import replace_file

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

VICTIM = "east"
OTHERS = ["north", "south"]
DIED = "ended as failed No heartbeat received from the task"  # Flower's word for a killed ServerApp


@pytest.fixture(scope="module")
def reference(fashion: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return make_reference(tmp_path_factory.mktemp("reference") / "run", fashion, regions=3)


@pytest.fixture(scope="module")
def deployment(reference: Reference) -> Iterator[Deployment]:
    require_nginx()
    with open_folder() as folder, Deployment(folder, reference) as deployment:
        deployment.open()
        yield deployment


@pytest.fixture(autouse=True)
def _nothing_is_half_written(deployment: Deployment) -> Iterator[None]:
    yield
    for name in (*deployment.reference.regions, ""):
        assert deployment.daemons[name].process.poll() is None, deployment.daemons[name].said
    wait_until("nothing is half-written", lambda: not leftovers(deployment.folder), deadline_s=20)


def assert_as_undisturbed(deployment: Deployment, run: Run, rounds: int) -> None:
    """The training has ended as if nothing had happened."""
    assert [record.round for record in run.rounds] == list(range(rounds + 1))
    for record, expected in zip(run.rounds, deployment.reference.rounds(rounds), strict=True):
        assert record.rejected == []
        assert sorted(record.validation) == deployment.reference.regions
        assert same(run.history.adapter(record.round), expected)
    assert Training(run.folder).release is not None


def server_app(deployment: Deployment) -> int:
    """Process id of the ServerApp, which the SuperExec has started."""
    superexec = deployment.daemons[""].pid("superexec")
    found = [pid for pid, line in session_of(superexec) if "flwr-serverapp" in line]
    assert len(found) == 1, found
    return found[0]


def client_apps(region: Daemon) -> set[int]:
    """Process ids of the ClientApps that a region's SuperExec has started."""
    superexec = region.pid("superexec")
    return {pid for pid, line in session_of(superexec) if "flwr-clientapp" in line}


def last_line(run: Run) -> str:
    """The one line that says why a training did not end."""
    line = run.said.splitlines()[-1]
    assert line.startswith("error: "), run.said
    return line


# -- killed in a round -----------------------------------------------------------------------------


def test_a_killed_worker_and_a_killed_nginx_change_no_bit(deployment: Deployment) -> None:
    region, headquarters = deployment.daemons[VICTIM], deployment.daemons[""]
    with deployment.training(rounds=2, min_regions=3) as run:
        run.wait_for_round(1)
        wait_until_busy(region.pid("worker"))
        region.wait_for_another("worker", region.kill("worker"))
        run.wait_for_round(2)
        headquarters.wait_for_another("nginx", headquarters.kill("nginx"))
        run.wait()
    assert_as_undisturbed(deployment, run, 2)
    assert "worker: ended with signal SIGKILL, starts again in 1 s" in region.said
    assert "nginx: ended with signal SIGKILL, starts again in 1 s" in headquarters.said


def test_a_killed_superexec_costs_its_region_the_round(deployment: Deployment) -> None:
    region = deployment.daemons[VICTIM]
    with deployment.training(rounds=1) as run:
        run.wait_for_round(1)
        # Flower's SuperNode forgets an app that has started and not fetched its message yet.
        before = wait_until("an app has started", lambda: client_apps(region))
        region.wait_for_another("superexec", region.kill("superexec"))
        assert not before & client_apps(region)
        run.wait()
    assert "superexec: ended with signal SIGKILL, starts again in 1 s" in region.said
    assert "supernode: ended with superexec, starts again in 75 s" in region.said
    assert_lost_the_round(deployment, run)
    deployment.wait_until_online(deployment.reference.regions)


def assert_lost_the_round(deployment: Deployment, run: Run) -> None:
    """One round, in which the victim had no part because its SuperNode was gone."""
    (lost,) = run.rounds[1:]
    reason = "its connection was lost before it answered"
    assert lost.cohort == [VICTIM, *OTHERS]
    assert lost.rejected[0] == {"region": VICTIM, "reason": reason}
    assert {entry["region"] for entry in lost.rejected} == {VICTIM}
    assert set(lost.validation) >= set(OTHERS)
    assert not same(run.history.adapter(1), deployment.reference.rounds(1)[1])
    assert Training(run.folder).release is not None
    assert f"  {VICTIM}: {reason}" in run.said


def test_a_killed_superlink_comes_back_to_the_same_run(deployment: Deployment) -> None:
    headquarters = deployment.daemons[""]
    with deployment.training(rounds=1, min_regions=3) as run:
        run.wait_for_round(1)
        wait_until_busy(deployment.daemons[VICTIM].pid("worker"))
        headquarters.wait_for_another("superlink", headquarters.kill("superlink"))
        run.wait()
    assert_as_undisturbed(deployment, run, 1)
    assert run.said.count("Flower run") == 1
    assert "superlink: ended with signal SIGKILL, starts again in 1 s" in headquarters.said


def test_a_killed_server_app_and_a_killed_superexec_are_resumed(deployment: Deployment) -> None:
    headquarters = deployment.daemons[""]
    with deployment.training(rounds=2, min_regions=3) as run:
        run.wait_for_round(1)
        os.kill(server_app(deployment), signal.SIGKILL)
        run.wait(code=1)
    assert DIED in last_line(run)
    assert 'go on with "fedshelf server train --resume"' in last_line(run)
    with deployment.resumed() as run:
        run.wait_for_round(2)
        headquarters.wait_for_another("superexec", headquarters.kill("superexec"))
        run.wait(code=1)
    assert DIED in last_line(run)
    assert "superexec: ended with signal SIGKILL, starts again in 1 s" in headquarters.said
    assert 'go on with "fedshelf server train --resume"' in last_line(run)
    with deployment.resumed() as run:
        run.wait()
    assert "round 1" in run.said and "round 2" in run.said
    assert_as_undisturbed(deployment, run, 2)


def test_a_killed_supernode_costs_its_region_the_round(deployment: Deployment) -> None:
    region = deployment.daemons[VICTIM]
    with deployment.training(rounds=1) as run:
        run.wait_for_round(1)
        wait_until_busy(region.pid("worker"), 0.1)
        region.wait_for_another("supernode", region.kill("supernode"))
        run.wait()
    assert_lost_the_round(deployment, run)
    # Flower lets a node in again only after it has given up the one that was killed.
    deployment.wait_until_online(deployment.reference.regions)


def test_a_region_that_hangs_is_named_and_comes_back(deployment: Deployment) -> None:
    worker = deployment.daemons[VICTIM].pid("worker")
    with deployment.training(rounds=2, round_timeout_s=30, describe_timeout_s=15) as run:
        run.wait_for_round(1)
        os.kill(worker, signal.SIGSTOP)
        try:
            run.wait_for_round(2)
        finally:
            os.kill(worker, signal.SIGCONT)
        run.wait()
    first, second = run.rounds[1:]
    silent = {"region": VICTIM, "reason": "no reply within 30 s"}
    assert first.rejected == [silent, silent]  # neither trained nor measured
    assert sorted(first.validation) == OTHERS
    assert second.rejected == [{"region": VICTIM, "reason": "no reply within 15 s"}]
    assert second.cohort == OTHERS
    gate = run.history.gate()
    assert gate is not None
    assert gate["rejected"] == []
    assert VICTIM in gate["candidate"]


# -- full disks ------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    """A disk of its own at a folder, with what was there on it, and nothing left.

    Yields:
        A file that fills it.
    """
    aside = folder.with_name(f"{folder.name}-aside")
    shutil.copytree(folder, aside, symlinks=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k,mode=755", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shutil.rmtree(aside)
        skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        shutil.copytree(aside, folder, symlinks=True, dirs_exist_ok=True)
        filling = folder / "filling"
        fill(filling)
        yield filling
        filling.unlink(missing_ok=True)
        after = folder.with_name(f"{folder.name}-after")
        shutil.copytree(folder, after, symlinks=True)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        shutil.rmtree(aside)
    shutil.rmtree(folder)
    after.rename(folder)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (4096, 1):
            with pytest.raises(OSError, match="No space left"):
                while True:
                    file.write(bytes(size))


def test_a_full_disk_at_headquarters_ends_the_training_and_it_is_resumed(
    deployment: Deployment,
) -> None:
    with small_disk(deployment.hq / "trainings", 1024) as filling:
        refused = deployment.server("train", "--rounds", 1, code=1)
        assert "No space left on device" in refused
        before = deployment.last_training()
        filling.unlink()
        with deployment.training(rounds=1, min_regions=3) as run:
            run.wait_for_round(1)
            fill(filling)
            run.wait(code=1)
        assert deployment.last_training() == before + 1
        assert "No space left on device" in last_line(run)
        assert [record.round for record in run.rounds] == [0]
        filling.unlink()
        with deployment.resumed() as run:
            run.wait()
        assert_as_undisturbed(deployment, run, 1)


# -- publication -----------------------------------------------------------------------------------


def state_of(deployment: Deployment) -> Path:
    return deployment.region(VICTIM) / "state"


def events(deployment: Deployment) -> list[str]:
    return [entry.event for entry in read_audit(state_of(deployment) / "audit.jsonl")]


def answering_release(deployment: Deployment) -> int:
    """Number of the release that answers a search now."""
    words = ("search", "--region", deployment.region(VICTIM), "red shirts", "--json")
    return int(json.loads(deployment.call(*words))["release"])


def in_use_everywhere(deployment: Deployment, release: int) -> bool:
    return {deployment.in_use(name) for name in deployment.reference.regions} == {release}


def test_a_worker_killed_while_it_publishes_leaves_the_old_index(deployment: Deployment) -> None:
    region, state = deployment.daemons[VICTIM], state_of(deployment)
    assert answering_release(deployment) == 0
    worker, hq = region.pid("worker"), open_headquarters(deployment.hq)
    put_into_use(hq, 1, event="release.promoted")  # not as a command: every moment counts
    wait_until("release 1 is known", lambda: read_state(state).seen is not None)
    with changing(state):  # so that it cannot swap
        wait_until("its index is built", lambda: list((state / "indexes").glob("1-*")))
        assert deployment.in_use(VICTIM) == 0
        assert region.kill("worker") == worker
        region.wait_for_another("worker", worker)
    assert answering_release(deployment) in (0, 1)
    wait_until("release 1 is in use", lambda: in_use_everywhere(deployment, 1))
    assert answering_release(deployment) == 1
    assert "release.accepted" in events(deployment)


def test_a_full_disk_in_a_region_leaves_the_old_index(deployment: Deployment) -> None:
    state, worker = state_of(deployment), deployment.daemons[VICTIM].pid("worker")
    os.kill(worker, signal.SIGSTOP)  # while its folders are moved
    try:
        with small_disk(state / "indexes", 1024) as filling:
            os.kill(worker, signal.SIGCONT)
            deployment.server("promote", 2)
            wait_until("it is noted", lambda: events(deployment)[-1] == "publication.failed")
            assert answering_release(deployment) == deployment.in_use(VICTIM) == 1
            assert not leftovers(state)
            why = str(read_audit(state / "audit.jsonl")[-1].facts["reason"])
            assert "disk is full" in why or "No space left on device" in why
            assert why in (state / "worker.log").read_text(encoding="utf-8").splitlines()
            filling.unlink()
            wait_until("release 2 is in use", lambda: in_use_everywhere(deployment, 2))
            os.kill(worker, signal.SIGSTOP)
    finally:
        os.kill(worker, signal.SIGCONT)
    assert answering_release(deployment) == 2


def test_an_old_statement_brings_no_old_release_back(deployment: Deployment) -> None:
    registry = deployment.hq / "public" / "releases"
    names = ("current.json", "current.json.sig")
    old = {name: (registry / name).read_bytes() for name in names}
    deployment.server("promote", 3)
    wait_until("release 3 is in use", lambda: in_use_everywhere(deployment, 3))
    new = {name: (registry / name).read_bytes() for name in names}
    write_all(registry, old)
    wait_until("it is noted", lambda: events(deployment)[-1] == "publication.failed")
    assert in_use_everywhere(deployment, 3)
    assert "was seen before" in (state_of(deployment) / "worker.log").read_text(encoding="utf-8")
    write_all(registry, new | {"current.json.sig": b"0" * 128 + b"\n"})
    log = state_of(deployment) / "worker.log"
    wait_until("it is noted", lambda: "no signature" in log.read_text(encoding="utf-8"))
    assert in_use_everywhere(deployment, 3)
    write_all(registry, new)


def write_all(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        replace_file(folder / name, content)


# -- who gets in -----------------------------------------------------------------------------------


def test_a_key_that_was_not_admitted_gets_nowhere(deployment: Deployment) -> None:
    name = "stranger"
    source = deployment.reference.run / "regions"
    (source / name).symlink_to(source / VICTIM)
    try:
        deployment.bring_data(name)
        invitation = deployment.folder / f"{name}.json"
        deployment.server("invite", name, "--out", invitation)
        deployment.call("region", "enroll", invitation, "--region", deployment.region(name))
        deployment.adjust(name)
    finally:
        (source / name).unlink()
    stranger = deployment.start("region", "up", deployment.region(name), host=name, ready="worker")
    wait_until("it is refused", lambda: "supernode: ended with" in stranger.said)
    stranger.interrupt()
    log = (deployment.region(name) / "state" / "supernode.log").read_text(encoding="utf-8")
    assert "Failed to activate SuperNode" in log
    rows = deployment.server_json("status")["regions"]
    assert [row["region"] for row in rows if row["online"]] == [VICTIM, *OTHERS]
    shutil.rmtree(deployment.region(name))
