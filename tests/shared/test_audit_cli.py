"""`fedshelf audit`: what it prints, its exit codes, and that its help imports nothing heavy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shared.audit import AuditLog, read_audit
from shared.cli import app
from shared.errors import AuditError
from shared.exchanges import exchange_facts

runner = CliRunner()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    for number in range(12):
        AuditLog(path).append("update.accepted", region="north", round=number, digest="3f" * 32)
    return path


def printed(*arguments: object) -> str:
    result = runner.invoke(app, ["audit", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_verify_prints_the_count_and_the_head_to_note(log: Path) -> None:
    head = read_audit(log)[-1].head()
    line = f"audit.jsonl: 12 entries, unbroken, head 12:{head.hash}\n"
    assert printed("verify", log) == line
    assert printed("verify", log.parent) == line
    assert printed("verify", log, "--head", line.split()[-1]) == line
    assert json.loads(printed("verify", log, "--json")) == {
        "path": str(log), "entries": 12, "head": str(head),
    }  # fmt: skip


def test_verify_counts_one_entry_in_the_singular(tmp_path: Path) -> None:
    AuditLog(tmp_path / "audit.jsonl").append("run.started")
    assert printed("verify", tmp_path).startswith("audit.jsonl: 1 entry, unbroken, head 1:")


def test_a_head_noted_earlier_stays_good(log: Path) -> None:
    noted = printed("verify", log).split()[-1]
    AuditLog(log).append("release.made")
    assert "13 entries" in printed("verify", log, "--head", noted)


@pytest.mark.parametrize("command", ["verify", "show"])
def test_a_broken_log_is_an_error(log: Path, command: str) -> None:
    log.write_bytes(log.read_bytes().replace(b"north", b"south", 1))
    with pytest.raises(AuditError, match="line 1 was changed"):
        printed(command, log)


def test_another_head_is_an_error(log: Path) -> None:
    with pytest.raises(AuditError, match="line 12 is not the entry of the head noted earlier"):
        printed("verify", log, "--head", f"12:{'0' * 64}")


def test_no_log_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match=r"audit\.jsonl: not found"):
        printed("verify", tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [("verify",), ("verify", "x", "--head", "12"), ("show", "x", "--last", "0"), ("colour",)],
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    assert runner.invoke(app, ["audit", *arguments]).exit_code == 2


def test_show_prints_the_newest_entries(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    AuditLog(log).append("release.made", regions=["[bold]north", "e\x1b[31mst"], release=7)
    text = printed("show", log, "--last", "2")
    lines = [line for line in text.splitlines() if "made" in line or "accepted" in line]
    assert [line.split("│")[1].strip() for line in lines] == ["12", "13"]
    assert 'digest "3f3f3f3f3f3f…", region "north", round 11' in lines[0]
    assert r'regions ["[bold]north", "e\u001b[31mst"], release 7' in lines[1]
    assert read_audit(log)[-1].time[:19] in lines[1]


def test_show_as_json_keeps_everything(log: Path) -> None:
    shown = json.loads(printed("show", log, "--last", "3", "--json"))
    assert shown == [entry.model_dump() for entry in read_audit(log)[-3:]]
    assert len(json.loads(printed("show", log, "--json"))) == 12  # fewer than the default, 20


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, shared.cli; from typer.testing import CliRunner;"
        "result = CliRunner().invoke(shared.cli.app, ['audit', 'verify', '--help']);"
        "assert result.exit_code == 0, result.output;"
        "sys.exit(str({'torch', 'flwr', 'polars', 'pydantic'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == ""


# -- one side's log against the other's ------------------------------------------------------------


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of headquarters and of the region north, which has answered once."""
    ours, theirs = tmp_path / "hq", tmp_path / "north"
    facts = exchange_facts("train", b"request", b"reply")
    AuditLog(theirs / "audit.jsonl").append("message.answered", **facts)
    received = {"train": {"north": facts["sent"]}}
    AuditLog(ours / "audit.jsonl").append(
        "round.completed", sent={"train": facts["received"]}, received=received
    )
    return ours, theirs


def test_logs_that_agree(both: tuple[Path, Path]) -> None:
    line = "north: 1 message counted by headquarters, all in the region's log\n"
    assert printed("compare", *both, "--region", "north") == line
    said = printed("compare", *both, "--region", "north", "--json")
    assert json.loads(said) == {"region": "north", "messages": 1}


def test_logs_that_do_not_agree_are_an_error(both: tuple[Path, Path]) -> None:
    ours, theirs = both
    AuditLog(ours / "audit.jsonl").append(
        "gate.decided", sent={"evaluate": "a" * 64}, received={"evaluate": {"north": "b" * 64}}
    )
    with pytest.raises(AuditError, match=r"1 of 2 messages .* \(entry 2, evaluate\); ask both"):
        printed("compare", ours, theirs, "--region", "north")


def test_a_region_that_headquarters_never_heard_is_a_wrong_name(both: tuple[Path, Path]) -> None:
    result = runner.invoke(app, ["audit", "compare", *map(str, both), "--region", "nroth"])
    assert result.exit_code == 2
    assert "counted no message of it" in result.output
