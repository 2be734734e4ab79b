"""The real callback port on the real HTTP stack with the real spool on disk, in this process, and what it holds."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import socket
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry

from ingest.contract.push import Push
from ingest.receiver.app import CallbackPort
from ingest.receiver.connection import Connection
from ingest.receiver.durable import AckMode, durable_path
from ingest.receiver.statistics import ReceiverMetrics
from ingest.runtime.clock import SystemClock
from ingest.runtime.files import RealFileSystem
from ingest.spool.accounts import Accounts
from ingest.spool.disk import DiskSpool, SpoolOptions, open_spool
from tests.fuzz.slow_http import BODY_MAX_BYTES, REPORTS_MAX
from tests.wire.conftest import SETTINGS

REQUEST_TIMEOUT_S: Final = 2.0
LEAVE_S: Final = 5.0
_OPTIONS: Final = SpoolOptions(allow_volatile=True, file_bytes=4 << 20)
_TAKE_BYTES: Final = 1 << 20
_SETTINGS: Final = replace(
    SETTINGS,
    body_max_bytes=BODY_MAX_BYTES,
    reports_max=REPORTS_MAX,
    request_timeout_s=REQUEST_TIMEOUT_S,
    keepalive_s=REQUEST_TIMEOUT_S,
    connections_max=1000,
    bodies_max_bytes=64 << 20,
)
_sender: ContextVar[str] = ContextVar("sender")


class Receiver:
    """A running port.

    Attributes:
        address: of the port.
        kept: what was appended durably, in the order of the calls.
        by_sender: the same by the address of the sender.
        faults: what the event loop was told of that nobody handled.
    """

    def __init__(self, port: CallbackPort, spool: DiskSpool, address: tuple[str, int]) -> None:
        self._port = port
        self._spool = spool
        self.address = address
        self.kept: list[Push] = []
        self.by_sender: dict[str, list[Push]] = defaultdict(list)
        self.faults: list[str] = []

    async def append(self, push: Push) -> None:
        """See `ingest.spool.base.Spool`; the pushes stand in the spool in the order of these calls."""
        self.kept.append(push)
        self.by_sender[_sender.get()].append(push)
        await self._spool.append(push)

    def has_room(self) -> bool:
        """See `ingest.spool.base.Spool`."""
        return self._spool.has_room()

    @property
    def held_bytes(self) -> int:
        """Bodies of requests that are not answered."""
        held: int = self._port._crowd.held_bytes
        return held

    @property
    def connections(self) -> int:
        """Open ones."""
        return len(self._port._server.connections)


@asynccontextmanager
async def receiving(folder: Path) -> AsyncIterator[Receiver]:
    """A receiver whose spool is in a new folder; it has left when this ends, and the folder stands."""
    accounts = Accounts()
    shutil.rmtree(folder, ignore_errors=True)
    spool = await open_spool(folder, _OPTIONS, fs=RealFileSystem(), clock=SystemClock(), accounts=accounts)
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    loop = asyncio.get_running_loop()
    holder: list[Receiver] = []

    class Recording:
        async def append(self, push: Push) -> None:
            await holder[0].append(push)

        def has_room(self) -> bool:
            return spool.has_room()

    port = CallbackPort(
        listener,
        settings=_SETTINGS,
        durable=durable_path(AckMode.SPOOL, Recording(), None, ack_timeout_s=1),
        clock=SystemClock(),
        metrics=ReceiverMetrics(CollectorRegistry()),
    )
    receiver = Receiver(port, spool, listener.getsockname())
    holder.append(receiver)
    made = Connection.connection_made

    def connection_made(self: Connection, transport: asyncio.BaseTransport) -> None:
        _sender.set((transport.get_extra_info("peername") or ("gone already",))[0])
        made(self, transport)

    loop.set_exception_handler(lambda _, context: receiver.faults.append(repr(context)))
    Connection.connection_made = connection_made  # type: ignore[method-assign]
    try:
        port.start()
        yield receiver
        await port.leave(LEAVE_S)
    finally:
        await port.leave(0)
        Connection.connection_made = made  # type: ignore[method-assign]
        if accounts.unaccounted():
            receiver.faults.append(f"{accounts.unaccounted()} reports are not accounted for")
        await spool.close()
        gc.collect()
        await asyncio.sleep(0)
        loop.set_exception_handler(None)


async def on_disk(folder: Path) -> list[Push]:
    """What a spool folder holds when it is opened again, as after a crash."""
    accounts = Accounts()
    spool = await open_spool(folder, _OPTIONS, fs=RealFileSystem(), clock=SystemClock(), accounts=accounts)
    found: list[Push] = []
    try:
        pending = spool.pending_reports
        taken = 0
        while taken < pending or (spool.pending_bytes and not found):
            items = await spool.take(_TAKE_BYTES)
            found += [item.push for item in items]
            taken += sum(item.push.reports for item in items)
            accounts.published = taken
            spool.settle(items[-1].position)
        assert accounts.unaccounted() == 0
    finally:
        await spool.close()
    return found


def open_descriptors() -> int:
    """File descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are all that is wanted


def memory_kib() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * (os.sysconf("SC_PAGE_SIZE") // 1024)


def tasks() -> int:
    """Tasks that are not done."""
    return sum(not task.done() for task in asyncio.all_tasks())
