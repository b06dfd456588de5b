"""Disks that are full, a worker killed while it publishes, old statements and strangers.

The tests share one deployment of three regions, in the order of this file; kills in a round are in
tests/e2e/test_kills.py. As long as nothing is promoted every training starts from the base, so what
it must end with is known from the same federation in this process, bit for bit.

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
    Deployment,
    assert_as_undisturbed,
    last_line,
    leftovers,
    skip,
    wait_until,
)

from client.decisions import changing, read_state
from server.conduct import put_into_use
from server.headquarters import open_headquarters
from server.training import Training
from shared.audit import read_audit
from shared.durable import replace_file

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(1200),
    pytest.mark.usefixtures("opened", "nothing_half_written"),
]

VICTIM = "east"
OTHERS = ["north", "south"]


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


def worker_log(deployment: Deployment) -> str:
    """What the worker says of a failure, right after the audit log has it."""
    return (state_of(deployment) / "worker.log").read_text(encoding="utf-8")


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


@pytest.fixture(scope="module")
def another(deployment: Deployment) -> int:
    """Number of a release that no region has looked at yet."""
    with deployment.training(rounds=1, min_regions=3) as run:
        run.wait()
    release = Training(run.folder).release
    assert release is not None
    return release


def test_a_full_disk_in_a_region_leaves_the_old_index(deployment: Deployment, another: int) -> None:
    state, worker = state_of(deployment), deployment.daemons[VICTIM].pid("worker")
    os.kill(worker, signal.SIGSTOP)  # while its folders are moved
    try:
        with small_disk(state / "indexes", 1024) as filling:
            os.kill(worker, signal.SIGCONT)
            deployment.server("promote", another)
            wait_until("it is noted", lambda: events(deployment)[-1] == "publication.failed")
            assert answering_release(deployment) == deployment.in_use(VICTIM) == 1
            assert not leftovers(state)
            why = str(read_audit(state / "audit.jsonl")[-1].facts["reason"])
            assert "disk is full" in why or "No space left on device" in why
            wait_until("it is said", lambda: why in worker_log(deployment).splitlines())
            filling.unlink()
            wait_until("it is in use", lambda: in_use_everywhere(deployment, another))
            os.kill(worker, signal.SIGSTOP)
    finally:
        os.kill(worker, signal.SIGCONT)
    assert answering_release(deployment) == another


def test_an_old_statement_brings_no_old_release_back(deployment: Deployment) -> None:
    registry = deployment.hq / "public" / "releases"
    names = ("current.json", "current.json.sig")
    old = {name: (registry / name).read_bytes() for name in names}
    deployment.server("promote", 1)
    wait_until("release 1 is in use", lambda: in_use_everywhere(deployment, 1))
    new = {name: (registry / name).read_bytes() for name in names}
    write_all(registry, old)
    wait_until("it is said", lambda: "was seen before" in worker_log(deployment))
    assert events(deployment)[-1] == "publication.failed"
    assert in_use_everywhere(deployment, 1)
    write_all(registry, new | {"current.json.sig": b"0" * 128 + b"\n"})
    wait_until("it is said", lambda: "no signature" in worker_log(deployment))
    assert in_use_everywhere(deployment, 1)
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
