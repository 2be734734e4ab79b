"""Who may push, over real HTTP: 401, 403, their place among the other answers, and what is told of them."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry

from ingest.contract.settings import AuthSettings, NetworkSettings
from ingest.receiver.gate import LOG_EVERY_S, Gates, Seldom, gates, shown
from ingest.receiver.keys import Keys, KeysFile
from ingest.receiver.signature import Reason
from ingest.runtime.clock import SystemClock
from tests.signer import ACCESS_KEY, SECRET_KEY, Signer
from tests.wire.conftest import JSON, Start, a_request

BODY = b'{"statusReportList":[{"smsMsgId":"m1","status":"DELIVRD"}]}'
SUCCESS = b'{"returnCode":0,"returnCodeDesc":"Success"}'
NOT_AUTHENTIC = b'{"returnCode":401,"returnCodeDesc":"The signature is missing, wrong or stale."}'
FORBIDDEN = b'{"returnCode":403,"returnCodeDesc":"This network may not push here."}'
HOST = "dlr.example.com"
LOCAL = {"allowed_networks": "127.0.0.0/8"}
ELSEWHERE = {"allowed_networks": "117.78.29.0/24"}
KEYS = Keys({ACCESS_KEY: SECRET_KEY.encode()})


def with_keys(networks: Mapping[str, str] | None = None, **auth: str) -> Callable[[CollectorRegistry], Gates]:
    """Checks signatures with the example's key, and networks if any are given; settings as texts."""
    return _gates(networks or {}, auth, KeysFile(Path("keys.json"), KEYS))


def with_networks(**networks: str) -> Callable[[CollectorRegistry], Gates]:
    """Checks networks alone."""
    return _gates(networks, {}, None)


def _gates(
    networks: Mapping[str, str], auth: Mapping[str, str], keys: KeysFile | None
) -> Callable[[CollectorRegistry], Gates]:
    chosen = AuthSettings.model_validate(auth), NetworkSettings.model_validate(networks)
    return lambda registry: gates(*chosen, keys, registry=registry, clock=SystemClock())


def signed(body: bytes = BODY, *, path: str = "/batchReport", off_s: int = 0, **changes: Any) -> Signer:
    """A push signed as the platform signs, now or some seconds off."""
    date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() + off_s))
    headers = [
        ("connection", "close"),
        ("content-length", str(len(body))),
        ("content-type", JSON),
        ("host", HOST),
        ("x-sdk-date", date),
    ]
    return Signer(path=path, body=body, headers=headers).but(**changes)


def on_the_wire(signer: Signer, *, target: str = "/batchReport", body: bytes | None = None) -> bytes:
    """The request as the platform sends it."""
    lines = [f"{signer.method} {target} HTTP/1.1".encode()]
    lines += [name.title() + b": " + value for name, value in signer.wire_headers()]
    return b"\r\n".join([*lines, b"", signer.body if body is None else body])


async def test_a_signed_push_is_accepted(start: Start) -> None:
    """And one that is not signed gets 401 with a challenge, is counted, and is not kept."""
    receiver = await start(gates=with_keys())

    good = await receiver.ask(on_the_wire(signed()))
    bad = await receiver.ask(a_request(BODY))

    assert (good.status, good.body) == (200, SUCCESS)
    assert (bad.status, bad.body) == (401, NOT_AUTHENTIC)
    assert bad.headers["www-authenticate"] == "SDK-HMAC-SHA256"
    assert [push.body for push in receiver.spool.pushes] == [BODY]
    assert receiver.count("dlrflow_auth_failures_total", reason="missing") == 1
    assert receiver.count("dlrflow_http_requests_total", path="/batchReport", status="401") == 1
    assert receiver.count("dlrflow_reports_received_total") == 1


async def test_single_callbacks_are_signed_alike(start: Start) -> None:
    """The form as it was sent, percent-encoded, is what is hashed."""
    receiver = await start(gates=with_keys())
    signer = signed(b"smsMsgId=m1&status=DELIVRD&to=%2B8613", path="/report")
    form = "application/x-www-form-urlencoded"
    signer = signer.but(headers=[(name, form if name == "content-type" else value) for name, value in signer.headers])

    assert (await receiver.ask(on_the_wire(signer, target="/report"))).status == 200
    assert (await receiver.ask(on_the_wire(signer, target="/report").replace(b"%2B", b"%2b"))).status == 401


async def test_the_query_is_ignored_but_signed(start: Start) -> None:
    """As received: another one, or none, is refused."""
    receiver = await start(gates=with_keys())
    request = signed(query=[("a", "1 2"), ("b", "")])

    assert (await receiver.ask(on_the_wire(request, target="/batchReport?b&a=1+2"))).status == 200
    assert (await receiver.ask(on_the_wire(request, target="/batchReport?b&a=12"))).status == 401
    assert (await receiver.ask(on_the_wire(request))).status == 401
    assert receiver.count("dlrflow_auth_failures_total", reason="wrong") == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda wire: wire.replace(b"DELIVRD", b"EXPIRED"), "wrong"),
        (lambda wire: wire.replace(b"Host: dlr", b"Host: dlx"), "wrong"),
        (lambda wire: wire.replace(b"Connection: close", b"Connection: keep-alive"), "wrong"),
        (
            lambda wire: wire.replace(b"\r\nX-Sdk-Date", b"\r\nX-Sdk-Date: 20241212T070653Z\r\nX-Sdk-Date"),
            "header-repeated",
        ),
        (lambda wire: wire.replace(b"\r\nConnection: close", b""), "header-missing"),
        (lambda wire: wire.replace(b"Access=exampleAk", b"Access=other"), "unknown-key"),
        (lambda wire: wire.replace(b"SDK-HMAC-SHA256", b"SDK-HMAC-SHA1"), "scheme"),
        (lambda wire: wire.replace(b"Signature=", b"Signature=0"), "malformed"),
        (
            lambda wire: wire.replace(b"\r\nHost", b"\r\nX-Sdk-Content-Sha256: UNSIGNED-PAYLOAD\r\nHost"),
            "unsigned-payload",
        ),
        (lambda wire: wire.replace(b"\r\nHost", b"\r\nX-Sdk-Content-Sha256: 00\r\nHost"), "body-hash"),
    ],
)
async def test_what_is_changed_on_the_way_is_refused(
    start: Start, change: Callable[[bytes], bytes], reason: str
) -> None:
    """Over HTTP as in the verifier, with the reason counted."""
    receiver = await start(gates=with_keys())
    wire = on_the_wire(signed())

    response = await receiver.ask(change(wire))

    assert (response.status, response.body) == (401, NOT_AUTHENTIC)
    assert receiver.count("dlrflow_auth_failures_total", reason=reason) == 1
    assert not receiver.spool.pushes
    assert change(wire) != wire


@pytest.mark.parametrize(("off_s", "status"), [(-800, 200), (800, 200), (-1000, 401), (1000, 401)])
async def test_a_date_far_from_now_is_refused(start: Start, off_s: int, status: int) -> None:
    """By the clock of this machine."""
    receiver = await start(gates=with_keys())
    assert (await receiver.ask(on_the_wire(signed(off_s=off_s)))).status == status
    assert receiver.count("dlrflow_auth_failures_total", reason="stale") == (status == 401)


async def test_a_body_in_pieces_is_hashed_as_a_whole(start: Start) -> None:
    """Chunked, too: what is signed is what was sent, not how it was cut."""
    receiver = await start(gates=with_keys())
    signer = signed()
    signer = signer.but(headers=[header for header in signer.headers if header[0] != "content-length"])
    head = on_the_wire(signer, body=b"").replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (BODY[:7], BODY[7:])) + b"0\r\n\r\n"

    assert (await receiver.ask(head + chunks)).status == 200
    assert [push.body for push in receiver.spool.pushes] == [BODY]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (a_request(BODY, target="/elsewhere"), 404),
        (a_request(BODY, method="PUT"), 405),
        (a_request(BODY, content_type="text/plain"), 415),
        (a_request(b"", length=5000), 413),
        (a_request(b"x" * 100, headers=("Transfer-Encoding: gzip, chunked",)), 400),
        (a_request(b"not json"), 401),
        (on_the_wire(signed(b"not json")), 400),
        (on_the_wire(signed(b'{"statusReportList":[1,2,3,4]}')), 400),
    ],
)
async def test_the_signature_is_checked_between_the_body_and_its_parsing(
    start: Start, request_bytes: bytes, status: int
) -> None:
    """The order of the contract: 404, 405, 415, 413 stand before 401, and 400 of the content after it."""
    receiver = await start(gates=with_keys())
    assert (await receiver.ask(request_bytes)).status == status


async def test_a_body_that_is_not_complete_is_408_before_401(start: Start) -> None:
    """There is nothing to check yet."""
    receiver = await start(gates=with_keys(), request_timeout_s=0.05)
    assert (await receiver.ask(a_request(BODY, length=len(BODY) + 1))).status == 408


async def test_a_refused_push_that_nothing_could_keep_is_401(start: Start) -> None:
    """401 stands before 503: nobody without key learns how full the disk is."""
    receiver = await start(gates=with_keys())
    receiver.spool.error = OSError("full")
    assert (await receiver.ask(a_request(BODY))).status == 401


async def test_behind_a_proxy_the_configured_values_are_tried(start: Start) -> None:
    """Host, prefix and connection as the platform knew them."""
    receiver = await start(
        gates=with_keys(
            auth_external_hosts="a.example.com,dlr.example.com:8443",
            auth_path_prefix="/sms/",
            auth_connection_values="close,keep-alive",
        )
    )
    signer = signed(path="/sms/batchReport")
    outside = {"host": "dlr.example.com:8443", "connection": "keep-alive"}
    signer = signer.but(headers=[(name, outside.get(name, value)) for name, value in signer.headers])
    wire = on_the_wire(signer).replace(b"dlr.example.com:8443", b"backend").replace(b"Connection: keep-alive\r\n", b"")

    assert (await receiver.ask(wire)).status == 200
    assert (await receiver.ask(wire.replace(b"DELIVRD", b"EXPIRED"))).status == 401
    assert (await receiver.ask(on_the_wire(signed()))).status == 200


async def test_other_networks_get_403_before_anything_else(start: Start) -> None:
    """Before 404 and 401, for any method; counted."""
    receiver = await start(gates=with_keys(ELSEWHERE))
    for data in (on_the_wire(signed()), a_request(BODY, target="/elsewhere"), a_request(b"", method="GET")):
        response = await receiver.ask(data)
        assert (response.status, response.body) == (403, FORBIDDEN)

    assert not receiver.spool.pushes
    assert receiver.count("dlrflow_network_refusals_total", reason="not-allowed") == 3
    assert receiver.count("dlrflow_http_requests_total", path="/batchReport", status="403") == 2
    assert receiver.count("dlrflow_http_requests_total", path="other", status="403") == 1


async def test_allowed_networks_may_push(start: Start) -> None:
    """Nothing else is asked of them."""
    receiver = await start(gates=with_networks(**LOCAL))
    assert (await receiver.ask(a_request(BODY))).status == 200


@pytest.mark.parametrize(
    ("networks", "forwarded", "status"),
    [
        (ELSEWHERE, ("117.78.29.7",), 403),
        (LOCAL, ("8.8.8.8",), 200),
        ({**ELSEWHERE, "trusted_proxies": "127.0.0.0/8"}, ("117.78.29.7",), 200),
        ({**ELSEWHERE, "trusted_proxies": "127.0.0.0/8"}, ("117.78.29.7, 8.8.8.8",), 403),
        ({**ELSEWHERE, "trusted_proxies": "127.0.0.0/8"}, ("8.8.8.8", "117.78.29.7:1, 127.0.0.9"), 200),
        ({**ELSEWHERE, "trusted_proxies": "127.0.0.0/8"}, ("117.78.29.7", "8.8.8.8"), 403),
        ({**ELSEWHERE, "trusted_proxies": "127.0.0.0/8"}, ("117.78.29.7", "unknown"), 403),
        ({**ELSEWHERE, "trusted_proxies": "127.0.0.0/8"}, (), 403),
        ({**ELSEWHERE, "trusted_proxies": "10.0.0.0/8"}, ("117.78.29.7",), 403),
        ({**LOCAL, "trusted_proxies": "127.0.0.0/8"}, ("unknown",), 403),
        ({"trusted_proxies": "127.0.0.0/8"}, ("unknown",), 200),
    ],
)
async def test_forwarded_addresses_count_from_trusted_proxies_alone(
    start: Start, networks: dict[str, str], forwarded: tuple[str, ...], status: int
) -> None:
    """From the right over all headers; text that is no address is refused if networks are configured."""
    receiver = await start(gates=with_networks(**networks))
    headers = tuple(f"x-forwarded-FOR: {value}" for value in forwarded)

    assert (await receiver.ask(a_request(BODY, headers=headers))).status == status


async def test_other_networks_hold_few_connections_and_give_them_up(start: Start) -> None:
    """One in eight, and none that somebody who may push needs; those that ask are told 403."""
    receiver = await start(gates=with_networks(allowed_networks="127.0.0.1/32"), connections_max=16)
    elsewhere = {"local_addr": ("127.0.0.2", 0)}
    foreigners = [await receiver.connect(**elsewhere) for _ in range(2)]
    await foreigners[0].send(a_request(BODY))
    told = await foreigners[0].answer()
    turned_away = await receiver.connect(**elsewhere)
    ended = await turned_away.end()

    honest = [await receiver.connect() for _ in range(16)]
    for sender in honest:
        await sender.send(a_request(BODY))
    answers = [(await sender.answer()).status for sender in honest]

    assert (told.status, told.body, ended) == (403, FORBIDDEN, b"")
    assert answers == [200] * 16
    assert [await foreigner.end() for foreigner in foreigners] == [b"", b""]
    assert receiver.count("dlrflow_limited_total", limit="connections-foreign") == 1
    assert receiver.count("dlrflow_network_refusals_total", reason="not-allowed") == 1


async def test_a_trusted_proxy_is_no_foreigner(start: Start) -> None:
    """Though its own address may not push: it speaks for those that may."""
    networks = {**ELSEWHERE, "trusted_proxies": "127.0.0.0/8"}
    receiver = await start(gates=with_networks(**networks), connections_max=8)

    senders = [await receiver.connect() for _ in range(8)]
    for sender in senders:
        await sender.send(a_request(BODY, headers=("X-Forwarded-For: 117.78.29.7",)))

    assert [(await sender.answer()).status for sender in senders] == [200] * 8
    assert receiver.count("dlrflow_limited_total", limit="connections-foreign") == 0


async def test_refusals_are_told_seldom_and_briefly(start: Start) -> None:
    """One line per reason and while: reason and access key, made harmless; never signature or body."""
    receiver = await start(gates=with_keys())
    evil = b"Access=" + b"A" * 50 + b"\xff<secret>\xfe" + b"B" * 50
    with structlog.testing.capture_logs() as lines:
        for _ in range(5):
            await receiver.ask(on_the_wire(signed(access_key="n/o")))
            await receiver.ask(on_the_wire(signed()).replace(b"Access=exampleAk", evil))
            await receiver.ask(on_the_wire(signed()).replace(b"DELIVRD", b"EXPIRED"))

    told = [(line["reason"], line["access_key"], line["more_like_this"]) for line in lines]
    assert told == [("unknown-key", "n?o", 0), ("malformed", "", 0), ("wrong", ACCESS_KEY, 0)]
    assert "EXPIRED" not in str(lines)
    assert signed().signature()[:8] not in str(lines)
    assert receiver.count("dlrflow_auth_failures_total", reason="unknown-key") == 5


async def test_behind_a_proxy_the_line_names_who_pushed(start: Start) -> None:
    """The connection is always the proxy's; an address that no trusted proxy states does not count."""
    headers = [b"X-Forwarded-For: 192.0.2.9, 198.51.100.7"]
    peers = []
    for proxies in ("127.0.0.0/8", "10.0.0.0/8"):
        receiver = await start(gates=with_keys({"trusted_proxies": proxies}))
        head, body = a_request(BODY).split(b"\r\n\r\n", 1)
        with structlog.testing.capture_logs() as lines:
            await receiver.ask(b"\r\n".join([head, *headers, b"", body]))
        peers.append([(line["reason"], line["peer"], line["connected_from"]) for line in lines])

    assert peers == [[("missing", "198.51.100.7", "127.0.0.1")], [("missing", "127.0.0.1", "127.0.0.1")]]


def test_a_line_that_passes_tells_how_many_did_not() -> None:
    """So that nothing is hidden by the bound on lines."""

    class Hours:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

        def wall_ms(self) -> int:
            return 0

        async def sleep(self, seconds: float) -> None:
            self.now += seconds

    clock = Hours()
    seldom = Seldom(clock)

    assert [seldom.passes("a"), seldom.passes("a"), seldom.passes("a"), seldom.passes("b")] == [0, None, None, 0]
    clock.now = LOG_EVERY_S
    assert [seldom.passes("a"), seldom.passes("a")] == [2, None]


def test_an_access_key_is_made_harmless() -> None:
    """It is text of an unknown sender."""
    assert shown("exampleAk-1_b") == "exampleAk-1_b"
    assert shown("a\x1b[31m\n\u202e{}") == "a??31m????"
    assert len(shown("k" * 5000)) == 64


async def test_every_reason_is_counted_from_the_beginning(start: Start) -> None:
    """A dashboard can tell 0 from nothing."""
    receiver = await start(gates=with_keys())
    for reason in Reason:
        assert receiver.registry.get_sample_value("dlrflow_auth_failures_total", {"reason": reason.value}) == 0
