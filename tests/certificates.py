"""Certificates of an authority that only the tests trust."""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import trustme

Kind = Literal["RSA", "ECDSA"]

HOST = "127.0.0.1"

UNKNOWN_CURVE = (
    b"""\
-----BEGIN CERTIFICATE-----
MIIBbTCCARqgAwIBAgIUNfwgDARVbQHEwszp0ZHB0KgA/IEwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJMTI3LjAuMC4xMCAXDTI2MTEyMzIxMzgzMVoYDzIxMjYxMDMw
MjEzODMxWjAUMRIwEAYDVQQDDAkxMjcuMC4wLjEwTjAQBgcqhkjOPQIBBgUrgQQA
IAM6AASvm5XvBXn7pzFgSu/i93j8NgPeDKEnddy47iIBpotOHKPtaFTRAD4Ybl5b
8Ty2vAB+XAbngS1Xl6NTMFEwHQYDVR0OBBYEFLD4JjwwZTWGfpfe3u/usZ8M8y3f
MB8GA1UdIwQYMBaAFLD4JjwwZTWGfpfe3u/usZ8M8y3fMA8GA1UdEwEB/wQFMAMB
Af8wCgYIKoZIzj0EAwIDQQAwPgIdAO9jOZGHIpUI/YKPjjQ6ldTB86rzZ8yqznxL
VyICHQCgVlO0w6uiij+pUFqa6Filx8+B8ccEhj0rDuhg
-----END CERTIFICATE-----
""",
    b"""\
-----BEGIN PRIVATE KEY-----
MHkCAQAwEAYHKoZIzj0CAQYFK4EEACAEYjBgAgEBBB0AL5VWuegl87uwGVu5Sk7W
oSdhisxyscynLGlYRKE8AzoABK+ble8FefunMWBK7+L3ePw2A94MoSd13LjuIgGm
i04co+1oVNEAPhhuXlvxPLa8AH5cBueBLVeX
-----END PRIVATE KEY-----
""",
)
"""A certificate and its key on secp224k1, until 2126: OpenSSL knows this curve, `cryptography` does not."""


@dataclass(frozen=True, slots=True)
class PairOfFiles:
    """A certificate chain and its key."""

    cert: Path
    key: Path

    def write(self, cert: bytes, key: bytes) -> None:
        """Put something else in their place, as a careful operator does: whole files, renamed, the key 0600."""
        for path, content, mode in ((self.cert, cert, 0o644), (self.key, key, 0o600)):
            new = path.with_suffix(".new")
            new.write_bytes(content)
            new.chmod(mode)
            new.replace(path)


class Authority:
    """Issues certificates for `HOST`."""

    def __init__(self) -> None:
        self._ca = trustme.CA()
        self._issued: dict[tuple[Kind, timedelta], tuple[bytes, bytes]] = {}

    def issue(self, kind: Kind, *, lives: timedelta = timedelta(days=90)) -> tuple[bytes, bytes]:
        """A chain and its key, as PEM; another one each time."""
        now = datetime.now(UTC)
        leaf = self._ca.issue_cert(
            HOST, key_type=trustme.KeyType[kind], not_before=now - timedelta(days=100), not_after=now + lives
        )
        return b"".join(pem.bytes() for pem in leaf.cert_chain_pems), leaf.private_key_pem.bytes()

    def pair(self, folder: Path, kind: Kind, *, lives: timedelta = timedelta(days=90)) -> PairOfFiles:
        """A certificate in files of this folder: the same in each, because a key takes its time to make."""
        if (kind, lives) not in self._issued:
            self._issued[kind, lives] = self.issue(kind, lives=lives)
        files = PairOfFiles(folder / f"{kind}.crt", folder / f"{kind}.key")
        files.write(*self._issued[kind, lives])
        return files

    def ca_file(self, folder: Path) -> Path:
        """The certificate of the authority itself."""
        path = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(path)
        return path

    def server(self, kind: Kind) -> ssl.SSLContext:
        """What somebody else's server uses: the defaults of Python."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(HOST, key_type=trustme.KeyType[kind]).configure_cert(context)
        return context

    def client(self, *, version: str = "1.3", suites: str | None = None) -> ssl.SSLContext:
        """What a sender uses that trusts this authority; `version` is the highest that it speaks."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.maximum_version = ssl.TLSVersion.TLSv1_3 if version == "1.3" else ssl.TLSVersion.TLSv1_2
        if suites is not None:
            context.set_ciphers(suites)
        # An end without close_notify is to be seen.
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        self._ca.configure_trust(context)
        return context
