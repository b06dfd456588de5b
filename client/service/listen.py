"""Listen on both wires, and stop in an orderly way.

Whoever balances load looks at health before it sends a request, so stopping goes in steps: health
says no, new requests are refused, those at work are finished within a bound, and only then the
sockets close. The HTTP server runs in a thread with an event loop of its own; the process's main
thread keeps its signals.
"""

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import uvicorn
from starlette.routing import Route
from starlette.types import ASGIApp

from client.service.access import Access, Certificate, read_access
from client.service.asked import Front, Retrieval
from client.service.http_api import make_http_app
from client.service.observe import Observer
from client.service.rpc_api import SPARE_THREADS, Health, make_rpc_server
from shared.errors import ConfigError
from shared.schema import ServeConfig

DRAIN_S: Final = 10.0  # for requests at work when the service is told to stop
CLOSE_S: Final = 2  # for answers that are on their way when the sockets close
# An idle connection is for the asking side to close, since only that side knows what it is about to
# send: so longer than proxies keep one (nginx: 60 s). Uvicorn's own 5 s broke requests under load.
KEEP_ALIVE_S: Final = 75
_HEALTH_S: Final = 0.5  # how often those who watch health over gRPC are told


@dataclass(frozen=True)
class Servers:
    """What listens.

    Attributes:
        http: URL, with the port it really is; empty where it does not listen.
        grpc: host:port; as `http`.
    """

    http: str
    grpc: str
    _drain: Callable[[float], bool]

    def drain(self, timeout_s: float = DRAIN_S) -> bool:
        """Say over health that the end is near, refuse what is new, wait for what is at work.

        Args:
            timeout_s: no longer than this.

        Returns:
            Whether everything was finished in time. The sockets stay open, to refuse.
        """
        return self._drain(timeout_s)


@contextmanager
def serve_wires(
    retrieval: Retrieval,
    config: ServeConfig,
    *,
    folder: Path,
    observer: Observer,
    page: Sequence[Route] = (),
    drain_s: float = DRAIN_S,
) -> Iterator[Servers]:
    """Listen on both wires while inside; on the way out, drain and close.

    Args:
        retrieval: answers; it may become ready later.
        config: `[serve]` of region.toml.
        folder: of region.toml.
        observer: counts requests, and is what `/metrics` shows.
        page: routes of the search page; none without it.
        drain_s: for requests at work at the end.

    Yields:
        Where it listens.

    Raises:
        ConfigError: an address is taken, or is not protected as it must be, or a file is wrong.
    """
    if not (config.http or config.grpc):
        raise ConfigError("serve: http and grpc are both empty; give at least one an address")
    access = read_access(config, folder)
    front = Front.before(retrieval, config, observer)
    with ExitStack() as stack:
        health, grpc_at = _start_rpc(stack, front, access) if config.grpc else (None, "")
        app = make_http_app(front, token=access.token, page=page)
        http_at = _start_http(stack, config.http, app, access.certificate) if config.http else ""
        drain = _drainer(front, health)
        stack.callback(drain, drain_s)
        yield Servers(http_at, grpc_at, drain)


def _drainer(front: Front, health: Health | None) -> Callable[[float], bool]:
    def drain(timeout_s: float) -> bool:
        front.close()
        if health is not None:
            health.refresh()
        return front.wait_until_idle(timeout_s)

    return drain


def _start_rpc(stack: ExitStack, front: Front, access: Access) -> tuple[Health, str]:
    address = front.config.grpc
    threads = front.config.max_requests + SPARE_THREADS
    pool = ThreadPoolExecutor(threads, thread_name_prefix="retrieval-rpc")
    stack.callback(pool.shutdown, wait=False)
    server, health = make_rpc_server(front, pool=pool, token=access.token)
    port = _bind_rpc(server, address, access.certificate)
    server.start()
    stack.callback(lambda: server.stop(grace=CLOSE_S).wait())
    stack.enter_context(_telling(health))
    return health, f"{address.rpartition(':')[0]}:{port}"


def _bind_rpc(server: Any, address: str, certificate: Certificate | None) -> int:
    try:
        if certificate is None:
            return int(server.add_insecure_port(address))
        pair = (certificate.key.read_bytes(), certificate.chain.read_bytes())
        return int(server.add_secure_port(address, grpc.ssl_server_credentials([pair])))
    except RuntimeError:  # of gRPC, whatever the reason
        raise ConfigError(
            f"serve.grpc: cannot listen on {address}; another process may have it, or it is no"
            " address of this machine; choose another one"
        ) from None


@contextmanager
def _telling(health: Health) -> Iterator[None]:
    """Tell those who watch health whenever it changes."""
    done = threading.Event()

    def tell() -> None:
        while not done.wait(_HEALTH_S):
            health.refresh()

    thread = threading.Thread(target=tell, name="retrieval-health", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _start_http(
    stack: ExitStack, address: str, app: ASGIApp, certificate: Certificate | None
) -> str:
    listener = stack.enter_context(_listening(address))
    config = uvicorn.Config(
        app,
        log_config=None,  # uvicorn's own would be laid over the process's
        access_log=False,  # it has whole paths, and so product ids
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=CLOSE_S,
        ssl_certfile=None if certificate is None else certificate.chain,
        ssl_keyfile=None if certificate is None else certificate.key,
    )
    config.load()  # here and not in the thread, where an error would be nobody's
    server = uvicorn.Server(config)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="retrieval-http", daemon=True
    )
    thread.start()  # nobody waits for it: the socket listens already

    def stop() -> None:
        server.should_exit = True
        thread.join(2 * CLOSE_S + 1)

    stack.callback(stop)
    scheme = "http" if certificate is None else "https"
    return f"{scheme}://{address.rpartition(':')[0]}:{listener.getsockname()[1]}"


@contextmanager
def _listening(address: str) -> Iterator[socket.socket]:
    host, _, port = address.rpartition(":")
    try:
        listener = socket.create_server((host, int(port)))
    except OSError as error:
        raise ConfigError(
            f"serve.http: cannot listen on {address} ({error.strerror or type(error).__name__});"
            " choose another address"
        ) from None
    with listener:
        yield listener
