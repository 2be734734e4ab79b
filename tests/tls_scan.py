"""A scanner for TLS servers that speaks bytes: it offers what no library of today would.

It sends a ClientHello, reads what the server chose, and hangs up; no handshake is completed, so it needs no
cryptography and knows no limits of the machine's OpenSSL. RFC 5246 7.4.1, RFC 8446 4.1, RFC 8422, RFC 5746.
"""

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

SSL_3, TLS_1_0, TLS_1_1, TLS_1_2, TLS_1_3 = range(0x0300, 0x0305)

ALL_SUITES: Final = tuple(number for number in range(0x10000) if number not in {0x00FF, 0x5600})
"""Every number but the two that are signals (RFC 5746, RFC 7507)."""

ALL_GROUPS: Final = (*range(1, 42), *range(0x0100, 0x0105))
"""Curves and Diffie-Hellman groups."""

X25519: Final = 29
SESSION_TICKET: Final = 0x0023
KEY_SHARE: Final = 0x0033
RENEGOTIATION_INFO: Final = 0xFF01
HEARTBEAT: Final = 0x000F

SIGNATURES: Final = (
    *(0x0401, 0x0501, 0x0601, 0x0201, 0x0403, 0x0503, 0x0603, 0x0203, 0x0804, 0x0805, 0x0806),
    *(0x0807, 0x0808, 0x0809, 0x080A, 0x080B),
)

_HANDSHAKE, _SERVER_HELLO, _SERVER_KEY_EXCHANGE, _SERVER_HELLO_DONE = 22, 2, 12, 14
_NAMED_CURVE = 3
_SUITES_AT_ONCE = 4000
_PATIENCE_S = 10.0

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Choice:
    """What a server answered to a ClientHello.

    Attributes:
        version: of the protocol.
        suite: number of the cipher suite.
        compression: 0 is none.
        extensions: their numbers.
        group: of the key exchange, where it was read.
    """

    version: int
    suite: int
    compression: int
    extensions: frozenset[int] = frozenset()
    group: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a ClientHello offers; `version` is the highest, and from TLS 1.3 on the only one.

    Attributes:
        shares: for which groups it brings its half of the key exchange; for another one a server asks (TLS 1.3).
    """

    version: int
    suites: Sequence[int]
    groups: Sequence[int] = (X25519, 23, 24, 25)
    shares: Sequence[int] = (X25519,)
    signatures: Sequence[int] = SIGNATURES
    compressions: bytes = b"\0"
    extra: dict[int, bytes] = field(default_factory=dict)

    def message(self) -> bytes:
        """The ClientHello in its record."""
        hello = b"".join(
            [
                struct.pack(">H", min(self.version, TLS_1_2)),
                os.urandom(32),
                b"\0",
                _with_length(">H", b"".join(struct.pack(">H", suite) for suite in self.suites)),
                _with_length(">B", self.compressions),
                b"" if self.version == SSL_3 else self._extensions(),
            ]
        )
        message = b"\x01" + struct.pack(">I", len(hello))[1:] + hello
        return struct.pack(">BH", _HANDSHAKE, min(self.version, TLS_1_0)) + _with_length(">H", message)

    def _extensions(self) -> bytes:
        groups = b"".join(struct.pack(">H", group) for group in self.groups)
        signatures = b"".join(struct.pack(">H", signature) for signature in self.signatures)
        extensions = {
            0x000A: _with_length(">H", groups),
            0x000B: b"\x01\x00",
            0x000D: _with_length(">H", signatures),
            RENEGOTIATION_INFO: b"\0",
            **self.extra,
        }
        if self.version >= TLS_1_3:
            extensions[0x002B] = _with_length(">B", struct.pack(">H", self.version))
            extensions[KEY_SHARE] = _with_length(
                ">H", b"".join(struct.pack(">H", group) + _with_length(">H", os.urandom(32)) for group in self.shares)
            )
            extensions[0x002D] = b"\x01\x01"
        return _with_length(
            ">H", b"".join(struct.pack(">H", number) + _with_length(">H", data) for number, data in extensions.items())
        )


async def ask(address: Address, offer: Offer) -> Choice | None:
    """What a server chooses of an offer; None if it refuses all of it."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(offer.message())
        choice = None
        async for kind, body in _messages(reader):
            if kind == _SERVER_HELLO:
                choice = _choice(body)
                if choice.version >= TLS_1_3:
                    break
            elif kind == _SERVER_KEY_EXCHANGE and choice is not None and body[0] == _NAMED_CURVE:
                (group,) = struct.unpack_from(">H", body, 1)
                return Choice(choice.version, choice.suite, choice.compression, choice.extensions, group)
            elif kind == _SERVER_HELLO_DONE:
                break
        return choice
    finally:
        writer.transport.abort()


async def accepted_suites(address: Address, version: int) -> set[int]:
    """Every cipher suite that a server takes at exactly this version, out of all numbers there are."""
    accepted: set[int] = set()
    for first in range(0, len(ALL_SUITES), _SUITES_AT_ONCE):
        offered = list(ALL_SUITES[first : first + _SUITES_AT_ONCE])
        while (choice := await ask(address, Offer(version=version, suites=offered))) and choice.version == version:
            assert choice.suite in offered, "the server chose what was not offered"
            accepted.add(choice.suite)
            offered.remove(choice.suite)
    return accepted


async def accepted_groups(address: Address, version: int, suites: Sequence[int]) -> set[int]:
    """Every group that a server takes for the key exchange of these suites, of TLS 1.2 or 1.3."""
    accepted = set()
    for group in ALL_GROUPS:
        choice = await ask(address, Offer(version=version, suites=suites, groups=(group,), shares=()))
        if choice is not None:
            accepted.add(choice.group or 0)
    return accepted


def _with_length(form: str, data: bytes) -> bytes:
    return struct.pack(form, len(data)) + data


async def _messages(reader: asyncio.StreamReader) -> AsyncIterator[tuple[int, bytes]]:
    """The handshake messages until an alert or the end."""
    buffer = b""
    try:
        while True:
            async with asyncio.timeout(_PATIENCE_S):
                kind, _, length = struct.unpack(">BHH", await reader.readexactly(5))
                buffer += await reader.readexactly(length)
            if kind != _HANDSHAKE:
                return
            while len(buffer) >= 4 and len(buffer) >= 4 + (size := int.from_bytes(buffer[1:4])):
                yield buffer[0], buffer[4 : 4 + size]
                buffer = buffer[4 + size :]
    except (asyncio.IncompleteReadError, ConnectionError):
        return


def _choice(hello: bytes) -> Choice:
    (version,) = struct.unpack_from(">H", hello)
    at = 2 + 32
    at += 1 + hello[at]
    suite, compression = struct.unpack_from(">HB", hello, at)
    extensions = dict(_read_extensions(hello[at + 5 :]))
    if 0x002B in extensions:
        (version,) = struct.unpack(">H", extensions[0x002B])
    group = struct.unpack_from(">H", extensions[KEY_SHARE])[0] if KEY_SHARE in extensions else None
    return Choice(version, suite, compression, frozenset(extensions), group)


def _read_extensions(data: bytes) -> Iterable[tuple[int, bytes]]:
    while data:
        number, length = struct.unpack_from(">HH", data)
        yield number, data[4 : 4 + length]
        data = data[4 + length :]
