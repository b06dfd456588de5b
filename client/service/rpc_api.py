"""The gRPC wire: `fedshelf.v1.Retrieval` with health and reflection.

Every method does the same: take a place, read the message, ask, answer. So there is one function
for all of them, built from `METHODS` and the descriptors of `proto/retrieval.proto`. Messages are
parsed here and not by gRPC, which calls bytes that are no message an internal error; and nothing
leaves as UNKNOWN, which is what gRPC says of an exception it was not told about.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as ProtoMessage
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from pydantic import ValidationError

from client.service.access import TOKEN_NEEDED, Token
from client.service.asked import METHODS, Front, Method, Unexpected, deadline_after, refusal
from client.service.failures import Code, RequestError
from client.service.limits import IMAGE_OVERHEAD_BYTES, MAX_UPSERT_BYTES
from client.service.messages import Message
from client.service.observe import log_request, peer_kind, request_id_from
from client.service.proto import retrieval_pb2
from client.service.proto.translation import from_proto, to_proto
from shared.schema import ServeConfig

SERVICE: Final = retrieval_pb2.DESCRIPTOR.services_by_name["Retrieval"].full_name
STATUS: Final[dict[Code, grpc.StatusCode]] = {
    "invalid": grpc.StatusCode.INVALID_ARGUMENT,
    "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
    "not_found": grpc.StatusCode.NOT_FOUND,
    "gone": grpc.StatusCode.FAILED_PRECONDITION,
    "too_large": grpc.StatusCode.INVALID_ARGUMENT,
    "overloaded": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
    "deadline": grpc.StatusCode.DEADLINE_EXCEEDED,
}
SPARE_THREADS: Final = 8  # to refuse who finds no place, and for health and reflection
_REQUEST_ID: Final = "x-request-id"
_HEALTH: Final = f"/{health.SERVICE_NAME}/"


def make_rpc_server(
    front: Front, *, pool: ThreadPoolExecutor, token: Token | None
) -> tuple[Any, "Health"]:
    """A gRPC server that is not listening yet.

    Args:
        front: of the service.
        pool: where it works; with more threads than places, see `SPARE_THREADS`.
        token: that a caller must have; None lets everybody in.

    Returns:
        The server, and its health service.
    """
    interceptors = () if token is None else (_Doorkeeper(token),)
    server = grpc.server(pool, interceptors=interceptors, options=_options(front.config))
    methods = {
        method.name: grpc.unary_unary_rpc_method_handler(partial(_handle, front, method))
        for method in METHODS
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    standing = Health(front)
    health_pb2_grpc.add_HealthServicer_to_server(standing, server)
    names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    return server, standing


class Health:
    """`grpc.health.v1.Health`: SERVING only while searches are answered."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._inner = health.HealthServicer()
        self._status: object = None
        self.Watch = self._inner.Watch  # does not hold a thread while it waits
        self.refresh()

    def refresh(self) -> None:
        """Tell those who watch, if it has changed."""
        kinds = health_pb2.HealthCheckResponse
        status = kinds.SERVING if self._front.ready else kinds.NOT_SERVING
        if status != self._status:
            self._status = status
            for name in (health.OVERALL_HEALTH, SERVICE):
                self._inner.set(name, status)

    def Check(self, request: Any, context: Any) -> Any:
        """Answer with how it stands now."""
        self.refresh()
        return self._inner.Check(request, context)


class _Doorkeeper:
    """Refuses who has no token before a byte of the message is read; health needs none."""

    def __init__(self, token: Token) -> None:
        self._token = token
        # A handler of a stream is called at once; one of a single message only when it is there.
        self._refuse = grpc.stream_unary_rpc_method_handler(_refuse)

    def intercept_service(self, next_step: Callable[[Any], Any], call: Any) -> Any:
        """Hand a call on, or refuse it."""
        given = _metadata(call.invocation_metadata, "authorization")
        if call.method.startswith(_HEALTH) or self._token.is_in(given):
            return next_step(call)
        return self._refuse


def _refuse(_: Any, context: Any) -> None:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, TOKEN_NEEDED)


@dataclass(frozen=True)
class _Reply:
    """What goes back: a message, or a status with a text."""

    status: grpc.StatusCode
    text: str = ""
    message: bytes = b""
    query: str | None = None


def _handle(front: Front, method: Method, raw: bytes, context: Any) -> bytes:
    start = time.perf_counter()
    request_id = request_id_from(_metadata(context.invocation_metadata(), _REQUEST_ID))
    context.set_trailing_metadata(((_REQUEST_ID, request_id),))
    reply = _reply(front, method, raw, context)
    seconds = time.perf_counter() - start
    front.observer.requested("grpc", method.name, reply.status.name, seconds)
    log_request(
        request_id=request_id,
        wire="grpc",
        method=method.name,
        path=f"/{SERVICE}/{method.name}",
        status=reply.status.name,
        seconds=seconds,
        peer=peer_kind(_host(context.peer())),
        query=reply.query if front.config.log_queries else None,
    )
    if reply.status is not grpc.StatusCode.OK:
        context.abort(reply.status, reply.text)  # raises
    return reply.message


def _reply(front: Front, method: Method, raw: bytes, context: Any) -> _Reply:
    query = None
    try:
        with front.guarded(method.name), front.place():
            deadline = deadline_after(context.time_remaining())
            if not context.is_active():
                raise RequestError("deadline", "the caller has gone")
            request = _read(method, raw)
            query = getattr(request, "query", None)
            answer = front.answer(method, request, deadline=deadline)
            message = to_proto(answer, _proto_type(method.response)).SerializeToString()
            return _Reply(grpc.StatusCode.OK, message=message, query=query)
    except RequestError as error:
        return _Reply(STATUS[error.code], str(error), query=query)
    except Unexpected as error:
        return _Reply(grpc.StatusCode.INTERNAL, str(error), query=query)


def _read(method: Method, raw: bytes) -> Message:
    try:
        proto = _proto_type(method.request).FromString(raw)
    except DecodeError:
        name = method.request.__name__
        raise RequestError("invalid", f"these bytes are no {name}; see reflection") from None
    try:
        return from_proto(proto, method.request)
    except ValidationError as error:
        raise refusal(error) from None


def _proto_type(message: type[Message]) -> type[ProtoMessage]:
    found: type[ProtoMessage] = getattr(retrieval_pb2, message.__name__)
    return found


def _options(config: ServeConfig) -> list[tuple[str, int]]:
    largest = max(MAX_UPSERT_BYTES, config.max_image_bytes + IMAGE_OVERHEAD_BYTES)
    return [
        ("grpc.max_receive_message_length", largest),
        ("grpc.so_reuseport", 0),  # else two services share a port, and each gets half
    ]


def _metadata(pairs: Any, name: str) -> str | None:
    return next((value for key, value in pairs or () if key == name), None)


def _host(peer: str) -> str:
    """The address in gRPC's name of a peer: `ipv4:127.0.0.1:5000`, `ipv6:%5B::1%5D:5000`, `unix:`.

    Empty for a unix socket.
    """
    kind, _, address = unquote(peer).partition(":")
    return address.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else ""
