"""What the HTTP parser itself refuses: 400 or 415 in our own words, at once, and never kept."""

import asyncio
import socket

import orjson
import pytest

from tests.wire.conftest import Start, a_request

CHUNKED = ("Transfer-Encoding: chunked",)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 secret-bytes\r\n\r\n", id="tls on a plain port"),
        pytest.param(b"BREW /batchReport HTTP/1.1\r\nHost: a\r\n\r\n", id="unknown method"),
        pytest.param(b"POST /batchReport HTTP/9.9\r\nHost: a\r\n\r\n", id="unknown version"),
        pytest.param(b"POST /batchReport HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", id="no host"),
        pytest.param(a_request(b"{}", headers=("Content-Length: 2",)), id="repeated length"),
        pytest.param(a_request(b"{}", headers=("Content-Length: 3",)), id="two lengths"),
        pytest.param(a_request(b"{}", headers=("X secret: 1",)), id="blank in a name"),
        pytest.param(a_request(b"{}", headers=("secret",)), id="no colon"),
        pytest.param(a_request(b"{}", headers=("X: a\x00b",)), id="null byte"),
        pytest.param(a_request(b"{}", headers=("X: " + "s" * 9000,)), id="long header"),
        pytest.param(a_request(b"{}", headers=tuple(f"X{n}: s" for n in range(200))), id="many headers"),
        pytest.param(a_request(b"{}", target="/" + "s" * 9000), id="long target"),
        pytest.param(a_request(b"zz\r\n", headers=CHUNKED), id="bad chunk size"),
        pytest.param(a_request(b"2\r\n{}secret\r\n0\r\n\r\n", headers=CHUNKED), id="bad chunk end"),
        pytest.param(a_request(b"0\r\n\r\n", headers=(*CHUNKED, "Content-Length: 5")), id="chunked and length"),
        pytest.param(a_request(b"0\r\n\r\n", headers=("Transfer-Encoding: gzip",)), id="gzip alone"),
        pytest.param(a_request(b"0\r\n\r\n", headers=("Transfer-Encoding: gzip, chunked",)), id="gzip, chunked"),
    ],
)
async def test_what_is_not_http_is_refused(start: Start, sent: bytes) -> None:
    """JSON without a word of the input, then the connection is closed; nothing is kept."""
    receiver = await start(request_timeout_s=100, keepalive_s=100)
    sender = await receiver.connect()

    await sender.send(sent)

    response = await sender.answer()
    assert response.status in (400, 415)
    assert orjson.loads(response.body)["returnCode"] == response.status
    assert b"secret" not in response.body
    assert response.headers["content-type"] == "application/json"
    assert receiver.spool.pushes == []
    if response.status == 400:
        assert response.headers["connection"] == "close"
        assert await sender.end() == b""


async def test_framing_that_breaks_inside_a_body_is_refused_at_once(start: Start) -> None:
    """A handler that reads the body does not wait for the timeout to say so."""
    receiver = await start(request_timeout_s=100, keepalive_s=100)
    sender = await receiver.connect()

    await sender.send(a_request(b"2\r\n{}\r\n", headers=CHUNKED))
    await sender.send(b"zz\r\n")

    response = await sender.answer()
    assert (response.status, response.headers["connection"]) == (400, "close")
    assert await sender.end() == b""
    assert receiver.spool.pushes == []


@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
async def test_odd_methods_are_refused(start: Start, method: str) -> None:
    """No method opens anything but the two paths."""
    receiver = await start()

    response = await receiver.ask(a_request(method=method, target="example.com:80"))

    assert response.status in (400, 404, 405)


async def test_an_upgrade_is_not_taken_up(start: Start) -> None:
    """A push that offers another protocol is taken as the push that it is, and the last one of its connection.

    What aiohttp 3.14 makes of the bytes behind a declined upgrade can be other bytes than were sent.
    """
    receiver = await start()
    sender = await receiver.connect()

    await sender.send(a_request(b'{"statusReportList":[]}', headers=("Connection: Upgrade", "Upgrade: websocket")))

    response = await sender.answer()
    assert (response.status, response.headers["connection"]) == (200, "close")
    assert await sender.end() == b""


@pytest.mark.parametrize(
    "upgrade",
    [
        (
            "Connection: Upgrade, HTTP2-Settings",
            "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
            "Upgrade: h2c",
        ),
        ("Connection: Upgrade", "Upgrade: websocket"),
        ("Upgrade: h2c",),
        ("Connection: Upgrade", "Upgrade: "),
    ],
)
@pytest.mark.parametrize("cuts", [0, 1, 7])
async def test_chunks_that_come_with_an_upgrade_are_a_body(start: Start, upgrade: tuple[str, ...], cuts: int) -> None:
    """Java's HttpClient offers h2c of its own accord. However the bytes arrive, nothing behind them is a request."""
    receiver = await start()
    sender = await receiver.connect()
    body = b'{"statusReportList":[]}'
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    request = a_request(chunks, headers=(*upgrade, "Transfer-Encoding: chunked"))

    if cuts:
        sender.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(request), cuts):
            await sender.send(request[at : at + cuts])
            await asyncio.sleep(0)
        response = await sender.answer()
    else:
        await sender.send(request + a_request(b'{"statusReportList":[1]}'))
        response = await sender.answer()

    assert (response.status, response.headers["connection"]) == (200, "close")
    assert [push.body for push in receiver.spool.pushes] == [body]


@pytest.mark.parametrize("coding", ["CHUNKED\t", "\tchunked\t", "identity"])
async def test_no_other_coding_comes_with_an_upgrade(start: Start, coding: str) -> None:
    """With a tab behind `chunked` the parser saw a request without body: its reports were gone, an empty one kept."""
    receiver = await start()
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", f"Transfer-Encoding: {coding}")
    sender = await receiver.connect()

    await sender.send(a_request(b'17\r\n{"statusReportList":[]}\r\n0\r\n\r\n', headers=upgrade))

    response = await sender.answer()
    assert (response.status, response.headers["connection"]) == (400, "close")
    assert receiver.spool.pushes == []


@pytest.mark.parametrize("version", ["", "HTTP/0.9", "HTTP/2.0", "http/1.1"])
async def test_other_versions_are_refused(start: Start, version: str) -> None:
    """The HTTP parser takes some of them; what such a request is nobody has said."""
    receiver = await start()
    sender = await receiver.connect()

    await sender.send(a_request(b'{"statusReportList":[]}').replace(b"HTTP/1.1", version.encode()))

    response = await sender.answer()
    assert (response.status, response.headers["connection"]) == (400, "close")
    assert receiver.spool.pushes == []


async def test_http_1_0_knows_no_chunks(start: Start) -> None:
    """RFC 9112 section 6.1: its framing counts as faulty."""
    receiver = await start()
    sender = await receiver.connect()

    await sender.send(a_request(b"2\r\n{}\r\n0\r\n\r\n", headers=CHUNKED).replace(b"HTTP/1.1", b"HTTP/1.0"))

    response = await sender.answer()
    assert (response.status, response.headers["connection"]) == (400, "close")
    assert receiver.spool.pushes == []


@pytest.mark.parametrize("sent", [b"Transfer-Encoding: ,chunked", b"Transfer-Encoding:\r\nContent-Length: 0"])
async def test_nothing_is_read_behind_a_coding_that_is_refused(start: Start, sent: bytes) -> None:
    """Somebody in front of the receiver may see another end of that request, and hide a push behind it."""
    receiver = await start()
    sender = await receiver.connect()
    hidden = a_request(b'{"statusReportList":[]}')

    await sender.send(b"POST /batchReport HTTP/1.1\r\nHost: a\r\n" + sent + b"\r\n\r\n0\r\n\r\n" + hidden)

    response = await sender.answer()
    assert (response.status, response.headers["connection"]) in {(415, "close"), (400, "close")}
    assert await sender.end() == b""
    assert receiver.spool.pushes == []
