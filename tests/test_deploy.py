"""What `deploy/` and its page tell people to type exists, with these options and these users."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

import fedshelf
from client.processes import superexec_process, supernode_process
from shared.schema import BaseConfig, HeadquartersConfig, RegionConfig, ServeConfig
from shared.supervise import Process, flower_environment

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
PAGES = [ROOT / "docs" / "deployment.md", ROOT / "docs" / "serving.md", DEPLOY / "README.md"]
COMPOSE, SERVE = DEPLOY / "compose.yaml", DEPLOY / "compose.serve.yaml"
TEXTS = [*PAGES, *UNITS, DEPLOY / "Dockerfile", COMPOSE, SERVE]
INSTALLED = "/opt/fedshelf/bin/"
FLOWER = {"supernode", "superexec"}  # units and services that start a Flower program themselves
SHARED_BY_A_REGION = ("worker", "supernode", "superexec")

each_unit = pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
each_text = pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)


def require_command(words: Sequence[str]) -> None:
    """Let click parse a command line as it would before it runs it."""
    command: click.Command = typer.main.get_command(fedshelf.app)
    name, rest = "fedshelf", list(words)
    while isinstance(command, click.Group):
        assert rest and rest[0] in command.commands, f"{name}: no command {rest[:1]}"
        name, rest = f"{name} {rest[0]}", rest[1:]
        command = command.commands[name.split()[-1]]
    command.make_context(name, rest)


def leaves(command: click.Command, *words: str) -> Iterator[tuple[str, click.Command]]:
    """Every command that is no group, with the words that name it."""
    if not isinstance(command, click.Group):
        yield " ".join(words), command
        return
    for name, inner in command.commands.items():
        yield from leaves(inner, *words, name)


def settings(unit: Path) -> dict[str, list[str]]:
    """All values of each key of a unit, in order; lines that go on are joined."""
    found: dict[str, list[str]] = {}
    for line in re.sub(r"\\\n\s*", "", unit.read_text(encoding="utf-8")).splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def started(unit: Path) -> list[str]:
    (line,) = settings(unit)["ExecStart"]
    return shlex.split(line)


def unit(name: str) -> Path:
    return DEPLOY / "systemd" / f"fedshelf-{name}.service"


def compose(path: Path = COMPOSE) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def options(words: Sequence[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if word.startswith("--")}


def flower_processes(folder: Path) -> dict[str, Process]:
    """The two Flower programs as `fedshelf region up` starts them."""
    base = BaseConfig(path="base", fingerprint="0" * 64, release_key="0" * 64, releases="releases")
    config = RegionConfig(
        region="north", base=base, headquarters=HeadquartersConfig(address="hq.example:9443")
    )
    return {
        "supernode": supernode_process(folder, config, runtime_port=9094, user=None),
        "superexec": superexec_process(folder, config, runtime_port=9094, user=None),
    }


def typed(page: Path) -> Iterator[list[str]]:
    """Every fedshelf command line in a page's code, in words."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"```[a-z]*\n(.*?)```", text, flags=re.DOTALL)
    code = [line for block in fenced for line in block.splitlines()]
    code += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    groups = "server|region|audit|search|simulate"
    for line in code:
        match = re.search(rf"(?<![\w./-])fedshelf ((?:{groups})\b[^|;#]*)", line)
        if match:
            yield shlex.split(match[1])


@each_unit
def test_a_unit_starts_what_there_is(unit: Path) -> None:
    program, *arguments = started(unit)
    assert program.startswith(INSTALLED)
    if program == f"{INSTALLED}fedshelf":
        require_command(arguments)
    else:
        assert unit.stem.removeprefix("fedshelf-") in FLOWER


def test_a_supernode_waits_as_long_as_that_of_region_up(tmp_path: Path) -> None:
    unit = (DEPLOY / "systemd" / "fedshelf-supernode.service").read_text(encoding="utf-8")
    waits = flower_processes(tmp_path)["supernode"].restart_after_s
    assert f"\nRestartSec={waits:g}\n" in unit


def test_a_supernode_falls_with_its_superexec_as_that_of_region_up(tmp_path: Path) -> None:
    assert flower_processes(tmp_path)["supernode"].falls_with == "superexec"
    (after,) = settings(unit("superexec"))["ExecStopPost"]
    assert after.startswith("+/bin/sh")  # as root
    assert "systemctl kill --signal=KILL fedshelf-supernode.service" in after


def test_an_option_that_does_not_exist_would_be_found() -> None:
    with pytest.raises(click.UsageError, match="--fast"):
        require_command(["server", "up", "--fast"])
    with pytest.raises(AssertionError, match="no command"):
        require_command(["server", "down"])


def test_every_command_can_answer_in_json() -> None:
    found = dict(leaves(typer.main.get_command(fedshelf.app)))
    assert {"search", "simulate", "server up", "region rules check", "audit verify"} <= found.keys()
    assert len(found) > 30
    without = {
        name
        for name, command in found.items()
        if not any("--json" in option.opts for option in command.params)
    }
    assert without == set()


@pytest.mark.parametrize("name", sorted(FLOWER))
def test_flower_is_started_as_region_up_starts_it(name: str, tmp_path: Path) -> None:
    process = flower_processes(tmp_path)[name]
    program, *arguments = started(unit(name))
    service = compose()["services"][name]
    assert program.removeprefix(INSTALLED) == Path(process.argv[0]).name
    assert service["entrypoint"] == [Path(process.argv[0]).name]
    assert options(arguments) == options(service["command"]) == options(process.argv)


@pytest.mark.parametrize("name", sorted(FLOWER))
def test_flower_has_the_environment_that_region_up_gives_it(name: str, tmp_path: Path) -> None:
    wanted = flower_environment(tmp_path)
    words = " ".join(settings(unit(name))["Environment"]).split()
    given = dict(word.split("=", 1) for word in words)
    ours = compose()["services"][name]["environment"]
    for key in wanted.keys() - {"FLWR_HOME"}:
        if key.startswith("FLWR_"):
            assert (given[key], ours[key]) == (wanted[key], wanted[key])
    assert given["FLWR_HOME"] == ours["FLWR_HOME"] == f"/var/lib/{user_of(name)}"
    assert given["PATH"].split(":")[0] == INSTALLED.rstrip("/")


def user_of(name: str) -> str:
    (user,) = settings(unit(name))["User"]
    return user


def test_nothing_runs_as_root_and_a_region_has_three_users() -> None:
    made = set(
        re.findall(r"^u (\S+)", (DEPLOY / "systemd/fedshelf.sysusers.conf").read_text(), re.M)
    )
    assert {user_of(path.stem.removeprefix("fedshelf-")) for path in UNITS} == made
    assert len({user_of(name) for name in SHARED_BY_A_REGION}) == len(SHARED_BY_A_REGION)
    services = compose()["services"]
    assert {services[name]["user"] for name in services} - made == {"root"}
    assert [name for name in services if services[name]["user"] == "root"] == ["keys"]
    for name in SHARED_BY_A_REGION:
        assert services[name]["user"] == user_of(name)


def test_systemd_makes_every_user(tmp_path: Path) -> None:
    if shutil.which("systemd-sysusers") is None:
        pytest.skip("systemd-sysusers is not installed")
    users = DEPLOY / "systemd" / "fedshelf.sysusers.conf"
    (tmp_path / "etc").mkdir()
    made = subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", users],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (made.returncode, "not a valid" in made.stderr) == (0, False), made.stderr
    names = {line.split(":")[0] for line in (tmp_path / "etc/passwd").read_text().splitlines()}
    assert {user_of(path.stem.removeprefix("fedshelf-")) for path in UNITS} <= names
    groups = dict(
        (line.split(":")[0], line.split(":")[-1])
        for line in (tmp_path / "etc/group").read_text().splitlines()
    )
    assert groups["fedshelf-app"] == "fedshelf-worker"


def test_only_the_supernode_gets_the_node_key() -> None:
    credentials = {path.stem: settings(path).get("LoadCredential", []) for path in UNITS}
    holders = {
        name for name, given in credentials.items() if any("node.key" in one for one in given)
    }
    assert holders == {"fedshelf-supernode"}


def test_what_headquarters_sends_reaches_no_data_and_no_network() -> None:
    own = settings(unit("superexec"))
    assert (own["IPAddressDeny"], own["IPAddressAllow"]) == (["any"], ["localhost"])
    assert "-/var/lib/fedshelf-worker" in own["InaccessiblePaths"][0].split()
    services, networks = compose()["services"], compose()["networks"]
    assert services["superexec"]["networks"] == ["inside"] and networks["inside"]["internal"]
    mounted = {volume.split(":")[0] for volume in services["superexec"]["volumes"]}
    assert mounted == {"app", "socket"}


def test_what_headquarters_sends_cannot_take_the_place_of_the_service() -> None:
    assert settings(unit("superexec"))["SocketBindDeny"] == ["any"]
    assert "SocketBindDeny" not in settings(unit("worker"))


def test_a_region_that_serves_in_containers_opens_its_worker_alone() -> None:
    base, added = compose(), compose(SERVE)
    assert added.keys() == {"services"} and added["services"].keys() == {"worker"}
    assert added["services"]["worker"].keys().isdisjoint(base["services"]["worker"])
    assert [name for name in base["services"] if "ports" in base["services"][name]] == [
        "headquarters"
    ]
    worker = added["services"]["worker"]
    served = ServeConfig()
    ports = [address.rpartition(":")[2] for address in (served.http, served.grpc)]
    assert worker["ports"] == [f"{port}:{port}" for port in ports]
    assert "networks" not in base["services"]["worker"]  # so not that of what headquarters sends


def test_the_health_check_of_a_region_that_serves_is_a_program() -> None:
    *python, program = compose(SERVE)["services"]["worker"]["healthcheck"]["test"]
    assert python == ["CMD", "python", "-c"]
    compile(program, "healthcheck", "exec")
    (url,) = re.findall(r'"(https://[^"]+)"', program)
    assert url.endswith(":8080/readyz")


@each_unit
def test_systemd_accepts_a_unit(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / unit.name
    text = re.sub(
        rf"^ExecStart={INSTALLED}[a-z-]+", "ExecStart=/bin/true", unit.read_text(), flags=re.M
    )
    # What it comes after would be looked for on this machine.
    copy.write_text(re.sub(r"^(Wants|After)=.*\n", "", text, flags=re.M), encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_compose_starts_what_there_is() -> None:
    found = compose()
    for name, service in found["services"].items():
        if "entrypoint" not in service:
            require_command(service["command"])
        for volume in service["volumes"]:
            assert volume.split(":")[0] in found["volumes"], name
        assert service["cap_drop"] == ["ALL"] and service["read_only"], name
        assert set(service.get("depends_on", ())) <= found["services"].keys(), name
        dockerfile = found["services"][name]["build"]["dockerfile"]
        assert (DEPLOY / service["build"]["context"] / dockerfile).is_file()


def test_the_one_shell_script_is_one() -> None:
    (script,) = compose()["services"]["keys"]["command"]
    subprocess.run(["sh", "-n", "-c", script.replace("$$", "$")], check=True, timeout=10)


def test_the_image_copies_what_there_is_and_has_the_users() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    for line in re.findall(r"^COPY (.+)$", text, flags=re.M):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists(), name
    (names,) = re.findall(r"for user in ([a-z ]+);", text)
    units = {user_of(path.stem.removeprefix("fedshelf-")) for path in UNITS}
    assert {f"fedshelf-{name}" for name in names.split()} == units


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_parses(page: Path) -> None:
    commands = list(typed(page))
    assert commands
    for words in commands:
        require_command(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


def test_the_readme_names_every_file() -> None:
    text = (DEPLOY / "README.md").read_text(encoding="utf-8")
    files = {path for path in DEPLOY.rglob("*") if path.is_file()} - {DEPLOY / "README.md"}
    assert [path for path in files if f"({path.relative_to(DEPLOY)})" not in text] == []


@each_text
def test_no_host_and_no_path_of_ours(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\b[\w-]+\.(com|net|io|dev|org|cloud)\b", text)
    assert str(ROOT) not in text
    for image in re.findall(r"^FROM (\S+)|^ *image: (\S+)", text, flags=re.M):
        assert "/" not in "".join(image)  # a name of the default registry, or built here
