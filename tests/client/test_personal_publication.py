"""A region that adapts releases: its index, its searches and its gate are those of what it made."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from small_registry import NOW, TITLES, HashEncoder, Headquarters, write_catalog, write_region
from test_publication import BAD, GOOD, events, in_use

from client.indexing import load_pulled_release
from client.personal import Personal, adapter_path, write_personal
from client.publication import Outcome, Publication
from client.region import open_region
from client.releases import pin, unpin
from shared.adapter import Adapter
from shared.retrieval.manifest import read_pointer

ON = "[personalization]\nenabled = true\n"


class AdaptedEncoder(HashEncoder):
    """A `HashEncoder` whose release may be adapted: its adapter is the bytes of the release."""

    def adapter(self) -> Adapter:  # type: ignore[override]
        return {"release": torch.tensor(list(self._release), dtype=torch.uint8)}

    def load_adapter(self, adapter: Adapter) -> None:
        self._release = bytes(adapter["release"].tolist())


def digest_of(release: bytes) -> str:
    encoder = AdaptedEncoder(None)
    encoder.load_adapter({"release": torch.tensor(list(release), dtype=torch.uint8)})
    return encoder.digest


class Adapting:
    """A region that adds `mark` to what it loads, and counts how often it was asked."""

    def __init__(self, folder: Path, mark: bytes = b"+", figures: Any = GOOD) -> None:
        self.folder, self.mark, self.figures = folder, mark, figures
        self.encoder = AdaptedEncoder(None)
        self.asked: list[int] = []
        self.gated: list[tuple[bytes, bytes]] = []

    def step(self) -> Outcome:
        """As in a worker that starts afresh."""
        self.region = open_region(self.folder)
        return Publication(
            self.region,
            encoder=lambda: self.encoder,
            gate=self._gate,
            personalize=self._personalize,
        ).step(now=NOW)

    def _gate(self, candidate: Any, current: Any) -> Any:
        self.gated.append((bytes(candidate["release"]), bytes(current["release"])))
        return self.figures

    def _personalize(self, release: int) -> Personal:
        self.asked.append(release)
        own, adapter = self.encoder.digest, self.encoder.adapter()
        adapter["release"] = torch.cat([adapter["release"], torch.tensor(list(self.mark)).byte()])
        self.encoder.load_adapter(adapter)
        record = Personal(
            release=release,
            release_digest=own,
            encoder_digest=self.encoder.digest,
            choice="gate" if self.mark else "release",
            reason="",
            num_queries=100,
            measured=(),
            settings=self.region.config.personalization,
            time=datetime.now(UTC),
        )
        write_personal(self.region.state, record, adapter)
        return record

    @property
    def answers(self) -> str:
        """Digest of the encoder that a service loads for the index in use; they must be equal."""
        in_use(self.folder)
        pointer, encoder = read_pointer(self.folder / "state"), AdaptedEncoder(None)
        load_pulled_release(
            encoder,
            self.folder,
            open_region(self.folder).config,
            release=pointer.release,
            encoder_digest=pointer.encoder_digest,
        )
        assert encoder.digest == pointer.encoder_digest
        return encoder.digest

    def made(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "state" / "personal").glob("[0-9]*"))


@pytest.fixture
def headquarters(tmp_path: Path) -> Headquarters:
    return Headquarters(tmp_path)


@pytest.fixture
def north(tmp_path: Path, headquarters: Headquarters) -> Iterator[Adapting]:
    yield Adapting(write_region(tmp_path / "north", headquarters, ON))


def set_personal(folder: Path, text: str) -> None:
    path = folder / "region.toml"
    path.write_text(path.read_text("utf-8").partition("[personalization]")[0] + text, "utf-8")


def test_off_by_default_nobody_is_asked(tmp_path: Path, headquarters: Headquarters) -> None:
    south = Adapting(write_region(tmp_path / "south", headquarters))
    headquarters.release(adapter=b"one")
    assert south.step().verdict == "accepted"
    assert south.asked == [] and south.answers == digest_of(b"one")
    assert not (south.folder / "state" / "personal").exists()


def test_a_release_is_adapted_once_and_answers(north: Adapting, headquarters: Headquarters) -> None:
    headquarters.release(adapter=b"one")
    assert north.step().release == 1
    assert north.answers == digest_of(b"one+")
    assert not north.step().swapped
    write_catalog(north.folder, [*TITLES, "new"])
    assert north.step().swapped  # the new index is of the same encoder
    assert north.answers == digest_of(b"one+")
    assert north.asked == [1]


def test_each_release_is_adapted_anew_and_held_against_what_answers(
    north: Adapting, headquarters: Headquarters
) -> None:
    headquarters.release(adapter=b"one")
    north.step()
    headquarters.release(adapter=b"two")
    north.step()
    assert north.asked == [1, 2] and north.answers == digest_of(b"two+")
    assert north.gated == [(b"one+", b""), (b"two+", b"one+")]


def test_what_is_declined_leaves_what_answered(north: Adapting, headquarters: Headquarters) -> None:
    headquarters.release(adapter=b"one")
    north.step()
    headquarters.release(adapter=b"two")
    north.figures = BAD
    assert north.step().verdict == "declined"
    assert north.answers == digest_of(b"one+")
    north.step()
    assert [name.partition("-")[0] for name in north.made()] == ["1", "1.json"]


def test_a_region_may_keep_the_release_as_it_is(tmp_path: Path, headquarters: Headquarters) -> None:
    south = Adapting(write_region(tmp_path / "south", headquarters, ON), mark=b"")
    headquarters.release(adapter=b"one")
    south.step()
    assert not south.step().swapped
    assert south.asked == [1] and south.answers == digest_of(b"one")
    assert south.made() == ["1.json"]


def test_the_operator_may_change_his_mind(north: Adapting, headquarters: Headquarters) -> None:
    headquarters.release(adapter=b"one")
    north.step()
    set_personal(north.folder, "")
    assert north.answers == digest_of(b"one+")  # until the worker has built another index
    assert north.step().swapped and north.answers == digest_of(b"one")
    set_personal(north.folder, ON)
    assert north.step().swapped and north.answers == digest_of(b"one+")
    assert north.asked == [1]
    north.mark = b"*"
    set_personal(north.folder, f"{ON}passes = 1\n")
    assert north.step().swapped and north.answers == digest_of(b"one*")
    assert north.asked == [1, 1]


@pytest.mark.parametrize("damage", ["flipped", "missing", "another"])
def test_a_damaged_adapter_is_made_again(
    north: Adapting, headquarters: Headquarters, damage: str
) -> None:
    headquarters.release(adapter=b"one")
    north.step()
    path = adapter_path(north.folder / "state", 1, digest_of(b"one+"))
    sound = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    else:  # undamaged, and not the adapter of this encoder
        write_personal_bytes(path, b"two+")
    assert not north.step().swapped  # the same clicks make the same adapter, which the index is of
    assert path.read_bytes() == sound
    assert north.asked == [1, 1] and north.answers == digest_of(b"one+")
    assert "release.personal_damaged" in events(north.folder)


def write_personal_bytes(path: Path, release: bytes) -> None:
    from shared.adapter import save_adapter

    save_adapter(path, {"release": torch.tensor(list(release), dtype=torch.uint8)}, {})


def test_the_way_back_leads_to_what_was_made_then(
    north: Adapting, headquarters: Headquarters
) -> None:
    for adapter in (b"one", b"two"):
        headquarters.release(adapter=adapter)
        north.step()
    assert pin(north.folder, 1) == "release 1 is pinned and in use"  # at once, from its index
    assert north.answers == digest_of(b"one+")
    assert not north.step().swapped
    unpin(north.folder)
    assert north.step().release == 2
    assert north.answers == digest_of(b"two+") and north.asked == [1, 2]


def test_what_was_made_goes_with_its_release(north: Adapting, headquarters: Headquarters) -> None:
    for adapter in (b"one", b"two", b"three"):
        headquarters.release(adapter=adapter)
        north.step()
    north.step()
    assert {name.partition("-")[0].partition(".")[0] for name in north.made()} == {"2", "3"}


def test_a_pinned_release_that_was_never_adapted_is_when_it_is_used(
    north: Adapting, headquarters: Headquarters
) -> None:
    set_personal(north.folder, "")
    for adapter in (b"one", b"two"):
        headquarters.release(adapter=adapter)
        north.step()
    set_personal(north.folder, ON)
    assert pin(north.folder, 1).endswith("the worker takes it into use when it next looks")
    assert north.step().release == 1
    assert north.answers == digest_of(b"one+") and north.asked == [1]
