"""Bytes sent to the gRPC service that nobody's client would send, the same at every run."""

from collections import Counter
from collections.abc import Callable

import grpc
from described import REPEATED
from hypothesis import given, settings
from hypothesis import strategies as st

from client.service.asked import METHODS

LENGTH, NUMBER = 2, 0  # how a field of a message goes over the wire
FAULTS = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)  # ours, whatever was sent


def _varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3 | NUMBER) + _varint(value)
    return _varint(number << 3 | LENGTH) + _varint(len(value)) + value


def _message(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """A message of a few fields, most of which some request has, of whatever it may hold."""
    text = st.text(max_size=8).map(str.encode)
    values = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 20), text, inner)
    fields = st.builds(_field, st.integers(1, 15), values)
    return st.lists(fields, max_size=5).map(b"".join)


ANY_BYTES = st.one_of(
    st.binary(max_size=60),
    st.recursive(st.just(b""), _message, max_leaves=4),
    _message(st.binary()),
)


def answers_to_any_bytes(
    send: Callable[[str, bytes], object], *, max_examples: int
) -> Counter[grpc.StatusCode]:
    """Send every method bytes that are no message, and messages that make no sense.

    Args:
        send: given the name of a method and the bytes of a request, sends it.
        max_examples: how many requests.

    Returns:
        How often each status was the answer; none of them says that the fault is ours.
    """
    answers = Counter[grpc.StatusCode]()

    @settings(REPEATED, max_examples=max_examples)
    @given(raw=ANY_BYTES, name=st.sampled_from([method.name for method in METHODS]))
    def each(raw: bytes, name: str) -> None:
        code = grpc.StatusCode.OK
        try:
            send(name, raw)
        except grpc.RpcError as error:
            code = error.code()
        assert code not in FAULTS, f"{name} of {raw!r}: {code}"
        answers[code] += 1

    each()
    return answers
