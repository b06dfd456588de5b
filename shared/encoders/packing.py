"""Texts of unequal length side by side: padded where attention needs it, packed everywhere else.

Half of what a padded batch of titles and queries computes is padding. Only attention has to know
which tokens belong together; linear layers, norms and activations see one token at a time. So a
batch travels through a block as one long row of tokens, without padding, and is spread into a
padded grid for attention alone. transformers lets a model's attention function be chosen by name
(`AttentionInterface`); its forward stays its own. The same idea for GPU kernels: ByteTransformer
(arXiv:2210.03052, section 4).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

_NAME: Final = "packed"
# Towers whose blocks know a token's place from its activation alone. One that turns its queries and
# keys by position, or adds a bias by distance, would take a packed batch for one long text.
_PACKABLE: Final = frozenset({"bert", "roberta", "xlm-roberta"})


class Grid:
    """Where each token of a packed batch lies in the padded one.

    Args:
        lengths: tokens of each text, (B,) int64, on the CPU.
        device: of the tokens.

    Attributes:
        mask: (B, L) bool, L the longest; true for a token, false for padding.
    """

    def __init__(self, lengths: Tensor, device: torch.device) -> None:
        columns = torch.arange(int(lengths.max()))
        self.mask = (columns[None, :] < lengths[:, None]).to(device)
        self._places = self.mask.flatten().nonzero().flatten()  # (T,)

    def spread(self, rows: Tensor) -> Tensor:
        """Packed rows (T, ...) as a padded batch (B, L, ...), zero in the padding."""
        empty = rows.new_zeros(self.mask.numel(), *rows.shape[1:])
        filled = empty.index_copy(0, self._places, rows)
        return filled.view(*self.mask.shape, *rows.shape[1:])

    def gather(self, padded: Tensor) -> Tensor:
        """The tokens (T, ...) of a padded batch (B, L, ...)."""
        return padded.flatten(0, 1).index_select(0, self._places)


def pack(activations: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Lay activations of unequal length one after another.

    Args:
        activations: (L_i, H) each, at least one.

    Returns:
        (T, H) float32, T the sum of the lengths, and the lengths (B,) int64.
    """
    lengths = torch.tensor([len(rows) for rows in activations])
    return torch.cat(list(activations)).float(), lengths


def enable_packing(model: PreTrainedModel) -> bool:
    """Let a model's attention work on packed batches inside `packed`, if it can.

    Args:
        model: a plain transformers encoder; outside `packed` it computes what it always did.

    Returns:
        Whether it can: whether only its attention looks beyond a token.
    """
    if model.config.model_type not in _PACKABLE or getattr(model.config, "is_decoder", False):
        return False
    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    model.set_attn_implementation(_NAME)
    return True


def run_packed(blocks: Iterable[nn.Module], tokens: Tensor, grid: Grid) -> Tensor:
    """What comes out of a chain of blocks for a packed batch.

    Args:
        blocks: consecutive blocks of a model for which `enable_packing` said yes.
        tokens: what goes into the first of them, (T, H).
        grid: where the tokens lie.

    Returns:
        (T, H). Nothing of the model is changed meanwhile, so several threads may do it at once.
    """
    hidden = tokens[None]
    with packed(grid):
        for block in blocks:
            hidden = block(hidden)
    return hidden[0]


@contextmanager
def packed(grid: Grid) -> Iterator[None]:
    """Within the context, this thread's attention takes its input (1, T, H) for a packed batch."""
    token = _grid.set(grid)
    try:
        yield
    finally:
        _grid.reset(token)


_grid: ContextVar[Grid | None] = ContextVar("grid", default=None)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: (1, heads, T, d) each in, (1, T, heads, d) out."""
    grid = _grid.get()
    if grid is None:
        return sdpa_attention_forward(module, query, key, value, mask, **options)
    each = [grid.spread(part[0].transpose(0, 1)).transpose(1, 2) for part in (query, key, value)]
    seen, scale = grid.mask[:, None, None, :], options.get("scaling")
    attended = nn.functional.scaled_dot_product_attention(
        each[0], each[1], each[2], attn_mask=seen, scale=scale
    )  # (B, heads, L, d)
    return grid.gather(attended.transpose(1, 2))[None], None
