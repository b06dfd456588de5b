"""The encoders of this process: one of each base and device, whatever number of regions uses it.

In a simulation all regions share it, with adapters swapped in place.
"""

from pathlib import Path

from shared.encoders.encoder import Encoder, load_encoder

_ENCODERS: dict[tuple[str, str], Encoder] = {}  # by fingerprint and device


def resident_encoder(base: Path, *, device: str, fingerprint: str) -> Encoder:
    """The process's one encoder of a base, loaded and verified at first use."""
    key = (fingerprint, device)
    if key not in _ENCODERS:
        _ENCODERS[key] = load_encoder(base, device=device, expected=fingerprint)
    return _ENCODERS[key]


def forget_encoders() -> None:
    """Drop them; whoever holds one keeps it."""
    _ENCODERS.clear()
