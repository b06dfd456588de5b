"""A federation from its first command to Ctrl-C, typed as its people would type it.

The tests are one journey and build on each other in the order of this file. What must come out of
the first training is known: the same regions, federated in this process.
"""

import json
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from deployment import (
    KNOBS,
    Deployment,
    leftovers,
    processes_of,
    same,
    wait_until,
)

from server.history import History
from shared.adapter import load_adapter
from shared.audit import AuditEntry, read_audit
from shared.exchanges import compare_logs
from shared.schema import SharingConfig

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

NAMES = ["east", "north", "south"]
SHARING = {
    "east": SharingConfig(matrix=True, local_adapter=True, named=True),
    "south": SharingConfig(matrix=True),
}
ROUNDS = 2


def train(deployment: Deployment, *options: object, rounds: int, min_regions: int) -> Any:
    """A training, promoted if accepted; returns what it says as JSON."""
    turned = {**KNOBS, "min_regions": min_regions}
    pairs = [f"{name.replace('_', '-')}={value}" for name, value in turned.items()]
    knobs = [word for pair in pairs for word in ("--set", pair)]
    asked = ("train", "--rounds", rounds, *knobs, *options)
    return deployment.server_json(*asked)


def search(deployment: Deployment, name: str) -> Any:
    words = ("search", "--region", deployment.region(name), "red shirts", "--k", 3, "--json")
    return json.loads(deployment.call(*words))


def wait_for_release(deployment: Deployment, number: int, names: list[str]) -> float:
    """Wait until every region answers with a release; returns seconds from its promotion."""
    wait_until(
        f"release {number} answers in {names}",
        lambda: {deployment.in_use(name) for name in names} == {number},
    )
    promoted = (deployment.hq / "public" / "releases" / "current.json").stat().st_mtime
    pointers = [deployment.region(name) / "state" / "current" for name in names]
    return max(path.stat().st_mtime for path in pointers) - promoted


def in_use_index(deployment: Deployment, name: str) -> Path:
    state = deployment.region(name) / "state"
    index = json.loads((state / "current").read_text(encoding="utf-8"))["index"]
    return state / "indexes" / str(index)


def listed(deployment: Deployment, name: str) -> dict[int, Any]:
    rows = json.loads(deployment.call("region", "releases", deployment.region(name), "--json"))
    return {row["number"]: row for row in rows}


def test_headquarters_comes_up(deployment: Deployment) -> None:
    headquarters = deployment.open_headquarters()
    for name in ("superlink", "superexec", "nginx"):
        assert headquarters.pid(name)
    status = deployment.server_json("status")
    assert status["regions"] == []
    assert (status["release"], status["training"]) == (None, None)
    again = ("server", "init", deployment.hq, "--address", "localhost:9443", "--preset", "tiny")
    assert "in use already" in deployment.call(*again, code=1)


def test_regions_are_invited_enrolled_admitted_and_checked(deployment: Deployment) -> None:
    for name in NAMES:
        folder, invitation = deployment.region(name), deployment.folder / f"{name}.json"
        deployment.bring_data(name)
        made = deployment.server_json("invite", name, "--out", invitation)
        assert made["file"] == str(invitation)
        words = ("region", "enroll", invitation, "--region", folder, "--json")
        enrolled = json.loads(deployment.call(*words))
        assert enrolled["region"] == name
        admitted = deployment.server_json("admit", name, enrolled["public_key"])
        assert admitted["key"] == enrolled["key_fingerprint"]
        deployment.adjust(name, sharing=SHARING.get(name, SharingConfig()))
        checked = json.loads(deployment.call("region", "check", folder, "--json"))
        found = {row["what"]: row["verdict"] for row in checked["rows"]}
        assert "fail" not in found.values(), checked
        assert found["connection"] == "ok"
    key = deployment.region("north") / "enrolment" / "node.pub"
    assert "error: region" in deployment.server("admit", "east", key, code=1)


def test_regions_come_up(deployment: Deployment) -> None:
    for name in NAMES:
        deployment.start_region(name)
    deployment.wait_until_online(NAMES)
    for name in NAMES:
        wait_until("the base answers", lambda name=name: deployment.in_use(name) == 0)
        assert search(deployment, name)["release"] == 0


def test_a_training_ends_as_in_one_process_and_is_taken_into_use(deployment: Deployment) -> None:
    told = train(deployment, "--promote", rounds=ROUNDS, min_regions=3)
    seconds = wait_for_release(deployment, 1, NAMES)
    assert (told["training"], told["release"]) == (1, 1)
    assert [record["rejected"] for record in told["rounds"]] == [[], [], []]
    history = History(deployment.hq / "trainings" / "0001" / "headquarters")
    expected = deployment.reference.rounds(ROUNDS)
    for number in range(ROUNDS + 1):
        assert same(history.adapter(number), expected[number])
    kept = load_adapter(deployment.hq / "adapters" / "1.safetensors")
    assert same(kept, expected[history.best_round()])
    (release,) = deployment.server_json("releases")
    for name in NAMES:
        found = search(deployment, name)
        assert (found["region"], found["release"]) == (name, 1)
        assert found["encoder_digest"] == release["encoder_digest"]
        assert len(found["hits"]) == 3
    rounds = [round(record["seconds"], 1) for record in told["rounds"]]
    print(f"rounds {rounds} s, every region has switched {seconds:.1f} s after promotion")


def test_the_next_training_starts_from_the_release_in_use(deployment: Deployment) -> None:
    told = train(deployment, "--promote", rounds=1, min_regions=3)
    wait_for_release(deployment, 2, NAMES)
    assert told["release"] == 2
    assert set(told["gate"]["differences"]) == {"1"}
    history = History(deployment.hq / "trainings" / "0002" / "headquarters")
    first = load_adapter(deployment.hq / "adapters" / "1.safetensors")
    assert same(history.adapter(0), first)
    assert not same(history.adapter(1), first)
    rows = {row["release"]: row for row in deployment.server_json("releases")}
    assert (rows[2]["parent"], rows[2]["in_use"], rows[1]["in_use"]) == (1, True, False)


def test_a_rollback_switches_at_once_and_builds_nothing(deployment: Deployment) -> None:
    def index_of_release_1(name: str) -> Path:
        (path,) = (deployment.region(name) / "state" / "indexes").glob("1-*")
        return path

    before = {name: index_of_release_1(name) for name in NAMES}
    made = {name: path.stat().st_ctime_ns for name, path in before.items()}
    deployment.server_json("rollback", 1)
    wait_for_release(deployment, 1, NAMES)
    for name in NAMES:
        assert in_use_index(deployment, name) == before[name]
        assert before[name].stat().st_ctime_ns == made[name]
        assert search(deployment, name)["release"] == 1
        assert listed(deployment, name)[2]["verdict"] == "rolled_back"


def test_a_region_may_stay_with_a_release_of_its_own(deployment: Deployment) -> None:
    folder = deployment.region("east")
    assert "release 2 is pinned and in use" in deployment.call("region", "pin", 2, folder)
    assert deployment.in_use("east") == 2
    assert search(deployment, "east")["release"] == 2
    assert listed(deployment, "east")[2]["pinned"]
    assert deployment.in_use("north") == deployment.in_use("south") == 1
    assert "no longer pinned" in deployment.call("region", "unpin", folder)
    wait_for_release(deployment, 1, NAMES)


def test_only_regions_that_agree_are_in_the_cross_site_table(deployment: Deployment) -> None:
    found = deployment.server_json("matrix", "--rounds", 1)
    assert set(found["rows"]) == {"release 0", "release 1", "release 2", "east alone"}
    for row in found["rows"].values():
        assert set(row) == {"east", "south"}
    assert found["rejected"] == []
    (picture,) = (deployment.hq / "matrices").glob("*/matrix.svg")
    assert picture.read_text(encoding="utf-8").startswith("<svg")


def test_a_revoked_region_is_out_at_once(deployment: Deployment) -> None:
    south = deployment.daemons["south"]
    assert deployment.server_json("revoke", "south") == {"region": "south", "state": "revoked"}
    wait_until("its next request is refused", lambda: "supernode: ended with" in south.said)
    rows = {row["region"]: row for row in deployment.server_json("status")["regions"]}
    assert {name: rows[name]["online"] for name in NAMES} == {
        "east": True,
        "north": True,
        "south": False,
    }
    assert search(deployment, "south")["release"] == 1  # what it has it keeps
    told = train(deployment, rounds=1, min_regions=2)
    assert [record["cohort"] for record in told["rounds"]] == [["east", "north"]] * 2
    assert all(record["rejected"] == [] for record in told["rounds"])


def test_flower_s_own_command_runs_a_training(deployment: Deployment) -> None:
    told = train(deployment, "--prepare", rounds=1, min_regions=2)
    subprocess.run(told["command"], shell=True, timeout=300, check=True)
    run = deployment.hq / "trainings" / f"{told['training']:04d}"
    assert [record.round for record in History(run / "headquarters").rounds()] == [0, 1]
    released = deployment.server_json("train", "--resume")
    assert (released["training"], len(released["rounds"])) == (told["training"], 2)
    assert released["gate"] is not None


def test_headquarters_restored_from_its_backup_goes_on(deployment: Deployment) -> None:
    down, backup = deployment.daemons[""], deployment.folder / "hq.tar.gz"
    down.process.send_signal(signal.SIGINT)
    assert down.process.wait(timeout=60) == 0, down.said
    tar = ("tar", "-C", deployment.hq.parent)
    logs = f"--exclude={deployment.hq.name}/logs"
    subprocess.run([*tar, logs, "-czf", backup, deployment.hq.name], check=True)
    shutil.rmtree(deployment.hq)
    subprocess.run([*tar, "-xzpf", backup], check=True)
    down.log.rename(down.log.with_suffix(".before"))  # it says "is up", of the former one
    deployment.start_headquarters()
    deployment.wait_until_online(["east", "north"])
    told = train(deployment, rounds=1, min_regions=2)
    assert [record["cohort"] for record in told["rounds"]] == [["east", "north"]] * 2
    assert all(record["rejected"] == [] for record in told["rounds"])


def test_every_audit_log_is_unbroken(deployment: Deployment) -> None:
    told, logs = dict[str, list[str]](), dict[str, list[AuditEntry]]()
    for folder in (deployment.hq, *(deployment.region(name) / "state" for name in NAMES)):
        verified = json.loads(deployment.call("audit", "verify", folder, "--json"))
        shown = json.loads(deployment.call("audit", "show", folder, "--last", 1000, "--json"))
        assert verified["entries"] == len(shown) > 0
        name = folder.parent.name if folder.name == "state" else ""
        told[name] = [entry["event"] for entry in shown]
        logs[name] = read_audit(folder / "audit.jsonl")
    for event in (
        "headquarters.made",
        "region.invited",
        "region.admitted",
        "training.started",
        "training.handed_over",
        "round.completed",
        "gate.decided",
        "matrix.trained",
        "matrix.measured",
        "release.written",
        "release.promoted",
        "release.rolled_back",
        "region.revoked",
    ):
        assert event in told[""], event
    for name in NAMES:
        swaps = 5 if name == "east" else 4  # base, 1, 2, 1, and there the pinned one and back
        assert told[name].count("index.swapped") >= swaps
        assert told[name][0] == "region.enrolled"
        assert "message.refused" not in told[name]
    both = (ROUNDS, 1, 1, 1, 1)
    trained = {"east": both, "north": both, "south": (ROUNDS, 1)}
    for name, rounds in trained.items():  # by training: validation, twice a round, and the gate
        expected = sum(1 + 2 * number + 1 for number in rounds)
        expected += {"east": 2, "south": 1}.get(name, 0)  # of the table: alone, and measured
        assert compare_logs(logs[""], logs[name], name) == (expected, [])
        compared = deployment.call(
            "audit", "compare", deployment.hq, deployment.region(name) / "state", "--region", name
        )
        assert f"{name}: {expected} messages counted by headquarters, all in" in compared


def test_ctrl_c_leaves_nothing_behind(deployment: Deployment) -> None:
    assert processes_of(deployment.folder)
    for daemon in deployment.daemons.values():
        daemon.process.send_signal(signal.SIGINT)
    for name, daemon in deployment.daemons.items():
        assert daemon.process.wait(timeout=60) == 0, f"{name}: {daemon.said}"
        assert "Traceback" not in daemon.said
    assert not processes_of(deployment.folder)
    assert not leftovers(deployment.folder)
    assert not list(deployment.folder.rglob("worker.sock"))
