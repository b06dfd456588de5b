"""Replies of a cohort: which count, and why the others do not."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from flwr.app import Message, RecordDict

from server.handshake import failure_kind, of_regions, why_silent
from shared.errors import WireError

log = logging.getLogger("fedshelf.server")

Checked = TypeVar("Checked")


def sort_replies(
    replies: Iterable[Message],
    cohort: Mapping[int, str],
    check: Callable[[RecordDict], Checked],
    *,
    where: str,
    timeout_s: float,
) -> tuple[dict[str, tuple[Message, Checked]], list[dict[str, str]]]:
    """Part replies into those that pass a check and those that do not.

    Args:
        replies: in any order; some may be missing, repeated or from strangers.
        cohort: node id -> region name of everyone who was asked.
        check: raises `WireError` for content that does not count.
        where: how the log names the occasion, as "round 3".
        timeout_s: how long was waited, for the message about silent regions.

    Returns:
        Each passed reply with what `check` made of it, by region name; and region and reason of
        every other reply, and of every silence. Both are logged.
    """
    passed: dict[str, tuple[Message, Checked]] = {}
    rejected: list[dict[str, str]] = []
    silent = set(cohort.values())

    def reject(region: str, reason: str) -> None:
        log.warning('%s: region "%s" rejected: %s', where, region, reason)
        rejected.append({"region": region, "reason": reason})

    answers, given_up = of_regions(replies)
    for message in answers:
        region = cohort.get(message.metadata.src_node_id)
        if region is None or region not in silent:
            reject(region or "unknown node", "a reply that nobody asked for")
            continue
        silent.discard(region)
        try:
            if message.has_error():
                raise WireError(f"region failed: {failure_kind(message.error)}")
            passed[region] = message, check(message.content)
        except WireError as error:
            reject(region, str(error))
    for region in sorted(silent):
        reject(region, why_silent(len(silent), given_up, timeout_s=timeout_s))
    return passed, rejected
