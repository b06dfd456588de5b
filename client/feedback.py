"""What rounding took from a region's updates, kept until its next one (error feedback).

One file a round under `state/feedback/`. A round that is trained a second time, because
headquarters was interrupted, begins with what the round before it left, and so sends the same
update again. A training numbers its rounds from 1, so nothing of an earlier training is added to
the first round of the next; a region that joins later may add what it once lost, which is less
than half a step of the rounding.
"""

import logging
import re
from pathlib import Path
from typing import Final

from shared.adapter import Adapter, load_adapter, require_same_form, save_adapter
from shared.errors import FederationError, WireError

log = logging.getLogger("fedshelf.worker")

FOLDER: Final = "feedback"
_FILE = re.compile(r"round-([0-9]{1,9})\.safetensors")


class Feedback:
    """The residuals of one region.

    Args:
        state: the region's state folder.
    """

    def __init__(self, state: Path) -> None:
        self._folder = state / FOLDER

    def before(self, server_round: int, adapter: Adapter) -> Adapter:
        """What updates before this round's have lost and no later one has carried.

        Not every round trains every tensor: what is not in an update waits for one that holds it.
        A residual that is damaged, or of another base, is removed with a warning: it is worth less
        than the round.

        Args:
            server_round: the round at hand.
            adapter: a whole one; the residual's tensors must be among its own.
        """
        earlier = [number for number in self._rounds() if number < server_round]
        if not earlier:
            return {}
        path = self._path(max(earlier))
        try:
            residual = load_adapter(path)
            require_same_form({**adapter, **residual}, adapter)
        except (FederationError, WireError):
            log.warning("%s: unreadable or of another base; removed, the round goes on", path)
            path.unlink(missing_ok=True)
            return {}
        return residual

    def keep(self, residual: Adapter, server_round: int) -> None:
        """Write down what is lost as of this round, and remove what no round can ask for again."""
        save_adapter(self._path(server_round), residual, {}, durable=False)
        kept = self._rounds()
        earlier = [number for number in kept if number < server_round]
        for number in set(kept) - {server_round, max(earlier, default=server_round)}:
            self._path(number).unlink(missing_ok=True)

    def _rounds(self) -> list[int]:
        names = (path.name for path in self._folder.glob("round-*.safetensors"))
        return [int(match[1]) for match in map(_FILE.fullmatch, names) if match]

    def _path(self, server_round: int) -> Path:
        return self._folder / f"round-{server_round}.safetensors"
