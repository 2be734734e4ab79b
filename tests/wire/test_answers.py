"""Every row of contract.md section 3, in bytes."""

import asyncio
from pathlib import Path

import orjson
import pytest

from ingest.contract.push import Route
from ingest.spool.base import SpoolBrokenError, SpoolFullError
from tests.wire.conftest import FORM, FakeSpool, Start, a_request

EXAMPLE = (Path(__file__).parents[1] / "data" / "batch_example.json").read_bytes()
SUCCESS = b'{"returnCode":0,"returnCodeDesc":"Success"}'
A_FORM = b"smsMsgId=m1&status=DELIVRD"


async def test_an_accepted_push_is_answered_with_exactly_these_bytes(start: Start) -> None:
    """200, application/json and the body of the contract without newline, once the spool has the push."""
    receiver = await start()

    response = await receiver.ask(a_request(EXAMPLE))

    assert (response.status, response.headers["content-type"], response.body) == (200, "application/json", SUCCESS)
    [push] = receiver.spool.pushes
    assert (push.route, push.reports, push.body) == (Route.BATCH, 2, EXAMPLE)
    assert receiver.count("dlrflow_http_requests_total", path="/batchReport", status="200") == 1
    assert receiver.count("dlrflow_reports_received_total") == 2
    assert receiver.count("dlrflow_ack_seconds_count") == 1


async def test_the_answer_waits_for_the_spool(start: Start) -> None:
    """No byte of an answer is sent before append() returned."""
    spool = FakeSpool(gate=asyncio.Event())
    receiver = await start(spool=spool)
    sender = await receiver.connect()

    await sender.send(a_request(EXAMPLE))
    await spool.arrived.wait()
    answer = asyncio.create_task(sender.answer())
    await asyncio.sleep(0)
    assert not answer.done()
    assert spool.gate is not None
    spool.gate.set()

    assert (await answer).status == 200


@pytest.mark.parametrize("body", [b'{"statusReportList":[]}', b'{"x":1,"statusReportList":[7,null,{}]}'])
async def test_a_batch_without_a_usable_report_is_accepted(start: Start, body: bytes) -> None:
    """An empty list, and a list of unusable reports: the answer is success, the dead letters come later."""
    receiver = await start()

    response = await receiver.ask(a_request(body))

    assert (response.status, response.body) == (200, SUCCESS)
    assert [push.body for push in receiver.spool.pushes] == [body]


async def test_a_form_is_one_report(start: Start) -> None:
    """The single callback is answered alike."""
    receiver = await start()

    response = await receiver.ask(a_request(A_FORM, target="/report", content_type=FORM))

    assert (response.status, response.body) == (200, SUCCESS)
    [push] = receiver.spool.pushes
    assert (push.route, push.reports, push.body) == (Route.SINGLE, 1, A_FORM)


DEEP = b'{"statusReportList":[' + b"[" * 63 + b"]" * 63 + b"]}"


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/batchReport", b""),
        ("/batchReport", b"{"),
        ("/batchReport", b"[]"),
        ("/batchReport", b"{}"),
        ("/batchReport", b'{"statusReportList":{}}'),
        ("/batchReport", b'{"statusReportList":[]} x'),
        ("/batchReport", b'\xef\xbb\xbf{"statusReportList":[]}'),
        ("/batchReport", b'{"statusReportList":["\xff"]}'),
        ("/batchReport", b'{"statusReportList":["\\ud800"]}'),
        ("/batchReport", b'{"statusReportList":[1,2,3,4]}'),
        ("/batchReport", DEEP),
        ("/report", b""),
        ("/report", b"smsMsgId=m1"),
        ("/report", b"smsMsgId=m1&status=D&to=%ff"),
    ],
)
async def test_an_unusable_body_is_kept_and_answered_400(start: Start, target: str, body: bytes) -> None:
    """The whole body is in the spool, counted as one report, before the sender hears 400."""
    receiver = await start()

    response = await receiver.ask(a_request(body, target=target, content_type=None))

    assert response.status == 400
    assert orjson.loads(response.body)["returnCode"] == 400
    assert [(push.reports, push.body) for push in receiver.spool.pushes] == [(1, body)]
    assert receiver.count("dlrflow_reports_received_total") == 1


@pytest.mark.parametrize("error", [SpoolFullError(), SpoolBrokenError()])
@pytest.mark.parametrize("body", [EXAMPLE, b"not json"])
async def test_without_a_durable_place_the_sender_is_asked_to_come_back(
    start: Start, error: Exception, body: bytes
) -> None:
    """503 with Retry-After in whole seconds, for what would be 200 and what would be 400."""
    receiver = await start(spool=FakeSpool(error=error))

    response = await receiver.ask(a_request(body))

    assert (response.status, response.headers["retry-after"]) == (503, "5")
    assert receiver.count("dlrflow_reports_received_total") == 0


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/batchReport?x=1&y=/report", 200),
        ("http://other.example.com/batchReport", 200),
        ("/batchReport/", 404),
        ("//batchReport", 404),
        ("/batchreport", 404),
        ("/batch%52eport", 404),
        ("/./batchReport", 404),
        ("/batchReport#", 404),
        ("/", 404),
        ("/metrics", 404),
        ("/readyz", 404),
        ("/favicon.ico", 404),
    ],
)
async def test_paths_compare_exactly(start: Start, target: str, status: int) -> None:
    """Nothing but the two callback paths is served; a query does not count."""
    receiver = await start()

    response = await receiver.ask(a_request(EXAMPLE, target=target))

    assert response.status == status
    path = "/batchReport" if status == 200 else "other"
    assert receiver.count("dlrflow_http_requests_total", path=path, status=str(status)) == 1


async def test_the_configured_paths_are_the_ones_served(start: Start) -> None:
    """DLR_BATCH_PATH and DLR_SINGLE_PATH replace the usual paths; the route of the push stays fixed by kind."""
    receiver = await start(batch_path="/huawei/batch", single_path="/huawei/one")

    statuses = [
        (await receiver.ask(a_request(body, target=target, content_type=None))).status
        for target, body in [
            ("/huawei/batch", EXAMPLE),
            ("/huawei/one", A_FORM),
            ("/batchReport", EXAMPLE),
            ("/report", A_FORM),
        ]
    ]

    assert statuses == [200, 200, 404, 404]
    assert [push.route for push in receiver.spool.pushes] == [Route.BATCH, Route.SINGLE]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_only_post_is_served(start: Start, method: str) -> None:
    """405 names the method that is allowed."""
    receiver = await start()

    response = await receiver.ask(a_request(EXAMPLE, method=method))

    assert (response.status, response.headers["allow"]) == (405, "POST")
    assert receiver.spool.pushes == []


async def test_head_is_answered_without_a_body(start: Start) -> None:
    """HEAD is no exception to 405, and has no body by the rules of HTTP."""
    receiver = await start()
    sender = await receiver.connect()

    await sender.send(a_request(method="HEAD", headers=("Connection: close",)))

    assert (await sender.head())[0] == 405
    assert await sender.end() == b""


@pytest.mark.parametrize(
    ("target", "content_type", "status"),
    [
        ("/batchReport", "application/json", 200),
        ("/batchReport", "application/JSON;charset=UTF-8", 200),
        ("/batchReport", " Application/Json ; charset=latin-1", 200),
        ("/batchReport", None, 200),
        ("/batchReport", "text/json", 415),
        ("/batchReport", "application/jsonp", 415),
        ("/batchReport", FORM, 415),
        ("/report", FORM.upper(), 200),
        ("/report", FORM + "; charset=utf-8", 200),
        ("/report", None, 200),
        ("/report", "application/json", 415),
        ("/report", "multipart/form-data; boundary=x", 415),
    ],
)
async def test_content_types_compare_without_case_and_parameters(
    start: Start, target: str, content_type: str | None, status: int
) -> None:
    """A missing one counts as the right one of its path."""
    receiver = await start()
    body = EXAMPLE if target == "/batchReport" else A_FORM

    response = await receiver.ask(a_request(body, target=target, content_type=content_type))

    assert response.status == status
    assert len(receiver.spool.pushes) == (status == 200)


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Content-Encoding: identity", 200),
        ("Content-Encoding: IDENTITY", 200),
        ("Content-Encoding: gzip", 415),
        ("Content-Encoding: identity, gzip", 415),
        ("Content-Encoding: identity\r\nContent-Encoding: gzip", 415),
        ("Content-Encoding: br", 415),
        ("Content-Encoding: zstd", 415),
        ("Content-Encoding: rot13", 415),
    ],
)
async def test_encoded_bodies_are_not_taken(start: Start, header: str, status: int) -> None:
    """Any Content-Encoding but identity is 415, whether the HTTP library knows it or not."""
    receiver = await start()

    response = await receiver.ask(a_request(EXAMPLE, headers=(header,)))

    assert response.status == status
    assert len(receiver.spool.pushes) == (status == 200)


FULL = SpoolFullError()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        # Every request is wrong in all the ways that come after the one that must answer.
        (a_request(b"x" * 4097, method="GET", target="/no", content_type="text/plain"), 404),
        (a_request(b"x" * 4097, method="GET", content_type="text/plain"), 405),
        (a_request(b"x" * 4097, content_type="text/plain"), 415),
        (a_request(b"x" * 4097, headers=("Content-Encoding: gzip",)), 415),
        (a_request(b"x" * 4097), 413),
    ],
)
async def test_the_first_check_that_fails_answers(start: Start, request_: bytes, status: int) -> None:
    """404, 405, 415, 413, 408, 401, 400, 503: in this order."""
    receiver = await start(spool=FakeSpool(error=FULL))

    response = await receiver.ask(request_)

    assert response.status == status
    body = orjson.loads(response.body)
    assert list(body) == ["returnCode", "returnCodeDesc"]
    assert body["returnCode"] == status
    assert response.headers["content-type"] == "application/json"


async def test_a_body_of_exactly_the_limit_is_taken(start: Start) -> None:
    """DLR_BODY_MAX_BYTES is the greatest size that is taken."""
    receiver = await start()
    body = b'{"statusReportList":[]}'.ljust(4096)

    assert (await receiver.ask(a_request(body))).status == 200
    assert (await receiver.ask(a_request(body + b" "))).status == 413
    assert len(receiver.spool.pushes) == 1


async def test_a_stated_length_beyond_the_limit_is_refused_before_the_body(start: Start) -> None:
    """413 does not wait for the bytes, and closes."""
    receiver = await start()
    sender = await receiver.connect()

    await sender.send(a_request(length=10**12))

    response = await sender.answer()
    assert (response.status, response.headers["connection"]) == (413, "close")


@pytest.mark.parametrize(
    ("stated", "status"),
    [("0" * 5000 + str(len(EXAMPLE)), 200), ("9" * 19, 413), ("0" * 5000 + "9" * 19, 413)],
)
async def test_a_length_of_many_digits_is_only_a_number(start: Start, stated: str, status: int) -> None:
    """However it is written, it gets the answer of its value, never 500."""
    receiver = await start()
    request = a_request(EXAMPLE, length=-1).replace(b"Content-Length: -1", b"Content-Length: " + stated.encode())

    assert (await receiver.ask(request)).status == status


async def test_a_chunked_body_beyond_the_limit_is_refused(start: Start) -> None:
    """413 also where no length was stated, as soon as the limit is passed."""
    receiver = await start()
    sender = await receiver.connect()

    await sender.send(a_request(headers=("Transfer-Encoding: chunked",)))
    for _ in range(5):
        await sender.send(b"400\r\n" + b"x" * 1024 + b"\r\n")

    response = await sender.answer()
    assert (response.status, response.headers["connection"]) == (413, "close")
    assert receiver.spool.pushes == []


async def test_a_chunked_body_is_taken(start: Start) -> None:
    """Chunks are joined; their borders mean nothing."""
    receiver = await start()
    sender = await receiver.connect()

    await sender.send(a_request(headers=("Transfer-Encoding: chunked",)))
    for piece in (EXAMPLE[:100], EXAMPLE[100:101], EXAMPLE[101:]):
        await sender.send(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
    await sender.send(b"0\r\n\r\n")

    assert (await sender.answer()).status == 200
    assert [push.body for push in receiver.spool.pushes] == [EXAMPLE]


async def test_a_body_that_does_not_come_in_time_is_answered_408(start: Start) -> None:
    """What came of it is not kept, and the connection is closed."""
    receiver = await start(request_timeout_s=0.2)
    sender = await receiver.connect()

    await sender.send(a_request(EXAMPLE[:100], length=len(EXAMPLE)))

    response = await sender.answer()
    assert (response.status, response.headers["connection"]) == (408, "close")
    assert receiver.spool.pushes == []


@pytest.mark.parametrize("sent", [b"POST /batchRep", b"POST /batchReport HTTP/1.1\r\nHost: a\r\n"])
async def test_an_incomplete_head_is_just_closed(start: Start, sent: bytes) -> None:
    """No answer, no count: there was no request. It has the request timeout, not that of an idle connection."""
    receiver = await start(request_timeout_s=0.2, keepalive_s=100)
    sender = await receiver.connect()

    await sender.send(sent)

    assert await sender.end() == b""


async def test_an_idle_connection_is_closed_after_the_keepalive_time(start: Start) -> None:
    """DLR_KEEPALIVE_S counts for a connection that never asks, and for one that asked before."""
    receiver = await start(keepalive_s=1)
    silent = await receiver.connect()
    used = await receiver.connect()

    await used.send(a_request(EXAMPLE))

    assert (await used.answer()).status == 200
    assert await used.end() == b""
    assert await silent.end() == b""


async def test_a_connection_is_kept_and_closed_as_the_sender_asks(start: Start) -> None:
    """Several pushes on one connection; `Connection: close` ends it after the answer."""
    receiver = await start()
    sender = await receiver.connect()

    for _ in range(3):
        await sender.send(a_request(EXAMPLE))
        assert (await sender.answer()).status == 200
    await sender.send(a_request(EXAMPLE, headers=("Connection: close",)))

    response = await sender.answer()
    assert (response.status, response.headers["connection"]) == (200, "close")
    assert await sender.end() == b""
    assert len(receiver.spool.pushes) == 4


async def test_pushes_sent_ahead_are_answered_in_order(start: Start) -> None:
    """Pipelining: each push has its answer, however many wait."""
    receiver = await start()
    sender = await receiver.connect()
    bodies = [b'{"statusReportList":[]}'.ljust(100 + number) for number in range(100)]

    await sender.send(b"".join(map(a_request, bodies)))
    statuses = [(await sender.answer()).status for _ in bodies]

    assert statuses == [200] * 100
    assert [push.body for push in receiver.spool.pushes] == bodies


async def test_expect_100_continue_is_answered_before_the_body(start: Start) -> None:
    """A sender that waits for 100 gets it, then the answer; one that would be refused gets only the refusal."""
    receiver = await start()
    sender = await receiver.connect()

    await sender.send(a_request(length=len(EXAMPLE), headers=("Expect: 100-continue",)))
    assert await sender.head() == (100, {})
    await sender.send(EXAMPLE)
    assert (await sender.answer()).status == 200

    refused = await receiver.ask(a_request(length=5000, headers=("Expect: 100-continue",)))
    assert (refused.status, refused.headers["connection"]) == (413, "close")


async def test_a_sender_that_shuts_its_side_down_still_gets_its_answer(start: Start) -> None:
    """Half-closing after the request is allowed by TCP; the push is ours, so is the duty to say so."""
    spool = FakeSpool(gate=asyncio.Event())
    receiver = await start(spool=spool)
    sender = await receiver.connect()

    await sender.send(a_request(EXAMPLE))
    sender.writer.write_eof()
    await spool.arrived.wait()
    assert spool.gate is not None
    spool.gate.set()

    assert (await sender.answer()).status == 200
    assert await sender.end() == b""


async def test_http_1_0_is_served_and_closed(start: Start) -> None:
    """An old proxy in front is no reason to lose a push."""
    receiver = await start()
    sender = await receiver.connect()

    await sender.send(b"POST /batchReport HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(EXAMPLE), EXAMPLE))

    assert (await sender.answer()).status == 200
    assert await sender.end() == b""


async def test_more_reports_than_documented_are_counted(start: Start) -> None:
    """More than 50 in a push is not an error."""
    receiver = await start(reports_max=100)

    response = await receiver.ask(a_request(orjson.dumps({"statusReportList": [1] * 51})))

    assert response.status == 200
    assert receiver.count("dlrflow_large_pushes_total") == 1
