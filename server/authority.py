"""The federation's own certificate authority, and headquarters' certificate from it.

Regions believe this one authority and no other, so that nobody who can obtain a certificate
elsewhere can pose as headquarters. `tls/ca.key` is needed only to issue; between renewals it may
lie elsewhere. The server's certificate lasts 397 days, the longest that common clients accept.
"""

import ipaddress
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.durable import locked, replace_file
from shared.errors import ConfigError

AUTHORITY_VALIDITY = timedelta(days=3652)
SERVER_VALIDITY = timedelta(days=397)
_BACKDATED = timedelta(days=1)  # a region's clock may be slow, and must get to hear of it
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")


def make_authority(
    folder: Path, *, now: datetime | None = None, valid_for: timedelta = AUTHORITY_VALIDITY
) -> None:
    """Make a certificate authority that can issue server certificates and nothing below.

    Args:
        folder: gets `ca.key`, readable by its owner alone, and `ca.crt`; made if missing.
        now: when it begins; the clock's time by default.
        valid_for: how long it lasts.

    Raises:
        ConfigError: there is one; regions that believe it would be lost.
    """
    with locked(folder):
        for path in (folder / "ca.key", folder / "ca.crt"):
            if path.exists():
                raise ConfigError(f"{path}: there already; an authority is never overwritten")
        key, name = ec.generate_private_key(ec.SECP256R1()), _name("fedshelf certificate authority")
        start = now or datetime.now(UTC)
        unsigned = (
            _unsigned(name, name, key.public_key(), start, start + valid_for)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
        )
        replace_file(folder / "ca.key", _pem(key), private=True)
        replace_file(folder / "ca.crt", _sign(unsigned, key))


def issue_server_certificate(
    folder: Path,
    hosts: Sequence[str],
    *,
    now: datetime | None = None,
    valid_for: timedelta = SERVER_VALIDITY,
) -> None:
    """Issue headquarters' certificate, or renew it with a new key.

    Args:
        folder: has `ca.key` and `ca.crt`; gets `server.key` and `server.crt`.
        hosts: DNS names and IP addresses under which regions know headquarters; the machine's own
            loopback names are added.
        now: when it begins; the clock's time by default.
        valid_for: how long it lasts, cut short where the authority ends.

    Raises:
        ConfigError: not a host, or no authority that could still issue.

    If the second file cannot be written, the first is put back. Two files cannot be replaced in one
    step, so a kill between the two leaves a pair that does not fit; issue again then.
    """
    start = now or datetime.now(UTC)
    names = [_subject_name(host) for host in dict.fromkeys([*hosts, *_LOOPBACK])]
    with locked(folder):
        authority_key, authority = _load_authority(folder, start)
        key = ec.generate_private_key(ec.SECP256R1())
        end = min(start + valid_for, authority.not_valid_after_utc)
        public = key.public_key()
        unsigned = (
            _unsigned(_name("fedshelf headquarters"), authority.subject, public, start, end)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        )
        certificate = _sign(unsigned, authority_key)
        _replace_pair(folder, _pem(key), certificate)


def certificate_expiry(path: Path) -> datetime:
    """When a certificate ends, in UTC.

    Args:
        path: the certificate, in PEM.

    Raises:
        ConfigError: no such file, or not a certificate.
    """
    return _load_certificate(path).not_valid_after_utc


def _replace_pair(folder: Path, key: bytes, certificate: bytes) -> None:
    path = folder / "server.key"
    former = path.read_bytes() if path.exists() else None
    replace_file(path, key, private=True)
    try:
        replace_file(folder / "server.crt", certificate)
    except BaseException:
        if former is None:
            path.unlink()
        else:
            replace_file(path, former, private=True)
        raise


def _load_authority(
    folder: Path, now: datetime
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    path, certificate = folder / "ca.key", _load_certificate(folder / "ca.crt")
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found; bring the authority's key back to issue") from None
    except (ValueError, TypeError):  # TypeError: it is encrypted
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or (
        key.public_key() != certificate.public_key()
    ):
        raise ConfigError(f"{path}: not the unencrypted key of ca.crt; bring back the right one")
    end = certificate.not_valid_after_utc
    if end <= now:
        raise ConfigError(
            f"{folder / 'ca.crt'}: the authority ended on {end:%Y-%m-%d};"
            " make a new headquarters folder and enrol every region again"
        )
    return key, certificate


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no certificate there; issue one, or restore it") from None
    except ValueError:
        raise ConfigError(f"{path}: not a certificate in PEM; issue it again") from None


def _subject_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _DNS_NAME.fullmatch(host):
            raise ConfigError(f"host {host!r}: neither a DNS name nor an IP address") from None
        return x509.DNSName(host)


def _unsigned(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    start: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(start, end) - _BACKDATED)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _sign(unsigned: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> bytes:
    # Strict verifiers (Python 3.13's default) ask every certificate which key signed it.
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    signed = unsigned.add_extension(identifier, critical=False).sign(key, SHA256())
    return signed.public_bytes(Encoding.PEM)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
