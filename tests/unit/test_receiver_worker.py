"""One worker in this process: how it begins, what it tells its parent, and when it ends."""

import asyncio
import json
import os
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from prometheus_client import CollectorRegistry

from ingest.commands import receive_worker
from ingest.commands.receive_worker import Worker
from ingest.receiver.channel import STOP, Channel, pack_settings
from ingest.runtime.files import RealFile, RealFileSystem
from ingest.runtime.supervise import failure_before
from ingest.settings import ReceiveSettings
from ingest.spool.disk import DiskSpool, SpoolOptions, open_spool
from ingest.spool.writer import GroupWriter
from tests.fakes.forward import MemoryLink

HEAD = b"POST /batchReport HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
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

    async def push(self, body: bytes = b'{"statusReportList":[]}') -> int:
        """Push to the worker's port; returns the status."""
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection(*self.address)
            writer.write(HEAD % len(body) + body)
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

    assert isinstance(await failure_before(asyncio.Event(), [part]), RuntimeError)


class HangingFile(RealFile):
    """A file whose syncs hang while the gate is shut."""

    gate: ClassVar[threading.Event]

    def sync(self) -> None:
        """Wait."""
        self.gate.wait()
        super().sync()


class HangingDisk(RealFileSystem):
    """A disk that hangs."""

    def create(self, path: Path) -> HangingFile:
        """See `FileSystem`."""
        return HangingFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL))


@pytest.fixture
def disk_gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """While it is cleared the disk hangs; a push does not wait long for it."""
    HangingFile.gate = gate = threading.Event()
    gate.set()
    monkeypatch.setattr(receive_worker, "RealFileSystem", HangingDisk)
    monkeypatch.setattr(receive_worker, "SpoolOptions", partial(SpoolOptions, answer_max_s=0.2))
    yield gate
    gate.set()


async def test_a_hanging_disk_leaves_pushes_to_kafka(
    start: Start, disk_gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mode `spool-or-kafka`: the first waits a moment for the disk, the next ones not even that."""
    link = MemoryLink(**{"sms.status-reports": 2, "sms.dead-letters": 2})
    monkeypatch.setattr(receive_worker, "KafkaLink", lambda _options, _clock: link)
    parent = await start(ack_mode="spool-or-kafka")
    await parent.hears(lambda state: bool(state["ready"]))
    disk_gate.clear()

    assert [await parent.push(b"{}") for _ in range(3)] == [400] * 3

    assert link.values("sms.dead-letters") == [b"{}"] * 3
    assert (await parent.hears(lambda state: not state["detail"]["spool"]))["ready"] is True
    disk_gate.set()
    assert await parent.stop() == 0


async def test_a_hanging_disk_without_kafka_is_said_to_senders_and_balancers(
    start: Start, disk_gate: threading.Event
) -> None:
    """Mode `spool`: 503 and not ready, until it works again."""
    parent = await start()
    await parent.hears(lambda state: bool(state["ready"]))
    disk_gate.clear()

    assert await parent.push() == 503
    await parent.hears(lambda state: not state["ready"])

    disk_gate.set()
    await parent.hears(lambda state: bool(state["ready"]))
    assert await parent.push() == 200


async def test_a_worker_whose_spool_writer_died_ends(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its successor has a writer; staying would answer 503 to every push from then on."""
    parent = await start()
    await parent.hears(lambda state: bool(state["ready"]))

    def fail(*_arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(GroupWriter, "commit", fail)
    assert await parent.push() == 503

    assert await asyncio.wait_for(asyncio.shield(parent.working), PATIENCE_S) == 1
