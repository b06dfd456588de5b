"""Forget, in the event store and in what a region has derived from it: a shopper, or the past.

Adapters that were trained before keep what they learned, as sums over many shoppers; the next round
starts without those clicks (see the top of `client.service.events`).
"""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from client.region import open_region
from client.service.events import Counts, expire, forget, remove_query_activations
from client.service.store import EVENTS_FILE
from shared.audit import AuditLog
from shared.durable import replace_file

FORGOTTEN: Final = "forgotten"  # in the state folder; a running worker that sees it change reopens
EXPIRED: Final = "expired"  # in the state folder while expired queries are in kept activations
DERIVED_S: Final = 24 * 3600.0  # at most once in this time a worker reopens for retention's sake


def forget_shopper(folder: Path, user_key: str) -> Counts:
    """Erase a shopper's answers and events, and the kept activations of all queries.

    A service may be running; its worker lets go of the old click log at its next look.

    Args:
        folder: of the region.
        user_key: as it was sent with requests and events.

    Returns:
        How much was erased.

    Raises:
        DataError: the key is empty, or the store is damaged.
    """
    region = open_region(folder)
    counts = forget(region.state / EVENTS_FILE, user_key)
    _remove_derived(region.state)
    AuditLog(region.state / "audit.jsonl").append(
        "shopper.forgotten", impressions=counts.impressions, events=counts.events
    )
    return counts


def forget_the_past(state: Path, *, retention: timedelta, keep: Path) -> Counts:
    """Let go of events past their time and, at most once a day, of what was derived from them.

    Kept activations of queries go as when a shopper is forgotten, and the worker lets go of the old
    click log; that costs minutes of computing, so it waits until a day has passed since the last
    time. What waits is on disk, so that a restart does not forget to forget.

    Args:
        state: folder of a region that this process serves.
        retention: how long events are kept.
        keep: kept activations of the catalog's texts, which hold no query.

    Returns:
        How much has expired.

    Raises:
        DataError: the store is damaged, or somebody keeps reading an old state.
    """
    counts = expire(state / EVENTS_FILE, datetime.now(UTC) - retention)
    if counts.impressions or counts.events:
        replace_file(state / EXPIRED, b"")
    if (state / EXPIRED).exists() and _age_s(state / FORGOTTEN) >= DERIVED_S:
        _remove_derived(state, keep=keep)
        (state / EXPIRED).unlink()
    return counts


def _remove_derived(state: Path, *, keep: Path | None = None) -> None:
    """Remove what queries could be told from, and have a running worker open the region again."""
    remove_query_activations(state / "prefix_cache", keep=keep)
    replace_file(state / FORGOTTEN, datetime.now(UTC).isoformat().encode())


def _age_s(path: Path) -> float:
    """Seconds since a file was written; without it, for ever."""
    return time.time() - path.stat().st_mtime if path.exists() else float("inf")
