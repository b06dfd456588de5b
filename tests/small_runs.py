"""Whole federations of the small world's two regions: run, cut off, compared."""

from pathlib import Path

import pytest
import torch
from small_world import run_config

from client.worker import forget_workers, get_worker
from server.history import History
from shared.adapter import Adapter
from simulations.engine import run_engine


def federate(run: Path, **knobs: str | float) -> History:
    """Run a federation to its end under our own engine."""
    run_engine("local", run_config(run, **knobs), num_regions=2)  # type: ignore[arg-type]
    return History(run / "headquarters")


def federate_in_two_goes(run: Path, **knobs: str | float) -> History:
    """The same, cut off in round 2 when north has trained and south begins to."""

    def ctrl_c(done: int, total: int) -> None:
        if History(run / "headquarters").rounds()[-1].round == 1:
            raise KeyboardInterrupt

    get_worker(run / "regions" / "south").on_step = ctrl_c
    with pytest.raises(KeyboardInterrupt):
        federate(run, **knobs)
    forget_workers()
    return federate(run, **knobs)


def same(one: Adapter, other: Adapter) -> bool:
    """Whether all tensors are the same, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
