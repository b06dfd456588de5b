"""Whether a region takes a release: pure decisions, figures and records in, an answer out."""

import math
from datetime import datetime
from statistics import NormalDist
from typing import Literal, Protocol

from client.decisions import Decision, PublicationState, Verdict
from shared.retrieval.manifest import IndexPointer

Move = Literal["keep", "use", "try"]


class Measured(Protocol):
    """Candidate minus release in use, on the gate clicks: `shared.wire_evaluation.Difference`."""

    @property
    def num_queries(self) -> int:
        """Measured, >= 0."""

    @property
    def mean(self) -> float:
        """Of the difference, nDCG@10."""

    @property
    def variance(self) -> float:
        """Of one query's difference."""


def lower_bound(num_queries: int, mean: float, variance: float, *, confidence: float) -> float:
    """One-sided lower confidence bound of a mean difference, by the normal quantile.

    Args:
        num_queries: measured, >= 1.
        mean: of the difference.
        variance: of one query's difference.
        confidence: of the bound, in (0.5, 1).
    """
    return mean - NormalDist().inv_cdf(confidence) * math.sqrt(variance / num_queries)


def not_inferior(
    num_queries: int,
    mean: float,
    variance: float,
    *,
    tolerance: float,
    confidence: float,
    min_queries: int,
) -> tuple[bool, str]:
    """Whether a release is not worse than the one in use (Piaggio et al. 2012, CONSORT).

    Args:
        num_queries: measured; with fewer than `min_queries` nothing is declined.
        mean: nDCG@10 of the release minus that of the one in use.
        variance: of one query's difference.
        tolerance: nDCG@10 it may lose.
        confidence: with which a larger loss must be ruled out.
        min_queries: see above, >= 2.

    Returns:
        The answer and its reason, one line.
    """
    if num_queries < min_queries:
        return True, f"{num_queries} gate queries, too few to decline by ({min_queries} needed)"
    bound = lower_bound(num_queries, mean, variance, confidence=confidence)
    figures = f"nDCG@10 {mean:+.4f} on {num_queries} gate queries, lower bound {bound:+.4f}"
    if bound > -tolerance:
        return True, f"{figures}, above {-tolerance:.4f}"
    return False, f"{figures}, not above {-tolerance:.4f}"


def next_move(record: PublicationState, offered: int, *, in_use: int, catalog_digest: str) -> Move:
    """What to do about the release that headquarters names.

    Args:
        record: what was decided so far.
        offered: the release.
        in_use: the release in use.
        catalog_digest: of the catalog now.

    Returns:
        "keep" what is in use; "use" the release, which was tried before; or "try" it.
    """
    decision = record.decision_on(offered)
    if offered == in_use:
        return "keep"
    if decision is None:
        return "try"
    asked = record.wanted == offered
    if decision.verdict in ("accepted", "rolled_back") or (asked and decision.verdict == "waiting"):
        return "use"
    return "try" if asked or decision.catalog_digest != catalog_digest else "keep"


def after_swap(
    record: PublicationState,
    former: IndexPointer | None,
    release: int,
    *,
    now: datetime,
) -> PublicationState:
    """The record once an index of a release is in use.

    Args:
        record: as it was.
        former: what was in use.
        release: in use from now on.
        now: when.

    Returns:
        The record: the former release is the previous one, and rolled back if it is a later one.
    """
    if record.wanted == release:
        record = record.model_copy(update={"wanted": None})
    if former is None or former.release == release:
        return record
    record = record.model_copy(update={"previous": former})
    decision = record.decision_on(former.release)
    if decision is None or former.release < release:
        return record
    pinned = record.pinned == release
    reason = f"release {release} " + ("is pinned" if pinned else "was named by headquarters again")
    return record.decided(changed(decision, "rolled_back", reason, now))


def changed(decision: Decision, verdict: Verdict, reason: str, now: datetime) -> Decision:
    """A decision with another verdict."""
    return decision.model_copy(update={"verdict": verdict, "reason": reason, "time": now})
