"""The worker's end of what parent and worker say to each other.

The parent first sends the settings, as length and pickle, later one byte to ask for a clean end. The worker sends its
state as JSON lines: on one hand so that the parent knows whether it can take pushes, on the other as a sign of life of
its event loop. The end of the stream means to each that the other is gone.
"""

import asyncio
import pickle
import socket
import struct
from typing import Any, Final

import msgspec

STOP: Final = b"S"
HEARTBEAT_S: Final = 0.5
_LENGTH: Final = struct.Struct(">I")


class State(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker says of itself.

    Attributes:
        ready: it can take the smallest push.
        begun: it serves its port; before, its states are signs of life alone.
        failed: it cannot work at all: the sentence for the operator, and `status` that of the command.
        detail: of its health, for people.
    """

    ready: bool
    begun: bool = False
    failed: str = ""
    status: int = 0
    detail: dict[str, Any] = {}


def pack_settings(settings: object) -> bytes:
    """What the parent sends first. It goes through a socket that nobody else has, because it holds secrets."""
    data = pickle.dumps(settings)
    return _LENGTH.pack(len(data)) + data


class Channel:
    """The worker's end.

    Attributes:
        orphaned: set when the parent is gone.
        stop: set when the parent asks for an end, or is gone.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.stop = asyncio.Event()
        self.orphaned = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, descriptor: int) -> tuple["Channel", Any]:
        """Take the descriptor that the parent passed; returns the channel and the settings."""
        reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=descriptor))
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        settings = pickle.loads(await reader.readexactly(length))  # noqa: S301 - our own parent wrote it
        channel = cls(reader, writer)
        channel._listening = asyncio.create_task(channel._listen())
        return channel, settings

    def say(self, state: State) -> None:
        """Tell the parent; what it has not read after a while is its own loss."""
        if not self.orphaned.is_set() and not self._writer.transport.get_write_buffer_size():
            self._writer.write(msgspec.json.encode(state) + b"\n")

    async def close(self) -> None:
        """Send what is still to be sent and let go."""
        if self._listening is not None:
            self._listening.cancel()
        self._writer.close()

    async def _listen(self) -> None:
        while (said := await self._hear()) and said != STOP:
            pass
        if not said:
            self.orphaned.set()
        self.stop.set()
        if said and not await self._hear():
            self.orphaned.set()

    async def _hear(self) -> bytes:
        try:
            return await self._reader.read(1)
        except ConnectionError:
            return b""
