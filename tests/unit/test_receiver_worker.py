"""One worker in this process: how it begins, what it tells its parent, and when it ends."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from ingest.commands import receive_worker
from ingest.commands.receive_worker import Worker, _failure_before
from ingest.receiver.channel import STOP, Channel, pack_settings
from ingest.settings import ReceiveSettings
from ingest.spool.disk import DiskSpool, open_spool

PUSH = (
    b"POST /batchReport HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 24\r\n\r\n"
    b'{"statusReportList":[]}\n'
)
PATIENCE_S = 20


@dataclass
class Parent:
    """The parent's end of one worker, and the worker."""

    channel: socket.socket
    reader: asyncio.StreamReader
    address: tuple[str, int]
    working: asyncio.Task[int]

    async def hears(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first state of which it holds."""
        async with asyncio.timeout(PATIENCE_S):
            while line := await self.reader.readline():
                state: dict[str, Any] = json.loads(line)
                if condition(state):
                    return state
        raise AssertionError("the worker says no more")

    async def push(self) -> int:
        """Push to the worker's port; returns the status."""
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection(*self.address)
            writer.write(PUSH)
            status = int((await reader.readline()).split()[1])
            writer.close()
            await writer.wait_closed()
            return status

    async def stop(self) -> int:
        """Ask for an end; returns the exit status."""
        self.channel.send(STOP)
        return await asyncio.wait_for(asyncio.shield(self.working), PATIENCE_S)


Start = Callable[..., Awaitable[Parent]]


@pytest.fixture
async def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Starts a worker without Kafka; settings by name."""
    monkeypatch.setattr(receive_worker, "REGISTRY", CollectorRegistry())
    monkeypatch.setattr(receive_worker, "exit_within", lambda _seconds, _status: None)
    parents: list[Parent] = []
    channels: list[Channel] = []

    async def run(**settings: Any) -> Parent:
        chosen = ReceiveSettings(
            **{
                "spool_dir": tmp_path / "spool",
                "spool_allow_volatile": True,
                "spool_max_bytes": 1 << 24,
                "kafka_bootstrap_servers": "127.0.0.1:1",
                "shutdown_grace_s": 1,
                "ack_mode": "spool",
                **settings,
            }
        )
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        ours, theirs = socket.socketpair()
        ours.sendall(pack_settings(chosen))
        channel, got = await Channel.open(theirs.detach())
        channels.append(channel)
        reader, writer = await asyncio.open_unix_connection(sock=ours.dup())
        working = asyncio.create_task(Worker(got, listener, channel).work())
        working.add_done_callback(lambda _: writer.close())
        parents.append(Parent(ours, reader, address, working))
        return parents[-1]

    yield run
    for parent in parents:
        if not parent.working.done():
            await parent.stop()
        parent.channel.close()
    for channel in channels:
        await channel.close()
    await asyncio.sleep(0)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Opening the spool hangs until this is set."""
    gate = asyncio.Event()
    really = open_spool

    async def open_late(*arguments: Any, **options: Any) -> DiskSpool:
        await gate.wait()
        return await really(*arguments, **options)

    monkeypatch.setattr(receive_worker, "open_spool", open_late)
    return gate


async def test_a_worker_shows_life_and_serves_while_its_spool_is_being_opened(
    start: Start, hanging: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parent does not take it for hung, senders get a clear answer, and the spool counts once it is there."""
    monkeypatch.setattr(receive_worker, "OPEN_PATIENCE_S", 0.1)
    parent = await start()

    assert not (await parent.hears(lambda _: True)).get("begun")
    assert (await parent.hears(lambda state: state.get("begun", False)))["ready"] is False
    assert await parent.push() == 503

    hanging.set()
    await parent.hears(lambda state: bool(state["ready"]))
    assert await parent.push() == 200


async def test_a_worker_that_opens_its_spool_hears_that_it_shall_end(start: Start, hanging: asyncio.Event) -> None:
    """A disk that hangs, or holds much, does not hold up a stop."""
    parent = await start()
    await parent.hears(lambda _: True)

    assert await parent.stop() == 0
    assert not hanging.is_set()


async def test_a_worker_does_not_serve_before_its_spool_is_open_when_that_is_soon(
    start: Start, hanging: asyncio.Event
) -> None:
    """A start answers no push with 503 that a moment later is kept."""
    parent = await start()
    await parent.hears(lambda _: True)
    pushing = asyncio.create_task(parent.push())
    await parent.hears(lambda _: True)

    hanging.set()

    assert await pushing == 200
    assert await parent.stop() == 0


async def test_a_part_that_was_cancelled_by_nobody_ends_the_worker() -> None:
    """A worker without one of its parts is replaced, cleanly."""
    part = asyncio.create_task(asyncio.sleep(0))
    part.cancel()

    assert isinstance(await _failure_before(asyncio.Event(), [part]), RuntimeError)
