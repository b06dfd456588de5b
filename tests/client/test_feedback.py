"""What a round lost is in the next one, whichever round comes next and however often."""

from pathlib import Path

import pytest
import torch

from client.feedback import FOLDER, RoundFiles, feedback_of
from shared.adapter import Adapter


def of(number: float) -> Adapter:
    return {"a": torch.full((3,), number), "b": torch.tensor(number)}


def carried(feedback: RoundFiles, server_round: int) -> float:
    """What is added to an update of zeros."""
    return float(feedback.before(server_round, of(0.0)).get("b", 0.0))


@pytest.fixture
def feedback(tmp_path: Path) -> RoundFiles:
    return feedback_of(tmp_path)


def test_the_first_round_carries_nothing_and_the_next_what_it_lost(feedback: RoundFiles) -> None:
    assert carried(feedback, 1) == 0
    feedback.keep(of(0.25), 1)
    assert carried(feedback, 2) == 0.25


def test_a_round_trained_again_carries_what_it_carried(feedback: RoundFiles) -> None:
    feedback.keep(of(0.25), 1)
    feedback.keep(of(0.5), 2)
    assert carried(feedback, 2) == 0.25
    feedback.keep(of(0.75), 2)
    assert carried(feedback, 3) == 0.75


def test_rounds_that_a_region_missed_do_not_matter(feedback: RoundFiles) -> None:
    feedback.keep(of(0.25), 2)
    feedback.keep(of(0.5), 5)
    assert carried(feedback, 9) == 0.5
    assert carried(feedback, 5) == 0.25


def test_only_two_rounds_are_kept(feedback: RoundFiles, tmp_path: Path) -> None:
    for number in range(1, 6):
        feedback.keep(of(0.5), number)
    names = sorted(path.name for path in (tmp_path / FOLDER).iterdir())
    assert names == ["round-4.safetensors", "round-5.safetensors"]


def test_a_new_training_begins_without(feedback: RoundFiles) -> None:
    for number in range(1, 6):
        feedback.keep(of(0.5), number)
    assert carried(feedback, 1) == 0
    feedback.keep(of(0.25), 1)
    assert carried(feedback, 2) == 0.25


def test_a_damaged_residual_costs_a_warning_and_no_round(
    feedback: RoundFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    feedback.keep(of(0.25), 1)
    path = tmp_path / FOLDER / "round-1.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert carried(feedback, 2) == 0
    assert "round-1.safetensors: unreadable or of another base" in caplog.text
    assert not path.exists()


def test_a_residual_of_another_base_is_left_out(
    feedback: RoundFiles, caplog: pytest.LogCaptureFixture
) -> None:
    feedback.keep({"a": torch.ones(4), "b": torch.tensor(1.0)}, 1)
    assert carried(feedback, 2) == 0
    assert "of another base" in caplog.text
