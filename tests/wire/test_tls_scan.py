"""A scan of the callback port: exactly the versions and suites that are promised, out of everything there is."""

import asyncio
import socket
import ssl
from collections.abc import Callable

import pytest
from OpenSSL import SSL

from tests import tls_scan
from tests.certificates import HOST, Authority
from tests.tls_scan import RENEGOTIATION_INFO, SESSION_TICKET, SSL_3, TLS_1_0, TLS_1_1, TLS_1_2, TLS_1_3, Offer
from tests.wire.conftest import a_request
from tests.wire.test_tls import StartTls, authority, start_tls

__all__ = ["authority", "start_tls"]

ECDSA_SUITES = {0xC02B, 0xC02C}
"""TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, ..._AES_256_GCM_SHA384 (RFC 5289)."""
RSA_SUITES = {0xC02F, 0xC030}
"""TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, ..._AES_256_GCM_SHA384."""
SUITES_OF_1_3 = {0x1301, 0x1302, 0x1303}
"""TLS_AES_128_GCM_SHA256, TLS_AES_256_GCM_SHA384, TLS_CHACHA20_POLY1305_SHA256 (RFC 8446)."""

GROUPS = {23, 24, 29} if hasattr(ssl.SSLContext, "set_groups") else {23}
"""secp256r1, and secp384r1 and x25519 where Python lets one choose more than one (RFC 8422)."""


async def test_the_suites_are_those_of_the_platform_and_of_tls_1_3(start_tls: StartTls) -> None:
    """Of all 65,536 numbers at each version, none but these is taken, with RSA and ECDSA side by side."""
    address = (await start_tls()).receiver.address

    taken = {version: await tls_scan.accepted_suites(address, version) for version in range(SSL_3, TLS_1_3 + 1)}

    assert taken == {
        SSL_3: set(),
        TLS_1_0: set(),
        TLS_1_1: set(),
        TLS_1_2: ECDSA_SUITES | RSA_SUITES,
        TLS_1_3: SUITES_OF_1_3,
    }


async def test_tls_1_3_can_be_turned_off(start_tls: StartTls) -> None:
    """DLR_TLS_MAX_VERSION=1.2: the four suites stay, of TLS 1.3 nothing does."""
    address = (await start_tls(max_version="1.2")).receiver.address

    assert await tls_scan.accepted_suites(address, TLS_1_3) == set()
    assert await tls_scan.accepted_suites(address, TLS_1_2) == ECDSA_SUITES | RSA_SUITES


@pytest.mark.parametrize(("kind", "suites"), [("RSA", RSA_SUITES), ("ECDSA", ECDSA_SUITES)])
async def test_one_certificate_serves_the_suites_of_its_kind(start_tls: StartTls, kind: str, suites: set[int]) -> None:
    """With a key of one kind the suites of the other are not offered."""
    address = (await start_tls(kinds=(kind,))).receiver.address

    assert await tls_scan.accepted_suites(address, TLS_1_2) == suites


@pytest.mark.parametrize(("version", "suites"), [(TLS_1_2, ECDSA_SUITES | RSA_SUITES), (TLS_1_3, SUITES_OF_1_3)])
async def test_no_group_is_weak_or_costs_us_much(start_tls: StartTls, version: int, suites: set[int]) -> None:
    """No small curve, and no finite field: a key of ffdhe8192 would take 140 ms for one packet of a stranger."""
    address = (await start_tls()).receiver.address

    assert await tls_scan.accepted_groups(address, version, sorted(suites)) == GROUPS


async def test_neither_compression_nor_tickets_are_agreed_on(start_tls: StartTls) -> None:
    """Offered both, the port takes neither; it does say that it renegotiates securely, if at all (RFC 5746)."""
    address = (await start_tls()).receiver.address
    offer = Offer(
        version=TLS_1_2,
        suites=sorted(ECDSA_SUITES | RSA_SUITES),
        compressions=b"\x01\x40\x00",
        extra={SESSION_TICKET: b"", tls_scan.HEARTBEAT: b"\x01"},
    )

    choice = await tls_scan.ask(address, offer)

    assert choice is not None
    assert choice.compression == 0
    assert RENEGOTIATION_INFO in choice.extensions
    assert not choice.extensions & {SESSION_TICKET, tls_scan.HEARTBEAT}


@pytest.mark.parametrize("suites", [ECDSA_SUITES, RSA_SUITES])
async def test_the_port_prefers_the_shorter_key_of_its_own_accord(start_tls: StartTls, suites: set[int]) -> None:
    """The order is ours, ECDSA first: half the work for us."""
    address = (await start_tls()).receiver.address
    theirs = sorted(RSA_SUITES, reverse=True) + sorted(ECDSA_SUITES, reverse=True)

    choice = await tls_scan.ask(address, Offer(version=TLS_1_2, suites=[each for each in theirs if each in suites]))
    of_all = await tls_scan.ask(address, Offer(version=TLS_1_2, suites=theirs))

    assert choice is not None
    assert of_all is not None
    assert (choice.suite, of_all.suite) == (min(suites), 0xC02B)


async def test_renegotiation_is_refused(start_tls: StartTls) -> None:
    """A sender may not ask for one handshake after another on one connection."""
    secure = await start_tls()

    def renegotiate() -> str:
        with socket.create_connection(secure.receiver.address) as plain:
            context = SSL.Context(SSL.TLS_CLIENT_METHOD)
            context.set_max_proto_version(SSL.TLS1_2_VERSION)
            connection = SSL.Connection(context, plain)
            connection.set_connect_state()
            connection.do_handshake()
            connection.send(a_request(b'{"statusReportList":[]}'))
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
            assert connection.renegotiate()
            return _failure(connection.do_handshake) or _failure(lambda: connection.recv(4096))

    assert "no renegotiation" in await asyncio.to_thread(renegotiate)
    assert secure.receiver.count("dlrflow_tls_handshakes_total", version="TLSv1.2", suite=ECDSA_FIRST) == 1


ECDSA_FIRST = "ECDHE-ECDSA-AES128-GCM-SHA256"


async def test_the_scan_sees_what_it_is_there_for() -> None:
    """Against a server that is open on purpose, it finds a weak suite and a ticket."""
    context = Authority().server("RSA")
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    server = await asyncio.start_server(lambda _, writer: writer.close(), HOST, 0, ssl=context)
    async with server:
        address = server.sockets[0].getsockname()

        assert {0x002F, 0x009C} <= await tls_scan.accepted_suites(address, TLS_1_2)
        assert {23, 29, 0x0104} <= await tls_scan.accepted_groups(address, TLS_1_3, [0x1301])
        assert 0x002F in await tls_scan.accepted_suites(address, TLS_1_0)
        choice = await tls_scan.ask(
            address, Offer(version=TLS_1_2, suites=[0xC013], extra={SESSION_TICKET: b""}, groups=(21, 24))
        )
        assert choice is not None
        assert SESSION_TICKET in choice.extensions


def _failure(act: Callable[[], object]) -> str:
    """What OpenSSL says of an act that fails; empty if it does not."""
    try:
        act()
    except SSL.Error as error:
        return " ".join(map(str, error.args))
    return ""
