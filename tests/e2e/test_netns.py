"""The same federation on hosts of their own, with a cable that can be pulled.

A host is a network namespace; a further one holds the switch. Nothing outside these namespaces is
touched, and with them their interfaces go. So this needs root.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from deployment import (
    Deployment,
    Host,
    make_reference,
    open_folder,
    require_nginx,
    skip,
    wait_until,
    wait_until_busy,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

NAMES = ["north", "south"]  # regions; headquarters is ""
NETWORK = "10.213.77"
ROUND_S, DESCRIBE_S = 80, 45


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


@dataclass
class Network:
    """A switch and hosts on cables, each a network namespace.

    Attributes:
        mark: begins the name of every namespace.
        stack: takes all of it away.
    """

    mark: str
    stack: ExitStack
    addresses: dict[str, str] = field(default_factory=dict)

    def namespace(self, name: str) -> str:
        return f"{self.mark}-{name or 'headquarters'}"

    def open(self, names: list[str]) -> None:
        self._add("switch")
        self._in("switch", "link", "add", "bridge0", "type", "bridge")
        self._in("switch", "link", "set", "bridge0", "up")
        for number, name in enumerate(names):
            self._add(name)
            self.addresses[name] = f"{NETWORK}.{number + 1}"
            self._plug_in(number, name)

    def pull(self, name: str) -> None:
        """Pull a host's cable at the switch."""
        self._in("switch", "link", "set", self._port(name), "down")

    def put_back(self, name: str) -> None:
        self._in("switch", "link", "set", self._port(name), "up")

    def host(self, name: str) -> Host:
        return Host(("ip", "netns", "exec", self.namespace(name)))

    def _plug_in(self, number: int, name: str) -> None:
        cable = ("link", "add", self._port(name), "type", "veth", "peer", "name", "eth0")
        self._in("switch", *cable, "netns", self.namespace(name))
        self._in("switch", "link", "set", self._port(name), "master", "bridge0", "up")
        self._in(name, "address", "add", f"{self.addresses[name]}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            self._in(name, "link", "set", device, "up")

    def _port(self, name: str) -> str:
        return f"port{list(self.addresses).index(name)}"

    def _add(self, name: str) -> None:
        ip("netns", "add", self.namespace(name))
        self.stack.callback(ip, "netns", "delete", self.namespace(name))

    def _in(self, name: str, *words: str) -> None:
        ip("-netns", self.namespace(name), *words)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if os.geteuid() != 0:
        skip("network namespaces need root")
    with ExitStack() as stack:
        network = Network(f"fedshelf-{os.getpid()}", stack)
        try:
            network.open(["", *NAMES])
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", b"") or str(error).encode()
            skip(f"no network namespaces here: {said.decode(errors='replace').strip()}")
        yield network


@pytest.fixture(scope="module")
def deployment(
    network: Network, fashion: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    require_nginx()
    reference = make_reference(tmp_path_factory.mktemp("reference") / "run", fashion, regions=2)
    assert reference.regions == NAMES
    hosts = {name: network.host(name) for name in ("", *NAMES)}
    with (
        open_folder() as folder,
        Deployment(folder, reference, network.addresses[""], hosts) as deployment,
    ):
        deployment.open()
        yield deployment


@pytest.mark.slow  # minutes of waiting; `test_kills` hangs a region and has it catch up
def test_a_region_that_is_cut_off_is_left_behind_and_catches_up(
    deployment: Deployment, network: Network
) -> None:
    knobs = {"round_timeout_s": ROUND_S, "describe_timeout_s": DESCRIBE_S}
    try:
        with deployment.training(rounds=1, promote=True, **knobs) as run:
            run.wait_for_round(1)
            wait_until_busy(deployment.daemons["south"].pid("worker"), 0.1)
            network.pull("south")
            run.wait()
        first = run.rounds[1]
        assert first.cohort == NAMES
        assert {entry["region"] for entry in first.rejected} == {"south"}
        assert sorted(first.validation) == ["north"]
        wait_until("the other region has switched", lambda: deployment.in_use("north") == 1)
        assert deployment.in_use("south") == 0  # it answers on, with what it has
        words = ("search", "--region", deployment.region("south"), "red shirts", "--json")
        assert '"release": 0' in deployment.call(*words, host="south")
    finally:
        network.put_back("south")
    wait_until("it catches up", lambda: deployment.in_use("south") == 1)
    with deployment.training(rounds=1, min_regions=2) as run:
        run.wait()
    for record in run.rounds:
        assert record.cohort == NAMES
        assert record.rejected == []
    for daemon in deployment.daemons.values():
        assert "ended with" not in daemon.said  # nothing had to be started again


def test_hosts_reach_headquarters_and_not_what_is_behind_it(deployment: Deployment) -> None:
    """From another host only the public port answers; Flower's own is not there."""
    code = (
        "import socket, sys\n"
        "with socket.socket() as probe:\n"
        "    probe.settimeout(5)\n"
        "    print(probe.connect_ex((sys.argv[1], int(sys.argv[2]))))\n"
    )
    status = deployment.server_json("status")
    host, _, public = str(status["address"]).rpartition(":")
    text = (deployment.hq / "server.toml").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("superlink_port")]
    superlink = line.split("=")[1].split("#")[0].strip()
    answers = {}
    for port in (public, superlink):
        command = [*deployment.hosts["south"].prefix, "python3", "-c", code, host, port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        answers[port] = int(done.stdout)
    assert answers[public] == 0
    assert answers[superlink] != 0
