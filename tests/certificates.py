"""Certificates of an authority that only the tests trust."""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import trustme

Kind = Literal["RSA", "ECDSA"]

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class PairOfFiles:
    """A certificate chain and its key."""

    cert: Path
    key: Path

    def write(self, cert: bytes, key: bytes) -> None:
        """Put something else in their place, as a careful operator does: whole files, renamed."""
        for path, content in ((self.cert, cert), (self.key, key)):
            new = path.with_suffix(".new")
            new.write_bytes(content)
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
