"""Who may ask: where the service listens, under which names, and with what token.

Searches show a catalog and upserts change it, so an address that others can reach needs a
certificate and a token. On loopback neither is needed; but a page of a stranger, open in a browser
on this machine, can point a name of its own at loopback (DNS rebinding). Therefore a service
without a token answers only under names of loopback.
"""

import hmac
import ipaddress
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from shared.errors import ConfigError
from shared.schema import ServeConfig

MIN_TOKEN_CHARS: Final = 16
TOKEN_NEEDED: Final = 'send the header or metadata "authorization: Bearer TOKEN" with the token'
_LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_TOKEN: Final = re.compile(rf"[!-~]{{{MIN_TOKEN_CHARS},1000}}")
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")


@dataclass(frozen=True)
class Token:
    """What a caller must know."""

    _secret: bytes = field(repr=False)

    def is_in(self, authorization: str | bytes | None) -> bool:
        """Whether an `authorization` header or metadata holds it; takes as long either way.

        Args:
            authorization: as it was sent, such as "Bearer TOKEN".
        """
        given = authorization or b""
        given = given.encode("utf-8", "surrogatepass") if isinstance(given, str) else given
        scheme, _, secret = given.partition(b" ")
        return hmac.compare_digest(secret.strip(), self._secret) and scheme.lower() == b"bearer"


@dataclass(frozen=True)
class Certificate:
    """What a TLS server shows: two PEM files.

    Attributes:
        chain: the certificate and those between it and its root.
        key: its private key, not encrypted.
    """

    chain: Path
    key: Path


@dataclass(frozen=True)
class Access:
    """How the service may be reached.

    Attributes:
        token: None lets everybody in who reaches it.
        certificate: None serves in plain.
    """

    token: Token | None = None
    certificate: Certificate | None = None


def read_access(config: ServeConfig, folder: Path) -> Access:
    """Read token and certificate, and check that they are enough for where it listens.

    Args:
        config: `[serve]` of region.toml.
        folder: of region.toml; files are named relative to it.

    Returns:
        What callers must bring, and what they are shown.

    Raises:
        ConfigError: a file is missing or wrong, or an address others can reach is not protected.
    """
    if (config.certificate is None) != (config.key is None):
        raise ConfigError("serve: certificate and key belong together; name both or neither")
    needed = {"certificate": config.certificate, "key": config.key, "token_file": config.token_file}
    missing = [name for name, value in needed.items() if value is None]
    for wire, address in (("http", config.http), ("grpc", config.grpc)):
        host = address.rpartition(":")[0]
        if address and missing and not is_loopback(host):
            raise ConfigError(
                f"serve.{wire}: others can reach {host}, but there is no {', no '.join(missing)};"
                " set what is missing, or listen on 127.0.0.1"
            )
    return Access(
        token=None if config.token_file is None else _read_token(folder / config.token_file),
        certificate=None
        if config.certificate is None or config.key is None
        else _checked(Certificate(folder / config.certificate, folder / config.key)),
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host; a name counts only if it is "localhost"."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_own_name(host_header: str) -> bool:
    """Whether a Host header names loopback, with any port or none.

    Args:
        host_header: as it was sent.
    """
    match = _HOST.fullmatch(host_header)
    return match is not None and match[1].lower() in _LOOPBACK_NAMES


def _read_token(path: Path) -> Token:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); write the token into it"
        ) from None
    except UnicodeDecodeError:
        text = ""
    if not _TOKEN.fullmatch(text):
        raise ConfigError(
            f"{path}: not one token of {MIN_TOKEN_CHARS} or more plain characters; make one with"
            ' "openssl rand -hex 32"'
        )
    return Token(text.encode("ascii"))


def _checked(certificate: Certificate) -> Certificate:
    def no_password() -> str:
        raise ConfigError(f"{certificate.key}: is encrypted; name a key that is not")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate.chain, certificate.key, password=no_password)
    except OSError as error:  # an SSLError is one
        reason = error.strerror or type(error).__name__
        raise ConfigError(
            f"{certificate.chain}, {certificate.key}: no certificate with its key in PEM ({reason})"
        ) from None
    return certificate
