"""Negatives drawn of the regions' Gaussians, in whole small federations."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_runs import federate, same
from small_world import federation

import client.worker
from client.statistics import product_gaussian
from client.worker import Worker, get_worker
from server.gaussians import FederationGaussians
from server.history import History
from shared.errors import WireError
from shared.gaussians import MIN_PRODUCTS, Gaussians
from shared.schema import SharingConfig, load_region_config, render_region_toml

NewRun = Callable[[str], Path]
ON: dict[str, str | float] = {"drawn_negatives": 32, "update_encoding": "float32"}


@pytest.fixture(autouse=True)
def small_regions_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regions of the small world are below what is asked of real ones."""
    monkeypatch.setattr("client.statistics.MIN_PRODUCTS", 40)


def kept(history: History, number: int) -> Gaussians | None:
    return FederationGaussians(history.memory(number)).value()


def test_they_change_what_is_learned_once_there_are_any(new_run: NewRun) -> None:
    plain = federate(new_run("plain"), update_encoding="float32")
    joined = federate(new_run("joined"), **ON)
    assert same(plain.adapter(1), joined.adapter(1))  # in round 1 nobody has sent any
    assert not same(plain.adapter(2), joined.adapter(2))
    assert [record.rejected for record in joined.rounds()] == [[], [], []]
    more = joined.rounds()[1].uplink_bytes - plain.rounds()[1].uplink_bytes
    assert more > 2 * 4 * 33 * 32  # of two regions: 33 vectors of 32 numbers each


def test_headquarters_keeps_each_regions_own(new_run: NewRun) -> None:
    run = new_run("run")
    history = federate(run, num_rounds=1, **ON)
    both = kept(history, 1)
    assert both is not None and len(both.mean) == 2
    settings = federation(run, num_rounds=1, drawn_negatives=32).train_config(1)
    for place, name in enumerate(("north", "south")):
        trained = get_worker(run / "regions" / name).train(history.adapter(0), settings, 1)
        assert trained.gaussian is not None
        torch.testing.assert_close(both.mean[place], trained.gaussian.mean[0])


def test_a_region_of_few_products_sends_none_and_learns_from_the_others(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run("run")
    heights = [get_worker(run / "regions" / n).region.catalog.height for n in ("north", "south")]
    assert min(heights) < max(heights) < MIN_PRODUCTS
    monkeypatch.setattr("client.statistics.MIN_PRODUCTS", max(heights))
    history = federate(run, **ON)
    found = kept(history, 1)
    assert found is not None and len(found.mean) == 1
    monkeypatch.setattr("client.statistics.MIN_PRODUCTS", max(heights) + 1)
    nobody = federate(new_run("nobody"), **ON)
    assert kept(nobody, 2) is None
    assert not same(nobody.adapter(2), history.adapter(2))


def refuse(run: Path, name: str) -> None:
    folder = run / "regions" / name
    config = load_region_config(folder).model_copy(update={"sharing": SharingConfig()})
    (folder / "region.toml").write_text(render_region_toml(config))


def told(caplog: pytest.LogCaptureFixture) -> int:
    """How often headquarters said that there is nothing to draw of."""
    return sum("sharing.product_gaussian" in message for message in caplog.messages)


def test_a_region_that_has_not_agreed_sends_none_and_learns_from_the_others(
    new_run: NewRun, caplog: pytest.LogCaptureFixture
) -> None:
    run, nobody = new_run("run"), new_run("nobody")
    refuse(run, "north")
    history = federate(run, **ON)
    found = kept(history, 1)
    assert found is not None and len(found.mean) == 1
    assert history.rounds()[2].rejected == [] and told(caplog) == 0
    for name in ("north", "south"):
        refuse(nobody, name)
    alone = federate(nobody, **ON)
    assert kept(alone, 2) is None
    assert told(caplog) == 2  # in either round
    plain = federate(new_run("plain"), update_encoding="float32")
    assert same(alone.adapter(2), plain.adapter(2))


def test_a_bad_one_rejects_that_region_by_name(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter([1.5, 1.0])  # north's mean is that of no unit vectors

    def spoilt(*given: object, **more: object) -> Gaussians:
        found = product_gaussian(*given, **more)  # type: ignore[arg-type]
        assert found is not None
        return Gaussians(found.mean * next(calls), found.factor, found.residual)

    monkeypatch.setattr(client.worker, "product_gaussian", spoilt)
    record = federate(new_run("run"), num_rounds=1, **ON).rounds()[1]
    reason = "Gaussians: they are not of unit vectors"
    assert record.rejected == [{"region": "north", "reason": reason}]


def test_gaussians_of_other_vectors_are_refused_by_the_region(new_run: NewRun) -> None:
    run = new_run("run")
    worker: Worker = get_worker(run / "regions" / "north")
    history = federate(run, num_rounds=1, **ON)
    both = kept(history, 1)
    assert both is not None
    short = Gaussians(both.mean[:, :-1], both.factor[..., :-1], both.residual)
    settings = federation(run, drawn_negatives=32).train_config(2)
    with pytest.raises(WireError, match="Gaussians are not of 32 dimensions"):
        worker.train(history.adapter(1), settings, 2, gaussians=short)
