"""The text tower: any transformers encoder with its tokenizer, run in two halves.

`prefix` turns texts into frozen activations, `suffix` turns activations into unit vectors. Padding
is neither kept nor attended to where the tower masks it, nor computed by the suffix where the tower
can do without (`shared.encoders.packing`); a tower that attends to padding (SigLIP) is always
padded to its full length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from shared.encoders.lora import attach_lora, lora_targets
from shared.encoders.packing import Grid, enable_packing, packed
from shared.encoders.split import SplitTower, find_blocks
from shared.errors import BaseError

# A bar for every load is noise in a log.
transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


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


class TextTower:
    """A frozen text encoder with LoRA factors in its last blocks.

    Args:
        folder: a transformers model folder (config, model.safetensors, tokenizer files).
        config: see `TextConfig`.
        device: where it lives.
    """

    def __init__(self, folder: Path, config: TextConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        model = load_text_model(folder)
        if config.pooling == "mean" and getattr(model, "pooler", None) is not None:
            model.pooler = None  # computed for nothing under mean pooling
        self._packs = config.pooling == "mean" and not config.pad_to_max and enable_packing(model)
        blocks = find_blocks(model)[1]
        self.split = SplitTower(model, blocks, config.adapter_blocks)
        frozen = [model.embeddings, *blocks[: len(blocks) - config.adapter_blocks]]
        self.peft = attach_lora(
            model, lora_targets(model, frozen), rank=config.rank, alpha=config.alpha
        ).to(device)
        self._model = model

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, (B, L) int64 each, L the longest text of the batch."""
        batch = self.tokenizer(
            list(texts),
            padding="max_length" if self.config.pad_to_max else True,
            truncation=True,
            max_length=self.config.max_tokens,
            return_tensors="pt",
        )
        ids = batch["input_ids"]
        mask = torch.ones_like(ids) if self.config.pad_to_max else batch["attention_mask"]
        return ids, mask

    @torch.no_grad()  # not inference_mode: the suffix trains on what this gives
    def prefix(self, texts: Sequence[str]) -> list[Tensor]:
        """Frozen activations at the cut, one (L_i, H) float32 CPU tensor a text, unpadded."""
        ids, mask = self.tokenize(texts)
        arguments = {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}
        hidden = self.split.capture(lambda: self._model(**arguments)).float().cpu()  # (B, L, H)
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
            return nn.functional.normalize(_mean(self._run_packed(tokens, grid), grid.mask), dim=1)
        mask = grid.mask.long()
        with self.split.replay(grid.spread(tokens)):
            output = self._model(input_ids=torch.zeros_like(mask), attention_mask=mask)
        return nn.functional.normalize(self._pool(output, mask), dim=1)

    def _run_packed(self, tokens: Tensor, grid: Grid) -> Tensor:
        """The last hidden states (B, L, H) of packed activations (T, H)."""
        dummy = torch.zeros(1, 1, dtype=torch.int64, device=tokens.device)
        with self.split.replay(tokens[None]), packed(grid):
            return grid.spread(self._model(input_ids=dummy).last_hidden_state[0])

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (B, D) in one pass, nothing kept; several threads may encode at once."""
        ids, mask = self.tokenize(texts)
        mask = mask.to(self.device)
        output = self._model(input_ids=ids.to(self.device), attention_mask=mask)
        return nn.functional.normalize(self._pool(output, mask), dim=1)

    def _pool(self, output: Any, mask: Tensor) -> Tensor:
        if self.config.pooling == "pooler":
            pooled: Tensor = output.pooler_output
            return pooled
        return _mean(output.last_hidden_state, mask)


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
