"""Listeners with TLS and logins for a Kafka of one node on this machine, and who may do nothing without an ACL.

Everybody who logs in is a principal without rights until an ACL gives some. Whoever comes by the plain listener of
loopback is the administrator, as is one who comes by `SSL`, where nobody has to say who they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

HOST: Final = "127.0.0.1"
ELSEWHERE: Final = "elsewhere.example"
"""Whom the certificate of the listener `STRANGER` is for: nobody reaches it under that name."""

MECHANISMS: Final = ("SCRAM-SHA-256", "SCRAM-SHA-512", "PLAIN")
ADMINISTRATOR: Final = "User:ANONYMOUS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """One way in.

    Attributes:
        protocol: as clients name it.
        client_auth: whether a client must show a certificate.
        host: whom its certificate is for.
    """

    protocol: str
    client_auth: str = "none"
    host: str = HOST


LISTENERS: Final[Mapping[str, Listener]] = {
    "SSL": Listener(protocol="SSL"),
    "MTLS": Listener(protocol="SSL", client_auth="required"),
    "STRANGER": Listener(protocol="SASL_SSL", host=ELSEWHERE),
    "SASL_SSL": Listener(protocol="SASL_SSL"),
    "SASL_PLAINTEXT": Listener(protocol="SASL_PLAINTEXT"),
}


@dataclass(frozen=True, slots=True)
class Pair:
    """Files (PEM) with a certificate and its key."""

    cert_file: Path
    key_file: Path


class Security:
    """Certificates and logins of one Kafka. It is given to `LocalKafka`, which asks it for its configuration."""

    def __init__(self, folder: Path, passwords: Mapping[str, str]) -> None:
        """Make an authority and what it certifies.

        Args:
            folder: for certificates and keys.
            passwords: by user; without quotes, commas, backslashes and brackets.
        """
        self._folder = folder
        self._passwords = dict(passwords)
        self._authority = trustme.CA()
        self._stranger = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self.strange_ca_file = folder / "strange-ca.pem"
        self._authority.cert_pem.write_to_path(self.ca_file)
        self._stranger.cert_pem.write_to_path(self.strange_ca_file)
        for host in (HOST, ELSEWHERE):
            pair = self.server(host)
            self._keystore(host).write_bytes(pair.key_file.read_bytes() + pair.cert_file.read_bytes())

    @property
    def protocols(self) -> Mapping[str, str]:
        """Name and protocol of every listener."""
        return {name: listener.protocol for name, listener in LISTENERS.items()}

    def server(self, host: str) -> Pair:
        """The certificate of a server of that name or address."""
        return self._issued(self._authority, host, host)

    def client(self, user: str) -> Pair:
        """A certificate that makes its owner the principal `User:<user>` on the listener `MTLS`."""
        return self._issued(self._authority, f"{user}@client.example", user)

    def strange_client(self, user: str) -> Pair:
        """The same by an authority that no broker trusts."""
        return self._issued(self._stranger, f"{user}@client.example", f"strange-{user}")

    def format_arguments(self) -> Sequence[str]:
        """What `kafka-storage format` is told of the logins."""
        return [
            argument
            for user, password in self._passwords.items()
            for mechanism in MECHANISMS[:2]
            for argument in ("--add-scram", f"{mechanism}=[name={user},password={password}]")
        ]

    def properties(self) -> Iterator[tuple[str, object]]:
        """Yield the configuration of a broker beside its addresses."""
        plain = " ".join(f'user_{user}="{password}"' for user, password in self._passwords.items())
        login = "org.apache.kafka.common.security"
        yield "authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
        yield "allow.everyone.if.no.acl.found", "false"
        yield "super.users", ADMINISTRATOR
        yield "sasl.enabled.mechanisms", ",".join(MECHANISMS)
        yield "ssl.principal.mapping.rules", "RULE:^.*CN=([^,]*).*$/$1/,DEFAULT"
        for name, listener in LISTENERS.items():
            prefix = f"listener.name.{name.lower()}."
            if listener.protocol.endswith("SSL"):
                yield prefix + "ssl.keystore.type", "PEM"
                yield prefix + "ssl.keystore.location", self._keystore(listener.host)
                yield prefix + "ssl.truststore.type", "PEM"
                yield prefix + "ssl.truststore.location", self.ca_file
                yield prefix + "ssl.client.auth", listener.client_auth
            if listener.protocol.startswith("SASL"):
                for mechanism in MECHANISMS[:2]:
                    jaas = f"{login}.scram.ScramLoginModule required;"
                    yield f"{prefix}{mechanism.lower()}.sasl.jaas.config", jaas
                yield f"{prefix}plain.sasl.jaas.config", f"{login}.plain.PlainLoginModule required {plain};"

    def _keystore(self, host: str) -> Path:
        return self._folder / f"{host}.keystore.pem"

    def _issued(self, authority: trustme.CA, identity: str, name: str) -> Pair:
        """Kafka reads keys as PKCS #8 only."""
        issued = authority.issue_cert(identity, common_name=name)
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        key = load_pem_private_key(issued.private_key_pem.bytes(), None)
        pair.key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        pair.cert_file.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        return pair
