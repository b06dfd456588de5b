"""Who may take part: invitation, admission and revocation of regions.

    invited --admit--> admitted --revoke--> revoked --invite--> invited

An invitation's token is good for one admission. Of it, `regions.json` keeps the sha256, which is
the key of the proof that a region hands back with its public key (see `shared.enrolment`).
`regions.json` says what shall be; telling Flower is the caller's work, and can be repeated: a
region that is admitted without a node id is not registered there yet.
"""

import hmac
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from server.authority import certificate_expiry
from server.headquarters import Headquarters, RegionList, RegionRecord
from shared.durable import locked, replace_file
from shared.enrolment import (
    MAX_KEY_BYTES,
    Enrolment,
    KeyProof,
    key_fingerprint,
    prove,
    token_digest,
)
from shared.errors import ConfigError, FederationError
from shared.schema import REGION_NAME

INVITATION_VALIDITY = timedelta(days=7)


def regions(headquarters: Headquarters) -> dict[str, RegionRecord]:
    """All regions that were ever invited, by name.

    Args:
        headquarters: the open folder.

    Raises:
        ConfigError: `regions.json` is missing or damaged.
    """
    path = headquarters.regions
    try:
        known = RegionList.from_bytes(path.read_bytes()).regions
    except FileNotFoundError:
        raise ConfigError(f"{path}: missing; restore it from a copy of the folder") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; restore it from a copy of the folder") from None
    return dict(sorted(known.items()))


def invite(headquarters: Headquarters, region: str, *, now: datetime | None = None) -> Enrolment:
    """Invite a region; an invitation it has not used is void from now on.

    Args:
        headquarters: the open folder.
        region: its name.
        now: when; the clock's time by default.

    Returns:
        The enrolment file's content; it is kept nowhere else.

    Raises:
        FederationError: not a region's name, or a region that takes part already.
        ConfigError: the authority's certificate or `regions.json` is missing or damaged.
    """
    if not re.fullmatch(REGION_NAME, region):
        raise FederationError(
            f"region {region!r}: a region's name is up to 63 lower-case letters, digits, _ and -"
        )
    created = now or datetime.now(UTC)
    enrolment = Enrolment(
        region=region,
        address=headquarters.config.address,
        ca_pem=_authority_pem(headquarters),
        release_key=headquarters.release_key,
        base_fingerprint=headquarters.fingerprint,
        token=secrets.token_hex(32),
        created=created,
        expires=created + INVITATION_VALIDITY,
    )
    with locked(headquarters.folder):
        known = regions(headquarters)
        _write(headquarters, known, region, _invited(enrolment, known.get(region)))
    return enrolment


def write_enrolment(enrolment: Enrolment, path: Path) -> None:
    """Write an enrolment file, readable by its owner alone.

    Args:
        enrolment: from `invite`.
        path: where; must not exist.

    Raises:
        ConfigError: there is a file already, or none can be written there.
    """
    if path.exists():
        raise ConfigError(f"{path}: there already, and nothing is overwritten; name a new file")
    try:
        replace_file(path, enrolment.to_bytes(), private=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); name another") from None


def admit(
    headquarters: Headquarters, region: str, key_file: Path, *, now: datetime | None = None
) -> RegionRecord:
    """Admit a region with the public key it handed back; its invitation is used up.

    Args:
        headquarters: the open folder.
        region: its name.
        key_file: the region's `enrolment/node.pub`.
        now: when; the clock's time by default.

    Returns:
        Its record; `public_key` is what was checked, so register that and not the file.

    Raises:
        FederationError: no invitation that still holds, not such a file, a proof that does not
            hold, or a key that was used before.
    """
    offered = _read_key(key_file)
    time = now or datetime.now(UTC)
    with locked(headquarters.folder):
        known = regions(headquarters)
        record = _awaited(known, region, time)
        _require_proof(region, record, offered)
        _require_unused(known, region, offered.public_key)
        admitted = record.model_copy(
            update={
                "state": "admitted",
                "token_sha256": None,
                "public_key": offered.public_key,
                "admitted": time,
            }
        )
        _write(headquarters, known, region, admitted)
    return admitted


def set_node_id(headquarters: Headquarters, region: str, node_id: int) -> RegionRecord:
    """Note the number under which Flower registered an admitted region.

    Args:
        headquarters: the open folder.
        region: its name.
        node_id: Flower's number.

    Returns:
        Its record.

    Raises:
        FederationError: the region is not admitted (any more).
    """
    with locked(headquarters.folder):
        known = regions(headquarters)
        record = _known(known, region)
        if record.state != "admitted":
            raise FederationError(
                f'region "{region}": {record.state}, not admitted; admit it first'
            )
        registered = record.model_copy(update={"node_id": node_id})
        _write(headquarters, known, region, registered)
    return registered


def revoke(headquarters: Headquarters, region: str, *, now: datetime | None = None) -> RegionRecord:
    """Revoke a region, or withdraw its invitation; its key is never admitted again.

    Args:
        headquarters: the open folder.
        region: its name.
        now: when; the clock's time by default.

    Returns:
        Its record, with the node id to unregister. Revoking twice changes nothing, so that what
        follows can be repeated.

    Raises:
        FederationError: no such region.
    """
    with locked(headquarters.folder):
        known = regions(headquarters)
        record = _known(known, region)
        if record.state == "revoked":
            return record
        time = now or datetime.now(UTC)
        revoked = record.model_copy(
            update={"state": "revoked", "token_sha256": None, "revoked": time}
        )
        _write(headquarters, known, region, revoked)
    return revoked


def _authority_pem(headquarters: Headquarters) -> str:
    certificate_expiry(headquarters.ca_certificate)  # refuses what is not a certificate
    return headquarters.ca_certificate.read_text(encoding="ascii")


def _invited(enrolment: Enrolment, former: RegionRecord | None) -> RegionRecord:
    if former is not None and former.state == "admitted":
        raise FederationError(
            f'region "{enrolment.region}": admitted already; revoke it before you invite it again'
        )
    keys = former.revoked_keys if former else ()
    if former is not None and former.public_key is not None:
        keys = (*keys, former.public_key)
    return RegionRecord(
        state="invited",
        invited=enrolment.created,
        expires=enrolment.expires,
        token_sha256=token_digest(enrolment.token),
        revoked_keys=keys,
    )


def _known(known: Mapping[str, RegionRecord], region: str) -> RegionRecord:
    if region not in known:
        raise FederationError(f'region "{region}": never invited; invite it first')
    return known[region]


def _awaited(known: Mapping[str, RegionRecord], region: str, now: datetime) -> RegionRecord:
    """The record of a region whose invitation still holds."""
    record = _known(known, region)
    if record.state == "admitted":
        raise FederationError(
            f'region "{region}": admitted already, with key {record.key_fingerprint}; revoke it and'
            " invite it again for another key"
        )
    if record.state == "revoked":
        raise FederationError(f'region "{region}": revoked; invite it again first')
    if now > record.expires:
        raise FederationError(
            f'region "{region}": its invitation expired on {record.expires:%Y-%m-%d}; invite it'
            " again"
        )
    return record


def _read_key(path: Path) -> KeyProof:
    try:
        with path.open("rb") as handle:
            return KeyProof.from_line(handle.read(MAX_KEY_BYTES + 1))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise FederationError(
            f'{path}: {reason}; expected the node.pub that "fedshelf region enroll" wrote'
        ) from None


def _require_proof(region: str, record: RegionRecord, offered: KeyProof) -> None:
    if offered.region != region:
        raise FederationError(
            f'region "{region}": the key file is of region "{offered.region}"; name that region or'
            " another file"
        )
    assert record.token_sha256 is not None, "an invited region has a token"
    expected = prove(record.token_sha256, region=region, public_key=offered.public_key)
    if not hmac.compare_digest(expected, offered.proof):
        raise FederationError(
            f'region "{region}": the key file was not made with its latest invitation; let the'
            " region enrol with that, or invite it again"
        )


def _require_unused(known: Mapping[str, RegionRecord], region: str, public_key: str) -> None:
    for name, record in known.items():
        if public_key in (record.public_key, *record.revoked_keys):
            raise FederationError(
                f'region "{region}": key {key_fingerprint(public_key)} was admitted before, as'
                f' region "{name}"; let the region move its enrolment/node.key away and enrol again'
            )


def _write(
    headquarters: Headquarters, known: Mapping[str, RegionRecord], region: str, new: RegionRecord
) -> None:
    listed = RegionList(regions={**known, region: new})
    replace_file(headquarters.regions, listed.to_bytes(), private=True)
