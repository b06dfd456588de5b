"""Forget a shopper: in the event store, and in what a region has derived from it.

Adapters that were trained before keep what they learned, as sums over many shoppers; the next round
starts without those clicks (see the top of `client.service.events`).
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from client.region import open_region
from client.service.events import Counts, forget, remove_query_activations
from client.service.store import EVENTS_FILE
from shared.audit import AuditLog
from shared.durable import replace_file

FORGOTTEN: Final = "forgotten"  # in the state folder; a running worker that sees it change reopens


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
    remove_query_activations(region.state / "prefix_cache")
    replace_file(region.state / FORGOTTEN, datetime.now(UTC).isoformat().encode())
    AuditLog(region.state / "audit.jsonl").append(
        "shopper.forgotten", impressions=counts.impressions, events=counts.events
    )
    return counts
