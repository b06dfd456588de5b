"""The gRPC contract: the same words as the messages, and what protoc makes of it."""

import ast
import types
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from google.protobuf.descriptor import FieldDescriptor
from grpc_tools import protoc
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from client.service import messages
from client.service.asked import METHODS
from client.service.failures import RequestError
from client.service.messages import (
    Event,
    EventsRequest,
    FacetCount,
    Hit,
    ImageSearchRequest,
    Product,
    SearchRequest,
    SearchResponse,
    UpsertRequest,
)
from client.service.proto import retrieval_pb2
from client.service.proto.translation import from_proto, to_proto
from shared.retrieval.filters import Filters, Range

ROOT = Path(__file__).parents[2]
PROTO = "client/service/proto/retrieval.proto"
KINDS = {
    str: FieldDescriptor.TYPE_STRING,
    int: FieldDescriptor.TYPE_INT64,
    float: FieldDescriptor.TYPE_DOUBLE,
    bool: FieldDescriptor.TYPE_BOOL,
    bytes: FieldDescriptor.TYPE_BYTES,
}
# Of messages.py, without what others are made of.
MIRRORED = {
    name: kind
    for name, kind in {**vars(messages), "Filters": Filters, "Range": Range}.items()
    if isinstance(kind, type) and issubclass(kind, BaseModel)
    if name not in ("BaseModel", "Message", "PagedRequest")
}


def test_the_generated_code_is_what_the_contract_says(tmp_path: Path) -> None:
    built_in = Path(str(protoc.__file__)).parent / "_proto"
    outputs = [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    assert protoc.main(["", f"-I{ROOT}", f"-I{built_in}", *outputs, PROTO]) == 0
    made = tmp_path / PROTO.replace(".proto", "_pb2.py")
    committed = Path(str(retrieval_pb2.__file__))
    # What is described and not how it is written: versions of protoc and formatters differ there.
    assert described_in(committed) == described_in(made)
    assert parsed(committed.with_suffix(".pyi")) == parsed(made.with_suffix(".pyi"))


def described_in(module: Path) -> bytes:
    """The serialized description in a generated module: its longest bytes."""
    nodes = ast.walk(ast.parse(module.read_text()))
    found = [node.value for node in nodes if isinstance(node, ast.Constant)]
    return max((value for value in found if isinstance(value, bytes)), key=len)


def parsed(module: Path) -> str:
    return ast.dump(ast.parse(module.read_text()))


def test_every_message_has_its_counterpart() -> None:
    described = set(retrieval_pb2.DESCRIPTOR.message_types_by_name)
    assert described == {*MIRRORED, "Values"}


@pytest.mark.parametrize("name", MIRRORED)
def test_fields_are_the_same_in_name_and_kind(name: str) -> None:
    message, descriptor = MIRRORED[name], retrieval_pb2.DESCRIPTOR.message_types_by_name[name]
    assert set(message.model_fields) == {field.name for field in descriptor.fields}
    for field in descriptor.fields:
        of_message = message.model_fields[field.name]
        kind, optional = plain(of_message.annotation)
        assert says(field) == expected(kind), field.name
        if field.is_repeated or field.message_type:
            continue
        # Without presence, what is left out arrives as zero, and so must mean that.
        zero = {str: "", bytes: b"", bool: False, int: 0, float: 0.0}[scalar(kind)]
        same_as_zero = of_message.is_required() or of_message.get_default() == zero
        assert field.has_presence == (optional or not same_as_zero), field.name


def test_every_method_is_in_the_contract() -> None:
    service = retrieval_pb2.DESCRIPTOR.services_by_name["Retrieval"]
    assert {(m.name, m.input_type.name, m.output_type.name) for m in service.methods} == {
        (m.name, m.request.__name__, m.response.__name__) for m in METHODS
    }


def plain(annotation: Any) -> tuple[Any, bool]:
    """An annotation without its constraints, and whether it may be None."""
    if get_origin(annotation) is Annotated:
        return plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        [kind] = [one for one in get_args(annotation) if one is not type(None)]
        return plain(kind)[0], True
    return annotation, False


def scalar(kind: Any) -> type:
    return str if get_origin(kind) is Literal else kind


def expected(kind: Any) -> Any:
    origin, arguments = get_origin(kind), [plain(one)[0] for one in get_args(kind)]
    if origin is tuple:
        return ["list", expected(arguments[0])]
    if origin is dict:
        return ["map", expected(arguments[0]), expected(arguments[1])]
    if kind is datetime:
        return "google.protobuf.Timestamp"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"fedshelf.v1.{kind.__name__}"
    return KINDS[scalar(kind)]


def says(field: Any) -> Any:
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        return ["map", *(says(inner.fields_by_name[name]) for name in ("key", "value"))]
    if inner is not None and inner.name == "Values":
        return says(inner.fields_by_name["values"])
    one = field.type if inner is None else inner.full_name
    return ["list", one] if field.is_repeated else one


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
numbers = st.floats(allow_nan=False, allow_infinity=False)
ranges = st.one_of(st.builds(Range), st.builds(Range, ge=numbers), st.builds(Range, le=numbers))
filters = st.builds(
    Filters,
    category=st.lists(texts, max_size=3).map(tuple),
    price=ranges,
    rating=ranges,
    in_stock=st.none() | st.booleans(),
    attributes=st.dictionaries(texts, st.lists(texts, max_size=3).map(tuple), max_size=3),
)
products = st.builds(
    Product,
    product_id=ids,
    title=ids,
    price=st.none() | st.floats(0, 1e9),
    sales=st.none() | st.integers(0, 2**63 - 1),
    attributes=st.dictionaries(texts, texts, max_size=3),
    in_stock=st.none() | st.booleans(),
)
times = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))
requests = st.one_of(
    st.builds(
        SearchRequest,
        query=texts,
        k=st.integers(1, 100),
        filters=filters,
        cursor=st.none() | texts,
        release=st.none() | st.integers(0, 2**63 - 1),
        ranker=st.sampled_from([None, "hybrid", "dense", "lexical"]),
        log=st.booleans(),
        details=st.booleans(),
    ),
    st.builds(ImageSearchRequest, image=st.binary(min_size=1, max_size=50), filters=filters),
    st.builds(UpsertRequest, products=st.lists(products, min_size=1, max_size=3).map(tuple)),
    st.builds(
        EventsRequest,
        events=st.lists(
            st.builds(
                Event,
                event_id=ids,
                request_id=ids,
                product_id=ids,
                type=st.sampled_from(["click", "cart", "purchase"]),
                ts=st.none() | times,
            ),
            min_size=1,
            max_size=3,
        ).map(tuple),
    ),
)


@given(requests)
def test_translating_there_and_back_changes_nothing(message: messages.Message) -> None:
    proto_type = getattr(retrieval_pb2, type(message).__name__)
    over_the_wire = proto_type.FromString(to_proto(message, proto_type).SerializeToString())
    assert from_proto(over_the_wire, type(message)) == message


def test_an_answer_translates_there_and_back() -> None:
    hit = Hit(position=1, product_id="p", title="t", score=0.25, propensity=0.5, variants=("v",))
    told = hit.model_copy(update={"description": "", "attributes": {"size": "S, M", "": "x"}})
    answer = SearchResponse(
        request_id="r",
        region="north",
        release=3,
        encoder_digest="ab",
        ranker="hybrid",
        total=7,
        hits=(hit, hit.model_copy(update={"in_stock": False, "rating": 0.0}), told),
        facets=(FacetCount(name="price", minimum=0.0, maximum=2.5),),
    )
    proto = to_proto(answer, retrieval_pb2.SearchResponse)
    assert not proto.hits[0].HasField("in_stock")
    assert proto.hits[1].HasField("in_stock")
    assert (proto.hits[1].HasField("description"), proto.hits[2].HasField("description")) == (
        False,
        True,
    )
    assert from_proto(proto, SearchResponse) == answer


def test_what_is_left_out_has_the_default() -> None:
    assert from_proto(retrieval_pb2.SearchRequest(), SearchRequest) == SearchRequest()


def test_limits_hold_on_this_wire_too() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 100"):
        from_proto(retrieval_pb2.SearchRequest(k=101), SearchRequest)


def test_a_time_no_calendar_has_is_refused() -> None:
    event = retrieval_pb2.Event(event_id="e", request_id="r", product_id="p", type="click")
    event.ts.seconds = 10**17
    with pytest.raises(RequestError, match="no time"):
        from_proto(event, Event)
