"""Every process of a federation killed in the middle of a round, and a region that hangs.

The tests share one deployment of three regions, in the order of this file. Nothing is promoted, so
every training starts from the base, and what it must end with is known from the same federation in
this process: bit for bit where no region was lost, without the lost one otherwise.
"""

import os
import signal

import pytest
from deployment import (
    Daemon,
    Deployment,
    Run,
    assert_as_undisturbed,
    same,
    session_of,
    wait_until,
    wait_until_busy,
)

from server.training import Training

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(1200),
    pytest.mark.usefixtures("opened", "nothing_half_written"),
]

VICTIM = "east"
OTHERS = ["north", "south"]
DIED = "No heartbeat received from the task; goes on after the last complete round"


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


def test_a_training_survives_a_killed_server_app_and_a_killed_superexec(
    deployment: Deployment,
) -> None:
    headquarters = deployment.daemons[""]
    with deployment.training(rounds=2, min_regions=3) as run:
        run.wait_for_round(1)
        os.kill(server_app(deployment), signal.SIGKILL)
        run.wait_for_round(2)
        headquarters.wait_for_another("superexec", headquarters.kill("superexec"))
        run.wait()
    assert run.said.count(DIED) == 2
    assert "superexec: ended with signal SIGKILL, starts again in 1 s" in headquarters.said
    assert [run.said.count(f"round {number}: ") for number in range(3)] == [1, 1, 1]
    assert_as_undisturbed(deployment, run, 2)


@pytest.mark.slow  # minutes of waiting; with a killed SuperExec the SuperNode falls too
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
    with deployment.training(rounds=2, round_timeout_s=80, describe_timeout_s=45) as run:
        run.wait_for_round(1)
        os.kill(worker, signal.SIGSTOP)
        try:
            run.wait_for_round(2)
        finally:
            os.kill(worker, signal.SIGCONT)
        run.wait()
    first, second = run.rounds[1:]
    silent = {"region": VICTIM, "reason": "no reply within 80 s"}
    assert first.rejected == [silent, silent]  # neither trained nor measured
    assert sorted(first.validation) == OTHERS
    assert second.rejected == [{"region": VICTIM, "reason": "no reply within 45 s"}]
    assert second.cohort == OTHERS
    gate = run.history.gate()
    assert gate is not None
    assert gate["rejected"] == []
    assert VICTIM in gate["candidate"]
