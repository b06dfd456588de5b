"""The text tower: any transformers encoder with its tokenizer, run in two halves.

`prefix` turns texts into frozen activations, `suffix` turns activations into unit vectors. Padding
is neither kept nor attended to where the tower masks it, nor computed by the suffix where the tower
can do without (`shared.encoders.packing`); a tower that attends to padding (SigLIP) is always
padded to its full length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from shared.encoders.lora import attach_lora, lora_targets
from shared.encoders.packing import Grid, enable_packing, run_packed
from shared.encoders.split import SplitTower, find_blocks
from shared.errors import BaseError

# A bar for every load is noise in a log.
transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]

# A tokenizer's padding is set in it by every call, so one call at a time.
_TOKENIZING: Final = Lock()


@dataclass(frozen=True)
class TextConfig:
    """How the text tower reads and pools.

    Attributes:
        name: public id of the plain model.
        revision: its pinned revision, or None for one that is pinned by sha256.
        pooling: "mean" over unpadded tokens, or "pooler" for the model's own pooled output.
        max_tokens: longer texts are cut.
        pad_to_max: pad every text to `max_tokens`, for towers that attend to padding.
        adapter_blocks: how many of the last blocks get LoRA factors.
        rank: of the LoRA factors.
        alpha: LoRA scaling is alpha / rank.
    """

    name: str
    revision: str | None
    pooling: str
    max_tokens: int
    pad_to_max: bool
    adapter_blocks: int
    rank: int
    alpha: int


def load_text_model(folder: Path) -> Any:
    """The plain transformers model of a folder, by the class its own config names, in eval mode.

    (The Auto classes know no model for a text tower that was saved without its image tower.)

    Raises:
        BaseError: the config names no model class of transformers.
    """
    names = AutoConfig.from_pretrained(folder).architectures or ["none"]
    model_class = getattr(transformers, names[0], None)
    if not isinstance(model_class, type) or not issubclass(model_class, PreTrainedModel):
        raise BaseError(f"{folder}/config.json: architecture {names[0]} is not in transformers")
    model: Any = model_class.from_pretrained(folder, use_safetensors=True)
    return model.eval()


class PlainText:
    """A text encoder without adapters: texts to unit vectors in one pass.

    Args:
        folder: a transformers model folder (config, model.safetensors, tokenizer files).
        config: see `TextConfig`.
        device: where it lives.

    Attributes:
        model: the plain transformers model.
    """

    def __init__(self, folder: Path, config: TextConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = load_text_model(folder).to(device)
        if config.pooling == "mean" and getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None  # computed for nothing under mean pooling
        plain = config.pooling == "mean" and not config.pad_to_max
        self._packs = plain and enable_packing(self.model)
        self._blocks = find_blocks(self.model)[1]

    @property
    def mixes_lengths(self) -> bool:
        """Whether short and long texts share a pass without padding that would not be there."""
        return self._packs or self.config.pad_to_max

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, (B, L) int64 each, L the longest text of the batch."""
        padding = "max_length" if self.config.pad_to_max else True
        batch = self._tokenized(texts, padding=padding, return_tensors="pt")
        ids = batch["input_ids"]
        mask = torch.ones_like(ids) if self.config.pad_to_max else batch["attention_mask"]
        return ids, mask

    def lengths(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """How many tokens of each are kept, (N,)."""
        if not texts:
            return np.zeros(0, np.int64)
        padding = "max_length" if self.config.pad_to_max else False
        ids = self._tokenized(texts, padding=padding)["input_ids"]
        return np.array([len(row) for row in ids], np.int64)

    def _tokenized(self, texts: Sequence[str], **options: Any) -> Any:
        longest = self.config.max_tokens
        with _TOKENIZING:
            return self.tokenizer(list(texts), truncation=True, max_length=longest, **options)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (B, D) in one pass, nothing kept; several threads may encode at once."""
        ids, mask = self.tokenize(texts)
        if self._packs:
            tokens, grid = self._embedded(ids, mask)
            return self._mean_pooled(run_packed(self._blocks, tokens, grid), grid)
        mask = mask.to(self.device)
        output = self.model(input_ids=ids.to(self.device), attention_mask=mask)
        return nn.functional.normalize(self._pool(output, mask), dim=1)

    def _embedded(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Grid]:
        """What goes into the first block, packed, (T, H); a token's place is in it already."""
        grid = Grid(mask.sum(dim=1), self.device)
        return grid.gather(self.model.embeddings(input_ids=ids.to(self.device))), grid

    def _mean_pooled(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Unit vectors (B, D) of the last hidden states (T, H) of a packed batch."""
        return nn.functional.normalize(_mean(grid.spread(tokens), grid.mask), dim=1)

    def _pool(self, output: Any, mask: Tensor) -> Tensor:
        if self.config.pooling == "pooler":
            pooled: Tensor = output.pooler_output
            return pooled
        return _mean(output.last_hidden_state, mask)


class TextTower(PlainText):
    """A frozen text encoder with LoRA factors in its last blocks.

    Args:
        folder: a transformers model folder (config, model.safetensors, tokenizer files).
        config: see `TextConfig`.
        device: where it lives.
    """

    def __init__(self, folder: Path, config: TextConfig, device: torch.device) -> None:
        super().__init__(folder, config, device)
        self.split = SplitTower(self.model, self._blocks, config.adapter_blocks)
        self._cut = len(self._blocks) - config.adapter_blocks
        frozen = [self.model.embeddings, *self._blocks[: self._cut]]
        targets = lora_targets(self.model, frozen)
        self.peft = attach_lora(self.model, targets, rank=config.rank, alpha=config.alpha)
        self.peft.to(device)

    @torch.no_grad()  # not inference_mode: the suffix trains on what this gives
    def prefix(self, texts: Sequence[str]) -> list[Tensor]:
        """Frozen activations at the cut, one (L_i, H) float32 CPU tensor a text, unpadded."""
        ids, mask = self.tokenize(texts)
        if self._packs:
            tokens, grid = self._embedded(ids, mask)
            hidden = run_packed(self._blocks[: self._cut], tokens, grid).float().cpu()  # (T, H)
            return [row.clone() for row in torch.split(hidden, mask.sum(dim=1).tolist())]
        arguments = {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}
        hidden = self.split.capture(lambda: self.model(**arguments)).float().cpu()  # (B, L, H)
        lengths = mask.sum(dim=1).tolist()
        return [row[:length].clone() for row, length in zip(hidden, lengths, strict=True)]

    def suffix(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Unit vectors from frozen activations, with gradients for the LoRA factors.

        Args:
            tokens: activations at the cut, one text after another, (T, H).
            lengths: tokens of each text, (B,) int64, on the CPU; their sum is T.

        Returns:
            Unit vectors, (B, D).
        """
        grid = Grid(lengths, tokens.device)
        if self._packs:
            return self._mean_pooled(run_packed(self._blocks[self._cut :], tokens, grid), grid)
        mask = grid.mask.long()
        with self.split.replay(grid.spread(tokens)):
            output = self.model(input_ids=torch.zeros_like(mask), attention_mask=mask)
        return nn.functional.normalize(self._pool(output, mask), dim=1)


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean (B, H) of the tokens of hidden states (B, L, H) that a mask (B, L) keeps."""
    weights = mask[:, :, None].to(hidden.dtype)  # (B, L, 1)
    total: Tensor = (hidden * weights).sum(dim=1)
    return total / weights.sum(dim=1)


def check_text_folder(folder: Path) -> None:
    """Say what is missing from a transformers folder.

    Raises:
        BaseError: no config.json, model.safetensors or tokenizer.json.
    """
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise BaseError(f"{folder}: {name} is missing; put the whole model folder there")
