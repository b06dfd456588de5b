"""What both pages are drawn with: ticks, labels apart, paths with gaps, escaped text."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError

from shared.pages import line_path, page_environment, spread, ticks


@given(st.floats(-1, 1), st.floats(0, 5), st.integers(4, 9))
def test_ticks_enclose_the_values_and_rise_evenly(low: float, span: float, most: int) -> None:
    marks, digits = ticks(low, low + span, most)
    assert 2 <= len(marks) <= most
    assert marks[0] <= low + 1e-6
    assert marks[-1] >= low + span - 1e-6
    assert len({f"{mark:.{digits}f}" for mark in marks}) == len(marks)


def test_ticks_are_round() -> None:
    marks, digits = ticks(0.51, 0.59)
    assert ([round(mark, 9) for mark in marks], digits) == ([0.5, 0.52, 0.54, 0.56, 0.58, 0.6], 2)


def test_labels_that_cover_each_other_are_pushed_apart() -> None:
    assert spread([10, 12, 50], limit=100, gap=15) == [10, 25, 50]
    assert spread([12, 10], limit=100, gap=15) == [25, 10]  # in the order they were given


def test_labels_stay_above_the_limit() -> None:
    assert spread([90, 95], limit=100, gap=15) == [85, 100]


def test_a_path_is_broken_where_a_value_is_unknown() -> None:
    assert line_path([(0, 1), (1, 2), None, (3, 4)]) == "M0 1L1 2M3 4"
    assert line_path([None]) == ""


def test_every_text_is_escaped_and_every_name_must_be_known(tmp_path: Path) -> None:
    (tmp_path / "page.j2").write_text("{{ text }}")
    template = page_environment(tmp_path).get_template("page.j2")
    assert template.render(text="<script>") == "&lt;script&gt;"
    with pytest.raises(UndefinedError):
        template.render()
