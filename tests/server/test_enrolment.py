"""Only the holder of the latest invitation is admitted, once, with a key nobody used before."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)

from server.enrolment import admit, invite, regions, revoke, set_node_id, write_enrolment
from server.headquarters import Headquarters, init_headquarters
from shared.enrolment import (
    Enrolment,
    KeyProof,
    key_fingerprint,
    openssh_line,
    prove,
    token_digest,
)
from shared.errors import ConfigError, FederationError

NOW = datetime(2030, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(days=1)


@pytest.fixture
def hq(tmp_path: Path, tiny_base: Path) -> Headquarters:
    return init_headquarters(
        tmp_path / "hq", name="shelf", address="hq.example:8443", base=tiny_base
    )


def new_key() -> str:
    return openssh_line(ec.generate_private_key(ec.SECP384R1()).public_key())


def answer(folder: Path, enrolment: Enrolment, key: str | None = None, **changes: str) -> Path:
    """The key file with which the region answers an invitation."""
    known = {"region": enrolment.region, "public_key": key or new_key()}
    proof = prove(token_digest(enrolment.token), **known)
    path = folder / f"{enrolment.region}.pub"
    path.write_text(KeyProof(**{**known, "proof": proof, **changes}).to_line())
    return path


def one_line(caught: pytest.ExceptionInfo[FederationError]) -> None:
    assert "\n" not in str(caught.value)


def test_an_invitation_says_what_a_region_needs(hq: Headquarters) -> None:
    enrolment = invite(hq, "fr", now=NOW)
    assert (enrolment.region, enrolment.address) == ("fr", "hq.example:8443")
    assert enrolment.ca_pem == hq.ca_certificate.read_text()
    assert (enrolment.release_key, enrolment.base_fingerprint) == (hq.release_key, hq.fingerprint)
    assert enrolment.expires == NOW + timedelta(days=7)
    assert regions(hq)["fr"].state == "invited"
    assert Enrolment.from_bytes(enrolment.to_bytes()) == enrolment


def test_the_token_is_kept_nowhere_and_shown_nowhere(hq: Headquarters) -> None:
    token = invite(hq, "fr").token
    assert len(bytes.fromhex(token)) == 32
    assert token not in hq.regions.read_text()
    assert hq.regions.stat().st_mode & 0o777 == 0o600
    assert token not in repr(invite(hq, "fr"))
    record = regions(hq)["fr"]
    assert record.token_sha256 is not None
    assert record.token_sha256 not in repr(record)


def test_an_enrolment_file_is_private_and_overwrites_nothing(
    hq: Headquarters, tmp_path: Path
) -> None:
    enrolment, path = invite(hq, "fr"), tmp_path / "fr.json"
    write_enrolment(enrolment, path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Enrolment.from_bytes(path.read_bytes()) == enrolment
    with pytest.raises(ConfigError, match=r"fr\.json: there already"):
        write_enrolment(invite(hq, "fr"), path)
    assert Enrolment.from_bytes(path.read_bytes()) == enrolment
    with pytest.raises(ConfigError, match="cannot be written"):
        write_enrolment(enrolment, tmp_path / "nowhere" / "fr.json")


def test_a_region_is_invited_admitted_registered_and_revoked(
    hq: Headquarters, tmp_path: Path
) -> None:
    key = new_key()
    file = answer(tmp_path, invite(hq, "fr", now=NOW), key)
    admitted = admit(hq, "fr", file, now=LATER)
    assert (admitted.state, admitted.public_key, admitted.admitted) == ("admitted", key, LATER)
    assert admitted.key_fingerprint == key_fingerprint(key)
    assert (admitted.token_sha256, admitted.node_id) == (None, None)
    set_node_id(hq, "fr", 2**64 - 1)
    assert regions(hq) == {"fr": admitted.model_copy(update={"node_id": 2**64 - 1})}
    revoked = revoke(hq, "fr", now=LATER)
    assert (revoked.state, revoked.node_id, revoked.revoked) == ("revoked", 2**64 - 1, LATER)
    assert revoke(hq, "fr") == revoked == regions(hq)["fr"]
    with pytest.raises(FederationError, match="revoked, not admitted"):
        set_node_id(hq, "fr", 1)
    assert invite(hq, "fr", now=LATER)
    assert regions(hq)["fr"].revoked_keys == (key,)


def test_flower_reads_the_key_file(hq: Headquarters, tmp_path: Path) -> None:
    file = answer(tmp_path, invite(hq, "fr"))
    key = load_ssh_public_key(file.read_bytes())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp384r1"


def test_regions_do_not_disturb_each_other(hq: Headquarters, tmp_path: Path) -> None:
    files = {name: answer(tmp_path, invite(hq, name)) for name in ("it", "de", "fr")}
    admit(hq, "de", files["de"])
    revoke(hq, "it")
    found = {name: record.state for name, record in regions(hq).items()}
    assert list(found.items()) == [("de", "admitted"), ("fr", "invited"), ("it", "revoked")]


@pytest.mark.parametrize("name", ["", "FR", "../fr", "fr\n", "a" * 64, "-fr"])
def test_what_is_no_name_is_not_invited(hq: Headquarters, name: str) -> None:
    with pytest.raises(FederationError, match="a region's name is") as caught:
        invite(hq, name)
    one_line(caught)
    assert regions(hq) == {}


def test_an_admitted_region_is_not_invited_again(hq: Headquarters, tmp_path: Path) -> None:
    admit(hq, "fr", answer(tmp_path, invite(hq, "fr")))
    with pytest.raises(FederationError, match="admitted already; revoke it"):
        invite(hq, "fr")


def test_a_second_invitation_voids_the_first(hq: Headquarters, tmp_path: Path) -> None:
    first = answer(tmp_path, invite(hq, "fr")).read_bytes()
    second = answer(tmp_path, invite(hq, "fr")).read_bytes()
    (tmp_path / "key.pub").write_bytes(first)
    with pytest.raises(FederationError, match="not made with its latest invitation"):
        admit(hq, "fr", tmp_path / "key.pub")
    (tmp_path / "key.pub").write_bytes(second)
    assert admit(hq, "fr", tmp_path / "key.pub").state == "admitted"


def test_a_token_is_good_once(hq: Headquarters, tmp_path: Path) -> None:
    enrolment = invite(hq, "fr")
    admit(hq, "fr", answer(tmp_path, enrolment))
    with pytest.raises(FederationError, match="admitted already, with key SHA256:"):
        admit(hq, "fr", answer(tmp_path, enrolment))
    revoke(hq, "fr")
    with pytest.raises(FederationError, match="revoked; invite it again"):
        admit(hq, "fr", answer(tmp_path, enrolment))
    invite(hq, "fr")
    with pytest.raises(FederationError, match="not made with its latest"):
        admit(hq, "fr", answer(tmp_path, enrolment))


def test_a_withdrawn_and_an_expired_invitation_admit_nobody(
    hq: Headquarters, tmp_path: Path
) -> None:
    file = answer(tmp_path, invite(hq, "fr", now=NOW))
    with pytest.raises(FederationError, match="expired on 2030-01-08; invite it again"):
        admit(hq, "fr", file, now=NOW + timedelta(days=7, seconds=1))
    revoke(hq, "fr")
    with pytest.raises(FederationError, match="revoked; invite it again"):
        admit(hq, "fr", file, now=NOW)


def test_a_region_never_invited_is_unknown(hq: Headquarters, tmp_path: Path) -> None:
    file = answer(tmp_path, invite(hq, "fr"))
    with pytest.raises(FederationError, match='region "de": never invited'):
        admit(hq, "de", file)
    with pytest.raises(FederationError, match='region "de": never invited'):
        revoke(hq, "de")


def test_a_proof_holds_for_its_region_and_its_key_only(hq: Headquarters, tmp_path: Path) -> None:
    mine, other = invite(hq, "fr"), invite(hq, "de")
    with pytest.raises(FederationError, match='the key file is of region "de"'):
        admit(hq, "fr", answer(tmp_path, other))
    for forged in ({"region": "fr"}, {"region": "fr", "proof": "0" * 64}):
        with pytest.raises(FederationError, match="not made with its latest"):
            admit(hq, "fr", answer(tmp_path, other, **forged))
    with pytest.raises(FederationError, match="not made with its latest"):
        admit(hq, "fr", answer(tmp_path, mine, public_key=new_key()))
    assert {record.state for record in regions(hq).values()} == {"invited"}


def test_a_proof_depends_on_all_it_proves() -> None:
    keys = [new_key(), new_key()]
    asked = [(d * 64, region, key) for d in "12" for region in ("de", "fr") for key in keys]
    proofs = {prove(digest, region=region, public_key=key) for digest, region, key in asked}
    assert len(proofs) == len(asked)


def test_a_key_is_admitted_once_in_its_life(hq: Headquarters, tmp_path: Path) -> None:
    key = new_key()
    admit(hq, "fr", answer(tmp_path, invite(hq, "fr"), key))
    with pytest.raises(FederationError, match='was admitted before, as region "fr"'):
        admit(hq, "de", answer(tmp_path, invite(hq, "de"), key))
    revoke(hq, "fr")
    for region in ("fr", "de", "fr"):
        with pytest.raises(FederationError, match='before, as region "fr"; let the region move'):
            admit(hq, region, answer(tmp_path, invite(hq, region), key))


def ed25519_line() -> str:
    public = ed25519.Ed25519PrivateKey.generate().public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def p256_line() -> str:
    return openssh_line(ec.generate_private_key(ec.SECP256R1()).public_key())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-----BEGIN OPENSSH PRIVATE KEY-----\n",
        f"{new_key()}\n",
        f"{new_key()} fr@host\n",
        f"{ed25519_line()} fr:{'0' * 64}\n",
        f"{p256_line()} fr:{'0' * 64}\n",
        f"{p256_line().replace('nistp256', 'nistp384')} fr:{'0' * 64}\n",
        f"{new_key()}= fr:{'0' * 64}\n",
        f"ecdsa-sha2-nistp384 AAAA fr:{'0' * 64}\n",
        f"{new_key()} fr:{'0' * 64}\n{new_key()} fr:{'0' * 64}\n",
        f"{new_key()} fr:{'0' * 64}" + "\n" * 5000,
        f"ecdsa-sha2-nistp384 {'A' * 5000} fr:{'0' * 64}\n",
        f"{new_key()} größe:{'0' * 64}\n",
    ],
)
def test_what_is_no_key_file_is_refused(hq: Headquarters, tmp_path: Path, text: str) -> None:
    invite(hq, "fr")
    (tmp_path / "key.pub").write_text(text)
    with pytest.raises(
        FederationError, match=r"key\.pub: not .*; expected the node\.pub"
    ) as caught:
        admit(hq, "fr", tmp_path / "key.pub")
    one_line(caught)
    assert regions(hq)["fr"].state == "invited"


def test_a_missing_key_file_is_named(hq: Headquarters, tmp_path: Path) -> None:
    invite(hq, "fr")
    with pytest.raises(FederationError, match="nowhere: No such file"):
        admit(hq, "fr", tmp_path / "nowhere")


def test_a_damaged_list_is_named_and_not_replaced(hq: Headquarters) -> None:
    invite(hq, "fr")
    known = json.loads(hq.regions.read_bytes())
    known["regions"]["fr"]["state"] = "king"
    hq.regions.write_text(json.dumps(known))
    with pytest.raises(ConfigError, match=r"regions\.json: regions\.fr\.state: "):
        invite(hq, "de")
    assert json.loads(hq.regions.read_bytes()) == known
    hq.regions.unlink()
    with pytest.raises(ConfigError, match=r"regions\.json: missing"):
        revoke(hq, "fr")


def test_a_damaged_authority_is_named(hq: Headquarters) -> None:
    hq.ca_certificate.write_text("not a certificate")
    with pytest.raises(ConfigError, match=r"ca\.crt: not a certificate"):
        invite(hq, "fr")
    assert regions(hq) == {}
