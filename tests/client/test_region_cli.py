"""`fedshelf region check` and `accept` as they are typed: what they say, and exit codes."""

import json
import shutil
from pathlib import Path

import pytest
from small_registry import NOW, HashEncoder, Headquarters, write_region
from small_world import Call

from client.decisions import read_state
from client.publication import Publication
from client.region import open_region
from shared.retrieval.manifest import read_pointer

WAIT = "[publication]\nauto_accept = false\n"

# -- check -----------------------------------------------------------------------------------------


def test_check_ends_with_0_where_nothing_is_wrong(north: Path, call: Call) -> None:
    said = call("region", "check", north)
    assert (said.code, said.err) == (0, "")
    assert "configuration" in said.out and "fail" not in said.out


def test_check_ends_with_1_where_a_row_fails(north: Path, call: Call) -> None:
    shutil.rmtree(north / "images")
    (north / "clicks.parquet").unlink()
    said = call("region", "check", north / "region.toml")
    assert (said.code, said.err) == (1, "")
    cells = [[cell.strip() for cell in line.split("│")] for line in said.out.splitlines()]
    assert ["clicks", "fail"] in [row[1:3] for row in cells]
    again = call("region", "check", north, "--json")
    facts = json.loads(again.out)
    assert (again.code, facts["exit_code"]) == (1, 1)
    verdicts = {row["what"]: row["verdict"] for row in facts["rows"]}
    assert (verdicts["clicks"], verdicts["configuration"]) == ("fail", "ok")


def test_check_of_a_folder_that_is_none_ends_with_1(tmp_path: Path, call: Call) -> None:
    said = call("region", "check", tmp_path / "nowhere", "--json")
    assert said.code == 1
    assert "region.toml: not found" in said.out + said.err
    assert "Traceback" not in said.err


# -- accept ----------------------------------------------------------------------------------------


@pytest.fixture
def waiting(tmp_path: Path) -> Path:
    """A region that waits for its operator to accept release 1."""
    headquarters = Headquarters(tmp_path)
    folder = write_region(tmp_path / "north", headquarters, WAIT)
    headquarters.release(adapter=b"one")
    step(folder)
    assert read_pointer(folder / "state").release == 0
    return folder


def step(folder: Path) -> None:
    """What the worker does when it looks for a release."""
    Publication(open_region(folder), encoder=lambda: HashEncoder(None)).step(now=NOW)


def test_a_release_that_waits_is_in_use_after_the_workers_next_look(
    waiting: Path, call: Call
) -> None:
    said = call("region", "accept", 1, waiting)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("release 1 ") and said.out.count("\n") == 1
    assert read_state(waiting / "state").wanted == 1
    step(waiting)
    assert read_pointer(waiting / "state").release == 1
    again = call("region", "accept", 1, waiting / "region.toml", "--json")
    assert (again.code, json.loads(again.out)) == (0, {"event": "release 1 is in use already"})


def test_only_what_headquarters_names_is_accepted(waiting: Path, call: Call) -> None:
    said = call("region", "accept", 2, waiting)
    assert (said.code, said.out) == (1, "")
    assert said.error == ("error: headquarters names release 1, not 2; to use another one, pin it")
    assert read_state(waiting / "state").wanted is None
    assert call("region", "accept", 0, waiting).code == 2


# -- drift -----------------------------------------------------------------------------------------


def test_drift_is_from_the_release_before_to_the_one_in_use(waiting: Path, call: Call) -> None:
    assert call("region", "accept", 1, waiting).code == 0
    step(waiting)
    said = call("region", "drift", waiting, "--json")
    facts = json.loads(said.out)
    assert (facts["before"], facts["after"], facts["k"]) == (0, 1, 4)
    assert 0 <= facts["unchanged"] <= facts["overlap"] <= 1
    plain = call("region", "drift", waiting).out
    assert plain.startswith("release 0 to 1: ") and plain.count("\n") == 1
    same = json.loads(call("region", "drift", waiting, "--before", 1, "--json").out)
    assert (same["before"], same["after"], same["overlap"]) == (1, 1, 1.0)


def test_without_two_releases_there_is_no_drift(waiting: Path, call: Call) -> None:
    said = call("region", "drift", waiting)
    assert (said.code, said.out) == (1, "")
    assert "no release was in use before the present one" in said.error
    said = call("region", "drift", waiting, "--before", 7)
    assert said.code == 1 and "no index of release 7" in said.error
