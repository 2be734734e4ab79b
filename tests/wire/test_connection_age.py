"""DLR_CONNECTION_MAX_AGE_S: no connection outlives a certificate for ever, and none loses a push for its age."""

from tests.wire.conftest import Receiver, Start, a_request

BODY = b'{"statusReportList":[]}'


def grow_older(receiver: Receiver, seconds: float) -> None:
    """Let the only connection be older than it is."""
    [connection] = receiver.port._server.senders()
    assert connection._opened_at is not None
    connection._opened_at -= seconds


async def test_an_old_connection_is_closed_with_its_next_answer(start: Start) -> None:
    """The push that comes over it is kept and answered; the answer asks for another connection."""
    receiver = await start(connection_max_age_s=600)
    sender = await receiver.connect()
    await sender.send(a_request(BODY))
    assert "connection" not in (await sender.answer()).headers
    grow_older(receiver, 600)

    await sender.send(a_request(BODY))

    response = await sender.answer()
    assert (response.status, response.headers["connection"]) == (200, "close")
    assert await sender.end() == b""
    assert len(receiver.spool.pushes) == 2


async def test_a_young_connection_stays_open(start: Start) -> None:
    """Answers before that age say nothing of closing."""
    receiver = await start(connection_max_age_s=600)
    sender = await receiver.connect()

    for _ in range(2):
        await sender.send(a_request(BODY))
        response = await sender.answer()
        assert (response.status, response.headers.get("connection")) == (200, None)
        grow_older(receiver, 250)
