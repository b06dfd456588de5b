"""Both wires on real sockets: who may listen where, TLS and token, and an orderly end."""

import datetime
import ipaddress
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from small_service import SmallService

from client.service.access import is_loopback, is_own_name, read_access
from client.service.failures import RequestError
from client.service.limits import Gate
from client.service.listen import Servers, serve_wires
from client.service.observe import Observer
from client.service.page.page import page_routes
from client.service.proto import retrieval_pb2
from client.service.rpc_api import SERVICE
from shared.errors import ConfigError
from shared.schema import ServeConfig

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef" * 2
FREE = {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0"}
PROTECTION = {"certificate": "server.crt", "key": "server.key", "token_file": "token"}


def config(**options: Any) -> ServeConfig:
    """Ports may be 0 here, which region.toml does not allow."""
    return ServeConfig.model_construct(**{**FREE, **options})


def serving(service: SmallService, folder: Path, **options: Any) -> Any:
    return serve_wires(service, config(**options), folder=folder, observer=Observer())


def search(servers: Servers) -> Any:
    with grpc.insecure_channel(servers.grpc) as channel:
        raw = channel.unary_unary(f"/{SERVICE}/Search")(b"", timeout=30)
    return retrieval_pb2.SearchResponse.FromString(raw)


def health(servers: Servers) -> int:
    with grpc.insecure_channel(servers.grpc) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=30).status)


@pytest.fixture
def service(tmp_path: Path) -> SmallService:
    return SmallService(tmp_path)


@pytest.fixture
def protected(tmp_path: Path) -> Path:
    """A folder with a certificate for 127.0.0.1, its key, and a token."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=36500))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    for file, encryption in {
        "server.key": serialization.NoEncryption(),
        "encrypted.key": serialization.BestAvailableEncryption(b"word"),
    }.items():
        form = serialization.PrivateFormat.PKCS8
        (tmp_path / file).write_bytes(key.private_bytes(pem, form, encryption))
    (tmp_path / "server.crt").write_bytes(certificate.public_bytes(pem))
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    return tmp_path


def test_both_wires_answer_from_one_service(service: SmallService, tmp_path: Path) -> None:
    with serving(service, tmp_path) as servers:
        over_http = httpx.post(f"{servers.http}/v1/search", json={"query": "hat"}).json()
        assert [hit["title"] for hit in over_http["hits"]] == ["red hat"]
        assert search(servers).total == 4
        figures = httpx.get(f"{servers.http}/metrics").text
        assert 'fedshelf_requests_total{code="OK",method="Search",wire="grpc"} 1.0' in figures
        assert 'fedshelf_requests_total{code="200",method="Search",wire="http"} 1.0' in figures


def test_a_connection_goes_on_after_a_refusal(service: SmallService, tmp_path: Path) -> None:
    with (
        serving(service, tmp_path, max_requests=1) as servers,
        ThreadPoolExecutor() as pool,
        httpx.Client(base_url=servers.http) as client,
    ):
        service.go_on.clear()
        at_work = pool.submit(httpx.post, f"{servers.http}/v1/search", json={}, timeout=30)
        assert service.entered.acquire(timeout=30)
        refused = [client.post("/v1/upsert", content=b"x" * 100_000) for _ in range(3)]
        assert [response.status_code for response in refused] == [429] * 3
        assert "connection" not in refused[0].headers
        service.go_on.set()
        assert at_work.result().status_code == 200


def test_one_wire_alone(service: SmallService, tmp_path: Path) -> None:
    with serving(service, tmp_path, http="") as servers:
        assert servers.http == ""
        assert search(servers).total == 4
    with serving(service, tmp_path, grpc="") as servers:
        assert servers.grpc == ""
        assert httpx.get(f"{servers.http}/readyz").status_code == 200


def test_the_page_is_served_where_there_is_one(service: SmallService, tmp_path: Path) -> None:
    observer = Observer()
    routes = page_routes(locale="de")
    with serve_wires(service, config(), folder=tmp_path, observer=observer, page=routes) as servers:
        assert "<!doctype html>" in httpx.get(servers.http).text.lower()
        assert 'method="/",wire="http"' in observer.render().decode()
    with serving(service, tmp_path) as servers:
        assert httpx.get(servers.http).status_code == 404


def test_at_the_end_what_is_at_work_is_finished_and_what_is_new_refused(
    service: SmallService, tmp_path: Path
) -> None:
    service.go_on.clear()
    with serving(service, tmp_path) as servers, ThreadPoolExecutor() as pool:
        over_http = pool.submit(httpx.post, f"{servers.http}/v1/search", json={}, timeout=30)
        over_grpc = pool.submit(search, servers)
        for _ in (over_http, over_grpc):
            assert service.entered.acquire(timeout=30)
        assert not servers.drain(0.0)  # they are still at work
        assert httpx.get(f"{servers.http}/readyz").status_code == 503
        assert httpx.get(f"{servers.http}/healthz").status_code == 200
        assert health(servers) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert httpx.post(f"{servers.http}/v1/search", json={}).status_code == 503
        with pytest.raises(grpc.RpcError) as refused:
            search(servers)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        service.go_on.set()
        assert servers.drain(30)
        assert over_http.result().json()["total"] == 4
        assert over_grpc.result().total == 4


def test_leaving_waits_for_what_is_at_work(service: SmallService, tmp_path: Path) -> None:
    service.go_on.clear()
    with ThreadPoolExecutor() as pool:
        with serving(service, tmp_path) as servers:
            answer = pool.submit(httpx.post, f"{servers.http}/v1/search", json={}, timeout=30)
            assert service.entered.acquire(timeout=30)
            pool.submit(service.go_on.set)
        assert answer.result().status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{servers.http}/healthz")


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_an_address_that_is_taken_is_one_line(
    service: SmallService, tmp_path: Path, wire: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(ConfigError, match=f"serve.{wire}: cannot listen on {address}") as caught,
            serving(service, tmp_path, **{wire: address}),
        ):
            pass
    assert "\n" not in str(caught.value)


def test_two_services_never_share_a_port(service: SmallService, tmp_path: Path) -> None:
    with serving(service, tmp_path) as servers:
        second = {"http": servers.http.removeprefix("http://"), "grpc": ""}
        third = {"http": "", "grpc": servers.grpc}
        for options in (second, third):
            with (
                pytest.raises(ConfigError, match="cannot listen"),
                serving(service, tmp_path, **options),
            ):
                pass


def test_to_listen_nowhere_is_a_mistake(service: SmallService, tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="both empty"),
        serving(service, tmp_path, http="", grpc=""),
    ):
        pass


def test_with_certificate_and_token_both_wires_are_closed_to_others(
    service: SmallService, protected: Path
) -> None:
    root = (protected / "server.crt").read_bytes()
    trusting = ssl.create_default_context(cadata=root.decode())
    with serving(service, protected, **PROTECTION) as servers:
        assert servers.http.startswith("https://")
        with httpx.Client(base_url=servers.http, verify=trusting) as client:
            assert client.get("/v1/info").status_code == 401
            bearer = {"Authorization": f"Bearer {TOKEN}"}
            assert client.get("/v1/info", headers=bearer).json()["region"] == "north"
        credentials = grpc.ssl_channel_credentials(root)
        with grpc.secure_channel(servers.grpc, credentials) as channel:
            info = channel.unary_unary(f"/{SERVICE}/Info")
            with pytest.raises(grpc.RpcError) as refused:
                info(b"", timeout=30)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert info(b"", timeout=30, metadata=(("authorization", f"Bearer {TOKEN}"),))
        with pytest.raises(httpx.HTTPError):
            httpx.get(servers.http.replace("https://", "http://"))


@pytest.mark.parametrize("left_out", [*PROTECTION, None])
@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_where_others_can_reach_it_all_three_are_needed(
    protected: Path, wire: str, left_out: str | None
) -> None:
    options = {name: value for name, value in PROTECTION.items() if name != left_out}
    asked = config(**{**FREE, wire: "0.0.0.0:8080"}, **options)
    if left_out is None:
        access = read_access(asked, protected)
        assert access.token is not None
        assert access.certificate is not None
    else:
        with pytest.raises(ConfigError, match=r"^serve"):
            read_access(asked, protected)


def break_file(name: str, content: bytes | None) -> Callable[[Path], None]:
    def break_it(folder: Path) -> None:
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)

    return break_it


@pytest.mark.parametrize(
    ("break_it", "options", "words"),
    [
        (break_file("token", None), {}, "token: cannot be read"),
        (break_file("token", b"short"), {}, "16 or more plain characters"),
        (break_file("token", b"two words of some length"), {}, "not one token"),
        (break_file("token", "zwölfundzwanzig".encode()), {}, "not one token"),
        (break_file("server.crt", None), {}, "No such file"),
        (break_file("server.crt", b"nonsense"), {}, "no certificate with its key"),
        (break_file("token", TOKEN.encode()), {"key": "encrypted.key"}, "is encrypted"),
        (break_file("token", TOKEN.encode()), {"key": None}, "belong together"),
    ],
)
def test_a_wrong_file_is_one_line(
    protected: Path, break_it: Callable[[Path], None], options: dict[str, Any], words: str
) -> None:
    break_it(protected)
    with pytest.raises(ConfigError, match=words) as caught:
        read_access(config(**{**PROTECTION, **options}), protected)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_token_does_not_show_itself(protected: Path) -> None:
    assert TOKEN not in repr(read_access(config(**PROTECTION), protected))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "localhost", "LOCALHOST"])
def test_loopback_is_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "localhost.example", "shop", ""])
def test_everything_else_is_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("header", "own"),
    [
        ("localhost", True),
        ("LocalHost:1", True),
        ("127.0.0.1:8080", True),
        ("[::1]:8080", True),
        ("127.0.0.1.example", False),
        ("localhost:x", False),
        ("user@localhost", False),
        ("", False),
    ],
)
def test_a_name_of_loopback_is_known_with_any_port(header: str, own: bool) -> None:
    assert is_own_name(header) == own


def test_a_gate_has_so_many_places_and_gives_them_back() -> None:
    gate = Gate(2)
    with gate.place(), pytest.raises(KeyError), gate.place():
        assert gate.in_flight == 2
        with pytest.raises(RequestError, match="2 requests are at work") as caught, gate.place():
            pass
        assert caught.value.code == "overloaded"
        assert not gate.wait_until_empty(0.0)
        raise KeyError
    assert gate.in_flight == 0
    assert gate.wait_until_empty(0.0)


def test_the_wires_do_not_load_torch() -> None:
    code = "import sys, client.service.listen as _; print({'torch', 'faiss'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_an_idle_connection_is_not_closed_under_a_request(
    service: SmallService, tmp_path: Path
) -> None:
    """A proxy or a client that keeps it may ask again at any moment."""
    with (
        serving(service, tmp_path) as servers,
        httpx.Client(timeout=30, limits=httpx.Limits(keepalive_expiry=None)) as client,
    ):
        ports = set[int]()
        for pause_s in (0.0, 6.5):  # uvicorn's own patience is 5 s
            time.sleep(pause_s)
            with client.stream("GET", f"{servers.http}/healthz") as answer:
                assert answer.status_code == 200 and answer.read()
                stream = answer.extensions["network_stream"]
                ports.add(stream.get_extra_info("client_addr")[1])
        assert len(ports) == 1
