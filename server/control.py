"""Headquarters' side of Flower's control API: register regions, start and watch runs.

Flower's own command line does the talking, as a child process that answers in JSON, and only to
the SuperLink on loopback: its control API knows no users. What Flower's list of nodes leaves out is
their names, so the names given here are kept beside Flower's state, in `nodes.json`.
"""

import json
import math
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Literal, get_args

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from pydantic import Field

from server.processes import CONNECTION
from shared.durable import Record, locked, new_folder, replace_file, set_aside
from shared.errors import ConfigError, FederationError
from shared.supervise import flower_environment, program_beside_python

NodeStatus = Literal["registered", "online", "offline", "unregistered"]
_TIMEOUT_S = 60.0
# What Flower says, and what it means here.
_AWAY = "Connection to the SuperLink is unavailable"
_EXPLAINED = {
    _AWAY: 'headquarters: its SuperLink does not answer; start it with "fedshelf server up"',
    "Public key already in use": (
        "node: this key was registered before, and Flower takes no key twice; make a new key"
    ),
}
_DECORATION = re.compile("\x1b\\[[0-9;]*m|[\u2500-\u257f]")  # colours and frames of a terminal
_ABSENT = "N/A"  # how Flower prints a time or a text that is not there
_APP_PACKAGES = ("server", "client", "shared")
_ROOT = Path(__file__).resolve().parents[1]


class SuperLinkAway(FederationError):
    """The SuperLink does not answer: it is not up, or it is just starting again."""


@dataclass(frozen=True)
class RunStatus:
    """How a run is doing.

    Attributes:
        status: "pending", "starting", "running" or "finished".
        sub_status: of a finished run "completed", "failed" or "stopped"; else "".
        details: Flower's explanation; "" if there is none.
    """

    status: str
    sub_status: str
    details: str

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen."""
        return self.status == "finished"

    @property
    def completed(self) -> bool:
        """Whether it ended well."""
        return self.sub_status == "completed"


@dataclass(frozen=True)
class NodeRecord:
    """One node as the SuperLink knows it; times are UTC, as Flower prints them, "" if never.

    Attributes:
        node_id: Flower's number for it.
        name: given when it was registered here; "" if it was registered by other means.
        status: whether it is connected, was, has never been, or may not any more.
        registered_at: when it was let in.
        online_since: when it last connected.
        online_s: seconds since then; meaningful while it is online.
        offline_since: when it was last given up.
    """

    node_id: int
    name: str
    status: NodeStatus
    registered_at: str
    online_since: str
    online_s: float
    offline_since: str


class _Names(Record):
    """`nodes.json`: the name of every node that was ever registered here."""

    names: dict[int, str] = Field(default_factory=dict)


class Control:
    """Ask the SuperLink of one Flower home.

    Args:
        home: Flower's home (`flower/` in headquarters' folder), with its `config.toml`.
        superlink: name of the connection in it.

    Raises:
        FederationError: there is no `config.toml`, so headquarters never ran here.
    """

    def __init__(self, home: Path, superlink: str = CONNECTION) -> None:
        self._home, self._superlink = home.resolve(), superlink
        if not (self._home / "config.toml").is_file():
            raise FederationError(
                f'{self._home}: no Flower home of headquarters; start it with "fedshelf server up"'
            )

    def start_run(self, app: Path, run_config: Mapping[str, str | int | float | bool]) -> int:
        """Send an app to the SuperLink, which runs it.

        Args:
            app: a Flower App's folder, such as `stage_app` makes.
            run_config: overrides of the app's own; only keys that it has.

        Returns:
            The run's id.

        Raises:
            ConfigError: a value is not of a kind that Flower carries.
            FederationError: the SuperLink cannot be reached or refuses the app.
        """
        with NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as overrides:
            overrides.write(run_config_toml(run_config))
            overrides.flush()
            # Flower reads one value "key=value" more loosely than a file of them.
            chosen = ["--run-config", overrides.name] if run_config else []
            answer = self._flwr("run", str(app.resolve()), self._superlink, *chosen)
        return int(answer["run-id"])

    def run_status(self, run_id: int) -> RunStatus:
        """How a run is doing.

        Raises:
            FederationError: no such run, or the SuperLink cannot be reached.
        """
        answer = self._flwr("list", self._superlink, "--run-id", str(run_id))
        (run,) = answer["runs"]
        status, _, sub_status = run["status"].partition(":")
        return RunStatus(status, sub_status, _text(run["status-details"]))

    def stop_run(self, run_id: int) -> None:
        """Stop a run that has not finished.

        Raises:
            FederationError: no such run, it has finished, or the SuperLink cannot be reached.
        """
        self._flwr("stop", str(run_id), self._superlink)

    def list_nodes(self) -> list[NodeRecord]:
        """Every node that was ever registered, in the order of registration.

        Raises:
            FederationError: the SuperLink cannot be reached.
        """
        answer, names = self._flwr("supernode", "list", self._superlink), self._names().names
        return [_node(row, names) for row in answer["nodes"]]

    def register(self, public_key: Path, name: str) -> int:
        """Let a node in, which proves by its key who it is.

        Args:
            public_key: an ECDSA public key in OpenSSH's format, on a NIST curve.
            name: the region's name; no other node that is let in may have it.

        Returns:
            The node's id.

        Raises:
            ConfigError: the file is missing or no such key.
            FederationError: the name is in use, the key was registered before (Flower takes no
                key twice, not even after `unregister`), or the SuperLink cannot be reached.
        """
        _check_public_key(public_key)
        with locked(self._home):
            if any(node.name == name for node in self._active_nodes()):
                raise FederationError(
                    f'node "{name}": registered already; remove it first, or choose another name'
                )
            key = str(public_key.resolve())
            answer = self._flwr("supernode", "register", key, self._superlink, "--name", name)
            node_id = int(answer["node-id"])
            kept = _Names(names={**self._names().names, node_id: name})
            replace_file(self._home / "nodes.json", kept.to_bytes())
        return node_id

    def unregister(self, node: int | str) -> int:
        """Shut a node out: its next request is refused. Its key cannot be registered again.

        Args:
            node: its id, or the name under which it was registered.

        Returns:
            Its id.

        Raises:
            FederationError: no such node is let in, or the SuperLink cannot be reached.
        """
        active = self._active_nodes()
        found = [each for each in active if node in (each.node_id, each.name)]
        if not found:
            known = ", ".join(each.name or str(each.node_id) for each in active)
            raise FederationError(f'node "{node}": not registered; known: {known or "none"}')
        self._flwr("supernode", "unregister", str(found[0].node_id), self._superlink)
        return found[0].node_id

    def _active_nodes(self) -> list[NodeRecord]:
        return [node for node in self.list_nodes() if node.status != "unregistered"]

    def _names(self) -> _Names:
        path = self._home / "nodes.json"
        if not path.is_file():
            return _Names()
        try:
            return _Names.from_bytes(path.read_bytes())
        except ValueError as error:
            raise FederationError(f"{path}: damaged ({error}); restore it from a backup") from None

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        """Call Flower's command line and return its JSON; its exit code says nothing."""
        command = [program_beside_python("flwr"), *arguments, "--format", "json"]
        try:
            done = subprocess.run(
                command,
                cwd=self._home,
                env={**flower_environment(self._home), "NO_COLOR": "1", "COLUMNS": "10000"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise FederationError(
                f"headquarters: no answer in {_TIMEOUT_S:g} s; read its logs"
            ) from None
        return _answer(done.stdout, done.stderr)


def run_config_toml(run_config: Mapping[str, str | int | float | bool]) -> str:
    """The overrides of a run as the file that `flwr run --run-config` reads.

    Raises:
        ConfigError: a value is not of a kind that Flower carries.
    """
    return "".join(
        f"{json.dumps(key)} = {_toml(key, value)}\n" for key, value in run_config.items()
    )


def stage_app(target: Path) -> Path:
    """Write the Flower App that `flwr run` sends out, from the packages that run here.

    Args:
        target: the folder to write; one that is there is replaced. Its name is of no account.

    Returns:
        `target`.

    Raises:
        ConfigError: the installation is not whole.
    """
    project = _project_file()
    with locked(target.parent):
        if target.exists():
            set_aside(target)
        with new_folder(target) as folder:
            shutil.copyfile(project, folder / "pyproject.toml")
            for package in _APP_PACKAGES:
                for source in sorted((_ROOT / package).rglob("*.py")):
                    place = folder / source.relative_to(_ROOT)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, place)
    return target


def _project_file() -> Path:
    """`pyproject.toml`: beside the packages in a checkout, in `shared/` in an installed wheel."""
    for path in (_ROOT / "pyproject.toml", _ROOT / "shared" / "pyproject.toml"):
        if path.is_file():
            return path
    raise ConfigError(f"{_ROOT}: pyproject.toml is missing; install fedshelf again")


def _answer(stdout: str, stderr: str) -> dict[str, Any]:
    """What Flower answered, or why it did not, in one line."""
    try:
        answer: dict[str, Any] = json.loads(stdout[stdout.find("{") :])
    except ValueError:  # some of its errors come as plain text
        raise FederationError(f"Flower: {_one_line(stderr or stdout)}") from None
    if answer.get("success"):
        return answer
    message = str(answer.get("error-message", ""))
    for said, meant in _EXPLAINED.items():
        if said in message:
            raise (SuperLinkAway if said == _AWAY else FederationError)(meant)
    # Above the empty line Flower says what it was about to do.
    raise FederationError(f"Flower: {_one_line(message.partition(chr(10) * 2)[2] or message)}")


def _one_line(text: str) -> str:
    return " ".join(_DECORATION.sub(" ", text).split()) or "no reason given"


def _check_public_key(path: Path) -> None:
    expected = "an ECDSA public key as ssh-keygen -t ecdsa writes it"
    try:
        key = load_ssh_public_key(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}, expected {expected}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{path}: not {expected}") from None
    if not isinstance(key, EllipticCurvePublicKey):
        raise ConfigError(f"{path}: another kind of key, Flower takes only {expected}")


def _text(printed: str) -> str:
    return "" if printed == _ABSENT else printed


def _node(row: Mapping[str, Any], names: Mapping[int, str]) -> NodeRecord:
    assert row["status"] in get_args(NodeStatus), row["status"]
    return NodeRecord(
        node_id=int(row["node-id"]),
        name=names.get(int(row["node-id"]), ""),
        status=row["status"],
        registered_at=_text(row["created-at"]),
        online_since=_text(row["online-at"]),
        online_s=float(row["online-elapsed"]),
        offline_since=_text(row["offline-at"]),
    )


def _toml(key: str, value: str | int | float | bool) -> str:
    """A value as TOML, which for these kinds is JSON."""
    if not isinstance(value, (str, int, float)):
        raise ConfigError(f'run config: "{key}" is {value!r}, expected text, number or true/false')
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f'run config: "{key}" is {value}, must be finite')
    if isinstance(value, str) and not value.isprintable():
        raise ConfigError(f'run config: "{key}" has characters that cannot be printed')
    return json.dumps(value, ensure_ascii=False)
