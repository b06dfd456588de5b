"""The release gate: is a candidate not worse than what came before, as far as gate clicks can tell?

Pure: figures in, a decision out. It is a non-inferiority test (Piaggio et al. 2012, CONSORT
extension, JAMA 308(24):2594-2604). The burden is on the candidate: not "no loss was seen" but "a
loss of `tolerance` or more is ruled out at this confidence". The figures are paired, candidate
minus reference on the same queries, so that what makes a query easy or hard cancels.

Every check must pass, so the chance of accepting a candidate that truly loses `tolerance` in any
one of them stays below 1 - confidence without a correction for their number (intersection-union
test, Berger 1982, Technometrics 24(4):295-300). The price is paid by good candidates: with standard
deviation s of a query's difference, a region in which nothing changes on average passes half the
time at n = (z s / tolerance)^2 queries, seldom with far fewer, and the chances of many regions
multiply.

The quantile is the normal one. Student's t would put the bound further out, by 3 % of its distance
from the mean with 30 queries at 95 % confidence, and by less with more.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist, fmean
from typing import Any

from pydantic import TypeAdapter, ValidationError

from shared.wire_evaluation import Difference

MEAN = "mean"
_LEAST = -1.0  # no difference of two nDCGs is below it


@dataclass(frozen=True)
class GateRule:
    """What a candidate must show.

    Attributes:
        tolerance: nDCG@10 that it may lose, >= 0.
        confidence: of each one-sided bound, in [0.5, 1).
        min_queries: a check on fewer is reported and does not count, >= 2.
    """

    tolerance: float
    confidence: float
    min_queries: int


@dataclass(frozen=True)
class GateCheck:
    """One comparison with one reference.

    Attributes:
        reference: number of the release compared with, 0 for the untrained base.
        scope: a region's name, or "mean" for the unweighted mean over regions, which comes first.
        num_queries: that were compared.
        mean: of candidate minus reference, nDCG@10.
        lower: its one-sided lower confidence bound.
        passed: whether the bound is above -tolerance.
        counted: False where there were too few queries to decide by.
    """

    reference: int
    scope: str
    num_queries: int
    mean: float
    lower: float
    passed: bool
    counted: bool


@dataclass(frozen=True)
class GateDecision:
    """The gate's answer.

    Attributes:
        accepted: whether the candidate may be released.
        checks: by reference, the mean before the regions, these by name.
        reasons: one line for each check that failed and each reference that decided nothing.
    """

    accepted: bool
    checks: tuple[GateCheck, ...]
    reasons: tuple[str, ...]


def decide(differences: Mapping[int, Mapping[str, Difference]], rule: GateRule) -> GateDecision:
    """Accept a candidate only if it is non-inferior to every reference, on the mean and everywhere.

    For every reference, the lower bound of the unweighted mean over regions must be above
    -tolerance, and so must that of each region with `min_queries` or more. The mean is over regions
    with two queries or more, because one query has no variance; its standard error is
    sqrt(sum of the regions' squared standard errors) / number of regions. It too needs
    `min_queries`, over all regions together: fewer cannot tell how sure they are.

    Args:
        differences: candidate minus reference, by reference and region.
        rule: what to show.

    Returns:
        The decision with every check. Nothing to compare is a refusal.

    Raises:
        ValueError: a figure is not finite, or a variance or count is negative.
    """
    _require_figures(differences)
    checks = tuple(
        check
        for reference in sorted(differences)
        for check in _checks(reference, differences[reference], rule)
    )
    reasons = tuple(_reasons(differences, checks, rule))
    return GateDecision(accepted=not reasons, checks=checks, reasons=reasons)


def to_json(decision: GateDecision) -> dict[str, Any]:
    """A decision as plain JSON values."""
    fields = asdict(decision)
    return {**fields, "checks": list(fields["checks"]), "reasons": list(fields["reasons"])}


def from_json(value: Mapping[str, Any]) -> GateDecision:
    """The inverse of `to_json`.

    Raises:
        ValueError: not a decision.
    """
    try:
        return TypeAdapter(GateDecision).validate_python(value)
    except ValidationError:
        raise ValueError("not a gate decision") from None


def _require_figures(differences: Mapping[int, Mapping[str, Difference]]) -> None:
    for reference, regions in differences.items():
        for region, found in regions.items():
            finite = math.isfinite(found.mean) and math.isfinite(found.variance)
            if not finite or found.variance < 0 or found.num_queries < 0:
                raise ValueError(f"reference {reference}, {region}: no finite mean and variance")


def _checks(
    reference: int, regions: Mapping[str, Difference], rule: GateRule
) -> Iterator[GateCheck]:
    """The mean first, then the regions by name; a region without queries has nothing to report."""
    usable = [found for found in regions.values() if found.num_queries >= 2]
    if usable:
        mean = fmean(found.mean for found in usable)
        squared = math.fsum(found.variance / found.num_queries for found in usable)
        num_queries = sum(found.num_queries for found in usable)
        lower = mean - _quantile(rule) * math.sqrt(squared) / len(usable)
        yield _check(reference, MEAN, num_queries, mean, lower, rule)
    for region, found in sorted(regions.items()):
        if found.num_queries:
            yield _check(
                reference, region, found.num_queries, found.mean, _lower(found, rule), rule
            )


def _lower(found: Difference, rule: GateRule) -> float:
    if found.num_queries < 2:
        return _LEAST
    return found.mean - _quantile(rule) * math.sqrt(found.variance / found.num_queries)


def _quantile(rule: GateRule) -> float:
    return NormalDist().inv_cdf(rule.confidence)


def _check(
    reference: int, scope: str, num_queries: int, mean: float, lower: float, rule: GateRule
) -> GateCheck:
    passed, counted = lower > -rule.tolerance, num_queries >= rule.min_queries
    return GateCheck(reference, scope, num_queries, mean, lower, passed, counted)


def _reasons(
    references: Mapping[int, object], checks: tuple[GateCheck, ...], rule: GateRule
) -> Iterator[str]:
    if not references:
        yield "nothing to compare with; a candidate needs one reference or more"
    for reference in sorted(references):
        own = [check for check in checks if check.reference == reference]
        counted = [check for check in own if check.counted]
        if not counted:
            most = max((check.num_queries for check in own), default=0)
            yield (
                f"reference {reference}: undecided on {most} gate queries, a decision needs "
                f"{rule.min_queries}, in regions with two or more each"
            )
        for check in counted:
            if not check.passed:
                yield (
                    f"reference {reference}, {check.scope}: {check.mean:+.4f} nDCG@10, lower bound "
                    f"{check.lower:+.4f} on {check.num_queries} queries, needs above "
                    f"{-rule.tolerance:+.4f}"
                )
