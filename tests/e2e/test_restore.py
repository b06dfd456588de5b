"""A backup of headquarters or of a region, restored where nothing was left, works as before."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from small_world import Call

from client.decisions import read_state
from client.indexing import pull_release, read_statement
from client.publication import Publication
from client.region import open_region
from client.worker import Worker, forget_workers
from server.conduct import base_encoder
from server.headquarters import Headquarters, open_headquarters
from server.releases import write_release
from shared.errors import ReleaseError
from shared.release import ReleaseBase, ReleaseFacts
from shared.schema import BaseConfig, RegionConfig

# What a region cannot make again. Its catalog, photos and clicks have a backup of their own.
KEPT_OF_A_REGION = (
    "region.toml",
    "enrolment",
    "state/publication.json",
    "state/audit.jsonl",
    "state/audit.head",
)


def pack(folder: Path, archive: Path) -> None:
    """As `tar --exclude=headquarters/logs`."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(
            folder,
            arcname=folder.name,
            filter=lambda entry: None if entry.name == f"{folder.name}/logs" else entry,
        )


def unpack(archive: Path, beside: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(beside, filter="fully_trusted")


def sign_a_release(hq: Headquarters, files: Path) -> int:
    """The untrained adapter as the next release, not in use yet."""
    encoder = base_encoder(hq)
    encoder.reset(seed=7)
    encoder.save_release_files(files)
    facts = ReleaseFacts(
        base=ReleaseBase(fingerprint=hq.fingerprint, ids={"text": "tiny", "image": "tiny"}),
        dims={"vector": 32},
        encoder_digest=encoder.digest,
        rounds=1,
        strategy="FedAvg",
    )
    return write_release(hq.releases, files=files, facts=facts, signing_key=hq.signing_key)


@pytest.fixture
def headquarters(tmp_path: Path, call: Call) -> Headquarters:
    """One region invited, one release in use."""
    folder = tmp_path / "headquarters"
    asked = ("server", "init", folder, "--address", "hq.example:9443", "--preset", "tiny")
    assert call(*asked).code == 0
    hq = open_headquarters(folder)
    assert sign_a_release(hq, tmp_path / "files") == 1
    assert call("server", "promote", "1", "--dir", folder).code == 0
    invitation = tmp_path / "north.enrolment.json"
    assert call("server", "invite", "north", "--dir", folder, "--out", invitation).code == 0
    return hq


def all_that_it_says(call: Call, folder: Path) -> list[str]:
    answers = [
        call("server", "status", "--dir", folder, "--json"),
        call("server", "releases", "--dir", folder, "--json"),
        call("audit", "verify", folder),
    ]
    assert [answer.code for answer in answers] == [0, 0, 0]
    return [answer.out for answer in answers]


def test_headquarters_comes_back_from_its_backup(
    headquarters: Headquarters, tmp_path: Path, call: Call
) -> None:
    folder, archive = headquarters.folder, tmp_path / "backup.tar.gz"
    (folder / "logs" / "nginx.log").write_text("not worth keeping\n")
    before = all_that_it_says(call, folder)
    pack(folder, archive)
    shutil.rmtree(folder)

    unpack(archive, tmp_path)

    assert all_that_it_says(call, folder) == before
    for secret in ("signing.key", "tls/ca.key", "tls/server.key", "regions.json"):
        assert (folder / secret).stat().st_mode & 0o777 == 0o600
    promoted = call("server", "promote", "1", "--dir", folder, "--json")
    assert json.loads(promoted.out)["sequence"] == 2
    assert call("audit", "verify", folder).code == 0


def test_after_an_old_backup_regions_wait_until_the_sequence_has_caught_up(
    headquarters: Headquarters, tmp_path: Path, call: Call
) -> None:
    folder, archive = headquarters.folder, tmp_path / "backup.tar.gz"
    pack(folder, archive)
    promote = ("server", "promote", "1", "--dir", folder)
    assert [call(*promote).code for _ in range(2)] == [0, 0]
    config = RegionConfig(
        region="north",
        base=BaseConfig(
            path="base",
            fingerprint=headquarters.fingerprint,
            release_key=headquarters.release_key,
            releases=str(headquarters.releases),
        ),
    )
    assert read_statement(tmp_path, config).sequence == 3
    shutil.rmtree(folder)
    unpack(archive, tmp_path)

    with pytest.raises(ReleaseError, match=r"sequence 1, but sequence 3 was seen before"):
        read_statement(tmp_path, config)
    assert [call(*promote).code for _ in range(3)] == [0, 0, 0]
    assert read_statement(tmp_path, config).sequence == 4


def test_a_region_makes_again_what_is_in_no_backup(
    finished: Path, tmp_path: Path, call: Call
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    region = run / "regions" / "north"
    (region / "enrolment").mkdir(exist_ok=True)
    search = ("search", "--region", region, "red shirts", "--json")
    pull_release(region)
    before, seen = call(*search), read_state(region / "state").seen
    with tarfile.open(tmp_path / "backup.tar.gz", "w:gz") as tar:
        for name in KEPT_OF_A_REGION:
            if (region / name).exists():
                tar.add(region / name, arcname=name)
    shutil.rmtree(region / "state")
    (region / "region.toml").unlink()
    assert call(*search).code == 1

    unpack(tmp_path / "backup.tar.gz", region)
    forget_workers()
    worker = Worker(open_region(region))
    outcome = Publication(
        worker.region, encoder=lambda: worker.encoder, products=lambda: worker.products
    ).step()

    assert (outcome.release, outcome.available) == (1, 1)
    assert read_state(region / "state").seen == seen
    assert json.loads(call(*search).out)["hits"] == json.loads(before.out)["hits"]
    assert call("audit", "verify", region / "state").code == 0
