"""Choose knobs as a federation could: by its regions' validation clicks, and nothing else.

Every trained method gets the same candidates and the same number of rounds. What it is judged by is
what it could see in earnest: a federation the mean that its regions report, a region alone its own
clicks, the pool the mean over the regions. Test queries take no part. Each rung trains anew with a
learning rate that falls to its end within the rung, so a short run is a whole run and not the start
of a long one; all of them are kept like any other training.
"""

from collections.abc import Callable
from typing import Any

from shared.config import RunConfig
from simulations.comparison.halving import rounds_spent, successive_halving
from simulations.comparison.spec import SearchSpec
from simulations.comparison.trainings import Trainer, Training

Say = Callable[[str], None]


def search_knobs(
    trainer: Trainer, training: Training, search: SearchSpec, *, max_rounds: int, say: Say
) -> tuple[RunConfig, dict[str, Any]]:
    """Search for one training's knobs.

    Args:
        trainer: of the world.
        training: what is searched for; its rounds do not matter.
        search: candidates and budget.
        max_rounds: no rung has more.
        say: told the winner.

    Returns:
        The winner, and for result.json what was tried.
    """
    candidates = search.candidates

    def validation(candidate: int, rounds: int) -> float:
        knobs = {**candidates[candidate], "num-rounds": rounds}
        tried = Training(
            training.cell, training.kind, {**training.run_config, **knobs}, training.region
        )
        return trainer.train(tried).validation

    best, rungs = successive_halving(
        len(candidates),
        validation,
        eta=search.eta,
        first_rounds=search.first_rounds,
        max_rounds=max_rounds,
    )
    told = ", ".join(f"{key} {value}" for key, value in candidates[best].items())
    say(f"{training.region or training.kind}: {told}, after {rounds_spent(rungs)} rounds of search")
    tried = [
        {"rounds": rung.rounds, "scores": {str(n): score for n, score in rung.scores.items()}}
        for rung in rungs
    ]
    return candidates[best], {
        "chosen": candidates[best],
        "rounds": rounds_spent(rungs),
        "rungs": tried,
    }
