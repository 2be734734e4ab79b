"""The hostile sender's end of one connection: writes pieces as they are cut, and reads answers to the last byte."""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass
from typing import Final

from tests.fuzz.framing import Case, Finish
from tests.fuzz.slow_http import End, Wire

CLOSED_WITHIN_S: Final = 20.0
"""Far beyond every timeout of the receiver: a connection that is open then is open for ever."""

_HEAD: Final = re.compile(
    rb"HTTP/1\.1 ([0-9]{3}) ([A-Za-z -]+)\r\n"
    rb"Server: dlrflow\r\nContent-Type: application/json\r\nContent-Length: ([0-9]+)\r\n"
    rb"((?:Allow: POST\r\n|Retry-After: [0-9]+\r\n)?)"
    rb"Date: [A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT\r\n"
    rb"((?:Connection: (?:close|keep-alive)\r\n)?)\r\n"
)
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as it came over the wire."""

    status: int
    extra: bytes
    body: bytes
    closes: bool


@dataclass(slots=True)
class Heard:
    """What came back on one connection.

    Attributes:
        answers: in order.
        rest: bytes that are no whole answer.
        reset: the connection ended by a reset, which may have taken answers with it.
        closed: it ended at all.
        sender: the address that it came from, which no other connection of its round has.
    """

    answers: list[Answer]
    rest: bytes
    reset: bool
    closed: bool
    sender: str


class _Reader(asyncio.Protocol):
    """Cuts what arrives into answers."""

    def __init__(self, methods: list[bytes]) -> None:
        self._methods = methods
        self._buffer = b""
        self.answers: list[Answer] = []
        self.reset = False
        self.changed = asyncio.Event()
        self.closed = asyncio.Event()

    @property
    def rest(self) -> bytes:
        return self._buffer

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._next():
            pass
        self.changed.set()

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.reset = exc is not None
        self.closed.set()
        self.changed.set()

    def _next(self) -> bool:
        self._buffer = self._buffer.removeprefix(_CONTINUE)
        head = _HEAD.match(self._buffer)
        if head is None:
            return False
        number = len(self.answers)
        headless = number < len(self._methods) and self._methods[number] == b"HEAD"
        if headless and self._buffer.endswith(b"}"):  # the parser refused it, and does not know the method
            headless = False
        end = head.end() + (0 if headless else int(head[3]))
        if len(self._buffer) < end:
            return False
        self.answers.append(Answer(int(head[1]), head[4], self._buffer[head.end() : end], b"close" in head[5]))
        self._buffer = self._buffer[end:]
        return True


def sender_of(case: Case) -> str:
    """A loopback address of its own for each of sixteen million cases that follow one another."""
    number = case.number % (1 << 24)
    return f"127.{1 + (number >> 16) % 250}.{number >> 8 & 255}.{number & 255}"


async def send(case: Case, wire: Wire, address: tuple[str, int]) -> Heard:
    """Play a case against a receiver."""
    loop = asyncio.get_running_loop()
    reader = _Reader([request.method for request in wire.requests])
    sender = sender_of(case)
    transport, _ = await loop.create_connection(lambda: reader, *address, local_addr=(sender, 0))
    try:
        for piece in case.pieces:
            if transport.is_closing():
                break
            transport.write(piece)
            if case.cuts:
                await asyncio.sleep(0)
        if case.finish is Finish.ABORT:
            transport.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSED_WITHIN_S):
                await _read_to_the_end(case, wire, reader, transport)
    finally:
        closed = reader.closed.is_set()
        transport.abort()
        await reader.closed.wait()
    return Heard(reader.answers, reader.rest, reader.reset, closed, sender)


async def _read_to_the_end(case: Case, wire: Wire, reader: _Reader, transport: asyncio.WriteTransport) -> None:
    due = len(wire.requests)
    while not reader.closed.is_set() and len(reader.answers) < due:
        reader.changed.clear()
        await reader.changed.wait()
    if case.finish is Finish.END and wire.end not in (End.CLOSED, End.BEYOND) and not transport.is_closing():
        with contextlib.suppress(OSError):  # it is gone already
            transport.write_eof()
    await reader.closed.wait()
