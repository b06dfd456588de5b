"""FedProx and SCAFFOLD: hand-worked steps, and the papers' algorithms in plain numbers beside them.

Regions here have one number x and a loss a/2 (x - b)^2, so gradients and optima are known.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from client.control_variates import ControlVariates as OwnControl
from client.optimization import Descent, add_proximal, next_control
from server.aggregator import Aggregator
from server.control_variates import ControlVariates
from shared.adapter import Adapter
from shared.config import TrainConfig, parse_run_config

RATE, STEPS = 0.1, 5
FEDERATION = {"optimizer": "sgd", "learning-rate": RATE, "final-learning-rate": RATE}
FEDERATION |= {"weight-decay": 0.0, "clip-norm": 1000.0}
# Curvature, optimum and number of examples of each region.
REGIONS = {"east": (1.0, 4.0, 30), "north": (5.0, -2.0, 10), "south": (2.0, 1.0, 20)}
OPTIMUM = sum(a * b * n for a, b, n in REGIONS.values()) / sum(
    a * n for a, _, n in REGIONS.values()
)


def settings(**changes: float | str) -> TrainConfig:
    return replace(parse_run_config(FEDERATION).train_config(1), **changes)


def descend(
    x: float,
    a: float,
    b: float,
    config: TrainConfig,
    correction: float | None = None,
    steps: int = STEPS,
) -> float:
    parameter = nn.Parameter(torch.tensor([x], dtype=torch.float64))
    given = [] if correction is None else [torch.tensor([correction], dtype=torch.float64)]
    descent = Descent([parameter], config, given)
    for _ in range(steps):
        descent.clear()
        (a / 2 * (parameter - b) ** 2).sum().backward()
        descent.step()
    return float(parameter.detach())


def test_one_step_of_sgd_by_hand() -> None:
    """x = 3, gradient 2 (3 - 1) = 4, decay 0.5 x 3: 3 - 0.1 x 5.5."""
    assert descend(3.0, 2.0, 1.0, settings(weight_decay=0.5), steps=1) == pytest.approx(2.45)


def test_the_proximal_gradient_is_that_of_its_term() -> None:
    """FedProx, arXiv:1812.06127, eq. 2, by autograd."""
    w, sent, mu = nn.Parameter(torch.tensor([3.0, -1.0])), torch.tensor([1.0, 1.0]), 0.7
    (w**3).sum().backward()
    add_proximal([w], [sent], mu=mu)
    whole = nn.Parameter(w.detach().clone())
    ((whole**3).sum() + mu / 2 * (whole - sent).square().sum()).backward()
    assert w.grad is not None and whole.grad is not None
    torch.testing.assert_close(w.grad, whole.grad)


def test_a_heavier_proximal_term_stays_nearer_to_what_was_sent() -> None:
    ends = [descend(0.0, 1.0, 4.0, settings(proximal_mu=mu), steps=200) for mu in (0.0, 1.0, 3.0)]
    assert ends == pytest.approx([4.0, 2.0, 1.0], rel=1e-6)  # a b / (a + mu)


def test_clipping_holds_the_gradient_and_not_the_correction() -> None:
    """Gradient -4 clipped to -1, then corrected by -3: one step of 0.1 x 4."""
    assert descend(
        0.0, 1.0, 4.0, settings(clip_norm=1.0), correction=-3.0, steps=1
    ) == pytest.approx(0.4)


def test_the_next_control_variate_is_the_mean_gradient_along_the_way() -> None:
    a, b, own, common, x, gradients = 2.0, 1.0, 0.3, -0.8, 5.0, []
    y = x
    for _ in range(STEPS):
        gradients.append(a * (y - b))
        y -= RATE * (gradients[-1] - own + common)
    assert descend(x, a, b, settings(), correction=common - own) == pytest.approx(y)
    tensors = [{"x": torch.tensor([value], dtype=torch.float64)} for value in (own, common, y - x)]
    found = next_control(*tensors, steps=STEPS, learning_rate=RATE)["x"]
    assert float(found) == pytest.approx(sum(gradients) / STEPS)


def scaffold(rounds: int) -> list[float]:
    """The slow reference: algorithm 1 of arXiv:1910.06378, option II, every region in every round.

    Means are weighted by examples, as `server.control_variates` says.
    """
    x, c, own = 0.0, 0.0, dict.fromkeys(REGIONS, 0.0)
    total, seen = sum(n for *_, n in REGIONS.values()), []
    for _ in range(rounds):
        moved = changed = 0.0
        for name, (a, b, n) in REGIONS.items():
            y = x
            for _ in range(STEPS):
                y -= RATE * (a * (y - b) - own[name] + c)
            after = own[name] - c + (x - y) / (STEPS * RATE)
            moved, changed = moved + n * (y - x), changed + n * (after - own[name])
            own[name] = after
        x, c = x + moved / total, c + changed / total
        seen.append(x)
    return seen


class Simulated:
    """Rounds through the real arithmetic of both sides, with regions that may be lost."""

    def __init__(self, state: Path, **knobs: bool) -> None:
        self.config = parse_run_config({**FEDERATION, "num-rounds": 99, **knobs})
        self.state, self.memory, self.round = state, Adapter(), 0
        self.adapter: Adapter = {"x": torch.zeros(1)}

    def train(self, name: str, variates: ControlVariates) -> tuple[Adapter, Adapter]:
        """A region's update and the change of its control variate, kept as a region keeps it."""
        (a, b, _), kept, common = REGIONS[name], OwnControl(self.state / name), variates.common()
        before = kept.before(self.round, common, variates.receipts())
        (correction,) = before.correction(["x"])
        end = descend(float(self.adapter["x"]), a, b, settings(), float(correction))
        update = {"x": torch.tensor([end]) - self.adapter["x"]}
        change = before.change(update, settings(update_encoding="float32"), steps=STEPS)
        kept.keep(before, change, self.round)
        return update, change

    def go(self, *, lost: str = "", twice: bool = False) -> None:
        self.round += 1
        variates = ControlVariates(self.memory, self.adapter)
        answers = {name: self.train(name, variates) for name in REGIONS}
        if twice:
            again = {name: self.train(name, variates) for name in REGIONS}
            assert str(again) == str(answers)
        aggregator, counted = Aggregator(self.config, self.round, self.adapter, {}), {}
        for name, (update, change) in answers.items():
            if name != lost:
                n = REGIONS[name][2]
                aggregator.add(update, n, 0.0)
                counted[name] = variates.add(change, n)
        self.adapter, self.memory = aggregator.outcome().adapter, variates.memory(counted)

    def true_mean(self) -> float:
        """The mean of what regions hold, by examples, as the next round would find it."""
        variates = ControlVariates(self.memory, self.adapter)
        total = found = 0.0
        for name, (*_, n) in REGIONS.items():
            kept = OwnControl(self.state / name)
            own = kept.before(self.round + 1, variates.common(), variates.receipts()).own
            found, total = found + n * float(own["x"]), total + n
        return found / total


def test_rounds_are_those_of_the_papers_algorithm(tmp_path: Path) -> None:
    federation, seen = Simulated(tmp_path), []
    for _ in range(8):
        federation.go()
        seen.append(float(federation.adapter["x"]))
    assert seen == pytest.approx(scaffold(8), abs=1e-5)


def test_scaffold_finds_the_common_optimum_and_fedavg_does_not(tmp_path: Path) -> None:
    federation = Simulated(tmp_path)
    for _ in range(60):
        federation.go()
    assert float(federation.adapter["x"]) == pytest.approx(OPTIMUM, abs=1e-3)
    x, total = 0.0, sum(n for *_, n in REGIONS.values())
    for _ in range(60):
        x = sum(n * descend(x, a, b, settings()) for a, b, n in REGIONS.values()) / total
    assert abs(x - OPTIMUM) > 0.2


def test_a_round_trained_again_sends_the_same_again(tmp_path: Path) -> None:
    once, again = Simulated(tmp_path / "once"), Simulated(tmp_path / "again")
    for number in range(4):
        once.go()
        again.go(twice=number in (1, 3))
    assert torch.equal(once.adapter["x"], again.adapter["x"])


def test_an_answer_that_did_not_count_is_forgotten_on_both_sides(tmp_path: Path) -> None:
    federation = Simulated(tmp_path)
    for lost in ("", "south", "", "north", "north", ""):
        federation.go(lost=lost)
        common = float(ControlVariates(federation.memory, federation.adapter).common()["x"])
        assert federation.true_mean() == pytest.approx(common, abs=1e-5)


def test_a_control_variate_of_an_earlier_training_is_not_used(tmp_path: Path) -> None:
    earlier = Simulated(tmp_path)
    for _ in range(3):
        earlier.go()
    form = {"x": torch.zeros(1)}
    assert OwnControl(tmp_path / "east").before(3, form, []).own["x"] == 0
