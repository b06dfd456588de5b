"""How a region takes releases into use: look, try, decide, swap.

`Publication.step` is one look at headquarters. A new release is pulled, its index is built beside
the current one, it must find the operator's canaries, and the region's own gate clicks must not
show that it is worse than the release in use. Then `state/current` is replaced: that one file names
index, release and encoder digest, so the query encoder and the index switch together.

Whatever fails or is killed on the way, the old index answers on, and the next step starts from what
is on disk. What was decided is in `client.decisions`, the operator's say in it in
`client.releases`; every event is in `state/audit.jsonl`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from client.acceptance import Measured, changed, lower_bound, next_move, not_inferior
from client.canaries import Canary, failed_canary, read_canaries
from client.decisions import (
    MAX_REASON,
    Decision,
    PublicationState,
    Verdict,
    changing,
    read_state,
    write_state,
)
from client.indexes import (
    current_pointer,
    find_index,
    put_in_use,
    remove_unused,
)
from client.indexing import (
    disk_errors,
    load_personal,
    load_pulled_release,
    provide_release,
    read_for_base,
    read_statement,
    write_region_index,
)
from client.personal import Personal, wanted_digest
from client.region import Region
from client.shelves import open_shelf, scratch_folder
from shared.audit import AuditLog
from shared.durable import locked
from shared.errors import ConfigError, FedshelfError, ReleaseError, RetrievalError
from shared.retrieval.hybrid import Tuned
from shared.retrieval.index import check_unit
from shared.retrieval.manifest import IndexPointer, OpenIndex, open_index_folder
from shared.schema import PublicationConfig

if TYPE_CHECKING:  # torch takes seconds to import, and the operator's commands need none of it
    from shared.adapter import Adapter
    from shared.encoders.encoder import ProductPrefixes


class PublicationEncoder(Protocol):
    """What taking a release into use needs of the region's encoder."""

    @property
    def digest(self) -> str:
        """Encoder digest, of base and adapter."""

    @property
    def distance(self) -> str:
        """By which its vectors are compared."""

    def reset(self, *, seed: int) -> None:
        """The base alone."""

    def load_release(self, folder: Path) -> None:
        """Swap in the adapter of a verified release folder."""

    def load_adapter(self, adapter: "Adapter") -> None:
        """Swap an adapter in, all of it or nothing."""

    def adapter(self) -> "Adapter":
        """A copy of the adapter."""

    def encode_products(
        self, texts: Sequence[str | None], images: Sequence[Path | None]
    ) -> NDArray[np.float32]:
        """Unit vectors (N, D) of products."""

    def encode_queries(
        self, texts: Sequence[str | None], images: Sequence[Path | None]
    ) -> NDArray[np.float32]:
        """Unit vectors (Q, D) of queries."""

    def product_matrix(self, products: "ProductPrefixes") -> NDArray[np.float32]:
        """Unit vectors (N, D) of products, from kept activations."""


Gate = Callable[["Adapter", "Adapter"], Measured]
Tune = Callable[[NDArray[np.float32]], Tuned]

Personalize = Callable[[int], Personal]


@dataclass(frozen=True)
class Outcome:
    """How things stand after a step.

    Attributes:
        release: in use, 0 for the base alone.
        available: the release that headquarters names.
        pinned: the release the operator has pinned, or None.
        swapped: whether this step has put another index into use.
        verdict: this region's on the available release, "" where it has none.
        reason: of the verdict.
    """

    release: int
    available: int
    pinned: int | None
    swapped: bool
    verdict: Verdict | Literal[""]
    reason: str


class Publication:
    """Takes releases into use in one region.

    Args:
        region: opened; after its catalog has changed, open it again and make another one of these.
        encoder: gives the encoder of the region's base. A step swaps adapters in it and leaves it
            with any of them, so nobody else may use it meanwhile, and whoever does so next loads
            the adapter he wants.
        products: gives the kept activations of the catalog; without it products are encoded from
            scratch.
        gate: measures a candidate (first) against the release in use on the region's gate clicks;
            without it they decline nothing.
        tune: given the product vectors of the encoder as it is loaded, chooses the weight of the
            two rankers; without it that is the default.
        queries: vectors (Q, D) of the region's own queries by the encoder as it is loaded, which a
            large index is fitted to; without it, to perturbed products.
        personalize: given the number of the release that is loaded, makes of it what this region
            will answer with, keeps that in `state/personal` and leaves it loaded. It is asked where
            `personalization.enabled` is set, once a release.
    """

    def __init__(
        self,
        region: Region,
        *,
        encoder: Callable[[], PublicationEncoder],
        products: "Callable[[], ProductPrefixes] | None" = None,
        gate: Gate | None = None,
        tune: Tune | None = None,
        queries: Callable[[], NDArray[np.float32]] | None = None,
        personalize: Personalize | None = None,
    ) -> None:
        self._region, self._config, self._state = region, region.config, region.state
        self._encoder, self._products = encoder, products
        self._gate, self._tune, self._queries = gate, tune, queries
        self._personalize = personalize if self._config.personalization.enabled else None
        self._audit = AuditLog(region.state / "audit.jsonl")
        self._verified: tuple[str, str] | None = None  # an index in use, and its catalog's digest
        self._wanted: IndexPointer | None = None  # an index in use, of the encoder that is wanted
        self._failure = ""  # the last one noted; the same one every poll is noted once

    def step(self, *, now: datetime | None = None) -> Outcome:
        """Look once at headquarters and do what follows; harmless if repeated or killed.

        Args:
            now: the time; the clock's by default.

        Returns:
            How things stand.

        Raises:
            ConfigError: `publication.canaries` or the source of releases is wrong.
            ReleaseError: headquarters cannot be reached, or what it says or sends cannot be
                believed; or the disk is full. What was in use stays in use (for a changed catalog
                its index has been built all the same), and the next step tries again.
            RetrievalError: an index cannot be written and read back; as above.
            AuditError: the audit log is damaged; nothing is changed then.
        """
        now = now or datetime.now(UTC)
        with disk_errors(self._state), locked(self._state / "step.lock"):
            with changing(self._state):
                remove_unused(self._state)  # not sooner: searches may just be opening one of them
            before, available = current_pointer(self._state), 0
            failure: FedshelfError | None = None
            try:
                available = self._follow(now)
            except (ConfigError, ReleaseError, RetrievalError) as error:
                failure = error  # first the catalog, which headquarters must not hold up
            self._renew(now)
            self._note(failure)
            if failure is not None:
                raise failure
            return self._outcome(before, available)

    def _follow(self, now: datetime) -> int:
        """Move to the pinned release, or to the one headquarters names; returns the latter."""
        record = read_state(self._state)
        if record.pinned is not None:
            if record.pinned != self._in_use():
                self._use(record.pinned, now)
            return read_statement(self._region.folder, self._config, now=now).release
        offered = self._offered(record, now)
        match next_move(
            read_state(self._state),
            offered,
            in_use=self._in_use(),
            catalog_digest=self._region.catalog_digest,
        ):
            case "use":
                self._use_again(offered, now)
            case "try":
                self._try(offered, now)
            case "keep":
                pass
        return offered

    def _offered(self, record: PublicationState, now: datetime) -> int:
        try:
            return read_statement(self._region.folder, self._config, now=now).release
        except ReleaseError:
            if record.wanted is None:
                raise
            return record.wanted  # was named and verified earlier, and the operator asks for it

    def _use_again(self, release: int, now: datetime) -> None:
        decision = read_state(self._state).decision_on(release)
        assert decision is not None, "only a release that was tried is used again"
        if decision.verdict != "accepted":
            reason = "by the operator" if decision.verdict == "waiting" else "accepted before"
            decision = changed(decision, "accepted", reason, now)
        self._use(release, now, decision)

    def _use(self, release: int, now: datetime, decision: Decision | None = None) -> None:
        """Put a release into use without asking: from its index on disk, at once, if there is."""
        opened = find_index(
            self._state,
            release,
            encoder_digest=self._digest_of(release),
            catalog_digest=self._region.catalog_digest,
        )
        self._swap(opened or self._build(release), now, decision)

    def _try(self, release: int, now: datetime) -> None:
        """Build a candidate's index, ask canaries and gate clicks, decide."""
        canaries = self._canaries()
        encoder = self._load(release)
        decision = Decision(
            release=release,
            verdict="declined",
            reason="",
            time=now,
            encoder_digest=encoder.digest,
            catalog_digest=self._region.catalog_digest,
        )
        vectors = self._encode(encoder)
        try:
            check_unit(vectors)
        except RetrievalError as error:
            self._record(decision, str(error))
            return
        opened = self._write(vectors, release, encoder)
        failed = self._failed_canary(canaries, opened, encoder)
        if failed is not None:
            self._record(decision, f"canary {failed} of {len(canaries)} misses its product")
            return
        decision = self._judge(decision, encoder)
        if decision.verdict == "accepted":
            self._swap(opened, now, decision)
        else:
            self._record(decision, decision.reason)

    def _canaries(self) -> list[Canary]:
        name = self._config.publication.canaries
        if name is None:
            return []
        return read_canaries(
            self._region.folder / name, self._region.catalog["product_id"].to_list()
        )

    def _failed_canary(
        self, canaries: list[Canary], opened: OpenIndex, encoder: PublicationEncoder
    ) -> int | None:
        if not canaries:
            return None
        scratch = scratch_folder(self._state)
        shelf = open_shelf(self._region, opened, encoder.encode_products, scratch=scratch)
        return failed_canary(canaries, shelf, encoder)

    def _judge(self, decision: Decision, encoder: PublicationEncoder) -> Decision:
        """A candidate whose canaries are found, measured on the gate clicks."""
        rule, wanted = self._config.publication, read_state(self._state).wanted
        sound, reason = True, "no gate clicks were asked"
        if self._gate is not None:
            candidate = encoder.adapter()
            measured = self._gate(candidate, self._load_in_use().adapter())
            sound, reason = _judged(measured, rule)
            decision = decision.model_copy(update=_figures(measured, rule))
        verdict: Verdict
        if wanted == decision.release:
            verdict, reason = "accepted", f"by the operator; {reason}"
        elif not sound:
            verdict = "declined"
        elif rule.auto_accept:
            verdict = "accepted"
        else:
            verdict, reason = "waiting", f"for the operator; {reason}"
        return decision.model_copy(update={"verdict": verdict, "reason": reason[:MAX_REASON]})

    def _renew(self, now: datetime) -> None:
        """Have an index of the release in use, sound and of the catalog as it is now."""
        pointer = current_pointer(self._state)
        if pointer is None or not self._is_fresh(pointer):
            self._swap(self._build(self._in_use()), now)
        elif not self._is_wanted(pointer):  # `region.toml` says otherwise than when it was built
            encoder = self._load(pointer.release)
            if encoder.digest != pointer.encoder_digest:
                self._swap(self._index(encoder, pointer.release), now)

    def _is_fresh(self, pointer: IndexPointer) -> bool:
        if self._verified is None or self._verified[0] != pointer.index:
            folder = self._state / "indexes" / pointer.index
            try:
                opened = open_index_folder(folder, expected_digest=pointer.encoder_digest)
            except RetrievalError:  # damaged since: what is wrong with it does not matter
                return False
            self._verified = (pointer.index, opened.manifest.catalog_digest)
        return self._verified[1] == self._region.catalog_digest

    def _is_wanted(self, pointer: IndexPointer) -> bool:
        """Whether the encoder of the index in use is what this region wants of that release."""
        if pointer.release == 0 or pointer == self._wanted:
            return True
        folder, digest = self._state / "releases" / str(pointer.release), pointer.encoder_digest
        try:
            own = read_for_base(folder, pointer.release, self._config).encoder_digest
        except ReleaseError:  # no other index of it could be built
            return True
        try:
            if digest != own:
                load_personal(
                    self._encoder(), self._state, release=pointer.release, encoder_digest=digest
                )
        except ReleaseError:  # searches would have no encoder after the next start
            return False
        wanted = self._wanted_digest(pointer.release, own) == digest
        self._wanted = pointer if wanted else None
        return wanted

    def _build(self, release: int) -> OpenIndex:
        return self._index(self._load(release), release)

    def _index(self, encoder: PublicationEncoder, release: int) -> OpenIndex:
        return self._write(self._encode(encoder), release, encoder)

    def _write(
        self, vectors: NDArray[np.float32], release: int, encoder: PublicationEncoder
    ) -> OpenIndex:
        digest, tuned = encoder.digest, self._tune(vectors) if self._tune else None
        return write_region_index(
            self._region,
            vectors,
            release=release,
            encoder_digest=digest,
            tuned=tuned,
            queries=self._queries() if self._queries else None,
            distance=encoder.distance,
        )

    def _encode(self, encoder: PublicationEncoder) -> NDArray[np.float32]:
        if self._products is None:
            return encoder.encode_products(self._region.texts, self._region.image_paths)
        return encoder.product_matrix(self._products())

    def _load(self, release: int) -> PublicationEncoder:
        """The encoder with which this region answers from a release, if need be made now."""
        encoder = self._encoder()
        if release == 0:
            encoder.reset(seed=0)
            return encoder
        self._load_published(encoder, release)
        if self._personalize is not None and not self._load_personal(encoder, release):
            self._load_published(encoder, release)  # not what was found damaged
            self._personalize(release)
        return encoder

    def _load_published(
        self, encoder: PublicationEncoder, release: int, encoder_digest: str = ""
    ) -> None:
        folder, config = self._region.folder, self._config
        provide_release(folder, config, release)
        load_pulled_release(encoder, folder, config, release=release, encoder_digest=encoder_digest)

    def _load_personal(self, encoder: PublicationEncoder, release: int) -> bool:
        """Load what was made of the release that is loaded; whether there is such, undamaged."""
        own = encoder.digest
        wanted = self._wanted_digest(release, own)
        if wanted is None or wanted == own:
            return wanted == own
        try:
            load_personal(encoder, self._state, release=release, encoder_digest=wanted)
        except ReleaseError as error:
            self._audit.append("release.personal_damaged", release=release, reason=str(error))
            return False
        return True

    def _load_in_use(self) -> PublicationEncoder:
        """The encoder of the index in use; of the base alone where there is none."""
        pointer = current_pointer(self._state)
        if pointer is None or pointer.release == 0:
            return self._load(0)
        encoder = self._encoder()
        self._load_published(encoder, pointer.release, pointer.encoder_digest)
        return encoder

    def _wanted_digest(self, release: int, own: str) -> str | None:
        if self._personalize is None:
            return own
        settings = self._config.personalization
        return wanted_digest(self._state, release, release_digest=own, settings=settings)

    def _digest_of(self, release: int) -> str:
        if release == 0:
            return self._load(0).digest
        folder = provide_release(self._region.folder, self._config, release)
        own = read_for_base(folder, release, self._config).encoder_digest
        return self._wanted_digest(release, own) or self._load(release).digest

    def _in_use(self) -> int:
        pointer = current_pointer(self._state)
        return pointer.release if pointer else 0

    def _swap(self, opened: OpenIndex, now: datetime, decision: Decision | None = None) -> None:
        release = opened.manifest.release
        with changing(self._state):
            record = read_state(self._state)
            if record.pinned not in (None, release):
                return  # the operator has pinned another one since this step began
            if decision is not None and decision != record.decision_on(release):
                _note_decision(self._audit, decision)
                record = record.decided(decision)
            put_in_use(self._state, record, opened, now=now)

    def _record(self, decision: Decision, reason: str) -> None:
        decision = decision.model_copy(update={"reason": reason[:MAX_REASON]})
        with changing(self._state):
            record = read_state(self._state)
            _note_decision(self._audit, decision)
            if record.wanted == decision.release:
                record = record.model_copy(update={"wanted": None})
            write_state(self._state, record.decided(decision))

    def _note(self, failure: FedshelfError | None) -> None:
        text = "" if failure is None else str(failure)
        if text and text != self._failure:
            self._audit.append("publication.failed", reason=text)
        self._failure = text

    def _outcome(self, before: IndexPointer | None, available: int) -> Outcome:
        record, after = read_state(self._state), current_pointer(self._state)
        decision = record.decision_on(available)
        return Outcome(
            release=after.release if after else 0,
            available=available,
            pinned=record.pinned,
            swapped=after != before,
            verdict=decision.verdict if decision else "",
            reason=decision.reason if decision else "",
        )


def _note_decision(audit: AuditLog, decision: Decision) -> None:
    """Before the decision is on disk: after a kill it is noted twice rather than never."""
    facts = decision.model_dump(mode="json", exclude={"verdict", "time"})
    audit.append(f"release.{decision.verdict}", **facts)


def _judged(measured: Measured, rule: PublicationConfig) -> tuple[bool, str]:
    return not_inferior(
        measured.num_queries,
        measured.mean,
        measured.variance,
        tolerance=rule.tolerance,
        confidence=rule.confidence,
        min_queries=rule.min_queries,
    )


def _figures(measured: Measured, rule: PublicationConfig) -> dict[str, float | None]:
    count, mean, bound = measured.num_queries, measured.mean, None
    assert math.isfinite(mean) and math.isfinite(measured.variance), "gains are finite"
    if count > 1:  # one query has no variance
        bound = lower_bound(count, mean, measured.variance, confidence=rule.confidence)
    return {"num_queries": count, "mean_difference": mean, "lower_bound": bound}
