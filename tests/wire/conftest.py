"""The callback port over a real socket, with a spool in memory: what goes over the wire, byte by byte."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import uvloop
from prometheus_client import CollectorRegistry

from ingest.contract.push import Push
from ingest.receiver.app import CallbackPort, HttpSettings, Tls
from ingest.receiver.durable import AckMode, DirectPublisher, durable_path
from ingest.receiver.gate import OPEN, Gates
from ingest.receiver.statistics import ReceiverMetrics
from ingest.runtime.clock import SystemClock
from ingest.spool.base import SpoolFullError

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
SETTINGS = HttpSettings(
    batch_path="/batchReport",
    single_path="/report",
    body_max_bytes=4096,
    reports_max=3,
    request_timeout_s=5,
    keepalive_s=5,
    connections_max=100,
    connections_per_peer_max=0,
    bodies_max_bytes=1 << 20,
    head_max_bytes=32_768,
    headers_max=128,
    connection_max_age_s=600,
)


@dataclass
class FakeSpool:
    """A spool in memory.

    Attributes:
        pushes: what was appended.
        error: raised by every append, if set.
        gate: an append waits for it.
    """

    pushes: list[Push] = field(default_factory=list)
    error: Exception | None = None
    gate: asyncio.Event | None = None
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def append(self, push: Push) -> None:
        """Keep it, or raise."""
        self.arrived.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.pushes.append(push)

    def has_room(self) -> bool:
        """Room unless full."""
        return not isinstance(self.error, SpoolFullError)


@dataclass
class Response:
    """One answer as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes


class Sender:
    """A raw connection to the port."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        """Write bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next answer; names in lower case."""
        lines = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)).decode().split("\r\n")
        fields = (line.partition(": ") for line in lines[1:-2])
        return int(lines[0].split()[1]), {name.lower(): value for name, _, value in fields}

    async def answer(self) -> Response:
        """The next answer."""
        status, headers = await self.head()
        body = await asyncio.wait_for(self.reader.readexactly(int(headers.get("content-length", 0))), 10)
        return Response(status, headers, body)

    async def end(self) -> bytes:
        """What comes until the port closes the connection."""
        return await asyncio.wait_for(self.reader.read(), 10)


def a_request(  # noqa: D103 - the name says it
    body: bytes = b"",
    *,
    method: str = "POST",
    target: str = "/batchReport",
    content_type: str | None = JSON,
    headers: tuple[str, ...] = (),
    length: int | None = None,
) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: dlr.example.com"]
    if content_type is not None:
        lines.append(f"Content-Type: {content_type}")
    if not any(line.lower().startswith("transfer-encoding") for line in headers):
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


@dataclass
class Receiver:
    """A running port and what is behind it."""

    port: CallbackPort
    address: tuple[str, int]
    spool: FakeSpool
    registry: CollectorRegistry
    durable: Any
    senders: list[Sender] = field(default_factory=list)

    async def connect(self, **options: Any) -> Sender:
        """A new connection, closed with the test; `options` are those of `asyncio.open_connection`."""
        sender = Sender(*await asyncio.open_connection(*self.address, **options))
        self.senders.append(sender)
        return sender

    async def ask(self, data: bytes) -> Response:
        """Send bytes on a connection of their own, return the answer."""
        sender = await self.connect()
        await sender.send(data)
        return await sender.answer()

    def count(self, name: str, **labels: str) -> float:
        """The value of a metric, 0 if it was never counted."""
        return self.registry.get_sample_value(name, labels) or 0


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop of production."""
    return {"uvloop": uvloop.new_event_loop}


Start = Callable[..., Awaitable[Receiver]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts a port; settings by name over the defaults, and `spool`, `mode`, `publisher`, `ack_timeout_s`, `gates`."""
    running: list[Receiver] = []

    async def run(
        *,
        spool: FakeSpool | None = None,
        mode: AckMode = AckMode.SPOOL,
        publisher: DirectPublisher | None = None,
        ack_timeout_s: float = 5,
        tls: Callable[[CollectorRegistry], Tls] | None = None,
        gates: Callable[[CollectorRegistry], Gates] = lambda _: OPEN,
        listener: socket.socket | None = None,
        **settings: Any,
    ) -> Receiver:
        listener = listener or socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        address = listener.getsockname()
        registry = CollectorRegistry()
        spool = spool or FakeSpool()
        durable = durable_path(mode, spool, publisher, ack_timeout_s=ack_timeout_s)
        port = CallbackPort(
            listener,
            settings=replace(SETTINGS, **settings),
            durable=durable,
            clock=SystemClock(),
            metrics=ReceiverMetrics(registry),
            gates=gates(registry),
            tls=None if tls is None else tls(registry),
        )
        port.start()
        running.append(Receiver(port, address, spool, registry, durable))
        return running[-1]

    yield run
    for receiver in running:
        for sender in receiver.senders:
            sender.writer.close()
            with_errors = await asyncio.gather(sender.writer.wait_closed(), return_exceptions=True)
            assert all(error is None or isinstance(error, OSError) for error in with_errors)
        await receiver.port.leave(1)
