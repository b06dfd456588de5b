"""Requests made from an OpenAPI description, right ones and wrong ones, the same at every run."""

from collections.abc import Sequence
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, checks

REPEATED = settings(derandomize=True, database=None, phases=[Phase.generate])


def hold(operation: Any, names: Sequence[str], *, max_examples: int) -> None:
    """Call an operation in many forms and apply Schemathesis' own checks to the answers.

    Args:
        operation: of a loaded schema.
        names: of the checks.
        max_examples: how many forms.
    """
    checks.load_all_checks()
    wanted = [checks.CHECKS.get_one(name) for name in names]

    @settings(REPEATED, max_examples=max_examples, suppress_health_check=list(HealthCheck))
    @given(right_or_wrong=st.one_of(*(operation.as_strategy(mode) for mode in GenerationMode)))
    def holds(right_or_wrong: schemathesis.Case) -> None:
        right_or_wrong.call_and_validate(checks=wanted)

    holds()
