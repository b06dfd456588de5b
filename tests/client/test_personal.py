"""What a region makes of a release is kept whole, found by its digest, and never used in doubt."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

import client.personal
from client.personal import (
    Measured,
    Personal,
    adapter_path,
    read_personal,
    read_personal_adapter,
    remove_personal,
    wanted_digest,
    write_personal,
)
from shared.adapter import Adapter
from shared.errors import ReleaseError
from shared.schema import PersonalizationConfig

ON = PersonalizationConfig(enabled=True)
OWN, MADE = "a" * 64, "b" * 64
ADAPTER: Adapter = {"fusion/gate": torch.tensor([0.25, -1.0])}


def record(release: int = 1, made: str = MADE, **fields: Any) -> Personal:
    figures = Measured(candidate="gate", mean_difference=0.02, lower_bound=0.01, upper_bound=0.03)
    asked: dict[str, Any] = {
        "release": release,
        "release_digest": OWN,
        "encoder_digest": made,
        "choice": "release" if made == OWN else "gate",
        "reason": "gate +0.0200",
        "num_queries": 120,
        "measured": (figures,),
        "settings": ON,
        "time": datetime(2030, 1, 1, tzinfo=UTC),
    }
    return Personal(**asked | fields)


def read(state: Path, release: int = 1, digest: str = OWN, **changes: Any) -> Personal | None:
    settings = ON.model_copy(update=changes)
    return read_personal(state, release, release_digest=digest, settings=settings)


def test_what_is_kept_reads_back(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    write_personal(tmp_path, record(), ADAPTER)
    assert read(tmp_path) == record()
    assert read_personal_adapter(tmp_path, 1, MADE)["fusion/gate"].equal(ADAPTER["fusion/gate"])


def test_a_region_that_takes_the_release_as_it_is_keeps_no_adapter(tmp_path: Path) -> None:
    write_personal(tmp_path, record(made=OWN), ADAPTER)
    assert read(tmp_path) == record(made=OWN)
    assert not adapter_path(tmp_path, 1, OWN).exists()


def test_another_release_or_other_settings_ask_for_another_choice(tmp_path: Path) -> None:
    write_personal(tmp_path, record(), ADAPTER)
    assert read(tmp_path, digest="c" * 64) is None  # that number was published anew
    assert read(tmp_path, release=2) is None
    assert read(tmp_path, passes=ON.passes + 1) is None


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff", b'{"format": 2}'])
def test_a_damaged_record_is_no_record(tmp_path: Path, raw: bytes) -> None:
    write_personal(tmp_path, record(), ADAPTER)
    (tmp_path / "personal" / "1.json").write_bytes(raw)
    assert read(tmp_path) is None


def test_which_encoder_a_region_wants(tmp_path: Path) -> None:
    def wanted(settings: PersonalizationConfig) -> str | None:
        return wanted_digest(tmp_path, 1, release_digest=OWN, settings=settings)

    assert wanted(PersonalizationConfig()) == OWN
    assert wanted(ON) is None  # yet to be chosen
    write_personal(tmp_path, record(), ADAPTER)
    assert wanted(ON) == MADE
    assert wanted(PersonalizationConfig()) == OWN


def test_a_damaged_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"1-bbbbbbbbbbbb\.safetensors: not found"):
        read_personal_adapter(tmp_path, 1, MADE)
    write_personal(tmp_path, record(), ADAPTER)
    path = adapter_path(tmp_path, 1, MADE)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ReleaseError, match=r"safetensors: damaged; the worker adapts"):
        read_personal_adapter(tmp_path, 1, MADE)


def test_who_is_killed_before_the_record_leaves_the_former_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def killed(path: Path, data: bytes) -> None:
        raise KilledError

    write_personal(tmp_path, record(), ADAPTER)
    with monkeypatch.context() as patched:
        patched.setattr(client.personal, "replace_file", killed)
        with pytest.raises(KilledError):
            write_personal(tmp_path, record(made="c" * 64), {"fusion/gate": torch.ones(2)})
    assert read(tmp_path) == record()
    assert read_personal_adapter(tmp_path, 1, MADE)["fusion/gate"].equal(ADAPTER["fusion/gate"])


def test_what_nobody_wants_any_more_is_removed(tmp_path: Path) -> None:
    remove_personal(tmp_path, releases=set(), digests=set())  # nothing was ever made
    for release, made in ((1, "1" * 64), (2, "2" * 64), (2, "3" * 64), (3, "4" * 64)):
        write_personal(tmp_path, record(release, made), ADAPTER)
    remove_personal(tmp_path, releases={2, 3}, digests={"4" * 64})
    kept = sorted(path.name for path in (tmp_path / "personal").glob("[0-9]*"))
    assert kept == ["2-333333333333.safetensors", "2.json", "3-444444444444.safetensors", "3.json"]
    remove_personal(tmp_path, releases={2}, digests={"2" * 64, "4" * 64})
    assert adapter_path(tmp_path, 3, "4" * 64).exists()  # an index answers from it still
    assert read(tmp_path, release=3) is None
