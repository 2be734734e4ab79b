"""TLS of the callback port: which versions and suites are offered, and which files are taken for it.

The platform asks for TLS 1.2 with one of four suites (docs/protocol.md section 1); exactly these are offered, with an
RSA and an ECDSA certificate side by side where both are given, and TLS 1.3 with the suites of OpenSSL.

Sessions are not resumed by tickets: their key would live as long as the context, outside of forward secrecy, and differ
from worker to worker. A whole handshake costs 0.4 ms of CPU with an ECDSA key and 0.8 ms with RSA.
"""

import os
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ingest.receiver.looks import NotNowError, raise_if_not_now, read_at_most

SUITES: Final = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
)
"""Those of TLS 1.2 as OpenSSL names them, best first: ECDSA costs us half of what RSA does."""

SECURITY_LEVEL: Final = 2
"""Of OpenSSL: keys and groups of at least 112 bits, so RSA from 2,048 bits on. It does not depend on the machine's
configuration when it is named."""

GROUPS: Final = ("X25519", "prime256v1", "secp384r1")
"""Of the key exchange. By default OpenSSL would take finite fields, too, with TLS 1.3: a sender that asks for ffdhe8192
costs us 140 ms of CPU with one packet."""

GROUP: Final = "prime256v1"
"""The one that everybody has, where only one can be chosen: before Python 3.15."""

PROTOCOLS: Final = ("http/1.1",)
"""What is offered to those who ask by ALPN."""

FILE_BYTES_MAX: Final = 1 << 20


class UnusableError(Exception):
    """The files cannot be used. The text is one sentence that names them and quotes nothing of them."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One certificate chain and its key, as their files hold them (PEM, the certificate of the server first)."""

    cert_file: Path
    key_file: Path
    cert: bytes = field(repr=False)
    key: bytes = field(repr=False)


Pairs = tuple[Pair, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Where certificates and keys are, and up to which version is spoken.

    Attributes:
        certs: certificate chains, PEM.
        keys: the private key of each, PEM without passphrase.
        max_version: of TLS.
    """

    certs: tuple[Path, ...]
    keys: tuple[Path, ...]
    max_version: Literal["1.3", "1.2"]

    def read(self) -> Pairs:
        """What the files hold now. Links are followed anew each time; times of change play no part.

        Raises:
            UnusableError: one cannot be read.
            NotNowError: the machine cannot open one now.
        """
        return tuple(
            Pair(cert, key, _content(cert), _content(key)) for cert, key in zip(self.certs, self.keys, strict=True)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """One certificate that is served.

    Attributes:
        file: it was read from.
        kind: of its key, `RSA` or `ECDSA`.
        expires_at: epoch seconds at which it, or the first of its chain, is no longer valid.
    """

    file: Path
    kind: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class Served:
    """What new connections get, and from what it was made."""

    context: ssl.SSLContext
    certificates: tuple[Certificate, ...]
    pairs: Pairs


def load(pairs: Pairs, max_version: str) -> Served:
    """A fresh context with these certificates.

    Raises:
        UnusableError: something cannot be used, a key belongs to another certificate, or two certificates have keys of
            one kind.
        NotNowError: the machine has no descriptor or no memory for it now.
    """
    context = _context(max_version)
    certificates = [_usable(context, pair) for pair in pairs]
    _refuse_equal_kinds(certificates)
    return Served(context, tuple(certificates), pairs)


def failure_reason(error: BaseException) -> str:
    """Why a handshake came to nothing, as one of few words for a metric.

    Returns:
        `plain-http`, `version`, `cipher`, `certificate` (the sender refuses ours), `timeout`, `gone` (the sender went
        away) or `protocol` (anything else that is not TLS as we speak it).
    """
    if not isinstance(error, ssl.SSLError):
        return "timeout" if isinstance(error, ConnectionAbortedError | TimeoutError) else "gone"
    reason = error.reason or ""
    return _REASONS.get(reason) or ("certificate" if reason in _CERTIFICATE_ALERTS else "protocol")


_REASONS: Final = {
    "HTTP_REQUEST": "plain-http",
    "HTTPS_PROXY_REQUEST": "plain-http",
    "UNSUPPORTED_PROTOCOL": "version",
    "VERSION_TOO_LOW": "version",
    "TLSV1_ALERT_PROTOCOL_VERSION": "version",
    "NO_SHARED_CIPHER": "cipher",
    "NO_SHARED_GROUP": "cipher",
    "NO_SUITABLE_KEY_SHARE": "cipher",
    "NO_SUITABLE_SIGNATURE_ALGORITHM": "cipher",
    "NO_SHARED_SIGNATURE_ALGORITHMS": "cipher",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "cipher",
    "UNEXPECTED_EOF_WHILE_READING": "gone",
}
_CERTIFICATE_ALERTS: Final = frozenset(
    {
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_REVOKED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "TLSV1_ALERT_UNKNOWN_CA",
    }
)


def _context(max_version: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_3 if max_version == "1.3" else ssl.TLSVersion.TLSv1_2
    context.set_ciphers(f"@SECLEVEL={SECURITY_LEVEL}:{':'.join(SUITES)}")
    if hasattr(context, "set_groups"):
        context.set_groups(":".join(GROUPS))
    else:
        context.set_ecdh_curve(GROUP)
    context.options |= (
        ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET | ssl.OP_CIPHER_SERVER_PREFERENCE
    )
    context.num_tickets = 0
    context.set_alpn_protocols(list(PROTOCOLS))
    return context


def _usable(context: ssl.SSLContext, pair: Pair) -> Certificate:
    """Let the context serve a certificate, or blame what is to blame."""
    try:
        return _add(context, pair)
    except (UnusableError, NotNowError):
        raise
    except MemoryError:
        raise NotNowError("no memory") from None
    except Exception as error:  # noqa: BLE001 - what two libraries raise over a file is no closed set: curves, versions, dates
        if isinstance(error, OSError):
            raise_if_not_now(error)
        # The error itself may quote the file.
        what = type(error).__name__
        raise UnusableError(f"{pair.cert_file} with the key in {pair.key_file} cannot be used here: {what}") from None


def _add(context: ssl.SSLContext, pair: Pair) -> Certificate:
    """Let the context serve a certificate, beside one with a key of another kind."""
    try:
        chain = x509.load_pem_x509_certificates(pair.cert)
    except ValueError:
        raise UnusableError(f"{pair.cert_file} holds no certificate (PEM)") from None
    try:
        with _as_file(pair.cert) as cert, _as_file(pair.key) as key:
            context.load_cert_chain(cert, key, password=_refuse_passphrase)
    except _EncryptedError:
        raise UnusableError(f"the key in {pair.key_file} is encrypted: it must be given without passphrase") from None
    except ssl.SSLError as error:
        raise UnusableError(_why(error, pair)) from None
    return Certificate(
        file=pair.cert_file,
        kind=_kind(chain[0], pair.cert_file),
        expires_at=min(each.not_valid_after_utc for each in chain).timestamp(),
    )


def _why(error: ssl.SSLError, pair: Pair) -> str:
    match error.reason:
        case "KEY_VALUES_MISMATCH" | "KEY_TYPE_MISMATCH":
            return f"the key in {pair.key_file} does not belong to the certificate in {pair.cert_file}"
        case "EE_KEY_TOO_SMALL" | "CA_KEY_TOO_SMALL" | "CA_MD_TOO_WEAK":
            return f"the certificates in {pair.cert_file} are too weak: RSA from 2,048 bits on and SHA-256 are needed"
        case _:
            return f"{pair.key_file} holds no private key (PEM) for the certificate in {pair.cert_file}"


def _kind(certificate: x509.Certificate, path: Path) -> str:
    match certificate.public_key():
        case rsa.RSAPublicKey():
            return "RSA"
        case ec.EllipticCurvePublicKey():
            return "ECDSA"
        case _:
            raise UnusableError(f"the certificate in {path} has neither an RSA nor an ECDSA key")


def _refuse_equal_kinds(certificates: Sequence[Certificate]) -> None:
    """A context holds one certificate of each kind: the second would silently replace the first."""
    by_kind: dict[str, Path] = {}
    for each in certificates:
        if (other := by_kind.setdefault(each.kind, each.file)) is not each.file:
            raise UnusableError(f"{other} and {each.file} are both {each.kind}: one of each kind can be served")


class _EncryptedError(Exception):
    """OpenSSL asked for a passphrase."""


def _refuse_passphrase() -> NoReturn:
    raise _EncryptedError


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """A path for what OpenSSL takes from files only; it is in memory, so no key gets onto a disk."""
    with os.fdopen(os.memfd_create("dlrflow-pem"), "wb") as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"


def _content(path: Path) -> bytes:
    try:
        content = read_at_most(path, FILE_BYTES_MAX)
    except OSError as error:
        raise UnusableError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > FILE_BYTES_MAX:
        raise UnusableError(f"{path} is larger than {FILE_BYTES_MAX} bytes")
    return content
