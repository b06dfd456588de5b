"""Run a tower in two halves: the frozen prefix once, the adapted suffix as often as needed.

Everything below the first adapted block gives the same output for the same item for as long as
the base lives, so it is worth keeping. No tower is rewritten for that: the model's own forward
runs in both halves, its blocks only skip. `capture` stops at the cut and hands out what would go
into it; `replay` lets the blocks below the cut pass and puts the kept activations in at the cut.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from shared.errors import BaseError


class _CutReachedError(Exception):
    """Ends a forward pass at the cut; carries nothing, never leaves this module."""


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
        self._first = blocks[len(blocks) - adapter_blocks]
        self._below = [*stem, *blocks[: len(blocks) - adapter_blocks]]

    def capture(self, run: Callable[[], object]) -> Tensor:
        """The activations that enter the first block above the cut while `run` runs the model."""
        seen: list[Tensor] = []

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(args[0] if args else kwargs["hidden_states"])
            raise _CutReachedError

        with _pre_hook(self._first, stop):
            try:
                run()
            except _CutReachedError:
                return seen[0]
        raise AssertionError("the model never reached its own block")

    @contextmanager
    def replay(self, activations: Tensor) -> Iterator[None]:
        """Within the context, a forward pass skips what is below the cut and starts here.

        Args:
            activations: what `capture` gave, (B, ...); the model's own input is then only a
                dummy of the right batch size and length.
        """

        def inject(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            others = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            return (activations, *args[1:]), others

        with _pre_hook(self._first, inject), _skipping(self._below):
            yield


@contextmanager
def _pre_hook(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _skipping(modules: list[nn.Module]) -> Iterator[None]:
    """Let `modules` hand their first input through unchanged, without computing anything."""
    for module in modules:
        module.__dict__["forward"] = _pass_through
    try:
        yield
    finally:
        for module in modules:
            del module.__dict__["forward"]


def _pass_through(hidden_states: Tensor, *_: object, **__: object) -> Tensor:
    return hidden_states
