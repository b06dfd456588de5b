"""README and docs say only what is there: commands, options, make targets and links are tried."""

import re
import shlex
from pathlib import Path

import click
import pytest
import typer

import fedshelf

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


def named_command(words: list[str]) -> tuple[list[str], click.Command]:
    """The command that a line calls, through its groups, and the words that name it."""
    command: click.Command = typer.main.get_command(fedshelf.app)
    named: list[str] = []
    for word in words:
        if not isinstance(command, click.Group):
            break
        named.append(word)
        assert word in command.commands, f"fedshelf {' '.join(named)}: no such command"
        command = command.commands[word]
    return named, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_of_every_command_exist(page: Path) -> None:
    for words in commands(page):
        command = named_command(words)[1]
        known = {option for parameter in command.params for option in parameter.opts}
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= known | {"--help"}, words


def test_the_readme_shows_commands() -> None:
    shown = {" ".join(named_command(words)[0]) for words in commands(ROOT / "README.md")}
    assert {"simulate", "search", "server init", "server train", "region enroll"} <= shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`", page.read_text(), flags=re.MULTILINE)
    assert {first or second for first, second in named} <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link
