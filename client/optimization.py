"""How one step moves a region's parameters: the optimizer, and what holds drift in check.

Regions that train for many steps drift towards their own optimum. FedProx pulls them back to where
they started; SCAFFOLD corrects every step by what other regions' gradients are known to be.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from shared.adapter import Adapter, beginning, within_rank
from shared.config import SGD, TrainConfig


class Descent:
    """Steps down the gradient of a round's loss.

    Args:
        parameters: to be moved.
        config: hyper-parameters of this round.
        correction: SCAFFOLD's c - c_i, in the order of `parameters`; none without SCAFFOLD.
        moved: what of them is moved, in the same order (`first_components`); all by default.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        config: TrainConfig,
        correction: Sequence[Tensor] = (),
        moved: list[nn.Parameter] | None = None,
    ) -> None:
        self._parameters, self._moved, self._config = parameters, moved or parameters, config
        self._start = [p.detach().clone() for p in self._moved] if config.proximal_mu else []
        self._correction = correction
        make = torch.optim.SGD if config.optimizer == SGD else torch.optim.AdamW
        self._optimizer: torch.optim.Optimizer = make(
            self._moved, lr=config.learning_rate, weight_decay=config.weight_decay
        )

    def clear(self) -> None:
        """Forget the gradients of the step before."""
        for parameter in (*self._parameters, *self._moved):
            parameter.grad = None

    def step(self) -> None:
        """Move the parameters by one step, along the gradients that they have now."""
        for whole, part in zip(self._parameters, self._moved, strict=True):
            if part is not whole and whole.grad is not None:
                part.grad = beginning(whole.grad, part.shape)
        if self._start:
            add_proximal(self._moved, self._start, mu=self._config.proximal_mu)
        nn.utils.clip_grad_norm_(self._moved, self._config.clip_norm)
        for parameter, correction in zip(self._moved, self._correction, strict=False):
            assert parameter.grad is not None, "backward was asked for it"
            # After clipping: c_i is a mean of clipped gradients.
            parameter.grad += correction.to(parameter.device)
        self._optimizer.step()


def first_components(named: Mapping[str, nn.Parameter], rank: int) -> list[nn.Parameter]:
    """What an optimizer is given so that it moves the first components of each LoRA pair alone.

    A part shares its memory with the parameter whose beginning it is. So what lies beyond cannot
    move, not by weight decay either, and the optimizer remembers nothing of it.

    Args:
        named: parameters by the names that an adapter gives them.
        rank: see `shared.adapter.within_rank`.

    Returns:
        One for each, in their order; those that are whole within the rank are themselves.
    """
    parts = within_rank({name: whole.data for name, whole in named.items()}, rank)
    return [
        whole if parts[name].shape == whole.shape else nn.Parameter(parts[name])
        for name, whole in named.items()
    ]


def add_proximal(parameters: list[nn.Parameter], start: list[Tensor], *, mu: float) -> None:
    """Add the gradient of FedProx's term to each parameter's own.

    FedProx (arXiv:1812.06127, eq. 2) minimizes F(w) + mu / 2 |w - w_t|^2, w_t being what the region
    was sent; the term's gradient is mu (w - w_t).

    Args:
        parameters: w, with their gradients of F.
        start: w_t, in the same order.
        mu: >= 0.
    """
    for parameter, sent in zip(parameters, start, strict=True):
        assert parameter.grad is not None, "backward was asked for it"
        parameter.grad += mu * (parameter.detach() - sent)


def next_control(
    own: Adapter, everyones: Adapter, update: Adapter, *, steps: int, learning_rate: float
) -> Adapter:
    """A region's control variate after a round (SCAFFOLD, arXiv:1910.06378, option II).

    c_i+ = c_i - c + (x - y) / (K eta): as each step was eta (g - c_i + c), this is the mean of the
    K gradients g along the way. It holds for SGD without momentum and one learning rate a round,
    and for no other optimizer.

    Args:
        own: c_i.
        everyones: c.
        update: y - x, what training moved, before anything is rounded.
        steps: K.
        learning_rate: eta.

    Returns:
        c_i+, of the tensors in `update`.
    """
    return {
        name: own[name] - everyones[name] - moved / (steps * learning_rate)
        for name, moved in update.items()
    }
