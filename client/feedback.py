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


class RoundFiles:
    """Tensors that a region keeps of a round for later ones.

    Args:
        folder: made when the first is kept.
        durable: as in `shared.durable.replace_file`; off where a power cut may cost what is kept.
    """

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self._folder, self._durable = folder, durable

    def before(self, server_round: int, form: Adapter) -> Adapter:
        """What the newest earlier round has kept; empty if there is none.

        What is damaged, or of another base, is removed with a warning: it is worth less than the
        round.

        Args:
            server_round: the round at hand.
            form: what is kept must be among these names, with the same shapes.
        """
        path = self._newest_before(server_round)
        if path is None:
            return {}
        try:
            kept = load_adapter(path)
            require_same_form({**form, **kept}, form)
        except (FederationError, WireError):
            log.warning("%s: unreadable or of another base; removed, the round goes on", path)
            path.unlink(missing_ok=True)
            return {}
        return kept

    def drop_before(self, server_round: int) -> None:
        """Remove what the newest earlier round has kept."""
        path = self._newest_before(server_round)
        if path is not None:
            path.unlink(missing_ok=True)

    def keep(self, tensors: Adapter, server_round: int) -> None:
        """Write down what is kept of this round, and remove what no round can ask for again."""
        save_adapter(self._path(server_round), tensors, {}, durable=self._durable)
        kept = self._rounds()
        earlier = [number for number in kept if number < server_round]
        for number in set(kept) - {server_round, max(earlier, default=server_round)}:
            self._path(number).unlink(missing_ok=True)

    def _newest_before(self, server_round: int) -> Path | None:
        earlier = [number for number in self._rounds() if number < server_round]
        return self._path(max(earlier)) if earlier else None

    def _rounds(self) -> list[int]:
        names = (path.name for path in self._folder.glob("round-*.safetensors"))
        return [int(match[1]) for match in map(_FILE.fullmatch, names) if match]

    def _path(self, server_round: int) -> Path:
        return self._folder / f"round-{server_round}.safetensors"


def feedback_of(state: Path) -> RoundFiles:
    """What updates lost and no later one has carried yet.

    Not every round trains every tensor: what is not in an update waits for one that holds it.

    Args:
        state: the region's state folder.
    """
    return RoundFiles(state / FOLDER, durable=False)
