"""What messages tell of how vectors lie: encoding statistics (DCCO), and Gaussians of products.

Statistics cross as float32 both ways, Gaussians so from headquarters, and from a region as its
update does. `shared.wire` puts them into the messages of a round.
"""

from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import RecordDict
from torch import Tensor

from shared.arrays import to_array
from shared.config import TrainConfig
from shared.decorrelation import MIN_EXAMPLES, MOMENTS, Statistics
from shared.decorrelation import why_impossible as why_no_statistics
from shared.errors import WireError
from shared.gaussians import Gaussians, forms
from shared.gaussians import why_impossible as why_no_gaussians
from shared.records import (
    GAUSSIANS,
    STATISTICS,
    arrays_of,
    encode_adapter,
    read_arrays,
    read_update,
    write_update,
)

_MAX_GAUSSIANS_NORM = 10.0  # of unit vectors it is at most about 1


def write_statistics(content: RecordDict, statistics: Statistics | None) -> None:
    """Put statistics into a message, if there are any."""
    if statistics is not None:
        content[STATISTICS] = encode_adapter(statistics.moments())


def write_gaussians(content: RecordDict, gaussians: Gaussians | None) -> None:
    """Put those of all regions into a train message, if there are any."""
    if gaussians is not None:
        content[GAUSSIANS] = encode_adapter(gaussians.tensors())


def write_gaussian(content: RecordDict, gaussian: Gaussians | None, encoding: str) -> None:
    """Put a region's own into its reply, if there is one."""
    if gaussian is not None:
        write_update(content, GAUSSIANS, gaussian.tensors(), encoding)


def sent_statistics(content: RecordDict, config: TrainConfig) -> Statistics | None:
    """Those of a train message, of weight 1; None where there are none.

    Raises:
        WireError: the reason, like all that read here.
    """
    if STATISTICS not in content:
        return None
    if config.decorrelation_weight <= 0:
        raise WireError("train message: statistics without a decorrelation-weight")
    shape = arrays_of(content, STATISTICS).get(MOMENTS[0], to_array(np.zeros(0))).shape
    return _read_statistics(content, shape[0] if len(shape) == 1 else 0, weight=1)


def given_statistics(content: RecordDict, dim: int, num_examples: int) -> Statistics | None:
    """Those of a reply; None where there must be none (`shared.wire.read_train_reply`)."""
    if dim > 0 and num_examples >= MIN_EXAMPLES:
        return _read_statistics(content, dim, weight=num_examples)
    if STATISTICS in content:
        why = f"of fewer than {MIN_EXAMPLES} examples" if dim > 0 else "that nobody asked for"
        raise WireError(f"statistics {why}")
    return None


def sent_gaussians(content: RecordDict, config: TrainConfig) -> Gaussians | None:
    """Those of a train message, a region's each; None where there are none."""
    if GAUSSIANS not in content:
        return None
    if config.drawn_negatives == 0:
        raise WireError("train message: Gaussians without drawn-negatives")
    record = arrays_of(content, GAUSSIANS)
    shape = record.get("mean", to_array(np.zeros(0))).shape
    arrays = read_arrays(record, forms(*shape) if len(shape) == 2 else {}, "float32")
    return _possible({name: torch.from_numpy(values.copy()) for name, values in arrays.items()})


def given_gaussian(content: RecordDict, dim: int, encoding: str) -> Gaussians | None:
    """That of a reply; None where there is none."""
    if GAUSSIANS not in content:
        return None
    if dim == 0:
        raise WireError("a Gaussian that nobody asked for")
    form = {name: torch.zeros(shape) for name, shape in forms(1, dim).items()}
    return _possible(read_update(content, GAUSSIANS, form, encoding, _MAX_GAUSSIANS_NORM))


def _read_statistics(content: RecordDict, dim: int, *, weight: int) -> Statistics:
    """Statistics of unit vectors (D,), as they crossed."""
    shapes = {name: (dim, dim) if name == "cross" else (dim,) for name in MOMENTS}
    record = arrays_of(content, STATISTICS)
    if dim == 0 or record.keys() != shapes.keys():
        raise WireError(f"statistics are not {', '.join(MOMENTS)}")
    arrays = read_arrays(record, shapes, "float32")
    means = {name: torch.from_numpy(arrays[name].copy()) for name in MOMENTS}
    found = Statistics(**means, weight=torch.tensor(float(weight)))
    if why := why_no_statistics(found):
        raise WireError(f"statistics: {why}")
    return found


def _possible(tensors: Mapping[str, Tensor]) -> Gaussians:
    found = Gaussians(**tensors)
    if why := why_no_gaussians(found):
        raise WireError(f"Gaussians: {why}")
    return found
