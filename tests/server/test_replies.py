"""Replies are looked at in the order of regions, one at a time; none is held without need."""

from collections.abc import Iterator, Sequence

from flwr.app import Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from server.replies import in_order, sort_replies

COHORT = {7: "east", 3: "north", 9: "south", 4: "west"}
NODES = list(COHORT)  # in the order of their regions' names
STRANGER = 99


def reply(node: int) -> Message:
    message = Message(RecordDict(), dst_node_id=1, message_type="train")
    message.metadata.__dict__["_src_node_id"] = node
    return message


def nodes_of(replies: Sequence[int]) -> list[int]:
    found = in_order((reply(node) for node in replies), COHORT)
    return [message.metadata.src_node_id for message in found]


@given(st.permutations(NODES), st.sets(st.sampled_from(NODES)))
def test_any_order_becomes_that_of_the_regions(order: list[int], silent: set[int]) -> None:
    came = [node for node in order if node not in silent]
    assert nodes_of(came) == [node for node in NODES if node not in silent]


@given(st.lists(st.sampled_from([*NODES, STRANGER]), max_size=12))
def test_no_reply_is_lost_and_first_ones_stay_in_order(replies: list[int]) -> None:
    found = nodes_of(replies)
    assert sorted(found) == sorted(replies)
    first = [node for place, node in enumerate(found) if node not in found[:place]]
    assert [node for node in first if node != STRANGER] == [n for n in NODES if n in replies]


def test_replies_that_come_in_order_are_not_held() -> None:
    asked: list[int] = []

    def answers() -> Iterator[Message]:
        for node in NODES:
            asked.append(node)
            yield reply(node)

    for count, message in enumerate(in_order(answers(), COHORT), start=1):
        assert message.metadata.src_node_id == NODES[count - 1]
        assert asked == NODES[:count]


def test_each_reply_is_checked_before_the_next_is_asked_for() -> None:
    happened: list[str] = []

    def answers() -> Iterator[Message]:
        for node in NODES:
            happened.append(f"answer {COHORT[node]}")
            yield reply(node)

    passed, rejected = sort_replies(
        answers(),
        COHORT,
        lambda region, content: happened.append("check"),
        where="here",
        timeout_s=1,
    )
    assert list(passed) == sorted(COHORT.values()) and rejected == []
    assert happened[1::2] == ["check"] * 4
    assert happened[::2] == [f"answer {COHORT[node]}" for node in NODES]
