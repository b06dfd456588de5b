"""Replies of a cohort: which count, and why the others do not.

Replies are looked at one at a time and let go: what a round holds does not grow with its cohort,
as long as the grid hands them over one at a time too.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from flwr.app import Message, RecordDict

from server.handshake import failure_kind, from_flower, why_silent
from shared.errors import WireError

log = logging.getLogger("fedshelf.server")

Checked = TypeVar("Checked")


def sort_replies(
    replies: Iterable[Message],
    cohort: Mapping[int, str],
    check: Callable[[str, RecordDict], Checked],
    *,
    where: str,
    timeout_s: float,
) -> tuple[dict[str, Checked], list[dict[str, str]]]:
    """Part replies into those that pass a check and those that do not.

    They are checked in the order of the regions' names, however they come.

    Args:
        replies: in any order; some may be missing, repeated or from strangers.
        cohort: node id -> region name of everyone who was asked.
        check: given a region's name and what it sent; raises `WireError` if that does not count.
        where: how the log names the occasion, as "round 3".
        timeout_s: how long was waited, for the message about silent regions.

    Returns:
        What `check` made of each reply that passed, by region name; and region and reason of
        every other reply, and of every silence, which are logged too.
    """
    passed: dict[str, Checked] = {}
    given_up = 0
    rejected: list[dict[str, str]] = []
    silent = set(cohort.values())

    def reject(region: str, reason: str) -> None:
        log.warning('%s: region "%s" rejected: %s', where, region, reason)
        rejected.append({"region": region, "reason": reason})

    for message in in_order(replies, cohort):
        if from_flower(message):
            given_up += 1
            continue
        region = cohort.get(message.metadata.src_node_id)
        if region is None or region not in silent:
            reject(region or "unknown node", "a reply that nobody asked for")
            continue
        silent.discard(region)
        try:
            if message.has_error():
                raise WireError(f"region failed: {failure_kind(message.error)}")
            passed[region] = check(region, message.content)
        except WireError as error:
            reject(region, str(error))
    for region in sorted(silent):
        reject(region, why_silent(len(silent), given_up, timeout_s=timeout_s))
    return passed, rejected


def in_order(replies: Iterable[Message], cohort: Mapping[int, str]) -> Iterator[Message]:
    """Replies in the order of the regions' names: sums of floats depend on it.

    A reply that is early is held back until it is its region's turn; one from a node of which none
    is due any more is handed on at once.

    Args:
        replies: in any order.
        cohort: node id -> region name.
    """
    order = iter(sorted(cohort, key=lambda node: cohort[node]))
    held: dict[int, list[Message]] = defaultdict(list)
    due, turn = set(cohort), next(order, None)
    for message in replies:
        node = message.metadata.src_node_id
        if node not in due:
            yield message
            continue
        held[node].append(message)
        while turn in held:
            due.discard(turn)
            yield from held.pop(turn)
            turn = next(order, None)
    for node in sorted(held, key=lambda node: cohort[node]):
        yield from held[node]
