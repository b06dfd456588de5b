"""gRPC as a stranger sees it: a client that knows nothing but what reflection tells it."""

import io
import json
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from any_bytes import answers_to_any_bytes
from beyond_limits import BOMBS, TOO_LARGE, Request, assert_held_to_its_limit, assert_one_line
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from PIL import Image
from small_service import DIGEST, SmallService

from client.service.access import Token
from client.service.asked import METHODS, Front
from client.service.failures import RequestError
from client.service.limits import MAX_UPSERT_BYTES
from client.service.observe import Observer
from client.service.rpc_api import SERVICE, STATUS, make_rpc_server
from shared.schema import ServeConfig

TOKEN = "0123456789abcdef"
GONE = STATUS["gone"]


class Wire:
    """A small service behind a gRPC server on loopback, and a client from reflection alone."""

    def __init__(self, folder: Path, *, token: str | None = None, **options: Any) -> None:
        self.service = SmallService(folder)
        self.observer = Observer()
        self.front = Front.before(self.service, ServeConfig(**options), self.observer)
        self._pool = ThreadPoolExecutor(self.front.config.max_requests + 2)
        known = None if token is None else Token(token.encode())
        self.server, self.health = make_rpc_server(self.front, pool=self._pool, token=known)
        port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._descriptors: Any = None

    def close(self) -> None:
        self.channel.close()
        self.server.stop(None).wait()
        self._pool.shutdown()

    @property
    def described(self) -> Any:
        if self._descriptors is None:
            database = ProtoReflectionDescriptorDatabase(self.channel)
            assert SERVICE in database.get_services()
            self._descriptors = DescriptorPool(database).FindServiceByName(SERVICE)
        return self._descriptors

    def call(self, name: str, **fields: Any) -> Any:
        return self.start(name, **fields).result()

    def start(self, name: str, *, timeout: float = 30, metadata: Any = (), **fields: Any) -> Any:
        method = self.described.methods_by_name[name]
        request = GetMessageClass(method.input_type)(**fields)
        send = self.channel.unary_unary(
            f"/{SERVICE}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        return send.future(request, timeout=timeout, metadata=metadata)

    def send(self, name: str, raw: bytes, **options: Any) -> bytes:
        answer: bytes = self.channel.unary_unary(f"/{SERVICE}/{name}")(raw, timeout=30, **options)
        return answer


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    wire = Wire(tmp_path, max_requests=2)
    yield wire
    wire.close()


def photo(width: int = 4, height: int = 3) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


ASKED: dict[str, dict[str, Any]] = {
    "Search": {"query": "red shoe", "filters": {"attributes": {"Colour": {"values": ["red"]}}}},
    "SearchByImage": {"image": photo(), "query": "in blue"},
    "Similar": {"product_id": "p1", "facets": True, "explain": True, "details": True},
    "ForYou": {"recent": ["p1", "p2"], "k": 1},
    "Suggest": {"prefix": "red"},
    "Upsert": {"products": [{"product_id": "new", "title": "new shoe", "price": 2.5}]},
    "Delete": {"product_ids": ["p1", "nobody"]},
    "LogEvents": {
        "events": [{"event_id": "e", "request_id": "r", "product_id": "p1", "type": "click"}]
    },
    "Info": {},
}


def test_every_method_can_be_called_from_reflection_alone(wire: Wire) -> None:
    assert set(ASKED) == {method.name for method in METHODS}
    answers = {name: wire.call(name, **fields) for name, fields in ASKED.items()}
    assert [hit.product_id for hit in answers["Search"].hits] == ["p1", "p2", "p3"]
    assert wire.service.images == [ASKED["SearchByImage"]["image"]]
    assert answers["Similar"].facets[0].values[0].selected
    similar = answers["Similar"].hits[0]
    assert similar.explanation.words == ["red", "shoe"]
    assert (similar.description, dict(similar.attributes)) == ("A red shoe.", {"Colour": "red"})
    assert not answers["Search"].hits[0].HasField("description")
    assert not answers["Search"].hits[0].attributes
    assert answers["ForYou"].next_cursor == "1"
    assert [one.text for one in answers["Suggest"].suggestions] == ["red shoe", "red hat"]
    assert answers["Upsert"].changed == 1
    assert wire.service.products["new"].price == 2.5
    assert answers["Delete"].changed == 1
    assert answers["LogEvents"].accepted == 1
    assert answers["Info"].encoder_digest == DIGEST
    assert answers["Info"].releases == [2, 1]


def failed(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def test_what_is_wrong_is_named_without_its_value(wire: Wire) -> None:
    code, text = failed(lambda: wire.call("Search", query="my secret wish", k=1000, sort="cheap"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "k: input should be less than or equal to 100" in text
    assert "sort: input should be 'relevance'" in text
    assert "secret" not in text
    assert "1000" not in text
    assert "cheap" not in text


def test_a_key_of_a_map_is_a_value_too(wire: Wire) -> None:
    filters = {"attributes": {"my secret" * 50: {"values": ["x"]}}}
    code, text = failed(lambda: wire.call("Search", filters=filters))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text.startswith("filters.attributes.(another name)")
    assert "secret" not in text


def test_bytes_that_are_no_message_are_the_callers_mistake(wire: Wire) -> None:
    code, text = failed(lambda: wire.send("Search", b"\xff\xff\xff"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "SearchRequest" in text


def test_no_bytes_make_the_service_fail(wire: Wire) -> None:
    answers = answers_to_any_bytes(wire.send, max_examples=200)
    expected = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, GONE}
    assert {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT} <= answers.keys()
    assert answers.keys() <= {grpc.StatusCode.OK, *expected}


@pytest.mark.parametrize("code", STATUS)
def test_every_refusal_has_its_own_status(wire: Wire, code: Any) -> None:
    wire.service.failure = RequestError(code, "because")
    assert failed(lambda: wire.call("Search", query="x")) == (STATUS[code], "because")


class Panic(BaseException):
    """As native code raises it."""


@pytest.mark.parametrize("kind", [ValueError, AssertionError, Panic, KeyError])
def test_a_fault_of_ours_is_internal_and_says_nothing(
    wire: Wire, kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    wire.service.failure = kind("my secret wish")
    code, text = failed(lambda: wire.call("Search", query="my secret wish"))
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in text
    assert "secret" not in caplog.text
    assert f"Search failed: {kind.__name__}" in caplog.text
    assert "small_service.py" in caplog.text


def test_an_answer_that_is_no_message_is_internal(wire: Wire, monkeypatch: Any) -> None:
    monkeypatch.setattr(wire.service, "info", lambda: None)
    assert failed(lambda: wire.call("Info"))[0] is grpc.StatusCode.INTERNAL


def test_a_photo_above_a_limit_or_none_at_all_is_refused(tmp_path: Path) -> None:
    wire = Wire(tmp_path, max_image_bytes=500, max_image_pixels=20)
    try:
        for image, words in [
            (photo(7, 3), "7 x 3 pixels, at most 20"),
            (b"x" * 501, "501 bytes, at most 500"),
            (b"no photo", "not a photo"),
        ]:
            code, text = failed(lambda image=image: wire.call("SearchByImage", image=image))
            assert (code, words in text) == (grpc.StatusCode.INVALID_ARGUMENT, True), text
        assert wire.service.images == []
    finally:
        wire.close()


@pytest.mark.parametrize("field", TOO_LARGE)
def test_one_more_than_a_limit_is_refused_in_one_line(wire: Wire, field: str) -> None:
    def refused(name: str, fields: Request) -> str:
        code, text = failed(lambda: wire.call(name, **fields))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        return text

    assert_held_to_its_limit(
        wire.service, field, lambda name, fields: wire.call(name, **fields), refused
    )


@BOMBS
def test_a_photo_that_would_unpack_to_gigabytes_is_refused_by_its_header(
    wire: Wire, image: bytes, words: str
) -> None:
    code, text = failed(lambda: wire.call("SearchByImage", image=image))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert_one_line(text, "image", words)
    assert wire.service.images == []


def test_a_message_above_the_limit_is_refused(wire: Wire) -> None:
    code, _ = failed(lambda: wire.send("Upsert", b"\x00" * (MAX_UPSERT_BYTES + 1)))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_one_more_than_there_are_places_is_refused_at_once(wire: Wire) -> None:
    wire.service.go_on.clear()
    at_work = [wire.start("Search", query="red") for _ in range(2)]
    for _ in at_work:
        assert wire.service.entered.acquire(timeout=30)
    assert failed(lambda: wire.call("Search", query="red"))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert health(wire) == "SERVING"
    wire.service.go_on.set()
    assert [call.result().total for call in at_work] == [2, 2]
    assert wire.call("Search", query="red").total == 2


def test_the_deadline_reaches_the_service(wire: Wire) -> None:
    before = time.monotonic()
    wire.call("Search", query="red", timeout=20)
    [deadline] = wire.service.deadlines
    # gRPC sends it rounded up, by up to a twentieth.
    assert before < deadline <= time.monotonic() + 21


def test_without_a_deadline_the_service_is_given_none(wire: Wire) -> None:
    wire.channel.unary_unary(f"/{SERVICE}/Search")(b"")
    assert wire.service.deadlines == [None]


def test_work_is_not_started_after_the_deadline(wire: Wire) -> None:
    method = next(method for method in METHODS if method.name == "Search")
    with pytest.raises(RequestError, match="was up") as caught:
        wire.front.answer(method, method.request(), deadline=time.monotonic() - 1)
    assert caught.value.code == "deadline"
    assert wire.service.deadlines == []


def test_a_caller_who_waits_no_longer_is_told_so(wire: Wire) -> None:
    wire.call("Info")  # so that reflection is done
    wire.service.go_on.clear()
    code, _ = failed(lambda: wire.call("Search", query="red", timeout=0.2))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    wire.service.go_on.set()
    assert wire.front.wait_until_idle(30)


def test_before_it_is_ready_only_info_is_answered(wire: Wire) -> None:
    wire.service.ready = False
    assert failed(lambda: wire.call("Search", query="red"))[0] is grpc.StatusCode.UNAVAILABLE
    assert wire.call("Info").region == "north"


def test_who_comes_after_the_end_was_announced_is_refused(wire: Wire) -> None:
    wire.front.close()
    code, text = failed(lambda: wire.call("Info"))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "stopping" in text


def health(wire: Wire, name: str = SERVICE) -> str:
    stub = health_pb2_grpc.HealthStub(wire.channel)
    status = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=30).status
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(status))


@pytest.mark.parametrize("name", ["", SERVICE])
def test_health_says_whether_searches_are_answered(wire: Wire, name: str) -> None:
    assert health(wire, name) == "SERVING"
    wire.service.ready = False
    assert health(wire, name) == "NOT_SERVING"
    wire.service.ready = True
    assert health(wire, name) == "SERVING"
    wire.front.close()
    assert health(wire, name) == "NOT_SERVING"


def test_who_watches_health_is_told_of_a_change(wire: Wire) -> None:
    stub = health_pb2_grpc.HealthStub(wire.channel)
    watched = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=30)
    assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
    wire.service.ready = False
    wire.health.refresh()
    assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watched.cancel()


def test_the_token_is_asked_for_everywhere_but_in_health(tmp_path: Path) -> None:
    wire = Wire(tmp_path, token=TOKEN)
    try:
        send = wire.channel.unary_unary(f"/{SERVICE}/Info")
        for metadata in [
            (),
            (("authorization", "Bearer wrong"),),
            (("authorization", TOKEN),),
            (("authorization", f"Basic {TOKEN}"),),
        ]:
            code, _ = failed(lambda given=metadata: send(b"", timeout=30, metadata=given))
            assert code is grpc.StatusCode.UNAUTHENTICATED
        send(b"", timeout=30, metadata=(("authorization", f"Bearer {TOKEN}"),))
        with pytest.raises(grpc.RpcError):
            ProtoReflectionDescriptorDatabase(wire.channel).get_services()
        assert health(wire) == "SERVING"
    finally:
        wire.close()


def test_a_request_keeps_the_id_it_was_given_and_gets_one_otherwise(wire: Wire) -> None:
    def trailing(given: str) -> str:
        call = wire.start("Info", metadata=(("x-request-id", given),))
        call.result()
        return str(dict(call.trailing_metadata())["x-request-id"])

    assert trailing("shop-7.a") == "shop-7.a"
    assert len(trailing("with space")) == 32
    assert len(trailing("x" * 65)) == 32


@pytest.mark.parametrize("logged", [False, True])
def test_each_request_is_one_line_with_its_words_only_where_wanted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, logged: bool
) -> None:
    wire = Wire(tmp_path, log_queries=logged)
    try:
        with caplog.at_level(logging.INFO, "fedshelf.requests"):
            wire.call("Search", query="red shoe", metadata=(("x-request-id", "one"),))
        [line] = [json.loads(r.message) for r in caplog.records if r.name == "fedshelf.requests"]
        assert line["request_id"] == "one"
        assert (line["wire"], line["method"], line["status"]) == ("grpc", "Search", "OK")
        assert line["peer"] == "loopback"
        assert line.get("query") == ("red shoe" if logged else None)
        counted = 'fedshelf_requests_total{code="OK",method="Search",wire="grpc"} 1.0'
        assert counted in wire.observer.render().decode()
    finally:
        wire.close()
