"""Local fine-tuning of one region beside what a user would pick instead: `times` as many examples.

All learn from the same pairs of query and clicked product text, in batches of the same size, with
LoRA factors of the same rank on the same text tower:

    fedshelf                  as a round trains: photos, known items and the drift term with it
    fedshelf, texts           clicks and texts alone, which is what the others do
    sentence-transformers     its trainer, MultipleNegativesRankingLoss, peft LoRA on all layers
    plain peft loop           the same loss by hand, dynamic padding, LoRA on all layers

Each round is one pass, and all have made the same number of passes when nDCG@10 is measured on the
region's validation clicks. What fedshelf computes once and keeps (activations below the adapted
blocks) is not in a pass; it is a line of its own.
"""

import contextlib
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from benchmarks.encoding import plain_sentence_transformer
from benchmarks.floor import matrix_rate, operations
from benchmarks.memory import alone
from benchmarks.report import Report
from benchmarks.timing import Spread, in_turns
from client.objective import TrainingData
from client.training import train
from client.worker import Worker, get_worker
from shared.config import TrainConfig, parse_run_config
from shared.encoders.base import read_base
from shared.encoders.encoder import Encoder
from shared.encoders.text import TextConfig, load_text_model
from shared.metrics import ndcg_of_gains

SECTION: Final = "learning"
TARGET: Final = 5.0  # times
K: Final = 10
_PLAIN_RATE: Final = 1e-3  # of AdamW, for LoRA on all layers
_SCALE: Final = 20.0  # 1 / temperature, the default of sentence-transformers
_TARGETS: Final = ["query", "key", "value", "dense"]


def measure_learning(report: Report, worker: Worker, base: Path, *, rounds: int) -> None:
    """Train one region in several ways, a pass each in turns.

    Args:
        report: figures go there.
        worker: of the region.
        base: folder of its base.
        rounds: passes that are timed, after one that is not.
    """
    start = time.perf_counter()
    num_examples = len(worker.training_data.examples.weight)
    report.add(
        SECTION, "activations, where they are not kept yet", time.perf_counter() - start, "s"
    )
    worker.encoder.reset(seed=0)
    ways = {name: make(worker, base) for name, make in WAYS.items()}
    taken = in_turns(ways, calls=1, rounds=rounds)
    rates = {name: num_examples / seconds[:, 0] for name, seconds in taken.items()}
    for name, each in rates.items():
        report.add(SECTION, f"{name}, examples", Spread.of(each), "1/s")
        found = ndcg_shown(ways[name], worker)
        report.add(SECTION, f"{name}, nDCG@{K} after {rounds + 1} passes", found, "nDCG")
        peak = alone(torch.get_num_threads(), learn_once, worker.region.folder, base, name)
        report.add(SECTION, f"{name}, peak memory", peak.peak_bytes, "bytes")
    rate = matrix_rate(worker.encoder.device)
    for ours in list(rates)[:2]:
        counted = operations(partial(ways[ours], 0))
        floor = Spread.of(taken[ours][:, 0] * rate / counted)
        report.add(SECTION, f"{ours}, seconds / floor of its operations", floor, "ratio")
        for theirs in list(rates)[2:]:
            times = Spread.of(rates[ours] / rates[theirs])
            report.add(SECTION, f"{ours} to {theirs}", times, "times", target=TARGET)


def learn_once(region: Path, base: Path, way: str) -> None:
    """One pass of one way, for its memory.

    Args:
        region: its folder.
        base: folder of its base.
        way: key of `WAYS`.
    """
    WAYS[way](get_worker(region), base)(0)


class Ours:
    """Passes of `client.training`.

    Args:
        encoder: trained in place.
        data: of the region.
        config: of a round.
    """

    def __init__(self, encoder: Encoder, data: TrainingData, config: TrainConfig) -> None:
        self._encoder, self._data, self._config = encoder, data, config

    def __call__(self, number: int) -> None:
        """One pass."""
        train(self._encoder, self._data, replace(self._config, local_epochs=1), seed=[number])

    def vectors(self, worker: Worker) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Of the validation queries (Q, D) and of all products (N, D)."""
        queries = worker.query_prefixes(worker.validation.queries)
        return self._encoder.query_matrix(queries), self._encoder.product_matrix(
            self._data.products
        )


class _Theirs(ABC):
    """What the others have in common: pairs of texts, and encoding both sides alike.

    Args:
        folder: of the text tower.
        config: of the same.
        pairs: queries and product texts, E each.
        batch: pairs a step.
    """

    def __init__(
        self, folder: Path, config: TextConfig, pairs: tuple[list[str], list[str]], batch: int
    ) -> None:
        self._config, self._pairs, self._batch = config, pairs, batch
        self._model = self._adapted(folder)

    @abstractmethod
    def _adapted(self, folder: Path) -> Any:
        """The text tower of a folder, with LoRA on all layers."""

    @abstractmethod
    def __call__(self, number: int) -> None:
        """One pass."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, (N, D)."""

    def vectors(self, worker: Worker) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Of the validation queries (Q, D) and of all products (N, D), by their texts."""
        texts = [text or "" for text in worker.region.texts]
        return self.encode(worker.validation.queries), self.encode(texts)


class TheirTrainer(_Theirs):
    """The trainer of sentence-transformers, as its documentation sets it up."""

    def _adapted(self, folder: Path) -> Any:
        from datasets import Dataset

        queries, products = self._pairs
        self._dataset = Dataset.from_dict({"anchor": queries, "positive": products})
        model = plain_sentence_transformer(folder, self._config)
        model.add_adapter(_lora(self._config))
        return model

    def __call__(self, number: int) -> None:
        """One pass."""
        from sentence_transformers import (
            SentenceTransformerTrainer,
            SentenceTransformerTrainingArguments,
        )
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(None):
            arguments = SentenceTransformerTrainingArguments(
                output_dir=scratch,
                num_train_epochs=1,
                per_device_train_batch_size=self._batch,
                learning_rate=_PLAIN_RATE,
                lr_scheduler_type="constant",
                seed=number,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                dataloader_pin_memory=False,
            )
            SentenceTransformerTrainer(
                model=self._model,
                args=arguments,
                train_dataset=self._dataset,
                loss=MultipleNegativesRankingLoss(self._model, scale=_SCALE),
            ).train()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, (N, D)."""
        return np.asarray(self._model.encode(list(texts), normalize_embeddings=True))


class PlainLoop(_Theirs):
    """What one writes in an hour: peft, dynamic padding, in-batch negatives, AdamW."""

    def _adapted(self, folder: Path) -> Any:
        from peft import get_peft_model
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        model = get_peft_model(load_text_model(folder), _lora(self._config))
        trainable = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(trainable, lr=_PLAIN_RATE)
        return model

    def __call__(self, number: int) -> None:
        """One pass."""
        queries, products = self._pairs
        order = np.random.default_rng(number).permutation(len(queries))
        for start in range(0, len(order), self._batch):
            rows = order[start : start + self._batch].tolist()
            asked = self._forward([queries[row] for row in rows])
            answers = self._forward([products[row] for row in rows])
            loss = cross_entropy(_SCALE * asked @ answers.T, torch.arange(len(rows)))
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, (N, D)."""
        parts = [texts[start : start + 256] for start in range(0, len(texts), 256)]
        return torch.cat([self._forward(list(part)) for part in parts]).numpy()

    def _forward(self, texts: list[str]) -> Tensor:
        longest = self._config.max_tokens
        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=longest, return_tensors="pt"
        )
        hidden = self._model(**tokens).last_hidden_state  # (B, L, H)
        mask = tokens["attention_mask"][..., None]
        return normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def _lora(config: TextConfig) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=_TARGETS)


def _texts_only(data: TrainingData) -> TrainingData:
    """The same region if it had no photo."""
    images = replace(data.products.images, present=np.zeros_like(data.products.images.present))
    return replace(data, products=replace(data.products, images=images))


def _clicks_only(config: TrainConfig) -> TrainConfig:
    return replace(config, alignment_weight=0.0, anchor_weight=0.0, known_item_weight=0.0)


def ndcg_shown(way: Ours | _Theirs, worker: Worker) -> float:
    """nDCG@10 of what held-out shoppers were shown, in the order of a way's vectors."""
    queries, products = way.vectors(worker)
    held_out, ordered = worker.validation, []
    for query, rows, gains in zip(queries, held_out.rows, held_out.gains, strict=True):
        ordered.append(gains[np.argsort(-(products[rows] @ query), kind="stable")])
    return ndcg_of_gains(ordered, k=K)


def _ours(worker: Worker, base: Path) -> Ours:
    return Ours(worker.encoder, worker.training_data, default_config())


def _ours_on_texts(worker: Worker, base: Path) -> Ours:
    data, config = _texts_only(worker.training_data), _clicks_only(default_config())
    return Ours(worker.encoder.replica(), data, config)


def _pairs(worker: Worker) -> tuple[list[str], list[str]]:
    """Queries and texts of what was clicked for them, E each."""
    examples, texts = worker.examples, worker.region.texts
    products = [texts[row] or "" for row in examples.product_row.tolist()]
    return [examples.queries[row] for row in examples.query_index.tolist()], products


def _their_trainer(worker: Worker, base: Path) -> TheirTrainer:
    batch = default_config().batch_size
    return TheirTrainer(base / "text", read_base(base).text, _pairs(worker), batch)


def _plain_loop(worker: Worker, base: Path) -> PlainLoop:
    batch = default_config().batch_size
    return PlainLoop(base / "text", read_base(base).text, _pairs(worker), batch)


def default_config() -> TrainConfig:
    """Of a first round, with the default knobs."""
    return parse_run_config({"run-dir": "x"}).train_config(1)


# Made when they are asked for, so that a process holds no more than its own way.
WAYS: Final[dict[str, Callable[[Worker, Path], Ours | _Theirs]]] = {
    "fedshelf": _ours,
    "fedshelf, texts": _ours_on_texts,
    "sentence-transformers": _their_trainer,
    "plain peft loop": _plain_loop,
}
