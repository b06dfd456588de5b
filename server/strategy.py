"""Rounds on adapters, as Flower's FedAvg runs them, with every reply checked before it counts.

Flower averages what it is given: a NaN poisons the mean, a wrong shape broadcasts or crashes, a
huge example count takes over. So nothing reaches the mean that `shared.wire` has not passed. A bad
reply is dropped and named; the round goes on with the rest if the quorum holds. What becomes of
those that pass is for `server.aggregator` to say. Flower's own mean wants all replies at once; ours
takes each as it is checked, so that memory does not grow with the cohort.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from server.aggregator import Aggregator, method_name
from server.control_variates import ControlVariates, Counted
from server.extrapolation import trained_from
from server.gaussians import FederationGaussians
from server.handshake import Meeting
from server.history import RoundRecord
from server.replies import sort_replies
from server.statistics import FederationStatistics
from server.traffic import Traffic
from shared import wire, wire_evaluation
from shared.adapter import Adapter, trained_names
from shared.config import FederationConfig
from shared.errors import FederationError
from shared.exchanges import digest
from shared.records import decode_adapter, encode_adapter, record_bytes

Checked = TypeVar("Checked")
log = logging.getLogger("fedshelf.server")
_NOTHING_TO_DRAW_OF = (
    "no region has told how its product vectors lie (sharing.product_gaussian in region.toml), so"
    " drawn-negatives has nothing to draw of"
)
_NAMED = 5  # of refused regions, in one line


class CheckedFedAvg(FedAvg):
    """Flower's loop over the regions that each round's handshake finds.

    Args:
        config: of the federation.
        meet: the handshake; asked before every round.
        offset: rounds that were complete before this start; round numbers go on from there.
        memory: what headquarters remembers of the last of them, besides the adapter.
        dim: of the base's vectors; what regions say of them is checked by it.
        on_round: called with record, adapter, memory and traffic of every finished round.

    Attributes:
        record: of the round at hand.
        traffic: its messages so far.
        memory: after it; empty for plain FedAvg.
    """

    def __init__(
        self,
        config: FederationConfig,
        *,
        meet: Callable[[Grid], Meeting],
        offset: int,
        memory: Adapter | None = None,
        dim: int = 0,
        on_round: Callable[[RoundRecord, Adapter, Adapter, Traffic], None],
    ) -> None:
        super().__init__()
        self._config, self._meet, self._offset = config, meet, offset
        self._on_round = on_round
        self._dim = dim if config.decorrelation_weight > 0 else 0
        self._gaussian_dim = dim if config.drawn_negatives > 0 else 0
        self.memory: Adapter = memory or {}
        self._cohort: Mapping[int, str] = {}
        self._ranks: Mapping[str, int] = {}  # that regions announced, by name
        self._sent: Adapter = {}
        self.record, self.traffic = RoundRecord(0), Traffic()
        self._started = 0.0

    def summary(self) -> None:
        """Say nothing: the front door reports rounds."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every region that is there to train."""
        number = server_round + self._offset
        self._open_round(number, grid)
        self._sent = trained_from(decode_adapter(arrays), self.memory)
        train = self._config.train_config(number)
        variates = ControlVariates(self.memory, self._trained())
        scaffold = self._config.control_variates
        request = wire.train_request(
            encode_adapter(self._sent),
            train,
            number,
            control=encode_adapter(variates.common()) if scaffold else None,
            counted=variates.receipts(),
            statistics=FederationStatistics(self.memory).mean() if self._dim else None,
            gaussians=FederationGaussians(self.memory).value() if self._gaussian_dim else None,
        )
        return self._send(request, MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average what passes the checks.

        Raises:
            FederationError: fewer regions than the quorum answered well.
        """
        number = self.record.round
        aggregator = Aggregator(self._config, number, self._sent, self.memory)
        variates = ControlVariates(self.memory, self._trained())

        def count_in(region: str, content: RecordDict) -> Counted | None:
            reply = self._checked_update(region, content)
            aggregator.add(
                reply.update, reply.num_examples, reply.loss, reply.statistics, reply.gaussian
            )
            change = reply.control_change
            return None if change is None else variates.add(change, reply.num_examples)

        accepted = self._check(replies, MessageType.TRAIN, count_in)
        self._require_quorum(len(accepted))
        outcome = aggregator.outcome()
        counted = {region: answer for region, answer in accepted.items() if answer is not None}
        self.memory = outcome.memory | (variates.memory(counted) if counted else {})
        self.record.loss, self.record.method = outcome.loss, method_name(self._config)
        self.record.bias, self.record.relative_bias = outcome.bias, outcome.relative_bias
        if self._gaussian_dim and FederationGaussians(self.memory).value() is None:
            log.warning("round %d: %s", number, _NOTHING_TO_DRAW_OF)
        metrics = MetricRecord({"loss": outcome.loss})
        return encode_adapter(outcome.adapter), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every region of the cohort to measure the new adapter."""
        request = wire_evaluation.evaluate_request(arrays, server_round + self._offset)
        return self._send(request, MessageType.EVALUATE)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Keep each region's metrics; they are never averaged over counts."""
        self.record.validation = self._check(replies, MessageType.EVALUATE, self._checked_metrics)
        return None

    def evaluate_first(self, arrays: ArrayRecord, grid: Grid) -> None:
        """Round 0: measure the initial adapter in every region."""
        self._open_round(0, grid)
        requests = self.configure_evaluate(0, arrays, ConfigRecord(), grid)
        replies = grid.send_and_receive(requests, timeout=self._config.round_timeout_s)
        self.aggregate_evaluate(0, replies)

    def finish_round(self, arrays: ArrayRecord) -> None:
        """Hand the finished round to `on_round`."""
        self.record.seconds = time.perf_counter() - self._started
        self._on_round(self.record, decode_adapter(arrays), self.memory, self.traffic)

    def _open_round(self, number: int, grid: Grid) -> None:
        self._started = time.perf_counter()
        self.record, self.traffic = RoundRecord(number), Traffic()
        meeting = self._meet(grid)
        self._cohort = meeting.cohort
        self._ranks = {region: said.rank for region, said in meeting.descriptions.items()}
        self.record.cohort = sorted(self._cohort.values())
        self.record.rejected = meeting.refused

    def _send(self, request: RecordDict, message_type: str) -> list[Message]:
        self.traffic.sent[message_type] = digest(request)
        self.record.downlink_bytes += record_bytes(request) * len(self._cohort)
        return [
            Message(content=request, message_type=message_type, dst_node_id=node)
            for node in sorted(self._cohort)
        ]

    def _check(
        self, replies: Iterable[Message], kind: str, check: Callable[[str, RecordDict], Checked]
    ) -> dict[str, Checked]:
        """What the check makes of those replies that pass, by region name."""
        passed, rejected = sort_replies(
            replies,
            self._cohort,
            lambda region, content: (check(region, content), digest(content)),
            where=f"round {self.record.round}",
            timeout_s=self._config.round_timeout_s,
        )
        self.record.rejected += rejected
        self.traffic.received[kind] = {region: found for region, (_, found) in passed.items()}
        return {region: found for region, (found, _) in passed.items()}

    def _checked_update(self, region: str, content: RecordDict) -> wire.TrainReply:
        config = self._config
        reply = wire.read_train_reply(
            content,
            self._trained(),
            encoding=config.update_encoding,
            max_examples=config.max_examples,
            max_norm=config.max_update_norm,
            rank=self._ranks.get(region),
            control=config.control_variates,
            dim=self._dim,
            gaussian_dim=self._gaussian_dim,
        )
        self.record.uplink_bytes += record_bytes(content)
        return reply

    def _trained(self) -> Adapter:
        """What was sent of the tensors that this round trains."""
        names = trained_names(self._sent, self._config.factors_of(self.record.round))
        return {name: self._sent[name] for name in names}

    def _checked_metrics(self, region: str, content: RecordDict) -> dict[str, float]:
        reply = wire_evaluation.read_evaluate_reply(content, max_examples=self._config.max_examples)
        return dict(reply.metrics)

    def _require_quorum(self, accepted: int) -> None:
        share = self._config.quorum * len(self._cohort)
        needed = max(math.ceil(share - 1e-9), 1)  # 0.07 * 100 is 7.000000000000001
        if accepted < needed:
            raise FederationError(
                f"round {self.record.round}: {accepted} of {len(self._cohort)} regions answered "
                f"well, the quorum is {needed} ({_reasons(self.record.rejected)}); mend those "
                "regions and run again"
            )


def _reasons(rejected: Sequence[Mapping[str, str]]) -> str:
    """Who was refused and why: the first of them, and how many others."""
    told = [f"{one['region']}: {one['reason']}" for one in rejected[:_NAMED]]
    more = len(rejected) - len(told)
    return "; ".join(told) + (f"; and {more:,} more" if more else "")
