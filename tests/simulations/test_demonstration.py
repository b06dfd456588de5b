"""The deployment demonstration does not wait for a release that cannot come."""

from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from client.decisions import Decision, PublicationState, write_state
from shared.errors import FederationError
from simulations import deploy_demo


@pytest.fixture
def demo(tmp_path: Path) -> deploy_demo._Demo:
    return deploy_demo._Demo(tmp_path, ExitStack(), rounds=1, knobs=("gate-tolerance=0.1",))


def test_a_training_whose_candidate_was_declined_is_the_end(
    demo: deploy_demo._Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(deploy_demo, "_fedshelf", lambda *parts: asked.extend(parts))  # exits 0
    with pytest.raises(FederationError, match=r"^training 1: the gate declined, .* no release 1"):
        demo._train(1, 1, ["north", "south"])
    assert {"min-regions=2", "gate-tolerance=0.1", "--promote"} <= set(asked)
    (tmp_path / "headquarters" / "public" / "releases" / "1").mkdir(parents=True)
    demo._train(1, 1, ["north", "south"])
    with pytest.raises(FederationError, match=r"^training 2: the gate declined"):
        demo._train(2, 1, ["north", "south"])


def test_a_region_that_declines_is_the_end(demo: deploy_demo._Demo, tmp_path: Path) -> None:
    state = tmp_path / "regions" / "north" / "state"
    state.mkdir(parents=True)
    assert not demo._answers_with("north", 1)  # not yet
    decision = Decision(
        release=1,
        verdict="declined",
        reason="it loses too much",
        time=datetime.now(UTC),
        encoder_digest="0" * 64,
        catalog_digest="0" * 64,
    )
    write_state(state, PublicationState(decisions=(decision,)))
    with pytest.raises(FederationError, match=r"^region north declined release 1: it loses"):
        demo._wait_for_release(1, ["north"])
