"""From a gRPC message to the checked message the service knows, and back.

The protocol has no lengths, ranges or closed lists of words; the messages of
`client.service.messages` have. So whatever comes in becomes one of those before it is looked at.
Both have the same field names, which is what the two walks here go by.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.message import Message as ProtoMessage
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import BaseModel

from client.service.failures import RequestError

M = TypeVar("M", bound=BaseModel)
P = TypeVar("P", bound=ProtoMessage)

# Descriptors are Any: their types are others in each of protobuf's implementations.
_LIST_IN_MAP = "fedshelf.v1.Values"  # a map's value cannot be a list, so it is one in a message
_TIME = "google.protobuf.Timestamp"


def from_proto(proto: ProtoMessage, message_type: type[M]) -> M:
    """The checked message that a gRPC message says.

    Args:
        proto: as it came in.
        message_type: of the same field names.

    Returns:
        The message; what was left out has its default.

    Raises:
        RequestError: a time that no calendar has.
        pydantic.ValidationError: a value outside what the message allows.
    """
    return message_type.model_validate(_values(proto))


def to_proto(message: BaseModel, proto_type: type[P]) -> P:
    """The gRPC message that says the same.

    Args:
        message: checked.
        proto_type: of the same field names.

    Returns:
        A new message; what is None is left out.
    """
    values = message.model_dump(exclude_none=True)
    return proto_type(**_fields(values, proto_type.DESCRIPTOR))


def _values(proto: ProtoMessage) -> dict[str, Any]:
    return {
        field.name: _value(field, getattr(proto, field.name))
        for field in proto.DESCRIPTOR.fields
        if not field.has_presence or proto.HasField(field.name)
    }


def _value(field: Any, value: Any) -> Any:
    if not field.is_repeated:
        return _single(value)
    if isinstance(value, Mapping):
        return {key: _single(of_key) for key, of_key in value.items()}
    return tuple(_single(item) for item in value)


def _single(value: Any) -> Any:
    if isinstance(value, Timestamp):
        return _time(value)
    if not isinstance(value, ProtoMessage):
        return value
    values = _values(value)
    return values["values"] if value.DESCRIPTOR.full_name == _LIST_IN_MAP else values


def _time(value: Timestamp) -> datetime:
    try:
        return value.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise RequestError("invalid", "a timestamp is no time; send one of this age") from None


def _fields(values: dict[str, Any], descriptor: Any) -> dict[str, Any]:
    fields = descriptor.fields_by_name
    return {name: _field(value, fields[name]) for name, value in values.items()}


def _field(value: Any, field: Any) -> Any:
    inner = field.message_type
    if inner is None or inner.full_name == _TIME:
        return value
    if inner.GetOptions().map_entry:
        lists = inner.fields_by_name["value"].message_type is not None
        return {key: {"values": of_key} for key, of_key in value.items()} if lists else value
    return [_fields(item, inner) for item in value] if field.is_repeated else _fields(value, inner)
