"""How a region joins: what headquarters hands out, and what the region hands back.

    REGION.enrolment.json   from headquarters: CA, address, keys to trust, a one-time token
    enrolment/node.pub      from the region: its public key, with a proof in the comment

The first file travels to the region over a channel that both trust, because whoever holds it may
answer in the region's name until it is used or expires. The second holds nothing secret. Its proof
is an HMAC over region and public key; its key is the sha256 of the token, because headquarters
keeps that and not the token. So what headquarters keeps can prove as much as the token can, until
the region is admitted: `regions.json` is readable by its owner alone.
"""

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)
from pydantic import AfterValidator, AwareDatetime, Field

from shared.durable import Record
from shared.schema import REGION_NAME, Address

MAX_ENROLMENT_BYTES = 64 * 1024
MAX_KEY_BYTES = 4 * 1024
KEY_TYPE = "ecdsa-sha2-nistp384"  # Flower refuses ed25519
_KEY_LINE = re.compile(rf"({KEY_TYPE} [A-Za-z0-9+/=]+) ([a-z0-9_-]+):([0-9a-f]{{64}})\n?")
_PURPOSE = b"fedshelf enrolment 1"  # an HMAC made for anything else proves nothing here


def _one_certificate(pem: str) -> str:
    try:
        found = len(x509.load_pem_x509_certificates(pem.encode()))
    except ValueError:
        found = 0
    if found != 1:
        raise ValueError(f"holds {found} certificates in PEM, expected 1")
    return pem


Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # 32 bytes
Certificate = Annotated[str, AfterValidator(_one_certificate)]


class Enrolment(Record):
    """An enrolment file; secret until it is used, because of its token.

    Attributes:
        region: the name under which the region is invited.
        address: "host:port" of headquarters.
        ca_pem: the one certificate authority to believe there.
        release_key: ed25519 public key of the release signer, hex.
        base_fingerprint: of the base every region works with.
        token: 32 random bytes, hex; good for one admission.
        created: when headquarters invited.
        expires: not admitted after this.
    """

    format: Literal[1] = 1
    region: str = Field(pattern=REGION_NAME)
    address: Address
    ca_pem: Certificate
    release_key: Hex32
    base_fingerprint: Hex32
    token: Hex32 = Field(repr=False)
    created: AwareDatetime
    expires: AwareDatetime


@dataclass(frozen=True)
class KeyProof:
    """The line in a region's public key file: an OpenSSH public key, its comment a proof.

    Attributes:
        region: whose key it is.
        public_key: type and key as OpenSSH writes them, without a comment.
        proof: `prove` of both, hex.
    """

    region: str
    public_key: str
    proof: str

    def to_line(self) -> str:
        """The file's text; OpenSSH and Flower read it too."""
        return f"{self.public_key} {self.region}:{self.proof}\n"

    @classmethod
    def from_line(cls, raw: bytes) -> Self:
        """Read what `to_line` wrote.

        Raises:
            ValueError: another form, another kind of key, or no key at all.
        """
        match = _KEY_LINE.fullmatch(raw[: MAX_KEY_BYTES + 1].decode("ascii", errors="replace"))
        if match is None or len(raw) > MAX_KEY_BYTES:
            raise ValueError(f"not one line of the form {KEY_TYPE} KEY REGION:PROOF")
        try:
            key = load_ssh_public_key(match[1].encode())
        except (ValueError, UnsupportedAlgorithm):
            raise ValueError(f"not a public key of type {KEY_TYPE}") from None
        # One key has one spelling, or it could be handed in twice under two names.
        if not isinstance(key, ec.EllipticCurvePublicKey) or openssh_line(key) != match[1]:
            raise ValueError(f"not a public key of type {KEY_TYPE} as OpenSSH writes it")
        return cls(region=match[2], public_key=match[1], proof=match[3])


def openssh_line(key: ec.EllipticCurvePublicKey) -> str:
    """Type and key as OpenSSH writes them, without a comment."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def key_fingerprint(public_key: str) -> str:
    """What `ssh-keygen -l` prints of a key, for two people to compare over the phone.

    Args:
        public_key: type and key as OpenSSH writes them.

    Returns:
        "SHA256:" and 43 characters.
    """
    digest = hashlib.sha256(base64.b64decode(public_key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def token_digest(token: str) -> str:
    """What headquarters keeps of a token: the sha256 of its bytes, hex."""
    return hashlib.sha256(bytes.fromhex(token)).hexdigest()


def prove(digest: str, *, region: str, public_key: str) -> str:
    """Prove that whoever names this public key was invited as this region.

    Args:
        digest: of the invitation's token, from `token_digest`.
        region: the region's name.
        public_key: type and key as OpenSSH writes them.

    Returns:
        HMAC-SHA256, hex.
    """
    message = b"\0".join([_PURPOSE, region.encode(), public_key.encode()])
    return hmac.new(bytes.fromhex(digest), message, hashlib.sha256).hexdigest()
