"""The worker: the one object that owns a region's data, encoders and training.

It answers the three messages of the federation with plain arguments and plain results and knows
nothing of Flower. In a simulation all regions of a process share one resident encoder, with
adapters swapped in place; each region's data and kept activations stay its own.
"""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from client.acceptance import lower_bound
from client.clicks import ValidationSet
from client.control_variates import Control, ControlVariates
from client.decisions import newest_decision
from client.encoders import forget_encoders
from client.evaluation import K, compare, evaluate
from client.feedback import feedback_of
from client.objective import TrainingData
from client.personal import RELEASE, Personal, write_personal
from client.personalization import choose, make_candidates, make_ensemble
from client.region import Region, open_region
from client.region_data import RegionData
from client.statistics import encoding_statistics, product_gaussian
from client.training import OnStep, num_steps, order_seed, train
from client.tuning import ShownScores, dense_scores, mixed_gains, tune
from shared.adapter import Adapter, add, completed, subtract, within_rank
from shared.compression import rounded
from shared.config import FLOAT32, TrainConfig, run_defaults
from shared.decorrelation import Statistics
from shared.errors import ConfigError, RetrievalError, WireError
from shared.gaussians import Gaussians
from shared.retrieval.hybrid import Tuned
from shared.retrieval.manifest import read_pointer
from shared.wire import LOCAL, PROTOCOL_VERSION, ROUND, Description
from shared.wire_evaluation import GATE, MATRIX, Difference

# What stays open in one process: so many regions, and more while their catalogs and click logs
# together are small, as are 6,000 of 50 products and 60 requests, which hold some 1.7 GB of memory.
# A simulation of more opens regions again.
MAX_WORKERS = 256
MAX_BYTES = 64 * 2**20
_WORKERS: dict[Path, "Worker"] = {}  # in the order in which they were opened


@dataclass(frozen=True)
class Trained:
    """What one round of local training gave.

    Attributes:
        update: adapter after minus adapter before, as it arrives at headquarters; of LoRA's pairs
            only what is within the region's rank.
        num_examples: trained on.
        loss: mean over the steps, nats.
        seconds: of training, activations already kept.
        control_change: of the region's control variate, as it arrives; None without SCAFFOLD.
        statistics: of its encodings with the adapter that it ends with; None where nobody asked, or
            of too few examples.
        gaussian: of its product vectors with that adapter; None where nobody asked, of too few, or
            where it has not agreed.
    """

    update: Adapter
    num_examples: int
    loss: float
    seconds: float
    control_change: Adapter | None = None
    statistics: Statistics | None = None
    gaussian: Gaussians | None = None


def get_worker(folder: Path) -> "Worker":
    """The process's one worker of a region folder.

    Where there is no room, the one that was opened last goes: a simulation asks all regions in
    turn, so if the least recently used went, each would be gone when its turn comes again.
    """
    key = folder.resolve()
    if key not in _WORKERS:
        worker = Worker(open_region(key))
        if not _has_room():
            _WORKERS.popitem()
        _WORKERS[key] = worker
    return _WORKERS[key]


def _has_room() -> bool:
    if len(_WORKERS) < MAX_WORKERS:
        return True
    return sum(worker.file_bytes for worker in _WORKERS.values()) < MAX_BYTES


@cache  # reading it takes longer than the rest of a description
def _code_version() -> str:
    return version("fedshelf")


def forget_workers(below: Path | None = None) -> None:
    """Drop workers of this process.

    Args:
        below: a folder: the workers of regions in it; None: every worker, and every encoder.
    """
    if below is None:
        _WORKERS.clear()
        forget_encoders()
        return
    for folder in [path for path in _WORKERS if path.is_relative_to(below.resolve())]:
        del _WORKERS[folder]


class Worker(RegionData):
    """One region at work.

    Args:
        region: opened and validated.
    """

    def __init__(self, region: Region) -> None:
        super().__init__(region)
        self.on_step: OnStep | None = None

    def _publication(self) -> dict[str, Any]:
        """Which release is in use, and what was said of the newest one."""
        state = self.region.state
        try:
            release = read_pointer(state).release
        except RetrievalError:  # no index yet
            release = 0
        newest = newest_decision(state)
        return {
            "release": release,
            "verdict": newest.verdict if newest else "",
            "verdict_release": newest.release if newest else 0,
            "verdict_reason": newest.reason if newest else "",
        }

    @property
    def rank(self) -> int:
        """Components of every LoRA pair that a round trains here; a pair may have fewer."""
        return self.region.config.worker.rank_within(self.encoder.rank)

    def describe(self) -> Description:
        """What this region is and has; counts only."""
        config = self.region.config
        return Description(
            region=config.region,
            protocol_version=PROTOCOL_VERSION,
            base_fingerprint=self.encoder.base.fingerprint,
            schema_hash=self.encoder.schema,
            rank=self.rank,
            num_products=self.region.catalog.height,
            num_examples=self.num_examples,
            num_validation_queries=len(self.validation.queries),
            code_version=_code_version(),
            device=str(self.encoder.device.type),
            num_gate_queries=len(self.gate.queries),
            in_matrix=config.sharing.matrix,
            shares_local=config.sharing.local_adapter,
            named=config.sharing.named,
            **self._publication(),
        )

    def train(
        self,
        adapter: Adapter,
        config: TrainConfig,
        server_round: int,
        *,
        purpose: str = ROUND,
        control: Adapter | None = None,
        counted: Collection[int] = (),
        federation: Statistics | None = None,
        gaussians: Gaussians | None = None,
    ) -> Trained:
        """One round of local training from `adapter`.

        The order of examples follows from the federation's seed, the round and the region's name,
        so it is the same under every engine.

        Args:
            adapter: to start from.
            config: hyper-parameters of this round.
            server_round: of the federation.
            purpose: `wire.ROUND` or `wire.LOCAL`.
            control: SCAFFOLD's c; None without SCAFFOLD.
            counted: see `client.control_variates`.
            federation: encoding statistics of all regions; None before there are any.
            gaussians: of the regions' product vectors; None before there are any.

        Raises:
            ConfigError: the purpose is an adapter of this region alone, and it has not agreed; or
                SCAFFOLD is asked for, and this region trains less than the base's rank.
            WireError: statistics or Gaussians are of vectors of another length.
        """
        self._require_length("statistics", None if federation is None else federation.query)
        self._require_length("Gaussians", None if gaussians is None else gaussians.mean)
        config = self._agreed(config, purpose, control=control)
        data, start = self._training_data_of(config), time.perf_counter()
        kept, begun = ControlVariates(self.region.state), None
        if control is not None:
            begun = kept.before(server_round, control, counted)
        self.encoder.load_adapter(adapter)
        loss = self._descend(data, config, server_round, begun, federation, gaussians)
        update, change = self.encoder.update(adapter, config.trained_factors), None
        seconds = time.perf_counter() - start
        if begun is not None:
            change = begun.change(update, config, steps=num_steps(data, config))
            kept.keep(begun, change, server_round)
        sent = self._sent(update, config.update_encoding, server_round, adapter, purpose=purpose)
        asked = config.decorrelation_weight > 0
        statistics = encoding_statistics(self.encoder, data) if asked else None
        gaussian = self._gaussian(config, server_round)
        number = len(data.examples.weight)
        return Trained(sent, number, loss, seconds, change, statistics, gaussian)

    def _gaussian(self, config: TrainConfig, server_round: int) -> Gaussians | None:
        if config.drawn_negatives == 0 or not self.region.config.sharing.product_gaussian:
            return None
        seed = order_seed(config, server_round, self.region.config.region)
        return product_gaussian(self.encoder, self.products, seed=seed)

    def _agreed(self, config: TrainConfig, purpose: str, *, control: Adapter | None) -> TrainConfig:
        """What this region trains by; it raises where it has not agreed, or cannot."""
        if control is not None:
            self._require_whole_rank()
        if purpose != LOCAL:
            return config
        self._require_consent("local_adapter", self.region.config.sharing.local_adapter)
        return replace(config, decorrelation_weight=0.0, drawn_negatives=0)  # the federation's

    def _require_length(self, what: str, vectors: Tensor | None) -> None:
        dim = self.encoder.base.vector_dim
        if vectors is not None and vectors.shape[-1] != dim:
            raise WireError(f"train message: {what} are not of {dim} dimensions")

    def _descend(
        self,
        data: TrainingData,
        config: TrainConfig,
        server_round: int,
        control: Control | None,
        federation: Statistics | None,
        gaussians: Gaussians | None,
    ) -> float:
        """Train the loaded adapter in place; the mean loss, nats."""
        names = self.encoder.trainable_names(config.trained_factors)
        stops_early = config.patience > 0 and self.validation.queries
        return train(
            self.encoder,
            data,
            config,
            seed=order_seed(config, server_round, self.region.config.region),
            rank=self.rank,
            correction=control.correction(names) if control else (),
            federation=federation,
            gaussians=gaussians,
            on_step=self.on_step,
            validate=self.validated if stops_early else None,
        )

    def validated(self) -> float:
        """nDCG@10 on validation clicks of the encoder as it is."""
        held_out = self.validation
        metrics = evaluate(self.encoder, self.products, self._validation_prefixes, held_out)
        return metrics[f"ndcg@{K}"]

    def evaluate(self, adapter: Adapter) -> tuple[int, dict[str, float]]:
        """Number of validation queries, and mean metrics of `adapter` over them."""
        self.encoder.load_adapter(adapter)
        held_out = self.validation
        metrics = evaluate(self.encoder, self.products, self._validation_prefixes, held_out)
        return len(held_out.queries), metrics

    def compare(
        self, candidate: Adapter, references: Mapping[int, Adapter], *, purpose: str
    ) -> tuple[int, dict[str, float], dict[int, Difference]]:
        """Compare adapters on the gate clicks, which nothing else has used.

        Args:
            candidate: the adapter in question.
            references: what it is compared with, by number.
            purpose: `GATE`, or `MATRIX`, which `sharing.matrix` must allow.

        Returns:
            Number of gate queries, the candidate's metrics, its difference to each reference.

        Raises:
            ConfigError: this region has not agreed to the matrix.
        """
        if purpose == MATRIX:
            self._require_consent("matrix", self.region.config.sharing.matrix)
        held_out = self.gate
        metrics, differences = compare(
            self.encoder,
            self.products,
            self._gate_prefixes,
            held_out,
            candidate=candidate,
            references=references,
            mix=self._gate_mix,
        )
        return len(held_out.queries), metrics, differences

    def personalize(self, release: int) -> Personal:
        """Make of a release what this region will answer with, and keep that in `state/personal`.

        It trains by the defaults, whatever the federation's knobs: a release does not tell them.

        Args:
            release: number of the release that is loaded; what was chosen is loaded afterwards.

        Returns:
            The record that was kept.
        """
        region, settings = self.region, self.region.config.personalization
        published, release_digest = self.encoder.adapter(), self.encoder.digest
        candidates = self._candidates(release, run_defaults().train_config(1))
        choice, reason, measured = choose(
            self.gains_over(published, candidates),
            confidence=settings.confidence,
            min_queries=settings.min_queries,
        )
        if not candidates and self._has_few_examples():
            reason = f"too few clicks to train on ({settings.min_examples} examples needed)"
        if choice != RELEASE and self._refuted_on_gate(candidates[choice], published):
            choice, reason = RELEASE, f"gate clicks are against {choice}: {reason}"
        chosen = candidates.get(choice, published)
        self.encoder.load_adapter(chosen)
        record = Personal(
            release=release,
            release_digest=release_digest,
            encoder_digest=self.encoder.digest,
            choice=choice,
            reason=reason,
            num_queries=len(self.validation.queries),
            measured=measured,
            settings=settings,
            time=datetime.now(UTC),
        )
        write_personal(region.state, record, chosen)
        return record

    def _candidates(self, release: int, config: TrainConfig) -> dict[str, Adapter]:
        """Several, or the one that needs no choice where there are too few clicks to choose by."""
        region, settings = self.region, self.region.config.personalization
        if self._has_few_examples():
            return {}
        few = len(self.validation.queries) < settings.min_queries
        return (make_ensemble if few else make_candidates)(
            self.encoder,
            self.with_public(self.training_data, config),
            config,
            settings,
            seed=[release, *region.config.region.encode()],
            on_step=self.on_step,
        )

    def _has_few_examples(self) -> bool:
        """Whether this region is too small for an adapter of its own."""
        return self.num_examples < self.region.config.personalization.min_examples

    def gains_over(
        self, published: Adapter, candidates: Mapping[str, Adapter]
    ) -> dict[str, Difference]:
        """Candidates less the release, by the encoder's order of what validation clicks show.

        Args:
            published: the release's adapter.
            candidates: by name.

        Returns:
            The difference of each, by its name.
        """
        numbered = dict(enumerate(candidates.values()))
        _, lost = compare(
            self.encoder,
            self.products,
            self._validation_prefixes,
            self.validation,
            candidate=published,
            references=numbered,
        )
        return {
            name: Difference(one.num_queries, -one.mean, one.variance)
            for name, one in zip(candidates, lost.values(), strict=True)
        }

    def _refuted_on_gate(self, chosen: Adapter, published: Adapter) -> bool:
        """Whether gate clicks show that it is worse than the release, as shoppers see it."""
        found, config = self.compare(chosen, {0: published}, purpose=GATE)[2][0], self.region.config
        if found.num_queries < config.publication.min_queries:
            return False
        confidence = config.personalization.confidence
        loss = lower_bound(found.num_queries, -found.mean, found.variance, confidence=confidence)
        return loss > 0

    def tune(self, vectors: NDArray[np.float32]) -> Tuned:
        """The weight of the two rankers that this region's validation clicks choose.

        Args:
            vectors: of the catalog, (N, D), by the encoder as it is loaded.
        """
        held_out = self.validation
        dense = self._dense_scores(self.query_vectors(), vectors, held_out)
        return tune(
            dense,
            self._validation_words,
            held_out.rows,
            held_out.gains,
            untrained=self._untrained,
        )

    def query_vectors(self) -> NDArray[np.float32]:
        """Vectors of the validation queries, (Q, D), by the encoder as it is loaded."""
        return self.encoder.query_matrix(self._validation_prefixes)

    def _gate_mix(
        self, vectors: NDArray[np.float32], queries: NDArray[np.float32]
    ) -> list[NDArray[np.float64]]:
        """The gains of what gate queries showed, in the order of an index of these vectors."""
        rows, gains = self.gate.rows, self.gate.gains
        dense = self._dense_scores(queries, vectors, self.gate)
        weight = self.tune(vectors).dense_weight
        return mixed_gains(dense, self._gate_words, rows, gains, dense_weight=weight)

    def _dense_scores(
        self, queries: NDArray[np.float32], vectors: NDArray[np.float32], shown: ValidationSet
    ) -> ShownScores:
        return dense_scores(queries, vectors, shown.rows, distance=self.encoder.distance)

    def _sent(
        self, update: Adapter, encoding: str, server_round: int, adapter: Adapter, *, purpose: str
    ) -> Adapter:
        """What arrives of an update; what rounding takes from it goes into a later one.

        What was lost is kept for whole tensors: if the operator lowers this region's rank, what
        lies beyond waits for a round that sends it.
        """
        if encoding == FLOAT32 or purpose != ROUND:
            return rounded(within_rank(update, self.rank), encoding)
        feedback = feedback_of(self.region.state)
        lost = feedback.before(server_round, adapter)
        whole = add(update, lost)
        sent = rounded(within_rank(whole, self.rank), encoding)
        feedback.keep({**lost, **subtract(whole, completed(sent, whole))}, server_round)
        return sent

    def _require_consent(self, key: str, given: bool) -> None:
        if not given:
            raise ConfigError(
                f'region "{self.region.config.region}": sharing.{key} is off in region.toml; '
                "headquarters asked for it all the same"
            )

    def _require_whole_rank(self) -> None:
        if self.rank < self.encoder.rank:
            raise ConfigError(
                f'region "{self.region.config.region}": headquarters asks for control variates,'
                f" which need the base's rank, {self.encoder.rank}; remove worker.max_rank, now"
                f" {self.rank}, from region.toml"
            )
