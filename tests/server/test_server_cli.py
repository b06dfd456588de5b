"""What headquarters' people type: text or JSON, exit codes, and one line where it is wrong.

Flower's control API is the one that runs the ServerApp in this process; all else is as typed.
"""

import json
import shlex
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from small_federation import SmallFederation, SmallGrid, fails, run_server_app, worse
from small_world import Answer, Call

import server.cli
from server import conduct
from server.enrolment import regions
from server.headquarters import open_headquarters
from server.releases import public_key_hex
from server.training import release_numbers, trainings
from shared.audit import read_audit
from shared.config import default_run_config
from shared.errors import FederationError
from shared.release import read_current, read_release


@pytest.fixture(name="call")
def server_call(call: Call) -> Call:
    """Call `fedshelf server` with these arguments."""
    return lambda *arguments: call("server", *arguments)


@pytest.fixture
def small(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> SmallFederation:
    made = SmallFederation(tmp_path / "hq", tiny_base)
    monkeypatch.setattr(conduct, "POLL_S", 0)
    monkeypatch.setattr(conduct, "ASK_S", 0)
    monkeypatch.setattr(server.cli, "_control", lambda hq: made.control)
    return made


@pytest.fixture
def at(small: SmallFederation) -> tuple[str, Path]:
    """The option that names its folder."""
    return "--dir", small.hq.folder


def facts(answer: Answer) -> Any:
    """The JSON that is all a command said."""
    assert (answer.code, answer.err) == (0, "")
    return json.loads(answer.out)


# -- init ------------------------------------------------------------------------------------------


def test_init_makes_a_headquarters_from_a_preset(
    call: Call, tmp_path: Path, tiny_base: Path
) -> None:
    folder = tmp_path / "hq"
    answer = call("init", folder, "--address", "hq.example:8443", "--preset", "tiny")
    hq = open_headquarters(folder)
    assert answer.code == 0
    assert f"headquarters in {folder}, base {hq.fingerprint[:12]}" in answer.out
    assert 'next: "fedshelf server up --dir' in answer.out
    assert [entry.event for entry in read_audit(hq.audit)] == ["headquarters.made"]
    assert hq.config.name == "fedshelf"


def test_init_takes_a_base_a_key_and_a_port(call: Call, tmp_path: Path, small: Any) -> None:
    key = small.hq.signing_key
    found = facts(
        call(
            *("init", tmp_path / "two", "--address", "hq.example:8443", "--name", "Two"),
            *("--base", small.hq.base, "--signing-key", key, "--superlink-port", 20000, "--json"),
        )
    )
    hq = open_headquarters(tmp_path / "two")
    assert found == {
        "folder": str(hq.folder),
        "address": "hq.example:8443",
        "base_fingerprint": small.hq.fingerprint,
        "release_key": public_key_hex(key),
    }
    assert not hq.signing_key.exists()
    written = tomllib.loads((hq.folder / "server.toml").read_text())
    assert (written["name"], written["superlink_port"]) == ("Two", 20000)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "either --base FOLDER or --preset NAME"),
        (["--preset", "huge"], "unknown; choose one of"),
        (["--preset", "tiny", "--name", "a\nb"], "server.toml: name: "),
        (["--base", "nowhere"], "not a base artefact"),
    ],
)
def test_init_leaves_nothing_where_it_fails(
    more: list[str], message: str, call: Call, tmp_path: Path
) -> None:
    answer = call("init", tmp_path / "hq", "--address", "hq.example:8443", *more)
    assert answer.code == 1
    assert message in answer.error
    assert answer.out == ""
    assert list(tmp_path.iterdir()) == []


def test_init_overwrites_nothing(call: Call, at: Any) -> None:
    answer = call("init", at[1], "--address", "hq.example:8443", "--preset", "tiny")
    assert (answer.code, "in use already" in answer.error) == (1, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["init"],
        ["init", "hq"],
        ["train", "--rounds", "0"],
        ["train", "--rounds", "many"],
        ["promote", "0"],
        ["promote", "first"],
        ["promote"],
        ["schedule"],
        ["schedule", "--every-h", "0"],
        ["schedule", "--every-h", "inf"],
        ["status", "--colour"],
        ["train", "--resume", "--abandon"],
        ["train", "--resume", "--set", "quorum=1"],
        ["train", "--prepare", "--promote"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], call: Call) -> None:
    answer = call(*arguments)
    assert answer.code == 2
    assert answer.out == ""
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["status"],
        ["releases", "--json"],
        ["promote", "1"],
        ["invite", "north"],
        ["schedule", "--every-h", "1"],
        ["matrix"],
    ],
)
def test_a_folder_that_is_no_headquarters_is_one_line(
    arguments: list[str], call: Call, tmp_path: Path
) -> None:
    answer = call(*arguments, "--dir", tmp_path)
    assert answer.code == 1
    assert answer.error == (
        f"error: {tmp_path}: no server.toml, so not a headquarters folder; make one with "
        '"fedshelf server init DIR"'
    )
    assert list(tmp_path.iterdir()) == []


# -- regions ---------------------------------------------------------------------------------------


def test_an_invitation_is_a_private_file(
    call: Call, at: Any, tmp_path: Path, small: SmallFederation
) -> None:
    path = tmp_path / "north.json"
    found = facts(call("invite", "north", *at, "--out", path, "--json"))
    assert found["file"] == str(path)
    assert path.stat().st_mode & 0o777 == 0o600
    written = json.loads(path.read_text())
    assert (written["region"], written["address"]) == ("north", "hq.example:8443")
    assert found.keys() == {"file", "expires"}  # no secret on the screen
    assert regions(small.hq)["north"].state == "invited"
    assert small.events() == ["region.invited"]


def test_an_invitation_has_a_name_of_its_own_by_default(
    call: Call, at: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = call("invite", "north", *at)
    assert answer.code == 0
    assert "  fedshelf region enroll north.enrolment.json" in answer.out
    token = json.loads((tmp_path / "north.enrolment.json").read_text())["token"]
    assert token not in answer.out


def test_a_second_invitation_into_the_same_file_leaves_the_first_one_valid(
    call: Call, at: Any, tmp_path: Path, small: SmallFederation
) -> None:
    path = tmp_path / "north.json"
    call("invite", "north", *at, "--out", path)
    before = (path.read_bytes(), small.hq.regions.read_bytes(), small.events())
    answer = call("invite", "north", *at, "--out", path)
    assert answer.code == 1
    assert "north.json: there already, and nothing is overwritten" in answer.error
    assert (path.read_bytes(), small.hq.regions.read_bytes(), small.events()) == before


@pytest.mark.parametrize("name", ["North", "../north", "", "a b"])
def test_who_cannot_be_a_region_is_not_invited(
    name: str, call: Call, at: Any, tmp_path: Path, small: SmallFederation
) -> None:
    answer = call("invite", name, *at, "--out", tmp_path / "file.json")
    assert answer.code == 1
    assert "a region's name is" in answer.error
    assert not (tmp_path / "file.json").exists()
    assert regions(small.hq) == {}


def test_an_invitation_can_be_withdrawn(
    call: Call, at: Any, tmp_path: Path, small: SmallFederation
) -> None:
    call("invite", "north", *at, "--out", tmp_path / "north.json")
    assert facts(call("revoke", "north", *at, "--json")) == {"region": "north", "state": "revoked"}
    assert call("revoke", "south", *at).code == 1
    assert small.events() == ["region.invited", "region.revoked"]


# -- training --------------------------------------------------------------------------------------


def test_a_training_is_told_line_by_line(call: Call, at: Any, small: SmallFederation) -> None:
    answer = call("train", *at, "--rounds", 2)
    assert (answer.code, answer.err) == (0, "")
    heads = [line.split(":")[0] for line in answer.out.splitlines()]
    assert heads == [
        "training 1",
        "round 0",
        "round 1",
        "round 2",
        "gate",
        "  against release 0, mean",
        "  against release 0, east",
        "  against release 0, north",
        "release 1 is signed",
        'put it into use with "fedshelf server promote 1"',
    ]
    assert "gate: round 2 is accepted" in answer.out
    assert not (small.hq.releases / "current.json").exists()


def test_a_training_as_json_and_into_use(call: Call, at: Any, small: SmallFederation) -> None:
    found = facts(call("train", *at, "--rounds", 2, "--seed", 5, "--promote", "--json"))
    assert (found["training"], found["release"]) == (1, 1)
    assert [record["round"] for record in found["rounds"]] == [0, 1, 2]
    assert found["gate"]["decision"]["accepted"] is True
    assert read_current(small.hq.releases, public_key_hex=small.hq.release_key).release == 1
    assert small.control.runs[0]["seed"] == 5


def test_what_is_declined_is_said_and_exit_code_0(
    call: Call, at: Any, small: SmallFederation
) -> None:
    for region in small.regions:
        region.spoilt["gate"] = worse(region)
    answer = call("train", *at, "--rounds", 1, "--promote")
    assert answer.code == 0
    assert "gate: round 1 is declined" in answer.out
    assert "release" not in answer.out.splitlines()[-1].split(":")[0]
    assert release_numbers(small.hq.releases) == []
    assert facts(call("train", *at, "--rounds", 1, "--json"))["release"] is None


def test_a_training_that_fails_is_resumed(call: Call, at: Any, small: SmallFederation) -> None:
    for region in small.regions:
        region.spoilt["round"] = fails
    answer = call("train", *at, "--rounds", 1)
    assert answer.code == 1
    assert answer.error.endswith('go on with "fedshelf server train --resume"')
    assert "is not over; go on with" in call("train", *at).error
    for region in small.regions:
        region.spoilt.clear()
    found = facts(call("train", *at, "--resume", "--json"))
    assert (found["training"], found["release"]) == (1, 1)
    # Once more is no harm: nothing is left to do.
    again = facts(call("train", *at, "--resume", "--promote", "--json"))
    assert again == found
    assert read_current(small.hq.releases, public_key_hex=small.hq.release_key).release == 1
    assert len(small.control.runs) == 2


def test_a_training_that_flower_s_own_command_ran_is_released(
    call: Call, at: Any, small: SmallFederation
) -> None:
    found = facts(call("train", *at, "--rounds", 1, "--set", "quorum=1", "--prepare", "--json"))
    home, _, *words, run_config_file = shlex.split(found["command"])
    assert home == f"FLWR_HOME={small.hq.flower.resolve()}"
    app = str(small.hq.flower / "app")
    assert words == ["run", app, "prod", "--stream", "--run-config"]
    run_config = tomllib.loads(Path(run_config_file).read_text(encoding="utf-8"))
    assert (run_config["num-rounds"], run_config["quorum"]) == (1, 1)
    run_server_app(SmallGrid(small.regions), run_config)
    assert facts(call("train", *at, "--resume", "--json"))["release"] == 1
    assert small.control.runs == []


def test_a_training_can_be_given_up(call: Call, at: Any, small: SmallFederation) -> None:
    small.regions[0].spoilt["round"] = small.regions[1].spoilt["round"] = fails
    call("train", *at, "--rounds", 1)
    small.regions[0].spoilt.clear()
    small.regions[1].spoilt.clear()
    found = facts(call("train", *at, "--abandon", "--rounds", 1, "--json"))
    assert (found["training"], found["release"]) == (2, 1)
    gate = trainings(small.hq.trainings)[0].history.gate()
    assert gate is not None
    assert gate["decision"]["reasons"] == ["given up by headquarters"]
    answer = call("train", *at, "--abandon")
    assert "training 2: the gate has decided" in answer.error
    assert len(trainings(small.hq.trainings)) == 2


def test_nothing_to_go_on_with(call: Call, at: Any) -> None:
    for option in ("--resume", "--abandon"):
        answer = call("train", *at, option)
        assert answer.code == 1
        assert 'empty; start with "fedshelf server train"' in answer.error


def test_while_headquarters_is_not_up_no_training_is_made(
    call: Call, at: Any, small: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real control, which finds nothing running
    answer = call("train", *at)
    assert answer.code == 1
    assert 'start it with "fedshelf server up"' in answer.error
    assert trainings(small.hq.trainings) == []


def test_knobs_have_the_types_of_their_defaults(
    call: Call, at: Any, small: SmallFederation
) -> None:
    given = ("quorum=1", "batch-size=8", "gate-tolerance=1e-1")
    call("train", *at, "--rounds", 1, *(part for pair in given for part in ("--set", pair)))
    (asked,) = small.control.runs
    assert (asked["quorum"], asked["batch-size"], asked["gate-tolerance"]) == (1.0, 8, 0.1)
    defaults = default_run_config()
    assert all(type(value) is type(defaults[key]) for key, value in asked.items())


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("colour=red", "--set colour=red: expected KEY=VALUE with one of quorum, "),
        ("quorum", "--set quorum: expected KEY=VALUE"),
        ("", "--set : expected KEY=VALUE"),
        ("quorum=half", "--set quorum=half: expected float"),
        ("batch-size=8.5", "--set batch-size=8.5: expected int"),
        ("batch-size=", "--set batch-size=: expected int"),
        ("quorum=1.5", '"quorum" is 1.5, must be in (0, 1]'),
        ("quorum=nan", '"quorum" is nan, must be finite'),
        # These are said by options, or would make another thing of a training.
        ("num-rounds=3", "--set num-rounds=3: expected KEY=VALUE with one of quorum"),
        ("seed=3", "--set seed=3: expected KEY=VALUE with one of quorum"),
        ("run-dir=x", "--set run-dir=x: expected KEY=VALUE with one of quorum"),
        ("task=matrix", "--set task=matrix: expected KEY=VALUE with one of quorum"),
        ("gate=false", "--set gate=false: expected KEY=VALUE with one of quorum"),
    ],
)
def test_a_wrong_knob_is_named_before_anything_is_made(
    pair: str, message: str, call: Call, at: Any, small: SmallFederation
) -> None:
    answer = call("train", *at, "--set", pair)
    assert answer.code == 1
    assert message in answer.error
    assert trainings(small.hq.trainings) == []
    assert small.control.runs == []


def test_a_schedule_trains_as_often_as_asked(call: Call, at: Any, small: SmallFederation) -> None:
    answer = call("schedule", *at, "--every-h", 1, "--rounds", 1, "--times", 1, "--promote")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines()[-1] == "release 1 is in use"
    assert small.control.runs[0]["seed"] == 7


# -- releases --------------------------------------------------------------------------------------


def test_promote_and_roll_back(call: Call, at: Any, small: SmallFederation) -> None:
    for _ in range(2):
        call("train", *at, "--rounds", 1)
    answer = call("promote", 2, *at)
    assert answer.code == 0
    assert answer.out.startswith("release 2 is in use, until ")
    found = facts(call("rollback", 1, *at, "--json"))
    assert (found["release"], found["sequence"]) == (1, 2)
    assert small.events()[-2:] == ["release.promoted", "release.rolled_back"]
    rows = facts(call("releases", *at, "--json"))
    assert [(row["release"], row["in_use"]) for row in rows] == [(1, True), (2, False)]
    for command in ("promote", "rollback"):
        answer = call(command, 3, *at)
        assert answer.code == 1
        assert "3/MANIFEST.json: not found" in answer.error
    assert read_current(small.hq.releases, public_key_hex=small.hq.release_key).sequence == 2


def test_releases_as_a_table(call: Call, at: Any, small: SmallFederation) -> None:
    assert facts(call("releases", *at, "--json")) == []
    small.release()
    answer = call("releases", *at)
    assert answer.code == 0
    assert "in use" in answer.out


def test_a_rotation_lets_releases_be_signed_twice(
    call: Call, at: Any, small: SmallFederation
) -> None:
    small.release()
    found = facts(call("rotate-key", *at, "--json"))
    assert found["release_key"] == public_key_hex(small.hq.signing_key) != small.hq.release_key
    assert call("promote", 1, *at).code == 0
    for key in (found["release_key"], small.hq.release_key):
        assert read_release(small.hq.releases / "1", public_key_hex=key).number == 1
    assert "signing_key.rotated" in small.events()
    assert "there already" in call("rotate-key", *at).error


def test_a_certificate_is_renewed(call: Call, at: Any, small: SmallFederation) -> None:
    before = small.hq.server_certificate.read_bytes()
    assert "until" in facts(call("renew-certificate", *at, "--json"))
    assert small.hq.server_certificate.read_bytes() != before
    assert small.events() == ["certificate.renewed"]


# -- status and table ------------------------------------------------------------------------------


def test_status(call: Call, at: Any, small: SmallFederation, tmp_path: Path) -> None:
    call("invite", "east", *at, "--out", tmp_path / "east.json")
    small.release()
    found = facts(call("status", *at, "--json"))
    assert found["release"] == 1
    (east,) = found["regions"]
    assert (east["region"], east["state"], east["online"]) == ("east", "invited", None)
    assert east["num_examples"] == 4
    answer = call("status", *at)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines()[-1] == "training 1: 2 of 2 rounds, complete"


def test_a_table_and_its_picture(call: Call, at: Any, small: SmallFederation) -> None:
    assert "ended as failed" in call("matrix", *at, "--rounds", 1).error  # nobody agrees
    for region in small.regions:
        fields = {**vars(region.description), "in_matrix": True}
        region.description = type(region.description)(**fields)
    found = facts(call("matrix", *at, "--rounds", 1, "--json"))
    assert found["rows"].keys() == {"release 0"}
    answer = call("matrix", *at, "--rounds", 1)
    assert answer.code == 0
    picture = small.hq.matrices / "0003" / "matrix.svg"
    assert answer.out.splitlines()[-1].endswith("matrix.svg") or "heat map: " in answer.out
    ElementTree.fromstring(picture.read_text())


def test_a_failing_control_is_one_line(
    call: Call, at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(hq: object) -> object:
        raise FederationError("headquarters: its SuperLink does not answer")

    monkeypatch.setattr(server.cli, "_control", down)
    for command in ("train", "matrix"):
        answer = call(command, *at)
        assert answer.code == 1
        assert answer.error == "error: headquarters: its SuperLink does not answer"
    # A schedule says so, and would try again an hour later.
    answer = call("schedule", *at, "--every-h", 1, "--times", 1)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == "training 1: headquarters: its SuperLink does not answer\n"
