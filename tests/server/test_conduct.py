"""From a training to a release in use, through runs of the real ServerApp, and after kills."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from flwr.app import RecordDict
from small_federation import Died, SmallFederation, fails, silent, worse

from server import conduct
from server.control import RunStatus, SuperLinkAway
from server.history import RoundRecord
from server.training import abandon, release_numbers, trainings
from shared.adapter import Adapter, load_adapter
from shared.errors import FederationError, ReleaseError
from shared.release import read_current, read_release

TRAINED = ["training.started", *["round.completed"] * 3, "gate.decided"]  # of two rounds


@pytest.fixture
def small(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> SmallFederation:
    monkeypatch.setattr(conduct, "POLL_S", 0)
    monkeypatch.setattr(conduct, "ASK_S", 0)
    return SmallFederation(tmp_path / "hq", tiny_base)


def same(one: Adapter, other: Adapter) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def follow(small: SmallFederation, on_line: Callable[[str], object] = silent) -> None:
    training = conduct.latest(small.hq)
    conduct.follow(small.hq, small.control, training, on_line=on_line)


def fails_in(small: SmallFederation, number: int) -> None:
    """Both regions fail in that round."""
    for region in small.regions:

        def fail(reply: RecordDict, region: object = region) -> RecordDict:
            asked = region.asked[-1].request  # type: ignore[attr-defined]
            return fails(reply) if asked.server_round == number else reply

        region.spoilt["round"] = fail


# -- the whole way ---------------------------------------------------------------------------------


def test_train_release_promote_train_again_and_roll_back(small: SmallFederation) -> None:
    hq = small.hq
    first = small.train()
    assert first.config["parent"] is None
    assert conduct.release(hq, first) == first.release == 1
    assert not (hq.releases / "current.json").exists()
    assert conduct.put_into_use(hq, 1, event="release.promoted").sequence == 1

    second = small.train()
    assert second.config["parent"] == 1
    assert list(second.history.references()) == [1]
    assert same(second.history.adapter(0), load_adapter(hq.adapters / "1.safetensors"))
    assert conduct.release(hq, second) == 2
    assert conduct.put_into_use(hq, 2, event="release.promoted").sequence == 2
    manifest = read_release(hq.releases / "2", public_key_hex=hq.release_key, expected_number=2)
    assert (manifest.parent, manifest.rounds, manifest.quality["training"]) == (1, 2, 2)

    assert conduct.put_into_use(hq, 1, event="release.rolled_back").release == 1
    current = read_current(hq.releases, public_key_hex=hq.release_key)
    assert (current.release, current.sequence) == (1, 3)
    assert small.train().config["parent"] == 1
    assert small.events() == [
        *TRAINED,
        "release.written",
        "release.promoted",
        *TRAINED,
        "release.written",
        "release.promoted",
        "release.rolled_back",
        *TRAINED,
    ]


def test_a_release_holds_the_best_round_and_its_adapter_is_kept(small: SmallFederation) -> None:
    for region in small.regions:
        region.measure = lambda steps: 0.5 + 0.1 * (round(steps) == 1)
    training = small.train()
    conduct.release(small.hq, training)
    manifest = read_release(small.hq.releases / "1", public_key_hex=small.hq.release_key)
    assert manifest.rounds == 1
    kept = load_adapter(small.hq.adapters / "1.safetensors")
    assert same(kept, training.history.adapter(1))
    encoder = conduct.base_encoder(small.hq)
    encoder.load_release(small.hq.releases / "1")
    assert same(encoder.adapter(), kept)
    assert encoder.digest == manifest.encoder_digest


def test_a_run_is_told_where_to_work_and_what_was_asked_for(small: SmallFederation) -> None:
    training = small.train(rounds=1)
    assert small.control.runs == [
        {
            "num-rounds": 1,
            "region-wait-s": 0,
            "seed": 7,
            "run-dir": str(training.folder.resolve()),
        }
    ]


def test_flower_is_asked_seldom_and_again_once_the_files_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conduct, "POLL_S", 0)
    asked: list[int] = []
    control = SimpleNamespace(run_status=lambda run_id: asked.append(run_id) or len(asked))
    training = SimpleNamespace(complete=False)
    watch = conduct._watch(control, training, 5)  # type: ignore[arg-type]
    assert [next(watch) for _ in range(20)] == [1] * 20
    training.complete = True
    assert [next(watch) for _ in range(2)] == [2, 3]
    assert asked == [5, 5, 5]


def test_every_round_is_told_once_with_who_was_rejected(small: SmallFederation) -> None:
    lines: list[str] = []
    small.regions[1].spoilt["round"] = fails
    small.train(lines=lines.append)
    assert lines[0] == "training 1: Flower run 1"
    assert [line.split(":")[0] for line in lines[1:]] == [
        "round 0",
        "round 1",
        "  north",
        "round 2",
        "  north",
    ]
    assert lines[2].startswith(
        "round 1: loss 1.0000, bias 0.00%, validation nDCG@10 0.5500, 2 of 2 regions, "
    )
    assert lines[3] == "  north: region failed: ValueError"


def test_lines_of_a_round_and_of_a_gate(small: SmallFederation) -> None:
    record = RoundRecord(0, None, 1.25, cohort=["east"], validation={"east": {"ndcg@10": 0.25}})
    assert conduct.round_line(record) == (
        "round 0: validation nDCG@10 0.2500, 1 of 1 regions, 1.2 s"
    )
    for region in small.regions:
        region.spoilt["gate"] = worse(region)
    gate = small.train(rounds=1).history.gate()
    assert gate is not None
    bounds = {"mean": -0.3011, "east": -0.3015, "north": -0.3015}  # 1.645 * 0.01 / sqrt(240), (120)
    assert list(conduct.gate_lines(gate)) == [
        "gate: round 1 is declined",
        *(
            f"  against release 0, {scope}: -0.3000, lower bound {bound:+.4f}, "
            f"{240 if scope == 'mean' else 120} queries, failed"
            for scope, bound in bounds.items()
        ),
        *(f"  {reason}" for reason in gate["decision"]["reasons"]),
    ]


# -- what the gate declines ------------------------------------------------------------------------


def test_what_the_gate_declines_is_not_released(small: SmallFederation) -> None:
    for region in small.regions:
        region.spoilt["gate"] = worse(region)
    training = small.train()
    assert conduct.release(small.hq, training) is None
    assert release_numbers(small.hq.releases) == []
    assert not small.hq.adapters.exists()
    assert small.events() == TRAINED
    assert training.over


def test_what_was_given_up_is_not_released(small: SmallFederation) -> None:
    training = conduct.new_training(small.hq, {}, seed=7)
    assert conduct.release(small.hq, training) is None  # nor before the gate
    abandon(training, "given up")
    assert conduct.release(small.hq, training) is None
    assert release_numbers(small.hq.releases) == []


# -- runs that fail, and runs that go on -----------------------------------------------------------


def test_without_a_training_there_is_nothing_to_go_on_with(small: SmallFederation) -> None:
    with pytest.raises(FederationError, match='empty; start with "fedshelf server train"'):
        conduct.latest(small.hq)


def test_a_superlink_that_starts_again_is_waited_for_and_not_for_ever(
    small: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, away = small.control.run_status, 2

    def run_status(run_id: int) -> RunStatus:
        nonlocal away
        away -= 1
        if away >= 0:
            raise SuperLinkAway("headquarters: its SuperLink does not answer")
        return answers(run_id)

    monkeypatch.setattr(small.control, "run_status", run_status)
    assert small.train().complete
    monkeypatch.setattr(conduct, "OUTAGE_S", 0)
    away = 10
    with pytest.raises(FederationError, match="does not answer"):
        follow(small)


@pytest.mark.parametrize("failing", [1, 2])
def test_a_run_that_fails_says_how_to_go_on_and_ends_as_if_it_had_not(
    failing: int, small: SmallFederation, tmp_path: Path, tiny_base: Path
) -> None:
    fails_in(small, failing)
    with pytest.raises(FederationError) as caught:
        small.train()
    assert str(caught.value) == (
        "training 1: Flower run 1 ended as failed FederationError; "
        f'"FLWR_HOME={small.hq.flower} flwr log 1 prod" says more; go on with '
        '"fedshelf server train --resume"'
    )
    cut = conduct.latest(small.hq)
    assert [record.round for record in cut.history.rounds()] == list(range(failing))
    with pytest.raises(FederationError, match="is not over"):
        small.train()
    for region in small.regions:
        region.spoilt.clear()
    follow(small)
    assert len(small.control.runs) == 2
    assert small.control.runs[0] == small.control.runs[1]

    whole = SmallFederation(tmp_path / "other", tiny_base).train()
    assert cut.history.gate() == whole.history.gate()
    assert all(same(cut.history.adapter(n), whole.history.adapter(n)) for n in range(3))
    assert conduct.release(small.hq, cut) == 1


def dies_in(small: SmallFederation, number: int, times: int) -> None:
    """The ServerApp dies in that round, so often."""
    region, left = small.regions[0], [None] * times

    def die(reply: RecordDict) -> RecordDict:
        if region.asked[-1].request.server_round == number and left:
            left.pop()
            raise Died
        return reply

    region.spoilt["round"] = die


@pytest.mark.parametrize("dying", [1, 2])
def test_a_server_app_that_died_is_followed_by_another_and_the_training_ends_as_if_it_had_not(
    dying: int, small: SmallFederation, tmp_path: Path, tiny_base: Path
) -> None:
    dies_in(small, dying, times=2)
    lines: list[str] = []
    training = small.train(lines=lines.append)
    assert len(small.control.runs) == 3
    assert [line for line in lines if line.startswith(("training", "Flower"))] == [
        "training 1: Flower run 1",
        f"Flower run 1: {conduct.LOST}; goes on after the last complete round",
        "training 1: Flower run 2",
        f"Flower run 2: {conduct.LOST}; goes on after the last complete round",
        "training 1: Flower run 3",
    ]
    assert [line[:7] for line in lines if line.startswith("round")] == [
        f"round {number}" for number in range(3)
    ]
    whole = SmallFederation(tmp_path / "other", tiny_base).train()
    assert training.history.gate() == whole.history.gate()
    assert all(same(training.history.adapter(n), whole.history.adapter(n)) for n in range(3))


def test_a_server_app_that_dies_again_and_again_ends_the_training(small: SmallFederation) -> None:
    dies_in(small, 2, times=9)
    with pytest.raises(FederationError, match=f"run 4 ended as failed {conduct.LOST}.*--resume"):
        small.train()
    assert len(small.control.runs) == 4  # the first made round 1, the others none
    dies_in(small, 2, times=0)
    follow(small)
    assert conduct.latest(small.hq).complete


def test_a_table_whose_server_app_died_is_not_begun_again_by_itself(
    small: SmallFederation,
) -> None:
    agree(small)
    region = small.regions[0]
    kept, region.measure = region.measure, lambda steps: dies()
    with pytest.raises(FederationError, match=f"{conduct.LOST}.*fedshelf server matrix"):
        make_table(small)
    assert len(small.control.runs) == 1
    region.measure = kept
    assert make_table(small).keys() == {"release 0", "north alone"}


def dies() -> float:
    raise Died


def test_a_resumed_training_joins_the_run_that_is_still_at_work(small: SmallFederation) -> None:
    def kill(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small.train(lines=kill)
    lines: list[str] = []
    follow(small, lines.append)
    assert lines[0] == "training 1: Flower run 1"
    assert len(small.control.runs) == 1
    assert conduct.latest(small.hq).complete


def test_a_resumed_training_that_is_complete_but_unreleased_is_released(
    small: SmallFederation,
) -> None:
    small.train()
    with pytest.raises(FederationError, match=r"is not over; go on with .* --resume"):
        small.train()
    assert conduct.release(small.hq, conduct.latest(small.hq)) == 1


# -- a release is made once ------------------------------------------------------------------------


@pytest.mark.parametrize("killed_at", ["save_adapter", "AuditLog", "released"])
def test_a_release_that_was_cut_off_is_completed_and_not_made_twice(
    killed_at: str, small: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    training = small.train()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        owner = type(training) if killed_at == "released" else conduct
        patched.setattr(owner, killed_at, kill)
        conduct.release(small.hq, training)
    assert release_numbers(small.hq.releases) == [1]
    assert training.release is None
    before = (small.hq.releases / "1" / "MANIFEST.json").read_bytes()

    assert conduct.release(small.hq, training) == 1
    assert conduct.release(small.hq, training) == 1
    assert release_numbers(small.hq.releases) == [1]
    assert (small.hq.releases / "1" / "MANIFEST.json").read_bytes() == before
    assert training.release == 1
    assert "release.written" in small.events()
    kept = load_adapter(small.hq.adapters / "1.safetensors")
    assert same(kept, training.history.adapter(2))
    conduct.put_into_use(small.hq, 1, event="release.promoted")
    assert small.train().config["parent"] == 1


def test_the_same_adapter_of_another_training_is_another_release(small: SmallFederation) -> None:
    small.release()
    for region in small.regions:  # it gets worse, so round 0 is the best: release 1 itself
        region.measure = lambda steps: 0.9 - 0.1 * steps
    assert conduct.release(small.hq, small.train()) == 2
    manifests = [
        read_release(small.hq.releases / name, public_key_hex=small.hq.release_key)
        for name in ("1", "2")
    ]
    assert manifests[0].encoder_digest == manifests[1].encoder_digest
    assert [manifest.quality["training"] for manifest in manifests] == [1, 2]


def test_without_its_key_nothing_is_signed_and_it_can_be_done_later(
    small: SmallFederation,
) -> None:
    training = small.train()
    aside = small.hq.signing_key.rename(small.hq.folder.parent / "aside.key")
    with pytest.raises(ReleaseError, match=r"signing\.key: no signing key there"):
        conduct.release(small.hq, training)
    assert release_numbers(small.hq.releases) == []
    aside.rename(small.hq.signing_key)
    assert conduct.release(small.hq, training) == 1


def test_what_is_not_there_is_not_put_into_use(small: SmallFederation) -> None:
    number = small.release()
    events = small.events()
    with pytest.raises(ReleaseError, match="not found"):
        conduct.put_into_use(small.hq, number + 1, event="release.promoted")
    assert read_current(small.hq.releases, public_key_hex=small.hq.release_key).release == number
    assert small.events() == events


# -- the cross-site table --------------------------------------------------------------------------


def make_table(small: SmallFederation) -> dict[str, dict[str, float]]:
    chosen = conduct.new_matrix(small.hq, {"num-rounds": 1, "region-wait-s": 0}, seed=7)
    conduct.follow(small.hq, small.control, chosen, on_line=silent)
    return (chosen.history.matrix() or {})["rows"]  # type: ignore[no-any-return]


def agree(small: SmallFederation) -> None:
    for region in small.regions:
        region.description = type(region)(
            region.name,
            region.origin,
            base=small.hq.fingerprint,
            in_matrix=True,
            shares_local=region.name == "north",
        ).description


def test_a_table_has_a_row_for_every_release_and_can_be_made_again(
    small: SmallFederation,
) -> None:
    agree(small)
    assert make_table(small).keys() == {"release 0", "north alone"}
    small.release()
    assert small.control.runs[0]["task"] == "matrix"
    rows = make_table(small)
    assert rows.keys() == {"release 0", "release 1", "north alone"}
    assert rows["release 1"]["east"] == pytest.approx(0.6)
    assert [one.number for one in trainings(small.hq.matrices)] == [1, 2]
    assert [one.number for one in trainings(small.hq.trainings)] == [1]


def test_a_table_that_failed_is_made_anew(small: SmallFederation) -> None:
    with pytest.raises(FederationError, match="ended as failed"):
        make_table(small)  # nobody agrees
    agree(small)
    assert make_table(small).keys() == {"release 0", "north alone"}
    assert [one.over for one in trainings(small.hq.matrices)] == [True, True]
