"""What one check of a region found, and the words in which every check says it.

`client.check` asks the questions; `client.estimate` and `client.visit` know some of the answers.
"""

from typing import Literal, NamedTuple

Verdict = Literal["ok", "warn", "fail"]


class Finding(NamedTuple):
    """The answer to one question.

    Attributes:
        verdict: "warn" needs somebody's attention, "fail" must be mended first.
        found: one line.
        advice: what to do, or nothing.
    """

    verdict: Verdict
    found: str
    advice: str = ""


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number of things, e.g. "1,240 products".

    Args:
        number: how many.
        one: the word for one of them.
        many: the word for several; by default with an "s".
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def byte_size(number: float) -> str:
    """Bytes in the largest unit that leaves a number above 1, e.g. "1.2 GB"."""
    for unit_bytes, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if number >= unit_bytes:
            return f"{number / unit_bytes:,.1f} {unit}"
    return f"{number:,.0f} B"


def minutes(seconds: float) -> str:
    """A time as people plan with it, e.g. "4.0 min"."""
    return f"{seconds / 60:,.1f} min" if seconds >= 6 else "under 0.1 min"
