"""Run a tower in two halves: the frozen prefix once, the adapted suffix as often as needed.

Everything below the first adapted block gives the same output for the same item for as long as
the base lives, so it is worth keeping. No tower is rewritten for that: the model's own forward
runs in both halves, its blocks only skip. `capture` stops at the cut and hands out what would go
into it; `replay` lets the blocks below the cut pass and puts the kept activations in at the cut.
Each concerns its own thread alone, so several may run one tower at once, and outside both the
model computes what it always did.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from torch import Tensor, nn

from shared.errors import BaseError

_CAPTURE: Final = "capture"


class _CutReachedError(Exception):
    """Ends a forward pass at the cut and carries what was to go in there; stays in this module."""

    def __init__(self, activations: Tensor) -> None:
        super().__init__()
        self.activations = activations


def find_blocks(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """The tower's main sequence of blocks: its outermost chain of a usual name.

    Args:
        model: a transformers encoder or a timm model.

    Returns:
        The chain's dotted name in the model and its blocks, first to last.

    Raises:
        BaseError: the model has no such chain.
    """
    chains = [
        (name, list(module.children()))
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        and name.rpartition(".")[2] in ("layer", "layers", "blocks", "stages")
    ]
    if not chains:
        raise BaseError(
            f"{type(model).__name__}: no chain of blocks named layer, layers, blocks or stages; "
            "choose a transformer or a timm net that has one"
        )
    return min(chains, key=lambda chain: chain[0].count("."))


class SplitTower:
    """A tower that can be run below and above a cut before its last `adapter_blocks` blocks.

    Args:
        model: the tower, in eval mode.
        blocks: its chain of blocks, from `find_blocks`.
        adapter_blocks: how many of the last blocks are above the cut, 1..len(blocks).
        stem: children used only below the cut and costly to run; skipped in `replay`.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: list[nn.Module],
        adapter_blocks: int,
        stem: tuple[nn.Module, ...] = (),
    ) -> None:
        if not 1 <= adapter_blocks <= len(blocks):
            raise BaseError(
                f"{type(model).__name__}: adapter_blocks is {adapter_blocks}, "
                f"the tower has {len(blocks)} blocks; choose 1..{len(blocks)}"
            )
        cut = len(blocks) - adapter_blocks
        blocks[cut].register_forward_pre_hook(_at_cut, with_kwargs=True)
        for module in [*stem, *blocks[:cut]]:
            module.__dict__["forward"] = _unless_replaying(module.forward)

    def capture(self, run: Callable[[], object]) -> Tensor:
        """The activations that enter the first block above the cut while `run` runs the model."""
        with _in_two_halves(_CAPTURE):
            try:
                run()
            except _CutReachedError as reached:
                return reached.activations
        raise AssertionError("the model never reached its own block")

    @contextmanager
    def replay(self, activations: Tensor) -> Iterator[None]:
        """Within the context, a forward pass skips what is below the cut and starts here.

        Args:
            activations: what `capture` gave, (B, ...); the model's own input is then only a
                dummy of the right batch size and length.
        """
        with _in_two_halves(activations):
            yield


# What this thread's forward passes do at the cut: end there, start there, or nothing special.
_half: ContextVar[Tensor | str | None] = ContextVar("half", default=None)


@contextmanager
def _in_two_halves(half: Tensor | str) -> Iterator[None]:
    token = _half.set(half)
    try:
        yield
    finally:
        _half.reset(token)


def _at_cut(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What goes into the first block above the cut: handed out, replaced, or left as it is."""
    half = _half.get()
    if half is None:
        return None
    if not isinstance(half, Tensor):
        raise _CutReachedError(args[0] if args else kwargs["hidden_states"])
    others = {name: value for name, value in kwargs.items() if name != "hidden_states"}
    return (half, *args[1:]), others


def _unless_replaying(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward of a module below the cut that hands its input on while a pass starts above it."""

    def run(*args: Any, **kwargs: Any) -> Any:
        if isinstance(_half.get(), Tensor):
            return args[0] if args else kwargs["hidden_states"]
        return forward(*args, **kwargs)

    return run
