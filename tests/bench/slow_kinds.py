"""Senders that mean no good, in a process of their own: `python -m tests.bench.slow_kinds KIND COUNT PORT ADDRESSES`.

Each of `COUNT` slots keeps one connection to the port open in the way of its kind, and opens another as soon as it is
closed. The connections come from as many loopback addresses as asked for, from 127.1.0.1 on. One line on standard
output says that the slots have begun; the process ends when standard input does.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import socket
import sys
from typing import Final, cast

import uvloop

KINDS: Final = ("heads", "bodies", "idle", "unread", "flood")
MIXTURES: Final = {"mixed": KINDS, "patient": KINDS[:-1]}
TICK_S: Final = 1.0
"""Between two bytes of a slow sender."""

FLOOD_PER_S: Final = 500
"""Connections that are opened and dropped at once, over all slots, one after the other."""

CONNECTING_MOST: Final = 100
REST_MOST_S: Final = 1.0
"""Before a slot connects, at random: slots that come all at once, or at once again, are a flood."""

RECEIVE_BUFFER_BYTES: Final = 4096
HEAD: Final = b"POST /batchReport HTTP/1.1\r\nHost: slow.example.com\r\nContent-Type: application/json\r\n"
BEGINNING: Final = {
    "heads": HEAD + b"X-Slow: ",
    "bodies": HEAD + b"Content-Length: 1000000\r\n\r\n",
    "idle": b"",
    "unread": b"GET /nothing HTTP/1.1\r\nHost: slow.example.com\r\n\r\n" * 100,
    "flood": b"",
}
PIECE: Final = {"heads": b"x", "bodies": b" "}


class Slow(asyncio.Protocol):
    """One connection."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._transport: asyncio.Transport | None = None
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin in the way of the kind."""
        self._transport = cast("asyncio.Transport", transport)
        if self._kind == "unread":
            self._transport.pause_reading()
        self._transport.write(BEGINNING[self._kind])

    def resume_writing(self) -> None:
        """One that reads no answer asks as long as it can."""
        if self._transport is not None and self._kind == "unread":
            self._transport.write(BEGINNING["unread"])

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        """See `asyncio.Protocol`."""
        self.lost.set()

    def tick(self) -> None:
        """Send the next byte."""
        if self._transport is not None and not self._transport.is_closing():
            if self._kind == "unread":
                self.resume_writing_if_empty()
            elif piece := PIECE.get(self._kind):
                self._transport.write(piece)

    def resume_writing_if_empty(self) -> None:
        """The last requests are all with the receiver: more of them."""
        if self._transport is not None and not self._transport.get_write_buffer_size():
            self._transport.write(BEGINNING["unread"])


async def keep(kind: str, address: str, port: int, *, connecting: asyncio.Semaphore, rest_most_s: float) -> None:
    """Keep one slot for ever."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(random.uniform(0, rest_most_s))
        sock = socket.socket()
        sock.setblocking(False)  # noqa: FBT003 - the socket's own signature
        if kind == "unread":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        protocol = Slow(kind)
        try:
            async with connecting:
                sock.bind((address, 0))
                await loop.sock_connect(sock, ("127.0.0.1", port))
                if kind == "flood":
                    raise ConnectionAbortedError
                await loop.create_connection(lambda made=protocol: made, sock=sock)  # type: ignore[misc]
        except OSError:
            sock.close()
        else:
            while not protocol.lost.is_set():
                try:
                    await asyncio.wait_for(protocol.lost.wait(), TICK_S)
                except TimeoutError:
                    protocol.tick()


async def main() -> None:
    """Keep all slots until standard input ends."""
    kind, count, port, addresses = sys.argv[1], *map(int, sys.argv[2:5])
    kinds = itertools.cycle(MIXTURES.get(kind, (kind,)))
    connecting = asyncio.Semaphore(CONNECTING_MOST)
    slots = set()  # a task that nobody keeps may vanish
    for number, each in zip(range(count), kinds, strict=False):
        own = number % addresses
        rest_most_s = 2 * count / FLOOD_PER_S if each == "flood" else REST_MOST_S
        slots.add(
            asyncio.create_task(
                keep(each, f"127.1.{own // 250}.{own % 250 + 1}", port, connecting=connecting, rest_most_s=rest_most_s)
            )
        )
    print("begun", flush=True)  # noqa: T201 - what is waited for
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)  # nothing of this is worth an orderly end


if __name__ == "__main__":
    uvloop.run(main())
