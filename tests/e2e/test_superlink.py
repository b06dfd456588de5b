"""Headquarters for real: SuperLink, SuperExec and nginx, and a region that comes in through nginx.

The tests share one deployment and build on each other in the order of this file: the last ones shut
the region out and take headquarters down.
"""

import http.client
import os
import signal
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

from server.control import Control, NodeRecord, RunStatus
from server.processes import Ports, headquarters_processes, prepare
from shared.errors import FederationError
from shared.supervise import (
    Process,
    Restarts,
    Supervisor,
    flower_environment,
    program_beside_python,
)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not Path("/usr/sbin/nginx").is_file(), reason="nginx is not installed"),
]

DEADLINE_S = 60
NAME = "region-north"
ODD = 'it\'s "odd" = [x] \\ ü'

SERVER_APP = f"""
import time
import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()

@app.main()
def main(grid: Grid, context: Context) -> None:
    assert context.run_config == {{"odd": {ODD!r}, "count": 3, "share": 0.5, "sure": True}}
    deadline = time.monotonic() + 40
    while not (nodes := list(grid.get_node_ids())):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    sent = np.random.default_rng(0).random(1_500_000)  # 12 MB: three pieces each way
    content = RecordDict({{"numbers": ArrayRecord([sent])}})
    message = Message(content, dst_node_id=nodes[0], message_type="query.twice")
    (reply,) = grid.send_and_receive([message], timeout=60)
    assert not reply.has_error()
    assert (reply.content["numbers"].to_numpy_ndarrays()[0] == 2 * sent).all()
"""
CLIENT_APP = """
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.query("twice")
def twice(message: Message, context: Context) -> Message:
    (numbers,) = message.content["numbers"].to_numpy_ndarrays()
    return Message(RecordDict({"numbers": ArrayRecord([2 * numbers])}), reply_to=message)
"""
PROJECT = """
[project]
name = "trial"
version = "1.0.0"

[tool.flwr.app]
publisher = "fedshelf"
fab-include = ["*.py"]

[tool.flwr.app.components]
serverapp = "trial_server:app"
clientapp = "trial_client:app"

[tool.flwr.app.config]
odd = ""
count = 0
share = 0.0
sure = false
"""


def wait_until(what: Callable[[], Any]) -> Any:
    give_up = time.monotonic() + DEADLINE_S
    while not (value := what()):
        assert time.monotonic() < give_up, "waited too long"
        time.sleep(0.2)
    return value


def alive_in(sessions: set[str]) -> list[str]:
    """Processes of these sessions; a zombie is none, it only waits to be counted."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            if session in sessions and state != "Z":
                found.append(path.parent.name)
    return found


def free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return int(chosen.getsockname()[1])


def write_certificates(folder: Path) -> None:
    """A CA, and one certificate of it for headquarters."""
    folder.mkdir(mode=0o700)
    now, year = datetime.now(UTC) - timedelta(hours=1), timedelta(days=365)
    ca_key, key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    ca_name, name = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in ("ca", "hq.example")
    )
    base = x509.CertificateBuilder().not_valid_before(now).not_valid_after(now + year)
    ca = (
        base.subject_name(ca_name)
        .issuer_name(ca_name)
        .public_key(ca_key.public_key())
        .serial_number(1)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(ca_key, SHA256())
    )
    names = [
        x509.DNSName("localhost"),
        x509.DNSName("hq.example"),
        x509.IPAddress(ip_address("127.0.0.1")),
    ]
    certificate = (
        base.subject_name(name)
        .issuer_name(ca_name)
        .public_key(key.public_key())
        .serial_number(2)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(ca_key, SHA256())
    )
    (folder / "ca.crt").write_bytes(ca.public_bytes(Encoding.PEM))
    (folder / "server.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "server.key").write_bytes(pem)
    (folder / "server.key").chmod(0o600)


def write_node_key(path: Path) -> Path:
    """A region's key, as ssh-keygen writes it; returns the public half."""
    key = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.chmod(0o600)
    public = path.with_suffix(".pub")
    public.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    return public


@dataclass
class Deployment:
    """Headquarters and one region, both under supervision."""

    home: Path
    region: Path
    ports: Ports
    headquarters: Supervisor
    node: Supervisor
    events: list[str]
    control: Control

    def request(self, head: str, *, port: int | None = None) -> tuple[int, bytes]:
        """Send a request head just as it is: an HTTP library would tidy its path."""
        context = ssl.create_default_context(cafile=str(self.home / "tls" / "ca.crt"))
        address = ("127.0.0.1", port or self.ports.public)
        with (
            socket.create_connection(address, timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="hq.example") as secured,
        ):
            secured.sendall(head.encode() + b"\r\nHost: hq.example\r\nConnection: close\r\n\r\n")
            answer = http.client.HTTPResponse(secured, method=head.split()[0])
            answer.begin()
            return answer.status, answer.read()

    def status(self, method: str, path: str) -> int:
        return self.request(f"{method} {path} HTTP/1.1\r\nContent-Length: 0")[0]

    def node_record(self) -> NodeRecord:
        (record,) = self.control.list_nodes()
        return record

    def start_run(self) -> int:
        config = {"odd": ODD, "count": 3, "share": 0.5, "sure": True}
        return self.control.start_run(self.region / "trial", config)

    def run(self) -> RunStatus:
        """Run the trial app to its end."""
        run_id = self.start_run()
        wait_until(lambda: self.control.run_status(run_id).finished)
        return self.control.run_status(run_id)


def node_process(region: Path, ports: Ports, ca: Path) -> Process:
    argv = (
        program_beside_python("flower-supernode"),
        *("--superlink", f"127.0.0.1:{ports.public}", "--root-certificates", str(ca)),
        *("--auth-supernode-private-key", str(region / "key"), "--port", str(free_port())),
    )
    environment = flower_environment(region / "flower")
    return Process("supernode", argv, environment, region, region / "supernode.log")


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    # Not under pytest's own folder: nginx's workers, who are nobody, must be able to enter.
    with tempfile.TemporaryDirectory() as name:
        home, region, ports = (
            Path(name, "hq"),
            Path(name, "region"),
            Ports(free_port(), free_port()),
        )
        Path(name).chmod(0o755)
        for folder in (home, region, region / "trial"):
            folder.mkdir()
        write_certificates(home / "tls")
        public_key = write_node_key(region / "key")
        for file, text in (
            ("pyproject.toml", PROJECT),
            ("trial_server.py", SERVER_APP),
            ("trial_client.py", CLIENT_APP),
        ):
            (region / "trial" / file).write_text(text)
        prepare(home, ports, public_host="127.0.0.1")
        events: list[str] = []
        processes = headquarters_processes(home, ports, public_host="127.0.0.1")
        headquarters = Supervisor(processes, on_event=events.append)
        once = Restarts(max_failures=0)
        node_argv = node_process(region, ports, home / "tls" / "ca.crt")
        node = Supervisor([node_argv], on_event=events.append, restarts=once)
        control = Control(home / "flower")
        try:
            headquarters.start()
            control.register(public_key, NAME)
            node.start()
            thread = threading.Thread(target=headquarters.run)
            thread.start()
            yield Deployment(home, region, ports, headquarters, node, events, control)
        finally:
            node.stop()
            headquarters.stop()
            thread.join(DEADLINE_S)


def test_a_region_gets_in_through_the_public_door(deployment: Deployment) -> None:
    wait_until(lambda: deployment.node_record().status == "online")
    record = deployment.node_record()
    assert record.name == NAME
    assert record.online_since
    assert (deployment.home / "flower").stat().st_mode & 0o077 == 0
    assert (deployment.home / "flower" / "superexec.secret").stat().st_mode & 0o077 == 0


FORBIDDEN = [
    "/",
    "/health",
    "/docs",
    "/openapi.json",
    "/v1",
    "/v1/fleet",
    "/v1/fleet/",
    "/v1/control/list-nodes",
    "/v1/control/start-run",
    "/v1/runtime/acquire-task",
    "/v1/fleet/../control/list-nodes",
    "/v1/fleet/../../v1/control/list-nodes",
    "/v1/fleet/%2e%2e/control/list-nodes",
    "/v1/fleet/%2E%2E%2Fcontrol%2Flist-nodes",
    "/v1/fleet/..%2fcontrol/list-nodes",
    "/v1/fleet/%252e%252e/control/list-nodes",
    "/v1/fleet/..;/control/list-nodes",
    "/v1/fleet/..\\control\\list-nodes",
    "/v1/fleet//../control/list-nodes",
    "/v1//control/list-nodes",
    "//v1/control/list-nodes",
    "/V1/CONTROL/LIST-NODES",
    "/v1/control/list-nodes?/v1/fleet/get-run",
    "/v1/control/list-nodes#/v1/fleet/get-run",
    "/v1/control/list-nodes%3f/v1/fleet/get-run",
    "/v1/control/list-nodes%00/v1/fleet/get-run",
    "/v1/control/list-nodes/../../fleet/get-run",
    "/v1/fleet/get-run%0a",
    "/v1/fleet/get-run?x=1",
    "/v1/fleet/get-run/../../control/list-nodes",
    "/v1/fleet/get-run%20HTTP/1.1%0d%0aX:%20/../../control/list-nodes",
    "https://localhost/v1/control/list-nodes",
    "https://localhost/v1/fleet/../control/list-nodes",
    "/releases/../v1/control/list-nodes",
    "/base/..%2f..%2ftls%2fserver.key",
    "/base/../../tls/server.key",
    "/tls/server.key",
    "/flower/superexec.secret",
    "*",
]


@pytest.mark.parametrize("path", FORBIDDEN)
def test_nothing_else_is_let_through(deployment: Deployment, path: str) -> None:
    assert deployment.status("POST", path) in (400, 404, 405)
    assert deployment.status("GET", path) in (400, 404, 405)


def test_those_doors_are_there_behind_it(deployment: Deployment) -> None:
    # So that the test above could fail: the SuperLink itself answers on the same paths.
    for path in ("/v1/control/list-nodes", "/v1/runtime/acquire-task", "/v1/fleet/get-run"):
        head = f"POST {path} HTTP/1.1\r\nContent-Length: 0"
        assert deployment.request(head, port=deployment.ports.superlink)[0] not in (404, 405)
    # The fleet API answers through the proxy too, and asks who is there.
    status, _ = deployment.request(
        "POST /v1/fleet/pull-messages HTTP/1.1\r\nContent-Length: 0\r\n"
        "Content-Type: application/protobuf\r\nAccept: application/protobuf"
    )
    assert status == 401


def test_a_body_above_the_bound_is_refused(deployment: Deployment) -> None:
    head = "POST /v1/fleet/push-object HTTP/1.1\r\nContent-Length: 70000000"
    assert deployment.request(head)[0] == 413
    head = "POST /base/file HTTP/1.1\r\nContent-Length: 70000000"
    assert deployment.request(head)[0] in (405, 413)


def test_files_are_served_and_nothing_around_them(deployment: Deployment) -> None:
    public = deployment.home / "public"
    (public / "releases" / "1").mkdir()
    (public / "releases" / "1" / "MANIFEST.json").write_text("{}\n")
    (public / "base" / "BASE.json").write_text("base\n")
    (public / "releases" / ".lock").write_text("no")
    (public / "releases" / "link").symlink_to(deployment.home / "nginx" / "nginx.conf")
    (public / "releases" / "folder").symlink_to(deployment.home / "nginx")
    (public / "other").mkdir()
    (public / "other" / "file").write_text("no")
    get = deployment.request
    assert get("GET /releases/1/MANIFEST.json HTTP/1.1") == (200, b"{}\n")
    assert get("GET /base/BASE.json HTTP/1.1") == (200, b"base\n")
    assert get("HEAD /base/BASE.json HTTP/1.1") == (200, b"")
    assert get("GET /base/BASE.json HTTP/1.1\r\nRange: bytes=1-2") == (206, b"as")
    assert get("GET /healthz HTTP/1.1") == (200, b"ok\n")
    for path in (
        "/releases",
        "/releases/",
        "/releases/1",
        "/releases/1/",
        "/releases/.lock",
        "/releases/2/MANIFEST.json",
        "/releases/1/MANIFEST.json?x",
        "/other/file",
    ):
        assert deployment.status("GET", path) == 404, path
    # A link is met with 403 or 404, as the version of nginx has it.
    assert deployment.status("GET", "/releases/link") in (403, 404)
    assert deployment.status("GET", "/releases/folder/nginx.conf") in (403, 404)
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"):
        assert deployment.status(method, "/base/BASE.json") == 405, method


def test_a_run_completes_through_the_proxy(deployment: Deployment) -> None:
    assert deployment.run() == RunStatus("finished", "completed", "")


def test_a_killed_superlink_comes_back_and_the_region_with_it(deployment: Deployment) -> None:
    before = deployment.headquarters.pid("superlink")
    assert before
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: deployment.headquarters.pid("superlink") not in (None, before))
    wait_until(lambda: deployment.events.count("superlink: ready") == 2)
    # The database says "online" for a while in any case; a run needs a node that really is.
    assert deployment.run().completed
    assert deployment.node_record().name == NAME
    assert not any("supernode: ended" in event for event in deployment.events)


def test_errors_of_control_are_one_line(deployment: Deployment, tmp_path: Path) -> None:
    control, public = deployment.control, deployment.region / "key.pub"
    with pytest.raises(FederationError, match=r"^Flower: .*Run ID not found"):
        control.run_status(1)
    with pytest.raises(FederationError, match=f'^node "{NAME}": registered already'):
        control.register(public, NAME)
    with pytest.raises(FederationError, match=f'^node "region-x": not registered; known: {NAME}$'):
        control.unregister("region-x")
    with pytest.raises(FederationError, match=r"^Flower: .*pyproject"):
        control.start_run(tmp_path, {})
    with pytest.raises(FederationError, match=r"^Flower: .*Invalid run configuration"):
        control.start_run(deployment.region / "trial", {"unknown": 1})


def test_logs_hold_no_query_strings(deployment: Deployment) -> None:
    for path in ("/releases/x?token=hush-hush", "/v1/fleet/get-run?q=hush-hush", "/?hush-hush"):
        deployment.status("GET", path)
    deployment.status("GET", "/releases/not-there")

    def logs() -> bytes:
        return b"".join(path.read_bytes() for path in (deployment.home / "logs").iterdir())

    # nginx answers first and writes its log then; it writes in the order of the answers.
    wait_until(lambda: b"/releases/not-there 404" in logs())
    assert b"hush-hush" not in logs()


def test_a_region_that_is_shut_out_is_refused_at_once(deployment: Deployment) -> None:
    deployment.control.unregister(NAME)
    assert deployment.node_record().status == "unregistered"
    # The SuperNode ends by itself at the first refusal: run notices, and may not restart it.
    with pytest.raises(FederationError, match="supernode: ended with"):
        deployment.node.run()
    with pytest.raises(FederationError, match=r"^node: this key was registered before"):
        deployment.control.register(deployment.region / "key.pub", NAME)


def test_a_run_that_waits_for_regions_can_be_stopped(deployment: Deployment) -> None:
    run_id = deployment.start_run()
    wait_until(lambda: deployment.control.run_status(run_id).status == "running")
    deployment.control.stop_run(run_id)
    assert deployment.control.run_status(run_id) == RunStatus("finished", "stopped", "")
    with pytest.raises(FederationError, match=r"^Flower: .*already finished"):
        deployment.control.stop_run(run_id)


def test_stop_leaves_no_process_and_no_port(deployment: Deployment) -> None:
    leaders = [deployment.headquarters.pid(name) for name in ("superlink", "superexec", "nginx")]
    assert len(alive_in(set(map(str, leaders)))) > len(leaders)  # nginx has workers
    deployment.headquarters.stop()
    assert not alive_in(set(map(str, leaders)))
    for port in (deployment.ports.public, deployment.ports.superlink):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
    with pytest.raises(FederationError, match='start it with "fedshelf server up"'):
        deployment.control.list_nodes()
