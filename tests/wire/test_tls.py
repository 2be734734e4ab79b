"""The callback port over TLS: the answers are those of plain HTTP, and what is not TLS costs little."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ingest.receiver import app
from ingest.receiver.app import Tls
from ingest.receiver.certificates import Certificates, Handshakes
from ingest.receiver.connection import Connection
from ingest.receiver.tls import TlsFiles
from tests import tls_scan
from tests.certificates import HOST, Authority, Kind, PairOfFiles
from tests.wire.conftest import FakeSpool, Receiver, Sender, Start, a_request

BODY = b'{"statusReportList":[]}'
SUCCESS = b'{"returnCode":0,"returnCodeDesc":"Success"}'
DONE = "dlrflow_tls_handshakes_total"
FAILED = "dlrflow_tls_handshake_failures_total"


@pytest.fixture(scope="module")
def authority() -> Authority:
    """The authority that senders trust."""
    return Authority()


@dataclass
class Secure:
    """A port that speaks TLS, its files, and senders."""

    receiver: Receiver
    certificates: Certificates
    authority: Authority
    pairs: dict[Kind, PairOfFiles]

    async def connect(self, client: ssl.SSLContext | None = None) -> Sender:
        """A sender whose handshake is done."""
        return await self.receiver.connect(ssl=client or self.authority.client(), server_hostname=HOST)

    async def served_to(self, client: ssl.SSLContext) -> bytes | None:
        """The certificate that a new connection gets."""
        sender = await self.connect(client)
        certificate: bytes | None = sender.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        sender.writer.close()
        return certificate

    async def counted(self, name: str, value: float, **labels: str) -> None:
        """Wait for a count: the port tells nobody by itself."""
        async with asyncio.timeout(10):
            while self.receiver.count(name, **labels) != value:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.001)


Lines = Callable[[], list[object]]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Lines]:
    """What an operator would read in the log by now, of ours and of the libraries'."""
    caplog.set_level(logging.INFO)
    with capture_logs() as ours:
        yield lambda: [*(line for line in ours if line["log_level"] != "debug"), *caplog.records]


StartTls = Callable[..., Awaitable[Secure]]


@pytest.fixture
async def start_tls(start: Start, authority: Authority, tmp_path: Path) -> StartTls:
    """Starts a port with a certificate of each kind."""

    async def run(*, max_version: str = "1.3", kinds: Sequence[Kind] = ("RSA", "ECDSA"), **options: Any) -> Secure:
        pairs = {kind: authority.pair(tmp_path, kind) for kind in kinds}
        files = TlsFiles(
            certs=tuple(pair.cert for pair in pairs.values()),
            keys=tuple(pair.key for pair in pairs.values()),
            max_version="1.2" if max_version == "1.2" else "1.3",
        )
        certificates = Certificates(files)
        receiver = await start(tls=lambda registry: Tls(certificates, Handshakes(registry)), **options)
        return Secure(receiver, certificates, authority, pairs)

    return run


@pytest.mark.parametrize(
    ("version", "suites", "spoken"),
    [
        ("1.2", "ECDHE-RSA-AES128-GCM-SHA256", "TLSv1.2"),
        ("1.2", "ECDHE-ECDSA-AES128-GCM-SHA256", "TLSv1.2"),
        ("1.2", "ECDHE-RSA-AES256-GCM-SHA384", "TLSv1.2"),
        ("1.2", "ECDHE-ECDSA-AES256-GCM-SHA384", "TLSv1.2"),
        ("1.3", None, "TLSv1.3"),
    ],
)
async def test_a_push_is_answered_over_each_suite_of_the_platform(
    start_tls: StartTls, version: str, suites: str | None, spoken: str
) -> None:
    """Whatever of the four it knows, with a certificate that fits; connections stay open."""
    secure = await start_tls()
    sender = await secure.connect(secure.authority.client(version=version, suites=suites))

    for _ in range(2):
        await sender.send(a_request(BODY))
        response = await sender.answer()
        assert (response.status, response.body) == (200, SUCCESS)

    suite = sender.writer.get_extra_info("cipher")[0]
    assert suites in {None, suite}
    assert secure.receiver.count(DONE, version=spoken, suite=suite) == 1
    assert secure.receiver.count("dlrflow_connections") == 1


@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_an_answer_that_closes_is_whole_and_ended_as_tls_ends(start_tls: StartTls, version: str) -> None:
    """`Connection: close`: the sender can tell the end from a connection that was cut."""
    secure = await start_tls()

    def push() -> bytes:
        with (
            socket.create_connection(secure.receiver.address) as plain,
            secure.authority.client(version=version).wrap_socket(
                plain, server_hostname=HOST, suppress_ragged_eofs=False
            ) as sender,
        ):
            sender.sendall(a_request(BODY, headers=("Connection: close",)))
            return b"".join(iter(lambda: sender.recv(4096), b""))

    said = await asyncio.to_thread(push)

    assert said.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nConnection: close\r\n" in said
    assert said.endswith(SUCCESS)
    await secure.counted("dlrflow_connections", 0)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (a_request(b"{"), 400),
        (a_request(BODY, target="/other"), 404),
        (a_request(BODY, method="GET"), 405),
        (a_request(BODY, content_type="text/plain"), 415),
        (b"nonsense\r\n\r\n", 400),
    ],
)
async def test_refusals_are_those_of_plain_http(start_tls: StartTls, request_bytes: bytes, status: int) -> None:
    """The contract's answers do not depend on what carries them."""
    secure = await start_tls()
    sender = await secure.connect()

    await sender.send(request_bytes)

    assert (await sender.answer()).status == status


async def test_a_refused_body_does_not_take_the_answer_along(start_tls: StartTls) -> None:
    """413 reaches a sender that goes on sending more than any buffer holds."""
    secure = await start_tls()
    sender = await secure.connect()
    size = 8 << 20

    async def send_all() -> None:
        sender.writer.write(a_request(b"", length=size))
        for _ in range(size >> 16):
            sender.writer.write(bytes(1 << 16))
            await sender.writer.drain()

    sending = asyncio.create_task(send_all())

    response = await sender.answer()
    assert (response.status, response.headers["connection"]) == (413, "close")
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)


async def test_large_bodies_one_behind_the_other_are_answered_in_order(start_tls: StartTls) -> None:
    """What is read ahead of a request that is being kept waits, and nothing of it is lost."""
    secure = await start_tls(body_max_bytes=1 << 20, bodies_max_bytes=1 << 24)
    sender = await secure.connect()
    bodies = [b'{"statusReportList":[' + b" " * (600_000 + number) + b"]}" for number in range(4)]

    sending = asyncio.create_task(sender.send(b"".join(map(a_request, bodies))))

    assert [(await sender.answer()).status for _ in bodies] == [200] * 4
    await sending
    assert [push.body for push in secure.receiver.spool.pushes] == bodies


async def test_what_one_read_brings_is_bounded(start_tls: StartTls, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection keeps buffers as large as the largest: two thousand of them must fit into memory."""
    secure = await start_tls(body_max_bytes=4 << 20, bodies_max_bytes=8 << 20)
    received: list[int] = []
    really = Connection.data_received

    def data_received(self: Connection, data: bytes) -> None:
        received.append(len(data))
        really(self, data)

    monkeypatch.setattr(Connection, "data_received", data_received)
    body = b'{"statusReportList":[' + bytes([32]) * (2 << 20) + b"]}"

    def push() -> bytes:
        with (
            socket.create_connection(secure.receiver.address) as plain,
            secure.authority.client().wrap_socket(plain, server_hostname=HOST) as sender,
        ):
            sender.sendall(a_request(body))
            return sender.recv(4096)

    assert (await asyncio.to_thread(push)).startswith(b"HTTP/1.1 200 ")
    assert sum(received) > len(body)
    assert max(received) <= 2 * app.BURST_BYTES


async def test_a_sender_that_ends_its_side_has_its_push_kept(start_tls: StartTls) -> None:
    """TLS knows no half-closed connections: the answer goes with it, the push does not."""
    spool = FakeSpool(gate=asyncio.Event())
    secure = await start_tls(spool=spool)

    def push_and_go() -> None:
        with (
            socket.create_connection(secure.receiver.address) as plain,
            secure.authority.client().wrap_socket(plain, server_hostname=HOST) as sender,
        ):
            sender.sendall(a_request(BODY))

    await asyncio.to_thread(push_and_go)
    await spool.arrived.wait()
    assert spool.gate is not None
    spool.gate.set()

    await secure.counted("dlrflow_http_requests_total", 1, path="/batchReport", status="200")
    await secure.counted("dlrflow_connections", 0)
    assert [push.body for push in spool.pushes] == [BODY]


async def test_plain_http_is_closed_at_once_and_counted(start_tls: StartTls, lines: Lines) -> None:
    """A sender with the wrong scheme learns it soon, and nothing of it makes the log."""
    secure = await start_tls()
    sender = await secure.receiver.connect()

    await sender.send(a_request(BODY))

    assert await ended(sender) == b""
    await secure.counted(FAILED, 1, reason="plain-http")
    await secure.counted("dlrflow_connections", 0)
    assert not secure.receiver.spool.pushes
    assert not lines()


@pytest.mark.parametrize(
    ("offer", "reason"),
    [
        (tls_scan.Offer(version=tls_scan.TLS_1_1, suites=(0xC009, 0xC013)), "version"),
        (tls_scan.Offer(version=tls_scan.TLS_1_2, suites=(0xC009, 0xC013)), "cipher"),
        (tls_scan.Offer(version=tls_scan.TLS_1_2, suites=(0xC02B,), groups=(1,)), "cipher"),
        (tls_scan.Offer(version=tls_scan.TLS_1_3, suites=(0x1304,)), "cipher"),
    ],
)
async def test_a_refused_offer_is_counted_by_its_reason(
    start_tls: StartTls, lines: Lines, offer: tls_scan.Offer, reason: str
) -> None:
    """Operators see what a sender lacks; no traceback tells it."""
    secure = await start_tls()

    assert await tls_scan.ask(secure.receiver.address, offer) is None

    await secure.counted(FAILED, 1, reason=reason)
    await secure.counted("dlrflow_connections", 0)
    assert not lines()


@pytest.mark.parametrize(
    ("said", "reason"),
    [(b"\x16\x03\x01\x00\x10" + b"\xff" * 16, "protocol"), (b"SSH-2.0-OpenSSH_9.9\r\n", "protocol"), (b"", "gone")],
)
async def test_what_is_no_tls_is_closed_and_counted(
    start_tls: StartTls, lines: Lines, said: bytes, reason: str
) -> None:
    """Scanners of the open internet leave a number behind, no line."""
    secure = await start_tls()
    sender = await secure.receiver.connect()

    await sender.send(said)
    sender.writer.write_eof()

    assert await ended(sender) in {b"", ALERT}
    await secure.counted(FAILED, 1, reason=reason)
    await secure.counted("dlrflow_connections", 0)
    assert not lines()


@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_a_sender_that_refuses_the_certificate_is_counted_and_told_once(
    start_tls: StartTls, lines: Lines, version: str
) -> None:
    """Pushes that never come for our certificate's sake must not be a riddle."""
    secure = await start_tls()
    stranger = Authority().client(version=version)

    def connect() -> None:
        with socket.create_connection(secure.receiver.address) as plain:
            stranger.wrap_socket(plain, server_hostname=HOST).close()

    for count in (1, 2):
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.to_thread(connect)
        await secure.counted(FAILED, count, reason="certificate")

    assert len(lines()) == 1


async def test_a_handshake_that_takes_too_long_ends(start_tls: StartTls) -> None:
    """It counts among the connections while it lasts, and it does not last."""
    secure = await start_tls(request_timeout_s=0.2)
    sender = await secure.receiver.connect()
    await secure.counted("dlrflow_connections", 1)

    assert await ended(sender) == b""

    await secure.counted(FAILED, 1, reason="timeout")
    assert secure.receiver.count("dlrflow_limited_total", limit="handshake-time") == 1
    await secure.counted("dlrflow_connections", 0)


async def test_leaving_waits_little_for_handshakes(start_tls: StartTls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not go on with a handshake does not hold up the end."""
    monkeypatch.setattr(app, "LAST_HANDSHAKES_S", 0.05)
    secure = await start_tls()
    silent = await secure.receiver.connect()
    await secure.counted("dlrflow_connections", 1)

    async with asyncio.timeout(3):
        await secure.receiver.port.leave(60)

    assert await ended(silent) == b""
    assert secure.receiver.count("dlrflow_connections") == 0


async def test_leaving_answers_what_is_under_way(start_tls: StartTls) -> None:
    """A push that was being kept gets its answer over TLS, too; idle connections are closed."""
    spool = FakeSpool(gate=asyncio.Event())
    secure = await start_tls(spool=spool)
    idle, busy = await secure.connect(), await secure.connect()
    await idle.send(a_request(BODY, target="/other"))
    assert (await idle.answer()).status == 404
    await busy.send(a_request(BODY))
    await spool.arrived.wait()

    leaving = asyncio.create_task(secure.receiver.port.leave(10))
    assert await idle.end() == b""
    assert spool.gate is not None
    spool.gate.set()

    response = await busy.answer()
    assert (response.status, response.headers["connection"]) == (200, "close")
    await leaving


async def test_a_sender_that_does_not_end_its_side_keeps_no_place(
    start_tls: StartTls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the answer that closes, the wait for its close_notify is bounded."""
    monkeypatch.setattr(app, "CLOSE_NOTIFY_S", 0.1)
    secure = await start_tls()

    def push() -> tuple[socket.socket, bytes]:
        plain = socket.create_connection(secure.receiver.address)
        stays = plain.dup()
        with secure.authority.client().wrap_socket(plain, server_hostname=HOST) as sender:
            sender.sendall(a_request(BODY, headers=("Connection: close",)))
            return stays, sender.recv(4096)

    stays, answer = await asyncio.to_thread(push)

    with stays:
        assert answer.startswith(b"HTTP/1.1 200 ")
        await secure.counted("dlrflow_connections", 0)


async def test_http_1_1_is_what_is_agreed_on(start_tls: StartTls) -> None:
    """A sender that would speak HTTP/2 is told what there is."""
    secure = await start_tls()
    client = secure.authority.client()
    client.set_alpn_protocols(["h2", "http/1.1"])

    sender = await secure.connect(client)

    assert sender.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"


async def test_a_renewed_certificate_is_served_to_new_connections(start_tls: StartTls) -> None:
    """Those that are open go on; a broken file changes nothing for anybody."""
    secure = await start_tls()
    client = secure.authority.client(version="1.2", suites="ECDHE-ECDSA-AES128-GCM-SHA256")
    other = secure.authority.client(version="1.2", suites="ECDHE-RSA-AES128-GCM-SHA256")
    old = await secure.connect(client)
    first, untouched = await secure.served_to(client), await secure.served_to(other)

    secure.pairs["ECDSA"].write(*secure.authority.issue("ECDSA"))
    await secure.certificates.look()
    assert await secure.certificates.look()
    second = await secure.served_to(client)
    secure.pairs["ECDSA"].cert.write_bytes(b"-----BEGIN CERTIFICATE-----\n")
    await secure.certificates.look()
    assert await secure.certificates.look()

    assert len({first, second}) == 2
    assert await secure.served_to(client) == second
    assert await secure.served_to(other) == untouched
    await old.send(a_request(BODY))
    assert (await old.answer()).status == 200


ALERT = b"\x15\x03\x03\x00\x02\x02\x46"


async def ended(sender: Sender) -> bytes:
    """What comes until the end, if it comes as a reset."""
    try:
        return await sender.end()
    except ConnectionResetError:
        return b""
