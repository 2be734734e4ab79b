"""The callback port as a whole: its bound on connections, and how it leaves."""

import asyncio
import socket

from tests.wire.conftest import FakeSpool, Start, a_request

BODY = b'{"statusReportList":[]}'


async def test_connections_beyond_the_bound_wait_in_the_queue(start: Start) -> None:
    """DLR_CONNECTIONS_MAX: the next one is served when another goes, and none is reset."""
    receiver = await start(connections_max=2)
    first, second = await receiver.connect(), await receiver.connect()
    for sender in (first, second):
        await sender.send(a_request(BODY))
        assert (await sender.answer()).status == 200
    third = await receiver.connect()
    await third.send(a_request(BODY))
    answer = asyncio.create_task(third.answer())
    await first.send(a_request(BODY))
    assert (await first.answer()).status == 200
    assert not answer.done()

    second.writer.close()

    assert (await answer).status == 200
    assert receiver.count("dlrflow_connections_full_total") == 2
    assert receiver.count("dlrflow_connections") == 2


async def test_leaving_answers_what_is_under_way(start: Start) -> None:
    """A push that was being kept gets its answer; idle connections and the port are closed."""
    spool = FakeSpool(gate=asyncio.Event())
    receiver = await start(spool=spool)
    idle, busy = await receiver.connect(), await receiver.connect()
    await busy.send(a_request(BODY))
    await spool.arrived.wait()

    leaving = asyncio.create_task(receiver.port.leave(10))
    assert await idle.end() == b""
    assert spool.gate is not None
    spool.gate.set()

    response = await busy.answer()
    assert (response.status, response.headers["connection"]) == (200, "close")
    await leaving


async def test_leaving_serves_whom_it_accepted_last(start: Start) -> None:
    """A connection that stood in the queue may still say its push."""
    receiver = await start()
    sender = await receiver.connect()

    leaving = asyncio.create_task(receiver.port.leave(10))
    await asyncio.sleep(0)
    await sender.send(a_request(BODY))

    assert (await sender.answer()).status == 200
    await leaving


async def test_leaving_serves_everybody_who_waits(start: Start) -> None:
    """A burst in the queue of the listening socket, larger than one turn accepts, is answered and not reset."""
    receiver = await start(connections_max=200)
    burst = [socket.create_connection(receiver.address) for _ in range(100)]  # the port has no turn meanwhile
    for each in burst:
        each.sendall(a_request(BODY))

    await receiver.port.leave(10)

    answers = [each.recv(100) for each in burst]
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
    for each in burst:
        each.close()


async def test_leaving_is_bounded(start: Start) -> None:
    """A request that never ends holds nobody up."""
    spool = FakeSpool(gate=asyncio.Event())
    receiver = await start(spool=spool)
    busy = await receiver.connect()
    await busy.send(a_request(BODY))
    await spool.arrived.wait()

    await receiver.port.leave(0.1)

    assert await busy.end() == b""


async def test_a_port_that_will_leave_serves_on_and_says_so(start: Start) -> None:
    """Between `not ready` and the end, every answer sends the sender elsewhere."""
    receiver = await start()
    receiver.port.announce_leaving()

    response = await receiver.ask(a_request(BODY))

    assert (response.status, response.headers["connection"]) == (200, "close")


async def test_without_keepalive_every_connection_is_closed(start: Start) -> None:
    """DLR_KEEPALIVE_S 0."""
    receiver = await start(keepalive_s=0)

    response = await receiver.ask(a_request(BODY))

    assert (response.status, response.headers["connection"]) == (200, "close")


async def test_a_sender_that_goes_in_the_middle_of_a_body_leaves_nothing(start: Start) -> None:
    """Neither a push nor an answer is counted, and its memory is free again."""
    receiver = await start()
    sender = await receiver.connect()
    await sender.send(a_request(BODY[:5], length=len(BODY)))
    assert (await receiver.ask(a_request(BODY))).status == 200

    sender.writer.transport.abort()

    assert (await receiver.ask(a_request(BODY))).status == 200
    assert receiver.count("dlrflow_http_requests_total", path="/batchReport", status="200") == 2
    assert receiver.count("dlrflow_http_requests_total", path="other", status="500") == 0
    receiver.port.refresh()
    assert receiver.count("dlrflow_held_bytes") == 0


async def test_a_failing_handler_is_answered_without_internals(start: Start) -> None:
    """A defect of ours is 500 and says nothing of itself; the connection is closed."""
    receiver = await start(spool=FakeSpool(error=RuntimeError("secret")))

    response = await receiver.ask(a_request(BODY))

    assert (response.status, response.headers["connection"]) == (500, "close")
    assert response.body == b'{"returnCode":500,"returnCodeDesc":"The receiver failed at this request."}'
