"""Every limit of the callback port over a real socket: what the sender sees, and what is counted."""

import asyncio
import errno
import socket
import time
from collections.abc import Callable
from typing import ClassVar

import pytest

from ingest.receiver import crowd
from ingest.receiver.app import ACCEPT_PAUSE_S
from ingest.receiver.connection import FRAMING_MAX_BYTES
from tests.wire.conftest import FakeSpool, Receiver, Sender, Start, a_request

BODY = b'{"statusReportList":[]}'
CHUNKED = ("Transfer-Encoding: chunked",)
LONG_S = 100


def limited(receiver: Receiver, limit: str) -> float:
    """How often a limit was reached."""
    return receiver.count("dlrflow_limited_total", limit=limit)


def held(receiver: Receiver) -> float:
    """Bytes of requests in memory."""
    receiver.port.refresh()
    return receiver.count("dlrflow_held_bytes")


async def pour(sender: Sender, piece: bytes, most: int = 10_000) -> int:
    """Send a piece again and again, until the port closes or it was sent so often; returns how often it was."""
    for sent in range(most):
        try:
            await sender.send(piece)
        except ConnectionError:
            return sent
    return most


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the port does by itself."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0)


async def rest_of(sender: Sender) -> bytes:
    """What comes until the port closes the connection; where it does so amid our sending, nothing."""
    try:
        return await sender.end()
    except ConnectionResetError:
        return b""


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever keeps us waiting can be asked to go at once."""
    monkeypatch.setattr(crowd, "GRACE_S", 0.0)


async def test_a_head_has_a_size(start: Start) -> None:
    """DLR_HEAD_MAX_BYTES: 400, then closed."""
    receiver = await start(head_max_bytes=4096, request_timeout_s=LONG_S, keepalive_s=LONG_S)
    sender = await receiver.connect()

    await sender.send(a_request(BODY, headers=tuple(f"X-{number}: {'x' * 80}" for number in range(50))))

    response = await sender.answer()
    assert (response.status, response.headers["connection"]) == (400, "close")
    assert await sender.end() == b""
    assert limited(receiver, "head-size") == 1
    assert receiver.spool.pushes == []


async def test_a_head_that_never_ends_has_a_size(start: Start) -> None:
    """However slowly it comes; nothing of it stays in memory."""
    receiver = await start(head_max_bytes=4096, request_timeout_s=LONG_S, keepalive_s=LONG_S)
    sender = await receiver.connect()

    await sender.send(b"POST /batchReport HTTP/1.1\r\nHost: a\r\n")
    await pour(sender, b"X: " + b"x" * 100 + b"\r\n", most=100)

    assert b" 400 " in await rest_of(sender)
    assert limited(receiver, "head-size") == 1
    await until(lambda: not held(receiver))


async def test_headers_have_a_number(start: Start) -> None:
    """DLR_HEADERS_MAX: many short ones are refused at the first beyond it."""
    receiver = await start(headers_max=20, head_max_bytes=1 << 20)
    sender = await receiver.connect()

    await pour(sender, a_request(BODY, headers=tuple(f"X{number}: y" for number in range(20_000))), most=1)

    assert (await receiver.ask(a_request(BODY, headers=tuple(f"X{number}: y" for number in range(16))))).status == 200
    assert limited(receiver, "head-size") == 1
    assert len(receiver.spool.pushes) == 1


async def test_an_incomplete_head_is_held_and_given_back(start: Start) -> None:
    """Its bytes count as memory as long as it is incomplete."""
    receiver = await start()
    sender = await receiver.connect()
    request = a_request(BODY, headers=("X: " + "x" * 5000,))

    await sender.send(request[:4000])
    await until(lambda: held(receiver) == 4000)
    await sender.send(request[4000:])

    assert (await sender.answer()).status == 200
    assert held(receiver) == 0


async def test_slow_heads_and_bodies_are_counted(start: Start) -> None:
    """DLR_REQUEST_TIMEOUT_S: the head is just closed, the body answered 408."""
    receiver = await start(request_timeout_s=0.2, keepalive_s=LONG_S)
    slow_head, slow_body = await receiver.connect(), await receiver.connect()

    await slow_head.send(b"POST /batch")
    await slow_body.send(a_request(BODY[:5], length=len(BODY)))

    assert await slow_head.end() == b""
    assert (await slow_body.answer()).status == 408
    assert (limited(receiver, "head-time"), limited(receiver, "body-time")) == (1, 1)
    assert held(receiver) == 0


async def test_an_idle_connection_and_a_large_body_are_counted(start: Start) -> None:
    """DLR_KEEPALIVE_S and DLR_BODY_MAX_BYTES."""
    receiver = await start(keepalive_s=0.2)
    idle = await receiver.connect()

    assert (await receiver.ask(a_request(b"x" * 5000))).status == 413
    assert await idle.end() == b""

    assert limited(receiver, "body-size") == 1
    assert limited(receiver, "idle-time") >= 1


@pytest.mark.parametrize("begin", [b"1;", b"1\r\nx\r\n1;a=", b"1\r\nx\r\n0\r\nX: y\r\n"])
@pytest.mark.parametrize("piece", [b"x" * 1000, b"x: " + b"x" * 995 + b"\r\n"])
async def test_framing_is_bounded(start: Start, begin: bytes, piece: bytes) -> None:
    """Extensions of chunks and trailers are no way to send for ever what counts as no body."""
    receiver = await start(request_timeout_s=LONG_S, headers_max=10_000)
    sender = await receiver.connect()

    await sender.send(a_request(headers=CHUNKED) + begin)
    sent = await pour(sender, piece)

    assert sent < 10_000
    assert receiver.spool.pushes == []
    await until(lambda: not held(receiver))


async def test_too_much_framing_is_counted(start: Start) -> None:
    """It is answered as a body that is too large."""
    receiver = await start(request_timeout_s=LONG_S)
    sender = await receiver.connect()

    await sender.send(a_request(headers=CHUNKED) + b"1;")
    await pour(sender, b"x" * 1000, most=5 * FRAMING_MAX_BYTES // 1000)

    await until(lambda: limited(receiver, "framing") == 1)
    await until(lambda: receiver.count("dlrflow_http_requests_total", path="/batchReport", status="413") == 1)


async def test_tiny_chunks_are_taken(start: Start) -> None:
    """One byte each is legal, and no more in memory than the body."""
    receiver = await start(body_max_bytes=100_000)
    body = BODY.ljust(95_000)

    response = await receiver.ask(
        a_request(headers=CHUNKED) + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    )

    assert response.status == 200
    assert [push.body for push in receiver.spool.pushes] == [body]


async def _ask_for_ever(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(a_request(method="GET") * 100)
        await writer.drain()


async def test_a_sender_that_never_takes_its_answers_is_closed(start: Start) -> None:
    """DLR_REQUEST_TIMEOUT_S counts for this, too; until then its requests wait."""
    receiver = await start(request_timeout_s=0.5, keepalive_s=LONG_S)
    with socket.socket() as greedy:
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        greedy.connect(receiver.address)
        _, writer = await asyncio.open_connection(sock=greedy, limit=1)
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(_ask_for_ever(writer), 20)
        writer.close()

    assert limited(receiver, "answer-time") == 1
    assert (await receiver.ask(a_request(BODY))).status == 200


@pytest.mark.usefixtures("no_grace")
@pytest.mark.parametrize("begin", [b"", b"POST /ba", a_request(b"x", length=100), a_request(BODY)])
async def test_at_the_bound_the_one_who_keeps_us_waiting_goes(start: Start, begin: bytes) -> None:
    """DLR_CONNECTIONS_MAX: a newcomer is served at once, whatever the others are waited for."""
    receiver = await start(connections_max=2, request_timeout_s=LONG_S, keepalive_s=LONG_S)
    slow = [await receiver.connect() for _ in range(2)]
    for sender in slow:
        await sender.send(begin)
        if begin == a_request(BODY):
            assert (await sender.answer()).status == 200

    response = await receiver.ask(a_request(BODY))

    assert response.status == 200
    done, others = await asyncio.wait(
        [asyncio.create_task(rest_of(sender)) for sender in slow], return_when=asyncio.FIRST_COMPLETED
    )
    [ended] = [each.result() for each in done]
    assert ended == b"" or ended.startswith(b"HTTP/1.1 503 ")
    for each in others:
        each.cancel()
    assert limited(receiver, "connections") == 1


async def test_at_the_bound_a_newcomer_waits_for_the_grace_time_only(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has to happen on any connection for it."""
    monkeypatch.setattr(crowd, "GRACE_S", 0.5)
    receiver = await start(connections_max=1, request_timeout_s=LONG_S, keepalive_s=LONG_S)
    slow = await receiver.connect()
    await slow.send(b"POST")

    response = await receiver.ask(a_request(BODY))

    assert response.status == 200
    assert await rest_of(slow) == b""


@pytest.mark.usefixtures("no_grace")
async def test_at_the_bound_a_push_that_is_being_kept_stays(start: Start) -> None:
    """It is we who keep its sender waiting; the newcomer waits in the queue."""
    spool = FakeSpool(gate=asyncio.Event())
    receiver = await start(spool=spool, connections_max=1)
    busy = await receiver.connect()
    await busy.send(a_request(BODY, headers=("Connection: close",)))
    await spool.arrived.wait()
    newcomer = await receiver.connect()
    await newcomer.send(a_request(BODY))

    assert spool.gate is not None
    spool.gate.set()

    assert (await busy.answer()).status == 200
    assert (await newcomer.answer()).status == 200


async def test_one_address_cannot_take_all_connections(start: Start) -> None:
    """DLR_CONNECTIONS_PER_PEER_MAX: beyond it the newcomer is closed, and others never notice."""
    receiver = await start(connections_per_peer_max=1)
    first = await receiver.connect()
    second = await receiver.connect()

    assert await second.end() == b""
    other = Sender(*await asyncio.open_connection(*receiver.address, local_addr=("127.0.0.2", 0)))
    receiver.senders.append(other)
    for sender in (first, other):
        await sender.send(a_request(BODY))
        assert (await sender.answer()).status == 200
    assert limited(receiver, "connections-of-peer") == 1


@pytest.mark.usefixtures("no_grace")
async def test_memory_goes_to_those_who_finish(start: Start) -> None:
    """DLR_BODIES_MAX_BYTES: the slow sender gets 503 and its memory goes to the newcomer."""
    receiver = await start(body_max_bytes=100_000, bodies_max_bytes=100_000, request_timeout_s=LONG_S)
    slow = await receiver.connect()
    await slow.send(a_request(b" " * 60_000, length=90_000))
    await until(lambda: held(receiver) >= 60_000)

    response = await receiver.ask(a_request(BODY.ljust(60_000)))

    assert response.status == 200
    refused = await slow.answer()
    assert (refused.status, refused.headers["retry-after"], refused.headers["connection"]) == (503, "5", "close")
    assert limited(receiver, "memory") == 1
    assert held(receiver) == 0


class Exhausted(socket.socket):
    """A listening socket of a process that has no descriptors left, for a while."""

    failed_at: ClassVar[list[float]] = []

    def accept(self) -> tuple[socket.socket, object]:
        """Fail twice as the kernel does."""
        if len(self.failed_at) < 2:
            self.failed_at.append(time.monotonic())
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_without_descriptors_accepting_pauses(start: Start) -> None:
    """It neither spins nor gives up, and is counted."""
    receiver = await start(listener=Exhausted())

    response = await receiver.ask(a_request(BODY))

    assert response.status == 200
    assert limited(receiver, "descriptors") == 2
    first, second = Exhausted.failed_at
    assert second - first > ACCEPT_PAUSE_S / 2
