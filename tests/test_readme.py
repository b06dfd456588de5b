"""README and docs say only what is there: commands, options, make targets and links are tried."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[list[str]]:
    """Every fedshelf command line in a page's code, fenced or inline, in words."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"```[a-z]*\n(.*?)```", text, flags=re.DOTALL)
    inline = re.findall(r"`((?:\.venv/bin/)?fedshelf [^`\n]+)`", text)
    lines = [line for block in fenced for line in block.splitlines()] + inline
    found = [re.match(r"^(?:\$ )?(?:\.venv/bin/)?fedshelf (.+)$", line.strip()) for line in lines]
    return [shlex.split(match[1], comments=True) for match in found if match]


def help_of(command: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "fedshelf", command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "200", "PATH": "", "TERM": "dumb"},
    )
    return result.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_of_every_command_exist(page: Path) -> None:
    for words in commands(page):
        known = set(re.findall(r"--[a-z-]+", help_of(words[0])))
        assert {word for word in words if word.startswith("--")} <= known, words


def test_the_readme_shows_commands() -> None:
    assert {words[0] for words in commands(ROOT / "README.md")} == {"simulate", "search"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`", page.read_text(), flags=re.MULTILINE)
    assert {first or second for first, second in named} <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link
