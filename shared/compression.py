"""Fewer bytes for an update on its way to headquarters, and what that loses.

    float32   as it is: exact, 4 bytes a number
    float16   2 bytes a number
    int8      1 byte a number, and one scale a tensor

An int8 tensor x is sent as q = round(x / scale), where scale is the smallest power of two for which
|q| <= 127. A power of two costs up to one bit of the eight and makes everything exact: what is read
back, q scale, is the very number that the region believes it sent, and sending it again changes
nothing. So what is lost is known to the last bit, and is not lost for good: the region adds it to
its next update before that is rounded (error feedback: Seide et al. 2014; Karimireddy et al. 2019,
arXiv:1901.09847, algorithm 2, with rounding for the compressor).
"""

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from shared.adapter import Adapter
from shared.config import FLOAT16, FLOAT32, INT8

_LARGEST: Final = {FLOAT16: 65504.0, INT8: 127.0}
_SMALLEST_EXPONENT, _LARGEST_EXPONENT = -126, 120  # float32 holds 127 times either
MAX_SCALE: Final = 2.0**_LARGEST_EXPONENT

Values = NDArray[Any]


def compress(values: NDArray[np.float32], encoding: str) -> tuple[Values, float]:
    """One tensor as it crosses the wire.

    Args:
        values: finite, of any shape.
        encoding: one of `shared.config.ENCODINGS`.

    Returns:
        The same shape in the dtype of that name, and the scale that `expand` multiplies it by,
        which is 1 but for int8. What float16 cannot hold becomes the largest that it can.
    """
    if encoding == FLOAT16:
        held = np.clip(values, -_LARGEST[FLOAT16], _LARGEST[FLOAT16])
        return np.asarray(held, np.float16), 1.0
    if encoding == INT8:
        scale = _scale(float(np.abs(values).max(initial=0.0)))
        return np.asarray(np.rint(np.asarray(values, np.float64) / scale), np.int8), scale
    assert encoding == FLOAT32, "one of ENCODINGS"
    return values, 1.0


def expand(values: Values, scale: float) -> NDArray[np.float32]:
    """The inverse of `compress`, but for what it lost; exact, (the same shape)."""
    return np.asarray(np.asarray(values, np.float64) * scale, np.float32)


def rounded(update: Adapter, encoding: str) -> Adapter:
    """The update that arrives if this one is sent; of what has arrived, the same again."""
    arrived = {}
    for name, tensor in update.items():
        values, scale = compress(tensor.numpy(), encoding)
        arrived[name] = torch.from_numpy(expand(values, scale))
    return arrived


def _scale(largest: float) -> float:
    """The smallest power of two that `largest` is at most 127 times of."""
    if largest == 0:
        return 1.0
    mantissa, exponent = np.frexp(largest / _LARGEST[INT8])  # in [0.5, 1) times 2 ** exponent
    power = int(exponent) - (mantissa == 0.5)
    return float(2.0 ** np.clip(power, _SMALLEST_EXPONENT, _LARGEST_EXPONENT))
