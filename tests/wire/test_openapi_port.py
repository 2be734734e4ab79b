"""The callback port keeps to its own OpenAPI description, whatever schemathesis makes of that."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import schemathesis
import uvloop
from hypothesis import HealthCheck, settings
from prometheus_client import CollectorRegistry
from schemathesis import checks

from ingest.receiver.app import CallbackPort
from ingest.receiver.durable import AckMode, durable_path
from ingest.receiver.openapi import Described, describe
from ingest.receiver.statistics import ReceiverMetrics
from ingest.runtime.clock import SystemClock
from tests.wire.conftest import SETTINGS, FakeSpool

EXAMPLES = 25
HTTP = replace(SETTINGS, body_max_bytes=65_536, reports_max=20)
DESCRIPTION = describe(
    Described(
        batch_path=HTTP.batch_path,
        single_path=HTTP.single_path,
        body_max_bytes=HTTP.body_max_bytes,
        reports_max=HTTP.reports_max,
    )
)
CHECKS = (
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
)
"""Not those that want bad data refused: a batch is answered 200 whatever its elements are."""

schema = schemathesis.openapi.from_dict(DESCRIPTION)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A port in a thread of its own: schemathesis waits for its answers."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    started, stop = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        port = CallbackPort(
            listener,
            settings=HTTP,
            durable=durable_path(AckMode.SPOOL, FakeSpool(), None, ack_timeout_s=5),
            clock=SystemClock(),
            metrics=ReceiverMetrics(CollectorRegistry()),
        )
        port.start()
        started.set()
        await stop.wait()
        await port.leave(1)

    thread = threading.Thread(target=lambda: uvloop.run(serve()))
    thread.start()
    started.wait()
    yield f"http://127.0.0.1:{address[1]}"
    loops[0].call_soon_threadsafe(stop.set)
    thread.join()


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_port_keeps_to_its_description(case: schemathesis.Case[Any], url: str) -> None:
    """Every answer has a status, a type, headers and a body that the description knows."""
    case.call_and_validate(base_url=url, checks=list(CHECKS))
